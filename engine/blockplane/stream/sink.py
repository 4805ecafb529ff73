"""Where a stream goes: a path, a file descriptor, a file object or a socket, behind one `write all of these`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
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


def open_sink(target: SinkLike, goes_on: bool = False) -> Sink:
    """Return the sink for whatever the caller has.

    Parameters
    ----------
    target : a path (written beside it and renamed at the end), a file descriptor, a socket, or a file object opened
        for writing bytes. Descriptors, sockets and objects stay open.
    goes_on : of a path, take up what an interrupted stream left beside it.
    """
    if isinstance(target, int):
        return FdSink(target, {1: "standard output"}.get(target, f"file descriptor {target}"))
    if isinstance(target, socket.socket):
        return SocketSink(target)
    if isinstance(target, (str, os.PathLike)):
        path = Path(target)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            return _device(path)
        return FileSink(path, goes_on)
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


PARTIAL: Final = ".partial"
#: Less than this is not kept when a stream is not finished: it holds little beside its planes.
_WORTH_BYTES: Final = 1 << 20


class FileSink(FdSink):
    """A new file: written as NAME.partial beside it, synced and renamed by `commit`.

    Parameters
    ----------
    goes_on : take up the NAME.partial that an interrupted one left, if there is one, as it is.

    Raises
    ------
    StreamError : it cannot be written, or another process writes it.

    Attributes
    ----------
    is_old : whether there was one to take up.
    """

    def __init__(self, path: Path, goes_on: bool = False) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        try:
            fd, self.is_old = self._open(goes_on)
        except BlockingIOError:
            raise StreamError(f"{self._partial} is being written by another process", "wait for its end") from None
        except OSError as error:
            raise StreamError(f"cannot write {path}: {error.strerror}", "name a file in an existing folder") from error
        super().__init__(fd, str(path), owned=True)
        self._start = -1
        self._stays = self.is_old  # as it is, until something is written

    def _open(self, goes_on: bool) -> tuple[int, bool]:
        """Return a locked descriptor, and whether the file was there: another's is never written through."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                fd, is_old = os.open(self._partial, flags), True
            except FileNotFoundError:
                fd, is_old = os.open(self._partial, flags | os.O_CREAT | os.O_EXCL, 0o666), False
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.fstat(fd)
                if is_old and not self._is_still(mine):
                    os.close(fd)
                    continue
                if not is_old or (goes_on and stat.S_ISREG(mine.st_mode) and mine.st_uid == os.geteuid()):
                    return fd, is_old
                os.unlink(self._partial)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def _is_still(self, mine: os.stat_result) -> bool:
        """Whether the name still means the file that was opened: another process may have finished it."""
        try:
            now = os.lstat(self._partial)
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)

    @property
    def fd(self) -> int:
        """The descriptor, for reading what is there."""
        return self._fd

    def go_on_from(self, offset: int) -> None:
        """Have what is written next stand behind offset bytes; the first write cuts off what stood there."""
        self._start = offset

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        self._stays = False
        if self._start >= 0:
            try:
                os.ftruncate(self._fd, self._start)
                os.lseek(self._fd, self._start, os.SEEK_SET)
            except OSError as error:
                raise write_error(self.name, error) from error
            self._start = -1
        super().write_all(buffers)

    def commit(self) -> None:
        """See Sink: durable under its own name on return."""
        try:
            os.fsync(self._fd)
            os.rename(self._partial, self._path)
            _sync_directory(self._path.parent)
            self._stays = True
        except OSError as error:
            raise write_error(self.name, error) from error

    def suspend(self) -> str:
        """Keep what is written, where it is worth that, to be gone on with; return the name it is kept under, or ""."""
        with contextlib.suppress(OSError):
            if not self._stays and os.fstat(self._fd).st_size >= _WORTH_BYTES:
                os.fsync(self._fd)
                self._stays = True
                return str(self._partial)
        return ""

    def close(self) -> None:
        """See Sink."""
        if self._fd >= 0 and not self._stays:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._partial)
        super().close()


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
