"""What a maker that was stopped left of a volume: whether it holds anything, and its removal where it does not."""

from __future__ import annotations

import os
from abc import abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Self

from blockplane.disks.disk import FileDisk
from blockplane.model.errors import VolumeDamagedError
from blockplane.volume import making
from blockplane.volume.config import CONFIG_NAME, DISKS_DIR, VolumeConfig, read_config
from blockplane.volume.live import LiveVolume
from blockplane.volume.lock import VolumeLock
from blockplane.volume.making import LOCK_NAME
from blockplane.volume.rootslots import has_record


class HalfMade(LiveVolume):
    """See the module."""

    @classmethod
    @abstractmethod
    def _assembled(cls, directory: Path, config: VolumeConfig, writable: bool) -> Self:
        """Open a volume's disks and what is on them; the lock is the caller's."""

    @classmethod
    def is_of_no_use(cls, path: str | os.PathLike[str]) -> bool:
        """Whether a maker was stopped before its volume held anything; nothing changes.

        Raises
        ------
        VolumeInUseError: it is at work. Others: what is there cannot be looked at.
        """
        directory = Path(path)
        if not making.is_marked(directory):
            return False
        with VolumeLock(directory / LOCK_NAME, "looking", shared=True):
            return cls._is_of_no_use(directory)

    @classmethod
    def clear_half_made(cls, path: str | os.PathLike[str]) -> None:
        """Remove what is of no use, not disks that lie elsewhere; errors as of `is_of_no_use`."""
        directory = Path(path)
        if making.is_marked(directory):
            with VolumeLock(directory / LOCK_NAME, "clearing"):
                if cls._is_of_no_use(directory):
                    making.clear(directory)

    @classmethod
    def _is_of_no_use(cls, directory: Path) -> bool:
        return is_unfinished(directory) or (making.is_marked(directory) and cls.is_empty(directory))

    @classmethod
    def is_empty(cls, directory: Path) -> bool:
        """Whether a volume has no files and no snapshots, and nothing of a receive; the lock is the caller's.

        Raises
        ------
        BlockplaneError: it cannot be looked at.
        """
        with cls._assembled(directory, read_config(directory), writable=False) as volume:
            if volume.damage:
                raise VolumeDamagedError(f"{directory}: {'; '.join(volume.damage)}")
            return not (volume.was_written or volume.local.incoming.images())


def is_unfinished(directory: Path) -> bool:
    """Whether a maker was stopped before a disk had a root record, or who removed a volume; else it may hold anything.

    Raises
    ------
    BlockplaneError: a disk cannot be looked at.
    """
    if not making.is_marked(directory) or making.says(directory, making.GOING):
        return making.is_marked(directory)
    if (directory / CONFIG_NAME).exists():
        paths = read_config(directory).paths(directory)
    else:
        paths = [str(path) for path in (directory / DISKS_DIR).glob("*")]
    for path in paths:
        with closing(FileDisk.open(path, writable=False)) as disk:
            if has_record(disk):
                return False
    return True
