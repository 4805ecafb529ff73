"""Expressions over planes: any number of sums, one difference, one intersection, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.planes.expression import Expression, count, evaluate
from blockplane.planes.plane import Plane


def combine(
    plus: Sequence[Plane], minus: Plane | None = None, within: Plane | None = None, out: Plane | None = None
) -> Plane:
    """Return ``((plus[0] | plus[1] | ...) - minus) & within``.

    Parameters
    ----------
    plus : at least one plane; planes of different ``n_blocks`` combine, each empty past its end.
    out : becomes the result, in the form it has, and is returned; it may be an operand.

    Raises
    ------
    ValueError : no summand, or ``out`` has fewer blocks than a summand.

    Notes
    -----
    Dense operands: one pass over memory, GIL released. Mixed forms: windows of 512 KiB. The count comes with the
    pass: ``len()`` of a dense result costs nothing more.
    """
    expression = _expression(plus, minus, within)
    return Plane(evaluate(expression)) if out is None else out.assign(expression)


def combine_count(plus: Sequence[Plane], minus: Plane | None = None, within: Plane | None = None) -> int:
    """Return how many blocks ``combine`` would give, without writing them anywhere."""
    return count(_expression(plus, minus, within))


def _expression(plus: Sequence[Plane], minus: Plane | None, within: Plane | None) -> Expression:
    if not plus:
        raise ValueError("an expression without a summand")
    return Expression(
        tuple(plane.bits for plane in plus),
        None if minus is None else minus.bits,
        None if within is None else within.bits,
    )
