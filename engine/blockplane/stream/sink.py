"""Where a stream goes: a path, a file descriptor, a file object or a socket, behind one `write all of these`."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Protocol

from blockplane.disks import write_buffers
from blockplane.model.errors import BlockplaneError, NoSpaceError, StreamError

SinkLike = str | os.PathLike[str] | int | IO[bytes] | socket.socket
Buffer = bytes | memoryview
#: sendmsg takes at most IOV_MAX (1,024) buffers.
_MAX_BUFFERS: Final = 512


class Sink(Protocol):
    """Takes the stream in order; `commit` makes it durable where that means something, `close` gives up what is not."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """Write all buffers in order; they may change once this returns."""
        ...

    def commit(self) -> None:
        """Finish: everything written stays."""
        ...

    def close(self) -> None:
        """Release; without a commit a new file is removed."""
        ...


def open_sink(target: SinkLike) -> Sink:
    """Return the sink for whatever the caller has.

    Parameters
    ----------
    target : a path (written beside it and renamed at the end), a file descriptor, a socket, or a file object opened
        for writing bytes. Descriptors, sockets and objects stay open.
    """
    if isinstance(target, int):
        return FdSink(target, f"file descriptor {target}")
    if isinstance(target, socket.socket):
        return SocketSink(target)
    if isinstance(target, (str, os.PathLike)):
        path = Path(target)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return _device(path)
        return FileSink(path)
    return _file_object(target)


def _device(path: Path) -> Sink:
    if path.is_dir():
        raise StreamError(f"{path} is a directory", "name the stream file to write")
    try:
        return FdSink(os.open(path, os.O_WRONLY | os.O_CLOEXEC), str(path), owned=True)
    except OSError as error:
        raise StreamError(f"cannot write {path}: {error.strerror}") from error


def _file_object(target: IO[bytes]) -> Sink:
    with contextlib.suppress(AttributeError, OSError, io.UnsupportedOperation):
        fd = target.fileno()
        if not isinstance(target, (io.BufferedWriter, io.FileIO, io.BufferedRandom)):
            return ObjectSink(target)
        target.flush()
        return FdSink(fd, str(getattr(target, "name", "the output")))
    return ObjectSink(target)


class FdSink:
    """A descriptor: the kernel's writev, straight from the callers' buffers."""

    def __init__(self, fd: int, name: str, owned: bool = False) -> None:
        self._fd, self._owned = fd, owned
        self.name = name

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink; the GIL is released while writing."""
        try:
            write_buffers(self._fd, buffers)
        except OSError as error:
            raise write_error(self.name, error) from error

    def commit(self) -> None:
        """See Sink; a regular file is synced."""
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.fsync(self._fd)

    def close(self) -> None:
        """See Sink."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_error(name: str, error: OSError) -> BlockplaneError:
    """Return the error of ours for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"no space left for {name}", "free some and send again")
    if error.errno == errno.EPIPE:
        return StreamError(f"whoever read {name} stopped before the end", "look at its error")
    return StreamError(f"cannot write {name}: {error.strerror or error}")


class FileSink(FdSink):
    """A new file: written as NAME.partial-XXXX beside it, synced and renamed by `commit`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial-{secrets.token_hex(4)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            fd = os.open(self._partial, flags, 0o666)
        except OSError as error:
            raise StreamError(f"cannot write {path}: {error.strerror}", "name a file in an existing folder") from error
        super().__init__(fd, str(path), owned=True)

    def commit(self) -> None:
        """See Sink: durable under its own name on return."""
        try:
            os.fsync(self._fd)
            os.rename(self._partial, self._path)
            _sync_directory(self._path.parent)
        except OSError as error:
            raise write_error(self.name, error) from error

    def close(self) -> None:
        """See Sink."""
        super().close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SocketSink:
    """A stream socket, blocking or with a timeout."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.name = "the network connection"

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        try:
            if type(self._socket) is socket.socket and self._socket.gettimeout() is None:
                write_buffers(self._socket.fileno(), buffers)
            else:
                self._write_all([memoryview(b).cast("B") for b in buffers if len(b)])
        except OSError as error:
            raise write_error(self.name, error) from error

    def _write_all(self, left: list[memoryview]) -> None:
        """Write where the socket itself must be asked: it has a timeout, or encrypts."""
        if type(self._socket) is not socket.socket:
            for buffer in left:
                self._socket.sendall(buffer)
            return
        while left:
            sent = self._socket.sendmsg(left[:_MAX_BUFFERS])
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if sent:
                left[0] = left[0][sent:]

    def commit(self) -> None:
        """See Sink: the peer says what is durable."""

    def close(self) -> None:
        """See Sink: the socket is its owner's."""


class ObjectSink:
    """Any object with ``write``."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.name = str(getattr(target, "name", "the output"))

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        for buffer in buffers:
            left = memoryview(buffer).cast("B")
            while len(left):
                written = self._target.write(left)
                left = left[written:]

    def commit(self) -> None:
        """See Sink."""
        flush = getattr(self._target, "flush", None)
        if flush is not None:
            flush()

    def close(self) -> None:
        """See Sink: the object is its owner's."""
