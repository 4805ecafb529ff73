"""Ranges of which only some snapshots count: what is sent, and what arrives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockplane as bp
from blockplane.image import build
from blockplane.model import NoSuchSnapshotError, UsageError

NAMES = ["s1", "s2", "s3", "s4", "s5"]


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    rng = np.random.default_rng(11)
    with bp.Volume.create(tmp_path_factory.mktemp("chosen") / "v", disks=3, size="16M") as made:
        files = bp.FileSystem(made)
        for number, name in enumerate(NAMES):
            files.write_bytes(f"/{number}", rng.bytes(40_000))
            files.write_bytes("/same", rng.bytes(40_000))
            made.snapshot(name)
        yield made


def members(plane):
    return {n for start, stop in plane.extents().tolist() for n in range(start, stop)}


SOME = st.lists(st.sampled_from(NAMES), unique=True, max_size=4)


@given(first=st.integers(0, 4), last=st.integers(0, 4), include=SOME, exclude=SOME)
def test_a_range_holds_what_was_chosen_of_it(volume, first, last, include, exclude):
    first, last = sorted((first, last))
    inside = NAMES[first : last + 1]
    include, exclude = [n for n in include if n in inside], [n for n in exclude if n in inside]
    chosen = [n for n in inside if (not include or n in include) and n not in exclude]
    text = f"{inside[0]}..{inside[-1]}"
    if not chosen:
        with pytest.raises(UsageError, match="no snapshot of the range"):
            build(volume, text, include=include, exclude=exclude)
        return
    image = build(volume, text, include=include, exclude=exclude)
    planes = {snapshot.name: members(snapshot.plane) for snapshot in volume.snapshots}
    assert members(image.plane) == set().union(*(planes[name] for name in chosen))
    assert image.top.name == chosen[-1]
    assert [record.name for record in image.arriving] == chosen[::-1]
    assert {record.name for record in image.records()} == set(chosen)
    if include or exclude:
        assert str(image) == " + ".join(reversed(chosen))


def test_names_by_themselves_stay_and_a_base_can_be_left_out_of_its_range(volume):
    image = build(volume, "s1..s5 - s1", exclude=["s1", "s3"])
    assert str(image) == "s5 + s4 + s2 - s1"
    assert (image.base.name, [record.name for record in image.arriving]) == ("s1", ["s5", "s4", "s2"])
    assert str(build(volume, "s3 + s2..s5", exclude=["s3"])) == "s3 + (s5 + s4 + s2)"
    assert str(build(volume, "s1..s2 & s2..s3", include=["s2"])) == "s2 & s2"


def test_what_is_left_out_does_not_arrive(volume, tmp_path):
    volume.snapshot("again")
    try:
        image = build(volume, "s4..again", exclude=["s5"])
        bp.send(image, tmp_path / "some.bps")
        report = bp.receive(tmp_path / "some.bps", tmp_path / "copy")
        assert set(report.arrived) == {"again", "s4"}
        assert "s5" in report.left_out
        with bp.Volume.open(tmp_path / "copy") as copy:
            assert [snapshot.name for snapshot in copy.snapshots] == ["s4", "again"]
            assert bp.check(copy).ok
    finally:
        volume.delete_snapshot("again")


@pytest.mark.parametrize("options", [{"include": ["s5"]}, {"exclude": ["s5"]}])
def test_a_name_in_no_range_is_refused(volume, options):
    with pytest.raises(UsageError, match=r"s5 lies in no range of s1\.\.s3"):
        build(volume, "s1..s3", **options)
    with pytest.raises(UsageError, match="lies in no range"):
        build(volume, "s5 + s4", **options)
    with pytest.raises(NoSuchSnapshotError):
        build(volume, "s1..s3", exclude=["absent"])
