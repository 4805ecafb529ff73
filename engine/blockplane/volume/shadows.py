"""Shadow snapshots: the plane of a snapshot whose blocks may be reused (DESIGN.md, law 9).

The snapshot's blockmap is handed over as it stands, so that making a shadow needs no space. Its blocks, which lie in
what was a state, are noted in the *shadowed* plane and held like a snapshot's; every other block of the snapshot is
free for reuse. The consistency point at which a place gets new content clears the bits of all shadows that mean it, and
what changes of a shadow's tree moves into the local tree, leaf by leaf.

A pointer in a shadow's tree means a VBN of the state that was, or, with `LOCAL_FLAG`, a place of the local tree.

What of a shadow's tree is damaged is dropped when bits are to be cleared there: with fewer bits more is taken for
changed, which is safe for a subtrahend, and no consistency point waits for it. So is a leaf for whose private copy the
volume has no room: none fails for what shadows would take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError
from blockplane.volume.codec import KIND_SHADOW, NUMBER_MASK, TableEntry
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    Leaf,
    bits_of,
    by_leaf,
    count,
    numbers_in,
    set_numbers,
)
from blockplane.volume.placemap import PlaceMap, moved
from blockplane.volume.spared import SparedPlaces
from blockplane.volume.state import changed_pointers
from blockplane.volume.tree import BlockTree
from blockplane.volume.treeio import Block, BlockReader

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.local import LocalTree

#: In a number of a shadow's tree: the rest is a place of the local tree. Numbers of volumes lie below 2^55.
LOCAL_FLAG: Final = 1 << 55


@dataclass(slots=True)
class Room:
    """How many blocks the open CP may still take for shadows' trees.

    n_copies : for private copies of leaves, and nodes above them. n_nodes : for nodes above leaves that are dropped.
    """

    n_copies: int
    n_nodes: int

    def take(self, n_blocks: int) -> None:
        """Note that blocks are taken."""
        self.n_copies, self.n_nodes = max(self.n_copies - n_blocks, 0), max(self.n_nodes - n_blocks, 0)


class ShadowReader:
    """Reads what the pointers of a shadow's tree mean.

    Parameters
    ----------
    places : reads places.
    placemap : where the VBNs of the state that was lie.
    """

    def __init__(self, places: BlockReader, placemap: PlaceMap) -> None:
        self._places = places
        self.placemap = placemap

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Fill out with the blocks of extents, in order."""
        parts = [
            row - LOCAL_FLAG if row[0, 0] >= LOCAL_FLAG else self.placemap.extents_to_places(row)
            for row in np.split(extents, len(extents))
        ]
        self._places.read_extents(np.concatenate(parts), out)


class ShadowWriter(ShadowReader):
    """What a shadow's tree asks of the volume: blocks that change go to the local tree.

    Blocks of the state that was are given up by `Shadows`, which knows who shares them.
    """

    def __init__(self, local: LocalTree, places: BlockReader, placemap: PlaceMap) -> None:
        super().__init__(places, placemap)
        self._local = local

    def allocate_block(self) -> tuple[int, Block]:
        """Return a place of the local tree, flagged, and its buffer."""
        place, buffer = self._local.allocate_block()
        return place | LOCAL_FLAG, buffer

    def allocate_run(self, n_blocks: int) -> list[tuple[NDArray[np.int64], Block]]:
        """Return places one by one."""
        found = (self.allocate_block() for _ in range(n_blocks))
        return [(np.array([number], np.int64), buffer) for number, buffer in found]

    def claim(self, n_blocks: int) -> None:
        """Take from the reserve, as all of the local tree does."""

    def filled(self, numbers: NDArray[np.int64], checks: NDArray[np.uint32]) -> None:
        """Pass on that buffers are full."""
        self._local.filled(numbers & ~LOCAL_FLAG, checks)

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Give up places of the local tree."""
        places = numbers[numbers >= LOCAL_FLAG] - LOCAL_FLAG
        if len(places):
            self._local.release(places)


class ShadowPlane:
    """What is left of a shadow: its tree, its place map and the count of its bits.

    It stands where a state stands as an operand of images.

    Attributes
    ----------
    dropped : (level, index, place) of what was damaged, or had no room, and is not in the tree any more; place -1: it
        did not lie in what was a state.
    was_abandoned : whether all of the tree was given up: nodes were damaged, so that nobody knows what lay below them,
        or had no room.
    """

    def __init__(self, entry: TableEntry, reader: ShadowReader, placemap: PlaceMap) -> None:
        self.entry = entry
        self.reader = reader
        self.blockmap = BlockTree(reader, entry.plane, reader if isinstance(reader, ShadowWriter) else None)
        self.placemap = placemap
        self.n_left = entry.n_left
        self.dropped: list[tuple[int, int, int]] = []
        self.was_abandoned = False

    @property
    def is_changed(self) -> bool:
        """Whether the tree is not what the last CP has."""
        return self.blockmap.is_dirty or self.has_lost_more

    @property
    def has_lost_more(self) -> bool:
        """Whether the open CP took more from it than what was reused."""
        return bool(self.dropped) or self.was_abandoned

    @property
    def cp(self) -> int:
        """The CP number of the state that was, on its own line."""
        return self.entry.record.cp

    @property
    def space_blocks(self) -> int:
        """How many VBNs the numbering had."""
        return self.blockmap.size_bytes * 8

    def leaves(self) -> Iterable[tuple[int, Leaf]]:
        """Yield (index, bits) of every leaf that exists."""
        for start, stop in self.blockmap.data_extents().tolist():
            for leaf in range(start, stop):
                yield leaf, self.blockmap.read_block(leaf).view(np.uint64)

    def leaf_key(self, leaf: int) -> object:
        """Return what is equal for two shadows whose places in a leaf's range are the same for sure."""
        if self.blockmap.is_dirty or self.placemap.maps_any(leaf):
            return self
        return self.blockmap.pointer(0, leaf)

    def place_leaf(self, leaf: int) -> Leaf:
        """Return the places in a leaf's range whose content the shadow means; do not write to it."""
        block = np.empty(BLOCK_BYTES, np.uint8)
        self.blockmap.read(leaf, 1, block)  # not kept in the tree's memory: it is wanted once
        words: Leaf = block.view(np.uint64)
        if not self.placemap.maps_any(leaf):
            return words
        places = numbers_in(self.placemap.place_leaf(words, leaf), leaf * LEAF_BLOCKS)
        vbns = self.placemap.to_vbns(places)
        held = np.zeros(LEAF_WORDS, np.uint64)
        for index in np.unique(vbns // LEAF_BLOCKS).tolist():
            mine = vbns // LEAF_BLOCKS == index
            bits, low = self.blockmap.read_block(index).view(np.uint64), vbns[mine] % LEAF_BLOCKS
            left = (bits[low >> 6] >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
            set_numbers(held, places[mine][left] - leaf * LEAF_BLOCKS)
        return held

    def clear_places(self, leaf: int, words: Leaf, room: Room) -> None:
        """Clear the bits of blocks that lie at places, the set bits of words, of a leaf's range.

        Where there is no room for a copy of a leaf, all of its bits are.
        """
        if self.placemap.is_empty:
            self._clear(leaf, words, room)
            return
        vbns = self.placemap.to_vbns(numbers_in(words, leaf * LEAF_BLOCKS))
        for index, mine in leaves_of(np.sort(vbns[vbns >= 0])).items():
            self._clear(index, mine, room)

    def _clear(self, leaf: int, words: Leaf, room: Room) -> None:
        if leaf * LEAF_BLOCKS >= self.space_blocks:
            return
        n_dirty, left = self.blockmap.n_dirty, self._left(leaf)
        lost, n_new = left & words, self.blockmap.n_clean_above(leaf)
        if not lost.any():
            pass
        elif n_new <= room.n_copies:
            self.blockmap.edit_block(leaf).view(np.uint64)[:] &= ~lost
            self.n_left -= count(lost)
        elif n_new - 1 <= room.n_nodes:
            self.n_left -= count(left)
            self._drop(leaf)
        else:
            self._give_up()
        room.take(max(self.blockmap.n_dirty - n_dirty, 0))

    def _left(self, leaf: int) -> Leaf:
        """Return what is left of a leaf: nothing where it is damaged, from now on."""
        try:
            return self.blockmap.read_block(leaf).view(np.uint64)
        except ChecksumError:
            self._drop_damaged()
            return EMPTY_LEAF

    def _drop_damaged(self) -> None:
        """Make leaves that are damaged holes, and count what is left; with a damaged node nothing is."""
        self.n_left = 0
        try:
            for start, stop in self.blockmap.data_extents().tolist():
                for leaf in range(start, stop):
                    self._count_or_drop(leaf)
        except ChecksumError:
            self._give_up()

    def _count_or_drop(self, leaf: int) -> None:
        try:
            self.n_left += count(self.blockmap.read_block(leaf).view(np.uint64))
        except ChecksumError:
            self._drop(leaf)

    def _drop(self, leaf: int) -> None:
        """Make a leaf a hole."""
        self.dropped.append((0, leaf, self.place_at(0, leaf)))
        self.blockmap.punch(leaf, leaf + 1)

    def _give_up(self) -> None:
        self.blockmap.abandon()
        self.n_left, self.was_abandoned = 0, True

    def relocate(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> bool:
        """Take up that blocks moved from places to others; return whether the shadow means any of them."""
        if self.dropped:
            now_at = dict(zip(old.tolist(), new.tolist(), strict=True))
            self.dropped = [(level, index, now_at.get(place, place)) for level, index, place in self.dropped]
        vbns = self.placemap.to_vbns(old)
        mine = (vbns >= 0) & (vbns < self.space_blocks)
        mine[mine] = bits_of(self._left, vbns[mine])
        mine |= np.isin(old, self.known_places())
        if not mine.any():
            return False
        self.placemap = moved(self.placemap, vbns[mine], new[mine])
        self.reader.placemap = self.placemap
        return True

    def own_places(self) -> NDArray[np.int64]:
        """Return the places of the tree's blocks that lie in what was a state, ascending."""
        return own_places(self.blockmap, self.placemap)

    def known_places(self) -> NDArray[np.int64]:
        """As `own_places`; without what lies below a node that is damaged: nothing finds it any more."""
        return _places_of(self.blockmap.known_pointers()[:, 0], self.placemap)

    def place_at(self, level: int, index: int) -> int:
        """Return the place of the tree's block at a position where it lies in what was a state, else -1."""
        if level > self.blockmap.root.depth:
            return -1
        word, _ = self.blockmap.pointer(level, index)
        number = word & NUMBER_MASK
        if not word or number >= LOCAL_FLAG:
            return -1
        return int(self.placemap.to_places(np.array([number], np.int64))[0])


class Shadows:
    """The shadows of a local tree.

    Parameters
    ----------
    writes : whether the local tree is that of the open CP.

    Attributes
    ----------
    spared : the places they mean, for whoever chooses places.
    find_room : says how much room there is for their trees; what these already take in the open CP is not counted.
    """

    def __init__(self, local: LocalTree, places: BlockReader, writes: bool) -> None:
        self._local = local
        self._places = places
        self._writes = writes
        self._planes: dict[bytes, ShadowPlane] = {}
        self.spared = SparedPlaces(self.planes)
        self.find_room: Callable[[], Room] = lambda: Room(1 << 62, 1 << 62)
        self._room: Room | None = None

    def entries(self) -> list[TableEntry]:
        """Return the table entries of shadows, older first; the table is not read where there can be none."""
        if self._local.root.n_shadows == 0:
            return []
        return [entry for entry in self._local.entries() if entry.record.kind == KIND_SHADOW]

    def plane(self, entry: TableEntry) -> ShadowPlane:
        """Return what is left of a shadow."""
        found = self._planes.get(entry.record.id)
        if found is None:
            placemap = self._local.map_of(entry.place_map)
            reader = ShadowReader(self._places, placemap)
            if self._writes:
                reader = ShadowWriter(self._local, self._places, placemap)
            found = self._planes[entry.record.id] = ShadowPlane(entry, reader, placemap)
        return found

    def planes(self) -> list[ShadowPlane]:
        """Return what is left of every shadow."""
        return [self.plane(entry) for entry in self.entries()]

    # --- changing ----------------------------------------------------------------------------------------------------

    def measure(self) -> Room:
        """Find out how much room the open CP has for private copies from now on."""
        self._room = self.find_room()
        self._room.take(sum(plane.blockmap.n_dirty for plane in self.planes()))
        return self._room

    def cleared(self, leaf: int, words: Leaf) -> None:
        """Clear the bits of blocks whose places, the set bits of words, get new content in the open CP.

        Where room is short, shadows lose more than that: see `ShadowPlane.clear_places`.
        """
        self.spared.cleared(leaf, words)
        room = self._room or self.measure()
        for plane in self.planes():
            plane.clear_places(leaf, words, room)
            if plane.is_changed:
                self._local.rewrite_entries()
            if plane.has_lost_more:
                self.spared.forget()

    def add(self, entry: TableEntry) -> None:
        """Take up a snapshot that has just become a shadow: its blockmap's blocks are shadowed."""
        self._local.root.n_shadows += 1
        self.spared.forget()
        for leaf, words in leaves_of(self.plane(entry).own_places()).items():
            self._local.set_shadowed_leaf(leaf, self._local.shadowed_leaf(leaf) | words)

    def relocate(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Take up that blocks moved from places to others, whose own content is overwritten with that."""
        for leaf, words in leaves_of(np.sort(new)).items():
            self.cleared(leaf, words)
        for plane in self.planes():
            if plane.relocate(old, new):
                self._local.replace_map(plane.entry, plane.placemap)
        self.spared.forget()

    def touch_within(self, start: int, stop: int, most: int) -> int:
        """See `LocalTree.touch_within`."""
        n_touched = 0
        for plane in self.planes():
            n = plane.blockmap.touch_within(LOCAL_FLAG + start, LOCAL_FLAG + stop, most - n_touched)
            if n:
                self._local.rewrite_entries()
            n_touched += n
        return n_touched

    def store(self) -> dict[int, Leaf]:
        """Write the trees that changed; return, by leaf, the places of states that no shadow's tree has any more."""
        gone: list[int] = []
        abandoned = [plane for plane in self.planes() if plane.was_abandoned]
        for plane in self.planes():
            if plane.is_changed:
                positions = plane.blockmap.dirty_positions()
                before = [(level, index, plane.place_at(level, index)) for level, index in positions]
                before += plane.dropped
                plane.blockmap.flush()
                gone += [place for level, index, place in before if self._is_alone(plane, level, index, place)]
                plane.dropped, plane.was_abandoned = [], False
                plane.entry.n_left = plane.n_left
                plane.entry.pace = plane.entry.pace.noted(time.time_ns(), plane.n_left)
        if abandoned:
            gone += self._ownerless(self.planes()).tolist()
        self._room = None
        return self._unshadow(np.unique(np.array(gone, np.int64)))

    def _is_alone(self, plane: ShadowPlane, level: int, index: int, place: int) -> bool:
        others = (other for other in self.planes() if other is not plane)
        return place >= 0 and all(_known_place(other, level, index) != place for other in others)

    def _ownerless(self, planes: Sequence[ShadowPlane]) -> NDArray[np.int64]:
        """Return, ascending, the shadowed places that none of some shadows' trees has."""
        shadowed = [np.empty(0, np.int64)]
        for start, stop in self._local.shadowed_extents():
            shadowed += [numbers_in(self._local.shadowed_leaf(leaf), leaf * LEAF_BLOCKS) for leaf in range(start, stop)]
        owned = [np.empty(0, np.int64), *(plane.known_places() for plane in planes)]
        return np.setdiff1d(np.concatenate(shadowed), np.concatenate(owned))

    def given_up_by(self, gone: Sequence[TableEntry]) -> dict[int, Leaf]:
        """Return, by leaf, the places of states that only the trees of these shadows have."""
        shadows = [entry for entry in gone if entry.record.kind == KIND_SHADOW]
        if not shadows:
            return {}
        rest = [self.plane(entry) for entry in self.entries() if entry not in shadows]
        try:
            mine = np.unique(np.concatenate([self.plane(entry).own_places() for entry in shadows]))
        except ChecksumError:  # of a node: what lies below it is nobody's
            return leaves_of(self._ownerless(rest))
        others = [plane.known_places() for plane in rest]
        return leaves_of(np.setdiff1d(mine, np.concatenate(others)) if others else mine)

    def remove(self, gone: Sequence[TableEntry], given_up: dict[int, Leaf]) -> None:
        """Take shadows away that leave the table; given_up: as `given_up_by` has it."""
        self.spared.forget()
        for leaf, words in given_up.items():
            self._local.set_shadowed_leaf(leaf, self._local.shadowed_leaf(leaf) & ~words)
        for entry in gone:
            if entry.record.kind == KIND_SHADOW:
                tree = self._planes.pop(entry.record.id, None) or self.plane(entry)
                try:
                    tree.blockmap.punch(0, tree.blockmap.capacity_blocks())
                except ChecksumError:  # of a node
                    tree.blockmap.abandon()
                self._planes.pop(entry.record.id, None)
                self._local.root.n_shadows -= 1

    def _unshadow(self, places: NDArray[np.int64]) -> dict[int, Leaf]:
        leaves = leaves_of(places)
        for leaf, words in leaves.items():
            self._local.set_shadowed_leaf(leaf, self._local.shadowed_leaf(leaf) & ~words)
        return leaves


def find(volume: LiveVolume, name: str) -> ShadowPlane:
    """Return what the last CP has left of a shadow.

    Raises
    ------
    NoSuchSnapshotError: nothing is named so.
    """
    local = volume.committed_local
    return local.shadows.plane(local.entry(name))


def own_places(blockmap: BlockTree, placemap: PlaceMap) -> NDArray[np.int64]:
    """Return the places of a plane's own blocks that lie in a state, or in what was one, ascending."""
    words = np.concatenate([np.empty(0, np.uint64), *(p[:, 0] for p in changed_pointers([blockmap]))])
    return _places_of(words, placemap)


def _places_of(words: NDArray[np.uint64], placemap: PlaceMap) -> NDArray[np.int64]:
    """Return the places, ascending, of pointers' first words that lie in a state, or in what was one."""
    numbers = (words & np.uint64(NUMBER_MASK)).astype(np.int64)
    places: NDArray[np.int64] = np.sort(placemap.to_places(numbers[numbers < LOCAL_FLAG]))
    return places


def _known_place(plane: ShadowPlane, level: int, index: int) -> int:
    """As `ShadowPlane.place_at`; -1 too where that is not known any more."""
    try:
        return plane.place_at(level, index)
    except ChecksumError:
        return -1


def leaves_of(places: NDArray[np.int64]) -> dict[int, Leaf]:
    """Return ascending places as bits, by leaf."""
    found: dict[int, Leaf] = {}
    for leaf, low in by_leaf(places):
        found[leaf] = np.zeros(LEAF_WORDS, np.uint64)
        set_numbers(found[leaf], low)
    return found
