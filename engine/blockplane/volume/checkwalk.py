"""The walk of a check: every block of a tree entered once and held against its checksum; and the list of problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import first_bad_block, fresh_checks
from blockplane.model.errors import BlockplaneError
from blockplane.volume.codec import (
    FORM_TREE,
    KIND_BLOCK,
    KIND_SHIFT,
    NUMBER_MASK,
    Pointer,
    PointerArray,
    TreeRoot,
)
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, Leaf, bits_of, by_leaf, count, set_numbers
from blockplane.volume.runs import runs_of
from blockplane.volume.treeio import BlockReader

BATCH_BLOCKS = 1024
MAX_PROBLEMS = 1000


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    problems: one sentence each, at most 1,000 and then how many more. n_unsettled: stripes that an unclean stop left
    under way, all that is live in them protected by the log; opening the volume for writing settles them. step: called
    between reads; may raise.
    """

    problems: list[str] = field(default_factory=list)
    n_blocks: int = 0
    n_states: int = 0
    n_stripes: int = 0
    n_unsettled: int = 0
    n_suppressed: int = 0
    step: Callable[[], None] = field(default=lambda: None, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, problem: str) -> None:
        """Note a problem."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        else:
            self.n_suppressed += 1


class Reach:
    """The numbers a walk reaches: a plane in leaves, and who came twice."""

    def __init__(self, name: str, report: CheckReport) -> None:
        self.leaves: dict[int, Leaf] = {}
        self._name = name
        self._report = report

    def fresh(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which numbers were not reached before, each once."""
        found = ~bits_of(lambda leaf: self.leaves.get(leaf, EMPTY_LEAF), numbers)
        first = np.zeros(len(numbers), np.bool_)
        first[np.unique(numbers, return_index=True)[1]] = True
        return found & first

    def enter(self, numbers: NDArray[np.int64], what: str) -> None:
        """Note numbers reached; one that two owners share is a problem."""
        for leaf, low in by_leaf(numbers):
            words = self.leaves.setdefault(leaf, np.zeros(LEAF_BLOCKS // 64, np.uint64))
            before = count(words)
            set_numbers(words, low)
            if count(words) - before != len(low):
                self._report.add(
                    f"{self._name}: {what} shares a block near {leaf * LEAF_BLOCKS + int(low[0])} with another owner"
                )


class Walker:
    """Walks block trees of one state, or of the local tree, in batches; what stays of each are bits.

    Parameters
    ----------
    skip : tells which leaves need not be read.

    Attributes
    ----------
    recorded : gives the checks that the checksum file has for numbers; None while what is walked has none there.
    bad : numbers, in leaves, of those that could not be read, or are not what they should be.
    """

    def __init__(
        self,
        reader: BlockReader,
        space_blocks: int,
        name: str,
        report: CheckReport,
        skip: Callable[[NDArray[np.int64]], NDArray[np.bool_]],
    ) -> None:
        self._reader = reader
        self._space = space_blocks
        self.name = name
        self.report = report
        self._skip = skip
        self.reach = Reach(name, report)
        self.recorded: Callable[[NDArray[np.int64]], NDArray[np.uint32]] | None = None
        self.bad: dict[int, Leaf] = {}

    def tree(self, root: TreeRoot, what: str, leaf_visitor: Callable[[NDArray[np.uint8]], None] | None = None) -> None:
        """Walk a tree: enter every block, compare every check; leaf_visitor gets verified leaves (n, 4096) in order."""
        if root.form == FORM_TREE:
            self.pointers(root.pointers, root.depth, what, leaf_visitor)

    def root(self, pointer: Pointer) -> None:
        """Enter and verify the block that the trees' roots stand in."""
        if pointer.exists:
            self._batch(np.frombuffer(pointer.encode(), np.uint64).reshape(1, 2), "its root", 0, is_needed=True)

    def pointers(
        self,
        pointers: PointerArray,
        level: int,
        what: str,
        leaf_visitor: Callable[[NDArray[np.uint8]], None] | None = None,
    ) -> None:
        """Walk what pointers (n, 2) of one level lead to."""
        found = pointers[pointers[:, 0] != 0]
        for start in range(0, len(found), BATCH_BLOCKS):
            good, blocks = self._batch(found[start : start + BATCH_BLOCKS], what, level, leaf_visitor is not None)
            if level > 0:
                nodes = blocks[good].view(np.uint64).reshape(-1, 2)
                self.pointers(nodes, level - 1, what, leaf_visitor)
            elif leaf_visitor is not None:
                leaf_visitor(blocks[good])

    def _batch(
        self, pointers: PointerArray, what: str, level: int, is_needed: bool
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
        """Enter and verify a batch; return which blocks are good, and the blocks (n, 4096).

        level : of what the pointers lead to: 0 for leaves, which are read where they are needed, or were not yet.
        """
        self.report.step()
        kinds = pointers[:, 0] >> np.uint64(KIND_SHIFT)
        numbers = (pointers[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64)
        sane = (kinds == KIND_BLOCK) & (numbers < self._space)
        if not sane.all():
            self.report.add(f"{self.name}: {what} has {int((~sane).sum())} pointers that lead nowhere")
            pointers, numbers = pointers[sane], numbers[sane]
        if level:  # what lies below one that was reached before was walked then: it could lead back into itself
            fresh = self.reach.fresh(numbers)
            self.reach.enter(numbers[~fresh], what)
            pointers, numbers = pointers[fresh], numbers[fresh]
        good = np.ones(len(numbers), np.bool_)
        blocks = np.empty((len(numbers), BLOCK_BYTES), np.uint8)
        if not len(numbers):
            return good, blocks
        expected = pointers[:, 1].astype(np.uint32)
        self.reach.enter(numbers, what)
        self._check_recorded(numbers, expected)
        if not (level or is_needed) and self._skip(numbers).all():
            return good, blocks
        self.report.n_blocks += len(numbers)
        try:
            self._reader.read_extents(runs_of(numbers), blocks.reshape(-1))
        except BlockplaneError as error:
            self.report.add(f"{self.name}: {what} cannot be read: {error}")
            good[:] = False
            self._note_bad(numbers)
            return good, blocks
        if first_bad_block(blocks.reshape(-1), numbers, expected) >= 0:
            good = fresh_checks(blocks.reshape(-1), numbers) == expected
            self._note_bad(numbers[~good])
            for number in numbers[~good].tolist():
                self.report.add(f"{self.name}: block {number} of {what} does not match its checksum")
        return good, blocks

    def _check_recorded(self, numbers: NDArray[np.int64], expected: NDArray[np.uint32]) -> None:
        """Hold the checksum file against the checks in pointers, until it cannot be read."""
        if self.recorded is None:
            return
        try:
            recorded = self.recorded(numbers)
        except BlockplaneError as error:
            self.report.add(f"{self.name}: the checksum file cannot be read: {error}")
            self.recorded = None
            return
        for number in numbers[recorded != expected].tolist():
            self.report.add(f"{self.name}: the checksum file differs from the pointer to block {number}")

    def _note_bad(self, numbers: NDArray[np.int64]) -> None:
        for leaf, low in by_leaf(numbers):
            set_numbers(self.bad.setdefault(leaf, np.zeros(LEAF_BLOCKS // 64, np.uint64)), low)
