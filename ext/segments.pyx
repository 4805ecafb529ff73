"""Reads of many byte segments of one file into one buffer, without the GIL.

Unlike the plans of `diskio` the segments start at any byte: blocks in a stream lie between heads. Segments that follow
each other in the file and in the buffer become one pread; blocks that lie close to each other one preadv, which reads
what is between them into scratch. Interrupted and short calls go on where they stopped; the end of the file is an
error.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

import os

from blockplane._native.checksum cimport first_bad_block
from blockplane._native.diskio cimport END_OF_FILE, iovec, transfer

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void* buffer, size_t n_bytes, int64_t offset)

cdef enum:
    BLOCK_BYTES = 4096
    # of the kernel's 1,024: 1 MiB of single blocks needs 256, and as many holes between them
    MAX_IOVECS = 512
    # of one request: what it reads is still in a core's cache when it is verified
    MAX_REQUEST_BLOCKS = 256
    # a hole up to this long costs less than a request of its own
    MAX_GAP_BYTES = 16 * 4096


cdef int read_all(int fd, uint8_t* out, int64_t n_bytes, int64_t offset) noexcept nogil:
    """Returns 0, an errno or END_OF_FILE."""
    cdef ssize_t n
    while n_bytes > 0:
        n = pread(fd, out, <size_t> n_bytes, offset)
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        if n == 0:
            return END_OF_FILE
        out += n
        offset += n
        n_bytes -= n
    return 0


cdef int64_t read_each(
    int fd, uint8_t* base, int64_t n, const int64_t* offsets, const int64_t* lengths, const int64_t* positions,
    int* error,
) noexcept nogil:
    """Returns how many requests it took; error: 0, an errno or END_OF_FILE."""
    cdef int64_t i = 0
    cdef int64_t n_requests = 0
    cdef int64_t first, length
    error[0] = 0
    while i < n and not error[0]:
        first = i
        length = lengths[i]
        i += 1
        while i < n and offsets[i] == offsets[first] + length and positions[i] == positions[first] + length:
            length += lengths[i]
            i += 1
        error[0] = read_all(fd, base + positions[first], length, offsets[first])
        n_requests += 1
    return n_requests


def read_segments(
    int fd, const int64_t[::1] offsets, const int64_t[::1] lengths, uint8_t[::1] buffer, const int64_t[::1] positions
):
    """Read lengths[i] bytes at offsets[i] of the file to positions[i] of the buffer; returns the number of requests.

    Raises OSError, and EOFError where the file ends.
    """
    cdef int64_t n = offsets.shape[0]
    cdef int64_t size = buffer.shape[0]
    cdef int64_t i, n_requests
    cdef int error
    if not n == lengths.shape[0] == positions.shape[0]:
        raise ValueError(f"offsets, lengths, positions: {n}, {lengths.shape[0]} and {positions.shape[0]} entries")
    for i in range(n):
        if not (
            0 <= lengths[i] <= size and 0 <= positions[i] <= size - lengths[i]
            and 0 <= offsets[i] <= (<int64_t> 1 << 62) - lengths[i]
        ):
            raise ValueError(f"segment {i}: {lengths[i]} bytes at {offsets[i]} to position {positions[i]} of {size}")
    if n == 0 or size == 0:
        return 0
    with nogil:
        n_requests = read_each(fd, &buffer[0], n, &offsets[0], &lengths[0], &positions[0], &error)
    if error == END_OF_FILE:
        raise EOFError("end of file")
    if error:
        raise OSError(error, os.strerror(error))
    return n_requests


cdef int64_t gather(
    int fd, uint8_t* out, int64_t n, const int64_t* offsets, uint8_t* scratch, iovec* iov, int* error
) noexcept nogil:
    """One request for as many blocks, from the first on, as lie close to each other; returns how many."""
    cdef int64_t taken = 1, end = offsets[0] + BLOCK_BYTES, gap
    cdef int n_iov = 1
    iov[0].iov_base, iov[0].iov_len = out, BLOCK_BYTES
    while taken < min(n, <int64_t> MAX_REQUEST_BLOCKS):
        gap = offsets[taken] - end
        if gap < 0 or gap > MAX_GAP_BYTES or (gap and n_iov + 2 > MAX_IOVECS):
            break
        if gap:
            iov[n_iov].iov_base, iov[n_iov].iov_len = scratch, <size_t> gap
            iov[n_iov + 1].iov_base, iov[n_iov + 1].iov_len = out + taken * BLOCK_BYTES, BLOCK_BYTES
            n_iov += 2
        else:
            iov[n_iov - 1].iov_len += BLOCK_BYTES
        end = offsets[taken] + BLOCK_BYTES
        taken += 1
    error[0] = transfer(fd, False, iov, n_iov, offsets[0], end - offsets[0])
    return taken


cdef int64_t gather_all(
    int fd, uint8_t* out, int64_t n, const int64_t* offsets, const int64_t* numbers, const uint32_t* expected,
    uint8_t* scratch, int64_t* n_requests, int* error,
) noexcept nogil:
    """Returns the index of the first block that differs, or -1; error: 0, an errno or END_OF_FILE."""
    cdef iovec iov[MAX_IOVECS]
    cdef int64_t done = 0, taken, bad
    while done < n:
        taken = gather(fd, out + done * BLOCK_BYTES, n - done, offsets + done, scratch, &iov[0], error)
        if error[0]:
            break
        n_requests[0] += 1
        bad = first_bad_block(out + done * BLOCK_BYTES, numbers + done, 0, taken, expected + done)
        if bad >= 0:
            return done + bad
        done += taken
    return -1


def read_blocks(
    int fd, const int64_t[::1] offsets, uint8_t[::1] buffer, const int64_t[::1] numbers, const uint32_t[::1] expected
):
    """Read blocks that begin anywhere in a file into a buffer, one after the other, and verify them request by request.

    Parameters
        offsets : (n,) int64, the byte at which each block begins; the fewer requests the more they ascend
        buffer : (n * 4096,) uint8
        numbers, expected : (n,) what the blocks are called, and the checks they must have

    Returns
        (n_requests, first_bad): requests made, and the index of the first block that differs, or -1; what comes after
        that one was perhaps not read

    Raises
        OSError, and EOFError where the file ends
        ValueError: the arrays are not of one length, or a block begins before the file

    Notes
        Holes up to 64 KiB are read through. Releases the GIL.
    """
    cdef int64_t n = offsets.shape[0]
    cdef int64_t i, n_requests = 0, bad
    cdef int error = 0
    cdef uint8_t* scratch
    if not n == numbers.shape[0] == expected.shape[0] or buffer.shape[0] != n * BLOCK_BYTES:
        raise ValueError(
            f"offsets, numbers, expected: {n}, {numbers.shape[0]} and {expected.shape[0]} entries, "
            f"and a buffer of {buffer.shape[0]} bytes"
        )
    for i in range(n):
        if not 0 <= offsets[i] <= <int64_t> 1 << 62:
            raise ValueError(f"block {i} begins at {offsets[i]}")
    if n == 0:
        return 0, -1
    scratch = <uint8_t*> malloc(MAX_GAP_BYTES)
    if scratch == NULL:
        raise MemoryError
    with nogil:
        bad = gather_all(fd, &buffer[0], n, &offsets[0], &numbers[0], &expected[0], scratch, &n_requests, &error)
    free(scratch)
    if error == END_OF_FILE:
        raise EOFError("end of file")
    if error:
        raise OSError(error, os.strerror(error))
    return n_requests, bad
