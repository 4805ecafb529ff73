"""A new RAID group: what was asked of it, its disks made or opened, its record."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blockplane.disks.assembly import refuse_same_file_twice
from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS, Disk, FileDisk, aligned_buffer
from blockplane.disks.geometry import FIRST_MULTIPLE, Geometry, GroupRecord
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Numbers
from blockplane.model.errors import BlockplaneError, DiskError, DiskShortError, RefusedError, UsageError
from blockplane.model.ownfiles import sync
from blockplane.model.sizes import format_size, parse_size
from blockplane.volume.config import DISKS_DIR

DEFAULT_CHUNK_BYTES = 256 << 10
CHUNK_MULTIPLE_BLOCKS = 64
#: Where labels, partition tables and super blocks lie: btrfs has one at 64 KiB, UFS at 256 KiB, VMFS at 1 MiB; RAID and
#: volume managers keep theirs in the last 512 KiB.
_END_BLOCKS = (2 << 20) // BLOCK_BYTES

DiskNames = int | Sequence[str | os.PathLike[str]]


class GroupWish:
    """What was asked of a new RAID group.

    Parameters
    ----------
    disks : how many disk files to make, or paths of files or devices. size : bytes of each disk.
    parity : None for 1 from three disks on, else 0. chunk : bytes, or "disk". wipe : take named disks that hold data.

    Raises
    ------
    UsageError: the numbers do not make a group.
    """

    def __init__(
        self, disks: DiskNames, size: int | str | None, parity: int | None, chunk: int | str | None, wipe: bool = False
    ) -> None:
        self.paths = None if isinstance(disks, int) else [os.fspath(disk) for disk in disks]
        self.n_disks = disks if isinstance(disks, int) else len(disks)
        self.size_bytes = parse_size(size) if isinstance(size, str) else size
        self.n_parity = parity if parity is not None else int(self.n_disks >= 3)
        self.chunk = chunk
        self.wipe = wipe
        if not 0 <= self.n_parity <= 2 or self.n_disks <= self.n_parity or self.n_disks > 255:
            raise UsageError(
                f"{self.n_disks} disks with {self.n_parity} parity disks make no RAID group",
                "at least one data disk beside 0, 1 or 2 parity disks, at most 255 in all",
            )
        if self.paths is None and self.size_bytes is None:
            raise UsageError("disk files need a size", "say --size 2G")

    def names(self, directory: Path, first: int) -> list[str]:
        """Return the disks' names for volume.toml: those asked for, or new ones from number `first` on."""
        if self.paths is not None:
            names = [os.path.abspath(name) for name in self.paths]
            refuse_same_file_twice(names)
            return names
        while any(os.path.lexists(directory / DISKS_DIR / str(first + i)) for i in range(self.n_disks)):
            first += 1
        return [f"{DISKS_DIR}/{first + i}" for i in range(self.n_disks)]

    def open_disks(self, directory: Path, names: Sequence[str], opened: list[Disk], made: list[str]) -> None:
        """Make or open the disks, appending them to opened, and the paths of those that were made to made.

        The names of those that were made are durable on return.

        Raises
        ------
        RefusedError: a disk that was named holds data. DiskError, UsageError: it is no disk, or not there.
        """
        if self.paths is None:
            (directory / DISKS_DIR).mkdir(exist_ok=True)
        for name in names:
            full = str(directory / name)
            if _is_there(full):
                opened.append(FileDisk.open(full))
                self._refuse_data(opened[-1])
            else:
                n_blocks = self._blocks_to_make(full)
                made.append(full)
                try:
                    opened.append(FileDisk.create(full, n_blocks))
                except DiskError as error:
                    if isinstance(error.__cause__, FileExistsError):  # another was faster, and it is not ours to remove
                        made.remove(full)
                    raise
        for folder in {os.path.dirname(path) for path in made}:
            with contextlib.suppress(PermissionError):  # see `making.make_directory`
                sync(Path(folder))

    def _refuse_data(self, disk: Disk) -> None:
        """Refuse a disk whose ends are not blank: labels, partition tables, file systems and archives live there."""
        if not self.wipe and any(_read_end(disk, start).any() for start in _ends(disk)):
            raise RefusedError(
                f"{disk.path} holds data, and making it a disk of a volume would lose that",
                "take another one, or say --wipe",
            )

    def group(self, disks: Sequence[Disk], first: int, first_disk: int) -> GroupRecord:
        """Return the group's record for its open disks; DiskShortError: one is too short."""
        return self._group([(disk.path, disk.n_blocks) for disk in disks], first, first_disk)

    def plan(self, directory: Path) -> tuple[list[str], GroupRecord]:
        """Return what the first group of a volume would be, and its disks' names; nothing is made or opened.

        What a maker that was stopped left in the directory counts as gone.
        """
        is_own = self.paths is None
        names = [f"{DISKS_DIR}/{i}" for i in range(self.n_disks)] if is_own else self.names(directory, first=0)
        n_blocks = self._blocks_to_make if is_own else self._blocks_of
        sizes = [(name, n_blocks(str(directory / name))) for name in names]
        return names, self._group(sizes, first=0, first_disk=0)

    def _blocks_of(self, path: str) -> int:
        if _is_there(path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.lseek(fd, 0, os.SEEK_END) // BLOCK_BYTES
            finally:
                os.close(fd)
        return self._blocks_to_make(path)

    def _blocks_to_make(self, path: str) -> int:
        """Return how long to make a disk that does not exist; UsageError: it is none to be made."""
        if path.startswith("/dev/") and not path.startswith("/dev/shm/"):
            # a mistyped device: a file there would fill the machine's memory and be gone after the next start
            raise UsageError(f"{path} does not exist", "no file is made in /dev: name a device that is there")
        if self.size_bytes is None:
            raise UsageError(f"{path} does not exist", "give --size to have it made")
        return self.size_bytes // BLOCK_BYTES

    def _group(self, disks: Sequence[tuple[str, int]], first: int, first_disk: int) -> GroupRecord:
        path, n_blocks = min(disks, key=lambda disk: disk[1])
        usable = n_blocks - HEAD_BLOCKS - TAIL_BLOCKS
        if self.size_bytes is not None:
            usable = min(usable, self.size_bytes // BLOCK_BYTES - HEAD_BLOCKS - TAIL_BLOCKS)
        chunk = self._chunk_blocks(usable)
        if usable < chunk:
            raise _too_short(path, n_blocks, usable, chunk)
        usable -= usable % chunk
        members = tuple(range(first_disk, first_disk + len(disks)))
        return GroupRecord(first, len(disks) - self.n_parity, self.n_parity, chunk, usable, members)

    def _chunk_blocks(self, usable: int) -> int:
        if self.chunk == "disk":
            return max(usable - usable % CHUNK_MULTIPLE_BLOCKS, CHUNK_MULTIPLE_BLOCKS)
        n_bytes = parse_size(self.chunk) if isinstance(self.chunk, str) else self.chunk
        if n_bytes is None:
            n_bytes = DEFAULT_CHUNK_BYTES
        if n_bytes <= 0 or n_bytes % (CHUNK_MULTIPLE_BLOCKS * BLOCK_BYTES):
            raise UsageError(
                f"a chunk of {n_bytes} bytes is not a multiple of 256 KiB", "say --chunk 256KiB, 1MiB or disk"
            )
        return n_bytes // BLOCK_BYTES


def _is_there(path: str) -> bool:
    """Whether a disk is there, and is not to be made; UsageError: a link is, that leads nowhere."""
    if os.path.exists(path):
        return True
    if os.path.islink(path):
        raise UsageError(f"{path} is a link that leads nowhere", "put back what it leads to, or name another disk")
    return False


def blank_ends(disk: Disk) -> None:
    """Write zeros where a disk's ends are not blank: nothing that looks for what was there before finds it.

    Notes
    -----
    Durable with the next flush.
    """
    for start in _ends(disk):
        found = _read_end(disk, start)
        if found.any():
            found[:] = 0
            disk.write_plan(*_one_end(disk, start), found, np.zeros(1, np.int64))


def give_back(path: str) -> None:
    """Blank the ends of a disk whose volume was made and is not to be; one that cannot be written stays as it is."""
    with contextlib.suppress(BlockplaneError), contextlib.closing(FileDisk.open(path)) as disk:
        blank_ends(disk)
        disk.flush()


def _ends(disk: Disk) -> tuple[int, ...]:
    """Return the raw block at which each end of a disk begins; none of a disk without room for two."""
    n_blocks = _end_blocks(disk)
    return (0, disk.n_blocks - n_blocks) if n_blocks else ()


def _end_blocks(disk: Disk) -> int:
    return min(_END_BLOCKS, disk.n_blocks // 2)


def _one_end(disk: Disk, start: int) -> tuple[Numbers, Numbers]:
    """Return an end as one extent."""
    return np.array([start], np.int64), np.array([_end_blocks(disk)], np.int64)


def _read_end(disk: Disk, start: int) -> Bytes:
    buffer = aligned_buffer(_end_blocks(disk) * BLOCK_BYTES)
    disk.read_plan(*_one_end(disk, start), buffer, np.zeros(1, np.int64))
    return buffer


def _too_short(path: str, n_blocks: int, usable: int, chunk: int) -> DiskShortError:
    """Return the error for a disk that holds no chunk: the chunk is too large for it, or the disk too small for any."""
    hint = "take disks of at least 1 MiB"
    if usable >= CHUNK_MULTIPLE_BLOCKS:
        fits = format_size(BLOCK_BYTES << usable.bit_length() - 1).replace(" ", "")
        hint = f"say --chunk {fits} or less, --chunk disk, or take larger disks"
    found, asked = format_size(n_blocks * BLOCK_BYTES), format_size(chunk * BLOCK_BYTES)
    return DiskShortError(f"{path}: too short: a disk of {found} holds no chunk of {asked}", path, hint)


def next_first(geometry: Geometry) -> int:
    """Return the first number of a group added to a geometry."""
    return -(-geometry.n_blocks // FIRST_MULTIPLE) * FIRST_MULTIPLE
