"""The path API does what the host does, errors included: every call is made on both, and the outcomes compared."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from blockplane.filesystem import FileSystem
from blockplane.filesystem.directory import Directory, Entry
from blockplane.filesystem.errors import NotADirectoryPathError, PathError
from blockplane.model import BlockplaneError
from blockplane.volume import Volume

NAMES = ["a", "b", "c", "dd", "x" * 255]
paths = st.lists(st.sampled_from([*NAMES, "..", "."]), min_size=1, max_size=4).map("/".join)
paths_or_slash = st.tuples(paths, st.sampled_from(["", "", "", "/"])).map("".join)
Outcome = tuple[str, object]


def outcome(call: Callable[[], object]) -> Outcome:
    try:
        return "ok", call()
    except OSError as error:
        return "error", errno.errorcode[error.errno or 0]


class LikeTheHost(RuleBasedStateMachine):
    """Directories, files and links made, moved and removed on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="blockplane-test-"))
        self.host = self.base / "host" / "1/2/3/4/5/root"
        self.host.mkdir(parents=True)
        self.volume = Volume.create(self.base / "vol", disks=1, size="32M")
        self.fs = FileSystem(self.volume)
        self.fs.makedirs("/1/2/3/4/5/root", 0o755)

    def teardown(self) -> None:
        self.volume.sync()
        assert self.fs.check().problems == []
        self.same(lambda p: sorted(os.listdir(p)), self.fs.listdir, ".")
        self.volume.close()
        shutil.rmtree(self.base)

    def there(self, path: str) -> str:
        return f"{self.host}/{path}"

    def here(self, path: str) -> str:
        return f"/1/2/3/4/5/root/{path}"

    def same(self, host: Callable[..., object], ours: Callable[..., object], *names: str) -> None:
        if any(name.count("..") > 2 for name in names):
            return  # would leave the host's tree
        theirs = outcome(lambda: host(*map(self.there, names)))
        assert outcome(lambda: ours(*map(self.here, names))) == theirs, names

    @rule(path=paths_or_slash)
    def mkdir(self, path: str) -> None:
        self.same(os.mkdir, self.fs.mkdir, path)

    @rule(path=paths_or_slash)
    def rmdir(self, path: str) -> None:
        if not path.rstrip("/").endswith("."):
            self.same(os.rmdir, self.fs.rmdir, path)

    @rule(path=paths, data=st.binary(max_size=600))
    def write(self, path: str, data: bytes) -> None:
        def host(name: str) -> int:
            with open(name, "wb") as file:
                return file.write(data)

        self.same(host, lambda p: self.fs.write_bytes(p, data), path)

    @rule(path=paths_or_slash)
    def read(self, path: str) -> None:
        def host(name: str) -> bytes:
            with open(name, "rb") as file:
                return file.read()

        self.same(host, self.fs.read_bytes, path)

    @rule(path=paths_or_slash)
    def unlink(self, path: str) -> None:
        if not path.rstrip("/").endswith("."):
            self.same(os.unlink, self.fs.unlink, path)

    @rule(source=paths_or_slash, path=paths_or_slash)
    def rename(self, source: str, path: str) -> None:
        if not source.rstrip("/").endswith(".") and not path.rstrip("/").endswith("."):
            self.same(os.rename, self.fs.rename, source, path)

    @rule(source=paths, path=paths)
    def link(self, source: str, path: str) -> None:
        self.same(lambda a, b: os.link(a, b, follow_symlinks=False), self.fs.link, source, path)

    @rule(to=st.one_of(paths, st.just("nowhere")), path=paths)
    def symlink(self, to: str, path: str) -> None:
        if to.count("..") <= 1:
            self.same(lambda p: os.symlink(to, p), lambda p: self.fs.symlink(to, p), path)

    @rule(path=paths_or_slash)
    def readlink(self, path: str) -> None:
        if not path.endswith("/"):
            self.same(os.readlink, self.fs.readlink, path)

    @rule(path=paths_or_slash, follow=st.booleans())
    def stat(self, path: str, follow: bool) -> None:
        def key(status: os.stat_result) -> tuple[int, ...]:
            is_directory = stat.S_ISDIR(status.st_mode)
            return stat.S_IFMT(status.st_mode), status.st_nlink, 0 if is_directory else status.st_size

        self.same(
            lambda p: key(os.stat(p, follow_symlinks=follow)),
            lambda p: key(self.fs.stat(p, follow_symlinks=follow)),  # type: ignore[arg-type]
            path,
        )

    @rule(path=paths)
    def listdir(self, path: str) -> None:
        self.same(lambda p: sorted(os.listdir(p)), self.fs.listdir, path)

    @rule(path=paths, size=st.integers(0, 20000))
    def truncate(self, path: str, size: int) -> None:
        self.same(lambda p: os.truncate(p, size), lambda p: self.fs.truncate(p, size), path)

    @rule(path=paths, mode=st.sampled_from(["x", "w", "a", "r+"]), data=st.binary(max_size=300))
    def open(self, path: str, mode: str, data: bytes) -> None:
        def write(opener: Callable[..., object]) -> Callable[[str], None]:
            def run(name: str) -> None:
                with opener(name, mode + "b") as file:  # type: ignore[attr-defined]
                    file.write(data)

            return run

        self.same(write(open), write(self.fs.open), path)

    @rule()
    def commit(self) -> None:
        self.volume.sync()

    @rule()
    def reopen(self) -> None:
        self.volume.close()
        self.volume = Volume.open(self.base / "vol")
        self.fs = FileSystem(self.volume)


TestLikeTheHost = LikeTheHost.TestCase


@pytest.mark.parametrize("name", ["a/b", "a\0b", "", "x" * 256, "é" * 128])
def test_bad_names_are_refused(fs: FileSystem, name: str) -> None:
    with pytest.raises(PathError) as caught:
        fs.mkdir("/" + name)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, BlockplaneError)
    assert fs.listdir() == []


def test_names_that_are_not_utf8_survive(fs: FileSystem) -> None:
    raw = bytes(range(1, 256)).replace(b"/", b"")
    fs.write_bytes(b"/" + raw, b"x")
    (name,) = fs.listdir()
    assert os.fsencode(name) == raw
    assert fs.read_bytes("/" + name) == b"x"


def test_a_link_with_a_slash_is_no_directory_to_take_away(fs: FileSystem) -> None:
    fs.makedirs("/real/inner")
    fs.symlink("real", "/link")
    for call in (fs.rmtree, fs.rmdir, fs.unlink, lambda path: fs.rename(path, "/moved")):
        with pytest.raises(NotADirectoryPathError):
            call("/link/")
    fs.mkdir("/empty")
    fs.symlink("empty", "/other")
    with pytest.raises(NotADirectoryPathError):
        fs.rename("/real", "/other/")
    assert fs.listdir("/link") == ["inner"]
    assert fs.listdir() == ["empty", "link", "other", "real"]


def test_symlink_loops_end(fs: FileSystem) -> None:
    fs.symlink("b", "/a")
    fs.symlink("a", "/b")
    with pytest.raises(OSError) as caught:
        fs.stat("/a")
    assert caught.value.errno == errno.ELOOP
    for i in range(41):
        fs.symlink("/" if i == 0 else f"l{i - 1}", f"/l{i}")
    assert fs.is_dir("/l39")
    assert not fs.exists("/l40")


def test_paths_that_links_make_endless_end(fs: FileSystem) -> None:
    fs.symlink("/".join(["."] * 2000), "/long")
    assert fs.is_dir("/" + "/".join(["long"] * 40))
    assert not fs.exists("/" + "/".join(["long"] * 41))


def test_a_removed_open_file_stays_until_closed(volume: Volume, fs: FileSystem) -> None:
    with fs.open("/f", "w+") as file:
        file.write(b"x" * 10000)
        file.flush()
        fs.unlink("/f")
        volume.sync()
        assert fs.check().problems == []
        file.seek(0)
        assert file.read() == b"x" * 10000
        assert fs.n_inodes == 2
    assert fs.n_inodes == 1
    assert fs.check().problems == []


def test_orphans_of_a_stopped_process_are_reclaimed(tmp_path: Path) -> None:
    volume = Volume.create(tmp_path / "vol", disks=1, size="32M")
    fs = FileSystem(volume)
    files = [fs.open(f"/f{i}", "w") for i in range(3)]
    for i, file in enumerate(files):
        file.write(b"x" * 100000)
        file.flush()
        fs.unlink(f"/f{i}")
    files[1].close()
    volume.sync()
    volume.abandon()
    with Volume.open(tmp_path / "vol") as volume:
        fs = FileSystem(volume)
        assert fs.n_inodes == 3
        assert fs.check().problems == []
        fs.mkdir("/d")
        assert fs.n_inodes == 2
        assert fs.check().problems == []


def test_scandir_walk_and_rmtree(fs: FileSystem) -> None:
    fs.makedirs("/t/a/b")
    fs.write_bytes("/t/a/f", b"1")
    fs.symlink("a", "/t/l")
    assert sorted((e.name, e.is_dir(), e.is_symlink(), e.path) for e in fs.scandir("/t")) == [
        ("a", True, False, "/t/a"),
        ("l", True, True, "/t/l"),
    ]
    assert list(fs.walk("/t")) == [("/t", ["a"], ["l"]), ("/t/a", ["b"], ["f"]), ("/t/a/b", [], [])]
    fs.rmtree("/t")
    assert fs.listdir() == []
    assert fs.n_inodes == 1


def test_a_directory_of_many_that_are_not_empty_is_removed_in_one_pass(
    volume: Volume, fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: entries of directories that were looked at, n^2 where each of n is followed by all others."""
    for i in range(400):
        fs.makedirs(f"/t/{i}")
        fs.write_bytes(f"/t/{i}/f", b"x")
    volume.sync()
    real = Directory.entries
    seen: list[Entry] = []

    def entries(directory: Directory) -> Iterator[Entry]:
        for entry in real(directory):
            seen.append(entry)
            yield entry

    monkeypatch.setattr(Directory, "entries", entries)
    fs.rmtree("/t")
    assert len(seen) <= 4 * 400
    assert (fs.listdir(), fs.n_inodes) == ([], 1)
    volume.sync()
    assert fs.check().problems == []


def test_open_files_after_a_rollback(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/old", b"before")
    volume.snapshot("s")
    fs.write_bytes("/old", b"after!")
    with fs.open("/old", buffering=0) as kept, fs.open("/new", "w", buffering=0) as gone:
        volume.rollback("s")
        assert kept.read() == b"before"
        with pytest.raises(OSError) as caught:
            gone.write(b"x")
        assert caught.value.errno == errno.ESTALE
    assert fs.listdir() == ["old"]
    assert fs.check().problems == []


def test_a_snapshot_is_read_only_and_unchanged(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/f", b"one")
    old = FileSystem(volume.snapshot("s"))
    fs.write_bytes("/f", b"two")
    fs.mkdir("/d")
    volume.sync()
    assert (old.read_bytes("/f"), old.listdir()) == (b"one", ["f"])
    calls = [
        lambda: old.write_bytes("/f", b""), lambda: old.mkdir("/d"), lambda: old.unlink("/f"),
        lambda: old.chmod("/f", 0), lambda: old.rename("/f", "/g"), lambda: old.truncate("/f", 0),
        lambda: old.open("/f", "r+"),
        lambda: old.setxattr("/f", "user.a", b""), lambda: old.link("/f", "/g"), lambda: old.put(__file__, "/"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(PathError) as caught:
            call()
        assert caught.value.errno == errno.EROFS


def test_generations_tell_reused_numbers_apart(fs: FileSystem) -> None:
    fs.write_bytes("/a", b"")
    first = fs.stat("/a")
    fs.unlink("/a")
    fs.write_bytes("/b", b"")
    second = fs.stat("/b")
    assert (second.st_ino, second.generation) == (first.st_ino, first.generation + 1)


def test_a_directory_does_not_move_into_itself(fs: FileSystem) -> None:
    fs.makedirs("/a/b/c")
    for path, target in itertools.product(["/a", "/a/b"], ["/a/b/c/x", "/a/b/x"]):
        with pytest.raises(OSError) as caught:
            fs.rename(path, target)
        assert caught.value.errno == errno.EINVAL
    assert fs.check().problems == []


def test_file_systems_over_one_volume_are_one(volume: Volume) -> None:
    one, two = FileSystem(volume), FileSystem(volume)
    one.mkdir("/a")
    two.write_bytes("/a/f", b"x")
    assert one.listdir("/a") == two.listdir("/a") == ["f"]
    one.unlink("/a/f")
    volume.sync()
    assert two.listdir("/a") == []
    assert FileSystem(volume).check().problems == []
