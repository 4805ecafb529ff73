"""Block trees: a sparse array of 4 KiB blocks under sixteen root pointers of equal depth.

Every metafile and every file is one. Writing never overwrites: a changed leaf or node stays in memory until `flush` (or
the consistency point's `place` and `finish`) gives it a new number, and every node above it changes with it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import fresh_checks
from blockplane.model.errors import ReadOnlyError, VolumeDamagedError
from blockplane.volume.codec import (
    BLOCK_WORD,
    FORM_EMPTY,
    FORM_INLINE,
    FORM_TREE,
    MAX_DEPTH,
    NODE_POINTERS,
    NUMBER_MASK,
    ROOT_POINTERS,
    PointerArray,
    empty_pointers,
)
from blockplane.volume.nodesmet import NodesMet
from blockplane.volume.treeio import Block, BlockWriter, Span
from blockplane.volume.treeread import MAX_CLEAN_BLOCKS, NODE_SHIFT, Node, TreeReader

# From this many dirty leaves on they are placed as a run; fewer fill the stripes that metafile blocks use anyway.
MIN_RUN_BLOCKS = 16


class BlockTree(TreeReader):
    """A tree that can be changed where it has a writer. Not thread-safe for writing."""

    def _require_writer(self) -> BlockWriter:
        if self._writer is None:
            raise ReadOnlyError("this state is read-only", "write to the live file system instead")
        return self._writer

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
            # only now: where there was no room a hole is one still; what was read for the nodes above may push it out
            self._nodes[level, index] = node
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
        for numbers, buffer in writer.allocate_run(n_blocks):
            spans.append(Span(index, numbers, buffer))
            index += len(numbers)
        return spans

    def filled(self, spans: list[Span]) -> None:
        """Point the tree at filled spans: checks are computed, the blocks they replace released."""
        writer = self._require_writer()
        for span in spans:
            checks = fresh_checks(span.buffer, span.numbers)
            writer.filled(span.numbers, checks)
            entries = empty_pointers(span.n_blocks)
            entries[:, 0] = span.numbers.astype(np.uint64) | np.uint64(BLOCK_WORD)
            entries[:, 1] = checks
            self._replace(span.index, entries)

    def punch(self, start: int, stop: int) -> None:
        """Make blocks start..stop holes."""
        self._require_writer()
        if self.root.form != FORM_TREE:
            return
        stop = min(stop, self.capacity_blocks())
        for low, high in list(self.mapped(start, stop)):
            if self.pointers(low, high)[:, 0].any() or any((0, i) in self._nodes for i in range(low, high)):
                self._replace(low, empty_pointers(high - low))
        if start == 0 and stop >= self.capacity_blocks():
            self._clear()

    def abandon(self) -> None:
        """Empty a tree of which nodes are damaged: blocks that cannot be known of stay occupied, by nobody."""
        numbers = (self.known_pointers()[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64)
        if len(numbers):
            self._require_writer().release(np.sort(numbers))
        self._forget_all()

    def _clear(self) -> None:
        """Release every node of a tree whose leaves are all holes."""
        numbers = self.node_numbers()
        if numbers:
            self._require_writer().release(np.array(numbers, np.int64))
        self._forget_all()

    def _forget_all(self) -> None:
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

    def touch_within(self, start: int, stop: int, most: int) -> int:
        """Have leaves and nodes whose numbers lie in a range placed anew, at most so many; return how many."""
        n_touched, indexes, met = 0, np.arange(ROOT_POINTERS), NodesMet()
        for level in range(self.root.depth, -1, -1) if self.root.form == FORM_TREE else ():
            words = self._words_at(level, indexes)
            indexes, words = indexes[words != 0], words[words != 0]
            numbers = (words & np.uint64(NUMBER_MASK)).astype(np.int64)
            if level:
                met.meet(level, words)
            for index in indexes[(start <= numbers) & (numbers < stop)].tolist():
                if n_touched == most:
                    return n_touched
                if (level, index) not in self._dirty:
                    self._edit(level, index)
                n_touched += 1
            indexes = (indexes[:, None] * NODE_POINTERS + np.arange(NODE_POINTERS)).reshape(-1)
        return n_touched

    def _words_at(self, level: int, indexes: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Return the pointers' first words of leaves or nodes of a level, whose parents all exist, in order."""
        if level == self.root.depth:
            words: NDArray[np.uint64] = self.root.pointers[indexes, 0]
            return words
        parents = indexes[::NODE_POINTERS] >> NODE_SHIFT
        parts = [self.node(level + 1, parent)[:, 0] for parent in parents.tolist()]
        return np.concatenate([np.empty(0, np.uint64), *parts])

    def n_clean_above(self, index: int) -> int:
        """Return how many more blocks wait for their place once leaf index is edited: it, and nodes above it."""
        for level in range(self.root.depth + 1):
            if (level, index >> (NODE_SHIFT * level)) in self._dirty:
                return level
        return self.root.depth + 1

    # --- commit ------------------------------------------------------------------------------------------------------

    def dirty_positions(self) -> list[tuple[int, int]]:
        """Return (level, index) of every leaf and node that waits for its place."""
        return list(self._dirty)

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
        for numbers, buffer in self._require_writer().allocate_run(len(leaves)):
            for i, number in enumerate(numbers.tolist()):
                node = next(waiting)
                node.number, node.slot = number, buffer[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]

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
            writer.filled(np.array([node.number], np.int64), check)
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


def touched(tree: BlockTree, start: int, stop: int, most: int, note: Callable[[], None]) -> int:
    """Have blocks of a tree whose root stands in a table placed anew, and that written."""
    n_touched = tree.touch_within(start, stop, most)
    if n_touched:
        tree.flush()
        note()
    return n_touched
