"""F1 and F2: a power cut at any write of small stories leaves exactly the old state or the new one."""

from __future__ import annotations

import time
from unittest import mock

import pytest

from blockplane.model import BlockplaneError
from blockplane.volume.openband import OpenBand
from blockplane.volume.placer import Placer
from blockplane.volume.rootslots import slots_of
from faults.crash import CrashState, Plan, crash_states
from faults.explore import Played, Stage, Tally, explore, judge
from faults.inline import inline_workers
from faults.recording import MemoryDisk, Recorder, Write
from faults.stories import SHAPES, STORIES, FilesStory, NearlyFullStory, PressureStory
from faults.world import geometry_of, make_volume, open_volume, raw_blocks

#: States that a story opens at least in the CI run; threads order the writes of different disks a little otherwise.
LEAST_STATES = {
    "files": 1100,
    "snapshots": 900,
    "rollback": 290,
    "shadows": 580,
    "pressure": 320,
    "marks": 310,
    "full": 550,
    "increment": 240,
    "interrupted": 540,
    "carried": 290,
    "lent": 190,
    "copy": 130,
    "nearly full": 400,
}
#: The deep run repeats every story in so many variations, with more torn writes and subsets.
DEEP_VARIATIONS = 14
#: Stories that write beside live blocks: a lost disk on top of the cut would need the log in some of their states.
LOGGED = {"full", "increment", "interrupted", "carried", "lent", "copy", "nearly full"}
#: Of these stories the CI run opens each n-th state.
EACH = {
    "rollback": 5, "shadows": 3, "pressure": 5, "marks": 5, "increment": 3, "interrupted": 2, "carried": 6, "lent": 8,
    "copy": 3, "nearly full": 3,
}  # fmt: skip
CI_PLAN = Plan(n_random=20, max_pairs=30, n_torn=2)


def deep_plan(seed: int) -> Plan:
    return Plan(seed=seed, n_random=200, max_pairs=1000, n_torn=7)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variation" in metafunc.fixturenames:
        deep = metafunc.config.getoption("--deep")
        number, n_parts = map(int, metafunc.config.getoption("--part").split("/"))
        cases = [(story, n) for n in range(DEEP_VARIATIONS if deep else 1) for story in STORIES]
        chosen = [case for at, case in enumerate(cases) if at % n_parts == number - 1]
        metafunc.parametrize(("story", "variation"), chosen, ids=[f"{story.name}-{n}" for story, n in chosen])


def tell(record_property, what: str, tally: Tally, seconds: float) -> None:
    line = f"crash explorer, {what}: {tally}, {tally.n_states / max(seconds, 1e-9):.0f} states/s"
    print(line)
    record_property("summary", line)


def test_a_cut_at_any_write(story, variation, is_deep, record_property):
    stage = Stage.prepare(story(variation))
    played = stage.play()
    started = time.perf_counter()
    each = 1 if is_deep else EACH.get(story.name, 1)
    plan = deep_plan(variation) if is_deep else CI_PLAN
    tally = explore(played, plan, stage.models, part=lambda n: n % each == 0)
    tell(record_property, f"{story.name} {variation}", tally, time.perf_counter() - started)
    assert tally.violations == []
    assert min(tally.n_old, tally.n_new) > 0
    if not is_deep:
        assert tally.n_states >= LEAST_STATES[story.name]
        assert (tally.n_logged > 0) == (story.name in LOGGED)


def test_the_ci_run_opens_five_thousand_states():
    assert sorted(LEAST_STATES) == sorted(story.name for story in STORIES)
    assert sum(LEAST_STATES.values()) >= 5000


class ShortStory(FilesStory):
    """One consistency point."""

    def act(self, volume, client):
        client.write(1, 0, [1])
        volume.sync()


@pytest.mark.parametrize("half", [0, 1])
def test_any_subset_of_the_sectors_of_a_root_record(half, record_property):
    """256 of 256 for each of the two copies, of the record that flips to the new state."""
    stage = Stage.prepare(ShortStory(0))
    with inline_workers():  # disk after disk: the first copy of the new record is on disk 0
        played = stage.play()
    slot = slots_of(played.recorder.disks[0])[half]
    plan = Plan(n_torn=1, n_random=0, max_pairs=0, sectors_of=lambda disk, block: disk == 0 and block == slot)
    log = played.recorder.log
    last = max(n for n, entry in enumerate(log) if isinstance(entry, Write) and (entry.disk, entry.block) == (0, slot))

    subsets, tally = set(), Tally()
    started = time.perf_counter()
    for state in crash_states(played.recorder, plan):
        if state.position != last or f"block {slot} of disk 0 torn sectors" not in state.description:
            continue
        which = judge(state.disks, played.points, len(state.marks), stage.models)
        subsets.add(state.description.rsplit(" ", 1)[1])
        tally.n_states += 1
        tally.n_old += which == len(state.marks)
        tally.n_new += which > len(state.marks)
    assert len(subsets) == 256
    tell(record_property, f"root record, half {half + 1}", tally, time.perf_counter() - started)
    # half two comes when every disk has the new record in half one: no damage to it brings the old state back
    assert tally.n_old > 0 if half == 0 else tally.n_old == 0


def test_any_split_of_any_write_with_any_rest(is_deep, record_property):
    """7 split points, and behind each the old bytes, zeros and noise: every one of one consistency point."""
    stage = Stage.prepare(ShortStory(0))
    played = stage.play()
    n_splits = 0
    for seed in range(24 if is_deep else 4):
        plan = Plan(seed=seed, n_torn=7, n_random=0, max_pairs=0)
        for state in crash_states(played.recorder, plan):
            if "torn after" in state.description or "torn before" in state.description:
                judge(state.disks, played.points, len(state.marks), stage.models)
                n_splits += 1
    record_property("summary", f"torn writes: {n_splits} states opened, 0 violations")
    assert n_splits > 400


def crash_in_recovery(played: Played, stage: Stage, state: CrashState, most: int) -> int:
    """Crash again at any write of what opening the crashed disks does; return how many states that made."""
    recorder = Recorder()
    for at, disk in enumerate(state.disks):
        recorder.disk(raw_blocks(stage.story.geometry, at), disk.contents())
    recorder.start()
    with inline_workers():
        open_volume(recorder.disks).abandon()
    n_states = 0
    for second in crash_states(recorder, Plan(n_random=4, max_pairs=4, n_torn=1)):
        if n_states == most:
            break
        judge(second.disks, played.points, len(state.marks), stage.models)
        n_states += 1
    return n_states


@pytest.mark.parametrize("story", [FilesStory, NearlyFullStory], ids=lambda story: story.name)
def test_a_second_cut_while_the_first_is_mended(story, is_deep, record_property):
    stage = Stage.prepare(story(0))
    played = stage.play()
    n_states = 0
    for n, state in enumerate(crash_states(played.recorder, Plan(n_random=2, max_pairs=2, n_torn=0))):
        if is_deep or n % 60 == 30:
            n_states += crash_in_recovery(played, stage, state, 200 if is_deep else 12)
    record_property("summary", f"second cuts while mending, {story.name}: {n_states} states opened, 0 violations")
    assert n_states > 80


def test_a_cut_while_a_volume_is_made():
    """There is no volume yet, or an empty one that works."""
    geometry = geometry_of(2, 1, 64)
    recorder = Recorder()
    for disk in range(3):
        recorder.disk(raw_blocks(geometry, disk))
    with inline_workers():
        make_volume(geometry, recorder.disks).close()
    outcomes = {"none": 0, "empty": 0}
    for state in crash_states(recorder, Plan(n_random=10, max_pairs=10, n_torn=1)):
        try:
            with inline_workers():
                volume = open_volume(state.disks)
        except BlockplaneError:
            outcomes["none"] += 1
            continue
        assert volume.snapshots == []
        assert volume.active.root.n_inodes == 0
        volume.active.is_dirty = True
        volume.close()
        outcomes["empty"] += 1
    assert min(outcomes.values()) > 10


def test_memory_disks_forget_nothing_by_themselves():
    """The judge's own disks: what is written is there, and the base is not touched."""
    base = {3: b"\1" * 4096}
    disk = MemoryDisk("d", 10, base)
    disk.write(3, b"\2" * 4096)
    assert disk.block(3) == b"\2" * 4096
    assert base[3] == b"\1" * 4096


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_pressure_story_makes_shadows_by_policy(shape):
    """After a point that left too little, and for what lacked room; the one that is held stays until it is not."""
    stage = Stage.prepare(PressureStory(shape))
    played = stage.play()
    assert played.error is None
    counts = [len(point.shadows) for point in played.points]
    assert counts[0] == 0
    assert max(counts) >= 2
    held = [point for point in played.points if "b" in point.shadows]
    assert all("a" in point.shadows for point in held)


@pytest.mark.parametrize("shape", range(3))
def test_the_nearly_full_story_writes_beside_live_blocks(shape):
    """It is the story in which an intent record and verified parity count: it must not run in whole stripes only."""
    opened = []
    original = Placer._next_partial

    def counted(placer: Placer, backward: bool) -> OpenBand:
        opened.append(backward)
        return original(placer, backward)

    stage = Stage.prepare(NearlyFullStory(shape))
    with mock.patch.object(Placer, "_next_partial", counted):
        assert stage.play().error is None
    assert len(opened) > 0
