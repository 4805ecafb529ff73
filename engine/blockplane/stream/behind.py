"""A sink written by a thread of its own, behind who fills the buffers."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Final

from blockplane.stream.fdsink import Buffer, FdSink, write_error
from blockplane.stream.filesink import FileSink
from blockplane.stream.sink import Sink, SocketSink

#: Writes on their way at most: whoever calls for more first waits for the oldest.
MOST_BEHIND: Final = 3
#: How long a write that has begun may still take when all is given up.
PATIENCE_S: Final = 1.0

_Job = tuple[Future[None], Sequence[Buffer]]


class BehindSink:
    """A sink whose `write_all` returns before all is written.

    Notes
    -----
    Buffers stay as they are until MOST_BEHIND more were given, or `settle` returned. After a failure nothing more is
    written, and the error comes with a later call. To be closed before the sink itself: the thread writes until then.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink, self._mine = sink, _twin(sink)
        self.name = sink.name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._due: deque[Future[None]] = deque()
        self._has_failed = False
        # a daemon: a reader that takes nothing must not keep a process from ending
        self._thread = threading.Thread(target=self._work, name="blockplane writer", daemon=True)
        self._thread.start()

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        while len(self._due) >= MOST_BEHIND:
            self._due.popleft().result()
        done: Future[None] = Future()
        self._due.append(done)
        self._jobs.put((done, list(buffers)))

    def _work(self) -> None:
        try:
            self._write_jobs()
        finally:
            if self._mine is not self._sink:
                self._mine.close()

    def _write_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            done, buffers = job
            try:
                if not self._has_failed:
                    self._mine.write_all(buffers)
            except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
                self._has_failed = True
                done.set_exception(error)
            else:
                done.set_result(None)

    def settle(self) -> None:
        """Wait until all is written; raises what went wrong."""
        while self._due:
            self._due.popleft().result()

    def commit(self) -> None:
        """See Sink."""
        self.settle()
        self._sink.commit()

    def close(self) -> None:
        """Let the write that has begun end, and leave the rest; the sink itself is its owner's.

        A write into a pipe or socket whose reader takes nothing is not waited for, beyond PATIENCE_S.
        """
        is_settled = all(done.done() for done in self._due)
        self._has_failed = True
        self._jobs.put(None)
        self._thread.join(None if is_settled or isinstance(self._sink, FileSink) else PATIENCE_S)


def _twin(sink: Sink) -> Sink:
    """Return a sink over a descriptor of its own: a write that goes on never meets what has got the number since."""
    fd = sink.fd if isinstance(sink, (FdSink, SocketSink)) else None
    if fd is None:
        return sink
    try:
        return FdSink(os.dup(fd), sink.name, owned=True)
    except OSError as error:
        raise write_error(sink.name, error) from error
