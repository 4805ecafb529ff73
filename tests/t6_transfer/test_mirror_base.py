"""What the next update of a mirror builds on stays, whatever is made in a mirror that may be written to."""

from __future__ import annotations

import pytest

import blockplane as bp
from blockplane.model.errors import NoSpaceError, RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume.replicas import records_of
from blockplane.volume.retention import Policy
from rig.mirrorworld import World, names, read, write


def written_to(world: World) -> tuple[bp.Volume, str]:
    """Return a mirror with a snapshot of its own on top of what was brought, and the name of what was."""
    copy = world.add(local_changes=LocalChanges.KEEP)
    write(world.source, "/a", b"old")
    world.outcomes()
    (brought,) = names(copy)
    write(copy, "/mine", b"mine")
    copy.snapshot("mine")
    return copy, brought


def require_base(copy: bp.Volume, name: str) -> None:
    for forbidden in (lambda: copy.delete_snapshot(name), lambda: copy.shadow_snapshot(name)):
        with pytest.raises(RefusedError, match="is the last complete state of a mirror"):
            forbidden()
    assert copy.mirror_of.last_complete == name


def test_what_was_brought_is_the_base_and_not_what_was_made_of_it(world):
    copy, brought = written_to(world)
    require_base(copy, brought)
    copy.delete_snapshot("mine")
    require_base(copy, brought)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]
    assert (read(copy, "/a"), copy.mirror_of.last_complete) == (
        b"new",
        world.source.destinations.list()[0].acknowledged,
    )


def test_it_is_known_after_reopening_and_through_a_rehearsal(world):
    copy, brought = written_to(world)
    place = str(copy.path)
    world.opened.pop(place).close()
    copy = world.opened[place] = bp.Volume.open(place)
    require_base(copy, brought)
    mirrors.break_mirror(copy, rehearse=True)
    write(copy, "/rehearsed", b"much")
    copy.snapshot("rehearsed")
    require_base(copy, brought)
    copy.delete_snapshot("rehearsed")
    mirrors.end_rehearsal(copy)
    require_base(copy, brought)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]


def test_one_that_was_broken_off_needs_none_until_it_is_joined_again(world):
    copy, brought = written_to(world)
    mirrors.break_mirror(copy)
    assert copy.mirror_of.last_complete == brought
    write(copy, "/mine", b"more")
    world.resync(copy, "destination")
    top = copy.mirror_of.last_complete
    assert top == world.source.destinations.list()[0].acknowledged != brought
    write(copy, "/mine", b"most")
    copy.snapshot("most")
    require_base(copy, top)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]


def test_where_it_is_not_noted_the_newest_of_the_line_is_taken(world):
    """As of mirrors whose last update an earlier release brought."""
    copy, _ = written_to(world)
    with copy.lock:
        copy.local.root.brought_id = bytes(16)
        copy.local.is_dirty = True
        copy.commit()
    require_base(copy, "mine")


def ahead(world: World) -> bp.Volume:
    """Return a mirror that shows what its source has not, which was put back as it was at `june1`."""
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    backup = world.copy_source("backup")
    write(world.source, "/a", b"new")
    world.source.snapshot("july1")
    world.outcomes()
    world.restore_source(backup)
    return copy


def test_one_that_is_turned_back_unbroken_needs_what_it_was_turned_back_to(world):
    copy = ahead(world)
    report = world.resync(copy, "source")
    require_base(copy, "june1")
    assert "july1" in copy.prune(Policy(last=1)).deleted
    write(world.source, "/a", b"newer")
    assert world.outcomes() == ["brought"]
    assert (read(copy, "/a"), read(copy, "/a", report.kept)) == (b"newer", b"new")


def test_the_source_that_was_brought_its_state_unbroken_is_no_replica_of_it(world):
    copy = ahead(world)
    world.resync(copy, "destination")
    assert (records_of(copy), [hold for each in copy.snapshots for hold in each.holds]) == ([], [])
    require_base(copy, "july1")
    write(world.source, "/a", b"newer")
    assert world.outcomes() == ["brought"]


def test_what_was_written_to_it_is_the_base_once_its_source_was_brought_that(world):
    copy, brought = written_to(world)
    world.resync(copy, "destination")
    require_base(copy, "mine")
    copy.delete_snapshot(brought)
    write(world.source, "/a", b"new")
    assert world.outcomes() == ["brought"]


def test_of_snapshots_of_the_same_files_the_one_that_was_brought_stays_it(world):
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.source.snapshot("june2")
    copy = world.add()
    world.outcomes()
    assert names(copy) == ["june1", "june2"]
    for broken in (False, True):
        if broken:
            mirrors.break_mirror(copy)
        world.resync(copy, "source")
        require_base(copy, "june2")


def added_onto(world: World, kind: str) -> bp.Volume:
    """Return a mirror that had a snapshot of the source, `base`, when it was added; the source has gone on since."""
    write(world.source, "/a", b"old")
    world.source.snapshot("base")
    base = world.folder / "base.bps"
    bp.send(world.source.image("base"), base)
    write(world.source, "/a", b"new")
    world.source.snapshot("later")
    if kind == "incremental":
        return world.add(kind=kind, base=[base], wish=DiskWish(1, "8MiB"))
    bp.receive(base, world.folder / "copy")
    return world.add(wish=DiskWish())


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_what_the_first_update_begins_from_stays_until_it_arrived(world, kind, monkeypatch):
    copy = added_onto(world, kind)
    for volume in (world.source, copy):
        with pytest.raises(RefusedError):
            volume.delete_snapshot("base")

    def full(*_args, **_options):
        raise NoSpaceError("no room", "")

    with monkeypatch.context() as patch:
        patch.setattr(VolumePeer, "take", full)
        assert world.run()[0].refused
    assert world.source.prune(Policy(last=1)).deleted == []
    (ran,) = world.run()
    assert (ran.error, ran.report.brought.base, read(copy, "/a")) == ("", "base", b"new")
    assert [hold.owner for hold in world.source.get_snapshot("base").holds] == []
    world.source.delete_snapshot("base")


def test_what_the_first_update_was_to_begin_from_is_let_go_with_the_mirror(world):
    copy = added_onto(world, "full")
    mirrors.remove_mirror(world.source, str(copy.path), peers=world.peers())
    world.source.delete_snapshot("base")
    assert names(world.source) == ["later"]


@pytest.mark.parametrize("kind", ["full", "incremental"])
def test_where_it_was_let_go_the_hint_leads_on(world, kind):
    copy = added_onto(world, kind)
    (held,) = world.source.get_snapshot("base").holds
    world.source.release_snapshot("base", held.owner)
    world.source.delete_snapshot("base")
    (ran,) = world.run()
    assert f"mirror resync {copy.path} --full --from source" in ran.hint
    report = world.resync(copy, "source", full=True)
    assert (read(copy, "/a"), read(copy, "/a", report.kept)) == (b"new", b"old")
    assert world.outcomes() == ["idle"]
