"""What a mirror's own snapshot alone has is kept once a live state is given up, on either side, and reports name it."""

from __future__ import annotations

import pytest

import blockplane as bp
from blockplane.transfer import mirrors
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume.retention import Policy
from rig.mirrorworld import World, names, read, states_with, write


def rolled_back(world: World) -> bp.Volume:
    """Bring work to a mirror; return that. The source's live state is in the mirror's own snapshot alone."""
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    write(world.source, "/a", b"a day of work")
    world.outcomes()
    assert states_with(world.source, "/a", b"a day of work") == {"live", "own"}
    return copy


def test_a_rollback_keeps_what_only_the_mirrors_snapshot_has(world):
    copy = rolled_back(world)
    kept = world.source.rollback("june1")
    assert kept == "before-rollback-to-june1"
    for _ in range(2):
        assert states_with(world.source, "/a", b"a day of work") == {kept}
        assert world.outcomes() == ["brought"]
        write(world.source, "/b", b"and on")
    assert read(copy, "/a") == b"old"
    (there,) = states_with(copy, "/a", b"a day of work")
    assert there.startswith("kept-")
    assert sum(name.startswith("mirror.") for name in names(copy)) == 1
    world.source.rollback(kept)
    assert world.outcomes() == ["brought"]
    assert read(copy, "/a") == b"a day of work"
    assert [bp.check(volume).problems for volume in (world.source, copy)] == [[], []]


def test_an_update_onto_what_was_rolled_back_says_what_it_replaced(world):
    copy = rolled_back(world)
    world.source.rollback("june1")
    (ran,) = world.run()
    assert ran.report.brought.kept in names(copy)
    assert read(copy, "/a", ran.report.brought.kept) == b"a day of work"
    write(world.source, "/a", b"next")
    (ran,) = world.run()
    assert ran.report.brought.kept is None  # the top came from what was there


def test_a_rollback_keeps_it_under_the_name_that_was_asked_for(world):
    rolled_back(world)
    assert world.source.rollback("june1", keep_as="mine") == "mine"
    assert states_with(world.source, "/a", b"a day of work") == {"mine"}
    assert world.source.rollback("mine") is None  # june1 has all that is given up


def test_what_is_given_up_on_purpose_stays_as_long_as_the_mirrors_snapshot(world):
    rolled_back(world)
    assert world.source.rollback("june1", drop_changes=True) is None
    world.outcomes()
    (kept,) = states_with(world.source, "/a", b"a day of work")
    assert kept.startswith("kept-")


def test_a_mirror_that_is_removed_leaves_what_was_given_up(world):
    copy = rolled_back(world)
    world.source.rollback("june1", drop_changes=True)
    mirrors.remove_mirror(world.source, str(copy.path), peers=world.peers())
    (kept,) = states_with(world.source, "/a", b"a day of work")
    assert names(world.source) == ["june1", kept]


def test_own_snapshots_of_what_is_shown_go(world):
    """On a line without rollbacks nothing is left of what a mirror made for itself."""
    copy = world.add()
    for number in range(4):
        write(world.source, "/a", bytes([number]) * 9000)
        assert world.outcomes() == ["brought"]
    assert len(names(copy)) == len(names(world.source)) == 1


def test_a_source_that_is_brought_another_state_keeps_what_another_mirror_was_brought(world):
    x, y = world.add("x"), world.add("y")
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(x)
    write(x, "/b", b"written at x")
    write(world.source, "/a", b"new at source")
    assert [bool(ran.error) for ran in world.run()] == [True, False]  # x was broken off
    report = world.resync(x, "destination")
    assert report.kept is not None
    for _ in range(2):
        assert states_with(world.source, "/a", b"new at source") == {report.kept}
        world.outcomes()
    assert (read(y, "/b"), read(y, "/a")) == (b"written at x", b"old")


def test_a_source_that_went_back_and_is_brought_forward_keeps_what_it_went_back_to(world):
    one, two = world.add("one"), world.add("two", local_changes=LocalChanges.KEEP)
    write(world.source, "/a", b"old")
    world.source.snapshot("june0")
    write(world.source, "/a", went_back_to := b"a day of work")
    assert world.outcomes() == ["brought", "brought"]
    write(world.source, "/a", b"later")
    world.source.snapshot("june1")
    mirrors.step(world.source, world.definition(two), VolumePeer(two))
    world.resync(one, "destination")
    assert read(world.source, "/a") == went_back_to
    write(two, "/b", b"upon what is later")
    report = world.resync(two, "destination")
    assert states_with(world.source, "/a", went_back_to) - {"own"} == {report.kept}
    for number in range(2):
        write(world.source, "/c", b"%d" % number)
        assert world.run()[1].error == ""
        assert states_with(world.source, "/a", went_back_to) - {"own"} == {report.kept}


@pytest.mark.parametrize("winner", ["source", "destination"])
@pytest.mark.parametrize("is_ahead", [False, True])
def test_retention_does_not_take_what_a_resync_set_aside(world, winner, is_ahead):
    """Though it is in a snapshot that people, or a schedule, made: one that is kept stands beside it."""
    copy = world.add()
    write(world.source, "/a", b"old")
    world.source.snapshot("june1")
    world.outcomes()
    mirrors.break_mirror(copy)
    loser, best = (world.source, copy) if winner == "destination" else (copy, world.source)
    write(loser, "/b", b"precious")
    loser.snapshot("auto-1")
    if not is_ahead:
        write(best, "/a", b"new")
        best.snapshot("auto-2")
    report = world.resync(copy, winner)
    assert states_with(loser, "/b", b"precious") == {"auto-1", report.kept}
    for number in range(2):
        write(world.source, "/c", b"%d" % number)
        world.source.snapshot(f"auto-{3 + number}")
        assert world.outcomes() == ["brought"]
        for volume in (world.source, copy):
            volume.prune(Policy(last=1, only=("auto-*",)))
    assert "auto-1" not in names(loser)
    assert states_with(loser, "/b", b"precious") == {report.kept}


def test_what_was_under_way_when_the_mirror_broke_is_kept(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    write(world.source, "/a", work := b"new at source" * 20_000)

    def broken_off(event):
        if event.phase == "blocks" and copy.mirror_of.state == "mirror":
            mirrors.break_mirror(copy)

    assert "was broken off" in world.run(progress=broken_off)[0].error
    write(copy, "/b", b"written at the copy")
    report = world.resync(copy, "destination")
    assert states_with(world.source, "/a", work) == {report.kept}
    assert world.outcomes() == ["idle"]


def test_a_resync_that_was_interrupted_and_then_turned_round_keeps_what_was_written(world):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    mirrors.break_mirror(copy)
    write(copy, "/b", work := b"written at the copy" * 20_000)
    write(world.source, "/a", b"new at source")

    def interrupted(event):
        if event.phase == "blocks":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.resync(copy, "destination", progress=interrupted)
    report = world.resync(copy, "source")
    assert states_with(copy, "/b", work) == {report.kept}
    write(world.source, "/a", b"newer")
    assert world.outcomes() == ["brought"]
    assert states_with(copy, "/b", work) == {report.kept}


def test_a_pull_into_a_mirrors_source_keeps_what_only_the_mirror_was_brought(world, tmp_path):
    copy = rolled_back(world)
    bp.copy(world.source.image("june1"), tmp_path / "other")
    with bp.Volume.open(tmp_path / "other") as other:
        write(other, "/o", b"of the other")
        other.snapshot("june2")
        report = pull(VolumePeer(other), world.source, "june2")
    assert states_with(world.source, "/a", b"a day of work") == {report.brought.kept}
    assert world.outcomes() == ["brought"]
    assert states_with(world.source, "/a", b"a day of work") == {report.brought.kept}
    (there,) = states_with(copy, "/a", b"a day of work")
    assert there.startswith("kept-")


def test_a_persons_snapshot_that_is_named_as_a_mirrors_is_theirs(world):
    copy = world.add()
    write(world.source, "/a", b"precious")
    name = world.definition(copy).prefix + "before-upgrade"
    world.source.snapshot(name)
    for number in range(2):
        write(world.source, "/a", b"new %d" % number)
        assert world.outcomes() == ["brought"]
        assert states_with(world.source, "/a", b"precious") == {name}
        assert states_with(copy, "/a", b"precious") == {name}
