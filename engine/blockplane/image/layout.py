"""Where an image's blocks lie: its plane of places, and the way back from places to VBNs.

A block of an image is read from the state that owns it, at the place that state's map gives. Places name content on a
volume, so the owners' places never collide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from blockplane.disks.geometry import Geometry
from blockplane.image.extents import merged
from blockplane.model.addresses import Extents, Numbers
from blockplane.planes import Form, Plane
from blockplane.planes.runs import join_touching
from blockplane.volume.placemap import MapExtents, PlaceMap, pieces_of

#: Extents are worked on in pieces of this many: bounds memory.
_CHUNK_EXTENTS = 1 << 16
#: Blocks counted at a time when counting per disk: 512 KiB of words.
_COUNT_BLOCKS = 1 << 22
#: With fewer blocks than one in so many, extents are counted and not words: cost follows what is there.
_SPARSE = 4096


class Layout:
    """The places of an image.

    Parameters
    ----------
    plane : the image's VBNs.
    parts : for each owning state its map and the VBNs it owns; they partition the plane.
    n_places : the size of the volume's numbering of places.

    Attributes
    ----------
    is_home : whether every block lies at the place of its number.
    """

    def __init__(self, plane: Plane, parts: Sequence[tuple[PlaceMap, Plane]], n_places: int) -> None:
        moved = [_moved(placemap, owned) for placemap, owned in parts if not placemap.is_empty]
        rows = np.concatenate([*moved, np.empty((0, 3), np.int64)])
        self._by_place = rows[np.argsort(rows[:, 2])]
        self._by_vbn = PlaceMap(rows[np.argsort(rows[:, 0])])
        self.is_home = not len(rows)
        self.places = plane if not len(rows) and plane.n_blocks == n_places else _places(plane, rows, n_places)

    def within(self, part: Plane) -> Layout:
        """Return the layout of a part of the image, given by its VBNs; fresh."""
        found = copy(self)
        rows = self._by_vbn.extents
        found.places = (
            part
            if not len(rows) and part.n_blocks == self.places.n_blocks
            else _places(part, _moved(self._by_vbn, part), self.places.n_blocks)
        )
        return found

    def to_vbns(self, places: Extents) -> tuple[Extents, Numbers]:
        """Return VBN extents for extents of places, cut where the way back has borders.

        Returns
        -------
        extents : (m, 2) VBNs, in the order given.
        source : (m,) which of the given extents each one is part of.
        """
        if not len(self._by_place):
            return places, np.arange(len(places), dtype=np.int64)
        rows = self._by_place
        starts = rows[:, 2]
        pieces, source, row = pieces_of(places, np.column_stack((starts, starts + rows[:, 1] - rows[:, 0])))
        return pieces + np.where(row < 0, 0, rows[row, 0] - starts[row])[:, None], source

    def to_places(self, vbns: Extents) -> Extents:
        """Return extents of places for VBN extents of the image, in the same order of blocks."""
        return self._by_vbn.extents_to_places(vbns)

    def blocks_per_disk(self, geometry: Geometry) -> list[int]:
        """Return how many blocks of the image each disk holds; 0 for parity disks."""
        counts = [0] * geometry.n_disks
        for group in geometry.groups:
            row_blocks = group.chunk_blocks * group.n_data
            n_members = count_within(self.places, group.first, group.stop)
            if row_blocks > _COUNT_BLOCKS or n_members * _SPARSE < group.n_blocks:
                _count_by_extents(self.places, geometry, counts, group.first, group.stop)
                continue
            step = _COUNT_BLOCKS // row_blocks * row_blocks
            for first in range(group.first, group.stop, step):
                n_words = (min(first + step, group.stop) - first) // 64
                words = self.places.word_range(first // 64, n_words)
                shape = (-1, group.n_data, group.chunk_blocks // 64)
                sums = np.bitwise_count(words).reshape(shape).sum(axis=(0, 2), dtype=np.int64)
                for disk, n in zip(group.disks, sums.tolist(), strict=False):
                    counts[disk] += n
        return counts


def count_within(places: Plane, start: int, stop: int) -> int:
    """Return how many places of a range are in; it may reach past the plane."""
    return places.count(start, min(stop, places.n_blocks)) if start < places.n_blocks else 0


def next_place(places: Plane, start: int, stop: int) -> int | None:
    """Return the first place of a range, which may reach past the plane; in a Roaring plane, however far it is."""
    stop = min(stop, places.n_blocks)
    if start >= stop:
        return None
    if places.form is Form.DENSE:
        return next((int(extents[0, 0]) for extents in places.iter_extents(1, start, stop) if len(extents)), None)
    n_before = places.rank(start)
    if n_before == len(places):
        return None
    place = int(places.select(n_before))
    return place if place < stop else None


def present_extents(places: Plane, start: int, stop: int) -> Iterator[Extents]:
    """Yield the extents of a range, which may reach past the plane, some at a time.

    Notes
    -----
    Cost follows what is there: a Roaring plane's empty stretches are passed over.
    """
    if places.form is Form.DENSE:
        if start < min(stop, places.n_blocks):
            yield from places.iter_extents(_CHUNK_EXTENTS, start, min(stop, places.n_blocks))
        return
    yield from join_touching(_windows_of(places, start, min(stop, places.n_blocks)))


def _windows_of(places: Plane, start: int, stop: int) -> Iterator[Extents]:
    while start < stop:
        extents = places.extents(start, min(start + _COUNT_BLOCKS, stop))
        if len(extents):
            yield extents
            start += _COUNT_BLOCKS
        else:
            start = next_place(places, start, stop) or stop


def _count_by_extents(places: Plane, geometry: Geometry, counts: list[int], start: int, stop: int) -> None:
    """Count a group whose chunks are large, or nearly empty: by extents, cut at chunk borders."""
    for extents in present_extents(places, start, stop):
        pieces = geometry.split(extents)
        for disk, n in enumerate(np.bincount(pieces.disk, pieces.n_blocks, geometry.n_disks).tolist()):
            counts[disk] += int(n)


def _moved(placemap: PlaceMap, owned: Plane) -> MapExtents:
    """Return the rows (vbn_start, vbn_stop, place_start) of a map, cut to the VBNs in a plane."""
    return placemap.within(owned).extents


def _places(plane: Plane, rows: MapExtents, n_places: int) -> Plane:
    """Return the plane of places: the VBNs that are at home, and where the others are."""
    builder = Plane.empty(n_places)
    away = rows[np.argsort(rows[:, 0]), :2]
    stop = min(plane.n_blocks, n_places)
    for extents in plane.iter_extents(_CHUNK_EXTENTS, 0, stop) if stop else ():
        pieces, _, row = pieces_of(extents, away)
        builder |= Plane.from_extents(pieces[row < 0], n_places)
    places = np.column_stack((rows[:, 2], rows[:, 2] + rows[:, 1] - rows[:, 0]))
    places = places[np.argsort(places[:, 0])]
    for at in range(0, len(places), _CHUNK_EXTENTS):
        builder |= Plane.from_extents(merged(places[at : at + _CHUNK_EXTENTS]), n_places)
    return builder
