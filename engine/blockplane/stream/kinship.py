"""How streams stand to snapshots that are there, and to each other: found by histories alone.

A stream lists the snapshots of its top's line, those left out too, and the line's branches; that is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.model.errors import RefusedError
from blockplane.stream.reader import StreamMap
from blockplane.volume.codec import SnapshotRecord
from blockplane.volume.lines import ends_of, is_in_history


def kinship(stream: StreamMap, base: SnapshotRecord, held: Sequence[SnapshotRecord], whose: str) -> str:
    """Return how a stream's base stands to snapshots, in words; nothing where none of them is of its line.

    Parameters
    ----------
    held : snapshots that are there whole. whose : who has them, as in "the newest WHOSE".
    """
    of_top, of_base = _Line(stream, stream.top), _Line(stream, base)
    line = [record for record, _ in stream.snapshots if record in of_top]
    older = [record for record in held if record in of_base]
    if older:
        newest = max(older, key=_age)
        n = len({record.id for record in line if _age(newest) < _age(record) <= _age(base)})
        return f"{base.name} is {_snapshots(n)} after {newest.name}, the newest {whose} that it descends from"
    newer = [record for record in held if _age(record) > _age(base) and record in of_top]
    if newer:
        oldest = min(newer, key=_age)
        n = len({record.id for record in line if _age(base) <= _age(record) < _age(oldest)})
        return f"{base.name} is {_snapshots(n)} before {oldest.name}, the oldest {whose} of its line"
    return ""


def no_way_on(name: str, at: str, top: str, *, is_past: bool, brings: str = "") -> RefusedError:
    """Return the error for what stands at a snapshot that a stream's top does not descend from.

    Parameters
    ----------
    is_past : the snapshot descends from the top. brings : a clause that says which stream it is.
    """
    relation = "past" if is_past else "of another branch than"
    way = "it brings nothing newer: to have it shown" if is_past else "to have it"
    return RefusedError(
        f"{name} stands at {at}, which is {relation} {top}{brings}",
        f"{way}, receive it into another volume, or say --discard: {at} stays as a snapshot",
    )


def tips_of(streams: Sequence[StreamMap]) -> list[int]:
    """Return the streams whose tops no other's descends from, as they were made: one, where all are of one line.

    Notes
    -----
    Of several with one top, or of one state, the last counts. Linear in streams, for each tip.
    """

    def is_before(i: int, j: int) -> bool:
        return is_in_history(streams[i].top, streams[j].top, streams[j].branches)

    tips: list[int] = []
    for i in sorted(range(len(streams)), key=lambda i: _age(streams[i].top), reverse=True):
        if not any(is_before(i, j) for j in tips):
            tips.append(i)
    # the first state of a branch has the number of the one that it left
    last = [i for i in tips if not any(is_before(i, j) for j in tips if j != i)]
    return sorted(last, key=lambda i: streams[i].top.created_ns)


class _Line:
    """The snapshots that a later one descends from, and itself; worked out once."""

    def __init__(self, stream: StreamMap, later: SnapshotRecord) -> None:
        self._space_id = later.space_id
        self._ends = ends_of(later.branch_id, later.cp, stream.branches)

    def __contains__(self, record: SnapshotRecord) -> bool:
        return record.space_id == self._space_id and record.cp <= self._ends.get(record.branch_id, -1)


def _age(record: SnapshotRecord) -> tuple[int, int]:
    return record.cp, record.created_ns


def _snapshots(n: int) -> str:
    return "one snapshot" if n == 1 else f"{n} snapshots"
