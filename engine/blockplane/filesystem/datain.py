"""The data pipeline of put: places are allocated, reader threads fill their buffers from host files, the trees are
pointed at them, in order, while the next are being read.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from blockplane.filesystem import content
from blockplane.filesystem.hostread import (
    Attributes,
    change_between,
    data_segments,
    has_holes,
    open_listed,
    read_attributes,
    read_fully,
    reason_of,
)
from blockplane.filesystem.inode import INLINE_DATA_BYTES, Inode
from blockplane.model import BLOCK_BYTES, BlockplaneError

if TYPE_CHECKING:
    from blockplane.filesystem.store import Store
    from blockplane.volume.tree import BlockTree
    from blockplane.volume.treeio import Span

_READERS = 2
# One preadv reads at most this much; larger files are read by both threads at once.
_PIECE_BLOCKS = 1024
# Small files go to a reader in groups: a hand-over costs 30 us, as much as reading one of them.
_GROUP_BYTES = 1 << 20
_GROUP_PIECES = 32
# What may be allocated and unread at a time; the volume's buffers stand behind it.
_WINDOW_BYTES = 16 << 20
# And how many groups: of a sparse file each piece may hold a descriptor, and 1,024 are a usual limit of a process.
_WINDOW_GROUPS = 16


class Counters(Protocol):
    """Where the pipeline notes what it did."""

    n_bytes: int
    n_blocks_written: int
    skipped: list[tuple[str, str]]
    changed: list[tuple[str, str]]


@dataclass(slots=True)
class Job:
    """A regular host file to be copied into a fresh inode; done(ok) is called when its content is in place."""

    path: bytes
    inode: Inode
    stat: os.stat_result
    done: Callable[[bool], None]
    fd: int = -1
    n_pending: int = 0
    n_bytes: int = 0
    is_submitted: bool = False
    asked_attributes: bool = False
    segments: list[tuple[int, int]] | None = None
    end_bytes: int = -1
    change: str = ""
    error: OSError | None = None
    attributes: Attributes = field(default_factory=dict)

    def note_end(self, end_bytes: int) -> None:
        """Note that the file ended here at some moment while it was read."""
        self.end_bytes = end_bytes if self.end_bytes < 0 else min(self.end_bytes, end_bytes)

    def note_change(self, fd: int) -> None:
        """Compare the file, now that it is read, with what was listed."""
        now = os.fstat(fd)
        self.change = change_between(self.stat, now)
        if now.st_size < self.stat.st_size:
            self.note_end(now.st_size)


@dataclass(slots=True)
class _Piece:
    """A part of a file on its way: its blocks' buffers, or (no spans) up to 256 bytes inline."""

    job: Job
    first: int
    spans: list[Span]
    n_bytes: int
    wants_attributes: bool
    n_read: int = 0
    inline: bytes = b""


class DataIn:
    """See the module. All methods run in one thread, with the store's lock held; only `_read` runs in the readers."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters
        self._pool = ThreadPoolExecutor(_READERS, "put-read")
        self._group: list[_Piece] = []
        self._group_bytes = 0
        self._running: deque[tuple[Future[None], list[_Piece], int]] = deque()
        self._window_bytes = 0
        self.n_bytes_batch = 0

    def submit(self, job: Job, between: Callable[[], None] | None = None) -> None:
        """Copy a file; returns when its last part is under way.

        Parameters
        ----------
        between : called between parts of a large file.
        """
        try:
            if job.stat.st_size <= INLINE_DATA_BYTES:
                self._add(_Piece(job, 0, [], job.stat.st_size, wants_attributes=True))
            else:
                for first, n_blocks in self._parts(job):
                    self._allocate(job, first, n_blocks)
                    if between is not None:
                        between()
        except BaseException as error:
            job.error = OSError(errno.ECANCELED, str(error) or "interrupted")
            raise
        finally:
            job.is_submitted = True
            if not job.n_pending:
                self._complete(job)

    def _parts(self, job: Job) -> Iterator[tuple[int, int]]:
        """Yield (first block, count) of the parts of a file that hold data; large files stay open in job.fd."""
        status = job.stat
        n_blocks = content.n_blocks_of(status.st_size)
        segments = [(0, n_blocks)]
        if n_blocks > _PIECE_BLOCKS or status.st_blocks * 512 < status.st_size:
            try:
                job.fd = open_listed(job.path, job.stat)
                segments = data_segments(job.fd, status.st_size)
            except OSError as error:
                job.error = error
                return
        for start, stop in segments:
            for first in range(start, min(stop, n_blocks), _PIECE_BLOCKS):
                yield first, min(stop - first, _PIECE_BLOCKS)

    def _allocate(self, job: Job, first: int, n_blocks: int) -> None:
        tree = self._store.writable_tree(job.inode)
        n_bytes = min(n_blocks * BLOCK_BYTES, job.stat.st_size - first * BLOCK_BYTES)
        spans = tree.allocate(first, n_blocks)
        self._add(_Piece(job, first, spans, n_bytes, not job.asked_attributes))

    def _add(self, piece: _Piece) -> None:
        piece.job.n_pending += 1
        piece.job.n_bytes += piece.n_bytes
        piece.job.asked_attributes = True
        self._group.append(piece)
        self._group_bytes += piece.n_bytes
        self.n_bytes_batch += piece.n_bytes
        if self._group_bytes >= _GROUP_BYTES or len(self._group) >= _GROUP_PIECES:
            self._start_group()
            while self._window_bytes > _WINDOW_BYTES or len(self._running) > _WINDOW_GROUPS:
                self._retire()

    def _start_group(self) -> None:
        if self._group:
            group, self._group = self._group, []
            self._running.append((self._pool.submit(_read_group, group), group, self._group_bytes))
            self._window_bytes += self._group_bytes
            self._group_bytes = 0

    def finish(self) -> int:
        """Wait for everything under way and put it in place; return the bytes copied since the last call."""
        self._start_group()
        while self._running:
            self._retire()
        n_bytes, self.n_bytes_batch = self.n_bytes_batch, 0
        return n_bytes

    def abandon(self) -> None:
        """After an error: fill what was allocated, and call every unfinished file failed."""
        unfinished = {id(p.job): p.job for p in self._group}
        for _, group, _ in self._running:
            unfinished.update((id(p.job), p.job) for p in group)
        for job in unfinished.values():
            job.error = job.error or OSError(errno.ECANCELED, "the copy ended early")
            job.is_submitted = True
        self.finish()

    def close(self) -> None:
        """Stop the readers."""
        self._pool.shutdown()

    def _retire(self) -> None:
        """Put the oldest group's content in place."""
        self._running[0][0].result()  # an interrupt of the wait leaves it the oldest
        _, group, n_bytes = self._running.popleft()
        self._window_bytes -= n_bytes
        failure: BlockplaneError | None = None
        for piece in group:
            try:
                self._settle(piece)
            except BlockplaneError as error:
                failure = error  # the others are filled all the same: their places are taken
        if failure is not None:
            raise failure

    def _settle(self, piece: _Piece) -> None:
        job, inode = piece.job, piece.job.inode
        job.n_pending -= 1
        self._store.inodes.mark_dirty(inode)
        if piece.spans:
            tree = self._store.writable_tree(inode)
            tree.filled(piece.spans)
            n_blocks = sum(span.n_blocks for span in piece.spans)
            inode.n_blocks += n_blocks
            self._counters.n_blocks_written += n_blocks
            inode.size_bytes = max(inode.size_bytes, piece.first * BLOCK_BYTES + piece.n_bytes)
        elif piece.inline:
            content.write_inline(inode, 0, np.frombuffer(piece.inline, np.uint8))
        if piece.n_read < piece.n_bytes:
            job.note_end(piece.first * BLOCK_BYTES + piece.n_read)
        if job.is_submitted and not job.n_pending:
            self._complete(job)

    def _complete(self, job: Job) -> None:
        """All parts are in place: size, attributes, the tree's nodes, and the caller's turn."""
        if job.fd >= 0:
            job.note_change(job.fd)
            if not job.asked_attributes:
                job.attributes = _attributes_of(job.fd)
            os.close(job.fd)
            job.fd = -1
        if job.error is not None:
            self._counters.n_bytes -= job.n_bytes  # `finish` gives those of all
            self._counters.skipped.append((os.fsdecode(job.path), reason_of(job.error)))
            job.done(False)
            return
        if job.change:
            self._counters.changed.append((os.fsdecode(job.path), job.change))
        try:
            self._finish(job)
        except BlockplaneError:
            job.done(False)
            raise
        job.done(True)

    def _finish(self, job: Job) -> None:
        inode = job.inode
        self._store.inodes.mark_dirty(inode)
        if not inode.inline or inode.size_bytes != job.stat.st_size:
            end = job.stat.st_size if job.end_bytes < 0 else job.end_bytes
            content.truncate(inode, inode.tree, end)
        if job.segments is not None and inode.tree is not None:
            content.keep_only(inode, inode.tree, job.segments)
        if job.attributes:
            self._counters.n_blocks_written += self._store.set_attributes(inode, job.attributes)
        self._settle_tree(inode)

    def _settle_tree(self, inode: Inode) -> None:
        """Place the tree's nodes right behind its data and let go of them."""
        tree: BlockTree | None = inode.tree
        if tree is not None:
            tree.size_bytes = inode.size_bytes
            tree.flush()
            if not inode.n_open:
                inode.root, inode.tree = tree.root, None


def _read_group(group: list[_Piece]) -> None:
    for piece in group:
        try:
            _read(piece)
        except OSError as error:
            piece.job.error = error
            piece.n_read = piece.n_bytes
            for span in piece.spans:
                span.buffer[:] = 0


def _read(piece: _Piece) -> None:
    """Fill a piece from its file."""
    job = piece.job
    fd = job.fd if job.fd >= 0 else open_listed(job.path, job.stat)
    try:
        if job.fd < 0 and has_holes(fd, job.stat.st_size):
            job.segments = data_segments(fd, job.stat.st_size)
        if piece.spans:
            piece.n_read = _fill(fd, piece)
        elif piece.n_bytes:
            data = os.pread(fd, piece.n_bytes, 0)
            piece.n_read = len(data)
            piece.inline = b"" if job.segments == [] else data
        if piece.wants_attributes:
            job.attributes = read_attributes(fd)
        if job.fd < 0:
            job.note_change(fd)
    finally:
        if job.fd < 0:
            os.close(fd)


def _fill(fd: int, piece: _Piece) -> int:
    """Read into the spans' buffers and zero what lies behind the file's end."""
    rest = piece.n_bytes
    buffers = []
    for span in piece.spans:
        n_bytes = min(rest, span.n_blocks * BLOCK_BYTES)
        buffers.append(span.buffer.data[:n_bytes])
        if n_bytes < span.n_blocks * BLOCK_BYTES:
            span.buffer[n_bytes : span.n_blocks * BLOCK_BYTES] = 0
        rest -= n_bytes
    return read_fully(fd, piece.first * BLOCK_BYTES, buffers)


def _attributes_of(fd: int) -> Attributes:
    try:
        return read_attributes(fd)
    except OSError:
        return {}
