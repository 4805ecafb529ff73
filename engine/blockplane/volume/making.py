"""A mark in a volume's directory while the volume is being made: what a maker that was killed left is nobody's.

The first writer that opens the volume takes the mark away; from then on the directory is a volume like any. The mark by
itself is no leave to remove anything: whoever does has looked inside, under the lock (`Volume.clear_half_made`).
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from blockplane.model.errors import RefusedError
from blockplane.model.ownfiles import read_own, sync
from blockplane.volume.config import CONFIG_NAME, DISKS_DIR
from blockplane.volume.journal import clear_orphans

MARK_NAME: Final = "making"
LOCK_NAME: Final = "lock"
#: Made by `server`, and left behind where its process was killed.
SOCKET_NAME: Final = "control.sock"
#: What lies in a volume's directory beside its disks.
OWN_NAMES: Final = (CONFIG_NAME, LOCK_NAME, MARK_NAME, SOCKET_NAME)
#: What a mark may say more: the directory was made for the volume; the volume is being removed.
NEW_FOLDER: Final = "folder"
GOING: Final = "going"


def mark(directory: Path, *words: str) -> None:
    """Say that the volume is being made; durable on return. words : what the mark says more."""
    is_new = not is_marked(directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(directory / MARK_NAME, flags, 0o600), "w") as file:
        file.writelines(f"{word}\n" for word in words)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(directory)


def unmark(directory: Path) -> None:
    """Say that it is made; durable on return, for whoever finds the mark may take the volume away."""
    with suppress(FileNotFoundError):
        (directory / MARK_NAME).unlink()
        sync(directory)


def is_marked(directory: Path) -> bool:
    """Whether the volume is being made, or its maker stopped before the end."""
    return (directory / MARK_NAME).is_file()


def says(directory: Path, word: str) -> bool:
    """Whether the volume is marked, and the mark says a word."""
    return is_marked(directory) and word.encode() in read_own(directory / MARK_NAME).split()


def is_vacant(directory: Path) -> bool:
    """Whether a directory holds nothing, or a lock alone: a maker had no time for more, or has it now."""
    return all(entry.name == LOCK_NAME for entry in directory.iterdir())


def remove_socket(directory: Path) -> None:
    """Remove the control socket that a killed process left, and nothing else of that name; the lock is the caller's."""
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(directory / SOCKET_NAME).st_mode):
            os.unlink(directory / SOCKET_NAME)


def clear(directory: Path, made: Sequence[Path] = (), files: Sequence[Path] = ()) -> None:
    """Remove a volume: its own names and disk files of it that were made elsewhere; the lock is the caller's.

    made : directories that go where they are empty then, as of `missing_of`; by default as the mark says.
    """
    made = made or [directory] * says(directory, NEW_FOLDER)
    with suppress(OSError):  # where there is no room to say so it goes all the same
        mark(directory, GOING)
    for file in files:
        file.unlink(missing_ok=True)
    shutil.rmtree(directory / DISKS_DIR, ignore_errors=True)
    remove_socket(directory)
    clear_orphans(directory, tuple)
    for name in (CONFIG_NAME, CONFIG_NAME + ".new"):
        (directory / name).unlink(missing_ok=True)
    sync(directory)  # the mark goes after the rest, which would be a volume without it, and the lock after the mark
    unmark(directory)
    (directory / LOCK_NAME).unlink(missing_ok=True)
    remove_empty(made)


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
    """Refuse a directory in which no volume can be made.

    Raises
    ------
    RefusedError: it is a volume already, or holds something else.
    """
    if (directory / CONFIG_NAME).exists():
        raise RefusedError(f"{directory} is a volume already", "take another name, or remove it first")
    if directory.exists() and not (directory.is_dir() and is_vacant(directory)):
        raise RefusedError(f"{directory} is not empty", "name a directory that is empty or does not exist")


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
