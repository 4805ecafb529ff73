"""Everything that can be wrong with tapes has a message of its own; a damaged record loses its own blocks alone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import errors
from blockplane.stream.media import codec
from rig.simh import FILEMARK, objects, places, tap
from rig.tapes import APPEND, FORM, fill, same, spoil

RESUME = replace(FORM, resume=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three tapes of one image, and the stream on them as it was sent."""
    backup = fill(tmp_path_factory.mktemp("tapes"), np.random.default_rng(5), n_files=30)
    bp.write_tape(backup.volume.image("s0"), backup.names, FORM)
    assert len(backup.tapes) == 3
    yield backup
    backup.volume.close()


@pytest.fixture
def tapes(written, tmp_path) -> list[str]:
    return written.copied(tmp_path / "copies")


def refusal(tapes, target) -> errors.BlockplaneError:
    """The one error that restoring, and reading in place, ends with; nothing was made."""
    with pytest.raises(errors.BlockplaneError) as caught:
        bp.read_tape(tapes, target)
    return caught.value


def rewritten(name: str, parts: list[bytes | str]) -> None:
    Path(name).write_bytes(tap(*parts, 0xFFFFFFFF))


def test_tapes_out_of_order_missing_and_doubled(tapes, tmp_path):
    for order, message in (
        ([0, 2, 1], r"t3\.tap is tape 3 of its set, and tape 2 is needed here"),
        ([1, 0, 2], r"t2\.tap is tape 2 of its set, and tape 1 is needed here"),
        ([0, 2], r"t3\.tap is tape 3 of its set, and tape 2 is needed here"),
    ):
        error = refusal([tapes[i] for i in order], tmp_path / "copy")
        assert isinstance(error, errors.TapeOrderError)
        assert re.search(message, error.message)
        with pytest.raises(errors.TapeOrderError, match=message):
            bp.open_stream(*[tapes[i] for i in order])
    error = refusal(tapes[:2], tmp_path / "copy")
    assert (type(error), "tape 3 of the set is needed" in error.message) == (errors.TapeError, True)
    shutil.copy(tapes[1], tmp_path / "again.tap")
    error = refusal([*tapes[:2], tmp_path / "again.tap", tapes[2]], tmp_path / "copy")
    assert isinstance(error, errors.TapeOrderError)
    error = refusal([*tapes, tmp_path / "again.tap"], tmp_path / "copy")
    assert isinstance(error, errors.TapeOrderError)


def test_a_tape_of_another_set_and_of_another_time(written, tapes, tmp_path):
    other = [tmp_path / f"o{i}.tap" for i in range(4)]
    bp.write_tape(written.volume.image("s1"), other, FORM)
    error = refusal([tapes[0], other[1], tapes[2]], tmp_path / "copy")
    assert isinstance(error, errors.TapeSetError)
    assert "o1.tap is tape 2 of another set" in error.message
    # the second tape begins anew, and so the third: what is kept of the old third is of another time
    second = [*tapes[:2], str(tmp_path / "new3.tap")]
    cut = Path(tapes[1])
    with open(cut, "r+b") as file:
        file.truncate(4000)
    bp.write_tape(written.volume.image("s0"), second, RESUME)
    assert bp.verify_tapes(second).ok
    error = refusal([*second[:2], tapes[2]], tmp_path / "copy")
    assert isinstance(error, errors.TapeTimeError)
    assert "was written at another time than the tape before it" in error.message
    with pytest.raises(errors.TapeTimeError):
        bp.open_stream(*second[:2], tapes[2])


def test_labels_that_are_missing_damaged_or_of_others(tapes, tmp_path):
    good = Path(tapes[1]).read_bytes()
    parts = objects(tapes[1])
    spoil(tapes[1], 0, 90)
    damaged = refusal(tapes, tmp_path / "copy")
    rewritten(tapes[1], parts[2:])
    missing = refusal(tapes, tmp_path / "copy")
    rewritten(tapes[1], [b"VOL1 something of others", *parts])
    others = refusal(tapes, tmp_path / "copy")
    Path(tapes[1]).write_bytes(b"")
    blank = refusal(tapes, tmp_path / "copy")
    found = [damaged, missing, others, blank]
    assert all(isinstance(error, errors.TapeLabelError) for error in found)
    for error, what in zip(found, ("is damaged", "has no label", "is no tape of ours", "has no label"), strict=True):
        assert what in error.message
        assert "t2.tap" in error.message
    assert len({error.message for error in found}) == 4
    Path(tapes[1]).write_bytes(good)
    assert bp.verify_tapes(tapes).ok


def test_an_early_end_at_every_record_of_the_last_tape_and_inside_it(tapes, is_deep, rng, record_property):
    raw, marks = Path(tapes[2]).read_bytes(), places(tapes[2])
    ends = [offset - 4 for offset, _ in marks[1:]] + [offset + 10 for offset, _ in marks[1:]]
    chosen = ends if is_deep else [*ends[:2], *rng.choice(ends, 12, replace=False).tolist(), *ends[-6:]]
    for end in chosen:
        Path(tapes[2]).write_bytes(raw[:end])
        with pytest.raises(errors.TapeEndError, match=r"t3\.tap ends early: behind record"):
            bp.verify_tapes(tapes)
        with pytest.raises(errors.TapeEndError, match=r"t3\.tap, tape 3 of its set, "):
            bp.open_stream(*tapes)
    record_property("summary", f"tape: {len(chosen)} of {len(ends)} early ends refused")


def test_an_early_end_of_a_tape_in_the_middle_names_what_is_missing(tapes, tmp_path):
    parts = objects(tapes[1])
    rewritten(tapes[1], parts[:-20])
    verdict = bp.verify_tapes(tapes)
    assert any("t2.tap ends early: records" in problem for problem in verdict.problems)
    assert verdict.lost[0].extents
    error = refusal(tapes, tmp_path / "copy")
    assert isinstance(error, errors.TapeDamagedError)


def blocks_in(tapes: list[str], tape: int, position: int) -> set[int]:
    """The blocks some of whose bytes lie in a record: by the index of the stream and the records' own offsets."""
    head = codec.decode_record_head(objects(tapes[tape])[position])
    low, high = head.offset, head.offset + head.payload_bytes
    with bp.open_stream(*tapes) as chain:
        index = chain.files[0].index
        n_head = {frame: chain.files[0]._head(frame).head_bytes for frame in set(index.frames.tolist())}
        found = set()
        for start, stop, frame, first in zip(
            index.starts.tolist(), index.stops.tolist(), index.frames.tolist(), index.firsts.tolist(), strict=True
        ):
            for i in range(stop - start):
                at = frame + n_head[frame] + 4096 * (first + i)
                if at < high and at + 4096 > low:
                    found.add(start + i)
    return found


def test_each_damaged_record_loses_its_own_blocks_and_no_others(written, tapes, is_deep, rng, record_property):
    whole = written.tapes
    n_seen = n_lost = 0
    step = 1 if is_deep else 12
    first = int(rng.integers(step))
    for tape, name in enumerate(tapes):
        kinds = [(p, codec.decode_record_head(o)) for p, o in enumerate(objects(name)) if o != FILEMARK]
        for number, (position, head) in enumerate(kinds):
            if number == 0 or (head.offset and number % step != first):
                continue
            spoil(name, number, int(rng.integers(len(objects(name)[position]))))
            verdict = bp.verify_tapes(tapes)
            shutil.copy(whole[tape], name)
            expected = blocks_in(whole, tape, position) if head.kind is codec.RecordKind.DATA else set()
            found = {vbn for lost in verdict.lost for a, b in lost.extents for vbn in range(a, b)}
            assert found == expected, (tape, number, head.kind)
            assert len(verdict.problems) == (2 if expected else 1)
            n_seen, n_lost = n_seen + 1, n_lost + len(found)
    record_property("summary", f"tape: {n_seen} records damaged, {n_lost} blocks lost, each record's own")
    assert n_seen > 10


def test_records_that_are_gone_doubled_or_swapped_are_named(tapes, tmp_path, rng):
    parts = objects(tapes[1])
    at = int(rng.integers(10, len(parts) - 20))
    for changed in (
        [*parts[:at], *parts[at + 1 :]],
        [*parts[: at + 1], parts[at], *parts[at + 1 :]],
        [*parts[:at], parts[at + 1], parts[at], *parts[at + 2 :]],
    ):
        rewritten(tapes[1], changed)
        verdict = bp.verify_tapes(tapes)
        assert not verdict.ok
        assert any("are missing" in p or "stands where" in p for p in verdict.problems), verdict.problems
        n_lost = sum(b - a for lost in verdict.lost for a, b in lost.extents)
        assert n_lost <= 2 * 18


def test_a_file_that_is_no_tape_is_refused_in_one_sentence(tapes, tmp_path, rng):
    for raw in (rng.bytes(100_000), b"\x89BPS\r\n\x1a\n" + bytes(2000), struct.pack(">I", 80) + bytes(80)):
        Path(tapes[0]).write_bytes(raw)
        error = refusal(tapes, tmp_path / "copy")
        assert isinstance(error, errors.TapeError)
        assert "t1.tap" in error.message
    assert not (tmp_path / "copy").exists()


def test_any_byte_of_any_tape_changed_is_found_or_does_no_harm(written, tapes, is_deep, rng, record_property):
    """No mutation ends otherwise than whole, named as damage, or refused by an error of ours."""
    ends: dict[str, int] = {}
    for _ in range(400 if is_deep else 20):
        tape = int(rng.integers(3))
        raw = bytearray(Path(written.tapes[tape]).read_bytes())
        at = int(rng.integers(len(raw)))
        raw[at] ^= 1 << int(rng.integers(8))
        Path(tapes[tape]).write_bytes(raw)
        try:
            verdict = bp.verify_tapes(tapes)
            end = "whole" if verdict.ok else "named"
        except errors.TapeError as error:
            end = error.kind
        ends[end] = ends.get(end, 0) + 1
        shutil.copy(written.tapes[tape], tapes[tape])
    record_property("summary", f"tape: bytes changed, {ends}")
    assert ends.get("whole", 0) <= 1  # a padding byte, or the marker of the end


# --- kills ---

WRITER = """
import sys, blockplane as bp
from blockplane.stream.media import writer
writer.GROUP_RECORDS = 16
volume, *tapes = sys.argv[1:]
with bp.Volume.open(volume, writable=False) as its:
    bp.write_tape(its.image("s1"), tapes, bp.TapeForm(tape_size="4MiB", record_size="64KiB", resume=True))
"""

DRIVES_WRITER = """
import sys, blockplane as bp
from blockplane.stream.media import writer
writer.GROUP_RECORDS = 16
volume, *tapes = sys.argv[1:]
with bp.Volume.open(volume, writable=False) as its:
    drives = [bp.DriveTapes(tapes[:4]), bp.DriveTapes(tapes[4:])]
    form = bp.TapeForm(tape_size="4MiB", record_size="64KiB", resume=True)
    bp.write_tape_parts(its.image("s1"), drives, form)
"""


def there(names: list[str]) -> int:
    """How many bytes are on the tapes."""
    n_bytes = 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # the writer takes a tape away that it begins anew
            n_bytes += os.path.getsize(name)
    return n_bytes


def is_killed(writer: str, pool: Path, names: list[str], n_more: int) -> bool:
    """Run a writer until it has written so many bytes more; whether it was killed, and had not ended before."""
    running = subprocess.Popen([sys.executable, "-c", writer, str(pool), *names], stderr=subprocess.PIPE)
    wanted = there(names) + n_more
    while running.poll() is None and there(names) < wanted:
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    _, said = running.communicate()
    assert running.returncode in (0, -signal.SIGKILL) or b"whole" in said, said.decode()
    return running.returncode == -signal.SIGKILL


@pytest.fixture
def pool(written, tmp_path) -> Path:
    written.volume.sync()
    shutil.copytree(written.folder / "pool", tmp_path / "pool")
    return tmp_path / "pool"


def kill_often(writer: str, pool: Path, names: list[str], n_kills: int, chance: np.random.Generator) -> int:
    """Kill a writer at any moment, again and again, unless it ends; return how often it was."""
    for n_killed in range(n_kills):
        if not is_killed(writer, pool, names, int(chance.integers(5_000_000))):
            return n_killed
    return n_kills


def require_all(written, volume: bp.Volume, names: list[str], target: Path) -> None:
    """Two images are on the tapes that were used: one may have been begun, and not used."""
    used = [name for name in names if os.path.exists(name) and bp.is_tape(name)]
    verdict = bp.verify_tapes(used, volume=volume)
    assert (verdict.ok, verdict.problems) == (True, [])
    bp.read_tape(used, target)
    with bp.Volume.open(target, writable=False) as copy:
        assert same(copy.get_snapshot("s2"), written.files["s2"])
    shutil.rmtree(target)
    for name in used:
        os.unlink(name)


def one_writer(
    folder: Path, turn: int
) -> tuple[list[str], list[str], Callable[..., bp.TapeWriteReport | bp.TapePartsReport]]:
    """Return names for tapes, all of them as they are written, and what writes an image on them."""
    names = [str(folder / f"k{turn}-{i}.tap") for i in range(8)]
    return names, names, bp.write_tape


def two_drives(
    folder: Path, turn: int
) -> tuple[list[str], list[bp.DriveTapes], Callable[..., bp.TapeWriteReport | bp.TapePartsReport]]:
    """See one_writer."""
    names = [str(folder / f"{drive}{turn}-{i}.tap") for drive in "ab" for i in range(4)]
    return names, [bp.DriveTapes(names[:4]), bp.DriveTapes(names[4:])], bp.write_tape_parts


@pytest.mark.parametrize(("how", "writer"), [(one_writer, WRITER), (two_drives, DRIVES_WRITER)])
def test_writers_killed_at_any_moment_go_on(how, writer, written, pool, tmp_path, is_deep, rng, record_property):
    n_killed = n_before = 0
    for turn in range(30 if is_deep else 1):
        names, tapes, write = how(tmp_path, turn)
        n_killed += kill_often(writer, pool, names, 2, rng)
        with bp.Volume.open(pool) as volume:
            with contextlib.suppress(errors.RefusedError):  # it was finished
                n_before += write(volume.image("s1"), tapes, RESUME).n_bytes_before
            write(volume.image("s2 - s1"), tapes, APPEND)
            require_all(written, volume, names, tmp_path / f"copy{turn}")
    record_property("summary", f"tape, {how.__name__}: killed {n_killed} times, {n_before:,} bytes gone on from")
