"""What opening does after an unclean stop: parity is made right again from members that were verified (law 7).

A stripe was under way when the volume stopped, or not; nobody knows which. In every area that the intent record names,
the blocks that the last CP refers to are held against their checks before parity is computed from them. One that is
bad is worked out from the parity as it was found, or from the log, and written back. One that nothing explains is left
as it is, and so is the parity of its stripe: a later repair may have more to go by. Opening is not refused for that. A
block of a snapshot whose own root is damaged has nobody to vouch for it, and counts as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from blockplane.disks.geometry import AREA_STRIPES
from blockplane.disks.resync import resync_parity
from blockplane.disks.stripelog import read_log
from blockplane.model.errors import DiskError, VolumeDamagedError
from blockplane.volume.livechecks import LiveChecks
from blockplane.volume.mending import Log, Members

if TYPE_CHECKING:
    from blockplane.disks.band import Band
    from blockplane.volume.live import LiveVolume

MAX_LEFT = 100


@dataclass(slots=True)
class Recovery:
    """What was found and done. left: one sentence for each stripe whose parity was not touched, at most 100."""

    n_verified: int = 0
    n_mended: int = 0
    n_stripes: int = 0
    n_left: int = 0
    left: list[str] = field(default_factory=list)

    def leave(self, group: int, dbn: int, why: str) -> None:
        """Note a stripe that stays as it was found."""
        self.n_left += 1
        if len(self.left) < MAX_LEFT:
            self.left.append(f"stripe {dbn} of group {group} was left as the unclean stop left it: {why}")

    def warnings(self) -> list[str]:
        """Return what whoever opened the volume should be told."""
        told = []
        if self.n_mended:
            told.append(f"after an unclean stop blocks that did not match their checksums were mended: {self.n_mended}")
        if self.n_left:
            told.append(f"after an unclean stop stripes stay damaged, `blockplane check` names them: {self.n_left}")
        return told


def recover(volume: LiveVolume) -> Recovery:
    """Put right what the intent record names; durable on return, the root record follows.

    Notes
    -----
    Reads every stripe of the named areas in which something is live, at most 32 MiB a data disk and area.
    """
    found = Recovery()
    geometry, checks = volume.geometry, LiveChecks(volume)
    for index, area in dict.fromkeys(volume.info.areas):
        group, start = geometry.groups[index], area * AREA_STRIPES
        n_stripes = min(AREA_STRIPES, group.disk_blocks - start)
        if n_stripes > 0 and group.n_parity:
            log = read_log(volume.array, index, volume.info.volume_id)
            judge = _Judge(volume, checks, log, found)
            resync_parity(volume.array, index, start, n_stripes, judge.judge)
    volume.array.drain()
    volume.array.flush()
    return found


class _Judge:
    """Says of each band which parity may be computed anew."""

    def __init__(self, volume: LiveVolume, checks: LiveChecks, log: Log, found: Recovery) -> None:
        self._volume = volume
        self._checks = checks
        self._log = log
        self._found = found

    def judge(self, band: Band) -> None:
        """Verify, mend, and take the stripes of blocks that stay bad out of `touched`."""
        try:
            members = self._members(band)
        except DiskError:
            raise
        except VolumeDamagedError as error:  # what holds the checks is not whole: nothing here can be verified
            self._leave(band, np.arange(band.n_stripes), f"what would say whether it is whole is damaged: {error}")
            return
        self._found.n_stripes += int(members.live.any(axis=0).sum())
        self._found.n_verified += int(members.live.sum())
        if members.bad.any():
            mended = members.mend(self._log)
            band.written |= mended
            self._found.n_mended += int(mended.sum())
            self._leave(band, np.flatnonzero(members.bad.any(axis=0)), "blocks in it do not match their checksums")

    def _members(self, band: Band) -> Members:
        places = self._volume.geometry.band_places(band.group, band.dbn_start, band.n_stripes)
        return Members(band, self._checks, self._checks.live(band), places)

    def _leave(self, band: Band, stripes: np.ndarray[tuple[int], np.dtype[np.int64]], why: str) -> None:
        band.touched[stripes] = False
        for stripe in stripes.tolist():
            self._found.leave(band.group, band.dbn_start + stripe, why)
