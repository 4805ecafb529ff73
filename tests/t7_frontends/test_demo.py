"""The demonstration, on a small tree."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.cli.equality import compare_states


@pytest.fixture
def many(tmp_path) -> Path:
    top = tmp_path / "many"
    for number in range(60):
        folder = top / f"folder{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(number)).write_bytes(os.urandom(number * 700))
    (top / "link").symlink_to("folder1")
    os.link(top / "folder0" / "0", top / "hard")
    return top


def test_it_ends_in_the_proof(done, many):
    before = sorted(os.listdir())
    found = done("demo", many, "--json").json
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["equal"]["monday"]["n_entries"] == found["put"]["n_files"] + found["put"]["n_directories"] + 2 + 1
    assert found["equal"]["monday"]["n_bytes"] == found["put"]["n_bytes"] > 0
    assert found["equal"]["host"]["n_entries"] > 60
    assert found["plane"]["bytes_per_block"] <= 1 / 8
    assert found["send_increment"]["n_blocks"] < found["send_full"]["n_blocks"]
    assert found["receive_full"]["n_blocks"] == found["send_full"]["n_blocks"]
    assert sorted(os.listdir()) == before


def test_it_keeps_its_place_when_asked(done, blockplane, many):
    assert "everything equal" in done("demo", many, "--keep", "here").out
    assert done("check", "here/copy", "--json").json["ok"] is True
    assert blockplane("demo", many, "--keep", "here").status == 1
    assert blockplane("demo", "absent").status == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda files: files.chmod("/a", 0o600),
        lambda files: files.setxattr("/a", "user.x", b"1"),
        lambda files: files.unlink("/a"),
        lambda files: files.mkdir("/b"),
        lambda files: _overwrite(files, "/a"),
    ],
    ids=["mode", "attribute", "missing", "extra", "bytes"],
)
def test_its_comparison_finds_every_kind_of_difference(tmp_path, monkeypatch, spoil):
    monkeypatch.chdir(tmp_path)
    with bp.Volume.create("v", disks=2, size="8M") as volume:
        files = bp.FileSystem(volume)
        with files.open("/a", "w") as file:
            file.write(b"content" * 1000)
        one = volume.snapshot("one")
        times = files.stat("/a")
        spoil(files)
        if files.exists("/a"):
            files.utime("/a", ns=(times.st_atime_ns, times.st_mtime_ns))
        two = volume.snapshot("two")
        same = compare_states(bp.FileSystem(one), bp.FileSystem(one))
        assert (same.ok, same.n_entries) == (True, 2)
        assert compare_states(bp.FileSystem(one), bp.FileSystem(two)).differences


def _overwrite(files: bp.FileSystem, path: str) -> None:
    with files.open(path, "r+") as file:
        file.seek(5000)
        file.write(b"!")
