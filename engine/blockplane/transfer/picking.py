"""Chosen blocks of stream files, packed into windows.

Of payloads that lie bare the chosen blocks alone are read, straight to their place in a window; the others are brought
out by threads ahead of who takes the windows.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from blockplane.disks import aligned_buffer
from blockplane.image.extents import expand, extents_of, numbers_in
from blockplane.image.gather import Gathered
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.errors import StreamError
from blockplane.planes import Plane
from blockplane.stream.arrival import n_workers
from blockplane.stream.behind import MOST_BEHIND
from blockplane.stream.codec import MAX_FRAME_BLOCKS, FrameHead
from blockplane.stream.file import StreamFile, of_file
from blockplane.stream.reader import StreamReader, bad_block
from blockplane.transfer.claims import Claims

#: Blocks of a window. Measured over a chain in memory: 1 MiB costs a tenth of the speed, 4 MiB gain nothing.
WINDOW_BLOCKS: Final = 2 * MAX_FRAME_BLOCKS
#: Frames whose blocks are chosen together: what is worked out for one costs as much as for eight.
_BATCH_FRAMES: Final = 8


@dataclass(frozen=True, slots=True)
class _Frame:
    """The head of a data frame, and where in the file its payload lies."""

    head: FrameHead
    offset: int


@dataclass(frozen=True, slots=True)
class _Picked:
    """Blocks of some frames, in their order.

    frames : all bare, or none. which : (n,) the index in frames of each block's. inside : (n,) which block of that
    frame's payload it is.
    """

    frames: Sequence[_Frame]
    which: Numbers
    inside: Numbers
    numbers: Numbers
    checks: Checks

    def part(self, start: int, stop: int) -> _Picked:
        """Return some of the blocks."""
        own = slice(start, stop)
        return _Picked(self.frames, self.which[own], self.inside[own], self.numbers[own], self.checks[own])


@dataclass(slots=True)
class _Window:
    """Blocks on their way to a place one after the other, and the threads' work on them."""

    buffer: Bytes
    numbers: list[Numbers] = field(default_factory=list)
    checks: list[Checks] = field(default_factory=list)
    jobs: list[Future[None]] = field(default_factory=list)
    n_blocks: int = 0

    def take(self, part: _Picked) -> Bytes:
        """Note blocks; return where they go."""
        start, self.n_blocks = self.n_blocks, self.n_blocks + len(part.numbers)
        self.numbers.append(part.numbers)
        self.checks.append(part.checks)
        return self.buffer[start * BLOCK_BYTES : self.n_blocks * BLOCK_BYTES]

    def landed(self) -> Gathered:
        """Wait for the blocks; StreamError and its kinds: what a thread met."""
        for job in self.jobs:
            job.result()
        numbers, checks = np.concatenate(self.numbers), np.concatenate(self.checks)
        return Gathered(extents_of(numbers), checks, self.buffer[: self.n_blocks * BLOCK_BYTES])


class Packing:
    """Windows of the chosen blocks of one stream file after the other: `add` each, then take the `rest`.

    Parameters
    ----------
    read : False: windows come as they would, and their bytes mean nothing.
    settle : waits until nothing is written any more from windows that were taken; no more than MOST_BEHIND of them are
        at any time.

    Notes
    -----
    To be closed: threads work on the windows until then. Memory: windows of 2 MiB, one a core and four.
    """

    def __init__(self, *, read: bool, settle: Callable[[], None]) -> None:
        self._is_real, self._settle = read, settle
        self._workers = ThreadPoolExecutor(n_workers(), "blockplane frames")
        self._depth = n_workers() + 1
        n_windows = max(self._depth, MOST_BEHIND) + 2
        #: beside those that threads fill or that are written from, the one being filled and the one handed on last
        self._buffers = deque(np.split(aligned_buffer(n_windows * WINDOW_BLOCKS * BLOCK_BYTES), n_windows))
        self._flying: deque[_Window] = deque()
        self._open = _Window(self._buffers[0])

    def _next(self) -> None:
        """Begin a window."""
        self._flying.append(self._open)
        if len(self._flying) > 1:  # so many may wait for threads that the next one's memory was just handed on
            self._settle()
        self._buffers.rotate(-1)
        self._open = _Window(self._buffers[0])

    def close(self) -> None:
        """Wait for the threads; what they have not begun is left."""
        self._workers.shutdown(cancel_futures=True)

    def _landed(self, n_left: int) -> Iterator[Gathered]:
        """Yield the oldest windows: those that wait for nothing, and of the others all but the last n_left."""
        while self._flying and (not self._flying[0].jobs or len(self._flying) > n_left):
            yield self._flying.popleft().landed()

    def add(self, file: StreamFile, keep: Plane) -> Iterator[Gathered]:
        """Read a stream to its end, and of it what is to be kept; yield the windows that are full.

        Raises
        ------
        StreamError and its kinds : as `StreamReader`; StreamDamagedError too where a block does not match its check, or
            the stream does not bring what its plane claims. They name the file.

        Notes
        -----
        What is yielded is used up when the next is asked for.
        """
        claims = Claims(file.map.following)
        chosen = None if len(keep) == file.map.header.following_blocks else keep
        batches = _batches(file.reader())
        while (frames := _of(file, batches, claims)) is not None:
            picked = _picked(frames, chosen)
            for start, stop in itertools.pairwise(_borders(picked)):
                self._place(file, picked.part(start, stop))
                yield from self._landed(self._depth)

    def rest(self) -> Iterator[Gathered]:
        """Yield the windows that are left."""
        if self._open.n_blocks:
            self._next()
        yield from self._landed(0)

    def _place(self, file: StreamFile, picked: _Picked) -> None:
        """Give blocks their places, and have threads bring them there."""
        is_bare = picked.frames[0].head.is_bare
        parts: list[tuple[_Window, _Picked, Bytes]] = []
        while len(picked.numbers):
            if self._open.n_blocks == WINDOW_BLOCKS:
                self._next()
            room = WINDOW_BLOCKS - self._open.n_blocks
            part, picked = picked.part(0, room), picked.part(room, len(picked.numbers))
            parts.append((self._open, part, self._open.take(part)))
        if not self._is_real or not parts:
            return
        if is_bare:
            # here: another thread writes meanwhile, and a third would take from both
            for _, part, out in parts:
                _bring_bare(file, part, out)
            return
        job = self._workers.submit(_bring_frame, file, [(part, out) for _, part, out in parts])
        for window, _, _ in parts:
            window.jobs.append(job)


def _of(file: StreamFile, batches: Iterator[list[_Frame]], claims: Claims) -> list[_Frame] | None:
    """Return the next frames, none that the stream did not claim; None: it ended, and brought all."""
    try:
        frames = next(batches, None)
        if frames is None:
            claims.require_all()
        else:
            claims.take(*(frame.head for frame in frames))
    except StreamError as error:
        raise of_file(error, file.path) from error
    return frames


def _batches(reader: StreamReader) -> Iterator[list[_Frame]]:
    """Yield the data frames of a stream, those together that lie alike, and pass over their payloads."""
    frames: list[_Frame] = []
    while (head := reader.next_data()) is not None:
        if frames and (len(frames) == _BATCH_FRAMES or head.is_bare is not frames[0].head.is_bare):
            yield frames
            frames = []
        frames.append(_Frame(head, reader.n_bytes))
        reader.skip_payload()
    if frames:
        yield frames


def _picked(frames: Sequence[_Frame], keep: Plane | None) -> _Picked:
    """Return the blocks of frames that are in a plane; None: all of them."""
    counts = np.array([frame.head.n_blocks for frame in frames], np.int64)
    numbers = numbers_in(np.concatenate([frame.head.extents() for frame in frames]))
    checks = np.concatenate([frame.head.checks() for frame in frames])
    which, inside = np.repeat(np.arange(len(frames)), counts), expand(np.zeros_like(counts), counts)
    if keep is None:
        return _Picked(frames, which, inside, numbers, checks)
    mask = keep.contains_many(numbers)
    return _Picked(frames, which[mask], inside[mask], numbers[mask], checks[mask])


def _borders(picked: _Picked) -> list[int]:
    """Return where to cut blocks: no part fills more than a window; a frame that is brought out stays whole."""
    if picked.frames[0].head.is_bare:
        return [*range(0, len(picked.numbers), WINDOW_BLOCKS), len(picked.numbers)]
    return [int(at) for at in np.searchsorted(picked.which, np.arange(len(picked.frames) + 1))]


def _bring_bare(file: StreamFile, part: _Picked, out: Bytes) -> None:
    """Read blocks that lie bare to where they go, and verify them."""
    starts = np.array([frame.offset for frame in part.frames], np.int64)
    bad = file.read_bare(starts[part.which] + part.inside * BLOCK_BYTES, part.numbers, part.checks, out)
    if bad >= 0:
        head = part.frames[int(part.which[bad])].head
        raise of_file(bad_block(head, int(part.numbers[bad])), file.path)


def _bring_frame(file: StreamFile, wanted: Sequence[tuple[_Picked, Bytes]]) -> None:
    """Bring a compressed or encrypted frame out, verify it, and copy what is wanted of it."""
    part = wanted[0][0]
    frame = part.frames[int(part.which[0])]
    data = file.payload_at(frame.head, frame.offset)
    for part, out in wanted:
        np.take(data.reshape(-1, BLOCK_BYTES), part.inside, axis=0, out=out.reshape(-1, BLOCK_BYTES))
