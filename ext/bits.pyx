"""Single bits and counts of one dense plane: ranges, rank and select, many numbers at once."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from blockplane._native.algebra cimport count_words

cdef extern from "algebra.h" nogil:
    int64_t bp_popcount64(uint64_t word) noexcept

cdef extern from *:
    """
    #define bp_ctz64(word) __builtin_ctzll(word)
    """
    int bp_ctz64(uint64_t word) noexcept nogil

cdef enum:
    OUT_OF_RANGE = -1
    SELECT_CHUNK_WORDS = 512  # counted by the vector kernel before single words are looked at


cdef void _check_range(int64_t start, int64_t stop, int64_t n_words) except *:
    if not 0 <= start <= stop <= n_words * 64:
        raise ValueError(f"blocks {start} to {stop} are not a range of the {n_words * 64} that the words hold")


cdef uint64_t _mask(int64_t start, int64_t stop) noexcept nogil:
    """Return a word with the bits [start, stop) set, 0 <= start < stop <= 64."""
    return (~<uint64_t>0 >> (64 - (stop - start))) << start


cdef int64_t count_bits(const uint64_t *words, int64_t start, int64_t stop) noexcept nogil:
    cdef int64_t first = start >> 6, last = (stop - 1) >> 6
    if start >= stop:
        return 0
    if first == last:
        return bp_popcount64(words[first] & _mask(start & 63, stop - first * 64))
    return (
        bp_popcount64(words[first] & _mask(start & 63, 64))
        + count_words(words + first + 1, last - first - 1)
        + bp_popcount64(words[last] & _mask(0, stop - last * 64))
    )


def count(const uint64_t[::1] words, int64_t start, int64_t stop):
    """Return how many bits of [start, stop) are set. O(stop - start); releases the GIL.

    Raises
        ValueError: not 0 <= start <= stop <= 64 * n_words
    """
    cdef int64_t result = 0
    _check_range(start, stop, words.shape[0])
    if start < stop:
        with nogil:
            result = count_bits(&words[0], start, stop)
    return result


cdef int64_t select_bit(const uint64_t *words, int64_t n_words, int64_t index) noexcept nogil:
    """Return the position of the set bit with `index` set bits before it, or OUT_OF_RANGE."""
    cdef int64_t i = 0, n_here, _k
    cdef uint64_t word
    while i + SELECT_CHUNK_WORDS <= n_words:
        n_here = count_words(words + i, SELECT_CHUNK_WORDS)
        if index < n_here:
            break
        index -= n_here
        i += SELECT_CHUNK_WORDS
    while i < n_words:
        n_here = bp_popcount64(words[i])
        if index < n_here:
            word = words[i]
            for _k in range(index):
                word &= word - 1
            return i * 64 + bp_ctz64(word)
        index -= n_here
        i += 1
    return OUT_OF_RANGE


def select(const uint64_t[::1] words, int64_t index):
    """Return the set bit with exactly `index` set bits before it. O(n_words); releases the GIL.

    Raises
        IndexError: index < 0, or no more than index bits are set
    """
    cdef int64_t result = OUT_OF_RANGE
    if index >= 0 and words.shape[0]:
        with nogil:
            result = select_bit(&words[0], words.shape[0], index)
    if result < 0:
        raise IndexError(f"there is no block of index {index}")
    return result


cdef int64_t test_many(
    const uint64_t *words, int64_t n_bits, const int64_t *numbers, int64_t n, uint8_t *out
) noexcept nogil:
    cdef int64_t i, hits = 0, number
    cdef uint8_t bit
    for i in range(n):
        number = numbers[i]
        bit = 0
        if 0 <= number < n_bits:
            bit = (words[number >> 6] >> (number & 63)) & 1
        out[i] = bit
        hits += bit
    return hits


cdef int64_t change_many(
    uint64_t *words, int64_t n_bits, const int64_t *numbers, int64_t n, bint value
) noexcept nogil:
    """Set or clear bits; return how many had the value before. Nothing changes where a number is out of range."""
    cdef int64_t i, same = 0
    cdef uint64_t bit, before
    for i in range(n):
        if not 0 <= numbers[i] < n_bits:
            return OUT_OF_RANGE
    for i in range(n):
        bit = <uint64_t>1 << (numbers[i] & 63)
        before = words[numbers[i] >> 6]
        same += ((before & bit) != 0) == value
        words[numbers[i] >> 6] = before | bit if value else before & ~bit
    return same


def contains_many(const uint64_t[::1] words, const int64_t[::1] numbers, uint8_t[::1] out):
    """Write 1 or 0 for each number into out and return the hits; a number outside the words is not contained.

    Raises
        ValueError: numbers and out differ in length
    """
    cdef int64_t hits = 0
    if numbers.shape[0] != out.shape[0]:
        raise ValueError(f"out holds {out.shape[0]} answers for {numbers.shape[0]} numbers")
    if not numbers.shape[0]:
        return 0
    if not words.shape[0]:
        out[:] = 0
        return 0
    with nogil:
        hits = test_many(&words[0], words.shape[0] * 64, &numbers[0], numbers.shape[0], &out[0])
    return hits


cdef int64_t _change(uint64_t[::1] words, const int64_t[::1] numbers, bint value) except -1:
    cdef int64_t same = 0
    if not numbers.shape[0]:
        return 0
    if not words.shape[0]:
        raise ValueError("a number lies outside the 0 blocks that the words hold")
    with nogil:
        same = change_many(&words[0], words.shape[0] * 64, &numbers[0], numbers.shape[0], value)
    if same < 0:
        raise ValueError(f"a number lies outside the {words.shape[0] * 64} blocks that the words hold")
    return same


def add_many(uint64_t[::1] words, const int64_t[::1] numbers):
    """Set the bits of all numbers and return how many were set already or came twice. Releases the GIL.

    Raises
        ValueError: a number is out of range; nothing has changed then
    """
    return _change(words, numbers, True)


def remove_many(uint64_t[::1] words, const int64_t[::1] numbers):
    """Clear the bits of all numbers and return how many were clear already or came twice. Releases the GIL.

    Raises
        ValueError: a number is out of range; nothing has changed then
    """
    return _change(words, numbers, False)
