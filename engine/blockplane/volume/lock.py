"""The lock of a volume: one process at a time writes to it, or any number read; a refusal says who has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path

from blockplane.model.errors import SERVED_HINT, DiskError, VolumeInUseError
from blockplane.model.ownfiles import open_own

_POLL_S = 0.05
#: What a file system says that keeps no locks, such as some network mounts.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class VolumeLock:
    """A lock on a volume's directory: exclusive for a writer, shared for readers, who write nothing to have it.

    A writer's file holds who it is, for people; the kernel's lock is what counts, so that it dies with its process.

    Parameters
    ----------
    answers : the file says that the process will answer a control socket (`server`) if it has the volume for long.

    Attributes
    ----------
    is_held : whether there is one; a reader goes on without where none can be had.
    """

    def __init__(
        self, path: Path, verb: str, wait_s: float = 0.0, *, shared: bool = False, answers: bool = False
    ) -> None:
        self._path = path
        self._shared = shared
        self.is_held = False
        self._fd = -1
        try:
            self._fd = open_own(path, os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT)
            self._acquire(wait_s)
            if not shared:
                self._say(self._fd, {"pid": os.getpid(), "verb": verb, "answers": answers})
        except OSError as error:
            self._close()
            if not (shared and (error.errno in _NO_LOCKS or isinstance(error, (FileNotFoundError, PermissionError)))):
                raise
        except BaseException:
            self._close()
            raise

    def _acquire(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(self._fd, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                self.is_held = True
                return
            except BlockingIOError:
                pass
            if time.monotonic() >= deadline:
                raise VolumeInUseError(*self._describe())
            time.sleep(_POLL_S)

    @staticmethod
    def _say(fd: int, owner: dict[str, object]) -> None:
        """Tell others who has it; where there is no room for that, they see only that somebody has."""
        os.ftruncate(fd, 0)
        try:
            os.pwrite(fd, json.dumps(owner).encode(), 0)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise

    def take(self, verb: str, wait_s: float = 0.0) -> None:
        """Go over from a shared lock to one's own.

        Raises
        ------
        VolumeInUseError: others read; the shared lock is had again. DiskError: somebody wrote in between.
        """
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)  # the thread's directory may be another's
        try:
            self._shared = False
            try:
                self._acquire(wait_s)
            except VolumeInUseError:
                self.share()
                raise
            self._say(fd, {"pid": os.getpid(), "verb": verb, "answers": True})
        finally:
            os.close(fd)

    def share(self) -> None:
        """Go back to a shared lock.

        Raises
        ------
        DiskError: another process took the volume for writing between the two.
        """
        self._shared = True
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_held = False
            raise DiskError(
                f"{self._path.parent} was taken by a writer while it was being read", hint="run it again"
            ) from None

    def _describe(self) -> tuple[str, str]:
        """Return who has it, and what to do about that."""
        volume, holders = self._path.parent, self._holders()
        hint = "wait for it with --wait SECONDS, or stop it"
        try:
            owner = json.loads(os.pread(self._fd, 4096, 0))
            pid, verb = int(owner["pid"]), str(owner["verb"])[:40]
        except (ValueError, KeyError, TypeError, RecursionError):
            pid, verb = -1, ""
        if pid > 0 and (pid in holders or not holders):
            return f"{volume} is in use by process {pid} ({verb})", SERVED_HINT if verb == "serve" else hint
        if holders:  # readers, who leave no name
            return f"{volume} is in use by process {', '.join(map(str, sorted(holders)[:8]))} (reading)", hint
        return f"{volume} is in use by another process", hint

    def _holders(self) -> set[int]:
        """Return who holds the lock, as far as the kernel shows it."""
        status = os.fstat(self._fd)
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with contextlib.suppress(OSError, ValueError):
            rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
            return {int(row[4]) for row in rows if len(row) > 5 and row[5] == device and int(row[4]) > 0}
        return set()

    def __enter__(self) -> VolumeLock:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the volume up."""
        if self._fd >= 0 and not self._shared:
            with contextlib.suppress(OSError):
                os.truncate(f"/proc/self/fd/{self._fd}", 0)
        self._close()

    def _close(self) -> None:
        self.is_held = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
