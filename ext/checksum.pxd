"""Block checksums for other kernels: the variant chosen at import, callable without the GIL."""

from libc.stdint cimport int64_t, uint8_t, uint32_t

# Index of the first of n blocks whose check differs, or -1. numbers == NULL: consecutive from `first`.
cdef int64_t first_bad_block(
    const uint8_t* data, const int64_t* numbers, int64_t first, int64_t n_blocks, const uint32_t* expected
) noexcept nogil

# Checks of n blocks into out.
cdef int64_t check_blocks(
    const uint8_t* data, const int64_t* numbers, int64_t first, int64_t n_blocks, uint32_t* out
) noexcept nogil
