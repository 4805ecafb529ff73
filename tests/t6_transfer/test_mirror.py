"""Full mirrors: added, brought up to date, broken off, rehearsed, joined again (the patent's steps 310 to 320)."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.filesystem.errors import ReadOnlyPathError
from blockplane.model.errors import (
    BlockplaneError,
    DiskError,
    NoSpaceError,
    RefusedError,
    StreamTruncatedError,
    UnreachableError,
    UsageError,
    VolumeInUseError,
)
from blockplane.transfer import mirrors
from blockplane.transfer.mirrors import listing, running
from blockplane.transfer.mirrors.running import attempt
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import interrupted_receives
from blockplane.volume import destinations, making
from blockplane.volume.mirrorstates import is_own
from blockplane.volume.replicas import records_of
from blockplane.volume.retention import Policy, prune
from rig.memory import Shape, make_volume
from rig.mirrorworld import names, read, write
from rig.owners import wait_for


def test_an_idle_mirror_asks_nobody_and_writes_nothing(world, rng):
    copy = world.add()
    write(world.source, "/a", rng.bytes(30_000))
    assert world.outcomes() == ["brought"]
    n_asked, generations = world.n_asked, (world.source.info.generation, copy.info.generation)
    files = {path: path.stat().st_mtime_ns for path in world.source.path.iterdir()}
    definition = world.definition(copy)
    for _ in range(3):
        assert mirrors.step(world.source, definition, None).outcome == "idle"  # type: ignore[arg-type]
    assert world.outcomes() == ["idle"]
    assert (world.source.info.generation, copy.info.generation) == generations
    assert {path: path.stat().st_mtime_ns for path in world.source.path.iterdir()} == files
    assert world.n_asked == n_asked + 1  # opened, and nothing asked of it


def test_a_mirror_that_was_broken_off_shows_though_nothing_changed(world, rng, monkeypatch):
    copy = world.add()
    write(world.source, "/a", rng.bytes(30_000))
    assert world.outcomes() == ["brought"]
    bp.mirrors.break_mirror(copy)
    assert world.outcomes() == ["idle"]  # it was heard of a moment ago
    monkeypatch.setattr(running, "ASK_EVERY_S", 0.5)
    wait_for(lambda: world.run()[0].error, "what is idle all the time is asked too")
    for _ in range(2):
        (ran,) = world.run()
        assert "was broken off" in ran.error
        assert "was broken off" in mirrors.status(world.source)[0].error
        monkeypatch.undo()  # one that failed is asked each time
    world.resync(copy)
    assert world.outcomes() == ["idle"]
    assert mirrors.status(world.source)[0].error == ""


def test_a_mirror_whose_disks_were_restored_from_before_is_brought_it_again(world, rng, tmp_path, monkeypatch):
    copy = world.add()
    write(world.source, "/a", rng.bytes(30_000))
    world.source.snapshot("june1")
    assert world.outcomes() == ["brought"]
    world.opened.pop(str(copy.path)).close()
    shutil.copytree(copy.path, tmp_path / "before")
    write(world.source, "/a", rng.bytes(30_000))
    assert world.outcomes() == ["brought"]
    world.opened.pop(str(copy.path)).close()
    shutil.rmtree(copy.path)
    (tmp_path / "before").rename(copy.path)
    assert world.outcomes() == ["idle"]  # it was heard of a moment ago
    monkeypatch.setattr(running, "ASK_EVERY_S", 0.0)
    assert world.outcomes() == ["brought"]
    assert read(world.opened[str(copy.path)], "/a") == read(world.source, "/a")


@pytest.mark.parametrize("changes", [None, LocalChanges.KEEP])
def test_a_mirror_that_shows_another_state_is_brought_its_own_again(world, rng, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(running, "ASK_EVERY_S", 0.0)
    copy = world.add(local_changes=changes)
    write(world.source, "/a", b"of the source")
    assert world.outcomes() == ["brought"]
    if changes is LocalChanges.KEEP:  # what became of it there is no other state
        write(copy, "/mine", b"mine")
        copy.snapshot("mine")
        write(copy, "/mine", b"more")
    assert world.outcomes() == ["idle"]
    with bp.Volume.create(tmp_path / "other", disks=2, size="8MiB", parity=0) as other:
        write(other, "/b", b"of another")
        other.snapshot("b1")
        bp.copy(other.image("b1"), copy, discard=True)
    assert bp.FileSystem(copy).listdir("/") == ["b"]
    if changes is None:  # it may not be written to: nobody knows whose state it is to have
        assert "is ahead of" in world.run()[0].error
        assert bp.FileSystem(copy).listdir("/") == ["b"]
        world.resync(copy, "source", full=True)
    else:
        assert world.outcomes() == ["brought"]
    assert (bp.FileSystem(copy).listdir("/"), read(copy, "/a")) == (["a"], b"of the source")
    assert read(copy, "/b", "b1") == b"of another"
    assert world.outcomes() == ["idle"]
    assert bp.check(copy).problems == []


def test_no_pull_replaces_what_a_mirror_shows(world, rng):
    copy = world.add()
    write(world.source, "/a", b"of the source")
    assert world.outcomes() == ["brought"]
    other = world.add("other")
    bp.mirrors.break_mirror(other)
    write(other, "/b", b"of another")
    other.snapshot("b1")
    other.make_master("b1")
    for begun in ("mirror", "rehearsing"):
        if begun == "rehearsing":
            bp.mirrors.break_mirror(copy, rehearse=True)
        with pytest.raises(RefusedError, match=f"is a mirror of {world.source.path}") as refused:
            pull(VolumePeer(other), copy)
        assert "blockplane mirror break" in refused.value.hint
        assert (copy.mirror_of.state, bp.FileSystem(copy).listdir("/"), records_of(other)) == (begun, ["a"], [])
    bp.mirrors.break_mirror(copy)
    assert pull(VolumePeer(other), copy, changes=LocalChanges.KEEP).top == "b1"
    assert bp.FileSystem(copy).listdir("/") == ["b"]


def test_what_is_left_shrinks_while_it_travels(world, rng):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    write(world.source, "/large", rng.bytes(8 << 20))
    seen = []

    def look(event):
        if event.phase == "blocks":
            (at,) = mirrors.status(world.source)
            seen.append((at.state, at.left_bytes, event.total_bytes - event.done_bytes))

    world.run(progress=look)
    assert len(seen) > 4
    assert {state for state, _, _ in seen} == {"under way"}
    assert all(left - due == seen[0][1] - seen[0][2] for _, left, due in seen)
    assert [left for _, left, _ in seen] == sorted({left for _, left, _ in seen}, reverse=True)
    assert mirrors.status(world.source)[0].left_bytes == 0
    assert read(copy, "/large") == read(world.source, "/large")


def test_users_snapshots_travel_and_own_ones_of_others_do_not(world, rng):
    one, two = world.add("one"), world.add("two")
    contents = {}
    for name in ("june1", "june2", "june3"):
        write(world.source, "/a", rng.bytes(20_000))
        contents[name] = read(world.source, "/a")
        world.source.snapshot(name)
        write(world.source, "/b", rng.bytes(9000))
        assert world.outcomes() == ["brought", "brought"]
    for copy in (one, two):
        definition = world.definition(copy)
        own = [name for name in names(copy) if name.startswith("mirror.")]
        assert [name for name in names(copy) if not name.startswith("mirror.")] == list(contents)
        assert len(own) == 1
        assert own[0].startswith(definition.prefix)
        assert {name: read(copy, "/a", name) for name in contents} == contents
        assert read(copy, "/b") == read(world.source, "/b")
        assert bp.check(copy).ok
    assert sum(name.startswith("mirror.") for name in names(world.source)) == 2
    assert world.outcomes() == ["idle", "idle"]
    world.source.snapshot("june4")  # no change of files, but a snapshot more
    assert world.outcomes() == ["brought", "brought"]
    assert all("june4" in names(copy) for copy in (one, two))


def made_again(volume: bp.Volume) -> None:
    volume.delete_snapshot("latest")
    volume.snapshot("latest")


def reused(volume: bp.Volume) -> None:
    volume.rename_snapshot("latest", "earlier")
    volume.snapshot("latest")


@pytest.mark.parametrize("is_top", [False, True])
@pytest.mark.parametrize("again", [made_again, reused])
def test_a_name_that_is_another_snapshots_there_stops_no_update(world, again, is_top):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.source.snapshot("latest")
    assert world.outcomes() == ["brought"]
    write(world.source, "/a", b"two")
    assert world.outcomes() == ["brought"]
    write(world.source, "/a", b"three")
    again(world.source)
    if not is_top:
        world.source.snapshot("after")
        write(world.source, "/a", b"four")
    (ran,) = world.run()
    assert (ran.error, ran.report.brought.left_out) == ("", ("latest",))
    assert read(copy, "/a") == read(world.source, "/a")
    assert read(copy, "/a", "latest") == b"one"
    assert [name for name in names(copy) if not is_own(name)] == (["latest"] if is_top else ["latest", "after"])
    assert world.outcomes() == ["idle"]
    write(world.source, "/a", b"five")
    (ran,) = world.run()
    assert (ran.error, ran.report.brought.left_out) == ("", ())  # it is told once
    assert read(copy, "/a") == b"five"
    assert [bp.check(volume).problems for volume in (world.source, copy)] == [[], []]


def test_a_renamed_snapshot_travels_under_its_present_name(world, rng):
    copy, contents = world.add(), {}
    assert world.outcomes() == ["brought"]
    for name in ("june1", "june2", "june3"):
        write(world.source, "/a", rng.bytes(9000))
        contents[name] = read(world.source, "/a")
        world.source.snapshot(name)
    world.source.rename_snapshot("june2", "before-release")  # the list that june3 has of older ones says june2
    assert world.outcomes() == ["brought"]
    contents["before-release"] = contents.pop("june2")
    assert {name: read(copy, "/a", name) for name in contents} == contents
    assert mirrors.status(world.source)[0].left_bytes == 0
    with bp.Volume.create(copy.path.parent / "replica", disks=1, size="16M") as replica:
        pull(VolumePeer(world.source), replica, "june3")
        assert {name: read(replica, "/a", name) for name in contents} == contents


def test_a_mirror_refuses_writes_and_survives_reopening(world, rng):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    path = str(copy.path)
    with pytest.raises(ReadOnlyPathError, match="is a mirror of") as found:
        write(copy, "/b", b"mine")
    assert "mirror break" in found.value.hint
    with pytest.raises(RefusedError, match="cannot be written"):
        copy.rollback(names(copy)[0])
    copy.close()
    copy = world.opened[path] = bp.Volume.open(path)
    assert copy.mirror_of is not None
    assert (copy.mirror_of.state, copy.mirror_of.source_id) == ("mirror", world.source.info.volume_id.hex())
    assert copy.mirror_of.last_complete == names(copy)[-1]
    with pytest.raises(ReadOnlyPathError):
        write(copy, "/b", b"mine")
    assert read(copy, "/a") == b"one"
    assert mirrors.remove_mirror(world.source, path, peers=world.peers()).told
    write(copy, "/b", b"mine")
    assert (world.source.destinations.list(), names(world.source)) == ([], [])
    assert mirrors.definitions(world.source.path) == []


@pytest.mark.parametrize("changes", [LocalChanges.KEEP, LocalChanges.FLUSH])
def test_changes_of_the_destination_are_kept_or_flushed(world, rng, changes):
    copy = world.add(local_changes=changes)
    write(world.source, "/a", b"one")
    world.run()
    write(copy, "/mine", mine := rng.bytes(9000))
    assert world.outcomes() == ["idle"]  # nothing to bring: nothing is replaced
    write(world.source, "/a", b"two")
    (ran,) = world.run()
    assert ran.report is not None
    assert ran.report.brought is not None
    kept = ran.report.brought.kept
    assert (read(copy, "/a"), bp.FileSystem(copy).exists("/mine")) == (b"two", False)
    assert (kept is not None) == (changes is LocalChanges.KEEP)
    if kept is not None:
        assert read(copy, "/mine", kept) == mine
    assert bp.check(copy).ok


def test_refused_changes_stop_the_mirror_and_nothing_is_lost(world):
    copy = world.add(local_changes=LocalChanges.KEEP)
    write(world.source, "/a", b"one")
    world.run()
    write(copy, "/mine", b"mine")
    world.add(local_changes=LocalChanges.KEEP, wish=DiskWish())
    mirrors.add(
        world.source, str(copy.path), peers=world.peers(), local_changes=LocalChanges.KEEP
    )  # changed options keep where it stands
    write(world.source, "/a", b"two")
    copy.snapshot("saved")
    mirrors.add(world.source, str(copy.path), peers=world.peers(), local_changes=LocalChanges.REFUSE)
    before = names(world.source)
    (ran,) = world.run()
    assert "was written to since" in ran.error
    assert ran.refused
    assert (read(copy, "/mine"), names(world.source)) == (b"mine", before)
    assert world.definition(copy).last.error == ran.error


def test_what_cannot_be_a_mirror(world, tmp_path):
    with pytest.raises(RefusedError, match="is the volume itself"):
        mirrors.add(world.source, str(world.source.path))
    with pytest.raises(UsageError, match="every 0 s"):
        mirrors.add(world.source, str(tmp_path / "x"), every_s=0)
    with pytest.raises(UsageError, match="is on the network"):
        mirrors.add(world.source, "far:7000/pool")
    with bp.Volume.create(tmp_path / "other", disks=1, size="8MiB") as other:
        write(other, "/theirs", b"theirs")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RefusedError, match="has content of its own"):
        mirrors.add(world.source, str(tmp_path / "other"))
    assert sorted(tmp_path.rglob("*")) == before
    copy = world.add()
    with (
        bp.Volume.create(tmp_path / "second", disks=1, size="8MiB") as second,
        pytest.raises(RefusedError, match="is a mirror of"),
    ):
        mirrors.add(second, str(copy.path), peers=world.peers())


def test_a_lost_connection_is_settled_by_where_the_destination_stands(world, rng):
    """Both planes stay while nobody knows; the destination's word decides."""
    copy = world.add()
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    name = world.definition(copy).name
    for arrives in (True, False):
        write(world.source, "/a", rng.bytes(9000))

        class Lost(VolumePeer):
            def take(self, image, changes, progress=None, **more):
                if arrives:  # noqa: B023 - used in this round
                    super().take(image, changes)
                raise StreamTruncatedError("the line went dead")

        with pytest.raises(StreamTruncatedError):
            mirrors.step(world.source, world.definition(copy), Lost(copy))
        found = world.source.destinations.get(name)
        assert found.status == "unknown"
        assert None not in (found.acknowledged, found.under_way)
        report = world.run()[0].report
        assert report is not None
        assert (report.settled, report.outcome) == ((found.under_way, "idle") if arrives else (None, "brought"))
        assert world.source.destinations.get(name).status == "idle"
        assert read(copy, "/a") == read(world.source, "/a")


def test_what_arrived_unheard_and_is_not_shown_any_more_is_brought_again(world, rng):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.source.snapshot("june1")
    world.run()

    class Lost(VolumePeer):
        def take(self, *words, **options):
            super().take(*words, **options)
            raise UnreachableError("contact was lost")

    write(world.source, "/a", b"two")
    world.source.snapshot("june2")
    with pytest.raises(UnreachableError):
        mirrors.step(world.source, world.definition(copy), Lost(copy))
    assert read(copy, "/a") == b"two"
    earlier = copy.get_snapshot("june1").record.id
    VolumePeer(copy).go_back(earlier, LocalChanges.KEEP)
    assert read(copy, "/a") == b"one"
    assert world.outcomes() == ["brought"]
    assert read(copy, "/a") == b"two"
    assert world.outcomes() == ["idle"]


def test_a_transfer_that_was_cut_goes_on_and_little_travels_twice(world, rng):
    copy = world.add(wish=DiskWish(3, "8MiB"))
    write(world.source, "/a", rng.bytes(3 << 20))
    definition = world.definition(copy)
    n_seen = 0

    def cut(event):
        nonlocal n_seen
        n_seen = event.done_bytes
        if event.done_bytes > 2 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirrors.step(world.source, definition, VolumePeer(copy), cut)
    landed = sum(receive.n_landed for receive in bp.interrupted_receives(copy))
    assert landed > 0
    report = mirrors.step(world.source, definition, VolumePeer(copy))
    assert report.brought is not None
    assert report.brought.n_blocks == world.source.get_snapshot(report.top or "").n_blocks - landed
    assert read(copy, "/a") == read(world.source, "/a")


def test_break_needs_no_source_and_ends_what_is_under_way(world, rng):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    state = names(copy)[-1]
    write(world.source, "/a", rng.bytes(2 << 20))

    def broken_off(event):
        if event.done_bytes and copy.mirror_of.state == "mirror":
            report = mirrors.break_mirror(copy)
            assert (report.state, report.seconds < 60) == (state, True)
            write(copy, "/mine", b"mine")

    with pytest.raises(StreamTruncatedError, match="was broken off"):
        mirrors.step(world.source, world.definition(copy), VolumePeer(copy), broken_off)
    assert (read(copy, "/a"), read(copy, "/mine")) == (b"one", b"mine")
    assert "was broken off" in world.run()[0].error
    assert (read(copy, "/a"), read(copy, "/mine")) == (b"one", b"mine")
    with pytest.raises(RefusedError, match="is broken already"):
        mirrors.break_mirror(copy)


def test_a_break_at_the_last_moment_still_counts(world, rng):
    """After the break no state flips any more, though the transfer had only its root record left to write."""
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    write(world.source, "/a", rng.bytes(20_000))

    def at_the_commit(event):
        if event.phase == "commit":
            mirrors.break_mirror(copy)

    with pytest.raises(RefusedError, match="was written to while it received"):
        mirrors.step(world.source, world.definition(copy), VolumePeer(copy), at_the_commit)
    assert read(copy, "/a") == b"one"
    assert copy.mirror_of.state == "broken"


def test_a_rehearsal_leaves_the_mirror_as_it_was(world, rng):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    for drop in (False, True):
        mirrors.break_mirror(copy, rehearse=True)
        write(copy, "/a", b"rehearsed")
        before = read(world.source, "/a")
        write(world.source, "/a", rng.bytes(5000))
        assert world.outcomes() == ["waiting"]
        assert read(copy, "/a") == b"rehearsed"
        report = mirrors.end_rehearsal(copy, drop_changes=drop)
        assert read(copy, "/a") == before
        assert (report.kept is None) == drop
        if report.kept is not None:
            assert read(copy, "/a", report.kept) == b"rehearsed"
        with pytest.raises(ReadOnlyPathError):
            write(copy, "/a", b"no")
        assert world.outcomes() == ["brought"]
        assert read(copy, "/a") == read(world.source, "/a")
    with pytest.raises(RefusedError, match="no rehearsal"):
        mirrors.end_rehearsal(copy)
    assert bp.check(copy).ok


@pytest.mark.parametrize("winner", ["source", "destination"])
@pytest.mark.parametrize("written", ["source", "destination", "both", "neither"])
@pytest.mark.parametrize("drop", [False, True])
def test_resync_in_either_direction(world, rng, winner, written, drop):
    copy = world.add()
    write(world.source, "/a", b"old")
    write(world.source, "/large", rng.bytes(1 << 20))
    world.run()
    mirrors.break_mirror(copy)
    sides = {"source": world.source, "destination": copy}
    expected = dict.fromkeys(sides, b"old")
    for side in sides if written == "both" else [written]:
        if side != "neither":
            expected[side] = side.encode()
            write(sides[side], "/a", expected[side])
    definition = world.definition(copy)
    plan = mirrors.plan_resync(world.source, definition, VolumePeer(copy))
    assert plan.is_split == (written == "both")
    assert (plan.source.is_changed, plan.destination.is_changed) == (
        written in ("source", "both"), written in ("destination", "both"),
    )  # fmt: skip
    if plan.is_split:
        before = names(copy), names(world.source), copy.info.generation
        with pytest.raises(RefusedError, match="both sides were written to"):
            world.resync(copy)
        assert (names(copy), names(world.source), copy.info.generation) == before
    report = world.resync(copy, winner, drop_changes=drop)
    loser = copy if winner == "source" else world.source
    lost = written in ("both", "destination" if winner == "source" else "source")
    assert (read(copy, "/a"), read(world.source, "/a")) == (expected[winner],) * 2
    assert (report.kept is not None) == (lost and not drop)
    if report.kept is not None:
        assert read(loser, "/a", report.kept) == expected["destination" if winner == "source" else "source"]
    if report.brought is not None:
        assert report.brought.n_blocks < 60  # and not the mebibyte that both have
    assert copy.mirror_of.state == "mirror"
    assert world.outcomes() == ["idle"]
    write(world.source, "/a", b"and on")
    assert world.outcomes() == ["brought"]
    assert read(copy, "/a") == b"and on"
    for volume in sides.values():
        assert bp.check(volume).ok


def test_nothing_in_common_is_not_guessed(world, rng):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    mirrors.break_mirror(copy)
    write(copy, "/a", b"theirs")
    write(world.source, "/a", b"two")
    for snapshot in names(copy):
        copy.snapshot("mine")
        copy.delete_snapshot(snapshot)
    plan = mirrors.plan_resync(world.source, world.definition(copy), VolumePeer(copy), "source")
    assert plan.common is None
    with pytest.raises(RefusedError, match="no state in common"):
        world.resync(copy, "source")
    assert read(copy, "/a") == b"theirs"
    world.resync(copy, "source", full=True)
    assert (read(copy, "/a"), read(copy, "/a", "mine")) == (b"two", b"theirs")


def test_what_a_mirror_without_a_state_has_is_not_brought_back(world):
    copy = world.add()
    write(world.source, "/a", b"one")
    with pytest.raises(RefusedError, match="has nothing yet"):
        world.resync(copy, "destination")
    assert (read(world.source, "/a"), names(copy), copy.was_written) == (b"one", [], False)
    assert world.outcomes() == ["brought"]


def test_a_destination_that_is_full_is_left_alone(world, rng):
    copy = world.add(wish=DiskWish(1, "4MiB"))
    write(world.source, "/a", b"one")
    world.run()
    write(world.source, "/b", rng.bytes(6 << 20))
    before = names(copy)
    (ran,) = world.run()
    assert ran.error
    assert ran.refused
    assert (names(copy), read(copy, "/a")) == (before, b"one")
    assert [name for name in names(world.source) if name.startswith("mirror.")] == before
    bp.FileSystem(world.source).unlink("/b")
    assert world.outcomes() == ["brought"]


def test_a_source_that_is_full_of_what_its_mirror_has_is_brought_and_has_room_again(world, rng):
    copy, source = world.add(wish=DiskWish(1, "32MiB")), world.source
    write(source, "/a", rng.bytes(5 << 20))
    world.outcomes()
    write(source, "/a", rng.bytes(5 << 20))  # what was brought first is held
    while (n_more := source.available_blocks // 2) > 20:
        write(source, f"/{n_more}", rng.bytes(n_more * 4096))
        source.sync()
    while source.available_blocks:
        source.commit(force=True)
        source.snapshot(f"auto-{len(names(source))}")
    assert [world.outcomes() for _ in range(2)] == [["brought"], ["idle"]]
    source.commit(force=True)
    assert source.available_blocks > 1000
    assert source.positions == []
    write(source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    assert [each.name for each in source.positions] == [source.destinations.list()[0].acknowledged]
    assert [bp.check(volume).problems for volume in (source, copy)] == [[], []]


def test_a_source_that_went_back_and_has_no_room_for_marks_is_joined_again(world, monkeypatch):
    copy, source = world.add(), world.source
    write(source, "/a", b"old")
    source.snapshot("june1")
    world.outcomes()
    write(source, "/a", b"new")
    world.outcomes()
    source.rollback("june1", drop_changes=True)

    def full(_volume):
        raise NoSpaceError("there is no room for marks", "")

    monkeypatch.setattr(destinations, "refuse_more", full)
    with pytest.raises(NoSpaceError):
        source.destinations.begin("another", "june1")
    world.resync(copy, "source")
    assert read(copy, "/a") == b"old"
    (found,) = source.destinations.list()
    assert (found.acknowledged, [hold.owner for hold in source.get_snapshot("june1").holds]) == (
        "june1",
        [f"mirror:{found.name}"],
    )


def test_what_the_next_update_builds_on_is_not_deleted(world):
    copy = world.add()
    write(world.source, "/a", b"one")
    world.run()
    (own,) = names(copy)
    for volume, why in ((copy, "is the last complete state of a mirror"), (world.source, "is held by mirror:")):
        with pytest.raises(RefusedError, match=why):
            volume.delete_snapshot(own)
        volume.snapshot("users")
        volume.prune(bp.Policy(last=1))
        assert names(volume) == [own, "users"]
    mirrors.break_mirror(copy)
    copy.delete_snapshot(*names(copy))


@pytest.mark.parametrize("at_copy", [False, True])
def test_a_pointer_at_a_mirrors_own_snapshot_holds_it_and_nothing_else(world, at_copy):
    copy = world.add()
    volume, other = (copy, world.source) if at_copy else (world.source, copy)
    write(world.source, "/a", b"pointed at")
    world.run()
    (own,) = names(volume)
    volume.move_pointer("here", own)
    for number in range(3):
        write(world.source, "/a", b"%d" % number)
        assert world.outcomes() == ["brought"]
        assert len(names(volume)) == 2
        assert read(volume, "/a", "here") == b"pointed at"
        assert len(names(other)) == 1
    volume.delete_pointer("here")
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    assert len(names(volume)) == len(names(other)) == 1


def test_status_counts_what_has_landed(world, rng):
    copy = world.add(wish=DiskWish(3, "8MiB"))
    (found,) = mirrors.status(world.source, now_ns=world.definition(copy).added_ns + 90 * 10**9)
    assert (found.state, found.newest, found.left_blocks) == ("never", None, world.source.committed.root.n_blocks)
    assert found.lag_s == 90.0
    write(world.source, "/a", b"one")
    world.run()
    write(world.source, "/large", rng.bytes(3 << 20))

    def cut(event):
        (at,) = mirrors.status(world.source)
        assert (at.state, at.is_current) == ("under way", False)
        if event.done_bytes > 2 << 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirrors.step(world.source, world.definition(copy), VolumePeer(copy), cut)
    landed = sum(receive.n_landed for receive in bp.interrupted_receives(copy))
    (blind,), (asked,) = mirrors.status(world.source), mirrors.status(world.source, peers=world.peers())
    assert (blind.state, asked.state) == ("unknown", "unknown")
    assert blind.left_blocks - asked.left_blocks == landed > 0
    assert asked.lag_s > 0
    (ran,) = world.run()
    assert ran.report is not None
    assert ran.report.brought is not None
    assert 0 <= asked.left_blocks - ran.report.brought.n_blocks < 10  # what noting the snapshot changed
    (found,) = mirrors.status(world.source)
    assert (found.state, found.is_current, found.lag_s, found.left_blocks) == ("idle", True, 0.0, 0)


def test_errors_are_blockplane_errors(world):
    with pytest.raises(BlockplaneError, match="has no mirror"):
        mirrors.find(world.source.path, "nowhere")


def test_takeover_at_16_tebibytes(tmp_path, record_property):
    """Break to first write costs the same two consistency points as on a small volume; the time goes to the summary."""
    n_points = []
    for label, n_blocks in (("small", 1 << 14), ("large", (1 << 32) + (1 << 16))):
        volumes = []
        for name in ("source", "copy"):
            (tmp_path / label / name).mkdir(parents=True)
            (tmp_path / label / name / "disks in memory").touch()
            volumes.append(make_volume([Shape(1, 0, 64, n_blocks)], str(tmp_path / label / name)))
        source, copy = volumes

        @contextmanager
        def peer(dest: str, copy=copy):
            yield VolumePeer(copy)

        write(source, "/a", b"one")
        mirrors.add(source, str(copy.path), peers=mirrors.Peers(peer))
        mirrors.step(source, mirrors.find(source.path, str(copy.path)), VolumePeer(copy))
        generation, started = copy.info.generation, time.monotonic()
        mirrors.break_mirror(copy)
        write(copy, "/b", b"first")
        copy.sync()
        took_s = time.monotonic() - started
        n_points.append(copy.info.generation - generation)
        assert (read(copy, "/a"), read(copy, "/b")) == (b"one", b"first")
        record_property("summary", f"takeover, {label}, {n_blocks >> 18} GiB: first write durable in {took_s:.3f} s")
    assert n_points[0] == n_points[1]


def test_full_mirroring_steps_310_to_320(world, rng):
    """The patent's flow of full mirroring, steps 310 to 320, in our words.

    A full image makes the mirror. Then, at each consistency point that is due, an increment whose base is the one
    before and whose top is the newest: what is the same is left alone, what went is dropped, and the old state stays
    until the new one is whole. When one takes longer than the time between two, the next that is sent is the newest.
    """
    copy = world.add()
    contents = [rng.bytes(40_000) for _ in range(5)]
    write(world.source, "/kept", kept := rng.bytes(400_000))
    write(world.source, "/gone", rng.bytes(50_000))
    write(world.source, "/a", contents[0])
    (full,) = world.run()
    assert full.report is not None
    assert full.report.brought is not None
    assert full.report.brought.base is None
    assert full.report.brought.n_blocks == world.source.get_snapshot(full.report.top or "").n_blocks
    bp.FileSystem(world.source).unlink("/gone")
    write(world.source, "/a", contents[1])
    seen = []

    def slow(event):  # consistency points pass while one is sent
        seen.append(read(copy, "/a"))
        write(world.source, "/a", contents[len(seen) % 3 + 2])
        world.source.sync()

    definition = world.definition(copy)
    first = mirrors.step(world.source, definition, VolumePeer(copy), slow)
    assert first.brought is not None
    assert (first.brought.base, set(seen)) == (full.report.top, {contents[0]})
    assert first.brought.n_blocks < 40  # and not what both have
    assert (read(copy, "/a"), read(copy, "/kept")) == (contents[1], kept)
    assert not bp.FileSystem(copy).exists("/gone")
    second = mirrors.step(world.source, definition, VolumePeer(copy))
    assert second.brought is not None
    assert second.brought.base == first.top  # one step to the newest: none of those between queued up
    assert read(copy, "/a") == read(world.source, "/a")
    assert mirrors.step(world.source, definition, VolumePeer(copy)).outcome == "idle"


@pytest.mark.parametrize(
    ("late", "took_s", "next_s"), [("latest", 4, 10), ("latest", 25, 10), ("next", 4, 10), ("next", 25, 30)]
)
def test_when_the_next_step_is_due(late, took_s, next_s):
    begun = 10**18
    last = mirrors.LastRun(begun, begun + took_s * 10**9)
    made = mirrors.MirrorDefinition("copy", "/copy", "0" * 32, every_s=10.0, late=late, last=last)
    assert mirrors.due_ns(made) == begun + next_s * 10**9
    assert mirrors.due_ns(mirrors.MirrorDefinition("copy", "/copy", "0" * 32)) == 0


def test_after_a_failure_a_step_is_not_put_off_by_the_interval():
    begun = time.time_ns() - 10**9
    last = mirrors.LastRun(begun, begun + 10**6, error="it is away")
    made = mirrors.MirrorDefinition("copy", "/copy", "0" * 32, every_s=3600.0, last=last)
    assert mirrors.due_ns(made) == 0
    assert mirrors.due_ns(made, begun) == begun + 10 * 10**9
    assert mirrors.due_ns(replace(made, every_s=0.5), begun) == begun + 10**9 // 2


def test_a_mirror_that_was_away_for_a_moment_is_brought_what_it_missed(world, rng, tmp_path):
    copy = world.add(every_s=3600.0)
    world.run()
    write(world.source, "/a", b"new")
    listing.write_definitions(world.source.path, [
        replace(each, last=replace(each.last, begun_ns=1)) for each in mirrors.definitions(world.source.path)
    ])  # fmt: skip
    away = mirrors.Peers(lambda _: _refusing())
    (failed,) = running.run_side_by_side(world.source, peers=away)
    assert "is away" in failed.error
    (again,) = running.run_side_by_side(world.source, peers=world.peers())
    assert (again.error, read(copy, "/a")) == ("", b"new")
    assert running.run_side_by_side(world.source, peers=world.peers()) == []


@contextmanager
def _refusing():
    raise UnreachableError("it is away")
    yield


def test_a_clock_that_was_set_back_does_not_put_a_step_off():
    begun = time.time_ns() + 86_400 * 10**9
    last = mirrors.LastRun(begun, begun + 10**9)
    made = mirrors.MirrorDefinition("copy", "/copy", "0" * 32, every_s=10.0, last=last)
    assert mirrors.due_ns(made) == 0
    mine = time.time_ns()
    assert mirrors.due_ns(made, mine) == mine + 10 * 10**9
    now = time.time_ns()
    ended = mirrors.LastRun(now - 60 * 10**9, now + 86_400 * 10**9)  # a day ahead when it ended
    made = mirrors.MirrorDefinition("copy", "/copy", "0" * 32, every_s=10.0, late="next", last=ended)
    assert mirrors.due_ns(made) <= now


def test_what_cannot_be_written_down_is_told_and_others_go_on(world, rng, monkeypatch):
    world.add("a", every_s=0.1)
    world.add("b", every_s=0.1)
    write(world.source, "/a", rng.bytes(9000))

    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(listing, "write_definitions", is_full)
    ran = mirrors.run_side_by_side(world.source, peers=world.peers())
    assert [("No space left" in its.error, its.hint != "") for its in ran] == [(True, True)] * 2
    told: list[mirrors.Ran] = []
    loop = mirrors.MirrorLoop(world.source, world.peers(), told.append)
    thread = threading.Thread(target=loop.run)
    thread.start()
    write(world.source, "/a", rng.bytes(9000))
    wait_for(lambda: {Path(its.mirror.dest).name for its in told if "No space left" in its.error} == {"a", "b"}, "both")
    loop.stop()
    thread.join()


def test_a_mirror_that_moved_is_brought_to_its_new_place(world, rng, tmp_path):
    (tmp_path / "d1").mkdir()
    (tmp_path / "d2").mkdir()
    copy = world.add("d1/m", every_s=0.1)
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    world.opened.pop(str(copy.path)).close()
    shutil.copytree(tmp_path / "d1/m", tmp_path / "d2/m")
    loop = mirrors.MirrorLoop(world.source, world.peers())
    thread = threading.Thread(target=loop.run)
    thread.start()
    wait_for(lambda: str(copy.path) in world.opened, "the loop to have it open")
    (tmp_path / "d1").rename(tmp_path / "old")
    mirrors.add(world.source, str(tmp_path / "d2/m"), peers=world.peers(), every_s=0.1)
    write(world.source, "/b", data := rng.bytes(9000))
    world.source.sync()
    moved = world.opened[str(tmp_path / "d2/m")]
    wait_for(lambda: bp.FileSystem(moved).exists("/b"), "the file at the new place")
    loop.stop()
    thread.join()
    assert read(moved, "/b") == data


def test_a_mirror_that_is_not_made_leaves_the_disks_that_were_there(world, rng, tmp_path):
    with bp.Volume.create(tmp_path / "other", disks=1, size="8MiB") as other:
        other.snapshot("one")
        bp.send(other.image("one"), tmp_path / "other.bps")
    disk, empty = tmp_path / "mydisk", tmp_path / "empty"
    disk.touch()
    os.truncate(disk, 16 << 20)
    empty.mkdir(mode=0o700)
    wish = DiskWish((str(disk),), None)
    with pytest.raises(RefusedError):
        mirrors.add(
            world.source, str(empty), peers=world.peers(), kind="incremental", base=[tmp_path / "other.bps"], wish=wish
        )
    assert (disk.exists(), os.listdir(empty)) == (True, [])


def test_nobody_gets_a_mirror_that_is_not_made_before_it_is_gone(world, tmp_path, monkeypatch):
    place, rmtree = tmp_path / "new", making.shutil.rmtree

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def and_then(folder, **how):
        with pytest.raises(VolumeInUseError):
            bp.Volume.open(place)
        rmtree(folder, **how)

    monkeypatch.setattr(making.shutil, "rmtree", and_then)
    monkeypatch.setattr(listing, "put", fail)
    with pytest.raises(OSError, match="No space left"):
        mirrors.add(world.source, str(place))
    assert not place.exists()


def test_a_mirror_whose_place_does_not_answer_holds_nobody_up(world):
    """Steps side by side: while one waits, another has two; and what waits ends where that is not wanted any more."""
    good, let_go = world.add("good", every_s=0.1), threading.Event()
    dead = world.add("dead", every_s=0.1)
    states = []

    @contextmanager
    def peer(dest: str):
        if dest == str(dead.path):
            assert let_go.wait(60)
            raise UnreachableError(f"{dest} does not answer")
        yield VolumePeer(good)

    def wanted() -> None:
        at = bp.FileSystem(good).listdir("/") if good.was_written else []
        if at and [at] != states[-1:]:
            states.append(at)
            bp.FileSystem(world.source).mkdir(f"/d{len(at)}")
            if len(states) == 3:
                raise KeyboardInterrupt

    bp.FileSystem(world.source).mkdir("/first")
    peers = mirrors.Peers(local=peer)
    with pytest.raises(KeyboardInterrupt):
        mirrors.run_side_by_side(world.source, peers=peers, wanted=wanted, give_up=let_go.set)
    assert len(states) == 3
    ran = mirrors.run_side_by_side(world.source, peers=peers)
    assert sorted((each.error != "", each.report is None) for each in ran)[-1] == (True, True)


@pytest.mark.parametrize("how", ["get", "steady"])
def test_who_reads_a_mirror_at_length_reads_one_state(world, rng, how, tmp_path):
    """While updates arrive, and their blocks take the places of those that are read."""
    copy, n_rounds = world.add(wish=DiskWish(1, "16MiB")), 0
    expected = {f"f{i}": rng.bytes(300_000) for i in range(12)}

    def change() -> None:
        for name in expected:
            bp.FileSystem(world.source).write_bytes(f"/{name}", rng.bytes(300_000))
        assert world.outcomes() == ["brought"]

    def changing(_: object) -> None:
        nonlocal n_rounds
        if n_rounds < 3:
            n_rounds += 1
            change()

    for name, data in expected.items():
        bp.FileSystem(world.source).write_bytes(f"/{name}", data)
    assert world.outcomes() == ["brought"]
    if how == "get":
        bp.FileSystem(copy).get("/.", tmp_path / "out", progress=changing)
        found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    else:
        with bp.FileSystem(copy).steady() as files:
            found = {}
            for name in files.listdir("/"):
                changing(None)
                found[name] = files.read_bytes(f"/{name}")
    assert n_rounds == 3
    assert found == expected
    assert copy.pins.all() == []
    assert read(copy, "/f0") == read(world.source, "/f0") != expected["f0"]


def test_steps_side_by_side_end_though_there_is_always_something_due(world):
    """Each step of one lasts until the other has begun its next, for a while: there is never none under way."""
    copies, changed = {name: world.add(name, every_s=0.1) for name in ("one", "two")}, threading.Condition()
    n_begun, most = dict.fromkeys(copies, 0), 15

    @contextmanager
    def peer(dest: str):
        name = dest.rpartition("/")[2]
        other = "two" if name == "one" else "one"
        with changed:
            n_begun[name] += 1
            changed.notify_all()
            before = n_begun[other]
            if n_begun[name] < most:
                bp.FileSystem(world.source).mkdir(f"/{name}{n_begun[name]}")
                changed.wait_for(lambda: n_begun[other] > before, timeout=2)
        yield VolumePeer(copies[name])

    bp.FileSystem(world.source).mkdir("/first")
    ran = mirrors.run_side_by_side(world.source, peers=mirrors.Peers(local=peer))
    assert {each.mirror.dest for each in ran} == {str(copy.path) for copy in copies.values()}
    assert max(n_begun.values()) < most


def test_a_destination_that_cannot_be_closed_ends_no_other_mirror(world, rng):
    bad, good = world.add("bad", every_s=0.1), world.add("good", every_s=0.1)
    ran, fails = [], threading.Event()

    class Bad(VolumePeer):
        def standing(self):
            if fails.is_set():
                raise DiskError("the destination's disk failed")
            return super().standing()

    @contextmanager
    def peer(dest: str):
        is_bad = dest == str(bad.path)
        yield Bad(bad) if is_bad else VolumePeer(good)
        if is_bad and fails.is_set():
            raise DiskError("closing it failed")

    loop = mirrors.MirrorLoop(world.source, mirrors.Peers(local=peer), told=ran.append)
    thread = threading.Thread(target=loop.run)
    thread.start()
    wait_for(lambda: len(ran) >= 2, "both mirrors")
    fails.set()
    for name in ("/first", "/second"):
        data = rng.bytes(5000)
        write(world.source, name, data)
        wait_for(lambda name=name, data=data: name[1:] in bp.FileSystem(good).listdir("/"), name)
        wait_for(lambda: any("closing it failed" in each.error for each in ran), "what is told of it")
    loop.stop()
    thread.join(50)
    assert not thread.is_alive()


def test_a_loop_that_is_stopped_does_not_wait_for_a_peer(world):
    """What waits for the other side ends when the peer is closed."""
    copy, asked, closed = world.add(every_s=0.1), threading.Event(), threading.Event()

    class Silent(VolumePeer):
        def standing(self):
            asked.set()
            assert closed.wait(60)
            raise UnreachableError("nobody answers any more")

        def close(self) -> None:
            closed.set()

    @contextmanager
    def peer(dest: str):
        yield Silent(copy)

    loop = mirrors.MirrorLoop(world.source, mirrors.Peers(local=peer))
    thread = threading.Thread(target=loop.run)
    thread.start()
    bp.FileSystem(world.source).mkdir("/first")
    assert asked.wait(60)
    loop.stop()
    thread.join(50)
    assert not thread.is_alive()


# --- what an operator does beside it ---------------------------------------------------------------------------------


class Held(VolumePeer):
    """A destination that takes nothing before it may."""

    def __init__(self, volume: bp.Volume) -> None:
        super().__init__(volume)
        self.asked, self.goes_on = threading.Event(), threading.Event()

    def take(self, image, changes, progress=None, **more):
        self.asked.set()
        assert self.goes_on.wait(60)
        return super().take(image, changes, **more)


def test_one_step_of_a_mirror_at_a_time(world, rng):
    """Beside a step that goes on: one that is due does nothing, one that is asked for waits, and so does a resync."""
    copy = world.add()
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    write(world.source, "/a", rng.bytes(9000))
    held, ran = Held(copy), []
    slow = mirrors.Peers(local=lambda _: nullcontext(held))

    def begun(call) -> threading.Thread:
        thread = threading.Thread(target=lambda: ran.append(call()))
        thread.start()
        return thread

    first = begun(lambda: next(mirrors.run_once(world.source, peers=slow, now=True)))
    assert held.asked.wait(60)
    write(world.source, "/b", newest := rng.bytes(9000))
    busy = attempt(world.source, world.definition(copy), nullcontext(VolumePeer(copy)))
    assert (busy.report.outcome, busy.error) == ("busy", "")
    others = [begun(lambda: world.run()[0]), begun(lambda: world.resync(copy))]
    time.sleep(0.3)
    assert all(thread.is_alive() for thread in (first, *others))
    held.goes_on.set()
    for thread in (first, *others):
        thread.join(60)
    assert len(ran) == 3
    assert not any(getattr(each, "error", "") for each in ran)
    assert read(copy, "/b") == newest
    write(world.source, "/c", rng.bytes(9000))
    assert world.outcomes() == ["brought"]


def test_what_a_rehearsal_goes_back_to_stays(world, rng):
    copy = world.add()
    write(world.source, "/a", data := rng.bytes(9000))
    world.run()
    state = copy.mirror_of.last_complete
    mirrors.break_mirror(copy, rehearse=True)
    write(copy, "/mine", b"x" * 5000)
    copy.snapshot("tried")
    assert copy.mirror_of.last_complete == state
    for defer in (False, True):
        with pytest.raises(RefusedError, match="is what a rehearsal goes back to") as refused:
            copy.delete_snapshot(state, defer=defer)
        assert "--defer" not in refused.value.hint
    prune(copy, Policy(last=1), defer=True)
    report = mirrors.end_rehearsal(copy)
    assert (report.state, read(copy, "/a"), bp.FileSystem(copy).listdir("/")) == (state, data, ["a"])
    write(world.source, "/a", rng.bytes(9000))
    assert world.outcomes() == ["brought"]


def test_prune_in_a_rehearsal_leaves_what_that_goes_back_to(world, rng):
    copy = world.add()
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    (brought,) = names(copy)
    copy.snapshot("mine")  # of the same state; the rehearsal goes back to what was brought
    mirrors.break_mirror(copy, rehearse=True)
    for n in range(3):
        write(copy, "/mine", rng.bytes(5000))
        copy.snapshot(f"r{n}")
    would = prune(copy, Policy(last=2), dry_run=True).deleted
    assert set(prune(copy, Policy(last=2)).deleted) == set(would) == {"mine", "r0"}
    assert names(copy) == [brought, "r1", "r2"]
    assert mirrors.end_rehearsal(copy).state == brought


@pytest.mark.parametrize("before", ["nothing", "a snapshot", "a rehearsal", "changes"])
def test_what_a_resync_begins_at_is_not_pruned(world, before):
    copy = world.add(local_changes=LocalChanges.KEEP if before == "changes" else None)
    write(world.source, "/a", b"old")
    world.run()
    state = copy.mirror_of.last_complete
    if before == "a snapshot":
        copy.snapshot("theirs")
    elif before == "a rehearsal":
        mirrors.break_mirror(copy, rehearse=True)
        write(copy, "/b", b"rehearsed")
        copy.snapshot("rehearsed")
    elif before == "changes":
        write(copy, "/b", b"mine")
    mirrors.break_mirror(copy)
    for number in range(3):
        write(copy, "/b", bytes([number]) * 5000)
        copy.snapshot(f"day{number}")
    report = prune(copy, Policy(last=2))
    assert {v.name: v.reasons for v in report.verdicts}[state] == (
        "is where the mirror was broken off, from which a resync goes on",
    )
    assert names(copy) == [state, "day1", "day2"]
    assert world.resync(copy, "destination").plan.common == state
    assert read(world.source, "/b") == bytes([2]) * 5000
    write(world.source, "/a", b"and on")
    assert world.outcomes() == ["brought"]
    copy.snapshot("last")
    prune(copy, Policy(last=1))
    assert state not in names(copy)


def test_the_base_of_the_next_update_is_not_deleted_later_either(world, rng):
    copy = world.add()
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    here = world.source.destinations.get(world.definition(copy).name).acknowledged
    for volume, name in ((world.source, here), (copy, copy.mirror_of.last_complete)):
        for defer in (False, True):
            with pytest.raises(RefusedError) as refused:
                volume.delete_snapshot(name, defer=defer)
            assert "--defer" not in refused.value.hint
    write(world.source, "/a", rng.bytes(9000))
    assert world.outcomes() == ["brought"]


def test_nothing_is_left_of_what_another_update_took_the_place_of(world, rng):
    copy = world.add()
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    write(world.source, "/large", rng.bytes(12 << 20))

    class Cut(VolumePeer):
        def take(self, image, changes, progress=None, **more):
            def cut(event) -> None:
                if event.done_bytes > 9 << 20:
                    raise StreamTruncatedError("the line went dead")

            return super().take(image, changes, cut, **more)

    with pytest.raises(StreamTruncatedError):
        mirrors.step(world.source, world.definition(copy), Cut(copy))
    assert len(list(interrupted_receives(copy))) == 1
    mirrors.break_mirror(copy)
    write(copy, "/mine", rng.bytes(5000))
    assert world.resync(copy, "destination").brought is not None
    write(world.source, "/b", rng.bytes(5000))
    assert world.outcomes() == ["brought"]
    assert list(interrupted_receives(copy)) == []
    assert {hold.owner for snapshot in copy.snapshots for hold in snapshot.holds} == set()


def test_who_is_a_mirror_again_keeps_nothing_for_its_source(world, rng):
    copy = world.add()
    write(world.source, "/a", rng.bytes(9000))
    world.run()
    mirrors.break_mirror(copy)
    write(copy, "/b", rng.bytes(9000))
    assert world.resync(copy, "destination").brought is not None
    write(world.source, "/c", rng.bytes(9000))
    assert world.outcomes() == ["brought"]
    assert (copy.destinations.list(), list(records_of(copy)), list(copy.local.marks.intervals())) == ([], [], [])
    assert {hold.owner for snapshot in copy.snapshots for hold in snapshot.holds} == set()
