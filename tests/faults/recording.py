"""Disks in memory that satisfy the `Disk` protocol: plain, and recording with faults on demand.

Several recording disks share one `Recorder`, whose log is the one order in which writes and flushes happened.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from blockplane.disks import DiskCounters
from blockplane.model import BLOCK_BYTES, DiskError, DiskShortError
from blockplane.model.checks import first_bad_block

ZERO = bytes(BLOCK_BYTES)
Blocks = Mapping[int, bytes]


class MemoryDisk:
    """A disk of blocks in a dict: ``overlay`` over ``base``, which is never written; what neither has is zero."""

    def __init__(self, path: str, n_blocks: int, base: Blocks | None = None, overlay: Blocks | None = None) -> None:
        self.path = path
        self.n_blocks = n_blocks
        self.counters = DiskCounters()
        self.base: Blocks = base if base is not None else {}
        self.overlay = dict(overlay or {})
        self.is_closed = False

    def block(self, number: int) -> bytes:
        found = self.overlay.get(number)
        return found if found is not None else self.base.get(number, ZERO)

    def contents(self) -> dict[int, bytes]:
        """All blocks that are not zero, fresh."""
        merged = {**self.base, **self.overlay}
        return {number: data for number, data in merged.items() if data != ZERO}

    def _check(self, blocks: np.ndarray, n_blocks: np.ndarray) -> None:
        assert not self.is_closed, f"{self.path} is used after close"
        for start, count in zip(blocks.tolist(), n_blocks.tolist(), strict=True):
            assert start >= 0
            assert count > 0
            if start + count > self.n_blocks:
                raise DiskShortError(f"{self.path}: ends before block {start + count}", self.path)

    def read_plan(
        self,
        blocks: np.ndarray,
        n_blocks: np.ndarray,
        buffer: np.ndarray,
        positions: np.ndarray,
        numbers: np.ndarray | None = None,
        expected: np.ndarray | None = None,
        max_gap_blocks: int = 0,
    ) -> int:
        self._check(blocks, n_blocks)
        done, bad = 0, -1
        for start, count, at in zip(blocks.tolist(), n_blocks.tolist(), positions.tolist(), strict=True):
            data = np.frombuffer(b"".join(self.block(start + i) for i in range(count)), dtype=np.uint8)
            buffer[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES] = data
            if numbers is not None and expected is not None and bad < 0:
                found = first_bad_block(data, numbers[done : done + count], expected[done : done + count])
                bad = done + found if found >= 0 else -1
            done += count
        self.counters.read_bytes += done * BLOCK_BYTES
        self.counters.read_requests += len(blocks)
        return bad

    def write_plan(self, blocks: np.ndarray, n_blocks: np.ndarray, buffer: np.ndarray, positions: np.ndarray) -> None:
        self.write_gathered(blocks, n_blocks, [buffer] * len(blocks), positions)

    def write_gathered(
        self, blocks: np.ndarray, n_blocks: np.ndarray, buffers: Sequence[np.ndarray], positions: np.ndarray
    ) -> None:
        self._check(blocks, n_blocks)
        for start, count, buffer, at in zip(
            blocks.tolist(), n_blocks.tolist(), buffers, positions.tolist(), strict=True
        ):
            self.write(start, bytes(memoryview(buffer)[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES]))

    def write(self, start: int, data: bytes) -> None:
        """One write of consecutive blocks."""
        assert len(data) % BLOCK_BYTES == 0
        apply_write(self.overlay, start, data)
        self.counters.written_bytes += len(data)
        self.counters.write_requests += 1

    def flush(self) -> None:
        self.counters.flushes += 1

    def close(self) -> None:
        self.is_closed = True


def apply_write(blocks: dict[int, bytes], start: int, data: bytes) -> None:
    for i in range(len(data) // BLOCK_BYTES):
        blocks[start + i] = data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]


@dataclass(frozen=True)
class Write:
    """Consecutive raw blocks of one disk."""

    disk: int
    block: int
    data: bytes = field(repr=False)

    @property
    def n_blocks(self) -> int:
        return len(self.data) // BLOCK_BYTES


@dataclass(frozen=True)
class Flush:
    """All earlier writes to the disk are durable."""

    disk: int


@dataclass(frozen=True)
class Mark:
    """Something the workload was told, such as "this consistency point is durable"."""

    name: object


Entry = Write | Flush | Mark
#: What happens in place of a write: any writes, none for a lost one, another place for a misdirected one.
Replace = Callable[[Write], Iterable[Write]]


@dataclass
class Fault:
    """EIO on the ``nth`` (from 1) operation of a kind, once or from then on.

    A failed write leaves nothing; a failed flush makes nothing durable.
    """

    operation: str
    nth: int
    persistent: bool = False
    disk: int | None = None
    seen: int = 0
    fired: int = 0
    #: entries of the log before it first fired
    fired_at: int = -1

    def hits(self, operation: str, disk: int) -> bool:
        if operation != self.operation or self.disk not in (None, disk):
            return False
        self.seen += 1
        hit = self.seen >= self.nth if self.persistent else self.seen == self.nth
        self.fired += hit
        return hit


class Recorder:
    """The log that several disks share, and the faults they show."""

    def __init__(self) -> None:
        #: guards everything below
        self.lock = threading.RLock()
        self.disks: list[RecordingDisk] = []
        self.log: list[Entry] = []
        self.base: list[dict[int, bytes]] = []
        self.faults: list[Fault] = []
        self.replace: Replace | None = None
        #: operations so far, for loops over "the Nth"
        self.counts = {"read": 0, "write": 0, "flush": 0}

    def disk(self, n_blocks: int, contents: Blocks | None = None, path: str = "") -> RecordingDisk:
        """A further disk."""
        disk = RecordingDisk(self, len(self.disks), n_blocks, contents, path)
        self.disks.append(disk)
        self.base.append(dict(contents or {}))
        return disk

    def start(self) -> None:
        """Take what the disks hold now as durable, and begin an empty log."""
        with self.lock:
            self.base = [disk.contents() for disk in self.disks]
            self.log = []
            self.counts = dict.fromkeys(self.counts, 0)

    def mark(self, name: object) -> None:
        """Note in the log what the workload knows by now."""
        with self.lock:
            self.log.append(Mark(name))

    def fail(self, operation: str, nth: int, *, persistent: bool = False, disk: int | None = None) -> Fault:
        """Order a fault: operation is "read", "write" or "flush"; counted from now on."""
        assert operation in self.counts
        fault = Fault(operation, nth, persistent, disk)
        with self.lock:
            self.faults.append(fault)
        return fault

    def enter(self, operation: str, disk: RecordingDisk) -> None:
        """Count an operation and fail it if a fault says so."""
        self.counts[operation] += 1
        # each fault counts for itself: all are asked
        hits = [fault for fault in self.faults if fault.hits(operation, disk.index)]
        for fault in hits:
            if fault.fired_at < 0:
                fault.fired_at = len(self.log)
        if hits:
            raise DiskError(f"{disk.path}: {operation} failed: {os.strerror(errno.EIO)}", disk.path)


class RecordingDisk(MemoryDisk):
    """A disk in memory whose writes and flushes are logged."""

    def __init__(self, recorder: Recorder, index: int, n_blocks: int, contents: Blocks | None, path: str) -> None:
        super().__init__(path or f"disk{index}", n_blocks, overlay=contents)
        self.recorder = recorder
        self.index = index

    def read_plan(self, *arguments, **options) -> int:
        with self.recorder.lock:
            self.recorder.enter("read", self)
            return super().read_plan(*arguments, **options)

    def write(self, start: int, data: bytes) -> None:
        with self.recorder.lock:
            self.recorder.enter("write", self)
            writes: Iterable[Write] = [Write(self.index, start, data)]
            if self.recorder.replace is not None:
                writes = [other for write in writes for other in self.recorder.replace(write)]
            for write in writes:
                self.recorder.log.append(write)
                MemoryDisk.write(self.recorder.disks[write.disk], write.block, write.data)

    def flush(self) -> None:
        with self.recorder.lock:
            self.recorder.enter("flush", self)
            self.recorder.log.append(Flush(self.index))
            super().flush()
