"""What may be added as a mirror: again, by another name, after it was broken off; and what it stays."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError, UsageError
from blockplane.server.service.jobs import SnapshotJob, Work
from blockplane.server.service.timetable import Every
from blockplane.transfer import mirrors
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume import making
from rig.mirrorworld import read, unreachable, write

THERE = DiskWish()


def test_one_destination_is_one_mirror_by_whatever_name(world, tmp_path):
    copy = world.add(every_s=3600)
    write(world.source, "/a", b"old")
    world.outcomes()
    before = world.definition(copy)
    (tmp_path / "alias").symlink_to(copy.path, target_is_directory=True)
    world.opened[str(tmp_path / "alias")] = copy
    world.add("alias", wish=THERE, local_changes=LocalChanges.KEEP)
    (mirror,) = mirrors.definitions(world.source.path)
    assert (mirror.name, mirror.last, mirror.added_ns) == (before.name, before.last, before.added_ns)
    assert world.outcomes() == ["idle"]
    mirrors.remove_mirror(world.source, str(copy.path), peers=world.peers())
    assert (mirrors.definitions(world.source.path), copy.mirror_of) == ([], None)


@pytest.mark.parametrize("place", ["d2/m", "d2/other"])
def test_a_copy_of_a_mirror_takes_its_place_when_that_is_gone(world, tmp_path, place):
    (tmp_path / "d1").mkdir()
    (tmp_path / "d2").mkdir()
    copy = world.add("d1/m")
    write(world.source, "/a", b"old")
    world.outcomes()
    world.opened.pop(str(copy.path)).close()
    shutil.copytree(tmp_path / "d1/m", tmp_path / place)
    before = mirrors.definitions(world.source.path)
    with pytest.raises(RefusedError, match="by another name, or a copy of it") as refused:
        world.add(place, wish=THERE)
    assert str(copy.path) in refused.value.message
    assert mirrors.definitions(world.source.path) == before
    world.opened.pop(str(copy.path)).close()
    shutil.rmtree(tmp_path / "d1")
    moved = world.add(place, wish=THERE)
    (mirror,) = mirrors.definitions(world.source.path)
    assert (mirror.name, mirror.dest) == (before[0].name, str(tmp_path / place))
    write(world.source, "/a", b"new")
    assert (world.outcomes(), read(moved, "/a")) == (["brought"], b"new")


def test_a_schedule_of_the_mirrors_own_waits_for_the_first_update(world):
    copy = world.add()
    write(world.source, "/a", b"new")
    job = SnapshotJob("hourly", Every(3600.0), "auto")
    for _ in range(2):
        with pytest.raises(RefusedError, match="is a mirror that was brought nothing yet") as refused:
            job.run(Work(copy, 0.0, lambda: None))
        assert refused.value.hint == "bring it up to date first: `mirror run`"
    assert (world.outcomes(), read(copy, "/a")) == (["brought"], b"new")
    assert job.run(Work(copy, 0.0, lambda: None)).text.startswith("made auto,")
    write(world.source, "/a", b"newer")
    assert (world.outcomes(), read(copy, "/a"), read(copy, "/a", "auto")) == (["brought"], b"newer", b"new")


def test_one_that_was_broken_off_and_moved_is_joined_at_its_new_place(world, tmp_path):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    write(copy, "/b", b"written at the copy")
    world.opened.pop(str(copy.path)).close()
    copy.path.rename(tmp_path / "moved")
    dest = str(tmp_path / "moved")
    added = mirrors.add(world.source, dest, peers=world.peers(), wish=THERE)
    moved = world.opened[dest]
    assert (added.is_broken, moved.mirror_of.state) == (True, "broken")
    report = world.resync(moved, "source")
    assert report.plan.common is not None
    assert (read(moved, "/a"), read(moved, "/b", report.kept)) == (b"old", b"written at the copy")


def test_a_mirror_that_is_joined_again_knows_where_its_source_is_now(world, tmp_path):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    world.source.close()
    world.source.path.rename(tmp_path / "elsewhere")
    world.source = bp.Volume.open(tmp_path / "elsewhere")
    world.resync(copy, "source")
    assert copy.mirror_of.source == str(tmp_path / "elsewhere")


def test_one_that_was_broken_off_after_it_was_taken_out_can_be_had_again(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    assert not mirrors.remove_mirror(world.source, str(copy.path), peers=unreachable()).told
    mirrors.break_mirror(copy)
    write(copy, "/b", b"written at the copy")
    added = mirrors.add(world.source, str(copy.path), peers=world.peers(), local_changes=LocalChanges.KEEP)
    assert (added.is_broken, added.common, copy.mirror_of.state) == (True, "june1", "broken")
    (status,) = mirrors.status(world.source)
    assert status.state == "broken off"
    assert "was broken off" in world.run()[0].error
    report = world.resync(copy, "source")
    assert (read(copy, "/b", report.kept), copy.mirror_of.state, copy.mirror_of.may_write) == (
        b"written at the copy", "mirror", True,
    )  # fmt: skip
    assert world.outcomes() == ["idle"]


def test_a_rehearsal_is_ended_first(world):
    copy = world.add()
    write(world.source, "/a", b"real")
    world.outcomes()
    mirrors.break_mirror(copy, rehearse=True)
    write(copy, "/a", b"rehearsed")
    for attempt in (
        lambda: world.add(wish=THERE, every_s=300),
        lambda: world.resync(copy),
        lambda: world.resync(copy, "destination"),
        lambda: mirrors.plan_resync(world.source, world.definition(copy), VolumePeer(copy)),
    ):
        with pytest.raises(RefusedError, match="a rehearsal goes on in the mirror") as refused:
            attempt()
        assert "--end-rehearsal" in refused.value.hint
    assert (read(world.source, "/a"), read(copy, "/a")) == (b"real", b"rehearsed")
    mirrors.end_rehearsal(copy)
    world.add(wish=THERE, every_s=300)
    assert world.definition(copy).every_s == 300


def test_options_of_an_incremental_mirror_change_without_its_base(world, tmp_path):
    write(world.source, "/a", b"old")
    world.source.snapshot("one")
    base = tmp_path / "full.bps"
    bp.send(world.source.image("one"), base)
    fast = world.add("fast", kind="incremental", base=[base], wish=DiskWish(1, "16MiB"))
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    last = world.definition(fast).last
    for kind, every_s in (("incremental", 300), (None, 400)):
        world.add("fast", wish=THERE, kind=kind, every_s=every_s)
        found = world.definition(fast)
        assert (found.kind, found.every_s, found.last) == ("incremental", every_s, last)
    with pytest.raises(UsageError, match="is incremental, and stays so"):
        world.add("fast", wish=THERE, kind="full")
    with pytest.raises(UsageError, match="with the base that it has"):
        world.add("fast", wish=THERE, kind="incremental", base=[base])
    mirrors.remove_mirror(world.source, str(fast.path), peers=world.peers())
    world.add("fast", wish=THERE)
    assert world.definition(fast).kind == "incremental"
    copy = world.add()
    with pytest.raises(UsageError, match="is full, and stays so"):
        world.add(wish=THERE, kind="incremental")
    assert (world.definition(copy).kind, copy.mirror_of.state) == ("full", "mirror")


def test_two_volumes_are_not_each_others_mirrors(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    for rehearse in (False, True):
        if rehearse:
            mirrors.break_mirror(copy, rehearse=True)
        with pytest.raises(RefusedError, match="is itself a mirror of") as refused:
            mirrors.add(copy, str(world.source.path), peers=mirrors.Peers(local=lambda _: yielded(world.source)))
        assert "mirror break" in refused.value.hint
    assert world.source.mirror_of is None
    mirrors.break_mirror(copy)
    mirrors.remove_mirror(world.source, str(copy.path), peers=world.peers())
    mirrors.add(copy, str(world.source.path), peers=mirrors.Peers(local=lambda _: yielded(world.source)))
    assert world.source.mirror_of.state == "mirror"


def test_mirrors_of_mirrors_make_no_ring(world):
    middle = world.add("middle")
    write(world.source, "/a", b"old")
    world.outcomes()
    last = world.add("last", of=middle)
    world.outcomes(of=middle)
    there = {str(volume.path): volume for volume in (world.source, middle, last)}
    peers = mirrors.Peers(local=lambda dest: yielded(there[dest]))
    with pytest.raises(RefusedError, match=f"is itself a mirror of {world.source.path}, by way of {middle.path}"):
        mirrors.add(last, str(world.source.path), peers=peers)
    assert (world.source.mirror_of, mirrors.definitions(last.path)) == (None, [])
    mirrors.break_mirror(middle)
    mirrors.add(last, str(world.source.path), peers=peers)
    assert world.source.mirror_of.state == "mirror"


@contextmanager
def yielded(volume: bp.Volume):
    yield VolumePeer(volume)


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_what_a_maker_that_was_stopped_left_is_made_again(world, tmp_path, kind):
    write(world.source, "/a", b"a")
    world.source.snapshot("one")
    bp.send(world.source.image("one"), tmp_path / "full.bps")
    (tmp_path / "copy").mkdir()
    making.mark(tmp_path / "copy", making.NEW_FOLDER)
    base = {"kind": kind, "base": [tmp_path / "full.bps"]} if kind == "incremental" else {}
    copy = world.add(**base)
    write(world.source, "/a", b"b")
    assert world.outcomes() == ["brought"]
    assert read(copy, "/a") == b"b"
