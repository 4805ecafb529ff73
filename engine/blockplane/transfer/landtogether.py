"""Several streams that bring parts of one image, landing at once: each is read and verified by a thread of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from threading import Condition
from typing import Final

from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.errors import TapeDamagedError
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.stream.arrival import arriving
from blockplane.stream.codec import FrameHead
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.transfer.claims import Claims, extents_list
from blockplane.transfer.protocol import Landing
from blockplane.transfer.sidebyside import SideBySide, failures

#: Frames handed out at most where the oldest is another thread's to fill: 64 MiB, as a pipeline's memory is.
MOST_HANDED: Final = 64


@dataclass(slots=True)
class _Handed:
    """Buffers that were handed out, to which thread, and whether they are full."""

    number: int
    is_full: bool = False


class _Shared:
    """A landing that several threads fill: it hears of buffers in the order in which it gave them out.

    Nobody waits for ever: a thread waits only for another one that runs and has the oldest to fill, which itself does
    not wait here; and each says when it has ended. No source may wait for another one's: tapes do not.
    """

    def __init__(self, landing: Landing, n_threads: int) -> None:
        self._landing = landing
        #: guards the landing and all below; notified when the oldest is another one, or a thread has ended
        self._changed = Condition()
        #: oldest first: of all, and of each thread
        self._handed: deque[_Handed] = deque()
        self._of = [deque[_Handed]() for _ in range(n_threads)]
        self._ended: set[int] = set()

    def buffers(self, number: int, head: FrameHead) -> Sequence[Bytes] | None:
        """See Landing; number : of the thread, which waits where much is handed out and another has the oldest."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_ahead(number))
            found = self._landing.buffers(head.extents(), head.checks())
            if found is not None:
                self._handed.append(_Handed(number))
                self._of[number].append(self._handed[-1])
            return found

    def _is_ahead(self, number: int) -> bool:
        return len(self._handed) >= MOST_HANDED and self._handed[0].number not in {number, *self._ended}

    def landed(self, number: int) -> None:
        """Note that what the thread was given longest ago is full."""
        with self._changed:
            self._of[number].popleft().is_full = True
            while self._handed and self._handed[0].is_full:
                self._handed.popleft()
                self._landing.landed()
            self._changed.notify_all()

    def end(self, number: int) -> None:
        """Note that a thread fills no more."""
        with self._changed:
            self._ended.add(number)
            self._changed.notify_all()


def land_together(parts: Sequence[tuple[StreamReader, StreamMap]], landing: Landing, progress: Progress) -> None:
    """Bring every block of every part to where the landing wants it, verified.

    Raises
    ------
    TapeDamagedError : blocks are lost; what else there is came, of all parts. `lost` has them.
    StreamError and its kinds : a part is bad, or none of it can be read on; the others have stopped.
    """
    shared = _Shared(landing, len(parts))
    total = sum(stream.header.following_blocks for _, stream in parts) * BLOCK_BYTES
    running: SideBySide[None] = SideBySide(len(parts), total, progress)

    def land(number: int) -> None:
        reader, stream = parts[number]
        claims, note = Claims(stream.following), running.progress_of(number)

        def place(head: FrameHead) -> Sequence[Bytes] | None:
            claims.take(head)
            return shared.buffers(number, head)

        try:
            with closing(arriving(reader, place)) as frames:
                for _ in frames:
                    shared.landed(number)
                    note(ProgressEvent("blocks", claims.n_blocks * BLOCK_BYTES, total, 0.0))
            claims.require_all()
        except TapeDamagedError:
            raise
        except BaseException:
            running.stop()  # what it was given is not full, and nothing behind that lands
            raise
        finally:
            shared.end(number)

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
