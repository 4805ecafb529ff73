"""Sources that were put back from an older copy, or copied: no update takes their mirrors back unasked."""

from __future__ import annotations

import shutil
import time

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.mirrors import running
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume.retention import Policy
from rig.mirrorworld import World, names, read, states_with, write


@pytest.fixture(autouse=True)
def asks_each_time(monkeypatch):
    monkeypatch.setattr(running, "ASK_EVERY_S", 0.0)


def put_back(world: World, *, has_snapshots: bool, **options) -> bp.Volume:
    """Let a source be put back as it was before a week of work that its mirror has; return the mirror."""
    copy = world.add(**options)
    write(world.source, "/a", b"old")
    if has_snapshots:
        world.source.snapshot("june1")
    world.outcomes()
    backup = world.copy_source("backup")
    write(world.source, "/a", b"a week of work")
    if has_snapshots:
        world.source.snapshot("july1")
        write(world.source, "/b", b"more")
    assert world.outcomes() == ["brought"]
    world.restore_source(backup)
    return copy


@pytest.mark.parametrize("has_snapshots", [False, True])
def test_a_mirror_is_not_taken_back_with_its_source(world, has_snapshots):
    copy = put_back(world, has_snapshots=has_snapshots)
    before = names(copy), copy.info.generation
    for _ in range(3):
        (ran,) = world.run()
        assert f"is ahead of {world.source.path}" in ran.error
        assert all(text in ran.hint for text in ("mirror break", "--from source, or destination"))
        assert mirrors.status(world.source)[0].error == ran.error
        assert (names(copy), copy.info.generation, read(copy, "/a")) == (*before, b"a week of work")
        write(world.source, "/c", b"first thing after")


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_mirror_is_not_taken_back_to_before_its_first_update(world, tmp_path, is_joined):
    """The source that is put back knows of none, but it was added before all that the mirror shows."""
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    if is_joined:  # with a state that is known to both
        bp.send(world.source.image("june1"), tmp_path / "june1.bps")
        bp.receive(tmp_path / "june1.bps", tmp_path / "copy")
    copy = world.add(**({"wish": DiskWish()} if is_joined else {}))
    backup = world.copy_source("backup")
    write(world.source, "/a", b"a week of work")
    assert world.outcomes() == ["brought"]
    world.restore_source(backup)
    write(world.source, "/c", b"first thing after")
    before = names(copy), copy.info.generation
    assert "is ahead of" in world.run()[0].error
    assert (names(copy), copy.info.generation, read(copy, "/a")) == (*before, b"a week of work")


@pytest.mark.parametrize("clock_s", [-86400, 0, 86400])
def test_what_a_mirror_was_added_with_is_replaced(world, monkeypatch, tmp_path, clock_s):
    """Also where it shows a snapshot of its own, whatever clock that was made by: it stays one."""
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    bp.send(world.source.image("june1"), tmp_path / "june1.bps")
    bp.receive(tmp_path / "june1.bps", tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        write(volume, "/a", b"its own")
        with monkeypatch.context() as patch:
            now = time.time_ns() + clock_s * 10**9
            patch.setattr("blockplane.volume.snapshots.time.time_ns", lambda: now)
            volume.snapshot("own")
    copy = world.add(wish=DiskWish())
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    assert (read(copy, "/a"), read(copy, "/a", "own")) == (b"new", b"its own")


@pytest.mark.parametrize("has_snapshots", [False, True])
@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("winner", ["source", "destination"])
def test_a_person_says_whose_state_both_are_to_have(world, has_snapshots, is_broken, winner):
    copy = put_back(world, has_snapshots=has_snapshots)
    write(world.source, "/c", b"first thing after")
    assert world.run()[0].error
    if is_broken:
        mirrors.break_mirror(copy)
    with pytest.raises(RefusedError, match="both sides were written to"):
        world.resync(copy)
    report = world.resync(copy, winner, full=not has_snapshots)
    assert report.kept is not None
    for _ in range(2):
        if winner == "source":
            assert report.kept in states_with(copy, "/a", b"a week of work")
            assert read(copy, "/a") == b"old"
        else:
            assert states_with(world.source, "/c", b"first thing after") == {report.kept}
            assert read(world.source, "/a") == read(copy, "/a") == b"a week of work"
        assert world.outcomes() in (["idle"], ["brought"])
        write(world.source, "/d", b"and on")
    assert [bp.check(volume).problems for volume in (world.source, copy)] == [[], []]


def test_what_both_have_is_held_until_somebody_decides(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    write(world.source, "/a", b"newer than what is known to have come")
    world.source.snapshot("july1")
    backup = world.copy_source("backup")
    write(world.source, "/a", b"a week of work")
    world.outcomes()
    world.restore_source(backup)
    write(world.source, "/c", b"first thing after")
    assert "is ahead of" in world.run()[0].error
    for number in range(3):
        world.source.snapshot(f"auto-{number}")
    world.source.prune(Policy(last=1))
    plan = mirrors.plan_resync(world.source, world.definition(copy), VolumePeer(copy), "source")
    assert plan.common == "july1"
    world.resync(copy, "source")
    assert read(copy, "/c") == b"first thing after"
    assert world.source.get_snapshot("july1").holds == []


def test_a_mirror_that_may_be_written_to_keeps_what_the_source_had_lost(world):
    copy = put_back(world, has_snapshots=True, local_changes=LocalChanges.FLUSH)
    write(world.source, "/c", b"first thing after")
    assert world.outcomes() == ["brought"]
    assert world.outcomes() == ["idle"]
    assert any(name.startswith("kept-") for name in states_with(copy, "/b", b"more"))


def test_two_copies_of_a_source_do_not_take_a_mirror_from_each_other(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    with bp.Volume.open(world.copy_source("second")) as second:
        for number in range(3):
            write(world.source, "/one", b"one %d" % number)
            write(second, "/two", b"two %d" % number)
            assert world.outcomes() == ["brought"]
            assert "is ahead of" in world.run(of=second)[0].error
            assert bp.FileSystem(copy).listdir("/") == ["a", "one"]
        report = world.resync(copy, "source", of=second)
        assert read(copy, "/one", report.kept) == b"one 2"
        assert "is ahead of" in world.run()[0].error
        assert (read(copy, "/two"), read(copy, "/one", report.kept)) == (b"two 2", b"one 2")


def test_a_mirror_is_not_taken_back_to_before_its_source_took_another_numbering(world):
    """The source was joined to what was written at a mirror before its first update, and is put back to its own."""
    first, second = world.add("first"), world.add("second", local_changes=LocalChanges.FLUSH)
    write(world.source, "/a", b"old")
    assert world.run(only=str(first.path))[0].error == ""
    backup = world.copy_source("backup")
    write(second, "/a", b"a week of work")
    world.resync(second, "destination", full=True)
    assert world.outcomes() == ["brought", "idle"]
    assert first.committed.root.space_id == world.source.committed.root.space_id
    world.restore_source(backup)
    assert first.committed.root.space_id != world.source.committed.root.space_id
    write(world.source, "/c", b"first thing after")
    before = names(first), first.info.generation
    (ran,) = world.run(only=str(first.path))
    assert "is ahead of" in ran.error
    assert (names(first), first.info.generation, read(first, "/a")) == (*before, b"a week of work")


def test_a_mirror_that_was_put_back_itself_is_not_ahead(world, tmp_path):
    """Also where the state that it shows was a mirror's own, of which the source knows nothing any more."""
    copy = world.add()
    for number in range(3):
        write(world.source, "/a", b"%d" % number)
        assert world.outcomes() == ["brought"]
        if number == 0:
            world.opened.pop(str(copy.path)).close()
            shutil.copytree(copy.path, tmp_path / "before")
        elif number == 1:
            world.source.snapshot("june1")
    world.opened.pop(str(copy.path)).close()
    shutil.rmtree(copy.path)
    (tmp_path / "before").rename(copy.path)
    (ran,) = world.run()
    assert "have no snapshot in common" in ran.error  # it is behind, and not ahead
    world.resync(world.opened[str(copy.path)], "source", full=True)
    assert read(world.opened[str(copy.path)], "/a") == b"2"


@pytest.mark.parametrize("rehearses", [False, True])
def test_a_snapshot_that_is_made_in_a_mirror_is_not_another_state(world, rehearses):
    copy = world.add()
    write(world.source, "/a", b"old")
    assert world.outcomes() == ["brought"]
    if rehearses:  # what it goes back to is a branch of its own
        mirrors.break_mirror(copy, rehearse=True)
        write(copy, "/a", b"rehearsed")
        mirrors.end_rehearsal(copy)
    copy.snapshot("theirs")
    assert world.outcomes() == ["idle"]
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    assert (read(copy, "/a"), read(copy, "/a", "theirs")) == (b"new", b"old")
