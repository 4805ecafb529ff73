"""What changed between two states, against a walk of both model trees; and what finding it reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest

import blockplane as bp
from blockplane.filesystem import Change, Difference, FileSystem, compare
from blockplane.volume import Volume
from model import Tree
from model.changes import Row, View, expected_changes, view_of
from rig.memory import Shape, make_volume

NAMES = ["a", "b", "c", "d", "e", "\n odd \x1b"]


class Pair:
    """A volume and a model of its tree, whose nodes have serial numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.volume: Volume = make_volume([Shape(3, 1, 64, 4096)])
        self.fs = FileSystem(self.volume)
        self.tree = Tree()
        self.trees: dict[str, Tree] = {}
        self.views: dict[str | None, View] = {}
        self._serial = self._version = 0
        self.both(lambda: self.fs.mkdir("/big"), lambda: self.tree.mkdir("/big", 0o777))
        for i in range(120):
            self.create(f"/big/{'n' * 60}{i}")
        self.fs.makedirs("/" + "/".join("p" * 40))
        for depth in range(1, 41):
            self.tree.mkdir("/" + "/".join("p" * depth), 0o777)
        self.number()

    def number(self) -> None:
        for _, node in self.tree.walk():
            if not node.serial:
                self._serial += 1
                node.serial = self._serial

    def written(self, path: str) -> None:
        self._version += 1
        self.tree.node(path).version = self._version

    def both(self, on_volume: Callable[[], object], on_model: Callable[[], object]) -> bool:
        """Do one change to both, if both allow it."""
        try:
            on_model()
        except OSError:
            try:
                on_volume()
            except OSError:
                return False
            raise AssertionError("the volume did what the model refuses") from None
        on_volume()
        self.number()
        return True

    def pick(self, *kinds: str) -> str:
        paths = self.tree.paths(*kinds) or ["/big"]
        return paths[int(self.rng.integers(len(paths)))]

    def fresh(self) -> str:
        return f"{self.pick('dir').rstrip('/')}/{NAMES[int(self.rng.integers(len(NAMES)))]}"

    def create(self, path: str) -> None:
        if path in self.tree.paths("symlink"):
            return  # would be written through
        data = self.rng.bytes(int(self.rng.choice([0, 9, 300, 5000, 90_000])))
        if self.both(lambda: self.fs.write_bytes(path, data), lambda: self.tree.replace(path, data)):
            self.written(path)

    def write(self, path: str) -> None:
        data, offset = self.rng.bytes(20), int(self.rng.integers(9000))

        def on_volume() -> None:
            with self.fs.open(path, "r+b", buffering=0) as file:
                file.seek(offset)
                file.write(data)

        if self.both(on_volume, lambda: self.tree.write(path, offset, data)):
            self.written(path)

    def truncate(self, path: str) -> None:
        size = int(self.rng.integers(9000))
        if self.both(lambda: self.fs.truncate(path, size), lambda: self.tree.truncate(path, size)):
            self.written(path)

    def rename(self, source: str, path: str) -> None:
        if "/" not in (source, path):
            self.both(lambda: self.fs.rename(source, path), lambda: self.tree.rename(source, path))

    def swap(self, one: str, two: str) -> None:
        """Exchange two names; stops where one of them lies in the other."""
        if one != two:
            self.rename(one, "/swap")
            self.rename(two, one)
            self.rename("/swap", two)

    def set_attribute(self, path: str) -> None:
        value = self.rng.bytes(int(self.rng.choice([3, 400])))
        self.both(
            lambda: self.fs.setxattr(path, "user.x", value, follow_symlinks=False),
            lambda: self.tree.set_attribute(path, "user.x", value),
        )

    def set_mode(self, path: str) -> None:
        mode = int(self.rng.choice([0o600, 0o644]))

        def on_volume() -> None:
            self.fs.chmod(path, mode)

        node = self.tree.node(path)
        if node.kind != "symlink":
            self.both(on_volume, lambda: self.tree.set_mode(path, mode, node.uid, node.gid))

    def remove_tree(self, path: str) -> None:
        if path not in ("/", "/big", "/p"):
            parent, name = self.tree.node(path.rpartition("/")[0] or "/"), path.rpartition("/")[2]
            self.both(lambda: self.fs.rmtree(path), lambda: parent.entries.pop(name))

    def step(self) -> None:
        anything = self.tree.paths() or ["/a"]
        path = anything[int(self.rng.integers(len(anything)))]
        actions: list[Callable[[], object]] = [
            lambda: self.create(self.fresh()),
            lambda: self.create(self.fresh()),
            lambda: self.write(self.pick("file")),
            lambda: self.truncate(self.pick("file")),
            lambda: self.both(lambda: self.fs.unlink(path), lambda: self.tree.unlink(path)),
            lambda: self.rename(path, self.fresh()),
            lambda: self.rename(self.pick("dir"), self.fresh()),
            lambda: self.swap(self.pick("file"), self.pick("file")),
            lambda: self.swap(self.pick("dir"), self.pick()),
            lambda: self.set_mode(path if self.rng.integers(8) else "/"),
            lambda: self.set_attribute(path),
            lambda: self.fs.utime(path, ns=(1, int(self.rng.integers(9))), follow_symlinks=False),
            self.link,
            self.mkdir,
            self.symlink,
            lambda: self.remove_tree(self.pick("dir")) if self.rng.integers(4) == 0 else None,
            lambda: self.create(f"/big/{'n' * 60}{self.rng.integers(150)}"),
            self.volume.sync,
        ]
        with suppress(FileNotFoundError):  # /swap is in the way, or a swap stopped halfway
            actions[int(self.rng.integers(len(actions)))]()

    def link(self) -> None:
        source, path = self.pick("file", "symlink"), self.fresh()
        self.both(lambda: self.fs.link(source, path), lambda: self.tree.link(source, path))

    def mkdir(self) -> None:
        path = self.fresh()
        self.both(lambda: self.fs.mkdir(path), lambda: self.tree.mkdir(path, 0o777))

    def symlink(self) -> None:
        path = self.fresh()
        self.both(lambda: self.fs.symlink("t", path), lambda: self.tree.symlink("t", path))

    def snapshot(self, name: str) -> None:
        self.volume.snapshot(name)
        self.trees[name] = self.tree.copy()
        self.views[name] = view_of(self.trees[name], FileSystem(self.volume.get_snapshot(name)).lstat)

    def roll_back(self, name: str) -> None:
        self.volume.rollback(name, drop_changes=True)
        self.tree = self.trees[name].copy()

    def check(self, before: str, after: str | None) -> Difference:
        self.volume.sync()
        found = compare(self.volume.state(before), self.volume.state(after), atime=True)
        a = self.views[before]
        b = self.views[after] if after is not None else view_of(self.tree.copy(), self.fs.lstat)
        source = FileSystem(self.volume.get_snapshot(after)) if after is not None else self.fs
        written = {change.inode for change in found.changes if "content" in change.kinds}

        def claims_content(serial: int) -> bool:
            path = b.paths[min(b.links[serial])]
            return source.lstat(path).st_ino in written and serial in a.nodes

        assert rows_of(found) == expected_changes(a, b, claims_content), (before, after)
        return found


def rows_of(found: Difference) -> list[Row]:
    assert found.changes == sorted(found.changes)
    return sorted(((c.path, c.path_before, c.change, c.kinds) for c in found.changes), key=repr)


@pytest.fixture
def pair(rng: np.random.Generator) -> Iterator[Pair]:
    made = Pair(rng)
    yield made
    made.volume.abandon()


def test_every_pair_of_states_against_a_walk_of_both_trees(pair: Pair, is_deep: bool) -> None:
    """Renames, links, reused inodes, swapped names, changed types, attributes, deep directories, on a line."""
    n_checks = 0
    for number in range(60 if is_deep else 4):
        for _ in range(int(pair.rng.integers(1, 60))):
            pair.step()
        pair.snapshot(f"s{number}")
        names = list(pair.trees)
        for before in [names[-1], *pair.rng.choice(names, 2)]:
            for after in (names[-1], str(pair.rng.choice(names)), None):
                pair.check(str(before), after)
                n_checks += 1
    assert n_checks >= 36
    assert pair.fs.check().problems == []


def test_states_of_two_branches_against_a_walk(pair: Pair, is_deep: bool) -> None:
    """After a rollback two lines give the same inode numbers to different files."""
    pair.snapshot("root")
    for number in range(30 if is_deep else 3):
        pair.roll_back(str(pair.rng.choice(list(pair.trees))))
        for _ in range(int(pair.rng.integers(1, 30))):
            pair.step()
        pair.create(f"/made {number}")
        pair.snapshot(f"t{number}")
        for before in pair.trees:
            pair.check(before, f"t{number}")
            pair.check(f"t{number}", before)


def test_a_file_of_another_line_under_the_same_number_is_another_file(pair: Pair) -> None:
    pair.snapshot("root")
    pair.create("/one")
    pair.snapshot("one")
    pair.roll_back("root")
    pair.create("/two")
    pair.snapshot("two")
    numbers = [FileSystem(pair.volume.get_snapshot(n)).stat(f"/{n}").st_ino for n in ("one", "two")]
    assert numbers[0] == numbers[1]
    found = pair.check("one", "two")
    assert [(c.path, c.change) for c in found.changes] == [("/one", "deleted"), ("/two", "added")]


def kinds_of(found: Difference) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {c.path: (c.change, c.kinds) for c in found.changes}


def test_a_reused_inode_number_is_a_deletion_and_an_addition(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/old", b"1")
    fs.write_bytes("/same", b"1")
    volume.snapshot("a")
    before = fs.stat("/same").st_ino, fs.stat("/old").st_ino
    for name in ("/same", "/old"):
        fs.unlink(name)
    fs.write_bytes("/new", b"2")
    fs.write_bytes("/same", b"2")
    assert {fs.stat("/same").st_ino, fs.stat("/new").st_ino} == set(before)
    volume.snapshot("b")
    changes = compare(volume.state("a"), volume.state("b")).changes
    assert [(c.path, c.change) for c in changes] == [
        ("/new", "added"), ("/old", "deleted"), ("/same", "added"), ("/same", "deleted"),
    ]  # fmt: skip


def test_names_in_directories_that_did_not_change_are_found_for_every_link(volume: Volume, fs: FileSystem) -> None:
    for name in ("/d", "/e", "/f"):
        fs.mkdir(name)
    fs.write_bytes("/d/x", b"1" * 5000)
    fs.link("/d/x", "/e/y")
    fs.link("/d/x", "/f/z")
    fs.unlink("/d/x")  # the inode names no parent any more
    volume.snapshot("a")
    fs.write_bytes("/e/y", b"2" * 5000)
    volume.snapshot("b")
    found = compare(volume.state("a"), volume.state("b"))
    assert kinds_of(found) == {"/e/y": ("changed", ("content",)), "/f/z": ("changed", ("content",))}


def test_what_lies_in_a_renamed_directory_is_named_where_it_is_and_where_it_was(volume: Volume, fs: FileSystem) -> None:
    fs.makedirs("/a/b/c")
    fs.write_bytes("/a/b/c/file", b"1")
    fs.write_bytes("/a/b/still", b"1")
    volume.snapshot("a")
    fs.rename("/a/b", "/B")
    fs.write_bytes("/B/c/file", b"2")
    volume.snapshot("b")
    changes = compare(volume.state("a"), volume.state("b")).changes
    assert [(c.path, c.path_before, c.change, c.kinds) for c in changes] == [
        ("/B", "/a/b", "renamed", ()),
        ("/B/c/file", "/a/b/c/file", "changed", ("content",)),
    ]


def test_what_went_into_another_directory_under_the_old_path_is_not_renamed(volume: Volume, fs: FileSystem) -> None:
    fs.mkdir("/d")
    for name in ("/d/same", "/d/written"):
        fs.write_bytes(name, b"1")
    volume.snapshot("a")
    fs.rename("/d", "/old")
    fs.mkdir("/d")
    for name in ("same", "written"):
        fs.rename(f"/old/{name}", f"/d/{name}")
    fs.rmdir("/old")
    fs.write_bytes("/d/written", b"2")
    volume.snapshot("b")
    changes = compare(volume.state("a"), volume.state("b")).changes
    assert [(c.path, c.path_before, c.change, c.kinds) for c in changes] == [
        ("/d", None, "added", ()),
        ("/d", "/d", "deleted", ()),
        ("/d/written", "/d/written", "changed", ("content",)),
    ]


def test_from_and_to_a_volume_that_was_empty(volume: Volume, fs: FileSystem) -> None:
    empty = volume.state(None)
    fs.makedirs("/x/y")
    volume.sync()
    assert kinds_of(compare(empty, volume.state(None))) == {"/x": ("added", ()), "/x/y": ("added", ())}
    assert kinds_of(compare(volume.state(None), empty)) == {"/x": ("deleted", ()), "/x/y": ("deleted", ())}


def test_a_file_that_is_open_without_a_name_is_deleted(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/x", b"1" * 9000)
    volume.snapshot("a")
    with fs.open("/x", "rb"):
        fs.unlink("/x")
        volume.snapshot("b")
    volume.sync()
    volume.snapshot("c")
    assert kinds_of(compare(volume.state("a"), volume.state("b"))) == {"/x": ("deleted", ())}
    assert kinds_of(compare(volume.state("b"), volume.state("c"))) == {}


def test_reads_follow_what_changed(volume: Volume, fs: FileSystem) -> None:
    """One changed file among many directories: two inode blocks and the directories on its path."""
    for i in range(60):
        fs.makedirs(f"/d{i}/e")
        for name in range(20):
            fs.write_bytes(f"/d{i}/e/{name}", b"x")
    volume.snapshot("a")
    fs.write_bytes("/d30/e/7", b"y")
    volume.snapshot("b")
    one, two = volume.state("a"), volume.state("b")
    before = one.inode_file.n_reads, two.inode_file.n_reads
    found = compare(one, two)
    assert kinds_of(found) == {"/d30/e/7": ("changed", ("content",))}
    n_inode_reads = one.inode_file.n_reads + two.inode_file.n_reads - sum(before)
    assert 0 < n_inode_reads <= 16
    assert 0 < found.n_reads <= 20
    same = compare(two, two)
    assert (same.changes, same.n_reads) == ([], 2)


def test_a_received_copy_with_place_maps_tells_the_same(tmp_path: os.PathLike[str], rng: np.random.Generator) -> None:
    with bp.Volume.create(f"{tmp_path}/from", disks=3, size="16M") as source:
        fs = bp.FileSystem(source)
        fs.mkdir("/d")
        for name in range(50):
            fs.write_bytes(f"/d/{name}", rng.bytes(5000))
        source.snapshot("a")
        fs.rename("/d/7", "/d/seven")
        fs.write_bytes("/d/8", rng.bytes(5000))
        fs.unlink("/d/9")
        source.snapshot("b")
        expected = source.diff("a", "b").changes
        bp.send(source.image("a"), f"{tmp_path}/a.bps")
        bp.send(source.image("b - a"), f"{tmp_path}/b.bps")
    with bp.Volume.create(f"{tmp_path}/to", disks=2, size="32M") as copy:
        bp.FileSystem(copy).write_bytes("/mine", rng.bytes(300_000))
        copy.snapshot("mine")
        bp.receive(f"{tmp_path}/a.bps", copy, discard=True)
        bp.FileSystem(copy).write_bytes("/more", rng.bytes(300_000))
        copy.snapshot("more")
        bp.receive(f"{tmp_path}/b.bps", copy, discard=True)
        assert not copy.get_snapshot("b").state.placemap.is_empty
        assert len(expected) == 3
        assert copy.diff("a", "b").changes == expected
        unrelated = copy.diff("mine", "b").changes
        assert {c.path for c in unrelated if c.change == "deleted"} == {"/mine"}
        assert len([c for c in unrelated if c.change == "added"]) == 50


def test_a_time_of_access_that_was_set_alone_is_listed_when_asked_for(volume: Volume, fs: FileSystem) -> None:
    for name in ("/read", "/touched"):
        fs.write_bytes(name, b"1")
    volume.snapshot("a")
    for name, change in (("/read", 0), ("/touched", 1)):
        fs.utime(name, ns=(1, fs.stat(name).st_mtime_ns + change))
    volume.snapshot("b")
    one, two = volume.state("a"), volume.state("b")
    assert kinds_of(compare(one, two)) == {"/touched": ("changed", ("attributes",))}
    both = dict.fromkeys(("/read", "/touched"), ("changed", ("attributes",)))
    assert kinds_of(compare(one, two, atime=True)) == both


def test_a_change_tells_type_and_generation(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/x", b"1")
    volume.snapshot("a")
    fs.unlink("/x")
    fs.mkdir("/x", 0o700)
    volume.snapshot("b")
    status = fs.stat("/x")
    added, deleted = compare(volume.state("a"), volume.state("b")).changes
    assert added == Change("/x", "added", None, (), status.st_mode, status.st_ino, status.generation)
    assert (deleted.change, deleted.mode >> 12) == ("deleted", 0o10)
