"""An unclean stop and a block that went bad: parity made anew must not make the damage permanent."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest

from blockplane.disks import compute_parity
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.disks.reconstruct import missing_blocks
from blockplane.disks.stripelog import StripeLog
from blockplane.model import NoSpaceError, VolumeDamagedError
from blockplane.volume import Volume
from blockplane.volume.check import check
from blockplane.volume.livechecks import LiveChecks
from faults.crash import CrashState, Plan, crash_states
from faults.degraded import live_slots
from faults.explore import Stage, require_equal
from faults.inline import inline_workers
from faults.recording import MemoryDisk
from faults.stories import IncrementStory, NearlyFullStory, SnapshotStory, _Story
from faults.world import FileClient, make_volume, numbers_of, open_volume, root_of

PLAN = Plan(n_random=5, max_pairs=5, n_torn=1)
STORIES = [(NearlyFullStory, 0), (NearlyFullStory, 1), (IncrementStory, 0), (IncrementStory, 4), (SnapshotStory, 0)]
IDS = [f"{story.name} {n}".replace(" ", "-") for story, n in STORIES]


def chosen_states(stage: Stage, most: int) -> Iterator[tuple[CrashState, object]]:
    """Some crash states, spread over the story, each with the points it may be."""
    played = stage.play()
    assert played.error is None
    n_states = sum(1 for _ in crash_states(played.recorder, PLAN))
    step = max(n_states // most, 1)
    for n, state in enumerate(crash_states(played.recorder, PLAN)):
        if n % step == step // 2:
            yield state, played.points


def copies(disks: list[MemoryDisk]) -> list[MemoryDisk]:
    return [MemoryDisk(disk.path, disk.n_blocks, disk.contents()) for disk in disks]


@contextmanager
def opened(disks: list[MemoryDisk]) -> Iterator[Volume]:
    with inline_workers():
        volume = open_volume(disks)
        try:
            yield volume
        finally:
            volume.abandon()


def slots_at_risk(disks: list[MemoryDisk]) -> list[tuple[int, int, int, int]]:
    """(group, disk, dbn, live blocks of the stripe) of live blocks that opening reads for parity, not for itself."""
    read: set[tuple[int, int]] = set()
    original = MemoryDisk.read_plan

    def note(disk: MemoryDisk, blocks, n_blocks, *rest, **more) -> int:
        for start, count in zip(blocks.tolist(), n_blocks.tolist(), strict=True):
            if count == 1:  # trees are read a block at a time here
                read.add((by_path[disk.path], start - HEAD_BLOCKS))
        return original(disk, blocks, n_blocks, *rest, **more)

    by_path = {disk.path: n for n, disk in enumerate(disks)}
    with mock.patch.object(MemoryDisk, "read_plan", note), opened(copies(disks)) as volume:
        found = []
        for index, group in enumerate(volume.geometry.groups):
            live = live_slots(volume, index)
            for member, dbn in np.argwhere(live).tolist():
                disk = group.disks[member]
                if (disk, dbn) not in read:
                    found.append((index, disk, dbn, int(live[:, dbn].sum())))
        return found if volume.info.generation else []


def rot(disk: MemoryDisk, dbn: int) -> bytes:
    """Flip a bit; return what was there."""
    good = disk.block(HEAD_BLOCKS + dbn)
    disk.write(HEAD_BLOCKS + dbn, bytes([good[0] ^ 1]) + good[1:])
    return good


def require_point(volume: Volume, points) -> None:
    point = next(p for p in reversed(points) if (p.state, p.local) == (volume.info.state, volume.info.local))
    require_equal(volume, point)


def was_unclean(disks: list[MemoryDisk]) -> bool:
    with inline_workers():
        volume = open_volume(copies(disks), writable=False)
        volume.abandon()
    return not volume.info.clean


@pytest.mark.parametrize(("kind", "variation"), STORIES, ids=IDS)
def test_a_block_that_rots_in_the_cut_is_put_right(kind: type[_Story], variation: int, is_deep, record_property):
    rng, n_mended = random.Random(variation), 0
    for state, points in chosen_states(Stage.prepare(kind(variation)), 40 if is_deep else 12):
        at_risk = slots_at_risk(state.disks)
        if not was_unclean(state.disks):
            continue
        for _, disk, dbn, _ in rng.sample(at_risk, min(len(at_risk), 12 if is_deep else 4)):
            disks = copies(state.disks)
            good = rot(disks[disk], dbn)
            with opened(disks) as volume:
                assert volume.recovery.n_mended == 1, state.description
                assert volume.recovery.left == []
                assert ["mended: 1" in text for text in volume.warnings] == [True]
                assert disks[disk].block(HEAD_BLOCKS + dbn) == good
                require_point(volume, points)
            n_mended += 1
    record_property("summary", f"rot in an unclean stop, {kind.name}: {n_mended} of {n_mended} blocks put right")
    assert n_mended > 20


@pytest.mark.parametrize(("kind", "variation"), STORIES[:1] + STORIES[2:3], ids=[IDS[0], IDS[2]])
def test_what_nothing_explains_is_left_and_told(kind: type[_Story], variation: int):
    """Two bad blocks in a stripe of one parity disk: it opens, the stripe's parity stays, check names the blocks."""
    n_left = 0
    for state, _ in chosen_states(Stage.prepare(kind(variation)), 25):
        at_risk = slots_at_risk(state.disks)
        pairs = [(a, b) for a in at_risk for b in at_risk if a[1] < b[1] and (a[0], a[2]) == (b[0], b[2])]
        if not pairs or not was_unclean(state.disks):
            continue
        (group, first, dbn, _), (_, second, _, _) = pairs[len(pairs) // 2]
        disks = copies(state.disks)
        rot(disks[first], dbn)
        rot(disks[second], dbn)
        parity = disks[-1].block(HEAD_BLOCKS + dbn)
        with opened(disks) as volume:
            assert volume.recovery.n_left == 1
            assert ["names them: 1" in text for text in volume.warnings] == [True]
            assert f"stripe {dbn} of group {group}" in volume.recovery.left[0]
            assert disks[-1].block(HEAD_BLOCKS + dbn) == parity
            problems = check(volume).problems
            assert any("does not match its checksum" in text for text in problems)
            assert any(f"stripe {dbn} of group {group} was left" in text for text in problems)
        n_left += 1
    assert n_left > 2


def test_what_the_checks_stand_in_is_damaged_too():
    """Nothing can be verified then: parity stays as it is, and the volume opens."""
    state, _ = next(iter(chosen_states(Stage.prepare(NearlyFullStory(0)), 3)))
    before = state.disks[-1].contents()
    damage = VolumeDamagedError("bad leaf", "")
    with mock.patch.object(LiveChecks, "expected", side_effect=damage), opened(state.disks) as volume:
        assert volume.recovery.n_left > 0
        data = range(HEAD_BLOCKS, HEAD_BLOCKS + volume.geometry.groups[0].disk_blocks)
        assert all(state.disks[-1].block(n) == before.get(n, bytes(4096)) for n in data)


def test_without_the_log_a_block_in_a_torn_stripe_is_lost():
    """The test above can fail: some of what it mends needs the log."""
    stage = Stage.prepare(NearlyFullStory(2))
    with mock.patch.object(StripeLog, "protect", return_value=None):
        states = [copies(state.disks) for state, _ in chosen_states(stage, 40)]
    assert any(loses_a_block(disks) for disks in states)


def loses_a_block(disks: list[MemoryDisk]) -> bool:
    """Whether any one block of a stripe whose parity is not that of its members, gone bad, is gone for good."""
    for _, disk, dbn, _ in slots_at_risk(disks):
        if not np.bitwise_xor.reduce([np.frombuffer(d.block(HEAD_BLOCKS + dbn), np.uint8) for d in disks]).any():
            continue
        damaged = copies(disks)
        rot(damaged[disk], dbn)
        with opened(damaged) as volume:
            if volume.recovery.n_left:
                return True
    return False


@pytest.mark.parametrize("kind", [NearlyFullStory, IncrementStory], ids=lambda kind: kind.name)
def test_opened_for_reading_torn_stripes_are_told_from_wrong_parity(kind: type[_Story]):
    n_unsettled = n_wrong = 0
    for state, _ in chosen_states(Stage.prepare(kind(0)), 60):
        reports = []
        for damage in (False, True):
            disks = copies(state.disks)
            if damage:
                rot(disks[-1], slots_at_risk(disks)[0][2])
            with inline_workers():
                volume = open_volume(disks, writable=False)
                reports.append(check(volume))
                volume.abandon()
        # a copy of the root record may be torn as well, and is told
        assert not any("parity" in text for text in reports[0].problems), state.description
        n_unsettled += reports[0].n_unsettled
        n_wrong += any("the parity of stripe" in text for text in reports[1].problems)
    assert min(n_unsettled, n_wrong) > 0


def test_a_stripe_damaged_for_good_is_left_alone():
    """A volume that is nearly full goes on beside it: deleting must work."""
    story = NearlyFullStory(0)
    with inline_workers():
        volume = make_volume(story.geometry)
        client = FileClient(volume)
        story.prepare(volume, client)
        live, places = live_slots(volume, 0), volume.geometry.band_places(0, 0, 128)
        tree = volume.active.tree(root_of(volume.active, 1))  # what follows reads none of its blocks
        plain = np.isin(places, numbers_of(tree.pointers(0, tree.capacity_blocks())))
        damaged = np.flatnonzero((live.sum(axis=0) == 1) & (live & plain).any(axis=0))[::2].tolist()
        assert len(damaged) > 2
        for dbn in damaged:
            for disk in (int(live[:, dbn].argmax()), 2):
                rot(volume.array.disks[disk], dbn)
        before = [disk.block(HEAD_BLOCKS + dbn) for disk in volume.array.disks for dbn in damaged]
        client.punch(2, 5, 9)
        with volume.dipping():
            for index in range(40, 56):
                client.edit(2, index, 5000 + index)
            volume.sync()
        assert [disk.block(HEAD_BLOCKS + dbn) for disk in volume.array.disks for dbn in damaged] == before
        volume.abandon()


def test_what_finds_too_little_beside_damage_for_good_leaves_nothing_behind():
    """What is free in damaged stripes counts as free: a write that needs it fails in the middle, and only that."""
    story = NearlyFullStory(0)
    with inline_workers():
        volume = make_volume(story.geometry)
        client = FileClient(volume)
        story.prepare(volume, client)
        live, places = live_slots(volume, 0), volume.geometry.band_places(0, 0, 128)
        tree = volume.active.tree(root_of(volume.active, 1))
        plain = np.isin(places, numbers_of(tree.pointers(0, tree.capacity_blocks())))
        damaged = np.flatnonzero((live.sum(axis=0) == 1) & (live & plain).any(axis=0))[::2].tolist()
        assert len(damaged) > 2
        for dbn in damaged:
            for disk in (int(live[:, dbn].argmax()), 2):
                rot(volume.array.disks[disk], dbn)
        n_free = volume.free_blocks
        with volume.dipping():
            for n_blocks in (n_free, n_free - 1):
                with pytest.raises(NoSpaceError, match="the volume is full"):
                    client.write(7, 0, range(9000, 9000 + n_blocks))
            client.write(8, 0, [8001, 8002, 8003])
            volume.commit()
        kept = volume.committed.tree(root_of(volume.committed, 8))
        assert [kept.read_block(at).view(np.uint64)[0] for at in range(3)] == [8001, 8002, 8003]
        assert volume.free_blocks >= n_free - 8
        volume.abandon()


@pytest.mark.parametrize("which", [0, 1])
def test_a_missing_block_follows_from_p_or_from_q(which):
    rng = np.random.default_rng(which)
    data = rng.integers(0, 256, (7, 20, 4096), np.uint8)
    parity = np.empty((2, 20, 4096), np.uint8)
    compute_parity(data, parity)
    missing = rng.integers(0, 7, 20)
    right = data[missing, np.arange(20)].copy()
    data[missing, np.arange(20)] = 77
    assert (missing_blocks(data, parity[which], which, missing) == right).all()
