"""Place maps: where the blocks of one state lie, when not at the place of the same number (DESIGN.md, law 4).

A map is a sparse table of extents (vbn_start, vbn_stop, place_start), ascending in VBN, one to one, and empty on a
volume that never received or relocated. Its VBNs are all in the state's plane. They may be any of the numbering, also
such as this volume has no place of that number for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockplane.planes import Plane
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, Leaf, set_range
from blockplane.volume.runs import mask_extents

EXTENT_BYTES = 24
#: From so many ranges on a leaf is made of all at once: one by one they cost 2 us each, all together 60.
_MANY_RANGES = 32
MapExtents = NDArray[np.int64]
LeafOf = Callable[[int], Leaf]


class PlaceMap:
    """An immutable map; changes make a new one."""

    __slots__ = ("_by_place", "extents")

    def __init__(self, extents: MapExtents | None = None) -> None:
        # a column at a time: it is searched in one, and that is then no copy
        self.extents: MapExtents = np.asfortranarray(extents if extents is not None else np.empty((0, 3), np.int64))
        self._by_place: MapExtents | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every block lies at home."""
        return len(self.extents) == 0

    @property
    def n_blocks(self) -> int:
        """How many blocks lie elsewhere."""
        return int((self.extents[:, 1] - self.extents[:, 0]).sum())

    @property
    def stop(self) -> int:
        """The number behind the highest VBN that lies elsewhere; 0 where none does."""
        return int(self.extents[-1, 1]) if len(self.extents) else 0

    def vbns(self) -> NDArray[np.int64]:
        """Return the VBNs that lie elsewhere, ascending."""
        parts = [np.arange(low, high, dtype=np.int64) for low, high, _ in self.extents.tolist()]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, PlaceMap) and np.array_equal(self.extents, other.extents))

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> bytes:
        """Return the table: three little-endian 64-bit integers an extent."""
        return self.extents.astype("<i8").tobytes()

    @classmethod
    def decode(cls, data: bytes) -> PlaceMap:
        """Read a table."""
        return cls(np.frombuffer(data, "<i8").reshape(-1, 3).astype(np.int64))

    def to_places(self, vbns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of VBNs."""
        if self.is_empty:
            return vbns
        at = np.searchsorted(self.extents[:, 0], vbns, side="right") - 1
        found = self.extents[np.maximum(at, 0)]
        inside = (at >= 0) & (vbns < found[:, 1])
        return np.where(inside, found[:, 2] + vbns - found[:, 0], vbns)

    def to_vbns(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the VBNs whose blocks lie at places; -1 where a place's own VBN lies elsewhere."""
        if self.is_empty:
            return places
        turned = self._turned()
        at = np.searchsorted(turned[:, 0], places, side="right") - 1
        found = turned[np.maximum(at, 0)]
        come = (at >= 0) & (places < found[:, 1])
        at_home = self.to_places(places) == places
        return np.where(come, found[:, 2] + places - found[:, 0], np.where(at_home, places, -1))

    def _turned(self) -> MapExtents:
        """Return the map by place: (place_start, place_stop, vbn_start), ascending."""
        if self._by_place is None:
            e = self.extents
            turned = np.column_stack((e[:, 2], e[:, 2] + e[:, 1] - e[:, 0], e[:, 0]))
            self._by_place = np.asfortranarray(turned[np.argsort(turned[:, 0])])
        return self._by_place

    def extents_to_places(self, extents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return VBN extents (n, 2) as extents of places, in the same order of blocks."""
        if self.is_empty:
            return extents
        pieces, _, row = pieces_of(extents, self.extents)
        moved: NDArray[np.int64] = pieces + np.where(row < 0, 0, self.extents[row, 2] - self.extents[row, 0])[:, None]
        return moved

    def overlapping(self, start: int, stop: int) -> MapExtents:
        """Return the part of the map whose VBNs lie in start..stop."""
        return _cut(self.extents, start, stop)

    def overlapping_places(self, start: int, stop: int) -> MapExtents:
        """Return the part of the map whose places lie in start..stop."""
        cut = _cut(self._turned(), start, stop)
        return np.column_stack((cut[:, 2], cut[:, 2] + cut[:, 1] - cut[:, 0], cut[:, 0]))

    def place_leaf(self, vbn_leaf: Leaf, leaf: int) -> Leaf:
        """Return the places in a leaf's range that a state occupies, from its plane's leaf of the same number.

        What lies elsewhere is taken out, what of other leaves lies here is put in. Returns vbn_leaf itself where the
        map says nothing about this leaf.
        """
        if self.is_empty:
            return vbn_leaf
        start, stop = leaf * LEAF_BLOCKS, (leaf + 1) * LEAF_BLOCKS
        gone, come = self.overlapping(start, stop), _cut(self._turned(), start, stop)
        if not len(gone) and not len(come):
            return vbn_leaf
        out = vbn_leaf & ~range_leaf(gone[:, 0:2] - start)
        out |= range_leaf(come[:, 0:2] - start)
        return out

    def domain_leaf(self, leaf: int) -> Leaf:
        """Return the VBNs of a leaf that the map moves elsewhere."""
        start = leaf * LEAF_BLOCKS
        return range_leaf(self.overlapping(start, start + LEAF_BLOCKS)[:, 0:2] - start)

    def range_leaf(self, leaf: int) -> Leaf:
        """Return the places of a leaf's range at which blocks lie that are not at home."""
        start = leaf * LEAF_BLOCKS
        cut = _cut(self._turned(), start, start + LEAF_BLOCKS)
        return range_leaf(cut[:, 0:2] - start)

    def domain_leaves(self) -> list[int]:
        """Return the leaves in which the map moves a VBN, ascending."""
        return leaves_of_ranges(self.extents[:, 0:2])

    def leaves(self) -> list[int]:
        """Return the leaves of which the map says something, as VBNs or as places, ascending."""
        turned = self._turned()
        return sorted({*self.domain_leaves(), *leaves_of_ranges(turned[:, 0:2])})

    def without(self, vbns: NDArray[np.int64]) -> PlaceMap:
        """Return the map less these VBNs (ascending)."""
        if self.is_empty or not len(vbns):
            return self
        breaks = np.flatnonzero(np.diff(vbns) != 1) + 1
        starts, stops = vbns[np.concatenate(([0], breaks))], vbns[np.concatenate((breaks - 1, [len(vbns) - 1]))] + 1
        pieces, source, row = pieces_of(self.extents[:, 0:2], np.column_stack((starts, stops)))
        if (row < 0).all():
            return self
        old = self.extents[source]
        return PlaceMap(np.column_stack((pieces, old[:, 2] + pieces[:, 0] - old[:, 0]))[row < 0])

    def within(self, plane: Plane) -> PlaceMap:
        """Return the map cut to the VBNs of a plane."""
        n_words = -(-plane.n_blocks // 64)

        def leaf_of(leaf: int) -> Leaf:
            words = np.zeros(LEAF_WORDS, np.uint64)
            first, stop = leaf * LEAF_WORDS, min((leaf + 1) * LEAF_WORDS, n_words)
            if first < stop:
                words[: stop - first] = plane.word_range(first, stop - first)
            return words

        return self.cut(leaf_of)

    def cut(self, leaf_of: LeafOf) -> PlaceMap:
        """Return the map cut to the VBNs of a plane that is given leaf by leaf; itself where that takes nothing away.

        Notes
        -----
        Memory: the map and a leaf.
        """
        return self.of_leaves([self.cut_leaf(leaf, leaf_of(leaf)) for leaf in self.domain_leaves()])

    def cut_leaf(self, leaf: int, words: Leaf) -> MapExtents:
        """Return the part of the map whose VBNs are the set bits of a leaf."""
        start = leaf * LEAF_BLOCKS
        rows = self.overlapping(start, start + LEAF_BLOCKS)
        runs = bit_runs(range_leaf(rows[:, 0:2] - start) & words) + start
        pieces, _, row = pieces_of(runs, rows)
        return np.column_stack((pieces, rows[row, 2] + pieces[:, 0] - rows[row, 0]))

    def of_leaves(self, parts: list[MapExtents]) -> PlaceMap:
        """Return the map of parts of this one, ascending; itself where they are all of it."""
        found = PlaceMap(joined(np.concatenate([np.empty((0, 3), np.int64), *parts])))
        return self if found.n_blocks == self.n_blocks else found

    def leaf_key(self, leaf: int) -> bytes:
        """Return what is equal for two maps that move the same VBNs of a leaf away."""
        start = leaf * LEAF_BLOCKS
        return self.overlapping(start, start + LEAF_BLOCKS)[:, 0:2].tobytes()

    def maps_any(self, leaf: int) -> bool:
        """Whether the map says anything of a leaf, as VBNs or as places."""
        if self.is_empty:
            return False
        start, stop = leaf * LEAF_BLOCKS, (leaf + 1) * LEAF_BLOCKS
        return bool(len(self.overlapping(start, stop)) or len(self.overlapping_places(start, stop)))


def from_pairs(vbns: NDArray[np.int64], places: NDArray[np.int64]) -> PlaceMap:
    """Return the map of VBNs (ascending) to places; pairs that are equal are left out."""
    moved = vbns != places
    vbns, places = vbns[moved], places[moved]
    if not len(vbns):
        return PlaceMap()
    breaks = np.flatnonzero((np.diff(vbns) != 1) | (np.diff(places) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    stops = np.concatenate((breaks, [len(vbns)]))
    return PlaceMap(np.column_stack((vbns[starts], vbns[stops - 1] + 1, places[starts])))


def moved(placemap: PlaceMap, vbns: NDArray[np.int64], places: NDArray[np.int64]) -> PlaceMap:
    """Return a map after VBNs, in any order, came to lie at places."""
    order = np.argsort(vbns)
    vbns, places = vbns[order], places[order]
    return union([placemap.without(vbns), from_pairs(vbns, places)])


def union(maps: list[PlaceMap]) -> PlaceMap:
    """Return one map of maps whose VBNs are distinct."""
    parts = [m.extents for m in maps if not m.is_empty]
    if not parts:
        return PlaceMap()
    rows = np.concatenate(parts)
    return PlaceMap(joined(rows[np.argsort(rows[:, 0])]))


def joined(rows: MapExtents) -> MapExtents:
    """Return rows of a map, ascending in VBN, those that go on from the one before made one with it."""
    if len(rows) < 2:
        return rows
    goes_on = (rows[1:, 0] == rows[:-1, 1]) & (rows[1:, 2] == rows[:-1, 2] + rows[:-1, 1] - rows[:-1, 0])
    heads = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    ends = np.concatenate((heads[1:], [len(rows)])) - 1
    return np.column_stack((rows[heads, 0], rows[ends, 1], rows[heads, 2]))


def pieces_of(
    extents: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut extents (n, 2), in any order and none of them empty, at the borders of rows (start, stop, ...).

    Parameters
    ----------
    rows : ascending, apart.

    Returns
    -------
    pieces : (m, 2), in the order of the extents. source : (m,) which of the extents each one is part of. row : (m,)
        the row that covers it, -1 for none.
    """
    cover = np.searchsorted(rows[:, 1], extents[:, 0], side="right")
    n_covering = np.maximum(np.searchsorted(rows[:, 0], extents[:, 1], side="left") - cover, 0)
    if not n_covering.any():
        return extents, np.arange(len(extents)), np.full(len(extents), -1)
    chosen = np.unique(expand(cover, n_covering))  # few extents cost little, however many rows there are
    pieces, source, row = _pieces_of(extents, rows[chosen])
    return pieces, source, np.where(row < 0, -1, chosen[row])


def _pieces_of(
    extents: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    borders = np.unique(rows[:, 0:2])
    low = np.searchsorted(borders, extents[:, 0], side="right")
    n_cuts = np.maximum(np.searchsorted(borders, extents[:, 1], side="left") - low, 0)
    source = np.repeat(np.arange(len(extents)), n_cuts + 1)
    last = np.cumsum(n_cuts + 1) - 1
    first = last - n_cuts
    starts = np.empty(len(source), np.int64)
    starts[first] = extents[:, 0]
    inner = np.ones(len(source), np.bool_)
    inner[first] = False
    cut = np.arange(len(source)) - first[source] - 1 + low[source]
    starts[inner] = borders[cut[inner]]
    stops = np.empty(len(source), np.int64)
    stops[:-1] = starts[1:]
    stops[last] = extents[:, 1]
    row = np.searchsorted(rows[:, 0], starts, side="right") - 1
    row[(row >= 0) & (starts >= rows[row, 1])] = -1
    return np.column_stack((starts, stops)), source, row


def expand(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return starts[0], starts[0] + 1, ... for counts[0] numbers, then the same for starts[1], and so on."""
    ends = np.cumsum(counts)
    found: NDArray[np.int64] = np.repeat(starts - (ends - counts), counts)
    found += np.arange(len(found), dtype=np.int64)
    return found


def aligned(vbns: NDArray[np.int64], places: NDArray[np.int64]) -> PlaceMap:
    """Return the map of the blocks of VBN extents, in any order, to those of as many places, in the order given."""
    sizes, room = vbns[:, 1] - vbns[:, 0], places[:, 1] - places[:, 0]
    ends, room_ends = np.cumsum(sizes), np.cumsum(room)
    stops = np.union1d(ends, room_ends)
    starts = np.concatenate(([0], stops[:-1]))
    mine = np.searchsorted(ends, starts, side="right")
    theirs = np.searchsorted(room_ends, starts, side="right")
    low = vbns[mine, 0] + starts - (ends - sizes)[mine]
    rows = np.column_stack((low, low + stops - starts, places[theirs, 0] + starts - (room_ends - room)[theirs]))
    rows = rows[rows[:, 0] != rows[:, 2]]
    return PlaceMap(joined(rows[np.argsort(rows[:, 0])]))


def range_leaf(ranges: NDArray[np.int64]) -> Leaf:
    """Return a leaf with ranges (n, 2), relative to it, within it and apart, set."""
    if len(ranges) < _MANY_RANGES:
        words = np.zeros(LEAF_WORDS, np.uint64)
        for low, high in ranges.tolist():
            set_range(words, low, high)
        return words
    edges = np.zeros(LEAF_BLOCKS + 1, np.int8)
    edges[ranges[:, 0]] = 1
    edges[ranges[:, 1]] -= 1  # where one ends and the next begins: neither
    bits = np.cumsum(edges[:-1], dtype=np.int8)
    return np.packbits(bits.view(np.uint8), bitorder="little").view(np.uint64)


def bit_runs(words: Leaf) -> NDArray[np.int64]:
    """Return the runs of set bits of a leaf as (n, 2), relative to it."""
    return mask_extents(np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_))


def leaves_of_ranges(ranges: NDArray[np.int64]) -> list[int]:
    """Return the leaves that ranges (n, 2) touch, ascending."""
    first, last = ranges[:, 0] // LEAF_BLOCKS, (ranges[:, 1] - 1) // LEAF_BLOCKS
    found = {*np.unique(first).tolist(), *np.unique(last).tolist()}
    for low, high in ranges[last - first > 1].tolist():
        found.update(range(low // LEAF_BLOCKS, (high - 1) // LEAF_BLOCKS + 1))
    return sorted(found)


def _cut(extents: MapExtents, start: int, stop: int) -> MapExtents:
    low = int(np.searchsorted(extents[:, 1], start, side="right"))
    high = int(np.searchsorted(extents[:, 0], stop, side="left"))
    part = extents[low:high].copy()
    if len(part):
        shift = np.maximum(start - part[:, 0], 0)
        part[:, 0] += shift
        part[:, 2] += shift
        part[:, 1] = np.minimum(part[:, 1], stop)
    return part
