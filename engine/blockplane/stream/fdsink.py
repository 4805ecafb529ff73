"""A descriptor that a stream is written to."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from blockplane.disks import write_buffers
from blockplane.model.errors import BlockplaneError, NoSpaceError, StreamError

Buffer = bytes | memoryview


class FdSink:
    """A descriptor: the kernel's writev, straight from the callers' buffers."""

    def __init__(self, fd: int, name: str, owned: bool = False) -> None:
        self._fd, self._owned = fd, owned
        self.name = name

    @property
    def fd(self) -> int:
        """What the kernel writes to."""
        return self._fd

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink; the GIL is released while writing."""
        try:
            write_buffers(self._fd, buffers)
        except OSError as error:
            raise write_error(self.name, error) from error

    def commit(self) -> None:
        """See Sink; a regular file, or a block device, is synced."""
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            return
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_error(self.name, error) from error

    def close(self) -> None:
        """See Sink."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def write_error(name: str, error: OSError) -> BlockplaneError:
    """Return the error of ours for a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpaceError(f"no space left for {name}", "free some and send again")
    if error.errno == errno.EPIPE:
        return StreamError(f"whoever read {name} stopped before the end", "look at its error")
    return StreamError(f"cannot write {name}: {error.strerror or error}")
