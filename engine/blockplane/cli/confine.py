"""What a process gives up for good that takes in what others made: new privileges, core files, boundless resources."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

import blockplane as bp

_PR_SET_NO_NEW_PRIVS: Final = 38
#: A volume may have thousands of disks, and a chain as many files.
_MOST_FILES: Final = 65_536
#: Planes of very large volumes are mapped; what is taken in is bounded by itself, and this is behind that.
_LEAST_MOST_BYTES: Final = 64 << 30
#: Verbs that read streams, tapes, volumes or peers of whatever origin.
FROM_OTHERS: Final = frozenset({"receive", "stream", "check", "replicate", "mirror", "tape", "serve"})


def confine() -> None:
    """Set `no_new_privs`, no core files, bounds for memory and open files: for this process and all that it starts.

    Not to be undone.

    Raises
    ------
    RefusedError: the kernel will not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise bp.errors.RefusedError(f"new privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _MOST_FILES)
    _lower(resource.RLIMIT_AS, max(_LEAST_MOST_BYTES, 4 * memory))


def _lower(which: int, most: int) -> None:
    soft, hard = (value if value != resource.RLIM_INFINITY else most for value in resource.getrlimit(which))
    resource.setrlimit(which, (min(soft, most), min(hard, most)))
