"""One at a time: steps of a mirror, and what joins it again, each of which moves what the source keeps for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from blockplane.model.errors import BusyError
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.volume.volume import Volume

_POLL_S = 0.1


@dataclass(eq=False, slots=True)
class Turn:
    """Having a mirror to oneself.

    heard_s : when its destination said last where it stands, by `time.monotonic`. moved : how far what goes on has
    come; None: nothing travels.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    heard_s: float = float("-inf")
    moved: ProgressEvent | None = None

    def watched(self, progress: Progress) -> Progress:
        """Return what a transfer's progress is to be told to, so that others see it too."""

        def note(event: ProgressEvent) -> None:
            if event.phase == "blocks":
                self.moved = event
            progress(event)

        return note


_guard = threading.Lock()
#: By volume, by the mirror's name. Whoever does a step has the volume open, so that all are in one process.
_turns: WeakKeyDictionary[Volume, dict[str, Turn]] = WeakKeyDictionary()


def turn_of(volume: Volume, name: str) -> Turn:
    """Return the turn of a mirror, whoever has it."""
    with _guard:
        return _turns.setdefault(volume, {}).setdefault(name, Turn())


@contextmanager
def turn(volume: Volume, name: str, progress: Progress | None = None) -> Iterator[Turn]:
    """Have a mirror to oneself for the length of a `with`.

    Parameters
    ----------
    name : the mirror's. progress : told while somebody else has it, may raise; None: it is not waited for.

    Raises
    ------
    BusyError : somebody else has it.
    """
    found = turn_of(volume, name)
    started = time.monotonic()
    while not found.lock.acquire(timeout=_POLL_S if progress is not None else -1, blocking=progress is not None):
        if progress is None:
            raise BusyError(f"an update of {name} is under way already", "the next one brings what is newer")
        progress(ProgressEvent("wait", 0, 0, time.monotonic() - started))
    try:
        yield found
    finally:
        found.moved = None
        found.lock.release()
