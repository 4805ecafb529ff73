"""tape write, read, list, retrieve, verify on the command line, and ls, cat, get, stat out of tapes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.stream.media.tapfile import TapFile
from rig.simh import places
from rig.tapes import spoil


@pytest.fixture
def tapes(done, pool) -> list[str]:
    """Both snapshots on a.tap."""
    done("tape", "write", "a.tap", pool, "june1")
    done("tape", "write", "a.tap", "--append", pool, "june2 - june1")
    return ["a.tap"]


def test_write_says_what_it_did_and_a_dry_run_touches_nothing(done, blockplane, pool):
    planned = done("tape", "write", "a.tap", pool, "june1", "-n", "--json").json
    assert not Path("a.tap").exists()
    report = done("tape", "write", "a.tap", pool, "june1", "--json").json
    assert (report["top"], report["base"], report["image"], report["n_tapes"]) == ("june1", None, 1, 1)
    assert report["stream_bytes"] == planned["stream_bytes"]
    assert report["n_blocks"] == planned["n_blocks"] == done("image", pool, "june1", "--json").json["n_blocks"]
    again = blockplane("tape", "write", "a.tap", pool, "june1", "--json")
    assert (again.status, again.error["kind"]) == (1, "refused")
    assert "wrote june2 onto june1 as image 2" in done("tape", "write", "a.tap", "--append", pool, "june2 - june1").out


def test_a_dry_run_says_of_each_drive_what_is_written(done, blockplane, pool):
    words = ("tape", "write", "--drive", "x.tap=meta(june1)", "--drive", "y.tap", pool, "june1")
    planned = done(*words, "-n", "--json").json
    assert not list(Path().glob("*.tap"))
    written = done(*words, "--json").json
    assert [planned[name] for name in ("top", "base", "n_blocks")] == [written[n] for n in ("top", "base", "n_blocks")]
    assert planned["stream_bytes"] == written["stream_bytes"]
    for plan, its in zip(planned["parts"], written["parts"], strict=True):
        assert plan == {name: its[name] for name in plan}
    done("tape", "write", "--discard", *words[2:])
    said = done(*words, "-n").out
    assert "would write june1 by 2 drives: " in said
    assert said.count("a stream of ") == 2


def test_a_dry_run_refuses_what_is_refused(blockplane, pool):
    drives = ("--drive", "x.tap", "--drive", "y.tap")
    for words, kind in (
        (("a.tap", "--tape-size", "1M", pool, "june1"), "usage"),
        (("a.tap", "--record-size", "1K", pool, "june1"), "usage"),
        (("a.tap", "--append", "--resume", pool, "june1"), "usage"),
        (("a.tap", "--append", pool, "june2 - june1"), "refused"),
        (("a.tap", "--compress", "gzip", pool, "june1"), "usage"),
        ((*drives, "--tape-size", "1M", pool, "june1"), "usage"),
        (("--drive", "x.tap", pool, "june1"), "usage"),
        (("--drive", "x.tap", "--drive", "x.tap", pool, "june1"), "usage"),
        ((*drives, "--append", pool, "june2 - june1"), "refused"),
    ):
        for dry in (("-n",), ()):
            outcome = blockplane("tape", "write", *words, *dry, "--json")
            assert outcome.error["kind"] == kind, (words, dry)
    told = blockplane("tape", "write", "a.tap", "-i", "june1.bps", "-n", "--json").error
    assert (told["kind"], "compress" in told["message"] + told["hint"]) == ("usage", False)
    assert not list(Path().glob("*.tap"))


def test_what_is_compressed_is_at_most_so_long(done, pool):
    most = "at most"
    assert most in done("tape", "write", "a.tap", pool, "june1", "--compress", "zstd", "-n").out
    assert most not in done("tape", "write", "a.tap", pool, "june1", "-n").out
    drives = ("--drive", "x.tap", "--drive", "y.tap")
    assert done("tape", "write", *drives, pool, "june1", "--compress", "zstd", "-n").out.count(most) == 2
    assert done("send", pool, "june1", "--part", "x", "--part", "y", "--compress", "zstd", "-n").out.count(most) == 2
    done("send", pool, "june1", "-o", "june1.bps")
    assert most in done("stream", "merge", "june1.bps", "--compress", "zstd", "-n").out
    assert most not in done("stream", "merge", "june1.bps", "-n").out


def test_list_verify_and_read(done, blockplane, pool, tapes):
    found = done("tape", "list", "a.tap", "--json").json
    assert [(i["top"], i["base"], i["tapes"]) for i in found["images"]] == [
        ("june1", None, [1]),
        ("june2", "june1", [1]),
    ]
    assert found["complete"] is True
    assert "image 2    june2 onto june1" in done("tape", "list", "a.tap").out
    verdict = done("tape", "verify", "a.tap", "--against", pool, "--json").json
    assert (verdict["ok"], verdict["proved"], verdict["lost"]) == (True, ["june1", "june2"], [])
    assert [its["snapshot"] for its in verdict["compared"]] == ["june1", "june2"]
    restored = done("tape", "read", "a.tap", "copy", "--disks", 3, "--size", "12MiB", "--json").json
    assert [its["top"] for its in restored["images"]] == ["june1", "june2"]
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    assert "there already" in done("tape", "read", "a.tap", "copy").out
    assert done("check", "copy", "--json").json["ok"] is True


def test_tapes_that_were_not_needed_may_be_named_when_the_set_is_read(done, blockplane, pool):
    done("tape", "write", "a.tap", "b.tap", "c.tap", pool, "june1")
    Path("c.tap").touch()
    all_three = ("a.tap", "b.tap", "c.tap")
    assert not Path("b.tap").exists()
    assert done("tape", "list", *all_three, "--json").json == done("tape", "list", "a.tap", "--json").json
    assert done("tape", "verify", *all_three, "--against", pool, "--json").json["proved"] == ["june1"]
    done("tape", "read", *all_three, "copy", "--disks", 3, "--size", "12MiB")
    done("tape", "retrieve", *all_three, "--path", "/tree/large", "-o", "out")
    assert Path("out").read_bytes() == Path("tree/large").read_bytes()
    Path("d.tap").write_bytes(b"something else")
    other = blockplane("tape", "list", "a.tap", "d.tap", "--json")
    assert (other.status, "d.tap" in other.error["message"]) == (1, True)
    Path("a.tap").unlink()
    gone = blockplane("tape", "list", *all_three, "--json")
    assert (gone.status, "a.tap" in gone.error["message"]) == (1, True)


def test_a_tape_that_the_set_needs_is_missed_by_its_name(done, blockplane, pool):
    with bp.Volume.open(pool) as volume:
        bp.FileSystem(volume).write_bytes("/random", os.urandom(6 << 20))
        volume.snapshot("big")
    done("tape", "write", "a.tap", "b.tap", "c.tap", "--tape-size", "4MiB", pool, "big")
    Path("b.tap").unlink()
    for verb, *more in (("verify",), ("read", "copy"), ("retrieve", "--path", "/random", "-o", "out")):
        told = blockplane("tape", verb, "a.tap", "b.tap", "c.tap", *more, "--json")
        assert (told.status, "b.tap" in told.error["message"]) == (1, True), told.error
    assert not Path("out").exists()


def test_several_drives_write_and_restore_at_once(done, blockplane, pool):
    drives = ("--drive", "x.tap=meta(june1)", "--drive", "y.tap,y2.tap")
    told = done("tape", "write", *drives, pool, "june1", "--json").json
    parts = [part["n_blocks"] for part in told["parts"]]
    assert (sum(parts), parts[0] > 0) == (told["n_blocks"], True)
    appended = done("tape", "write", "--append", *drives, pool, "june2 - june1").out
    assert "wrote june2 onto june1 by 2 drives" in appended
    assert "image 2 of set" in appended
    assert [its["part"] for its in done("tape", "list", "y.tap", "x.tap", "--json").json["sets"]] == [0, 1]
    assert "missing    the tapes of part 1 of 2" in done("tape", "list", "y.tap").out
    assert done("tape", "verify", "y.tap", "x.tap", "--json").json["proved"] == ["june1", "june2"]
    kept = done("tape", "read", "y.tap", "copy").out
    assert "part 2 of 2" in kept
    assert "are still to come with the others" in kept
    assert "copy has june2 onto june1" in done("tape", "read", "x.tap", "y.tap", "copy").out
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    assert done("ls", "y.tap,x.tap:/").out == done("ls", "copy:/").out
    for words, kind in (
        (("--drive", "x.tap", pool, "june1"), "usage"),
        (("--drive", "z.tap", "--drive", "=june1", pool, "june1"), "usage"),
        (("--drive", "z.tap", "--drive", "w.tap", "v.tap", pool, "june1"), "usage"),
        (("--drive", "z.tap", "--drive", "w.tap", "-i", "june1.bps"), "usage"),
        (("--drive", "x.tap", "--drive", "w.tap", pool, "june1"), "refused"),
    ):
        assert blockplane("tape", "write", *words, "--json").error["kind"] == kind
    assert not list(Path().glob("[zwv].tap"))


def test_what_differs_from_the_live_volume_is_found(done, blockplane, pool, tapes):
    done("snapshot", "delete", f"{pool}@june1")
    verdict = done("tape", "verify", "a.tap", "--against", pool, "--json").json
    assert [its["snapshot"] for its in verdict["compared"]] == ["june2"]
    done("snapshot", "rename", f"{pool}@june2", "july")
    outcome = blockplane("tape", "verify", "a.tap", "--against", pool)
    assert (outcome.status, "none of the snapshots" in outcome.err) == (1, True)


def test_files_are_listed_and_read_in_place(done, tapes, tree):
    assert done("ls", "a.tap:/").out.split() == ["later", "tree"]
    assert done("cat", "a.tap@june1:/tree/hello").out == "hello\n"
    assert "25,000" in done("stat", "a.tap:/later").out
    done("get", "a.tap@june1:/tree", "out")
    assert Path("out/large").read_bytes() == (tree / "large").read_bytes()


def test_a_damaged_table_is_said_and_made_anew(done, tapes):
    spoil("a.tap", -1)
    told = done("ls", "a.tap:/")
    assert "later" in told.out
    assert "where blocks lie was found group by group" in told.err
    assert "found group by group" in done("tape", "list", "a.tap", "--json").json["problems"][0]
    assert "of a name that cannot be read" in done("tape", "list", "a.tap").out


def test_a_damaged_table_behind_no_image_is_one_error(blockplane, tapes):
    raw, records = Path("a.tap").read_bytes(), places("a.tap")
    label, end = (raw[at - 4 : at + n_bytes + n_bytes % 2 + 4] for at, n_bytes in (records[0], records[-1]))
    Path("a.tap").write_bytes(label + end + bytes(4))
    spoil("a.tap", -1)
    outcome = blockplane("ls", "a.tap:/", "--json")
    assert (outcome.status, "there is no whole image on a.tap" in outcome.error["message"]) == (1, True), outcome


def test_retrieve_takes_files_trees_and_blocks(done, blockplane, pool, tapes, tree):
    done("tape", "retrieve", "a.tap", "--path", "/later", "-o", "later")
    assert Path("later").read_text() == "later" * 5000
    report = done("tape", "retrieve", "a.tap", "--snapshot", "june1", "--path", "/tree", "-o", "out", "--json").json
    assert (report["snapshot"], report["n_files"]) == ("june1", 3)
    assert Path("out/large").read_bytes() == (tree / "large").read_bytes()
    with bp.Volume.open(pool, writable=False) as volume:
        start, stop = volume.get_snapshot("june2").plane.extents()[0].tolist()
    done("tape", "retrieve", "a.tap", "--vbn", f"{start}-{stop - 1}", "-o", "blocks")
    assert Path("blocks").stat().st_size == 4096 * (stop - start)
    for words in ((), ("--vbn", "1-2", "--path", "/x"), ("--path", "/x"), ("--vbn", "2-1", "-o", "x")):
        assert blockplane("tape", "retrieve", "a.tap", *words).status == 2
    assert blockplane("tape", "retrieve", "a.tap", "--path", "/absent", "-o", "x").status == 1


def test_a_stream_comes_through_a_pipe(done, pool):
    with open("june1.bps", "rb") as stream:
        words = [sys.executable, "-m", "blockplane", "tape", "write", "a.tap", "-i", "-", "--json"]
        ended = subprocess.run(words, stdin=stream, capture_output=True, check=True)
    assert json.loads(ended.stdout)["top"] == "june1"
    done("tape", "write", "a.tap", "--append", "-i", "june2.bps")
    assert done("cat", "a.tap:/later").out == "later" * 5000


def test_a_command_changes_the_tapes(done, pool, tmp_path):
    with bp.Volume.open(pool) as volume:
        bp.FileSystem(volume).write_bytes("/random", os.urandom(6 << 20))
        volume.snapshot("big")
    Path("shelf").mkdir()
    script = tmp_path / "change"
    script.write_text(
        "#!/bin/sh\n"
        'echo "$BLOCKPLANE_TAPE $BLOCKPLANE_MODE" >> log\n'
        'mv "$BLOCKPLANE_DRIVE" shelf/$((BLOCKPLANE_TAPE - 1)).tap\n'
        '[ "$BLOCKPLANE_MODE" = write ] || mv shelf/$BLOCKPLANE_TAPE.tap "$BLOCKPLANE_DRIVE"\n'
    )
    script.chmod(0o755)
    report = done(
        "tape", "write", "drive.tap", "--tape-size", "4MiB", "--changer", script, pool, "big", "--json"
    ).json  # fmt: skip
    n = report["n_tapes"]
    assert n > 1
    shutil.move("drive.tap", f"shelf/{n}.tap")
    shutil.move("shelf/1.tap", "drive.tap")
    done("tape", "read", "drive.tap", "copy", "--changer", script)
    assert done("check", "copy", "--json").json["ok"] is True
    assert Path("log").read_text().split("\n")[:-1] == [
        *(f"{i} write" for i in range(2, n + 1)), *(f"{i} read" for i in range(2, n + 1)),
    ]  # fmt: skip


def test_damage_names_blocks_and_files_and_the_rest_comes_out(done, blockplane, pool, tree):
    with bp.Volume.open(pool) as volume:
        files = bp.FileSystem(volume)
        for name in "abcdefgh":
            files.write_bytes(f"/{name}", os.urandom(300_000))
        volume.snapshot("big")
    done("tape", "write", "a.tap", "--record-size", "64KiB", pool, "big")
    spoil("a.tap", 20)
    verdict = blockplane("tape", "verify", "a.tap", "--json")
    found = json.loads(verdict.out)
    assert (verdict.status, found["ok"]) == (1, False)
    (lost,) = found["lost"]
    n_lost = sum(stop - start for start, stop in lost["extents"])
    assert 16 <= n_lost <= 17
    named = {word for what in lost["files"] for word in what.replace(",", " ").split() if word.startswith("/")}
    assert 1 <= len(named) <= 2
    read = blockplane("tape", "read", "a.tap", "copy")
    assert read.status == 1
    assert f"{n_lost} of " in read.err
    assert all(name in read.err for name in named)
    assert "read another copy of the tape" in read.err
    assert blockplane("tape", "read", "a.tap", "copy", "--json").error["kind"] == "tape-damaged"
    out = blockplane("tape", "retrieve", "a.tap", "--path", "/", "-o", "out")
    assert out.status == 1
    whole = {f"/{name}" for name in "abcdefgh"} - named
    assert {f"/{p.name}" for p in Path("out").glob("?")} == whole
    assert (Path("out") / "tree" / "large").stat().st_size == (tree / "large").stat().st_size
    # the source makes it whole
    with open("token", "wb") as file:
        subprocess.run([sys.executable, "-m", "blockplane", "receive", "copy", "--have"], stdout=file, check=True)
    left = done("send", pool, "big", "--resume", "token", "-o", "rest.bps", "--json").json
    assert left["n_blocks"] == n_lost
    done("receive", "copy", "-i", "rest.bps")
    assert done("check", "copy", "--json").json["ok"] is True


@pytest.mark.parametrize(
    ("words", "kind", "status"),
    [
        (("list", "absent.tap"), "not-found", 1),
        (("list", "june1.bps"), "tape-label", 1),
        (("read", "june1.bps", "copy"), "tape-label", 1),
        (("read", "a.tap"), "usage", 2),
        (("write", "a.tap", "pool"), "usage", 2),
        (("write", "b.tap", "--tape-size", "1MiB", "pool", "june1"), "usage", 2),
        (("write", "b.tap", "--record-size", "2MiB", "pool", "june1"), "usage", 2),
        (("write", "b.tap", "b.tap", "pool", "june1"), "usage", 2),
        (("write", "b.tap", "--append", "--resume", "pool", "june1"), "usage", 2),
        (("write", "b.tap", "pool", "no-such"), "no-such-snapshot", 1),
        (("write", "b.tap", "-i", "absent.bps"), "not-found", 1),
        (("write", "b.tap", "-i", "tree/large"), "stream", 1),
        (("write", "pool", "-i", "june1.bps"), "tape", 1),
        (("verify", "a.tap", "a.tap"), "usage", 2),
        (("verify", "a.tap", "--against", "absent"), "not-a-volume", 1),
        (("list", "a.tap", "--changer", "'"), "usage", 2),
    ],
)
def test_bad_input_has_one_error_and_changes_nothing(blockplane, pool, tapes, words, kind, status):
    before = sorted(Path().rglob("*"))
    outcome = blockplane("tape", *words, "--json")
    assert outcome.status == status, outcome.err
    assert outcome.error["kind"] == kind
    assert sorted(Path().rglob("*")) == before


def holders(done, pool: str) -> list[list[str]]:
    found = done("info", pool, "--json").json["snapshots"]
    return [[hold["owner"] for hold in snapshot.get("holds", [])] for snapshot in found]


@pytest.mark.parametrize("drives", [1, 2])
@pytest.mark.parametrize("error", [bp.errors.DiskError("no more"), KeyboardInterrupt()], ids=["failure", "interrupt"])
def test_what_an_interrupted_write_goes_on_with_is_held(done, blockplane, pool, drives, error, monkeypatch):
    with bp.Volume.open(pool) as volume:
        bp.FileSystem(volume).write_bytes("/data", random.Random(1).randbytes(8 << 20))
        volume.snapshot("june3")
    words = ["a.tap"] if drives == 1 else ["--drive", "a.tap=meta(june3)", "--drive", "b.tap"]
    put = TapFile._put

    def fail(tape: TapFile, buffers: Sequence[bytes], n_bytes: int, n_objects: int = 1) -> None:
        put(tape, buffers, n_bytes, n_objects)
        if tape.name == words[-1] and tape._offset > 2 << 20:
            raise error

    with monkeypatch.context() as patched:
        patched.setattr(TapFile, "_put", fail)
        said = blockplane("tape", "write", *words, pool, "june3 - june2")
    (mine,) = {owner for owners in holders(done, pool) for owner in owners}
    assert mine.startswith("send:june3-june2:")
    assert f"its snapshots are held for 30 days, by {mine}" in said.err
    assert "--resume" in said.err
    assert holders(done, pool) == [[], [mine], [mine]]
    assert blockplane("snapshot", "delete", f"{pool}@june2").status == 1
    done("tape", "write", *words, "--resume", pool, "june3 - june2")
    assert holders(done, pool) == [[], [], []]
