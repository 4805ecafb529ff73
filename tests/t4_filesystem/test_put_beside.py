"""put while others change the volume: between two batches, in which the lock is let go."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import blockplane as bp
from blockplane.filesystem import FileSystem, copyin, datain
from blockplane.filesystem.errors import NotADirectoryPathError
from blockplane.filesystem.inode import Inode
from blockplane.filesystem.store import Store
from blockplane.filesystem.update import Updater
from blockplane.model import VolumeDamagedError
from blockplane.volume import Volume
from equality import differences, host_tree, volume_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Folders of some batches each, one within another, whose files have further names in all of them."""
    top = tmp_path / "tree"
    for folder in ("one", "one/two", "one/two/three", "other"):
        (top / folder).mkdir(parents=True)
        for i in range(30):
            (top / folder / f"f{i}").write_bytes(f"{folder} {i}".encode() * (i * 40))
        os.link(top / "one/f7", top / folder / "linked")
    return top


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockplane.filesystem.copyin._BATCH_ENTRIES", 8)
    monkeypatch.setattr("blockplane.filesystem.copyin._BATCH_BYTES", 1 << 20)


def after(n_batches: int, act: Callable[[], object]) -> Callable[[object], None]:
    """Act once, when so many batches are done."""
    calls: Iterator[int] = iter(range(1, 1000))

    def progress(_: object) -> None:
        if next(calls) == n_batches:
            act()

    return progress


def require_whole(tmp_path: Path, volume: Volume) -> Volume:
    """Require that nothing is lost or left over, in memory and on the disks; return the volume, opened anew."""
    assert FileSystem(volume).check().problems == []
    volume.close()
    again = Volume.open(tmp_path / "vol")
    assert bp.check(again).problems == []
    return again


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("gone", ["", "one", "one/two", "other"])
@pytest.mark.parametrize("n_batches", [1, 3, 6, 11])
def test_a_directory_that_another_removes(
    tmp_path: Path, volume: Volume, fs: FileSystem, tree: Path, gone: str, update: bool, n_batches: int
) -> None:
    fs.mkdir("/dest")
    if update:
        fs.put(f"{tree}/.", "/dest")
        for path in tree.rglob("f?"):
            path.write_bytes(b"changed")

    def remove() -> None:
        if fs.exists(f"/dest/{gone}"):
            fs.rmtree(f"/dest/{gone}")

    report = fs.put(f"{tree}/.", "/dest", update=update, progress=after(n_batches, remove))
    for path, reason in report.skipped:
        assert Path(os.path.normpath(path)).is_relative_to(tree / gone)
        assert reason in (
            "removed from the volume while the tree was copied",
            "its directory in the volume was removed while the tree was copied",
        )
    with require_whole(tmp_path, volume) as again:
        fs = FileSystem(again)
        if gone:
            lines = differences(host_tree(tree), volume_tree(fs, "/dest"), ignore=("links", "mtime_ns"))
            assert [line for line in lines if not line.startswith(gone)] == []
        else:
            assert not fs.exists("/dest")


def test_what_was_copied_into_a_removed_directory_is_not_counted(
    tmp_path: Path, volume: Volume, fs: FileSystem, tree: Path
) -> None:
    """The folder goes when its files are read and not entered yet."""
    (tmp_path / "flat").mkdir()
    for i in range(8):
        (tmp_path / f"flat/f{i}").write_bytes(b"x" * 300)
    fs.mkdir("/flat")
    real, calls = fs.store.create, iter(range(100))

    def create(*rest: Any, **more: Any) -> Any:
        if next(calls) == 7:
            fs.rmdir("/flat")  # as if between two batches: nothing of this one is entered
        return real(*rest, **more)

    with mock.patch.object(fs.store, "create", create):
        report = fs.put(f"{tmp_path}/flat/.", "/flat")
    assert (report.n_files, len(report.skipped)) == (0, 8)
    assert fs.n_inodes == 1
    require_whole(tmp_path, volume).close()


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("n_batches", [1, 2, 4])
def test_a_large_file_that_another_removes(
    tmp_path: Path, volume: Volume, fs: FileSystem, is_cut: bool, n_batches: int
) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(20 << 20))
    (source / "other").write_bytes(b"o" * 5000)
    fs.mkdir("/s")

    def act() -> None:
        if fs.exists("/s/big"):
            volume.sync()
            fs.unlink("/s/big")
            fs.write_bytes("/mine", b"m" * 5000)  # takes the number, were it free
        if is_cut:
            os.truncate(source / "big", 0)

    fs.put(f"{source}/.", "/s", progress=after(n_batches, act))
    assert fs.read_bytes("/s/other") == b"o" * 5000
    if fs.exists("/mine"):
        assert fs.read_bytes("/mine") == b"m" * 5000
        assert fs.listdir("/s") == ["other"]
    assert fs.n_inodes == len(["/", "/s"]) + len(fs.listdir("/s")) + fs.exists("/mine")
    require_whole(tmp_path, volume).close()


@pytest.fixture
def two_names(tmp_path: Path) -> Path:
    """A folder with a file of many batches that has two names."""
    source = tmp_path / "s"
    source.mkdir()
    (source / "a").write_bytes(random.Random(5).randbytes(12 << 20))
    os.link(source / "a", source / "b")
    return source


def test_a_large_file_that_another_removes_gets_no_further_name(
    tmp_path: Path, volume: Volume, fs: FileSystem, two_names: Path
) -> None:
    """It is open while it is copied: its other name becomes a file of its own."""
    removed: list[str] = []

    def act() -> None:
        removed.extend(fs.listdir("/s"))
        fs.unlink(f"/s/{removed[0]}")

    fs.mkdir("/s")
    report = fs.put(f"{two_names}/.", "/s", progress=after(2, act))
    assert report.skipped == []
    with require_whole(tmp_path, volume) as again:
        fs = FileSystem(again)
        assert sorted(removed + fs.listdir("/s")) == ["a", "b"]
        (name,) = fs.listdir("/s")
        assert fs.read_bytes(f"/s/{name}") == (two_names / name).read_bytes()
        assert fs.stat(f"/s/{name}").st_nlink == 1
        fs.write_bytes("/more", b"more")


def test_a_large_file_whose_end_cannot_be_read_gets_no_further_name(
    tmp_path: Path, volume: Volume, fs: FileSystem, two_names: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = datain.read_fully

    def read_fully(fd: int, offset: int, buffers: Any) -> int:
        if offset >= 8 << 20:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, offset, buffers)

    monkeypatch.setattr(datain, "read_fully", read_fully)
    monkeypatch.setattr("blockplane.filesystem.copyin._BATCH_BYTES", 8 << 20)  # its end is under way when b is met
    report = fs.put(two_names, "/s")
    assert sorted(path for path, _ in report.skipped) == [f"{two_names}/a", f"{two_names}/b"]
    with require_whole(tmp_path, volume) as again:
        fs = FileSystem(again)
        assert fs.listdir("/s") == []
        fs.write_bytes("/more", b"more")


def test_an_open_file_that_another_removes_gets_no_further_name(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockplane.filesystem.copyin._BATCH_ENTRIES", 1)
    source = tmp_path / "s"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(b"x" * 5000)
    os.link(source / "a", source / "sub/b")
    held: list[Any] = []

    def progress(_: object) -> None:
        if not held and fs.exists("/s/a"):
            held.append(fs.open("/s/a", "rb"))
            fs.unlink("/s/a")

    assert fs.put(source, "/s", progress=progress).skipped == []
    held[0].close()
    with require_whole(tmp_path, volume) as again:
        fs = FileSystem(again)
        assert (fs.listdir("/s"), fs.read_bytes("/s/sub/b")) == (["sub"], b"x" * 5000)
        fs.write_bytes("/more", b"more")


def test_a_name_that_another_takes(tmp_path: Path, volume: Volume, fs: FileSystem, tree: Path) -> None:
    def act() -> None:
        for i in range(8, 30):
            if not fs.exists(f"/tree/one/f{i}"):
                fs.write_bytes(f"/tree/one/f{i}", b"mine")

    report = fs.put(tree, "/tree", progress=after(2, act))
    assert len(report.skipped) > 10
    assert {reason for _, reason in report.skipped} == {"its name in the volume was taken while the tree was copied"}
    for path, _ in report.skipped:
        assert fs.read_bytes(f"/tree/{os.path.relpath(path, tree)}") == b"mine"
    assert report.n_files == sum(path.is_file() for path in tree.rglob("f*")) - len(report.skipped)
    require_whole(tmp_path, volume).close()


def test_one_directory_that_fails_keeps_no_other_from_being_filled(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "s"
    for name in ("a", "b", "c"):
        (source / name).mkdir(parents=True)
        (source / name / "file").write_bytes(b"x" * 3000)
        fs.makedirs(f"/s/{name}")
        fs.write_bytes(f"/s/{name}/mine", b"m")
    real, bad = Store.add_entry, fs.resolver.find("/s/a")

    def add_entry(store: Store, parent: Inode, name: bytes, inode: Inode) -> None:
        if parent is bad:
            raise VolumeDamagedError("a block does not match its checksum")
        real(store, parent, name, inode)

    monkeypatch.setattr(Store, "add_entry", add_entry)
    with pytest.raises(VolumeDamagedError):
        fs.put(f"{source}/.", "/s")
    monkeypatch.undo()
    assert [fs.listdir(f"/s/{name}") for name in ("a", "b", "c")] == [["mine"], ["file", "mine"], ["file", "mine"]]
    require_whole(tmp_path, volume).close()


def test_a_destination_that_goes_at_once(tmp_path: Path, volume: Volume, fs: FileSystem, tree: Path) -> None:
    """The directory that is to hold it goes between its being found and the first change."""
    fs.mkdir("/in")

    def updater(*rest: Any, **more: Any) -> Updater:
        fs.rmdir("/in")
        return Updater(*rest, **more)

    with mock.patch.object(copyin, "Updater", updater), pytest.raises(NotADirectoryPathError):
        fs.put(tree, "/in/tree")
    assert fs.n_inodes == 1
    require_whole(tmp_path, volume).close()
