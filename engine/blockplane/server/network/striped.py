"""A stream over several connections: dealt in pieces that are numbered, and put together again in their order.

Whichever connection has room takes the next piece, so that a slow one holds nobody up. On each the numbers grow. The
receiving side takes pieces up to a window ahead of the one that is due; one further ahead waits on its connection.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from blockplane.model.errors import BlockplaneError, ConnectionLostError
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import MAX_PIECE_BYTES, Head, Kind, WireError
from blockplane.server.network.limits import Limits
from blockplane.server.network.throttle import Throttle

#: A piece that is cut is lost, on every connection: with larger ones short transfers would begin anew. Smaller ones
#: cost turns of the interpreter.
PIECE_BYTES: Final = 256 << 10
#: Pieces in memory a connection.
_PIECES: Final = 4
_SETTLE_S: Final = 2.0


class Pace:
    """Holds what came, or went, while one waited for the other side against the least rate.

    Parameters
    ----------
    count : gives the bytes so far.
    """

    def __init__(self, limits: Limits, count: Callable[[], int]) -> None:
        self._limits, self._count = limits, count
        self._waited_s, self._before = 0.0, count()

    def wait(self, changed: threading.Condition) -> None:
        """Wait for a change; ConnectionLostError: too little has moved for too long."""
        started = time.monotonic()
        changed.wait(self._limits.least_over_s - self._waited_s)
        self._waited_s += time.monotonic() - started
        if self._waited_s < self._limits.least_over_s:
            return
        moved = self._count() - self._before
        if moved < self._limits.least_bytes:
            raise ConnectionLostError(
                f"only {moved} bytes moved in {self._waited_s:.0f} s of waiting for the other side",
                "see how it and the network do",
            )
        self._waited_s, self._before = 0.0, self._count()


class _Stripes:
    """What both directions have: a thread a connection, the first error of any, a way to end."""

    def __init__(self, channels: Sequence[Channel], limits: Limits, name: str) -> None:
        self._channels, self._limits = channels, limits
        self.ended = threading.Event()
        #: guards all that follows, here and below
        self._lock = threading.Lock()
        #: what a user of the stream waits for
        self._changed = threading.Condition(self._lock)
        self._error: BlockplaneError | None = None
        self._threads = [
            threading.Thread(target=self._guarded, args=(channel,), name=name, daemon=True) for channel in channels
        ]

    def _start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _guarded(self, channel: Channel) -> None:
        try:
            self._work(channel)
        except BlockplaneError as error:
            self._fail(error if isinstance(error, ConnectionLostError) else ConnectionLostError(error.message))

    def _work(self, channel: Channel) -> None:
        raise NotImplementedError

    def _fail(self, error: BlockplaneError) -> None:
        with self._lock:
            self._error = self._error or error
            self.ended.set()
            self._wake_all()
        for channel in self._channels:
            channel.abort()

    def _wake_all(self) -> None:
        """Have everybody who waits look again; the lock is held."""
        raise NotImplementedError

    def _require_going(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Give the connections up, and wait for the threads."""
        if any(thread.is_alive() for thread in self._threads):
            self._fail(ConnectionLostError("the transfer ended"))
        for thread in self._threads:
            thread.join()
        for channel in self._channels:
            channel.close()


class Outgoing(_Stripes):
    """Takes a stream as a file does, and sends it; `finish` when all of it was written, then `close`.

    Notes
    -----
    Memory: 1 MiB a connection. What is written is copied once, so that connections work at once.
    """

    name = "the network connection"

    def __init__(self, channels: Sequence[Channel], limits: Limits, throttle: Throttle) -> None:
        super().__init__(channels, limits, "blockplane sends")
        #: what connections wait for
        self._filled = threading.Condition(self._lock)
        self._throttle = throttle
        self._free = [memoryview(bytearray(PIECE_BYTES)) for _ in range(_PIECES * len(channels))]
        self._ready: deque[tuple[int, memoryview, int]] = deque()
        self._n_pieces, self._is_over, self._n_done = 0, False, 0
        self._filling: memoryview | None = None
        self._n_filled, self._most = 0, PIECE_BYTES
        self._pace = Pace(limits, lambda: sum(channel.n_sent for channel in channels))
        self._start()

    def write(self, data: bytes | memoryview) -> int:
        """Take all of it; the memory may change on return."""
        view, at = memoryview(data).cast("B"), 0
        while at < len(view):
            if self._filling is None:
                self._filling, self._n_filled = self._next_free(), 0
                self._most = self._throttle.piece_bytes(PIECE_BYTES)
            n_bytes = min(len(view) - at, self._most - self._n_filled)
            _copy(view[at : at + n_bytes], self._filling[self._n_filled : self._n_filled + n_bytes])
            self._n_filled += n_bytes
            at += n_bytes
            if self._n_filled == self._most:
                self._hand_over()
        return len(view)

    def _next_free(self) -> memoryview:
        with self._changed:
            self._require_going()
            while not self._free:
                self._pace.wait(self._changed)
                self._require_going()
            return self._free.pop()

    def _hand_over(self) -> None:
        assert self._filling is not None
        with self._lock:
            self._ready.append((self._n_pieces, self._filling, self._n_filled))
            self._n_pieces += 1
            self._filled.notify()
        self._filling = None

    def finish(self) -> None:
        """Send what is left, and say on each connection that it was all; ConnectionLostError: one is gone."""
        if self._filling is not None and self._n_filled:
            self._hand_over()
        with self._lock:
            self._is_over = True
            self._filled.notify_all()
            while self._n_done < len(self._threads) and self._error is None:
                self._pace.wait(self._changed)
            self._require_going()

    def _work(self, channel: Channel) -> None:
        while (piece := self._next_ready()) is not None:
            sequence, buffer, n_bytes = piece
            if not n_bytes:
                channel.send(Kind.ALIVE)
                continue
            self._throttle.take(n_bytes, self.ended)
            channel.send(Kind.PIECE, buffer[:n_bytes], sequence)
            with self._lock:
                self._free.append(buffer)
                self._changed.notify()
        if not self.ended.is_set():
            channel.send(Kind.END, b"", self._n_pieces)
        with self._lock:
            self._n_done += 1
            self._changed.notify()

    def _next_ready(self) -> tuple[int, memoryview, int] | None:
        """Return the next piece; one without bytes: there has been none for a while; None: all are sent."""
        with self._lock:
            self._filled.wait_for(lambda: self._ready or self._is_over or self._error is not None, self._limits.alive_s)
            if self._error is not None:
                return None
            if self._ready:
                return self._ready.popleft()
            return None if self._is_over else (0, memoryview(b""), 0)

    def _wake_all(self) -> None:
        self._changed.notify_all()
        self._filled.notify_all()


class Incoming(_Stripes):
    """Gives a stream as a file does, in order.

    Notes
    -----
    Memory: 1 MiB a connection; 4 MiB, where the other side deals in larger pieces. Each piece
    is received into a buffer of its own, and copied out once.
    """

    name = "the network connection"

    def __init__(self, channels: Sequence[Channel], limits: Limits, throttle: Throttle) -> None:
        super().__init__(channels, limits, "blockplane receives")
        self._throttle = throttle
        self._window = _PIECES * len(channels)
        #: of PIECE_BYTES, replaced by larger ones where such come
        self._free = [memoryview(bytearray(PIECE_BYTES)) for _ in range(self._window)]
        self._here: dict[int, tuple[memoryview, int]] = {}
        self._next, self._at, self._total = 0, 0, -1
        self._taken: set[int] = set()
        #: who waits to receive a piece that is too far ahead, by its number
        self._early: dict[int, threading.Condition] = {}
        self._pace = Pace(limits, lambda: sum(channel.n_received for channel in channels))
        self._start()

    def readinto(self, out: memoryview) -> int:
        """Fill memory with what is next; return how much that is, 0 at the end."""
        while True:
            with self._changed:
                while self._next not in self._here and self._next != self._total:
                    self._require_going()
                    self._pace.wait(self._changed)
                if self._next == self._total:
                    return 0
                buffer, n_bytes = self._here[self._next]
            left = min(n_bytes - self._at, len(out))
            _copy(buffer[self._at : self._at + left], out[:left])
            self._at += left
            if self._at == n_bytes:
                self._pass_on(buffer)
            if left:
                return left

    def settle(self) -> None:
        """Let the other side say on every connection that all was sent: not for long, the stream is whole."""
        end = time.monotonic() + min(_SETTLE_S, self._limits.idle_s)
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0.0))

    def _pass_on(self, buffer: memoryview) -> None:
        with self._lock:
            del self._here[self._next]
            self._taken.discard(self._next)
            self._next, self._at = self._next + 1, 0
            self._free.append(buffer)
            if (early := self._early.get(self._next + self._window - 1)) is not None:
                early.notify()

    def _work(self, channel: Channel) -> None:
        last = -1
        while True:
            head = channel.receive_head()
            if head is None:
                raise ConnectionLostError(f"{channel.peer} closed a data connection before the end")
            if head.kind is Kind.PIECE:
                if head.sequence <= last or not head.n_bytes:
                    raise WireError(f"{channel.peer} sends pieces that are out of their order")
                last = head.sequence
                self._take(channel, head)
            elif head.kind is Kind.END:
                self._end(channel, head.sequence)
                return
            elif head.kind is not Kind.ALIVE:
                raise WireError(f"{channel.peer} says {head.kind.name} on a data connection")
            else:
                channel.receive_body(head, memoryview(bytearray(head.n_bytes)))

    def _take(self, channel: Channel, head: Head) -> None:
        """Receive a piece once it is near enough to the one that is due."""
        with self._lock:
            if head.sequence >= self._next + self._window:
                self._wait_for_room(channel, head.sequence)
            if self._error is not None:
                raise self._error
            if head.sequence < self._next or head.sequence in self._taken or 0 <= self._total <= head.sequence:
                raise WireError(f"{channel.peer} sends a piece twice, or one more than there are")
            self._taken.add(head.sequence)
            buffer = self._free.pop()
        if len(buffer) < head.n_bytes:
            buffer = memoryview(bytearray(MAX_PIECE_BYTES))
        self._throttle.take(head.n_bytes, self.ended)
        channel.receive_body(head, buffer[: head.n_bytes])
        with self._lock:
            self._here[head.sequence] = buffer, head.n_bytes
            if head.sequence == self._next:
                self._changed.notify()

    def _wait_for_room(self, channel: Channel, sequence: int) -> None:
        """Wait until a piece is near enough; the lock is held."""
        if sequence in self._early:
            raise WireError(f"{channel.peer} sends a piece that another connection has")
        room = self._early[sequence] = threading.Condition(self._lock)
        while sequence >= self._next + self._window and self._error is None:
            room.wait()
        del self._early[sequence]

    def _end(self, channel: Channel, total: int) -> None:
        with self._changed:
            most = max(self._next, max(self._taken, default=-1) + 1)
            if self._total not in (-1, total) or total < most:
                raise WireError(f"{channel.peer} says two lengths of one stream")
            self._total = total
            self._changed.notify()

    def _wake_all(self) -> None:
        self._changed.notify_all()
        for early in self._early.values():
            early.notify()


def _copy(origin: memoryview, out: memoryview) -> None:
    """Copy bytes, and let other threads run meanwhile."""
    np.copyto(np.frombuffer(out, np.uint8), np.frombuffer(origin, np.uint8))
