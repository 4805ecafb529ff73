"""Counts over bit ranges, for other packages' kernels."""
from libc.stdint cimport int64_t, uint64_t


# Bits set in [start, stop) of words; the caller answers for the range.
cdef int64_t count_bits(const uint64_t *words, int64_t start, int64_t stop) noexcept nogil

# Position of the set bit with `index` set bits before it, or -1.
cdef int64_t select_bit(const uint64_t *words, int64_t n_words, int64_t index) noexcept nogil
