"""The parallel read of an image's blocks from all disks at once.

Windows are planned ahead and handed to the disks' threads, each of which reads its part straight into the window's
buffer and verifies it there while it is in the cache; whole windows come out in order. Nothing is copied.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

import numpy as np

from blockplane.disks import DiskArray, Pending, aligned_buffer
from blockplane.image.extents import expand, numbers_in
from blockplane.image.order import DiskPlan, Window
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Extents, Numbers
from blockplane.model.errors import ChecksumError

#: Memory of all window buffers together, where nothing else is said.
RING_BYTES: Final = 64 << 20
#: Holes read through may add this share of a window's blocks: the sum of bytes read stays below 1.05 of the image.
_HOLE_SHARE: Final = 1 / 25
#: The longest hole worth reading through: 32 KiB, about what a request costs on a fast disk. Turn it up for spindles.
_HOLE_BLOCKS: Final = (8, 4, 2, 1)


#: Windows whose checks are looked up together, at 16 MiB each one read of 16 leaves for 64 MiB, while the disks are
#: busy with those before.
_BATCH_WINDOWS: Final = 4
#: A batch ends early at so many extents, of which each may need a leaf: bounds the leaves held to 8 MiB and a window's.
_BATCH_EXTENTS: Final = 2048


@dataclass(frozen=True, slots=True)
class Gathered:
    """Blocks of an image in memory.

    extents : (n, 2) VBNs, ascending, in the order of the buffer. checks : (n_blocks,) theirs.
    buffer : (n_blocks * 4096,) uint8; valid until the next window is asked for.
    """

    extents: Extents
    checks: Checks
    buffer: Bytes


@dataclass(frozen=True, slots=True)
class _Planned:
    """A window with the numbers of its blocks and the checks they must have."""

    window: Window
    numbers: Numbers
    checks: Checks


@dataclass(slots=True)
class _InFlight:
    window: Window
    checks: Checks
    buffer: Bytes
    reads: list[tuple[DiskPlan, Numbers, Pending]]


@contextmanager
def gathering(
    windows: Iterator[Window],
    checks_of: Callable[[Numbers], Checks],
    array: DiskArray,
    window_blocks: int,
    ring_bytes: int = RING_BYTES,
) -> Iterator[Ring]:
    """Read the blocks of windows; within the context they come, in order, verified: `whole_windows`.

    Parameters
    ----------
    checks_of : the checks that blocks must have, by VBN. It and the windows are used in a thread of their own.
    window_blocks : the most blocks a window has. ring_bytes : memory of all windows together; at least two's.

    Raises
    ------
    ChecksumError : a block differs from its check; the message names block and disk.
    DiskError : a read failed.

    Notes
    -----
    Reading begins at once, before the first window is asked for. Memory: ring_bytes.
    """
    ring = Ring(windows, checks_of, array, window_blocks, ring_bytes)
    ring.start()
    try:
        yield ring
    finally:
        ring.stop()


class Ring(threading.Thread):
    """Plans windows and gives them to the disks as fast as buffers come back; made by `gathering`.

    n_buffers : how many windows are in memory at most.
    """

    def __init__(
        self,
        windows: Iterator[Window],
        checks_of: Callable[[Numbers], Checks],
        array: DiskArray,
        window_blocks: int,
        ring_bytes: int,
    ) -> None:
        super().__init__(name="blockplane gather", daemon=True)
        self._windows, self._checks_of, self._array = windows, checks_of, array
        self._window_bytes = window_blocks * BLOCK_BYTES
        self.n_buffers = max(ring_bytes // self._window_bytes, 2)
        memory = aligned_buffer(self.n_buffers * self._window_bytes)
        #: None: stop
        self._free: SimpleQueue[Bytes | None] = SimpleQueue()
        for at in range(0, len(memory), self._window_bytes):
            self._free.put(memory[at : at + self._window_bytes])
        #: in order; None or what went wrong comes last
        self._flying: SimpleQueue[_InFlight | BaseException | None] = SimpleQueue()

    def run(self) -> None:
        """Start every window; in the thread."""
        try:
            while batch := _plan(self._windows, self._checks_of):
                for planned in batch:
                    buffer = self._free.get()
                    if buffer is None:
                        return
                    self._flying.put(_start(planned, self._array, buffer))
            self._flying.put(None)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits
            self._flying.put(error)

    def stop(self) -> None:
        """Start no more windows; what the disks have begun they finish."""
        self._free.put(None)
        self.join()

    def whole_windows(self) -> Iterator[Gathered]:
        """Yield each window once all of it is there."""
        while (found := self.next_whole()) is not None:
            yield found[0]
            self.give_back(found[1])

    def next_whole(self) -> tuple[Gathered, Bytes] | None:
        """Wait for the next window; return it and the buffer to give back, None after the last."""
        flight = self._flying.get()
        if flight is None:
            return None
        if isinstance(flight, BaseException):
            raise flight
        return _finish(flight, self._array), flight.buffer

    def give_back(self, buffer: Bytes) -> None:
        """Have a buffer filled anew."""
        self._free.put(buffer)

    def make_up(self) -> None:
        """Put another buffer in the place of one that is not given back."""
        self._free.put(aligned_buffer(self._window_bytes))


def _plan(windows: Iterator[Window], checks_of: Callable[[Numbers], Checks]) -> list[_Planned]:
    """Take the next windows and look their checks up together."""
    batch: list[Window] = []
    n_extents = 0
    while len(batch) < _BATCH_WINDOWS and n_extents < _BATCH_EXTENTS and (window := next(windows, None)) is not None:
        batch.append(window)
        n_extents += len(window.extents)
    if not batch:
        return []
    numbers = [numbers_in(window.extents) for window in batch]
    borders = np.cumsum([len(vbns) for vbns in numbers])[:-1]
    checks = np.split(checks_of(np.concatenate(numbers)), borders)
    return [_Planned(*planned) for planned in zip(batch, numbers, checks, strict=True)]


def _start(planned: _Planned, array: DiskArray, buffer: Bytes) -> _InFlight:
    window, vbns, checks = planned.window, planned.numbers, planned.checks
    reads = []
    for plan in window.disks:
        blocks = expand(plan.positions, plan.n_blocks)
        numbers = vbns[blocks]
        pending = array.submit_disk_read(
            plan.disk, plan.dbn, plan.n_blocks, buffer, plan.positions, numbers, checks[blocks], hole_blocks(plan)
        )
        reads.append((plan, numbers, pending))
    return _InFlight(window, checks, buffer, reads)


def hole_blocks(plan: DiskPlan) -> int:
    """Return how long holes between a plan's extents may be to be read through."""
    gaps = plan.dbn[1:] - plan.dbn[:-1] - plan.n_blocks[:-1]
    most = int(plan.n_blocks.sum()) * _HOLE_SHARE
    for longest in _HOLE_BLOCKS:
        through = gaps[(gaps > 0) & (gaps <= longest)]
        if len(through) and int(through.sum()) <= most:
            return longest
    return 0


def _finish(flight: _InFlight, array: DiskArray) -> Gathered:
    for plan, numbers, pending in flight.reads:
        pending.wait()
        if pending.first_bad >= 0:
            vbn = int(numbers[pending.first_bad])
            path = array.disks[plan.disk].path
            raise ChecksumError(
                f"block {vbn} on {path} does not match its checksum", vbn, "`blockplane check` says what it is of"
            )
    return Gathered(flight.window.extents, flight.checks, flight.buffer[: flight.window.n_blocks * BLOCK_BYTES])
