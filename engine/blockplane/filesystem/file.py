"""Open files: binary, unbuffered; `FileSystem.open` puts the standard library's buffers on top."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from blockplane.filesystem.errors import InvalidRequestError, StaleHandleError
from blockplane.filesystem.inode import Inode
from blockplane.filesystem.store import WRITE_BYTES, Store

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_MODES = {
    "r": (True, False), "r+": (True, True), "w": (False, True), "w+": (True, True),
    "a": (False, True), "a+": (True, True), "x": (False, True), "x+": (True, True),
}  # fmt: skip
NO_DATA_BEHIND = "there is no data behind that offset"


def parse_mode(mode: str) -> tuple[str, bool, bool]:
    """Return (mode without `b`, readable, writable); ValueError: no such mode, or a text mode."""
    plain = mode.replace("b", "", 1)
    plain = plain[0] + "+" if len(plain) > 1 and sorted(plain[1:]) == ["+"] else plain
    if plain not in _MODES:
        raise ValueError(f"mode {mode!r} is not one of r, r+, w, w+, a, a+, x, x+ (files are binary)")
    return plain, *_MODES[plain]


class File(io.RawIOBase):
    """A regular file of a file system, open.

    Notes
    -----
    What `write` took is in the file at once for every other reader of this process, and durable with the next
    consistency point. A file removed while open stays until it is closed.
    """

    def __init__(self, store: Store, inode: Inode, path: str, mode: str) -> None:
        super().__init__()
        plain, self._readable, self._writable = parse_mode(mode)
        self.name = path
        self.mode = plain.replace("+", "b+") if "+" in plain else plain + "b"
        self._appends = plain.startswith("a")
        self._store, self._epoch = store, store.epoch
        self._inode, self._generation = inode, inode.generation
        self._position = inode.size_bytes if self._appends else 0
        store.opened(inode)

    def _current(self) -> Inode:
        """Return the inode, found again after a rollback; StaleHandleError: it is not there any more."""
        if self.closed:
            raise ValueError("the file is closed")
        if self._epoch != self._store.epoch:
            inode = (
                self._store.inodes.peek(self._inode.number) if self._inode.number < self._store.inodes.stop else None
            )
            if (
                inode is None
                or inode.generation != self._generation
                or inode.mode != self._inode.mode
                or not inode.nlink
            ):
                raise StaleHandleError(self.name)
            self._inode, self._epoch = self._store.inodes.get(inode.number), self._store.epoch
            self._store.opened(self._inode)
        return self._inode

    def readable(self) -> bool:
        """Whether it was opened for reading."""
        return self._readable

    def writable(self) -> bool:
        """Whether it was opened for writing."""
        return self._writable

    def seekable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill a buffer from the position; return the bytes read, 0 at the end."""
        if not self._readable:
            raise io.UnsupportedOperation("the file is not open for reading")
        with self._store.lock, memoryview(buffer).cast("B") as view:
            n_bytes = self._store.read_into(self._current(), self._position, view)
        self._position += n_bytes
        return n_bytes

    def readall(self) -> bytes:
        """Return everything from the position on."""
        if not self._readable:
            raise io.UnsupportedOperation("the file is not open for reading")
        with self._store.lock:
            data = self._store.read(self._current(), self._position)
        self._position += len(data)
        return data

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of the data at the position; NoSpaceError: the volume is full."""
        if not self._writable:
            raise io.UnsupportedOperation("the file is not open for writing")
        with memoryview(data).cast("B") as view:
            for start in range(0, max(len(view), 1), WRITE_BYTES):
                piece = view[start : start + WRITE_BYTES]
                with self._store.lock:
                    if start and self._epoch != self._store.epoch:
                        raise StaleHandleError(self.name)  # what was rolled back to does not get the rest
                    self._store.room.admit()
                    inode = self._current()
                    if self._appends:
                        self._position = inode.size_bytes
                    self._store.write(inode, self._position, piece)
                    self._position += len(piece)
            return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position: SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA or SEEK_HOLE; return it."""
        with self._store.lock:
            inode = self._current()
            if whence in (os.SEEK_DATA, os.SEEK_HOLE):
                target = self._seek_sparse(inode, offset, whence)
            else:
                bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: inode.size_bytes}
                if whence not in bases:
                    raise ValueError(f"unknown whence {whence}")
                target = bases[whence] + offset
        if target < 0:
            raise InvalidRequestError(self.name, f"{self.name}: the position cannot be negative ({target})")
        self._position = target
        return target

    def _seek_sparse(self, inode: Inode, offset: int, whence: int) -> int:
        if not 0 <= offset < inode.size_bytes:
            raise OSError(6, NO_DATA_BEHIND, self.name)
        for start, stop in self._store.data_ranges(inode):
            if offset < stop:
                if whence == os.SEEK_DATA:
                    return max(offset, start)
                return stop if offset >= start else offset
        if whence == os.SEEK_DATA:
            raise OSError(6, NO_DATA_BEHIND, self.name)
        return offset

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        """Set the file's size, the position's by default; the position stays."""
        if not self._writable:
            raise io.UnsupportedOperation("the file is not open for writing")
        size = self._position if size is None else size
        with self._store.lock:
            self._store.truncate(self._current(), size)
        return size

    def data_ranges(self) -> list[tuple[int, int]]:
        """Return the byte ranges that are no holes, half-open, ascending."""
        with self._store.lock:
            return self._store.data_ranges(self._current())

    def close(self) -> None:
        """Let go of the file."""
        if not self.closed:
            super().close()
            with self._store.lock:
                if self._epoch == self._store.epoch:
                    self._store.closed(self._inode)
