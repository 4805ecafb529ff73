"""How streams build on each other: which ones a snapshot is read from, in which order they apply, what is missing.

Nothing here reads data: names and maps are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blockplane.model.errors import StreamMismatchError
from blockplane.stream.kinship import kinship, tips_of
from blockplane.stream.reader import StreamMap
from blockplane.stream.stored import StreamPlace
from blockplane.volume.codec import SnapshotRecord

#: So many branches are named.
_MAX_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Member:
    """A stream of a chain: what a person calls it, its map, and where it lies if that is no file of that name."""

    name: str
    map: StreamMap
    place: str | StreamPlace = ""

    @property
    def source(self) -> str | StreamPlace:
        """What it is read from."""
        return self.place or self.name

    @property
    def age_key(self) -> tuple[int, int]:
        """Sorts older before newer."""
        return self.map.top.cp, self.map.top.created_ns


class Lineage:
    """Streams as a tree: each one stands on the one that brings its base.

    Parameters
    ----------
    members : in any order.
    needs_full : whether a chain begins with a full stream; else any stream whose base none brings begins one.

    Notes
    -----
    Linear in snapshots and streams. Where several streams bring a snapshot, the shortest way to it counts.
    """

    def __init__(self, members: Sequence[Member], *, needs_full: bool = True) -> None:
        self.members = list(members)
        self._by_base: dict[bytes, list[int]] = {}
        self._brought: set[bytes] = set()
        for i, member in enumerate(self.members):
            base = member.map.base
            if base is not None:
                self._by_base.setdefault(base.id, []).append(i)
            self._brought.update(record.id for record in member.map.arriving())
        #: by snapshot: the member that brings it on the shortest way
        self._bringer: dict[bytes, int] = {}
        #: members that can be reached from a beginning, in an order in which they apply
        self.order: list[int] = []
        self._reached: set[int] = set()
        self._reach([i for i, member in enumerate(self.members) if self._begins(member, needs_full)])

    def _begins(self, member: Member, needs_full: bool) -> bool:
        base = member.map.base
        return base is None or (not needs_full and base.id not in self._brought)

    def _reach(self, ready: list[int]) -> None:
        """Walk from the beginnings to all that stands on them, level by level, older ones first."""
        while ready:
            level = sorted({i for i in ready if i not in self._reached}, key=lambda i: self.members[i].age_key)
            self._reached.update(level)
            self.order += level
            ready = []
            for i in level:
                for record in self.members[i].map.arriving():
                    if record.id not in self._bringer:
                        self._bringer[record.id] = i
                        ready += [j for j in self._by_base.get(record.id, ()) if self._fits(j, record)]

    def _fits(self, i: int, base: SnapshotRecord) -> bool:
        return self.members[i].map.header.space_id == base.space_id

    @property
    def newest(self) -> Member:
        """The member whose top all others are before.

        Raises
        ------
        StreamMismatchError : it stands on nothing, or the members are of different numberings, or of several branches.
        """
        self.require_one_volume()
        tips = self.tips
        if len(tips) > 1:
            raise of_branches([tip.map.top.name for tip in tips])
        same = [i for i, member in enumerate(self.members) if member.map.top.id == tips[0].map.top.id]
        i = next((i for i in same if i in self._reached), same[0])
        if i not in self._reached:
            raise self.missing(i)
        return self.members[i]

    @property
    def tips(self) -> list[Member]:
        """The members whose tops no other's descends from, as they were made: one of each branch."""
        return [self.members[i] for i in tips_of([member.map for member in self.members])]

    def require_one_volume(self) -> None:
        """Raise StreamMismatchError where the members are of different numberings."""
        for member in self.members[1:]:
            if member.map.header.space_id != self.members[0].map.header.space_id:
                raise foreign(self.members[0].name, member.name)

    @property
    def stranded(self) -> list[int]:
        """The members that stand on nothing."""
        return [i for i in range(len(self.members)) if i not in self._reached]

    def brings(self, snapshot_id: bytes) -> bool:
        """Tell whether a member that stands on something brings a snapshot."""
        return snapshot_id in self._bringer

    def path(self, snapshot_id: bytes) -> list[int]:
        """Return the streams a snapshot is read from: the one that brings it, the one that brings its base, ...

        Raises
        ------
        StreamMismatchError : a link is missing; the message names it.
        """
        path: list[int] = []
        wanted: bytes | None = snapshot_id
        while wanted is not None and wanted in self._bringer:
            path.append(self._bringer[wanted])
            base = self.members[path[-1]].map.base
            wanted = base.id if base is not None and base.id in self._bringer else None
        if not path:
            raise self.missing(self._any_bringer(snapshot_id))
        return path

    def _any_bringer(self, snapshot_id: bytes) -> int:
        return next(
            i for i, m in enumerate(self.members) if any(record.id == snapshot_id for record in m.map.arriving())
        )

    def missing(self, i: int) -> StreamMismatchError:
        """Return the error that says what a member which stands on nothing lacks."""
        seen: list[int] = []
        while i not in seen:
            seen.append(i)
            base = self.members[i].map.base
            assert base is not None, "a full stream stands on nothing"
            below = [j for j, m in enumerate(self.members) if any(r.id == base.id for r in m.map.arriving())]
            if not below:
                brought = [record for j, m in enumerate(self.members) if j != i for record in m.map.arriving()]
                how = kinship(self.members[i].map, base, brought, "of theirs")
                return StreamMismatchError(
                    f"{self.members[i].name} builds on snapshot {base.name} (id {base.id.hex()}), "
                    f"and {self._nobody()} brings it" + (f": {how}" if how else ""),
                    "name the whole chain, the full stream and every increment up to this one",
                )
            if not any(self._fits(i, r) for j in below for r in self.members[j].map.arriving() if r.id == base.id):
                return foreign(self.members[i].name, self.members[below[0]].name)
            i = below[0]
        return self._circle(seen[seen.index(i) :])

    def _circle(self, numbers: Sequence[int]) -> StreamMismatchError:
        """Return the error for members of which each brings what another builds on: good increments may do so."""
        members = [self.members[i] for i in sorted(numbers)]
        bases = dict.fromkeys(member.map.base.name for member in members if member.map.base is not None)
        return StreamMismatchError(
            f"{', '.join(member.name for member in members)} build on each other: the full stream, or one that brings "
            f"{' or '.join(bases)} onto something else, is missing",
            "name the whole chain, the full stream and every increment up to the newest",
        )

    def _nobody(self) -> str:
        return "none of the other streams" if len(self.members) > 1 else "no other stream is named that"


def foreign(one: str, other: str) -> StreamMismatchError:
    """Return the error for streams of two numberings."""
    return StreamMismatchError(
        f"{one} and {other} number their blocks differently: they are of different volumes",
        "name the streams of one volume",
    )


def of_branches(tops: Sequence[str]) -> StreamMismatchError:
    """Return the error for streams of which none is the newest: by the tops of the branches."""
    how_many = "two" if len(tops) == 2 else str(len(tops))
    return StreamMismatchError(
        f"the streams are of {how_many} branches: {', '.join(tops[-_MAX_NAMED:])}",
        "name the streams of one of them, or, to read, the snapshot",
    )
