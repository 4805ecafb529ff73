"""Pins: which snapshots something in this process reads now. They die with it (DESIGN.md, law 12)."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator


class Pins:
    """Counts of readers by snapshot id. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[bytes] = Counter()

    @contextlib.contextmanager
    def hold(self, snapshot_id: bytes) -> Iterator[None]:
        """Pin a snapshot for the length of a `with`."""
        with self._lock:
            self._counts[snapshot_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._counts[snapshot_id] -= 1

    def has(self, snapshot_id: bytes) -> bool:
        """Whether something holds the snapshot."""
        with self._lock:
            return self._counts[snapshot_id] > 0
