"""Frames on their way in: read in order, decrypted, decompressed and verified, by threads where that takes long, and
handed on in order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

import numpy as np

from blockplane.image.extents import numbers_in
from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import StreamError, StreamTruncatedError
from blockplane.stream.codec import MAX_PAYLOAD_BYTES, SEAL_TAG_BYTES, FrameHead
from blockplane.stream.payload import passing_contents
from blockplane.stream.reader import StreamReader, bad_block

#: Never the stream's to say. More threads than this wait for the one that reads.
_MAX_THREADS: Final = 8


def n_workers() -> int:
    """Return how many threads work on frames."""
    return min(len(os.sched_getaffinity(0)), _MAX_THREADS)


#: Frames on their way at most: every thread has one, and the next is read meanwhile.
def _depth() -> int:
    return n_workers() + 1


def arriving(
    reader: StreamReader, buffers_of: Callable[[FrameHead], Sequence[Bytes] | None]
) -> Generator[tuple[FrameHead, Sequence[Bytes]], None, None]:
    """Read all data frames of a stream to its end; yield each once its blocks are where they should be, verified.

    Parameters
    ----------
    buffers_of : called for each frame in order; says where its blocks go: buffers of whole blocks, as long as they are;
        None: nobody wants them, the payload is passed over and the frame not yielded.

    Yields
    ------
    the head and these buffers, in the order of the stream.

    Raises
    ------
    StreamError and its kinds : as `StreamReader`; StreamDamagedError too where a block does not match its check. Of a
    stream that is cut off every whole frame is yielded first.

    Notes
    -----
    Blocks that are neither compressed nor encrypted are read straight to where they go. To be closed
    (`contextlib.closing`): threads work on the buffers until then. Memory: 2 MiB for each frame on its way
    that is not.
    """
    depth = _depth()
    flying: deque[tuple[FrameHead, Sequence[Bytes], Future[None]]] = deque()
    scratch = [np.empty(MAX_PAYLOAD_BYTES + SEAL_TAG_BYTES, np.uint8) for _ in range(depth)]
    n_frames = 0
    with ThreadPoolExecutor(n_workers(), "blockplane frames") as pool:
        end: StreamTruncatedError | None = None
        try:
            while (head := reader.next_data()) is not None:
                if len(flying) == depth:
                    yield _landed(flying)
                buffers = buffers_of(head)
                if buffers is None:
                    reader.skip_payload()
                    continue
                stored = scratch[n_frames % depth][: head.stored_bytes]
                n_frames += 1
                reader.read_payload([buffer.data for buffer in buffers] if head.is_bare else [stored.data])
                if head.is_bare and not flying:  # to wake a thread takes longer
                    _take(head, stored, buffers)
                    yield head, buffers
                else:
                    flying.append((head, buffers, pool.submit(_take, head, stored, buffers)))
        except StreamTruncatedError as error:  # what came whole before counts
            end = error
        while flying:
            yield _landed(flying)
        if end is not None:
            raise end


def _landed(
    flying: deque[tuple[FrameHead, Sequence[Bytes], Future[None]]],
) -> tuple[FrameHead, Sequence[Bytes]]:
    head, buffers, done = flying.popleft()
    done.result()
    return head, buffers


def _take(head: FrameHead, stored: Bytes, buffers: Sequence[Bytes]) -> None:
    """Bring the blocks of a frame that does not lie bare to their buffers; hold those of any against their checks."""
    if not head.is_bare:
        try:
            spread(passing_contents(head, stored.data), buffers)
        except StreamError as error:
            error.sequence = head.sequence
            raise
    numbers, checks, at = numbers_in(head.extents()), head.checks(), 0
    for buffer in buffers:
        n_blocks = len(buffer) // BLOCK_BYTES
        bad = first_bad_block(buffer, numbers[at : at + n_blocks], checks[at : at + n_blocks])
        if bad >= 0:
            raise bad_block(head, int(numbers[at + bad]))
        at += n_blocks


def spread(data: bytes | memoryview, buffers: Sequence[Bytes]) -> None:
    """Copy bytes to buffers, one after the other."""
    source, at = np.frombuffer(data, np.uint8), 0
    for buffer in buffers:
        buffer[:] = source[at : at + len(buffer)]
        at += len(buffer)


class Ring:
    """Buffers for frames that are looked at once, in order: each is overwritten when one more is asked for."""

    def __init__(self) -> None:
        self._buffers = [np.empty(MAX_PAYLOAD_BYTES, np.uint8) for _ in range(_depth() + 1)]
        self._n = 0

    def __call__(self, head: FrameHead) -> list[Bytes]:
        """Return where a frame's blocks go."""
        self._n += 1
        return [self._buffers[self._n % len(self._buffers)][: head.n_blocks * BLOCK_BYTES]]
