"""Parity of whole stripes: P (XOR) and Q (GF(2^8), polynomial 0x11d, generator 2); see parity.h for the variants."""

from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

cdef extern from "parity.h" nogil:
    ctypedef void (*bp_parity_stripe)(
        const uint8_t* data, int64_t n_data, int64_t stride, uint8_t* p, uint8_t* q
    ) noexcept nogil
    ctypedef struct bp_parity_variant:
        const char* name
        int (*available)() noexcept nogil
        bp_parity_stripe stripe
    const bp_parity_variant bp_parity_variants[1]
    const int BP_PARITY_N_VARIANTS

cdef enum:
    BLOCK_BYTES = 4096
    # 2^d repeats after 255 disks: Q would no longer tell them apart
    MAX_DATA_WITH_Q = 255

cdef int chosen = 0


cdef int64_t band_parity(
    const uint8_t* data, int64_t n_data, int64_t n_stripes, uint8_t* p, uint8_t* q
) noexcept nogil:
    cdef int64_t s
    for s in range(n_stripes):
        bp_parity_variants[chosen].stripe(
            data + s * BLOCK_BYTES, n_data, n_stripes * BLOCK_BYTES,
            p + s * BLOCK_BYTES, q + s * BLOCK_BYTES if q != NULL else NULL,
        )
    return n_stripes


def compute_parity(const uint8_t[:, :, ::1] data, uint8_t[:, :, ::1] parity):
    """Parity of a band.

    data : (n_data, n_stripes, 4096). parity : (n_parity, n_stripes, 4096), P and then Q; it must not overlap data.
    """
    cdef int64_t n_data = data.shape[0]
    cdef int64_t n_stripes = data.shape[1]
    cdef int64_t n_parity = parity.shape[0]
    cdef uintptr_t data_at, parity_at
    if data.shape[2] != BLOCK_BYTES or parity.shape[2] != BLOCK_BYTES or parity.shape[1] != n_stripes:
        raise ValueError(
            f"data, parity: shapes ({n_data}, {n_stripes}, {data.shape[2]}) and "
            f"({n_parity}, {parity.shape[1]}, {parity.shape[2]}) do not belong together"
        )
    if n_parity > 2 or n_data < 1 or (n_parity == 2 and n_data > MAX_DATA_WITH_Q):
        raise ValueError(f"no parity is defined of {n_data} data disks and {n_parity} parity disks")
    if n_parity == 0 or n_stripes == 0:
        return
    data_at, parity_at = <uintptr_t> &data[0, 0, 0], <uintptr_t> &parity[0, 0, 0]
    if data_at < parity_at + parity.nbytes and parity_at < data_at + data.nbytes:
        raise ValueError("parity: overlaps data")
    with nogil:
        band_parity(
            &data[0, 0, 0], n_data, n_stripes, &parity[0, 0, 0], &parity[1, 0, 0] if n_parity == 2 else NULL
        )


cdef int64_t xor_bytes(uint8_t* target, const uint8_t* source, int64_t n) noexcept nogil:
    cdef int64_t i = 0
    cdef uint64_t a, b
    while i + 8 <= n:
        memcpy(&a, target + i, 8)
        memcpy(&b, source + i, 8)
        a ^= b
        memcpy(target + i, &a, 8)
        i += 8
    while i < n:
        target[i] ^= source[i]
        i += 1
    return n


def xor_into(uint8_t[::1] target, const uint8_t[::1] source):
    """target ^= source, byte by byte; the same bytes or not overlapping."""
    cdef int64_t n = target.shape[0]
    cdef uintptr_t target_at, source_at
    if source.shape[0] != n:
        raise ValueError(f"source: {source.shape[0]} bytes for {n}")
    if n == 0:
        return
    target_at, source_at = <uintptr_t> &target[0], <uintptr_t> &source[0]
    if target_at != source_at and target_at < source_at + n and source_at < target_at + n:
        raise ValueError("source: overlaps target in part")
    with nogil:
        xor_bytes(&target[0], &source[0], n)


def kernel_names():
    """Variants that this CPU runs, best first."""
    return tuple(
        bp_parity_variants[i].name.decode() for i in range(BP_PARITY_N_VARIANTS) if bp_parity_variants[i].available()
    )


def kernel_name():
    """The variant in use."""
    return bp_parity_variants[chosen].name.decode()


def select_kernel(str name):
    """Use the named variant from now on, in every thread. A demand: what this CPU cannot run is a ValueError."""
    global chosen
    for i in range(BP_PARITY_N_VARIANTS):
        if bp_parity_variants[i].name.decode() == name and bp_parity_variants[i].available():
            chosen = i
            return
    raise ValueError(f"parity kernel {name!r} cannot run here; {', '.join(kernel_names())} can")


select_kernel(kernel_names()[0])
