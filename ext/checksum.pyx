"""CRC32C of blocks, bound to their numbers; see checksum.h for the variants.

check(block, number) = CRC32C over the block's 4,096 bytes, continued over the number as 8 little-endian bytes.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "checksum.h" nogil:
    ctypedef uint32_t (*bp_crc_run)(uint32_t crc, const uint8_t* data, size_t n_bytes) noexcept nogil
    ctypedef void (*bp_crc_blocks)(
        const uint8_t* data, const int64_t* numbers, int64_t first, int64_t n, uint32_t* out
    ) noexcept nogil
    ctypedef struct bp_crc_variant:
        const char* name
        int (*available)() noexcept nogil
        bp_crc_run run
        bp_crc_blocks blocks
    const bp_crc_variant bp_crc_variants[1]
    const int BP_CRC_N_VARIANTS
    void bp_crc_init_all()
    uint32_t bp_crc_skip_block(uint32_t crc)
    uint32_t bp_crc_back(uint32_t crc)

cdef enum:
    BLOCK_BYTES = 4096
    # Blocks checked between comparisons: the checks stay on the stack, and a bad block ends the work early.
    BATCH_BLOCKS = 48
    # 1 us: giving the GIL away and getting it back from a busy thread takes longer
    SHORT_BYTES = 8192

cdef int chosen = 0


cdef int64_t check_blocks(
    const uint8_t* data, const int64_t* numbers, int64_t first, int64_t n_blocks, uint32_t* out
) noexcept nogil:
    bp_crc_variants[chosen].blocks(data, numbers, first, n_blocks, out)
    return n_blocks


cdef int64_t first_bad_block(
    const uint8_t* data, const int64_t* numbers, int64_t first, int64_t n_blocks, const uint32_t* expected
) noexcept nogil:
    cdef uint32_t found[BATCH_BLOCKS]
    cdef int64_t start = 0
    cdef int64_t n, i
    while start < n_blocks:
        n = min(n_blocks - start, <int64_t> BATCH_BLOCKS)
        check_blocks(
            data + start * BLOCK_BYTES, numbers + start if numbers != NULL else NULL, first + start, n, &found[0]
        )
        for i in range(n):
            if found[i] != expected[start + i]:
                return start + i
        start += n
    return -1


cdef int64_t unbind(
    const uint32_t* checks, const int64_t* numbers, int64_t n_blocks, uint32_t* out
) noexcept nogil:
    cdef uint8_t number[8]
    cdef uint32_t crc
    cdef int64_t i
    cdef int k, _back
    for i in range(n_blocks):
        for k in range(8):
            number[k] = <uint8_t> (<uint64_t> numbers[i] >> 8 * k)
        crc = checks[i] ^ ~bp_crc_variants[chosen].run(~<uint32_t> 0, &number[0], 8)
        for _back in range(8):
            crc = bp_crc_back(crc)
        out[i] = crc
    return n_blocks


cdef int64_t join_pieces(
    const uint8_t* data, const uint32_t* crcs, int64_t start, int64_t n_each, int64_t n_pieces, uint32_t* out
) noexcept nogil:
    # data lies `start` bytes behind the first of the blocks that crcs are of
    cdef bp_crc_run run = bp_crc_variants[chosen].run
    cdef int64_t at = 0
    cdef int64_t i, k, first, last
    cdef uint32_t crc
    for i in range(n_pieces):
        first = (start + at + BLOCK_BYTES - 1) // BLOCK_BYTES
        last = (start + at + n_each) // BLOCK_BYTES
        if first >= last:
            crc = ~run(~<uint32_t> 0, data + at, <size_t> n_each)
        else:
            crc = ~run(~<uint32_t> 0, data + at, <size_t> (first * BLOCK_BYTES - start - at))
            for k in range(first, last):
                crc = bp_crc_skip_block(crc) ^ crcs[k]
            crc = ~run(~crc, data + last * BLOCK_BYTES - start, <size_t> (start + at + n_each - last * BLOCK_BYTES))
        out[i] = crc
        at += n_each
    return n_pieces


cdef int64_t blocks_of(const uint8_t[::1] data) except -1:
    if data.shape[0] % BLOCK_BYTES:
        raise ValueError(f"data: {data.shape[0]} bytes are not whole blocks of {BLOCK_BYTES}")
    return data.shape[0] // BLOCK_BYTES


cdef int need(str name, int64_t length, int64_t n_blocks) except -1:
    if length != n_blocks:
        raise ValueError(f"{name}: {length} entries for {n_blocks} blocks")
    return 0


def crc32c(const uint8_t[::1] data, uint32_t seed=0):
    """CRC32C of any bytes; `seed` is the CRC of what comes before them. Releases the GIL beyond 8 KiB."""
    cdef uint32_t crc = ~seed
    cdef int64_t n = data.shape[0]
    if 0 < n <= SHORT_BYTES:
        crc = bp_crc_variants[chosen].run(crc, &data[0], <size_t> n)
    elif n:
        with nogil:
            crc = bp_crc_variants[chosen].run(crc, &data[0], <size_t> n)
    return <uint32_t> ~crc


def crc32c_blocks(const uint8_t[::1] data, const int64_t[::1] numbers, uint32_t[::1] out):
    """Checks of blocks with the given numbers into `out`."""
    cdef int64_t n = blocks_of(data)
    need("numbers", numbers.shape[0], n)
    need("out", out.shape[0], n)
    if n:
        with nogil:
            check_blocks(&data[0], &numbers[0], 0, n, &out[0])


def crc32c_blocks_from(const uint8_t[::1] data, int64_t first_number, uint32_t[::1] out):
    """Checks of blocks with consecutive numbers into `out`."""
    cdef int64_t n = blocks_of(data)
    need("out", out.shape[0], n)
    if n:
        with nogil:
            check_blocks(&data[0], NULL, first_number, n, &out[0])


def verify_blocks(const uint8_t[::1] data, const int64_t[::1] numbers, const uint32_t[::1] expected):
    """Index of the first block whose check is not the expected one, or -1."""
    cdef int64_t n = blocks_of(data)
    cdef int64_t bad = -1
    need("numbers", numbers.shape[0], n)
    need("expected", expected.shape[0], n)
    if n:
        with nogil:
            bad = first_bad_block(&data[0], &numbers[0], 0, n, &expected[0])
    return bad


def verify_blocks_from(const uint8_t[::1] data, int64_t first_number, const uint32_t[::1] expected):
    """Index of the first block with consecutive numbers whose check is not the expected one, or -1."""
    cdef int64_t n = blocks_of(data)
    cdef int64_t bad = -1
    need("expected", expected.shape[0], n)
    if n:
        with nogil:
            bad = first_bad_block(&data[0], NULL, first_number, n, &expected[0])
    return bad


def unbound_crcs(const uint32_t[::1] checks, const int64_t[::1] numbers, uint32_t[::1] out):
    """CRC32C of each block's bytes alone into `out`, by its check and number; the bytes are not needed."""
    cdef int64_t n = checks.shape[0]
    need("numbers", numbers.shape[0], n)
    need("out", out.shape[0], n)
    if n:
        with nogil:
            unbind(&checks[0], &numbers[0], n, &out[0])


def join_block_crcs(const uint32_t[::1] crcs, uint32_t seed=0):
    """CRC32C of blocks that follow each other, by that of each alone; `seed` is the CRC of what comes before them."""
    cdef uint32_t crc = seed
    cdef int64_t i
    for i in range(crcs.shape[0]):
        crc = bp_crc_skip_block(crc) ^ crcs[i]
    return crc


def piece_crcs(const uint8_t[::1] data, const uint32_t[::1] crcs, int64_t start, uint32_t[::1] out):
    """CRC32C of equal pieces of blocks into `out`: of data, which begins `start` bytes behind the first of the blocks.

    crcs : of each block; one that lies whole in a piece is not read.
    """
    cdef int64_t n = out.shape[0]
    cdef int64_t n_bytes = data.shape[0]
    if n == 0 or n_bytes == 0 or n_bytes % n:
        raise ValueError(f"data: {n_bytes} bytes are not {n} equal pieces")
    if start < 0 or start > crcs.shape[0] * BLOCK_BYTES - n_bytes:
        raise ValueError(f"data: {n_bytes} bytes from {start} on are not in {crcs.shape[0]} blocks")
    with nogil:
        join_pieces(&data[0], &crcs[0], start, n_bytes // n, n, &out[0])


def kernel_names():
    """Variants that this CPU runs, best first."""
    return tuple(
        bp_crc_variants[i].name.decode() for i in range(BP_CRC_N_VARIANTS) if bp_crc_variants[i].available()
    )


def kernel_name():
    """The variant in use."""
    return bp_crc_variants[chosen].name.decode()


def select_kernel(str name):
    """Use the named variant from now on, in every thread. A demand: what this CPU cannot run is a ValueError."""
    global chosen
    for i in range(BP_CRC_N_VARIANTS):
        if bp_crc_variants[i].name.decode() == name and bp_crc_variants[i].available():
            chosen = i
            return
    raise ValueError(f"checksum kernel {name!r} cannot run here; {', '.join(kernel_names())} can")


bp_crc_init_all()
select_kernel(kernel_names()[0])
