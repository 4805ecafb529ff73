"""An error in the middle of a change, and a process that goes on: closing the volume commits nothing half done.

Every change is cut short at a read, or by an interrupt at any call; then the volume is closed as if nothing were. What
opens is whole, with the snapshots of before, and what is written from then on takes nothing from them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from blockplane.image.saved import delete, save
from blockplane.model import BlockplaneError, NoSpaceError
from blockplane.volume import PressurePolicy, Volume
from blockplane.volume.emptying import Emptying
from blockplane.volume.settling import Settling
from faults.explore import Stage, Watch
from faults.inline import inline_workers
from faults.recording import MemoryDisk, Recorder
from faults.stories import STORIES
from faults.world import FileClient, Files, geometry_of, open_volume, raw_blocks, read_files, revived, verdict


@pytest.fixture(autouse=True)
def _inline() -> Iterator[None]:
    """The Nth operation is the same one in every run."""
    with inline_workers():
        yield


class ChangesStory:
    """Everything that changes what a volume knows of snapshots; no file is written meanwhile."""

    name = "changes"
    geometry = geometry_of(2, 1, 256)

    def prepare(self, volume: Volume, client: FileClient) -> None:
        for at, name in enumerate(("a", "b", "c", "d")):
            client.write(1, 3 * at, range(100 * at, 100 * at + 20))
            client.write(2 + at, 0, range(50, 60))
            volume.snapshot(name, mark=name == "b")
        client.remove(3)
        client.write(1, 0, range(900, 910))
        volume.shadow_snapshot("a")
        volume.hold_snapshot("c", "somebody")
        volume.sync()

    def act(self, volume: Volume, client: FileClient) -> None:
        volume.rollback("c", keep_as="kept")
        volume.rollback("kept", drop_changes=True)
        volume.snapshot("e", mark=True)
        volume.rename_snapshot("b", "first")
        volume.hold_snapshot("d", "somebody")
        volume.mark("c")
        volume.move_pointer("now", "first")
        volume.delete_snapshot("d", defer=True)
        volume.destinations.begin("far", "e")
        volume.destinations.succeed("far")
        volume.release_snapshot("d", "somebody")
        volume.delete_pointer("now")
        volume.shadow_snapshot("first")
        save(volume, "image", "e & alloc(c)")
        volume.make_master("e")
        volume.set_pressure(PressurePolicy("1%"))
        volume.unmark("c")
        volume.rollback("e", drop_changes=True)
        delete(volume, "image")
        volume.destinations.forget("far")
        volume.delete_snapshot("a", "first", "kept")
        volume.delete_pointer("master")
        volume.rollback("c", drop_later=True, drop_changes=True, defer=True)


class MoveStory:
    """A group is emptied and called off, and its blocks go home."""

    name = "moves"
    geometry = geometry_of(2, 0, 256, n_groups=2)

    def prepare(self, volume: Volume, client: FileClient) -> None:
        for step in range(4):
            for group in range(2):
                volume.sync()
                volume.placer._cursor[False] = (group, 0)
                client.write(2 * step + group, 0, range(100 * step, 100 * step + 12))
            volume.snapshot(f"s{step}", mark=step == 2)
        volume.shadow_snapshot("s1")

    def act(self, volume: Volume, client: FileClient) -> None:
        volume.commit(clean=True)
        volume.close_group(1)
        emptying = Emptying(volume, volume.geometry.groups[1])
        while emptying.step(30):
            pass
        volume.cancel_shrink()
        for _ in Settling(volume).steps(30):
            pass


class Cut:
    """One run of a story, cut short; then the volume is closed.

    Attributes
    ----------
    points : the durable consistency points until then. stopped_at : why the volume had stopped then; empty: it had not.
    """

    def __init__(self, stage: Stage, arm: Callable[[Recorder], object], interrupt: Interrupt) -> None:
        recorder = Recorder()
        for disk, contents in enumerate(stage.contents):
            recorder.disk(raw_blocks(stage.story.geometry, disk), contents)
        volume = open_volume(recorder.disks)
        watch = Watch(stage.models, recorder)
        client = watch.start(volume)
        arm(recorder)
        self.error: BaseException | None = None
        try:
            with interrupt:
                stage.story.act(volume, client)
        except (BlockplaneError, KeyboardInterrupt) as error:
            self.error = error
        recorder.faults.clear()
        self.points, self.stopped_at = list(watch.points), volume.stopped_at
        recorder.start()
        with contextlib.suppress(BlockplaneError, AssertionError):  # a file's block that was never filled
            volume.commit(clean=True)  # not `close`: a policy would act
        self.has_written = bool(recorder.log)
        volume.abandon()
        self.disks = [MemoryDisk(disk.path, disk.n_blocks, disk.contents()) for disk in recorder.disks]


class Interrupt:
    """Ctrl-C at the Nth call of a function of `blockplane.volume`, from 1; 0: none, they are only counted."""

    def __init__(self, at: int = 0) -> None:
        self._at, self.n_calls = at, 0

    def __enter__(self) -> None:
        sys.setprofile(self._called)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/blockplane/volume/" in frame.f_code.co_filename:
            self.n_calls += 1
            if self.n_calls == self._at:
                raise KeyboardInterrupt


def snapshots_of(volume: Volume) -> dict[str, Files]:
    return {s.name: read_files(s.state) for s in volume.snapshots if not s.shadowed_ns}


def require_whole(cut: Cut, clean: Cut) -> None:
    """What was closed has the snapshots and shadows of before what was cut short, and goes on."""
    assert not (cut.stopped_at and cut.has_written), "a volume that had stopped wrote"
    n_points = len(cut.points)
    # the commit at which a volume stopped may have been durable
    allowed = (
        clean.points[n_points - 1 : n_points + bool(cut.stopped_at)] if cut.error is not None else clean.points[-1:]
    )
    found = seen_in(open_volume(cut.disks, writable=False))
    assert found in [(point.snapshots, set(point.shadows)) for point in allowed]
    volume = open_volume(cut.disks)  # what was to be deleted goes
    try:
        left = snapshots_of(volume)
        client = FileClient(volume)
        with contextlib.suppress(NoSpaceError):
            for step in range(20):  # whatever is taken for free is written to
                client.write(50 + step, 0, range(2000, 2016))
                volume.commit()
        assert snapshots_of(volume) == left
    finally:
        volume.abandon()


def seen_in(volume: Volume) -> tuple[dict[str, Files], set[str]]:
    try:
        verdict(volume)
        return snapshots_of(volume), {s.name for s in volume.snapshots if s.shadowed_ns}
    finally:
        volume.abandon()
        revived(volume.array.disks)


def some(n: int, is_deep: bool, most: int) -> range:
    return range(1, n + 1, 1 if is_deep else max(n // most, 1))


@pytest.mark.parametrize("story", [ChangesStory, MoveStory, *STORIES], ids=lambda story: story.name)
def test_a_read_that_fails_leaves_nothing_half_done(story, is_deep, record_property):
    stage = Stage.prepare(story())
    clean = Cut(stage, lambda recorder: recorder.start(), Interrupt())
    assert clean.error is None
    n_reads = stage.play().recorder.counts["read"]
    chosen = some(n_reads, is_deep, 16 if story in (ChangesStory, MoveStory) else 4)
    for nth in chosen:
        cut = Cut(stage, lambda recorder, nth=nth: recorder.fail("read", nth), Interrupt())
        require_whole(cut, clean)
    record_property("summary", f"half changes, {story.name}: {len(chosen)} of {n_reads} reads failed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("story", [ChangesStory, MoveStory], ids=lambda story: story.name)
def test_an_interrupt_leaves_nothing_half_done(story, is_deep, record_property):
    stage, calls = Stage.prepare(story()), Interrupt()
    clean = Cut(stage, lambda _: None, calls)
    n_cut = 0
    for nth in (chosen := some(calls.n_calls, is_deep, 16)):
        cut = Cut(stage, lambda _: None, Interrupt(nth))
        assert cut.error is None or isinstance(cut.error, KeyboardInterrupt)
        n_cut += cut.error is not None  # where a generator is let go of, Python passes an interrupt over
        require_whole(cut, clean)
    assert n_cut > len(chosen) * 3 // 4
    record_property("summary", f"half changes, {story.name}: interrupted at {n_cut} of {calls.n_calls} calls")
