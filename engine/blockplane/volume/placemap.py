"""Place maps: where the blocks of one state lie, when not at the place of the same number (DESIGN.md, law 4).

A map is a sparse table of extents (vbn_start, vbn_stop, place_start), ascending in VBN, one to one, and empty on a
volume that never received or relocated. Its VBNs are all in the state's plane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockplane.planes import Plane
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, Leaf, set_range

EXTENT_BYTES = 24
MapExtents = NDArray[np.int64]


class PlaceMap:
    """An immutable map; changes make a new one."""

    __slots__ = ("_by_place", "extents")

    def __init__(self, extents: MapExtents | None = None) -> None:
        self.extents: MapExtents = extents if extents is not None else np.empty((0, 3), np.int64)
        self._by_place: MapExtents | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every block lies at home."""
        return len(self.extents) == 0

    @property
    def n_blocks(self) -> int:
        """How many blocks lie elsewhere."""
        return int((self.extents[:, 1] - self.extents[:, 0]).sum())

    def vbns(self) -> NDArray[np.int64]:
        """Return the VBNs that lie elsewhere, ascending."""
        parts = [np.arange(low, high, dtype=np.int64) for low, high, _ in self.extents.tolist()]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlaceMap) and np.array_equal(self.extents, other.extents)

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
            self._by_place = turned[np.argsort(turned[:, 0])]
        return self._by_place

    def extents_to_places(self, extents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return VBN extents (n, 2) as extents of places, in the same order of blocks."""
        if self.is_empty:
            return extents
        out: list[tuple[int, int]] = []
        for start, stop in extents.tolist():
            out += self._split(start, stop)
        return np.array(out, np.int64).reshape(-1, 2)

    def _split(self, start: int, stop: int) -> list[tuple[int, int]]:
        pieces: list[tuple[int, int]] = []
        at = start
        first = int(np.searchsorted(self.extents[:, 1], start, side="right"))
        for low, high, place in self.extents[first:].tolist():
            if low >= stop:
                break
            if at < low:
                pieces.append((at, low))
                at = low
            end = min(high, stop)
            pieces.append((place + at - low, place + end - low))
            at = end
        if at < stop:
            pieces.append((at, stop))
        return pieces

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
        gone, come = self.overlapping(start, stop), self.overlapping_places(start, stop)
        if not len(gone) and not len(come):
            return vbn_leaf
        out = vbn_leaf & ~range_leaf(gone[:, 0:2] - start)
        places = np.column_stack((come[:, 2], come[:, 2] + come[:, 1] - come[:, 0])) - start
        out |= range_leaf(places)
        return out

    def domain_leaf(self, leaf: int) -> Leaf:
        """Return the VBNs of a leaf that the map moves elsewhere."""
        start = leaf * LEAF_BLOCKS
        return range_leaf(self.overlapping(start, start + LEAF_BLOCKS)[:, 0:2] - start)

    def without(self, vbns: NDArray[np.int64]) -> PlaceMap:
        """Return the map less these VBNs (ascending)."""
        if self.is_empty or not len(vbns):
            return self
        at = np.searchsorted(self.extents[:, 0], vbns, side="right") - 1
        inside = (at >= 0) & (vbns < self.extents[np.maximum(at, 0), 1])
        if not inside.any():
            return self
        keep: list[tuple[int, int, int]] = []
        drop = vbns[inside]
        for low, high, place in self.extents.tolist():
            at = low
            for vbn in drop[np.searchsorted(drop, low) : np.searchsorted(drop, high)].tolist():
                if at < vbn:
                    keep.append((at, vbn, place + at - low))
                at = vbn + 1
            if at < high:
                keep.append((at, high, place + at - low))
        return PlaceMap(np.array(keep, np.int64).reshape(-1, 3))

    def within(self, plane: Plane) -> PlaceMap:
        """Return the map cut to the VBNs of a plane."""
        parts = [np.empty((0, 3), np.int64)]
        for low, high, place in self.extents.tolist():
            if low < plane.n_blocks:
                found = plane.extents(low, min(high, plane.n_blocks))
                parts.append(np.column_stack((found, found[:, 0] - low + place)))
        return PlaceMap(np.concatenate(parts))

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


def union(maps: list[PlaceMap]) -> PlaceMap:
    """Return one map of maps whose VBNs are distinct."""
    parts = [m.extents for m in maps if not m.is_empty]
    if not parts:
        return PlaceMap()
    joined = np.concatenate(parts)
    return PlaceMap(joined[np.argsort(joined[:, 0])])


def range_leaf(ranges: NDArray[np.int64]) -> Leaf:
    """Return a leaf with ranges (n, 2), relative to it and within it, set."""
    words = np.zeros(LEAF_WORDS, np.uint64)
    for low, high in ranges.tolist():
        set_range(words, low, high)
    return words


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
