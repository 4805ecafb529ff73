"""The names that a stream in files has there: how it is split, and what must not lie under them beforehand."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from blockplane.model.errors import RefusedError, StreamError, UsageError
from blockplane.stream.codec import MAGIC
from blockplane.stream.folder import PARTIAL, Folder
from blockplane.stream.keyfile import KEY_MAGIC
from blockplane.stream.pieces import DIGESTS, base_of, hint_for, piece_name, piece_number

#: A header is in one piece, and a frame in two or few.
MIN_SPLIT_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class FileForm:
    """How a stream lies in files. split_bytes : how long each piece is; None: it is not split. digests : whether a file
    with the SHA-256 of each file is written beside them, as `sha256sum` has it.
    """

    split_bytes: int | None = None
    digests: bool = False

    def __post_init__(self) -> None:
        if self.split_bytes is not None and self.split_bytes < MIN_SPLIT_BYTES:
            raise UsageError(f"pieces of {self.split_bytes} bytes are too small", "split at 64KiB or more")


WHOLE: Final = FileForm()


class FileNames:
    """The files of a stream in a folder: NAME, or the pieces NAME.000, NAME.001, ... Nothing is written here."""

    def __init__(self, folder: Folder, name: str, form: FileForm = WHOLE) -> None:
        self._folder, self._base, self._split = folder, name, form.split_bytes
        self.name = folder.shown(name)

    def refuse(self, goes_on: bool, n_bytes: int = 0) -> None:
        """Raise RefusedError or StreamError where what is there must stay, or is split otherwise.

        n_bytes : how long the stream is to be, where that is known: other streams would be replaced by its pieces.
        """
        self._refuse_others()
        self._refuse_other_form(goes_on)
        if self._split is not None and n_bytes:
            found = {piece_number(name.removesuffix(PARTIAL), self._base) for name in self._folder.names()}
            for number in sorted(number for number in found if 0 < number < -(-n_bytes // self._split)):
                self._refuse_streams(number)

    def _name_of(self, number: int) -> str:
        return self._base if self._split is None else piece_name(self._base, number)

    def _refuse_others(self) -> None:
        """Refuse to replace, or remove, what is no stream of this name."""
        names = self._folder.names()
        later = [name for name in names if self._split is not None and piece_number(name, self._base) >= 0]
        mine = dict.fromkeys([self._name_of(0), *later, self._base + DIGESTS])
        self._folder.refuse_volumes([*mine, *(name + PARTIAL for name in mine)])
        for name in mine:
            with contextlib.suppress(StreamError):  # what cannot be read is nobody's key here
                if self._folder.has_file(name) and self._begins(name, KEY_MAGIC):
                    shown = self._folder.shown(name)
                    raise RefusedError(f"{shown} is a key file: a key is never overwritten", "name another file")
        base = base_of(self._base) if self._split is None else None
        second = piece_name(base, 1) if base is not None else ""
        if second in names and not self._is_head(second):
            raise RefusedError(
                f"{self._folder.shown(second)} is there, of a stream that was split: {self.name} is its first piece",
                "name another file",
            )
        if self._split is None and self._base in names and hint_for(self.name):
            raise RefusedError(f"{self.name} is a piece of a stream that was split", "name another file")
        self._refuse_astray(later, set(names))

    def _refuse_astray(self, later: Sequence[str], names: Container[str]) -> None:
        """Refuse a name under which what is no piece would be read as one: so its number says, behind a gap."""
        after = 1
        for number in sorted(piece_number(name, self._base) for name in later):
            name = self._name_of(number)
            if number and self._is_head(name):
                return  # readers go no further
            if any(self._name_of(gap) + PARTIAL not in names for gap in range(after, number)):
                raise RefusedError(
                    f"{self._folder.shown(name)} is there, and would be taken for a piece of {self.name}",
                    "name another file, or delete that",
                )
            after = number + 1

    def _refuse_streams(self, number: int) -> None:
        """Refuse to replace a stream of its own by a later piece of this one."""
        for name in (self._name_of(number), self._name_of(number) + PARTIAL) if number else ():
            if self._folder.has_file(name) and self._is_head(name):
                raise RefusedError(
                    f"{self._folder.shown(name)} is there, another stream: a piece of {self.name} would replace it",
                    "name another file, or move that",
                )

    def _is_head(self, name: str) -> bool:
        """Whether a file begins as a stream does."""
        return self._begins(name, MAGIC)

    def _begins(self, name: str, start: bytes) -> bool:
        with closing(self._folder.stored([name])) as stored:
            return stored.read(len(start), 0) == start

    def _refuse_other_form(self, goes_on: bool) -> None:
        names = self._folder.names()
        first = piece_name(self._base, 0)
        other, way = (first, "split") if self._split is None else (self._base, "not split")
        for name in (other, other + PARTIAL) if goes_on else (other,):
            if name in names:
                raise StreamError(
                    f"{self._folder.shown(name)} is there: a stream that is {way}",
                    "say the same --split as before, or name another file, or delete it",
                )
