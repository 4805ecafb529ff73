"""Where a stream goes: a path, a file descriptor, a file object or a socket, behind one `write all of these`."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Protocol

from blockplane.disks import write_buffers
from blockplane.disks.label import refuse_disk
from blockplane.model.errors import StreamError, UsageError
from blockplane.stream.fdsink import Buffer, FdSink, write_error
from blockplane.stream.filenames import WHOLE, FileForm, FileNames
from blockplane.stream.filesink import FileSink
from blockplane.stream.folder import Folder, HostFolder, WritablePlace
from blockplane.stream.input import advance

SinkLike = str | os.PathLike[str] | int | IO[bytes] | socket.socket | WritablePlace
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


def open_sink(target: SinkLike, goes_on: bool = False, form: FileForm = WHOLE) -> Sink:
    """Return the sink for whatever the caller has.

    Parameters
    ----------
    target : a path (written beside it and renamed at the end), a file descriptor, a socket, a file object opened
        for writing bytes, or a place. Descriptors, sockets and objects stay open.
    goes_on : of a path, take up what an interrupted stream left beside it.
    form : of a path or place, how the stream lies in files there.

    Raises
    ------
    UsageError : a form for what is no path. RefusedError : a disk of a volume would be overwritten, or a piece of
    another stream replaced.
    """
    file = folder_of(target)
    if file is not None:
        return FileSink(*file, form, goes_on)
    _refuse_form(form)
    if isinstance(target, int):
        return FdSink(target, {1: "standard output"}.get(target, f"file descriptor {target}"))
    if isinstance(target, socket.socket):
        return SocketSink(target)
    if isinstance(target, (str, os.PathLike)):
        return _device(Path(target))
    assert not isinstance(target, WritablePlace)
    return _file_object(target)


def refuse_sink(target: SinkLike, goes_on: bool, form: FileForm, n_bytes: int = 0) -> None:
    """Raise what `open_sink` would because of what is there, and with n_bytes what writing so many bytes would; nothing
    is written.
    """
    file = folder_of(target)
    if file is not None:
        FileNames(*file, form).refuse(goes_on, n_bytes)
        return
    _refuse_form(form)
    if isinstance(target, (str, os.PathLike)):
        _refuse_device(Path(target))


def _refuse_form(form: FileForm) -> None:
    if form != WHOLE:
        raise UsageError("only what is written to a file is split, or gets digests beside it", "name a file with -o")


def folder_of(target: object) -> tuple[Folder, str] | None:
    """Return the folder and the name of a file to be written; None for what is no file."""
    if isinstance(target, WritablePlace):
        return target.folder, target.file_name
    if isinstance(target, (str, os.PathLike)) and not is_special(target):
        return HostFolder(Path(target).parent), Path(target).name
    return None


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether a path is there and no regular file: a device, a pipe, a directory."""
    return os.path.exists(path) and not os.path.isfile(path)


def _refuse_device(path: Path) -> None:
    if path.is_dir():
        raise StreamError(f"{path} is a directory", "name the stream file to write")
    refuse_disk(path)


def _device(path: Path) -> Sink:
    _refuse_device(path)
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


class SocketSink:
    """A stream socket, blocking or with a timeout."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.name = "the network connection"

    @property
    def fd(self) -> int | None:
        """What the kernel writes to; None where the socket itself must be asked: it has a timeout, or encrypts."""
        is_plain = type(self._socket) is socket.socket and self._socket.gettimeout() is None
        return self._socket.fileno() if is_plain else None

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        try:
            if (fd := self.fd) is not None:
                write_buffers(fd, buffers)
            else:
                self._write_all([memoryview(b).cast("B") for b in buffers if len(b)])
        except OSError as error:
            raise write_error(self.name, error) from error

    def _write_all(self, left: list[memoryview]) -> None:
        """Write where the socket itself must be asked."""
        if type(self._socket) is not socket.socket:
            for buffer in left:
                self._socket.sendall(buffer)
            return
        while left:
            advance(left, self._socket.sendmsg(left[:_MAX_BUFFERS]))

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
                written: int | None = self._target.write(left)
                if written is None:  # as some files that take everything say it
                    break
                if not 0 < written <= len(left):
                    raise StreamError(f"cannot write {self.name}: it says that it took {written} of {len(left)} bytes")
                left = left[written:]

    def commit(self) -> None:
        """See Sink."""
        flush = getattr(self._target, "flush", None)
        if flush is not None:
            flush()

    def close(self) -> None:
        """See Sink: the object is its owner's."""
