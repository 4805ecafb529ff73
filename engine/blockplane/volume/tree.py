"""Block trees: a sparse array of 4 KiB blocks under sixteen root pointers of equal depth.

Every metafile and every file is one. Reading verifies each block against the check in the pointer to it. Writing
never overwrites: a changed leaf or node stays in memory until `flush` (or the consistency point's `place` and
`finish`) gives it a new number, and every node above it changes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import first_bad_block, fresh_checks
from blockplane.model.errors import ChecksumError, ReadOnlyError, VolumeDamagedError
from blockplane.volume.codec import (
    BLOCK_WORD,
    FORM_EMPTY,
    FORM_INLINE,
    FORM_TREE,
    KIND_BLOCK,
    KIND_SHIFT,
    MAX_DEPTH,
    NODE_POINTERS,
    NUMBER_MASK,
    ROOT_POINTERS,
    PointerArray,
    TreeRoot,
    empty_pointers,
)

Block = NDArray[np.uint8]
ZERO_BLOCK: Block = np.zeros(BLOCK_BYTES, np.uint8)
ZERO_BLOCK.flags.writeable = False

# Clean blocks a tree keeps: 4 MiB a tree, the upper levels of the inode file of a busy volume many times over.
MAX_CLEAN_BLOCKS = 1024

# From this many dirty leaves on they are placed as a run; fewer fill the stripes that metafile blocks use anyway.
MIN_RUN_BLOCKS = 16

NODE_SHIFT = NODE_POINTERS.bit_length() - 1


@dataclass(slots=True)
class Span:
    """Freshly allocated blocks of a file: consecutive indexes, consecutive numbers, and where their bytes go."""

    index: int
    n_blocks: int
    vbn: int
    buffer: Block


class BlockReader(Protocol):
    """Gives the raw bytes of numbered blocks."""

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Fill out with the blocks of extents (n, 2), in order; unverified."""
        ...


class BlockWriter(BlockReader, Protocol):
    """What a writable tree asks of its volume."""

    def allocate_block(self) -> tuple[int, Block]:
        """Return a fresh number and the buffer its bytes must be in before the commit."""
        ...

    def allocate_run(self, n_blocks: int) -> list[tuple[int, int, Block]]:
        """Return runs of fresh numbers, (first, count, buffer), in all n_blocks."""
        ...

    def claim(self, n_blocks: int) -> None:
        """Reserve room for blocks that became dirty; NoSpaceError: there is none."""
        ...

    def filled(self, first: int, checks: NDArray[np.uint32]) -> None:
        """Note that the bytes of numbers first, first + 1, ... are in their buffers, and what their checks are."""
        ...

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Give up numbers that the tree no longer points to."""
        ...


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


class BlockTree:
    """See the module. Not thread-safe for writing; reads of distinct trees may run side by side."""

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

    def _grow(self, stop: int) -> None:
        """Deepen the tree until block stop - 1 is within reach."""
        if self.root.form == FORM_INLINE:
            raise VolumeDamagedError("a tree that is inline has no blocks", "store its bytes as a block first")
        self.root.form = FORM_TREE
        while stop > self.capacity_blocks():
            if self.root.depth == MAX_DEPTH:
                raise ValueError(f"block {stop - 1} lies beyond the largest file")
            old = self.root.pointers
            has_blocks = bool(old[:, 0].any()) or any(level == self.root.depth for level, _ in self._dirty)
            if has_blocks:
                self._require_writer().claim(1)  # before anything changes: without room the tree stays as it is
            self.root.depth += 1
            self.root.pointers = empty_pointers()
            if has_blocks:
                top = Node(np.zeros(BLOCK_BYTES, np.uint8))
                top.pointers()[:ROOT_POINTERS] = old
                self._nodes[self.root.depth, 0] = top
                self._mark(self.root.depth, 0, top)

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

    def has_same(self, other: BlockTree, index: int) -> bool:
        """Whether block index is one and the same on disk in both trees; a changed one is not."""
        if (0, index) in self._dirty or (0, index) in other._dirty:
            return False
        return self.pointer(0, index) == other.pointer(0, index)

    def adopt_clean(self, other: BlockTree) -> None:
        """Take over the cached blocks of a tree that has just been committed as this one; both keep them, unchanged."""
        for key, node in other._nodes.items():
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
        at = start
        while at < stop:
            end = min(stop, (at | (NODE_POINTERS - 1)) + 1)
            found = self._node(1, at >> NODE_SHIFT)
            if found is not None:
                low = at & (NODE_POINTERS - 1)
                out[at - start : end - start] = found.pointers()[low : low + end - at]
            at = end
        return out

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
        clean = [key for key, node in self._nodes.items() if not node.dirty]
        for key in clean[: len(clean) // 2 + 1]:
            del self._nodes[key]

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
        for low, high in self._mapped(start, end):
            pointers = self.pointers(low, high)
            found += [(low + a, low + b) for a, b in mask_runs(pointers[:, 0] != 0)]
        found += [
            (index, index + 1)
            for level, index in self._dirty
            if level == 0 and start <= index and (stop is None or index < stop)
        ]
        return merge_extents(found)

    def _mapped(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of leaves, at most one node's, that have a node above them, cut to start..stop."""
        yield from self._descend(self.root.depth, 0, ROOT_POINTERS, start, stop)

    def _descend(self, level: int, low: int, high: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        shift = NODE_SHIFT * level
        low, high = max(low, start >> shift), min(high, -(-stop >> shift))
        if level == 0:
            if low < high:
                yield low, high
            return
        for index in range(low, high):
            if self._exists(level, index):
                yield from self._descend(level - 1, index << NODE_SHIFT, (index + 1) << NODE_SHIFT, start, stop)

    def _exists(self, level: int, index: int) -> bool:
        return bool(self.pointer(level, index)[0]) or (level, index) in self._nodes

    def node_numbers(self) -> list[int]:
        """Return the numbers of every pointer block (level 1 and up)."""
        if self.root.form != FORM_TREE:
            return []
        found: list[int] = []
        level, indexes = self.root.depth, list(range(ROOT_POINTERS))
        while level > 0:
            existing = [index for index in indexes if self._exists(level, index)]
            words = [self.pointer(level, index)[0] for index in existing]
            found += [word & NUMBER_MASK for word in words if word]
            level -= 1
            indexes = [child for index in existing for child in range(index << NODE_SHIFT, (index + 1) << NODE_SHIFT)]
        return found

    # --- writing -----------------------------------------------------------------------------------------------------

    def _require_writer(self) -> BlockWriter:
        if self._writer is None:
            raise ReadOnlyError("this state is read-only", "write to the live file system instead")
        return self._writer

    def edit_block(self, index: int) -> Block:
        """Return block index to be changed in place; it stays in memory until it is placed."""
        node = self._dirty.get((0, index))
        if node is not None:
            return node.data
        self._require_writer()
        self._grow(index + 1)
        return self._edit(0, index).data

    def _edit(self, level: int, index: int) -> Node:
        node = self._dirty.get((level, index))
        if node is None:
            found = self._node(level, index)
            node = found if found is not None else Node(np.zeros(BLOCK_BYTES, np.uint8))
            if not node.data.flags.writeable:
                node.data = node.data.copy()
            self._touch(level, index, node)
            if found is None:  # only now: where there was no room it is a hole still
                self._remember(level, index, node)
        return node

    def _touch(self, level: int, index: int, node: Node) -> None:
        """Mark every node above a leaf or node dirty, then itself: where room ends on the way, none dirty is alone."""
        if level < self.root.depth and (level + 1, index >> NODE_SHIFT) not in self._dirty:
            self._edit(level + 1, index >> NODE_SHIFT)
        self._require_writer().claim(1)
        self._mark(level, index, node)

    def _mark(self, level: int, index: int, node: Node) -> None:
        node.dirty = True
        self._dirty[level, index] = node

    def allocate(self, first: int, n_blocks: int) -> list[Span]:
        """Take new places for blocks first, ...; the caller fills every byte of every buffer, then calls `filled`.

        Raises
        ------
        NoSpaceError: the volume cannot hold them; nothing changed.
        """
        writer = self._require_writer()
        self._grow(first + n_blocks)
        if self.root.depth and n_blocks:
            # the nodes above claim their room now: once places are handed out `filled` must not fail
            for node in range(first >> NODE_SHIFT, ((first + n_blocks - 1) >> NODE_SHIFT) + 1):
                self._edit(1, node)
        spans, index = [], first
        for number, count, buffer in writer.allocate_run(n_blocks):
            spans.append(Span(index, count, number, buffer))
            index += count
        return spans

    def filled(self, spans: list[Span]) -> None:
        """Point the tree at filled spans: checks are computed, the blocks they replace released."""
        writer = self._require_writer()
        for span in spans:
            checks = fresh_checks(span.buffer, span.vbn)
            writer.filled(span.vbn, checks)
            entries = empty_pointers(span.n_blocks)
            entries[:, 0] = np.arange(BLOCK_WORD | span.vbn, (BLOCK_WORD | span.vbn) + span.n_blocks, dtype=np.uint64)
            entries[:, 1] = checks
            self._replace(span.index, entries)

    def punch(self, start: int, stop: int) -> None:
        """Make blocks start..stop holes."""
        self._require_writer()
        if self.root.form != FORM_TREE:
            return
        stop = min(stop, self.capacity_blocks())
        for low, high in list(self._mapped(start, stop)):
            if self.pointers(low, high)[:, 0].any() or any((0, i) in self._nodes for i in range(low, high)):
                self._replace(low, empty_pointers(high - low))
        if start == 0 and stop >= self.capacity_blocks():
            self._clear()

    def _clear(self) -> None:
        """Release every node of a tree whose leaves are all holes."""
        numbers = self.node_numbers()
        if numbers:
            self._require_writer().release(np.array(numbers, np.int64))
        self._nodes.clear()
        self._dirty.clear()
        self.root.form, self.root.depth, self.root.pointers = FORM_EMPTY, 0, empty_pointers()

    def _replace(self, first: int, entries: PointerArray) -> None:
        """Set the pointers to leaves first, ... to entries, releasing what they pointed to."""
        at, n = 0, len(entries)
        while at < n:
            index = first + at
            if self.root.depth == 0:
                here, low, take = self.root.pointers, index, n - at
            else:
                here = self._edit(1, index >> NODE_SHIFT).pointers()
                low = index & (NODE_POINTERS - 1)
                take = min(n - at, NODE_POINTERS - low)
            old = here[low : low + take, 0]
            if old.any():
                numbers = (old[old != 0] & np.uint64(NUMBER_MASK)).astype(np.int64)
                self._require_writer().release(numbers)
            here[low : low + take] = entries[at : at + take]
            self._forget(index, take)
            at += take

    def _forget(self, first: int, n_blocks: int) -> None:
        if not self._nodes:
            return
        for index in range(first, first + n_blocks) if n_blocks < len(self._nodes) else self._cached(first, n_blocks):
            self._nodes.pop((0, index), None)
            self._dirty.pop((0, index), None)

    def _cached(self, first: int, n_blocks: int) -> list[int]:
        return [index for level, index in self._nodes if level == 0 and first <= index < first + n_blocks]

    # --- commit ------------------------------------------------------------------------------------------------------

    def place(self) -> int:
        """Give every dirty leaf and node that has none a new number; return how many there were."""
        writer = self._require_writer()
        waiting = [(key, node) for key, node in self._dirty.items() if node.number < 0]
        waiting.sort(key=lambda item: item[0])
        released = []
        n_leaves = sum(level == 0 for (level, _), _ in waiting)
        if n_leaves >= MIN_RUN_BLOCKS:
            self._place_run([node for (level, _), node in waiting if level == 0])
        for (level, index), node in waiting:
            if node.number < 0:
                node.number, node.slot = writer.allocate_block()
            entry = self._entry(level, index)
            if entry[0]:
                released.append(int(entry[0]) & NUMBER_MASK)
            entry[0] = BLOCK_WORD | node.number
        if released:
            writer.release(np.array(released, np.int64))
        return len(waiting)

    def _place_run(self, leaves: list[Node]) -> None:
        """Give leaves consecutive numbers as far as the volume has them, so that a file lies together."""
        waiting = iter(leaves)
        for number, count, buffer in self._require_writer().allocate_run(len(leaves)):
            for i in range(count):
                node = next(waiting)
                node.number, node.slot = number + i, buffer[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]

    def _entry(self, level: int, index: int) -> NDArray[np.uint64]:
        """Return the pointer entry, a writable view, of a leaf or node whose parents are dirty."""
        if level == self.root.depth:
            entries = self.root.pointers
        else:
            entries = self._dirty[level + 1, index >> NODE_SHIFT].pointers()
            index &= NODE_POINTERS - 1
        entry: NDArray[np.uint64] = entries[index]
        return entry

    def finish(self) -> None:
        """Compute checks from the leaves up and hand every placed block to its buffer; all of it must be placed."""
        writer = self._require_writer()
        for (level, index), node in sorted(self._dirty.items(), key=lambda item: item[0]):
            slot = node.slot
            assert slot is not None, "a tree was finished before all of it was placed"
            slot[:] = node.data
            check = fresh_checks(slot, node.number)
            self._entry(level, index)[1] = check[0]
            writer.filled(node.number, check)
        for node in self._dirty.values():
            node.dirty, node.number, node.slot = False, -1, None
        self._dirty.clear()
        if len(self._nodes) > MAX_CLEAN_BLOCKS:
            self._evict()

    def flush(self) -> None:
        """Place and finish: afterwards `root` describes the tree as it now is."""
        if self._dirty:
            self.place()
            self.finish()

    def drop_cache(self) -> None:
        """Forget everything in memory, changes included."""
        self._nodes.clear()
        self._dirty.clear()


def runs_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the runs of consecutive numbers, in the order given, as extents (n, 2)."""
    if len(numbers) == 1:
        first = int(numbers[0])
        return np.array([[first, first + 1]], np.int64)
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    out = np.empty((len(breaks) + 1, 2), np.int64)
    out[0, 0] = numbers[0]
    out[1:, 0] = numbers[breaks + 1]
    out[:-1, 1] = numbers[breaks] + 1
    out[-1, 1] = numbers[-1] + 1
    return out


def mask_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the half-open runs of True in a mask."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    flat = edges.tolist()
    return list(zip(flat[::2], flat[1::2], strict=True))


def merge_extents(found: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Return extents (n, 2), ascending and non-touching, that cover the ranges found in any order."""
    out: list[list[int]] = []
    for start, stop in sorted(found):
        if out and start <= out[-1][1]:
            out[-1][1] = max(out[-1][1], stop)
        else:
            out.append([start, stop])
    return np.array(out, np.int64).reshape(-1, 2)
