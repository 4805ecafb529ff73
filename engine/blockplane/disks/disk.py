"""One disk: the protocol that the rest of the engine sees, and files and block devices behind it.

A disk is HEAD_BLOCKS blocks of head area, the data area, TAIL_BLOCKS blocks of tail area. Blocks are numbered from the
start of the disk here ("raw"); a dbn counts from the start of the data area.

| raw block | meaning |
| --- | --- |
| 0 | label |
| 1 | fsinfo slot, head half |
| 2 .. 15 | reserved |
| 16 .. | data area |
| behind it .. n_blocks - 3 | stripe log (`disks.stripelog`), on parity disks |
| n_blocks - 2 | fsinfo slot, tail half |
| n_blocks - 1 | label, copy |
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from blockplane._native import diskio
from blockplane.disks.descriptors import is_block_device, open_direct, refuse_read_only
from blockplane.disks.disklock import WATCHER_TIMEOUT_S, lock_disk
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.errors import DiskError, DiskMissingError, DiskShortError, VolumeInUseError

HEAD_BLOCKS: Final = 16
TAIL_BLOCKS: Final = 16
LABEL_HEAD_BLOCK: Final = 0
FSINFO_HEAD_BLOCK: Final = 1
#: One request; larger ones gained nothing on an NVMe disk and a virtio disk. Turn it down for latency.
MAX_REQUEST_BLOCKS: Final = 256
_HUGE_PAGE_BYTES: Final = 2 << 20
#: FS_IOC_GETVERSION of linux/fs.h: which of the files that had an inode's number it is.
_GENERATION: Final = 0x80087601
#: What stands for the id of a file where the disk is a device.
_DEVICE: Final = b"\xff" * 16


def label_tail_block(n_blocks: int) -> int:
    """Raw block of the label's copy on a disk of n_blocks."""
    return n_blocks - 1


def fsinfo_tail_block(n_blocks: int) -> int:
    """Raw block of the tail half's fsinfo slot on a disk of n_blocks."""
    return n_blocks - 2


@dataclass(slots=True)
class DiskCounters:
    """What went over the wire since the disk was opened."""

    read_bytes: int = 0
    read_requests: int = 0
    written_bytes: int = 0
    write_requests: int = 0
    flushes: int = 0


class Disk(Protocol):
    """A disk of 4,096-byte blocks. Calls may come from several threads at once."""

    @property
    def path(self) -> str:
        """The disk as a person names it."""
        ...

    @property
    def n_blocks(self) -> int:
        """All blocks, head and tail areas included."""
        ...

    @property
    def counters(self) -> DiskCounters:
        """Live counters."""
        ...

    def read_plan(
        self,
        blocks: Numbers,
        n_blocks: Numbers,
        buffer: Bytes,
        positions: Numbers,
        numbers: Numbers | None = None,
        expected: Checks | None = None,
        max_gap_blocks: int = 0,
    ) -> int:
        """Read extents.

        Parameters
        ----------
        blocks, n_blocks : (n,) int64: first raw block and length of each extent.
        buffer : uint8, C-contiguous, writable; best aligned to 4,096 (`aligned_buffer`).
        positions : (n,) int64: block of the buffer where each extent goes.
        numbers, expected : per block in the order of the extents: the number its check is bound to, and the check.
        max_gap_blocks : holes up to this long may be read through, into scratch.

        Returns
        -------
        index, in the order of the extents, of the first block that differs from its check; -1: none.

        Raises
        ------
        DiskError : the read failed; DiskShortError: the disk ends before.
        """
        ...

    def write_plan(self, blocks: Numbers, n_blocks: Numbers, buffer: Bytes, positions: Numbers) -> None:
        """Write extents; parameters as for `read_plan`, the buffer read-only. Durable after `flush`."""
        ...

    def write_gathered(self, blocks: Numbers, n_blocks: Numbers, buffers: Sequence[Bytes], positions: Numbers) -> None:
        """Write extents, extent i from ``buffers[i]``."""
        ...

    def flush(self) -> None:
        """Make every write that returned before durable."""
        ...

    def close(self) -> None:
        """Give the disk back. Nothing is flushed."""
        ...


def aligned_buffer(n_bytes: int) -> Bytes:
    """(n_bytes,) uint8, zero, writable, its address a multiple of 4,096. Unmapped with its last view.

    Notes
    -----
    Large ones ask for huge pages: O_DIRECT pins one page instead of 512, and the first touch costs as much less.
    """
    mapped = mmap.mmap(
        -1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # shared ones get no huge pages
    if n_bytes >= _HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, dtype=np.uint8)[:n_bytes]


def address(buffer: Bytes) -> int:
    """Address of an array's first byte."""
    return int(buffer.__array_interface__["data"][0])


def write_buffers(fd: int, buffers: Sequence[bytes | memoryview]) -> None:
    """Write buffers in order to a file, pipe or blocking socket, straight from their memory; without the GIL.

    Raises
    ------
    OSError : as write(2); what went out before stays written.
    """
    diskio.writev_all(fd, list(buffers))


class FileDisk:
    """A file or block device. Thread-safe; I/O without the GIL."""

    def __init__(self, path: str, fd: int, n_blocks: int, *, direct: bool, locked: bool = False) -> None:
        """Take over an open descriptor; `open` and `create` are the doors."""
        self.path = path
        self.n_blocks = n_blocks
        self.direct = direct
        self.is_locked = locked
        self.counters = DiskCounters()
        self._fd = fd
        self._counting = threading.Lock()

    @classmethod
    def open(cls, path: str, *, writable: bool = True, direct: bool = True, lock: bool = True) -> FileDisk:
        """Open a disk.

        Parameters
        ----------
        direct : pass the page cache by where the file system can; where it cannot, I/O is buffered.
        lock : hold it against others: a writer alone, a device against mounts too; readers beside each other, where the
            file system keeps locks. Two opens in one process exclude each other as well.

        Raises
        ------
        DiskMissingError : nothing is there, or it cannot be opened.
        DiskError : neither a file nor a block device, or a read-only device that is to be written.
        VolumeInUseError : someone else holds it.
        """
        path = os.fspath(path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOCTTY
        fd = -1
        try:
            is_device = is_block_device(path)
            flags |= os.O_EXCL if is_device and lock and writable else 0
            fd, is_direct = open_direct(path, flags) if direct else (os.open(path, flags), False)
            if is_device and writable:
                refuse_read_only(fd, path)
            is_locked = lock and lock_disk(fd, shared=not writable, timeout_s=WATCHER_TIMEOUT_S if is_device else 0.0)
            return cls(path, fd, os.lseek(fd, 0, os.SEEK_END) // BLOCK_BYTES, direct=is_direct, locked=is_locked)
        except (OSError, DiskError) as error:
            if fd >= 0:
                os.close(fd)
            if isinstance(error, DiskError):
                raise
            if error.errno in (errno.EBUSY, errno.EWOULDBLOCK):
                raise VolumeInUseError(f"{path}: in use by another process") from error
            is_gone = error.errno == errno.ENOENT
            hint = "put it back; where it lies elsewhere now, say so in volume.toml" if is_gone else ""
            raise DiskMissingError(f"{path}: cannot be opened: {error.strerror}", path, hint) from error

    @classmethod
    def create(cls, path: str, n_blocks: int, *, direct: bool = True) -> FileDisk:
        """Make a sparse file of n_blocks and open it. It must not exist.

        Raises
        ------
        DiskError : it exists, or cannot be made.
        """
        path = os.fspath(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.truncate(fd, n_blocks * BLOCK_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            raise DiskError(f"{path}: cannot be created: {error.strerror}", path) from error
        return cls.open(path, direct=direct)

    @property
    def file_id(self) -> bytes:
        """16 bytes: which file of its file system it is, by inode number and generation, so that a copy is another one.

        Of a device it says that it is one.
        """
        found, generation = os.fstat(self._fd), bytes(8)
        if not stat.S_ISREG(found.st_mode):
            return _DEVICE
        with contextlib.suppress(OSError):  # not every file system says
            generation = fcntl.ioctl(self._fd, _GENERATION, generation)
        return struct.pack("<Q", found.st_ino) + generation

    def take_for_writing(self, wait_s: float = 0.0) -> None:
        """Go over from reading to writing, and to a lock of one's own; what reads the disk meanwhile goes on.

        Parameters
        ----------
        wait_s : how long to wait for other readers.

        Raises
        ------
        DiskError : it cannot be written; it stays open for reading.
        VolumeInUseError : someone else reads it.
        """
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | (os.O_DIRECT if self.direct else 0)
        try:
            is_device = stat.S_ISBLK(os.fstat(self._fd).st_mode)
            fd = os.open(f"/proc/self/fd/{self._fd}", flags | (os.O_EXCL if is_device else 0))
            try:
                if is_device:
                    refuse_read_only(fd, self.path)
                if self.is_locked:  # a read under way keeps what is replaced open, and with it its lock
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
                os.dup2(fd, self._fd, inheritable=False)
            finally:
                os.close(fd)
            timeout_s = max(wait_s, WATCHER_TIMEOUT_S) if is_device else wait_s
            self.is_locked = lock_disk(self._fd, shared=False, timeout_s=timeout_s)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EWOULDBLOCK):
                self.share()
                raise VolumeInUseError(f"{self.path}: in use by another process") from error
            raise DiskError(f"{self.path}: cannot be written: {error.strerror}", self.path) from error

    def share(self) -> None:
        """Go back to a lock that other readers may have beside this one."""
        with contextlib.suppress(OSError):
            self.is_locked = lock_disk(self._fd, shared=True, timeout_s=0.0)

    def read_plan(
        self,
        blocks: Numbers,
        n_blocks: Numbers,
        buffer: Bytes,
        positions: Numbers,
        numbers: Numbers | None = None,
        expected: Checks | None = None,
        max_gap_blocks: int = 0,
    ) -> int:
        """See `Disk.read_plan`."""
        if self.direct and address(buffer) % BLOCK_BYTES:
            return self._read_unaligned(blocks, n_blocks, buffer, positions, numbers, expected)
        try:
            n_bytes, n_requests, bad = diskio.read_plan(
                self._fd, blocks, n_blocks, buffer, positions, numbers, expected, MAX_REQUEST_BLOCKS, max_gap_blocks
            )
        except EOFError as error:
            raise DiskShortError(f"{self.path}: ends before a block that it should hold: {error}", self.path) from error
        except OSError as error:
            raise DiskError(f"{self.path}: read failed: {error.strerror}", self.path) from error
        with self._counting:
            self.counters.read_bytes += n_bytes
            self.counters.read_requests += n_requests
        return bad

    def _read_unaligned(
        self,
        blocks: Numbers,
        n_blocks: Numbers,
        buffer: Bytes,
        positions: Numbers,
        numbers: Numbers | None,
        expected: Checks | None,
    ) -> int:
        """Read by way of an aligned buffer."""
        ends = np.cumsum(n_blocks)
        bounce = aligned_buffer(int(ends[-1]) * BLOCK_BYTES if ends.size else 0)
        bad = self.read_plan(blocks, n_blocks, bounce, ends - n_blocks, numbers, expected)
        whole = buffer[: buffer.shape[0] // BLOCK_BYTES * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)
        source = bounce.reshape(-1, BLOCK_BYTES)
        for position, count, end in zip(positions.tolist(), n_blocks.tolist(), ends.tolist(), strict=True):
            whole[position : position + count] = source[end - count : end]
        return bad

    def write_plan(self, blocks: Numbers, n_blocks: Numbers, buffer: Bytes, positions: Numbers) -> None:
        """See `Disk.write_plan`."""
        if self.direct and address(buffer) % BLOCK_BYTES:
            self.write_gathered(blocks, n_blocks, [buffer] * blocks.shape[0], positions)
            return
        try:
            n_bytes, n_requests = diskio.write_plan(
                self._fd, blocks, n_blocks, buffer, positions, self.n_blocks, MAX_REQUEST_BLOCKS
            )
        except (OSError, EOFError) as error:
            raise self._write_error(error) from error
        self._count_write(n_bytes, n_requests)

    def write_gathered(self, blocks: Numbers, n_blocks: Numbers, buffers: Sequence[Bytes], positions: Numbers) -> None:
        """See `Disk.write_gathered`."""
        ready, places = list(buffers), positions
        if self.direct and any(address(buffer) % BLOCK_BYTES for buffer in ready):
            places = np.zeros_like(positions)
            ready = [
                _aligned_copy(buffer, position, count)
                for buffer, position, count in zip(ready, positions.tolist(), n_blocks.tolist(), strict=True)
            ]
        try:
            n_bytes, n_requests = diskio.write_gathered(
                self._fd, blocks, n_blocks, ready, places, self.n_blocks, MAX_REQUEST_BLOCKS
            )
        except (OSError, EOFError) as error:
            raise self._write_error(error) from error
        self._count_write(n_bytes, n_requests)

    def _write_error(self, error: OSError | EOFError) -> DiskError:
        if isinstance(error, EOFError):
            return DiskShortError(f"{self.path}: ends before a block that it should hold: {error}", self.path)
        return DiskError(f"{self.path}: write failed: {error.strerror}", self.path, _room_hint(error))

    def _count_write(self, n_bytes: int, n_requests: int) -> None:
        with self._counting:
            self.counters.written_bytes += n_bytes
            self.counters.write_requests += n_requests

    def flush(self) -> None:
        """See `Disk.flush`. A failed flush says nothing about what is durable: never repeat it as if it did."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise DiskError(f"{self.path}: flush failed: {error.strerror}", self.path, _room_hint(error)) from error
        with self._counting:
            self.counters.flushes += 1

    def close(self) -> None:
        """See `Disk.close`; twice does no harm."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _room_hint(error: OSError) -> str:
    """Return what to do where a disk file's holes can be filled no more: nothing in the volume gives the host room."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    return "make room on the file system that the disk file is on, deleting too needs some; the last commit is whole"


def _aligned_copy(buffer: Bytes, position: int, n_blocks: int) -> Bytes:
    copy = aligned_buffer(n_blocks * BLOCK_BYTES)
    copy[:] = buffer[position * BLOCK_BYTES : (position + n_blocks) * BLOCK_BYTES]
    return copy
