"""Several streams that bring parts of one image, landing at once: each is read and verified by a thread of its own."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.errors import TapeDamagedError
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.stream.arrival import arriving
from blockplane.stream.codec import FrameHead
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.transfer.claims import Claims, extents_list
from blockplane.transfer.protocol import Landing
from blockplane.transfer.sidebyside import SideBySide, failures


@dataclass(slots=True)
class _Handed:
    """Buffers that were handed out, and whether they are full."""

    is_full: bool = False


class _Shared:
    """A landing that several threads fill: it hears of buffers in the order in which it gave them out."""

    def __init__(self, landing: Landing) -> None:
        self._landing = landing
        #: guards the landing, and what was handed out, oldest first
        self._lock = threading.Lock()
        self._handed: deque[_Handed] = deque()

    def buffers(self, head: FrameHead, mine: deque[_Handed]) -> Sequence[Bytes] | None:
        """See Landing; mine : what its thread was given, oldest first."""
        with self._lock:
            found = self._landing.buffers(head.extents(), head.checks())
            if found is not None:
                mine.append(_Handed())
                self._handed.append(mine[-1])
            return found

    def landed(self, mine: deque[_Handed]) -> None:
        """Note that what the thread was given longest ago is full."""
        with self._lock:
            mine.popleft().is_full = True
            while self._handed and self._handed[0].is_full:
                self._handed.popleft()
                self._landing.landed()


def land_together(parts: Sequence[tuple[StreamReader, StreamMap]], landing: Landing, progress: Progress) -> None:
    """Bring every block of every part to where the landing wants it, verified.

    Raises
    ------
    TapeDamagedError : blocks are lost; what else there is came, of all parts. `lost` has them.
    StreamError and its kinds : a part is bad, or none of it can be read on; the others have stopped.
    """
    shared = _Shared(landing)
    total = sum(stream.header.following_blocks for _, stream in parts) * BLOCK_BYTES
    running: SideBySide[None] = SideBySide(len(parts), total, progress)

    def land(number: int) -> None:
        reader, stream = parts[number]
        claims, mine, note = Claims(stream.following), deque[_Handed](), running.progress_of(number)

        def place(head: FrameHead) -> Sequence[Bytes] | None:
            claims.take(head)
            return shared.buffers(head, mine)

        try:
            with closing(arriving(reader, place)) as frames:
                for _ in frames:
                    shared.landed(mine)
                    note(ProgressEvent("blocks", claims.n_blocks * BLOCK_BYTES, total, 0.0))
            claims.require_all()
        except TapeDamagedError:
            raise
        except BaseException:
            running.stop()  # what it was given is not full, and nothing behind that lands
            raise

    failed = failures([f"part {stream.header.part + 1}" for _, stream in parts], running.run(land))
    hard = [error for _, error in failed if not isinstance(error, TapeDamagedError)]
    if hard:
        raise hard[0]
    if failed:
        error = failed[0][1]
        assert isinstance(error, TapeDamagedError)
        error.lost = extents_list(landing.waiting())  # type: ignore[attr-defined]  # it takes parts
        if error.lost:
            raise error
