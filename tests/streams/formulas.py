"""Random formulas over sets, and what they are by Python's sets."""

from __future__ import annotations

from hypothesis import strategies as st

from blockplane.image.formula import Common, Sums, Var

JOINS = {"+": set.union, "-": set.difference, "^": set.symmetric_difference}


def formulas(n, most_terms=4, most_leaves=10):
    """Formulas of n sets, nested."""
    leaves = st.integers(0, n - 1).map(Var)

    def joined(parts):
        several = st.lists(parts, min_size=1, max_size=most_terms)
        signs = st.lists(st.sampled_from("+-^"), min_size=most_terms, max_size=most_terms)
        sums = st.tuples(several, signs).map(
            lambda p: Sums(tuple(("+" if i == 0 else p[1][i], f) for i, f in enumerate(p[0])))
        )
        return st.one_of(sums, several.map(lambda parts: Common(tuple(parts))))

    return st.recursive(leaves, joined, max_leaves=most_leaves)


def by_sets(formula, sets):
    """What a formula is of Python's sets."""
    if isinstance(formula, Var):
        return sets[formula.index]
    if isinstance(formula, Common):
        return set.intersection(*(by_sets(part, sets) for part in formula.terms))
    total: set[int] = set()
    for sign, part in formula.terms:
        total = JOINS[sign](total, by_sets(part, sets))
    return total
