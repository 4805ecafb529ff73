"""The data pipeline of get: groups of files are read with one request each and written, by two threads."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from blockplane.filesystem.blockread import read_pointers, scratch
from blockplane.filesystem.content import n_blocks_of
from blockplane.filesystem.hostwrite import (
    UNREADABLE,
    Metadata,
    Refusal,
    apply_metadata,
    clear_way,
    ends_copy,
    refusal_of,
)
from blockplane.filesystem.inode import Inode
from blockplane.model import BLOCK_BYTES
from blockplane.volume.codec import PointerArray

if TYPE_CHECKING:
    from blockplane.filesystem.store import Store

_WRITERS = 2
# Read and written by one thread in one go. Larger makes fewer requests, and more memory: one such buffer a thread.
_PIECE_BLOCKS = 1024
_PIECE_BYTES = _PIECE_BLOCKS * BLOCK_BYTES
# Of a large file, whose pointers are read together: 64 blocks of them.
_WINDOW_BYTES = 16 * _PIECE_BYTES
_GROUP_BLOCKS = 512
_GROUP_PIECES = 64
_MAX_GROUPS = 6
# From this size on files pass the host's page cache by: a buffered GiB costs 1.6 CPU seconds, a direct one 0.05 (ext4).
# Smaller ones would wait for the disk one by one.
_DIRECT_BYTES = 1 << 20
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Counters(Protocol):
    """Where the pipeline notes what it did."""

    n_files: int
    n_bytes: int
    skipped: list[tuple[str, str]]


@dataclass(slots=True, eq=False)
class _File:
    """A host file being made; a file of several pieces stays open in fd."""

    path: bytes
    size_bytes: int
    metadata: Metadata
    ends_in_hole: bool = True
    n_pending: int = 0
    is_submitted: bool = False
    is_done: bool = False
    fd: int = -1
    is_direct: bool = False
    is_partial: bool = False
    n_bytes: int = 0
    error: Refusal | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Piece:
    """A part of a file: n_bytes at an offset, either given (data) or behind pointers."""

    file: _File
    inode: Inode
    offset: int
    n_bytes: int
    is_whole: bool
    data: NDArray[np.uint8] | None = None
    is_aligned: bool = False
    pointers: PointerArray | None = None


class DataOut:
    """See the module; a context that ends when everything is written, and leaves no part of a file where it ends early.

    The store's lock is not held by the caller.
    """

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters
        self._pool = ThreadPoolExecutor(_WRITERS, "get-write")
        self._group: list[_Piece] = []
        self._group_blocks = 0
        self._running: deque[tuple[Future[None], list[_Piece]]] = deque()
        self._open: set[_File] = set()
        #: files that the host did not take, or that cannot be read, and why; those are reported
        self.refused: dict[bytes, Refusal] = {}

    def __enter__(self) -> DataOut:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for file in self._open:
            os.close(file.fd)
        for file in self._open.union(piece.file for _, group in self._running for piece in group):
            _remove_part(file)

    def submit(self, inode: Inode, path: bytes, metadata: Metadata, pointers: PointerArray | None = None) -> None:
        """Copy a regular file's content to a host file, made new.

        Parameters
        ----------
        pointers : to all its blocks, where the caller has them already.
        """
        file = _File(path, inode.size_bytes, metadata)
        try:
            self._submit(file, inode, pointers)
        except UNREADABLE as error:
            file.error = error
        file.is_submitted = True
        if not file.n_pending and not file.is_done:
            self._complete(file)

    def _submit(self, file: _File, inode: Inode, pointers: PointerArray | None) -> None:
        windows = self._windows(inode, pointers)
        ahead = list(islice(windows, 2))
        self._require_there(inode)
        start, stop, known = ahead[0] if ahead else (0, 0, None)
        if len(ahead) < 2 and stop - start <= _PIECE_BYTES:
            file.ends_in_hole = stop < inode.size_bytes
            file.is_submitted = True
            self._add(self._piece(file, inode, start, stop - start, known, is_whole=True))
            return
        try:
            _open(file)
        except OSError as error:
            file.error = error
            return
        self._open.add(file)
        for start, stop, known in chain(ahead, windows):
            for at in range(start, stop, _PIECE_BYTES):
                if file.error is not None:  # the host takes no more of it
                    return
                own = None if known is None else known[(at - start) // BLOCK_BYTES :]
                self._add(self._piece(file, inode, at, min(stop - at, _PIECE_BYTES), own, is_whole=False))
            file.ends_in_hole = stop < inode.size_bytes
        self._require_there(inode)

    def _require_there(self, inode: Inode) -> None:
        """What was removed meanwhile has no windows any more, and looks like a hole."""
        with self._store.lock:
            self._store.require_there(inode)

    def _windows(self, inode: Inode, known: PointerArray | None) -> Iterator[tuple[int, int, PointerArray | None]]:
        """Give the ranges of a file that are no holes, a window's bytes at most, each with the pointers to it.

        A count of blocks that leaves no room for holes saves the search for them. It is believed as far as the pointers
        bear it out: a made-up one would have zeros written, up to any size.
        """
        size, start = inode.size_bytes, 0
        if inode.inline is not None:
            yield 0, size, None
            return
        while start < size and inode.n_blocks == n_blocks_of(size):
            stop = min(start + _WINDOW_BYTES, size)
            pointers = self._pointers(inode, start, stop - start) if known is None else known[: n_blocks_of(stop)]
            if pointers is None or not pointers[:, 0].all():
                break
            yield start, stop, pointers
            start, known = stop, None
        for low, high in self._store.data_ranges(inode) if start < size else ():
            for at in range(max(low, start), high, _WINDOW_BYTES):
                stop = min(at + _WINDOW_BYTES, high)
                yield at, stop, self._pointers(inode, at, stop - at)

    def _piece(
        self, file: _File, inode: Inode, offset: int, n_bytes: int, known: PointerArray | None, *, is_whole: bool
    ) -> _Piece:
        """Return a part that starts at a block, with what is needed to read it later, outside the lock.

        known : pointers to the part's blocks, and perhaps more, where the caller has them.
        """
        piece = _Piece(file, inode, offset, n_bytes, is_whole)
        if not n_bytes:
            return piece
        known = self._pointers(inode, offset, n_bytes) if known is None else known
        if known is not None:
            piece.pointers = known[: n_blocks_of(n_bytes)]
            return piece
        with self._store.lock:
            self._store.require_there(inode)
            piece.data = np.empty(n_bytes, np.uint8)
            self._store.read_into(inode, offset, piece.data.data)
        return piece

    def _pointers(self, inode: Inode, offset: int, n_bytes: int) -> PointerArray | None:
        """Return the pointers to a part of a file; None where its bytes are inline or not on the disks yet."""
        with self._store.lock:
            self._store.require_there(inode)
            tree = self._store.tree(inode)
            if inode.inline is not None or tree is None or tree.is_dirty:
                return None
            first = offset // BLOCK_BYTES
            return tree.pointers(first, first + n_blocks_of(n_bytes))

    def _add(self, piece: _Piece) -> None:
        piece.file.n_pending += 1
        piece.file.n_bytes += piece.n_bytes
        self._counters.n_bytes += piece.n_bytes
        self._group.append(piece)
        self._group_blocks += n_blocks_of(piece.n_bytes)
        if self._group_blocks >= _GROUP_BLOCKS or len(self._group) >= _GROUP_PIECES:
            self._start_group()
            while len(self._running) > _MAX_GROUPS:
                self._retire()

    def _start_group(self) -> None:
        if self._group:
            group, self._group, self._group_blocks = self._group, [], 0
            self._running.append((self._pool.submit(_copy_group, self._store, group), group))

    def finish(self) -> None:
        """Wait until everything submitted is written."""
        self._start_group()
        while self._running:
            self._retire()

    def _retire(self) -> None:
        future, group = self._running[0]  # what is raised leaves it among those that have parts
        future.result()
        for piece in group:
            file = piece.file
            file.n_pending -= 1
            if file.is_submitted and not file.n_pending:
                self._complete(file)
        self._running.popleft()

    def _complete(self, file: _File) -> None:
        file.is_done = True
        if file.fd >= 0:
            self._open.remove(file)
            try:
                _close(file)
            except OSError as error:
                file.error = file.error or error
        if file.error is not None:
            self._refuse(file, file.error)
            return
        self._counters.n_files += 1
        self._counters.skipped += [(os.fsdecode(file.path), problem) for problem in file.problems]

    def _refuse(self, file: _File, error: Refusal) -> None:
        """Report a file that the host did not take, or that cannot be read, and leave no part of it there."""
        _remove_part(file)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fsdecode(file.path)
        if ends_copy(error):
            raise error
        self.refused[file.path] = error
        self._counters.n_bytes -= file.n_bytes
        self._counters.skipped.append((os.fsdecode(file.path), refusal_of(error)))


def _copy_group(store: Store, group: list[_Piece]) -> None:
    """Read the pieces of a group with one request, then write them; runs in a thread of the pool."""
    _read_group(store, group)
    for piece in group:
        if piece.file.error is not None:
            continue
        try:
            _write_piece(piece)
        except OSError as error:
            piece.file.error = error


def _read_group(store: Store, group: list[_Piece]) -> None:
    pending = [piece for piece in group if piece.pointers is not None and piece.file.error is None]
    if not pending:
        return
    pointers = np.concatenate([piece.pointers for piece in pending if piece.pointers is not None])
    buffer = scratch(len(pointers) * BLOCK_BYTES)
    try:
        read_pointers(store.state.reader, pointers, buffer)
    except UNREADABLE:
        _read_again(store, pending)
        return
    at = 0
    for piece in pending:
        stop = at + n_blocks_of(piece.n_bytes) * BLOCK_BYTES
        piece.is_aligned = piece.file.is_direct or piece.n_bytes >= _DIRECT_BYTES
        piece.data = buffer[at : stop if piece.is_aligned else at + piece.n_bytes]
        at = stop


def _read_again(store: Store, pending: list[_Piece]) -> None:
    """Read one by one, under the lock, and note which cannot be.

    In a live file system a block may have been given up and reused since it was pointed to.
    """
    for piece in pending:
        piece.data = np.zeros(piece.n_bytes, np.uint8)
        try:
            with store.lock:
                store.require_there(piece.inode)
                store.read_into(piece.inode, piece.offset, piece.data.data)
        except UNREADABLE as error:
            piece.file.error = piece.file.error or error


def _open(file: _File) -> None:
    """Make the host file, replacing what is no directory; a large one passes the page cache by where it can."""
    flags = _CREATE | (os.O_DIRECT if file.size_bytes >= _DIRECT_BYTES else 0)
    for attempt in range(3):
        try:
            file.fd = os.open(file.path, flags, 0o600)
            file.is_partial = True
            file.is_direct = bool(flags & os.O_DIRECT)
            return
        except FileExistsError:
            if attempt == 2:
                raise
            clear_way(file.path)
        except OSError as error:
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
            flags &= ~os.O_DIRECT
            clear_way(file.path)  # the file was made before its flags were refused
    raise AssertionError("unreachable")


def _write_piece(piece: _Piece) -> None:
    file = piece.file
    if not piece.is_whole:
        _write_fully(piece)
        return
    _open(file)
    try:
        _write_fully(piece)
    except OSError as error:
        file.error = error
    _close(file)


def _write_fully(piece: _Piece) -> None:
    """Write a piece; through an aligned buffer whole blocks, the last one's zeros included."""
    if piece.data is None:
        return
    file, view = piece.file, piece.data.data
    if file.is_direct and not piece.is_aligned:
        file.is_direct = False
        fcntl.fcntl(file.fd, fcntl.F_SETFL, fcntl.fcntl(file.fd, fcntl.F_GETFL) & ~os.O_DIRECT)
    at = 0
    while at < len(view):
        at += os.pwrite(file.fd, view[at:], piece.offset + at)


def _close(file: _File) -> None:
    """Give a host file its size and attributes, where all of it is written, and close it."""
    try:
        if file.error is None:
            if file.ends_in_hole or file.size_bytes >= _DIRECT_BYTES:
                os.ftruncate(file.fd, file.size_bytes)
            file.problems = apply_metadata(file.fd, file.metadata)
    finally:
        os.close(file.fd)
        file.fd = -1
    file.is_partial = file.error is not None


def _remove_part(file: _File) -> None:
    """Remove what is there of a host file that is not whole."""
    if file.is_partial:
        file.is_partial = False
        with contextlib.suppress(OSError):
            os.unlink(file.path)
