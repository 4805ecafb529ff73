"""Cold caches: every timed run starts from the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_DROP = Path("/proc/sys/vm/drop_caches")


def make_cold(paths: Iterable[Path]) -> None:
    """Write everything back and forget it: at full size, as root, the whole machine's caches, else the files' pages.

    Parameters
    ----------
    paths : files, and folders whose files are meant.
    """
    if os.environ.get("BENCH_FULL") == "1":
        os.sync()
        with contextlib.suppress(OSError):
            _DROP.write_text("3\n")
            return
    for path in paths:
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and not file.is_symlink():
                forget(file)


def forget(file: Path) -> None:
    """Write one file back and drop its pages."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def warm(file: Path) -> None:
    """Bring a file into the page cache."""
    with open(file, "rb", buffering=0) as opened:
        while opened.read(1 << 20):
            pass
