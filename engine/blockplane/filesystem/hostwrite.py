"""Writing the host's side of a get: attributes as far as this process may set them, and special files."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

from blockplane.filesystem.hostread import Attributes
from blockplane.model.errors import BlockplaneError, StreamError, VolumeDamagedError

# Attributes whose failure cp -a passes over as well: another file system, or not this user's to set.
_OPTIONAL = ("security.", "trusted.", "system.nfs4")
# What the host says of itself, and would of every other path: a copy ends there, and passes over what is said of one.
_OF_THE_HOST = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: What is said where what is to be copied cannot be read, or is not there in the streams at hand.
UNREADABLE: Final = (VolumeDamagedError, StreamError)
Refusal = OSError | VolumeDamagedError | StreamError
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL)


@dataclass(slots=True)
class Metadata:
    """What a host file is to have besides its content."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    attributes: Attributes = field(default_factory=dict)


def apply_metadata(target: int | bytes, metadata: Metadata) -> list[str]:
    """Give a host file (a descriptor, or a path that is not followed) owner, attributes, mode and times.

    Returns
    -------
    What could not be set and was not optional, in words.

    Notes
    -----
    In this order: chown drops capabilities and set-id bits, a read-only mode would refuse user attributes, and all of
    it changes times.
    """
    by_path = isinstance(target, bytes)
    is_link = stat.S_ISLNK(metadata.mode)
    mode = metadata.mode & 0o7777
    if not _set_owner(target, metadata, by_path):
        mode &= 0o1777  # as cp does: set-id bits are not given to another owner
    problems = _set_attributes(target, metadata.attributes, by_path)
    if not is_link:
        os.chmod(target, mode)
    times = metadata.atime_ns, metadata.mtime_ns
    if by_path:
        os.utime(target, ns=times, follow_symlinks=False)
    else:
        os.utime(target, ns=times)
    return problems


def _set_owner(target: int | bytes, metadata: Metadata, by_path: bool) -> bool:
    """Set owner and group; as an ordinary user the group where that is allowed. Return whether both are right."""
    uid, gid = metadata.uid, metadata.gid
    euid = os.geteuid()
    if euid == 0:
        return _chown(target, uid, gid, by_path)
    status = os.stat(target, follow_symlinks=False) if by_path else os.fstat(target)  # type: ignore[arg-type]
    if status.st_gid != gid and _chown(target, -1, gid, by_path):
        return uid == euid
    return (uid, gid) == (status.st_uid, status.st_gid)


def _chown(target: int | bytes, uid: int, gid: int, by_path: bool) -> bool:
    """Set owner and group; return whether that was allowed: EINVAL is an owner that a user namespace does not know."""
    try:
        os.chown(target, uid, gid, **({"follow_symlinks": False} if by_path else {}))
    except OSError as error:
        if error.errno in _REFUSED:
            return False
        raise
    return True


def _set_attributes(target: int | bytes, attributes: Attributes, by_path: bool) -> list[str]:
    problems = []
    for name, value in attributes.items():
        try:
            os.setxattr(target, name, value, follow_symlinks=not by_path)
        except OSError as error:
            text = os.fsdecode(name)
            if error.errno not in _REFUSED or not text.startswith(_OPTIONAL):
                problems.append(f"attribute {text}: {error.strerror}")
    return problems


def make_special(path: bytes, mode: int, device: int) -> None:
    """Make a fifo, socket or device; OSError: not allowed."""
    os.mknod(path, stat.S_IFMT(mode) | 0o600, device)


def ends_copy(error: Refusal) -> bool:
    """Whether the host takes nothing any more, and not only this path: it is full, or fails."""
    return isinstance(error, OSError) and error.errno in _OF_THE_HOST


def refusal_of(error: Refusal) -> str:
    """Return why a path could not be copied, for people."""
    return error.message if isinstance(error, BlockplaneError) else error.strerror or str(error)


def clear_way(path: bytes) -> None:
    """Remove what is no directory and lies where a copy is to go."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
