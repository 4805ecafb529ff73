"""One at a time: steps of a mirror, and what joins it again, each of which moves what the source keeps for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from blockplane.model.errors import BlockplaneError, BusyError, RefusedError
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.transfer.peer import Peer
from blockplane.volume.volume import Volume

_POLL_S = 0.1
#: How long a mirror that is taken out waits for what goes on: a transfer ends at its next block, a silent peer may not.
LAST_WAIT_S: Final = 10.0


@dataclass(eq=False, slots=True)
class Turn:
    """Having a mirror to oneself.

    heard_s : when its destination said last where it stands, by `time.monotonic`. moved : how far what goes on has
    come; None: nothing travels. peer : that the step which goes on talks to. is_over : the mirror is being taken out:
    what goes on is to end.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    heard_s: float = float("-inf")
    moved: ProgressEvent | None = None
    peer: Peer | None = None
    is_over: bool = False

    @property
    def waits_for(self) -> BlockplaneError | None:
        """Why a step that goes on does not get on: what its peer was not reached by, and is tried again after."""
        return getattr(self.peer, "waits_for", None)

    def watched(self, progress: Progress) -> Progress:
        """Return what a transfer's progress is to be told to, so that others see it too."""

        def note(event: ProgressEvent) -> None:
            if self.is_over:
                raise taken_out("the mirror")
            if event.phase == "blocks":
                self.moved = event
            progress(event)

        return note


def taken_out(name: str) -> RefusedError:
    """Return the error for a mirror that is no more."""
    return RefusedError(f"{name} was taken out meanwhile", "nothing more is brought to it")


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
        found.moved = found.peer = None
        found.lock.release()


@contextmanager
def last_turn(volume: Volume, name: str, wait_s: float = LAST_WAIT_S) -> Iterator[None]:
    """Have whoever has a mirror to himself end, and nobody begin, for the length of a `with`: it is being taken out.

    Parameters
    ----------
    wait_s : how long to wait for that. What has not ended then, for its peer does not answer, goes no further than that
    once it does.
    """
    found = turn_of(volume, name)
    found.is_over = True
    has_ended = found.lock.acquire(timeout=wait_s)
    try:
        yield
    finally:
        if has_ended:
            found.is_over = False
            found.lock.release()
        else:  # it stays over for whoever has it still; a mirror of the name that is added anew has turns of its own
            with _guard:
                _turns[volume].pop(name, None)
