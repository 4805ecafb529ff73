"""put and get: what goes in comes out equal."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest

from blockplane.disks.array import DiskArray
from blockplane.disks.band import Band
from blockplane.filesystem import FileSystem, copyin, datain, hostread
from blockplane.filesystem.errors import InvalidRequestError, NotFoundError
from blockplane.filesystem.inode import Inode
from blockplane.filesystem.store import Store
from blockplane.model import BlockplaneError, NoSpaceError
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


def test_everything_goes_in_and_out_equal(tmp_path: Path, source: Path, volume: Volume, fs: FileSystem) -> None:
    report = fs.put(source, "/copy")
    assert report.skipped == []
    assert differences(host_tree(source), volume_tree(fs, "/copy")) == []
    volume.sync()
    assert fs.check().problems == []
    volume.close()
    with Volume.open(tmp_path / "vol") as again:
        fs = FileSystem(again)
        assert differences(host_tree(source), volume_tree(fs, "/copy")) == []
        got = fs.get("/copy", tmp_path / "out")
        assert got.skipped == []
        assert differences(host_tree(source), host_tree(tmp_path / "out")) == []
        assert (got.n_files, got.n_bytes > 0) == (sum(item.kind == "file" for item in set_of_inodes(source)), True)
        assert fs.check().problems == []


def set_of_inodes(top: Path) -> list:  # type: ignore[type-arg]
    """One item per inode."""
    seen = set()
    found = []
    for name, item in host_tree(top).items():
        if not item.links or item.links not in seen:
            seen.add(item.links)
            found.append(item)
        assert name
    return found


def test_get_out_of_a_snapshot(tmp_path: Path, source: Path, volume: Volume, fs: FileSystem) -> None:
    fs.put(source, "/copy")
    snapshot = volume.snapshot("s")
    before = host_tree(source)
    fs.rmtree("/copy/sub")
    fs.write_bytes("/copy/file9", b"changed")
    volume.sync()
    FileSystem(snapshot).get("/copy", tmp_path / "out")
    assert differences(before, host_tree(tmp_path / "out")) == []


def test_a_snapshot_stays_while_it_is_read(tmp_path: Path, source: Path, volume: Volume, fs: FileSystem) -> None:
    fs.put(source, "/copy")
    snapshot = volume.snapshot("s")
    refusals: list[str] = []

    def delete(event: object) -> None:
        try:
            volume.delete_snapshot("s")
        except BlockplaneError as error:
            refusals.append(str(error))

    FileSystem(snapshot).get("/copy", tmp_path / "out", progress=delete)
    assert refusals
    assert differences(host_tree(source), host_tree(tmp_path / "out")) == []
    volume.delete_snapshot("s")


def test_what_is_not_yet_committed_is_got_too(tmp_path: Path, fs: FileSystem) -> None:
    fs.write_bytes("/f", b"x" * 10000)
    fs.put(__file__, "/f2")
    fs.get("/", tmp_path / "out")
    assert (tmp_path / "out/f").read_bytes() == b"x" * 10000
    assert (tmp_path / "out/f2").read_bytes() == Path(__file__).read_bytes()


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("slash", ["", "/"])
def test_names_as_cp_gives_them(tmp_path: Path, fs: FileSystem, is_there: bool, slash: str) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/f").write_bytes(b"1")
    if is_there:
        fs.mkdir("/d")
    fs.put(f"{tmp_path}/s{slash}", "/d")
    assert fs.listdir("/d") == (["s"] if is_there else ["f"])
    out = tmp_path / "out"
    if is_there:
        out.mkdir()
    fs.get(f"/d{slash}", out)
    assert os.listdir(out) == ["d"] if is_there else fs.listdir("/d")


def test_a_dot_gives_the_content(tmp_path: Path, fs: FileSystem) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/f").write_bytes(b"1")
    fs.put(f"{tmp_path}/s/.", "/")
    assert fs.listdir() == ["f"]
    fs.get("/.", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["f"]


def test_a_file_over_a_file_and_into_a_directory(tmp_path: Path, fs: FileSystem) -> None:
    (tmp_path / "f").write_bytes(b"new")
    fs.mkdir("/d")
    fs.put(tmp_path / "f", "/d")
    fs.write_bytes("/g", b"old content")
    fs.link("/g", "/other")
    fs.put(tmp_path / "f", "/g")
    assert (fs.read_bytes("/d/f"), fs.read_bytes("/g"), fs.read_bytes("/other")) == (b"new", b"new", b"old content")
    (tmp_path / "out").mkdir()
    fs.get("/g", tmp_path / "out")
    fs.get("/d/f", tmp_path / "out" / "g2")
    assert sorted(os.listdir(tmp_path / "out")) == ["g", "g2"]
    assert fs.check().problems == []


def test_merging_into_what_is_there(tmp_path: Path, source: Path, fs: FileSystem) -> None:
    fs.makedirs("/d/source/sub")
    fs.write_bytes("/d/source/sub/mine", b"stays")
    fs.write_bytes("/d/source/file3", b"goes")
    fs.put(source, "/d")
    expected = host_tree(source)
    found = volume_tree(fs, "/d/source")
    assert fs.read_bytes("/d/source/sub/mine") == b"stays"
    del found["sub/mine"]
    assert differences(expected, found) == []
    assert fs.check().problems == []


def test_types_in_the_way(tmp_path: Path, fs: FileSystem) -> None:
    (tmp_path / "s/a").mkdir(parents=True)
    (tmp_path / "s/b").write_bytes(b"")
    fs.makedirs("/t/b/x")
    fs.write_bytes("/t/a", b"")
    report = fs.put(f"{tmp_path}/s/.", "/t")
    assert sorted(os.path.basename(path) for path, _ in report.skipped) == ["a", "b"]
    assert fs.is_dir("/t/b/x")
    assert fs.is_file("/t/a")


def test_missing_and_unreadable_sources(tmp_path: Path, fs: FileSystem) -> None:
    with pytest.raises(NotFoundError):
        fs.put(tmp_path / "nothing", "/")
    with pytest.raises(NotFoundError, match="no name"):
        fs.put("", "/", update=True, delete=True, exclude=["*"])  # not the host's /
    with pytest.raises(NotFoundError):
        fs.get("/nothing", tmp_path / "out")
    with pytest.raises(NotFoundError):
        fs.put(tmp_path, "/no/such/place")
    with pytest.raises(InvalidRequestError):
        fs.put(tmp_path, "/", delete=True)
    assert fs.listdir() == []


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "s" / name).write_bytes(name.encode() * 5000)
    real = os.open

    def refuse(path: object, *rest: object, **more: object) -> int:
        if os.fsdecode(path).endswith("/b"):  # type: ignore[arg-type]
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    report = fs.put(tmp_path / "s", "/s")
    assert [os.path.basename(path) for path, _ in report.skipped] == ["b"]
    assert (report.n_files, report.n_bytes) == (2, 10_000)
    assert fs.listdir("/s") == ["a", "c"]
    assert fs.check().problems == []


def test_what_was_read_of_a_large_file_that_fails_is_not_counted(
    tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/large").write_bytes(b"l" * (10 << 20))
    (tmp_path / "s/small").write_bytes(b"s" * 5000)
    real, seen = datain.read_fully, []

    def fail(fd: int, offset: int, buffers: Any) -> int:
        if offset >= 8 << 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, offset, buffers)

    monkeypatch.setattr(datain, "read_fully", fail)
    monkeypatch.setattr(copyin, "_BATCH_BYTES", 3 << 20)
    report = fs.put(tmp_path / "s", "/s", progress=lambda event: seen.append(event.done_bytes))
    assert report.skipped == [(str(tmp_path / "s/large"), "Input/output error")]
    assert (report.n_files, report.n_bytes) == (1, 5000)
    assert min(seen) >= 0
    assert fs.listdir("/s") == ["small"]
    assert fs.check().problems == []


@pytest.mark.parametrize("update", [False, True])
def test_a_name_that_no_directory_holds_is_passed_over(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, update: bool
) -> None:
    """Some file systems of the host count letters, of which one may have several bytes."""
    (tmp_path / "s/folder").mkdir(parents=True)
    for name in ("file", "folder/inner", "other"):
        (tmp_path / "s" / name).write_bytes(b"x" * 5000)
    real = hostread.list_directory

    def list_directory(*given: Any) -> hostread.Listing:
        listing = real(*given)
        for child in listing.children:
            if child.name in (b"file", b"folder"):
                child.name = child.name.ljust(256, b"x")
        return listing

    monkeypatch.setattr(hostread, "list_directory", list_directory)
    fs.mkdir("/s")
    report = fs.put(f"{tmp_path}/s/.", "/s", update=update, delete=update)
    assert sorted(report.skipped) == [(f"{tmp_path}/s/./{name}", "name too long") for name in ("file", "folder")]
    volume.sync()
    assert fs.listdir("/s") == ["other"]
    assert fs.check().problems == []


@pytest.mark.parametrize("change", [-30_000, +30_000, -200_000])
def test_a_file_that_changes_its_size_meanwhile(
    tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 200_000)
    status = os.stat(path)
    path.write_bytes(b"y" * (200_000 + change))
    monkeypatch.setattr(os, "lstat", lambda _path: status)
    fs.put(path, "/f")
    assert fs.read_bytes("/f") == b"y" * min(200_000, 200_000 + change)
    assert fs.check().problems == []


def test_a_put_that_fills_the_volume(tmp_path: Path) -> None:
    source = tmp_path / "s"
    source.mkdir()
    for i in range(40):
        (source / f"f{i}").write_bytes(os.urandom(1 << 20))
    with Volume.create(tmp_path / "vol", disks=1, size="24M") as volume:
        fs = FileSystem(volume)
        fs.write_bytes("/kept", b"k" * 100_000)
        volume.sync()
        with pytest.raises(NoSpaceError):
            fs.put(source, "/s")
        volume.sync()
        assert fs.check().problems == []
        assert fs.read_bytes("/kept") == b"k" * 100_000
        for name in fs.listdir("/s"):
            assert fs.read_bytes(f"/s/{name}") == (source / name).read_bytes()
        fs.rmtree("/s")
        volume.sync()
        volume.sync()
        shutil.rmtree(source)
        source.mkdir()
        (source / "small").write_bytes(b"z" * (8 << 20))
        fs.put(source, "/s")
        assert fs.stat("/s/small").st_size == 8 << 20


def test_a_file_of_many_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, volume: Volume, fs: FileSystem
) -> None:
    monkeypatch.setattr("blockplane.filesystem.copyin._BATCH_BYTES", 1 << 20)
    data = os.urandom(20 << 20)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/big").write_bytes(data)
    (tmp_path / "s/z").write_bytes(b"behind")
    fs.put(tmp_path / "s", "/s")
    volume.sync()
    assert fs.read_bytes("/s/big") == data
    assert fs.check().problems == []
    fs.get("/s", tmp_path / "out")
    assert differences(host_tree(tmp_path / "s"), host_tree(tmp_path / "out")) == []


class StopError(Exception):
    pass


@pytest.mark.parametrize("n_created", [0, 1, 5, 40])
def test_a_put_that_is_broken_off(
    source: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, n_created: int
) -> None:
    monkeypatch.setattr("blockplane.filesystem.copyin._BATCH_ENTRIES", 20)
    real = Store.create
    calls: list[int] = []

    def create(store: Store, *rest: Any, **more: Any) -> Inode:
        calls.append(1)
        if len(calls) > n_created:
            raise StopError
        return real(store, *rest, **more)

    monkeypatch.setattr(Store, "create", create)
    with pytest.raises(StopError):
        fs.put(source, "/copy")
    monkeypatch.undo()
    volume.sync()
    assert fs.check().problems == []
    fs.put(f"{source}/.", "/copy", update=True) if fs.exists("/copy") else fs.put(source, "/copy")
    assert differences(host_tree(source), volume_tree(fs, "/copy")) == []


def test_many_sparse_files_need_few_descriptors(tmp_path: Path, fs: FileSystem) -> None:
    (tmp_path / "s").mkdir()
    for i in range(1000):
        with (tmp_path / f"s/f{i}").open("wb") as file:
            file.write(b"x" * 300)
            file.truncate(70_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 600, hard))
    try:
        report = fs.put(tmp_path / "s", "/s")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.n_files, report.skipped) == (1000, [])
    assert len(fs.listdir("/s")) == 1000


def test_an_interrupt_while_the_readers_are_waited_for(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    for i in range(100):
        (tmp_path / f"s/f{i}").write_bytes(random.Random(i).randbytes(300_000))
    real = datain.Future.result
    calls = iter(range(1000))

    def result(future: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(future)

    monkeypatch.setattr(datain.Future, "result", result)
    with pytest.raises(KeyboardInterrupt):
        fs.put(tmp_path / "s", "/s")
    monkeypatch.undo()
    volume.sync()
    assert fs.check().problems == []
    fs.put(tmp_path / "s", "/s", update=True)
    assert differences(host_tree(tmp_path / "s"), volume_tree(fs, "/s")) == []


def test_an_interrupt_that_stops_the_volume_is_told(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came while places were being handed out, and others were being filled."""
    fs.write_bytes("/before", b"b" * 5000)
    volume.sync()
    (tmp_path / "big").write_bytes(random.Random(6).randbytes(16 << 20))
    real = DiskArray.new_band
    calls = iter(range(1000))

    def new_band(*given: Any, **more: Any) -> Band:
        if next(calls) == 12:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(DiskArray, "new_band", new_band)
    with pytest.raises(KeyboardInterrupt):
        fs.put(tmp_path / "big", "/big")
    monkeypatch.undo()
    assert volume.stopped_at == "KeyboardInterrupt"
    volume.abandon()
    with Volume.open(tmp_path / "vol") as again:
        assert FileSystem(again).check().problems == []
        assert FileSystem(again).read_bytes("/before") == b"b" * 5000


def test_a_put_whose_progress_stops_it(source: Path, volume: Volume, fs: FileSystem) -> None:
    def stop(event: object) -> None:
        raise StopError(str(event))

    with pytest.raises(StopError):
        fs.put(source, "/copy", progress=stop)
    volume.sync()
    assert fs.check().problems == []


def test_an_ordinary_user_gets_what_it_may(tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"content")
    fs.chmod("/d/f", 0o6755)
    fs.chown("/d/f", 4_000_000, 4_000_000)
    fs.setxattr("/d/f", "security.note", b"of root")
    fs.mknod("/d/device", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    for name in ("chown", "mknod"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_001)
    report = fs.get("/d", tmp_path / "out")
    assert [os.path.basename(path) for path, _ in report.skipped] == ["device"]
    assert (tmp_path / "out/f").read_bytes() == b"content"
    assert stat.S_IMODE(os.stat(tmp_path / "out/f").st_mode) == 0o755


@pytest.mark.parametrize("euid", [0, 4_000_001])
def test_an_owner_that_a_user_namespace_does_not_know_is_not_set(
    tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, euid: int
) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"content")
    fs.chmod("/d/f", 0o6755)
    fs.symlink("f", "/d/link")
    for name in ("/d", "/d/f", "/d/link"):
        fs.chown(name, 4_000_000, 4_000_000, follow_symlinks=False)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "chown", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: euid)
    assert fs.get("/d", tmp_path / "out").skipped == []
    assert (tmp_path / "out/link").read_bytes() == b"content"
    assert stat.S_IMODE(os.stat(tmp_path / "out/f").st_mode) == 0o755


def test_progress_is_told(tmp_path: Path, source: Path, fs: FileSystem) -> None:
    events: list[tuple[str, int]] = []
    fs.put(source, "/s", progress=lambda event: events.append((event.phase, event.done_bytes)))
    fs.get("/s", tmp_path / "out", progress=lambda event: events.append((event.phase, event.done_bytes)))
    assert {phase for phase, _ in events} == {"put", "get"}
    assert all(done >= 0 for _, done in events)


def test_modes_and_types_by_themselves(fs: FileSystem, source: Path) -> None:
    fs.put(source, "/s")
    assert stat.S_ISFIFO(fs.stat("/s/fifo").st_mode)
    assert stat.S_ISSOCK(fs.stat("/s/socket").st_mode)
    assert fs.stat("/s/fifo").st_nlink == 2
    assert fs.stat("/s/all hole").st_blocks == 0


IN_THE_WAY = {
    "file": lambda fs: fs.write_bytes("/d/x", b"x" * 9000),
    "large file": lambda fs: fs.write_bytes("/d/x", b"x" * (5 << 20)),
    "link": lambda fs: fs.symlink("t", "/d/x"),
    "fifo": lambda fs: fs.mkfifo("/d/x"),
    "further name": lambda fs: fs.link("/d/a", "/d/x"),
    "first name": lambda fs: (fs.write_bytes("/d/x", b"x" * 9000), fs.link("/d/x", "/d/y"), fs.link("/d/x", "/d/v")),
}


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_get_passes_over_what_has_a_folder_in_its_way(tmp_path: Path, fs: FileSystem, kind: str) -> None:
    fs.makedirs("/d/sub")
    for name in ("a", "sub/b", "zz"):
        fs.write_bytes(f"/d/{name}", name.encode() * 3000)
    IN_THE_WAY[kind](fs)
    expected = volume_tree(fs, "/d")
    (tmp_path / "out/x").mkdir(parents=True)
    report = fs.get("/d/.", tmp_path / "out")
    assert report.skipped == [(str(tmp_path / "out/x"), "Is a directory")]
    found = host_tree(tmp_path / "out")
    assert found.pop("x").kind == "directory"
    assert found.keys() == expected.keys() - {"x"}
    assert differences({k: v for k, v in expected.items() if k != "x"}, found, ignore=("links",)) == []
    if kind == "first name":  # as the directory has them, x is
        assert found["y"].links == ("v", "y")
    files = [item for name, item in found.items() if item.kind == "file" and name != "v"]
    assert (report.n_files, report.n_bytes) == (len(files), sum(item.size for item in files))


def test_get_passes_over_what_is_too_long_and_a_file_where_a_directory_goes(tmp_path: Path, fs: FileSystem) -> None:
    long = "/d/" + "/".join(["n" * 200] * 25)
    fs.makedirs(long)
    fs.makedirs("/d/taken/inner")
    deepest = max((path for path, _, _ in fs.walk("/d") if len(path) + len(str(tmp_path)) < 4000), key=len)
    fs.write_bytes(f"{deepest}/{'f' * 250}", b"x")
    fs.write_bytes("/d/zz", b"z")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/taken").write_bytes(b"mine")
    report = fs.get("/d/.", tmp_path / "out")
    assert {reason for _, reason in report.skipped} == {"File name too long", "File exists"}
    assert (tmp_path / "out/taken").read_bytes() == b"mine"
    assert (tmp_path / "out/zz").read_bytes() == b"z"
    assert report.n_files == 1


def bytes_read() -> int:
    found = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(found["rchar"])


def test_the_rest_of_a_file_that_the_host_refuses_is_not_read(tmp_path: Path, volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/big", os.urandom(1 << 20) * 80)
    volume.sync()
    before, (soft, hard) = bytes_read(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            fs.get("/big", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 4 << 20 < bytes_read() - before < 60 << 20
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [5000, 5 << 20])
def test_get_leaves_no_part_of_a_file_that_the_host_refuses(
    tmp_path: Path, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    fs.mkdir("/d")
    fs.write_bytes("/d/big", b"b" * size)
    fs.write_bytes("/d/small", b"s")
    real = os.pwrite

    def refuse(fd: int, data: Any, offset: int) -> int:
        if len(data) + offset >= size:
            raise OSError(error, os.strerror(error))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    error = errno.EFBIG
    assert fs.get("/d", tmp_path / "out").skipped == [(str(tmp_path / "out/big"), "File too large")]
    assert os.listdir(tmp_path / "out") == ["small"]
    with pytest.raises(OSError, match="too large"):
        fs.get("/d/big", tmp_path / "alone")
    error = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        fs.get("/d", tmp_path / "full")
    assert os.listdir(tmp_path / "full") in ([], ["small"])


@pytest.mark.parametrize("size", [5000, 9 << 20])
def test_get_onto_a_full_host_leaves_no_part_and_names_the_file(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    fs.write_bytes("/f", b"f" * size)
    volume.sync()
    real = os.pwrite

    def fill(fd: int, data: Any, offset: int) -> int:
        if offset + len(data) > size // 2:
            real(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(OSError, match="No space") as caught:
        fs.get("/f", tmp_path / "out")
    assert caught.value.filename == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_refused", [True, False])
def test_a_get_that_ends_early_leaves_whole_files_only(
    tmp_path: Path, volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """Other files are under way in both threads when the host is full, or the copy is interrupted."""
    fs.mkdir("/d")
    for i in range(6):
        fs.write_bytes(f"/d/large{i}", b"l" * (5 << 20))
        for j in range(40):
            fs.write_bytes(f"/d/small{i}.{j}", b"s" * 5000)
    volume.sync()
    real, left = os.pwrite, 12 << 20

    def fill(fd: int, data: Any, offset: int) -> int:
        nonlocal left
        left -= len(data)
        if left < 0 and is_refused:
            real(fd, data[: len(data) // 2], offset)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    def stop(event: Any) -> None:
        if event.done_bytes > 12 << 20 and not is_refused:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", fill)
    with pytest.raises(OSError if is_refused else KeyboardInterrupt):
        fs.get("/d", tmp_path / "out", progress=stop)
    there = list((tmp_path / "out").iterdir())
    assert 0 < len(there) < 246
    for path in there:
        assert path.read_bytes() == fs.read_bytes(f"/d/{path.name}")
        assert path.stat().st_mtime_ns == fs.stat(f"/d/{path.name}").st_mtime_ns
