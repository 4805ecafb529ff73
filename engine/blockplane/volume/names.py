"""Names for new blocks: the VBN of a block written here is the number of its place, as long as that name is free.

Where a state in use has the name for a block that lies elsewhere (law 4), the new block gets another one, and the live
state's map says where it lies: free places are of use whatever their numbers name. A name is free when it is in no
plane of the last two committed CPs, the open one, a regular snapshot. It is taken from those whose own place is in use,
or that have none here, so that it does not stand in the way of that place later: in use in the last two CPs, for of
what the open one takes the names are still to come. There are always enough: every name in use stands for another place
in use, so there are no more names in use without their place than places in use without their name.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import ChecksumError, DiskError, NoSpaceError, VolumeDamagedError
from blockplane.volume.codec import TableEntry
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    Leaf,
    clear_numbers,
    leaf_pieces,
    numbers_in,
    set_numbers,
)
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.state import State

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Leaves of names in use kept in memory: 4 MiB.
MAX_LEAVES = 1024

Numbers = NDArray[np.int64]


class Names:
    """See the module. What is kept holds for one CP; the volume's lock is held."""

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume
        self.reset()

    def reset(self) -> None:
        """Forget what was found: another CP is open, or another state is the live one."""
        self._maps: list[PlaceMap] | None = None
        self._elsewhere: dict[int, Leaf] = {}
        self._given: dict[int, Leaf] = {}
        self._at = -1
        self._left: Leaf = EMPTY_LEAF

    def choose(self, first: int, n_blocks: int) -> Numbers:
        """Return the VBNs of the blocks at places first, ..., which were free, in the order of the places."""
        vbns = np.arange(first, first + n_blocks, dtype=np.int64)
        if not self._moved():
            return vbns
        for leaf, low, high in leaf_pieces(first, first + n_blocks):
            taken = self._taken(leaf)[low >> 6 : ((high - 1) >> 6) + 1]
            if taken.any():
                bits = np.unpackbits(taken.view(np.uint8), bitorder="little")[low & 63 :][: high - low]
                mine = np.flatnonzero(bits) + leaf * LEAF_BLOCKS + low - first
                if len(mine):
                    vbns[mine] = self._others(len(mine))
        return vbns

    def _moved(self) -> list[PlaceMap]:
        """Return the maps of states in use that are not empty."""
        if self._maps is None:
            volume = self._volume
            maps = [volume.active.placemap, volume.committed.placemap, volume.previous.placemap]
            for entry in volume.local.regular():
                if entry.place_map.size_bytes:
                    state = volume.known_state(entry)
                    maps.append(state.placemap if state is not None else volume.local.map_of(entry.place_map))
            self._maps = [placemap for placemap in maps if not placemap.is_empty]
        return self._maps

    def _taken(self, leaf: int) -> Leaf:
        """Return which names of a leaf stand for blocks that lie elsewhere."""
        words = self._elsewhere.get(leaf)
        if words is None:
            words = EMPTY_LEAF
            for placemap in self._moved():
                words = words | placemap.domain_leaf(leaf)
            if len(self._elsewhere) >= MAX_LEAVES:
                self._elsewhere.clear()
            self._elsewhere[leaf] = words
        return words | self._given[leaf] if leaf in self._given else words

    def _others(self, n_blocks: int) -> Numbers:
        """Return other names for blocks."""
        found: list[Numbers] = []
        while n_blocks:
            if not self._left.any():
                self._next_leaf()
                continue
            low = numbers_in(self._left)[:n_blocks]
            clear_numbers(self._left, low)
            set_numbers(self._given.setdefault(self._at, np.zeros(LEAF_WORDS, np.uint64)), low)
            found.append(low + self._at * LEAF_BLOCKS)
            n_blocks -= len(low)
        return np.concatenate(found)

    def _next_leaf(self) -> None:
        """Go on to the next leaf of which some name is free; from the end of the numbering to its start."""
        volume = self._volume
        n_leaves = -(-max(volume.active.space_blocks, volume.geometry.n_blocks) // LEAF_BLOCKS)
        if self._at < 0:
            self._at = volume.geometry.n_blocks // LEAF_BLOCKS - 1
        for _ in range(n_leaves + 1):
            self._at = (self._at + 1) % n_leaves
            self._left = self._spare(self._at)
            if self._left.any():
                return
        raise NoSpaceError("no block number is free", "run `blockplane check`")

    def _spare(self, leaf: int) -> Leaf:
        """Return, fresh, the names of a leaf that are free and whose place is not."""
        used = self._given.get(leaf, EMPTY_LEAF) | volume_names(self._volume, leaf)
        spare: Leaf = ~used & self._volume.settled_leaf(leaf)
        return spare


def volume_names(volume: LiveVolume, leaf: int) -> Leaf:
    """Return which names of a leaf any state in use has, the open CP's included; a shared leaf is read once.

    Of a snapshot that cannot be read there, all that it may have.
    """
    seen: set[tuple[int, int]] = set()
    out = volume.active.plane_leaf(leaf) | _fresh_leaf(volume.committed, leaf, seen)
    for entry in volume.local.regular():
        try:
            out = out | _fresh_leaf(volume.snapshot_state(entry), leaf, seen)
        except DiskError:
            raise
        except VolumeDamagedError:
            out = out | _possible_names(volume, entry, leaf)
    with contextlib.suppress(ChecksumError):  # then that CP is not whole any more, and not worth keeping
        out = out | volume.previous.plane_leaf(leaf)
    return out


def _fresh_leaf(state: State, leaf: int, seen: set[tuple[int, int]]) -> Leaf:
    """Return a leaf of a state's plane; nothing where it was seen before."""
    pointer = state.blockmap.pointer(0, leaf)
    if not pointer[0] or pointer in seen:
        return EMPTY_LEAF
    seen.add(pointer)
    return state.plane_leaf(leaf)


def _possible_names(volume: LiveVolume, entry: TableEntry, leaf: int) -> Leaf:
    """Return what a snapshot's map names, and the numbers of places that hold anything of a state: all it can have."""
    local, before = volume.local, volume.committed_local
    places = volume.committed.place_leaf(leaf) | volume.active.place_leaf(leaf)
    return local.map_of(entry.place_map).domain_leaf(leaf) | places | before.held_leaf(leaf) | local.held_leaf(leaf)
