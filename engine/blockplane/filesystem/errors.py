"""Errors of paths: each is a BlockplaneError and the OSError that the same mistake raises on the host."""

from __future__ import annotations

import errno
from typing import ClassVar

from blockplane.model import BlockplaneError, VolumeDamagedError


class PathError(BlockplaneError, OSError):
    """Something is wrong with a path or with what lies there.

    Parameters
    ----------
    path : the path as the person named it; ``filename`` of an OSError.
    """

    kind = "path"
    code: ClassVar[int] = errno.EIO
    text: ClassVar[str] = "cannot be used"

    def __init__(self, path: str, message: str = "", hint: str = "") -> None:
        text = message or f"{path}: {self.text}"
        BlockplaneError.__init__(self, text, hint)
        OSError.__init__(self, self.code, text, path)

    def __str__(self) -> str:
        return self.message


class NotFoundError(PathError, FileNotFoundError):
    """Nothing has that name."""

    kind = "not-found"
    code = errno.ENOENT
    text = "no such file or directory"


class ExistsError(PathError, FileExistsError):
    """The name is taken."""

    kind = "exists"
    code = errno.EEXIST
    text = "exists already"


class NotADirectoryPathError(PathError, NotADirectoryError):
    """A directory was asked for and something else is there."""

    kind = "not-a-directory"
    code = errno.ENOTDIR
    text = "not a directory"


class IsADirectoryPathError(PathError, IsADirectoryError):
    """A directory is there and something else was asked for."""

    kind = "is-a-directory"
    code = errno.EISDIR
    text = "is a directory"


class NotEmptyError(PathError):
    """A directory to remove or replace has entries."""

    kind = "not-empty"
    code = errno.ENOTEMPTY
    text = "directory not empty"


class BadNameError(PathError, ValueError):
    """A name is empty, or holds a slash or NUL, or is `.` or `..` where a new name is made."""

    kind = "bad-name"
    code = errno.EINVAL
    text = "not a valid name"


class NameTooLongError(PathError):
    """A name has more than 255 bytes, a symbolic link's target more than 4,095."""

    kind = "name-too-long"
    code = errno.ENAMETOOLONG
    text = "name too long"


class SymlinkLoopError(PathError):
    """More symbolic links on the way than a path may cross."""

    kind = "symlink-loop"
    code = errno.ELOOP
    text = "too many symbolic links"


class NotPermittedError(PathError, PermissionError):
    """The object's kind does not allow it, such as a hard link to a directory."""

    kind = "not-permitted"
    code = errno.EPERM
    text = "not permitted"


class ReadOnlyPathError(PathError):
    """A snapshot or a stream cannot be changed."""

    kind = "read-only"
    code = errno.EROFS
    text = "read-only file system"


class InvalidRequestError(PathError, ValueError):
    """The call does not fit the object: readlink of a file, a directory moved into itself, an impossible attribute."""

    kind = "invalid"
    code = errno.EINVAL
    text = "invalid request"


class NoAttributeError(PathError):
    """The object has no extended attribute of that name."""

    kind = "no-attribute"
    code = errno.ENODATA
    text = "no such attribute"


class AttributeExistsError(PathError, FileExistsError):
    """The attribute is there already and was to be created."""

    kind = "attribute-exists"
    code = errno.EEXIST
    text = "attribute exists already"


class TooLargeError(PathError):
    """Past a limit of the format: file size, attribute size, links of one file, entries of one hash."""

    kind = "too-large"
    code = errno.EFBIG
    text = "too large"


class StaleHandleError(PathError):
    """The open file is gone: the volume was rolled back or received into since."""

    kind = "stale"
    code = errno.ESTALE
    text = "the open file is gone; open it again"


class FileSystemDamagedError(VolumeDamagedError):
    """An inode, a directory or an attribute contradicts the format."""

    kind = "damaged"


def damaged(what: str) -> FileSystemDamagedError:
    """Return the error for metadata that cannot be as it is."""
    return FileSystemDamagedError(what, "run `blockplane check`")
