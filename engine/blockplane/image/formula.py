"""Expressions over numbered operands: what an image expression is once names have become states.

A formula is applied to values of one kind: words (NumPy arrays, combined bitwise) or truth tables (Python integers).
`None` stands for the empty set, so that work on absent leaves is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from blockplane.image.expression import Sign

#: Truth tables double with each distinct operand; beyond this many, emptiness is judged by a sound over-estimate.
MAX_TABLE_CLASSES: Final = 8

Value = TypeVar("Value", int, NDArray[np.uint64])


@dataclass(frozen=True, slots=True)
class Var:
    """One operand, by its index."""

    index: int


@dataclass(frozen=True, slots=True)
class Sums:
    """Formulas joined by signs, left to right; the first is added. ``^`` keeps what is in one of both alone."""

    terms: tuple[tuple[Sign, Formula], ...]


@dataclass(frozen=True, slots=True)
class Common:
    """What all of several formulas hold."""

    terms: tuple[Formula, ...]


Formula = Var | Sums | Common


def sum_of(indexes: Sequence[int], minus: Sequence[int] = ()) -> Formula:
    """Return the sum of operands less other operands."""
    plus: list[tuple[Sign, Formula]] = [("+", Var(i)) for i in indexes]
    less: list[tuple[Sign, Formula]] = [("-", Var(i)) for i in minus]
    return Sums((*plus, *less))


def difference(left: Formula, *right: Formula) -> Formula:
    """Return a formula less others."""
    return Sums((("+", left), *(("-", formula) for formula in right)))


def outside(formula: Formula, index: int) -> Formula:
    """Return a formula that holds the same outside of an operand, less what takes that operand away."""
    if isinstance(formula, Var):
        return formula
    if isinstance(formula, Common):
        return Common(tuple(outside(part, index) for part in formula.terms))
    taken = "-", Var(index)
    return Sums(tuple((sign, outside(part, index)) for sign, part in formula.terms if (sign, part) != taken))


def apply(formula: Formula, values: Sequence[Value | None]) -> Value | None:
    """Return the formula's value; fresh, or one of the values themselves (do not write to it)."""
    if isinstance(formula, Var):
        return values[formula.index]
    if isinstance(formula, Common):
        found = apply(formula.terms[0], values)
        for part in formula.terms[1:]:
            other = apply(part, values) if found is not None else None
            found = found & other if found is not None and other is not None else None
        return found
    total: Value | None = None
    for sign, part in formula.terms:
        if sign == "-" and total is None:
            continue
        other = apply(part, values)
        if other is None:
            continue
        if total is None:
            total = other
        else:
            total = _joined(total, sign, other)
    return total


def _joined(total: Value, sign: Sign, other: Value) -> Value:
    if sign == "+":
        return total | other
    return total & ~other if sign == "-" else total ^ other


def positive(formula: Formula) -> frozenset[int]:
    """Return the operands that can put a block into the result."""
    if isinstance(formula, Var):
        return frozenset((formula.index,))
    if isinstance(formula, Common):
        return positive(formula.terms[0])
    return frozenset().union(*(positive(part) for sign, part in formula.terms if sign != "-"))


def variables(formula: Formula) -> frozenset[int]:
    """Return the operands of a formula."""
    if isinstance(formula, Var):
        return frozenset((formula.index,))
    parts = formula.terms if isinstance(formula, Common) else tuple(part for _, part in formula.terms)
    return frozenset().union(*(variables(part) for part in parts))


def needed(formula: Formula, classes: Sequence[int]) -> frozenset[int]:
    """Return what must be known to evaluate a formula whose operands are not all distinct.

    Parameters
    ----------
    classes : for each operand the lowest operand known to be equal to it, or -1 where it is known to be empty.

    Returns
    -------
    the lowest operands of the classes on which the result depends; none: the result is empty whatever they hold.
    """
    used = sorted({classes[i] for i in variables(formula)} - {-1})
    if len(used) > MAX_TABLE_CLASSES:
        return frozenset(used) if _support(formula, classes) else frozenset()
    tables = dict(zip(used, _tables(len(used)), strict=True))
    found = apply(formula, [tables.get(c) for c in classes])
    if not found:
        return frozenset()
    return frozenset(c for i, c in enumerate(used) if _depends(found, i, len(used)))


@cache
def _tables(n: int) -> tuple[int, ...]:
    """Return the truth tables of n variables: bit b of table i is bit i of b."""
    return tuple(sum(1 << b for b in range(1 << n) if b >> i & 1) for i in range(n))


def _depends(table: int, i: int, n: int) -> bool:
    """Tell whether a truth table differs where variable i does."""
    ones = _tables(n)[i]
    return (table & ones) >> (1 << i) != table & ~ones & ((1 << (1 << n)) - 1)


def _support(formula: Formula, classes: Sequence[int]) -> frozenset[int]:
    """Return classes whose sum is sure to hold the result."""
    if isinstance(formula, Var):
        return frozenset((classes[formula.index],)) - {-1}
    if isinstance(formula, Common):
        return min((_support(part, classes) for part in formula.terms), key=len)
    found: set[int] = set()  # grows in place: a range of n snapshots has n terms, and is asked about each
    for sign, part in formula.terms:
        if sign != "-":
            found |= _support(part, classes)
        else:
            found -= _whole(part, classes)
    return frozenset(found)


def _whole(formula: Formula, classes: Sequence[int]) -> frozenset[int]:
    """Return classes that are sure to be held entirely by the formula."""
    if isinstance(formula, Var):
        return frozenset((classes[formula.index],)) - {-1}
    if isinstance(formula, Common):
        return frozenset.intersection(*(_whole(part, classes) for part in formula.terms))
    found: set[int] = set()  # as above
    for sign, part in formula.terms:
        if sign == "+":
            found |= _whole(part, classes)
        else:
            found.clear()
    return frozenset(found)
