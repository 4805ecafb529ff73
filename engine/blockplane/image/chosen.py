"""What an image holds: its terms and blocks, what of it arrives as snapshots, and where its blocks lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockplane.image.conflict import is_spoilt
from blockplane.image.evaluate import Evaluation, evaluate, is_empty
from blockplane.image.expression import Expression
from blockplane.image.formula import Common, Formula, Var, difference, outside, sum_of
from blockplane.image.layout import Layout
from blockplane.image.store import SnapshotStore
from blockplane.image.terms import is_sendable
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import RefusedError
from blockplane.planes import Plane, combine
from blockplane.volume.codec import KIND_SHADOW, SnapshotRecord
from blockplane.volume.markplane import MarkPlane
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.shadows import ShadowPlane
from blockplane.volume.state import State


@dataclass(frozen=True, slots=True)
class Term:
    """An operand of an image: a snapshot's record and its state, or its shadow; the live file system; marks."""

    name: str
    record: SnapshotRecord | None
    operand: State | ShadowPlane | MarkPlane

    @property
    def state(self) -> State:
        """The state; only of what is no shadow."""
        assert isinstance(self.operand, State)
        return self.operand

    @property
    def is_shadow(self) -> bool:
        """Whether it can only be subtracted."""
        return isinstance(self.operand, ShadowPlane)

    @property
    def is_mark(self) -> bool:
        """Whether it is what entered or left."""
        return isinstance(self.operand, MarkPlane)

    @property
    def age_key(self) -> tuple[int, int]:
        """Sorts older before newer, of one line."""
        return (self.operand.cp, self.record.created_ns if self.record is not None else 1 << 62)


class Image:
    """A set of blocks of a storage, chosen by an expression. Immutable; `build` makes it.

    Attributes
    ----------
    expression : what was asked, with the terms that `older` and `with_` added; its text is canonical.
    top : the newest snapshot of the sum.
    base : the last subtrahend at the outer level, which a destination must hold; None for a full image.
    plane : the VBNs.
    dropped : the VBNs of the base that nothing which arrives holds.
    arriving : snapshots that are whole in image + base, newest first; the top is the first of them when it is complete.
    left_out : snapshots of the top's list that are regular here and do not arrive whole.
    owners : states from which blocks are read, and which.
    n_planning_reads, n_planning_leaves : blocks, and blockmap leaves among them, read to find all this.
    """

    def __init__(
        self,
        store: SnapshotStore,
        expression: Expression,
        terms: Sequence[Term],
        formula: Formula,
        top: Term,
        base: Term | None,
        known: Sequence[SnapshotRecord],
        kept_out: frozenset[bytes] = frozenset(),
    ) -> None:
        self.store, self.expression = store, expression
        self._terms, self._formula = list(terms), formula
        self._top, self._base = top, base
        self.top, self.base = top.record, base.record if base is not None else None
        self.space_blocks = max(store.geometry.n_blocks, *(term.operand.space_blocks for term in terms))
        self._layout: Layout | None = None
        self._laid_by: list[PlaceMap] = []
        before = sum(term.operand.blockmap.n_reads for term in terms)
        self._kept_out = kept_out
        likely = [term for term in terms if term is not base and self._may_arrive(term) and self._is_whole(term)]
        found = self._evaluate(likely)
        owners = self._owners(found)
        candidates = [*likely, *self._others_that_arrive(known, found.planes[0])]
        arriving = [term for term in candidates if not is_spoilt(term.state, owners)]
        if arriving != likely:
            arriving.sort(key=lambda term: (term is top, term.age_key), reverse=True)
            found = self._evaluate(arriving)
        self.n_planning_reads = sum(term.operand.blockmap.n_reads for term in terms) - before
        self.n_planning_leaves = found.n_leaves
        self.plane = found.planes[0]
        self.dropped = found.planes[1] - self.plane if base is not None else Plane.empty(self.space_blocks)
        self.owners = self._owners(found)
        marks = [(term, owned) for term, owned in zip(terms, found.owned, strict=False) if term.is_mark]
        self._marked = [(term.operand.placemap, owned) for term, owned in marks]
        self.complete = top in arriving
        self.arriving = [term.record for term in arriving if term.record is not None]
        there = {record.id for record in self.arriving} | ({self.base.id} if self.base is not None else set())
        listed = {record.id: record for record in (*self.records(), *known)}
        self.left_out = [record for record in listed.values() if record.id not in there]

    def _may_arrive(self, term: Term) -> bool:
        return term.record is not None and not term.is_shadow and term.record.id not in self._kept_out

    def _evaluate(self, arriving: Sequence[Term]) -> Evaluation:
        """Evaluate the image and, over a base, what of the base nothing that arrives holds."""
        after = list(arriving) or [self._top]
        extra = [term.state for term in after if term not in self._terms]
        operands = [*(term.operand for term in self._terms), *extra]
        formulas = [self._formula]
        if self._base is not None:
            states = [operands.index(term.state) for term in after]
            formulas.append(sum_of([self._terms.index(self._base)], states))
        return evaluate(formulas, operands, self.space_blocks)

    def held_by(self, records: Sequence[SnapshotRecord]) -> Plane:
        """Return the blocks of the image that any of some snapshots here, or of shadows, holds too: the same bytes."""
        store, found = self.store, Plane.empty(self.space_blocks)
        formula = Common((Var(0), sum_of(range(1, len(records) + 1))))
        with store.standing():
            others = [store.shadow(r.name) if r.kind == KIND_SHADOW else store.state(r.name) for r in records]
            for state, owned in self.owners:
                same = evaluate([formula], [state, *others], self.space_blocks).planes[0]
                found = combine([found, combine([owned], within=same)])
        return found

    def _owners(self, found: Evaluation) -> list[tuple[State, Plane]]:
        """Return the states that blocks are read from, the top first."""
        parts = [part for part in zip(self._terms, found.owned, strict=False) if not part[0].is_mark]
        # no shadow: every block of the result is in a summand, and those come first
        owners = [(term.state, owned) for term, owned in parts if len(owned) or term is self._top]
        return sorted(owners, key=lambda owner: owner[0] is not self._top.state)

    def _others_that_arrive(self, known: Sequence[SnapshotRecord], plane: Plane) -> list[Term]:
        """Return snapshots of the top's list that are no terms and yet whole in image + base.

        A state root belongs to its own snapshot alone: where it is not in the image nothing else needs to be looked at.
        """
        mine = {record.id for record in self.records()}
        near = [record for record in known if record.id not in mine and record.root.number in plane]
        terms = [Term(record.name, record, self.store.state(record.name)) for record in near]
        return [term for term in terms if self._may_arrive(term) and self._is_whole(term)]

    @property
    def n_blocks(self) -> int:
        """How many blocks the image holds."""
        return len(self.plane)

    @property
    def n_bytes(self) -> int:
        """Bytes of the image's blocks."""
        return self.n_blocks * BLOCK_BYTES

    @property
    def layout(self) -> Layout:
        """Where the blocks lie; worked out anew where some have moved since."""
        with self.store.standing():
            parts = [*((state.placemap, owned) for state, owned in self.owners), *self._marked]
            maps = [placemap for placemap, _ in parts]
            if self._layout is None or any(a is not b for a, b in zip(maps, self._laid_by, strict=True)):
                self._layout, self._laid_by = Layout(self.plane, parts, self.store.geometry.n_blocks), maps
            return self._layout

    @property
    def blocks_per_disk(self) -> list[int]:
        """How many blocks of the image each disk holds, in the order of the disks; 0 for parity disks."""
        return self.layout.blocks_per_disk(self.store.geometry)

    @property
    def top_state(self) -> State:
        """The state of the top."""
        return self._top.state

    @property
    def base_state(self) -> State | None:
        """The state of the base; None where there is none, or it is a shadow."""
        return self._base.state if self._base is not None and not self._base.is_shadow else None

    @property
    def after_blocks(self) -> int:
        """How many blocks of the image and its base the destination holds afterwards."""
        if self._base is None or self.base is None:
            return len(self.plane)
        shadow = self._base.operand
        n_base = shadow.n_left if isinstance(shadow, ShadowPlane) else self.base.n_blocks
        return len(self.plane) + n_base - len(self.dropped)  # what a shadow lost nothing that arrives holds

    def records(self) -> list[SnapshotRecord]:
        """Return the records of the snapshots that the expression names."""
        return [term.record for term in self._terms if term.record is not None]

    def __str__(self) -> str:
        return str(self.expression)

    @property
    def why_not_sendable(self) -> str:
        """Why it cannot be sent; empty where it can be."""
        try:
            self.require_sendable()
        except RefusedError as error:
            return error.message
        return ""

    def require_sendable(self) -> SnapshotRecord:
        """Return the top's record.

        Raises
        ------
        RefusedError : the image is not a sum minus at most one base, its top is not a snapshot, or not complete.
        """
        if not is_sendable(self.expression):
            raise RefusedError(
                f"the image {self} can be counted and listed, but not sent",
                "send a sum of snapshots minus at most one base: newer + older - base",
            )
        if self.top is None or any(term.record is None for term in self._terms):
            raise RefusedError("the live file system cannot be sent while it changes", "create a snapshot and send it")
        if not self.complete:
            raise RefusedError(f"snapshot {self._top.name} would not be whole at the destination", "send a sum with it")
        return self.top

    def _is_whole(self, term: Term) -> bool:
        """Tell whether a snapshot is whole in image + base; a term of the sum is, and nothing is read to know it."""
        operands = [other.operand for other in self._terms]
        if term.state not in operands:
            operands.append(term.state)
        missing: list[Formula] = [self._formula]
        if self._base is not None:
            base = self._terms.index(self._base)
            missing = [outside(self._formula, base), Var(base)]
        return is_empty(difference(Var(operands.index(term.state)), *missing), operands, self.space_blocks)
