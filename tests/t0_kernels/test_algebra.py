"""Fused set algebra: every variant against Python integers as sets of bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane._native import algebra

KERNELS = algebra.kernel_names()
GUARD = np.uint64(0xDEADBEEFDEADBEEF)
# Around the vectors (4, 8 words) and the steps of the loops (32, 64 words), and longer than several steps.
SIZES = [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 1000]


def to_int(words: np.ndarray) -> int:
    return int.from_bytes(words.tobytes(), "little")


def reference(plus, minus, within, exclusive=False) -> int:
    result = 0
    for words in plus:
        result = result ^ to_int(words) if exclusive else result | to_int(words)
    if minus is not None:
        result &= ~to_int(minus)
    if within is not None:
        result &= to_int(within)
    return result


def guarded(n_words: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Words at any alignment, and the array around them that must not change."""
    around = np.full(n_words + 16 + offset, GUARD, np.uint64)
    return around, around[8 + offset : 8 + offset + n_words]


def check(rng, kernel, n_words, n_plus, has_minus, has_within, exclusive, offset):
    plus = [rng.integers(0, 2**64, n_words, np.uint64) for _ in range(n_plus)]
    minus = rng.integers(0, 2**64, n_words, np.uint64) if has_minus else None
    within = rng.integers(0, 2**64, n_words, np.uint64) if has_within else None
    expected = reference(plus, minus, within, exclusive)
    around, out = guarded(n_words, offset)

    counted = algebra.combine(plus, minus, within, None if plus else out, exclusive=exclusive, kernel=kernel)
    written = algebra.combine(plus, minus, within, out, exclusive=exclusive, kernel=kernel)

    assert (counted, written) == (expected.bit_count(), expected.bit_count())
    assert to_int(out) == expected
    assert (around[: 8 + offset] == GUARD).all()
    assert (around[8 + offset + n_words :] == GUARD).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_words", SIZES)
def test_sizes(rng, kernel, n_words):
    for n_plus in (0, 1, 2, 3, 9):
        check(rng, kernel, n_words, n_plus, n_plus % 2 == 1, n_plus > 1, False, offset=int(rng.integers(0, 8)))


@given(
    seed=st.integers(0, 2**32),
    kernel=st.sampled_from(KERNELS),
    n_words=st.integers(0, 300),
    n_plus=st.integers(0, 6),
    has_minus=st.booleans(),
    has_within=st.booleans(),
    exclusive=st.booleans(),
    offset=st.integers(0, 7),
)
def test_any_expression(seed, kernel, n_words, n_plus, has_minus, has_within, exclusive, offset):
    check(np.random.default_rng(seed), kernel, n_words, n_plus, has_minus, has_within, exclusive, offset)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("offset", range(8))
def test_writing_around_the_caches(rng, kernel, offset):
    n_words = algebra.STREAM_OUT_BYTES // 8 + 77
    a, b, c = (rng.integers(0, 2**64, n_words, np.uint64) for _ in range(3))
    around, out = guarded(n_words, offset)
    expected = (a | b) & ~c
    assert algebra.combine([a, b], c, None, out, kernel=kernel) == int(np.bitwise_count(expected).sum())
    assert np.array_equal(out, expected)
    assert (around[: 8 + offset] == GUARD).all()
    assert (around[8 + offset + n_words :] == GUARD).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("place", ["plus", "minus", "within"])
def test_out_may_be_an_operand(rng, kernel, place):
    operands = {name: rng.integers(0, 2**64, 333, np.uint64) for name in ("plus", "minus", "within")}
    other = rng.integers(0, 2**64, 333, np.uint64)
    expected = reference([operands["plus"], other], operands["minus"], operands["within"])
    algebra.combine([operands["plus"], other], operands["minus"], operands["within"], operands[place], kernel=kernel)
    assert to_int(operands[place]) == expected


@pytest.mark.parametrize("shift", [-5, -1, 1, 5])
def test_out_that_overlaps_an_operand_in_part_is_refused(shift):
    words = np.zeros(100, np.uint64)
    with pytest.raises(ValueError, match="overlaps an operand"):
        algebra.combine([words[10:50]], None, None, words[10 + shift : 50 + shift])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="differ in length"):
        algebra.combine([np.zeros(3, np.uint64), np.zeros(4, np.uint64)])
    with pytest.raises(ValueError, match="differ in length"):
        algebra.combine([np.zeros(3, np.uint64)], out=np.zeros(4, np.uint64))


def test_an_expression_without_operands_has_no_length():
    with pytest.raises(ValueError, match="no operand"):
        algebra.combine([])


def test_strided_and_foreign_arrays_are_refused():
    with pytest.raises(ValueError, match="contiguous"):
        algebra.combine([np.zeros(8, np.uint64)[::2]])
    with pytest.raises(ValueError, match="mismatch"):
        algebra.combine([np.zeros(8, np.int64)])


def test_read_only_operands_are_fine_and_a_read_only_out_is_not():
    words = np.array([7], np.uint64)
    words.flags.writeable = False
    assert algebra.combine([words]) == 3
    with pytest.raises(ValueError, match="read-only"):
        algebra.combine([words], out=words)


def test_a_demanded_kernel_is_used_or_refused():
    words = np.array([1], np.uint64)
    assert algebra.kernel_name() == KERNELS[0]
    assert KERNELS[-1] == "scalar"
    for call in (lambda k: algebra.combine([words], kernel=k), lambda k: algebra.read(words, kernel=k)):
        with pytest.raises(ValueError, match="not available here"):
            call("avx9000")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_words", SIZES)
def test_plain_read_sees_every_word(rng, kernel, n_words):
    words = rng.integers(0, 2**64, n_words, np.uint64)
    assert algebra.read(words, kernel=kernel) == int(np.bitwise_xor.reduce(words, initial=0))
