"""Portable Roaring bytes (32-bit form) to dense words, container by container.

A container holds the numbers that share their upper 16 bits: 1,024 words of a plane. Rows describe containers, one
int64 column each: key (number >> 16), cardinality, kind, position of the data.

Source: RoaringBitmap, RoaringFormatSpec. Serialised bytes come from anywhere: every field is judged before it is used.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from blockplane._native.algebra cimport count_words
from blockplane._native.extents cimport fill_range
from blockplane._native.roaring_format cimport (
    ARRAY, ARRAY_LIMIT, BITSET, BITSET_BYTES, CARDINALITY, CONTAINER_BITS, CONTAINER_WORDS, COOKIE, COOKIE_RUNS, KEY,
    KIND, OFFSETS_FROM, POSITION, ROW, RUNS,
)

cdef enum Fault:
    TRUNCATED = -1
    BAD_COOKIE = -2
    TOO_MANY = -3
    KEYS_UNORDERED = -4
    BAD_OFFSET = -5
    ARRAY_UNORDERED = -6
    WRONG_CARDINALITY = -7
    RUNS_UNORDERED = -8
    RUN_PAST_END = -9
    OUT_OF_SPACE = -10
    BAD_ROW = -11

cdef dict _FAULTS = {
    TRUNCATED: "the bytes end before the bitmap does",
    BAD_COOKIE: "no Roaring bitmap in the portable format begins with these bytes",
    TOO_MANY: "more than 65,536 containers",
    KEYS_UNORDERED: "container keys do not ascend",
    BAD_OFFSET: "a container does not stand where the offset table says",
    ARRAY_UNORDERED: "numbers in an array container do not ascend",
    WRONG_CARDINALITY: "a container does not hold as many numbers as its header says",
    RUNS_UNORDERED: "runs overlap, touch or do not ascend",
    RUN_PAST_END: "a run reaches past its container",
    OUT_OF_SPACE: "a number lies outside the plane",
    BAD_ROW: "the rows do not describe these bytes",
}


cdef _raise(int64_t fault):
    raise ValueError(_FAULTS[fault])


cdef uint16_t _u16(const uint8_t *at) noexcept nogil:
    return <uint16_t>(at[0] | at[1] << 8)


cdef uint32_t _u32(const uint8_t *at) noexcept nogil:
    return <uint32_t>_u16(at) | <uint32_t>_u16(at + 2) << 16


cdef int64_t _header_bytes(int64_t n, bint with_runs) noexcept nogil:
    """Bytes before the first container."""
    if not with_runs:
        return 8 + 8 * n
    return 4 + (n + 7) // 8 + 4 * n + (4 * n if n >= OFFSETS_FROM else 0)


cdef int64_t read_header(const uint8_t *data, int64_t n_bytes, bint *with_runs) noexcept nogil:
    """Return the number of containers."""
    cdef int64_t n
    cdef uint32_t cookie
    if n_bytes < 4:
        return TRUNCATED
    cookie = _u32(data)
    with_runs[0] = (cookie & 0xFFFF) == COOKIE_RUNS
    if with_runs[0]:
        n = (cookie >> 16) + 1
    elif cookie != COOKIE:
        return BAD_COOKIE
    elif n_bytes < 8:
        return TRUNCATED
    else:
        n = _u32(data + 4)
    if n > CONTAINER_BITS:
        return TOO_MANY
    if _header_bytes(n, with_runs[0]) > n_bytes:
        return TRUNCATED
    return n


cdef int64_t read_rows(
    const uint8_t *data, int64_t n_bytes, int64_t n, bint with_runs, int64_t *rows
) noexcept nogil:
    """Describe n containers whose header fits; return the bytes that the bitmap takes."""
    cdef int64_t i, size, position = _header_bytes(n, with_runs)
    cdef int64_t header = 4 + (n + 7) // 8 if with_runs else 8
    cdef bint with_offsets = not with_runs or n >= OFFSETS_FROM
    cdef int64_t *row = rows
    for i in range(n):
        row[KEY] = _u16(data + header + 4 * i)
        row[CARDINALITY] = <int64_t>_u16(data + header + 4 * i + 2) + 1
        if i and row[KEY] <= row[KEY - ROW]:
            return KEYS_UNORDERED
        if with_offsets and _u32(data + header + 4 * n + 4 * i) != <uint32_t>position:
            return BAD_OFFSET
        if with_runs and data[4 + (i >> 3)] >> (i & 7) & 1:
            row[KIND] = RUNS
            if position + 2 > n_bytes:
                return TRUNCATED
            size = 2 + 4 * <int64_t>_u16(data + position)
        elif row[CARDINALITY] > ARRAY_LIMIT:
            row[KIND] = BITSET
            size = BITSET_BYTES
        else:
            row[KIND] = ARRAY
            size = 2 * row[CARDINALITY]
        row[POSITION] = position
        position += size
        if position > n_bytes:
            return TRUNCATED
        row += ROW
    return position


cdef int64_t _decode_array(const uint8_t *at, int64_t cardinality, uint64_t *words) noexcept nogil:
    cdef int64_t i, value, last = -1
    for i in range(cardinality):
        value = _u16(at + 2 * i)
        if value <= last:
            return ARRAY_UNORDERED
        words[value >> 6] |= <uint64_t>1 << (value & 63)
        last = value
    return cardinality


cdef int64_t _decode_runs(const uint8_t *at, uint64_t *words) noexcept nogil:
    cdef int64_t i, start, stop, last = -1, cardinality = 0
    for i in range(_u16(at)):
        start = _u16(at + 2 + 4 * i)
        stop = start + _u16(at + 4 + 4 * i) + 1
        if start <= last:
            return RUNS_UNORDERED
        if stop > CONTAINER_BITS:
            return RUN_PAST_END
        fill_range(words, start, stop, True)
        cardinality += stop - start
        last = stop
    return cardinality


cdef int64_t decode_container(const uint8_t *data, const int64_t *row, uint64_t *words) noexcept nogil:
    """Write one container's 1,024 words; return its cardinality or a fault."""
    cdef int64_t n
    if row[KIND] == BITSET:
        memcpy(words, data + row[POSITION], BITSET_BYTES)
        n = count_words(words, CONTAINER_WORDS)
    else:
        memset(words, 0, BITSET_BYTES)
        if row[KIND] == ARRAY:
            n = _decode_array(data + row[POSITION], row[CARDINALITY], words)
        else:
            n = _decode_runs(data + row[POSITION], words)
    if n >= 0 and n != row[CARDINALITY]:
        return WRONG_CARDINALITY
    return n


cdef bint _row_fits(const uint8_t *data, int64_t n_bytes, const int64_t *row) noexcept nogil:
    """Whether the row's data lies within the bytes: rows travel through Python between the two calls."""
    cdef int64_t position = row[POSITION], cardinality = row[CARDINALITY]
    if not (0 <= row[KEY] and 0 <= position <= n_bytes - 2 and 1 <= cardinality <= CONTAINER_BITS):
        return False
    if row[KIND] == ARRAY:
        return position + 2 * cardinality <= n_bytes
    if row[KIND] == BITSET:
        return position + BITSET_BYTES <= n_bytes
    return row[KIND] == RUNS and position + 2 + 4 * <int64_t>_u16(data + position) <= n_bytes


cdef int64_t decode_rows(
    const uint8_t *data, int64_t n_bytes, const int64_t *rows, int64_t n, int64_t first_key,
    uint64_t *words, int64_t n_words,
) noexcept nogil:
    """Write containers to words, which begin with container first_key; return the numbers written or a fault."""
    cdef int64_t i, got, at, n_here, total = 0
    cdef uint64_t scratch[CONTAINER_WORDS]
    for i in range(n):
        if not _row_fits(data, n_bytes, rows + ROW * i):
            return BAD_ROW
        at = rows[ROW * i + KEY] - first_key
        if not 0 <= at <= (n_words - 1) // CONTAINER_WORDS:
            return OUT_OF_SPACE
        at *= CONTAINER_WORDS
        n_here = n_words - at
        if n_here >= CONTAINER_WORDS:
            got = decode_container(data, rows + ROW * i, words + at)
        else:
            got = decode_container(data, rows + ROW * i, scratch)
            if got >= 0 and count_words(scratch, n_here) != got:
                return OUT_OF_SPACE
            memcpy(words + at, scratch, n_here * 8)
        if got < 0:
            return got
        total += got
    return total


cdef int64_t validate_rows(
    const uint8_t *data, int64_t n_bytes, const int64_t *rows, int64_t n, int64_t n_bits
) noexcept nogil:
    """Decode every container to nowhere; return the numbers seen or a fault."""
    cdef int64_t i, got, limit, total = 0
    cdef uint64_t scratch[CONTAINER_WORDS]
    for i in range(n):
        if not _row_fits(data, n_bytes, rows + ROW * i):
            return BAD_ROW
        got = decode_container(data, rows + ROW * i, scratch)
        if got < 0:
            return got
        # Keys of the 64-bit form reach 2**48: compare before multiplying.
        if rows[ROW * i + KEY] > (n_bits - 1) // CONTAINER_BITS or n_bits <= 0:
            return OUT_OF_SPACE
        limit = n_bits - rows[ROW * i + KEY] * CONTAINER_BITS
        if limit < CONTAINER_BITS:
            fill_range(scratch, 0, limit, False)
            if count_words(scratch, CONTAINER_WORDS):
                return OUT_OF_SPACE
        total += got
    return total


cdef void _check_rows(const int64_t[:, ::1] rows) except *:
    if rows.shape[1] != ROW:
        raise ValueError(f"rows are ({rows.shape[0]}, {rows.shape[1]}); they must be (n, {ROW})")


def count(const uint8_t[::1] data):
    """Return how many containers the bitmap at the start of data has.

    Raises
        ValueError: data does not begin with a portable Roaring header, or ends within it
    """
    cdef bint with_runs = False
    cdef int64_t n = read_header(&data[0], data.shape[0], &with_runs) if data.shape[0] else TRUNCATED
    if n < 0:
        _raise(n)
    return n


def index(const uint8_t[::1] data, int64_t[:, ::1] rows):
    """Describe the containers of the bitmap at the start of data.

    Parameters
        data : (n_bytes,) uint8, portable Roaring, perhaps with more behind it
        rows : (n, 4) int64, n as count() says; receives key, cardinality, kind, position

    Returns
        the bytes that the bitmap takes

    Raises
        ValueError: the header or the sizes contradict each other or the bytes' end; rows has another length
    """
    cdef bint with_runs = False
    cdef int64_t n = count(data), n_bytes
    _check_rows(rows)
    if rows.shape[0] != n:
        raise ValueError(f"{rows.shape[0]} rows for {n} containers")
    read_header(&data[0], data.shape[0], &with_runs)
    if n == 0:
        return _header_bytes(0, with_runs)
    n_bytes = read_rows(&data[0], data.shape[0], n, with_runs, &rows[0, 0])
    if n_bytes < 0:
        _raise(n_bytes)
    return n_bytes


def decode(const uint8_t[::1] data, const int64_t[:, ::1] rows, uint64_t[::1] words, *, int64_t first_key=0):
    """Write containers to words; words of containers that no row names are left as they are.

    Parameters
        data : (n_bytes,) uint8
        rows : (n, 4) int64, some of those that index() gave for data
        words : (n_words,) uint64; word 0 is the first of container first_key

    Returns
        the numbers written

    Raises
        ValueError: a container contradicts its header or the format, or a number lies outside words (some containers
            are written then)

    Notes
        O(bytes of the rows + 8 KiB a row); releases the GIL.
    """
    cdef int64_t total
    _check_rows(rows)
    if not rows.shape[0]:
        return 0
    if not data.shape[0]:
        _raise(BAD_ROW)
    if not words.shape[0] or first_key < 0:
        _raise(OUT_OF_SPACE)
    with nogil:
        total = decode_rows(
            &data[0], data.shape[0], &rows[0, 0], rows.shape[0], first_key, &words[0], words.shape[0]
        )
    if total < 0:
        _raise(total)
    return total


def validate(const uint8_t[::1] data, const int64_t[:, ::1] rows, int64_t n_bits):
    """Decode the rows to nowhere and return how many numbers they hold, all below n_bits. Releases the GIL.

    Raises
        ValueError: as decode()
    """
    cdef int64_t total
    _check_rows(rows)
    if not rows.shape[0]:
        return 0
    if not data.shape[0]:
        _raise(BAD_ROW)
    with nogil:
        total = validate_rows(&data[0], data.shape[0], &rows[0, 0], rows.shape[0], n_bits)
    if total < 0:
        _raise(total)
    return total
