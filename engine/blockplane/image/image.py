"""Storage images: from an expression over names to a set of blocks."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Literal

from blockplane.image import expression as language
from blockplane.image.chosen import Image, Term
from blockplane.image.definition import expanded
from blockplane.image.evaluate import Evaluation, evaluate
from blockplane.image.expression import ACTIVE, Expression, Marked, Meet, Name, Sign, Span
from blockplane.image.formula import Common, Formula, Sums, Var, positive, sum_of, variables
from blockplane.image.store import SnapshotStore, require_alive, store_of
from blockplane.image.terms import base_name, with_terms
from blockplane.model.errors import NoSuchSnapshotError, RefusedError, UsageError
from blockplane.planes import Plane
from blockplane.volume.codec import KIND_REGULAR, KIND_SHADOW, SnapshotRecord
from blockplane.volume.lines import descends_from, ends_of
from blockplane.volume.live import LiveVolume
from blockplane.volume.state import State

__all__ = ["Image", "build", "freed", "freed_blocks"]


def build(
    origin: SnapshotStore | LiveVolume,
    text: str,
    *,
    older: Literal["all"] | Sequence[str] = (),
    with_: Sequence[str] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    allow_active: bool = False,
    keep_out: Collection[bytes] = (),
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
    keep_out : ids of snapshots that do not arrive although all of their blocks do.

    Raises
    ------
    ExpressionError : it does not parse.
    NoSuchSnapshotError : a name is not a regular snapshot here, or no longer.
    UsageError : a term is no ancestor of the top and not among with_; a range does not go from older to newer.

    Notes
    -----
    Regular snapshots are pinned, and nobody waits. What is left of a shadow, marks and the live file system change with
    every consistency point, and what held them before is reused two later: where one is a term, writers wait.
    """
    store = store_of(origin)
    pointers = store.pointers()
    with_, include, exclude = ([pointers.get(n, n) for n in names] for names in (with_, include, exclude))
    older = older if older == "all" else [pointers.get(name, name) for name in older]
    builder = _Builder(store, allow_active, keep_out)
    node = builder.expand(language.parse(text, allow_active=allow_active))
    with builder.standing(node):
        node = builder.choose(node, include, exclude)
        return builder.build(node, older, with_)


class _Builder:
    """Turns names into states."""

    def __init__(self, store: SnapshotStore, allow_active: bool, keep_out: Collection[bytes]) -> None:
        self._store = store
        self._records = {record.name: record for record in store.records() if record.kind == KIND_REGULAR}
        self._shadows = {record.name: record for record in store.records() if _is_shadow(record)}
        self._all_names = {record.name: record for record in store.records()}
        self._terms: dict[str, Term] = {}
        self._kept_out = set(keep_out)
        self._accepted: set[str] = set()

    def expand(self, node: Expression) -> Expression:
        """Write the definitions of stored images for their names, and for those of pointers where they stand."""
        pointers = self._store.pointers()
        node = expanded(self._store, node, self._accepted)
        self._accepted |= {pointers.get(name, name) for name in self._accepted}
        return language.with_names(node, lambda word: Name(pointers.get(word.text, word.text))) if pointers else node

    def standing(self, node: Expression) -> AbstractContextManager[object]:
        """Keep the terms of an expression as they are while they are read, where they are not regular snapshots."""
        states, every = list(language.names(node)), list(language.every_name(node))
        is_fixed = len(states) == len(every) and all(name.text in self._records for name in states)
        return nullcontext() if is_fixed else self._store.standing()

    def choose(self, node: Expression, include: Sequence[str], exclude: Sequence[str]) -> Expression:
        """Write the ranges of an expression out, without those of their snapshots that are not wanted."""
        if not include and not exclude:
            return node
        inside = {record.name for span in language.spans(node) for record in self._span(span)}
        for name in include:
            if name in self._shadows:
                raise RefusedError(
                    f"{name} is a shadow: its blocks may have been reused, and no range has it",
                    "leave it out of what is included",
                )
        gone = self._all_names.keys() - self._records.keys()  # shadows, and what is being deleted: in no range as it is
        for name in (*include, *(name for name in exclude if name not in gone)):
            if self.record(name).name not in inside:
                raise UsageError(f"{name} lies in no range of {node}", "choose among the snapshots of a range: A..B")
        wanted = {name for name in inside if (not include or name in include) and name not in exclude}
        named = {name.text for name in language.lone_names(node)}
        self._kept_out |= {self.record(name).id for name in inside - wanted - named}
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
            require_alive(self._store, [term.record for term in order if term.record is not None])
            return Image(self._store, node, order, formula, top, base, self._known(top), frozenset(self._kept_out))

    def _term(self, name: Name) -> Var:
        if name.text not in self._terms:
            self._terms[name.text] = self._operand(name)
        return Var(list(self._terms).index(name.text))

    def _marks(self, node: Marked) -> Var:
        text = str(node)
        if text not in self._terms:
            name = node.name.text
            found = self._store.metadata(name) if node.kind == "meta" else self._store.marks(node.kind, name)
            self._terms[text] = Term(text, None, found)
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
            if self._all_names[name].is_deleting:
                raise RefusedError(
                    f"{name} is being deleted: it is no part of new images", "it waits only for what reads or holds it"
                )
            raise NoSuchSnapshotError(f"{name} is not a regular snapshot", "only regular snapshots hold their blocks")
        near = difflib.get_close_matches(name, self._records, 1)
        hint = f"did you mean {near[0]}?" if near else "`blockplane snapshot list` shows those there are"
        first, _, second = name.partition("-")
        if first in self._all_names and second in self._all_names:
            hint = f"did you mean {first} - {second}? a name may have a - in it: write blanks around the operator"
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
        """Return the newest state of the sum; where that is marks alone, the live one.

        That is what came last, as the table has it, or what descends from that: an older one may have come later. CPs
        of two branches say nothing about it.
        """
        terms = list(self._terms.values())
        states = [terms[i] for i in positive(formula) if not terms[i].is_mark]
        if not states:
            return self._terms.get(ACTIVE) or Term(ACTIVE, None, self._store.state(None))
        came = {name: at for at, name in enumerate(self._all_names)}
        top, *others = sorted(states, key=lambda term: came.get(term.name, len(came)), reverse=True)
        for term in others:
            if term.state.cp >= top.state.cp and _is_after(term.state, top.state):
                top = term
        return top

    def _older(self, top: Term, node: Expression) -> list[Name]:
        base = base_name(node)
        held = self._held_by(self._terms[base], top) if base else set()
        there = {name.text for name in language.names(node)} | set(self._terms)
        return [Name(r.name) for r in self._known(top) if r.id not in held and r.name not in there]

    def _held_by(self, base: Term, top: Term) -> set[bytes]:
        """Return the ids of the snapshots that a base's list has; of a shadow, which has none to read, of its line."""
        if not base.is_shadow:
            return {record.id for record in self._known(base)}
        assert base.record is not None
        ends = ends_of(base.record.branch_id, base.record.cp, top.state.branches())
        return {
            record.id
            for record in self._known(top)
            if (record.cp, record.created_ns) <= base.age_key
            and record.space_id == base.record.space_id
            and record.cp <= ends.get(record.branch_id, -1)
        }

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


def _is_after(state: State, other: State) -> bool:
    return descends_from(state, other) and not descends_from(other, state)


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


def _is_shadow(record: SnapshotRecord) -> bool:
    """Whether a record is that of a shadow which may be a term: not of one that is being deleted."""
    return record.kind == KIND_SHADOW and not record.is_deleting


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
    builder = _Builder(store, allow_active=False, keep_out=())
    going = {builder.record(name).id for name in names}
    states = [store.state(record.name) for record in records]
    plus = [i for i, record in enumerate(records) if record.id in going]
    minus = [i for i, record in enumerate(records) if record.id not in going]
    with store.standing():
        operands = [*states, store.state(None)]
        n_blocks = max(store.geometry.n_blocks, *(state.space_blocks for state in operands))
        return evaluate([sum_of(plus, [*minus, len(records)])], operands, n_blocks)
