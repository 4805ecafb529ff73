"""One node of a directory: a 4 KiB block of a B+tree ordered by (hash of the name, name).

The one module that knows the node's offsets; FORMAT.md beside this file draws them. A node is kept by columns (hashes,
then values, then names), so that reading and writing one costs a few NumPy calls and not one Python step per field.
"""

from __future__ import annotations

import hashlib
import operator
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable

from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import MAX_INODE
from blockplane.model import BLOCK_BYTES

Key = tuple[int, bytes]

_HEADER = struct.Struct("<HBBHHQ")
MAGIC = 0x4442
HEADER_BYTES = _HEADER.size
CAPACITY_BYTES = BLOCK_BYTES - HEADER_BYTES
LEAF_ENTRY_BYTES = 16
BRANCH_ENTRY_BYTES = 13
MAX_LEVEL = 6
MAX_NODES = 1 << 32
FIRST_KEY: Key = (0, b"")
LAST_KEY: Key = (1 << 64, b"")

_TYPE_SHIFT = 48
_LENGTH_SHIFT = 56
_TARGET_MASK = (1 << _LENGTH_SHIFT) - 1
INODE_MASK = MAX_INODE - 1


def _blake2b_64(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


#: The hash of names. BLAKE2b cut to 64 bits: in every Python, 0.6 us a name, and nobody can make up names by the
#: thousand that share a hash, as they could with a CRC or an unkeyed multiply-and-shift hash.
hash_name: Callable[[bytes], int] = _blake2b_64


def pack_target(inode: int, kind: int) -> int:
    """Return what a leaf keeps of an entry: inode number and type (the S_IF* bits shifted down by 12)."""
    return inode | kind << _TYPE_SHIFT


def unpack_target(target: int) -> tuple[int, int]:
    """Return (inode number, type)."""
    return target & INODE_MASK, target >> _TYPE_SHIFT


class Node:
    """A node in memory: parallel lists in key order.

    values: of a leaf (level 0) packed targets, of a branch the blocks of its children. A branch's key i is the lower
    bound of child i, but its first key is always FIRST_KEY: the first child reaches down as far as the branch does.
    """

    __slots__ = ("hashes", "level", "names", "used_bytes", "values")

    def __init__(self, level: int) -> None:
        self.level = level
        self.hashes: list[int] = []
        self.names: list[bytes] = []
        self.values: list[int] = []
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def entry_bytes(self) -> int:
        """Bytes of an entry beside its name."""
        return BRANCH_ENTRY_BYTES if self.level else LEAF_ENTRY_BYTES

    def key(self, i: int) -> Key:
        """Return key i."""
        return self.hashes[i], self.names[i]

    def lower_bound(self, hash_: int, name: bytes) -> int:
        """Return the index of the first key that is not below (hash_, name)."""
        hashes, names = self.hashes, self.names
        i = bisect_left(hashes, hash_)
        while i < len(hashes) and hashes[i] == hash_ and names[i] < name:
            i += 1
        return i

    def find(self, hash_: int, name: bytes) -> int:
        """Return the index of the key, or -1."""
        i = self.lower_bound(hash_, name)
        return i if i < len(self.hashes) and self.hashes[i] == hash_ and self.names[i] == name else -1

    def child_index(self, hash_: int, name: bytes) -> int:
        """Return the index of the child whose range holds the key."""
        hashes, names = self.hashes, self.names
        i = bisect_right(hashes, hash_) - 1
        while i > 0 and hashes[i] == hash_ and names[i] > name:
            i -= 1
        return max(i, 0)

    def insert(self, i: int, key: Key, value: int) -> None:
        """Insert an entry before index i."""
        self.hashes.insert(i, key[0])
        self.names.insert(i, key[1])
        self.values.insert(i, value)
        self.used_bytes += self.entry_bytes + len(key[1])

    def delete(self, i: int) -> None:
        """Remove entry i."""
        self.used_bytes -= self.entry_bytes + len(self.names[i])
        del self.hashes[i], self.names[i], self.values[i]

    def fits(self, name: bytes) -> bool:
        """Whether an entry of that name still fits."""
        return self.used_bytes + self.entry_bytes + len(name) <= CAPACITY_BYTES

    def split(self) -> tuple[Key, Node]:
        """Move the upper half (by bytes) into a new node; return its lower bound and it."""
        half, total, cut = self.used_bytes // 2, 0, 0
        per_entry = self.entry_bytes
        while cut < len(self.hashes) - 1 and (cut == 0 or total < half):
            total += per_entry + len(self.names[cut])
            cut += 1
        right = Node(self.level)
        right.hashes, self.hashes = self.hashes[cut:], self.hashes[:cut]
        right.names, self.names = self.names[cut:], self.names[:cut]
        right.values, self.values = self.values[cut:], self.values[:cut]
        right.used_bytes = self.used_bytes - total
        self.used_bytes = total
        if not self.level:
            return separator(self.key(cut - 1), right.key(0)), right
        bound = right.key(0)
        right.set_first_key(FIRST_KEY)
        return bound, right

    def set_first_key(self, key: Key) -> None:
        """Change the first key."""
        self.used_bytes += len(key[1]) - len(self.names[0])
        self.hashes[0], self.names[0] = key

    def drop_child(self, i: int) -> None:
        """Remove child i of a branch; its range falls to the child before it, or else to the one behind."""
        self.delete(i)
        if i == 0 and self.hashes:
            self.set_first_key(FIRST_KEY)

    def absorb(self, right: Node, bound: Key) -> None:
        """Append the entries of the right neighbour, whose lower bound in the parent is given."""
        if right.level:
            right.set_first_key(bound)
        self.hashes += right.hashes
        self.names += right.names
        self.values += right.values
        self.used_bytes += right.used_bytes

    def become(self, other: Node) -> None:
        """Take over another node's content, which must not be used any more."""
        self.level, self.used_bytes = other.level, other.used_bytes
        self.hashes, self.names, self.values = other.hashes, other.names, other.values

    def encode(self, owner: int) -> bytes:
        """Return the 4,096 bytes; owner is the directory's inode number."""
        lengths = list(map(len, self.names))
        if self.level:
            columns = array("Q", self.hashes).tobytes() + array("I", self.values).tobytes() + bytes(lengths)
        else:
            packed = [value | n << _LENGTH_SHIFT for value, n in zip(self.values, lengths, strict=True)]
            columns = array("Q", self.hashes).tobytes() + array("Q", packed).tobytes()
        body = columns + b"".join(self.names)
        assert len(body) == self.used_bytes
        header = _HEADER.pack(MAGIC, self.level, 0, len(self.hashes), self.used_bytes, owner)
        return (header + body).ljust(BLOCK_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes, owner: int) -> Node:
        """Read a node.

        Raises
        ------
        FileSystemDamagedError: it is not a node of this directory, or its entries are not valid names in order.
        """
        magic, level, _, n, used_bytes, stored_owner = _HEADER.unpack_from(data)
        if magic != MAGIC or stored_owner != owner or level > MAX_LEVEL or used_bytes > CAPACITY_BYTES:
            raise damaged(f"directory {owner}: a block is not one of its nodes")
        node = cls(level)
        if n * node.entry_bytes > used_bytes:
            raise damaged(f"directory {owner}: a node claims {n} entries in {used_bytes} bytes")
        node.hashes = _column("Q", data, HEADER_BYTES, n)
        second = HEADER_BYTES + 8 * n
        if level:
            node.values = _column("I", data, second, n)
            lengths = list(data[second + 4 * n : second + 5 * n])
        else:
            packed = _column("Q", data, second, n)
            lengths = [value >> _LENGTH_SHIFT for value in packed]
            node.values = [value & _TARGET_MASK for value in packed]
        node.used_bytes = used_bytes
        node._take_names(data, lengths, owner)
        return node

    def _take_names(self, data: bytes, lengths: list[int], owner: int) -> None:
        """Cut the names out of the block and check everything about the entries."""
        position = HEADER_BYTES + len(lengths) * self.entry_bytes
        names = self.names
        for n_bytes in lengths:
            names.append(data[position : position + n_bytes])
            position += n_bytes
        if position != HEADER_BYTES + self.used_bytes:
            raise damaged(f"directory {owner}: the names of a node do not fill it")
        if not self.level:
            text = b"".join(names)
            if 0 in lengths or b"/" in text or b"\0" in text or b"." in names or b".." in names:
                raise damaged(f"directory {owner}: a node holds an impossible name")
        elif lengths and self.key(0) != FIRST_KEY:
            raise damaged(f"directory {owner}: a branch's first key is not the first of all")
        if not self.is_sorted():
            raise damaged(f"directory {owner}: a node's entries are out of order")

    def lies_within(self, lower: Key, upper: Key) -> bool:
        """Whether the keys are within a range; a branch's first key is not asked."""
        first = 1 if self.level else 0
        return len(self.hashes) <= first or (lower <= self.key(first) and self.key(-1) < upper)

    def is_sorted(self) -> bool:
        """Whether the keys ascend strictly."""
        hashes = self.hashes
        if all(map(operator.lt, hashes, hashes[1:])):
            return True
        keys = list(zip(hashes, self.names, strict=True))
        return all(map(operator.lt, keys, keys[1:]))


def _column(code: str, data: bytes, start: int, n: int) -> list[int]:
    """Read n little-endian integers."""
    return list(struct.unpack_from(f"<{n}{code}", data, start))


def separator(left: Key, right: Key) -> Key:
    """Return the shortest key above left and not above right: the lower bound that the parent keeps."""
    return (right[0], b"") if left[0] < right[0] else right
