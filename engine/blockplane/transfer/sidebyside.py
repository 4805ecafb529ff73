"""Work done side by side, a thread each, where one that fails does not end the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from blockplane.model.progress import Progress, ProgressEvent

T = TypeVar("T")


class StoppedError(Exception):
    """All of it was interrupted, or cannot be of use any more."""


class SideBySide(Generic[T]):
    """Threads, and what they report together.

    Parameters
    ----------
    total_bytes : of all.
    """

    def __init__(self, n_works: int, total_bytes: int, progress: Progress) -> None:
        #: guards done and calls of the caller's progress
        self._lock = threading.Lock()
        self._done = [0] * n_works
        self._total, self._progress, self._started = total_bytes, progress, time.monotonic()
        self._is_stopped = False
        self._results: list[T | BaseException] = [StoppedError()] * n_works

    def stop(self) -> None:
        """Let all end with what they do now: by a StoppedError when they next report."""
        self._is_stopped = True

    def progress_of(self, number: int) -> Progress:
        """Return what one of them tells how far it is."""

        def note(event: ProgressEvent) -> None:
            if self._is_stopped:
                raise StoppedError
            with self._lock:
                self._done[number] = event.done_bytes
                seconds = time.monotonic() - self._started
                self._progress(ProgressEvent(event.phase, sum(self._done), max(self._total, sum(self._done)), seconds))

        return note

    def run(self, work: Callable[[int], T]) -> list[T | BaseException]:
        """Do all of it; return what each returned, or raised. KeyboardInterrupt: all have stopped."""

        def do(number: int) -> None:
            try:
                self._results[number] = work(number)
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                self._results[number] = error

        numbers = range(len(self._done))
        threads = [
            threading.Thread(target=do, args=(i,), name=f"blockplane part {i + 1}", daemon=True) for i in numbers
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:
            self.stop()
            for thread in threads:
                thread.join()
            raise
        return self._results


def failures(names: Sequence[str], results: Sequence[object]) -> list[tuple[str, BaseException]]:
    """Return which of them failed, by name, and how; those that were stopped for it last."""
    found = [(n, its) for n, its in zip(names, results, strict=True) if isinstance(its, BaseException)]
    return sorted(found, key=lambda one: isinstance(one[1], StoppedError))
