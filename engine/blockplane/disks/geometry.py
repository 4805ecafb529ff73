"""Geometry: RAID groups and the map between places and (disk, dbn).

A *stripe* is the blocks with one dbn on every disk of a group. An *area* is AREA_STRIPES stripes of one group, the
unit of allocation and of the parity intent record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from blockplane._native import geometry as kernel
from blockplane.model.addresses import Extents, Numbers, Words
from blockplane.model.errors import UsageError

AREA_STRIPES: Final = 8192
#: Group numberings begin at multiples of this, so that their words, leaves and areas are never shared.
FIRST_MULTIPLE: Final = 65536
MAX_PARITY: Final = 2
#: Q cannot tell more data disks apart.
MAX_DATA: Final = 255
MAX_DISK_BLOCKS: Final = 1 << 42
MAX_FIRST: Final = 1 << 52

#: Words of a plane of places: (first_word, n_words) -> (n_words,) uint64; `Plane.word_range` is one.
WordRange = Callable[[int, int], Words]


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One RAID group.

    ``first``: its first place, a multiple of 65,536. ``chunk_blocks``: a multiple of 64, blocks that follow each other
    on one disk before the next disk's turn; equal to ``disk_blocks`` for whole disks. ``disk_blocks``: usable blocks of
    every data disk, a multiple of the chunk. ``disks``: indexes into the volume's disks, data first, then P, then Q.
    """

    first: int
    n_data: int
    n_parity: int
    chunk_blocks: int
    disk_blocks: int
    disks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (1 <= self.n_data <= MAX_DATA and 0 <= self.n_parity <= MAX_PARITY):
            raise UsageError(
                f"a group of {self.n_data} data and {self.n_parity} parity disks is not possible",
                f"take 1 to {MAX_DATA} data disks and 0 to {MAX_PARITY} parity disks",
            )
        if not (0 <= self.first < MAX_FIRST and self.first % FIRST_MULTIPLE == 0):
            raise UsageError(f"a group cannot begin at place {self.first}", f"take a multiple of {FIRST_MULTIPLE}")
        if not (0 < self.chunk_blocks <= self.disk_blocks < MAX_DISK_BLOCKS) or self.chunk_blocks % 64:
            raise UsageError(
                f"a chunk of {self.chunk_blocks} blocks does not fit disks of {self.disk_blocks} blocks",
                "take a multiple of 64 blocks (256 KiB)",
            )
        if self.disk_blocks % self.chunk_blocks:
            raise UsageError(f"disks of {self.disk_blocks} blocks are not whole chunks of {self.chunk_blocks}")
        if len(self.disks) != self.n_data + self.n_parity or min(self.disks) < 0:
            raise UsageError(f"the group names {len(self.disks)} disks and needs {self.n_data + self.n_parity}")

    @property
    def n_blocks(self) -> int:
        """Places of the group."""
        return self.n_data * self.disk_blocks

    @property
    def stop(self) -> int:
        """End of its places."""
        return self.first + self.n_blocks

    @property
    def n_areas(self) -> int:
        """Areas, the last perhaps short."""
        return -(-self.disk_blocks // AREA_STRIPES)


class Pieces(NamedTuple):
    """Extents of places cut at chunk borders: each piece lies on one disk.

    All (n,) int64: disk index, dbn and length of each, and where its blocks come in the extents laid end to end.
    """

    disk: Numbers
    dbn: Numbers
    n_blocks: Numbers
    position: Numbers


class DiskExtents(NamedTuple):
    """Extents on one disk, ascending in dbn; all (n,) int64. ``place`` is the place of the first block of each."""

    dbn: Numbers
    n_blocks: Numbers
    place: Numbers


class Geometry:
    """The groups of a volume. Immutable; a grown volume has a new one."""

    def __init__(self, groups: Sequence[GroupRecord]) -> None:
        """Take groups in the order of their places; none overlap, no disk is in two.

        Raises
        ------
        UsageError : otherwise.
        """
        self.groups = tuple(groups)
        for before, after in zip(self.groups, self.groups[1:], strict=False):
            if after.first < before.stop:
                raise UsageError(f"a group begins at place {after.first}, inside the one that ends at {before.stop}")
        members = [disk for group in self.groups for disk in group.disks]
        if sorted(members) != list(range(len(members))):
            raise UsageError("the groups' disks are not each of the volume's disks once")
        self.n_disks = len(members)
        #: End of the last group's numbering; between groups there may be holes.
        self.n_blocks = self.groups[-1].stop if self.groups else 0
        self._members = np.array(members, dtype=np.int64)
        rows, at = [], 0
        self._homes = np.zeros((len(members), 2), dtype=np.int64)
        for index, group in enumerate(self.groups):
            rows.append((group.first, group.n_data, group.n_parity, group.chunk_blocks, group.disk_blocks, at))
            at += len(group.disks)
            for position, disk in enumerate(group.disks):
                self._homes[disk] = index, position
        self._rows = np.array(rows, dtype=np.int64).reshape(len(rows), 6)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.groups == other.groups

    def __hash__(self) -> int:
        return hash(self.groups)

    def __repr__(self) -> str:
        return f"Geometry({self.groups!r})"

    @property
    def n_usable(self) -> int:
        """Places that exist: holes between groups are not counted."""
        return sum(group.n_blocks for group in self.groups)

    @property
    def place_extents(self) -> Extents:
        """(n_groups, 2): the places of each group."""
        return np.array([(group.first, group.stop) for group in self.groups], dtype=np.int64).reshape(-1, 2)

    def home(self, disk: int) -> tuple[int, int]:
        """Group index of a disk, and its position there."""
        return int(self._homes[disk, 0]), int(self._homes[disk, 1])

    def group_of(self, place: int) -> int:
        """Index of the group that holds a place.

        Raises
        ------
        IndexError : none does.
        """
        for index, group in enumerate(self.groups):
            if group.first <= place < group.stop:
                return index
        raise IndexError(f"place {place} lies outside every group")

    def to_disk(self, places: Numbers) -> tuple[Numbers, Numbers]:
        """Disk index and dbn of each place; both (n,) int64, fresh.

        Raises
        ------
        IndexError : a place lies outside every group.
        """
        disk, dbn = np.empty_like(places), np.empty_like(places)
        bad = kernel.to_disk(self._rows, self._members, places, disk, dbn)
        if bad >= 0:
            raise IndexError(f"place {places[bad]} lies outside every group")
        return disk, dbn

    def locate(self, start: int, stop: int) -> tuple[int, int] | None:
        """Disk index and dbn of places that follow each other on one disk; None when they do not.

        Notes
        -----
        In plain Python: for single blocks it costs a third of `split`.
        """
        for group in self.groups:
            if group.first <= start and stop <= group.stop:
                chunk = group.chunk_blocks if group.n_data > 1 else group.disk_blocks
                index, inside = divmod(start - group.first, chunk)
                if inside + stop - start > chunk:
                    return None
                row, position = divmod(index, group.n_data)
                return group.disks[position], row * chunk + inside
        return None

    def from_disk(self, disk: Numbers, dbn: Numbers) -> Numbers:
        """Place of each (data disk index, dbn); (n,) int64, fresh.

        Raises
        ------
        IndexError : a pair has no place (a parity disk, beyond the end).
        """
        places = np.empty_like(dbn)
        bad = kernel.from_disk(self._rows, self._members, self._homes, disk, dbn, places)
        if bad >= 0:
            raise IndexError(f"block {dbn[bad]} of disk {disk[bad]} has no place")
        return places

    def split(self, extents: Extents) -> Pieces:
        """Cut extents of places, in any order, at chunk borders. Cost: O(pieces), the GIL released.

        Raises
        ------
        IndexError : an extent lies outside every group, or ends before it starts.
        """
        n = kernel.count_pieces(self._rows, self._members, extents)
        if n < 0:
            start, stop = extents[-1 - n]
            raise IndexError(f"places {start} to {stop} lie outside every group")
        pieces = Pieces(*(np.empty(n, dtype=np.int64) for _ in range(4)))
        kernel.split_extents(self._rows, self._members, extents, *pieces)
        return pieces

    def split_bands(self, extents: Extents, n_stripes: int) -> list[tuple[int, int, int, int]]:
        """Cut extents of places, in any order, at the borders of bands of n_stripes.

        Returns
        -------
        (group, band, first slot, count), in their order; the slots of a band are disk by disk, and those that follow
        each other in one band are one item.

        Raises
        ------
        IndexError : an extent lies outside every group, or ends before it starts.
        """
        n, rows = 4 + 2 * len(extents), np.empty((0, 4), np.int64)
        while n > len(rows):
            rows = np.empty((4 * n, 4), np.int64)
            n = kernel.split_bands(self._rows, self._members, extents, n_stripes, rows)
        if n < 0:
            start, stop = extents[-1 - n]
            raise IndexError(f"places {start} to {stop} lie outside every group")
        return list(map(tuple, rows[:n].tolist()))

    def band_places(self, group: int, dbn_start: int, n_stripes: int) -> Numbers:
        """Place of every data slot of some stripes: (n_data, n_stripes) int64, fresh."""
        record = self.groups[group]
        dbn = np.arange(dbn_start, dbn_start + n_stripes, dtype=np.int64)
        disks = np.array(record.disks[: record.n_data], dtype=np.int64)
        places = self.from_disk(np.repeat(disks, n_stripes), np.tile(dbn, record.n_data))
        return places.reshape(record.n_data, n_stripes)

    def window_extents(self, group: int, first: int, words: Words, *, merge: bool = True) -> list[DiskExtents]:
        """Extents per data disk of a window of a plane of places.

        Parameters
        ----------
        group : index of the group that holds the whole window.
        first : first place of the window, a multiple of 64.
        words : (n_words,) uint64, C-contiguous, read-only.
        merge : extents go on from chunk to chunk where they touch on the disk; else each lies in one chunk, so that
            its places follow each other too.

        Returns
        -------
        one item per data disk.
        """
        record = self.groups[group]
        counts = np.zeros(record.n_data, dtype=np.int64)
        kernel.count_window_extents(self._rows[group], first, words, merge, counts)
        found = DiskExtents(*(np.empty(int(counts.sum()), dtype=np.int64) for _ in range(3)))
        kernel.window_extents(self._rows[group], first, words, merge, counts, *found)
        ends = np.cumsum(counts)
        return [
            DiskExtents(*(column[end - count : end] for column in found))
            for end, count in zip(ends.tolist(), counts.tolist(), strict=True)
        ]

    def disk_words(self, word_range: WordRange, group: int, dbn_start: int, n_stripes: int) -> Words:
        """Bits of a plane of places, disk by disk.

        Parameters
        ----------
        word_range : words of the plane.
        dbn_start, n_stripes : multiples of 64, inside the group.

        Returns
        -------
        (n_data, n_stripes // 64) uint64, fresh: bit ``dbn % 64`` of word ``[d, (dbn - dbn_start) // 64]``.
        """
        record = self.groups[group]
        if dbn_start % 64 or n_stripes % 64 or not 0 <= dbn_start <= dbn_start + n_stripes <= record.disk_blocks:
            raise ValueError(f"stripes {dbn_start} to {dbn_start + n_stripes} are not whole words of the group")
        chunk = record.chunk_blocks
        if n_stripes and (chunk <= n_stripes or record.n_data == 1):
            return self._rows_of_words(word_range, record, dbn_start, n_stripes)
        out = np.empty((record.n_data, n_stripes // 64), dtype=np.uint64)
        dbn = dbn_start
        while dbn < dbn_start + n_stripes:
            stop = min(dbn_start + n_stripes, (dbn // chunk + 1) * chunk)
            at, n_words = (dbn - dbn_start) // 64, (stop - dbn) // 64
            for d in range(record.n_data):
                place = record.first + (dbn // chunk * record.n_data + d) * chunk + dbn % chunk
                out[d, at : at + n_words] = word_range(place // 64, n_words)
            dbn = stop
        return out

    def _rows_of_words(self, word_range: WordRange, record: GroupRecord, dbn_start: int, n_stripes: int) -> Words:
        """One read of the whole rows around the stripes, taken apart by the kernel."""
        chunk = record.chunk_blocks if record.n_data > 1 else 64
        low = dbn_start // chunk * chunk
        high = -(-(dbn_start + n_stripes) // chunk) * chunk
        n_words = (high - low) // 64
        window = word_range((record.first + low * record.n_data) // 64, n_words * record.n_data)
        out = np.empty((record.n_data, n_words), dtype=np.uint64)
        kernel.disk_words(np.ascontiguousarray(window), chunk // 64, out)
        return out[:, (dbn_start - low) // 64 : (dbn_start + n_stripes - low) // 64]

    def stripe_busy(self, word_range: WordRange, group: int, dbn_start: int, n_stripes: int) -> Words:
        """Stripes that hold any block of a plane of places; parameters as for `disk_words`.

        Returns
        -------
        (n_stripes // 64,) uint64, fresh.
        """
        words = self.disk_words(word_range, group, dbn_start, n_stripes)
        busy: Words = np.bitwise_or.reduce(words, axis=0)
        return busy


def without(geometry: Geometry, index: int) -> Geometry:
    """Return a geometry less one group: places stay what they are, the disks behind move up."""
    groups: list[GroupRecord] = []
    at = 0
    for group in (*geometry.groups[:index], *geometry.groups[index + 1 :]):
        groups.append(replace(group, disks=tuple(range(at, at + len(group.disks)))))
        at += len(group.disks)
    return Geometry(groups)
