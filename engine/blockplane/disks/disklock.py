"""Locks on disks: a writer's own, or one that readers share."""

from __future__ import annotations

import fcntl
import time
from typing import Final

#: A device's own watchers lock it while they look at what was written last, some tenths of a second.
WATCHER_TIMEOUT_S: Final = 2.0
_WATCHER_POLL_S: Final = 0.02


def lock_disk(fd: int, *, shared: bool, timeout_s: float) -> bool:
    """Lock a disk; a reader goes on without where the file system keeps no locks."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_WATCHER_POLL_S)
        except OSError:
            if not shared:
                raise
            return False
