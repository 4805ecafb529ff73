"""The machine's own limits: one thread per disk file, O_DIRECT, requests of up to 1 MiB, no checks and no stream."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blockplane._native import diskio
from blockplane.disks import HEAD_BLOCKS, aligned_buffer
from blockplane.image import Image

Numbers = NDArray[np.int64]
REQUEST_BLOCKS = 256


@dataclass(frozen=True, slots=True)
class DiskExtents:
    """Blocks of one disk file, ascending; no extent is longer than a request."""

    path: str
    blocks: Numbers
    n_blocks: Numbers

    @property
    def total_blocks(self) -> int:
        """Blocks in all."""
        return int(self.n_blocks.sum())


def extents_of(image: Image) -> list[DiskExtents]:
    """Return where an image's blocks lie, disk by disk."""
    store = image.store
    pieces = store.geometry.split(image.layout.places.extents())
    found = []
    for disk in np.unique(pieces.disk).tolist():
        mine = pieces.disk == disk
        order = np.argsort(pieces.dbn[mine])
        blocks, n_blocks = _cut(pieces.dbn[mine][order] + HEAD_BLOCKS, pieces.n_blocks[mine][order])
        found.append(DiskExtents(store.array.disks[disk].path, blocks, n_blocks))
    return found


def _cut(starts: Numbers, lengths: Numbers) -> tuple[Numbers, Numbers]:
    """Join extents that touch, then cut them at every request's length."""
    stops = starts + lengths
    edges = np.flatnonzero(starts[1:] != stops[:-1])
    starts, stops = starts[np.r_[0, edges + 1]], stops[np.r_[edges, len(stops) - 1]]
    n_parts = -(-(stops - starts) // REQUEST_BLOCKS)
    first = np.cumsum(n_parts) - n_parts
    inside = np.arange(n_parts.sum()) - np.repeat(first, n_parts)
    begin = np.repeat(starts, n_parts) + inside * REQUEST_BLOCKS
    return begin, np.minimum(np.repeat(stops, n_parts) - begin, REQUEST_BLOCKS)


def _in_threads(work: Callable[[DiskExtents], int], disks: Sequence[DiskExtents]) -> int:
    with ThreadPoolExecutor(len(disks)) as pool:
        return sum(pool.map(work, disks))


def _scratch(*, huge: bool = False) -> NDArray[np.uint8]:
    """One request's buffer: of ordinary pages, as dd and fio have them, or in one huge page that stays in the cache."""
    if huge:
        return aligned_buffer(2 << 20)[: REQUEST_BLOCKS * 4096]
    return np.frombuffer(mmap.mmap(-1, REQUEST_BLOCKS * 4096), np.uint8)


def read_raw(disks: Sequence[DiskExtents], *, huge: bool = False) -> int:
    """Read every extent of every disk into one request's buffer per thread; return the bytes read.

    Parameters
    ----------
    huge : into a huge page. Nothing that keeps what it reads can be as fast: the bytes never leave the cache.
    """

    def read(disk: DiskExtents) -> int:
        fd = os.open(disk.path, os.O_RDONLY | os.O_DIRECT)
        try:
            at = np.zeros_like(disk.blocks)
            return int(
                diskio.read_plan(fd, disk.blocks, disk.n_blocks, _scratch(huge=huge), at, None, None, REQUEST_BLOCKS)[0]
            )
        finally:
            os.close(fd)

    return _in_threads(read, disks)


def like_in(folder: Path, disks: Sequence[DiskExtents], n_parity: int) -> list[DiskExtents]:
    """Return the same extents in files of a folder, and parity disks that hold as much as the fullest data disk."""
    made = [DiskExtents(str(folder / str(i)), d.blocks, d.n_blocks) for i, d in enumerate(disks)]
    fullest = max(made, key=lambda disk: disk.total_blocks)
    return made + [DiskExtents(str(folder / f"parity{i}"), fullest.blocks, fullest.n_blocks) for i in range(n_parity)]


def write_raw(disks: Sequence[DiskExtents], disk_bytes: int, *, huge: bool = False) -> int:
    """Make sparse files, write every extent, make them durable; return the bytes written.

    Parameters
    ----------
    huge : as for `read_raw`.
    """

    def write(disk: DiskExtents) -> int:
        fd = os.open(disk.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        try:
            os.truncate(fd, disk_bytes)
            at = np.zeros_like(disk.blocks)
            scratch = _scratch(huge=huge)
            n_bytes, _ = diskio.write_plan(
                fd, disk.blocks, disk.n_blocks, scratch, at, disk_bytes // 4096, REQUEST_BLOCKS
            )
            os.fdatasync(fd)
            return int(n_bytes)
        finally:
            os.close(fd)

    return _in_threads(write, disks)


def copy_file(origin: Path, target: Path) -> int:
    """Copy through 1 MiB of memory and sync, as a stream is written."""
    buffer, done = memoryview(bytearray(1 << 20)), 0
    with open(origin, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
        while n_read := reader.readinto(buffer):
            writer.write(buffer[:n_read])
            done += n_read
        os.fsync(writer.fileno())
    return done


def copy_raw(
    origins: Sequence[DiskExtents], targets: Sequence[DiskExtents], disk_bytes: int, n_threads: int = 2
) -> int:
    """Copy every extent of every disk to the same place of a sparse file, and make it durable; return what is written.

    Parameters
    ----------
    targets : the copies of the origins, in their order, and behind them parity disks, which are written alone.
    n_threads : for each disk that is copied, each with its part of the extents; each parity disk has one.
    """
    jobs: list[tuple[DiskExtents | None, DiskExtents]] = []
    for i, target in enumerate(targets):
        if i >= len(origins):
            jobs.append((None, target))
            continue
        halves = zip(*(np.array_split(column, n_threads) for column in (target.blocks, target.n_blocks)), strict=True)
        jobs += [(origins[i], DiskExtents(target.path, blocks, n_blocks)) for blocks, n_blocks in halves]
    for target in targets:
        with open(target.path, "wb") as file:
            file.truncate(disk_bytes)

    def copy(job: tuple[DiskExtents | None, DiskExtents]) -> int:
        origin, part = job
        fd = os.open(part.path, os.O_RDWR | os.O_DIRECT)
        source_fd = os.open(origin.path, os.O_RDONLY | os.O_DIRECT) if origin is not None else -1
        scratch, start, n_bytes = _scratch(), np.zeros(1, np.int64), 0
        try:
            for i in range(len(part.blocks)):
                extent = part.blocks[i : i + 1], part.n_blocks[i : i + 1]
                if source_fd >= 0:
                    diskio.read_plan(source_fd, *extent, scratch, start, None, None, REQUEST_BLOCKS)
                n_bytes += diskio.write_plan(fd, *extent, scratch, start, disk_bytes // 4096, REQUEST_BLOCKS)[0]
            os.fdatasync(fd)
            return n_bytes
        finally:
            os.close(fd)
            if source_fd >= 0:
                os.close(source_fd)

    with ThreadPoolExecutor(len(jobs)) as pool:
        return sum(pool.map(copy, jobs))
