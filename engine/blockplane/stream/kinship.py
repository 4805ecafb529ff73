"""How streams stand to snapshots that are there, and to each other: found by histories alone.

A stream lists the snapshots of its top's line, those left out too, and the line's branches; that is enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockplane.stream.reader import StreamMap
from blockplane.volume.codec import SnapshotRecord
from blockplane.volume.lines import is_in_history


class Past:
    """The snapshots that a stream's top is, or descends from.

    Copies of a volume's disks, such as one that was put back, count their consistency points alike. So histories are
    believed of what the stream lists; of another snapshot as far as times do not say otherwise.
    """

    def __init__(self, stream: StreamMap) -> None:
        self._top, self._branches = stream.top, stream.branches
        self._listed = {record.id: record for record, _ in stream.snapshots}

    def __contains__(self, record: SnapshotRecord) -> bool:
        return self.is_before(record, self._top)

    def is_before(self, record: SnapshotRecord, later: SnapshotRecord) -> bool:
        """Whether a snapshot is one that the stream lists, or one that this descends from."""
        if not is_in_history(record, later, self._branches):
            return False
        return record.id in self._listed or not any(_are_apart(record, each) for each in self._listed.values())


def _are_apart(one: SnapshotRecord, other: SnapshotRecord) -> bool:
    """Whether two snapshots of one branch cannot be of one line: what comes later there was made earlier."""
    if one.branch_id != other.branch_id:
        return False
    if one.cp == other.cp:
        return one.root != other.root
    return (one.cp < other.cp) != (one.created_ns <= other.created_ns)


def kinship(stream: StreamMap, base: SnapshotRecord, held: Sequence[SnapshotRecord], whose: str) -> str:
    """Return how a stream's base stands to snapshots, in words; nothing where none of them is of its line.

    Parameters
    ----------
    held : snapshots that are there whole. whose : who has them, as in "the newest WHOSE".
    """
    past = Past(stream)
    line = [record for record, _ in stream.snapshots if record in past]
    older = [record for record in held if past.is_before(record, base)]
    if older:
        newest = max(older, key=_age)
        n = len({record.id for record in line if _age(newest) < _age(record) <= _age(base)})
        return f"{base.name} is {_snapshots(n)} after {newest.name}, the newest {whose} that it descends from"
    newer = [record for record in held if _age(record) > _age(base) and record in past]
    if newer:
        oldest = min(newer, key=_age)
        n = len({record.id for record in line if _age(base) <= _age(record) < _age(oldest)})
        return f"{base.name} is {_snapshots(n)} before {oldest.name}, the oldest {whose} of its line"
    return ""


def tips_of(streams: Sequence[StreamMap]) -> list[int]:
    """Return the streams whose tops no other's descends from, as they were made: one, where all are of one line.

    Notes
    -----
    Of several with one top, or of one state, the last counts. Linear in streams, for each tip.
    """
    tips: dict[int, Past] = {}
    for i in sorted(range(len(streams)), key=lambda i: _age(streams[i].top), reverse=True):
        if not any(streams[i].top in past for past in tips.values()):
            tips[i] = Past(streams[i])
    # the first state of a branch has the number of the one that it left
    last = [i for i in tips if not any(streams[i].top in past for j, past in tips.items() if j != i)]
    return sorted(last, key=lambda i: streams[i].top.created_ns)


def _age(record: SnapshotRecord) -> tuple[int, int]:
    return record.cp, record.created_ns


def _snapshots(n: int) -> str:
    return "one snapshot" if n == 1 else f"{n} snapshots"
