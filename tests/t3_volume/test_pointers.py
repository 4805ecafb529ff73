"""Pointers and masters: where they stand for names, what they keep from going, what stays of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import NoSuchSnapshotError, RefusedError, SnapshotExistsError, UsageError
from blockplane.volume.pointers import MAX_POINTERS
from blockplane.volume.retention import Policy


@pytest.fixture
def volume(tmp_path: Path):
    with bp.Volume.create(tmp_path / "pool", disks=3, size="8MiB") as volume:
        for name in ("one", "two", "three"):
            bp.FileSystem(volume).write_bytes(f"/{name}", name.encode() * 3000)
            volume.snapshot(name)
        yield volume


def standing(volume: bp.Volume) -> dict[str, str | None]:
    return {pointer.name: pointer.snapshot for pointer in volume.pointers}


def test_a_pointer_stands_wherever_a_snapshots_name_may(volume, tmp_path):
    volume.move_pointer("old", "one")
    volume.move_pointer("new", "two")
    assert volume.get_snapshot("new").name == "two"
    assert bp.FileSystem(volume.get_snapshot("old")).listdir("/") == ["one"]
    image = volume.image("new - old")
    assert (str(image), image.plane) == ("two - one", volume.image("two - one").plane)
    assert str(volume.image("old..new", include=["new"])) == "two"
    assert str(volume.image("new", with_=["old"])) == str(volume.image("two", with_=["one"]))
    assert volume.diff("old", "new").changes == volume.diff("one", "two").changes
    volume.hold_snapshot("new", "me")
    assert [hold.owner for hold in volume.get_snapshot("two").holds] == ["me"]
    assert bp.send(image, tmp_path / "x.bps").n_blocks == image.n_blocks
    volume.rollback("old")
    assert bp.FileSystem(volume).listdir("/") == ["one"]
    assert standing(volume) == {"old": "one", "new": "two"}


def test_it_moves_is_deleted_and_outlives_the_process(volume, tmp_path):
    volume.move_pointer("stable", "one")
    volume.move_pointer("stable", "three")
    volume.close()
    with bp.Volume.open(tmp_path / "pool") as again:
        assert standing(again) == {"stable": "three"}
        assert again.get_snapshot("three").pointers == ["stable"]
        again.delete_pointer("stable")
        assert standing(again) == {}
        assert bp.check(again).problems == []
        with pytest.raises(NoSuchSnapshotError):
            again.get_snapshot("stable")
        with pytest.raises(NoSuchSnapshotError, match="no pointer is named 'stable'"):
            again.delete_pointer("stable")
        again.snapshot("stable")


def test_names_are_taken_once(volume):
    volume.move_pointer("stable", "one")
    for make in (
        lambda: volume.snapshot("stable"),
        lambda: volume.rename_snapshot("two", "stable"),
        lambda: volume.save_image("stable", "two"),
        lambda: volume.move_pointer("two", "one"),
    ):
        with pytest.raises(SnapshotExistsError):
            make()
    volume.save_image("week", "two - one")
    with pytest.raises(SnapshotExistsError, match="stored image"):
        volume.move_pointer("week", "one")
    for name in ("active", "a b", "-x", ""):
        with pytest.raises(UsageError, match="cannot name a pointer"):
            volume.move_pointer(name, "one")
    with pytest.raises(NoSuchSnapshotError):
        volume.move_pointer("stable", "four")
    assert standing(volume) == {"stable": "one"}
    for number in range(1, MAX_POINTERS):
        volume.move_pointer(f"p{number}", "one")
    with pytest.raises(UsageError, match="64 pointers"):
        volume.move_pointer("more", "one")
    volume.move_pointer("p1", "two")


def test_where_a_pointer_stands_nothing_goes(volume):
    volume.move_pointer("stable", "two")
    for give_up in (
        lambda: volume.delete_snapshot("two"),
        lambda: volume.delete_snapshot("stable"),
        lambda: volume.delete_snapshot("one", "two", defer=True),
        lambda: volume.shadow_snapshot("two"),
        lambda: volume.rollback("one", drop_later=True),
    ):
        with pytest.raises(RefusedError, match="the pointer stable stands at snapshot 'two'"):
            give_up()
    assert [snapshot.kind for snapshot in volume.snapshots] == ["regular"] * 3
    volume.move_pointer("stable", "three")
    volume.shadow_snapshot("two")
    with pytest.raises(RefusedError, match="no pointer can stand at two"):
        volume.move_pointer("stable", "two")


def test_a_pointer_whose_snapshot_older_code_deleted_is_found_and_can_be_moved(volume):
    volume.move_pointer("stable", "two")
    table = volume.local.replication()
    volume.local.set_replication(replace(table, pointers=(replace(table.pointers[0], snapshot_id=bytes(range(16))),)))
    volume.commit()
    assert standing(volume) == {"stable": None}
    assert bp.check(volume).problems == ["the pointer 'stable' stands at a snapshot that is gone"]
    with pytest.raises(NoSuchSnapshotError, match="stands at a snapshot that is gone"):
        volume.get_snapshot("stable")
    volume.move_pointer("stable", "one")
    assert bp.check(volume).problems == []


def test_a_stored_image_follows_a_pointer(volume):
    volume.move_pointer("new", "two")
    volume.save_image("week", "new - one")
    assert volume.image("week").plane == volume.image("two - one").plane
    volume.move_pointer("new", "three")
    assert volume.image("week").plane == volume.image("three - one").plane
    assert volume.saved_images[0].definition == "new - one"
    volume.delete_pointer("new")
    with pytest.raises(NoSuchSnapshotError, match="new is gone"):
        volume.image("week")


def test_a_master_moves_its_pointer_and_both_are_one_point(volume):
    volume.make_master("one")
    assert (standing(volume), volume.get_snapshot("one").is_master) == ({"master": "one"}, True)
    volume.make_master("three")
    assert standing(volume) == {"master": "three"}
    assert [snapshot.is_master for snapshot in volume.snapshots] == [True, False, True]
    volume.delete_snapshot("one")  # no replica is known: nobody has to pass it
    volume.shadow_snapshot("two")
    with pytest.raises(RefusedError, match="two is a shadow"):
        volume.make_master("two")


def test_pruning_keeps_what_pointers_and_interrupted_receives_need(volume, tmp_path):
    volume.move_pointer("stable", "one")
    policy = Policy(last=1)
    dry = volume.prune(policy, dry_run=True)
    reasons = {verdict.name: verdict.reasons for verdict in dry.verdicts}
    assert reasons == {"three": ("last",), "two": (), "one": ("is where the pointer stable stands",)}
    before = volume.freed_by("two")
    assert (dry.freed_blocks, dry.deleted) == (before, ["two"])
    assert volume.prune(policy).freed_blocks == before
    assert [snapshot.name for snapshot in volume.snapshots] == ["one", "three"]
    data = tmp_path / "three.bps"
    bp.send(volume.image("one"), tmp_path / "one.bps")
    bp.send(volume.image("three - one"), data)
    bp.receive(tmp_path / "one.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        copy.rollback("one")
        bp.FileSystem(copy).write_bytes("/mine", b"mine")
        copy.snapshot("mine")
        data.write_bytes(data.read_bytes()[:-200])
        with pytest.raises(bp.BlockplaneError):
            bp.receive(data, copy, discard=True)
        assert [r.top_name for r in bp.interrupted_receives(copy)] == ["three"]
        kept = {v.name: v.reasons for v in copy.prune(policy, dry_run=True).verdicts}
        assert kept == {
            "mine": ("last",),
            "one": (
                "held",
                "is what the interrupted receive of three builds on",
            ),
        }
