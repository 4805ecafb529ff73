"""Blocks that fail their check, worked out from the rest of their stripe: through its parity, or through the log.

Parity on the disks may be of before, during or after a write that was cut off: what it gives is taken for a block only
when the block's check agrees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.band import Band
from blockplane.disks.reconstruct import missing_blocks
from blockplane.disks.stripelog import LoggedStripe
from blockplane.volume.livechecks import Expected, LiveChecks

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]
Log = Mapping[int, list[LoggedStripe]]


class Members:
    """The data blocks of a band as the disks hold them, judged.

    Parameters
    ----------
    places : (n_data, n_stripes), of every slot.

    Attributes
    ----------
    live : (n_data, n_stripes), slots that the last CP refers to.
    bad : those of them that fail their check; `mend` takes out what it puts right.
    """

    def __init__(self, band: Band, checks: LiveChecks, live: Mask, places: Numbers) -> None:
        self.live = live
        self._band = band
        self._expected: Expected = checks.expected(places[live])
        self._index = np.cumsum(live.reshape(-1)).reshape(live.shape) - 1
        self.bad = np.zeros_like(live)
        self.bad[live] = self._expected.bad(band.data[live])

    def mend(self, log: Log) -> Mask:
        """Put right in the band what parity or the log explains; return which slots.

        The band's parity is as the disks hold it. Stripes with more than one bad block stay as they are.
        """
        mended = np.zeros_like(self.bad)
        for stripes, candidates in self._candidates(log):
            disks = self.bad[:, stripes].argmax(axis=0)
            good = ~self._expected.bad(candidates, self._index[disks, stripes])
            disks, stripes = disks[good], stripes[good]
            self._band.data[disks, stripes] = candidates[good]
            self.bad[disks, stripes] = False
            mended[disks, stripes] = True
        return mended

    def _single(self) -> Numbers:
        return np.flatnonzero(self.bad.sum(axis=0) == 1)

    def _candidates(self, log: Log) -> Iterator[tuple[Numbers, NDArray[np.uint8]]]:
        """Yield (stripes, blocks): what the one bad block of each stripe could have been."""
        band = self._band
        for which in range(band.record.n_parity):
            stripes = self._single()
            if len(stripes):
                missing = self.bad[:, stripes].argmax(axis=0)
                yield stripes, missing_blocks(band.data[:, stripes], band.parity[which, stripes], which, missing)
        for stripe in self._single().tolist():
            for logged in log.get(band.dbn_start + stripe, ()):
                disk = int(self.bad[:, stripe].argmax())
                if self.bad[disk, stripe] and logged.counted[disk]:
                    counted = logged.counted[: band.record.n_data, None, None]
                    known = np.where(counted, band.data[:, stripe : stripe + 1], np.uint8(0))
                    missing = np.array([disk], np.int64)
                    block = missing_blocks(known, logged.parity[None], logged.which, missing)
                    yield np.array([stripe], np.int64), block
