"""Names that lead where nothing may be written, and places where nothing can be: refused before anything changes."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import blockplane as bp


@pytest.fixture
def pool(done) -> Path:
    """A volume with a snapshot, and a stream of it, in the directory at work."""
    done("create", "pool", "--disks", "1", "--size", "16M")
    Path("text").write_text("text")
    done("put", "pool:/", "text")
    done("snapshot", "create", "pool@june1")
    done("send", "pool", "june1", "-o", "june1.bps")
    return Path("pool")


@contextmanager
def full_place(folder: Path):
    """A file system without room; what is made there before `fill` is called stays."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> None:
    with open(folder / "fill", "wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert os.statvfs(folder).f_bavail == 0


@pytest.mark.parametrize("name", ["lock", "volume.toml", "volume.toml.new", "mirrors.json", "mirrors.json.new"])
def test_no_link_in_a_directory_leads_to_a_file_of_somebody_else(done, blockplane, pool, name):
    Path("precious").write_text("precious")
    (pool / name).unlink(missing_ok=True)
    (pool / name).symlink_to(Path("precious").absolute())
    for words in (
        ["mkdir", "pool:/x"],
        ["grow", "pool", "--disks", "1", "--size", "16M"],
        ["mirror", "add", "pool", "m"],
    ):
        told = blockplane(*words)
        assert Path("precious").read_text() == "precious", words
        if told.status:
            assert "is a symbolic link" in told.err, told.err
    (pool / name).unlink(missing_ok=True)
    done("check", "pool")


@pytest.mark.parametrize("name", ["lock", "volume.toml", "mirrors.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_what_is_no_file_in_a_directory_is_named_at_once(blockplane, pool, name, kind):
    (pool / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(pool / name)
    elif kind == "endless":
        (pool / name).symlink_to("/dev/zero")
    else:
        (pool / name).mkdir()
    told = blockplane("mirror", "status", "pool", "--json")
    assert (told.status, told.error["kind"], name in told.error["message"]) == (1, "refused", True)


def test_a_file_of_ours_that_has_no_end_is_refused(blockplane, pool):
    os.truncate(pool / "volume.toml", 1 << 40)
    told = blockplane("info", "pool", "--json")
    assert (told.status, "volume.toml cannot be read" in told.error["message"]) == (1, True)


def test_a_pipe_is_no_tape(blockplane):
    os.mkfifo("x.tap")
    told = blockplane("tape", "list", "x.tap", "--json")
    assert (told.status, told.error["kind"]) == (1, "tape")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are for root")
def test_disk_files_without_room_under_them_say_so_and_keep_what_was_committed(blockplane, done, tmp_path):
    (tmp_path / "file").write_bytes(os.urandom(64 << 10))
    with full_place(tmp_path / "small") as small:
        done("create", small / "pool", "--disks", "1", "--size", "64M")
        done("put", f"{small}/pool:/", tmp_path / "file")
        done("snapshot", "create", f"{small}/pool@june1")
        fill(small)
        for words in (["put", f"{small}/pool:/more", tmp_path / "file"], ["snapshot", "delete", f"{small}/pool@june1"]):
            outcome = blockplane(*words, "--json")
            assert (outcome.status, outcome.error["kind"]) == (1, "disk")
            assert "make room on the file system that the disk file is on" in outcome.error["hint"]
        done("check", small / "pool")
        (small / "fill").unlink()
        done("snapshot", "delete", f"{small}/pool@june1")
        done("check", small / "pool")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are for root")
def test_a_directory_without_room_keeps_nobody_from_deleting(done, tmp_path):
    (tmp_path / "file").write_text("text")
    with full_place(tmp_path / "small") as small:
        done("create", small / "pool", "--disk", tmp_path / "disk", "--size", "16M")
        done("put", f"{small}/pool:/", tmp_path / "file")
        done("snapshot", "create", f"{small}/pool@june1")
        fill(small)
        done("rm", f"{small}/pool:/file")
        done("snapshot", "delete", f"{small}/pool@june1")
        done("check", small / "pool")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts are for root")
def test_what_cannot_be_made_leaves_nothing(blockplane, pool, tmp_path):
    with full_place(tmp_path / "small") as small:
        fill(small)
        for words in (
            ["create", small / "a" / "new", "--size", "16M"],
            ["receive", small / "a" / "new", "-i", "june1.bps"],
            ["copy", "pool", "june1", small / "a" / "new"],
        ):
            assert blockplane(*words).status == 1
            assert os.listdir(small) == ["fill"]


def test_directories_on_the_way_go_again(blockplane, pool):
    Path("cut.bps").write_bytes(Path("june1.bps").read_bytes()[:-5000])
    assert blockplane("receive", "new/x/copy", "-i", "cut.bps").status == 1
    assert not Path("new").exists()
    assert blockplane("create", "new/x/copy", "--disks", "1", "--size", "1K").status == 1
    assert not Path("new").exists()


def test_a_disk_of_a_volume_is_not_written_over(blockplane, done, pool, tmp_path):
    done("create", "other", "--disks", "1", "--size", "16M")
    done("tape", "write", "a.tap", "pool", "june1")
    disk = Path("other/disks/0")
    before = disk.read_bytes()
    for words in (
        ["get", "pool:/text", disk],
        ["get", "pool:/.planes/june1", disk],
        ["tape", "retrieve", "a.tap", "--path", "/text", "-o", disk],
        ["send", "pool", "june1", "-o", disk],
        ["stream", "merge", "june1.bps", "-o", disk],
    ):
        found = blockplane(*words)
        assert (found.status, "is a disk of a volume" in found.err) == (1, True), words
        assert disk.read_bytes() == before
    done("serve", "--once", "--volume", "pool=pool", "--metrics-file", disk)
    assert disk.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["create", "{}", "--size", "16M"],
        ["receive", "{}", "-i", "june1.bps"],
        ["copy", "pool", "june1", "{}"],
        ["replicate", "pool", "{}"],
        ["info", "{}"],
    ],
    ids=lambda words: words[0],
)
def test_a_name_of_another_machine_is_no_directory(blockplane, pool, words):
    place = "backup.example:7420/pool"
    found = blockplane(*[word.format(place) for word in words])
    assert (found.status, f"{place} is on another machine" in found.err) == (2, True)
    assert not Path("backup.example:7420").exists()
    if words[0] in ("receive", "create"):
        assert blockplane(*[word.format(f"./{place}") for word in words]).status == 0


@pytest.mark.parametrize(
    "words",
    [
        ["receive", "pool", "--offer", "none", "--json"],
        ["tape", "retrieve", "a.tap", "--vbn", "999999", "--json"],
        ["send", "pool", "none", "-o", "-", "--json"],
        ["send", "pool", "none", "--json"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_an_error_is_not_among_the_data(blockplane, done, pool, words):
    done("tape", "write", "a.tap", "pool", "june1")
    found = blockplane(*words)
    assert (found.status, found.out) == (1, "")
    assert json.loads(found.err.splitlines()[-1])["ok"] is False


def test_what_may_not_be_read_is_no_mistake_in_the_command(blockplane, pool):
    Path("june1.bps").chmod(0)
    with suppress(PermissionError), open("june1.bps", "rb"):
        pytest.skip("who runs this may read all")
    for words in (["stream", "verify", "june1.bps"], ["receive", "copy", "-i", "june1.bps"]):
        found = blockplane(*words)
        assert (found.status, "Permission denied" in found.err) == (1, True), words


def test_nothing_is_added_to_a_set_that_is_not_there(blockplane, pool):
    found = blockplane("tape", "write", "none.tap", "--append", "pool", "june1")
    assert (found.status, "there is no set on none.tap" in found.err) == (1, True)
    assert not Path("none.tap").exists()


def test_the_mirrors_of_the_volume_one_is_in(blockplane, done, pool):
    assert "make a volume" in blockplane("mirror", "status").err
    os.chdir(pool)
    assert done("mirror", "status").out == done("mirror", "status", ".").out
    assert bp.mirrors.definitions(Path()) == []
