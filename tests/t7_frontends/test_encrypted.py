"""Encrypted streams on the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def keyed(done, pool) -> str:
    """one.bps under one.key, two.bps on it, compressed, under two.key."""
    done("key", "create", "one.key")
    done("key", "create", "two.key")
    done("send", pool, "june1", "-o", "one.bps", "--encrypt", "one.key")
    report = done(
        "send", pool, "june2 - june1", "-o", "two.bps", "--encrypt", "two.key", "--compress", "zstd", "--json"
    )
    assert report.json["encrypted"] is True
    assert report.json["stream_bytes"] == Path("two.bps").stat().st_size
    return pool


BOTH = ("--key", "one.key", "--key", "two.key")


def test_every_verb_reads_an_encrypted_chain(done, blockplane, keyed, tree, monkeypatch):
    assert "complete chain" in done("stream", "verify", "two.bps", "one.bps", *BOTH).out
    assert "later" in done("ls", "one.bps,two.bps:/", *BOTH).out
    assert done("cat", "one.bps,two.bps@june1:/tree/hello", *BOTH).out == "hello\n"
    assert done("stat", "one.bps,two.bps:/later", "--json", *BOTH).json["n_bytes"] == 25000
    done("get", "one.bps,two.bps:/tree", "got", *BOTH)
    assert Path("got/folder/inner").read_text() == "inner\n"
    assert done("stream", "compare", "one.bps", "two.bps", f"{keyed}@june2", "--json", *BOTH).json["ok"] is True
    done("receive", "copy", "-i", "one.bps", "--key", "one.key")
    monkeypatch.setenv("BLOCKPLANE_KEY_FILE", "one.key:two.key")
    done("receive", "copy", "-i", "two.bps")
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    assert "complete chain" in done("stream", "verify", "one.bps", "two.bps").out


def test_a_wrong_key_and_none(done, blockplane, keyed):
    needed = done("key", "info", "one.key", "--json").json["key_id"]
    for words in (
        ["receive", "copy", "-i", "one.bps"], ["ls", "one.bps:/"], ["cat", "one.bps:/tree/hello"],
        ["stream", "verify", "one.bps"], ["stream", "merge", "one.bps", "-o", "m.bps"],
        ["stream", "compare", "one.bps", f"{keyed}@june1"], ["get", "one.bps:/tree", "got"],
    ):  # fmt: skip
        for given, what in (([], "is encrypted, with the key of id"), (["--key", "two.key"], "two.key holds")):
            outcome = blockplane(*words, *given)
            assert (outcome.status, outcome.err.count(needed), what in outcome.err) == (1, 1, True), outcome
    assert not Path("copy").exists()
    assert not Path("m.bps").exists()
    assert blockplane("receive", "copy", "-i", "one.bps", "--json").error["kind"] == "stream-key"
    assert blockplane("stream", "info", "one.bps", "--key", "two.key").status == 1


def test_info_with_and_without_the_key(done, keyed):
    key_id = done("key", "info", "one.key", "--json").json["key_id"]
    shown = done("stream", "info", "one.bps", "--json").json
    assert (shown["encrypted"], shown["key_id"], shown["base_id"]) == (True, key_id, None)
    assert not {"snapshots", "top", "n_blocks"} & set(shown)
    assert key_id in done("stream", "info", "one.bps").out
    opened = done("stream", "info", "one.bps", "--key", "one.key", "--json").json
    assert (opened["top"], opened["key_id"], opened["compressed"]) == ("june1", key_id, False)
    assert "image_id" not in shown  # it follows from the planes
    assert done("stream", "info", "two.bps", "--key", "two.key", "--json").json["compressed"] is True
    plain = done("stream", "info", "june1.bps", "--json").json
    assert (plain["encrypted"], plain["key_id"]) == (False, None)


def test_merging_what_is_encrypted(done, blockplane, keyed):
    outcome = blockplane("stream", "merge", "one.bps", "two.bps", "-o", "m.bps", *BOTH)
    assert (outcome.status, "would not be" in outcome.err, Path("m.bps").exists()) == (2, True, False)
    done("stream", "merge", "one.bps", "two.bps", "-o", "m.bps", *BOTH, "--encrypt", "two.key")
    assert done("cat", "m.bps:/later", "--key", "two.key").out == "later" * 5000
    done("stream", "merge", "one.bps", "two.bps", "-o", "open.bps", *BOTH, "--plain")
    assert done("cat", "open.bps:/later").out == "later" * 5000
    both = blockplane("stream", "merge", "one.bps", "-o", "x.bps", *BOTH, "--plain", "--encrypt", "one.key")
    assert both.status == 2


def test_key_files(done, blockplane, pool):
    made = done("key", "create", "a.key", "--json").json
    assert Path("a.key").stat().st_mode & 0o777 == 0o600
    assert done("key", "info", "a.key").out.count(made["key_id"]) == 1
    before = Path("a.key").read_bytes()
    assert blockplane("key", "create", "a.key").status == 1
    assert Path("a.key").read_bytes() == before
    Path("a.key").chmod(0o644)
    outcome = blockplane("send", pool, "june1", "-o", "x.bps", "--encrypt", "a.key")
    assert (outcome.status, "chmod 600" in outcome.err, Path("x.bps").exists()) == (1, True, False)
    assert blockplane("send", pool, "june1", "-o", "x.bps", "--encrypt", "nothing.key").status == 1
    assert "secret" not in done("key", "info", "--help").out


def test_through_a_pipe(done, keyed):
    """An encrypted stream, then the next one: no byte more is read than the first has."""
    both = Path("one.bps").read_bytes() + Path("two.bps").read_bytes()
    verb = f"{sys.executable} -m blockplane receive copy --json {' '.join(BOTH)}"
    found = subprocess.run(["bash", "-c", f"{verb} && {verb}"], input=both, capture_output=True, check=True)
    reports = [json.loads(part) for part in found.stdout.decode().replace("}\n{", "}\n\x00{").split("\x00")]
    assert [report["top"] for report in reports] == ["june1", "june2"]


def test_a_plain_stream_in_the_place_of_an_encrypted_one(done, blockplane, keyed):
    """Who can write the file needs no key for that: it is refused where that is said, and else told."""
    done("send", keyed, "june1", "-o", "forged.bps")
    done("send", keyed, "june2 - june1", "-o", "forged2.bps")
    for words in (
        ["receive", "copy", "-i", "forged.bps"], ["receive", "copy", "-i", "forged.bps", "-i", "two.bps"],
        ["stream", "verify", "forged.bps"], ["stream", "verify", "one.bps", "forged2.bps"],
        ["stream", "merge", "forged.bps", "two.bps", "-o", "m.bps", "--plain"],
    ):  # fmt: skip
        refused = blockplane(*words, *BOTH, "--require-encrypted")
        assert (refused.status, "is not encrypted, and only encrypted ones are to be taken" in refused.err) == (1, True)
        assert not Path("copy").exists()
        assert not Path("m.bps").exists()
        told = done(*words, *BOTH)
        assert "not encrypted: no key says who wrote it; --require-encrypted refuses that" in told.err
        shutil.rmtree("copy", ignore_errors=True)
        Path("m.bps").unlink(missing_ok=True)
    for words in (["receive", "copy", "-i", "one.bps", "-i", "two.bps"], ["stream", "verify", "one.bps", "two.bps"]):
        assert "not encrypted" not in done(*words, *BOTH, "--require-encrypted").err
    assert "not encrypted" not in done("stream", "verify", "forged.bps").err
