"""Pins: which snapshots something in this process reads now. They die with it (DESIGN.md, law 12).

All writers of a volume are in one process, so its pins are all there are: what another process reads there, it reads
through this one (`server`), and readers of their own hold the volume's lock, which keeps writers out.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

#: For whom the running thread reads, where that is another process: the verb and the process's number.
reading_for: Final[ContextVar[tuple[str, int] | None]] = ContextVar("reading_for", default=None)


@dataclass(frozen=True, slots=True)
class Pin:
    """Something reads a snapshot. verb : what reads; pid : for which process; since_ns : ns since 1970."""

    snapshot_id: bytes
    verb: str
    pid: int
    since_ns: int

    def __str__(self) -> str:
        return doing(self.verb, self.pid, self.since_ns)


def doing(verb: str, pid: int, since_ns: int) -> str:
    """Return what a process does, and since when, as people are told."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since_ns / 1e9))
    return f"{verb} (process {pid}), since {since}"


class Pins:
    """The pins of a volume. Thread-safe.

    Parameters
    ----------
    verb : what reads where the running thread reads for no other process.
    gone : called, in the thread that read, with the id of a snapshot whose last pin went.
    """

    def __init__(self, verb: str = "a program", gone: Callable[[bytes], None] = lambda _: None) -> None:
        self.verb = verb
        self._gone = gone
        self._lock = threading.Lock()
        self._pins: dict[int, Pin] = {}
        self._n_made = 0

    @contextlib.contextmanager
    def hold(self, snapshot_id: bytes) -> Iterator[None]:
        """Pin a snapshot for the length of a `with`."""
        verb, pid = reading_for.get() or (self.verb, os.getpid())
        pin = Pin(snapshot_id, verb, pid, time.time_ns())
        with self._lock:
            self._n_made += 1
            key = self._n_made
            self._pins[key] = pin
        try:
            yield
        finally:
            with self._lock:
                del self._pins[key]
                is_last = all(other.snapshot_id != snapshot_id for other in self._pins.values())
            if is_last:
                self._gone(snapshot_id)

    def has(self, snapshot_id: bytes) -> bool:
        """Whether something holds the snapshot."""
        return bool(self.of(snapshot_id))

    def of(self, snapshot_id: bytes) -> list[Pin]:
        """Return the pins on a snapshot, older first."""
        return [pin for pin in self.all() if pin.snapshot_id == snapshot_id]

    def all(self) -> list[Pin]:
        """Return all pins, older first."""
        with self._lock:
            return list(self._pins.values())
