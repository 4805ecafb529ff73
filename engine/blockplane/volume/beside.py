"""Writing to stripes that hold live blocks: their members read and verified, what their loss would lose logged.

Whole free stripes need none of this; what comes here is what lands beside live blocks, and a volume that is nearly
full (DESIGN.md, law 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.resync import read_members
from blockplane.disks.stripelog import StripeLog
from blockplane.model.errors import ChecksumError, DiskError, VolumeDamagedError
from blockplane.volume.leafbits import WORD_BLOCKS
from blockplane.volume.livechecks import LiveChecks, SlotChecks
from blockplane.volume.mending import Members
from blockplane.volume.runs import mask_runs

if TYPE_CHECKING:
    from blockplane.disks.array import DiskArray
    from blockplane.disks.band import Band
    from blockplane.disks.pending import Pending
    from blockplane.volume.live import LiveVolume

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]


class BesideWriter:
    """See the module.

    Attributes
    ----------
    checks : of the live blocks. log : of the stripes under way.
    """

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume
        self._array = volume.array
        self.checks = LiveChecks(volume)
        self.log = StripeLog(volume.array, volume.info.volume_id)

    def write(self, band: Band, before: SlotChecks | None = None) -> list[Pending]:
        """Send out what a band says is written, of stripes whose other blocks stay; the band is gone for the caller.

        The areas are declared. What is not written is read from the disks here.

        Parameters
        ----------
        before : checks of slots of the same stripes that were written earlier, and that no state refers to yet.

        Returns
        -------
        what is with the disks now: all done, and the band is written.

        Raises
        ------
        ChecksumError: a block that stays is bad, and the rest of its stripe does not explain it; nothing was written.
        """
        with self._volume.lock:
            band.touched[:] = band.written.any(axis=0)
            if band.record.n_parity and not band.written[:, band.touched].all():
                self._read_rest(band)
                self.verify(band)
                if before is not None:
                    before.refuse_bad(band)
                return self._write_logged(band, self.checks.stays(band) & ~band.written)
            return [self._array.write_band(band)]

    def sound(self, group: int, word: int) -> Mask:
        """Return which of 64 stripes, (64,), can be written to: each live block is whole, or its stripe explains it.

        A stripe that is damaged for good is left alone: parity made anew there could hide what a later repair needs,
        and a consistency point that met it would fail. Of blocks that a receive has brought no check is known: they are
        whole where the parity on the disks is that of the members.
        """
        record = self._volume.geometry.groups[group]
        if not record.n_parity:
            return np.ones(WORD_BLOCKS, np.bool_)
        band = self._array.new_band(group, word * WORD_BLOCKS, WORD_BLOCKS, zero=False)
        lost = live = self.checks.live(band)
        try:
            read_members(self._array, band, with_parity=True)
            members = self._members(band, live)
            members.mend({})
            lost = members.bad | (self.checks.landed(band) & self._torn(band))
        except DiskError:
            raise
        except VolumeDamagedError:  # what holds the checks is not whole: nothing can be said of any
            pass
        finally:
            self._array.drop_band(band)
        found: Mask = ~np.logical_or.reduce(lost, axis=0)
        return found

    def _torn(self, band: Band) -> Mask:
        """Return which stripes' parity, as the disks hold it, is not that of the members; that in the band is anew."""
        found = band.parity.copy()
        band.compute_parity()
        torn: Mask = (found != band.parity).any(axis=(0, 2))
        return torn

    def _members(self, band: Band, chosen: Mask) -> Members:
        places = self._volume.geometry.band_places(band.group, band.dbn_start, band.n_stripes)
        return Members(band, self.checks, chosen, places)

    def _read_rest(self, band: Band) -> None:
        """Fill the slots that are not written from the disks: they keep what is there, and parity counts it."""
        read_slots(self._array, band, band.touched & ~band.written)

    def verify(self, band: Band) -> None:
        """Compare the blocks that stay in the stripes a band touches with their checks.

        A bad one that the parity on the disks explains is put right in the band: parity goes on to explain it.

        Raises
        ------
        ChecksumError: see `write`.
        """
        live = self.checks.live(band) & band.touched & ~band.written
        members = self._members(band, live)
        if members.bad.any():
            self._mend(band, members)

    def _mend(self, band: Band, members: Members) -> None:
        """Work out bad blocks from their stripes as the disks hold them."""
        found = self._array.new_band(band.group, band.dbn_start, band.n_stripes, zero=False)
        try:
            read_members(self._array, found, with_parity=True)
            there = self._members(found, members.bad)
            there.mend({})
            band.data[members.bad] = found.data[members.bad]
        finally:
            self._array.drop_band(found)
        if there.bad.any():
            disk, stripe = (int(at[0]) for at in np.nonzero(there.bad))
            place = int(self._volume.geometry.band_places(band.group, band.dbn_start + stripe, 1)[disk, 0])
            raise ChecksumError(
                f"the block at place {place}, beside which parity is to be written, does not match its checksum",
                place,
                "run `blockplane check` to see what it belongs to; restore it from a snapshot or a stream",
            )

    def _write_logged(self, band: Band, stays: Mask) -> list[Pending]:
        """Log the stripes in which something stays, then write; in rounds where the log is smaller than the band."""
        stripes = np.flatnonzero(stays.any(axis=0) & band.touched)
        most = self.log.capacity(band.group)
        generation, sent = self._volume.info.generation, []
        while len(stripes) > most:
            self.log.protect(band, stripes[:most], stays, generation)
            sent.append(self._write_part(band, stripes[:most]))
            stripes = stripes[most:]
        if len(stripes):
            self.log.protect(band, stripes, stays, generation)
        return [*sent, self._array.write_band(band)]

    def _write_part(self, band: Band, stripes: Numbers) -> Pending:
        """Write some stripes of a band, in a copy: the others follow in the band itself."""
        part = self._array.new_band(band.group, band.dbn_start, band.n_stripes, zero=False)
        part.data[:] = band.data
        chosen = np.zeros(band.n_stripes, np.bool_)
        chosen[stripes] = True
        part.written[:] = band.written & chosen
        part.touched[:] = chosen
        band.written &= ~chosen
        band.touched &= ~chosen
        return self._array.write_band(part)


def read_slots(array: DiskArray, band: Band, chosen: Mask) -> None:
    """Fill chosen slots, (n_data, n_stripes), of a band from the disks."""
    reads = []
    for disk in np.flatnonzero(chosen.any(axis=1)).tolist():
        runs = np.array(mask_runs(chosen[disk]), np.int64).reshape(-1, 2)
        at = runs[:, 0] + disk * band.n_stripes
        member, counts = band.record.disks[disk], runs[:, 1] - runs[:, 0]
        reads.append(array.submit_disk_read(member, runs[:, 0] + band.dbn_start, counts, band.buffer, at))
    for read in reads:
        read.wait()
