"""What goes on in an open volume, and what may begin beside it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from blockplane.model.errors import RefusedError
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrorcodec import MIRROR
from blockplane.volume.pins import doing

_POLL_S = 0.05


class Kind(Enum):
    """What a verb does to a volume."""

    READS = "reads"
    CHECKS = "checks"  # reads everything, with the volume's lock
    SNAPSHOTS = "changes snapshots"
    FILES = "changes files"
    LIVE = "exchanges the live file system"
    DISKS = "changes disks"


#: What may not go on at once, in either order. A receive replaces the live file system at its end: what was changed in
#: it meanwhile would be lost, and so is the receive. A check would find half-written stripes bad, and holds all up.
_CONFLICTS: Final = {
    (Kind.LIVE, Kind.LIVE),
    (Kind.LIVE, Kind.FILES),
    (Kind.LIVE, Kind.DISKS),
    (Kind.FILES, Kind.DISKS),
    (Kind.DISKS, Kind.DISKS),
    (Kind.CHECKS, Kind.LIVE),
    (Kind.CHECKS, Kind.FILES),
    (Kind.CHECKS, Kind.SNAPSHOTS),
    (Kind.CHECKS, Kind.DISKS),
}


def let_written(volume: LiveVolume, activities: Activities) -> None:
    """Let files be changed beside receives into a volume, where that is a mirror no more: they end in vain."""
    mirror = volume.local.root.mirror
    if mirror is not None and mirror.state != MIRROR:
        activities.break_off()


def may_go_together(a: Kind, b: Kind) -> bool:
    """Whether two kinds of verbs may go on at once."""
    return (a, b) not in _CONFLICTS and (b, a) not in _CONFLICTS


@dataclass(frozen=True, slots=True, eq=False)
class Activity:
    """A verb that goes on in a volume, for which process, since when (ns since 1970). end : has it end soon."""

    kind: Kind
    verb: str
    pid: int
    since_ns: int
    end: Callable[[], None] | None = None

    def __str__(self) -> str:
        return doing(self.verb, self.pid, self.since_ns)


class Activities:
    """What goes on in one volume. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._running: list[Activity] = []
        #: of those: receives whose mirror was broken off, so that they exchange nothing any more
        self._futile: set[Activity] = set()

    @contextlib.contextmanager
    def going_on(
        self,
        kind: Kind,
        verb: str,
        pid: int,
        wait_s: float = 0.0,
        require: Callable[[], None] = lambda: None,
        end: Callable[[], None] | None = None,
    ) -> Iterator[Activity]:
        """Note that a verb goes on, for the length of a `with`.

        Parameters
        ----------
        wait_s : how long to wait for what may not go on beside it. require : called while waiting; may raise.
        end : called, from any thread, when what it does has become futile.

        Raises
        ------
        RefusedError: something goes on beside which it may not.
        """
        mine = Activity(kind, verb, pid, time.time_ns(), end)
        deadline = time.monotonic() + wait_s
        while (other := self._begin(mine)) is not None:
            require()
            if time.monotonic() >= deadline:
                raise RefusedError(
                    f"{self._name} is in use by {other}, and {verb} cannot go on beside it",
                    "wait for it with --wait SECONDS, or run it again when that has ended",
                )
            time.sleep(_POLL_S)
        try:
            yield mine
        finally:
            with self._lock:
                self._running.remove(mine)
                self._futile.discard(mine)

    def _begin(self, mine: Activity) -> Activity | None:
        """Enter an activity, or return what is in its way."""
        with self._lock:
            for other in self._running:
                is_past = mine.kind is Kind.FILES and other in self._futile
                if not is_past and not may_go_together(mine.kind, other.kind):
                    return other
            self._running.append(mine)
            return None

    def break_off(self) -> None:
        """Let files be changed beside the receives that go on: the volume was broken off, and they end in vain."""
        with self._lock:
            futile = [activity for activity in self._running if activity.kind is Kind.LIVE]
            self._futile.update(futile)
        for activity in futile:
            if activity.end is not None:
                activity.end()

    def all(self) -> list[Activity]:
        """Return what goes on, older first."""
        with self._lock:
            return list(self._running)
