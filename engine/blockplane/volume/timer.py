"""The timer of consistency points: what nobody syncs becomes durable all the same, some seconds later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from blockplane.model.errors import BlockplaneError


class CommitTimer(threading.Thread):
    """Asks, whenever it may be time, for a consistency point.

    Parameters
    ----------
    commit_if_due : commits if it is time to, and returns after how many seconds to ask again. It raises where the
        volume stopped, whose next caller hears of it: then there is nothing more to ask for.
    """

    def __init__(self, commit_if_due: Callable[[], float]) -> None:
        super().__init__(name="blockplane timer", daemon=True)
        self._commit_if_due = commit_if_due
        self._is_over = threading.Event()

    def run(self) -> None:
        """Ask until the end."""
        wait_s = 0.0
        while not self._is_over.wait(wait_s):
            try:
                wait_s = self._commit_if_due()
            except (BlockplaneError, OSError):
                return

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._is_over.set()
        self.join()
