"""What is said of a mirror: what its destination was found as, what is left to travel, what was kept."""

from __future__ import annotations

import pytest

import blockplane as bp
from blockplane.transfer import mirrors
from blockplane.transfer.peer import Brought, VolumePeer
from rig.mirrorworld import World, read, unreachable, write


def told(world: World) -> tuple[str, bool]:
    """Return what status says of the one mirror: its state, and whether there was an error."""
    (found,) = mirrors.status(world.source)
    assert found.mirror.last.state in ("", found.state)
    return found.state, bool(found.error)


def test_a_mirror_that_waits_or_was_broken_off_is_not_idle(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    assert (world.outcomes(), told(world)) == (["brought"], ("idle", False))
    mirrors.break_mirror(copy, rehearse=True)
    write(world.source, "/a", b"new")
    for _ in range(2):
        assert (world.outcomes(), told(world)) == (["waiting"], ("waiting", False))
    mirrors.end_rehearsal(copy)
    assert (world.outcomes(), told(world)) == (["brought"], ("idle", False))
    mirrors.break_mirror(copy)
    write(world.source, "/a", b"newer")
    with pytest.raises(mirrors.BrokenOffError):
        mirrors.step(world.source, world.definition(copy), VolumePeer(copy))
    assert "was broken off" in world.run()[0].error
    assert told(world) == ("broken off", True)
    world.resync(copy)
    assert told(world) == ("idle", False)


def test_one_that_cannot_be_asked_is_what_it_was(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    write(world.source, "/a", b"new")

    for peers in (world.peers(), unreachable()):
        assert next(mirrors.run_once(world.source, peers=peers, now=True)).error
        assert told(world) == ("broken off", True)


@pytest.mark.parametrize("winner", ["source", "destination"])
def test_a_resync_that_brings_nothing_clears_the_error(world, winner):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    last = world.definition(copy).last
    mirrors.break_mirror(copy)
    write(world.source, "/a", b"new")
    assert "was broken off" in world.run()[0].error
    world.source.rollback("june1", drop_changes=True)
    assert world.resync(copy, winner).brought is None
    assert told(world) == ("idle", False)
    assert world.definition(copy).last.n_blocks == last.n_blocks
    assert world.outcomes() == ["idle"]


def test_an_error_is_told_with_what_to_do_about_it(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    write(world.source, "/a", b"new")
    (ran,) = world.run()
    assert ran.hint
    (found,) = mirrors.status(world.source)
    assert (found.error, found.hint) == (ran.error, ran.hint)
    assert (ran.told.count(str(copy.path)), ran.told.endswith(ran.error)) == (1, True)
    world.resync(copy, "source")
    (found,) = mirrors.status(world.source)
    assert (found.error, found.hint) == ("", "")


def test_status_shows_what_the_destination_says_of_itself(world, rng):
    """It is asked what has landed of a transfer that was cut; then it says too that it was broken off."""
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    cut(world, copy, rng)
    assert mirrors.status(world.source, peers=world.peers())[0].state == "broken off"


def cut(world: World, copy: bp.Volume, rng) -> None:
    """Break a mirror off while something travels to it."""
    write(world.source, "/a", rng.bytes(2_000_000))

    def progress(event) -> None:
        if event.phase == "blocks" and copy.mirror_of.state == "mirror":
            mirrors.break_mirror(copy)

    assert world.run(progress=progress)[0].error


def test_what_is_left_has_the_snapshots_between(world, rng):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    write(world.source, "/big", rng.bytes(2_000_000))
    world.source.snapshot("june1")
    bp.FileSystem(world.source).unlink("/big")
    (found,) = mirrors.status(world.source)
    assert found.lag_blocks < 20
    assert found.left_blocks >= 489
    mirrors.break_mirror(copy)
    plan = mirrors.plan_resync(world.source, world.definition(copy), VolumePeer(copy))
    assert plan.n_blocks == found.left_blocks
    assert plan.source.n_blocks < 20
    moved = world.resync(copy).brought.n_blocks
    assert moved - 20 < found.left_blocks <= moved


def test_what_would_be_brought_back_has_the_snapshots_between(world, rng):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    write(copy, "/big", rng.bytes(2_000_000))
    copy.snapshot("june1")
    bp.FileSystem(copy).unlink("/big")
    plan = mirrors.plan_resync(world.source, world.definition(copy), VolumePeer(copy), "destination")
    moved = world.resync(copy, "destination").brought.n_blocks
    assert moved - 20 < plan.n_blocks <= moved
    assert plan.n_blocks >= 489


@pytest.mark.parametrize("winner", ["source", "destination"])
def test_what_the_other_side_has_and_does_not_show_would_not_be_brought(world, rng, winner):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("old")
    world.outcomes()
    write(world.source, "/a", rng.bytes(2_000_000))
    world.source.snapshot("new")
    world.outcomes()
    mirrors.break_mirror(copy)
    (world.source if winner == "destination" else copy).rollback("old")
    plan = mirrors.plan_resync(world.source, world.definition(copy), VolumePeer(copy), winner)
    assert (plan.common, plan.n_blocks < 10) == ("old", True)
    brought = world.resync(copy, winner).brought
    assert (brought.n_blocks if brought is not None else 0) - plan.n_blocks < 10
    assert len(read(world.source, "/a")) == len(read(copy, "/a")) == 2_000_000


def test_what_the_destination_has_already_is_not_left(world, rng):
    """The source went back to a snapshot that it has; those before it do not count."""
    world.add()
    write(world.source, "/big", rng.bytes(2_000_000))
    world.source.snapshot("june1")
    bp.FileSystem(world.source).unlink("/big")
    world.source.snapshot("june2")
    world.outcomes()
    write(world.source, "/a", b"more")
    world.outcomes()
    world.source.rollback("june2", drop_changes=True)
    write(world.source, "/a", b"other")
    assert mirrors.status(world.source)[0].left_blocks < 20


def test_a_resync_that_first_goes_on_with_a_cut_transfer_says_what_it_kept(world, rng):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    cut(world, copy, rng)
    write(copy, "/b", b"written at the copy")
    write(world.source, "/a3", b"more")
    report = world.resync(copy, "source")
    assert read(copy, "/b", report.kept) == b"written at the copy"
    assert (report.brought.kept, world.definition(copy).last.kept) == (report.kept, report.kept)
    assert report.brought.n_blocks == world.definition(copy).last.n_blocks


def test_two_transfers_are_told_as_one():
    first, second = Brought("b", "a", 3, 300, 1.0, kept="kept-1"), Brought("c", "b", 4, 400, 2.0)
    assert second.after(first) == Brought("c", "a", 7, 700, 3.0, kept="kept-1")
