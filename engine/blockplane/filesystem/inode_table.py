"""The inode table: inodes in memory, their write-back, and which numbers are free.

Inode 0 is the table's own record. Free inodes are threaded into a list by their ``parent`` fields, and so are
orphans (removed while open, or when the process died): taking and freeing one costs the same however many there are.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from blockplane.disks import aligned_buffer
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import (
    FIRST_INODE,
    FLAG_FREE,
    FLAG_ORPHAN,
    FLAG_TABLE,
    INODE_BYTES,
    INODES_PER_BLOCK,
    MAX_INODE,
    ROOT_INODE,
    TABLE_INODE,
    Inode,
)
from blockplane.model import BLOCK_BYTES
from blockplane.volume.codec import FORM_EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from blockplane.volume.tree import BlockTree

# Clean inodes kept, about 1 KiB each. Turn up for trees with more files than this that are walked again and again.
_CACHED_INODES = 16384
# Inode blocks read together by `fetch`, 128 KiB, where that reads at most four times what is asked for, and 32 more.
_AHEAD_BLOCKS = 32


class InodeTable:
    """Inodes by number.

    Parameters
    ----------
    inode_file : the tree of inode blocks; empty on a new volume, which then shows an empty root directory.

    Notes
    -----
    One Inode object exists per number as long as anybody holds it. The table record uses these fields of inode 0:
    ``parent`` heads the free list, ``attribute_inode`` the orphans, ``n_entries`` counts inodes in use (the root
    included), ``rdev`` is the number behind the last that was ever used, ``generation`` counts inodes made.
    """

    def __init__(self, inode_file: BlockTree) -> None:
        self._file = inode_file
        self._live: WeakValueDictionary[int, Inode] = WeakValueDictionary()
        self._recent: dict[int, Inode] = {}
        self._dirty: dict[int, Inode] = {}
        self._dirty_blocks: set[int] = set()
        self._ahead: dict[int, NDArray[np.uint8]] = {}  # blocks as they are on the disks; gone with the first change
        self.is_new = inode_file.root.form == FORM_EMPTY
        self._record = self._new_record() if self.is_new else self._read(TABLE_INODE)
        if not self._record.flags & FLAG_TABLE:
            raise damaged("inode 0 is not the table's record")
        if self.is_new:
            self._remember(_new_root())

    def _new_record(self) -> Inode:
        record = Inode(TABLE_INODE, 0)
        record.flags = FLAG_TABLE
        record.rdev = FIRST_INODE
        record.n_entries = 1
        return record

    @property
    def n_inodes(self) -> int:
        """Inodes in use, the root included."""
        return self._record.n_entries

    @property
    def stop(self) -> int:
        """The number behind the last inode that was ever used."""
        return self._record.rdev

    @property
    def n_dirty_blocks(self) -> int:
        """How many blocks of the inode file the next write-back changes."""
        return len(self._dirty_blocks)

    @property
    def dirty(self) -> list[Inode]:
        """Inodes to be written, in ascending order."""
        return [self._dirty[number] for number in sorted(self._dirty)]

    # --- reading ---

    def get(self, number: int) -> Inode:
        """Return an inode that is in use.

        Raises
        ------
        FileSystemDamagedError: no such inode, or its record is impossible.
        """
        inode = self._live.get(number)
        if inode is None:
            if not ROOT_INODE <= number < self.stop:
                raise damaged(f"inode {number} lies outside the inode table")
            inode = self._read(number)
            self._remember(inode)
        if not inode.mode:
            raise damaged(f"inode {number} is named somewhere but not in use")
        return inode

    def peek(self, number: int) -> Inode:
        """Return any inode's present record, free ones included, without keeping it."""
        return self._live.get(number) or self._read(number)

    def _read(self, number: int) -> Inode:
        block, slot = divmod(number, INODES_PER_BLOCK)
        found = self._ahead.get(block)
        data = (self._file.read_block(block) if found is None else found)[slot * INODE_BYTES : (slot + 1) * INODE_BYTES]
        return Inode.decode(number, data.tobytes())

    def fetch(self, numbers: Iterable[int]) -> None:
        """Read the blocks of inodes that are asked for next, and blocks beside them, with one request.

        Notes
        -----
        Nothing is read while the table has changes: `get` reads as ever.
        """
        wanted = {number // INODES_PER_BLOCK for number in numbers if number < self.stop and number not in self._live}
        missing = wanted - self._ahead.keys()
        if len(missing) < 2 or self._dirty or self._file.is_dirty:
            return
        groups = {block // _AHEAD_BLOCKS for block in missing}
        if len(groups) * _AHEAD_BLOCKS <= 4 * len(missing) + _AHEAD_BLOCKS:
            last = (self.stop - 1) // INODES_PER_BLOCK
            around = (range(group * _AHEAD_BLOCKS, (group + 1) * _AHEAD_BLOCKS) for group in groups)
            missing = {block for blocks in around for block in blocks if block <= last}
        blocks = sorted(missing)
        data = aligned_buffer(len(blocks) * BLOCK_BYTES)
        self._file.read_scattered(np.array(blocks, np.int64), data)
        self._ahead = dict(zip(blocks, data.reshape(-1, BLOCK_BYTES), strict=True))

    def _remember(self, inode: Inode) -> None:
        self._live[inode.number] = inode
        if len(self._recent) >= _CACHED_INODES:
            for number in list(self._recent)[: _CACHED_INODES // 2]:
                del self._recent[number]
        self._recent[inode.number] = inode

    def has(self, inode: Inode) -> bool:
        """Whether it is what its number means here: not one of a table before a rollback, nor one that was freed."""
        return self._live.get(inode.number) is inode

    # --- changing ---

    def mark_dirty(self, inode: Inode) -> None:
        """Have the inode written at the next flush."""
        if not inode.dirty:
            inode.dirty = True
            self._ahead.clear()
            self._dirty[inode.number] = inode
            self._dirty_blocks.add(inode.number // INODES_PER_BLOCK)
            if self.is_new:
                self._format()

    def _format(self) -> None:
        """The first change of a new volume: the table's record and the root directory become real."""
        self.is_new = False
        for inode in (self._record, self._live[ROOT_INODE]):
            self.mark_dirty(inode)

    def allocate(self, mode: int, parent: int, now_ns: int) -> Inode:
        """Return a fresh inode, dirty, with no link yet."""
        record = self._record
        number, generation = record.parent, 0
        if number:
            free = self._take_free(number)
            record.parent, generation = free.parent, free.generation
        else:
            number = record.rdev
            if number >= MAX_INODE:
                raise damaged("the inode table is full")
            record.rdev = number + 1
        inode = Inode(number, mode, now_ns, parent)
        inode.generation = generation + 1
        record.n_entries += 1
        self._remember(inode)
        self._replace_dirty(inode)
        self.mark_dirty(record)
        return inode

    def _take_free(self, number: int) -> Inode:
        free = self.peek(number) if number < self.stop else None
        if free is None or free.mode or not free.flags & FLAG_FREE or free.parent >= self.stop:
            raise damaged(f"the list of free inodes is broken at inode {number}")
        return free

    def _replace_dirty(self, inode: Inode) -> None:
        inode.dirty = False
        self._dirty.pop(inode.number, None)
        self.mark_dirty(inode)

    def free(self, inode: Inode) -> None:
        """Put an inode without links or content on the free list."""
        record = self._record
        free = Inode(inode.number, 0)
        free.flags = FLAG_FREE
        free.generation = inode.generation
        free.parent, record.parent = record.parent, inode.number
        record.n_entries -= 1
        inode.mode, inode.flags, inode.tree, inode.root, inode.inline = 0, FLAG_FREE, None, None, None
        self._recent.pop(inode.number, None)
        self._live[inode.number] = free
        self._replace_dirty(free)
        self.mark_dirty(record)

    # --- orphans ---

    def add_orphan(self, inode: Inode) -> None:
        """Keep an inode without a link until `remove_orphan`, over a crash too."""
        inode.parent, self._record.attribute_inode = self._record.attribute_inode, inode.number
        inode.flags |= FLAG_ORPHAN
        self.mark_dirty(inode)
        self.mark_dirty(self._record)

    def remove_orphan(self, inode: Inode) -> None:
        """Take an inode out of the orphans; costs as much as there are younger ones."""
        before = self._record
        for orphan in self.orphans():
            if orphan is inode:
                break
            before = orphan
        if before is self._record:
            before.attribute_inode = inode.parent
        else:
            before.parent = inode.parent
        inode.parent = 0
        inode.flags &= ~FLAG_ORPHAN
        self.mark_dirty(before)
        self.mark_dirty(inode)

    def orphans(self) -> list[Inode]:
        """Return all orphans, youngest first; FileSystemDamagedError: the list is broken."""
        found: list[Inode] = []
        number = self._record.attribute_inode
        while number:
            inode = self.get(number)
            if not inode.flags & FLAG_ORPHAN or len(found) >= self.n_inodes:
                raise damaged(f"the list of orphans is broken at inode {number}")
            found.append(inode)
            number = inode.parent
        return found

    def free_numbers(self) -> set[int]:
        """Walk the free list and return its members; for checks only. FileSystemDamagedError: it is broken."""
        found: set[int] = set()
        number = self._record.parent
        while number:
            if number in found:
                raise damaged(f"the list of free inodes is a loop at inode {number}")
            found.add(number)
            number = self._take_free(number).parent
        return found

    # --- write-back ---

    def write_back(self) -> None:
        """Encode dirty inodes, whose trees are flushed, into blocks of the inode file."""
        if self.is_new:
            return  # an inode file that was never written has no size: a later table would read holes
        block, data = -1, None
        for inode in self.dirty:
            index, slot = divmod(inode.number, INODES_PER_BLOCK)
            if data is None or index != block:
                block, data = index, self._file.edit_block(index)
            data[slot * INODE_BYTES : (slot + 1) * INODE_BYTES] = np.frombuffer(inode.encode(), np.uint8)
            inode.dirty = False
        self._dirty.clear()
        self._dirty_blocks.clear()
        self._file.size_bytes = -(-self.stop // INODES_PER_BLOCK) * BLOCK_BYTES


def _new_root() -> Inode:
    now_ns = time.time_ns()
    root = Inode(ROOT_INODE, stat.S_IFDIR | 0o755, now_ns, ROOT_INODE)
    root.nlink = 2
    return root
