"""The data pipeline of get: contents are read in order by one thread, files are made and written by others."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from blockplane.filesystem.hostwrite import Metadata, apply_metadata, clear_way
from blockplane.filesystem.inode import Inode
from blockplane.model import BLOCK_BYTES

if TYPE_CHECKING:
    from blockplane.filesystem.store import Store

_WRITERS = 2
_PIECE_BYTES = 4 << 20
_GROUP_BYTES = 1 << 20
_GROUP_PIECES = 32
_WINDOW_BYTES = 32 << 20
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Counters(Protocol):
    """Where the pipeline notes what it did."""

    n_files: int
    n_bytes: int
    skipped: list[tuple[str, str]]


@dataclass(slots=True)
class _File:
    """A host file being made; a file of several pieces stays open in fd."""

    path: bytes
    size_bytes: int
    metadata: Metadata
    ends_in_hole: bool
    n_pending: int = 0
    is_submitted: bool = False
    fd: int = -1
    error: OSError | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Piece:
    file: _File
    offset: int
    data: NDArray[np.uint8] | None
    is_whole: bool


class DataOut:
    """See the module; a context that ends when everything is written."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters
        self._pool = ThreadPoolExecutor(_WRITERS, "get-write")
        self._group: list[_Piece] = []
        self._group_bytes = 0
        self._running: deque[tuple[Future[None], list[_Piece], int]] = deque()
        self._window_bytes = 0

    def __enter__(self) -> DataOut:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def submit(self, inode: Inode, path: bytes, metadata: Metadata) -> None:
        """Copy a regular file's content to a host file, made new."""
        ranges = self._store.data_ranges(inode)
        size = inode.size_bytes
        file = _File(path, size, metadata, ends_in_hole=not ranges or ranges[-1][1] < size)
        if not ranges or (len(ranges) == 1 and ranges[0][1] - ranges[0][0] <= _PIECE_BYTES):
            start, stop = ranges[0] if ranges else (0, 0)
            self._add(_Piece(file, start, self._read(inode, start, stop) if ranges else None, is_whole=True))
            file.is_submitted = True
            return
        clear_way(path)
        file.fd = os.open(path, _CREATE, 0o600)
        for start, stop in ranges:
            for at in range(start, stop, _PIECE_BYTES):
                self._add(_Piece(file, at, self._read(inode, at, min(stop, at + _PIECE_BYTES)), is_whole=False))
        file.is_submitted = True
        if not file.n_pending:
            self._complete(file)

    def _read(self, inode: Inode, start: int, stop: int) -> NDArray[np.uint8]:
        """Read start..stop, start at a block; whole blocks are read, so that they land in the buffer at once."""
        room = np.empty(-(-(stop - start) // BLOCK_BYTES) * BLOCK_BYTES, np.uint8)
        with self._store.lock:
            tree = self._store.tree(inode)
            if inode.inline is None and tree is not None:
                tree.read(start // BLOCK_BYTES, len(room) // BLOCK_BYTES, room)
            else:
                self._store.read_into(inode, start, room.data[: stop - start])
        return room[: stop - start]

    def _add(self, piece: _Piece) -> None:
        piece.file.n_pending += 1
        n_bytes = len(piece.data) if piece.data is not None else 0
        self._group.append(piece)
        self._group_bytes += n_bytes
        self._counters.n_bytes += n_bytes
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_PIECES:
            self._start_group()
            while self._window_bytes > _WINDOW_BYTES:
                self._retire()

    def _start_group(self) -> None:
        if self._group:
            group, self._group = self._group, []
            self._running.append((self._pool.submit(_write_group, group), group, self._group_bytes))
            self._window_bytes += self._group_bytes
            self._group_bytes = 0

    def finish(self) -> None:
        """Wait until everything submitted is written."""
        self._start_group()
        while self._running:
            self._retire()

    def _retire(self) -> None:
        future, group, n_bytes = self._running.popleft()
        self._window_bytes -= n_bytes
        future.result()
        for piece in group:
            file = piece.file
            file.n_pending -= 1
            if file.is_submitted and not file.n_pending:
                self._complete(file)

    def _complete(self, file: _File) -> None:
        if file.fd >= 0:
            try:
                _finish_file(file.fd, file)
            except OSError as error:
                file.error = file.error or error
            finally:
                os.close(file.fd)
        if file.error is not None:
            raise file.error
        self._counters.n_files += 1
        self._counters.skipped += [(os.fsdecode(file.path), problem) for problem in file.problems]


def _write_group(group: list[_Piece]) -> None:
    for piece in group:
        try:
            _write_piece(piece)
        except OSError as error:
            piece.file.error = error


def _write_piece(piece: _Piece) -> None:
    file = piece.file
    if not piece.is_whole:
        _write_fully(file.fd, piece)
        return
    try:
        fd = os.open(file.path, _CREATE, 0o600)
    except FileExistsError:
        clear_way(file.path)
        fd = os.open(file.path, _CREATE, 0o600)
    try:
        _write_fully(fd, piece)
        _finish_file(fd, file)
    finally:
        os.close(fd)


def _write_fully(fd: int, piece: _Piece) -> None:
    if piece.data is not None:
        view = piece.data.data
        at = 0
        while at < len(view):
            at += os.pwrite(fd, view[at:], piece.offset + at)


def _finish_file(fd: int, file: _File) -> None:
    if file.ends_in_hole and file.size_bytes:
        os.ftruncate(fd, file.size_bytes)
    file.problems = apply_metadata(fd, file.metadata)
