"""Extents (half-open ranges) of dense words, and words from extents."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

cdef extern from "algebra.h" nogil:
    int64_t bp_popcount64(uint64_t word) noexcept

cdef extern from *:
    """
    #define bp_ctz64(word) __builtin_ctzll(word)
    """
    int bp_ctz64(uint64_t word) noexcept nogil

cdef enum:
    OUT_OF_RANGE = -1
    SKIP_WORDS = 8  # words looked at together while nothing is found: one vectorised OR instead of eight branches

cdef uint64_t ALL = ~<uint64_t>0


cdef int64_t next_bit(const uint64_t *words, int64_t start, int64_t stop, uint64_t flip) noexcept nogil:
    """Return the first position in [start, stop) whose bit, xor'ed with flip's, is set; stop where there is none."""
    cdef int64_t i = start >> 6, k, n_words = (stop + 63) >> 6
    cdef uint64_t word, seen
    if start >= stop:
        return stop
    word = (words[i] ^ flip) & (ALL << (start & 63))
    while word == 0:
        i += 1
        while i + SKIP_WORDS <= n_words:
            seen = 0
            for k in range(SKIP_WORDS):
                seen |= words[i + k] ^ flip
            if seen:
                break
            i += SKIP_WORDS
        if i >= n_words:
            return stop
        word = words[i] ^ flip
    return min(i * 64 + bp_ctz64(word), stop)


cdef int64_t fill_runs(
    const uint64_t *words, int64_t start, int64_t stop, int64_t base, bint zeros, int64_t min_blocks,
    int64_t *out, int64_t capacity, int64_t *resume,
) noexcept nogil:
    """Write runs of [start, stop) to out; resume is where to go on: stop, or the first run that found no room."""
    cdef uint64_t flip = ALL if zeros else 0
    cdef int64_t n = 0, first, last, position = start
    while position < stop:
        first = next_bit(words, position, stop, flip)
        if first == stop:
            break
        last = next_bit(words, first, stop, ~flip)
        if last - first >= min_blocks:
            if n == capacity:
                resume[0] = first
                return n
            out[2 * n] = base + first
            out[2 * n + 1] = base + last
            n += 1
        position = last
    resume[0] = stop
    return n


cdef int64_t count_runs(const uint64_t *words, int64_t start, int64_t stop) noexcept nogil:
    """Count the runs of set bits of [start, stop)."""
    cdef int64_t first = start >> 6, last = (stop - 1) >> 6, i, n = 0
    cdef uint64_t word, carry = 0
    if start >= stop:
        return 0
    for i in range(first, last + 1):
        word = words[i]
        if i == first:
            word &= ALL << (start & 63)
        if i == last:
            word &= ALL >> (63 - ((stop - 1) & 63))
        n += bp_popcount64(word & ~((word << 1) | carry))
        carry = word >> 63
    return n


cdef void fill_range(uint64_t *words, int64_t start, int64_t stop, bint value) noexcept nogil:
    cdef int64_t first = start >> 6, last = (stop - 1) >> 6
    cdef uint64_t head = ALL << (start & 63), tail = ALL >> (63 - ((stop - 1) & 63))
    if start >= stop:
        return
    if first == last:
        head &= tail
    words[first] = words[first] | head if value else words[first] & ~head
    if first < last:
        memset(words + first + 1, 0xFF if value else 0, <size_t>(last - first - 1) * 8)
        words[last] = words[last] | tail if value else words[last] & ~tail


cdef int64_t fill_extents(
    uint64_t *words, int64_t n_bits, const int64_t *extents, int64_t n, int64_t base, bint value
) noexcept nogil:
    """Set or clear every extent, or none where one is not a range of the words."""
    cdef int64_t i
    for i in range(n):
        if not base <= extents[2 * i] <= extents[2 * i + 1] <= base + n_bits:
            return OUT_OF_RANGE
    for i in range(n):
        fill_range(words, extents[2 * i] - base, extents[2 * i + 1] - base, value)
    return n


cdef int64_t take_range(uint64_t *words, int64_t start, int64_t stop) noexcept nogil:
    """Clear [start, stop); return the first bit of it that was clear, or -1."""
    cdef int64_t first = start >> 6, last = (stop - 1) >> 6, i, absent = -1
    cdef uint64_t mask
    for i in range(first, last + 1):
        mask = ALL
        if i == first:
            mask &= ALL << (start & 63)
        if i == last:
            mask &= ALL >> (63 - ((stop - 1) & 63))
        if mask & ~words[i] and absent < 0:
            absent = i * 64 + bp_ctz64(mask & ~words[i])
        words[i] &= ~mask
    return absent


cdef int64_t take_extents(
    uint64_t *words, int64_t n_bits, const int64_t *extents, int64_t n, int64_t base
) noexcept nogil:
    """Clear what of the extents lies in the words; return the first bit of it that was clear, or -1."""
    cdef int64_t i, start, stop, found, absent = -1
    for i in range(n):
        start, stop = max(extents[2 * i], base) - base, min(extents[2 * i + 1], base + n_bits) - base
        if start < stop:
            found = take_range(words, start, stop)
            if absent < 0:
                absent = found
    return absent


cdef void _check_range(int64_t start, int64_t stop, int64_t n_words) except *:
    if not 0 <= start <= stop <= n_words * 64:
        raise ValueError(f"blocks {start} to {stop} are not a range of the {n_words * 64} that the words hold")


def count(const uint64_t[::1] words, int64_t start, int64_t stop):
    """Return the number of runs of set bits in [start, stop). O(stop - start); releases the GIL.

    Raises
        ValueError: not 0 <= start <= stop <= 64 * n_words
    """
    cdef int64_t n = 0
    _check_range(start, stop, words.shape[0])
    if start < stop:
        with nogil:
            n = count_runs(&words[0], start, stop)
    return n


def runs(
    const uint64_t[::1] words, int64_t start, int64_t stop, int64_t[:, ::1] out, *,
    int64_t base=0, bint zeros=False, int64_t min_blocks=1,
):
    """Write the runs of set bits of [start, stop) as extents.

    Parameters
        words : (n_words,) uint64, C-contiguous, read-only
        start, stop : positions in words; runs are cut there
        out : (capacity, 2) int64; extents, base added to each number
        zeros : runs of clear bits instead
        min_blocks : shorter runs are left out

    Returns
        (n, resume): extents written, and the position to go on from: stop when all are written

    Raises
        ValueError: not 0 <= start <= stop <= 64 * n_words, or out is not (capacity, 2) with capacity > 0

    Notes
        O(stop - start + runs); releases the GIL.
    """
    cdef int64_t n = 0, resume = stop
    _check_range(start, stop, words.shape[0])
    if out.shape[1] != 2 or out.shape[0] == 0:
        raise ValueError(f"out is ({out.shape[0]}, {out.shape[1]}); it must be (capacity, 2) with room for one extent")
    if start < stop:
        with nogil:
            n = fill_runs(&words[0], start, stop, base, zeros, min_blocks, &out[0, 0], out.shape[0], &resume)
    return n, resume


def fill(uint64_t[::1] words, const int64_t[:, ::1] extents, *, int64_t base=0, bint value=True):
    """Set (or clear) the bits of all extents; bit 0 of words is number base. Releases the GIL.

    Raises
        ValueError: extents are not (n, 2), or one is not a range of the words; nothing has changed then
    """
    cdef int64_t result
    if extents.shape[1] != 2:
        raise ValueError(f"extents are ({extents.shape[0]}, {extents.shape[1]}); they must be (n, 2)")
    if not extents.shape[0]:
        return
    cdef uint64_t nothing = 0
    cdef uint64_t *target = &words[0] if words.shape[0] else &nothing
    with nogil:
        result = fill_extents(target, words.shape[0] * 64, &extents[0, 0], extents.shape[0], base, value)
    if result < 0:
        raise ValueError(f"an extent is not a range of blocks {base} to {base + words.shape[0] * 64}")


def take(uint64_t[::1] words, const int64_t[:, ::1] extents, *, int64_t base=0):
    """Clear the bits of what of the extents lies in the words, each of which should be set; bit 0 is number base.

    Returns
        the first number, in the order of the extents, whose bit was clear already, or -1

    Raises
        ValueError: extents are not (n, 2)

    Notes
        Releases the GIL.
    """
    cdef int64_t absent = -1
    if extents.shape[1] != 2:
        raise ValueError(f"extents are ({extents.shape[0]}, {extents.shape[1]}); they must be (n, 2)")
    if not (extents.shape[0] and words.shape[0]):
        return -1
    with nogil:
        absent = take_extents(&words[0], words.shape[0] * 64, &extents[0, 0], extents.shape[0], base)
    return base + absent if absent >= 0 else -1
