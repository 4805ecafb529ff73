"""A volume gives a RAID group back: what lay there moves, and every power cut on the way is survived."""

from __future__ import annotations

import errno
import os
import random

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.disks.geometry import FIRST_MULTIPLE, Geometry, GroupRecord, without
from blockplane.model import ChecksumError, NoSpaceError, RefusedError, UsageError, VolumeDamagedError, ownfiles
from blockplane.volume import shrink, space
from blockplane.volume.emptying import Emptying, n_in_group
from blockplane.volume.grow import add_group
from blockplane.volume.incoming import IncomingEntry
from blockplane.volume.landing import Landing
from faults.crash import Plan, crash_states
from faults.recording import MemoryDisk, Recorder
from faults.world import (
    FileClient,
    again,
    fill,
    image_plane,
    make_volume,
    open_volume,
    raw_blocks,
    read_files,
    revived,
    verdict,
)


def groups_of(*shapes: tuple[int, int, int, int]) -> Geometry:
    """Groups of (data disks, parity disks, blocks a disk, chunk)."""
    groups, first, at = [], 0, 0
    for n_data, n_parity, disk_blocks, chunk in shapes:
        members = tuple(range(at, at + n_data + n_parity))
        groups.append(GroupRecord(first, n_data, n_parity, chunk, disk_blocks, members))
        first = -(-groups[-1].stop // FIRST_MULTIPLE) * FIRST_MULTIPLE
        at += len(members)
    return Geometry(groups)


THREE = groups_of((2, 1, 256, 64), (1, 1, 320, 64), (3, 0, 128, 128))


def nothing() -> None:
    """The disks' names are durable elsewhere."""


def busy_volume(geometry: Geometry, seed: int = 1, disks=None):
    """A volume whose snapshots, shadow, marks and live files lie in all groups."""
    volume, rng = make_volume(geometry, disks, reserve_blocks=64), random.Random(seed)
    client = FileClient(volume)
    for step in range(5):
        for group in range(len(geometry.groups)):
            volume.sync()
            volume.placer._cursor[False] = (group, 0)
            client.write(10 * step + group, rng.randrange(5), [rng.randrange(1 << 40) for _ in range(12)])
        client.edit(0, rng.randrange(30), rng.randrange(1 << 40))
        if step:
            client.remove(10 * (step - 1) + rng.randrange(len(geometry.groups)))
        volume.snapshot(f"s{step}", mark=step == 2)
    volume.shadow_snapshot("s1")
    client.write(77, 0, range(9))
    volume.sync()
    return volume, client


def emptied(volume, index: int, step_blocks: int) -> int:
    """Close a group and empty it; return how many steps that took."""
    group, n_steps = volume.geometry.groups[index], 0
    if volume.info.leaving is None:
        volume.commit(clean=True)
        volume.close_group(index)
    emptying = Emptying(volume, group)
    while emptying.step(step_blocks):
        n_steps += 1
    assert n_in_group(volume, group)[:2] == (0, 0)
    return n_steps


def take_out(volume, index: int, step_blocks: int = 20) -> None:
    assert shrink.plan(volume, index).fits
    emptied(volume, index, step_blocks)
    shrink._leave(volume)
    shrink.remove_group(volume, nothing)


def marks_of(volume) -> dict[str, list]:
    return {kind: volume.marks(kind, "s2").extents().tolist() for kind in ("alloc", "dealloc")}


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("step_blocks", [7, 1000])
def test_everything_stays_and_the_group_is_gone(index, step_blocks):
    volume, client = busy_volume(THREE)
    files, snapshots, marks = dict(client.files), snapshot_files_of(volume), marks_of(volume)
    n_used = volume.used_blocks
    gone = THREE.groups[index]
    assert n_in_group(volume, gone)[0] > 20
    image = volume_image(volume)
    held = volume.get_snapshot("s4")
    take_out(volume, index, step_blocks)
    assert read_files(held.state) == snapshots["s4"]
    assert volume.geometry == without(THREE, index)
    assert volume.info.leaving is None
    assert volume.n_blocks == THREE.n_usable - gone.n_blocks
    assert abs(volume.used_blocks - n_used) < 30  # of the local tree alone
    assert client.files == files
    assert snapshot_files_of(volume) == snapshots
    assert marks_of(volume) == marks
    assert volume_image(volume) == image
    verdict(volume)
    volume = again(volume)
    client = FileClient(volume)
    assert client.files == files
    assert snapshot_files_of(volume) == snapshots
    verdict(volume)
    go_on(volume, client)


def snapshot_files_of(volume) -> dict:
    return {s.name: read_files(s.state) for s in volume.snapshots if s.kind != "shadow"}


def volume_image(volume) -> tuple:
    """What leaves between two snapshots by their planes and places: moving both alike changes nothing."""
    return tuple(map(tuple, image_plane(volume, "s4", "s2").extents().tolist()))


def go_on(volume, client) -> None:
    """Write, snapshot, delete, roll back."""
    client.write(90, 0, range(1000, 1030))
    volume.snapshot("later")
    volume.delete_snapshot("s0")
    verdict(volume)
    client.remove(90)
    volume.sync()
    verdict(volume)
    volume.rollback("s3")
    verdict(volume)


FIVE = groups_of((2, 1, 256, 64), (1, 1, 320, 64), (3, 0, 128, 128), (2, 0, 128, 64), (1, 0, 192, 64))


def test_no_place_is_taken_twice_where_few_leaves_are_kept(monkeypatch):
    """Places that blocks are copied to are in no tree until the step ends."""
    monkeypatch.setattr(space, "MAX_LEAVES", 2)
    volume, client = busy_volume(FIVE)
    for inode in range(100, 120):
        client.write(inode, 0, range(inode, inode + 40))
    volume.sync()
    for inode in range(100, 120, 2):
        client.punch(inode, 5, 30)
    for _ in range(3):
        volume.commit(force=True)
    files, snapshots = dict(client.files), snapshot_files_of(volume)
    take_out(volume, 0, 1000)
    volume = again(volume)
    verdict(volume)
    assert FileClient(volume).files == files
    assert snapshot_files_of(volume) == snapshots


def test_what_an_interrupted_receive_has_takes_no_place_twice(monkeypatch):
    monkeypatch.setattr(space, "MAX_LEAVES", 2)
    source = make_volume(groups_of((2, 1, 1024, 64)))
    theirs = FileClient(source)
    theirs.write(3, 0, range(5000, 6400))
    source.snapshot("theirs")
    volume = make_volume(groups_of((2, 1, 1024, 64), *[(1, 1, 640, 64)] * 4), reserve_blocks=64)
    client = FileClient(volume)
    volume.placer._cursor[False] = (1, 0)
    client.write(1, 0, range(2100))
    volume.sync()
    client.punch(1, 0, 900)  # 64 stripes together, which go first; then single ones, in the same leaves
    for index in range(900, 2100, 14):
        client.punch(1, index, index + 11)
    for _ in range(3):
        volume.commit(force=True)
    landing = landing_of(volume, source)
    fill(landing, source, "theirs", image_plane(source, "theirs"), piece=64, most=2)
    landing.suspend()
    assert shrink.plan(volume, 0).n_arriving > 1000
    take_out(volume, 0, 10000)
    verdict(volume)
    landing = landing_of(volume, source)
    fill(landing, source, "theirs", image_plane(source, "theirs"), piece=64)
    landing.commit([source.get_snapshot("theirs").record])
    assert read_files(volume.get_snapshot("theirs").state) == {3: dict(enumerate(range(5000, 6400)))}
    verdict(volume)


def test_a_group_added_where_another_was_has_its_numbers_and_not_its_blocks():
    """Names of blocks that moved are numbers of places again: new blocks there get other names."""
    volume, client = busy_volume(THREE)
    snapshots, files = snapshot_files_of(volume), dict(client.files)
    take_out(volume, 2)
    group = GroupRecord(THREE.groups[2].first, 2, 1, 64, 256, (5, 6, 7))
    grown = Geometry([*volume.geometry.groups, group])
    add_group(volume, group, [MemoryDisk(f"new{i}", raw_blocks(grown, i)) for i in group.disks], nothing)
    client = FileClient(volume)
    for step in range(8):
        volume.placer._cursor[False] = (2, 0)
        client.write(100 + step, 0, range(1000 * step, 1000 * step + 20))
        files[100 + step] = dict(enumerate(range(1000 * step, 1000 * step + 20)))
        volume.sync()
    places = volume.committed.placemap.to_places(_numbers_in(volume, 2))
    assert (places != _numbers_in(volume, 2)).any()
    verdict(volume)
    volume = again(volume)
    assert read_files(volume.committed) == files
    assert snapshot_files_of(volume) == snapshots
    take_out(volume, 2)
    assert read_files(volume.committed) == files
    verdict(volume)
    go_on(volume, FileClient(volume))


def test_a_group_that_others_cannot_take_in_is_refused_before_anything_moves():
    volume = make_volume(groups_of((2, 1, 256, 64), (2, 1, 128, 64)), reserve_blocks=32)
    client = FileClient(volume)
    client.write(1, 0, range(1, 430))
    volume.sync()
    plan = shrink.plan(volume, 0)
    assert not plan.fits
    generation = volume.info.generation
    with pytest.raises(NoSpaceError, match=rf"{plan.needed_blocks} blocks .* room for {plan.room_blocks}"):
        shrink.shrink(volume, 0)
    assert volume.info.generation == generation
    assert volume.info.leaving is None
    for index in (2, -1):
        with pytest.raises(UsageError, match="has no RAID group"):
            shrink.plan(volume, index)
    with pytest.raises(UsageError, match="one RAID group alone"):
        shrink.plan(make_volume(groups_of((2, 1, 256, 64))), 0)


def test_while_it_empties_nothing_new_goes_there_and_it_can_be_called_off():
    volume, client = busy_volume(THREE)
    volume.commit(clean=True)
    volume.close_group(1)
    emptying = Emptying(volume, THREE.groups[1])
    before = sum(n_in_group(volume, THREE.groups[1])[:2])
    assert emptying.step(10) == 10
    with pytest.raises(RefusedError, match="group 1 is being taken out"):
        shrink.plan(volume, 0)
    client.write(80, 0, range(100))
    client.remove(80)
    volume.sync()
    volume.snapshot("meanwhile")
    assert sum(n_in_group(volume, THREE.groups[1])[:2]) <= before - 10
    verdict(volume)
    volume = again(volume)
    assert volume.info.leaving == 1
    verdict(volume)
    assert shrink.cancel(volume) == 1
    assert volume.n_blocks == THREE.n_usable
    client = FileClient(volume)
    with pytest.raises(NoSpaceError):
        client.write(81, 0, range(2000))
    volume = again(volume)
    verdict(volume)
    go_on(volume, FileClient(volume))


def test_disks_that_may_be_named_no_more_are_not_used_again(tmp_path, monkeypatch):
    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    volume = bp.Volume.create(tmp_path / "v", disks=2, size="8M")
    volume.grow(disks=2, size="8M")
    bp.FileSystem(volume).write_bytes("/kept", b"k" * 5000)
    with monkeypatch.context() as patch:
        patch.setattr(ownfiles, "sync", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            volume.shrink(1)
    with pytest.raises(VolumeDamagedError, match="stopped at an error"):
        volume.cancel_shrink()
    volume.close()
    with bp.Volume.open(tmp_path / "v") as volume:
        assert len(volume.geometry.groups) == 1
        assert bp.FileSystem(volume).read_bytes("/kept") == b"k" * 5000
        assert bp.check(volume).ok


def test_volume_toml_is_made_anew_though_names_of_disks_are_in_another_order(tmp_path):
    path, toml = tmp_path / "v", tmp_path / "v" / "volume.toml"
    with bp.Volume.create(path, disks=1, size="8M") as volume:
        for _ in range(3):
            volume.grow(1, size="8M")
        for _ in range(2):
            volume.shrink(1)
        volume.grow(1, size="8M")
        bp.FileSystem(volume).write_bytes("/kept", b"k" * 5000)
    said = toml.read_bytes()
    assert [line.strip() for line in said.decode().splitlines() if "disks/" in line] == [
        '"disks/0",', '"disks/3",', '"disks/2",',
    ]  # fmt: skip
    toml.unlink()
    with bp.Volume.open(path, writable=False) as volume:
        assert bp.FileSystem(volume).read_bytes("/kept") == b"k" * 5000
        assert not toml.exists()
        volume.take_for_writing()
        assert toml.read_bytes() == said
    toml.unlink()
    with bp.Volume.open(path) as volume:
        assert volume.warnings == []
    assert toml.read_bytes() == said
    with bp.Volume.open(path) as volume:
        assert volume.shrink(1).disks == (str(path / "disks" / "3"),)
        assert bp.FileSystem(volume).read_bytes("/kept") == b"k" * 5000
        assert bp.check(volume).ok


def test_a_volume_is_opened_where_volume_toml_cannot_be_made_anew(tmp_path, monkeypatch):
    def failing(path, *args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bp.Volume.create(tmp_path / "v", disks=2, size="8M").close()
    (tmp_path / "v" / "volume.toml").unlink()
    monkeypatch.setattr("blockplane.volume.config.replace_own", failing)
    with bp.Volume.open(tmp_path / "v") as volume:
        assert ["could not be made anew" in text for text in volume.warnings] == [True]


def test_a_damaged_block_stays_where_it_is_and_what_moved_stays_moved():
    volume, client = busy_volume(THREE)
    volume.commit(clean=True)
    volume.close_group(1)
    place = int(_numbers_in(volume, 1)[3])
    disk, dbn = THREE.locate(place, place + 1)
    for each in (disk, THREE.groups[1].disks[1]):  # and what it could be worked out from
        volume.array.disks[each].write(HEAD_BLOCKS + dbn, b"\xa5" * 4096)
    emptying = Emptying(volume, THREE.groups[1])
    with pytest.raises(ChecksumError, match=f"block at place {place} .* is not moved"):
        emptying.step(1000)
    assert n_in_group(volume, THREE.groups[1])[0] > 20
    free = volume.space.leaf(0).copy()
    volume.space.forget()
    assert (volume.space.leaf(0) == free).all()
    client.write(85, 0, range(20))
    volume.sync()


def _numbers_in(volume, index):
    group, plane = volume.geometry.groups[index], volume.plane(volume.committed)
    return np.concatenate([np.arange(a, b) for a, b in plane.extents(group.first, group.stop).tolist()])


@pytest.mark.parametrize("index", [0, 1])
def test_every_power_cut_leaves_a_volume_that_goes_on(index, is_deep, part, rng, record_property):
    geometry = groups_of((2, 1, 256, 64), (1, 1, 256, 64))
    recorder = Recorder()
    disks = [recorder.disk(raw_blocks(geometry, i)) for i in range(geometry.n_disks)]
    volume, client = busy_volume(geometry, disks=disks)
    files, snapshots = dict(client.files), snapshot_files_of(volume)
    left = geometry.groups[index].disks
    recorder.start()
    emptied(volume, index, 25)
    shrink._leave(volume)
    shrink.remove_group(volume, lambda: recorder.mark("forgotten"))
    recorder.mark("removed")
    n_states = {False: 0, True: 0}
    first = int(rng.integers(40))
    for number, state in enumerate(crash_states(recorder, Plan(n_random=2, max_pairs=4, n_torn=1))):
        is_forgotten = "forgotten" in state.marks
        if number % part[1] != part[0] if is_deep else (number + first) % (6 if is_forgotten else 60):
            continue
        named = [disk for i, disk in enumerate(state.disks) if not (is_forgotten and i in left)]
        reopened = open_volume(named)
        assert (reopened.geometry != geometry) == is_forgotten, state.description
        n_states[is_forgotten] += 1
        again_client = FileClient(reopened)
        assert again_client.files == files, state.description
        assert snapshot_files_of(reopened) == snapshots, state.description
        verdict(reopened)
        if not is_forgotten:
            take_out(reopened, index, 30)
            named = [disk for i, disk in enumerate(state.disks) if i not in left]
        reopened.sync()
        reopened.close()
        last = open_volume(revived(named))
        assert last.geometry == without(geometry, index), state.description
        assert snapshot_files_of(last) == snapshots, state.description
        verdict(last)
    assert min(n_states.values()) > 3
    record_property("summary", f"shrink: {sum(n_states.values())} crash states, {n_states[True]} without the group")


def landing_of(volume, source):
    image = image_plane(source, "theirs")
    entry = IncomingEntry(
        b"L" * 16, b"I" * 16, b"S" * 16, b"T" * 16, bytes(16), len(image), 0, image.n_blocks, 0, "theirs"
    )
    return Landing(volume, image, None, entry, following=image)


def test_power_cuts_while_what_an_interrupted_receive_has_moves(is_deep, part, rng, record_property):
    geometry = groups_of((2, 1, 1024, 64), (1, 1, 2560, 64))
    source = make_volume(groups_of((2, 1, 1024, 64)))
    theirs = FileClient(source)
    theirs.write(3, 0, range(5000, 6400))
    source.snapshot("theirs")
    recorder = Recorder()
    disks = [recorder.disk(raw_blocks(geometry, i)) for i in range(geometry.n_disks)]
    volume = make_volume(geometry, disks, reserve_blocks=64)
    client = FileClient(volume)
    client.write(1, 0, range(40))
    volume.sync()
    volume.snapshot("mine")
    landing = landing_of(volume, source)
    fill(landing, source, "theirs", image_plane(source, "theirs"), piece=64, most=18)
    assert landing.suspend() > 500
    n_reserved, left = volume.n_incoming, geometry.groups[0].disks
    assert shrink.plan(volume, 0).n_arriving > 1000
    recorder.start()
    emptied(volume, 0, 300)
    shrink._leave(volume)
    shrink.remove_group(volume, lambda: recorder.mark("forgotten"))
    n_states, n_here, first = 0, [], int(rng.integers(100))
    for number, state in enumerate(crash_states(recorder, Plan(n_random=2, max_pairs=4, n_torn=1))):
        if number % part[1] != part[0] if is_deep else (number + first) % 100:
            continue
        named = [disk for i, disk in enumerate(state.disks) if "forgotten" not in state.marks or i not in left]
        reopened = open_volume(named)
        assert reopened.n_incoming == n_reserved, state.description
        verdict(reopened)
        landing = landing_of(reopened, source)
        n_here.append(len(landing.copied))
        fill(landing, source, "theirs", image_plane(source, "theirs"), piece=64)
        landing.commit([source.get_snapshot("theirs").record])
        assert read_files(reopened.get_snapshot("theirs").state) == {3: dict(enumerate(range(5000, 6400)))}
        assert read_files(reopened.get_snapshot("mine").state) == {1: dict(enumerate(range(40)))}
        verdict(reopened)
        n_states += 1
    assert n_states > 3
    record_property("summary", f"shrink beside an incoming image: {n_states} crash states, {min(n_here)} blocks kept")
