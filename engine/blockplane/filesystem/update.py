"""What put does where something is there already: replace it, or (`update`) make it equal by rewriting what differs."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.filesystem import content
from blockplane.filesystem.hostread import (
    HostEntry,
    Listing,
    change_between,
    data_segments,
    open_listed,
    read_attributes,
    read_fully,
    reason_of,
)
from blockplane.filesystem.inode import INLINE_DATA_BYTES, Inode, clamp_time
from blockplane.filesystem.metadata import is_same_metadata, set_metadata
from blockplane.filesystem.stat_result import pack_device
from blockplane.model import BLOCK_BYTES
from blockplane.volume.runs import mask_runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockplane.filesystem.changes import Changes
    from blockplane.filesystem.directory import Entry
    from blockplane.filesystem.putreport import PutReport
    from blockplane.volume.tree import BlockTree

_COMPARE_BLOCKS = 256
# What a file may have of changed blocks that wait for their places: no consistency point comes while it is compared.
_DIRTY_BLOCKS = 4096


class Updater:
    """Settles what is in the way of a put; the caller holds the store's lock.

    Parameters
    ----------
    keeps : whether `delete` leaves an entry that the source's directory has not; None: it leaves none.
    """

    def __init__(
        self,
        fs: Changes,
        report: PutReport,
        *,
        update: bool,
        delete: bool,
        checksum: bool,
        keeps: Callable[[HostEntry, Entry], bool] | None = None,
    ) -> None:
        self._fs = fs
        self._store = fs.store
        self._report = report
        self._update = update
        self._delete = delete
        self._checksum = checksum
        self._keeps = keeps
        self._claims: dict[int, tuple[int, int]] = {}
        #: inodes of several names all of which are known to be names of the host's file that is dealt with now
        self.whole: frozenset[int] = frozenset()
        #: completes what is being copied, so that a consistency point may come
        self.complete: Callable[[], None] = lambda: None
        #: raises NoSpaceError where there is no room for a file beside what it replaces
        self.require_room: Callable[[HostEntry, Inode], None] = lambda child, existing: None

    def prepare(self, inode: Inode, listing: Listing) -> None:
        """With delete, remove what the source directory lacks; nothing where it could not be read whole."""
        if not self._delete or listing.skipped:
            return
        names = {child.name for child in listing.children}
        for entry in self._store.directory(inode).all_entries():
            if entry.name not in names and not (self._keeps and self._keeps(listing.entry, entry)):
                self._remove(inode, entry.name, self._store.inode_of(entry))

    def waits(self, child: HostEntry, existing: Inode) -> bool:
        """Whether an inode of several names is to be changed, which is right only where all are names of the file."""
        if not self._update or child.stat.st_nlink == 1 or existing.nlink == 1 or child.kind != existing.type:
            return False
        return not self._is_copy(child, existing)

    def settle(
        self, parent: Inode, child: HostEntry, existing: Inode, linked: Inode | None
    ) -> tuple[Inode | None, bool]:
        """Deal with an inode where something that is no directory is to go.

        Returns
        -------
        What has the name, None when it is free; and whether that now is the copy: if not, it stays in the way.
        """
        if linked is existing:
            return existing, True
        if linked is None and self._update and self._can_become(child, existing):
            self._claims[existing.number] = child.stat.st_dev, child.stat.st_ino
            return existing, self._make_equal(child, existing)
        if linked is None and not self._can_be_read(child):
            return existing, False
        if existing.is_directory:
            return self._clear_directory(parent, child, existing), False
        self.require_room(child, existing)
        self._remove(parent, child.name, existing)
        return None, False

    def _can_be_read(self, child: HostEntry) -> bool:
        """Whether the file for which something is removed can be had at all."""
        if child.kind != stat.S_IFREG:
            return True
        try:
            os.close(open_listed(child.path, child.stat))
        except OSError as error:
            self._report.skip(child, reason_of(error))
            return False
        return True

    def make_way(self, parent: Inode, child: HostEntry, existing: Inode) -> Inode | None:
        """Deal with something that is no directory where one is to go; return what stays in the way, or None."""
        if self._update:
            self._remove(parent, child.name, existing)
            return None
        self._report.skip(child, "a directory does not replace a file")
        return existing

    def _clear_directory(self, parent: Inode, child: HostEntry, existing: Inode) -> Inode | None:
        if self._delete:
            self._remove(parent, child.name, existing)
            return None
        self._report.skip(child, "a file does not replace a directory" + (" (without delete)" if self._update else ""))
        return existing

    def _remove(self, parent: Inode, name: bytes, inode: Inode) -> None:
        self._store.room.admit(removes=True, complete=self.complete)
        if inode.is_directory:
            self.complete()  # a consistency point may come between two children
            self._fs.remove_children(inode)
        self._store.remove_entry(parent, name, inode)
        self._report.n_removed += 1

    def _can_become(self, child: HostEntry, existing: Inode) -> bool:
        """Whether an inode can be turned into the copy in place: same type, and by no name another file's."""
        status = child.stat
        key = status.st_dev, status.st_ino
        if child.kind != existing.type or self._claims.get(existing.number, key) != key:
            return False
        if existing.nlink > 1 and existing.number not in self.whole:
            return status.st_nlink > 1 and self._is_copy(child, existing)
        return self._is_same_special(child, existing)

    def _is_same_special(self, child: HostEntry, existing: Inode) -> bool:
        """Whether what can only be made anew is the same: a link's target, a device's number."""
        if child.kind == stat.S_IFLNK:
            return existing.size_bytes == len(child.target) and self._store.read(existing) == child.target
        return child.kind not in (stat.S_IFCHR, stat.S_IFBLK) or existing.rdev == pack_device(child.stat.st_rdev)

    def _is_copy(self, child: HostEntry, existing: Inode) -> bool:
        """Whether an inode is the copy already, as far as that is known without reading content."""
        if child.kind == stat.S_IFREG:
            if self._checksum or not _is_same_content(existing, child.stat):
                return False
            with contextlib.suppress(OSError):  # told when the file is dealt with
                child.attributes = read_attributes(child.path)
        return self._is_same_special(child, existing) and is_same_metadata(self._store, existing, child)

    def _make_equal(self, child: HostEntry, inode: Inode) -> bool:
        """Make an inode the copy; return whether it could be: what cannot be read is reported, and the inode left."""
        self._store.room.admit(complete=self.complete)
        if child.kind == stat.S_IFREG:
            try:
                self._update_file(child, inode)
            except OSError as error:
                self._report.skip(child, reason_of(error))
                return False
        self._report.count(child)
        self._report.n_blocks_written += set_metadata(self._store, inode, child)
        return True

    # --- content ---

    def _update_file(self, child: HostEntry, inode: Inode) -> None:
        status = child.stat
        if _is_same_content(inode, status) and not self._checksum:
            child.attributes = read_attributes(child.path)
            return
        fd = open_listed(child.path, status)
        try:
            child.attributes = read_attributes(fd)
            if status.st_size <= INLINE_DATA_BYTES:
                self._update_small(fd, status.st_size, inode)
            else:
                self._update_large(fd, status, inode)
            self._note_change(child, os.fstat(fd), inode)
        finally:
            os.close(fd)

    def _note_change(self, child: HostEntry, now: os.stat_result, inode: Inode) -> None:
        """Report a file that changed while it was read, and cut what was padded where it shrank."""
        change = change_between(child.stat, now)
        if change:
            self._report.changed.append((os.fsdecode(child.path), change))
        if now.st_size < inode.size_bytes:
            self._store.set_size(inode, now.st_size)

    def _update_small(self, fd: int, size_bytes: int, inode: Inode) -> None:
        data = os.pread(fd, size_bytes, 0)
        is_hole = not data_segments(fd, size_bytes)
        if (self._store.data_ranges(inode) == []) == is_hole and self._store.read(inode) == data:
            return
        self._store.set_size(inode, 0)
        if is_hole:
            self._store.set_size(inode, len(data))
        else:
            self._store.write_part(inode, 0, memoryview(data))
        self._report.n_bytes += len(data)

    def _update_large(self, fd: int, status: os.stat_result, inode: Inode) -> None:
        """Make a file of blocks the host's; broken off it is a mixture, within its size, that has a time of its own."""
        store = self._store
        store.inodes.mark_dirty(inode)
        before = inode.size_bytes, inode.n_blocks, self._report.n_bytes
        try:
            if inode.size_bytes > status.st_size:
                store.set_size(inode, status.st_size)
            with store.growing(inode) as tree:
                self._update_segments(fd, status.st_size, inode, tree)
                inode.size_bytes = status.st_size
        finally:
            if before != (inode.size_bytes, inode.n_blocks, self._report.n_bytes):
                inode.mtime_ns = time.time_ns()  # until it has the host's the next update does not take it for the copy

    def _update_segments(self, fd: int, size_bytes: int, inode: Inode, tree: BlockTree) -> None:
        """Compare block by block with the host's data, and holes with holes."""
        position = 0
        for start, stop in data_segments(fd, size_bytes):
            content.punch(inode, tree, position, start)
            for first in range(start, stop, _COMPARE_BLOCKS):
                self._update_blocks(fd, size_bytes, inode, tree, first, min(stop - first, _COMPARE_BLOCKS))
            position = stop
        content.punch(inode, tree, position, content.n_blocks_of(size_bytes))

    def _update_blocks(
        self, fd: int, size_bytes: int, inode: Inode, tree: BlockTree, first: int, n_blocks: int
    ) -> None:
        """Rewrite those of n_blocks blocks that differ."""
        theirs = np.zeros(n_blocks * BLOCK_BYTES, np.uint8)
        ours = np.empty(n_blocks * BLOCK_BYTES, np.uint8)
        offset = first * BLOCK_BYTES
        read_fully(fd, offset, [theirs.data[: size_bytes - offset]])
        tree.read(first, n_blocks, ours)
        differs = self._differing(theirs, ours)
        present = np.zeros(n_blocks, np.bool_)
        for start, stop in tree.data_extents(first, first + n_blocks).tolist():
            present[start - first : stop - first] = True
        for start, stop in mask_runs(differs | ~present):
            self._rewrite(tree, first + start, theirs[start * BLOCK_BYTES : stop * BLOCK_BYTES])
        inode.n_blocks += int(n_blocks - present.sum())

    @staticmethod
    def _differing(theirs: NDArray[np.uint8], ours: NDArray[np.uint8]) -> NDArray[np.bool_]:
        words = theirs.view(np.uint64) != ours.view(np.uint64)
        return np.asarray(words.reshape(-1, BLOCK_BYTES // 8).any(axis=1))

    def _rewrite(self, tree: BlockTree, first: int, data: NDArray[np.uint8]) -> None:
        n_blocks = len(data) // BLOCK_BYTES
        self._report.n_blocks_written += n_blocks
        self._report.n_bytes += len(data)
        if n_blocks >= content.DIRECT_BLOCKS:
            content.write_spans(tree, first, data)
        else:
            for i in range(n_blocks):
                tree.edit_block(first + i)[:] = data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
        if tree.n_dirty > _DIRTY_BLOCKS:
            tree.flush()


def _is_same_content(inode: Inode, status: os.stat_result) -> bool:
    """Whether size and time say that a file holds what the host's does."""
    return inode.size_bytes == status.st_size and inode.mtime_ns == clamp_time(status.st_mtime_ns)
