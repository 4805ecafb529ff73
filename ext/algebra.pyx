"""Fused set algebra over dense words: any number of sums, one difference, one intersection, and the count."""
from libc.stdint cimport int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc


cdef extern from "algebra.h" nogil:
    ctypedef struct bp_combine_args:
        const uint64_t *const *plus
        int64_t n_plus
        int exclusive
        const uint64_t *minus
        const uint64_t *within
        uint64_t *out
        int64_t n_words
        int stream_out

    ctypedef struct bp_algebra_kernel:
        const char *name
        int (*available)() noexcept nogil
        int64_t (*combine)(const bp_combine_args *args) noexcept nogil
        uint64_t (*read)(const uint64_t *words, int64_t n_words) noexcept nogil

    const bp_algebra_kernel BP_ALGEBRA_KERNELS[1]
    const int BP_N_ALGEBRA_KERNELS

# From this size an out that is no operand is written around the caches. Measured on a machine with 1 MiB L2 and
# 32 MiB L3 a core: below 4 MiB cached stores win, above 32 MiB streaming ones save the read of out (a fifth of the
# traffic of a + b + c - d). Larger caches: turn it up.
STREAM_OUT_BYTES = 16 << 20
cdef int64_t _STREAM_OUT_WORDS = STREAM_OUT_BYTES // 8

cdef const bp_algebra_kernel *_BEST = NULL


cdef void _choose_best() noexcept:
    """Point _BEST at the first kernel that this CPU has; scalar is last and always there."""
    global _BEST
    cdef int i
    for i in range(BP_N_ALGEBRA_KERNELS):
        if BP_ALGEBRA_KERNELS[i].available():
            _BEST = &BP_ALGEBRA_KERNELS[i]
            return


_choose_best()


def kernel_names():
    """Return the names of the kernels this CPU can run, best first; the last is `scalar`, the oracle."""
    return tuple(
        BP_ALGEBRA_KERNELS[i].name.decode()
        for i in range(BP_N_ALGEBRA_KERNELS) if BP_ALGEBRA_KERNELS[i].available()
    )


def kernel_name():
    """Return the name of the kernel used where none is demanded."""
    return _BEST.name.decode()


cdef const bp_algebra_kernel *_demand(kernel) except NULL:
    """Return the kernel of that name, the best one for None; ValueError where this CPU cannot run it."""
    cdef int i
    if kernel is None:
        return _BEST
    for i in range(BP_N_ALGEBRA_KERNELS):
        if BP_ALGEBRA_KERNELS[i].name.decode() == kernel and BP_ALGEBRA_KERNELS[i].available():
            return &BP_ALGEBRA_KERNELS[i]
    raise ValueError(f"kernel {kernel!r} is not available here; available: {', '.join(kernel_names())}")


cdef int64_t count_words(const uint64_t *words, int64_t n_words) noexcept nogil:
    return combine_words(&words, 1, NULL, NULL, NULL, n_words)


cdef int64_t combine_words(
    const uint64_t *const *plus, int64_t n_plus, const uint64_t *minus, const uint64_t *within,
    uint64_t *out, int64_t n_words,
) noexcept nogil:
    cdef bp_combine_args args
    args.plus, args.n_plus, args.exclusive = plus, n_plus, 0
    args.minus, args.within, args.out = minus, within, out
    args.n_words, args.stream_out = n_words, 0
    return _BEST.combine(&args)


cdef const uint64_t *_address(const uint64_t[::1] words, int64_t n_words) except? NULL:
    """Return where the words stand; ValueError unless there are n_words of them."""
    if words.shape[0] != n_words:
        raise ValueError(f"operands differ in length: {words.shape[0]} words where {n_words} were expected")
    return &words[0] if n_words else NULL


cdef bint _is_whole_or_apart(const uint64_t *out, const uint64_t *operand, int64_t n_words) except -1:
    """Return whether out is the operand itself; ValueError where they overlap in part."""
    cdef uintptr_t a = <uintptr_t>out, b = <uintptr_t>operand, n_bytes = <uintptr_t>n_words * 8
    if operand == NULL or a == b:
        return operand != NULL
    if a < b + n_bytes and b < a + n_bytes:
        raise ValueError("out overlaps an operand in part; it must be the operand itself or lie apart")
    return False


def combine(list plus, minus=None, within=None, uint64_t[::1] out=None, *, bint exclusive=False, kernel=None):
    """Compute ((plus[0] | plus[1] | ...) - minus) & within in one pass and return the bits set in it.

    Parameters
        plus : list of (n_words,) uint64, C-contiguous, read-only; an empty list is the empty set
        minus, within : (n_words,) uint64 or None
        out : (n_words,) uint64 or None, to count only; may be one of the operands itself
        exclusive : `^` between the terms of plus instead of `|`
        kernel : name of a variant that must be used, or None for the best

    Raises
        ValueError: lengths differ, out overlaps an operand in part, no operand at all, or an unavailable kernel

    Notes
        O(operands * n_words), each operand read once; releases the GIL.
    """
    cdef const bp_algebra_kernel *chosen = _demand(kernel)
    cdef bp_combine_args args
    cdef list held = [memoryview(words) for words in [*plus, minus, within] if words is not None]
    cdef int64_t i, n_plus = len(plus), n_words, count
    cdef bint in_place = False
    if not held and out is None:
        raise ValueError("no operand: the length of the result is unknown")
    n_words = held[0].shape[0] if held else out.shape[0]
    cdef const uint64_t **operands = <const uint64_t **>malloc((n_plus + 1) * sizeof(uint64_t *))
    if operands == NULL:
        raise MemoryError
    try:
        for i in range(n_plus):
            operands[i] = _address(plus[i], n_words)
        args.plus, args.n_plus, args.exclusive = operands, n_plus, exclusive
        args.minus = args.within = NULL
        args.out = NULL
        if minus is not None:
            args.minus = _address(minus, n_words)
        if within is not None:
            args.within = _address(within, n_words)
        if out is not None:
            args.out = <uint64_t *>_address(out, n_words)
        args.n_words = n_words
        if args.out != NULL:
            for i in range(n_plus):
                in_place |= _is_whole_or_apart(args.out, operands[i], n_words)
            in_place |= _is_whole_or_apart(args.out, args.minus, n_words)
            in_place |= _is_whole_or_apart(args.out, args.within, n_words)
        args.stream_out = args.out != NULL and not in_place and n_words >= _STREAM_OUT_WORDS
        with nogil:
            count = chosen.combine(&args)
    finally:
        free(operands)
    return count


def read(const uint64_t[::1] words, *, kernel=None):
    """Return the XOR of all words: the plain read of memory that the algebra's speed is measured against."""
    cdef const bp_algebra_kernel *chosen = _demand(kernel)
    cdef uint64_t result = 0
    if words.shape[0]:
        with nogil:
            result = chosen.read(&words[0], words.shape[0])
    return result
