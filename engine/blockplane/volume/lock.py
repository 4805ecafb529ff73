"""The lock of a volume: one process at a time owns it, and a refusal says which and what it does."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

from blockplane.model.errors import VolumeInUseError

_POLL_S = 0.05


class VolumeLock:
    """An exclusive (or, for readers of a volume at rest, shared) lock on a volume's directory.

    The file holds who owns it, for people; the kernel's lock is what counts, so that it dies with its process.
    """

    def __init__(self, path: Path, verb: str, wait_s: float = 0.0) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire(wait_s)
        except BaseException:
            os.close(self._fd)
            raise
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps({"pid": os.getpid(), "verb": verb}).encode(), 0)

    def _acquire(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if not isinstance(error, BlockingIOError):
                    raise
            if time.monotonic() >= deadline:
                raise VolumeInUseError(self._describe(), "wait for it with --wait SECONDS, or stop it")
            time.sleep(_POLL_S)

    def _describe(self) -> str:
        volume = self._path.parent
        try:
            owner = json.loads(os.pread(self._fd, 4096, 0))
            return f"{volume} is in use by process {int(owner['pid'])} ({str(owner['verb'])[:40]})"
        except (ValueError, KeyError, TypeError):
            return f"{volume} is in use by another process"

    def __enter__(self) -> VolumeLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the volume up."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1
