"""What changed between two states by block: two differences, read from the leaves that the planes do not share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockplane.image.evaluate import evaluate
from blockplane.image.formula import sum_of
from blockplane.image.store import SnapshotStore, store_of
from blockplane.planes import Plane
from blockplane.volume.live import LiveVolume


@dataclass(frozen=True, slots=True)
class BlockDifference:
    """Blocks that came and that went.

    added, removed : VBNs. exchanged : those of both, under which the two states hold different blocks, at different
    places. n_leaves : blockmap leaves read.
    """

    added: Plane
    removed: Plane
    n_leaves: int

    @property
    def exchanged(self) -> Plane:
        """VBNs that were removed and added: another block has the number."""
        return self.added & self.removed


def n_in_any(origin: SnapshotStore | LiveVolume, after: Sequence[str | None], before: Sequence[str] = ()) -> int:
    """Return how many blocks some states have together that none of others has; None names the live file system.

    Raises
    ------
    NoSuchSnapshotError : there is none of a name.
    """
    store = store_of(origin)
    with store.standing():
        states = [store.state(name) for name in (*after, *before)]
        n_blocks = max(store.geometry.n_blocks, *(state.space_blocks for state in states))
        wanted = sum_of(range(len(after)), range(len(after), len(states)))
        return len(evaluate([wanted], states, n_blocks).planes[0])


def block_difference(origin: SnapshotStore | LiveVolume, before: str | None, after: str | None) -> BlockDifference:
    """Return which blocks a state has and another has not, both ways; None names the live file system.

    Raises
    ------
    NoSuchSnapshotError : there is none of that name.
    """
    store = store_of(origin)
    with store.standing():
        states = [store.state(before), store.state(after)]
        n_blocks = max(store.geometry.n_blocks, *(state.space_blocks for state in states))
        found = evaluate([sum_of([1], [0]), sum_of([0], [1])], states, n_blocks)
    return BlockDifference(found.planes[0], found.planes[1], found.n_leaves)
