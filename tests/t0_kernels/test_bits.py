"""Counts, rank and select, many numbers at once: against Python sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane._native import bits

N_WORDS = 21
N_BITS = N_WORDS * 64
EDGES = [0, 1, 63, 64, 65, 127, 128, 700, N_BITS - 65, N_BITS - 64, N_BITS - 63, N_BITS - 1, N_BITS]
POSITIONS = st.one_of(st.sampled_from(EDGES), st.integers(0, N_BITS))
NUMBERS = st.integers(0, N_BITS - 1)


def words_of(numbers, n_words: int = N_WORDS) -> np.ndarray:
    out = np.zeros(n_words, np.uint64)
    for number in numbers:
        out[number // 64] |= np.uint64(1 << number % 64)
    return out


def numbers_of(words: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist())


@given(numbers=st.sets(NUMBERS), start=POSITIONS, stop=POSITIONS)
def test_count_of_a_range(numbers, start, stop):
    start, stop = sorted((start, stop))
    assert bits.count(words_of(numbers), start, stop) == len([n for n in numbers if start <= n < stop])


@pytest.mark.parametrize("start", EDGES)
@pytest.mark.parametrize("stop", EDGES)
def test_count_at_edges_of_full_words(start, stop):
    full = np.full(N_WORDS, 2**64 - 1, np.uint64)
    if start <= stop:
        assert bits.count(full, start, stop) == stop - start
    else:
        with pytest.raises(ValueError, match="not a range"):
            bits.count(full, start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (0, N_BITS + 1), (N_BITS + 1, N_BITS + 2)])
def test_count_outside_is_refused(start, stop):
    with pytest.raises(ValueError, match="not a range"):
        bits.count(words_of([]), start, stop)


@given(numbers=st.sets(NUMBERS))
def test_select_gives_every_block_in_order(numbers):
    words = words_of(numbers)
    assert [bits.select(words, i) for i in range(len(numbers))] == sorted(numbers)
    for index in (-1, len(numbers)):
        with pytest.raises(IndexError, match=f"index {index}"):
            bits.select(words, index)


def test_select_past_the_chunks_counted_at_once(rng):
    numbers = np.unique(rng.integers(0, 5000 * 64, 3000))
    words = words_of(numbers.tolist(), 5000)
    assert [bits.select(words, i) for i in range(0, len(numbers), 7)] == numbers[::7].tolist()


@given(numbers=st.sets(NUMBERS), asked=st.lists(st.integers(-70, N_BITS + 70)))
def test_contains_many(numbers, asked):
    out = np.full(len(asked) + 2, 99, np.uint8)
    hits = bits.contains_many(words_of(numbers), np.array(asked, np.int64), out[1:-1])
    assert out[1:-1].tolist() == [int(n in numbers) for n in asked]
    assert hits == len([n for n in asked if n in numbers])
    assert (out[0], out[-1]) == (99, 99)


def test_contains_many_of_no_words():
    out = np.full(2, 99, np.uint8)
    assert bits.contains_many(np.zeros(0, np.uint64), np.array([0, 5]), out) == 0
    assert out.tolist() == [0, 0]


@given(numbers=st.sets(NUMBERS), changes=st.lists(NUMBERS))
def test_add_and_remove_many_count_what_was_so_before(numbers, changes):
    words = words_of(numbers)
    array = np.array(changes, np.int64)
    assert bits.add_many(words, array) == len(changes) - len(set(changes) - numbers)
    assert numbers_of(words) == numbers | set(changes)
    assert bits.remove_many(words, array) == len(changes) - len(set(changes))
    assert numbers_of(words) == numbers - set(changes)


@pytest.mark.parametrize("change", [bits.add_many, bits.remove_many])
@pytest.mark.parametrize("number", [-1, N_BITS, 2**62, -(2**63)])
def test_a_number_outside_changes_nothing(change, number):
    words = words_of([1, 5])
    with pytest.raises(ValueError, match="outside"):
        change(words, np.array([1, 2, number], np.int64))
    assert numbers_of(words) == {1, 5}


@pytest.mark.parametrize("change", [bits.add_many, bits.remove_many])
def test_no_words(change):
    assert change(np.zeros(0, np.uint64), np.zeros(0, np.int64)) == 0
    with pytest.raises(ValueError, match="outside"):
        change(np.zeros(0, np.uint64), np.zeros(1, np.int64))
