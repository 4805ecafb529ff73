"""One at a time: steps of a mirror, and what joins it again, each of which moves what the source keeps for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from blockplane.model.errors import BusyError
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.volume.volume import Volume

_POLL_S = 0.1

_guard = threading.Lock()
#: By volume, by the mirror's name. Whoever does a step has the volume open, so that all are in one process.
_turns: WeakKeyDictionary[Volume, dict[str, threading.Lock]] = WeakKeyDictionary()


@contextmanager
def turn(volume: Volume, name: str, progress: Progress | None = None) -> Iterator[None]:
    """Have a mirror to oneself for the length of a `with`.

    Parameters
    ----------
    name : the mirror's. progress : told while somebody else has it, may raise; None: it is not waited for.

    Raises
    ------
    BusyError : somebody else has it.
    """
    with _guard:
        lock = _turns.setdefault(volume, {}).setdefault(name, threading.Lock())
    started = time.monotonic()
    while not lock.acquire(timeout=_POLL_S if progress is not None else -1, blocking=progress is not None):
        if progress is None:
            raise BusyError(f"an update of {name} is under way already", "the next one brings what is newer")
        progress(ProgressEvent("wait", 0, 0, time.monotonic() - started))
    try:
        yield
    finally:
        lock.release()
