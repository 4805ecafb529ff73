"""Block devices to test with: loop devices, which only root may make, and which no failure leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def loop_device(path: Path, size: int = 0, *, sector: int = 512, read_only: bool = False) -> Iterator[str]:
    """Give a device over a file, made here when size is given; the test is skipped where none can be had.

    It is detached at once and stays for as long as this descriptor is open: the kernel clears it away whatever ends
    the test, a kill included.
    """
    if os.geteuid() != 0 or shutil.which("losetup") is None:
        pytest.skip("loop devices are for root and need losetup")
    if size:
        path.touch()
        os.truncate(path, size)
    options = ["--sector-size", str(sector), *(["--read-only"] if read_only else [])]
    made = subprocess.run(["losetup", "--find", "--show", *options, path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device can be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        detached = subprocess.run(["losetup", "--detach", device], capture_output=True, text=True)
    assert detached.returncode == 0, detached.stderr
    try:
        yield device
    finally:
        os.close(fd)
