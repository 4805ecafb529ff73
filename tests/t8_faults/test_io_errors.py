"""F8: the Nth read, write or flush fails, once or from then on; nothing is half done, no root follows a lost flush."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from blockplane.model import BlockplaneError, DiskError, VolumeDamagedError
from blockplane.volume import landed, landing_bands
from blockplane.volume.rootslots import slots_of
from faults.explore import Played, Point, Stage, ViolationError, require_equal
from faults.inline import inline_workers
from faults.recording import Fault, MemoryDisk, Recorder, Write
from faults.stories import STORIES, FilesStory, SnapshotStory
from faults.world import open_volume, raw_blocks

OPERATIONS = ["read", "write", "flush"]


@pytest.fixture(autouse=True)
def _inline(monkeypatch) -> Iterator[None]:
    """The Nth operation is the same one in every run; what receives do by time happens in none."""
    monkeypatch.setattr(landing_bands, "FLUSH_S", 1e9)
    monkeypatch.setattr(landed, "SMALL_S", 1e9)
    with inline_workers():
        yield


def root_writes(played: Played, start: int) -> list[Write]:
    slots = set(slots_of(played.recorder.disks[0]))
    entries = played.recorder.log[start:]
    return [entry for entry in entries if isinstance(entry, Write) and entry.block in slots]


def what_is_left(played: Played) -> list[MemoryDisk]:
    return [MemoryDisk(disk.path, disk.n_blocks, disk.contents()) for disk in played.recorder.disks]


def judge_contents(disks: list[MemoryDisk], allowed: list[Point]) -> None:
    """The disks hold one of the points, by content: roots differ from run to run."""
    volume = open_volume(disks)
    try:
        errors = []
        for point in allowed:
            try:
                require_equal(volume, point)
                break
            except ViolationError as error:
                errors.append(str(error))
        else:
            raise ViolationError(f"neither the old nor the new state: {errors}")
        volume.active.is_dirty = True
        volume.commit()  # not `sync`: a policy would act
        left = {snapshot.name: snapshot.n_blocks for snapshot in volume.snapshots if snapshot.shadowed_ns}
        assert all(n_left <= point.shadows[name] for name, n_left in left.items())
        require_equal(volume, replace(point, shadows=left))
    finally:
        volume.abandon()


def run_with_fault(stage: Stage, operation: str, nth: int, persistent: bool, clean: Played) -> Fault:
    """One run with one fault; what it leaves must be whole."""
    armed: list[Fault] = []

    def arm(recorder: Recorder) -> None:
        armed.append(recorder.fail(operation, nth, persistent=persistent))

    played = stage.play(arm)
    fault = armed[0]
    durable = len(played.points) - 1
    if fault.fired:
        if operation != "read":
            assert isinstance(played.error, DiskError), f"{operation} {nth} failed, and nobody said so"
        if operation == "flush":
            # the other disks' copies of the record being written may be under way; none of a later one is
            assert len({write.data for write in root_writes(played, fault.fired_at)}) == 0
    else:
        assert played.error is None
    # where a failed read could be done without, there may be more points than without it; the last is the same
    allowed = clean.points[durable : durable + 2] if played.error is not None else clean.points[-1:]
    judge_contents(what_is_left(played), allowed)
    return fault


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_the_nth_operation_fails(story, operation, persistent, is_deep):
    stage = Stage.prepare(story(0))
    clean = stage.play()
    assert clean.error is None
    n_operations = clean.recorder.counts[operation]
    # every one in the deep run; some 8 in each case of the CI run, the last and the one after the last among them
    stride = 1 if is_deep else max(n_operations // 8, 1)
    chosen = [*range(1, n_operations, stride), n_operations, n_operations + 1]
    fired = [nth for nth in chosen if run_with_fault(stage, operation, nth, persistent, clean).fired]
    print(f"I/O errors, {story.name}, {operation}, persistent {persistent}: {len(fired)} of {n_operations}")
    assert fired == chosen[:-1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_short_stories_fails_once(operation, record_property):
    """Until nothing fires."""
    for story in (FilesStory, SnapshotStory):
        stage = Stage.prepare(story(2))
        clean = stage.play()
        nth = 1
        while run_with_fault(stage, operation, nth, False, clean).fired:
            nth += 1
        assert nth - 1 == clean.recorder.counts[operation]
        record_property("summary", f"I/O errors, {story.name} on one disk, {operation}: {nth - 1} of {nth - 1} points")


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_opening_with_an_error_refuses_or_opens_the_right_state(operation, persistent):
    stage = Stage.prepare(FilesStory(0))
    clean = stage.play()  # dies without a clean end: opening has parity to mend and records to write
    outcomes = {"refused": 0, "opened": 0}
    nth, fired = 0, True
    while fired:
        nth += 1
        recorder = Recorder()
        for at, disk in enumerate(what_is_left(clean)):
            recorder.disk(raw_blocks(stage.story.geometry, at), disk.contents())
        fault = recorder.fail(operation, nth, persistent=persistent)
        try:
            volume = open_volume(recorder.disks)
            require_equal(volume, clean.points[-1])
            volume.abandon()
            outcomes["opened"] += 1
        except (BlockplaneError, ViolationError):
            outcomes["refused"] += 1
            if not fault.fired:
                raise
        recorder.faults.clear()
        fired = bool(fault.fired)
        judge_contents([MemoryDisk(d.path, d.n_blocks, d.contents()) for d in recorder.disks], clean.points[-1:])
    assert outcomes["refused"] > 0
    assert outcomes["opened"] > 0


def test_a_volume_that_stopped_refuses_everything_until_it_is_opened_again():
    stage = Stage.prepare(FilesStory(0))
    recorder = Recorder()
    for disk, contents in enumerate(stage.contents):
        recorder.disk(raw_blocks(stage.story.geometry, disk), contents)
    volume = open_volume(recorder.disks)
    before = volume.info
    fault = recorder.fail("flush", 1)
    volume.active.is_dirty = True
    with pytest.raises(DiskError):
        volume.sync()
    assert fault.fired == 1
    n_log = len(recorder.log)
    for attempt in (volume.sync, lambda: volume.snapshot("x"), lambda: volume.new_tree().edit_block(0), volume.commit):
        with pytest.raises((DiskError, VolumeDamagedError)):
            attempt()
    volume.close()
    assert recorder.log[n_log:] == []
    reopened = open_volume(what_is_left(Played(recorder, None)))  # type: ignore[arg-type]
    assert (reopened.info.state, reopened.info.local) == (before.state, before.local)
