"""Which states a top succeeds: histories are trees of branches (DESIGN.md, law 11)."""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.volume.codec import Branch, SnapshotRecord


def is_in_history(branch_id: bytes, cp: int, top: SnapshotRecord, branches: Sequence[Branch]) -> bool:
    """Tell whether the state `cp` of a branch is the top's, or one that the top descends from.

    Parameters
    ----------
    branches : the top's branch history; each entry names the branch it left, and the last CP it shares with it.
    """
    by_id = {branch.id: branch for branch in branches}
    line, last_cp = top.branch_id, top.cp
    for _ in range(len(branches) + 1):
        if line == branch_id:
            return cp <= last_cp
        entry = by_id.get(line)
        if entry is None:
            return False
        line, last_cp = entry.parent_id, min(entry.parent_cp, last_cp)
    return False
