"""Which of some streams apply to a destination, and in which order: found by ids, whatever the files are called.

What is there already is passed over. Of what is left the newest must be reached from what is there, or from a full
stream where nothing is: else what is missing in between is named, or the branch or volume that a stream is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from blockplane.model.errors import RefusedError, StreamError, StreamMismatchError
from blockplane.stream.kinship import kinship, no_way_on, tips_of
from blockplane.stream.lineage import Member, foreign, of_branches
from blockplane.stream.reader import StreamMap
from blockplane.volume.codec import Branch, SnapshotRecord
from blockplane.volume.lines import is_in_history


@dataclass(frozen=True, slots=True)
class Live:
    """The state that is live at a destination: its numbering, branch, consistency point, and branch history.

    name : of the snapshot that has all of it; empty: none has.
    """

    space_id: bytes
    branch_id: bytes
    cp: int
    branches: Sequence[Branch] = ()
    name: str = ""


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
    """steps : as they apply. there : streams whose top is there before or after them. older : those of states that what
    is reached descends from, of which nothing is needed.
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
    StreamMismatchError : one stands on a snapshot that is neither there nor brought, or is of another branch or volume
    than others. RefusedError : a full stream would replace what is there, or it was written to since, or is of another
    branch.
    """
    steps = _steps(members)
    tips = _tips(steps, held)
    found = max((_way(_before(tip, steps), held, live, discard) for tip in tips), key=_reach)
    reached = _after(found[-1]) if found else live
    have = {record.id for record in (*held, *_brought(found))}
    plan = Plan(found)
    for step in steps:
        if step in found:
            continue
        if step.map.top.id in have:
            plan.there.append(step)
        elif reached is not None and is_in_history(step.map.top, reached, reached.branches):
            plan.older.append(step)
        else:
            raise _other_line(step, tips, found) or _missing(step, steps, held, found, name, live)
    return plan


def _tips(steps: Sequence[Step], held: Sequence[SnapshotRecord]) -> list[Step]:
    """Return the newest of each branch, as they were made: of those that are not there, if there are any."""
    tips = [steps[i] for i in tips_of([step.map for step in steps])]
    there = {record.id for record in held}
    return [tip for tip in tips if tip.map.top.id not in there] or tips


def _before(tip: Step, steps: Sequence[Step]) -> list[Step]:
    """Return the steps to states that a tip descends from, and to itself."""
    return [step for step in steps if is_in_history(step.map.top, tip.map.top, tip.map.branches)]


def _way(line: Sequence[Step], held: Sequence[SnapshotRecord], live: Live | None, discard: bool) -> list[Step]:
    """Return what applies of the steps of one line: what comes nearest to its end."""
    starts: list[list[Step]] = [[]]
    if live is None or discard:  # else a full stream would replace what is there
        there = {record.id for record in held}
        starts += [[step] for step in line if step.map.base is None and step.map.top.id not in there]
    return max((_closure(line, held, start, live, discard) for start in starts), key=_reach)


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
    top = step.map.top
    return Live(top.space_id, top.branch_id, top.cp, step.map.branches, top.name)


def _fits(step: Step, have: dict[bytes, bytes], live: Live | None, discard: bool) -> bool:
    """Whether a stream applies: its base is there, its top is not, and what is live is in its history."""
    base, top = step.map.base, step.map.top
    if base is None or have.get(base.id) != base.space_id or top.id in have:
        return False
    return discard or live is None or is_in_history(live, top, step.map.branches)


def _other_line(step: Step, tips: Sequence[Step], found: Sequence[Step]) -> StreamError | None:
    """Return the error for a stream of another volume, or branch, than those that apply; None: it is of theirs."""
    if not found:
        return None
    end, top = found[-1].map.top, step.map.top
    if end.space_id != top.space_id:
        return foreign(found[-1].names, step.names)
    if is_in_history(end, top, step.map.branches):
        return None
    tops = dict.fromkeys(tip.map.top.name for tip in tips if tip.map.top.space_id == end.space_id)
    return of_branches([*tops])


def _missing(
    step: Step,
    steps: Sequence[Step],
    held: Sequence[SnapshotRecord],
    found: Sequence[Step],
    name: str,
    live: Live | None,
) -> StreamError | RefusedError:
    """Return the error that says what a stream which does not apply lacks."""
    base = step.map.base
    have = [*held, *_brought(found)]
    if base is None:
        is_foreign = live is not None and live.space_id != step.map.top.space_id
        content = "content of another volume" if is_foreign else "content"
        return RefusedError(
            f"{step.names} is a full stream, and {name} has {content}: it would replace that",
            "leave it out, receive it into a new volume, or say --discard",
        )
    if any(record.id == base.id and record.space_id == base.space_id for record in have):
        if live is not None and live.name:
            is_past, brings = is_in_history(step.map.top, live, live.branches), f", which {step.names} brings"
            return no_way_on(name, live.name, step.map.top.name, is_past=is_past, brings=brings)
        return RefusedError(
            f"{name} was written to since {base.name}, or rolled back: what it holds is no part of "
            f"{step.map.top.name}, which {step.names} brings, and would be lost",
            "keep it in a snapshot of its own and receive into another volume, or say --discard",
        )
    before = next((other for other in steps if base.id in {r.id for r in other.map.arriving()}), None)
    if before is not None and before not in found and before is not step:
        return _missing(before, [other for other in steps if other is not step], held, found, name, live)
    how = kinship(step.map, base, have, "there is")
    return StreamMismatchError(
        f"{step.names} builds on snapshot {base.name} (id {base.id.hex()}), which {name} does not hold, and none of "
        "the streams brings" + (f": {how}" if how else ""),
        "name the stream that brings it too",
    )
