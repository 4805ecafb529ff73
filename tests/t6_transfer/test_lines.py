"""Histories that once went wrong, or nearly: lines of snapshots that were not built one upon the other."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from blockplane.image.image import build
from blockplane.model import RefusedError
from blockplane.transfer.receive import receive
from blockplane.transfer.send import send
from rig import Shape
from rig.site import Site, fill_pattern
from rig.transfers import Wish, transfer

SHAPES = {
    "source": [Shape(2, 1, 64, 384)],
    "left": [Shape(1, 0, 512, 512), Shape(2, 1, 64, 512, first=65536)],
    "behind": [Shape(4, 1, 192, 384), Shape(1, 1, 64, 192, first=65536)],
}


class Sites:
    """Three volumes: a source with three snapshots, a destination, one behind it."""

    def __init__(self) -> None:
        self.source, self.left, self.behind = (Site(name, shapes) for name, shapes in SHAPES.items())
        self.source.replace("/a", fill_pattern(20_000, 1))
        self.source.create("s1")
        self.source.replace("/b", fill_pattern(90_000, 2))
        self.source.write("/a", 4096, b"x" * 4096)
        self.source.create("s2")
        self.source.write("/b", 8192, b"y" * 8192)
        self.source.create("s3")

    def all(self) -> list[Site]:
        return [self.source, self.left, self.behind]


@pytest.fixture
def sites() -> Iterator[Sites]:
    made = Sites()
    yield made
    for site in made.all():
        site.check_everything()
        site.close()


def test_a_replica_whose_top_was_deleted_still_starts_a_branch(sites: Sites) -> None:
    source, left = sites.source, sites.left
    assert transfer(source, left, Wish("s1"))
    assert transfer(source, left, Wish("s2", base="s1"))
    left.delete(["s2"])
    left.replace("/c", b"local")
    left.sync()
    assert transfer(source, left, Wish("s3", base="s1")) is None
    left.check_live()


def test_a_replica_whose_top_was_deleted_still_takes_the_next(sites: Sites) -> None:
    source, left = sites.source, sites.left
    assert transfer(source, left, Wish("s1"))
    assert transfer(source, left, Wish("s2", base="s1"))
    left.delete(["s2"])
    assert transfer(source, left, Wish("s3", base="s1"))


def test_a_snapshot_of_a_branch_names_the_state_it_left(sites: Sites) -> None:
    source, left, behind = sites.source, sites.left, sites.behind
    assert transfer(source, left, Wish("s1"))
    left.replace("/c", b"local")
    left.create("l1")
    assert transfer(left, behind, Wish("s1"))
    assert transfer(left, behind, Wish("l1", base="s1"))


def test_snapshots_make_no_branch(sites: Sites) -> None:
    assert sites.source.volume.active.branches() == []


def test_what_a_full_image_laid_elsewhere_is_no_line_with_what_was_there(sites: Sites) -> None:
    """s2 lies elsewhere as a whole, s3 is built on s1: a place may be s1's and s3's and not s2's."""
    source, left = sites.source, sites.left
    assert transfer(source, left, Wish("s1"))
    assert transfer(source, left, Wish("s2"), discard=True)
    assert transfer(source, left, Wish("s3", base="s1"), discard=True)
    left.replace("/z", b"1" * 5000)
    left.unlink("/b")
    left.unlink("/a")
    left.check_everything()
    left.delete(["s3"])
    left.check_snapshot("s1")


def test_an_image_brings_snapshots_that_are_there(sites: Sites) -> None:
    source, left = sites.source, sites.left
    assert transfer(source, left, Wish("s1"))
    assert transfer(source, left, Wish("s2", base="s1"))
    left.rename_snapshot("s2", "mine")
    assert transfer(source, left, Wish("s3", ("s2",), base="s1"))
    assert left.model.names() == ["s1", "mine", "s3"]


def test_an_older_snapshot_arrives_upon_a_newer_base(sites: Sites) -> None:
    """s1 is no child of s2, though it was built on it here; the line would be s2, s1, s3."""
    source, left = sites.source, sites.left
    assert transfer(source, left, Wish("s2"))
    assert transfer(source, left, Wish("s3", ("s1",), base="s2"))
    left.replace("/a", fill_pattern(30_000, 5))
    left.create("l1")
    left.delete(["s3"])
    left.check_everything()
    left.delete(["s2"])
    left.check_everything()


def test_files_without_a_snapshot_are_not_overwritten(sites: Sites) -> None:
    sites.left.replace("/mine", b"no snapshot holds this")
    assert transfer(sites.source, sites.left, Wish("s1")) is None
    sites.left.check_live()


def test_rolling_back_keeps_what_descends_from_no_snapshot(sites: Sites) -> None:
    source = sites.source
    source.create("s4")
    source.replace("/late", b"in no snapshot")
    source.delete(["s1", "s2", "s4"])
    source.roll_back("s3", drop_later=False, drop_changes=False)
    source.delete(["s3"])
    left = source.model.names()
    assert len(left) == 1
    source.roll_back(left[0], drop_later=False, drop_changes=False)
    assert len(source.model.names()) == 2


def test_two_snapshots_of_one_state(sites: Sites) -> None:
    source, left, behind = sites.source, sites.left, sites.behind
    assert transfer(source, left, Wish("s1"))
    left.create("same")
    assert transfer(left, behind, Wish("s1"))
    assert transfer(left, behind, Wish("same"), discard=True)
    assert transfer(source, left, Wish("s2", base="s1"))


def test_siblings_side_by_side_go_on_to_a_second_tier(sites: Sites) -> None:
    source, left, behind = sites.source, sites.left, sites.behind
    assert transfer(source, left, Wish("s1"))
    assert transfer(left, behind, Wish("s1"))
    left.replace("/c", fill_pattern(80_000, 9))
    left.create("l1")
    assert transfer(left, behind, Wish("l1", base="s1"))
    assert transfer(source, left, Wish("s2", base="s1")) is None
    assert transfer(source, left, Wish("s2", base="s1"), discard=True)
    assert transfer(source, left, Wish("s3", base="s2"))
    assert transfer(left, behind, Wish("s3", ("s2",), base="s1"), discard=True)
    left.roll_back("l1", drop_later=False, drop_changes=False)
    left.replace("/d", fill_pattern(80_000, 7))
    left.create("l2")
    assert transfer(left, behind, Wish("l2", base="l1"), discard=True)
    left.delete(["s1"])
    left.delete(["s3"])


def test_a_write_during_a_receive_is_not_lost(sites: Sites) -> None:
    """The live state that a stream was accepted over must be there still when it is replaced."""
    source, left = sites.source, sites.left
    assert transfer(source, left, Wish("s1"))
    stream = io.BytesIO()
    send(build(source.volume, "s2 - s1"), stream)
    stream.seek(0)
    written: list[int] = []

    def write_once(event: object) -> None:
        if not written:
            written.append(1)
            left.replace("/late", b"written while blocks came in")

    with pytest.raises(RefusedError, match="written to"):
        receive(stream, left.volume, progress=write_once)
    left.check_live()
