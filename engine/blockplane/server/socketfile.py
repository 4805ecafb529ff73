"""The socket in a volume's directory: made, found and removed through a descriptor of the directory.

So no path is too long for it, and no symbolic link is followed: `/proc/self/fd/N/control.sock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from blockplane.model.errors import RefusedError
from blockplane.volume.making import SOCKET_NAME

#: How long to wait for another process that is just making or removing the socket.
_MUTEX_S = 1.0


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[int]:
    """Hold a directory against other processes that make or remove a socket there; yield its descriptor."""
    with _directory(path) as fd:
        deadline = time.monotonic() + _MUTEX_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
        yield fd


def listen(path: Path, backlog: int) -> socket.socket | None:
    """Make the socket of a volume and listen; the caller holds the volume's lock. None: another process answers there.

    Raises
    ------
    RefusedError: something else has its name, or others may write to the directory. OSError: none can be made.
    """
    with alone(path) as directory:
        _refuse_foreign_directory(path, directory)
        if not _clear(path, directory):
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(sock.fileno(), 0o600)  # before the name is there: nobody else can ever connect
            sock.bind(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock


def _refuse_foreign_directory(path: Path, directory: int) -> None:
    status = os.fstat(directory)
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise RefusedError(
            f"anybody may write to {path}: no control socket is made there", "take the right away: chmod o-w"
        )


def _clear(path: Path, directory: int) -> bool:
    """Remove what a process that died has left; return False where somebody answers."""
    try:
        status = os.stat(SOCKET_NAME, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return True
    if not stat.S_ISSOCK(status.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no socket"
        raise RefusedError(f"{path / SOCKET_NAME} is {what}: other processes cannot be answered", "remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(f"/proc/self/fd/{directory}/{SOCKET_NAME}")
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                return False
            os.unlink(SOCKET_NAME, dir_fd=directory)
            return True
    return False


def remove(path: Path, sock: socket.socket) -> None:
    """Take the name away and close; who still waits to be heard is told by the closing."""
    with contextlib.suppress(OSError), alone(path) as directory:
        os.unlink(SOCKET_NAME, dir_fd=directory)
    sock.close()


def connect(path: Path) -> socket.socket | None:
    """Return a connection to who answers for a volume; None: nobody does."""
    with contextlib.suppress(OSError), _directory(path) as directory:
        fd = os.open(SOCKET_NAME, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                return None
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                sock.settimeout(1.0)
                sock.connect(f"/proc/self/fd/{fd}")
            except BaseException:
                sock.close()
                raise
            return sock
        finally:
            os.close(fd)
    return None
