"""Lines of states: which state another one descends from, by branch histories (DESIGN.md, law 11)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from blockplane.volume.codec import Branch
from blockplane.volume.state import State


class Located(Protocol):
    """Whatever says which state it is: a state's root, a snapshot's record."""

    @property
    def space_id(self) -> bytes:
        """Its numbering of VBNs."""
        ...

    @property
    def branch_id(self) -> bytes:
        """Its branch."""
        ...

    @property
    def cp(self) -> int:
        """Its consistency point, counted along its line."""
        ...


def is_in_history(state: Located, top: Located, branches: Sequence[Branch]) -> bool:
    """Tell whether a state is the top's, or one that the top descends from.

    Parameters
    ----------
    branches : the top's branch history. Branches of two numberings are different ones, whatever their ids are.
    """
    return state.space_id == top.space_id and is_on_line(state.branch_id, state.cp, top.branch_id, top.cp, branches)


def is_on_line(branch_id: bytes, cp: int, line: bytes, last_cp: int, branches: Sequence[Branch]) -> bool:
    """Tell whether state `cp` of a branch is state `last_cp` of a line, or one that it descends from.

    Parameters
    ----------
    branches : the line's history; each entry names the branch it left, and the last CP it shares with it.
    """
    return cp <= ends_of(line, last_cp, branches).get(branch_id, -1)


def ends_of(line: bytes, last_cp: int, branches: Sequence[Branch]) -> dict[bytes, int]:
    """Return the branches of a line, and the last consistency point of each that the line has: linear in branches."""
    by_id, found = {branch.id: branch for branch in branches}, {line: last_cp}
    while (entry := by_id.get(line)) is not None and entry.parent_id not in found:
        line, last_cp = entry.parent_id, min(entry.parent_cp, last_cp)
        found[line] = last_cp
    return found


def descends_from(state: State, older: State) -> bool:
    """Tell whether a state is another one, or came from it by changes alone."""
    return is_in_history(older.root, state.root, state.branches())
