"""stream info, verify, merge and compare on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_verify_sorts_proves_and_takes_parts(done, blockplane, pool):
    shown = done("stream", "verify", "june2.bps", "june1.bps").out
    assert "order      june1.bps, june2.bps" in shown
    assert "whole      june1, june2" in shown
    assert "complete chain" in shown
    whole = done("stream", "verify", "june1.bps", "june2.bps", "--json").json
    parts = [done("stream", "verify", "--part", f"{k}/3", "june1.bps", "june2.bps", "--json").json for k in (1, 2, 3)]
    assert sum(part["verified_blocks"] for part in parts) == whole["n_blocks"] == whole["verified_blocks"]
    assert [part["part"] for part in parts] == ["1/3", "2/3", "3/3"]
    assert "part 2 of 3" in done("stream", "verify", "--part", "2/3", "june1.bps").out
    for part in ("0/3", "4/3", "x", "1", "1/0"):
        assert blockplane("stream", "verify", "--part", part, "june1.bps").status == 2
    assert "N up to 999,999" in blockplane("stream", "verify", "--part", "1/1000000", "june1.bps").err


def test_verify_names_what_is_missing_and_what_is_foreign(done, blockplane, pool):
    done("snapshot", "create", f"{pool}@june3")
    done("send", pool, "june3 - june2", "-o", "june3.bps")
    outcome = blockplane("stream", "verify", "june1.bps", "june3.bps")
    assert (outcome.status, "june3.bps builds on snapshot june2" in outcome.out, "DAMAGED" in outcome.out) == (
        1, True, True,
    )  # fmt: skip
    done("create", "other", "--disks", 3, "--size", "6MiB")
    done("snapshot", "create", "other@x")
    done("send", "other", "x", "-o", "x.bps")
    found = blockplane("stream", "verify", "june1.bps", "x.bps", "--json")
    assert (found.status, len(found.json["problems"]), "x.bps" in found.json["problems"][0]) == (1, 1, True)


@pytest.mark.parametrize("compress", [(), ("--compress", "zstd")])
def test_merge(done, blockplane, pool, tree, compress):
    report = done("stream", "merge", "june2.bps", "june1.bps", "-o", "full.bps", "--json", *compress).json
    assert (report["top"], report["base"], report["order"]) == ("june2", None, ["june1.bps", "june2.bps"])
    assert report["stream_bytes"] == Path("full.bps").stat().st_size
    assert [entry["name"] for entry in report["dropped_snapshots"]] == ["june1"]
    direct = done("image", pool, "june2", "--json").json
    assert (report["n_blocks"], report["arriving"]) == (direct["n_blocks"], direct["arriving"])
    assert done("stream", "compare", "full.bps", f"{pool}@june2", "--json").json["n_blocks"] == direct["n_blocks"]
    assert done("stream", "info", "full.bps", "--json").json["compressed"] is bool(compress)
    done("receive", "copy", "-i", "full.bps")
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    planned = done("stream", "merge", "june1.bps", "june2.bps", "-n")
    assert "would merge: june2" in planned.out
    assert "left out   june1: " in planned.out


def test_merge_to_a_pipe(pool):
    done = subprocess.run(
        [sys.executable, "-m", "blockplane", "stream", "merge", "june1.bps", "june2.bps", "--json"],
        capture_output=True, check=True,
    )  # fmt: skip
    Path("piped.bps").write_bytes(done.stdout)
    assert b'"top": "june2"' in done.stderr
    assert Path("piped.bps").read_bytes()[:4] == b"\x89BPS"


def test_merge_refuses(blockplane, pool):
    assert blockplane("stream", "merge", "june1.bps", "tree/large", "-o", "x.bps", "--json").error["kind"] == "stream"
    cut = Path("june2.bps").read_bytes()[:-50]
    Path("cut.bps").write_bytes(cut)
    error = blockplane("stream", "merge", "june1.bps", "cut.bps", "-o", "x.bps", "--json").error
    assert (error["kind"], "cut.bps" in error["message"]) == ("stream-truncated", True)
    assert blockplane("stream", "merge", "june1.bps", "-o", "x.bps", "--compress", "rar").status == 2
    assert blockplane("stream", "merge", "june1.bps", "-o", "nowhere/x.bps").status == 1
    assert not Path("x.bps").exists()


def test_compare(done, blockplane, pool):
    found = done("stream", "compare", "june1.bps", "june2.bps", f"{pool}@june2").out
    assert found.startswith("equal: june2")
    assert "are the base's" in done("stream", "compare", "june2.bps", f"{pool}@june2").out
    outcome = blockplane("stream", "compare", "june1.bps", f"{pool}@june2", "--json")
    assert (outcome.error["kind"], outcome.status) == ("stream-mismatch", 1)
    raw = bytearray(Path("june1.bps").read_bytes())
    raw[len(raw) // 2] ^= 1
    Path("bad.bps").write_bytes(raw)
    outcome = blockplane("stream", "compare", "bad.bps", f"{pool}@june1", "--json")
    assert (outcome.status, outcome.error["kind"]) == (1, "stream-damaged")
    outcome = blockplane("stream", "compare", "bad.bps", f"{pool}@june1")
    assert (outcome.status, "bad.bps does not match its checksum" in outcome.err) == (1, True)
    assert "DIFFERENT" not in outcome.out
    assert blockplane("stream", "compare", "june1.bps", pool).status == 2


def test_info_of_several(done, pool):
    found = done("stream", "info", "june1.bps", "june2.bps", "--json").json["streams"]
    assert [(its["file"], its["top"], its["base"]) for its in found] == [
        ("june1.bps", "june1", None), ("june2.bps", "june2", "june1"),
    ]  # fmt: skip
    assert done("stream", "info", "june1.bps", "june2.bps").out.count("top  ") == 2


def test_merge_does_not_replace_what_it_reads(done, blockplane, pool):
    before = Path("june2.bps").read_bytes()
    Path("alias.bps").symlink_to("june2.bps")
    for name in ("june2.bps", "alias.bps"):
        outcome = blockplane("stream", "merge", "june1.bps", "june2.bps", "-o", name)
        assert outcome.status == 2
        assert "june2.bps would be replaced" in outcome.err
    assert Path("june2.bps").read_bytes() == before


def test_an_output_that_is_full(pool):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "blockplane", "snapshot", "list", pool, "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert found.returncode == 1
    assert "No space left on device" in found.stderr
    assert "Traceback" not in found.stderr
