"""Vectored requests for other kernels: run to their end, without the GIL."""

from libc.stdint cimport int64_t

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    # no errno is as large
    END_OF_FILE = 1 << 20

# One request to its end; uses the iovecs up. Returns 0, an errno or END_OF_FILE.
cdef int transfer(int fd, bint writes, iovec* iov, int n_iov, int64_t offset, int64_t n_bytes) noexcept nogil
