"""Where a volume's copies elsewhere stand, mirrors and replicas, as metrics tell it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from blockplane.api import Volume
from blockplane.transfer import mirrors
from blockplane.transfer.lag import replicas
from blockplane.transfer.mirrors.turns import turn_of

#: What is left is counted by algebra, whose cost follows what differs: not for everybody who asks, nor waited for long.
_COUNT_EVERY_S: Final = 30.0
_WAIT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Copy:
    """A mirror or a replica of a volume.

    kind : `mirror` or `replica`. lag_s : how old the newest state is that it has; a mirror that has none, the mirror;
    0: it has all. left_bytes : what would travel; heard_s : when it was last heard of, seconds since 1970; rate : bytes
    a second of the last transfer. None: not known. is_failing : its last attempt failed. is_lost : it is waited for no
    longer.
    """

    kind: str
    name: str
    lag_s: float
    left_bytes: int | None
    heard_s: float | None
    rate: float | None = None
    is_failing: bool = False
    is_lost: bool = False


class Copies:
    """Looks at the copies of volumes, in threads of its own, and no more often than is worth it. Thread-safe."""

    def __init__(self) -> None:
        #: guards the two below
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[float, tuple[Copy, ...]]] = {}
        self._counting: dict[Path, threading.Thread] = {}

    def of(self, path: Path, volume: Volume | None, wait_s: float = _WAIT_S) -> tuple[Copy, ...]:
        """Return the copies of a volume of a service; as they were known last where they cannot be counted soon."""
        if (counting := self.begin(path, volume)) is not None:
            counting.join(max(wait_s, 0.0))
        with self._lock:
            counted_s, found = self._known.get(path, (0.0, ()))
        passed_s = time.monotonic() - counted_s
        return tuple(replace(each, lag_s=each.lag_s + passed_s) if each.lag_s else each for each in found)

    def begin(self, path: Path, volume: Volume | None, *, afresh: bool = False) -> threading.Thread | None:
        """Count anew, where it is time; return the thread that does, or did last; None: no room, or it is not open.

        afresh : they are counted though that was done of late.
        """
        if volume is None or volume.stopped_at:
            return None
        with self._lock:
            counted_s, _ = self._known.get(path, (float("-inf"), ()))
            thread = self._counting.get(path)
            is_due = time.monotonic() - counted_s >= _COUNT_EVERY_S
            if thread is None or afresh or (is_due and not thread.is_alive()):
                thread = threading.Thread(
                    target=self._count, args=(path, volume, thread), name="blockplane copies", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:
                    return None
                self._counting[path] = thread
            return thread

    def _count(self, path: Path, volume: Volume, before: threading.Thread | None) -> None:
        if before is not None:  # what it has seen may be past
            before.join()
        with suppress(Exception):  # the volume may be closed meanwhile: nothing is known then
            found = time.monotonic(), tuple(_copies(volume))
            with self._lock:
                self._known[path] = found


def _copies(volume: Volume) -> Iterator[Copy]:
    for at in mirrors.status(volume):
        last = at.mirror.last
        told_s = last.ended_ns / 1e9 if last.ended_ns and not last.error else 0.0
        asked_s = time.time() - (time.monotonic() - turn_of(volume, at.mirror.name).heard_s)
        heard_s = max(told_s, asked_s) or None
        yield Copy(
            "mirror", at.mirror.dest, at.lag_s, at.left_bytes, heard_s, at.bytes_per_second, bool(last.error)
        )  # fmt: skip
    for one in replicas(volume):
        heard_s, is_failing = one.contact_ns / 1e9, bool(one.error)
        yield Copy("replica", one.name, one.lag_s, one.left_bytes, heard_s, None, is_failing, one.status == "lost")
