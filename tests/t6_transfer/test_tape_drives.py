"""One image by several drives at once: sets that have a part each, appended to, resumed, restored, damaged."""

from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import errors
from rig.tapes import APPEND, FORM, SNAPSHOTS, Backup, fill, same, spoil

DRIVES = ("a", "b", "c")
RESUME = replace(FORM, resume=True)


def drives(folder: Path, n_tapes: int = 4, names: tuple[str, ...] = DRIVES) -> list[bp.DriveTapes]:
    return [bp.DriveTapes([str(folder / f"{name}{i}.tap") for i in range(1, n_tapes + 1)]) for name in names]


def tapes(folder: Path, *names: str) -> list[str]:
    """The tapes that drives wrote."""
    return [str(path) for name in names or DRIVES for path in sorted(folder.glob(f"{name}?.tap"))]


def contents(names: list[str]) -> dict[str, bytes]:
    return {name: Path(name).read_bytes() for name in names}


def write_all(backup: Backup, folder: Path) -> list[bp.TapePartsReport]:
    volume = backup.volume
    reports = [bp.write_tape_parts(volume.image("s0"), drives(folder), FORM)]
    for before, after in itertools.pairwise(SNAPSHOTS):
        order = drives(folder, names=DRIVES if after == "s1" else DRIVES[::-1])  # in any order
        reports.append(bp.write_tape_parts(volume.image(f"{after} - {before}"), order, APPEND))
    return reports


@pytest.fixture(scope="module")
def backup(tmp_path_factory):
    found = fill(tmp_path_factory.mktemp("drives"), np.random.default_rng(12))
    write_all(found, found.folder)
    yield found
    found.volume.close()


def test_all_drives_restore_at_once_whatever_set_is_named_first(backup, tmp_path):
    names = tapes(backup.folder, "c", "a", "b")
    report = bp.read_tape(names, tmp_path / "copy")
    assert [(its.top, its.part) for its in report.received] == [(s, i) for s in SNAPSHOTS for i in range(3)]
    assert report.problems == []
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert bp.check(copy).ok
        assert all(same(copy.get_snapshot(name), backup.files[name]) for name in SNAPSHOTS)
    assert all(its.already_there for its in bp.read_tape(names, tmp_path / "copy").received)


def test_each_block_lies_on_one_drive_and_the_sets_say_which_part_they_have(backup):
    found = bp.list_tape_sets(tapes(backup.folder, "b", "a", "c"))
    assert [(its.part, its.n_parts, len(its.images), its.is_complete) for its in found] == [
        (i, 3, 4, True) for i in range(3)
    ]
    sizes = [[image.n_blocks for image in its.images] for its in found]
    planes = [backup.volume.image(text).n_blocks for text in ("s0", "s1 - s0", "s2 - s1", "s3 - s2")]
    assert [sum(of) for of in zip(*sizes, strict=True)] == planes
    assert max(sizes[i][0] for i in range(3)) - min(sizes[i][0] for i in range(3)) <= 1
    assert len({image.image_id for its in found for image in its.images}) == 4
    with pytest.raises(errors.UsageError, match="tapes of 3 sets"):
        bp.list_tapes(tapes(backup.folder))


def test_verify_and_reading_in_place_take_all_sets_and_name_the_part_that_is_not_there(backup):
    verdict = bp.verify_tapes(tapes(backup.folder), volume=backup.volume)
    assert (verdict.problems, verdict.ok, verdict.n_images) == ([], True, 4)
    assert sorted(verdict.proved) == list(SNAPSHOTS)
    with bp.open_stream(*tapes(backup.folder, "b", "c", "a")) as chain:
        assert same(chain, backup.files["s3"])
    lacking = bp.verify_tapes(tapes(backup.folder, "a", "c"))
    assert any("part 2 of 3" in problem for problem in lacking.problems)
    with (
        bp.open_stream(*tapes(backup.folder, "a", "c")) as chain,
        pytest.raises(errors.StreamPartMissingError, match="part 2 of 3"),
    ):
        same(chain, backup.files["s3"])


def test_sets_come_back_one_after_the_other_where_there_is_one_drive(backup, tmp_path):
    for turn in range(4):
        for name in DRIVES:
            report = bp.read_tape(tapes(backup.folder, name), tmp_path / "copy")
            assert turn == 3 or report.received[-1].n_blocks_missing > 0 or name == "c"
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert [snapshot.name for snapshot in copy.snapshots] == list(SNAPSHOTS)
        assert same(copy.get_snapshot("s3"), backup.files["s3"])


def test_a_drive_that_fails_keeps_no_other_from_ending_and_is_gone_on_with_alone(backup, tmp_path):
    image = backup.volume.image("s0")
    few = [replace(its, tapes=its.names[: 1 if i == 1 else 4]) for i, its in enumerate(drives(tmp_path))]
    with pytest.raises(errors.TapeFullError, match=r"b1\.tap.*the parts of the other 2 drives are whole") as caught:
        bp.write_tape_parts(image, few, FORM)
    assert "--resume" in caught.value.hint
    whole = contents(tapes(tmp_path, "a", "c"))
    with pytest.raises(errors.RefusedError, match="an image was not finished"):
        bp.write_tape_parts(backup.volume.image("s1 - s0"), drives(tmp_path), APPEND)
    with pytest.raises(errors.RefusedError, match="ends with another image"):
        bp.write_tape_parts(backup.volume.image("s1"), drives(tmp_path), RESUME)
    report = bp.write_tape_parts(image, drives(tmp_path, names=("b", "c", "a")), RESUME)
    assert [its is None for its in report.parts] == [False, True, True]
    assert report.n_bytes_before > 0
    assert contents(tapes(tmp_path, "a", "c")) == whole
    assert bp.verify_tapes(tapes(tmp_path), volume=backup.volume).ok
    with pytest.raises(errors.RefusedError, match="nothing was interrupted"):
        bp.write_tape_parts(image, drives(tmp_path), RESUME)


def test_a_slow_drive_keeps_no_other_waiting(backup, tmp_path):
    asked = []

    def change(its: object) -> None:
        """Bring no tape before the other drive's set is whole."""
        asked.append(its.tape)
        other, until = str(tmp_path / "b1.tap"), time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if bp.list_tapes(other).is_complete:
                    break
            except errors.BlockplaneError:  # it is being written
                pass
            time.sleep(0.01)
        else:
            raise errors.TapeError("the other drive did not end")
        shutil.move(its.drive, tmp_path / f"a-{its.tape - 1}.tap")

    two = [bp.DriveTapes(str(tmp_path / "a1.tap")), bp.DriveTapes(str(tmp_path / "b1.tap"))]
    slow, rest = backup.volume.image("s0").plane, "s0 - s0"
    form = replace(FORM, changer=change)
    report = bp.write_tape_parts(
        backup.volume.image("s0"), [replace(two[0], within=slow), replace(two[1], within=rest)], form
    )
    assert asked == list(range(2, 2 + len(asked)))
    assert asked
    assert report.parts[0].n_tapes == len(asked) + 1


def test_sets_that_do_not_belong_together_are_refused_and_nothing_is_written(backup, tmp_path):
    image, increment = backup.volume.image("s0"), backup.volume.image("s1 - s0")
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
        bp.write_tape_parts(image, drives(folder), FORM)
    bp.write_tape(image, str(tmp_path / "whole.tap"))
    before = contents([*tapes(one), *tapes(other)])
    mixed = [*drives(one)[:2], drives(other)[2]]
    for wrong, form, message in (
        (mixed, APPEND, "was not written beside"),
        ([*drives(one)[:2], drives(one, names=("b",))[0]], APPEND, "two drives are to write"),
        (drives(one)[:2], APPEND, "one of 3 parts of its images, and 2 drives were named"),
        ([*drives(one)[:2], bp.DriveTapes(str(tmp_path / "whole.tap"))], APPEND, "its images whole, and 3 drives"),
        (drives(one), FORM, "holds something, which would be overwritten"),
        ([*drives(tmp_path, names=("x", "y")), drives(one)[1]], FORM, "holds something, which would be overwritten"),
        (drives(one)[:1], FORM, "between two drives or more"),
    ):
        with pytest.raises(errors.BlockplaneError, match=message):
            bp.write_tape_parts(increment, wrong, form)
    with pytest.raises(errors.RefusedError, match="has part 1 of 3 of its images, and a whole one was to come"):
        bp.write_tape(increment, tapes(one, "a"), APPEND)
    assert contents([*tapes(one), *tapes(other)]) == before
    assert not list(tmp_path.glob("[xy]*.tap"))
    mixed_names = [*tapes(one, "a", "b"), *tapes(other, "c")]
    for look in (bp.read_tape, bp.verify_tapes, bp.list_tape_sets):
        words = (mixed_names, tmp_path / "copy") if look is bp.read_tape else (mixed_names,)
        with pytest.raises(errors.TapeSetError, match="was not written beside"):
            look(*words)


def test_a_damaged_record_of_one_drive_loses_its_blocks_alone(backup, tmp_path):
    shutil.copytree(backup.folder, tmp_path / "bad", ignore=shutil.ignore_patterns("pool"))
    bad = tapes(tmp_path / "bad", "b")[0]
    spoil(bad, 9)
    with pytest.raises(errors.TapeDamagedError) as caught:
        bp.read_tape(tapes(tmp_path / "bad"), tmp_path / "copy")
    n_lost = sum(stop - start for start, stop in caught.value.lost)
    assert 0 < n_lost <= (64 << 10) // bp.BLOCK_BYTES + 1
    assert [record.split(":")[0] for record in caught.value.records] == [f"{bad}, record {9 + 1}"]
    verdict = bp.verify_tapes(tapes(tmp_path / "bad"))
    assert [its.extents for its in verdict.lost] == [caught.value.lost]
    report = bp.read_tape(tapes(backup.folder), tmp_path / "copy")  # another copy makes up for it
    assert report.received[-1].top == "s3"
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert same(copy.get_snapshot("s3"), backup.files["s3"])


@pytest.mark.parametrize("form", ["zstd", "key"])
def test_compressed_and_encrypted_parts(backup, tmp_path, form):
    key = bp.create_key(tmp_path / "key") if form == "key" else None
    bp.write_tape_parts(
        backup.volume.image("s0"), drives(tmp_path, names=("a", "b")), FORM, key=key,
        compress="zstd:1" if form == "zstd" else None,
    )  # fmt: skip
    bp.read_tape(tapes(tmp_path), tmp_path / "copy", key=key)
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert same(copy.get_snapshot("s0"), backup.files["s0"])
