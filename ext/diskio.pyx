"""Reads and writes of many block extents on one file descriptor, without the GIL.

Extents that follow each other on the disk become one preadv or pwritev, however many buffers they lie in. Interrupted
and short calls go on where they stopped; the end of the file is an error. Reads can be verified request by request,
while the bytes are in the cache.
"""

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport free, malloc

import os

from blockplane._native.checksum cimport first_bad_block

cdef extern from "sys/uio.h" nogil:
    ssize_t preadv(int fd, const iovec* iov, int n, int64_t offset)
    ssize_t pwritev(int fd, const iovec* iov, int n, int64_t offset)
    ssize_t writev(int fd, const iovec* iov, int n)

cdef extern from "poll.h" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout_ms)
    const short POLLOUT

cdef extern from "sys/mman.h" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void* address, size_t length)
    const int PROT_READ
    const int PROT_WRITE
    const int MAP_PRIVATE
    const int MAP_ANONYMOUS
    void* MAP_FAILED

cdef enum:
    BLOCK_BYTES = 4096
    # of the kernel's 1,024: 1 MiB of single blocks needs 256, and as many holes between them
    MAX_IOVECS = 512

# Beyond any disk, and far from where the product with BLOCK_BYTES wraps.
cdef int64_t MAX_BLOCK = <int64_t> 1 << 50


cdef struct Plan:
    int fd
    bint writes
    int64_t n_extents
    const int64_t* dbn
    const int64_t* n_blocks
    const uintptr_t* addresses
    int64_t max_request
    # reads only: holes up to max_gap are read into scratch, which is as long
    int64_t max_gap
    uint8_t* scratch
    # reads only: both NULL, or one entry per block in plan order
    const int64_t* numbers
    const uint32_t* expected


cdef struct Outcome:
    int64_t n_bytes
    int64_t n_requests
    # index in plan order of the first block that differs, or -1
    int64_t first_bad
    # 0, an errno, or END_OF_FILE; and the block at which that request began
    int error
    int64_t error_block


cdef int transfer(int fd, bint writes, iovec* iov, int n_iov, int64_t offset, int64_t n_bytes) noexcept nogil:
    cdef ssize_t n
    while n_bytes > 0:
        n = pwritev(fd, iov, n_iov, offset) if writes else preadv(fd, iov, n_iov, offset)
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        if n == 0:
            return END_OF_FILE
        n_bytes -= n
        offset += n
        while n_iov > 0 and <size_t> n >= iov.iov_len:
            n -= <ssize_t> iov.iov_len
            iov += 1
            n_iov -= 1
        if n > 0:
            iov.iov_base = <uint8_t*> iov.iov_base + n
            iov.iov_len -= <size_t> n
    return 0


cdef Outcome run_plan(Plan plan) noexcept nogil:
    cdef Outcome outcome
    cdef iovec iov[MAX_IOVECS]
    cdef int n_iov
    # the next block to take: block `inside` of extent i, block `index` of the plan
    cdef int64_t i = 0
    cdef int64_t inside = 0
    cdef int64_t index = 0
    # the same where the request began
    cdef int64_t from_i, from_inside, from_index
    cdef int64_t first, blocks, n, gap, bad
    cdef uintptr_t address
    outcome.n_bytes = outcome.n_requests = 0
    outcome.first_bad = -1
    outcome.error = 0
    outcome.error_block = 0
    while i < plan.n_extents:
        from_i, from_inside, from_index = i, inside, index
        first = plan.dbn[i] + inside
        blocks = 0
        n_iov = 0
        while i < plan.n_extents and blocks < plan.max_request and n_iov < MAX_IOVECS - 1:
            gap = plan.dbn[i] + inside - (first + blocks)
            if gap:
                if not 0 < gap <= plan.max_gap or blocks + gap >= plan.max_request:
                    break
                iov[n_iov].iov_base = plan.scratch
                iov[n_iov].iov_len = <size_t> (gap * BLOCK_BYTES)
                n_iov += 1
                blocks += gap
            n = min(plan.n_blocks[i] - inside, plan.max_request - blocks)
            address = plan.addresses[i] + <uintptr_t> (inside * BLOCK_BYTES)
            if n_iov and <uintptr_t> iov[n_iov - 1].iov_base + iov[n_iov - 1].iov_len == address:
                iov[n_iov - 1].iov_len += <size_t> (n * BLOCK_BYTES)
            else:
                iov[n_iov].iov_base = <void*> address
                iov[n_iov].iov_len = <size_t> (n * BLOCK_BYTES)
                n_iov += 1
            blocks += n
            inside += n
            index += n
            if inside == plan.n_blocks[i]:
                i += 1
                inside = 0
        outcome.error = transfer(
            plan.fd, plan.writes, &iov[0], n_iov, first * BLOCK_BYTES, blocks * BLOCK_BYTES
        )
        outcome.error_block = first
        if outcome.error:
            return outcome
        outcome.n_bytes += blocks * BLOCK_BYTES
        outcome.n_requests += 1
        while plan.expected != NULL and outcome.first_bad < 0 and from_index < index:
            n = min(plan.n_blocks[from_i] - from_inside, index - from_index)
            bad = first_bad_block(
                <const uint8_t*> (plan.addresses[from_i] + <uintptr_t> (from_inside * BLOCK_BYTES)),
                plan.numbers + from_index, 0, n, plan.expected + from_index,
            )
            if bad >= 0:
                outcome.first_bad = from_index + bad
            from_index += n
            from_i += 1
            from_inside = 0
    return outcome


cdef int check_plan(
    const int64_t[::1] dbn, const int64_t[::1] n_blocks, const int64_t[::1] positions, int64_t max_request_blocks
) except -1:
    cdef int64_t i
    if not dbn.shape[0] == n_blocks.shape[0] == positions.shape[0]:
        raise ValueError(
            f"dbn, n_blocks, positions: {dbn.shape[0]}, {n_blocks.shape[0]} and {positions.shape[0]} entries"
        )
    if not 0 < max_request_blocks <= MAX_BLOCK:
        raise ValueError(f"max_request_blocks: {max_request_blocks}")
    for i in range(dbn.shape[0]):
        if not (0 <= dbn[i] < MAX_BLOCK and 0 < n_blocks[i] < MAX_BLOCK and 0 <= positions[i] < MAX_BLOCK):
            raise ValueError(f"extent {i}: {n_blocks[i]} blocks from {dbn[i]} at position {positions[i]}")
    return 0


cdef int check_end(const int64_t[::1] dbn, const int64_t[::1] n_blocks, int64_t end_block) except -1:
    """A write past the end would make a file longer."""
    cdef int64_t i
    for i in range(dbn.shape[0]):
        if dbn[i] + n_blocks[i] > end_block:
            raise EOFError(f"blocks {dbn[i]} to {dbn[i] + n_blocks[i]} of {end_block}")
    return 0


cdef int check_capacity(int64_t i, int64_t position, int64_t n_blocks, int64_t n_bytes) except -1:
    if position + n_blocks > n_bytes // BLOCK_BYTES:
        raise ValueError(f"extent {i}: {n_blocks} blocks at position {position} of a buffer of {n_bytes} bytes")
    return 0


cdef object finish(Outcome outcome):
    if outcome.error == END_OF_FILE:
        raise EOFError(f"end of file in the request at block {outcome.error_block}")
    if outcome.error:
        raise OSError(outcome.error, f"{os.strerror(outcome.error)} in the request at block {outcome.error_block}")
    return outcome.n_bytes, outcome.n_requests, outcome.first_bad


cdef object run_on_buffer(Plan plan, uint8_t* base, const int64_t[::1] positions):
    """Run a checked plan whose blocks lie at positions of one buffer."""
    cdef int64_t n = positions.shape[0]
    cdef int64_t i
    cdef Outcome outcome
    cdef uintptr_t* addresses = <uintptr_t*> malloc(<size_t> (n * sizeof(uintptr_t)))
    if addresses == NULL:
        raise MemoryError
    for i in range(n):
        addresses[i] = <uintptr_t> base + <uintptr_t> (positions[i] * BLOCK_BYTES)
    plan.addresses = addresses
    with nogil:
        outcome = run_plan(plan)
    free(addresses)
    return finish(outcome)


def read_plan(
    int fd, const int64_t[::1] dbn, const int64_t[::1] n_blocks, uint8_t[::1] buffer, const int64_t[::1] positions,
    const int64_t[::1] numbers=None, const uint32_t[::1] expected=None, int64_t max_request_blocks=256,
    int64_t max_gap_blocks=0,
):
    """Read extent i into the buffer from block positions[i] on; verify when `expected` is given.

    numbers, expected : one entry per block, in the order of the extents.
    max_gap_blocks : holes up to this long are read through, into scratch.

    Returns bytes read (holes too), requests, and the index of the first block that differs, or -1.
    Raises OSError, and EOFError where the file ends.
    """
    cdef Plan plan
    cdef int64_t n = dbn.shape[0]
    cdef int64_t total = 0
    cdef int64_t i
    check_plan(dbn, n_blocks, positions, max_request_blocks)
    for i in range(n):
        check_capacity(i, positions[i], n_blocks[i], buffer.shape[0])
        total += n_blocks[i]
    if (numbers is None) != (expected is None):
        raise ValueError("numbers and expected come together")
    if numbers is not None and not numbers.shape[0] == expected.shape[0] == total:
        raise ValueError(f"numbers, expected: {numbers.shape[0]}, {expected.shape[0]} entries for {total} blocks")
    if not 0 <= max_gap_blocks <= max_request_blocks:
        raise ValueError(f"max_gap_blocks: {max_gap_blocks}")
    if n == 0:
        return 0, 0, -1
    plan.fd, plan.writes, plan.n_extents = fd, False, n
    plan.dbn, plan.n_blocks = &dbn[0], &n_blocks[0]
    plan.max_request, plan.max_gap = max_request_blocks, max_gap_blocks
    plan.numbers = &numbers[0] if numbers is not None else NULL
    plan.expected = &expected[0] if expected is not None else NULL
    plan.scratch = NULL
    if max_gap_blocks:
        # mapped: O_DIRECT wants it aligned
        plan.scratch = <uint8_t*> mmap(
            NULL, <size_t> (max_gap_blocks * BLOCK_BYTES), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
        )
        if <void*> plan.scratch == MAP_FAILED:
            raise MemoryError
    try:
        return run_on_buffer(plan, &buffer[0], positions)
    finally:
        if max_gap_blocks:
            munmap(plan.scratch, <size_t> (max_gap_blocks * BLOCK_BYTES))


def write_plan(
    int fd, const int64_t[::1] dbn, const int64_t[::1] n_blocks, const uint8_t[::1] buffer,
    const int64_t[::1] positions, int64_t end_block, int64_t max_request_blocks=256,
):
    """Write extent i from the buffer's block positions[i] on; none reaches past end_block.

    Returns bytes written and requests. Raises OSError, and EOFError, with nothing written, past end_block.
    """
    cdef Plan plan
    cdef int64_t n = dbn.shape[0]
    cdef int64_t i
    check_plan(dbn, n_blocks, positions, max_request_blocks)
    check_end(dbn, n_blocks, end_block)
    for i in range(n):
        check_capacity(i, positions[i], n_blocks[i], buffer.shape[0])
    if n == 0:
        return 0, 0
    plan.fd, plan.writes, plan.n_extents = fd, True, n
    plan.dbn, plan.n_blocks = &dbn[0], &n_blocks[0]
    plan.max_request, plan.max_gap, plan.scratch = max_request_blocks, 0, NULL
    plan.numbers, plan.expected = NULL, NULL
    # only read from: a plan that writes to the disk never stores through its addresses
    return run_on_buffer(plan, <uint8_t*> &buffer[0], positions)[:2]


@cython.internal
@cython.auto_pickle(False)
cdef class Views:
    """Held buffers of several objects: their addresses stand until this goes."""

    cdef Py_buffer* views
    cdef Py_ssize_t n

    def __cinit__(self, list objects, bint writable=False):
        cdef Py_ssize_t i
        cdef Py_ssize_t n_objects = len(objects)
        cdef int flags = PyBUF_SIMPLE | PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0)
        self.n = 0
        self.views = <Py_buffer*> malloc(<size_t> max(n_objects, 1) * sizeof(Py_buffer))
        if self.views == NULL:
            raise MemoryError
        for i in range(n_objects):
            PyObject_GetBuffer(objects[i], &self.views[i], flags)
            self.n += 1

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.n):
            PyBuffer_Release(&self.views[i])
        free(self.views)


def write_gathered(
    int fd, const int64_t[::1] dbn, const int64_t[::1] n_blocks, list buffers, const int64_t[::1] positions,
    int64_t end_block, int64_t max_request_blocks=256,
):
    """Write extent i from block positions[i] of buffers[i] on: one request may take from many buffers.

    Returns bytes written and requests. Raises OSError, and EOFError, with nothing written, past end_block.
    """
    cdef Plan plan
    cdef Outcome outcome
    cdef Views views
    cdef int64_t n = dbn.shape[0]
    cdef int64_t i
    cdef uintptr_t* addresses
    check_plan(dbn, n_blocks, positions, max_request_blocks)
    check_end(dbn, n_blocks, end_block)
    if len(buffers) != n:
        raise ValueError(f"buffers: {len(buffers)} for {n} extents")
    if n == 0:
        return 0, 0
    views = Views(buffers)
    for i in range(n):
        check_capacity(i, positions[i], n_blocks[i], views.views[i].len)
    addresses = <uintptr_t*> malloc(<size_t> (n * sizeof(uintptr_t)))
    if addresses == NULL:
        raise MemoryError
    for i in range(n):
        addresses[i] = <uintptr_t> views.views[i].buf + <uintptr_t> (positions[i] * BLOCK_BYTES)
    plan.fd, plan.writes, plan.n_extents = fd, True, n
    plan.dbn, plan.n_blocks, plan.addresses = &dbn[0], &n_blocks[0], addresses
    plan.max_request, plan.max_gap, plan.scratch = max_request_blocks, 0, NULL
    plan.numbers, plan.expected = NULL, NULL
    with nogil:
        outcome = run_plan(plan)
    free(addresses)
    return finish(outcome)[:2]


cdef int write_iovecs(int fd, iovec** iov, int64_t* n_iov, int64_t* n_bytes) noexcept nogil:
    """Write until all is gone or a signal may have come (EINTR); moves the arguments on. Returns 0 or an errno."""
    cdef ssize_t n
    cdef pollfd ready
    while n_iov[0] > 0:
        if iov[0].iov_len == 0:
            iov[0] += 1
            n_iov[0] -= 1
            continue
        n = writev(fd, iov[0], <int> min(n_iov[0], <int64_t> MAX_IOVECS))
        if n < 0:
            if errno != EAGAIN:
                return errno
            ready.fd, ready.events, ready.revents = fd, POLLOUT, 0
            if poll(&ready, 1, -1) < 0:
                return errno
            continue
        n_bytes[0] += n
        while n_iov[0] > 0 and <size_t> n >= iov[0].iov_len:
            n -= <ssize_t> iov[0].iov_len
            iov[0] += 1
            n_iov[0] -= 1
        if n > 0:
            iov[0].iov_base = <uint8_t*> iov[0].iov_base + n
            iov[0].iov_len -= <size_t> n
            # a call that a signal ends after some bytes is short and does not say why
            return EINTR
    return 0


cdef int64_t write_out(int fd, iovec* iov, int64_t n_iov) except -1:
    """Write all; a signal's Python handler runs in between and may raise."""
    cdef int error = EINTR
    cdef int64_t n_bytes = 0
    while error == EINTR:
        with nogil:
            error = write_iovecs(fd, &iov, &n_iov, &n_bytes)
        if error == EINTR:
            PyErr_CheckSignals()
    if error:
        raise OSError(error, os.strerror(error))
    return n_bytes


def writev_all(int fd, list buffers):
    """Write bytes-like objects to a file, pipe or socket, straight from their memory. Returns the bytes written."""
    cdef Views views = Views(buffers)
    cdef Py_ssize_t i
    cdef iovec* iov = <iovec*> malloc(<size_t> max(views.n, 1) * sizeof(iovec))
    if iov == NULL:
        raise MemoryError
    try:
        for i in range(views.n):
            iov[i].iov_base = views.views[i].buf
            iov[i].iov_len = <size_t> views.views[i].len
        return write_out(fd, iov, views.n)
    finally:
        free(iov)


def writev_segments(int fd, const uint8_t[::1] buffer, const int64_t[::1] starts, const int64_t[::1] lengths):
    """Write segments (bytes) of one buffer in the given order, straight from it. Returns the bytes written."""
    cdef int64_t n = starts.shape[0]
    cdef int64_t i
    cdef iovec* iov
    if lengths.shape[0] != n:
        raise ValueError(f"lengths: {lengths.shape[0]} entries for {n} segments")
    for i in range(n):
        if not (0 <= lengths[i] <= buffer.shape[0] and 0 <= starts[i] <= buffer.shape[0] - lengths[i]):
            raise ValueError(f"segment {i}: {lengths[i]} bytes at {starts[i]} of {buffer.shape[0]}")
    if n == 0 or buffer.shape[0] == 0:
        return 0
    iov = <iovec*> malloc(<size_t> n * sizeof(iovec))
    if iov == NULL:
        raise MemoryError
    try:
        for i in range(n):
            iov[i].iov_base = <void*> (&buffer[0] + starts[i])
            iov[i].iov_len = <size_t> lengths[i]
        return write_out(fd, iov, n)
    finally:
        free(iov)
