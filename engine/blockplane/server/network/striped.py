"""A stream over several connections: dealt in pieces that are numbered, and put together again in their order.

Whichever connection has room takes the next piece, so that a slow one holds nobody up until the kernel's buffers of the
others are full. On each the numbers grow. Nothing is copied here: pieces go out of the memory of who writes the stream,
and into that of who reads it, in their threads.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from blockplane.model.errors import BlockplaneError, ConnectionLostError
from blockplane.server.network.channel import Channel, cut, wait_readable, wait_writable
from blockplane.server.network.codec import LONG_PIECE_BYTES, MAX_PIECE_BYTES, Head, Kind, WireError
from blockplane.server.network.limits import Limits
from blockplane.server.network.throttle import Throttle
from blockplane.stream.input import advance

#: A piece that is cut is lost, on every connection: it is a small part of what has moved, and of what moves in a
#: second, but at least so much, and at most MAX_PIECE_BYTES: each costs turns of the interpreter.
PIECE_BYTES: Final = 64 << 10
_SHARE: Final = 128
_A_SECOND: Final = 400
_SETTLE_S: Final = 2.0


class Pace:
    """Holds what came, or went, while one waited for the other side against the least rate.

    Parameters
    ----------
    count : gives the bytes so far. excuse : asked when too little moved in so many seconds: whether that is no matter.
    """

    def __init__(
        self, limits: Limits, count: Callable[[], int], excuse: Callable[[float], bool] = lambda _: False
    ) -> None:
        self._limits, self._count, self._excuse = limits, count, excuse
        self._waited_s, self._before = 0.0, count()

    def wait(self, wait: Callable[[], object]) -> None:
        """Wait a while; ConnectionLostError: too little has moved for too long."""
        started = time.monotonic()
        wait()
        self._waited_s += time.monotonic() - started
        if self._waited_s < self._limits.least_over_s:
            return
        moved = self._count() - self._before
        if moved < self._limits.least_bytes and not self._excuse(self._waited_s):
            raise ConnectionLostError(
                f"only {moved} bytes moved in {self._waited_s:.0f} s of waiting for the other side",
                "see how it and the network do",
            )
        self._waited_s, self._before = 0.0, self._count()


class _Stripes:
    """What both directions have: connections, the first error of any, a way to end."""

    name = "the network connection"

    def __init__(self, channels: Sequence[Channel], limits: Limits, throttle: Throttle) -> None:
        self._channels, self._limits, self._throttle = channels, limits, throttle
        self.ended = threading.Event()
        #: one thread uses the connections at a time
        self._lock = threading.Lock()
        self._error: ConnectionLostError | None = None

    @contextlib.contextmanager
    def _going(self) -> Iterator[None]:
        """Use the connections; what fails ends all of them, and is what later calls meet."""
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                yield
            except BlockplaneError as error:
                lost = error if isinstance(error, ConnectionLostError) else ConnectionLostError(error.message)
                self._fail(lost)
                raise lost from None
            except BaseException:
                self._fail(ConnectionLostError("the transfer ended"))
                raise

    def _fail(self, error: ConnectionLostError) -> None:
        self._error = error
        for channel in self._channels:
            channel.abort()

    def close(self) -> None:
        """Give the connections up."""
        self.ended.set()
        for channel in self._channels:
            channel.close()


class Outgoing(_Stripes):
    """Takes a stream as a file does, and sends it; `finish` when all of it was written, then `close`.

    Parameters
    ----------
    excuse : as of `Pace`: whether the other side, which takes too little, does something else meanwhile. By default it
        must not.

    Notes
    -----
    Memory: the kernel's. Where nothing is written for a while a thread says on each connection that one is at work.
    """

    def __init__(
        self,
        channels: Sequence[Channel],
        limits: Limits,
        throttle: Throttle,
        excuse: Callable[[float], bool] = lambda _: False,
    ) -> None:
        super().__init__(channels, limits, throttle)
        self._began = time.monotonic()
        self._pace, self._excuse = Pace(limits, self._n_sent, excuse), excuse
        #: in the order of their turns
        self._free = list(channels)
        #: those that have not sent all of their last message
        self._busy: list[Channel] = []
        self._n_pieces, self._is_over = 0, False
        #: the longest piece that the kernel was told of
        self._most = 0
        #: when a connection took anything last, or was given something to take
        self._moved_at = self._began
        self._beat = threading.Thread(target=self._say_alive, name="blockplane sends", daemon=True)
        self._beat.start()

    def _n_sent(self) -> int:
        return sum(channel.n_sent for channel in self._channels)

    def write(self, data: bytes | memoryview) -> int:
        """Take all of it; the memory may change on return."""
        view, at = memoryview(data).cast("B"), 0
        with self._going():
            while at < len(view):
                piece = view[at : at + self._next_bytes()]
                self._throttle.take(len(piece), self.ended)
                self._deal(piece)
                at += len(piece)
            self._flush()
        return len(view)

    def _next_bytes(self) -> int:
        """Return how long the next piece is, and have the kernel take no more than fits that."""
        moved, seconds = self._n_sent(), time.monotonic() - self._began
        most = int(min(moved / _SHARE, moved / (seconds * _A_SECOND + 1e-9), MAX_PIECE_BYTES))
        most = max(most, PIECE_BYTES)
        if most > 2 * self._most or not self._most:
            self._most = most
            for channel in self._channels:
                channel.keep_unsent(most)
        return self._throttle.piece_bytes(most)

    def _deal(self, piece: memoryview) -> None:
        """Give a piece to the connection whose turn it is of those that have room."""
        while not self._free:
            self._go_on()
        channel, self._moved_at = self._free.pop(0), time.monotonic()
        if not channel.begin(Kind.PIECE, piece, self._n_pieces):
            self._busy.append(channel)
        elif len(piece) < LONG_PIECE_BYTES:  # heads and contents take turns: it goes where the next long one goes
            self._free.insert(0, channel)
        else:
            self._free.append(channel)
        self._n_pieces += 1

    def _flush(self) -> None:
        """Have the kernel take all that was dealt."""
        while self._busy:
            self._go_on()

    def _go_on(self) -> None:
        """Wait for room, and send what there is room for; one connection may wait while others move."""
        before = self._n_sent()
        self._pace.wait(lambda: wait_writable(self._busy))
        self._send_on()
        now = time.monotonic()
        if self._n_sent() > before:
            self._moved_at = now
        elif now - self._moved_at >= self._limits.idle_s and not self._excuse(0.0):
            raise ConnectionLostError(f"writing to {self._busy[0].peer} took too long", "see how it and the network do")

    def _send_on(self) -> None:
        """Send what there is room for of what was begun."""
        for channel in [channel for channel in self._busy if channel.go_on()]:
            self._busy.remove(channel)
            self._free.append(channel)

    def finish(self) -> None:
        """Say on each connection that it was all; ConnectionLostError: one is gone."""
        with self._going():
            self._flush()
            self._is_over, self._moved_at = True, time.monotonic()
            self._busy = [channel for channel in self._channels if not channel.begin(Kind.END, b"", self._n_pieces)]
            self._flush()

    def _say_alive(self) -> None:
        said = dict.fromkeys(self._channels, 0)
        while not self.ended.wait(self._limits.alive_s):
            with contextlib.suppress(BlockplaneError), self._going():
                if self._is_over:
                    return
                self._send_on()  # of what was said before
                for channel in [channel for channel in self._free if channel.n_sent == said[channel]]:
                    if not channel.begin(Kind.ALIVE):
                        self._free.remove(channel)
                        self._busy.append(channel)
                said = {channel: channel.n_sent for channel in self._channels}

    def turn(self) -> None:
        """Leave the connections, on which all was said, to what comes back; the thread has ended on return."""
        self.ended.set()
        self._beat.join()

    def close(self) -> None:
        """Give the connections up, and wait for the thread."""
        self.ended.set()
        for channel in self._channels:
            channel.abort()  # closed they are when nobody uses them: a descriptor may be somebody else's then
        self._beat.join()
        super().close()


class Incoming(_Stripes):
    """Gives a stream as a file does, in order.

    Notes
    -----
    Memory: a piece, for one that is longer than the memory it is asked into; what comes ahead waits in the kernel.
    """

    def __init__(self, channels: Sequence[Channel], limits: Limits, throttle: Throttle) -> None:
        super().__init__(channels, limits, throttle)
        #: what does not match the stream's checks was changed on the way
        self.may_change = any(channel.may_change for channel in channels)
        self._n_taken = 0
        #: what a side says beside pieces is no progress; that it is at work is believed for a while
        self._pace = Pace(limits, lambda: self._n_taken, self._is_at_work)
        self._alive_at, self._silent_s = float("-inf"), 0.0
        #: those whose next head is to come; who has brought a piece goes to the end
        self._silent = list(channels)
        #: heads of pieces whose bodies are still to be taken, by number
        self._ahead: dict[int, tuple[Channel, Head]] = {}
        self._next, self._total = 0, -1
        #: what ended a connection before its END: what the others have brought by then still counts
        self._lost: ConnectionLostError | None = None
        #: of the last piece
        self._rest = memoryview(b"")
        self._scratch = memoryview(b"")

    def readinto(self, out: memoryview) -> int:
        """Fill memory with what is next; return how much that is, 0 at the end."""
        with self._going():
            return self._some([out])

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """Fill all buffers in order; return how much that is, less only at the end."""
        left, n_bytes = [buffer.cast("B") for buffer in buffers if len(buffer)], 0
        with self._going():
            while left and (n := self._some(left)):
                n_bytes += n
                advance(left, n)
        return n_bytes

    def _some(self, left: Sequence[memoryview]) -> int:
        """Fill buffers with what is next: a piece, where there is room for it, or what there is room for."""
        if not self._rest:
            due = self._due()
            if due is None:
                return 0
            channel, head = due
            if head.n_bytes <= sum(map(len, left)):
                self._take(channel, head, cut(left, head.n_bytes))
                return head.n_bytes
            if len(self._scratch) < head.n_bytes:
                self._scratch = memoryview(bytearray(head.n_bytes))
            self._rest = self._scratch[: head.n_bytes]
            self._take(channel, head, [self._rest])
        out = left[0]
        n_bytes = min(len(self._rest), len(out))
        out[:n_bytes], self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
        return n_bytes

    def _due(self) -> tuple[Channel, Head] | None:
        """Wait for the piece that is due; None: the stream is over."""
        since = time.monotonic()
        while True:
            if (found := self._ahead.pop(self._next, None)) is not None:
                return found
            if self._next == self._total:
                return None
            self._pace.wait(lambda: self._look_or_wait(since))  # to hear what is no piece is to wait too

    def _look_or_wait(self, since: float) -> None:
        """Take the heads that are here, or else wait for one."""
        if self._look(since):
            return
        if self._lost is not None:
            raise self._lost
        if not self._silent:
            raise WireError("the other side leaves out a piece of the stream")
        wait_readable(self._silent)

    def _is_at_work(self, seconds: float) -> bool:
        """Whether the other side says that it is, and has not said so for longer than it may in all."""
        self._silent_s += seconds
        is_alive = time.monotonic() - self._alive_at < self._limits.least_over_s
        return is_alive and self._silent_s < self._limits.silent_s

    def _take(self, channel: Channel, head: Head, out: Sequence[memoryview]) -> None:
        """Receive the piece that is due."""
        step = self._throttle.piece_bytes(head.n_bytes)
        channel.receive_body(head, out, step, lambda n_bytes: self._throttle.take(n_bytes, self.ended))
        self._next += 1
        self._n_taken += head.n_bytes
        self._silent.append(channel)

    def _look(self, since: float) -> bool:
        """Take the heads that are here, until the one that is due is; whether there was any."""
        is_any = False
        for channel in list(self._silent):
            try:
                head = channel.receive_head_now(since)
            except ConnectionLostError as error:
                self._lost = self._lost or error
                self._silent.remove(channel)
                continue
            if head is None:
                continue
            is_any = True
            self._note(channel, head)
            if self._next in self._ahead:
                break
        return is_any

    def _note(self, channel: Channel, head: Head) -> None:
        if head.kind is Kind.PIECE:
            if head.sequence in self._ahead:
                raise WireError(f"{channel.peer} sends a piece that another connection has")
            if head.sequence < self._next or 0 <= self._total <= head.sequence or not head.n_bytes:
                raise WireError(f"{channel.peer} sends a piece twice, an empty one, or one more than there are")
            self._ahead[head.sequence] = channel, head
            self._silent.remove(channel)
            return
        if head.kind not in (Kind.END, Kind.ALIVE):
            raise WireError(f"{channel.peer} says {head.kind.name} on a data connection")
        channel.receive_body(head, [memoryview(bytearray(head.n_bytes))])
        if head.kind is Kind.ALIVE:
            self._alive_at = time.monotonic()
        if head.kind is Kind.END:
            if self._total not in (-1, head.sequence) or head.sequence < max(
                [self._next, *(n + 1 for n in self._ahead)]
            ):
                raise WireError(f"{channel.peer} says two lengths of one stream")
            self._total = head.sequence
            self._silent.remove(channel)

    def settle(self) -> None:
        """Let the other side say on every connection that all was sent: not for long, the stream is whole."""
        since = time.monotonic()
        end = since + min(_SETTLE_S, self._limits.idle_s)
        with contextlib.suppress(BlockplaneError), self._going():
            while self._silent and time.monotonic() < end:
                if not self._look(since):
                    wait_readable(self._silent, end - time.monotonic())
