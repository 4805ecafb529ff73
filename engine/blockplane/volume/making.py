"""A mark in a volume's directory while the volume is being made: what a maker that was killed left is nobody's.

The first writer that opens the volume takes the mark away; from then on the directory is a volume like any.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from blockplane.model.errors import NotAVolumeError
from blockplane.model.ownfiles import sync
from blockplane.volume.config import CONFIG_NAME, DISKS_DIR
from blockplane.volume.lock import VolumeLock

MARK_NAME: Final = "making"
LOCK_NAME: Final = "lock"
#: Made by `server`, and left behind where its process was killed.
SOCKET_NAME: Final = "control.sock"
#: What lies in a volume's directory beside its disks.
OWN_NAMES: Final = (CONFIG_NAME, LOCK_NAME, MARK_NAME, SOCKET_NAME)


def mark(directory: Path) -> None:
    """Say that the volume is being made; durable on return."""
    os.close(os.open(directory / MARK_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    sync(directory)


def unmark(directory: Path) -> None:
    """Say that it is made; durable on return, for whoever finds the mark may take the volume away."""
    with suppress(FileNotFoundError):
        (directory / MARK_NAME).unlink()
        sync(directory)


def is_marked(directory: Path) -> bool:
    """Whether the volume is being made, or its maker stopped before the end."""
    return (directory / MARK_NAME).is_file()


def is_vacant(directory: Path) -> bool:
    """Whether a directory holds nothing, or a lock alone: a maker had no time for more, or has it now."""
    return all(entry.name == LOCK_NAME for entry in directory.iterdir())


def remove_socket(directory: Path) -> None:
    """Remove the control socket that a killed process left, and nothing else of that name; the lock is the caller's."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(directory / SOCKET_NAME).st_mode):
            os.unlink(directory / SOCKET_NAME)


def clear(directory: Path) -> None:
    """Remove what a maker left that stopped: what is in the directory but the lock, not disks that lie elsewhere.

    Raises
    ------
    VolumeInUseError: it is at work.
    """
    with VolumeLock(directory / LOCK_NAME, "clearing"):
        shutil.rmtree(directory / DISKS_DIR, ignore_errors=True)
        remove_socket(directory)
        for name in (CONFIG_NAME, CONFIG_NAME + ".new"):
            (directory / name).unlink(missing_ok=True)
        sync(directory)  # the mark goes last: without it the rest would be a volume
        unmark(directory)


def missing_of(directory: Path) -> list[Path]:
    """Return which of a directory and those above it are not there, the directory itself first."""
    return [path for path in (directory, *directory.parents) if not path.exists()]


def make_directory(directory: Path) -> list[Path]:
    """Make the directory of a new volume, durable; return what was not there. Errors: as of `refuse_taken`."""
    refuse_taken(directory)
    missing = missing_of(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        with suppress(PermissionError):  # in one that cannot be listed names can be made, and not be synced
            sync(path.parent)
    return missing


def refuse_taken(directory: Path) -> None:
    """Refuse a directory in which no volume can be made; what a maker left that stopped goes first.

    Raises
    ------
    NotAVolumeError: it is a volume already, or holds something else.
    """
    if is_marked(directory):
        clear(directory)
    if (directory / CONFIG_NAME).exists():
        raise NotAVolumeError(f"{directory} is a volume already", "take another name, or remove it first")
    if directory.exists() and not (directory.is_dir() and is_vacant(directory)):
        raise NotAVolumeError(f"{directory} is not empty", "name a directory that is empty or does not exist")


def unmake_directory(directory: Path, made: Sequence[Path], files: Sequence[str]) -> None:
    """Undo what a failed create left: disk files it made, its names in a directory it had found empty or absent.

    made : as of `make_directory`.
    """
    for file in files:
        Path(file).unlink(missing_ok=True)
    shutil.rmtree(directory / DISKS_DIR, ignore_errors=True)
    for name in (CONFIG_NAME, LOCK_NAME, MARK_NAME):
        (directory / name).unlink(missing_ok=True)
    remove_empty(made)


def remove_empty(directories: Sequence[Path]) -> None:
    """Remove directories, as far as they are empty, and nothing is mounted there."""
    with suppress(OSError):
        for directory in directories:
            directory.rmdir()
