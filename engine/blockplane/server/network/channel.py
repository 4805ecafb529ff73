"""One connection: whole messages in and out, each with an end to how long it may take."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from blockplane.model.errors import ConnectionLostError
from blockplane.server.network.codec import (
    HEAD_BYTES,
    MAX_PIECE_BYTES,
    Head,
    Kind,
    WireError,
    decode_object,
    encode_head,
    encode_object,
)
from blockplane.server.network.limits import Limits
from blockplane.stream.input import advance

#: How often who waits for a socket looks at the time.
_TICK_S: Final = 0.5
#: What TLS is given at once: it says what went when all of it did.
_TLS_BYTES: Final = 64 << 10
#: Who waits for more than that over plain TCP is woken when it is all here, or after so long, and not by each packet:
#: stripes reach 0.95 of raw connections, and 0.75 without. Less time wakes often; more stalls where windows are small.
_LONG_BYTES: Final = 64 << 10
_GATHER_S: Final = 0.005
#: Nothing goes at the moment.
_NOT_NOW: Final = (TimeoutError, BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
#: What a side that has said its last word still takes, and for how long.
_PART_BYTES: Final = 4 << 20
_PART_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Message:
    """A message whose body is here."""

    kind: Kind
    body: bytes
    sequence: int = 0

    @property
    def object(self) -> dict[str, Any]:
        """What it says."""
        return decode_object(self.body)


class Least:
    """Holds what moves against the least rate, since it was made."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._since, self._n_bytes = limits, time.monotonic(), 0

    def note(self, n_bytes: int) -> None:
        """Note what moved."""
        self._n_bytes += n_bytes

    def require(self, n_bytes: int = 0) -> None:
        """Note what moved; TimeoutError: in `least_over_s` it was too little."""
        self.note(n_bytes)
        windows = (time.monotonic() - self._since) / self._limits.least_over_s
        if windows < 1:
            return
        if self._n_bytes < self._limits.least_bytes * windows:
            raise TimeoutError
        self._since, self._n_bytes = time.monotonic(), 0


class Channel:
    """A connection. One thread receives at a time; any thread sends.

    Parameters
    ----------
    sock : connected; its handshake is done. Owned from here on.
    deadline : when all must be over, by `time.monotonic`; None: no such time. May be changed.

    Attributes
    ----------
    n_received, n_sent : bytes of messages. peer : what a person calls the other side.
    """

    def __init__(self, sock: socket.socket, limits: Limits, peer: str, deadline: float | None = None) -> None:
        self._sock, self._limits, self.peer, self.deadline = sock, limits, peer, deadline
        #: TLS notices what is changed on the way; plain TCP hardly does
        self._whole = not isinstance(sock, ssl.SSLSocket)
        self._wakes_late = self._whole and sock.family != socket.AF_UNIX
        #: bytes that were here when somebody looked: the kernel lets so many come before they are read
        self._most_at_once = 0
        _wait_in_ticks(sock, min(_TICK_S, limits.idle_s))
        self._sending = threading.Lock()
        self._head, self._n_head = bytearray(HEAD_BYTES), 0
        #: of a message that was begun
        self._left: list[memoryview] = []
        self._sent_at = self._received_at = time.monotonic()
        self.n_received = self.n_sent = 0

    @property
    def may_change(self) -> bool:
        """Whether what is sent may arrive changed, with nothing here to notice: plain TCP."""
        return self._whole

    def fileno(self) -> int:
        """Return the descriptor; -1: it is closed."""
        return self._sock.fileno()

    # --- sending -----------------------------------------------------------------------------------------------------

    def keep_unsent(self, n_bytes: int) -> None:
        """Have the kernel take no more than that ahead of what it has sent.

        Who deals out to several connections what must arrive in order gives none of them more than it can send.
        """
        with contextlib.suppress(OSError):  # not TCP
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, n_bytes)

    def tell(self, kind: Kind, found: Mapping[str, object] | None = None) -> None:
        """Send a message that says something."""
        self.send(kind, encode_object(found) if found is not None else b"")

    def send(self, kind: Kind, body: bytes | memoryview = b"", sequence: int = 0) -> None:
        """Send a message; ConnectionLostError: the other side is gone, or does not read."""
        left = self._encoded(kind, body, sequence)
        with self._sending, self._losing("writing to"):
            self._sent_at, least = time.monotonic(), Least(self._limits)
            while left:
                self._require_time(self._sent_at)
                least.require()
                try:
                    least.note(self._send_some(left))
                except _NOT_NOW as error:
                    self._wait(error)

    def begin(self, kind: Kind, body: bytes | memoryview = b"", sequence: int = 0) -> bool:
        """Send what goes of a message without waiting; return whether that is all of it.

        Else `go_on` sends the rest, nothing else is sent before that is gone, and the body must not change until then.
        """
        assert not self._left
        self._left = self._encoded(kind, body, sequence)
        return self.go_on()

    def go_on(self) -> bool:
        """Send what goes of the message that was begun; return whether that is all. Others mind how long it takes."""
        with self._losing("writing to"), contextlib.suppress(*_NOT_NOW):
            while self._left:
                self._send_some(self._left, socket.MSG_DONTWAIT)
        return not self._left

    def _encoded(self, kind: Kind, body: bytes | memoryview, sequence: int) -> list[memoryview]:
        """Return a message as it is sent."""
        head, view = encode_head(kind, body, sequence, whole=self._whole), memoryview(body)
        # one record of TLS where it fits
        first = 0 if self._whole else min(len(view), (16 << 10) - len(head))
        return [part for part in (memoryview(head + bytes(view[:first])), view[first:]) if len(part)]

    def _send_some(self, left: list[memoryview], flags: int = 0) -> int:
        """Send once, and take what went from what is left; return how much that is."""
        n_sent = self._sock.sendmsg(left, (), flags) if self._whole else self._sock.send(left[0][:_TLS_BYTES])
        self._sent_at = time.monotonic()
        self.n_sent += n_sent
        advance(left, n_sent)
        return n_sent

    def send_blob(self, data: bytes | memoryview) -> None:
        """Send bytes whose number was said before, in pieces."""
        view = memoryview(data)
        for at in range(0, len(view), MAX_PIECE_BYTES):
            self.send(Kind.BLOB, view[at : at + MAX_PIECE_BYTES])

    # --- receiving ---------------------------------------------------------------------------------------------------

    def receive_head(self) -> Head | None:
        """Receive a head, whose body `receive_body` takes; None: the other side has ended in good order."""
        if not self._fill([memoryview(self._head)], may_end=True):
            return None
        return Head.decode(self._head)

    def receive_head_now(self, since: float) -> Head | None:
        """Receive a head if all of it is here, without waiting; None: it is not, and one waits since that time.

        Raises
        ------
        ConnectionLostError : the connection has ended, or one waits too long. WireError : it is no head of ours.
        """
        with self._losing("reading from"):
            try:
                while self._n_head < HEAD_BYTES:
                    flags = socket.MSG_DONTWAIT if self._whole else 0
                    n_read = self._sock.recv_into(memoryview(self._head)[self._n_head :], 0, flags)
                    if not n_read:
                        raise ConnectionLostError(f"{self.peer} closed a data connection before the end")
                    self._n_head += n_read
                    self._note_received(n_read)
            except _NOT_NOW:
                self._require_time(max(since, self._received_at))
                return None
        self._n_head = 0
        return Head.decode(self._head)

    def receive_body(
        self,
        head: Head,
        out: Sequence[memoryview],
        step: int = MAX_PIECE_BYTES,
        before: Callable[[int], None] | None = None,
    ) -> None:
        """Receive the body of the head received last into buffers that are as long together.

        step, before : which is called before so many bytes are received, with their number.
        """
        left = [part for part in out if len(part)]
        while left:
            parts = cut(left, step)
            n_bytes = sum(map(len, parts))
            if before is not None:
                before(n_bytes)
            self._fill(parts)
            advance(left, n_bytes)
        head.require_whole(self._head, out)

    def receive(self, *kinds: Kind) -> Message:
        """Receive a message of one of some kinds.

        Raises
        ------
        ConnectionLostError : none comes. WireError : another one does, or none of ours.
        """
        head = self.receive_head()
        if head is None:
            raise ConnectionLostError(f"{self.peer} closed the connection")
        if head.kind not in kinds:
            raise WireError(f"{self.peer} says {head.kind.name} where something else is due")
        body = bytearray(head.n_bytes)
        self.receive_body(head, [memoryview(body)])
        return Message(head.kind, bytes(body), head.sequence)

    def receive_answer(self) -> Message:
        """Receive an ANSWER or FAILED; who says that it is at work is waited for.

        Raises
        ------
        ConnectionLostError : none comes, or it says so for longer than it may. WireError : another message does.
        """
        end = time.monotonic() + self._limits.answer_s
        while (message := self.receive(Kind.ANSWER, Kind.FAILED, Kind.ALIVE)).kind is Kind.ALIVE:
            if time.monotonic() >= end:
                raise ConnectionLostError(
                    f"{self.peer} says that it is at work, and has not answered in {self._limits.answer_s:.0f} s",
                    "see how it does",
                )
        return message

    def receive_blob(self, n_bytes: int) -> bytes:
        """Receive bytes whose number was said, and held against a bound, before. Memory grows as they come."""
        data, least = bytearray(), Least(self._limits)
        while len(data) < n_bytes:
            message = self.receive(Kind.BLOB, Kind.ALIVE)
            with self._losing("reading from"):
                least.require(len(message.body) if message.kind is Kind.BLOB else 0)
            if message.kind is Kind.ALIVE:
                continue
            if not message.body or len(message.body) > n_bytes - len(data):
                raise WireError(f"{self.peer} sends another number of bytes than it said")
            data += message.body
        return bytes(data)

    def _fill(self, buffers: Sequence[memoryview], *, may_end: bool = False) -> bool:
        """Fill buffers; return False where nothing comes and it may. The first byte may take as long as idleness may,
        the rest must come at the least rate.
        """
        left, least = list(buffers), None
        quiet_since = time.monotonic()
        with self._losing("reading from"):
            while left:
                self._require_time(quiet_since)
                if least is not None:
                    least.require()
                n_read = self._read_some(left)
                if n_read is None:
                    continue
                if not n_read:
                    if may_end and least is None:
                        return False
                    raise ConnectionLostError(f"{self.peer} closed the connection in the middle of a message")
                advance(left, n_read)
                self._note_received(n_read)
                quiet_since = self._received_at
                least = least or Least(self._limits)
                least.note(n_read)
        return True

    def _read_some(self, left: Sequence[memoryview]) -> int | None:
        """Read what is here; None: nothing was, and one has waited for it."""
        n_left = sum(map(len, left))
        is_long = self._wakes_late and n_left >= _LONG_BYTES
        try:
            if not self._whole:
                return self._sock.recv_into(left[0])
            n_read = self._sock.recvmsg_into(left, 0, socket.MSG_DONTWAIT if is_long else socket.MSG_WAITALL)[0]
        except _NOT_NOW as error:
            if is_long:
                self._wait_for(n_left)
            else:
                self._wait(error)
            return None
        if is_long:
            self._most_at_once = max(self._most_at_once, n_read)
        return n_read

    def _note_received(self, n_bytes: int) -> None:
        self.n_received += n_bytes
        self._received_at = time.monotonic()

    # --- time and end ------------------------------------------------------------------------------------------------

    def _require_time(self, quiet_since: float) -> None:
        """Hold the time against what the next byte may take; TimeoutError: none is left."""
        now = time.monotonic()
        if now >= quiet_since + self._limits.idle_s or (self.deadline is not None and now >= self.deadline):
            raise TimeoutError

    def _wait(self, reason: OSError) -> None:
        """Wait for what a call said that it needs; a plain connection has waited by itself."""
        if isinstance(reason, ssl.SSLWantReadError):
            wait_readable([self])
        elif isinstance(reason, ssl.SSLWantWriteError):
            wait_writable([self])

    def _wait_for(self, n_bytes: int) -> None:
        """Wait until so much is here, or a little while, or else for anything, for a tick: to be woken by each packet
        costs who receives, and, on one machine, who sends. The window may not let so much come; it grows.
        """
        n_bytes = min(n_bytes, max(2 * self._most_at_once, _LONG_BYTES // 2))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, n_bytes)
        is_here = wait_readable([self], _GATHER_S)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        if not is_here:
            wait_readable([self])

    @contextlib.contextmanager
    def _losing(self, doing: str) -> Any:
        try:
            yield
        except TimeoutError:
            raise ConnectionLostError(f"{doing} {self.peer} took too long", "see how the network does") from None
        except (OSError, ValueError) as error:  # ValueError: TLS on a connection that was closed
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            raise ConnectionLostError(f"{doing} {self.peer} failed: {reason}") from error

    def carry_data(self) -> None:
        """Let the other side take its time to read: it may be throttled, and who writes minds all connections at once.

        The kernel would end one connection whose window is closed for long.
        """
        self.deadline = None
        if self._sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

    def abort(self) -> None:
        """End both directions now, from any thread: whoever waits for this connection stops waiting."""
        abort(self._sock)

    def close(self) -> None:
        """Give the connection up."""
        self.abort()
        with contextlib.suppress(OSError):
            self._sock.close()

    def part(self) -> None:
        """Say nothing more, and close when the other side has: what it still sends would destroy our last word."""
        part(self._sock)


class Ending:
    """Ends what one side waits for, from any thread: connections that there are, and those that are begun later."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self._lock = threading.Lock()
        self._socks: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def watch(self, sock: socket.socket) -> None:
        """End a connection too, when it comes to that; one that is being made as well."""
        with self._lock:
            self._socks.add(sock)
        if self.is_over.is_set():
            abort(sock)

    def end(self) -> None:
        """Do it: whoever waits is told that the connection is gone."""
        self.is_over.set()
        with self._lock:
            socks = list(self._socks)
        for sock in socks:
            abort(sock)


def cut(buffers: Sequence[memoryview], n_bytes: int) -> list[memoryview]:
    """Return the first bytes of buffers, as buffers; all, where they have fewer."""
    found: list[memoryview] = []
    for buffer in buffers:
        if n_bytes <= 0:
            break
        found.append(buffer[:n_bytes])
        n_bytes -= len(buffer)
    return found


def wait_readable(channels: Sequence[Channel], most_s: float = _TICK_S) -> bool:
    """Wait until one of some connections may have something to read, or for a tick: False where that was all."""
    return _poll(channels, select.POLLIN, most_s)


def wait_writable(channels: Sequence[Channel], most_s: float = _TICK_S) -> None:
    """Wait until one of some connections may have room; not longer than a tick."""
    _poll(channels, select.POLLOUT, most_s)


def _poll(channels: Sequence[Channel], events: int, most_s: float) -> bool:
    poll = select.poll()
    for channel in channels:
        if (fd := channel.fileno()) < 0:
            return True  # closed meanwhile: whoever uses it is told
        poll.register(fd, events)
    return bool(poll.poll(max(min(most_s, _TICK_S), 0.0) * 1000))


def _wait_in_ticks(sock: socket.socket, tick_s: float) -> None:
    """Have a socket wait no longer than that in one call, at no cost a call.

    A plain one blocks, and the kernel minds the time: a message is then taken in one call. TLS would try for ever: it
    does not wait at all, and says what it would wait for.
    """
    if isinstance(sock, ssl.SSLSocket):
        sock.setblocking(False)
        return
    seconds, fraction = divmod(tick_s, 1.0)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(seconds), max(int(fraction * 1e6), 1)))
    sock.settimeout(None)


def abort(sock: socket.socket) -> None:
    """End a connection in both directions, from any thread."""
    with contextlib.suppress(OSError):
        # the plain call: that of ssl would have another thread go on without encryption
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def part(sock: socket.socket) -> None:
    """Close a connection so that what was written last arrives, although the other side may still be writing."""
    end, scratch, n_read = time.monotonic() + _PART_S, bytearray(16 << 10), 0
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while n_read < _PART_BYTES and (left_s := end - time.monotonic()) > 0:
            sock.settimeout(left_s)
            n = socket.socket.recv_into(sock, scratch)  # what TLS would make of it does not matter any more
            if not n:
                break
            n_read += n
    sock.close()


def tune(sock: socket.socket, limits: Limits) -> None:
    """Have the kernel notice when the other side is gone, and send small messages at once."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every_s = max(int(limits.idle_s / 4), 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(int(limits.idle_s * 1000), 1))
