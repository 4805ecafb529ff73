"""The reading half of block trees: their shape, the pointers in them, verified blocks, a bounded cache.

Reading verifies each block against the check in the pointer to it. Blocks that a writer has changed and not placed yet
(`_dirty`) are seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import ChecksumError, VolumeDamagedError
from blockplane.volume.codec import (
    FORM_TREE,
    KIND_BLOCK,
    KIND_SHIFT,
    NODE_POINTERS,
    NUMBER_MASK,
    ROOT_POINTERS,
    PointerArray,
    TreeRoot,
    empty_pointers,
)
from blockplane.volume.nodesmet import NodesMet
from blockplane.volume.runs import mask_runs, merge_extents, runs_of
from blockplane.volume.treeio import Block, BlockReader, BlockWriter

ZERO_BLOCK: Block = np.zeros(BLOCK_BYTES, np.uint8)
ZERO_BLOCK.flags.writeable = False

# Clean blocks a tree keeps: 4 MiB a tree, the upper levels of the inode file of a busy volume many times over.
MAX_CLEAN_BLOCKS = 1024
# Blocks fetched ahead with one request: what is read of several trees in turns stays in memory until it is used.
FETCH_BLOCKS = 256

NODE_SHIFT = NODE_POINTERS.bit_length() - 1


class Node:
    """A leaf or pointer block in memory."""

    __slots__ = ("data", "dirty", "number", "slot")

    def __init__(self, data: Block) -> None:
        self.data = data
        self.dirty = False
        self.number = -1  # the new number, between place and finish
        self.slot: Block | None = None

    def pointers(self) -> PointerArray:
        """Return the block as (256, 2) words, a view."""
        return self.data.view(np.uint64).reshape(NODE_POINTERS, 2)


NodeKey = tuple[int, int]


class TreeReader:
    """See the module. Not thread-safe for writing; a tree that nobody changes may be read by several threads."""

    def __init__(self, reader: BlockReader, root: TreeRoot | None = None, writer: BlockWriter | None = None) -> None:
        self.root = root if root is not None else TreeRoot()
        self._reader = reader
        self._writer = writer
        self._nodes: dict[NodeKey, Node] = {}
        self._dirty: dict[NodeKey, Node] = {}
        self.n_reads = 0

    # --- shape -------------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """The size the owner gave the tree, in bytes; not bound to what is allocated."""
        return self.root.size_bytes

    @size_bytes.setter
    def size_bytes(self, value: int) -> None:
        self.root.size_bytes = value

    @property
    def is_dirty(self) -> bool:
        """Whether a leaf or node waits for its place."""
        return bool(self._dirty)

    @property
    def n_dirty(self) -> int:
        """How many leaves and nodes wait for their place."""
        return len(self._dirty)

    def capacity_blocks(self) -> int:
        """Return how many blocks the tree reaches at its present depth."""
        return ROOT_POINTERS << (NODE_SHIFT * self.root.depth)

    # --- pointers ----------------------------------------------------------------------------------------------------

    def pointer(self, level: int, index: int) -> tuple[int, int]:
        """Return (word, check) of the pointer to leaf or node (level, index); (0, 0) for a hole."""
        if self.root.form != FORM_TREE or index >= ROOT_POINTERS << (NODE_SHIFT * (self.root.depth - level)):
            return 0, 0
        if level == self.root.depth:
            entry = self.root.pointers[index]
        else:
            node = self._node(level + 1, index >> NODE_SHIFT)
            if node is None:
                return 0, 0
            entry = node.pointers()[index & (NODE_POINTERS - 1)]
        return int(entry[0]), int(entry[1])

    def has_same(self, other: TreeReader, index: int) -> bool:
        """Whether block index is one and the same on disk in both trees; a changed one is not."""
        if (0, index) in self._dirty or (0, index) in other._dirty:
            return False
        return self.pointer(0, index) == other.pointer(0, index)

    def adopt_clean(self, other: TreeReader) -> None:
        """Take over the cached blocks of a tree that has just been committed as this one; both keep them, unchanged."""
        for key, node in list(other._nodes.items()):
            if not node.dirty:
                node.data.flags.writeable = False
                self._nodes[key] = Node(node.data)

    def node(self, level: int, index: int) -> PointerArray:
        """Return the pointers of a node, (256, 2) read-only in spirit; all holes where the node is one."""
        found = self._node(level, index)
        return found.pointers() if found is not None else empty_pointers(NODE_POINTERS)

    def pointers(self, start: int, stop: int) -> PointerArray:
        """Return the pointers to leaves start..stop, shape (stop - start, 2), a fresh array."""
        out = empty_pointers(stop - start)
        if self.root.form != FORM_TREE:
            return out
        stop = min(stop, self.capacity_blocks())
        if self.root.depth == 0:
            out[: max(stop - start, 0)] = self.root.pointers[start:stop]
            return out
        if stop - start > NODE_POINTERS:
            self._fetch_nodes(start >> NODE_SHIFT, ((stop - 1) >> NODE_SHIFT) + 1)
        at = start
        while at < stop:
            end = min(stop, (at | (NODE_POINTERS - 1)) + 1)
            found = self._node(1, at >> NODE_SHIFT)
            if found is not None:
                low = at & (NODE_POINTERS - 1)
                out[at - start : end - start] = found.pointers()[low : low + end - at]
            at = end
        return out

    def _fetch_nodes(self, start: int, stop: int) -> None:
        """Bring the lowest nodes start..stop into memory, those that are not there with one request."""
        self._fetch(1, range(start, stop))

    def fetch_blocks(self, indexes: Iterable[int]) -> None:
        """Bring up to FETCH_BLOCKS blocks into memory, those that are not there with one request."""
        self._fetch(0, indexes)

    def _fetch(self, level: int, indexes: Iterable[int]) -> None:
        missing = [index for index in indexes if (level, index) not in self._nodes]
        pointers = np.array([self.pointer(level, index) for index in missing], np.uint64).reshape(-1, 2)
        present = np.flatnonzero(pointers[:, 0])
        if not 1 < len(present) < MAX_CLEAN_BLOCKS // 2:
            return
        data = np.empty(len(present) * BLOCK_BYTES, np.uint8)
        self._read_verified(pointers[present], data)
        for at, block in zip(present.tolist(), data.reshape(-1, BLOCK_BYTES), strict=True):
            self._remember(level, missing[at], Node(block))

    def _node(self, level: int, index: int) -> Node | None:
        """Return the leaf or node, reading it when needed; None for a hole."""
        node = self._nodes.get((level, index))
        if node is not None:
            return node
        word, check = self.pointer(level, index)
        if not word:
            return None
        data = np.empty(BLOCK_BYTES, np.uint8)
        self._read_verified(np.array([[word, check]], np.uint64), data)
        node = Node(data)
        self._remember(level, index, node)
        return node

    def _remember(self, level: int, index: int, node: Node) -> None:
        if len(self._nodes) >= MAX_CLEAN_BLOCKS + len(self._dirty):
            self._evict()
        self._nodes[level, index] = node

    def _evict(self) -> None:
        """Forget the older half of the clean leaves and nodes."""
        clean = [key for key, node in list(self._nodes.items()) if not node.dirty]
        for key in clean[: len(clean) // 2 + 1]:
            self._nodes.pop(key, None)  # another reader may have been here first

    def _read_verified(self, pointers: PointerArray, out: Block) -> None:
        """Read the blocks that pointers (n, 2), none a hole, name, and compare their checks."""
        words = pointers[:, 0]
        if (words >> np.uint64(KIND_SHIFT) != KIND_BLOCK).any():
            raise VolumeDamagedError("a tree holds a pointer of unknown kind", "run `blockplane check`")
        numbers = (words & np.uint64(NUMBER_MASK)).astype(np.int64)
        self.n_reads += len(numbers)
        self._reader.read_extents(runs_of(numbers), out)
        bad = first_bad_block(out, numbers, pointers[:, 1].astype(np.uint32))
        if bad >= 0:
            raise ChecksumError(
                f"block {numbers[bad]} does not match its checksum",
                int(numbers[bad]),
                "run `blockplane check` to see what it belongs to; restore it from a snapshot or a stream",
            )

    def known_pointers(self) -> PointerArray:
        """Return the pointers (n, 2), of every level, that can be read: nothing is known below a damaged node.

        A block that several pointers lead to is met once.
        """
        if self.root.form != FORM_TREE:
            return empty_pointers(0)
        found, waiting = [], [(self.root.depth, 0, self.root.pointers)]
        met: set[tuple[int, int]] = set()
        while waiting:
            level, first, pointers = waiting.pop()
            found.append(pointers[pointers[:, 0] != 0])
            for at, word in enumerate(pointers[:, 0].tolist()) if level else ():
                try:
                    node = self._node(level, first + at) if (level, word) not in met else None
                except ChecksumError:
                    continue
                if node is not None:
                    met.add((level, word))
                    waiting.append((level - 1, (first + at) << NODE_SHIFT, node.pointers()))
        return np.unique(np.concatenate(found), axis=0)

    # --- reading -----------------------------------------------------------------------------------------------------

    def read_block(self, index: int) -> Block:
        """Return block index, verified and cached: do not write to it. A hole is a shared block of zeros."""
        node = self._node(0, index)
        return node.data if node is not None else ZERO_BLOCK

    def read(self, first: int, n_blocks: int, out: Block) -> None:
        """Fill out (n_blocks * 4096 bytes) with blocks first, ...; holes are zeros, dirty blocks are seen."""
        at = 0
        while at < n_blocks:
            take = min(n_blocks - at, 4 * NODE_POINTERS)
            self._read_part(first + at, take, out[at * BLOCK_BYTES : (at + take) * BLOCK_BYTES])
            at += take

    def _read_part(self, first: int, n_blocks: int, out: Block) -> None:
        pointers = self.pointers(first, first + n_blocks)
        present = pointers[:, 0] != 0
        if present.all():
            self._read_verified(pointers, out)
        else:
            out[:] = 0
            for start, stop in mask_runs(present):
                self._read_verified(pointers[start:stop], out[start * BLOCK_BYTES : stop * BLOCK_BYTES])
        if self._dirty:
            blocks = out.reshape(-1, BLOCK_BYTES)
            for (level, index), node in self._dirty.items():
                if level == 0 and first <= index < first + n_blocks:
                    blocks[index - first] = node.data

    def read_scattered(self, indexes: NDArray[np.int64], out: Block) -> None:
        """Fill out with the blocks that indexes (n,), ascending, name, with one request; holes are zeros.

        Notes
        -----
        For trees of committed states: blocks that wait for their place are not seen.
        """
        assert not self._dirty, "a scattered read of a tree that changes"
        nodes, starts = np.unique(indexes >> NODE_SHIFT, return_index=True)
        parts = [
            self.pointers(int(part[0]), int(part[-1]) + 1)[part - part[0]]
            for part in np.split(indexes, starts[1:])
            if len(nodes)
        ]
        pointers = np.concatenate([empty_pointers(0), *parts])
        present = pointers[:, 0] != 0
        if present.all() and len(pointers):
            self._read_verified(pointers, out)
        elif len(pointers):
            packed = np.empty(int(present.sum()) * BLOCK_BYTES, np.uint8)
            if len(packed):
                self._read_verified(pointers[present], packed)
            blocks = out.reshape(-1, BLOCK_BYTES)
            blocks[present] = packed.reshape(-1, BLOCK_BYTES)
            blocks[~present] = 0

    def data_extents(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return the blocks in start..stop that are no holes, dirty ones included, as extents (n, 2)."""
        found: list[tuple[int, int]] = []
        reach = self.capacity_blocks() if self.root.form == FORM_TREE else 0
        end = reach if stop is None else min(stop, reach)
        for low, high in self.mapped(start, end):
            pointers = self.pointers(low, high)
            found += [(low + a, low + b) for a, b in mask_runs(pointers[:, 0] != 0)]
        found += [
            (index, index + 1)
            for level, index in self._dirty
            if level == 0 and start <= index and (stop is None or index < stop)
        ]
        return merge_extents(found)

    def mapped(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of leaves, at most one node's, that have a node above them, cut to start..stop.

        Raises
        ------
        VolumeDamagedError: one block is a node at two places of a level: the walk of such a tree may have no end.
        """
        yield from self._descend(self.root.depth, 0, ROOT_POINTERS, (start, stop), NodesMet())

    def _descend(
        self, level: int, low: int, high: int, span: tuple[int, int], met: NodesMet
    ) -> Iterator[tuple[int, int]]:
        """Yield what lies below leaves or nodes low..high, all of one node."""
        shift = NODE_SHIFT * level
        low, high = max(low, span[0] >> shift), min(high, -(-span[1] >> shift))
        if low >= high or level == 0:
            if low < high:
                yield low, high
            return
        words = self._words(level, low, high)
        met.meet(level, words)
        for index, word in enumerate(words.tolist(), low):
            if word or (level, index) in self._nodes:
                yield from self._descend(level - 1, index << NODE_SHIFT, (index + 1) << NODE_SHIFT, span, met)

    def _words(self, level: int, low: int, high: int) -> NDArray[np.uint64]:
        """Return the pointers' first words to leaves or nodes low..high, all of one node."""
        if level == self.root.depth:
            return self.root.pointers[low:high, 0]
        first = low & -NODE_POINTERS
        return self.node(level + 1, low >> NODE_SHIFT)[low - first : high - first, 0]

    def node_numbers(self) -> list[int]:
        """Return the numbers of every pointer block (level 1 and up)."""
        if self.root.form != FORM_TREE:
            return []
        found: list[int] = []
        level, indexes = self.root.depth, list(range(ROOT_POINTERS))
        while level > 0:
            existing = [i for i in indexes if self.pointer(level, i)[0] or (level, i) in self._nodes]
            words = [self.pointer(level, index)[0] for index in existing]
            found += [word & NUMBER_MASK for word in words if word]
            level -= 1
            indexes = [child for index in existing for child in range(index << NODE_SHIFT, (index + 1) << NODE_SHIFT)]
        return found
