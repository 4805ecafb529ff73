"""A directory: a B+tree of (hash of the name, name) -> (inode, type) on the blocks of the directory's own tree.

Block 0 is always the root. Nodes are decoded once, changed as lists and encoded when a consistency point flushes them.
The file stays dense: a node that goes away is replaced by the last one, so that no list of free blocks is stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from blockplane.filesystem.directory_build import pack_branches, pack_leaves
from blockplane.filesystem.directory_node import (
    CAPACITY_BYTES,
    FIRST_KEY,
    LAST_KEY,
    MAX_LEVEL,
    MAX_NODES,
    Key,
    Node,
    hash_name,
    pack_target,
    unpack_target,
)
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import MAX_INODE
from blockplane.model import BLOCK_BYTES, VolumeDamagedError

if TYPE_CHECKING:
    from blockplane.volume.tree import BlockTree

# Clean decoded nodes kept per directory, about 15 KiB each. More helps random look-ups in very large directories only.
_CACHED_NODES = 1024
_MERGE_BELOW_BYTES = CAPACITY_BYTES // 4
_MERGE_UP_TO_BYTES = CAPACITY_BYTES * 3 // 4


class Entry(NamedTuple):
    """A directory's entry; type is the S_IF* bits shifted down by 12, as in a host's d_type."""

    name: bytes
    inode: int
    type: int


class _Step(NamedTuple):
    """A node on the way from the root: its block, and which child of its parent it is (0 for the root)."""

    node: Node
    block: int
    child: int


class Directory:
    """The entries of one directory.

    Parameters
    ----------
    owner : the directory's inode number; every node names it.
    tree : the directory's blocks.

    Notes
    -----
    Not thread-safe: the store's lock is held around every call. Insert, find and remove cost O(log n).
    """

    def __init__(self, owner: int, tree: BlockTree) -> None:
        self.owner = owner
        self.tree = tree
        self.n_nodes = tree.size_bytes // BLOCK_BYTES
        self._nodes: dict[int, Node] = {}
        self._dirty: set[int] = set()

    @property
    def size_bytes(self) -> int:
        """Bytes of all nodes."""
        return self.n_nodes * BLOCK_BYTES

    @property
    def n_dirty(self) -> int:
        """Nodes that a flush would write."""
        return len(self._dirty)

    def find(self, name: bytes) -> Entry | None:
        """Return the entry of that name, or None."""
        if not self.n_nodes:
            return None
        hash_ = hash_name(name)
        leaf = self._begin((hash_, name))[-1].node
        i = leaf.find(hash_, name)
        return Entry(name, *self._target(leaf, i)) if i >= 0 else None

    def insert(self, name: bytes, inode: int, kind: int) -> bool:
        """Add an entry; return False, and change nothing, when the name is taken."""
        if not self.n_nodes:
            self._new_node(Node(0))
        key = hash_name(name), name
        path = self._begin(key)
        leaf = path[-1].node
        if leaf.find(*key) >= 0:
            return False
        self._insert_at(path, key, pack_target(inode, kind))
        return True

    def replace(self, name: bytes, inode: int, kind: int) -> None:
        """Point an entry that is there at another inode."""
        key = hash_name(name), name
        step = self._begin(key)[-1]
        i = step.node.find(*key)
        if i < 0:
            raise damaged(f"directory {self.owner}: an entry vanished")
        step.node.values[i] = pack_target(inode, kind)
        self._dirty.add(step.block)

    def remove(self, name: bytes) -> bool:
        """Remove an entry; return False when there is none of that name.

        Raises
        ------
        VolumeDamagedError: a node that the removal has to change cannot be read; nothing was changed.
        """
        if not self.n_nodes:
            return False
        key = hash_name(name), name
        path = self._begin(key)
        i = path[-1].node.find(*key)
        if i < 0:
            return False
        self._require_movable([step.block for step in self._emptied(path)])
        path[-1].node.delete(i)
        self._dirty.add(path[-1].block)
        self._shrink(path)
        return True

    def entries(self, after: Key | None = None) -> Iterator[Entry]:
        """Iterate in key order, from behind a key on (hash and name of the last entry seen).

        Notes
        -----
        The directory may change between steps: every entry that stays is seen exactly once.
        """
        for node, start in self._leaves(after):
            for i in range(start, len(node)):
                yield Entry(node.names[i], *self._target(node, i))

    def all_entries(self) -> list[Entry]:
        """Return all entries in key order."""
        return list(self.entries())

    def build(self, entries: Iterable[Entry]) -> None:
        """Fill an empty directory from entries in any order, all names distinct; O(n log n), no splits."""
        assert not self.n_nodes
        keyed = sorted((hash_name(entry.name), entry.name, pack_target(entry.inode, entry.type)) for entry in entries)
        if not keyed:
            return
        self.n_nodes = 1
        level: list[tuple[Key, Node]] = pack_leaves(keyed)
        while len(level) > 1:
            level = pack_branches([(bound, self._new_node(node)) for bound, node in level], level[0][1].level + 1)
        self._nodes[0] = level[0][1]
        self._dirty.add(0)

    def flush(self) -> None:
        """Encode changed nodes into the tree's blocks; the caller flushes the tree."""
        for block in sorted(self._dirty):
            self.tree.edit_block(block)[:] = np.frombuffer(self._nodes[block].encode(self.owner), np.uint8)
        self._dirty.clear()
        if not self.n_nodes:
            self.tree.punch(0, self.tree.capacity_blocks())
        self.tree.size_bytes = self.size_bytes
        self._trim()

    def depth(self) -> int:
        """Return the number of levels."""
        return self._load(0, None, FIRST_KEY, LAST_KEY).level + 1 if self.n_nodes else 0

    # --- reading nodes ---

    def _target(self, leaf: Node, i: int) -> tuple[int, int]:
        inode, kind = unpack_target(leaf.values[i])
        if not 0 < inode < MAX_INODE:
            raise damaged(f"directory {self.owner}: an entry names inode {inode}")
        return inode, kind

    def _load(self, block: int, level: int | None, lower: Key, upper: Key) -> Node:
        """Return a node, checked against what its parent says: level (None: the root, any) and range of keys.

        The range is checked each time, not only when the node is read: two parents that share a child, which could make
        a walk endless, cannot both be right.
        """
        node = self._nodes.get(block)
        if node is None:
            if block >= self.n_nodes:
                raise damaged(f"directory {self.owner}: a branch names block {block} of {self.n_nodes}")
            node = Node.decode(self.tree.read_block(block).tobytes(), self.owner)
            self._nodes[block] = node
        if level is not None and (node.level != level or not node.hashes):
            raise damaged(f"directory {self.owner}: block {block} is at the wrong level, or empty")
        if (node.level and not node.hashes) or not node.lies_within(lower, upper):
            raise damaged(f"directory {self.owner}: block {block} is empty or holds keys outside its range")
        return node

    def _trim(self, limit: int = _CACHED_NODES) -> None:
        """Forget clean nodes, oldest first, when there are more than the limit."""
        if len(self._nodes) - len(self._dirty) > limit:
            clean = [block for block in self._nodes if block and block not in self._dirty]
            for block in clean[: len(clean) - _CACHED_NODES]:
                del self._nodes[block]

    def _begin(self, key: Key) -> list[_Step]:
        """Return the way to the leaf of a key; no node is forgotten from here on to the operation's end."""
        self._trim(2 * _CACHED_NODES)
        return self._descend(key)

    def _descend(self, key: Key, level: int = 0) -> list[_Step]:
        """Return the way from the root to the node of a level whose range holds the key."""
        return self._descend_bounded(key, level)[0]

    def _descend_bounded(self, key: Key, level: int = 0) -> tuple[list[_Step], Key]:
        """Return the way, and the upper bound of the range of its last node."""
        lower, upper = FIRST_KEY, LAST_KEY
        node = self._load(0, None, lower, upper)
        path = [_Step(node, 0, 0)]
        while node.level > level:
            i = node.child_index(*key)
            if i:
                lower = node.key(i)
            if i + 1 < len(node):
                upper = node.key(i + 1)
            block = node.values[i]
            node = self._load(block, node.level - 1, lower, upper)
            path.append(_Step(node, block, i))
        return path, upper

    def _leaves(self, after: Key | None) -> Iterator[tuple[Node, int]]:
        """Iterate over (a copy of a leaf, index of the first entry to look at)."""
        if not self.n_nodes:
            return
        cursor, strict = (after, True) if after is not None else (FIRST_KEY, False)
        while cursor < LAST_KEY and self.n_nodes:
            self._trim(2 * _CACHED_NODES)
            path, upper = self._descend_bounded(cursor)
            leaf = path[-1].node
            start = leaf.lower_bound(*cursor)
            if strict and start < len(leaf) and leaf.key(start) == cursor:
                start += 1
            snapshot = Node(0)
            snapshot.hashes, snapshot.names, snapshot.values = leaf.hashes[:], leaf.names[:], leaf.values[:]
            yield snapshot, start
            cursor, strict = upper, False

    # --- changing nodes ---

    def _new_node(self, node: Node) -> int:
        """Give a node the next block."""
        if self.n_nodes >= MAX_NODES:
            raise damaged(f"directory {self.owner} is full")
        block = self.n_nodes
        self.n_nodes += 1
        self._nodes[block] = node
        self._dirty.add(block)
        return block

    def _insert_at(self, path: list[_Step], key: Key, value: int) -> None:
        """Insert into the last node of a way, splitting upward as far as needed."""
        node, block, _ = path[-1]
        if node.fits(key[1]):
            node.insert(node.lower_bound(*key), key, value)
            self._dirty.add(block)
            return
        if len(path) == 1:
            path = self._raise_root()
            node, block, _ = path[-1]
        bound, right = node.split()
        target = right if key >= bound else node
        target.insert(target.lower_bound(*key), key, value)
        self._dirty.add(block)
        self._insert_at(path[:-1], bound, self._new_node(right))

    def _raise_root(self) -> list[_Step]:
        """Move the root's content into a new node below it; return the way to that node."""
        root = self._nodes[0]
        if root.level >= MAX_LEVEL:
            raise damaged(f"directory {self.owner} is too deep")
        child = Node(root.level)
        child.become(root)
        block = self._new_node(child)
        fresh = Node(child.level + 1)
        fresh.insert(0, FIRST_KEY, block)
        root.become(fresh)
        self._dirty.add(0)
        return [_Step(root, 0, 0), _Step(child, block, 0)]

    def _shrink(self, path: list[_Step]) -> None:
        """After a removal: drop empty nodes, merge one with little left into a neighbour, then give blocks back."""
        unused: list[int] = []
        while len(path) > 1:
            node, block, child = path[-1]
            parent = path[-2]
            if not node.hashes:
                parent.node.drop_child(child)
                self._dirty.add(parent.block)
                unused.append(block)
            elif node.used_bytes >= _MERGE_BELOW_BYTES or not self._merge(path, child if child else 1, unused):
                break
            path = path[:-1]
        self._lower_root(unused)
        # Highest first: the last node, which moves into the gap, is then never one that goes away itself.
        for block in sorted(unused, reverse=True):
            self._release(block)

    @staticmethod
    def _emptied(path: list[_Step]) -> list[_Step]:
        """Return the steps, below the root, whose nodes have nothing left when the last one loses an entry."""
        return list(takewhile(lambda step: len(step.node) == 1, reversed(path[1:])))

    def _require_movable(self, unused: list[int]) -> None:
        """Raise VolumeDamagedError unless the last nodes can be moved to where these blocks are given back."""
        for block in range(max(self.n_nodes - len(unused), 1), self.n_nodes):
            if block not in unused:
                self._parent_of(block)

    def _merge(self, path: list[_Step], index: int, unused: list[int]) -> bool:
        """Merge child index of the last step's parent into the child before it, when both fit well into one.

        A neighbour that is damaged stays as it is: nothing needs the merge.
        """
        parent = path[-2]
        if index >= len(parent.node):
            return False
        bound = parent.node.key(index)
        try:
            left = self._load_child(parent.node, index - 1)
            right = self._load_child(parent.node, index)
            if left.used_bytes + right.used_bytes + len(bound[1]) > _MERGE_UP_TO_BYTES:
                return False
            self._require_movable([*unused, parent.node.values[index]])
        except VolumeDamagedError:
            return False
        left.absorb(right, bound)
        self._dirty.update((parent.node.values[index - 1], parent.block))
        unused.append(parent.node.values[index])
        parent.node.drop_child(index)
        return True

    def _load_child(self, parent: Node, index: int) -> Node:
        """Return a child by its index."""
        upper = parent.key(index + 1) if index + 1 < len(parent) else LAST_KEY
        return self._load(parent.values[index], parent.level - 1, parent.key(index), upper)

    def _lower_root(self, unused: list[int]) -> None:
        """Give the root its only child's content while it has but one; an empty root goes away."""
        root = self._nodes[0]
        with contextlib.suppress(VolumeDamagedError):  # as with a merge: a root with one child does as well
            while root.level and len(root) == 1:
                block, child = root.values[0], self._load_child(root, 0)
                self._require_movable([*unused, block])
                root.become(child)
                self._dirty.add(0)
                unused.append(block)
        if not root.hashes:
            unused.append(0)

    def _release(self, block: int) -> None:
        """Give a block back: the last node moves there, and the file ends one block earlier."""
        self._nodes.pop(block, None)
        self._dirty.discard(block)
        last = self.n_nodes - 1
        if block != last:
            self._move(last, block)
        self.n_nodes = last
        self.tree.punch(last, last + 1)

    def _move(self, last: int, block: int) -> None:
        """Move a node to another block and tell its parent."""
        node, parent, i = self._parent_of(last)
        parent.node.values[i] = block
        self._nodes.pop(last, None)
        self._nodes[block] = node
        self._dirty.discard(last)
        self._dirty.update((parent.block, block))

    def _parent_of(self, block: int) -> tuple[Node, _Step, int]:
        """Return the node in a block, the step to its parent, and which child it is there."""
        node = self._read_unplaced(block)
        leaf = node
        while leaf.level:
            level = leaf.level
            leaf = self._read_unplaced(leaf.values[0])
            if leaf.level != level - 1:
                raise damaged(f"directory {self.owner}: a child is at the wrong level")
        key = leaf.key(0)
        parent = self._descend(key, node.level + 1)[-1]
        i = parent.node.child_index(*key)
        if parent.node.level != node.level + 1 or parent.node.values[i] != block:
            raise damaged(f"directory {self.owner}: block {block} has no parent")
        return node, parent, i

    def _read_unplaced(self, block: int) -> Node:
        """Return a node whose parent is not known, so that only its own block can be checked."""
        node = self._nodes.get(block) or Node.decode(self.tree.read_block(block).tobytes(), self.owner)
        if not node.hashes:
            raise damaged(f"directory {self.owner}: block {block} is empty")
        return node
