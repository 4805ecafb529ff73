"""Tapes of several sets, each of which has a part of the same images: which tape is of which."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

from blockplane.model.errors import StreamError, TapeError, TapeSetError
from blockplane.stream.media.labels import TapeIdentity, read_label
from blockplane.stream.media.rack import PathLike, is_unwritten, open_medium
from blockplane.stream.media.setstate import WHOLE, SetPart


@dataclass(slots=True)
class TapesOfSet:
    """Names of tapes of one set, in their order, and which part of its images it has."""

    part: SetPart = WHOLE
    names: list[str] = field(default_factory=list)


def look_at(name: PathLike) -> TapeIdentity | StreamError:
    """Return which tape is there by its label, or why that cannot be known."""
    try:
        with closing(open_medium(os.fspath(name))) as medium:
            return read_label(medium)
    except StreamError as error:
        return error


def by_set(names: Sequence[PathLike]) -> list[TapesOfSet]:
    """Return tapes by the set they are of, ordered by part; the order within a set is as they were named.

    Where the first label that can be read is one of a set that has its images whole, all are taken to be of that. Else
    tapes on which nothing is are left out.

    Raises
    ------
    TapeSetError : they are of sets that do not belong together, or two that have the same part.
    TapeLabelError : of one it cannot be known which set it is of.
    """
    texts, group = [os.fspath(name) for name in names], None
    found: dict[bytes, TapesOfSet] = {}
    for i, name in enumerate(texts):
        its = look_at(name)
        if group is None and (isinstance(its, StreamError) or its.part.n_parts == 1):
            if isinstance(its, StreamError) and i < len(texts) - 1 and _more_than_one(texts[i + 1 :]):
                raise its
            return [TapesOfSet(names=texts)]
        if isinstance(its, StreamError):
            if is_unwritten(name):
                continue
            raise its
        group = group or its.label.group_id
        if its.label.group_id != group:
            raise TapeSetError(
                f"{its.text} was not written beside {texts[0]}", "name tapes of sets that were written together"
            )
        found.setdefault(its.set_id, TapesOfSet(its.part)).names.append(name)
    _refuse_doubled(list(found.values()))
    return sorted(found.values(), key=lambda tapes: tapes.part.number)


def _more_than_one(names: Sequence[str]) -> bool:
    """Whether one of these is of a set that has a part."""
    return any(isinstance(its, TapeIdentity) and its.part.n_parts > 1 for its in map(look_at, names))


def _refuse_doubled(sets: Sequence[TapesOfSet]) -> None:
    seen: dict[int, str] = {}
    for tapes in sets:
        other = seen.setdefault(tapes.part.number, tapes.names[0])
        if other != tapes.names[0]:
            raise TapeSetError(
                f"{other} and {tapes.names[0]} are of two sets that have part {tapes.part.number + 1}",
                "name the tapes of one writing",
            )


def missing_parts(sets: Sequence[TapesOfSet]) -> str:
    """Return which parts none of the sets has, for a message; empty: all are there."""
    n_parts, there = sets[0].part.n_parts, {tapes.part.number for tapes in sets}
    numbers = [str(i + 1) for i in range(n_parts) if i not in there]
    return f"part{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} of {n_parts}" if numbers else ""


def require_all_parts(sets: Sequence[TapesOfSet]) -> None:
    """Raise TapeError unless every part of the images is there."""
    if lacking := missing_parts(sets):
        named = ", ".join(tapes.names[0] for tapes in sets)
        raise TapeError(
            f"{lacking} of the images is on no tape named: there is {named}", "name the tapes of all drives"
        )
