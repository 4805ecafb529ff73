"""What other threads do to the live file system while one reads, writes or copies: nothing is lost without a word."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.filesystem import copyout
from blockplane.filesystem.errors import PathError, StaleHandleError
from blockplane.volume import live

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path):
    with bp.Volume.create(tmp_path / "pool", disks=3, size="48M") as volume:
        yield volume


def by_another(act: Callable[[], object]) -> None:
    thread = threading.Thread(target=act)
    thread.start()
    thread.join()


# --- get ---


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "tree" / "d"
    folder.mkdir(parents=True)
    for i in range(300):
        (folder / f"f{i:03}").write_bytes(bytes([1 + i % 255]) * 20_000)
    for i in range(20):
        (folder / f"l{i:03}").symlink_to("target")
    return folder.parent


def require_whole_or_named(out: Path, tree: Path, report: bp.GetReport) -> None:
    """Every file that is there is as it was; every other one is named as passed over."""
    for path in (tree / "d").iterdir():
        copy = out / "d" / path.name
        if os.path.lexists(copy):
            assert copy.is_symlink() is path.is_symlink()
            assert path.is_symlink() or copy.read_bytes() == path.read_bytes()
        else:
            assert any(path.name in text for text in map(str, report.skipped)) or not (out / "d").exists()


@pytest.mark.parametrize("is_in_rounds", [False, True])
@pytest.mark.parametrize("how", ["removed", "their numbers are others'", "put again", "rolled back"])
def test_get_of_files_that_go_meanwhile(volume, tree, tmp_path, monkeypatch, how, is_in_rounds):
    files, acted = bp.FileSystem(volume), []
    if is_in_rounds:  # some of a directory's files are looked at when others are written already
        monkeypatch.setattr(copyout, "_INODES_AT_ONCE", 16)
        monkeypatch.setattr(copyout, "_FILES_PER_ROUND", 40)
    for i in range(300):
        files.write_bytes(f"/before {i:03}", b"before")
    volume.snapshot("before")
    for i in range(300):
        files.unlink(f"/before {i:03}")
    files.put(f"{tree}/.", "/")
    volume.sync()

    def act() -> None:
        if how == "rolled back":
            volume.rollback("before")
            return
        if how != "put again":
            for i in range(300):
                files.unlink(f"/d/f{i:03}")
            for i in range(300 if how != "removed" else 0):
                files.write_bytes(f"/another {i:03}", b"another")
        else:
            files.put(f"{tree}/.", "/")
        volume.sync()

    def progress(_event: object) -> None:
        if not acted:
            acted.append(True)
            by_another(act)

    report = files.get("/.", tmp_path / "out", progress=progress)
    assert report.skipped or how == "rolled back"
    require_whole_or_named(tmp_path / "out", tree, report)


@pytest.mark.parametrize("path", ["/d", "/d/l*"])
def test_get_of_links_and_directories_that_go_once_they_are_listed(volume, tree, tmp_path, monkeypatch, path):
    files, visit, visited = bp.FileSystem(volume), copyout._CopyOut._visit, []
    files.put(f"{tree}/.", "/")

    def act() -> None:
        for name in [f"l{i:03}" for i in range(20)] if path != "/d" else []:
            files.unlink(f"/d/{name}")
        if path == "/d":
            files.rmtree("/d")

    def visiting(self, inode, where) -> None:
        if len(visited) == (path != "/d"):
            by_another(act)
        visited.append(where)
        visit(self, inode, where)

    monkeypatch.setattr(copyout._CopyOut, "_visit", visiting)
    report = files.get("/.", tmp_path / "out")
    assert report.skipped
    require_whole_or_named(tmp_path / "out", tree, report)


# --- writing ---


class Handing:
    """A lock that a writer hands to another thread once it has let go of it behind its first piece."""

    def __init__(self, lock, writer: threading.Thread, act: Callable[[], object]) -> None:
        self._lock, self._writer, self._act, self._depth, self.n_acts = lock, writer, act, 0, 0

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._depth += threading.current_thread() is self._writer

    def __exit__(self, *what: object) -> None:
        is_writer = threading.current_thread() is self._writer
        self._depth -= is_writer
        is_free = is_writer and not self._depth
        self._lock.__exit__(*what)
        if is_free and not self.n_acts:
            self.n_acts += 1
            by_another(self._act)


@pytest.mark.parametrize("what", ["rollback", "grow"])
def test_a_long_write_goes_into_no_other_state(volume, rng, what):
    """It holds the lock for 8 MiB at a time."""
    files, data = bp.FileSystem(volume), rng.bytes(24 * MIB)
    files.write_bytes("/a", b"A" * 100_000)
    volume.snapshot("s")

    def act() -> None:
        if what == "rollback":
            volume.rollback("s", drop_changes=True)
        else:
            volume.grow(disks=3, size="16M")

    with files.open_raw("/a", "r+") as file:
        lock = file._store.lock
        handing = file._store.lock = Handing(lock, threading.current_thread(), act)
        with contextlib.suppress(StaleHandleError):
            file.write(data)
        file._store.lock = lock
    assert handing.n_acts == 1
    volume.sync()
    assert bp.check(volume).problems == []


def test_appenders_lose_nothing(volume):
    files = bp.FileSystem(volume)
    files.write_bytes("/log", b"")

    def write(what: bytes) -> None:
        with files.open("/log", "a", buffering=0) as file:
            for _ in range(2000):
                file.write(what * 100)

    threads = [threading.Thread(target=write, args=(what,)) for what in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = files.read_bytes("/log")
    assert [found.count(what) for what in (b"a", b"b", b"c")] == [200_000] * 3


def test_a_put_goes_into_no_other_state(volume, tmp_path, rng):
    files, acted = bp.FileSystem(volume), []
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        (source / f"f{i}").write_bytes(rng.bytes(9 * MIB))
    volume.snapshot("s")

    def progress(_event: object) -> None:
        if not acted:
            acted.append(True)
            by_another(lambda: volume.rollback("s", drop_changes=True))

    with pytest.raises(bp.errors.RefusedError, match="became another one while the tree was copied"):
        files.put(source, "/source", progress=progress)
    volume.sync()
    assert (bp.FileSystem(volume).listdir("/"), bp.check(volume).problems) == ([], [])


def test_a_consistency_point_falls_due_while_a_directory_is_removed(volume, tmp_path, rng, monkeypatch):
    """In the middle of a batch, whose places are given out and not filled yet."""
    files, source = bp.FileSystem(volume), tmp_path / "source"
    for name in ("a", "b"):
        (source / name / "gone").mkdir(parents=True)
        for i in range(5):
            (source / name / "gone" / f"x{i}").write_bytes(b"x" * 3000)
    files.put(source, "/source")
    volume.sync()
    for name in ("a", "b"):
        shutil.rmtree(source / name / "gone")
        for i in range(30):
            (source / name / f"new{i}").write_bytes(rng.bytes(30_000))
    monkeypatch.setattr(live, "CP_INTERVAL_S", 0.0)
    report = files.put(source, "/source", update=True, delete=True)
    assert (report.n_removed, report.n_files, volume.stopped_at) == (2, 60, "")
    volume.sync()
    assert bp.check(volume).problems == []
    for name in ("a", "b"):
        for path in (source / name).iterdir():
            assert files.read_bytes(f"/source/{name}/{path.name}") == path.read_bytes()
        with pytest.raises(PathError):
            files.stat(f"/source/{name}/gone")
