"""Volumes built on a base: made with one, opened with it, and its state taken up as theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockplane.disks.basedisk import END_BLOCKS, BaseDisk
from blockplane.disks.disk import Disk, FileDisk
from blockplane.disks.geometry import FIRST_MULTIPLE, Geometry, GroupRecord
from blockplane.disks.label import read_label
from blockplane.model.blocks import BlockSource
from blockplane.model.errors import BlockplaneError
from blockplane.model.ownfiles import sync
from blockplane.planes import Plane
from blockplane.volume.basegroup import BASE_GROUP, BASE_OWNER, n_in_base
from blockplane.volume.codec import NO_ID, SnapshotRecord, TableEntry
from blockplane.volume.config import BASE_DISK, CONFIG_NAME, DISKS_DIR, VolumeConfig
from blockplane.volume.groups import CHUNK_MULTIPLE_BLOCKS, GroupWish
from blockplane.volume.holds import hold_by_id
from blockplane.volume.incoming import IncomingEntry
from blockplane.volume.landing import Landing
from blockplane.volume.landing_bands import LandingBands
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.waiting import Waiting

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Opens what a volume's base is to be read from, by the names in volume.toml and the id of the snapshot.
OpenBase = Callable[[Sequence[str], bytes], BlockSource]


@dataclass(frozen=True, slots=True)
class Base:
    """What a volume is to be built on.

    source : gives its blocks; owned by the volume that is made. names, id : what opens it again, and the snapshot's id.
    n_numbers : of its space.
    """

    source: BlockSource
    names: tuple[str, ...]
    id: bytes
    n_numbers: int

    @property
    def group(self) -> GroupRecord:
        """Its RAID group: one disk, the first."""
        n = max(-(-self.n_numbers // CHUNK_MULTIPLE_BLOCKS), 1) * CHUNK_MULTIPLE_BLOCKS
        return GroupRecord(0, 1, 0, n, n, (BASE_GROUP,))

    def geometry(self, wish: GroupWish, disks: Sequence[Disk]) -> Geometry:
        """Return the geometry of a volume on it with disks of its own."""
        first = -(-self.group.stop // FIRST_MULTIPLE) * FIRST_MULTIPLE
        return Geometry((self.group, wish.group(disks, first, first_disk=1)))

    def make_disk(self, directory: Path) -> BaseDisk:
        """Make its disk; the path of what was made is the disk's."""
        (directory / DISKS_DIR).mkdir(exist_ok=True)
        ends = FileDisk.create(str(directory / BASE_DISK), END_BLOCKS)
        sync(directory / DISKS_DIR)
        return BaseDisk(ends, self.source, self.group.disk_blocks)


def opener(directory: Path, config: VolumeConfig, writable: bool, open_base: OpenBase) -> Callable[[str], Disk]:
    """Return what opens a volume's disks: files and devices, and the base's."""

    def open_disk(path: str) -> Disk:
        disk = FileDisk.open(path, writable=writable)
        if not config.base or path != str(directory / BASE_DISK):
            return disk
        try:
            n_blocks = read_label(disk).n_blocks
            names = [os.path.join(directory, name) for name in config.base]
            with _told_as_base(directory):
                source = open_base(names, config.base_id)
            return BaseDisk(disk, source, n_blocks - END_BLOCKS)
        except BaseException:
            disk.close()
            raise

    return open_disk


@contextmanager
def _told_as_base(directory: Path) -> Iterator[None]:
    """Have what a base cannot be opened for say whose it is: who named the volume need not know that it has one."""
    try:
        yield
    except BlockplaneError as error:
        error.message = f"what {directory} is built on cannot be opened: {error.message}"
        error.hint = f"put it back, or say in {directory / CONFIG_NAME} where it is now"
        raise


def adopt(volume: LiveVolume, top: SnapshotRecord, plane: Plane) -> None:
    """Make the state that a volume's base is its live one: nothing is copied. Durable on return.

    Parameters
    ----------
    volume : just made on the base. top : the snapshot in it; plane : of that snapshot, over its whole numbering.

    Raises
    ------
    StreamDamagedError: the snapshot is not what its record says.
    """
    adoption = _Adoption(volume, plane)
    adoption.commit([top])
    with volume.lock:
        volume.n_in_base = n_in_base(volume)


class _Adoption(Landing):
    """The receive of an image of which every block is here, at home."""

    def _begin(
        self, entry: IncomingEntry | None, following: Plane | None, lender: TableEntry | None, carried_id: bytes = NO_ID
    ) -> None:
        self.placemap = PlaceMap()
        self._bands = LandingBands(self._volume, self._due_words, self._saved, 0)
        self.copied = self.here = self._image
        self._waiting = Waiting(Plane.empty(self._image.n_blocks))

    def _forget_incoming(self) -> None:
        super()._forget_incoming()
        for entry in self._volume.local.entries():  # held in the CP that brings it, whenever the maker is stopped
            hold_by_id(self._volume, entry.record.id, BASE_OWNER)
