"""Names with control bytes, escapes and bytes that are no UTF-8 never reach a terminal raw."""

from __future__ import annotations

import os

import pytest

NAMES = [b"new\nline", b"\x1b[2Jclear", b"\xff\xfe", b"tab\there", b"back\\slash", b"\xe2\x80\xaertl", b"-dash", b"a b"]


@pytest.fixture
def hostile(done, tmp_path) -> str:
    top = os.fsencode(tmp_path / "top")
    os.mkdir(top)
    for name in NAMES:
        with open(os.path.join(top, name), "w") as file:
            file.write("x")
    done("create", "v", "--disks", 2, "--size", "4MiB")
    done("put", "v:/", "top")
    return "v"


def assert_clean(text: str) -> None:
    assert all(c == "\n" or c.isprintable() for c in text)


def test_listings_escape_them(done, hostile):
    for arguments in (["ls", "v:/top"], ["ls", "-l", "v:/top"], ["ls", "v:/top", "--json"]):
        outcome = done(*arguments)
        assert_clean(outcome.out)
    assert done("ls", "v:/top").out.count("\n") == len(NAMES)
    assert "\\x1b[2Jclear" in done("ls", "v:/top").out


def test_json_gives_names_back_exactly(done, hostile):
    entries = done("ls", "v:/top", "--json").json["entries"]
    assert sorted(os.fsencode(e["name"]) for e in entries) == sorted(NAMES)


def test_errors_and_stat_escape_them(blockplane, done, hostile):
    missing = blockplane("cat", "v:/top/\x1b[31m\nmissing")
    assert missing.status == 1
    assert_clean(missing.err)
    assert_clean(done("stat", "v:/top/\x1b[2Jclear").out)
    assert_clean(blockplane("ls", "no\x1bsuch\nvolume:/").err)
    assert_clean(blockplane("snapshot", "create", "v@bad\x1bname").err)
    assert_clean(blockplane("ba\x1bd").err)
    assert_clean(blockplane("ls", "--ba\x1b[31md").err)


def test_they_come_back_as_they_were(done, hostile):
    done("get", "v:/top", "back")
    assert sorted(os.listdir(b"back")) == sorted(NAMES)
