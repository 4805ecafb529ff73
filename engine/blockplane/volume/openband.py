"""A band of stripes whose places are being handed out (volume/placer.py)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.band import Band
from blockplane.disks.geometry import GroupRecord
from blockplane.volume.leafbits import WORD_BLOCKS

BandKey = tuple[int, int]


class OpenBand:
    """A band whose places are being handed out.

    by_stripe: filled stripe by stripe (metafile blocks) or in ascending place (file data). slots: the places, as
    disk * n_stripes + stripe, where only some of the stripes' places are free; None where all are.
    """

    __slots__ = ("band", "by_stripe", "cursor", "group", "group_index", "n_data", "n_filled", "n_stripes", "slots")

    def __init__(self, band: Band, group: GroupRecord, slots: NDArray[np.int64] | None, by_stripe: bool) -> None:
        self.band = band
        self.group = group
        self.group_index = band.group
        self.slots = slots
        self.by_stripe = by_stripe
        self.n_data = group.n_data
        self.n_stripes = band.n_stripes
        self.cursor = 0
        self.n_filled = 0

    @property
    def key(self) -> BandKey:
        """The group and the 64 stripes the band lies in."""
        return self.group_index, self.band.dbn_start // WORD_BLOCKS

    @property
    def n_slots(self) -> int:
        """How many places the band can hand out."""
        return len(self.slots) if self.slots is not None else self.n_data * self.n_stripes

    @property
    def is_spent(self) -> bool:
        """Whether every place has been handed out."""
        return self.cursor == self.n_slots

    def place(self, disk: int, stripe: int) -> int:
        """Return the place of a data disk's block in the band's stripe."""
        dbn, group = self.band.dbn_start + stripe, self.group
        chunk = group.chunk_blocks
        return group.first + (dbn // chunk * group.n_data + disk) * chunk + dbn % chunk

    def find(self, places: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
        """Return which of places lie in the band, and for those the data disk and the stripe within the band."""
        group, chunk = self.group, self.group.chunk_blocks
        offset = places - group.first
        dbn = offset // (chunk * self.n_data) * chunk + offset % chunk
        stripe = dbn - self.band.dbn_start
        mine = (offset >= 0) & (offset < group.n_blocks) & (stripe >= 0) & (stripe < self.n_stripes)
        disk = offset // chunk % self.n_data
        if self.slots is not None:
            mine &= np.isin(disk * self.n_stripes + stripe, self.slots)  # the other places are live, and on the disks
        return mine, disk[mine], stripe[mine]

    def owns(self, place: int, dbn: int) -> bool:
        """Whether a place of the band's group, with its dbn, is the band's to hand out."""
        if not 0 <= dbn - self.band.dbn_start < self.n_stripes:
            return False
        return self.slots is None or bool(self.find(np.array([place], np.int64))[0][0])
