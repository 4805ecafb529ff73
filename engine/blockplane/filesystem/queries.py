"""The reading half of the path API: everything that works on a snapshot or a stream as well."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

from blockplane.filesystem.directory import Entry
from blockplane.filesystem.errors import (
    InvalidRequestError,
    IsADirectoryPathError,
    NoAttributeError,
    NotADirectoryPathError,
    PathError,
    SymlinkLoopError,
)
from blockplane.filesystem.inode import Inode
from blockplane.filesystem.names import AnyPath, path_bytes, path_text
from blockplane.filesystem.paths import Resolver
from blockplane.filesystem.stat_result import DirEntry, StatResult, stat_of
from blockplane.filesystem.store import Source, Store
from blockplane.volume.snapshots import shown_by


class Queries:
    """Reading by path.

    Notes
    -----
    Paths are str, bytes or path objects; relative ones start at the root; text is UTF-8 with surrogateescape. Errors
    are `PathError`s that are also the OSError of the same mistake on the host. Reading does not change access times.
    """

    def __init__(self, source: Source) -> None:
        self.store = Store.of(source)
        self.resolver = Resolver(self.store)

    @property
    def is_writable(self) -> bool:
        """Whether it is a volume's live file system."""
        return self.store.is_writable

    @contextmanager
    def steady(self) -> Iterator[Self]:
        """Give what this shows now, for reading at length: a receive that ends meanwhile does not change it.

        Of the live file system of a mirror or replica that is the snapshot it stands at, pinned for the length of the
        `with`. One that is written to changes by its writers all the same.
        """
        volume = self.store.volume
        with ExitStack() as stack:
            with self.store.lock:
                shown = shown_by(volume) if volume is not None else None
                if volume is not None and shown is not None:
                    stack.enter_context(volume.pin(shown.record.id))
            stack.enter_context(self.store.pinned())
            yield type(self)(shown) if shown is not None else self

    @property
    def n_inodes(self) -> int:
        """Files, directories and other objects, the root included."""
        return self.store.inodes.n_inodes

    def _find(self, path: AnyPath, *, follow: bool = True) -> Inode:
        return self.resolver.find(path, follow=follow)

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> StatResult:
        """Return the stat of what lies at a path."""
        with self.store.lock:
            return stat_of(self._find(path, follow=follow_symlinks))

    def lstat(self, path: AnyPath) -> StatResult:
        """Return the stat of a path, symbolic links themselves included."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: AnyPath) -> bool:
        """Whether a path leads somewhere."""
        return self._mode(path) != 0

    def lexists(self, path: AnyPath) -> bool:
        """Whether a path names something, be it a link to nowhere."""
        return self._mode(path, follow=False) != 0

    def is_dir(self, path: AnyPath) -> bool:
        """Whether a path leads to a directory."""
        return stat.S_ISDIR(self._mode(path))

    def is_file(self, path: AnyPath) -> bool:
        """Whether a path leads to a regular file."""
        return stat.S_ISREG(self._mode(path))

    def is_symlink(self, path: AnyPath) -> bool:
        """Whether a path names a symbolic link."""
        return stat.S_ISLNK(self._mode(path, follow=False))

    def _mode(self, path: AnyPath, *, follow: bool = True) -> int:
        try:
            with self.store.lock:
                return self._find(path, follow=follow).mode
        except PathError:
            return 0

    def listdir(self, path: AnyPath = "/") -> list[str]:
        """Return the names in a directory, sorted."""
        with self.store.lock:
            entries = self._directory(path)
        return sorted(path_text(entry.name) for entry in entries)

    def scandir(self, path: AnyPath = "/") -> Iterator[DirEntry]:
        """Iterate over a directory's entries in the directory's own order (by hash), without reading their inodes."""
        with self.store.lock:
            entries = self._directory(path)
        prefix = path_text(path_bytes(path)).rstrip("/") + "/"
        for entry in entries:
            name = path_text(entry.name)
            full = prefix + name
            yield DirEntry(name, full, entry.inode, entry.type << 12, self.stat)

    def _directory(self, path: AnyPath) -> list[Entry]:
        inode = self._find(path)
        if not inode.is_directory:
            raise NotADirectoryPathError(path_text(path_bytes(path)))
        return self.store.directory(inode).all_entries()

    def walk(
        self, top: AnyPath = "/", *, topdown: bool = True, follow_symlinks: bool = False
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Iterate over (path, names of directories, names of others), as `os.walk` does."""
        listed = self._listed(path_text(path_bytes(top)), follow_symlinks)
        if topdown:
            yield listed
        # A level: what was listed, its subdirectories still to be entered, and its inode, to notice a loop.
        levels = [(listed, list(reversed(listed[1])), self.stat(top).st_ino)]
        while levels:
            listed, pending, _ = levels[-1]
            if not pending:
                levels.pop()
                if not topdown:
                    yield listed
                continue
            path = f"{listed[0].rstrip('/')}/{pending.pop()}"
            number = self.stat(path).st_ino
            if any(number == level[2] for level in levels):
                raise SymlinkLoopError(path, f"{path}: leads back to a directory above it")
            listed = self._listed(path, follow_symlinks)
            if topdown:
                yield listed
            levels.append((listed, list(reversed(listed[1])), number))

    def _listed(self, path: str, follow_symlinks: bool) -> tuple[str, list[str], list[str]]:
        directories: list[str] = []
        others: list[str] = []
        for entry in sorted(self.scandir(path), key=lambda entry: entry.name):
            (directories if entry.is_dir(follow_symlinks=follow_symlinks) else others).append(entry.name)
        return path, directories, others

    def readlink(self, path: AnyPath) -> str:
        """Return a symbolic link's target."""
        with self.store.lock:
            inode = self._find(path, follow=False)
            if not stat.S_ISLNK(inode.mode):
                raise InvalidRequestError(
                    path_text(path_bytes(path)), f"{path_text(path_bytes(path))}: not a symbolic link"
                )
            return path_text(self.resolver.target(inode))

    def read_bytes(self, path: AnyPath, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Return a regular file's bytes, all of them or a part."""
        with self.store.lock:
            return self.store.read(self.regular(path), offset, n_bytes)

    def regular(self, path: AnyPath) -> Inode:
        """Return the inode of a regular file; the caller holds the store's lock."""
        inode = self._find(path)
        text = path_text(path_bytes(path))
        if inode.is_directory:
            raise IsADirectoryPathError(text)
        if not stat.S_ISREG(inode.mode):
            raise InvalidRequestError(text, f"{text}: not a regular file")
        return inode

    def data_ranges(self, path: AnyPath) -> list[tuple[int, int]]:
        """Return the byte ranges of a file that are no holes, half-open, ascending."""
        with self.store.lock:
            return self.store.data_ranges(self.regular(path))

    def getxattr(self, path: AnyPath, name: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """Return an extended attribute's value; NoAttributeError: there is none of that name."""
        with self.store.lock:
            attributes = self.store.attributes(self._find(path, follow=follow_symlinks))
        value = attributes.get(path_bytes(name))
        if value is None:
            text = path_text(path_bytes(path))
            raise NoAttributeError(text, f"{text}: no attribute {path_text(path_bytes(name))}")
        return value

    def listxattr(self, path: AnyPath, *, follow_symlinks: bool = True) -> list[str]:
        """Return the names of the extended attributes, sorted."""
        with self.store.lock:
            return [path_text(name) for name in self.store.attributes(self._find(path, follow=follow_symlinks))]

    def get_dos_attributes(self, path: AnyPath) -> int:
        """Return the DOS attributes: DOS_READ_ONLY, DOS_HIDDEN, DOS_SYSTEM, DOS_ARCHIVE or-ed."""
        return self.stat(path).dos_attributes
