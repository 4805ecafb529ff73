"""Work given to disk threads, waited for as one."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Pending:
    """Counts parts of one piece of work down; the last part runs ``when_done`` in its thread.

    ``first_bad`` is the lowest index of a block that differed from its check, or -1.
    """

    def __init__(self, n_parts: int, when_done: Callable[[Pending], None] | None = None) -> None:
        #: guards everything below
        self._lock = threading.Lock()
        self._n_left = n_parts
        self._when_done = when_done
        self._event = threading.Event()
        self.error: BaseException | None = None
        self.first_bad = -1
        if n_parts == 0:
            self._finish()

    def part_done(self, error: BaseException | None = None, bad: int = -1) -> None:
        """Report one part; the first error is kept."""
        with self._lock:
            self.error = self.error or error
            if bad >= 0 and (self.first_bad < 0 or bad < self.first_bad):
                self.first_bad = bad
            self._n_left -= 1
            is_last = self._n_left == 0
        if is_last:
            self._finish()

    def _finish(self) -> None:
        if self._when_done is not None:
            self._when_done(self)
            self._when_done = None
        self._event.set()

    @property
    def is_done(self) -> bool:
        """Whether every part is."""
        return self._event.is_set()

    def wait(self) -> None:
        """Wait for the last part.

        Raises
        ------
        the first part's error.
        """
        self._event.wait()
        if self.error is not None:
            raise self.error
