"""Dense words to portable Roaring bytes (32-bit form), container by container.

Measure first, encode after: rows describe the containers that hold numbers, one int64 column each: key
(number >> 16), cardinality, kind, size in bytes. The header goes before all containers, so it is written by itself.

Source: RoaringBitmap, RoaringFormatSpec.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset

from blockplane._native.algebra cimport count_words
from blockplane._native.extents cimport count_runs, fill_runs
from blockplane._native.roaring_format cimport (
    ARRAY, ARRAY_LIMIT, BITSET, BITSET_BYTES, CARDINALITY, CONTAINER_BITS, CONTAINER_WORDS, COOKIE, COOKIE_RUNS, KEY,
    KIND, OFFSETS_FROM, POSITION, ROW, RUNS,
)

cdef extern from *:
    """
    #define bp_ctz64(word) __builtin_ctzll(word)
    """
    int bp_ctz64(uint64_t word) noexcept nogil

cdef enum Fault:
    NO_ROOM = -1
    BAD_ROW = -2

cdef dict _FAULTS = {
    NO_ROOM: "the output has too little room",
    BAD_ROW: "the rows do not describe these words",
}


cdef void _put16(uint8_t *at, int64_t value) noexcept nogil:
    at[0] = value & 0xFF
    at[1] = (value >> 8) & 0xFF


cdef void _put32(uint8_t *at, int64_t value) noexcept nogil:
    _put16(at, value & 0xFFFF)
    _put16(at + 2, (value >> 16) & 0xFFFF)


cdef int64_t measure_words(const uint64_t *words, int64_t n_words, int64_t first_key, int64_t *rows) noexcept nogil:
    """Describe the containers that hold numbers, each in its smallest kind; POSITION is its size in bytes."""
    cdef int64_t i, at, n_here, runs, size, n = 0
    cdef int64_t *row = rows
    for i in range((n_words + CONTAINER_WORDS - 1) // CONTAINER_WORDS):
        at = i * CONTAINER_WORDS
        n_here = min(n_words - at, <int64_t>CONTAINER_WORDS)
        row[CARDINALITY] = count_words(words + at, n_here)
        if not row[CARDINALITY]:
            continue
        row[KEY] = first_key + i
        row[KIND] = BITSET if row[CARDINALITY] > ARRAY_LIMIT else ARRAY
        size = BITSET_BYTES if row[KIND] == BITSET else 2 * row[CARDINALITY]
        runs = count_runs(words + at, 0, n_here * 64)
        if 2 + 4 * runs < size:
            row[KIND] = RUNS
            size = 2 + 4 * runs
        row[POSITION] = size
        row += ROW
        n += 1
    return n


cdef int64_t _encode_array(const uint64_t *words, int64_t n_words, uint8_t *at, int64_t n_bytes) noexcept nogil:
    cdef int64_t i, value, used = 0
    cdef uint64_t word
    for i in range(n_words):
        word = words[i]
        while word:
            if used + 2 > n_bytes:
                return BAD_ROW
            value = i * 64 + bp_ctz64(word)
            _put16(at + used, value)
            used += 2
            word &= word - 1
    return used


cdef int64_t _encode_runs(const uint64_t *words, int64_t n_words, uint8_t *at, int64_t n_bytes) noexcept nogil:
    cdef int64_t run[2]
    cdef int64_t used = 2, position = 0
    while fill_runs(words, position, n_words * 64, 0, False, 1, run, 1, &position):
        if used + 4 > n_bytes:
            return BAD_ROW
        _put16(at + used, run[0])
        _put16(at + used + 2, run[1] - run[0] - 1)
        used += 4
    _put16(at, (used - 2) // 4)
    return used


cdef int64_t encode_container(
    const uint64_t *words, int64_t n_words, const int64_t *row, uint8_t *at
) noexcept nogil:
    """Write one container of at most 1,024 words; return its bytes, or BAD_ROW where it does not fit its row."""
    if row[KIND] == ARRAY:
        return _encode_array(words, n_words, at, row[POSITION])
    if row[KIND] == RUNS and row[POSITION] >= 2:
        return _encode_runs(words, n_words, at, row[POSITION])
    if row[KIND] != BITSET or row[POSITION] != BITSET_BYTES:
        return BAD_ROW
    memset(at + n_words * 8, 0, BITSET_BYTES - n_words * 8)
    memcpy(at, words, n_words * 8)
    return BITSET_BYTES


cdef int64_t encode_rows(
    const uint64_t *words, int64_t n_words, int64_t first_key, const int64_t *rows, int64_t n,
    uint8_t *out, int64_t n_bytes,
) noexcept nogil:
    """Write the containers' data one after the other; return the bytes written or a fault."""
    cdef int64_t _i, at, used, position = 0
    cdef const int64_t *row = rows
    for _i in range(n):
        if not first_key <= row[KEY] <= first_key + (n_words - 1) // CONTAINER_WORDS:
            return BAD_ROW
        at = (row[KEY] - first_key) * CONTAINER_WORDS
        if row[POSITION] < 0 or position + row[POSITION] > n_bytes:
            return NO_ROOM
        used = encode_container(words + at, min(n_words - at, <int64_t>CONTAINER_WORDS), row, out + position)
        if used != row[POSITION]:
            return BAD_ROW
        position += used
        row += ROW
    return position


cdef int64_t _header_bytes(int64_t n, bint with_runs) noexcept nogil:
    """Bytes before the first container."""
    if not with_runs:
        return 8 + 8 * n
    return 4 + (n + 7) // 8 + 4 * n + (4 * n if n >= OFFSETS_FROM else 0)


cdef int64_t write_header(const int64_t *rows, int64_t n, bint with_runs, uint8_t *out) noexcept nogil:
    """Write cookie, kinds, keys, cardinalities and offsets; return their bytes."""
    cdef int64_t i, at = 8, position = _header_bytes(n, with_runs)
    cdef const int64_t *row = rows
    if with_runs:
        _put32(out, COOKIE_RUNS | (n - 1) << 16)
        at = 4 + (n + 7) // 8
        memset(out + 4, 0, at - 4)
        for i in range(n):
            out[4 + (i >> 3)] |= (row[ROW * i + KIND] == RUNS) << (i & 7)
    else:
        _put32(out, COOKIE)
        _put32(out + 4, n)
    for i in range(n):
        _put16(out + at + 4 * i, row[ROW * i + KEY])
        _put16(out + at + 4 * i + 2, row[ROW * i + CARDINALITY] - 1)
    at += 4 * n
    if not with_runs or n >= OFFSETS_FROM:
        for i in range(n):
            _put32(out + at + 4 * i, position)
            position += row[ROW * i + POSITION]
        at += 4 * n
    return at


cdef void _check_rows(const int64_t[:, ::1] rows) except *:
    if rows.shape[1] != ROW:
        raise ValueError(f"rows are ({rows.shape[0]}, {rows.shape[1]}); they must be (n, {ROW})")


def measure(const uint64_t[::1] words, int64_t[:, ::1] rows, *, int64_t first_key=0):
    """Describe the containers of words that hold numbers, each in its smallest kind.

    Parameters
        words : (n_words,) uint64; word 0 is the first of container first_key; the last container may be cut short
        rows : (capacity, 4) int64, capacity >= containers in words; receives key, cardinality, kind, size

    Returns
        rows written

    Raises
        ValueError: rows is too short

    Notes
        O(n_words); releases the GIL.
    """
    cdef int64_t n = 0
    _check_rows(rows)
    if rows.shape[0] * CONTAINER_WORDS < words.shape[0]:
        raise ValueError(f"{rows.shape[0]} rows for {words.shape[0]} words")
    if words.shape[0]:
        with nogil:
            n = measure_words(&words[0], words.shape[0], first_key, &rows[0, 0])
    return n


def encode(const uint64_t[::1] words, const int64_t[:, ::1] rows, uint8_t[::1] out, *, int64_t first_key=0):
    """Write the data of the containers that measure() described, and return the bytes written. Releases the GIL.

    Raises
        ValueError: out is too short, or rows do not describe words (any more)
    """
    cdef int64_t n_bytes
    _check_rows(rows)
    if not rows.shape[0]:
        return 0
    if not words.shape[0] or not out.shape[0]:
        raise ValueError(_FAULTS[BAD_ROW])
    with nogil:
        n_bytes = encode_rows(
            &words[0], words.shape[0], first_key, &rows[0, 0], rows.shape[0], &out[0], out.shape[0]
        )
    if n_bytes < 0:
        raise ValueError(_FAULTS[n_bytes])
    return n_bytes


def header_bytes(const int64_t[:, ::1] rows):
    """Return the bytes of the header of a bitmap of these containers."""
    _check_rows(rows)
    return _header_bytes(rows.shape[0], _any_runs(rows))


cdef bint _any_runs(const int64_t[:, ::1] rows) noexcept:
    cdef int64_t i
    for i in range(rows.shape[0]):
        if rows[i, KIND] == RUNS:
            return True
    return False


def header(const int64_t[:, ::1] rows, uint8_t[::1] out):
    """Write the header of a bitmap of these containers and return its bytes.

    Raises
        ValueError: out is too short, keys do not ascend from 0 to 65,535, or the bitmap would pass 4 GiB
    """
    cdef int64_t i, n = rows.shape[0], last = -1, total = header_bytes(rows)
    if out.shape[0] < total:
        raise ValueError(_FAULTS[NO_ROOM])
    for i in range(n):
        if not last < rows[i, KEY] < CONTAINER_BITS or not 1 <= rows[i, CARDINALITY] <= CONTAINER_BITS:
            raise ValueError(_FAULTS[BAD_ROW])
        last = rows[i, KEY]
    return write_header(&rows[0, 0] if n else NULL, n, _any_runs(rows), &out[0])
