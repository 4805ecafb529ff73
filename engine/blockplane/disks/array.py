"""The disks of a volume as one: places in, parallel I/O out; parity written with every band."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from blockplane.disks.band import BAND_STRIPES, Band
from blockplane.disks.disk import HEAD_BLOCKS, Disk, DiskCounters
from blockplane.disks.geometry import Geometry
from blockplane.disks.pending import Pending
from blockplane.disks.pool import BufferPool
from blockplane.disks.worker import DiskWorker, FlushJob, ReadJob, WriteJob
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Extents, Numbers
from blockplane.model.errors import ChecksumError

#: Pipeline memory for bands.
POOL_BYTES: Final = 64 << 20
#: A read of so few blocks on one disk runs in the calling thread: waking another costs more than it brings.
SMALL_READ_BLOCKS: Final = 64


class DiskArray:
    """Reads and writes by place, on any object with the `Disk` protocol.

    Notes
    -----
    Thread-safe. After the first failed write or flush every further write, flush and raw write raises that error: what
    the disks hold is unknown, and no root may follow. Reads go on.
    """

    def __init__(self, geometry: Geometry, disks: Sequence[Disk], pool_bytes: int = POOL_BYTES) -> None:
        """Take disks in the order of the geometry's indexes; `close` ends the threads and closes the disks."""
        if len(disks) != geometry.n_disks:
            raise ValueError(f"{len(disks)} disks for a geometry of {geometry.n_disks}")
        self.geometry = geometry
        self.disks = tuple(disks)
        self.pool = BufferPool(pool_bytes)
        #: guards the two below
        self._changed = threading.Condition()
        self._n_bands = 0
        self._failure: BaseException | None = None
        self._workers = [DiskWorker(disk, self._note_failure) for disk in disks]
        for worker in self._workers:
            worker.start()

    def extend(self, geometry: Geometry, disks: Sequence[Disk]) -> None:
        """Take the disks of groups that a geometry adds; what reads and writes the others goes on.

        The caller sees to it that no plan of the new groups is made before.
        """
        if geometry.groups[: len(self.geometry.groups)] != self.geometry.groups:
            raise ValueError("the geometry does not go on from the one there is")
        workers = [DiskWorker(disk, self._note_failure) for disk in disks]
        for worker in workers:
            worker.start()
        self._workers = [*self._workers, *workers]
        self.disks = (*self.disks, *disks)
        self.geometry = geometry

    def reduce(self, geometry: Geometry, gone: Sequence[int]) -> None:
        """Give the disks of a group up that a geometry is without: their threads end, they stay open.

        The caller sees to it that no plan of that group is under way.
        """
        kept = [disk for disk in range(len(self.disks)) if disk not in gone]
        if len(kept) != geometry.n_disks:
            raise ValueError(f"{len(kept)} disks for a geometry of {geometry.n_disks}")
        self.drain()
        for disk in gone:
            self._workers[disk].close()
        self._workers = [self._workers[disk] for disk in kept]
        self.disks = tuple(self.disks[disk] for disk in kept)
        self.geometry = geometry

    def __enter__(self) -> DiskArray:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish what is queued, end the threads, close the disks. Flushes nothing."""
        for worker in self._workers:
            worker.close()
        for disk in self.disks:
            disk.close()

    @property
    def failure(self) -> BaseException | None:
        """The first failed write or flush, or None."""
        return self._failure

    def counters(self) -> DiskCounters:
        """Sums over the disks since they were opened."""
        each = [disk.counters for disk in self.disks]
        return DiskCounters(
            sum(c.read_bytes for c in each),
            sum(c.read_requests for c in each),
            sum(c.written_bytes for c in each),
            sum(c.write_requests for c in each),
            sum(c.flushes for c in each),
        )

    def _note_failure(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error

    def _refuse_after_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # reading

    def read_places(
        self,
        extents: Extents,
        out: Bytes,
        positions: Numbers | None = None,
        numbers: Numbers | None = None,
        expected: Checks | None = None,
    ) -> None:
        """Read blocks by place and wait; goes before what `submit_read` has queued.

        Parameters
        ----------
        extents : (n, 2), places, in any order.
        out : uint8, C-contiguous, writable; aligned best (`aligned_buffer`).
        positions : (n,) int64, the block of ``out`` where each extent goes; default: one after the other.
        numbers, expected : one per block in the order of the extents: verify while the bytes are in the cache.

        Raises
        ------
        DiskError : a read failed. ChecksumError : a block differs from its check.
        """
        if extents.shape[0] == 1 and positions is None and self._read_one_piece(extents, out, numbers, expected):
            return
        pending, jobs = self._read_jobs(extents, out, positions, numbers, expected, 0)
        if len(jobs) == 1 and int(jobs[0][1].n_blocks.sum()) <= SMALL_READ_BLOCKS and self._is_quiet(*jobs[0]):
            jobs[0][1].run(self.disks[jobs[0][0]])
        else:
            for disk, job in jobs:
                self._workers[disk].submit_urgent(job)
        pending.wait()
        refuse_bad(pending.first_bad, numbers)

    def _read_one_piece(self, extents: Extents, out: Bytes, numbers: Numbers | None, expected: Checks | None) -> bool:
        """Read one small extent of one disk in this thread, if it is one and no write to it is queued."""
        start, stop = extents[0].tolist()
        home = self.geometry.locate(start, stop) if 0 < stop - start <= SMALL_READ_BLOCKS else None
        if home is None:
            return False
        disk, block = home[0], home[1] + HEAD_BLOCKS
        if self._workers[disk].may_be_written(block, block + stop - start):
            return False
        n_blocks = np.array([stop - start], dtype=np.int64)
        bad = self.disks[disk].read_plan(np.array([block]), n_blocks, out, _AT_START, numbers, expected)
        refuse_bad(bad, numbers)
        return True

    def submit_read(
        self,
        extents: Extents,
        out: Bytes,
        positions: Numbers | None = None,
        numbers: Numbers | None = None,
        expected: Checks | None = None,
        max_gap_blocks: int = 0,
    ) -> Pending:
        """As `read_places`, without waiting: ``wait()`` raises DiskError; ``first_bad`` tells of checks."""
        pending, jobs = self._read_jobs(extents, out, positions, numbers, expected, max_gap_blocks)
        for disk, job in jobs:
            self._workers[disk].submit(job)
        return pending

    def submit_disk_read(
        self,
        disk: int,
        dbn: Numbers,
        n_blocks: Numbers,
        out: Bytes,
        positions: Numbers,
        numbers: Numbers | None = None,
        expected: Checks | None = None,
        max_gap_blocks: int = 0,
    ) -> Pending:
        """Read extents of one disk's data area, planned by the caller; ``first_bad`` counts blocks in their order."""
        pending = Pending(1)
        blocks = dbn + HEAD_BLOCKS
        job = ReadJob(blocks, n_blocks, out, positions, pending, numbers, expected, None, max_gap_blocks)
        self._workers[disk].submit(job)
        return pending

    def _is_quiet(self, disk: int, job: ReadJob) -> bool:
        start, stop = int(job.blocks.min()), int((job.blocks + job.n_blocks).max())
        return not self._workers[disk].may_be_written(start, stop)

    def _read_jobs(
        self,
        extents: Extents,
        out: Bytes,
        positions: Numbers | None,
        numbers: Numbers | None,
        expected: Checks | None,
        max_gap_blocks: int,
    ) -> tuple[Pending, list[tuple[int, ReadJob]]]:
        pieces = self.geometry.split(extents)
        target = pieces.position
        if positions is not None:
            lengths = extents[:, 1] - extents[:, 0]
            owner = np.searchsorted(np.cumsum(lengths), pieces.position, side="right")
            target = pieces.position + (positions - (np.cumsum(lengths) - lengths))[owner]
        order = np.lexsort((pieces.dbn, pieces.disk))
        disks, starts = np.unique(pieces.disk[order], return_index=True)
        bounds = [*starts.tolist(), order.shape[0]]
        pending = Pending(len(disks))
        jobs = []
        for disk, start, stop in zip(disks.tolist(), bounds, bounds[1:], strict=False):
            mine = order[start:stop]
            n_blocks = pieces.n_blocks[mine]
            job = ReadJob(pieces.dbn[mine] + HEAD_BLOCKS, n_blocks, out, target[mine], pending)
            job.max_gap_blocks = max_gap_blocks
            if numbers is not None and expected is not None:
                job.index = spread(pieces.position[mine], n_blocks)
                job.numbers, job.expected = numbers[job.index], expected[job.index]
            jobs.append((disk, job))
        return pending, jobs

    # writing

    def new_band(self, group: int, dbn_start: int, n_stripes: int = BAND_STRIPES, *, zero: bool = True) -> Band:
        """Take a band from the pool; waits while the pool is out and writes are under way.

        Parameters
        ----------
        zero : clear the data. False only for a caller that fills every slot: old bytes must not reach a disk.
        """
        record = self.geometry.groups[group]
        buffer, is_fresh = self.pool.take(len(record.disks) * n_stripes * BLOCK_BYTES)
        band = Band(group, record, dbn_start, n_stripes, buffer)
        if zero and not is_fresh:
            band.data[:] = 0
        return band

    def drop_band(self, band: Band) -> None:
        """Give a band back unwritten; it must not be used any more."""
        self.pool.give_back(band.buffer, was_sent=False)

    def write_band(self, band: Band) -> Pending:
        """Compute parity here, then queue the band's written slots and its parity; the band is gone for the caller.

        Raises
        ------
        the first failure of an earlier write or flush.
        """
        self._refuse_after_failure()
        band.compute_parity()
        jobs = _band_extents(band)
        with self._changed:
            self._n_bands += 1
        self.pool.send(band.buffer)
        pending = Pending(len(jobs), lambda _: self._band_done(band.buffer))
        for member, blocks, n_blocks, positions in jobs:
            job = WriteJob(blocks, n_blocks, band.buffer, positions, pending)
            self._workers[band.record.disks[member]].submit(job)
        return pending

    def _band_done(self, buffer: Bytes) -> None:
        self.pool.give_back(buffer, was_sent=True)
        with self._changed:
            self._n_bands -= 1
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until every band is with its disks (not yet durable).

        Raises
        ------
        the first failure of a write.
        """
        with self._changed:
            while self._n_bands:
                self._changed.wait()
        self._refuse_after_failure()

    def flush(self, disks: Sequence[int] | None = None) -> None:
        """Make everything written before durable on the given disks (default: all), in parallel.

        Raises
        ------
        the first failure of a write or flush, now or before.
        """
        self._refuse_after_failure()
        chosen = range(len(self.disks)) if disks is None else disks
        pending = Pending(len(chosen))
        for disk in chosen:
            self._workers[disk].submit(FlushJob(pending))
        pending.wait()
        self._refuse_after_failure()

    # outside the numbering

    def read_raw(self, disk: int, block: int, n_blocks: int, out: Bytes) -> None:
        """Read raw blocks of one disk and wait; after what is queued for it."""
        pending = Pending(1)
        one = np.array([n_blocks], dtype=np.int64)
        zero = np.zeros(1, dtype=np.int64)
        self._workers[disk].submit(ReadJob(zero + block, one, out, zero, pending))
        pending.wait()

    def write_raw(self, targets: Sequence[tuple[int, int]], data: Bytes) -> None:
        """Write the same bytes at several (disk, raw block), in parallel, and wait; after what is queued for them.

        Raises
        ------
        the first failure of a write or flush, now or before.
        """
        self._refuse_after_failure()
        n_blocks = np.array([data.shape[0] // BLOCK_BYTES], dtype=np.int64)
        zero = np.zeros(1, dtype=np.int64)
        pending = Pending(len(targets))
        for disk, block in targets:
            self._workers[disk].submit(WriteJob(zero + block, n_blocks, data, zero, pending))
        pending.wait()


_AT_START: Final = np.zeros(1, dtype=np.int64)


def refuse_bad(bad: int, numbers: Numbers | None) -> None:
    """Raise ChecksumError for the block at index ``bad`` of ``numbers``; -1: there is none."""
    if bad >= 0 and numbers is not None:
        raise ChecksumError(f"block {numbers[bad]} differs from its checksum", int(numbers[bad]))


def spread(starts: Numbers, lengths: Numbers) -> Numbers:
    """Every number of the ranges ``[start, start + length)``, one range after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total, dtype=np.int64)


def _band_extents(band: Band) -> list[tuple[int, Numbers, Numbers, Numbers]]:
    """Per member with something to write: its position in the group, raw blocks, lengths, positions in the buffer."""
    jobs = []
    first = band.dbn_start + HEAD_BLOCKS
    for member in range(len(band.record.disks)):
        mask = band.written[member] if member < band.record.n_data else band.touched
        if mask.all():
            starts, stops = np.zeros(1, dtype=np.int64), np.array([band.n_stripes], dtype=np.int64)
        else:
            edges = np.diff(mask.astype(np.int8), prepend=0, append=0)
            starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        if starts.size:
            jobs.append((member, starts + first, stops - starts, starts + member * band.n_stripes))
    return jobs
