"""Crash exploration of a volume: stories that change one, and the verdict on what opens after a cut at any moment.

A story is recorded once. Every state its disks may be left in is opened; it must be exactly one of the two consistency
points between which the cut came, in every file of the live state and of every snapshot, and must go on working.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from blockplane.disks.disk import FSINFO_HEAD_BLOCK, fsinfo_tail_block
from blockplane.disks.geometry import Geometry
from blockplane.model import BlockplaneError
from blockplane.volume import Volume
from blockplane.volume.check import check
from blockplane.volume.codec import Pointer
from faults.crash import CrashState, Plan, crash_states
from faults.degraded import Found
from faults.inline import inline_workers
from faults.recording import Blocks, MemoryDisk, Recorder, RecordingDisk
from faults.world import (
    FileClient,
    Files,
    make_volume,
    memory_disks,
    open_volume,
    present,
    raw_blocks,
    read_files,
)

Models = dict[Pointer, Files]


class ViolationError(AssertionError):
    """A crash or a fault left something that is neither the old nor the new state."""


@dataclass(frozen=True)
class Point:
    """A durable consistency point: its roots, what it holds, and how many bits its shadows have."""

    state: Pointer
    local: Pointer
    files: Files
    snapshots: dict[str, Files]
    shadows: dict[str, int] = field(default_factory=dict)


class Watch:
    """Notes each consistency point of a volume as it becomes durable, without reading a block."""

    def __init__(self, models: Models | None = None, recorder: Recorder | None = None) -> None:
        self.models: Models = models if models is not None else {}
        self.recorder = recorder
        self.points: list[Point] = []
        self.client: FileClient | None = None

    def start(self, volume: Volume) -> FileClient:
        """Follow an open volume; its present state is the first point."""
        self.client = FileClient(volume, self.models)
        self.note(volume)
        original = volume._pass_on

        def passed() -> None:
            original()
            self.note(volume)
            if self.recorder is not None:
                self.recorder.mark(len(self.points) - 1)

        volume._pass_on = passed  # type: ignore[method-assign]
        return self.client

    def note(self, volume: Volume) -> None:
        assert self.client is not None
        files = self.models.setdefault(volume.info.state, copy.deepcopy(present(self.client.files)))
        snapshots = {entry.record.name: self.models[entry.record.root] for entry in volume.local.regular()}
        shadows = {entry.record.name: entry.n_left for entry in volume.local.shadows.entries()}
        self.points.append(Point(volume.info.state, volume.info.local, files, snapshots, shadows))


class Story(Protocol):
    """What happens to a volume. `prepare` runs once, unrecorded; `act` is what is cut short."""

    name: str
    geometry: Geometry

    def prepare(self, volume: Volume, client: FileClient) -> None: ...

    def act(self, volume: Volume, client: FileClient) -> None: ...


@dataclass
class Stage:
    """The disks after a story's `prepare`, and what the states on them hold."""

    story: Story
    contents: list[Blocks]
    models: Models

    @classmethod
    def prepare(cls, story: Story) -> Stage:
        models: Models = {}
        disks = memory_disks(story.geometry)
        volume = make_volume(story.geometry, disks)
        client = Watch(models).start(volume)
        story.prepare(volume, client)
        volume.close()
        return cls(story, [disk.contents() for disk in disks if isinstance(disk, MemoryDisk)], models)

    def play(self, arm: Callable[[Recorder], None] = lambda recorder: None) -> Played:
        """Run `act` on fresh recording disks; `arm` orders faults after opening. An error ends it, and is kept."""
        recorder = Recorder()
        for disk, contents in enumerate(self.contents):
            recorder.disk(raw_blocks(self.story.geometry, disk), contents)
        volume = open_volume(recorder.disks)
        watch = Watch(self.models, recorder)
        client = watch.start(volume)
        recorder.start()
        played = Played(recorder, watch)
        arm(recorder)
        try:
            self.story.act(volume, client)
        except BlockplaneError as error:
            played.error = error
        finally:
            volume.abandon()
            recorder.faults.clear()
        return played


@dataclass
class Played:
    """One run of a story."""

    recorder: Recorder
    watch: Watch
    error: BlockplaneError | None = None

    @property
    def points(self) -> list[Point]:
        return self.watch.points


@dataclass
class Tally:
    """What an exploration opened and found."""

    n_states: int = 0
    n_old: int = 0
    n_new: int = 0
    #: stripes that the loss of a disk would have needed the log for, over all states
    n_logged: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.n_states} states opened ({self.n_old} old, {self.n_new} new), {len(self.violations)} violations, "
            f"{self.n_logged} stripes needed the log" + "".join(f"\n  {text}" for text in self.violations[:5])
        )


def judge(disks: list[MemoryDisk], points: list[Point], first: int, models: Models, tally: Tally | None = None) -> int:
    """Open disks and return which of points first and first + 1 they hold.

    Raises
    ------
    ViolationError: neither; or it is not whole, would not survive a disk lost in the cut, or does not go on working.
    """
    found = Found(disks)
    try:
        with inline_workers():
            volume = open_volume(disks)
    except BlockplaneError as error:
        raise ViolationError(f"does not open: {error}") from error
    try:
        which = _which(volume, points, first)
        require_equal(volume, points[which])
        unexplained, n_logged = found.unexplained(volume)
        if unexplained:
            raise ViolationError(f"{unexplained[:3]}")
        if tally is not None:
            tally.n_logged += n_logged
        _go_on(volume, points[which], models)
        return which
    except BlockplaneError as error:
        raise ViolationError(f"does not go on: {type(error).__name__}: {error}") from error
    finally:
        volume.abandon()


def _which(volume: Volume, points: list[Point], first: int) -> int:
    found = (volume.info.state, volume.info.local)
    # the newer one first: forced commits may repeat an older root
    for which in range(min(first + 1, len(points) - 1), first - 1, -1):
        if (points[which].state, points[which].local) == found:
            return which
    older = [i for i, point in enumerate(points) if (point.state, point.local) == found]
    raise ViolationError(
        f"neither point {first} nor the next: {'point ' + str(older[-1]) if older else 'unknown roots'}"
    )


def require_equal(volume: Volume, point: Point) -> None:
    shadows = {snapshot.name: snapshot.n_blocks for snapshot in volume.snapshots if snapshot.shadowed_ns}
    if shadows != point.shadows:
        raise ViolationError(f"shadows have {shadows} blocks left instead of {point.shadows}")
    regular = [snapshot for snapshot in volume.snapshots if not snapshot.shadowed_ns]
    names = [snapshot.name for snapshot in regular]
    if sorted(names) != sorted(point.snapshots):
        raise ViolationError(f"snapshots {names} instead of {list(point.snapshots)}")
    if read_files(volume.committed) != point.files:
        raise ViolationError("the live state differs")
    for snapshot in regular:
        if read_files(snapshot.state) != point.snapshots[snapshot.name]:
            raise ViolationError(f"snapshot {snapshot.name} differs")
    problems = check(volume).problems
    if problems:
        raise ViolationError(f"check: {problems[:3]}")


def _go_on(volume: Volume, point: Point, models: Models) -> None:
    """Write and commit; nothing else may change."""
    client = FileClient(volume, models)
    inode = max(client.files, default=1)
    with volume.dipping():
        client.edit(inode, 0, 4711)
        volume.commit()  # not `sync`: a policy would act
    expected = {**point.files, inode: {**point.files.get(inode, {}), 0: 4711}}
    left = {snapshot.name: snapshot.n_blocks for snapshot in volume.snapshots if snapshot.shadowed_ns}
    if any(n_left > point.shadows[name] for name, n_left in left.items()):
        raise ViolationError(f"a shadow has more blocks left than before: {left} after {point.shadows}")
    require_equal(volume, Point(volume.info.state, volume.info.local, expected, point.snapshots, left))


def explore(
    played: Played,
    plan: Plan,
    models: Models,
    part: Callable[[int], bool] = lambda n: True,
    most: int | None = None,
    enough: int | None = None,
) -> Tally:
    """Open every state of a recorded run that the plan names and the part chooses; at most so many, or violations."""
    assert played.error is None
    tally = Tally()
    for n, state in enumerate(crash_states(played.recorder, plan)):
        if not part(n):
            continue
        if tally.n_states == most or len(tally.violations) == enough:
            break
        tally.n_states += 1
        first = len(state.marks)
        try:
            which = judge(state.disks, played.points, first, models, tally)
        except ViolationError as violation:
            tally.violations.append(f"{state.description}: {violation}")
            continue
        tally.n_old += which == first
        tally.n_new += which > first
    return tally


def fsinfo_slots(disk: RecordingDisk | MemoryDisk) -> tuple[int, int]:
    return FSINFO_HEAD_BLOCK, fsinfo_tail_block(disk.n_blocks)


def crash_iter(played: Played, plan: Plan) -> Iterator[CrashState]:
    return crash_states(played.recorder, plan)
