"""The inode record: 512 bytes, of which the first 272 are the volume's tree root and 240 the file system's.

The one module that knows the record's offsets; FORMAT.md beside this file draws them.
"""

from __future__ import annotations

import stat
import struct
from typing import TYPE_CHECKING

from blockplane.filesystem.errors import damaged
from blockplane.volume.codec import FORM_EMPTY, FORM_INLINE, FORM_TREE, TREE_ROOT_BYTES, TreeRoot

if TYPE_CHECKING:
    from blockplane.filesystem.directory import Directory
    from blockplane.volume.tree import BlockTree

INODE_BYTES = 512
INODES_PER_BLOCK = 8
MAX_INODE = 1 << 48
TABLE_INODE = 0
ROOT_INODE = 1
FIRST_INODE = 2
INLINE_DATA_BYTES = 256
INLINE_ATTRIBUTE_BYTES = 128
MAX_FILE_BYTES = 1 << 52
MAX_TIME_NS = (1 << 63) - 1

FLAG_ATTRIBUTES = 1
FLAG_TABLE = 2
FLAG_FREE = 4
FLAG_ORPHAN = 8
KNOWN_FLAGS = FLAG_ATTRIBUTES | FLAG_TABLE | FLAG_FREE | FLAG_ORPHAN

DOS_READ_ONLY, DOS_HIDDEN, DOS_SYSTEM, DOS_ARCHIVE = 1, 2, 4, 32
DOS_MASK = DOS_READ_ONLY | DOS_HIDDEN | DOS_SYSTEM | DOS_ARCHIVE

_RECORD = struct.Struct("<IIIIII4qQQQQQQH6x")
_RECORD_OFFSET = TREE_ROOT_BYTES
MODE_OFFSET = _RECORD_OFFSET
_ATTRIBUTES_OFFSET = _RECORD_OFFSET + _RECORD.size
_TYPES = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))
_WITHOUT_DATA = frozenset((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))

assert _ATTRIBUTES_OFFSET + INLINE_ATTRIBUTE_BYTES == INODE_BYTES


def clamp_time(time_ns: int) -> int:
    """Return a host's time as far as the record can hold it: the years 1677 to 2262."""
    return min(max(time_ns, -MAX_TIME_NS), MAX_TIME_NS)


class Inode:
    """One inode in memory: its record, its content's handle, whether it must be written.

    mode holds type and permissions; times are ns since 1970. ``inline`` is the content where it is at most 256 bytes
    and not in a tree; ``n_blocks`` counts allocated data blocks. ``tree``, ``directory``, ``dirty`` and ``n_open`` are
    never stored. Of free inodes and orphans ``parent`` is the next in their list.
    """

    __slots__ = (
        "__weakref__", "atime_ns", "attribute_inode", "attributes", "created_ns", "ctime_ns", "directory", "dirty",
        "dos_attributes", "flags", "generation", "gid", "inline", "mode", "mtime_ns", "n_blocks", "n_entries", "n_open",
        "nlink", "number", "parent", "rdev", "root", "size_bytes", "tree", "uid",
    )  # fmt: skip

    def __init__(self, number: int, mode: int, now_ns: int = 0, parent: int = 0) -> None:
        self.number = number
        self.mode = mode
        self.flags = 0
        self.uid = self.gid = 0
        self.nlink = 0
        self.dos_attributes = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.created_ns = now_ns
        self.rdev = 0
        self.parent = parent
        self.generation = 0
        self.n_blocks = 0
        self.n_entries = 0
        self.attribute_inode = 0
        self.attributes = b""
        self.size_bytes = 0
        self.inline: bytes | None = None
        self.root: TreeRoot | None = None
        self.tree: BlockTree | None = None
        self.directory: Directory | None = None
        self.dirty = False
        self.n_open = 0

    @property
    def type(self) -> int:
        """The S_IF* part of the mode; 0 when free."""
        return self.mode & 0o170000

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.mode & 0o170000 == stat.S_IFDIR

    def tree_root(self) -> TreeRoot:
        """Return the tree root as it stands now: inline, of the (flushed) tree, or empty."""
        if self.inline:
            return TreeRoot(FORM_INLINE, 0, self.size_bytes, inline=self.inline)
        root = self.tree.root if self.tree is not None else self.root
        if root is None:
            return TreeRoot(FORM_EMPTY, 0, self.size_bytes)
        root.size_bytes = self.size_bytes
        return root

    def encode(self) -> bytes:
        """Return the 512 bytes; the tree must be flushed."""
        record = _RECORD.pack(
            self.mode, self.flags, self.uid, self.gid, self.nlink, self.dos_attributes,
            self.atime_ns, self.mtime_ns, self.ctime_ns, self.created_ns,
            self.rdev, self.parent, self.generation, self.n_blocks, self.n_entries, self.attribute_inode,
            len(self.attributes),
        )  # fmt: skip
        return self.tree_root().encode() + record + self.attributes.ljust(INLINE_ATTRIBUTE_BYTES, b"\0")

    @classmethod
    def decode(cls, number: int, data: bytes) -> Inode:
        """Read the 512 bytes of an inode.

        Raises
        ------
        FileSystemDamagedError: a field is outside what the format allows; the message names the inode and the field.
        """
        inode = cls(number, 0)
        (
            inode.mode, inode.flags, inode.uid, inode.gid, inode.nlink, inode.dos_attributes,
            inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.created_ns,
            inode.rdev, inode.parent, inode.generation, inode.n_blocks, inode.n_entries, inode.attribute_inode,
            n_attributes,
        ) = _RECORD.unpack_from(data, _RECORD_OFFSET)  # fmt: skip
        inode.attributes = data[_ATTRIBUTES_OFFSET : _ATTRIBUTES_OFFSET + n_attributes]
        root = TreeRoot.decode(data[:TREE_ROOT_BYTES])
        inode.size_bytes = root.size_bytes
        if root.form == FORM_INLINE:
            inode.inline = root.inline
        elif root.form == FORM_TREE:
            inode.root = root
        wrong = inode._contradiction(n_attributes)
        if wrong:
            raise damaged(f"inode {number}: {wrong}")
        return inode

    def _contradiction(self, n_attributes: int) -> str:
        """Name the first field that the format does not allow, or return an empty string."""
        kind = self.type
        if self.flags & ~KNOWN_FLAGS:
            return f"unknown flags {self.flags:#x}"
        if self.mode >> 16 or (kind not in _TYPES and not (self.mode == 0 and self.flags & (FLAG_FREE | FLAG_TABLE))):
            return f"unknown type (mode {self.mode:#o})"
        if self.parent >= MAX_INODE or self.attribute_inode >= MAX_INODE:
            return "an inode number is too large"
        if n_attributes > INLINE_ATTRIBUTE_BYTES or (self.attribute_inode and n_attributes):
            return "its attributes are impossible"
        if self.size_bytes > MAX_FILE_BYTES or self.n_blocks > MAX_FILE_BYTES >> 12:
            return f"size {self.size_bytes} is impossible"
        if self.inline is not None and len(self.inline) != self.size_bytes:
            return f"size {self.size_bytes} with {len(self.inline)} bytes inline"
        if kind in _WITHOUT_DATA and (self.size_bytes or self.root is not None):
            return "a fifo, socket or device has data"
        if self.rdev & 0x80000000_80000000:
            return f"device number {self.rdev:#x} is impossible"
        if kind == stat.S_IFDIR and (self.inline or self.size_bytes % 4096):
            return "a directory's size is impossible"
        return ""
