"""receive --offer and send --against on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import blockplane as bp

COMMAND = [sys.executable, "-m", "blockplane"]


@pytest.fixture
def estranged(done) -> str:
    """A volume and its mirror, `copy`, that share no snapshot any more."""
    with bp.Volume.create("pool", disks=3, size="16MiB") as volume:
        files = bp.FileSystem(volume)
        for i in range(6):
            files.write_bytes(f"/f{i}", os.urandom(1 << 20))
        volume.snapshot("june1")
        bp.send(volume.image("june1"), "june1.bps")
        files.write_bytes("/f0", os.urandom(1 << 20))
        volume.snapshot("june2")
        volume.delete_snapshot("june1")
    done("receive", "copy", "-i", "june1.bps", "--disks", 4, "--size", "20M")
    return "pool"


def write_offer(*options: str) -> str:
    with open("offer", "wb") as file:
        run = subprocess.run(
            [*COMMAND, "receive", "copy", "--offer", *options], stdout=file, stderr=subprocess.PIPE, check=True
        )
    return run.stderr.decode()


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_whole_way(done, blockplane, estranged, encrypted):
    assert "offered copy@june1: " in write_offer()
    assert "offer:june1" in done("snapshot", "list", "copy").out
    dry = done("send", estranged, "june2", "--against", "offer", "-n", "--json").json
    key = ()
    if encrypted:
        done("key", "create", "k")
        key = ("--encrypt", "k")
    sent = done("send", estranged, "june2", "--against", "offer", "-o", "rest.bps", "--json", *key).json
    assert sent["n_blocks"] == dry["n_blocks"] < 600 < sent["n_blocks_lent"] <= sent["n_blocks_compared"]
    if not encrypted:
        assert dry["stream_bytes"] == sent["stream_bytes"] == Path("rest.bps").stat().st_size
    keys = ("--key", "k") if encrypted else ()
    assert done("stream", "info", "rest.bps", "--json", *keys).json["lender"] == "june1"
    assert "all else is in june1 at its destination" in done("stream", "info", "rest.bps", *keys).out
    assert done("stream", "verify", "rest.bps", "--json", *keys).json["problems"] == []
    received = done("receive", "copy", "-i", "rest.bps", "--json", *keys).json
    assert (received["n_blocks"], received["n_blocks_shared"]) == (sent["n_blocks"], sent["n_blocks_lent"])
    assert "offer:" not in done("snapshot", "list", "copy").out
    assert done("check", "copy", "--json").json["ok"] is True
    done("get", "copy:/", "mine")
    done("get", f"{estranged}:/", "theirs")
    for i in range(6):
        assert Path("mine", f"f{i}").read_bytes() == Path("theirs", f"f{i}").read_bytes()


def test_options_of_an_offer(done, blockplane, estranged):
    err = write_offer("june1", "--run", "32", "--json")
    assert '"run_blocks": 32' in err
    assert blockplane("receive", "copy", "--offer", "--have").status == 2
    assert blockplane("receive", "copy", "--run", 3).status == 2
    missing = blockplane("receive", "copy", "--offer", "may1", "--json")
    assert (missing.out, json.loads(missing.err)["error"]["kind"]) == ("", "no-such-snapshot")
    Path("notes").write_text("not an offer at all, but long enough to hold the header of one" * 20)
    assert (
        "not an offer"
        in blockplane("send", estranged, "june2", "--against", "notes", "-o", "x", "--json").error["message"]
    )
    missing = blockplane("send", estranged, "june2", "--against", "nowhere", "-o", "x", "--json").error
    assert "nowhere" in missing["message"]
    assert not Path("x").exists()


def test_a_full_stream_onto_most_of_it(done, blockplane, estranged):
    done("send", estranged, "june2", "-o", "june2.bps")
    refused = blockplane("receive", "copy", "-i", "june2.bps", "--json").error
    assert "--discard" in refused["hint"]
    report = done("receive", "copy", "-i", "june2.bps", "--discard", "--json").json
    assert report["n_blocks_shared"] > report["n_blocks"] * 0.7
    assert done("check", "copy", "--json").json["ok"] is True
