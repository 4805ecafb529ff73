"""Marks: which VBNs entered and left the volume, by intervals of CPs (DESIGN.md, law 10).

An interval begins behind the CP of a snapshot, its *position* (of one that was received, the CP it came with), and ends
with the CP of the next position; the newest goes on to now. Each has two planes:

- **alloc**: the VBNs that entered the live state in a CP of the interval (also with a state that a rollback made the
  live one, where the CP gives them up again), or came with a snapshot that was received;
- **dealloc**: the VBNs that left the volume in one: no regular snapshot and not the live state has them any more.

A block is a VBN at a place: one that a receive brought elsewhere under the same VBN entered, and the old one may have
left. `alloc(P)`, `dealloc(P)` are the sums of the intervals from position P on. Then, for every state T that was
committed or received after P:

1. `(alloc(P) & T) - P == T - P`: the *mark image* is the difference; and `alloc(P) & T == T - P` where no block of P
   came back by a rollback or a receive, and no VBN got a second place;
2. every block of the volume now that was not in it at P is in alloc(P); every block that was in it at P and is not now
   is in dealloc(P); every block in alloc(P) is in the volume now, or in dealloc(P).

alloc looks at the live state and not at the volume, since a rollback to a snapshot older than P brings blocks that were
in the volume all the time and that P does not have: T - P has them.

What the planes hold is noted in the CP that does it (`volume/marking.py`), and they change hands inside it. They lie in
the local tree, so that after a crash they are those of the CP. Positions share them: each CP is noted once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError
from blockplane.volume.leafbits import EMPTY_LEAF, Leaf, count
from blockplane.volume.markcodec import (
    FLAG_ALLOC_UNKNOWN,
    FLAG_DEALLOC_UNKNOWN,
    INTERVAL_BYTES,
    IntervalRecord,
)
from blockplane.volume.state import read_all, write_all
from blockplane.volume.tree import BlockTree
from blockplane.volume.treeio import BlockReader

if TYPE_CHECKING:
    from blockplane.volume.local import LocalTree

Kind = Literal["alloc", "dealloc"]
KINDS: Final[tuple[Kind, Kind]] = ("alloc", "dealloc")
#: VBNs of a leaf that entered the volume (`alloc`), or left it (`dealloc`).
Note = tuple[Kind, int, Leaf]
UNKNOWN: Final[dict[Kind, int]] = {"alloc": FLAG_ALLOC_UNKNOWN, "dealloc": FLAG_DEALLOC_UNKNOWN}


class Interval:
    """One interval: its record and its two trees, as blockmaps."""

    def __init__(self, record: IntervalRecord, reader: BlockReader, writer: LocalTree | None) -> None:
        self.record = record
        self._reader = reader
        self.trees: dict[Kind, BlockTree] = {
            "alloc": BlockTree(reader, record.alloc, writer),
            "dealloc": BlockTree(reader, record.dealloc, writer),
        }

    def is_known(self, kind: Kind) -> bool:
        """Whether a plane has all that it should."""
        return not self.record.flags & UNKNOWN[kind]

    def count(self, kind: Kind) -> int:
        """Return how many bits a plane has."""
        return self.record.n_alloc if kind == "alloc" else self.record.n_dealloc

    def tree(self, kind: Kind) -> BlockTree:
        """Return a plane to read, as it was when it was last placed."""
        root = self.record.alloc if kind == "alloc" else self.record.dealloc
        return BlockTree(self._reader, root.copy())

    def leaf(self, kind: Kind, leaf: int) -> Leaf:
        """Return a leaf of a plane; do not write to it."""
        return self.trees[kind].read_block(leaf).view(np.uint64)

    def leaf_numbers(self, kind: Kind) -> Iterator[int]:
        """Yield the leaves of a plane that exist, ascending."""
        for start, stop in self.trees[kind].data_extents().tolist():
            yield from range(start, stop)

    def add(self, kind: Kind, leaf: int, words: Leaf) -> bool:
        """Set bits of a leaf; return whether that changed anything.

        A plane of which a block on the way is damaged is not known from then on, and goes on with what is noted.
        """
        try:
            return self._add(kind, leaf, words)
        except ChecksumError:
            self.drop(kind)
            self._add(kind, leaf, words)
            return True

    def _add(self, kind: Kind, leaf: int, words: Leaf) -> bool:
        fresh = words & ~self._whole_leaf(kind, leaf)
        if not fresh.any():
            return False
        tree = self.trees[kind]
        tree.edit_block(leaf).view(np.uint64)[:] |= fresh
        tree.size_bytes = max(tree.size_bytes, (leaf + 1) * BLOCK_BYTES)
        self._grow(kind, count(fresh))
        return True

    def _whole_leaf(self, kind: Kind, leaf: int) -> Leaf:
        """Return a leaf of a plane; one that is damaged is dropped, and the plane unknown from then on.

        Raises
        ------
        ChecksumError: a node above it is damaged.
        """
        try:
            return self.leaf(kind, leaf)
        except ChecksumError:
            self.trees[kind].punch(leaf, leaf + 1)
            self.record.flags |= UNKNOWN[kind]
            return EMPTY_LEAF

    def drop(self, kind: Kind) -> None:
        """Give a plane up of which a node is damaged: it is empty, and not known.

        What only that node knew of stays occupied, until `reclaim` finds that nothing refers to it.
        """
        self.trees[kind].abandon()
        self._grow(kind, -self.count(kind))
        self.record.flags |= UNKNOWN[kind]

    def _grow(self, kind: Kind, n_blocks: int) -> None:
        if kind == "alloc":
            self.record.n_alloc += n_blocks
        else:
            self.record.n_dealloc += n_blocks

    def take_in(self, other: Interval) -> None:
        """Add what another interval has."""
        for kind in KINDS:
            self.record.flags |= other.record.flags & UNKNOWN[kind]
            try:
                for leaf in other.leaf_numbers(kind):
                    self.add(kind, leaf, other._whole_leaf(kind, leaf))
            except ChecksumError:
                other.drop(kind)
            self.record.flags |= other.record.flags & UNKNOWN[kind]

    def clear(self, kind: Kind) -> None:
        """Empty a plane, and count it as known."""
        tree = self.trees[kind]
        try:
            tree.punch(0, tree.capacity_blocks())
        except ChecksumError:
            tree.abandon()
        self._grow(kind, -self.count(kind))
        self.record.flags &= ~UNKNOWN[kind]

    @property
    def is_dirty(self) -> bool:
        """Whether a plane changed."""
        return any(tree.is_dirty for tree in self.trees.values())

    def flush(self) -> None:
        """Place what changed; the record has the roots afterwards."""
        for tree in self.trees.values():
            tree.flush()


class Marks:
    """The marks of a local tree.

    Parameters
    ----------
    table : the tree of interval records.
    writer : the local tree where it is that of the open CP, else None.
    note : told that something changed.
    """

    def __init__(
        self, table: BlockTree, reader: BlockReader, writer: LocalTree | None, note: Callable[[], None]
    ) -> None:
        self._table = table
        self._reader = reader
        self._writer = writer
        self._note = note
        self._intervals: list[Interval] | None = None
        self._changed = False

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        """Whether there is a position; nothing is read to know it."""
        return bool(self._intervals) if self._intervals is not None else self._table.size_bytes > 0

    def intervals(self) -> list[Interval]:
        """Return the intervals, older first."""
        if self._intervals is None:
            data = read_all(self._table, INTERVAL_BYTES)
            records = [
                IntervalRecord.decode(data[at : at + INTERVAL_BYTES]) for at in range(0, len(data), INTERVAL_BYTES)
            ]
            self._intervals = [Interval(record, self._reader, self._writer) for record in records]
        return self._intervals

    def find(self, snapshot_id: bytes) -> Interval | None:
        """Return the interval that begins at a snapshot; None: it is no position."""
        return next((i for i in self.intervals() if i.record.snapshot_id == snapshot_id), None)

    def since(self, snapshot_id: bytes) -> list[Interval]:
        """Return the intervals from a position on; none where the snapshot is no position."""
        found = self.find(snapshot_id)
        return self.intervals()[self.intervals().index(found) :] if found is not None else []

    def trees(self) -> list[BlockTree]:
        """Return the planes of all intervals."""
        return [tree for interval in self.intervals() for tree in interval.trees.values()] if self.is_on else []

    # --- changing ----------------------------------------------------------------------------------------------------

    def begin(self, snapshot_id: bytes, flags: int = 0) -> None:
        """Let an interval begin: what is noted from now on belongs to it."""
        self.insert(len(self.intervals()), self.make(snapshot_id, flags))

    def make(self, snapshot_id: bytes, flags: int = 0) -> Interval:
        """Return an empty interval that is in no table yet."""
        return Interval(IntervalRecord(snapshot_id, flags, begun_ns=time.time_ns()), self._reader, self._writer)

    def insert(self, at: int, interval: Interval) -> None:
        """Take up an interval that was made, before the one at a position."""
        self.intervals().insert(at, interval)
        self.changed()

    def give_up(self, snapshot_ids: Collection[bytes]) -> None:
        """Sum the intervals of positions that go into those before them; the oldest is dropped."""
        if not self.is_on:
            return
        kept: list[Interval] = []
        for interval in self.intervals():
            if interval.record.snapshot_id not in snapshot_ids:
                kept.append(interval)
                continue
            if kept:
                kept[-1].take_in(interval)
            for kind in KINDS:
                interval.clear(kind)
            self.changed()
        self._intervals = kept

    def note(self, notes: Iterable[Note], is_known: bool = True) -> None:
        """Note VBNs that entered, or left, the volume in the open CP; is_known : those that left are all that did."""
        for kind, leaf, words in notes:
            if words.any() and self.intervals()[-1].add(kind, leaf, words):
                self.changed()
        if not is_known:
            self.lose("dealloc")

    def lose(self, kind: Kind) -> None:
        """Note that what entered, or left, in the open CP is not known whole."""
        self.intervals()[-1].record.flags |= UNKNOWN[kind]
        self.changed()

    def changed(self) -> None:
        """Note that a record or a plane is not what the last CP has."""
        self._changed = True
        self._note()

    def touch_within(self, start: int, stop: int, most: int) -> int:
        """See `LocalTree.touch_within`."""
        n_touched = 0
        for tree in self.trees():
            n_touched += tree.touch_within(start, stop, most - n_touched)
        if n_touched:
            self.changed()
        return n_touched

    def store(self) -> None:
        """Place what changed in the open CP."""
        if not self._changed:
            return
        for interval in self.intervals():
            if interval.is_dirty:
                interval.flush()
        write_all(self._table, b"".join(interval.record.encode() for interval in self.intervals()))
        self._changed = False
