"""A sink written by a thread of its own, behind who fills the buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from blockplane.stream.sink import Buffer, Sink

#: Writes on their way at most: whoever calls for more first waits for the oldest.
MOST_BEHIND: Final = 3


class BehindSink:
    """A sink whose `write_all` returns before all is written.

    Notes
    -----
    Buffers stay as they are until MOST_BEHIND more were given, or `settle` returned. After a failure nothing more is
    written, and the error comes with a later call. To be closed before the sink itself: the thread writes until then.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.name = sink.name
        self._pool = ThreadPoolExecutor(1, "blockplane writer")
        self._due: deque[Future[None]] = deque()
        self._has_failed = False

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        while len(self._due) >= MOST_BEHIND:
            self._due.popleft().result()
        self._due.append(self._pool.submit(self._write, list(buffers)))

    def _write(self, buffers: Sequence[Buffer]) -> None:
        if not self._has_failed:
            try:
                self._sink.write_all(buffers)
            except BaseException:
                self._has_failed = True
                raise

    def settle(self) -> None:
        """Wait until all is written; raises what went wrong."""
        while self._due:
            self._due.popleft().result()

    def commit(self) -> None:
        """See Sink."""
        self.settle()
        self._sink.commit()

    def close(self) -> None:
        """Let the write that has begun end, and leave the rest; the sink itself is its owner's."""
        self._pool.shutdown(cancel_futures=True)
