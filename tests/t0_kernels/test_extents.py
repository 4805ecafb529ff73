"""Runs of words and words of extents: against Python sets."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane._native import extents

N_WORDS = 20
N_BITS = N_WORDS * 64
EDGES = [0, 1, 63, 64, 65, 127, 128, 640, N_BITS - 65, N_BITS - 64, N_BITS - 1, N_BITS]
POSITIONS = st.one_of(st.sampled_from(EDGES), st.integers(0, N_BITS))
RANGES = st.lists(st.tuples(POSITIONS, POSITIONS).map(sorted), max_size=8)


def numbers_of(ranges) -> set[int]:
    return {n for start, stop in ranges for n in range(start, stop)}


def words_of(numbers) -> np.ndarray:
    bits = np.zeros(N_BITS, np.uint8)
    bits[sorted(numbers)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint64)


def runs_of(numbers) -> list[list[int]]:
    """Runs by the definition: where membership changes."""
    edges = [n for n in range(N_BITS + 1) if (n in numbers) != (n - 1 in numbers)]
    return [list(pair) for pair in list(pairwise(edges))[::2]]


def as_array(ranges) -> np.ndarray:
    return np.array(ranges, np.int64).reshape(-1, 2)


@given(ranges=RANGES, start=POSITIONS, stop=POSITIONS, base=st.sampled_from([0, 7, 2**40]), zeros=st.booleans())
def test_runs(ranges, start, stop, base, zeros):
    start, stop = sorted((start, stop))
    words = words_of(numbers_of(ranges))
    wanted = numbers_of(ranges) if not zeros else set(range(N_BITS)) - numbers_of(ranges)
    expected = runs_of(wanted & set(range(start, stop)))
    out = np.full((N_BITS + 2, 2), -99, np.int64)
    n, resume = extents.runs(words, start, stop, out[1:-1], base=base, zeros=zeros)
    assert (out[1 : n + 1] - base).tolist() == expected
    assert resume == stop
    assert (out[0] == -99).all()
    assert (out[n + 1 :] == -99).all()
    if not zeros:
        assert extents.count(words, start, stop) == len(expected)


@given(ranges=RANGES, capacity=st.integers(1, 5), min_blocks=st.integers(1, 70))
def test_runs_go_on_where_the_room_ended(ranges, capacity, min_blocks):
    words, got, position = words_of(numbers_of(ranges)), [], 0
    while position < N_BITS:
        out = np.full((capacity + 1, 2), -99, np.int64)
        n, position = extents.runs(words, position, N_BITS, out[:-1], min_blocks=min_blocks)
        assert (out[n:] == -99).all()
        got += out[:n].tolist()
    assert got == [[a, b] for a, b in runs_of(numbers_of(ranges)) if b - a >= min_blocks]


def test_runs_of_random_words(rng):
    words = rng.integers(0, 2**64, N_WORDS, np.uint64)
    members = set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())
    out = np.empty((N_BITS, 2), np.int64)
    n, _ = extents.runs(words, 0, N_BITS, out)
    assert out[:n].tolist() == runs_of(members)


@given(ranges=RANGES, before=RANGES, value=st.booleans(), base=st.sampled_from([0, 640, 2**40]))
def test_fill(ranges, before, value, base):
    around = np.full(N_WORDS + 2, 0xABCD, np.uint64)
    around[1:-1] = words_of(numbers_of(before))
    extents.fill(around[1:-1], as_array(ranges) + base, base=base, value=value)
    changed = numbers_of(before) | numbers_of(ranges) if value else numbers_of(before) - numbers_of(ranges)
    assert np.array_equal(around[1:-1], words_of(changed))
    assert (around[0], around[-1]) == (0xABCD, 0xABCD)


@pytest.mark.parametrize("bad", [[-1, 3], [5, 4], [0, N_BITS + 1], [2**62, 2**62 + 1], [-(2**63), 0]])
def test_fill_outside_changes_nothing(bad):
    words = words_of(set())
    with pytest.raises(ValueError, match="not a range"):
        extents.fill(words, as_array([[1, 2], bad]))
    assert not words.any()


def test_shapes_are_judged():
    words = words_of(set())
    with pytest.raises(ValueError, match=r"must be \(n, 2\)"):
        extents.fill(words, np.zeros((1, 3), np.int64))
    for shape in ((0, 2), (4, 3)):
        with pytest.raises(ValueError, match="out is"):
            extents.runs(words, 0, 64, np.zeros(shape, np.int64))
    for start, stop in ((-1, 4), (5, 4), (0, N_BITS + 1)):
        with pytest.raises(ValueError, match="not a range"):
            extents.runs(words, start, stop, np.zeros((1, 2), np.int64))
        with pytest.raises(ValueError, match="not a range"):
            extents.count(words, start, stop)


def test_no_words():
    none = np.zeros(0, np.uint64)
    extents.fill(none, as_array([]))
    extents.fill(none, as_array([[0, 0]]))
    assert extents.count(none, 0, 0) == 0
    assert extents.runs(none, 0, 0, np.zeros((1, 2), np.int64)) == (0, 0)


# --- taking ---


@given(RANGES, RANGES, st.sampled_from([0, 1, 64, 1000]))
def test_taking_clears_what_lies_in_the_words_and_tells_of_the_first_that_was_clear(there, ranges, base):
    words, held = words_of(numbers_of(there)), numbers_of(there)
    absent = -1
    for start, stop in ranges:
        for number in range(start, stop):
            if base <= number < base + N_BITS:
                if number - base not in held and absent < 0:
                    absent = number
                held.discard(number - base)
    assert extents.take(words, as_array(ranges), base=base) == absent
    assert words.tolist() == words_of(held).tolist()


def test_taking_nothing_and_what_is_no_extents():
    words = words_of({3})
    assert extents.take(words, as_array([])) == -1
    assert extents.take(words[:0], as_array([(0, 5)])) == -1
    assert extents.take(words, as_array([(-5, 0), (N_BITS, N_BITS + 9), (3, 4)])) == -1
    with pytest.raises(ValueError, match="n, 2"):
        extents.take(words, np.zeros((1, 3), np.int64))
    assert words.any() == np.False_
