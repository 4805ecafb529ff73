"""Where a stream comes from: a path, a descriptor, a socket or a file object, behind one `fill these buffers`."""

from __future__ import annotations

import contextlib
import io
import os
import select
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Final, Protocol

from blockplane.model.errors import (
    ConnectionLostError,
    StreamDamagedError,
    StreamError,
    StreamOrderError,
    StreamTruncatedError,
)
from blockplane.stream.blame import blamed
from blockplane.stream.pieces import hint_for, pieces_of
from blockplane.stream.stored import SplitFile, Stored, StreamPlace, open_path, open_stored

InputLike = str | os.PathLike[str] | int | IO[bytes] | socket.socket | StreamPlace
#: readv takes at most IOV_MAX (1,024) buffers.
_MAX_BUFFERS: Final = 512


class Input(Protocol):
    """Gives the stream in order."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def is_whole(self) -> bool:
        """Whether it is a stream and nothing else: nothing may stand behind the trailer."""
        ...

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """Fill all buffers in order; return the bytes read, fewer only at the end of the input."""
        ...

    def skip(self, n_bytes: int) -> int:
        """Pass over bytes; return how many, fewer only at the end of the input."""
        ...

    def close(self) -> None:
        """Release."""
        ...


def open_input(origin: InputLike) -> Input:
    """Return the input for whatever the caller has.

    Parameters
    ----------
    origin : a path (of a stream that was split: its first piece, or FILE of FILE.000), a file descriptor, a socket, a
        file object opened for reading bytes, or a place. Descriptors, sockets and objects stay open, are read from
        where they stand, and no further than the stream goes.

    Raises
    ------
    StreamError, StreamMissingError : the path cannot be opened.
    """
    if isinstance(origin, int):
        return FdInput(origin, {0: "standard input"}.get(origin, f"file descriptor {origin}"))
    if isinstance(origin, socket.socket):
        return SocketInput(origin)
    if isinstance(origin, (str, os.PathLike)):
        if pieces_of(os.fspath(origin)) is None:
            return FdInput(open_path(origin), os.fspath(origin), named=True)
        return FileInput(open_stored(origin), named=True)
    if isinstance(origin, StreamPlace):
        return FileInput(origin.open_stored(), named=True)
    with contextlib.suppress(AttributeError, OSError, io.UnsupportedOperation):
        # An unread raw or buffered file: what its buffer holds is asked for first, so that no byte is skipped.
        if isinstance(origin, io.FileIO):
            return FdInput(origin.fileno(), str(origin.name))
    return ObjectInput(origin)


class FdInput:
    """A descriptor: one readv per call, straight into the callers' buffers; the GIL is released.

    Parameters
    ----------
    named : it was opened here, by a path: it is closed here too, and a regular file holds one stream alone.
    """

    def __init__(self, fd: int, name: str, named: bool = False) -> None:
        self._fd, self._owned = fd, named
        self.name = name
        self.is_whole = named and stat.S_ISREG(os.fstat(fd).st_mode)
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """See Input."""
        left, total = [b.cast("B") for b in buffers if len(b)], 0
        while left:
            try:
                n_read = os.readv(self._fd, left[:_MAX_BUFFERS])
            except BlockingIOError:
                select.select([self._fd], [], [])  # whoever has the other end made it so
                continue
            except OSError as error:
                raise StreamTruncatedError(f"cannot read {self.name}: {error.strerror}") from error
            if not n_read:
                break
            total += n_read
            advance(left, n_read)
        return total

    def skip(self, n_bytes: int) -> int:
        """See Input: a file or block device is not read."""
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):  # others take a seek too, and do nothing
            return _read_past(self, n_bytes)
        here, end = os.lseek(self._fd, 0, os.SEEK_CUR), os.lseek(self._fd, 0, os.SEEK_END)
        n_bytes = max(min(n_bytes, end - here), 0)
        os.lseek(self._fd, here + n_bytes, os.SEEK_SET)
        return n_bytes

    def close(self) -> None:
        """See Input."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def advance(left: list[memoryview], n_bytes: int) -> None:
    """Drop the first n_bytes of the buffers still to fill, or to write."""
    while left and n_bytes >= len(left[0]):
        n_bytes -= len(left.pop(0))
    if n_bytes:
        left[0] = left[0][n_bytes:]


#: The longest head of a data frame and its table, and what lies before it in an encrypted stream, fit in half of it.
_WINDOW_BYTES: Final = 16 << 10


class FileInput:
    """Stored bytes that others read too: by offset; small pieces come out of a window, what is skipped costs nothing.

    Parameters
    ----------
    named : it was opened here, by a path: it is closed here too, and holds one stream alone.
    """

    def __init__(self, stored: Stored, *, named: bool = False) -> None:
        self._stored, self.name, self.is_whole = stored, stored.name, named
        self._at = 0
        self._window, self._start = b"", 0

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """See Input."""
        return _fill(buffers, self._read_some)

    def _read_some(self, out: memoryview) -> int:
        inside = self._at - self._start
        try:
            if not 0 <= inside < len(self._window):
                if len(out) >= _WINDOW_BYTES:
                    n_read = self._stored.read_into(out, self._at)
                    self._at += n_read
                    return n_read
                window = bytearray(_WINDOW_BYTES)
                n_read = self._stored.read_into(memoryview(window), self._at)
                self._window, self._start, inside = bytes(window[:n_read]), self._at, 0
        except OSError as error:
            raise StreamTruncatedError(f"cannot read {self.name}: {error.strerror}") from error
        part = self._window[inside : inside + len(out)]
        out[: len(part)] = part
        self._at += len(part)
        return len(part)

    def skip(self, n_bytes: int) -> int:
        """See Input."""
        n_bytes = max(min(n_bytes, self._stored.n_bytes - self._at), 0)
        self._at += n_bytes
        return n_bytes

    def blamed(self, error: StreamError) -> StreamError:
        """Return an error that names the piece it is of, where the stream was split."""
        return blamed(error, self._stored, self._at) if isinstance(self._stored, SplitFile) else error

    def close(self) -> None:
        """See Input."""
        if self.is_whole:
            self._stored.close()


@contextlib.contextmanager
def blaming(origin: Input) -> Iterator[None]:
    """Let errors of a stream name the piece they are of, where it was split."""
    try:
        yield
    except StreamError as error:
        found = origin.blamed(error) if isinstance(origin, FileInput) else error
        found.hint = hint_for(origin.name) or found.hint
        if found is error:
            raise
        raise found from error


@contextlib.contextmanager
def arriving_whole(origin: Input) -> Iterator[None]:
    """Have what does not match its checks count as cut off there, where bytes may change on their way.

    Raises
    ------
    ConnectionLostError : in place of StreamDamagedError and StreamOrderError, of such an origin.
    """
    try:
        yield
    except (StreamDamagedError, StreamOrderError) as error:
        if not (isinstance(origin, ObjectInput) and origin.may_change):
            raise
        raise ConnectionLostError(f"what came over {origin.name} was changed on the way: {error.message}") from error


class SocketInput:
    """A stream socket (TLS included), blocking or with a timeout."""

    is_whole = False

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.name = "the network connection"

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """See Input."""
        return _fill(buffers, self._read_some)

    def _read_some(self, out: memoryview) -> int:
        try:
            return self._socket.recv_into(out)
        except OSError as error:
            raise StreamTruncatedError(f"cannot read {self.name}: {error.strerror or error}") from error

    def skip(self, n_bytes: int) -> int:
        """See Input."""
        return _read_past(self, n_bytes)

    def close(self) -> None:
        """See Input: the socket is its owner's."""


class ObjectInput:
    """Any object with ``readinto`` or ``read``; one with ``read_into`` fills several buffers itself, as an Input.

    may_change : whether bytes may have been changed on their way here; the object's, if it says so.
    """

    is_whole = False

    def __init__(self, origin: IO[bytes]) -> None:
        self._origin = origin
        self.name = str(getattr(origin, "name", "the input"))
        self.may_change = bool(getattr(origin, "may_change", False))

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """See Input."""
        read_into: Callable[[Sequence[memoryview]], int] | None = getattr(self._origin, "read_into", None)
        return read_into(buffers) if read_into is not None else _fill(buffers, self._read_some)

    def _read_some(self, out: memoryview) -> int:
        readinto = getattr(self._origin, "readinto", None)
        if readinto is not None:
            return int(readinto(out) or 0)
        data = self._origin.read(len(out))
        out[: len(data)] = data
        return len(data)

    def skip(self, n_bytes: int) -> int:
        """See Input."""
        return _read_past(self, n_bytes)

    def close(self) -> None:
        """See Input: the object is its owner's."""


def _fill(buffers: Sequence[memoryview], read_some: Callable[[memoryview], int]) -> int:
    """Fill buffers in order by reads that bring any number of bytes, 0 at the end; return how many came."""
    total = 0
    for buffer in buffers:
        left = buffer.cast("B")
        while len(left):
            n_read = read_some(left)
            if not n_read:
                return total
            total += n_read
            left = left[n_read:]
    return total


def _read_past(origin: Input, n_bytes: int) -> int:
    """Skip by reading."""
    scratch, done = memoryview(bytearray(min(n_bytes, 1 << 20))), 0
    while done < n_bytes:
        piece = scratch[: n_bytes - done]
        n_read = origin.read_into([piece])
        done += n_read
        if n_read < len(piece):
            break
    return done
