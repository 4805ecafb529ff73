"""put --update: DEST becomes SRC's copy, and only blocks that differ are written."""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockplane.filesystem import FileSystem, update
from blockplane.model import NoSpaceError
from blockplane.volume import Volume
from equality import differences, host_tree, volume_tree
from hosttrees import make_everything


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_everything(tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def volume(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Volume.create(tmp_path / "vol", disks=4, size="64M") as made:
        yield made


def change_everything(top: Path, seed: int) -> None:
    """Rewrite, grow, cut, remove, rename, relink and retype what make_everything made."""
    rnd = random.Random(seed)
    for path in sorted((top / "sub/deeper").iterdir()):
        choice = rnd.randrange(6)
        if choice == 0:
            path.unlink()
        elif choice == 1:
            path.write_bytes(rnd.randbytes(rnd.randrange(9000)))
        elif choice == 2:
            path.rename(path.with_name(path.name + " renamed"))
        elif choice == 3:
            path.chmod(0o600)
    with (top / "file12").open("r+b") as file:
        for _ in range(20):
            file.seek(rnd.randrange(5_000_000))
            file.write(b"changed")
    os.truncate(top / "sparse", 1 << 20)
    (top / "file9").unlink()
    (top / "file11").unlink()
    (top / "file11").mkdir()
    (top / "file11/inner").write_bytes(b"now a directory")
    shutil.rmtree(top / "empty")
    (top / "empty").write_bytes(b"now a file")
    os.link(top / "file8", top / "linked now")
    (top / "link").unlink()
    os.symlink("elsewhere", top / "link")
    os.setxattr(top / "file3", "user.small", b"other")
    os.removexattr(top / "file4", "user.large")
    (top / "file0").write_bytes(b"x" * 300)


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("dot", ["", "/."])
def test_the_destination_becomes_the_source(source: Path, fs: FileSystem, checksum: bool, dot: str) -> None:
    fs.put(source, "/copy")
    fs.write_bytes("/copy/only here", b"")
    fs.makedirs("/copy/sub/only here/too")
    for seed in range(3):
        change_everything(source, seed) if seed == 0 else change_files(source, seed)
        report = fs.put(f"{source}{dot}", "/copy", update=True, delete=True, checksum=checksum)
        assert report.skipped == []
        assert differences(host_tree(source), volume_tree(fs, "/copy")) == []
        assert fs.check().problems == []


def change_files(top: Path, seed: int) -> None:
    rnd = random.Random(seed)
    for path in sorted((top / "sub/deeper").iterdir())[::3]:
        path.write_bytes(rnd.randbytes(rnd.randrange(300_000)))


def test_without_delete_what_is_more_stays(source: Path, fs: FileSystem) -> None:
    fs.mkdir("/copy")
    fs.write_bytes("/copy/mine", b"m")
    fs.put(source, "/copy", update=True)
    found = volume_tree(fs, "/copy")
    del found["mine"]
    assert differences(host_tree(source), found) == []


def test_nothing_is_written_where_nothing_differs(volume: Volume, source: Path, fs: FileSystem) -> None:
    fs.put(source, "/copy")
    volume.sync()
    report = fs.put(source, "/copy", update=True, delete=True, checksum=True)
    assert (report.n_blocks_written, report.n_bytes, report.n_removed) == (0, 0, 0)


@pytest.mark.parametrize("n_changed", [1, 50])
def test_only_blocks_that_differ_are_written(tmp_path: Path, volume: Volume, fs: FileSystem, n_changed: int) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / "f"
    path.write_bytes(rng.bytes(20 << 20))
    fs.put(path, "/f")
    volume.sync()
    before = volume.active.root.n_blocks
    blocks = rng.choice(5120, n_changed, replace=False)
    with path.open("r+b") as file:
        for block in blocks.tolist():
            file.seek(block * 4096 + 17)
            file.write(b"!")
    report = fs.put(path, "/f", update=True)
    assert report.n_blocks_written == n_changed
    assert fs.read_bytes("/f") == path.read_bytes()
    volume.sync()
    assert volume.active.root.n_blocks == before


def test_same_size_and_time_are_trusted_unless_checksum(tmp_path: Path, fs: FileSystem) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a" * 5000)
    fs.put(path, "/f")
    status = path.stat()
    path.write_bytes(b"b" * 5000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    fs.put(path, "/f", update=True)
    assert fs.read_bytes("/f") == b"a" * 5000
    fs.put(path, "/f", update=True, checksum=True)
    assert fs.read_bytes("/f") == b"b" * 5000


def test_a_snapshot_shares_what_an_update_left(tmp_path: Path, volume: Volume, fs: FileSystem) -> None:
    path = tmp_path / "f"
    path.write_bytes(os.urandom(8 << 20))
    fs.put(path, "/f")
    old = volume.snapshot("s")
    with path.open("r+b") as file:
        file.write(b"new")
    fs.put(path, "/f", update=True)
    volume.sync()
    new_plane = volume.plane(volume.state(None))
    assert len(new_plane - old.plane) <= 24
    assert FileSystem(old).read_bytes("/f", 0, 3) != b"new"


def test_hard_links_outside_are_not_written_through(tmp_path: Path, fs: FileSystem) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/f").write_bytes(b"1" * 5000)
    fs.put(tmp_path / "s", "/copy")
    fs.link("/copy/f", "/outside")
    (tmp_path / "s/f").write_bytes(b"2" * 5000)
    fs.put(tmp_path / "s", "/copy", update=True)
    assert (fs.read_bytes("/copy/f"), fs.read_bytes("/outside")) == (b"2" * 5000, b"1" * 5000)


@pytest.mark.parametrize("before", [0, 200, 5000, 8192, 3 << 20])
@pytest.mark.parametrize("n_reads", [0, 1, 3])
def test_a_file_that_grew_and_cannot_be_read_to_its_end(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, before: int, n_reads: int
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a" * before)
    fs.put(path, "/f")
    volume.sync()
    path.write_bytes(b"B" * (6 << 20))
    real, calls = update.read_fully, iter(range(100))

    def failing(*rest: Any) -> int:
        if next(calls) == n_reads:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*rest)

    with monkeypatch.context() as patch:
        patch.setattr(update, "read_fully", failing)
        report = fs.put(path, "/f", update=True)
    assert report.skipped == [(str(path), "Input/output error")]
    assert fs.stat("/f").st_size == before
    assert fs.check().problems == []
    fs.truncate("/f", 4 << 20)
    assert fs.read_bytes("/f", before) == bytes((4 << 20) - before)
    assert fs.data_ranges("/f") in ([], [(0, -(-before // 4096) * 4096)])
    fs.put(path, "/f", update=True)
    assert fs.read_bytes("/f") == path.read_bytes()


@pytest.mark.parametrize("before", [200, 5000, 700_000])
def test_a_file_that_grew_and_finds_no_room(tmp_path: Path, fill_up: Any, before: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a" * before)
    with Volume.create(tmp_path / "small", disks=1, size="16M") as volume:
        fs = FileSystem(volume)
        fs.put(path, "/f")
        volume.sync()
        fill_up(volume, 600)
        path.write_bytes(b"B" * (6 << 20))
        with pytest.raises(NoSpaceError):
            fs.put(path, "/f", update=True)
        volume.sync()
        assert fs.stat("/f").st_size == before
        assert fs.check().problems == []
        fs.truncate("/f", 2 << 20)
        assert fs.read_bytes("/f", before) == bytes((2 << 20) - before)


def test_a_mixture_is_not_taken_for_the_copy(tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"a" * (4 << 20))
    fs.put(path, "/f")
    status = path.stat()
    path.write_bytes(b"b" * (4 << 20))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    real = update.read_fully

    def failing(fd: int, offset: int, buffers: list[memoryview]) -> int:
        if offset >= 2 << 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, offset, buffers)

    with monkeypatch.context() as patch:
        patch.setattr(update, "read_fully", failing)
        assert fs.put(path, "/f", update=True, checksum=True).skipped != []
    assert fs.read_bytes("/f", (2 << 20) - 1, 2) == b"ba"
    fs.put(path, "/f", update=True)
    assert fs.read_bytes("/f") == b"b" * (4 << 20)
