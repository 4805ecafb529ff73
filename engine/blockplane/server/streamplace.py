"""Streams in files of a volume: what `stream` asks of a folder and of stored bytes, answered by a file system."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from blockplane.filesystem import FileSystem
from blockplane.filesystem.errors import NotFoundError, PathError
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import NoSpaceError, StreamError, StreamMissingError
from blockplane.stream.folder import PARTIAL, PRIVATE, mode_in_place_of
from blockplane.stream.pieces import piece_name
from blockplane.stream.stored import SplitFile, Stored, new_key, read_bytes
from blockplane.volume import Volume

if TYPE_CHECKING:
    from blockplane.filesystem.file import File
    from blockplane.filesystem.stat_result import StatResult
    from blockplane.stream.fdsink import Buffer
    from blockplane.stream.folder import Folder, Growing

#: The mode of what everybody may read: no umask of a caller's is known here.
_PUBLIC: Final = 0o644
#: Files that sends of this process write to: a volume has one process that writes.
_written: Final[set[Hashable]] = set()
_written_lock: Final = threading.Lock()


class VolumePlace:
    """A stream in a file of a volume, a snapshot or a stream: to be read, and in a live volume to be written.

    Parameters
    ----------
    files : the file system. path : of the file; of a stream that is split, FILE of FILE.000. volume : where it is live,
    for writing. name : what a person calls it; by default the path.
    """

    def __init__(self, files: FileSystem, path: str, volume: Volume | None = None, name: str = "") -> None:
        self._files, self._path = files, path
        self.name = name or path
        head, _, self.file_name = path.rpartition("/")
        shown = self.name[: len(self.name) - len(self.file_name)]
        self.folder: Folder = VolumeFolder(files, head or "/", volume, shown)

    def __str__(self) -> str:
        return self.name

    def open_stored(self) -> Stored:
        """See StreamPlace."""
        files, first = self._files, piece_name(self._path, 0)
        if files.lexists(self._path) or not files.lexists(first):
            return _stored(files, self._path, self.name)
        found: list[Stored] = []
        while files.lexists(piece := piece_name(self._path, len(found))):
            found.append(_stored(files, piece, piece_name(self.name, len(found))))
        return SplitFile(found, self.name)


def _stored(files: FileSystem, path: str, name: str) -> Stored:
    try:
        return VolumeBytes(files.open_raw(path, "r"), name)
    except NotFoundError as error:
        raise StreamMissingError(f"{name}: no such stream file", "name a file that `blockplane send` wrote") from error
    except PathError as error:
        raise StreamError(f"cannot read {name}: {error.text}") from error


class VolumeBytes:
    """The bytes of an open file. One thread at a time reads: others wait."""

    def __init__(self, file: File, name: str) -> None:
        self._file, self.name, self.key = file, name, new_key()
        self.n_bytes = file.seek(0, os.SEEK_END)
        #: guards the position
        self._lock = threading.Lock()

    def read_into(self, out: memoryview, offset: int) -> int:
        """See Stored."""
        left, total = out.cast("B"), 0
        with self._lock:
            self._file.seek(offset)
            while len(left) and (n_read := self._file.readinto(left)):
                total += n_read
                left = left[n_read:]
        return total

    def read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """See Stored."""
        return read_bytes(self, n_bytes, offset)

    def read_segments(self, offsets: Numbers, lengths: Numbers, out: Bytes, positions: Numbers) -> int:
        """See Stored."""
        view = out.data
        for offset, length, at in zip(offsets.tolist(), lengths.tolist(), positions.tolist(), strict=True):
            if self.read_into(view[at : at + length], offset) < length:
                raise EOFError
        return len(offsets)

    def read_blocks(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        """See Stored: blocks that lie together are read together."""
        starts = np.flatnonzero(np.diff(offsets, prepend=offsets[:1] - 1) != BLOCK_BYTES)
        counts = np.diff(np.append(starts, len(offsets)))
        self.read_segments(offsets[starts], counts * BLOCK_BYTES, out, starts * BLOCK_BYTES)
        return len(starts), first_bad_block(out, numbers, checks)

    def advise(self, advice: int) -> None:
        """See Stored: nobody to tell."""

    def close(self) -> None:
        """See Stored."""
        self._file.close()


class VolumeFolder:
    """A directory of a volume, as `stream.folder.Folder`. What a commit makes durable is all that was done before."""

    def __init__(self, files: FileSystem, path: str, volume: Volume | None, shown: str) -> None:
        self._files, self._path, self._volume, self._shown = files, path, volume, shown
        #: by name, the files that were begun here: others of these names are not given names, nor removed
        self._begun: dict[str, Hashable] = {}

    def _at(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}"

    def shown(self, name: str) -> str:
        """See Folder."""
        return self._shown + name

    def names(self) -> Sequence[str]:
        """See Folder."""
        with self._reaching():
            return list(self._files.listdir(self._path))

    def has_file(self, name: str) -> bool:
        """See Folder."""
        return self._files.is_file(self._at(name))

    def key(self, name: str) -> Hashable:
        """See Folder: the directory that the path leads to, and the name in it."""
        with self._reaching():
            return id(self._files.store), _identity(self._files.stat(self._path)), name

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except PathError as error:
            raise StreamError(
                f"cannot write into {self._shown}: {error.text}", "name a file in an existing directory"
            ) from error

    def refuse_volumes(self, names: Sequence[str]) -> None:
        """See Folder: no disk of a volume that could be opened is in another one."""

    def require_room(self, name: str, n_bytes: int) -> None:
        """See Folder: nothing is reserved in a volume; what is free is compared."""
        wanted, free = -(-n_bytes // BLOCK_BYTES), self._volume.available_blocks if self._volume is not None else 0
        if wanted > free:
            raise NoSpaceError(
                f"no space left for {self.shown(name)}: {wanted} blocks are wanted, and {free} free",
                "free some and send again",
            )

    def begin(self, name: str, goes_on: bool, is_public: bool = False) -> Growing:
        """See Folder."""
        if self._volume is None:
            raise StreamError(f"{self.shown(name)} cannot be written", "name the live file system: VOL:/PATH")
        if not name:
            raise StreamError(f"{self.shown(name)} is no file", "name one: VOL:/PATH")
        key = self.key(name + PARTIAL)
        mode = _PUBLIC if is_public else self._mode_of(name)
        file = VolumeFile(self._files, self._volume, self._at(name), self.shown(name), key, mode, goes_on)
        self._begun[name + PARTIAL] = file.identity
        return file

    def _mode_of(self, name: str) -> int:
        """Return the mode of what replaces whatever has a name."""
        try:
            status = self._files.stat(self._at(name))
        except PathError:
            return PRIVATE
        return mode_in_place_of(status.st_mode, status.st_uid)

    def stored(self, names: Sequence[str]) -> Stored:
        """See Folder."""
        found = [_stored(self._files, self._at(name), self.shown(name)) for name in names]
        return found[0] if len(found) == 1 else SplitFile(found, self.shown(names[0]))

    def rename(self, old: str, new: str) -> None:
        """See Folder; StreamError: it is not the file that was begun here."""
        with self._files.store.lock:
            if not self._is_still(old):
                raise StreamError(f"{self.shown(old)} was replaced while it was written", "send again")
            self._files.rename(self._at(old), self._at(new))
            self._begun.pop(old, None)

    def remove(self, name: str) -> None:
        """See Folder; another file than the one that was begun here stays."""
        with self._files.store.lock:
            if self._files.lexists(self._at(name)) and self._is_still(name):
                self._files.unlink(self._at(name))
            self._begun.pop(name, None)

    def _is_still(self, name: str) -> bool:
        """Whether a name does not mean another file than the one that was begun under it."""
        begun = self._begun.get(name)
        return begun is None or begun == _identity(self._files.lstat(self._at(name)))

    def sync(self) -> None:
        """See Folder."""
        if self._volume is not None:
            self._volume.sync()


def _identity(status: StatResult) -> Hashable:
    """Return what tells a file or directory from every other of its volume, past ones too."""
    return status.st_ino, status.generation


class VolumeFile:
    """A file of a volume on its way, as `stream.folder.Growing`.

    Parameters
    ----------
    key : what one file of that name is known by, however its path is spelled: one send at a time writes it. mode : of
    one that is made; one that is gone on with keeps its own.

    Attributes
    ----------
    identity : of the file that is written.
    """

    def __init__(
        self, files: FileSystem, volume: Volume, path: str, name: str, key: Hashable, mode: int, goes_on: bool
    ) -> None:
        self._files, self._volume, self._path = files, volume, path + PARTIAL
        self.name, self.partial_name = name, name + PARTIAL
        self._key = key
        with _written_lock:
            if self._key in _written:
                raise StreamError(f"{self.partial_name} is being written by another send", "wait for its end")
            _written.add(self._key)
        try:
            self.is_old = goes_on and files.is_file(self._path) and not files.is_symlink(self._path)
            if not self.is_old and files.lexists(self._path):
                files.unlink(self._path)
            self._file = files.open_raw(self._path, "r+" if self.is_old else "x+", mode)
            self.identity = _identity(files.lstat(self._path))
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        with _written_lock:
            _written.discard(self._key)

    @property
    def n_bytes(self) -> int:
        """See Growing."""
        return self._files.lstat(self._path).st_size

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Growing."""
        for buffer in buffers:
            self._file.write(buffer)

    def allocate(self, n_bytes: int) -> None:
        """See Growing: nothing is reserved in a volume; see `VolumeFolder.require_room`."""

    def cut(self, n_bytes: int) -> None:
        """See Growing."""
        self._file.truncate(n_bytes)
        self._file.seek(n_bytes)

    def sync(self) -> None:
        """See Growing."""
        self._volume.sync()

    def close(self) -> None:
        """See Growing."""
        self._file.close()
        self._give_back()
