"""Reads of many byte segments of one file into one buffer, without the GIL.

Unlike the plans of `diskio` the segments start at any byte: blocks in a stream lie between heads. Segments that follow
each other in the file and in the buffer become one pread. Interrupted and short calls go on where they stopped; the end
of the file is an error.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport int64_t, uint8_t

import os

cdef extern from "unistd.h" nogil:
    ssize_t pread(int fd, void* buffer, size_t n_bytes, int64_t offset)

cdef enum:
    # no errno is as large
    END_OF_FILE = 1 << 20


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
