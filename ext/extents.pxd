"""Runs of dense words, for other packages' kernels."""
from libc.stdint cimport int64_t, uint64_t


# First position of [start, stop) whose bit, xor'ed with flip's, is set; stop where there is none.
cdef int64_t next_bit(const uint64_t *words, int64_t start, int64_t stop, uint64_t flip) noexcept nogil

# Runs of [start, stop) as extents; returns how many, *resume says where to go on.
cdef int64_t fill_runs(
    const uint64_t *words, int64_t start, int64_t stop, int64_t base, bint zeros, int64_t min_blocks,
    int64_t *out, int64_t capacity, int64_t *resume,
) noexcept nogil

# Runs of set bits of [start, stop).
cdef int64_t count_runs(const uint64_t *words, int64_t start, int64_t stop) noexcept nogil

# Set or clear [start, stop).
cdef void fill_range(uint64_t *words, int64_t start, int64_t stop, bint value) noexcept nogil
