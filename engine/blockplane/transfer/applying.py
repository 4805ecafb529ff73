"""Which of some streams apply to a destination, and in which order: found by ids, whatever the files are called.

What is there already is passed over. Of what is left the newest must be reached from what is there, or from a full
stream where nothing is: else what is missing in between is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from blockplane.model.errors import RefusedError, StreamError, StreamMismatchError
from blockplane.stream.kinship import kinship
from blockplane.stream.lineage import Member
from blockplane.stream.reader import StreamMap
from blockplane.transfer.history import is_in_history
from blockplane.volume.codec import SnapshotRecord


@dataclass(frozen=True, slots=True)
class Live:
    """The state that is live at a destination: its branch, and its consistency point."""

    branch_id: bytes
    cp: int


@dataclass(frozen=True, slots=True)
class Step:
    """What is applied as one: a stream, or the parts of an image."""

    members: tuple[Member, ...]

    @property
    def map(self) -> StreamMap:
        """What they say of the image, all the same."""
        return self.members[0].map

    @property
    def names(self) -> str:
        """The streams, for a message."""
        return " and ".join(member.name for member in self.members)

    @property
    def age_key(self) -> tuple[int, int, int]:
        """Sorts older tops before newer, and of one top what has fewer blocks first."""
        return (*self.members[0].age_key, self.map.header.image_blocks)


@dataclass(slots=True)
class Plan:
    """steps : as they apply. there : streams whose top is there before or after them. older : those of states before
    what is reached, of which nothing is needed.
    """

    steps: list[Step] = field(default_factory=list)
    there: list[Step] = field(default_factory=list)
    older: list[Step] = field(default_factory=list)


def plan_streams(
    members: Sequence[Member], held: Sequence[SnapshotRecord], live: Live | None, name: str, *, discard: bool = False
) -> Plan:
    """Return which streams apply to a destination, in order.

    Parameters
    ----------
    held : the snapshots that it has whole. live : its live state; None: it was never written to. name : what a person
    calls it. discard : its live state may be given up.

    Raises
    ------
    StreamMismatchError : one stands on a snapshot that is neither there nor brought. RefusedError : a full stream would
    replace what is there, or it was written to since.
    """
    steps = _steps(members)
    starts: list[list[Step]] = [[]]
    if live is None or discard:  # else a full stream would replace what is there
        there = {record.id for record in held}
        starts += [[step] for step in steps if step.map.base is None and step.map.top.id not in there]
    found = max((_closure(steps, held, start, live, discard) for start in starts), key=_reach)
    reached = max((step.age_key[:2] for step in found), default=(live.cp, 0) if live is not None else (-1, 0))
    have = {record.id for record in (*held, *_brought(found))}
    plan = Plan(found)
    for step in steps:
        if step in found:
            continue
        if step.map.top.id in have:
            plan.there.append(step)
        elif step.age_key[0] <= reached[0] and (found or live is not None):
            plan.older.append(step)
        else:
            raise _missing(step, steps, held, found, name)
    return plan


def _steps(members: Sequence[Member]) -> list[Step]:
    """Return the streams, parts of one image together, older tops first; one that comes again counts once."""
    whole: dict[bytes, Step] = {}
    parts: dict[bytes, Step] = {}
    for member in members:
        header = member.map.header
        if header.is_part and not header.is_one_of_parts:
            raise StreamError(
                f"{member.name} brings only what a destination lacked",
                "receive it by itself, where the first part of it went",
            )
        if not header.is_part:
            whole.setdefault(header.image_id, Step((member,)))
        else:
            before = parts.get(header.image_id, Step(()))
            parts[header.image_id] = replace(before, members=(*before.members, member))
    return sorted({**parts, **whole}.values(), key=lambda step: step.age_key)


def _brought(steps: Iterable[Step]) -> list[SnapshotRecord]:
    return [record for step in steps for record in step.map.arriving()]


def _reach(steps: Sequence[Step]) -> tuple[tuple[int, int], int, int]:
    """Sorts chains: what comes nearest to the newest, then what brings most snapshots, then what has fewest streams."""
    if not steps:
        return (-1, 0), 0, 0
    return steps[-1].age_key[:2], len({record.id for record in _brought(steps)}), -len(steps)


def _closure(
    steps: Sequence[Step], held: Sequence[SnapshotRecord], start: Sequence[Step], live: Live | None, discard: bool
) -> list[Step]:
    """Return a start and all that applies one after the other, older first."""
    found = list(start)
    have = {record.id: record.space_id for record in (*held, *_brought(found))}
    if found:
        live = _after(found[-1])
    while True:
        fitting = (step for step in steps if step not in found and _fits(step, have, live, discard))
        step = next(fitting, None)
        if step is None:
            return found
        found.append(step)
        have.update({record.id: record.space_id for record in step.map.arriving()})
        live, discard = _after(step), False


def _after(step: Step) -> Live:
    return Live(step.map.top.branch_id, step.map.top.cp)


def _fits(step: Step, have: dict[bytes, bytes], live: Live | None, discard: bool) -> bool:
    """Whether a stream applies: its base is there, its top is not, and what is live is in its history."""
    base, top = step.map.base, step.map.top
    if base is None or have.get(base.id) != base.space_id or top.id in have:
        return False
    return discard or live is None or is_in_history(live.branch_id, live.cp, top, step.map.branches)


def _missing(
    step: Step, steps: Sequence[Step], held: Sequence[SnapshotRecord], found: Sequence[Step], name: str
) -> StreamError | RefusedError:
    """Return the error that says what a stream which does not apply lacks."""
    base = step.map.base
    have = [*held, *_brought(found)]
    if base is None:
        return RefusedError(
            f"{step.names} is a full stream, and {name} has content: it would replace that",
            "leave it out, receive it into a new volume, or say --discard",
        )
    if any(record.id == base.id and record.space_id == base.space_id for record in have):
        return RefusedError(
            f"{name} was written to since {base.name}, or rolled back: what it holds is no part of "
            f"{step.map.top.name}, which {step.names} brings, and would be lost",
            "keep it in a snapshot of its own and receive into another volume, or say --discard",
        )
    before = next((other for other in steps if base.id in {r.id for r in other.map.arriving()}), None)
    if before is not None and before not in found and before is not step:
        return _missing(before, [other for other in steps if other is not step], held, found, name)
    how = kinship(step.map, base, have, "there is")
    return StreamMismatchError(
        f"{step.names} builds on snapshot {base.name} (id {base.id.hex()}), which {name} does not hold, and none of "
        "the streams brings" + (f": {how}" if how else ""),
        "name the stream that brings it too",
    )
