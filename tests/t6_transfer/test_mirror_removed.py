"""A mirror that is taken out, at whichever moment: nothing more is brought to it, and nothing is left for it."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError
from blockplane.transfer import mirrors
from blockplane.transfer.mirrors import turns
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import interrupted_receives
from rig.mirrorworld import names, read, unreachable, write
from rig.owners import wait_for

THERE = DiskWish()


def kept_for(volume: bp.Volume) -> tuple[list[str], list[object], list[str]]:
    """Return what a source keeps for mirrors: snapshots, where they stand, owners of holds."""
    owners = [hold.owner for snapshot in volume.snapshots for hold in snapshot.holds]
    return names(volume), volume.destinations.list(), owners


@pytest.mark.parametrize("changes", [None, LocalChanges.FLUSH])
def test_a_volume_that_is_no_mirror_any_more_is_not_updated(world, changes):
    """As when the removal was cut short after the destination was told, or the source was put back from before it."""
    copy = world.add(local_changes=changes)
    write(world.source, "/a", b"old")
    world.outcomes()
    VolumePeer(copy).become(None)
    write(copy, "/mine", b"mine")
    before = names(copy)
    write(world.source, "/a", b"new")
    (ran,) = world.run()
    assert "is no mirror of" in ran.error
    assert "mirror remove" in ran.hint
    assert (read(copy, "/mine"), read(copy, "/a"), names(copy)) == (b"mine", b"old", before)


def test_a_volume_that_is_no_mirror_refuses_what_was_begun_before(world):
    """It is taken out between the step's question and its transfer."""
    copy = world.add(local_changes=LocalChanges.FLUSH)
    write(world.source, "/a", b"old")
    world.outcomes()
    write(world.source, "/a", b"new")

    class Other(VolumePeer):
        def standing(self):
            found = super().standing()
            self.volume.mirror_of is not None and self.become(None)
            write(self.volume, "/mine", b"mine")
            return found

    with pytest.raises(RefusedError, match="no mirror of this volume any more"):
        mirrors.step(world.source, world.definition(copy), Other(copy))
    assert read(copy, "/mine") == b"mine"


def test_a_refused_update_leaves_no_snapshot(world):
    """The two have nothing in common: the source was put back from before what the mirror has."""
    copy = world.add(local_changes=LocalChanges.KEEP)
    write(world.source, "/a", b"old")
    world.outcomes()
    backup = world.copy_source("backup")
    write(world.source, "/a", b"a week of work")
    world.outcomes()
    world.restore_source(backup)
    before = names(world.source)
    for number in range(3):
        write(world.source, "/c", bytes([number]) * 9000)
        assert "no snapshot in common" in world.run()[0].error
        assert names(world.source) == before
    assert read(copy, "/a") == b"a week of work"


def test_a_mirror_that_is_taken_out_in_a_transfer_leaves_nothing(world, rng):
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    write(world.source, "/a", rng.bytes(2_000_000))
    removed: list[mirrors.RemoveReport] = []

    def remove() -> None:
        removed.append(mirrors.remove_mirror(world.source, str(copy.path), peers=world.peers()))

    thread = threading.Thread(target=remove)

    def progress(event) -> None:
        if event.phase == "blocks" and not thread.ident:
            thread.start()
            its = turns.turn_of(world.source, world.definition(copy).name)
            wait_for(lambda: its.is_over, "the removal to begin")

    (ran,) = world.run(progress=progress)
    thread.join()
    assert "was taken out" in ran.error
    assert (removed[0].told, mirrors.definitions(world.source.path)) == (True, [])
    assert kept_for(world.source) == ([], [], [])
    assert (interrupted_receives(copy), len(names(copy)), read(copy, "/a")) == ([], 1, b"old")


def test_a_transfer_that_a_removal_does_not_wait_for_leaves_nothing_either(world, rng, monkeypatch):
    monkeypatch.setattr(mirrors.managing, "last_turn", lambda *its: turns.last_turn(*its, wait_s=0.1))
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    write(world.source, "/a", rng.bytes(2_000_000))

    def progress(event) -> None:
        if event.phase == "blocks" and mirrors.definitions(world.source.path):
            mirrors.remove_mirror(world.source, str(copy.path), peers=world.peers())

    assert world.run(progress=progress)[0].error
    assert kept_for(world.source) == ([], [], [])
    assert (interrupted_receives(copy), len(names(copy)), read(copy, "/a")) == ([], 1, b"old")


def test_a_mirror_that_is_taken_out_while_its_destination_is_asked_is_not_updated(world, rng, monkeypatch):
    monkeypatch.setattr(mirrors.managing, "last_turn", lambda *its: turns.last_turn(*its, wait_s=0.1))
    copy = world.add()
    write(world.source, "/a", b"old")
    world.outcomes()
    world.source.snapshot("june1")
    world.outcomes()
    write(world.source, "/a", rng.bytes(100_000))

    class Slow(VolumePeer):
        def standing(self):
            found = super().standing()
            assert not mirrors.remove_mirror(world.source, str(copy.path), peers=unreachable()).told
            return found

    @contextmanager
    def slow(_dest: str):
        yield Slow(copy)

    (ran,) = mirrors.run_once(world.source, peers=mirrors.Peers(local=slow), now=True)
    assert "was taken out" in ran.error
    assert (kept_for(world.source), read(copy, "/a")) == ((["june1"], [], []), b"old")
    world.add(wish=THERE)  # the next one of that name has turns of its own
    assert world.outcomes() == ["brought"]
