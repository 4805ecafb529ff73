"""What a kill can leave of tapes that several drives were writing: planted, every state beside every other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import errors
from rig.simh import boundaries
from rig.tapes import APPEND, FORM, same

RESUME = replace(FORM, resume=True)
IMAGES = {"s0": "s0", "s1": "s1 - s0"}
#: What of a drive's tapes is there: the name of the tape that ends early, and after how many bytes; None: no tape.
State = tuple[str, int] | None


@dataclass
class Written:
    """A volume of two snapshots, and the tapes of two drives, two each: s0 alone, and with the increment.

    before : how much of them was there when s0 was.
    """

    folder: Path
    volume: bp.Volume
    files: dict[str, dict[str, bytes]]
    before: dict[str, int]

    def states(self, top: str, drive: str) -> list[State]:
        """Every border of objects, and places within and behind some, that the writer of an image passes."""
        found: list[State] = [None] if top == "s0" else []
        for path in self.tapes(drive)[: 1 if top == "s0" else 2]:
            whole = self.before.get(path.name, 0)
            borders = [at for at in (0, *boundaries(path)) if top == "s1" or at <= whole]
            for at in borders:
                places = (at + more for more in (0, 10, 100, 300))
                found += [(path.name, n) for n in places if (whole if top == "s1" else 0) <= n <= borders[-1]]
        return found

    def tapes(self, drive: str) -> list[Path]:
        """The tapes of a drive."""
        return sorted((self.folder / "tapes").glob(f"{drive}?.tap"))

    def plant(self, folder: Path, state: State, drive: str) -> None:
        """Leave of a drive's tapes what a state says: those before whole, those behind not there."""
        for path in self.tapes(drive) if state is not None else []:
            assert state is not None
            if path.name > state[0]:
                return
            shutil.copy(path, folder)
            if path.name == state[0]:
                with open(folder / path.name, "r+b") as file:
                    file.truncate(state[1])


def drives(folder: Path, names: str = "ab") -> list[bp.DriveTapes]:
    return [bp.DriveTapes([str(folder / f"{name}{i}.tap") for i in range(3)]) for name in names]


@pytest.fixture(autouse=True)
def short_groups(monkeypatch):
    monkeypatch.setattr("blockplane.stream.media.writer.GROUP_RECORDS", 4)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Iterator[Written]:
    folder, rng = tmp_path_factory.mktemp("drives"), np.random.default_rng(21)
    (folder / "tapes").mkdir()
    volume = bp.Volume.create(folder / "pool", disks=2, size="32M")
    fs, files, before = bp.FileSystem(volume), {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockplane.stream.media.writer.GROUP_RECORDS", 4)
        for (top, image), n_bytes in zip(IMAGES.items(), (5_000_000, 4_000_000), strict=True):
            fs.write_bytes(f"/{top}", rng.bytes(n_bytes))
            files[top] = {f"/{name}": fs.read_bytes(f"/{name}") for name in IMAGES if name <= top}
            volume.snapshot(top)
            form = FORM if top == "s0" else APPEND
            bp.write_tape_parts(volume.image(image), drives(folder / "tapes"), form)
            before = before or {path.name: boundaries(path)[-2] for path in (folder / "tapes").iterdir()}
    assert len(list((folder / "tapes").iterdir())) == 4
    yield Written(folder, volume, files, before)
    volume.close()


def gone_on(written: Written, folder: Path, top: str) -> str:
    """Resume an image, or add it where nothing of it can be gone on with; it is whole then. Return which it was."""
    image, how = written.volume.image(IMAGES[top]), "resumed"
    try:
        bp.write_tape_parts(image, drives(folder), RESUME)
    except errors.RefusedError as error:
        how = "whole" if "the image is whole" in error.message else "added"
        if how == "added" and "add one with --append" not in error.hint:
            raise
        if how == "added":
            bp.write_tape_parts(image, drives(folder), APPEND)
    used = sorted(str(path) for path in folder.iterdir())
    verdict = bp.verify_tapes(used)
    assert (verdict.problems, verdict.ok) == ([], True)
    with bp.open_stream(*used) as chain:
        assert same(chain, written.files[top])
    return how


@pytest.mark.parametrize("top", IMAGES)
def test_whatever_a_kill_leaves_of_two_drives_is_gone_on_with(written, tmp_path, top, is_deep, rng, record_property):
    ours, others = (written.states(top, drive) for drive in "ab")
    ends = [ours[0], ours[1], ours[3], ours[-1]]  # nothing, hardly anything, all of it
    pairs = [(a, b) for a in ends[:2] for b in (others[0], others[1], others[-1])]
    pairs += [(ends[2], others[-1]), (ends[-1], others[0])]
    n_more = 400 if is_deep else 4
    pairs += [(ours[int(rng.integers(len(ours)))], others[int(rng.integers(len(others)))]) for _ in range(n_more)]
    counts: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        folder = tmp_path / str(number)
        folder.mkdir()
        for drive, state in zip("ab", pair, strict=True):
            written.plant(folder, state, drive)
        how = gone_on(written, folder, top)
        counts[how] = counts.get(how, 0) + 1
        shutil.rmtree(folder)
    record_property("summary", f"tape: two drives left in {len(pairs)} of {len(ours) * len(others)} states: {counts}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_is_written_where_one_drive_was_begun_with_another_image(written, tmp_path):
    ours = written.states("s0", "a")
    written.plant(tmp_path, ours[-30], "a")
    written.plant(tmp_path, ("b0.tap", 400), "b")
    before = contents(tmp_path)
    with pytest.raises(errors.RefusedError, match=r"a0\.tap was begun with another image"):
        bp.write_tape_parts(written.volume.image("s1"), drives(tmp_path), RESUME)
    assert contents(tmp_path) == before
    assert gone_on(written, tmp_path, "s0") == "resumed"


def test_drives_that_were_given_their_blocks_go_on_in_any_order(written, tmp_path):
    image = written.volume.image("s0")
    half = image.plane.copy()
    half.remove_many(np.arange(0, half.n_blocks, 2))
    one, other = drives(tmp_path)
    bp.write_tape_parts(image, [replace(one, within=half), other], FORM)
    with open(tmp_path / "a0.tap", "r+b") as file:
        file.truncate(boundaries(tmp_path / "a0.tap")[-12])
    report = bp.write_tape_parts(image, [other, replace(one, within=half)], RESUME)
    assert [its is None for its in report.parts] == [True, False]
    assert bp.verify_tapes(sorted(tmp_path.iterdir())).ok


def test_a_set_that_is_refused_leaves_none_of_its_tapes_locked(written, tmp_path):
    written.plant(tmp_path, written.states("s0", "a")[-20], "a")
    written.plant(tmp_path, written.states("s0", "b")[-1], "b")
    for names in (["a0.tap"], ["b0.tap", "a0.tap"]):
        with pytest.raises(errors.TapeEndError) as caught:
            bp.open_stream(*(tmp_path / name for name in names))
        assert gone_on(written, tmp_path, "s0") in ("resumed", "whole"), caught
        written.plant(tmp_path, written.states("s0", "a")[-20], "a")


def test_what_is_no_tape_of_ours_and_ends_inside_a_record_is_not_written_over(written, tmp_path, rng):
    image = written.volume.image("s0")
    for raw in (rng.bytes(5), b"\x00\x10\x00\x00BP", (50_000).to_bytes(4, "little") + rng.bytes(9_000)):
        (tmp_path / "a0.tap").write_bytes(raw)
        for form in (FORM, RESUME, APPEND):
            with pytest.raises(errors.BlockplaneError, match=r"a0\.tap"):
                bp.write_tape(image, tmp_path / "a0.tap", form)
            assert contents(tmp_path) == {"a0.tap": raw}


@pytest.mark.parametrize("locations", ["explicit", "implicit"])
def test_tapes_of_an_earlier_attempt_are_no_part_of_a_later_one(written, tmp_path, locations, is_deep, rng):
    """What has no use is written anew from the first tape on: a second one that is left has its label, and groups."""
    image, names = written.volume.image("s0"), [tmp_path / f"t{i}.tap" for i in range(3)]
    bp.write_tape(image, names, FORM, locations=locations)
    whole = [name.read_bytes() for name in names if name.exists()]
    assert len(whole) == 2
    for _ in range(20 if is_deep else 2):
        left = whole[1][: int(rng.integers(500, len(whole[1]) - 4))]
        for name, raw in zip(names, (whole[0], left), strict=False):
            name.write_bytes(raw)
        bp.write_tape(image, names, RESUME, locations=locations)
        assert bp.verify_tapes(names[:2]).ok
        again = names[0].read_bytes()  # the same, but for its beginning
        names[0].write_bytes(again[: int(rng.integers(500, len(again) - 4))])
        names[1].write_bytes(left)
        bp.write_tape(image, names, RESUME, locations=locations)
        assert bp.verify_tapes(names[:2]).ok
        with bp.open_stream(*names[:2]) as chain:
            assert same(chain, written.files["s0"])
