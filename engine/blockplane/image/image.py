"""Storage images: what an expression holds, what of it arrives as snapshots, and where its blocks lie."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from blockplane.image import expression as language
from blockplane.image.conflict import is_spoilt
from blockplane.image.definition import expanded
from blockplane.image.evaluate import Evaluation, evaluate, is_empty
from blockplane.image.expression import ACTIVE, Expression, Marked, Meet, Name, Sign, Span
from blockplane.image.formula import Common, Formula, Sums, Var, difference, positive, sum_of, variables
from blockplane.image.layout import Layout
from blockplane.image.store import SnapshotStore, store_of
from blockplane.image.terms import base_name, is_sendable, with_terms
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import NoSuchSnapshotError, RefusedError, UsageError
from blockplane.planes import Plane
from blockplane.volume.codec import KIND_DELETING, KIND_REGULAR, KIND_SHADOW, SnapshotRecord
from blockplane.volume.live import LiveVolume
from blockplane.volume.markplane import MarkPlane
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
        """Sorts older before newer."""
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
        """Where the blocks lie."""
        if self._layout is None:
            parts = [*((state.placemap, owned) for state, owned in self.owners), *self._marked]
            self._layout = Layout(self.plane, parts, self.store.geometry.n_blocks)
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
            missing.append(Var(self._terms.index(self._base)))
        return is_empty(difference(Var(operands.index(term.state)), *missing), operands, self.space_blocks)


def build(
    origin: SnapshotStore | LiveVolume,
    text: str,
    *,
    older: Literal["all"] | Sequence[str] = (),
    with_: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_active: bool = False,
) -> Image:
    """Make an image of a storage's snapshots.

    Parameters
    ----------
    origin : the volume, or another storage.
    text : the expression.
    older : older snapshots to add to the sum, or all of the top's line that the base does not have.
    with_ : snapshots that may be terms although they are no ancestors of the top; added where they are missing.
    include, exclude : of the snapshots in the expression's ranges take only these, or all but these: the others are no
        terms, and do not arrive. Names that the expression writes by themselves stay.
    allow_active : whether ``active`` may be a term.

    Raises
    ------
    ExpressionError : it does not parse.
    NoSuchSnapshotError : a name is not a regular snapshot here.
    UsageError : a term is no ancestor of the top and not among with_; a range does not go from older to newer.
    """
    builder = _Builder(store_of(origin), allow_active)
    node = builder.expand(language.parse(text, allow_active=allow_active))
    node = builder.choose(node, include, exclude)
    return builder.build(node, older, with_)


class _Builder:
    """Turns names into states."""

    def __init__(self, store: SnapshotStore, allow_active: bool) -> None:
        self._store = store
        self._records = {record.name: record for record in store.records() if record.kind == KIND_REGULAR}
        self._shadows = {record.name: record for record in store.records() if record.kind == KIND_SHADOW}
        self._all_names = {record.name: record for record in store.records()}
        self._terms: dict[str, Term] = {}
        self._kept_out: set[bytes] = set()
        self._accepted: set[str] = set()

    def expand(self, node: Expression) -> Expression:
        """Write the definitions of stored images for their names."""
        return expanded(self._store, node, self._accepted)

    def choose(self, node: Expression, include: Sequence[str], exclude: Sequence[str]) -> Expression:
        """Write the ranges of an expression out, without those of their snapshots that are not wanted."""
        if not include and not exclude:
            return node
        inside = {record.name for span in language.spans(node) for record in self._span(span)}
        for name in (*include, *exclude):
            if self.record(name).name not in inside:
                raise UsageError(f"{name} lies in no range of {node}", "choose among the snapshots of a range: A..B")
        wanted = {name for name in inside if (not include or name in include) and name not in exclude}
        named = {name.text for name in language.lone_names(node)}
        self._kept_out = {self.record(name).id for name in inside - wanted - named}
        return language.replaced(node, lambda span: self._written_out(span, wanted))

    def _written_out(self, span: Span, wanted: set[str]) -> Expression:
        found: list[tuple[Sign, Expression]] = [("+", Name(ACTIVE))] if span.last.text == ACTIVE else []
        found += [("+", Name(record.name)) for record in self._span(span) if record.name in wanted]
        if not found:
            raise UsageError(f"no snapshot of the range {span} is left", "include one of them, or leave the range out")
        return language.chain(found)

    def build(self, node: Expression, older: Literal["all"] | Sequence[str], with_: Sequence[str]) -> Image:
        added = [Name(name) for name in dict.fromkeys((*with_, *(older if older != "all" else ())))]
        node = with_terms(node, [name for name in added if name not in list(language.names(node))])
        formula = self._formula(node)
        self._refuse_shadows(formula)
        top = self._top(formula)
        if older == "all":
            node = with_terms(node, self._older(top, node))
            formula = self._formula(node)
        self._check_ancestors(top, formula, {*with_, *self._accepted})
        base = self._terms[base_name(node)] if base_name(node) else None
        order = sorted(
            self._terms.values(), key=lambda t: (t is top, not t.is_mark, not t.is_shadow, t.age_key), reverse=True
        )
        numbers = {term.name: i for i, term in enumerate(order)}
        formula = _renumbered(formula, [numbers[name] for name in self._terms])
        with ExitStack() as reading:
            for term in order:
                if term.record is not None:
                    reading.enter_context(self._store.pin(term.record.id))
            return Image(self._store, node, order, formula, top, base, self._known(top), frozenset(self._kept_out))

    def _term(self, name: Name) -> Var:
        if name.text not in self._terms:
            self._terms[name.text] = self._operand(name)
        return Var(list(self._terms).index(name.text))

    def _marks(self, node: Marked) -> Var:
        text = str(node)
        if text not in self._terms:
            self._terms[text] = Term(text, None, self._store.marks(node.kind, node.name.text))
        return Var(list(self._terms).index(text))

    def _operand(self, name: Name) -> Term:
        if name.text in self._shadows:
            return Term(name.text, self._shadows[name.text], self._store.shadow(name.text))
        record = None if name.text == ACTIVE else self.record(name.text)
        return Term(name.text, record, self._store.state(None if record is None else name.text))

    def _refuse_shadows(self, formula: Formula) -> None:
        """A shadow's blocks may have been reused: nothing can be read of it, and so nothing be summed."""
        terms = list(self._terms.values())
        for term in (terms[i] for i in sorted(positive(formula)) if terms[i].is_shadow):
            raise RefusedError(
                f"{term.name} is a shadow: its blocks may have been reused, and cannot be part of an image",
                f"subtract it: newer - {term.name}",
            )

    def record(self, name: str) -> SnapshotRecord:
        """Return the record of a regular snapshot, by its name."""
        record = self._records.get(name)
        if record is not None:
            return record
        if name in self._shadows:
            raise RefusedError(
                f"{name} is a shadow: no range begins or ends with one, and nothing can be read of it",
                f"begin the range with a later snapshot, and subtract it: later..newest - {name}",
            )
        if name in self._all_names:
            if self._all_names[name].kind == KIND_DELETING:
                raise RefusedError(
                    f"{name} is being deleted: it is no part of new images", "it waits only for what reads or holds it"
                )
            raise NoSuchSnapshotError(f"{name} is not a regular snapshot", "only regular snapshots hold their blocks")
        near = difflib.get_close_matches(name, self._records, 1)
        hint = f"did you mean {near[0]}?" if near else "`blockplane snapshot list` shows those there are"
        raise NoSuchSnapshotError(f"there is no snapshot {name}", hint)

    def _formula(self, node: Expression) -> Formula:
        if isinstance(node, Name):
            return self._term(node)
        if isinstance(node, Marked):
            return self._marks(node)
        if isinstance(node, Span):
            self._term(node.last)
            return Sums(tuple(("+", self._term(Name(record.name))) for record in self._span(node)))
        if isinstance(node, Meet):
            ordered = sorted(node.terms, key=lambda part: isinstance(part, Marked))  # blocks are read from states
            return Common(tuple(self._formula(part) for part in ordered))
        return Sums(tuple((sign, self._formula(part)) for sign, part in node.terms))

    def _span(self, span: Span) -> list[SnapshotRecord]:
        """Return the snapshots of a range, newest first."""
        first, last = self.record(span.first.text), None
        if span.last.text != ACTIVE:
            last = self.record(span.last.text)
        if first == last:
            return [first]
        line = self._known(self._operand(span.last))
        ids = [record.id for record in line]
        if first.id not in ids:
            raise UsageError(
                f"the range {span} does not go from a snapshot to a later one of its line",
                f"{span.first} is no ancestor of {span.last}",
            )
        inside = line[: ids.index(first.id) + 1]
        if last is None:
            return inside
        return [last, *(record for record in inside if record.id != last.id)]

    def _known(self, term: Term) -> list[SnapshotRecord]:
        """Return the snapshots of a state's list that are regular here, with the names they have here, newest first."""
        here = {record.id: record for record in self._records.values()}
        listed = [here[record.id] for record in term.state.listed_snapshots() if record.id in here]
        return sorted(listed, key=lambda record: (record.cp, record.created_ns), reverse=True)

    def _top(self, formula: Formula) -> Term:
        """Return the newest state of the sum; where that is marks alone, the live one."""
        terms = list(self._terms.values())
        states = [terms[i] for i in positive(formula) if not terms[i].is_mark]
        live = None if states else Term(ACTIVE, None, self._store.state(None))
        return max(states, key=lambda term: term.age_key) if live is None else self._terms.get(ACTIVE, live)

    def _older(self, top: Term, node: Expression) -> list[Name]:
        base = base_name(node)
        held = self._held_by(self._terms[base], top) if base else set()
        there = {name.text for name in language.names(node)} | set(self._terms)
        return [Name(r.name) for r in self._known(top) if r.id not in held and r.name not in there]

    def _held_by(self, base: Term, top: Term) -> set[bytes]:
        """Return the ids of the snapshots that a base's list has; of a shadow, which has none to read, those older."""
        if not base.is_shadow:
            return {record.id for record in self._known(base)}
        return {record.id for record in self._known(top) if (record.cp, record.created_ns) <= base.age_key}

    def _check_ancestors(self, top: Term, formula: Formula, allowed: set[str]) -> None:
        line = {record.id for record in top.state.listed_snapshots()}
        terms = list(self._terms.values())
        for i in sorted(variables(formula)):
            term = terms[i]
            if (
                term is top
                or term.is_mark
                or term.name in allowed
                or (term.record is not None and term.record.id in line)
            ):
                continue
            raise UsageError(
                f"{term.name} is no ancestor of {top.name}, the newest snapshot of the image",
                f"name it with --with {term.name} if that is meant",
            )


def _renumbered(formula: Formula, numbers: Sequence[int]) -> Formula:
    if isinstance(formula, Var):
        return Var(numbers[formula.index])
    if isinstance(formula, Common):
        return Common(tuple(_renumbered(part, numbers) for part in formula.terms))
    return Sums(tuple((sign, _renumbered(part, numbers)) for sign, part in formula.terms))


def freed(origin: SnapshotStore | LiveVolume, names: Sequence[str]) -> Plane:
    """Return the blocks that only these snapshots hold: no other regular one, and not the live file system.

    Raises
    ------
    NoSuchSnapshotError : a name is not a snapshot here.
    """
    return _exclusive(origin, names).planes[0]


def freed_blocks(origin: SnapshotStore | LiveVolume, names: Sequence[str]) -> int:
    """Return how many blocks deleting these snapshots together frees: exact, also where a name lies at two places.

    Raises
    ------
    NoSuchSnapshotError : a name is not a snapshot here.
    """
    return _exclusive(origin, names).n_places


def _exclusive(origin: SnapshotStore | LiveVolume, names: Sequence[str]) -> Evaluation:
    store = store_of(origin)
    records = [record for record in store.records() if record.kind != KIND_SHADOW]
    builder = _Builder(store, allow_active=False)
    going = {builder.record(name).id for name in names}
    states = [store.state(record.name) for record in records]
    plus = [i for i, record in enumerate(records) if record.id in going]
    minus = [i for i, record in enumerate(records) if record.id not in going]
    operands = [*states, store.state(None)]
    n_blocks = max(store.geometry.n_blocks, *(state.space_blocks for state in operands))
    return evaluate([sum_of(plus, [*minus, len(records)])], operands, n_blocks)
