"""Errors of paths: each is a BlockplaneError and the OSError that the same mistake raises on the host."""

from __future__ import annotations

import errno
from typing import ClassVar, Final

from blockplane.model import BlockplaneError, VolumeDamagedError

#: Why a copy of a tree has no such path.
REMOVED: Final = "removed from the volume while the tree was copied"


class PathError(BlockplaneError, OSError):
    """Something is wrong with a path or with what lies there.

    Parameters
    ----------
    path : the path as the person named it; ``filename`` of an OSError.
    message : instead of the path and the class's text.

    Notes
    -----
    A class names its ``kind``, its ``code`` (an errno) and its ``text`` beside its bases.
    """

    kind = "path"
    code: ClassVar[int] = errno.EIO
    text: ClassVar[str] = "cannot be used"

    def __init_subclass__(cls, *, kind: str, code: int, text: str) -> None:
        cls.kind, cls.code, cls.text = kind, code, text

    def __init__(self, path: str, message: str = "", hint: str = "") -> None:
        text = message or f"{path}: {self.text}"
        BlockplaneError.__init__(self, text, hint)
        OSError.__init__(self, self.code, text, path)

    def __str__(self) -> str:
        return self.message


class NotFoundError(
    PathError, FileNotFoundError, kind="not-found", code=errno.ENOENT, text="no such file or directory"
):
    """Nothing has that name."""


class ExistsError(PathError, FileExistsError, kind="exists", code=errno.EEXIST, text="exists already"):
    """The name is taken."""


class NotADirectoryPathError(
    PathError, NotADirectoryError, kind="not-a-directory", code=errno.ENOTDIR, text="not a directory"
):
    """A directory was asked for and something else is there."""


class IsADirectoryPathError(
    PathError, IsADirectoryError, kind="is-a-directory", code=errno.EISDIR, text="is a directory"
):
    """A directory is there and something else was asked for."""


class NotEmptyError(PathError, kind="not-empty", code=errno.ENOTEMPTY, text="directory not empty"):
    """A directory to remove or replace has entries."""


class BadNameError(PathError, ValueError, kind="bad-name", code=errno.EINVAL, text="not a valid name"):
    """A name is empty, or holds a slash or NUL, or is `.` or `..` where a new name is made."""


class NameTooLongError(PathError, kind="name-too-long", code=errno.ENAMETOOLONG, text="name too long"):
    """A name has more than 255 bytes, a symbolic link's target more than 4,095."""


class SymlinkLoopError(PathError, kind="symlink-loop", code=errno.ELOOP, text="too many symbolic links"):
    """More symbolic links on the way than a path may cross."""


class NotPermittedError(PathError, PermissionError, kind="not-permitted", code=errno.EPERM, text="not permitted"):
    """The object's kind does not allow it, such as a hard link to a directory."""


class ReadOnlyPathError(PathError, kind="read-only", code=errno.EROFS, text="read-only file system"):
    """A snapshot or a stream cannot be changed."""


class InvalidRequestError(PathError, ValueError, kind="invalid", code=errno.EINVAL, text="invalid request"):
    """The call does not fit the object: readlink of a file, a directory moved into itself, an impossible attribute."""


class NoAttributeError(PathError, kind="no-attribute", code=errno.ENODATA, text="no such attribute"):
    """The object has no extended attribute of that name."""


class AttributeExistsError(
    PathError, FileExistsError, kind="attribute-exists", code=errno.EEXIST, text="attribute exists already"
):
    """The attribute is there already and was to be created."""


class TooLargeError(PathError, kind="too-large", code=errno.EFBIG, text="too large"):
    """Past a limit of the format: file size, attribute size, links of one file, entries of one hash."""


class StaleHandleError(PathError, kind="stale", code=errno.ESTALE, text="the open file is gone; open it again"):
    """The open file is gone: the volume was rolled back or received into since."""


class FileSystemDamagedError(VolumeDamagedError):
    """An inode, a directory or an attribute contradicts the format."""

    kind = "damaged"


def damaged(what: str) -> FileSystemDamagedError:
    """Return the error for metadata that cannot be as it is."""
    return FileSystemDamagedError(what, "run `blockplane check`")
