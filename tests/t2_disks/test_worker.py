"""A disk's thread: what may overtake what. A gate in the disk holds the thread until all that matters is queued."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from blockplane.disks import Pending
from blockplane.disks.worker import DiskWorker, FlushJob, ReadJob, WriteJob
from faults.recording import MemoryDisk

N_BLOCKS = 256
#: where the write lies that holds the thread
HELD = 100


class GatedDisk(MemoryDisk):
    """A disk whose writes wait for the gate; what it was asked for, in order."""

    def __init__(self) -> None:
        super().__init__("gated", N_BLOCKS)
        self.gate = threading.Event()
        self.began = threading.Event()
        self.asked: list[tuple[str, int]] = []

    def write(self, start: int, data: bytes) -> None:
        self.began.set()
        assert self.gate.wait(60)
        self.asked.append(("write", start))
        super().write(start, data)

    def read_plan(self, blocks, *arguments, **options) -> int:
        self.asked.append(("read", int(blocks[0])))
        return super().read_plan(blocks, *arguments, **options)

    def flush(self) -> None:
        self.asked.append(("flush", -1))
        super().flush()


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def write_of(value: int, *extents: tuple[int, int]) -> WriteJob:
    n_blocks = [stop - start for start, stop in extents]
    buffer = np.full(sum(n_blocks) * 4096, value, np.uint8)
    return WriteJob(ints(*(e[0] for e in extents)), ints(*n_blocks), buffer, np.cumsum([0, *n_blocks[:-1]]), Pending(1))


def read_of(start: int, stop: int) -> ReadJob:
    return ReadJob(ints(start), ints(stop - start), np.full((stop - start) * 4096, 0xEE, np.uint8), ints(0), Pending(1))


@pytest.fixture
def disk() -> GatedDisk:
    return GatedDisk()


@pytest.fixture
def worker(disk) -> Iterator[DiskWorker]:
    """A thread that is held in the middle of a write to HELD."""
    worker = DiskWorker(disk, lambda error: None)
    worker.start()
    worker.submit(write_of(9, (HELD, HELD + 1)))
    assert disk.began.wait(60)
    yield worker
    disk.gate.set()
    worker.close()


def test_an_urgent_read_overtakes_what_is_read_ahead_and_writes_elsewhere(disk, worker):
    jobs = [read_of(50, 60), write_of(2, (110, 120)), FlushJob(Pending(1))]
    for job in jobs:
        worker.submit(job)
    urgent = [read_of(150, 151), read_of(120, 130), read_of(99, 100)]
    for read in urgent:
        worker.submit_urgent(read)
    disk.gate.set()
    for job in (*urgent, *jobs):
        job.pending.wait()
    held, *asked = disk.asked
    assert held == ("write", HELD)
    assert asked == [("read", 150), ("read", 120), ("read", 99), ("read", 50), ("write", 110), ("flush", -1)]


@pytest.mark.parametrize(("start", "stop"), [(105, 111), (110, 111), (112, 115), (119, 125), (90, 101), (95, 140)])
def test_an_urgent_read_waits_for_the_write_before_it(disk, worker, start, stop):
    write, read = write_of(2, (110, 120)), read_of(start, stop)
    worker.submit(write)
    worker.submit_urgent(read)
    disk.gate.set()
    read.pending.wait()
    assert disk.asked == [("write", HELD), ("write", 110), ("read", start)]
    expected = {HELD: 9} | dict.fromkeys(range(110, 120), 2)
    assert read.buffer[::4096].tolist() == [expected.get(block, 0) for block in range(start, stop)]


@pytest.mark.parametrize("start", [10, 30, 70, 190])
def test_an_urgent_read_waits_for_each_of_several_writes(disk, worker, start):
    """Writes that lie before and behind others; one of two extents."""
    for write in (write_of(1, (70, 71)), write_of(2, (30, 31), (190, 191)), write_of(3, (10, 11))):
        worker.submit(write)
    read = read_of(start, start + 1)
    worker.submit_urgent(read)
    disk.gate.set()
    read.pending.wait()
    assert set(read.buffer.tolist()) == {{10: 3, 30: 2, 70: 1, 190: 2}[start]}


def test_what_is_written_holds_up_no_read_any_more(disk, worker):
    writes = [write_of(n, (n, n + 1)) for n in range(5)]  # of which the thread makes one request
    for write in writes:
        worker.submit(write)
    assert worker.may_be_written(0, N_BLOCKS)
    disk.gate.set()
    for write in writes:
        write.pending.wait()
    assert not worker.may_be_written(0, N_BLOCKS)


def test_an_interrupt_in_the_middle_of_waking_it_costs_no_later_job(disk):
    """What `Condition.notify` leaves behind where KeyboardInterrupt ends it: a waiter that waits no more."""
    worker = DiskWorker(disk, lambda _: None)
    worker.start()
    while not worker._changed._waiters:
        pass
    left = threading.Lock()
    left.acquire()
    with worker._changed:
        worker._changed._waiters.appendleft(left)
    pending = Pending(1)
    worker.submit(FlushJob(pending))
    ended = threading.Thread(target=pending.wait, daemon=True)
    ended.start()
    ended.join(20)
    asked = list(disk.asked)
    worker.close()
    assert asked == [("flush", -1)]
