"""Streams in files of a volume: written, read, received, split, gone on with; a volume that is sent into itself."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import NoSpaceError, StreamError, StreamMissingError, UsageError
from blockplane.server import streamplace
from equality import differences, volume_tree

COMMAND = [sys.executable, "-c", "from blockplane.cli import main; main()"]
MIB = 1 << 20


@pytest.fixture
def two(tmp_path, rng):
    """A volume with three snapshots, and another with room for their streams."""
    with (
        bp.Volume.create(tmp_path / "pool", disks=4, size="16M") as pool,
        bp.Volume.create(tmp_path / "vault", disks=3, size="24M", parity=1) as vault,
    ):
        files = bp.FileSystem(pool)
        for i in range(3):
            files.write_bytes(f"/f{i}", rng.bytes(2 * MIB))
            pool.snapshot(f"june{i}")
        bp.FileSystem(vault).mkdir("/backups")
        yield pool, vault


def place(vault, name: str) -> bp.VolumePlace:
    return bp.VolumePlace(bp.FileSystem(vault), f"/backups/{name}", vault, f"vault:/backups/{name}")


def require_equal(source, path: Path, names) -> None:
    with bp.Volume.open(path, writable=False) as copy:
        assert bp.check(copy).problems == []
        assert [snapshot.name for snapshot in copy.snapshots] == list(names)
        for name in names:
            mine = volume_tree(bp.FileSystem(copy.get_snapshot(name)))
            assert differences(mine, volume_tree(bp.FileSystem(source.get_snapshot(name)))) == []


FORMS = [{}, {"split": 300_001, "digests": True, "preallocate": True}, {"compress": "zstd", "digests": True}]


@pytest.mark.parametrize("form", FORMS)
def test_full_and_two_increments(two, tmp_path, form):
    pool, vault = two
    places = [place(vault, f"june{i}.bps") for i in range(3)]
    for i, its in enumerate(places):
        report = bp.send(pool.image(f"june{i} - june{i - 1}" if i else "june0"), its, **form)
        assert report.n_blocks > 0
    names = bp.FileSystem(vault).listdir("/backups")
    assert [name for name in names if name.endswith(".partial")] == []
    assert ("june0.bps.000" in names) is ("split" in form)
    assert bp.check(vault).problems == []
    if "digests" in form:
        bp.FileSystem(vault).get("/backups", tmp_path / "out")
        for i in range(3):
            subprocess.run(["sha256sum", "--strict", "-c", f"june{i}.bps.sha256"], cwd=tmp_path / "out", check=True)
    verdict = bp.verify_streams(*places)
    assert (verdict.problems, verdict.proved) == ([], ["june0", "june1", "june2"])
    assert verdict.order == [f"vault:/backups/june{i}.bps" for i in range(3)]
    with bp.open_stream(*places) as chain:
        assert bp.FileSystem(chain).read_bytes("/f2") == bp.FileSystem(pool).read_bytes("/f2")
    bp.receive(places[0], tmp_path / "copy")
    bp.receive_streams(*reversed(places), target=tmp_path / "copy")
    require_equal(pool, tmp_path / "copy", ["june0", "june1", "june2"])


@pytest.mark.parametrize("split", [None, "8M"])
def test_a_merge_replaces_none_of_its_streams(two, split):
    pool, vault = two
    places = [place(vault, "a.bps"), place(vault, "b.bps")]
    for its, text in zip(places, ("june0", "june1 - june0"), strict=True):
        bp.send(pool.image(text), its, split=split)
    before = bp.FileSystem(vault).listdir("/backups")
    onto = "../backups/a.bps" if split is None else "../backups/b.bps.000"
    with pytest.raises(UsageError, match="would be replaced by what is merged from it"):
        bp.merge_streams(*places, sink=place(vault, onto))
    assert bp.FileSystem(vault).listdir("/backups") == before
    bp.merge_streams(*places, sink=place(vault, "c.bps"))
    assert bp.verify_streams(place(vault, "c.bps")).proved == ["june1"]


def test_a_volume_sent_into_itself(two, tmp_path):
    """The image is of a snapshot: what is written goes to other blocks."""
    pool, _ = two
    bp.FileSystem(pool).mkdir("/backups")
    its = place(pool, "june2.bps")
    bp.send(pool.image("june2"), its)
    bp.receive(its, tmp_path / "copy")
    require_equal(pool, tmp_path / "copy", ["june2"])
    assert bp.check(pool).problems == []
    image, places = pool.image("june2"), [place(pool, f"more{i}.bps") for i in range(20)]
    with pytest.raises(NoSpaceError):
        _ = [bp.send(image, each) for each in places]
    assert [name for name in bp.FileSystem(pool).listdir("/backups") if "more" not in name] == ["june2.bps"]
    assert bp.check(pool).problems == []


@pytest.mark.parametrize("split", [None, "300K"])
def test_room_is_compared_before(two, monkeypatch, split):
    pool, vault = two
    bp.FileSystem(vault).write_bytes("/much", bytes(1))
    monkeypatch.setattr(type(vault), "available_blocks", property(lambda self: 100))
    with pytest.raises(NoSpaceError, match=r"vault:/backups/a\.bps: \d+ blocks are wanted, and 100 free"):
        bp.send(pool.image("june2"), place(vault, "a.bps"), preallocate=True, split=split)
    assert bp.FileSystem(vault).listdir("/backups") == []


def test_what_is_not_there_or_cannot_be_written(two):
    pool, vault = two
    with pytest.raises(StreamMissingError, match="vault:/backups/none: no such stream file"):
        bp.stream_map(place(vault, "none"))
    with pytest.raises(StreamError, match="cannot write into"):
        bp.send(pool.image("june0"), bp.VolumePlace(bp.FileSystem(vault), "/nowhere/a.bps", vault))
    with pytest.raises(StreamError, match="cannot be written"):
        bp.send(pool.image("june0"), bp.VolumePlace(bp.FileSystem(vault), "/backups/a.bps"))
    begun = place(vault, "a.bps").folder.begin("a.bps", goes_on=False)
    with pytest.raises(StreamError, match="being written by another send"):
        bp.send(pool.image("june0"), place(vault, "a.bps"))
    begun.close()
    bp.send(pool.image("june0"), place(vault, "a.bps"))
    assert bp.FileSystem(vault).listdir("/backups") == ["a.bps"]


@pytest.mark.parametrize("other", ["../backups/a.bps", "/a.bps", "../link/a.bps"])
def test_one_file_by_two_names_has_one_writer(two, other):
    """The second send is refused while the first goes on, which gives the name to what it wrote itself."""
    pool, vault = two
    bp.FileSystem(vault).symlink("backups", "/link")
    refused = []

    def meanwhile(event):
        if not refused:
            with pytest.raises(StreamError, match="being written by another send") as found:
                bp.send(pool.image("june1"), place(vault, other))
            refused.append(found.value)

    bp.send(pool.image("june2"), place(vault, "a.bps"), progress=meanwhile)
    assert len(refused) == 1
    assert bp.verify_streams(place(vault, "a.bps")).proved == ["june2"]
    parts = [bp.Part(place(vault, "b.bps")), bp.Part(place(vault, other.replace("a.bps", "b.bps")))]
    with pytest.raises(UsageError, match="two parts go to"):
        bp.send_parts(pool.image("june2"), parts)
    assert bp.FileSystem(vault).listdir("/backups") == ["a.bps"]


def test_a_file_that_took_the_place_of_the_one_that_is_written_is_left(two):
    pool, vault = two
    files = bp.FileSystem(vault)

    def meanwhile(event):
        if files.stat("/backups/a.bps.partial").st_size:
            files.unlink("/backups/a.bps.partial")
            files.write_bytes("/backups/a.bps.partial", b"")

    with pytest.raises(StreamError, match=r"vault:/backups/a\.bps\.partial was replaced while it was written"):
        bp.send(pool.image("june2"), place(vault, "a.bps"), progress=meanwhile)
    assert files.listdir("/backups") == ["a.bps.partial"]
    assert bp.check(vault).problems == []


@pytest.mark.parametrize("split", [None, 300_001])
def test_a_stream_is_its_owners_or_as_the_file_that_it_replaces(two, tmp_path, split):
    pool, vault = two
    files = bp.FileSystem(vault)
    first = "a.bps" if split is None else "a.bps.000"

    def modes() -> dict[str, int]:
        return {name: files.stat(f"/backups/{name}").st_mode & 0o7777 for name in files.listdir("/backups")}

    bp.send(pool.image("june1"), place(vault, "a.bps"), split=split, digests=True)
    made = modes()
    assert made.pop("a.bps.sha256") == 0o644
    assert set(made.values()) == {0o600}
    files.get(f"/backups/{first}", tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o600
    files.chmod(f"/backups/{first}", 0o2640)
    bp.send(pool.image("june2"), place(vault, "a.bps"), split=split)
    assert modes()[first] == 0o640
    files.chown(f"/backups/{first}", os.geteuid() + 1, -1)
    bp.send(pool.image("june2"), place(vault, "a.bps"), split=split)
    assert modes()[first] == 0o600


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("split", [None, 300_001])
def test_going_on(two, tmp_path, split):
    pool, vault = two
    write_all, total = streamplace.VolumeFile.write_all, [0]

    def stopping(self, buffers):
        for buffer in buffers:
            total[0] += len(buffer)
            if total[0] > 3 * MIB:
                raise StoppedError
            write_all(self, [buffer])

    image = pool.image("june2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamplace.VolumeFile, "write_all", stopping)
        with pytest.raises(StoppedError):
            bp.send(image, place(vault, "a.bps"), split=split)
    names = bp.FileSystem(vault).listdir("/backups")
    assert {name.rpartition(".")[2] for name in names} == {"partial"}
    report = bp.send(image, place(vault, "a.bps"), split=split, resume=True)
    assert report.n_blocks + report.n_blocks_before == image.n_blocks
    assert report.n_blocks_before > 0
    bp.receive(place(vault, "a.bps"), tmp_path / "copy")
    require_equal(pool, tmp_path / "copy", ["june2"])


@pytest.mark.parametrize("how", ["whole", "split", "token"])
def test_a_dry_run_and_a_token_know_what_is_half_written(two, tmp_path, how):
    """As beside a file of the host."""
    pool, vault = two
    image, form = pool.image("june2"), {"split": 300_001} if how == "split" else {}
    resume: bool | bp.ResumeToken = True
    if how == "token":
        bp.send(image, tmp_path / "whole.bps")
        with pytest.raises(StreamError):
            bp.receive(io.BytesIO((tmp_path / "whole.bps").read_bytes()[: 2 * MIB + 100_000]), tmp_path / "copy")
        with bp.Volume.open(tmp_path / "copy") as copy:
            resume = bp.resume_token(copy)

    def stop(event):
        if event.done_bytes > 3 * MIB:
            raise StreamError("stopped")

    def left_of(sink) -> tuple[int, int]:
        with pytest.raises(StreamError, match="stopped") as stopped:
            bp.send(image, sink, progress=stop, resume=resume if how == "token" else False, **form)
        assert ("the same --resume TOKEN" in stopped.value.hint) is (how == "token")
        would = bp.send(image, sink, resume=resume, dry_run=True)  # the size of pieces is known by two of them
        did = bp.send(image, sink, resume=resume)
        assert (would.n_blocks, would.n_blocks_before) == (did.n_blocks, did.n_blocks_before)
        return did.n_blocks, did.n_blocks_before

    n_blocks, n_before = left_of(place(vault, "a.bps"))
    assert (n_blocks, n_before) == left_of(tmp_path / "a.bps")
    assert n_blocks + n_before == image.n_blocks
    assert n_before * bp.BLOCK_BYTES > 2 * MIB
    bp.receive(place(vault, "a.bps"), tmp_path / "copy")
    require_equal(pool, tmp_path / "copy", ["june2"])


@pytest.mark.parametrize("split", ["4M", None])
def test_pieces_that_room_was_made_for_are_gone_on_with(two, tmp_path, rng, split):
    """Those that nothing was written to are there, and empty."""
    _, vault = two

    def stop(event):
        if event.done_bytes > 9 * MIB:
            raise StreamError("stopped")

    with bp.Volume.create(tmp_path / "large", disks=1, size="40M") as source:
        bp.FileSystem(source).write_bytes("/a", rng.bytes(24 * MIB))
        source.snapshot("s")
        image, form = source.image("s"), {"order": "tape", "preallocate": True}
        with pytest.raises(StreamError, match="stopped"):
            bp.send(image, place(vault, "a.bps"), split="4M", progress=stop, **form)
        files = bp.FileSystem(vault)
        assert 0 in [files.stat(f"/backups/{name}").st_size for name in files.listdir("/backups")]
        report = bp.send(image, place(vault, "a.bps"), split=split, resume=True, **form)
        assert report.n_blocks_before > 8 * MIB // 4096
        assert bp.verify_streams(place(vault, "a.bps")).proved == ["s"]


# --- on the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def vault(done):
    done("create", "vault", "--disks", 3, "--size", "16M")
    done("mkdir", "vault:/backups")
    return "vault"


def test_the_verbs(done, blockplane, pool, vault):
    done("send", pool, "june1", "-o", "vault:/backups/june1.bps")
    sent = done("send", pool, "june2 - june1", "-o", "vault:/backups/june2.bps", "--split", "64K", "--json").json
    assert sent["n_blocks"] > 0
    assert done("ls", "vault:/backups").out.split()[:2] == ["june1.bps", "june2.bps.000"]
    names = ["vault:/backups/june1.bps", "vault:/backups/june2.bps"]
    assert done("stream", "verify", *names, "--json").json["proved"] == ["june1", "june2"]
    assert done("stream", "info", names[1], "--json").json["top"] == "june2"
    assert done("stream", "compare", *names, f"{pool}@june2", "--json").json["ok"] is True
    done("send", pool, "june1", "-o", f"{pool}:/own.bps")
    assert done("stream", "compare", f"{pool}:/own.bps", f"{pool}@june1").out.startswith("equal")
    done("receive", "copy", "-i", names[0])
    done("receive", "copy", "-i", names[1], "-i", names[0])
    done("diff", "copy@june1", "copy@june2")
    assert done("cat", "copy@june2:/tree/hello").out == "hello\n"
    done("stream", "merge", *names, "-o", "merged.bps")
    assert done("stream", "verify", "merged.bps").out.startswith("whole")
    done("snapshot", "create", "vault@v1")
    done("receive", "again", "-i", "vault@v1:/backups/june1.bps")
    assert done("cat", "again:/tree/hello").out == "hello\n"
    error = blockplane("receive", "third", "-i", "vault:/backups/none.bps", "--json").error
    assert (error["kind"], Path("third").exists()) == ("not-found", False)
    assert blockplane("send", pool, "june1", "-o", "vault@v1:/x.bps", "--json").error["kind"] == "read-only"
    assert done("check", "vault", "--json").json["ok"] is True


def test_where_nothing_can_be_written_is_named(done, blockplane, pool, vault):
    done("send", pool, "june1", "-o", "vault:/june1.bps")
    found = blockplane("stream", "merge", "vault:/june1.bps", "-o", "vault:/june1.bps", "--json")
    assert (found.status, found.error["kind"]) == (2, "usage")
    assert found.error["message"] == "vault:/june1.bps is in a volume, and stream merge writes files of the host"
    assert "blockplane put vault:/june1.bps FILE" in found.error["hint"]
    for words in (["send", pool, "june1"], ["stream", "merge", "vault:/june1.bps"]):
        error = blockplane(*words, "-o", "novol:/june1.bps", "--json").error
        assert error["message"] == "novol:/june1.bps cannot be written: novol is no volume"
    Path("novol:").mkdir()
    done("send", pool, "june1", "-o", "novol:/june1.bps")
    assert os.listdir("novol:") == ["june1.bps"]


def test_a_directory_is_no_file_to_write(done, blockplane, pool, vault):
    done("mkdir", f"{vault}:/d")
    available = done("info", vault, "--json").json["available_blocks"]
    for path in ("/", "/d/"):
        found = blockplane("send", pool, "june1", "-o", f"{vault}:{path}")
        assert (found.status != 0, f"{vault}:{path} is no file" in found.err) == (True, True), found.err
    assert done("info", vault, "--json").json["available_blocks"] > available - 50


def test_into_itself(done, pool):
    done("send", pool, "june2", "-o", f"{pool}:/june2.bps")
    done("receive", "copy", "-i", f"{pool}:/june2.bps")
    assert done("cat", "copy:/tree/hello").out == "hello\n"
    assert done("check", pool, "--json").json["ok"] is True


def test_parts_in_volumes(done, blockplane, pool, vault):
    """One on the host, one in another volume, one in the volume itself."""
    words = ["--part", "fast.bps=meta(june2)", "--part", "vault:/backups/a.bps", "--part", f"{pool}:/b.bps"]
    counts = [part["n_blocks"] for part in done("send", pool, "june2", *words, "--json").json["parts"]]
    assert done("cat", f"{pool}@june2:/tree/hello").out == "hello\n"
    names = ["fast.bps", "vault:/backups/a.bps", f"{pool}:/b.bps"]
    assert done("stream", "verify", *names, "--json").json["proved"] == ["june2"]
    found = [done("stream", "info", name, "--json").json["following_blocks"] for name in names]
    assert found == counts
    done("receive", "copy", "-i", names[2], "-i", names[1], "-i", names[0])
    assert done("cat", "copy:/tree/hello").out == "hello\n"
    error = blockplane("receive", pool, "-i", names[2], "--json").error
    assert (error["kind"], "lies in the volume that would receive it" in error["message"]) == ("usage", True)


def test_killed_and_gone_on_with(done, tmp_path, rng):
    """What the last consistency point has of it is gone on with; the volume is whole."""
    with bp.Volume.create("big", disks=4, size="64M") as big:
        bp.FileSystem(big).write_bytes("/data", rng.bytes(96 * MIB))
        big.snapshot("june1")
    done("create", "vault", "--disks", 4, "--size", "64M")
    words = ["send", "big", "june1", "-o", "vault:/june1.bps", "--resume"]
    for delay in (0.9, 1.4):
        sender = subprocess.Popen([*COMMAND, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        sender.kill()
        sender.wait()
    done(*words)
    assert done("stream", "verify", "vault:/june1.bps", "--json").json["ok"] is True
    done("receive", "copy", "-i", "vault:/june1.bps")
    assert done("check", "vault", "--json").json["ok"] is True
    done("get", "copy:/data", "mine")
    done("get", "big:/data", "theirs")
    assert Path("mine").read_bytes() == Path("theirs").read_bytes()
    assert os.path.getsize("mine") == 96 * MIB


def test_a_vault_in_use(done, pool, vault):
    """The verb runs in the process that has the volume which holds the streams."""
    done("send", pool, "june1", "-o", "vault:/june1.bps")
    with bp.Volume.open("vault") as opened, bp.serve_control(opened, "test"):
        ended = subprocess.run([*COMMAND, "stream", "verify", "vault:/june1.bps"], capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, b""), ended.stdout
        words = ["send", pool, "june2", "-o", "vault:/june2.bps"]
        ended = subprocess.run([*COMMAND, *words], capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, b""), ended.stdout
        assert bp.FileSystem(opened).listdir("/") == ["backups", "june1.bps", "june2.bps"]
