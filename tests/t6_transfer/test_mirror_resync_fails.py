"""A resync that fails: from the source, the destination is what it was, and keeps what the resync had promised to; from
the destination, what it had fetched goes when a later one ends well.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest

import blockplane as bp
from blockplane.model.errors import ConnectionLostError, NoSpaceError, RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import interrupted_receives
from blockplane.volume.replicas import records_of
from rig.mirrorworld import World, names, read, states_with, write


def taken_over(world: World, changes: LocalChanges | None) -> bp.Volume:
    """Break a mirror off, with work on both sides; return it."""
    copy = world.add(local_changes=changes, wish=DiskWish(1, "8MiB"))
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    write(copy, "/b", b"written at the copy")
    write(world.source, "/a", b"new")
    return copy


@pytest.mark.parametrize("changes", [None, LocalChanges.KEEP, LocalChanges.FLUSH])
def test_a_destination_that_has_no_room_is_what_it_was(world, rng, changes):
    copy = taken_over(world, changes)
    for number in range(10):
        write(world.source, f"/n{number}", rng.bytes(1_000_000))
    before = copy.mirror_of
    with pytest.raises(NoSpaceError):
        world.resync(copy, "source")
    assert copy.mirror_of == before
    write(copy, "/b", b"more")
    for number in range(10):
        bp.FileSystem(world.source).unlink(f"/n{number}")
    assert "was broken off" in world.run()[0].error
    report = world.resync(copy, "source")
    assert (read(copy, "/a"), states_with(copy, "/b", b"more")) == (b"new", {report.kept})


@pytest.mark.parametrize("changes", [None, LocalChanges.KEEP, LocalChanges.FLUSH])
@pytest.mark.parametrize("is_gone", [False, True])
def test_no_later_step_drops_what_a_resync_had_promised_to_keep(world, changes, is_gone):
    """Also where contact is lost for good, so that the destination cannot be told."""
    copy = taken_over(world, changes)

    class Lost(VolumePeer):
        has_begun = False

        def take(self, *_, **__):
            self.has_begun = True
            raise ConnectionLostError("contact was lost")

        def become(self, record):
            if self.has_begun and is_gone:
                raise ConnectionLostError("contact was lost")
            super().become(record)

    with pytest.raises(ConnectionLostError):
        mirrors.resync(world.source, world.definition(copy), Lost(copy), "source")
    assert copy.mirror_of.state == ("mirror" if is_gone else "broken")
    for _ in range(2):
        world.run()
        assert states_with(copy, "/b", b"written at the copy") - {"own"}
        write(world.source, "/a", b"newer")
    world.resync(copy, "source")
    assert world.outcomes() == ["idle"]
    assert [name[:5] for name in states_with(copy, "/b", b"written at the copy")] == ["kept-"]


def test_what_is_dropped_on_purpose_is_not_kept(world):
    copy = taken_over(world, LocalChanges.FLUSH)
    assert world.resync(copy, "source", drop_changes=True).kept is None
    assert states_with(copy, "/b", b"written at the copy") == set()
    assert len(names(copy)) == 1


def test_a_source_without_room_leaves_nothing_of_it_at_the_destination(world, rng, tmp_path):
    copy = world.add(wish=DiskWish(1, "128MiB"))
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    for number in range(10):
        write(copy, f"/n{number}", rng.bytes(10_000_000))
    copy.snapshot("mine")
    with pytest.raises(NoSpaceError):
        world.resync(copy, "destination")
    assert (records_of(copy), [hold for each in copy.snapshots for hold in each.holds]) == ([], [])
    copy.delete_snapshot("mine")


def cut(event):
    if event.phase == "blocks" and event.done_bytes > 2_000_000:
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("winner", ["source", "destination"])
def test_what_one_that_was_cut_off_had_fetched_goes_and_what_is_pulled_elsewhere_stays(world, rng, winner, is_named):
    copy = taken_over(world, None)
    world.source.snapshot("june1")
    bp.copy(world.source.image("june1"), world.folder / "other")
    with bp.Volume.open(world.folder / "other") as other:
        write(other, "/o", rng.bytes(3_000_000))
        other.snapshot("other1")
        with pytest.raises(KeyboardInterrupt):
            pull(VolumePeer(other), world.source, "other1", progress=cut)
    write(copy, "/b", rng.bytes(3_000_000))
    if is_named:
        copy.snapshot("mine")
    with pytest.raises(KeyboardInterrupt):
        world.resync(copy, "destination", progress=cut)
    assert len(interrupted_receives(world.source)) == 2
    write(copy, "/b", b"newer")
    world.resync(copy, winner)
    assert [found.top_name for found in interrupted_receives(world.source)] == ["other1"]
    assert bp.check(world.source).problems == []


def test_no_resync_makes_two_volumes_mirrors_of_each_other(world):
    copy = taken_over(world, None)
    back = mirrors.Peers(lambda _: nullcontext(VolumePeer(world.source)))
    mirrors.add(copy, str(world.source.path), peers=back, local_changes=LocalChanges.KEEP)
    for winner in (None, "source", "destination"):
        with pytest.raises(RefusedError, match="neither could be written to"):
            world.resync(copy, winner)
    write(copy, "/b", b"more")


@pytest.mark.parametrize("taken", ["snapshot", "pointer", "image"])
def test_a_name_that_is_taken_is_told_before_anything_is_kept(world, taken):
    """By the plan, which a dry run shows, as by the resync."""
    copy = taken_over(world, None)
    copy.snapshot("june1")
    write(copy, "/b", b"more")
    if taken == "snapshot":
        world.source.snapshot("june1")
    elif taken == "pointer":
        world.source.move_pointer("june1", names(world.source)[0])
    else:
        world.source.save_image("june1", names(world.source)[0])
    before = names(world.source), names(copy), copy.mirror_of
    definition = world.definition(copy)
    for attempt in (mirrors.plan_resync, mirrors.resync):
        with pytest.raises(RefusedError, match=r"brings a snapshot june1, and .* has a"):
            attempt(world.source, definition, VolumePeer(copy), "destination")
        assert (names(world.source), names(copy), copy.mirror_of) == before
    assert mirrors.plan_resync(world.source, definition, VolumePeer(copy)).winner is None
    copy.rename_snapshot("june1", "june2")
    world.resync(copy, "destination")
    assert read(world.source, "/b") == b"more"
    assert "june2" in names(world.source)
