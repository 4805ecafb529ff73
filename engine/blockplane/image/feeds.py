"""One gather for all who want the same image at about the same time.

The first window stays in memory for a moment; whoever comes by then takes part. Each window is read once, and is there
until all have used it. Who holds the others up for a while is left behind, with the window it uses, and reads the rest
by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from blockplane.image.gather import Gathered, Ring
from blockplane.image.image import Image
from blockplane.model.addresses import Bytes
from blockplane.planes import combine_count

#: How long the first window stays at least, even where that means waiting.
_HOLD_S: Final = 0.25
#: How long the others wait in all for one that uses windows more slowly than they do.
_PATIENCE_S: Final = 1.0

#: Begins a gather at a window of an image, for the length of a `with`.
Begin = Callable[[int], AbstractContextManager[Ring]]


class Feeds:
    """The gathers that several may take from. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._going: list[_Feed] = []

    @contextmanager
    def windows(self, image: Image, form: tuple[object, ...], begin: Begin) -> Iterator[Iterator[Gathered]]:
        """Give all windows of an image, in order, for the length of a `with`.

        Parameters
        ----------
        form : what else the windows follow from: the order, their length. begin : reads them; the snapshots of the
        image are pinned by the caller for as long.

        Notes
        -----
        Errors are those of the gather, for all who take part. Memory: one gather's, and a window and a gather for each
        who was left behind.
        """
        reader = object()
        with self._lock:
            feed = next((feed for feed in self._going if feed.is_of(image, form) and feed.join(reader)), None)
            if feed is None:
                feed = _Feed(image, form, begin(0))
                feed.join(reader)
                self._going.append(feed)
        try:
            with ExitStack() as stack:
                yield feed.windows(reader, lambda at: stack.enter_context(begin(at)).whole_windows())
        finally:
            with self._lock:
                is_last = feed.leave(reader)
                if is_last:
                    self._going.remove(feed)
            if is_last:
                feed.close()


class _Feed:
    """Windows in memory, and where each reader is."""

    def __init__(self, image: Image, form: tuple[object, ...], reading: AbstractContextManager[Ring]) -> None:
        self._image, self._form, self._reading = image, form, reading
        self._ring = reading.__enter__()
        self._changed = threading.Condition()
        #: and the buffers they lie in; `_first` is the number of the first one
        self._here: deque[tuple[Gathered, Bytes]] = deque()
        self._first = 0
        #: who takes part, and the window that each uses, or waits for
        self._readers: dict[object, int] = {}
        #: how long others have waited for each
        self._waited_s: dict[object, float] = {}
        self._held_until = time.monotonic() + _HOLD_S
        self._is_reading = self._is_waited_for = self._is_over = False
        self._error: BaseException | None = None

    def is_of(self, image: Image, form: tuple[object, ...]) -> bool:
        """Whether its windows are those of an image."""
        mine = self._image
        return (
            mine.store.array is image.store.array
            and form == self._form
            and mine.layout.is_home  # else windows follow from where blocks lay when each was planned
            and image.layout.is_home
            and [record.id for record in mine.records()] == [record.id for record in image.records()]
            and len(mine.plane) == len(image.plane)
            and not combine_count([mine.plane], minus=image.plane)
        )

    def join(self, reader: object) -> bool:
        """Take part from the first window on, if that is still here."""
        with self._changed:
            if self._first or self._error is not None:
                return False
            self._readers[reader] = 0
            return True

    def leave(self, reader: object) -> bool:
        """Take part no more; whether that was the last one."""
        with self._changed:
            if self._readers.pop(reader, None) is None:
                return False  # it was left behind
            self._release()
            self._changed.notify_all()
            return not self._readers

    def close(self) -> None:
        """End the gather."""
        self._reading.__exit__(None, None, None)

    def windows(self, reader: object, rest: Callable[[int], Iterator[Gathered]]) -> Iterator[Gathered]:
        """Give one reader its windows; rest : reads those from one on, where it was left behind."""
        at = 0
        while (found := self._get(reader, at)) is not None:
            yield found
            at += 1
        if reader not in self._readers:
            yield from rest(at)

    def _get(self, reader: object, at: int) -> Gathered | None:
        """Wait for a window; None: there is none, or the reader was left behind."""
        with self._changed:
            if reader in self._readers:
                self._readers[reader] = at
            self._changed.notify_all()
            while reader in self._readers:  # while it waited, it may have been the one that others waited for
                self._release()
                if at < self._first + len(self._here):
                    return self._here[at - self._first][0]
                if self._error is not None:
                    raise self._error
                if self._is_over:
                    return None
                if self._is_reading:
                    self._changed.wait()
                elif len(self._here) < self._ring.n_buffers:
                    self._read()
                else:
                    self._wait_for_slower()
            return None

    def _read(self) -> None:
        """Wait for the next window of the gather; the lock is let go meanwhile."""
        self._is_reading = True
        self._changed.release()
        found: tuple[Gathered, Bytes] | None = None
        error: BaseException | None = None
        try:
            found = self._ring.next_whole()
        except BaseException as raised:  # noqa: BLE001 - it is everybody's, and raised below
            error = raised
        self._changed.acquire()
        self._is_reading, self._error, self._is_over = False, error, found is None
        if found is not None:
            self._here.append(found)
        self._changed.notify_all()

    def _release(self) -> None:
        """Give back what all have used; the first one not at once."""
        is_early = time.monotonic() < self._held_until or len(self._here) <= self._ring.n_buffers // 2
        if not self._first and is_early:
            return
        needed = min(self._readers.values(), default=self._first)
        while self._first < needed and self._here:
            self._ring.give_back(self._here.popleft()[1])
            self._first += 1

    def _wait_for_slower(self) -> None:
        """Wait a moment for those who still use the first window; go on without them, where that was long enough."""
        slower, since = self._slower(), time.monotonic()
        if any(self._waited_s.get(reader, 0.0) >= _PATIENCE_S for reader in slower):
            self._leave_behind()
            return
        is_alone, self._is_waited_for = not self._is_waited_for, True
        self._changed.wait(_HOLD_S / 4)
        if is_alone:  # of several who wait the time counts once
            self._is_waited_for = False
            for reader in slower:
                self._waited_s[reader] = self._waited_s.get(reader, 0.0) + time.monotonic() - since

    def _slower(self) -> list[object]:
        return [reader for reader, at in self._readers.items() if at == self._first]

    def _leave_behind(self) -> None:
        """Go on without those who still use the first window; it is theirs."""
        for reader in self._slower():
            del self._readers[reader]
        self._here.popleft()
        self._ring.make_up()
        self._first += 1
        self._release()
