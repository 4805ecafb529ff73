"""Where files of streams are made: a folder of the host, or of another kind of storage."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from blockplane.disks.label import refuse_disk
from blockplane.model.errors import RefusedError, StreamError
from blockplane.stream.fdsink import Buffer, FdSink, write_error
from blockplane.stream.stored import Stored, split_file
from blockplane.volume.config import CONFIG_NAME
from blockplane.volume.making import OWN_NAMES

#: What the name of a file ends with until it is whole.
PARTIAL: Final = ".partial"
#: The mode of a stream that replaces none, as of the disks of volumes: it may hold all of one.
PRIVATE: Final = 0o600


class Growing(Protocol):
    """A file that is being written, as NAME.partial.

    Attributes
    ----------
    name : what a person calls it, when it is whole. partial_name : until then. is_old : whether an interrupted send
    left it.
    """

    name: str
    partial_name: str
    is_old: bool

    @property
    def n_bytes(self) -> int:
        """How long it is now."""
        ...

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """Write all buffers behind what was written."""
        ...

    def allocate(self, n_bytes: int) -> None:
        """Make room for so many bytes from the start; NoSpaceError: there is none, nothing was written."""
        ...

    def cut(self, n_bytes: int) -> None:
        """Make it so long; what is written next stands behind that."""
        ...

    def sync(self) -> None:
        """Make what is written durable."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class Folder(Protocol):
    """What a stream's files need of the folder that they are made in; names are of files in it."""

    def shown(self, name: str) -> str:
        """Return what a person calls a file."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of what is there."""
        ...

    def has_file(self, name: str) -> bool:
        """Whether a regular file, or a link to one, has a name."""
        ...

    def key(self, name: str) -> Hashable:
        """Return what a file is known by, however the path of the folder is spelled; it need not be there."""
        ...

    def refuse_volumes(self, names: Sequence[str]) -> None:
        """Raise RefusedError where one of these files is a volume's: it must not be replaced, whatever it is called."""
        ...

    def require_room(self, name: str, n_bytes: int) -> None:
        """Raise NoSpaceError where so many more bytes of a stream have no room, if that shows before room is made."""
        ...

    def begin(self, name: str, goes_on: bool, is_public: bool = False) -> Growing:
        """Open NAME.partial, with `goes_on` the one that is there, if it is; never another process's.

        It can be read by its owner alone, or by whom the file could that it replaces; is_public : by everybody.
        """
        ...

    def stored(self, names: Sequence[str]) -> Stored:
        """Return the bytes of files that are there, one after the other."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what has that."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file; one that is not there does no harm."""
        ...

    def sync(self) -> None:
        """Make names durable."""
        ...


@runtime_checkable
class WritablePlace(Protocol):
    """A file to be written in a folder that is not the host's."""

    folder: Folder
    file_name: str


class HostFolder:
    """A folder of the host."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def shown(self, name: str) -> str:
        """See Folder."""
        return str(self._path / name)

    def names(self) -> Sequence[str]:
        """See Folder."""
        try:
            return os.listdir(self._path)
        except OSError as error:
            raise StreamError(
                f"cannot write into {self._path}: {error.strerror}", "name a file in an existing folder"
            ) from error

    def has_file(self, name: str) -> bool:
        """See Folder."""
        return os.path.isfile(self._path / name)

    def key(self, name: str) -> Hashable:
        """See Folder."""
        return os.path.realpath(self._path / name)

    def refuse_volumes(self, names: Sequence[str]) -> None:
        """See Folder."""
        is_volume = (self._path / CONFIG_NAME).exists()
        for name in names:
            refuse_disk(self._path / name)
            if is_volume and name in OWN_NAMES:
                raise RefusedError(
                    f"{self.shown(name)} belongs to the volume {self._path}: it would be replaced",
                    "name a file outside of volumes",
                )

    def require_room(self, name: str, n_bytes: int) -> None:
        """See Folder: here it shows when room is made."""

    def begin(self, name: str, goes_on: bool, is_public: bool = False) -> Growing:
        """See Folder."""
        return HostFile(self._path / name, goes_on, is_public)

    def stored(self, names: Sequence[str]) -> Stored:
        """See Folder."""
        return split_file([self.shown(name) for name in names], self.shown(names[0]))

    def rename(self, old: str, new: str) -> None:
        """See Folder."""
        os.rename(self._path / old, self._path / new)

    def remove(self, name: str) -> None:
        """See Folder."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path / name)

    def sync(self) -> None:
        """See Folder."""
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def mode_in_place_of(mode: int, uid: int) -> int:
    """Return the mode of what replaces a file: that one's, if it is one's own."""
    return stat.S_IMODE(mode) & 0o666 if uid == os.geteuid() else PRIVATE


def _mode_of(path: Path) -> int:
    """Return the mode of what replaces whatever is at a path."""
    try:
        status = os.stat(path)
    except OSError:
        return PRIVATE
    return mode_in_place_of(status.st_mode, status.st_uid)


class HostFile(FdSink):
    """A file of the host on its way: locked, so that no other process writes it too.

    Raises
    ------
    StreamError : it cannot be written, or another process writes it.
    """

    def __init__(self, path: Path, goes_on: bool = False, is_public: bool = False) -> None:
        self._partial = path.with_name(path.name + PARTIAL)
        self.partial_name = str(self._partial)
        try:
            fd, self.is_old = self._open(goes_on, is_public)
            if not self.is_old and not is_public:
                os.fchmod(fd, _mode_of(path))
        except BlockingIOError:
            raise StreamError(f"{self._partial} is being written by another process", "wait for its end") from None
        except OSError as error:
            raise StreamError(f"cannot write {path}: {error.strerror}", "name a file in an existing folder") from error
        super().__init__(fd, str(path), owned=True)

    def _open(self, goes_on: bool, is_public: bool) -> tuple[int, bool]:
        """Return a locked descriptor, and whether the file was there: another's is never written through."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        while True:
            try:
                fd, is_old = os.open(self._partial, flags), True
            except FileNotFoundError:
                mode = 0o666 if is_public else PRIVATE
                try:
                    fd, is_old = os.open(self._partial, flags | os.O_CREAT | os.O_EXCL, mode), False
                except FileExistsError:  # another process made it since
                    continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.fstat(fd)
                if not self._is_still(mine):  # one made here too: another process may have put its own there
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
    def n_bytes(self) -> int:
        """See Growing."""
        return os.fstat(self._fd).st_size

    def allocate(self, n_bytes: int) -> None:
        """See Growing."""
        try:
            os.posix_fallocate(self._fd, 0, n_bytes)
        except OSError as error:
            raise write_error(self.name, error) from error

    def cut(self, n_bytes: int) -> None:
        """See Growing."""
        try:
            os.ftruncate(self._fd, n_bytes)
            os.lseek(self._fd, n_bytes, os.SEEK_SET)
        except OSError as error:
            raise write_error(self.name, error) from error

    def sync(self) -> None:
        """See Growing."""
        os.fsync(self._fd)
