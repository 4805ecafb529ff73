"""Blocks that lie elsewhere go home: nothing that anybody sees changes, and every power cut on the way is survived."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import pytest

from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.model import ChecksumError, NoSpaceError, RefusedError
from blockplane.volume import settling, shrink
from blockplane.volume.emptying import Emptying
from blockplane.volume.grow import add_group
from blockplane.volume.landing import Landing
from blockplane.volume.settling import Settling
from faults.crash import Plan, crash_states
from faults.recording import MemoryDisk, Recorder
from faults.world import (
    FileClient,
    again,
    image_plane,
    make_volume,
    open_volume,
    present,
    raw_blocks,
    read_files,
    revived,
    verdict,
)
from faults.world import fill as fill_landing

FIRST = 65536
#: Of the groups (data disks, parity disks, blocks a disk, chunk).
SHAPES = [(2, 1, 256, 64), (1, 1, 320, 64), (3, 0, 128, 128)]


def groups_of(*shapes: tuple[int, int, int, int]) -> Geometry:
    groups, at = [], 0
    for index, (n_data, n_parity, disk_blocks, chunk) in enumerate(shapes):
        members = tuple(range(at, at + n_data + n_parity))
        groups.append(GroupRecord(index * FIRST, n_data, n_parity, chunk, disk_blocks, members))
        at += len(members)
    return Geometry(groups)


THREE = groups_of(*SHAPES)


def astray(volume, entry=None) -> dict[int, int]:
    """VBN -> place of what lies elsewhere, of a snapshot or of the live state."""
    state = volume.snapshot_state(entry) if entry is not None else volume.committed
    vbns = state.placemap.vbns()
    return dict(zip(vbns.tolist(), state.placemap.to_places(vbns).tolist(), strict=True))


def all_astray(volume) -> set[tuple[int, int]]:
    return {pair for entry in [None, *volume.local.regular()] for pair in astray(volume, entry).items()}


def n_extents(volume) -> int:
    states = [volume.committed, *volume.snapshot_states()]
    return sum(len(state.placemap.extents) for state in states)


def occupied(volume) -> dict[int, int]:
    """Place -> VBN of everything that the live state and regular snapshots have, block by block."""
    found = {}
    for state in [volume.committed, *volume.snapshot_states()]:
        extents = volume.plane(state).extents().tolist()
        vbns = np.concatenate([np.arange(start, stop) for start, stop in extents])
        found.update(zip(state.placemap.to_places(vbns).tolist(), vbns.tolist(), strict=True))
    return found


def require_unavoidable(volume) -> None:
    """Whatever still lies elsewhere has no home here, or something is there that has a right to it."""
    has_place = {p for group in volume.geometry.groups for p in range(group.first, group.stop)}
    there, shadowed = occupied(volume), [volume.local.shadowed_leaf, volume.space.spared_leaf]
    for vbn, _ in all_astray(volume):
        if vbn not in has_place:
            continue
        leaf, low = divmod(vbn, 32768)
        if any(int(leaf_of(leaf)[low >> 6]) >> (low & 63) & 1 for leaf_of in shadowed):
            continue
        # at home itself, or without a home
        assert vbn in there, f"block {vbn} could be at home"
        assert there[vbn] == vbn or there[vbn] not in has_place, f"block {vbn} could be at home"


def scatter(volume, client, rng: random.Random, n: int = 12) -> None:
    """Write in every group."""
    for group in range(len(volume.geometry.groups)):
        volume.sync()
        volume.placer._cursor[False] = (group, 0)
        client.write(rng.randrange(60), rng.randrange(5), [rng.randrange(1 << 40) for _ in range(n)])
        client.edit(rng.randrange(60), rng.randrange(30), rng.randrange(1 << 40))


def busy_volume(geometry: Geometry = THREE, seed: int = 1, disks=None):
    """A volume whose snapshots, shadow, marks and live files lie in all groups."""
    volume, rng = make_volume(geometry, disks, reserve_blocks=64), random.Random(seed)
    client = FileClient(volume)
    for step in range(4):
        scatter(volume, client, rng)
        volume.snapshot(f"s{step}", mark=step == 2)
    volume.shadow_snapshot("s1")
    return volume, client


def nothing() -> None:
    """The disks' names are durable elsewhere."""


def take_out(volume, index: int, step_blocks: int = 50) -> None:
    shrink.plan(volume, index)
    volume.commit(clean=True)
    volume.close_group(index)
    emptying = Emptying(volume, volume.geometry.groups[index])
    while emptying.step(step_blocks):
        pass
    shrink._leave(volume)
    shrink.remove_group(volume, nothing)


def put_back(volume, index: int, shape: tuple[int, int, int, int], disk=None) -> None:
    """Add a group with the numbers of one that was taken out last."""
    at = volume.geometry.n_disks
    group = GroupRecord(index * FIRST, shape[0], shape[1], shape[3], shape[2], tuple(range(at, at + sum(shape[:2]))))
    grown = Geometry([*volume.geometry.groups, group])
    make = disk or (lambda i: MemoryDisk(f"new{i}", raw_blocks(grown, i)))
    add_group(volume, group, [make(i) for i in group.disks], nothing)


def astray_volume(seed: int = 1, n_more: int = 4):
    """One whose last group was taken out and came back: its numbers lie elsewhere, and others lie at their places."""
    volume, _ = busy_volume(seed=seed)
    take_out(volume, 2)
    put_back(volume, 2, (2, 1, 256, 64))
    client, rng = FileClient(volume), random.Random(seed)
    for step in range(n_more):
        scatter(volume, client, rng)
        volume.snapshot(f"t{step}")
    volume.sync()
    return volume, client


def snapshots_of(volume) -> dict:
    return {s.name: read_files(s.state) for s in volume.snapshots if s.kind != "shadow"}


def marks_of(volume) -> dict:
    return {kind: volume.marks(kind, "s2").extents().tolist() for kind in ("alloc", "dealloc")}


def seen(volume) -> tuple:
    """What anybody sees: files, snapshots, marks, images between snapshots, what is left of shadows."""
    images = [image_plane(volume, "s3", "s2").extents().tolist(), image_plane(volume, "s3").extents().tolist()]
    shadows = [(s.name, s.n_blocks) for s in volume.snapshots if s.kind == "shadow"]
    return present(read_files(volume.committed)), snapshots_of(volume), marks_of(volume), images, shadows


@pytest.mark.parametrize(("seed", "step_blocks"), [(1, 5), (2, 1000)])
def test_everything_stays_and_the_maps_are_small(seed, step_blocks):
    volume, _ = astray_volume(seed)
    before, n_used = seen(volume), volume.used_blocks
    plan = volume.plan_settle()
    assert (plan.n_elsewhere, plan.n_extents) == (len(all_astray(volume)), n_extents(volume))
    assert plan.n_moving > 30
    assert plan.n_passing > 5
    states = {entry.record.name: volume.snapshot_state(entry) for entry in volume.local.regular()}
    report = settling.settle(volume, step_blocks=step_blocks)
    assert report.n_moved == plan.n_moving
    assert report.n_steps >= plan.n_moving // step_blocks
    assert report.n_elsewhere == len(all_astray(volume)) == plan.n_elsewhere - plan.n_moving
    assert report.n_extents == n_extents(volume) < report.n_extents_before == plan.n_extents
    assert seen(volume) == before
    assert abs(volume.used_blocks - n_used) < 30  # of the local tree alone
    require_unavoidable(volume)
    verdict(volume)
    assert volume.plan_settle().n_moving == 0
    for _ in range(3):
        volume.commit(force=True)
    fill(volume)  # where blocks were is given to others now, and who had a state at hand reads on
    assert {name: read_files(state) for name, state in states.items()} == before[1]
    verdict(volume)
    volume = again(volume)
    assert snapshots_of(volume) == before[1]
    verdict(volume)
    go_on(volume, FileClient(volume))


def fill(volume, most: int = 1 << 30) -> None:
    client = FileClient(volume)
    n_blocks = min(volume.available_blocks - 40, most)
    client.write(500, 0, range(n_blocks))
    volume.sync()


def go_on(volume, client) -> None:
    """Make room, write, snapshot, delete, roll back."""
    client.remove(500)
    volume.sync()
    volume.delete_snapshot("s0")
    for _ in range(3):
        volume.commit(force=True)
    client.write(90, 0, range(1000, 1030))
    volume.snapshot("later")
    verdict(volume)
    client.remove(90)
    volume.sync()
    volume.rollback("s3")
    verdict(volume)


def test_where_blocks_were_comes_free_and_not_too_soon():
    volume, _ = astray_volume()
    volume.snapshot("now")  # its state is that of the CP before the last
    before = occupied(volume)
    steps = Settling(volume).steps(20)
    assert next(steps) == 20
    left = np.array(sorted(before.keys() - occupied(volume).keys()), np.int64)
    assert len(left) == 20
    n_blocks = volume.available_blocks
    assert volume.space.is_busy(left).all()
    volume.space.forget()  # what is worked out anew says the same
    assert volume.space.is_busy(left).all()
    for _ in range(2):
        volume.commit(force=True)
    assert not volume.space.is_busy(left).all()
    assert volume.available_blocks > n_blocks + 10
    steps.close()


def test_places_that_are_kept_free():
    volume, client = busy_volume()
    free = np.flatnonzero(~np.unpackbits(volume.space.leaf(0).view(np.uint8), bitorder="little").view(bool))[::5]
    volume.space.keep_free(free)
    client.write(300, 0, range(volume.available_blocks - len(free) - 40))
    volume.sync()
    assert not set(free.tolist()) & occupied(volume).keys()
    volume.space.keep_free(free[:0])
    client.write(301, 0, range(volume.available_blocks - 40))
    volume.sync()
    assert set(free.tolist()) & occupied(volume).keys()
    verdict(volume)


def test_nothing_in_the_way_and_the_plan_is_exact():
    volume, _ = busy_volume()
    take_out(volume, 2)
    put_back(volume, 2, SHAPES[2])
    plan = volume.plan_settle()
    assert plan.n_moving == plan.n_elsewhere > 30
    assert (plan.n_passing, plan.n_taken, plan.n_no_place, plan.n_extents_after) == (0, 0, 0, 0)
    report = settling.settle(volume)
    assert (report.n_elsewhere, report.n_extents) == (0, 0)
    assert volume.committed.placemap.is_empty
    verdict(volume)


def test_a_smaller_volume_that_grows_lets_all_go_home():
    """A receive that relocated laid blocks in a row: at most homes others lie, and some have none until later."""
    source, rng = make_volume(groups_of((2, 1, 512, 64), (2, 1, 256, 64)), reserve_blocks=64), random.Random(3)
    client = FileClient(source)
    for step in range(6):
        scatter(source, client, rng, 60)
        source.snapshot(f"s{step}")
    files, image = read_files(source.get_snapshot("s5").state), image_plane(source, "s5")
    small = make_volume(groups_of((2, 1, 512, 64)), reserve_blocks=48)
    landing = Landing(small, image, relocates=True)
    fill_landing(landing, source, "s5", image, reverse=True)
    landing.commit([source.get_snapshot("s5").record])
    plan = small.plan_settle()
    assert min(plan.n_no_place, plan.n_passing, plan.n_taken) > 10
    assert settling.settle(small, step_blocks=40).n_moved == plan.n_moving
    assert read_files(small.get_snapshot("s5").state) == files
    assert small.plan_settle().n_moving == 0
    verdict(small)
    require_unavoidable(small)
    put_back(small, 1, (2, 1, 256, 64))
    settling.settle(small, step_blocks=40)
    require_unavoidable(small)
    small = again(small)
    assert n_extents(small) < plan.n_extents // 4
    assert read_files(small.get_snapshot("s5").state) == files
    verdict(small)


def test_what_is_read_stays_where_it_is_until_the_reader_has_gone():
    volume, _ = astray_volume()
    name = "s3"
    snapshot = volume.get_snapshot(name)
    with volume.pin(snapshot.record.id):
        places = astray(volume, snapshot.entry)
        assert places
        plan = volume.plan_settle()
        assert 0 < plan.n_read <= len(places)
        volume.settle()
        assert astray(volume, snapshot.entry) == places
    assert volume.plan_settle().n_moving == plan.n_read > 0
    volume.settle()
    assert len(astray(volume, snapshot.entry)) < len(places)
    require_unavoidable(volume)
    verdict(volume)


def test_what_a_shadow_means_is_not_overwritten():
    """The blocks of a snapshot lie elsewhere; at home there is what a shadow alone has left."""
    volume, _ = astray_volume(n_more=6)
    rng = random.Random(5)
    client = FileClient(volume)
    for inode in sorted(client.files):
        client.edit(inode, 0, rng.randrange(1 << 40))
    volume.snapshot("newest")
    for name in ("t0", "t1", "t2", "t3", "t4"):
        volume.shadow_snapshot(name)
    for _ in range(3):
        volume.commit(force=True)
    left = {s.name: s.plane.extents().tolist() for s in volume.snapshots if s.kind == "shadow"}
    volume.settle()
    assert {s.name: s.plane.extents().tolist() for s in volume.snapshots if s.kind == "shadow"} == left
    verdict(volume)


def test_a_damaged_block_stays_where_it_is_and_what_moved_stays_moved():
    volume, client = astray_volume()
    before = snapshots_of(volume)
    _, place = next(pair for pair in sorted(all_astray(volume)) if pair[0] < volume.geometry.n_blocks)
    disk, dbn = volume.geometry.locate(place, place + 1)
    group = volume.geometry.groups[volume.geometry.group_of(place)]
    members = [volume.array.disks[each] for each in (disk, *group.disks[group.n_data :])]
    kept = [member.block(HEAD_BLOCKS + dbn) for member in members]
    for member in members:  # and what it could be worked out from
        member.write(HEAD_BLOCKS + dbn, b"\xa5" * 4096)
    with pytest.raises(ChecksumError, match=f"block at place {place} .* is not moved"):
        volume.settle()
    client.write(400, 0, range(10))
    volume.sync()
    free = volume.space.leaf(0).copy()
    volume.space.forget()
    assert (volume.space.leaf(0) == free).all()
    for member, data in zip(members, kept, strict=True):
        member.write(HEAD_BLOCKS + dbn, data)
    volume.settle()
    require_unavoidable(volume)
    assert snapshots_of(volume) == before
    verdict(volume)


def test_a_full_volume_says_so():
    volume, client = astray_volume(n_more=1)
    assert volume.plan_settle().n_moving > 0
    for first in range(0, 4000, 1000):
        client.write(300, first, range(volume.available_blocks - 8))
        for number in range(volume.available_blocks):
            with suppress(NoSpaceError):
                client.write(301, first + number, [number])
        for _ in range(3):
            volume.commit(force=True)
    before = snapshots_of(volume)
    with pytest.raises(NoSpaceError, match="could go home, and nothing is free"):
        volume.settle()
    assert snapshots_of(volume) == before
    volume.delete_snapshot("t0", "s0", "s2")
    for _ in range(3):
        volume.commit(force=True)
    assert volume.settle().n_moved > 0
    assert snapshots_of(volume) == {"s3": before["s3"]}
    verdict(volume)


def test_not_beside_a_receive():
    volume, _ = astray_volume(n_more=1)
    source, client = make_volume(groups_of((2, 1, 256, 64))), None
    client = FileClient(source)
    client.write(1, 0, range(9))
    source.snapshot("theirs")
    landing = volume.landing(image_plane(source, "theirs"), None)
    with pytest.raises(RefusedError, match="a receive is under way"):
        volume.settle()
    landing.abort()
    volume.settle()
    verdict(volume)


def test_random_histories(rng, is_deep, part, record_property):
    """Written, snapshotted, deleted, rolled back, groups taken out and put back; settled, in part, in between."""
    n_histories = -(-200 // part[1]) if is_deep else 6
    n_moved = n_left = 0
    for _ in range(n_histories):
        history = _History(random.Random(int(rng.integers(1 << 60))))
        for _ in range(14):
            history.step()
        history.settle()
        require_unavoidable(history.volume)
        history.require_same()
        n_moved, n_left = n_moved + history.n_moved, n_left + len(all_astray(history.volume))
    record_property("summary", f"settle: {n_histories} histories, {n_moved} blocks went home, {n_left} stay elsewhere")


class _History:
    """Random steps beside a model of what snapshots hold."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self.volume = make_volume(THREE, reserve_blocks=64)
        self.client = FileClient(self.volume)
        self.snapshots: dict[str, dict] = {}
        self.n_moved = self.n_made = 0

    def step(self) -> None:
        doing = self.random.choice(
            [self.write, self.write, self.snapshot, self.snapshot, self.delete, self.rollback, self.exchange,
             self.exchange, self.settle_in_part, self.reopen, self.shadow]
        )  # fmt: skip
        doing()
        self.volume.sync()
        self.require_same()

    def write(self) -> None:
        if self.volume.available_blocks > 150:
            scatter(self.volume, self.client, self.random, 8)
        if self.client.files:
            self.client.remove(self.random.choice(sorted(self.client.files)))

    def snapshot(self) -> None:
        if self.volume.available_blocks > 60:
            self.write()
            self.n_made += 1
            self.volume.snapshot(f"n{self.n_made}", mark=self.random.random() < 0.3)
            self.snapshots[f"n{self.n_made}"] = present(self.client.files)

    def delete(self) -> None:
        if len(self.snapshots) > 2:
            name = self.random.choice(sorted(self.snapshots))
            self.volume.delete_snapshot(name)
            del self.snapshots[name]

    def shadow(self) -> None:
        if len(self.snapshots) > 2:
            name = self.random.choice(sorted(self.snapshots))
            self.volume.shadow_snapshot(name)
            del self.snapshots[name]

    def rollback(self) -> None:
        if self.snapshots:
            self.volume.rollback(self.random.choice(sorted(self.snapshots)), drop_changes=True)

    def exchange(self) -> None:
        """Take the last group out and bring another there."""
        last = len(self.volume.geometry.groups) - 1
        if last and shrink.plan(self.volume, last).fits:
            take_out(self.volume, last)
            if self.random.random() < 0.7:
                put_back(self.volume, 2, self.random.choice(SHAPES))
        elif not last:
            put_back(self.volume, 2, self.random.choice(SHAPES))

    def settle_in_part(self) -> None:
        """Some steps; between them others write."""
        steps = Settling(self.volume)
        for number, n_moved in enumerate(steps.steps(self.random.choice([3, 20, 500]))):
            assert n_moved
            if number > self.random.randrange(6):
                break
            if self.random.random() < 0.5:
                self.write()
        self.n_moved += steps.n_moved

    def settle(self) -> None:
        if self.volume.available_blocks < 60:
            for name in sorted(self.snapshots)[:-1]:
                self.volume.delete_snapshot(name)
                del self.snapshots[name]
            for _ in range(3):
                self.volume.commit(force=True)
        plan = self.volume.plan_settle()
        report = settling.settle(self.volume, step_blocks=self.random.choice([7, 1000]))
        assert report.n_moved == plan.n_moving
        self.n_moved += report.n_moved

    def reopen(self) -> None:
        self.volume.sync()
        self.volume = again(self.volume)
        self.client = FileClient(self.volume)

    def require_same(self) -> None:
        assert read_files(self.volume.committed) == present(self.client.files)
        assert snapshots_of(self.volume) == self.snapshots
        verdict(self.volume)


def test_every_power_cut_leaves_a_volume_that_goes_on(is_deep, part, rng, record_property):
    geometry = groups_of(*SHAPES[:2])
    recorder = Recorder()
    disks = [recorder.disk(raw_blocks(geometry, i)) for i in range(geometry.n_disks)]
    volume, _ = busy_volume(geometry, disks=disks)
    left = geometry.groups[1].disks
    take_out(volume, 1)
    put_back(volume, 1, SHAPES[1], lambda i: recorder.disk(raw_blocks(geometry, i)))
    scatter(volume, FileClient(volume), random.Random(4))
    volume.snapshot("last")
    before = seen(volume)
    recorder.start()
    report = settling.settle(volume, step_blocks=12)
    assert report.n_moved > 30
    recorder.mark("settled")
    n_states, first = 0, int(rng.integers(120))
    for number, state in enumerate(crash_states(recorder, Plan(n_random=2, max_pairs=4, n_torn=1))):
        if (number % part[1] != part[0]) if is_deep else (number + first) % 120:
            continue
        disks = [disk for i, disk in enumerate(state.disks) if i not in left]
        reopened = open_volume(disks)
        n_states += 1
        assert seen(reopened) == before, state.description
        verdict(reopened)
        if "settled" in state.marks:
            assert n_extents(reopened) == report.n_extents
        settling.settle(reopened, step_blocks=40)
        assert len(all_astray(reopened)) == report.n_elsewhere, state.description
        reopened.close()
        last = open_volume(revived(disks))
        assert seen(last) == before, state.description
        verdict(last)
    assert n_states > 5
    record_property("summary", f"settle: {n_states} crash states of {report.n_steps} steps")
