"""Updates of a volume from a source: who asks for what a pointer stands at waits until the update under way is done.

The patent's shadow masters: a master that is on its way is none yet, and none is given out that will be replaced in a
moment. What is there stays readable all the same: only requests for pointers wait.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from blockplane.model.errors import RefusedError

#: How long a request waits.
WAIT_S = 60.0


class Updates:
    """The updates of one open volume: one at a time. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running, self._source_id = "", b""

    @property
    def running(self) -> str:
        """What the volume is being brought; empty: nothing."""
        return self._running

    @contextlib.contextmanager
    def update(self, what: str, wait_s: float | None = None) -> Iterator[None]:
        """Note, for the length of a `with`, that an update is under way.

        Raises
        ------
        RefusedError: another one is, and does not end.
        """
        with self._changed:
            self._wait(wait_s)
            self._running = what
        try:
            yield
        finally:
            with self._changed:
                self._running, self._source_id = "", b""
                self._changed.notify_all()

    def comes_from(self, source_id: bytes) -> None:
        """Note which volume the update under way comes from."""
        with self._changed:
            self._source_id = source_id
            self._changed.notify_all()

    def settled(self, wait_s: float | None = None, *, caller_id: bytes = b"") -> None:
        """Wait until no update is under way.

        Parameters
        ----------
        caller_id : of the volume that is waited for; an update from that one is not: it would wait for this.

        Raises
        ------
        RefusedError: one is, and does not end.
        """
        with self._changed:
            self._wait(wait_s, caller_id)

    def _wait(self, wait_s: float | None, caller_id: bytes = b"") -> None:
        deadline = time.monotonic() + (WAIT_S if wait_s is None else wait_s)
        while self._running and not (caller_id and caller_id == self._source_id):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise RefusedError(
                    f"{self._running} is under way, and pointers do not move until it is done", "ask again later"
                )
            self._changed.wait(left_s)
