"""Blocks that lie at another place than their number, and what keeps each from going home (DESIGN.md, law 4)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, LEAF_WORDS, Leaf
from blockplane.volume.moving import names_at, state_leaf
from blockplane.volume.placemap import MapExtents, PlaceMap, expand

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Way(IntEnum):
    """What is at the place that a block has its number from."""

    FREE = 0
    #: only what was there two consistency points ago
    WAITING = 1
    #: a block that has a home elsewhere itself: it moves on first
    PASSING = 2
    #: a block of the local tree: it is placed anew
    TABLES = 3
    #: something that stays: a block whose home it is, or that has none here
    TAKEN = 4
    #: nothing that is in use, but a shadow means what lies there
    MEANT = 5
    #: an interrupted receive has places in these stripes
    ARRIVING = 6
    #: the block is being read where it is
    READ = 7
    #: the volume has no such place, or its group is being taken out
    NONE = 8


#: Ways on which a block goes home.
OPEN_WAYS = (Way.FREE, Way.WAITING, Way.PASSING, Way.TABLES)


@dataclass(frozen=True, slots=True)
class Astray:
    """Blocks whose numbers lie in one leaf and which lie elsewhere, in the order of their numbers.

    homes : their numbers. places : where they lie. ways : a `Way` each.
    """

    homes: Numbers
    places: Numbers
    ways: NDArray[np.int8]

    def of(self, *ways: Way) -> Astray:
        """Return those on some ways."""
        mine = np.isin(self.ways, ways)
        return Astray(self.homes[mine], self.places[mine], self.ways[mine])

    def __len__(self) -> int:
        return len(self.homes)


class Homes:
    """Looks at a volume as its last consistency point has it. The volume's lock is held, everything is committed.

    Attributes
    ----------
    maps : of the live state and of snapshots, each once. n_extents : of all of them.
    """

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume
        states = [volume.committed, *reversed(volume.snapshot_states())]
        every = [state.placemap for state in states if not state.placemap.is_empty]
        self.n_extents = sum(len(placemap.extents) for placemap in every)
        self.maps = list({hashlib.sha256(placemap.encode()).digest(): placemap for placemap in every}.values())
        self._weights = [sum(other == placemap for other in every) for placemap in self.maps]
        self._read = [volume.snapshot_state(e) for e in volume.local.regular() if volume.is_pinned(e.record.id)]
        groups = volume.geometry.groups
        self._groups = [group for index, group in enumerate(groups) if index != volume.info.leaving]

    def leaves(self) -> list[int]:
        """Return the leaves with a number whose block lies elsewhere, ascending."""
        return sorted({leaf for placemap in self.maps for leaf in placemap.domain_leaves()})

    def has_place(self, vbns: Numbers) -> Mask:
        """Return which numbers are places that blocks can be moved to."""
        found = np.zeros(len(vbns), np.bool_)
        for group in self._groups:
            found |= (vbns >= group.first) & (vbns < group.stop)
        return found

    def astray(self, leaf: int) -> Astray:
        """Return what of a leaf's numbers lies elsewhere; of two blocks that have one number, the younger state's."""
        start = leaf * LEAF_BLOCKS
        place_of = dense([placemap.overlapping(start, start + LEAF_BLOCKS) for placemap in self.maps], start)
        low = np.flatnonzero(place_of >= 0)
        homes, places = low + start, place_of[low]
        return Astray(homes, places, self._ways(leaf, homes, places))

    def _ways(self, leaf: int, homes: Numbers, places: Numbers) -> NDArray[np.int8]:
        volume, start = self._volume, leaf * LEAF_BLOCKS
        ways = np.full(len(homes), Way.NONE, np.int8)
        mine = self.has_place(homes)
        if not mine.any():
            return ways
        low = homes - start
        live, busy = state_leaf(volume, leaf), volume.busy_leaf(leaf)
        local = volume.committed_local.local_leaf(leaf) | volume.local.local_leaf(leaf)
        chosen = [
            (_bits(~busy, low), Way.FREE),
            (_bits(busy & ~live & ~local, low), Way.WAITING),
            (_bits(local, low), Way.TABLES),
            (_bits(live, low), Way.TAKEN),
            (_bits(live, low) & self._passing(leaf, homes), Way.PASSING),
            (_bits(volume.space.spared_leaf(leaf) & ~live, low), Way.MEANT),
            (_bits(self._arriving(leaf), low), Way.ARRIVING),
            (self._is_read(places), Way.READ),
        ]
        for at, way in chosen:
            ways[at & mine] = way
        return ways

    def _passing(self, leaf: int, homes: Numbers) -> Mask:
        """Return at which places blocks lie that are not at home themselves, have one here, and are not being read."""
        start = leaf * LEAF_BLOCKS
        rows = [placemap.overlapping_places(start, start + LEAF_BLOCKS) for placemap in self.maps]
        names = dense([np.column_stack((r[:, 2], r[:, 2] + r[:, 1] - r[:, 0], r[:, 0])) for r in rows], start)
        names = names[homes - start]
        return (names >= 0) & self.has_place(names) & ~self._is_read(homes)

    def _is_read(self, places: Numbers) -> Mask:
        """Return at which places snapshots have blocks that something reads now."""
        found = np.zeros(len(places), np.bool_)
        for state in self._read:
            found |= names_at(state, places)[1]
        return found

    def _arriving(self, leaf: int) -> Leaf:
        """Return the places of a leaf's range in stripes, 64 together, to which a receive brings blocks."""
        volume = self._volume
        if not volume.incoming:
            return EMPTY_LEAF
        words = np.zeros(LEAF_WORDS, np.uint64)
        for at in range(LEAF_WORDS):
            place = leaf * LEAF_BLOCKS + at * 64
            if self.has_place(np.array([place]))[0] and volume.is_landing(place):
                words[at] = ~np.uint64(0)
        return words

    def n_elsewhere(self) -> int:
        """Return how many blocks lie elsewhere; one that several states share is one."""
        total = 0
        for leaf in self.leaves():
            start = leaf * LEAF_BLOCKS
            pairs = [expanded(placemap.overlapping(start, start + LEAF_BLOCKS)) for placemap in self.maps]
            first = pairs[0]
            for pair in pairs[1:]:
                first = np.unique(np.concatenate((first, pair)), axis=0)
            total += len(first)
        return total

    def extents_without(self, going: dict[int, Astray]) -> int:
        """Return how many extents the maps have when some blocks, by leaf, are at home."""
        return sum(
            weight * _n_without(placemap, going) for placemap, weight in zip(self.maps, self._weights, strict=True)
        )


def dense(parts: list[MapExtents], start: int) -> Numbers:
    """Return rows (number, end, other number) of one leaf as what each number leads to, -1 for none; the first wins."""
    out = np.full(LEAF_BLOCKS, -1, np.int64)
    for rows in parts:
        pairs = expanded(rows)
        low = pairs[:, 0] - start
        fresh = out[low] < 0
        out[low[fresh]] = pairs[fresh, 1]
    return out


def expanded(rows: MapExtents) -> Numbers:
    """Return rows (number, end, other number) block by block: (n, 2)."""
    counts = rows[:, 1] - rows[:, 0]
    return np.column_stack((expand(rows[:, 0], counts), expand(rows[:, 2], counts)))


def _n_without(placemap: PlaceMap, going: dict[int, Astray]) -> int:
    n_extents, last = 0, (-2, -2)  # the last block that stays elsewhere, and its place
    for leaf in placemap.domain_leaves():
        start = leaf * LEAF_BLOCKS
        pairs = expanded(placemap.overlapping(start, start + LEAF_BLOCKS))
        if leaf in going:
            home = np.full(LEAF_BLOCKS, -1, np.int64)
            home[going[leaf].homes - start] = going[leaf].places
            pairs = pairs[home[pairs[:, 0] - start] != pairs[:, 1]]
        if len(pairs):
            steps = np.diff(np.concatenate(([last], pairs)), axis=0)
            n_extents += int((steps != 1).any(axis=1).sum())
            last = (int(pairs[-1, 0]), int(pairs[-1, 1]))
    return n_extents


def _bits(words: Leaf, low: Numbers) -> Mask:
    """Return which numbers within a leaf are set."""
    found: Mask = (words[low >> 6] >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
    return found
