"""receive --have and --abort, send --resume and --hold on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.disks import FileDisk
from blockplane.stream.fdsink import Buffer
from blockplane.stream.filesink import FileSink

COMMAND = [sys.executable, "-m", "blockplane"]


@pytest.fixture
def big(done) -> str:
    """A volume of 6 MiB in june1, and its stream, cut in the middle."""
    with bp.Volume.create("big", disks=3, size="16MiB") as volume:
        bp.FileSystem(volume).write_bytes("/data", os.urandom(6 << 20))
        volume.snapshot("june1")
    done("send", "big", "june1", "-o", "whole.bps")
    whole = Path("whole.bps").read_bytes()
    Path("cut.bps").write_bytes(whole[: len(whole) * 2 // 3])
    return "big"


def write_token(vol: str) -> str:
    with open("token", "wb") as file:
        subprocess.run([*COMMAND, "receive", vol, "--have"], stdout=file, stderr=subprocess.DEVNULL, check=True)
    return "token"


def test_the_whole_way(done, blockplane, big):
    cut = blockplane("receive", "copy", "-i", "cut.bps", "--json")
    error = cut.error
    assert (error["kind"], "are kept in copy" in error["message"]) == ("stream-truncated", True)
    assert "--have" in error["hint"]
    (incoming,) = done("info", "copy", "--json").json["incoming"]
    assert (incoming["top"], incoming["running"]) == ("june1", False)
    assert "incoming   june1: " in done("info", "copy").out
    have = done("receive", "copy", "--have", "--json").json
    # what waits for others of its stripe is found by reading it
    assert (incoming["landed_blocks"] < have["copied_blocks"], incoming["landed_is_lower_bound"]) == (True, True)
    assert have["left_blocks"] == have["n_blocks"] - have["copied_blocks"]
    token = write_token("copy")
    dry = done("send", big, "june1", "--resume", token, "-n", "--json").json
    assert (dry["n_blocks"], dry["n_blocks_before"]) == (have["left_blocks"], have["copied_blocks"])
    sent = done("send", big, "june1", "--resume", token, "-o", "rest.bps", "--json").json
    assert (sent["stream_bytes"], sent["stream_bytes"]) == (dry["stream_bytes"], Path("rest.bps").stat().st_size)
    shown = done("stream", "info", "rest.bps").out
    assert "the rest of an interrupted transfer" in shown
    assert done("stream", "info", "rest.bps", "--json").json["following_blocks"] == have["left_blocks"]
    assert done("stream", "verify", "rest.bps", "--json").json["problems"] == []
    report = done("receive", "copy", "-i", "rest.bps", "--json").json
    assert report["n_blocks"] == have["left_blocks"]
    assert done("info", "copy", "--json").json["incoming"] == []
    assert done("check", "copy", "--json").json["ok"] is True
    done("get", "copy:/data", "mine")
    done("get", f"{big}:/data", "theirs")
    assert Path("mine").read_bytes() == Path("theirs").read_bytes()


def test_disk_options_may_be_given_again(done, blockplane, big):
    assert blockplane("receive", "copy", "-i", "cut.bps", "--disks", 2, "--size", "24M").status == 1
    done("receive", "copy", "-i", "whole.bps", "--disks", 2, "--size", "24M")
    assert len(done("info", "copy", "--json").json["disks"]) == 2


def test_giving_up(done, blockplane, big):
    blockplane("receive", "copy", "-i", "cut.bps")
    assert "copy is gone" in done("receive", "copy", "--abort").out
    assert not Path("copy").exists()
    done("create", "copy", "--disks", 3, "--size", "16MiB")
    blockplane("receive", "copy", "-i", "cut.bps")
    given_up = done("receive", "copy", "--abort", "--json").json
    assert (given_up["freed_blocks"] > 0, given_up["removed_volume"]) == (True, False)
    again = blockplane("receive", "copy", "--abort", "--json")
    assert (again.error["kind"], "no receive" in again.error["message"]) == ("refused", True)
    assert blockplane("receive", "copy", "--have", "--abort").status == 2


def test_what_is_no_token(blockplane, big):
    Path("notes").write_text("not a token at all, but long enough to hold one" * 20)
    assert (
        "not a token" in blockplane("send", big, "june1", "--resume", "notes", "-o", "x.bps", "--json").error["message"]
    )
    missing = blockplane("send", big, "june1", "--resume", "nowhere", "-o", "x.bps", "--json").error
    assert "no such token" in missing["message"]
    assert not Path("x.bps").exists()


def test_a_send_that_is_held(done, big):
    done("send", big, "june1", "-o", "held.bps", "--hold", "7d")
    (snapshot,) = done("info", big, "--json").json["snapshots"]
    assert "holds" not in snapshot


@pytest.fixture
def cut(blockplane, big, monkeypatch):
    """Sends `june2 - june1` to a file; that fails after some MiB, in the way that is asked for."""
    with bp.Volume.open(big) as volume:
        bp.FileSystem(volume).write_bytes("/data", os.urandom(6 << 20))
        volume.snapshot("june2")

    def send(*options: object, error: BaseException | None = None):
        write_all = FileSink.write_all

        def fail(sink: FileSink, buffers: Sequence[Buffer]) -> None:
            write_all(sink, buffers)
            if sink._at > 1 << 20:
                raise error or bp.errors.NoSpaceError("nothing more fits")

        with monkeypatch.context() as patched:
            patched.setattr(FileSink, "write_all", fail)
            outcome = blockplane("send", big, "june2 - june1", *options)
        assert outcome.status != 0
        return outcome

    return send


def holders(done, vol: str) -> list[list[str]]:
    found = done("info", vol, "--json").json["snapshots"]
    return [[hold["owner"] for hold in snapshot.get("holds", [])] for snapshot in found]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()], ids=["no room", "interrupt"])
@pytest.mark.parametrize("resume", [["--resume"], []], ids=["gone on with", "begun anew"])
def test_what_half_a_file_needs_is_held(done, blockplane, big, cut, error, resume):
    said = cut("-o", "a.bps", error=error).err
    (mine,), others = holders(done, big)
    assert (mine.startswith("send:june2-june1:"), others) == (True, [mine])
    assert f"its snapshots are held for 30 days, by {mine}" in said
    refused = blockplane("snapshot", "delete", f"{big}@june1", "--json").error["message"]
    assert f"is held by {mine} until " in refused
    done("send", big, "june2 - june1", "-o", "b.bps")
    cut("-o", "a.bps", *resume)
    assert holders(done, big) == [[mine], [mine]]
    done("send", big, "june2 - june1", "-o", "a.bps", *resume)
    assert holders(done, big) == [[], []]


def test_reads_that_are_under_way_keep_nothing_from_being_held(done, big, cut, monkeypatch):
    read_plan, under_way = FileDisk.read_plan, []

    def begin(disk: FileDisk, *arguments: object) -> int:
        under_way.append(os.dup(disk._fd))  # a read that has begun keeps open what it reads, until it ends
        return read_plan(disk, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(FileDisk, "read_plan", begin)
        said = cut("-o", "a.bps").err
    for fd in under_way:
        os.close(fd)
    assert "its snapshots are held for 30 days" in said
    (mine,), others = holders(done, big)
    assert (mine.startswith("send:june2-june1:"), others) == (True, [mine])


def test_what_parts_need_is_held(done, big, cut):
    parts = ("--part", "a.bps", "--part", "b.bps")
    cut(*parts)
    (mine,), others = holders(done, big)
    assert others == [mine]
    done("send", big, "june2 - june1", *parts, "--resume")
    assert holders(done, big) == [[], []]


def test_nothing_is_held_where_that_is_not_wanted_or_cannot_be(done, big, cut):
    cut("-o", "a.bps", "--hold", "0s")
    assert holders(done, big) == [[], []]
    with bp.Volume.open(big, writable=False):
        outcome = cut("-o", "a.bps")
    assert "nothing holds what june2 - june1 is made of until it is gone on with: big is in use by" in outcome.err
    assert "nothing more fits" in outcome.err
    assert holders(done, big) == [[], []]
    done("send", big, "june2 - june1", "-o", "a.bps", "--resume")
    assert done("check", big, "--json").json["ok"]


def test_wrong_words_begin_nothing_that_could_be_held(blockplane, big):
    for words in (("--split", "1K"), ("--encrypt", "token"), ("--compress", "gzip")):
        outcome = blockplane("send", big, "june1", "-o", "a.bps", *words)
        assert outcome.status != 0
        assert "nothing holds" not in outcome.err
        assert outcome.err.startswith("blockplane: ")


def test_a_half_written_file(done, big):
    half = Path("whole.bps").read_bytes()[: 3 << 20]
    Path("again.bps.partial").write_bytes(half)
    dry = done("send", big, "june1", "-o", "again.bps", "--resume", "-n", "--json").json
    assert 0 < dry["n_blocks_before"] < dry["n_blocks_before"] + dry["n_blocks"]
    assert Path("again.bps.partial").read_bytes() == half
    report = done("send", big, "june1", "-o", "again.bps", "--resume", "--json").json
    assert report["n_blocks_before"] == dry["n_blocks_before"]
    assert Path("again.bps").stat().st_size == Path("whole.bps").stat().st_size
    assert not Path("again.bps.partial").exists()
    assert done("stream", "verify", "again.bps", "--json").json["problems"] == []


def test_a_half_written_file_stays_compressed_or_not(done, big):
    Path("again.bps.partial").write_bytes(Path("whole.bps").read_bytes()[: 3 << 20])
    outcome = done("send", big, "june1", "-o", "again.bps", "--resume", "--compress", "zstd", "--json")
    assert "was begun without compression, and stays so" in outcome.err
    assert outcome.json["compression"] is None
    assert done("send", big, "june1", "-o", "again.bps", "--resume", "-n", "--json").json["n_blocks"] == 0


@pytest.mark.parametrize("form", [["--order", "tape"], ["--locations", "implicit"], ["--order", "tape", "-n"]])
def test_a_half_written_file_keeps_its_order_and_locations(done, blockplane, big, form):
    half = Path("whole.bps").read_bytes()[: 3 << 20]
    Path("again.bps.partial").write_bytes(half)
    refused = blockplane("send", big, "june1", "-o", "again.bps", "--resume", *form, "--json")
    assert (refused.status, refused.error["kind"]) == (1, "refused")
    assert refused.error["message"] == "again.bps.partial has its blocks in disk order, with locations"
    assert "--locations explicit --order disk, or send without --resume" in refused.error["hint"]
    assert Path("again.bps.partial").read_bytes() == half
    again = ["--order", "disk", "--locations", "explicit"]
    assert done("send", big, "june1", "-o", "again.bps", "--resume", *again, "--json").json["n_blocks_before"] > 0


def test_towards_a_newer_snapshot(done, blockplane, big):
    blockplane("receive", "copy", "-i", "cut.bps")
    with bp.Volume.open(big) as volume:
        bp.FileSystem(volume).write_bytes("/more", os.urandom(1 << 20))
    done("snapshot", "create", f"{big}@june2")
    have = done("receive", "copy", "--have", "--json").json
    token = write_token("copy")
    dry = done("send", big, "june2", "--resume", token, "-n", "--json").json
    assert 0 < dry["n_blocks_before"] <= have["copied_blocks"]
    done("send", big, "june2", "--resume", token, "-o", "rest.bps")
    shown = done("stream", "info", "rest.bps").out
    assert f"began with another image (id {have['image_id']})" in shown
    assert done("stream", "info", "rest.bps", "--json").json["carried_id"] == have["image_id"]
    done("receive", "copy", "-i", "rest.bps")
    assert [s["name"] for s in done("info", "copy", "--json").json["snapshots"]] == ["june2"]
    assert done("check", "copy", "--json").json["ok"] is True
    assert "an interrupted receive of another image" in blockplane("receive", "new", "-i", "rest.bps").err


@pytest.mark.parametrize("was_there", [True, False])
def test_what_goes_when_a_first_receive_is_given_up(done, blockplane, big, was_there):
    for as_json in (False, True):
        if was_there:
            os.makedirs("mine", exist_ok=True)
        blockplane("receive", "mine", "-i", "cut.bps")
        told = done("receive", "mine", "--abort", *(["--json"] if as_json else []))
        assert os.path.exists("mine") is was_there
        if as_json:
            assert told.json["removed_volume"] is True
        else:
            what = "the volume in mine is gone" if was_there else "mine is gone"
            assert told.out.startswith(f"{what}: an interrupted receive had made it")
            assert ("the folder stays" in told.out) is was_there


def test_a_dry_run_leaves_what_was_half_made(done, blockplane, big):
    os.makedirs("half/disks")
    Path("half/making").touch()
    done("receive", "half", "-i", "whole.bps", "-n")
    assert sorted(os.listdir("half")) == ["disks", "making"]
    done("receive", "half", "-i", "whole.bps")


def test_what_is_of_no_use_and_what_is_left_is_told(done, blockplane, big):
    blockplane("receive", "copy", "-i", "cut.bps")
    token = write_token("copy")
    with bp.Volume.open(big) as volume:
        bp.FileSystem(volume).unlink("/data")
        volume.snapshot("june2")
        bp.FileSystem(volume).write_bytes("/other", os.urandom(1 << 20))
        volume.snapshot("june3")
    with bp.Volume.create("other", disks=1, size="16MiB") as volume:
        bp.FileSystem(volume).write_bytes("/data", bytes(1 << 20))
        volume.snapshot("june1")
    done("send", big, "june2", "-o", "june2.bps")
    done("receive", "copy", "-i", "june2.bps")
    sent = done("send", big, "june3 - june2", "--resume", token, "-o", "june3.bps")
    assert "nothing that came of june1 is of use for this image" in sent.err
    received = done("receive", "copy", "-i", "june3.bps")
    assert "an interrupted receive of june1 still has" in received.err
    assert "receive copy --abort" in received.err
    assert "of another volume" in blockplane("send", "other", "june1", "--resume", token, "-n").err


def test_one_of_several(done, blockplane, big):
    """--of chooses; without it the last one's token, and what else there is; --abort gives all up, or that one."""
    done("create", "copy", "--disks", 3, "--size", "24MiB")
    blockplane("receive", "copy", "-i", "cut.bps")
    with bp.Volume.open(big) as volume:
        bp.FileSystem(volume).write_bytes("/more", os.urandom(4 << 20))
        volume.snapshot("june2")
    done("send", big, "june2", "-o", "june2.bps")
    Path("cut2.bps").write_bytes(Path("june2.bps").read_bytes()[: 5 << 20])
    blockplane("receive", "copy", "-i", "cut2.bps")
    last = done("receive", "copy", "--have", "--json").json
    assert (last["top"], [its["top"] for its in last["others"]]) == ("june2", ["june1"])
    have = done("receive", "copy", "--have", "--of", "june1", "--json").json
    assert (have["top"], have["image_id"]) == ("june1", last["others"][0]["image_id"])
    asked = subprocess.run([*COMMAND, "receive", "copy", "--have"], capture_output=True, check=True)
    assert f"interrupted before it: june1 (image id {have['image_id']})" in asked.stderr.decode()
    wrong = blockplane("receive", "copy", "--have", "--of", "june9", "--json").error
    assert (wrong["kind"], "june1" in wrong["hint"], "june2" in wrong["hint"]) == ("refused", True, True)
    assert blockplane("receive", "copy", "-i", "cut.bps", "--of", "june1").status == 2
    assert done("receive", "copy", "--abort", "--of", "june2", "--json").json["freed_blocks"] == last["n_blocks"]
    assert [its["top"] for its in done("info", "copy", "--json").json["incoming"]] == ["june1"]
