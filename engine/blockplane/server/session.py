"""One verb of another process, run here: its descriptors, directory and rights to create, and how it is ended early."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from blockplane.model.errors import RefusedError, UsageError
from blockplane.volume.pins import reading_for

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_CLONE_FS: Final = 0x200
#: A pipe that can be polled takes so much without waiting.
_PIPE_BYTES: Final = 4096
_PLAIN_BYTES: Final = 1 << 20

_current: ContextVar[Session | None] = ContextVar("session", default=None)


def current() -> Session | None:
    """Return the session that the running thread works for; None: it works for its own process."""
    return _current.get()


class CancelledError(KeyboardInterrupt):
    """The client was interrupted, or is gone."""


class Session:
    """A client's verb.

    Parameters
    ----------
    fds : the client's directory, standard input, output and error; owned once it is made.
    umask, environment, encoding : the client's, as far as they matter.
    """

    def __init__(
        self,
        arguments: list[str],
        pid: int,
        fds: list[int],
        umask: int = 0o022,
        environment: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
    ) -> None:
        self.arguments, self.pid, self.umask = arguments, pid, umask
        self.environment = dict(environment or {})
        self._directory_fd = fds[0]
        self._cancel_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._is_cancelled = threading.Event()
        self._ends: list[Callable[[], None]] = []
        files: list[ClientFile] = []
        try:
            for fd in fds[1:]:
                files.append(ClientFile(fd, self._cancel_fd, writes=bool(files)))
        except BaseException:  # no descriptors left, say
            for file in files:
                file.disown()
            os.close(self._cancel_fd)
            raise
        self.input, self.output, self.error = files
        text: dict[str, Any] = {"encoding": encoding, "errors": "backslashreplace"}
        self.stdin = io.TextIOWrapper(io.BufferedReader(self.input), encoding=encoding, errors="surrogateescape")
        self.stdout = io.TextIOWrapper(io.BufferedWriter(self.output), line_buffering=self.output.isatty(), **text)
        self.stderr = io.TextIOWrapper(io.BufferedWriter(self.error), line_buffering=True, **text)

    @classmethod
    def decode(cls, message: Mapping[str, Any], pid: int, fds: list[int]) -> Session:
        """Return what a client asks for.

        Raises
        ------
        UsageError: the message does not say what it must.
        """
        arguments, umask = message.get("arguments"), message.get("umask")
        environment, encoding = message.get("environment"), message.get("encoding")
        if not (
            isinstance(arguments, list)
            and all(isinstance(word, str) for word in arguments)
            and isinstance(umask, int)
            and 0 <= umask <= 0o777
            and isinstance(environment, dict)
            and all(isinstance(value, str) for value in environment.values())
            and isinstance(encoding, str)
            and _is_encoding(encoding)
        ):
            raise UsageError("the request over the control socket is not one")
        return cls(arguments, pid, fds, umask, environment, encoding)

    def cancel(self) -> None:
        """End the verb at its next step: at once where it waits for its client's descriptors, or for what `ending` has.

        From any thread.
        """
        self._is_cancelled.set()
        os.eventfd_write(self._cancel_fd, 1)
        for end in list(self._ends):
            end()

    @contextlib.contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Have `cancel` call something too, for the length of a `with`; at once where it was called before."""
        self._ends.append(end)
        try:
            if self.is_cancelled:
                end()
            yield
        finally:
            self._ends.remove(end)

    @property
    def is_cancelled(self) -> bool:
        """Whether it is to end early."""
        return self._is_cancelled.is_set()

    def require_alive(self) -> None:
        """Raise CancelledError once the session was cancelled."""
        if self._is_cancelled.is_set():
            raise CancelledError

    @contextlib.contextmanager
    def entered(self, verb: str) -> Iterator[None]:
        """Make the running thread the client's: its directory, its umask, its name on pins.

        Raises
        ------
        RefusedError: threads cannot have directories of their own here, and the client's is another one.
        """
        self._take_directory()
        session, reading = _current.set(self), reading_for.set((verb, self.pid))
        try:
            yield
        finally:
            reading_for.reset(reading)
            _current.reset(session)

    def _take_directory(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_FS) == 0:
            os.fchdir(self._directory_fd)
            os.umask(self.umask)
            return
        here, there = os.stat("."), os.fstat(self._directory_fd)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise RefusedError(
                "the process that has the volume may not work in another directory than its own here",
                f"run it in {os.getcwd()}",
            )

    def close(self) -> None:
        """Write what is buffered where that is possible, and give the descriptors back."""
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):
                stream.close()
        for file in (self.input, self.output, self.error):
            with contextlib.suppress(OSError, ValueError):
                file.close()
        os.close(self._directory_fd)
        os.close(self._cancel_fd)


def _is_encoding(name: str) -> bool:
    try:
        return bool("".encode(name) == b"") and len(name) < 64
    except (LookupError, ValueError):
        return False


class ClientFile(io.RawIOBase):
    """A descriptor of a client: waiting for it ends when the session is cancelled.

    Notes
    -----
    What it refers to is shared with the client and others, and so its flags are left alone. Owned once it is made.
    """

    #: of one that is half made, which closes nothing
    _fd = _out_fd = -1
    _socket: socket.socket | None = None

    def __init__(self, fd: int, cancel_fd: int, *, writes: bool) -> None:
        super().__init__()
        self._cancel_fd = cancel_fd
        self.name = f"file descriptor {fd}"
        mode = os.fstat(fd).st_mode
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(mode) else None
        self._piece_bytes = _PLAIN_BYTES if stat.S_ISREG(mode) else _PIPE_BYTES
        self._out_fd = self._own_pipe(fd) if writes and stat.S_ISFIFO(mode) else -1
        self._fd = fd

    @staticmethod
    def _own_pipe(fd: int) -> int:
        """Return a descriptor of our own for writing to a pipe, which does not wait; -1: there can be none."""
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return -1

    def readable(self) -> bool:
        """Always: reading what is open for writing alone is the kernel's to refuse."""
        return True

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor, as long as the session lasts."""
        return self._fd

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._fd)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer with what there is; 0 at the end."""
        self._wait(select.POLLIN)
        return os.readv(self._fd, [buffer])

    def write(self, data: ReadableBuffer, /) -> int:
        """Write what can be written; at least one byte."""
        view = memoryview(data).cast("B")
        while True:
            self._wait(select.POLLOUT)
            with contextlib.suppress(BlockingIOError):
                return self._write_some(view)

    def _write_some(self, view: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(view, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._out_fd >= 0:
            return os.write(self._out_fd, view)
        return os.write(self._fd, view[: self._piece_bytes])

    def _wait(self, events: int) -> None:
        """Wait until the descriptor is ready; CancelledError: the session ended first."""
        poll = select.poll()
        poll.register(self._cancel_fd, select.POLLIN)
        poll.register(self._fd, events)
        ready = [fd for fd, _ in poll.poll()]
        if self._cancel_fd in ready:
            raise CancelledError

    def disown(self) -> None:
        """Close without the descriptor, which stays its giver's."""
        self._fd = -1
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        if not self.closed:
            super().close()
            for fd in (self._fd, self._out_fd):
                if fd >= 0:
                    with contextlib.suppress(OSError):
                        os.close(fd)
            if self._socket is not None:
                self._socket.close()
