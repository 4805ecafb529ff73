"""Lines of states: which state another one descends from, by branch histories (DESIGN.md, law 11)."""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.volume.codec import Branch
from blockplane.volume.state import State


def is_on_line(branch_id: bytes, cp: int, line: bytes, last_cp: int, branches: Sequence[Branch]) -> bool:
    """Tell whether state `cp` of a branch is state `last_cp` of a line, or one that it descends from.

    Parameters
    ----------
    branches : the line's history; each entry names the branch it left, and the last CP it shares with it.
    """
    by_id = {branch.id: branch for branch in branches}
    for _ in range(len(branches) + 1):
        if line == branch_id:
            return cp <= last_cp
        entry = by_id.get(line)
        if entry is None:
            return False
        line, last_cp = entry.parent_id, min(entry.parent_cp, last_cp)
    return False


def descends_from(state: State, older: State) -> bool:
    """Tell whether a state is another one, or came from it by changes alone."""
    root, wanted = state.root, older.root
    if root.space_id != wanted.space_id:
        return False
    return is_on_line(wanted.branch_id, wanted.cp, root.branch_id, root.cp, state.branches())
