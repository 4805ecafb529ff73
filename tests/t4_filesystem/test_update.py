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

from blockplane.filesystem import FileSystem, compare, update
from blockplane.model import NoSpaceError
from blockplane.volume import Volume
from blockplane.volume.tree import BlockTree
from blockplane.volume.treeio import Block
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


def test_blocks_that_differ_all_over_a_large_file_are_not_kept_in_memory(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other block of 4 MiB; a quarter of them wait for their places at a time."""
    path = tmp_path / "f"
    path.write_bytes(b"a" * (4 << 20))
    fs.put(path, "/f")
    volume.sync()
    path.write_bytes((b"b" + b"a" * 8191) * 512)
    real = BlockTree.edit_block
    found: list[int] = []

    def edit_block(tree: BlockTree, index: int) -> Block:
        found.append(tree.n_dirty)
        return real(tree, index)

    monkeypatch.setattr(update, "_DIRTY_BLOCKS", 128)
    monkeypatch.setattr(BlockTree, "edit_block", edit_block)
    report = fs.put(path, "/f", update=True)
    assert report.n_blocks_written == 512
    assert max(found) <= 128
    assert fs.read_bytes("/f") == path.read_bytes()
    volume.sync()
    assert fs.check().problems == []


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


@pytest.mark.parametrize("how", [{}, {"delete": True, "exclude": ["keep"]}])
def test_a_name_that_the_source_has_not_is_not_written_through(
    tmp_path: Path, fs: FileSystem, how: dict[str, Any]
) -> None:
    source = tmp_path / "s"
    source.mkdir()
    (source / "a").write_bytes(b"old" * 3000)
    os.link(source / "a", source / "keep")
    fs.put(f"{source}/.", "/")
    (source / "keep").unlink()
    os.link(source / "a", tmp_path / "elsewhere")
    (source / "a").write_bytes(b"new" * 3000)
    fs.put(f"{source}/.", "/", update=True, **how)
    assert (fs.read_bytes("/a"), fs.read_bytes("/keep")) == (b"new" * 3000, b"old" * 3000)
    assert fs.check().problems == []


def test_a_file_of_several_names_is_updated_in_place(tmp_path: Path, volume: Volume, fs: FileSystem) -> None:
    source = tmp_path / "s"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_bytes(os.urandom(1 << 20))
    for name in ("b", "sub/c"):
        os.link(source / "a", source / name)
    fs.put(f"{source}/.", "/")
    volume.sync()
    number = fs.stat("/a").st_ino
    with (source / "a").open("r+b") as file:
        file.write(b"changed")
    (source / "b").unlink()
    os.link(source / "a", source / "sub/d")
    report = fs.put(f"{source}/.", "/", update=True, delete=True)
    assert report.n_blocks_written == 1
    assert (fs.stat("/a").st_ino, fs.stat("/sub/d").st_ino) == (number, number)
    assert differences(host_tree(source), volume_tree(fs)) == []
    assert fs.check().problems == []


def link_anew(top: Path, rng: np.random.Generator) -> None:
    """Make the names of a folder names of other files, some with other content than before."""
    names = [top / name for name in ("a", "b", "c", "sub/d", "sub/e", "sub/f")]
    contents = [rng.bytes(int(rng.choice([100, 9000]))) for _ in range(3)]
    for name in names:
        if rng.integers(2) and name.exists():
            if rng.integers(3) == 0:
                name.write_bytes(contents[0])
            continue
        name.unlink(missing_ok=True)
        others = [other for other in names if other.exists()]
        if others and rng.integers(3):
            os.link(others[int(rng.integers(len(others)))], name)
        elif rng.integers(4):
            name.write_bytes(contents[int(rng.integers(3))])


@pytest.mark.parametrize("checksum", [False, True])
def test_links_become_those_of_the_source(
    tmp_path: Path, fs: FileSystem, rng: np.random.Generator, checksum: bool
) -> None:
    """Whatever was linked with what before, on both sides; a name outside keeps what it had."""
    source = tmp_path / "s"
    (source / "sub").mkdir(parents=True)
    fs.mkdir("/copy")
    outside: dict[str, bytes] = {}
    for step in range(25):
        link_anew(source, rng)
        fs.put(source, "/copy", update=True, delete=True, checksum=checksum)
        assert differences(host_tree(source), volume_tree(fs, "/copy")) == []
        assert {name: fs.read_bytes(name) for name in outside} == outside
        assert fs.check().problems == []
        for name in sorted(os.listdir(source)):
            if name != "sub" and rng.integers(6) == 0:
                fs.link(f"/copy/{name}", f"/outside {step} {name}")
                outside[f"/outside {step} {name}"] = fs.read_bytes(f"/copy/{name}")


def read_all(top: Path) -> None:
    """Have everything in a tree look as if it was read just now."""
    for path in [top, *top.rglob("*")]:
        mtime_ns = path.lstat().st_mtime_ns
        os.utime(path, ns=(2_000_000_000_000_000_000, mtime_ns), follow_symlinks=False)


def test_what_was_only_read_is_left_alone(source: Path, volume: Volume, fs: FileSystem) -> None:
    fs.put(source, "/copy")
    before = volume.snapshot("before")
    read_all(source)
    report = fs.put(source, "/copy", update=True, delete=True)
    assert (report.n_blocks_written, report.n_bytes, report.n_removed) == (0, 0, 0)
    after = volume.snapshot("after")
    assert compare(before.state, after.state, atime=True).changes == []
    assert len(after.plane - before.plane) < 8  # the list of snapshots, no inode


def test_what_is_updated_takes_its_time_of_access_along(source: Path, fs: FileSystem) -> None:
    fs.put(source, "/copy")
    read_all(source)
    changed = {"file3": lambda path: path.write_bytes(b"x"), "file4": lambda path: path.chmod(0o611),
               "sub": lambda path: path.chmod(0o711), "empty": lambda path: os.setxattr(path, "user.new", b"1"),
               "file5": lambda path: os.setxattr(path, "user.new", b"1")}  # fmt: skip
    for name, change in changed.items():
        change(source / name)
    read_all(source)
    fs.put(source, "/copy", update=True)
    times = {name: fs.stat(f"/copy/{name}").st_atime_ns for name in [*changed, "file6"]}
    assert {name for name, time_ns in times.items() if time_ns == 2_000_000_000_000_000_000} == set(changed)
    assert differences(host_tree(source), volume_tree(fs, "/copy")) == []


def test_blocks_of_content_and_attributes_are_counted(tmp_path: Path, fs: FileSystem) -> None:
    source = tmp_path / "s"
    (source / "sub").mkdir(parents=True)
    (source / "tiny").write_bytes(b"t" * 256)
    (source / "file").write_bytes(b"f" * 10_000)
    (source / "other").write_bytes(b"o" * 4096)
    os.symlink("/nowhere/" + "x" * 400, source / "link")
    for name in ("tiny", "sub"):
        os.setxattr(source / name, "user.large", b"v" * 3000)
    expected = 3 + 1 + 1 + 2
    assert fs.put(source, "/s").n_blocks_written == expected
    assert fs.put(source, "/s", update=True).n_blocks_written == 0
    assert fs.put(source, "/new", update=True).n_blocks_written == expected
    for name in ("tiny", "sub"):
        os.setxattr(source / name, "user.large", b"w" * 3000)
    assert fs.put(source, "/s", update=True).n_blocks_written == 2


@pytest.mark.parametrize("how", [{}, {"update": True}])
def test_a_time_that_cannot_be_kept_is_named(
    tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, how: dict[str, bool]
) -> None:
    source = tmp_path / "s"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_bytes(b"f")
    (source / "kept").write_bytes(b"k")
    os.symlink("file", source / "link")
    for path, mtime_ns in {"link": 2000, "sub": 1001, "kept": -1000, "file": -1001, ".": 1000}.items():
        os.utime(source / path, ns=(5000, mtime_ns), follow_symlinks=False)
    monkeypatch.setattr("blockplane.filesystem.inode.MAX_TIME_NS", 1000)
    for _ in range(2):
        report = fs.put(f"{source}/.", "/s", **how)
        assert {reason for _, reason in report.skipped} == {
            "its time of modification lies beyond what is kept (1677 to 2262)"
        }
        assert sorted(os.path.basename(path) for path, _ in report.skipped) == ["file", "link", "sub"]
    assert [fs.lstat(f"/s/{name}").st_mtime_ns for name in ("file", "link", "sub")] == [-1000, 1000, 1000]
    assert (report.n_files, report.n_others, report.n_directories) == (2, 1, 2)
