"""One thread per disk: a queue of reads, writes and flushes, run in order; writes that touch become one request.

Reads somebody waits for overtake what is read ahead, and writes to other blocks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blockplane.disks.disk import Disk
from blockplane.disks.pending import Pending
from blockplane.model.addresses import Bytes, Checks, Numbers

#: Writes taken from the queue at once: enough for requests of 1 MiB from bands of 256 KiB a disk, with room to sort.
MAX_BATCH_BLOCKS = 2048


@dataclass(slots=True)
class ReadJob:
    """Extents to read; ``index`` (per block) leads from this disk's blocks to the caller's order, for ``first_bad``."""

    blocks: Numbers
    n_blocks: Numbers
    buffer: Bytes
    positions: Numbers
    pending: Pending
    numbers: Numbers | None = None
    expected: Checks | None = None
    index: Numbers | None = None
    max_gap_blocks: int = 0

    def run(self, disk: Disk) -> None:
        """Read, in whatever thread calls."""
        bad = disk.read_plan(
            self.blocks, self.n_blocks, self.buffer, self.positions, self.numbers, self.expected, self.max_gap_blocks
        )
        if bad >= 0 and self.index is not None:
            bad = int(self.index[bad])
        self.pending.part_done(bad=bad)


@dataclass(slots=True)
class WriteJob:
    """Extents to write from one buffer."""

    blocks: Numbers
    n_blocks: Numbers
    buffer: Bytes
    positions: Numbers
    pending: Pending


@dataclass(slots=True)
class FlushJob:
    """Everything before it becomes durable."""

    pending: Pending


Job = ReadJob | WriteJob | FlushJob


class DiskWorker(threading.Thread):
    """The thread of one disk.

    ``on_failure`` hears of the first failed write or flush, before its ``Pending`` does; from then on nothing more is
    written: what is queued fails with the same error.
    """

    def __init__(self, disk: Disk, on_failure: Callable[[BaseException], None]) -> None:
        super().__init__(name=f"blockplane disk {disk.path}", daemon=True)
        self.disk = disk
        self._on_failure = on_failure
        self._failure: BaseException | None = None
        #: guards everything below. All who wait are woken, though one alone does: an interrupt in the middle of waking
        #: it leaves a waiter behind, which the next wake-up would go to.
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._urgent: deque[ReadJob] = deque()
        self._closing = False
        # raw blocks between which writes are queued or running; empty when no write is
        self._n_writes = 0
        self._write_start = 0
        self._write_stop = 0

    def submit(self, job: Job) -> None:
        """Queue a job."""
        with self._changed:
            if self._closing:
                raise RuntimeError("the disk array is closed")
            if isinstance(job, WriteJob):
                self._note_write(job)
            self._jobs.append(job)
            self._changed.notify_all()

    def submit_urgent(self, job: ReadJob) -> None:
        """Queue a read before all that waits, unless a write to what it reads is among it."""
        start, stop = int(job.blocks.min()), int((job.blocks + job.n_blocks).max())
        if self.may_be_written(start, stop):
            self.submit(job)
            return
        with self._changed:
            if self._closing:
                raise RuntimeError("the disk array is closed")
            self._urgent.append(job)
            self._changed.notify_all()

    def _note_write(self, job: WriteJob) -> None:
        start, stop = int(job.blocks.min()), int((job.blocks + job.n_blocks).max())
        if self._n_writes == 0:
            self._write_start, self._write_stop = start, stop
        else:
            self._write_start, self._write_stop = min(self._write_start, start), max(self._write_stop, stop)
        self._n_writes += 1

    def may_be_written(self, start: int, stop: int) -> bool:
        """Whether a write to these raw blocks may be queued or running: reads of them belong in the queue too."""
        with self._changed:
            return self._n_writes > 0 and start < self._write_stop and self._write_start < stop

    def close(self) -> None:
        """End the thread after what is queued."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.join()

    def run(self) -> None:
        """Work until closed."""
        while True:
            with self._changed:
                while not self._jobs and not self._urgent and not self._closing:
                    self._changed.wait()
                if not self._jobs and not self._urgent:
                    return
                jobs = self._next_batch()
            self._run_batch(jobs)

    def _next_batch(self) -> list[Job]:
        """One job, or writes that follow each other in the queue. Called with the lock held."""
        if self._urgent:
            return [self._urgent.popleft()]
        jobs = [self._jobs.popleft()]
        n_blocks = 0
        while isinstance(jobs[-1], WriteJob):
            n_blocks += int(jobs[-1].n_blocks.sum())
            if n_blocks >= MAX_BATCH_BLOCKS or not self._jobs or not isinstance(self._jobs[0], WriteJob):
                break
            jobs.append(self._jobs.popleft())
        return jobs

    def _run_batch(self, jobs: list[Job]) -> None:
        first = jobs[0]
        if isinstance(first, ReadJob):
            try:
                first.run(self.disk)
            except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
                first.pending.part_done(error)
            return
        if self._failure is None:
            self._failure = self._change_disk(jobs)
            if self._failure is not None:
                self._on_failure(self._failure)
        if isinstance(first, WriteJob):
            with self._changed:
                self._n_writes -= len(jobs)
        for job in jobs:
            job.pending.part_done(self._failure)

    def _change_disk(self, jobs: list[Job]) -> BaseException | None:
        try:
            if isinstance(jobs[0], FlushJob):
                self.disk.flush()
            else:
                write_jobs(self.disk, [job for job in jobs if isinstance(job, WriteJob)])
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            return error
        return None


def write_jobs(disk: Disk, jobs: list[WriteJob]) -> None:
    """Write several jobs, ascending where none overlaps another, so that neighbours become one request."""
    if len(jobs) == 1:
        job = jobs[0]
        disk.write_plan(job.blocks, job.n_blocks, job.buffer, job.positions)
        return
    blocks = np.concatenate([job.blocks for job in jobs])
    n_blocks = np.concatenate([job.n_blocks for job in jobs])
    positions = np.concatenate([job.positions for job in jobs])
    buffers = [job.buffer for job in jobs for _ in range(job.blocks.shape[0])]
    order = np.argsort(blocks, kind="stable")
    ends = blocks[order] + n_blocks[order]
    if not (ends[:-1] > blocks[order][1:]).any():
        blocks, n_blocks, positions = blocks[order], n_blocks[order], positions[order]
        buffers = [buffers[i] for i in order.tolist()]
    disk.write_gathered(blocks, n_blocks, buffers, positions)
