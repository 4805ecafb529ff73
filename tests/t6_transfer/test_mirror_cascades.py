"""Mirrors of mirrors: what is done in the middle or at the end is not lost, and nothing heaps up."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError
from blockplane.transfer import mirrors
from rig.mirrorworld import World, names, read, states_with, write


class Cascade(World):
    """A source, its mirror `middle`, and the mirror of that, `last`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.middle = self.add("middle")
        write(self.source, "/a", b"old")
        self.outcomes()
        self.last = self.add("last", of=self.middle)
        self.outcomes(of=self.middle)

    def flow(self) -> None:
        """Bring what the source has all the way."""
        for volume in (self.source, self.middle):
            assert set(self.outcomes(of=volume)) <= {"brought", "idle"}
        assert read(self.last, "/a") == read(self.middle, "/a") == read(self.source, "/a")


@pytest.fixture
def cascade(tmp_path: Path):
    made = Cascade(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("rehearses", [False, True])
def test_what_an_unbroken_mirror_shows_is_not_replaced_from_below(cascade, rehearses):
    middle, last = cascade.middle, cascade.last
    mirrors.break_mirror(last)
    write(last, "/b", b"written at the last")
    if rehearses:
        mirrors.break_mirror(middle, rehearse=True)
    before = names(middle), names(last)
    for call in (cascade.resync, lambda *more, of: mirrors.plan_resync(of, cascade.definition(last, of), *more)):
        arguments = (last, "destination") if call == cascade.resync else (bp.VolumePeer(last), "destination")
        with pytest.raises(RefusedError, match=f"is a mirror of {cascade.source.path}"):
            call(*arguments, of=middle)
    assert (names(middle), names(last)) == before
    assert states_with(last, "/b", b"written at the last") == {"live"}
    mirrors.break_mirror(middle)
    cascade.resync(last, "destination", of=middle)
    assert read(middle, "/b") == b"written at the last"


def test_what_a_rehearsal_does_reaches_no_mirror_below(cascade):
    middle, last = cascade.middle, cascade.last
    mirrors.break_mirror(middle, rehearse=True)
    write(middle, "/r", b"rehearsed")
    for _ in range(2):
        assert cascade.outcomes(of=middle) == ["waiting"]
        (ran,) = cascade.run(of=middle)
        assert ran.report.rehearses == str(middle.path)
    with pytest.raises(RefusedError, match="a rehearsal goes on"):
        cascade.resync(last, "source", of=middle)
    assert states_with(last, "/r", b"rehearsed") == set()
    report = mirrors.end_rehearsal(middle)
    assert states_with(middle, "/r", b"rehearsed") == {report.kept}
    write(cascade.source, "/a", b"new")
    cascade.flow()
    assert states_with(middle, "/r", b"rehearsed") == {report.kept}


def test_a_rehearsal_in_whose_midst_a_mirror_below_was_brought_up_to_date_loses_nothing(cascade, monkeypatch):
    """As a step does that had looked before the rehearsal began."""
    middle, last = cascade.middle, cascade.last
    mirrors.break_mirror(middle, rehearse=True)
    write(middle, "/r", b"rehearsed")
    with monkeypatch.context() as patched:
        patched.setattr(mirrors.stepping, "is_rehearsing", lambda _: False)
        assert cascade.outcomes(of=middle) == ["brought"]
    assert states_with(middle, "/r", b"rehearsed") == {"live", "own"}
    report = mirrors.end_rehearsal(middle)
    for _ in range(2):
        assert states_with(middle, "/r", b"rehearsed") == {report.kept}
        cascade.flow()
        write(cascade.source, "/a", b"new")
    (kept,) = states_with(last, "/r", b"rehearsed")
    assert kept.startswith("kept-")


def test_what_the_source_lost_is_kept_at_the_end_too(cascade):
    """A source that was put back counts on as if what came from it before had been its own past."""
    backup = cascade.copy_source("backup")
    write(cascade.source, "/a", b"a week of work")
    cascade.flow()
    cascade.restore_source(backup)
    for number in range(9):
        write(cascade.source, "/c", bytes([number]))
        cascade.source.sync()
    mirrors.break_mirror(cascade.last)
    kept = [cascade.resync(cascade.middle, "source", full=True).kept]
    kept.append(cascade.resync(cascade.last, "source", of=cascade.middle, full=True).kept)
    for volume, name in zip((cascade.middle, cascade.last), kept, strict=True):
        assert states_with(volume, "/a", b"a week of work") >= {name}
        assert read(volume, "/a") == b"old"


def test_what_the_source_lost_is_kept_below_by_updates_alone(cascade):
    """The middle is joined again, and what is below follows it; three levels, by ordinary steps."""
    end = cascade.add("end", of=cascade.last)
    cascade.outcomes(of=cascade.last)
    backup = cascade.copy_source("backup")
    write(cascade.source, "/a", b"a week of work")
    cascade.flow()
    cascade.outcomes(of=cascade.last)
    cascade.restore_source(backup)
    for number in range(9):
        write(cascade.source, "/c", bytes([number]))
        cascade.source.sync()
    cascade.resync(cascade.middle, "source", full=True)
    told = []
    for number in range(3):
        write(cascade.source, "/c", bytes([number]) * 100)
        cascade.outcomes()
        told += [ran.report.brought.kept for ran in cascade.run(of=cascade.middle)]
        cascade.outcomes(of=cascade.last)
    assert states_with(cascade.last, "/a", b"a week of work") == {told[0]}
    assert told[1:] == [None, None]
    assert states_with(end, "/a", b"a week of work")
    assert read(end, "/c") == bytes([2]) * 100


def test_nothing_heaps_up_at_the_end(cascade):
    """What the first source made for its mirror goes everywhere; what people made stays everywhere."""
    made = []
    for number in range(5):
        write(cascade.source, "/a", bytes([number]) * 9000)
        if number % 2:
            cascade.source.snapshot(f"june{number}")
            made.append(f"june{number}")
            write(cascade.source, "/a", bytes([number]) * 8000)
        cascade.flow()
    for volume in (cascade.source, cascade.middle, cascade.last):
        assert [name for name in names(volume) if not name.startswith("mirror.")] == made
        assert sum(name.startswith("mirror.") for name in names(volume)) <= 2
        assert bp.check(volume).problems == []
    assert sum(name.startswith("mirror.") for name in names(cascade.last)) == 1


def test_three_steps_down_each_keeps_what_the_next_builds_on(cascade):
    """No step deletes what the mirrors of a mirror stand at; it goes with the one after."""
    end = cascade.add("end", of=cascade.last)
    for number in range(4):
        write(cascade.source, "/a", bytes([number]) * 9000)
        cascade.flow()
        if number != 1:
            assert cascade.outcomes(of=cascade.last) == ["brought"]
            assert read(end, "/a") == read(cascade.source, "/a")
    assert [sum(name.startswith("mirror.") for name in names(v)) for v in (cascade.last, end)] == [2, 1]


def test_a_mirror_that_was_brought_nothing_yet_stays_empty(tmp_path):
    world = World(tmp_path)
    middle = world.add("middle")
    last = world.add("last", of=middle)
    for _ in range(2):
        assert world.outcomes(of=middle) == ["idle"]
    with pytest.raises(RefusedError, match="was brought nothing yet"):
        world.resync(last, of=middle)
    write(world.source, "/a", b"first")
    assert world.outcomes() == ["brought"]
    assert world.outcomes(of=middle) == ["brought"]
    assert read(last, "/a") == b"first"
    world.close()
