"""A volume grows by a RAID group: what was there stays, and every power cut on the way is survived."""

from __future__ import annotations

import errno
import os

import pytest

import blockplane as bp
from blockplane.disks import AREA_STRIPES, Geometry, GroupRecord
from blockplane.model import NoSpaceError, RefusedError, VolumeDamagedError, ownfiles
from blockplane.volume.check import check
from blockplane.volume.groups import next_first
from blockplane.volume.grow import add_group
from faults.crash import Plan, crash_states
from faults.recording import MemoryDisk, Recorder
from faults.world import FileClient, geometry_of, make_volume, open_volume, raw_blocks, revived

OLD = geometry_of(n_data=2, n_parity=1, disk_blocks=256)
N_NEW = 2


def added_group(geometry: Geometry, disk_blocks: int = 320) -> GroupRecord:
    members = tuple(range(geometry.n_disks, geometry.n_disks + N_NEW))
    return GroupRecord(next_first(geometry), 1, 1, 64, disk_blocks, members)


def new_disks(group: GroupRecord) -> list[MemoryDisk]:
    geometry = Geometry([*OLD.groups, group])
    return [MemoryDisk(f"new{i}", raw_blocks(geometry, i)) for i in group.disks]


def nothing() -> None:
    """The disks' names are durable elsewhere."""


def read_back(volume, models) -> dict:
    return FileClient(volume, models).files


def test_files_and_snapshots_stay_and_the_new_space_is_used():
    volume = make_volume(OLD)
    client = FileClient(volume)
    client.write(1, 0, list(range(100, 140)))
    volume.snapshot("before")
    free = volume.free_blocks
    group = added_group(OLD)
    disks = new_disks(group)
    add_group(volume, group, disks, nothing)
    assert volume.free_blocks == free + group.n_blocks
    assert volume.n_blocks == OLD.n_usable + group.n_blocks
    client = FileClient(volume)
    client.write(2, 0, list(range(1000, 1250)))
    volume.sync()
    assert int(volume.active.root.n_blocks) > 250
    volume.snapshot("after")
    assert check(volume).problems == []
    volume.close()
    again = open_volume(revived([*volume.array.disks]))
    assert read_back(again, {})[2] == dict(enumerate(range(1000, 1250)))
    assert check(again).problems == []
    again.rollback("before")
    assert check(again).problems == []
    again.close()


def test_a_full_volume_grows():
    volume = make_volume(OLD)
    client = FileClient(volume)
    with pytest.raises(NoSpaceError):
        client.write(1, 0, list(range(1, 2 * OLD.n_usable)))
    volume.abandon()
    volume = open_volume(revived(volume.array.disks))
    group = added_group(OLD, disk_blocks=AREA_STRIPES + 64)
    add_group(volume, group, new_disks(group), nothing)
    client = FileClient(volume)
    client.write(1, 0, list(range(1, 2 * OLD.n_usable)))
    volume.sync()
    assert check(volume).problems == []
    volume.close()


def test_clients_go_on_after_growing():
    with make_volume(OLD) as volume:
        client = FileClient(volume)
        client.write(3, 0, [7, 8, 9])
        add_group(volume, group := added_group(OLD), new_disks(group), nothing)
        client.write(3, 3, [10])
        volume.sync()
        assert check(volume).problems == []


def test_every_power_cut_leaves_the_old_volume_or_the_grown_one():
    recorder = Recorder()
    old = [recorder.disk(raw_blocks(OLD, i)) for i in range(OLD.n_disks)]
    volume = make_volume(OLD, old)
    client = FileClient(volume)
    client.write(1, 0, list(range(500, 560)))
    volume.snapshot("kept")
    client.edit(1, 3, 77)
    volume.sync()
    expected = {number: dict(file) for number, file in client.files.items()}
    group = added_group(OLD)
    grown = Geometry([*OLD.groups, group])
    fresh = [recorder.disk(raw_blocks(grown, i), {1: b"\xff" * 4096}) for i in group.disks]
    recorder.start()
    add_group(volume, group, fresh, lambda: recorder.mark("named"))
    recorder.mark("grown")
    n_states = {"old": 0, "new": 0}
    for state in crash_states(recorder, Plan(n_random=10, max_pairs=30, n_torn=2)):
        disks = state.disks if "named" in state.marks else state.disks[: OLD.n_disks]
        is_torn = "torn" in state.description  # what a cut left torn and what rotted can look the same
        assert is_torn or check(open_volume(disks, writable=False)).problems == [], state.description
        reopened = open_volume(disks)
        is_grown = reopened.geometry == grown
        assert is_grown == ("named" in state.marks), state.description
        n_states["new" if is_grown else "old"] += 1
        assert read_back(reopened, {}) == expected, state.description
        assert check(reopened).problems == [], state.description
        reopened.sync()
        reopened.close()
        assert open_volume(revived(disks), writable=False).info.clean, state.description
    assert min(n_states.values()) > 20
    print(n_states)


def test_disk_files_of_a_grow_that_was_refused_are_removed(tmp_path):
    with bp.Volume.create(tmp_path / "v", disks=2, size="2M") as volume:
        before = sorted(os.listdir(tmp_path / "v" / "disks"))
        with pytest.raises(bp.errors.UsageError):
            volume.grow(disks=255, size="2M", chunk="1000")
        with pytest.raises(bp.errors.DiskShortError):
            volume.grow(disks=2, size="64K")
        (tmp_path / "v" / "disks" / "3").mkdir()
        assert sorted(os.listdir(tmp_path / "v" / "disks")) == [*before, "3"]
        volume.grow(disks=2, size="2M")
        assert {"4", "5"} <= set(os.listdir(tmp_path / "v" / "disks"))
    with bp.Volume.open(tmp_path / "v") as volume:
        assert volume.geometry.n_disks == 4
        assert bp.check(volume).ok


def test_a_name_that_may_be_durable_stops_the_volume_and_opening_takes_the_group_up(tmp_path, monkeypatch):
    def failing(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    volume = bp.Volume.create(tmp_path / "v", disks=2, size="2M")
    bp.FileSystem(volume).write_bytes("/kept", b"k" * 5000)
    volume.sync()
    with monkeypatch.context() as patch:
        patch.setattr(ownfiles, "sync", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            volume.grow(disks=2, size="2M")
    with pytest.raises(VolumeDamagedError, match="stopped at an error"):
        volume.grow(disks=2, size="2M")
    volume.close()
    with bp.Volume.open(tmp_path / "v") as volume:
        assert volume.geometry.n_disks == 4
        assert bp.FileSystem(volume).read_bytes("/kept") == b"k" * 5000
        assert bp.check(volume).ok


def test_no_other_volume_of_that_name_is_told_of_the_disks(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        bp.Volume.create(tmp_path / folder / "v", disks=1, size="2M").close()
    with bp.Volume.open(tmp_path / "a" / "v") as volume:
        volume.grow(disks=1, size="2M")
    monkeypatch.chdir(tmp_path / "a")
    named = [(tmp_path / folder / "v" / "volume.toml").read_text() for folder in ("a", "b")]
    with bp.Volume.open("v") as volume:
        monkeypatch.chdir(tmp_path / "b")
        with pytest.raises(RefusedError, match="another volume"):
            volume.grow(disks=1, size="2M")
        with pytest.raises(RefusedError, match="another volume"):
            volume.shrink(1)
    assert [(tmp_path / folder / "v" / "volume.toml").read_text() for folder in ("a", "b")] == named
    assert os.listdir("v/disks") == ["0"]
    for folder, n_disks in (("a", 2), ("b", 1)):
        with bp.Volume.open(tmp_path / folder / "v") as volume:
            assert volume.geometry.n_disks == n_disks


def test_a_volume_has_room_for_so_many_groups_and_no_more(tmp_path):
    with bp.Volume.create(tmp_path / "v", disks=1, size="512K") as volume:
        for _ in range(31):
            volume.grow(disks=1, size="512K")
        with pytest.raises(bp.errors.UsageError, match="too large"):
            volume.grow(disks=1, size="512K")
        volume.snapshot("s")
        assert bp.check(volume).ok
    with bp.Volume.open(tmp_path / "v") as volume:
        assert len(volume.geometry.groups) == 32
