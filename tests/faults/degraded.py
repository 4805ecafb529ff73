"""Power cut and a lost disk at once: what is live follows from parity or from the log, before anything is mended."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from blockplane.disks import GroupRecord, compute_parity
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.disks.stripelog import LoggedStripe, decode_log, log_area
from blockplane.model import BLOCK_BYTES
from blockplane.volume import Volume
from blockplane.volume.leafbits import words_of
from faults.recording import MemoryDisk


class Found:
    """The disks as a crash left them, taken before a volume is opened on them."""

    def __init__(self, disks: Sequence[MemoryDisk]) -> None:
        self._images = [
            np.frombuffer(b"".join(disk.block(n) for n in range(disk.n_blocks)), np.uint8).reshape(-1, BLOCK_BYTES)
            for disk in disks
        ]

    def unexplained(self, volume: Volume) -> tuple[list[str], int]:
        """Stripes that could not spare as many disks as there are parity disks; and how many needed the log for that.

        A stripe whose parity is that of its members can spare them. Else the log must hold, on each parity disk, the
        parity of members that hold all that the last consistency point refers to.
        """
        problems, n_logged = [], 0
        for index, group in enumerate(volume.geometry.groups):
            if not group.n_parity:
                continue
            members = np.stack([self._images[disk][HEAD_BLOCKS:][: group.disk_blocks] for disk in group.disks])
            data = members[: group.n_data]
            right = _parity(data, group.n_parity)
            live = live_slots(volume, index)
            torn = (right != members[group.n_data :]).any(axis=(0, 2)) & live.any(axis=0)
            logged = self._logged(group, index, volume) if torn.any() else []
            for stripe in np.flatnonzero(torn).tolist():
                entries = [one for one in logged if one.dbn == stripe]
                explained = {one.which for one in entries if _explains(one, data[:, stripe], live[:, stripe])}
                n_logged += 1
                if explained != set(range(group.n_parity)):
                    problems.append(f"stripe {stripe} of group {index} would not survive the loss of a disk")
        return problems, n_logged

    def _logged(self, group: GroupRecord, index: int, volume: Volume) -> list[LoggedStripe]:
        found: list[LoggedStripe] = []
        for disk in group.disks[group.n_data :]:
            start, stop = log_area(group, len(self._images[disk]))
            found += decode_log(self._images[disk][start:stop].reshape(-1), volume.info.volume_id)
        return [one for one in found if one.group == index]


def live_slots(volume: Volume, group: int) -> np.ndarray:
    """Which data slots of a group the last consistency point refers to, (n_data, disk_blocks)."""
    geometry = volume.geometry
    words = geometry.disk_words(partial(words_of, volume.live_leaf), group, 0, geometry.groups[group].disk_blocks)
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little").astype(bool)


def _parity(data: np.ndarray, n_parity: int) -> np.ndarray:
    parity = np.empty((n_parity, *data.shape[1:]), np.uint8)
    compute_parity(np.ascontiguousarray(data), parity)
    return parity


def _explains(logged: LoggedStripe, data: np.ndarray, live: np.ndarray) -> bool:
    counted = logged.counted[: len(live)]
    if (live & ~counted).any():
        return False
    blocks = np.where(counted[:, None], data, np.uint8(0))[:, None]
    return bool((_parity(blocks, logged.which + 1)[logged.which, 0] == logged.parity).all())
