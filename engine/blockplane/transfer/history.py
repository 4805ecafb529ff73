"""Which states a top succeeds: histories are trees of branches (DESIGN.md, law 11)."""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.volume.codec import Branch, SnapshotRecord
from blockplane.volume.lines import is_on_line


def is_in_history(branch_id: bytes, cp: int, top: SnapshotRecord, branches: Sequence[Branch]) -> bool:
    """Tell whether the state `cp` of a branch is the top's, or one that the top descends from.

    Parameters
    ----------
    branches : the top's branch history; each entry names the branch it left, and the last CP it shares with it.
    """
    return is_on_line(branch_id, cp, top.branch_id, top.cp, branches)
