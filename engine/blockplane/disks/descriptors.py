"""Opening a disk's file or device: what it is, and whether the page cache can be passed by."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from typing import Final

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import DiskError

BLKROGET: Final = 0x125E


def refuse_read_only(fd: int, path: str) -> None:
    """Refuse a write-protected device, which opens for writing all the same and fails at the first write."""
    is_read_only = False
    with contextlib.suppress(OSError):  # a device that does not tell
        is_read_only = any(fcntl.ioctl(fd, BLKROGET, bytes(4)))
    if is_read_only:
        raise DiskError(
            f"{path}: a read-only device", path, "reading verbs take it as it is; make it writable for others"
        )


def is_block_device(path: str) -> bool:
    """Tell a block device from a file; DiskError: it is neither."""
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise DiskError(f"{path}: neither a file nor a block device", path)
    return stat.S_ISBLK(mode)


def open_direct(path: str, flags: int) -> tuple[int, bool]:
    """Open past the page cache when a read of one block works so; else buffered."""
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags), False
    try:
        os.preadv(fd, [mmap.mmap(-1, BLOCK_BYTES)], 0)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags), False
    return fd, True
