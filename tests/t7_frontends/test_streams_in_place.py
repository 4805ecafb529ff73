"""ls, cat, stat and get on stream files, chains and folders of them."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_ls_cat_stat_get_of_a_chain(done, pool, tree):
    for name in ("june1.bps,june2.bps", "june2.bps,june1.bps"):
        assert done("ls", f"{name}:/").out.split() == ["later", "tree"]
        assert done("cat", f"{name}:/tree/hello").out == "hello\n"
        assert done("stat", f"{name}:/later", "--json").json["n_bytes"] == 25_000
    done("get", "june1.bps,june2.bps:/tree", "out")
    changed = bytearray((tree / "large").read_bytes())
    changed[8192 : 8192 + 7] = b"changed"
    assert Path("out/large").read_bytes() == bytes(changed)
    assert Path("out/folder/inner").read_text() == "inner\n"
    assert Path("out/link").readlink() == Path("hello")


def test_a_snapshot_inside_a_stream_or_a_chain(done, blockplane, pool, tree):
    assert done("ls", "june1.bps@june1:/").out.split() == ["tree"]
    for place in ("june1.bps,june2.bps@june1", "june1.bps,june2.bps@june2"):
        assert done("cat", f"{place}:/tree/hello").out == "hello\n"
    assert done("ls", "june1.bps,june2.bps@june1:/").out.split() == ["tree"]
    outcome = blockplane("ls", "june1.bps@june2:/", "--json")
    assert (outcome.error["kind"], outcome.error["hint"]) == ("no-such-snapshot", "there are june1")


def test_a_folder_of_streams(done, pool):
    Path("backups").mkdir()
    for name in ("june1.bps", "june2.bps"):
        Path(name).rename(f"backups/{name}")
    assert done("ls", "backups:/").out.split() == ["later", "tree"]
    assert done("ls", "backups@june1:/").out.split() == ["tree"]
    done("get", "backups@june1:/tree/hello", "hello")
    assert Path("hello").read_text() == "hello\n"


@pytest.mark.parametrize("verb", ["ls", "cat", "stat", "get"])
@pytest.mark.parametrize(
    ("place", "kind", "words"),
    [
        ("june2.bps", "stream-mismatch", "june2.bps builds on snapshot june1"),
        ("june1.bps,gone.bps", "not-found", "gone.bps"),
        ("cut.bps", "stream-truncated", "cut.bps"),
        ("foreign.bps", "stream", "foreign.bps"),
        ("flipped.bps", "stream-damaged", "flipped.bps"),
    ],
)
def test_one_clear_error(blockplane, pool, verb, place, kind, words):
    raw = bytearray(Path("june1.bps").read_bytes())
    Path("cut.bps").write_bytes(raw[:-100])
    Path("foreign.bps").write_bytes(b"\x7fELF" + bytes(3000))
    raw[400] ^= 1
    Path("flipped.bps").write_bytes(raw)
    words_after = ["out"] if verb == "get" else []
    outcome = blockplane(verb, f"{place}:/tree/hello", *words_after)
    assert (outcome.status, outcome.out) == (1, "")
    assert words in outcome.err
    assert not Path("out").exists()
    if verb in ("ls", "stat", "get"):
        assert blockplane(verb, f"{place}:/tree/hello", *words_after, "--json").error["kind"] == kind


def test_streams_are_not_written(blockplane, pool, tree):
    for verb in (["rm", "june1.bps:/tree/hello"], ["mkdir", "june1.bps:/x"], ["put", "june1.bps:/", tree]):
        outcome = blockplane(*verb)
        assert (outcome.status, "a stream cannot be written" in outcome.err) == (1, True)


def test_a_compressed_stream(done, blockplane, pool, tree):
    report = done("send", pool, "june2", "-o", "packed.bps", "--compress", "zstd:5", "--json").json
    assert report["compression"] == "zstd:5"
    assert report["stream_bytes"] == Path("packed.bps").stat().st_size < report["n_bytes"] // 4
    assert done("cat", "packed.bps:/tree/hello").out == "hello\n"
    assert done("stream", "verify", "packed.bps", "--json").json["ok"]
    done("receive", "copy", "-i", "packed.bps")
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    done("get", "packed.bps:/tree/folder", "folder")
    assert Path("folder/inner").read_text() == "inner\n"
    assert "at most" in done("send", pool, "june2", "-n", "--compress", "zstd").out
    outcome = blockplane("send", pool, "june2", "-o", "x.bps", "--compress", "lzma")
    assert (outcome.status, "zstd:19" in outcome.err, Path("x.bps").exists()) == (2, True, False)
