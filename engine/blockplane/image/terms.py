"""The outer sum of an expression: what is added, and the base that is taken away."""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.image.expression import Chain, Expression, Name, Sign, Span, chain


def with_terms(node: Expression, added: Sequence[Name]) -> Expression:
    """Return an expression with names added to the outer sum, before its base."""
    if not added:
        return node
    terms: list[tuple[Sign, Expression]] = list(node.terms) if isinstance(node, Chain) else [("+", node)]
    at = len(terms) - 1 if base_name(node) else len(terms)
    extra: list[tuple[Sign, Expression]] = [("+", name) for name in added]
    return chain([*terms[:at], *extra, *terms[at:]])


def base_name(node: Expression) -> str:
    """Return the name of the base: the last term, where it is one name and taken away; else nothing."""
    if isinstance(node, Chain) and node.terms[-1][0] == "-" and isinstance(node.terms[-1][1], Name):
        return node.terms[-1][1].text
    return ""


def is_sendable(node: Expression) -> bool:
    """Whether an expression is a sum minus at most one base."""
    if not isinstance(node, Chain):
        return isinstance(node, (Name, Span))
    terms = node.terms[:-1] if base_name(node) else node.terms
    return all(sign == "+" and _is_sum(part) for sign, part in terms)


def _is_sum(node: Expression) -> bool:
    if isinstance(node, Chain):
        return all(sign == "+" and _is_sum(part) for sign, part in node.terms)
    return isinstance(node, (Name, Span))
