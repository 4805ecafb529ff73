"""send --split, --digests, --preallocate and --part; receive of lists, folders and parts; image --part."""

from __future__ import annotations

import subprocess
from pathlib import Path

import blockplane as bp


def names(pattern: str) -> list[str]:
    return sorted(path.name for path in Path().glob(pattern))


def test_split_streams_everywhere(done, blockplane, pool):
    sent = done("send", pool, "june1", "-o", "a.bps", "--split", "100K", "--preallocate", "--digests", "--json").json
    pieces = names("a.bps.0*")
    assert sum(Path(name).stat().st_size for name in pieces) == sent["stream_bytes"]
    assert [Path(name).stat().st_size for name in pieces[:-1]] == [102_400] * (len(pieces) - 1)
    subprocess.run(["sha256sum", "--strict", "-c", "a.bps.sha256"], check=True, stdout=subprocess.DEVNULL)
    for name in ("a.bps", "a.bps.000"):
        assert done("stream", "info", name, "--json").json["top"] == "june1"
        assert done("ls", f"{name}:/").out.split() == ["tree"]
        assert done("cat", f"{name},june2.bps:/tree/hello").out == "hello\n"
        assert done("stream", "verify", name, "june2.bps", "--json").json["proved"] == ["june1", "june2"]
    # as a shell writes a.bps.* out
    assert done("stream", "verify", *names("a.bps.*"), "--json").json["order"] == ["a.bps.000"]
    done("stream", "compare", "a.bps", f"{pool}@june1")
    done("receive", "copy", "-i", "a.bps")
    Path("a.bps.001").rename("away")
    error = blockplane("receive", "other", "-i", "a.bps", "--json").error
    assert (error["kind"], error["message"]) == ("not-found", "a.bps.001 is missing: a.bps.002 is there")
    error = blockplane("send", pool, "june1", "--split", "1K", "-o", "b.bps", "--json").error
    assert (error["kind"], error["exit"]) == ("usage", 2)
    assert blockplane("send", pool, "june1", "-o", "/dev/null", "--digests").status == 2


def test_a_folder_is_received(done, blockplane, pool):
    Path("backups").mkdir()
    done("send", pool, "june1", "-o", "backups/zz", "--split", "100K", "--digests")
    done("send", pool, "june2 - june1", "-o", "backups/aa")
    Path("backups/notes.txt").write_text("no stream")
    dry = done("receive", "copy", "-i", "backups", "-n", "--json").json
    assert (dry["order"], dry["arrives"], dry["dry_run"]) == (["backups/zz", "backups/aa"], ["june1", "june2"], True)
    assert dry["stream_bytes"] is None
    assert not Path("copy").exists()
    error = blockplane("receive", "copy", "-i", "backups/aa", "-i", "june2.bps", "--json").error
    assert (error["kind"], Path("copy").exists()) == ("stream-mismatch", False)
    found = done("receive", "copy", "-i", "backups", "--disks", 2, "--size", "20M", "--json").json
    assert [its["top"] for its in found["streams"]] == ["june1", "june2"]
    assert "copy has all of it already" in done("receive", "copy", "-i", "backups").out
    assert done("check", "copy", "--json").json["ok"] is True
    assert blockplane("receive", "copy", "-n").status == 2


def test_a_dry_run_of_a_file_says_what_its_receive_does(done, pool):
    done("send", pool, "june1", "-o", "june1.bps")
    done("send", pool, "june2", "--part", "a.bps", "--part", "b.bps")
    for vol, file in (("copy", "june1.bps"), ("copy", "june1.bps"), ("half", "a.bps"), ("half", "b.bps")):
        dry = done("receive", vol, "-i", file, "-n", "--json").json
        run = done("receive", vol, "-i", file, "--json").json
        assert (dry.pop("dry_run"), list(dry)) == (True, list(run))
        unknown = {name for name in dry if dry[name] is None and run[name] is not None}
        assert unknown == {"stream_bytes", "bytes_per_second", "n_blocks_shared"}
        known = dry.keys() - unknown - {"seconds"}
        assert {name: dry[name] for name in known} == {name: run[name] for name in known}


def test_parts(done, blockplane, pool):
    words = ["--part", "fast.bps=june1 & june2", "--part", "a.bps", "--part", "b.bps"]
    shown = done("image", pool, "june2", *words, "--json").json
    counts = [part["n_blocks"] for part in shown["parts"]]
    assert sum(counts) == shown["n_blocks"]
    assert [sum(part["blocks_per_disk"]) for part in shown["parts"]] == counts
    assert [part["of_snapshots"] for part in shown["parts"]] == [{"june2": n} for n in counts]
    assert "part       fast.bps: " in done("image", pool, "june2", *words).out
    dry = done("send", pool, "june2", *words, "-n", "--json").json
    sent = done("send", pool, "june2", *words, "--json").json
    assert [part["n_blocks"] for part in sent["parts"]] == counts
    assert [part["stream_bytes"] for part in dry["parts"]] == [part["stream_bytes"] for part in sent["parts"]]
    assert [Path(p["file"]).stat().st_size for p in sent["parts"]] == [p["stream_bytes"] for p in sent["parts"]]
    info = done("stream", "info", "a.bps", "--json").json
    assert (info["part"], info["n_parts"], info["following_blocks"]) == (1, 3, counts[1])
    assert "part 2 of 3" in done("stream", "info", "a.bps").out
    out = done("receive", "copy", "-i", "b.bps").out
    assert f"part 3 of 3; {counts[0] + counts[1]} blocks" in out
    assert done("info", "copy", "--json").json["snapshots"] == []
    found = done("receive", "copy", "-i", "a.bps", "--json").json
    assert (found["n_blocks_missing"], found["arrived"]) == (counts[0], [])
    out = done("receive", "copy", "-i", "fast.bps").out
    assert "copy has june2" in out
    done("receive", "other", "-i", "a.bps", "-i", "fast.bps", "-i", "b.bps")
    assert done("cat", "other:/tree/hello").out == "hello\n"
    assert done("stream", "verify", "a.bps", "b.bps", "fast.bps", "--json").json["proved"] == ["june2"]
    lacking = blockplane("stream", "verify", "a.bps", "b.bps", "--json")
    assert (lacking.status, "part 1 of 3" in lacking.json["problems"][0]) == (1, True)
    assert done("cat", "a.bps,b.bps,fast.bps:/tree/hello").out == "hello\n"
    done("send", pool, "june2", *words, "--resume")
    for wrong in (["--part", "a.bps"], ["--part", "=june1", "--part", "x"], [*words, "-o", "x"]):
        assert blockplane("send", pool, "june2", *wrong).status == 2


def test_a_missing_part_is_named_when_files_are_read(done, blockplane, pool):
    with bp.Volume.open(pool) as volume:
        data = volume.who_has("/later", "june2").plane
        bp.send_parts(volume.image("june2"), [bp.Part("slow.bps", data), bp.Part("fast.bps")])
    assert done("ls", "fast.bps:/").out.split() == ["later", "tree"]
    at = done("image", pool, "june2", "--at", "fast.bps", "--json").json["at"]
    assert at["elsewhere"] == {"part 1 of 2 of june2": len(data)}
    assert at["n_reachable"] == at["by_stream"]["fast.bps"]
    assert f"elsewhere  {len(data)} blocks" in done("image", pool, "june2", "--at", "fast.bps").out
    whole = done("image", pool, "june2", "--at", "fast.bps,slow.bps", "--json").json
    assert (whole["at"]["n_reachable"], whole["at"]["elsewhere"]) == (whole["n_blocks"], {})
    assert done("cat", "fast.bps:/tree/hello").out == "hello\n"
    error = blockplane("get", "fast.bps:/later", "out", "--json").error
    assert (error["kind"], "is in part 1 of 2 of its image" in error["message"]) == ("part-missing", True)
    assert done("cat", "fast.bps,slow.bps:/later").out == "later" * 5000
