"""The volume's public face: made, opened, grown, closed; its snapshots and its space."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from blockplane.disks.array import DiskArray
from blockplane.disks.assembly import Assembly, assemble, refuse_same_file_twice
from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS, Disk, FileDisk
from blockplane.disks.geometry import FIRST_MULTIPLE, Geometry, GroupRecord
from blockplane.disks.label import make_labels, write_labels
from blockplane.disks.resync import resync_parity
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import DiskShortError, NotAVolumeError, UsageError
from blockplane.model.sizes import parse_size
from blockplane.planes import Plane
from blockplane.volume import snapshots
from blockplane.volume.config import CONFIG_NAME, DISKS_DIR, VolumeConfig, read_config, write_config
from blockplane.volume.fsinfo import MEMBER_OK, FsInfo
from blockplane.volume.landing import Landing
from blockplane.volume.live import LiveVolume, reserve_for
from blockplane.volume.lock import VolumeLock
from blockplane.volume.rootslots import read_newest, successor, write_record
from blockplane.volume.snapshots import Snapshot
from blockplane.volume.space import AREA_STRIPES

DEFAULT_CHUNK_BYTES = 256 << 10
CHUNK_MULTIPLE_BLOCKS = 64
LOCK_NAME = "lock"

DiskNames = int | Sequence[str | os.PathLike[str]]


class Volume(LiveVolume):
    """A volume on disk files or block devices, named by its directory."""

    # --- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        disks: DiskNames = 5,
        size: int | str | None = None,
        parity: int | None = None,
        chunk: int | str | None = None,
    ) -> Volume:
        """Make a volume and open it.

        Parameters
        ----------
        disks : how many disk files to make in the volume's directory, or paths of files or devices to use.
        size : bytes of each disk (`"2G"`); for paths that exist, their own size where not given.
        parity : 0, 1 or 2 disks of each group; by default 1 from three disks on. chunk : bytes, or "disk".

        Raises
        ------
        UsageError: the numbers do not make a volume. NotAVolumeError: the directory is taken.
        """
        directory = Path(path)
        geometry_of = GroupWish(disks, size, parity, chunk)
        made = _make_directory(directory)
        opened: list[Disk] = []
        try:
            lock = VolumeLock(directory / LOCK_NAME, "create")
            names = geometry_of.open_disks(directory, opened, first=0)
            geometry = Geometry((geometry_of.group(opened, first=0, first_disk=0),))
            volume_id = os.urandom(16)
            _write_labels(geometry, volume_id, opened)
            record = FsInfo(volume_id, geometry, reserve_blocks=reserve_for(geometry.n_usable),
                            member_states=bytes([MEMBER_OK]) * len(opened))  # fmt: skip
            write_config(directory, VolumeConfig(volume_id, tuple(names)))
            volume = cls.on_disks(directory, geometry, opened, record)
        except BaseException:
            for disk in opened:
                disk.close()
            _unmake_directory(directory, made)
            raise
        volume.close_with(lock)
        return volume

    @classmethod
    def on_disks(cls, directory: Path, geometry: Geometry, disks: Sequence[Disk], record: FsInfo) -> Volume:
        """Make an empty volume on open disks that have their labels: the first root record and the first CP."""
        array = DiskArray(geometry, disks)
        record = successor(record)
        write_record(array, record)
        volume = cls(directory, array, record, writable=True)
        volume.active.is_dirty = True
        volume.commit()
        return volume

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], writable: bool = True, wait_s: float = 0.0, verb: str = "a program"
    ) -> Volume:
        """Open a volume; reads its roots and nothing that grows with it.

        Raises
        ------
        NotAVolumeError, DiskError: there is no volume, or not all of it. VolumeInUseError: another process has it.
        """
        directory = Path(path)
        config = read_config(directory)
        lock = VolumeLock(directory / LOCK_NAME, verb, wait_s)
        try:
            assembly = assemble(config.paths(directory), volume_id=config.volume_id or None)
            try:
                volume = cls.from_assembly(directory, assembly, writable)
            except BaseException:
                assembly.close()
                raise
        except BaseException:
            lock.release()
            raise
        volume.close_with(lock)
        return volume

    @classmethod
    def from_assembly(cls, directory: Path, assembly: Assembly, writable: bool) -> Volume:
        """Open a volume on assembled disks; after an unclean stop parity is put right first (law 7)."""
        record, everywhere = read_newest(list(assembly.disks))
        if record.volume_id != assembly.volume_id:
            raise NotAVolumeError("the root record belongs to another volume than the labels", "")
        array = DiskArray(assembly.geometry, assembly.disks)
        if writable and not (record.clean and everywhere):
            record = _recover(array, record)
        return cls(directory, array, record, writable)

    # --- snapshots ---------------------------------------------------------------------------------------------------

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots, older first."""
        return snapshots.all_of(self)

    def snapshot(self, name: str) -> Snapshot:
        """Retain the live file system under a name; durable on return."""
        return snapshots.create(self, name)

    def get_snapshot(self, name: str) -> Snapshot:
        """Return a snapshot by name; NoSuchSnapshotError: there is none."""
        with self.lock:
            return Snapshot(self, self.local.entry(name))

    def delete_snapshot(self, *names: str) -> int:
        """Delete snapshots; return how many blocks that freed."""
        return snapshots.delete(self, names)

    def rename_snapshot(self, name: str, new: str) -> None:
        """Give a snapshot another name."""
        snapshots.rename(self, name, new)

    def rollback(
        self, name: str, keep_as: str | None = None, drop_later: bool = False, drop_changes: bool = False
    ) -> str | None:
        """Make a snapshot the live file system; see `snapshots.rollback`."""
        return snapshots.rollback(self, name, keep_as, drop_later, drop_changes)

    # --- receiving ---------------------------------------------------------------------------------------------------

    @property
    def was_written(self) -> bool:
        """Whether the volume ever held a file or a snapshot."""
        return bool(self.active.root.n_inodes or self.local.root.n_entries)

    @property
    def changed_since_top(self) -> bool:
        """Whether the live state is more than the snapshot it descends from: a receive would lose that."""
        with self.lock:
            return snapshots.changed_since_newest(self)

    def landing(self, image: Plane, base: Snapshot | None = None) -> Landing:
        """Begin to receive an image; see `Landing`."""
        return Landing(self, image, base.entry if base is not None else None)


class GroupWish:
    """What was asked of a new RAID group."""

    def __init__(self, disks: DiskNames, size: int | str | None, parity: int | None, chunk: int | str | None) -> None:
        self.paths = None if isinstance(disks, int) else [os.fspath(disk) for disk in disks]
        self.n_disks = disks if isinstance(disks, int) else len(disks)
        self.size_bytes = parse_size(size) if isinstance(size, str) else size
        self.n_parity = parity if parity is not None else int(self.n_disks >= 3)
        self.chunk = chunk
        if not 0 <= self.n_parity <= 2 or self.n_disks <= self.n_parity or self.n_disks > 255:
            raise UsageError(
                f"{self.n_disks} disks with {self.n_parity} parity disks make no RAID group",
                "at least one data disk beside 0, 1 or 2 parity disks, at most 255 in all",
            )
        if self.paths is None and self.size_bytes is None:
            raise UsageError("disk files need a size", "say --size 2G")

    def open_disks(self, directory: Path, opened: list[Disk], first: int) -> list[str]:
        """Make or open the disks, appending them to opened; return their names for volume.toml."""
        names = self.paths
        if names is None:
            (directory / DISKS_DIR).mkdir(exist_ok=True)
            names = [f"{DISKS_DIR}/{first + i}" for i in range(self.n_disks)]
        else:
            names = [os.path.abspath(name) for name in names]
            refuse_same_file_twice(names)
        for name in names:
            full = str(directory / name)
            if os.path.exists(full):
                opened.append(FileDisk.open(full))
            elif self.size_bytes is None:
                raise UsageError(f"{name} does not exist", "give --size to have it made")
            else:
                opened.append(FileDisk.create(full, self.size_bytes // BLOCK_BYTES))
        return list(names)

    def group(self, disks: Sequence[Disk], first: int, first_disk: int) -> GroupRecord:
        """Return the group's record for its open disks."""
        smallest = min(disks, key=lambda disk: disk.n_blocks)
        usable = smallest.n_blocks - HEAD_BLOCKS - TAIL_BLOCKS
        if self.size_bytes is not None:
            usable = min(usable, self.size_bytes // BLOCK_BYTES - HEAD_BLOCKS - TAIL_BLOCKS)
        chunk = self._chunk_blocks(usable)
        usable -= usable % chunk
        if usable < CHUNK_MULTIPLE_BLOCKS:
            raise DiskShortError(
                f"{smallest.path}: too short: {smallest.n_blocks} blocks hold no chunk of {chunk}", smallest.path,
                "take disks of at least 1 MiB",
            )  # fmt: skip
        members = tuple(range(first_disk, first_disk + len(disks)))
        return GroupRecord(first, len(disks) - self.n_parity, self.n_parity, chunk, usable, members)

    def _chunk_blocks(self, usable: int) -> int:
        if self.chunk == "disk":
            return max(usable - usable % CHUNK_MULTIPLE_BLOCKS, CHUNK_MULTIPLE_BLOCKS)
        n_bytes = parse_size(self.chunk) if isinstance(self.chunk, str) else self.chunk or DEFAULT_CHUNK_BYTES
        if n_bytes <= 0 or n_bytes % (CHUNK_MULTIPLE_BLOCKS * BLOCK_BYTES):
            raise UsageError(
                f"a chunk of {n_bytes} bytes is not a multiple of 256 KiB", "say --chunk 256KiB, 1MiB or disk"
            )
        return n_bytes // BLOCK_BYTES


def _recover(array: DiskArray, record: FsInfo) -> FsInfo:
    """After an unclean stop: bring parity in line where writes may have been under way, then the record everywhere."""
    for group, area in record.areas:
        stripes = array.geometry.groups[group].disk_blocks - area * AREA_STRIPES
        if stripes > 0:
            resync_parity(array, group, area * AREA_STRIPES, min(stripes, AREA_STRIPES))
    array.drain()
    array.flush()
    record = successor(record, areas=[], clean=True)
    write_record(array, record)
    return record


def _write_labels(geometry: Geometry, volume_id: bytes, disks: Sequence[Disk]) -> None:
    member_ids = [os.urandom(16) for _ in disks]
    write_labels(disks, make_labels(geometry, volume_id, member_ids, [disk.n_blocks for disk in disks]), 0)


def next_first(geometry: Geometry) -> int:
    """Return the first number of a group added to a geometry."""
    return -(-geometry.n_blocks // FIRST_MULTIPLE) * FIRST_MULTIPLE


def _make_directory(directory: Path) -> bool:
    """Make the directory of a new volume; return whether it was not there."""
    if (directory / CONFIG_NAME).exists():
        raise NotAVolumeError(f"{directory} is a volume already", "take another name, or remove it first")
    if directory.exists():
        if not directory.is_dir() or any(directory.iterdir()):
            raise NotAVolumeError(f"{directory} is not empty", "name a directory that is empty or does not exist")
        return False
    directory.mkdir(parents=True)
    return True


def _unmake_directory(directory: Path, made: bool) -> None:
    """Undo what a failed create left in a directory it had found empty or absent."""
    shutil.rmtree(directory / DISKS_DIR, ignore_errors=True)
    for name in (CONFIG_NAME, LOCK_NAME):
        (directory / name).unlink(missing_ok=True)
    if made:
        directory.rmdir()
