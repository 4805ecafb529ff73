"""Block trees against a dict: sparse and deep, holes, edits, runs, flushes, reopening."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from blockplane.model import BLOCK_BYTES, ChecksumError, NoSpaceError, ReadOnlyError, VolumeDamagedError
from blockplane.model.checks import fresh_checks
from blockplane.volume import tree as tree_module
from blockplane.volume import treeread
from blockplane.volume.codec import KIND_SHIFT, NUMBER_MASK, TreeRoot
from blockplane.volume.runs import mask_runs, merge_extents, runs_of
from blockplane.volume.tree import BlockTree

#: Where blocks are put: the borders of every depth, up to beyond 1 TiB, and places between.
BORDERS = [0, 15, 16, 17, 255, 256, 4095, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1, 1 << 28, (1 << 28) + 255]
indexes = st.one_of(st.sampled_from(BORDERS), st.integers(0, 40), st.integers(0, 5000))


class Store:
    """Blocks by number in a dict; a writer that keeps count of what it gave out and got back."""

    def __init__(self, room: int = 1 << 60) -> None:
        self.blocks: dict[int, bytes] = {}
        self.buffers: dict[int, np.ndarray] = {}
        self.released: set[int] = set()
        self.next = 1
        self.room = room
        self.n_reads = 0

    def read_extents(self, extents: np.ndarray, out: np.ndarray) -> None:
        numbers = [n for start, stop in extents.tolist() for n in range(start, stop)]
        self.n_reads += len(numbers)
        data = b"".join(self.blocks[n] if n in self.blocks else self.buffers[n].tobytes() for n in numbers)
        out[:] = np.frombuffer(data, np.uint8)

    def claim(self, n_blocks: int) -> None:
        if n_blocks > self.room:
            raise NoSpaceError("full")
        self.room -= n_blocks

    def _take(self, n: int) -> tuple[int, np.ndarray]:
        first = self.next
        self.next += n
        buffer = np.full(n * BLOCK_BYTES, 0xEE, np.uint8)
        for i in range(n):
            self.buffers[first + i] = buffer[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
        return first, buffer

    def allocate_block(self) -> tuple[int, np.ndarray]:
        first, buffer = self._take(1)
        self.next += 1
        return first, buffer

    def allocate_run(self, n_blocks: int) -> list[tuple[np.ndarray, np.ndarray]]:
        runs = []
        while n_blocks:
            n = min(n_blocks, 5)  # a run breaks now and then, as at a chunk border
            first, buffer = self._take(n)
            runs.append((np.arange(first, first + n), buffer))
            self.next += 3
            n_blocks -= n
        return runs

    def filled(self, numbers: np.ndarray, checks: np.ndarray) -> None:
        for number, check in zip(numbers.tolist(), checks.tolist(), strict=True):
            data = self.buffers.pop(number)
            assert fresh_checks(data, number)[0] == check
            self.blocks[number] = data.tobytes()

    def release(self, numbers: np.ndarray) -> None:
        for number in numbers.tolist():
            assert number not in self.released, f"{number} was given up twice"
            assert number in self.blocks or number in self.buffers, f"{number} was never given out"
            self.released.add(number)

    def in_use(self) -> set[int]:
        return (set(self.blocks) | set(self.buffers)) - self.released


def block_of(value: int) -> np.ndarray:
    return np.full(BLOCK_BYTES // 8, value, np.uint64).view(np.uint8)


def reachable(tree: BlockTree) -> set[int]:
    numbers = set(tree.node_numbers())
    for start, stop in tree.data_extents().tolist():
        numbers |= {int(word) & NUMBER_MASK for word in tree.pointers(start, stop)[:, 0].tolist() if word}
    return numbers


class TreeMachine(RuleBasedStateMachine):
    """A tree and a dict of what its blocks hold."""

    @initialize()
    def start(self) -> None:
        self.store = Store()
        self.tree = BlockTree(self.store, TreeRoot(), self.store)
        self.model: dict[int, int] = {}

    @rule(index=indexes, value=st.integers(1, 1 << 60))
    def edit(self, index: int, value: int) -> None:
        self.tree.edit_block(index)[:] = block_of(value)
        self.model[index] = value

    @rule(index=indexes, low=st.integers(0, 511), value=st.integers(1, 1 << 60))
    def edit_keeps_what_was_there(self, index: int, low: int, value: int) -> None:
        words = self.tree.edit_block(index).view(np.uint64)
        assert words[low] == self.model.get(index, 0)
        words[:] = value
        self.model[index] = value

    @rule(first=indexes, n=st.integers(1, 30), value=st.integers(1, 1 << 60))
    def allocate(self, first: int, n: int, value: int) -> None:
        spans = self.tree.allocate(first, n)
        assert spans[0].index == first
        assert sum(span.n_blocks for span in spans) == n
        for span in spans:
            for i in range(span.n_blocks):
                span.buffer[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES] = block_of(value + span.index - first + i)
        self.tree.filled(spans)
        self.model.update({first + i: value + i for i in range(n)})

    @rule(start=indexes, n=st.sampled_from([1, 2, 17, 300, 1 << 21, 1 << 40]))
    def punch(self, start: int, n: int) -> None:
        self.tree.punch(start, start + n)
        self.model = {index: value for index, value in self.model.items() if not start <= index < start + n}

    @rule()
    def flush(self) -> None:
        self.tree.flush()
        assert not self.tree.is_dirty
        assert self.store.buffers == {}

    @rule()
    def reopen(self) -> None:
        """Committed and forgotten: all that counts is in the root and the blocks."""
        self.tree.flush()
        root = TreeRoot.decode(self.tree.root.encode())
        self.tree = BlockTree(self.store, root, self.store)

    @precondition(lambda self: not self.tree.is_dirty)
    @rule()
    def nothing_is_leaked(self) -> None:
        assert reachable(self.tree) == self.store.in_use()

    @rule(first=indexes, n=st.integers(1, 40))
    def read(self, first: int, n: int) -> None:
        out = np.full(n * BLOCK_BYTES, 0x55, np.uint8)
        self.tree.read(first, n, out)
        blocks = out.view(np.uint64).reshape(n, -1)
        assert (blocks == blocks[:, :1]).all()
        assert blocks[:, 0].tolist() == [self.model.get(first + i, 0) for i in range(n)]

    @rule(index=indexes)
    def read_block(self, index: int) -> None:
        assert (self.tree.read_block(index).view(np.uint64) == self.model.get(index, 0)).all()

    @invariant()
    def the_blocks_that_are_there(self) -> None:
        found = {n for start, stop in self.tree.data_extents().tolist() for n in range(start, stop)}
        assert found == set(self.model)
        extents = self.tree.data_extents(10, 300).tolist()
        assert {n for start, stop in extents for n in range(start, stop)} == {n for n in self.model if 10 <= n < 300}


TreeMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTree = TreeMachine.TestCase


@pytest.mark.parametrize("n_kept", [1, 2, 6])
def test_no_change_is_lost_where_little_stays_in_memory(monkeypatch, n_kept):
    """What is about to change may be old: what is read for the nodes above it does not push it out."""
    for module in (treeread, tree_module):
        monkeypatch.setattr(module, "MAX_CLEAN_BLOCKS", n_kept)
    rng, store = random.Random(n_kept), Store()
    tree, model = BlockTree(store, TreeRoot(), store), dict[int, int]()
    indexes = [*range(8), *range(250, 262), *range(4090, 4100), 65536, 70000, 1 << 20]
    for step in range(1, 2000):
        choice, index = rng.randrange(20), rng.choice(indexes)
        if choice < 8:
            assert (tree.read_block(index).view(np.uint64) == model.get(index, 0)).all()
        elif choice < 16:
            words = tree.edit_block(index).view(np.uint64)
            assert words[0] == model.get(index, 0)
            words[:] = model[index] = step
        elif choice == 16:
            spans = tree.allocate(index, 3)
            for span in spans:
                span.buffer.view(np.uint64)[:] = step
            tree.filled(spans)
            model.update(dict.fromkeys(range(index, index + 3), step))
        elif choice == 17:
            tree.punch(index, index + 2)
            model = {n: value for n, value in model.items() if not index <= n < index + 2}
        elif choice == 18:
            tree.touch_within(store.next - rng.randrange(60), store.next, rng.randrange(1, 9))
        else:
            tree.flush()
            assert reachable(tree) == store.in_use()
    tree.flush()
    again = BlockTree(store, TreeRoot.decode(tree.root.encode()))
    starts = [n for start, stop in again.data_extents().tolist() for n in range(start, stop)]
    assert {n: int(again.read_block(n).view(np.uint64)[0]) for n in starts} == model


def test_a_tree_past_sixteen_tebibytes():
    store = Store()
    tree = BlockTree(store, TreeRoot(), store)
    far = (16 << 40) // BLOCK_BYTES + 12345
    tree.edit_block(far)[:] = block_of(7)
    tree.edit_block(0)[:] = block_of(8)
    tree.flush()
    again = BlockTree(store, TreeRoot.decode(tree.root.encode()))
    assert again.data_extents().tolist() == [[0, 1], [far, far + 1]]
    assert again.read_block(far).view(np.uint64)[0] == 7
    store.n_reads = 0
    assert again.read_block(far - 1).any() == np.False_
    assert store.n_reads == 0  # a hole beside what is there is known from the pointers


def test_a_tree_ends_somewhere():
    store = Store()
    with pytest.raises(ValueError, match="beyond"):
        BlockTree(store, TreeRoot(), store).edit_block(1 << 60)


def test_reading_without_a_writer_changes_nothing():
    store = Store()
    tree = BlockTree(store, TreeRoot(), store)
    tree.edit_block(3)[:] = block_of(1)
    tree.flush()
    reader = BlockTree(store, tree.root.copy())
    for change in (lambda: reader.edit_block(3), lambda: reader.allocate(0, 1), lambda: reader.punch(0, 9)):
        with pytest.raises(ReadOnlyError):
            change()
    assert (reader.read_block(3).view(np.uint64) == 1).all()


def test_a_block_that_does_not_match_its_check_is_not_given():
    store = Store()
    tree = BlockTree(store, TreeRoot(), store)
    for index in range(40):
        tree.edit_block(index)[:] = block_of(index + 1)
    tree.flush()
    number = int(tree.pointers(20, 21)[0, 0]) & NUMBER_MASK
    store.blocks[number] = store.blocks[number][:-1] + b"\1"
    fresh = BlockTree(store, tree.root)
    with pytest.raises(ChecksumError) as caught:
        fresh.read_block(20)
    assert caught.value.number == number
    with pytest.raises(ChecksumError):
        fresh.read(0, 40, np.empty(40 * BLOCK_BYTES, np.uint8))
    assert (fresh.read_block(19).view(np.uint64) == 20).all()


def test_the_right_block_in_the_wrong_place_is_not_given():
    store = Store()
    tree = BlockTree(store, TreeRoot(), store)
    tree.edit_block(0)[:] = block_of(5)
    tree.edit_block(1)[:] = block_of(5)
    tree.flush()
    numbers = [int(word) & NUMBER_MASK for word in tree.root.pointers[:2, 0]]
    tree.root.pointers[0, 0] = tree.root.pointers[1, 0]
    assert numbers[0] != numbers[1]
    with pytest.raises(ChecksumError):
        BlockTree(store, tree.root).read_block(0)


def test_pointers_of_unknown_kind_are_refused():
    root = TreeRoot(2, 0, BLOCK_BYTES)
    root.pointers[0, 0] = (9 << KIND_SHIFT) | 4
    with pytest.raises(VolumeDamagedError, match="kind"):
        BlockTree(Store(), root).read_block(0)


SCATTERED = [0, 3, 4, 255, 300, 4096, 70000, 70001]


def scattered_tree() -> tuple[Store, TreeRoot]:
    store = Store()
    tree = BlockTree(store, TreeRoot(), store)
    for index in SCATTERED:
        tree.edit_block(index)[:] = block_of(index + 1)
    tree.flush()
    return store, TreeRoot.decode(tree.root.encode())


@pytest.mark.parametrize("asked", [SCATTERED, SCATTERED[::-1], [5, 300, 2, 0, 69999, 70001, 4, 1 << 40], [1, 2]])
def test_blocks_brought_ahead_are_found_under_their_own_numbers(asked):
    """Holes between them take no block; a block that is in memory is not read again."""
    store, root = scattered_tree()
    tree = BlockTree(store, root)
    tree.read_block(4)
    tree.fetch_blocks(asked)
    store.n_reads = 0
    for index in asked:
        value = index + 1 if index in SCATTERED else 0
        assert (tree.read_block(index).view(np.uint64) == value).all()
    assert store.n_reads == 0
    assert [int(tree.read_block(index).view(np.uint64)[0]) for index in SCATTERED] == [n + 1 for n in SCATTERED]


def test_pointers_of_many_nodes_with_holes_between_are_those_of_each():
    store, root = scattered_tree()
    together, apart = BlockTree(store, root), BlockTree(store, root)
    found = together.pointers(0, 70002)
    assert np.flatnonzero(found[:, 0]).tolist() == SCATTERED
    for index in SCATTERED:
        assert tuple(found[index].tolist()) == apart.pointer(0, index)


@given(st.integers(0, 12), st.lists(st.tuples(indexes, st.booleans()), max_size=8))
def test_where_room_ends_the_tree_stays_whole(room, steps):
    """Whatever step finds no room: what was there is there, and can be committed."""
    store = Store()
    tree = BlockTree(store, TreeRoot(), store)
    for index in range(12):
        tree.edit_block(index)[:] = block_of(index + 1)
    tree.flush()
    model = {index: index + 1 for index in range(12)}
    store.room = room
    for index, is_run in steps:
        try:
            if is_run:
                spans = tree.allocate(index, 3)
                for span in spans:
                    span.buffer.view(np.uint64)[:] = 77
                tree.filled(spans)
                model.update(dict.fromkeys(range(index, index + 3), 77))
            else:
                tree.edit_block(index)[:] = block_of(99)
                model[index] = 99
        except NoSpaceError:
            pass
    store.room = 1 << 60
    tree.flush()
    again = BlockTree(store, TreeRoot.decode(tree.root.encode()))
    found = {
        n: int(again.read_block(n).view(np.uint64)[0]) for a, b in again.data_extents().tolist() for n in range(a, b)
    }
    assert {n: value for n, value in found.items() if value} == model
    assert store.buffers == {}


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20, unique=True))
def test_runs_of_numbers_in_their_order(numbers):
    runs = runs_of(np.array(numbers, np.int64))
    assert [n for start, stop in runs.tolist() for n in range(start, stop)] == numbers
    assert (runs[1:, 0] != runs[:-1, 1]).all()


@given(st.lists(st.booleans(), max_size=40))
def test_runs_of_a_mask(mask):
    runs = mask_runs(np.array(mask, np.bool_))
    assert [n for start, stop in runs for n in range(start, stop)] == [n for n, bit in enumerate(mask) if bit]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(runs))


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=10))
def test_merged_extents(spans):
    merged = merge_extents([(start, start + n) for start, n in spans]).tolist()
    assert {n for start, stop in merged for n in range(start, stop)} == {
        at for start, n in spans for at in range(start, start + n)
    }
    assert all(a[1] < b[0] for a, b in itertools.pairwise(merged))
