"""Patterns of what a put leaves out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blockplane.filesystem import FileSystem
from blockplane.filesystem.errors import InvalidRequestError
from blockplane.filesystem.exclude import Exclusions

TREE = [
    "Makefile", "a.o", "build/", "build/x.c", "cache", "src/", "src/a.c", "src/a.o", "src/build/", "src/build/y.o",
    "src/cache/", "src/cache/z", "src/deep/", "src/deep/er/", "src/deep/er/a.o", "st*r", "[b]",
]  # fmt: skip

CASES = {
    "*.o": ["a.o", "src/a.o", "src/build/y.o", "src/deep/er/a.o"],
    "/*.o": ["a.o"],
    "build": ["build/", "src/build/"],
    "/build": ["build/"],
    "src/build": ["src/build/"],
    "cache": ["cache", "src/cache/"],
    "cache/": ["src/cache/"],
    "src/*/*": ["src/build/y.o", "src/cache/z", "src/deep/er/"],
    "src/**": [name for name in TREE if name.startswith("src/") and name != "src/"],
    "src/**/a.o": ["src/a.o", "src/deep/er/a.o"],
    "**/er": ["src/deep/er/"],
    "/**/a.?": ["a.o", "src/a.c", "src/a.o", "src/deep/er/a.o"],
    "[ab].o": ["a.o", "src/a.o", "src/deep/er/a.o"],
    "[!a-x].o": ["src/build/y.o"],
    "st\\*r": ["st*r"],
    "st?r": ["st*r"],
    "\\[b]": ["[b]"],
    "[[]b[]]": ["[b]"],
    "make*": [],
    "a": [],
}


@pytest.mark.parametrize("pattern", CASES)
def test_a_pattern(pattern: str) -> None:
    exclusions = Exclusions([pattern])
    found = [name for name in TREE if exclusions.excludes(name.rstrip("/").encode(), name.endswith("/"))]
    assert found == CASES[pattern]


@pytest.mark.parametrize("pattern", ["", "/", "[a", "a\\", "[z-a]"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidRequestError, match="pattern"):
        Exclusions([pattern])


def make(top: Path) -> None:
    top.mkdir()
    for name in TREE:
        path = top / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.write_text(name)


def names(fs: FileSystem, top: str) -> list[str]:
    found = []
    for directory, directories, files in fs.walk(top):
        found += [os.path.relpath(f"{directory}/{name}", top) + "/" for name in directories]
        found += [os.path.relpath(f"{directory}/{name}", top) for name in files]
    return sorted(found)


def test_a_put_leaves_out_what_matches(fs: FileSystem, tmp_path: Path) -> None:
    make(tmp_path / "tree")
    report = fs.put(tmp_path / "tree", "/tree", exclude=["*.o", "/build", "cache/"])
    gone = {"a.o", "build/", "build/x.c", "src/a.o", "src/build/y.o", "src/cache/", "src/cache/z", "src/deep/er/a.o"}
    assert names(fs, "/tree") == sorted(set(TREE) - gone)
    assert report.n_excluded == 6
    assert report.skipped == []
    assert fs.check().problems == []


def test_delete_leaves_alone_what_matches(fs: FileSystem, tmp_path: Path) -> None:
    make(tmp_path / "tree")
    fs.put(tmp_path / "tree", "/tree")
    fs.write_bytes("/tree/src/only-here.o", b"kept")
    fs.write_bytes("/tree/src/only-here.c", b"removed")
    (tmp_path / "tree/src/a.o").unlink()
    (tmp_path / "tree/src/a.c").unlink()
    fs.put(tmp_path / "tree", "/tree", update=True, delete=True, exclude=["*.o"])
    assert names(fs, "/tree") == sorted({*TREE, "src/only-here.o"} - {"src/a.c"})


def test_delete_leaves_alone_what_matches_where_the_source_is_the_root(fs: FileSystem) -> None:
    for name in ("kept", "removed"):
        fs.makedirs(f"/copy/{name}")
    everything = [f"/{name}" for name in os.listdir("/")]
    fs.put("/", "/copy", update=True, delete=True, exclude=[*everything, "/kept"])
    assert fs.listdir("/copy") == ["kept"]


def test_the_source_itself_is_never_left_out(fs: FileSystem, tmp_path: Path) -> None:
    make(tmp_path / "build")
    fs.put(tmp_path / "build", "/", exclude=["build"])
    assert fs.exists("/build/Makefile")
    assert not fs.exists("/build/src/build")
