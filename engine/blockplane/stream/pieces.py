"""Pieces: a stream that was split over files FILE.000, FILE.001, ..., by their names.

The bytes of the pieces, one after the other, are the stream: every piece but the last has the length that was asked
for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Final

from blockplane.model.errors import StreamMissingError
from blockplane.stream.codec import MAGIC

_NAME: Final = re.compile(r"(.+)\.(\d{3,})", re.DOTALL)


def piece_name(base: str, number: int) -> str:
    """Return the name of a piece, numbered from 0."""
    return f"{base}.{number:03}"


def piece_number(name: str, base: str) -> int:
    """Return which piece of a stream a name is of; -1: none."""
    found = piece_of(name)
    return found[1] if found is not None and found[0] == base else -1


def piece_of(name: str) -> tuple[str, int] | None:
    """Return the stream that a name is of a piece of, and which; None: it is no such name."""
    match = _NAME.fullmatch(name)
    if match is None or piece_name(match[1], int(match[2])) != name:
        return None
    return match[1], int(match[2])


def base_of(name: str) -> str | None:
    """Return the name of the stream whose first piece a name is of; None where it is no such name."""
    base = name[:-4] if name.endswith(".000") else ""
    return base if os.path.basename(base) else None


def pieces_of(path: str) -> list[str] | None:
    """Return the names of the pieces that a path means: of the first one, or of all; None: it is a file by itself.

    A piece that begins as a stream does is one of its own.

    Raises
    ------
    StreamMissingError : one is not there, and a later one is.
    """
    base = base_of(path)
    if base is None:
        if os.path.lexists(path):
            return None
        base = path
    if not os.path.isfile(piece_name(base, 0)):
        return None
    numbers = sorted(_numbers_beside(base))
    names = [piece_name(base, number) for number in numbers]
    n_mine = next((i for i, name in enumerate(names) if i and _is_head(name)), len(names))
    if not numbers or numbers[0] != 0:
        return None
    for i, number in enumerate(numbers[:n_mine]):
        if i != number:
            raise StreamMissingError(
                f"{piece_name(base, i)} is missing: {names[i]} is there", "fetch every piece of the stream"
            )
    return names[:n_mine]


def _numbers_beside(base: str) -> Iterable[int]:
    folder, name = os.path.split(base)
    try:
        found = [entry for entry in os.listdir(folder or ".") if entry.startswith(f"{name}.")]
    except OSError:
        return []
    return [number for entry in found if (number := piece_number(entry, name)) >= 0]


def _is_head(path: str) -> bool:
    """Whether a file begins as a stream does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def without_later(names: Sequence[str]) -> list[str]:
    """Return names less those of later pieces, and of digests, of a stream whose first piece is among them.

    Whoever writes FILE.* means the stream.
    """
    bases = {base for name in names if (base := base_of(name)) is not None}

    def is_beside(name: str) -> bool:
        match = _NAME.fullmatch(name)
        if match is not None and match[1] in bases and int(match[2]):
            return not _is_head(name)
        return name.endswith(DIGESTS) and name[: -len(DIGESTS)] in bases

    return [name for name in names if not is_beside(name)]


#: What the name of a file of digests ends with: lines as `sha256sum` writes and checks them.
DIGESTS: Final = ".sha256"


def hint_for(path: str) -> str:
    """Return what to do where a file that is no stream seems to be a later piece of one; else nothing."""
    match = _NAME.fullmatch(path)
    if match is None or not int(match[2]) or not os.path.isfile(piece_name(match[1], 0)) or _is_head(path):
        return ""
    return f"it is a piece of a stream that was split: name {match[1]}"
