"""Receiving a list of streams, or a folder of them: proved to be a whole chain first, then applied one by one."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from blockplane.image.image import build
from blockplane.model.errors import BlockplaneError, RefusedError, StreamMismatchError, UsageError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.planes import Plane, combine
from blockplane.stream.input import blaming, open_input
from blockplane.stream.keyfile import Key, Keys, keys_of
from blockplane.stream.lineage import Member
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.stream.source import StreamName, is_stored, stream_names
from blockplane.stream.stored import StreamPlace
from blockplane.transfer.applying import Live, Plan, Step, plan_streams
from blockplane.transfer.coverage import prove_chain
from blockplane.transfer.destination import VolumeDestination, is_blank
from blockplane.transfer.foresight import refuse_misfit, refuse_new_misfit
from blockplane.transfer.newvolume import DiskWish, Opening, widest
from blockplane.transfer.receive import ReceiveReport, receive_into, report_of
from blockplane.transfer.resume import landed_of
from blockplane.transfer.targets import destination_for, is_vacant
from blockplane.transfer.verify import stream_map
from blockplane.volume.codec import NO_ID
from blockplane.volume.groups import DiskNames
from blockplane.volume.landing import first_part_missing
from blockplane.volume.live import LiveVolume
from blockplane.volume.snapshots import standing_at


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What of some streams was received, or with `dry_run` would be.

    received : a report for each that was applied; of a dry run none. order : their names, as they apply. there : names
    of those whose snapshots were there, or came with others. older : names of those of states before what was reached.
    plain : names of those that are not encrypted. planned : of a dry run of one stream, the report on it, but what only
    reading all of it says: bytes, time, blocks that are shared.
    arrives : names of snapshots, older first. n_blocks_missing : blocks of the last image that no part among them has.
    """

    received: tuple[ReceiveReport, ...]
    order: tuple[str, ...]
    there: tuple[str, ...]
    older: tuple[str, ...]
    arrives: tuple[str, ...]
    n_blocks: int
    seconds: float
    n_blocks_missing: int = 0
    plain: tuple[str, ...] = ()
    planned: ReceiveReport | None = None


def receive_streams(
    *paths: StreamName,
    target: str | os.PathLike[str] | LiveVolume,
    disks: DiskNames | None = None,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
    discard: bool = False,
    relocate: bool = False,
    key: Keys = None,
    require_encrypted: bool = False,
    progress: Progress = ignore_progress,
    opening: Opening | None = None,
    dry_run: bool = False,
    alone: bool = False,
) -> ChainReport:
    """Take streams in, in the order in which they build on each other.

    Parameters
    ----------
    paths : streams in any order, or one folder of them; parts of an image too. Those whose snapshot is there already
        are passed over, and those older than what is reached.
    target and the rest : as for `receive`. dry_run : say what would be done. alone : the one stream is planned as
        `receive` takes it, which passes over nothing that is older, and takes the rest of an interrupted transfer.

    Raises
    ------
    StreamMismatchError : what comes in between is missing, or a snapshot would not be whole; nothing changed.
    RefusedError : something would be lost; nothing changed.
    StreamError and its kinds : a stream is bad. Those before it stay; the error names them.

    Notes
    -----
    Maps, indexes and block maps are read first, and the chain proved by ids and planes; then each stream is received,
    and is durable before the next.
    """
    started = time.monotonic()
    names, keys = stream_names(paths), keys_of(key, require_encrypted)
    members = [Member(str(name), stream_map(name, key=keys), name) for name in _readable(names)]
    if alone and len(members) != 1:
        raise UsageError(f"{len(members)} streams, and one is planned alone", "name one file")
    wish = DiskWish(disks, size, parity, chunk, wipe)
    kind = (opening or Opening()).kind
    if not isinstance(target, LiveVolume):
        if not dry_run:
            kind.clear_half_made(target)
        if is_vacant(Path(target)) or (dry_run and kind.is_of_no_use(target)):
            plan = plan_streams(members, (), None, os.fspath(target), discard=discard)
            missing = _prove(plan, keys, {}, {})
            maps = [step.map for step in plan.steps]
            refuse_new_misfit(Path(target), maps, wish, relocate)
            if dry_run:
                return _report(plan, [], started, missing, dry_run=True)
            with destination_for(target, maps[0], wish, opening, relocate, widest(maps)) as made:
                return _report(plan, _apply(plan, made, keys, discard, progress), started, missing)
    with destination_for(target, members[0].map, wish, opening, relocate) as destination:
        assert isinstance(destination, VolumeDestination)
        plan, missing = _planned(members, destination, keys, discard, relocate, alone)
        reports = [] if dry_run else _apply(plan, destination, keys, discard, progress)
        return _report(plan, reports, started, missing, dry_run=dry_run)


def _readable(names: Sequence[str | StreamPlace]) -> Sequence[str | StreamPlace]:
    for name in names:
        if isinstance(name, str) and os.path.exists(name) and not is_stored(name):
            raise UsageError(f"{name} is no file: it can be read once", "receive it by itself, -i and nothing else")
    return names


def _planned(
    members: Sequence[Member],
    destination: VolumeDestination,
    keys: Sequence[Key],
    discard: bool,
    relocate: bool,
    alone: bool,
) -> tuple[Plan, int]:
    """Return what applies to a volume that is there, proved, and how many blocks of the last image are missing."""
    volume = destination.volume
    blank = is_blank(volume)
    with volume.lock:
        root, standing = volume.committed.root, standing_at(volume)
        kept = standing.record if standing is not None else root  # what a snapshot has is not lost
        name, line = standing.record.name if standing is not None else "", volume.committed.branches()
        live = None if blank else Live(kept.space_id, kept.branch_id, kept.cp, line, name)
    if alone:
        step = Step(tuple(members))
        plan = Plan(there=[step]) if destination.has_top(step.map) else Plan([step])
    else:
        plan = plan_streams(members, destination.records(), live, destination.name, discard=discard)
    if plan.steps:
        destination.accept(plan.steps[0].map, discard=discard)
    for step in plan.steps:
        destination.refuse_name_clash(step.map.arriving())
    bases = {step.map.base.id for step in plan.steps if step.map.base is not None}
    planes = {r.id: build(volume, r.name).plane for r in destination.records() if r.id in bases}
    landed = {step.map.header.image_id: _here(volume, step.map) for step in plan.steps}
    missing = _prove(plan, keys, planes, {image: plane for image, plane in landed.items() if plane})
    if missing and not plan.steps[-1].map.header.is_one_of_parts:
        raise first_part_missing(missing, volume.path)
    if plan.steps:
        coming = [0 if landed[step.map.header.image_id] else step.map.header.image_blocks for step in plan.steps]
        if not (blank or standing is not None):
            coming = coming[:1]  # what the first replaces makes room for others
        refuse_misfit(destination, [step.map for step in plan.steps], relocate, coming)
    return plan, missing


def _here(volume: LiveVolume, stream: StreamMap) -> Plane:
    """Return which blocks of an image a volume has: of an interrupted receive, or what the stream takes as lent."""
    found = landed_of(volume, stream.header.image_id, stream.image)
    if stream.header.is_lent:
        return combine([found, combine([stream.image], minus=stream.following)])
    if stream.header.carried_id == NO_ID:
        return found
    before = landed_of(volume, stream.header.carried_id, stream.image)
    return combine([found, combine([before], within=stream.image)])


def _prove(plan: Plan, keys: Sequence[Key], bases: dict[bytes, Plane], landed: dict[bytes, Plane]) -> int:
    """Hold the planes of what applies against each other; return how many blocks of the last image are missing.

    Raises
    ------
    StreamMismatchError : a snapshot would not be whole. RefusedError : two snapshots that come have one name.
    """
    _refuse_equal_names(plan.steps)
    missing = 0
    for i, step in enumerate(plan.steps):
        image = step.map.image
        lacking = combine([image], minus=combine([*(m.map.following for m in step.members), *_of(step, landed)]))
        if lacking and i < len(plan.steps) - 1:
            raise StreamMismatchError(
                f"{len(lacking)} blocks of {step.map.top.name} are in none of its parts that are named: {step.names}",
                "name all parts: what builds on it can be received when they are there",
            )
        missing = len(lacking)
    whole = plan.steps[:-1] if missing else plan.steps
    # what an interrupted receive has is in no stream: its landing proves that image
    proved = itertools.takewhile(lambda step: not _of(step, landed), whole)
    streams = [member.source for step in proved for member in step.members]
    proof = prove_chain(streams, keys, bases) if streams else None
    if proof is not None and proof.problems:
        raise StreamMismatchError(
            f"the chain is not whole: {proof.problems[0]}", "`blockplane stream verify` says more"
        )
    return missing


def _of(step: Step, landed: dict[bytes, Plane]) -> list[Plane]:
    plane = landed.get(step.map.header.image_id)
    return [plane] if plane is not None else []


def _refuse_equal_names(steps: Sequence[Step]) -> None:
    seen: dict[str, bytes] = {}
    for step in steps:
        for record in step.map.arriving():
            if seen.setdefault(record.name, record.id) != record.id:
                raise RefusedError(
                    f"two of the streams bring a snapshot {record.name}, and they are different ones",
                    "receive up to the first of them, rename it, and receive the rest",
                )


def _apply(
    plan: Plan, destination: object, keys: Sequence[Key], discard: bool, progress: Progress
) -> list[ReceiveReport]:
    """Receive each stream; what went before one that fails stays."""
    assert isinstance(destination, VolumeDestination)
    reports: list[ReceiveReport] = []
    for i, step in enumerate(plan.steps):
        for member in step.members:
            with _naming(reports, member.name), closing(open_input(member.source)) as source, blaming(source):
                reader = StreamReader(source, keys)
                stream = reader.read_map()
                reports.append(receive_into(reader, stream, destination, discard and i == 0, progress))
    return reports


@contextmanager
def _naming(before: Sequence[ReceiveReport], name: str) -> Iterator[None]:
    """Let an error say which stream it is of, and what was received before it."""
    try:
        yield
    except BlockplaneError as error:
        if name not in error.message:
            error.message = f"{name}: {error.message}"
        done = [report.top for report in before if report.arrived]
        if done:
            more = f"{', '.join(done)} came before it and stays"
            error.hint = f"{error.hint}; {more}" if error.hint else more
        error.args = (error.message,)
        raise


def _report(
    plan: Plan, reports: Sequence[ReceiveReport], started: float, missing: int, *, dry_run: bool = False
) -> ChainReport:
    def names(steps: Sequence[Step]) -> tuple[str, ...]:
        return tuple(member.name for step in steps for member in step.members)

    every = (plan.steps, plan.there, plan.older)
    whole = plan.steps[:-1] if missing else plan.steps
    arrives = dict.fromkeys(record.name for step in whole for record in step.map.arriving())
    n_blocks = sum(member.map.header.following_blocks for step in plan.steps for member in step.members)
    return ChainReport(
        tuple(reports), names(plan.steps), names(plan.there), names(plan.older), tuple(arrives), n_blocks,
        time.monotonic() - started, missing,
        tuple(m.name for its in every for step in its for m in step.members if not m.map.header.is_sealed),
        _planned_one(plan, missing) if dry_run else None,
    )  # fmt: skip


def _planned_one(plan: Plan, missing: int) -> ReceiveReport | None:
    """Return what the report on one stream alone would be; None: there are several, or it is of an older state."""
    coming, there = ([member.map for step in steps for member in step.members] for steps in (plan.steps, plan.there))
    if len(coming) + len(there) != 1 or plan.older:
        return None
    return report_of((coming + there)[0], 0, 0.0, missing, already_there=bool(there))
