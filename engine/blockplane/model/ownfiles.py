"""Small files of ours where others may write too: no link is followed, no pipe waited for, sizes are bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from blockplane.model.errors import RefusedError

#: A volume's own files are far smaller: thousands of disks, or mirrors.
MAX_BYTES: Final = 16 << 20


def open_own(path: str | os.PathLike[str], flags: int) -> int:
    """Return a descriptor of a regular file, made with mode 0600 where flags have O_CREAT.

    Raises
    ------
    RefusedError : it is a link, a pipe, or anything else. OSError : it cannot be opened.
    """
    _refuse_other(path)
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        _refuse_other(path)
    return fd


def _refuse_other(path: str | os.PathLike[str]) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
        raise RefusedError(
            f"{os.fspath(path)} is {what}, where a file of blockplane's own belongs",
            "look who made it; blockplane makes the file anew once that is removed",
        )


def read_own(path: str | os.PathLike[str], max_bytes: int = MAX_BYTES) -> bytes:
    """Return what a regular file holds.

    Raises
    ------
    ValueError : it is longer. As `open_own` for the rest.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    return data


def replace_own(path: Path, text: str, mode: int | None = None, *, suffix: str = ".new", durable: bool = True) -> None:
    """Write a file so that whoever reads it finds the old one or the new one, whole.

    Parameters
    ----------
    mode : by default as the umask says. suffix : of its name until it is whole. durable : on return.
    """
    temporary = path.with_name(path.name + suffix)
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(temporary, flags, 0o666 if mode is None else mode)
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            if mode is not None:
                os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            if durable:
                os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync(path.parent)


def own_suffix() -> str:
    """Return what marks a file of this process, where several may write one beside each other."""
    return f".{os.getpid()}.new"


def sync(path: Path) -> None:
    """Make the bytes of a file, or which names a directory holds, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
