"""Formulas over sets: evaluation, what must be known, against Python's sets."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from blockplane.image.formula import Common, Sums, Var, apply, difference, needed, outside, positive, variables
from streams.formulas import by_sets, formulas

N = 5


def words(numbers):
    out = np.zeros(1, np.uint64)
    for n in numbers:
        out[0] |= np.uint64(1) << np.uint64(n)
    return out


@given(formulas(N), st.lists(st.sets(st.integers(0, 63)), min_size=N, max_size=N))
def test_apply_is_set_algebra(formula, sets):
    values = [words(s) if s else None for s in sets]
    found = apply(formula, values)
    assert (0 if found is None else int(found[0])) == int(words(by_sets(formula, sets))[0])


@given(formulas(N), st.lists(st.integers(-1, N - 1), min_size=N, max_size=N), st.data())
def test_needed_is_exactly_what_the_result_depends_on(formula, raw, data):
    classes = [min((i for i in range(N) if raw[i] == raw[k]), default=k) if raw[k] >= 0 else -1 for k in range(N)]
    sets = [data.draw(st.sets(st.integers(0, 31))) for _ in range(N)]
    whole = [set() if c < 0 else sets[c] for c in classes]
    must = needed(formula, classes)
    partly = [sets[c] if c in must else set() for c in classes]
    assert by_sets(formula, whole) == by_sets(formula, partly)
    if not must:
        assert by_sets(formula, whole) == set()


@given(formulas(12), st.lists(st.integers(-1, 11), min_size=12, max_size=12))
def test_with_many_classes_emptiness_is_never_claimed_wrongly(formula, raw):
    classes = [raw.index(c) if c >= 0 else -1 for c in raw]
    if not needed(formula, classes):
        sets = [set() if c < 0 else {c, 100 + c} for c in classes]
        assert by_sets(formula, sets) == set()
        assert by_sets(formula, [set() if c < 0 else set(range(c, 40, 3)) for c in classes]) == set()


def test_long_sums_minus_one_of_them():
    many = Sums((*(("+", Var(i)) for i in range(40)), ("-", Var(40))))
    assert needed(many, [*(40 if i % 2 else -1 for i in range(40)), 40]) == frozenset()
    assert needed(many, [*range(40), 40])


@given(formulas(N), st.lists(st.sets(st.integers(0, 31)), min_size=N, max_size=N), st.integers(0, N - 1))
def test_outside_of_an_operand_nothing_changes(formula, sets, index):
    assert by_sets(outside(formula, index), sets) - sets[index] == by_sets(formula, sets) - sets[index]


def test_that_a_long_sum_holds_its_terms_but_for_the_base_is_known_without_looking():
    image = Sums((*(("+", Var(i)) for i in range(40)), ("-", Var(40))))
    for i in range(40):
        assert needed(difference(Var(i), outside(image, 40), Var(40)), range(41)) == frozenset()
    assert needed(difference(Var(41), outside(image, 40), Var(40)), range(42))


def test_that_a_sum_of_very_many_terms_is_asked_about_in_proportion_to_them():
    n = 100_000  # a minute and more where each term copies what those before it came to
    many = Sums(tuple(("+", Var(i)) for i in range(n)))
    assert needed(difference(Var(7), many), range(n)) == frozenset()
    assert needed(Sums((*many.terms, ("-", Var(n)))), range(n + 1)) == frozenset(range(n + 1))
    after_all = Sums((*many.terms, ("-", Var(n)), ("+", Var(3))))  # sure to hold what comes behind the minus alone
    assert needed(difference(Var(7), after_all), range(n + 1))
    assert needed(difference(Var(3), after_all), range(n + 1)) == frozenset()


def test_what_is_taken_from_itself_twice_is_empty_and_once_too():
    assert needed(Sums((("+", Var(0)), ("^", Var(1)))), [0, 0]) == frozenset()
    assert needed(Sums((("+", Var(0)), ("^", Var(1)))), [-1, 1]) == {1}
    assert needed(Sums((("+", Var(0)), ("^", Var(1)), ("^", Var(1)))), [0, 1]) == {0}
    assert positive(Sums((("+", Var(0)), ("^", Var(1)), ("-", Var(2))))) == {0, 1}


def test_positive_and_variables():
    formula = Sums((("+", Var(0)), ("-", Var(1)), ("+", Common((Var(2), Var(3))))))
    assert positive(formula) == {0, 2}
    assert variables(formula) == {0, 1, 2, 3}
