"""Which tape is in which drive: opening media by name, and having tapes changed."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

from blockplane.model.errors import StreamError, StreamMissingError, TapeError, TapeFullError, UsageError
from blockplane.stream.media.codec import MAGIC
from blockplane.stream.media.drive import TapeDrive
from blockplane.stream.media.labels import is_blank
from blockplane.stream.media.medium import Medium
from blockplane.stream.media.tapfile import WORD_BYTES, TapFile

PathLike = str | os.PathLike[str]
#: The environment of a changer's command.
ENV_TAPE, ENV_DRIVE, ENV_MODE = "BLOCKPLANE_TAPE", "BLOCKPLANE_DRIVE", "BLOCKPLANE_MODE"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of tapes.

    drive : the name that the tape is then under. tape : its number in the set. is_writing : it is to be written.
    """

    drive: str
    tape: int
    is_writing: bool


#: Brings a tape into a drive; returns when it is there, or raises.
Changer = Callable[[Change], None]


def command_changer(command: str) -> Changer:
    """Return a changer that runs a command, without a shell, for each change.

    The command gets the number of the tape in BLOCKPLANE_TAPE, the drive in BLOCKPLANE_DRIVE, and `read` or `write` in
    BLOCKPLANE_MODE.

    Raises
    ------
    UsageError : the command cannot be taken apart into words.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the changer's command {command!r} cannot be read: {error}") from error
    if not words:
        raise UsageError("the changer's command is empty", "name a program and its arguments")

    def change(its: Change) -> None:
        mode = "write" if its.is_writing else "read"
        environment = os.environ | {ENV_TAPE: str(its.tape), ENV_DRIVE: its.drive, ENV_MODE: mode}
        try:
            done = subprocess.run(words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as error:
            raise TapeError(f"the changer {words[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise TapeError(
                f"the changer ended with status {done.returncode} for tape {its.tape}"
                + (f": {said[0]}" if said else "")
            )

    return change


def in_turns(changer: Changer | None) -> Changer | None:
    """Return a changer that is asked for one tape at a time, whichever thread wants it; None: there is none."""
    if changer is None:
        return None
    lock = threading.Lock()

    def change(its: Change) -> None:
        with lock:
            changer(its)

    return change


def open_medium(name: str, *, writable: bool = False, size_bytes: int | None = None) -> Medium:
    """Open a tape by name: a device, or a .tap file.

    Raises
    ------
    StreamMissingError, TapeError : it cannot be opened, or is neither.
    """
    if is_drive(name):
        return TapeDrive(name, writable=writable)
    return TapFile(name, writable=writable, size_bytes=size_bytes)


def is_drive(name: str) -> bool:
    """Tell whether a name is a tape device's."""
    try:
        return stat.S_ISCHR(os.stat(name).st_mode)
    except OSError:
        return False


def is_tape(name: PathLike) -> bool:
    """Tell whether a name is a tape device's, or a file's that begins with a record of ours, whole or not."""
    if is_drive(os.fspath(name)):
        return True
    try:
        with open(name, "rb") as file:
            start = file.read(WORD_BYTES + len(MAGIC))
            return start[WORD_BYTES:] == MAGIC
    except OSError:
        return False


def is_unwritten(name: PathLike, opened: Callable[..., Medium] = open_medium) -> bool:
    """Tell whether nothing is on a tape, or it is a file that is not there."""
    try:
        with closing(opened(os.fspath(name), writable=False, size_bytes=None)) as medium:
            return is_blank(medium)
    except StreamMissingError:
        return True
    except StreamError:
        return False


class Rack:
    """The tapes of a set, by number: in the drives and files named, tape after tape, and what a changer brings.

    Parameters
    ----------
    names : drives and files; tape 1 is in the first one, the next in the second, and so on, in turns where a
        changer brings more.
    size_bytes : of tapes that are files, where they are written.
    opened : opens a medium; another storage's own.

    Attributes
    ----------
    first : the number of the tape that was named first: 1, but where `number_from` says otherwise.
    """

    def __init__(
        self,
        names: Sequence[PathLike],
        *,
        writable: bool = False,
        size_bytes: int | None = None,
        changer: Changer | None = None,
        opened: Callable[..., Medium] | None = None,
    ) -> None:
        self.names = [os.fspath(name) for name in names]
        if not self.names:
            raise UsageError("no tape was named", "name a device or a .tap file")
        if len(set(self.names)) < len(self.names):
            raise UsageError("a tape is named twice", "name each once, in order")
        self._writable, self._size_bytes, self._changer = writable, size_bytes, changer
        self._open = opened if opened is not None else open_medium
        #: by slot: the number of the tape that is there, and the medium where it is open
        self._loaded: dict[int, tuple[int, Medium]] = {}
        self.first = 1
        self._numbers = {slot: slot + 1 for slot in range(len(self.names))}
        self._n_read = 0

    def number_from(self, first: int) -> None:
        """Take the tape that was named first for another number, and those behind it for the next ones."""
        self._numbers = {slot: slot + first for slot in range(len(self.names))}
        self._loaded = {slot: (slot + first, medium) for slot, (_, medium) in self._loaded.items()}
        self.first = first

    @cached_property
    def n_named(self) -> int:
        """How many tapes were named; where they are read, without those behind the others on which nothing is.

        Those that a set was given and did not need, that is: what wrote the set can be said again to read it.
        """
        n = len(self.names)
        while not self._writable and self._changer is None and n > 1 and is_unwritten(self.names[n - 1], self._open):
            n -= 1
        return n

    @property
    def has_changer(self) -> bool:
        """Whether more tapes can be had than were named."""
        return self._changer is not None

    @property
    def read_bytes(self) -> int:
        """Bytes of records read so far."""
        return self._n_read + sum(medium.read_bytes for _, medium in self._loaded.values())

    def tape(self, number: int) -> Medium:
        """Return a tape, open.

        Raises
        ------
        TapeFullError : where it is to be written, TapeError : where it is to be read: it is not among those named, and
            nobody brings it.
        """
        slot = next((slot for slot, n in self._numbers.items() if n == number), None)
        if slot is None:
            slot = (number - self.first) % len(self.names)
            self._change(slot, number)
        if slot not in self._loaded:
            medium = self._open(self.names[slot], writable=self._writable, size_bytes=self._size_bytes)
            self._loaded[slot] = number, medium
        return self._loaded[slot][1]

    def _change(self, slot: int, number: int) -> None:
        if self._changer is None:
            what = f"tape {number} of the set is needed, and {len(self.names)} of its tapes were named"
            kind = TapeFullError if self._writable else TapeError
            raise kind(what, "name more tapes, or a drive and --changer")
        self.release(slot)
        self._numbers.pop(slot, None)
        self._changer(Change(self.names[slot], number, self._writable))
        self._numbers[slot] = number

    def release(self, slot: int) -> None:
        """Close the medium of a slot."""
        loaded = self._loaded.pop(slot, None)
        if loaded is not None:
            self._n_read += loaded[1].read_bytes
            loaded[1].close()

    def close(self) -> None:
        """Close all media."""
        for slot in list(self._loaded):
            self.release(slot)
