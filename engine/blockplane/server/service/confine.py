"""What a process that serves others gives up for good: new privileges, core files, files that others can read."""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

from blockplane.model.errors import RefusedError

_PR_SET_NO_NEW_PRIVS: Final = 38


def confine() -> None:
    """Set `no_new_privs`, no core files, umask 077: for this process and all that it starts, not to be undone.

    Raises
    ------
    RefusedError: the kernel will not.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise RefusedError(f"new privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
