"""The parity of the stripes that hold live blocks, recomputed.

In a volume opened for reading after an unclean stop a stripe that was under way is torn, and no damage as long as the
log has what its loss would lose: the next writer settles it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.band import Band
from blockplane.disks.geometry import AREA_STRIPES
from blockplane.disks.parity import compute_parity
from blockplane.disks.resync import read_members, verify_parity
from blockplane.disks.stripelog import LoggedStripe, read_log
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.volume.leafbits import WORD_BLOCKS, words_of
from blockplane.volume.mending import Log
from blockplane.volume.runs import mask_runs

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


class LiveParity:
    """See the module.

    Parameters
    ----------
    step : called for each area; may raise.

    Attributes
    ----------
    n_stripes : looked at so far. n_unsettled : found torn by an unclean stop, all that is live in them in the log.
    """

    def __init__(self, volume: LiveVolume, step: Callable[[], None] = lambda: None) -> None:
        self._volume, self._step = volume, step
        self._areas = set() if volume.writable or volume.info.clean else set(volume.info.areas)
        self._logs: dict[int, Log] = {}
        self.n_stripes = self.n_unsettled = 0

    def wrong(self) -> Iterator[tuple[int, int]]:
        """Yield (group, dbn) of the stripes with a live block whose parity is not that of their members."""
        for index, group in enumerate(self._volume.geometry.groups):
            for start in range(0, group.disk_blocks if group.n_parity else 0, AREA_STRIPES):
                self._step()
                for dbn in self._differing(index, start, min(AREA_STRIPES, group.disk_blocks - start)):
                    if self._is_protected(index, dbn):
                        self.n_unsettled += 1
                    else:
                        yield index, dbn

    def _differing(self, group: int, start: int, n_stripes: int) -> Iterator[int]:
        volume = self._volume
        live = volume.geometry.stripe_busy(functools.partial(words_of, volume.live_leaf), group, start, n_stripes)
        for low, high in mask_runs(live != 0):
            n_looked_at = (high - low) * WORD_BLOCKS
            self.n_stripes += n_looked_at
            for dbn in verify_parity(volume.array, group, start + low * WORD_BLOCKS, n_looked_at).tolist():
                if int(live[(dbn - start) // WORD_BLOCKS]) >> (dbn % WORD_BLOCKS) & 1:
                    yield dbn

    def _is_protected(self, group: int, dbn: int) -> bool:
        """Whether the log, on each parity disk, has the parity of members that hold all that is live in the stripe."""
        if (group, dbn // AREA_STRIPES) not in self._areas:
            return False
        if group not in self._logs:
            self._logs[group] = read_log(self._volume.array, group, self._volume.info.volume_id)
        logged = self._logs[group].get(dbn, [])
        array, first = self._volume.array, dbn // WORD_BLOCKS * WORD_BLOCKS
        band = array.new_band(group, first, WORD_BLOCKS, zero=False)
        try:
            read_members(array, band)
            live = self._volume.beside.checks.live(band)[:, dbn - first]
            found = {one.which for one in logged if _agrees(one, band, dbn - first, live)}
        finally:
            array.drop_band(band)
        return found == set(range(band.record.n_parity))


def _agrees(logged: LoggedStripe, band: Band, stripe: int, live: NDArray[np.bool_]) -> bool:
    counted = logged.counted[: len(live)]
    if (live & ~counted).any():
        return False
    blocks = np.ascontiguousarray(np.where(counted[:, None, None], band.data[:, stripe : stripe + 1], np.uint8(0)))
    parity = np.empty((logged.which + 1, 1, BLOCK_BYTES), np.uint8)
    compute_parity(blocks, parity)
    return bool((parity[logged.which, 0] == logged.parity).all())
