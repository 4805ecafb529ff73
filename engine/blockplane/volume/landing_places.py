"""The places that one receive has reserved for its blocks: home where that is free, anywhere else otherwise (law 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import NoSpaceError, RefusedError
from blockplane.planes import Plane
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, LEAF_WORDS, Leaf, by_leaf, numbers_in, set_numbers
from blockplane.volume.packing import FreePlaces
from blockplane.volume.placemap import PlaceMap, aligned, from_pairs
from blockplane.volume.waiting import leaves_of_plane, plane_leaf

if TYPE_CHECKING:
    from blockplane.volume.codec import TableEntry
    from blockplane.volume.live import LiveVolume

#: The order in which a plane's blocks will arrive, as extents of VBNs.
Arrival = Callable[[Plane], Iterable[NDArray[np.int64]]]

# In so many leaves, 32 GiB of places, what shadows mean is passed over at first.
_SPARING_LEAVES: Final = 256


class LandingPlaces:
    """See the module. The volume's lock is held where places are reserved or given up.

    Attributes
    ----------
    leaves : all that is reserved, by leaf.
    """

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume
        self.leaves: dict[int, Leaf] = {}
        self._spared: dict[int, Leaf] = {}

    def refuse_misfit(self, image: Plane, n_blocks: int, relocates: bool = False) -> None:
        """Refuse an image of which n_blocks are to come.

        Parameters
        ----------
        relocates : a VBN that is no place here may lie at any other.

        Raises
        ------
        RefusedError: a VBN has no place on this volume. NoSpaceError: the blocks do not fit.
        """
        volume = self._volume
        volume.make_room(n_blocks)
        if not relocates and reaches(image) > volume.geometry.n_blocks:
            raise self._too_small(reaches(image), n_blocks)
        if volume.available_blocks < n_blocks:
            raise NoSpaceError(
                f"the image has {n_blocks} blocks, and {volume.path} has room for {volume.available_blocks}",
                volume.room_hint(),
            )

    def _too_small(self, n_numbers: int, n_blocks: int) -> RefusedError:
        volume = self._volume
        room = volume.available_blocks
        fits = f"its {n_blocks} blocks would fit: --relocate lays them at other places than their numbers"
        lacks = f"its {n_blocks} blocks would not fit at other places either, {room} are free"
        return RefusedError(
            f"the image holds block {n_numbers - 1}, and {volume.path} has {volume.geometry.n_blocks} blocks; "
            + (fits if n_blocks <= room else lacks),
            "say --relocate, or take a volume at least as large as the source"
            if n_blocks <= room
            else "take a volume at least as large as the source, or add a RAID group with `blockplane grow`",
        )

    def assign(self, vbns: Plane) -> PlaceMap:
        """Give every block its place: home where that is free; return the map of the others."""
        space, astray = self._volume.space, []
        for leaf in leaves_of_plane(vbns):
            words = plane_leaf(vbns, leaf)
            busy = space.leaf(leaf)
            conflict = words & busy
            if conflict.any():
                astray.append(numbers_in(conflict, leaf * LEAF_BLOCKS))
            self.reserve(leaf, words & ~busy)
        if not astray:
            return PlaceMap()
        moved = np.concatenate(astray)
        return from_pairs(moved, self._elsewhere(len(moved)))

    def pack(self, vbns: Plane, arrival: Arrival | None) -> PlaceMap:
        """Give blocks the next free places in the order in which they arrive, whole stripes first; return their map.

        Notes
        -----
        The map has an extent for every run of VBNs that arrive together, and for every border of free space among
        them. Memory: 40 bytes an extent while it is made.
        """
        parts = list(arrival(vbns)) if arrival is not None else [vbns.extents()]
        extents = np.concatenate([np.empty((0, 2), np.int64), *parts])
        return aligned(extents, FreePlaces(self._volume.space, self.reserve).take(len(vbns)))

    def reserve(self, leaf: int, words: Leaf) -> None:
        """Reserve places."""
        self.leaves[leaf] = self.leaves.get(leaf, EMPTY_LEAF) | words
        self._volume.incoming.reserve(leaf, words)
        self._volume.space.leaf(leaf)[:] |= words

    def _elsewhere(self, n_blocks: int) -> NDArray[np.int64]:
        """Return places nothing holds and no block of the image has as its home, ascending."""
        found: list[NDArray[np.int64]] = []
        space, last = self._volume.space, -(-self._volume.geometry.n_blocks // LEAF_BLOCKS) - 1
        spare = range(last, max(last - _SPARING_LEAVES, -1), -1) if space.is_sparing else range(0)
        for leaf, spared in [*((leaf, True) for leaf in spare), *((leaf, False) for leaf in range(last, -1, -1))]:
            words = ~space.leaf(leaf) & ~space.spared_leaf(leaf) if spared else ~space.leaf(leaf)
            free = numbers_in(words, leaf * LEAF_BLOCKS)[:n_blocks]
            if len(free):
                words = np.zeros(LEAF_WORDS, np.uint64)
                set_numbers(words, free - leaf * LEAF_BLOCKS)
                self.reserve(leaf, words)
                found.append(free)
                n_blocks -= len(free)
            if not n_blocks:
                return np.sort(np.concatenate(found))
        raise NoSpaceError(
            f"{self._volume.path} has no place for {n_blocks} more blocks", "delete snapshots, or grow it"
        )

    def spare(self, places: NDArray[np.int64]) -> None:
        """Note places to which nothing comes after all; they are given up with the others, at the end."""
        for leaf, low in by_leaf(places):
            set_numbers(self._spared.setdefault(leaf, np.zeros(LEAF_WORDS, np.uint64)), low)

    def leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range a block of the image comes to; do not write to it."""
        words = self.leaves.get(leaf, EMPTY_LEAF)
        return words & ~self._spared[leaf] if leaf in self._spared else words

    def give_up(self) -> None:
        """Give back what was reserved: what a state has by now stays its own."""
        for leaf, words in self.leaves.items():
            self._volume.incoming.give_up(leaf, words)
        self.leaves = {}


def refuse_beyond(image: Plane, n_blocks: int, path: Path) -> None:
    """Refuse an image of which a VBN lies beyond a numbering of n_blocks.

    Raises
    ------
    RefusedError: one does.
    """
    top = reaches(image) - 1
    if top >= n_blocks:
        raise RefusedError(
            f"the image holds block {top}, and {path} has {n_blocks} blocks",
            "say --relocate, take a volume at least as large as the source, or add a RAID group with `blockplane grow`",
        )


def reaches(plane: Plane) -> int:
    """Return the number behind the highest VBN of a plane."""
    n_blocks = len(plane)
    return int(plane.select(n_blocks - 1)) + 1 if n_blocks else 0


def has_relocated(volume: LiveVolume, below: Sequence[TableEntry | None]) -> bool:
    """Whether snapshots that an image builds on have blocks of numbers that are no places here."""
    found = [volume.snapshot_state(entry) for entry in below if entry is not None]
    return any(state.placemap.stop > volume.geometry.n_blocks for state in found)
