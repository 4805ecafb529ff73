"""Set algebra over words, for other packages' kernels."""
from libc.stdint cimport int64_t, uint64_t


# Bits set in n_words words, by the best kernel of this machine.
cdef int64_t count_words(const uint64_t *words, int64_t n_words) noexcept nogil

# out = (OR of n_plus operands) & ~minus & within, and its count; minus, within and out may be NULL.
cdef int64_t combine_words(
    const uint64_t *const *plus, int64_t n_plus, const uint64_t *minus, const uint64_t *within,
    uint64_t *out, int64_t n_words,
) noexcept nogil
