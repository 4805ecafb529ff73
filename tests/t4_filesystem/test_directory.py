"""Directories beside a dict: inserts, removals, names whose hashes collide, bulk builds, iteration meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from blockplane.filesystem import FileSystem, directory
from blockplane.filesystem.directory import Directory, Entry
from blockplane.filesystem.directory_node import CAPACITY_BYTES, Node, hash_name
from blockplane.model import ChecksumError
from blockplane.volume import Volume
from blockplane.volume.codec import TreeRoot

names = st.one_of(st.integers(0, 3000).map(lambda n: b"n%d" % n), st.integers(0, 800).map(lambda n: b"%d" % n * 60))


@pytest.fixture
def colliding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "hash_name", lambda name: hash_name(name) % 5 << 61)


def fresh(volume: Volume) -> Directory:
    return Directory(7, volume.new_tree())


def reloaded(volume: Volume, old: Directory) -> Directory:
    old.flush()
    old.tree.flush()
    return Directory(7, volume.new_tree(TreeRoot.decode(old.tree.root.encode())))


def as_dict(found: Directory) -> dict[bytes, tuple[int, int]]:
    entries = found.all_entries()
    assert len({entry.name for entry in entries}) == len(entries)
    return {entry.name: (entry.inode, entry.type) for entry in entries}


def churn(volume: Volume, n_names: int, name: Callable[[int], bytes]) -> None:
    """Fill, thin out, refill and empty a directory, comparing on the way."""
    made = fresh(volume)
    model: dict[bytes, tuple[int, int]] = {}
    for i in range(n_names):
        assert made.insert(name(i), i + 1, 8)
        model[name(i)] = (i + 1, 8)
    assert not made.insert(name(0), 99, 4)
    assert as_dict(made) == model
    made = reloaded(volume, made)
    for i in range(0, n_names, 3):
        assert made.remove(name(i))
        del model[name(i)]
    assert not made.remove(name(0))
    assert as_dict(made) == model
    for i in range(0, n_names, 3):
        made.insert(name(i), i + 5, 4)
        model[name(i)] = (i + 5, 4)
    made = reloaded(volume, made)
    assert all(made.find(key) == Entry(key, *value) for key, value in model.items())
    for key in sorted(model):
        assert made.remove(key)
    assert (made.n_nodes, made.all_entries()) == (0, [])
    made = reloaded(volume, made)
    assert made.tree.data_extents().tolist() == []


def test_many_short_names(volume: Volume) -> None:
    churn(volume, 20_000, lambda i: b"file-%07d" % i)


def test_long_names(volume: Volume) -> None:
    churn(volume, 3_000, lambda i: (b"%05d" % i * 51)[:255])


@pytest.mark.usefixtures("colliding")
def test_names_whose_hashes_collide(volume: Volume) -> None:
    churn(volume, 3_000, lambda i: b"name %d" % i)


@pytest.mark.parametrize("seed", [7, 11])  # a leaf splits then
def test_no_change_is_lost_where_few_nodes_are_kept(volume: Volume, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A branch that was read long ago is still there when a leaf below it, just read, splits."""
    monkeypatch.setattr(directory, "_CACHED_NODES", 4)
    rng = np.random.default_rng(seed)
    names = sorted((b"%0240d" % i for i in range(12_000)), key=hash_name)
    model = {name: (i + 1, 8) for i, name in enumerate(names) if i % 2}
    made = fresh(volume)
    made.build(Entry(name, *value) for name, value in model.items())
    for _ in range(60):
        made = reloaded(volume, made)
        first, n_read = 2 * int(rng.integers(5800)) + 1, 7  # with root and branch nine nodes: the next one is too many
        for leaf in range(n_read):
            name = names[first + 30 * leaf]
            assert made.find(name) == Entry(name, *model[name])
        name = names[first + 30 * n_read + 1]
        assert made.insert(name, 7, 4) == (name not in model)
        model.setdefault(name, (7, 4))
    assert made.depth() == 3
    assert as_dict(reloaded(volume, made)) == model


@pytest.mark.parametrize("n", [0, 1, 100, 300, 50_000])
def test_a_bulk_build_is_like_inserts(volume: Volume, n: int) -> None:
    built = fresh(volume)
    built.build(Entry(b"%d" % i, i + 1, 8) for i in range(n))
    assert as_dict(built) == {b"%d" % i: (i + 1, 8) for i in range(n)}
    built = reloaded(volume, built)
    for i in range(500):
        assert built.insert(b"more %d" % i, i + 1, 4)
    for i in range(n):
        assert built.remove(b"%d" % i)
    assert len(built.all_entries()) == 500


def test_iteration_survives_changes(volume: Volume) -> None:
    made = fresh(volume)
    made.build(Entry(b"stays %d" % i, i + 1, 8) for i in range(5000))
    for i in range(5000):
        made.insert(b"goes %d" % i, 1, 8)
    seen: list[bytes] = []
    for n, entry in enumerate(made.entries()):
        seen.append(entry.name)
        if n < 5000:
            made.remove(b"goes %d" % n)
            made.insert(b"new %d" % n, 1, 8)
    assert len(seen) == len(set(seen))
    assert {b"stays %d" % i for i in range(5000)} <= set(seen)


def test_iteration_goes_on_behind_a_cursor(volume: Volume) -> None:
    made = fresh(volume)
    made.build(Entry(b"%d" % i, i + 1, 8) for i in range(2000))
    everything = made.all_entries()
    for cut in (0, 1, 999, 1999):
        last = everything[cut].name
        assert list(made.entries((hash_name(last), last))) == everything[cut + 1 :]


@pytest.mark.parametrize("n_names", [40, 150, 2500])
def test_a_damaged_node_takes_nothing_else_along(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, n_names: int, rng: np.random.Generator
) -> None:
    """Removals beside a block that cannot be read are whole, or were none; when it can be again all is there."""
    n_refused = 0
    for share in (0, 0.5, 1, *rng.random(4)):
        made = fresh(volume)
        made.build(Entry(b"%04d" % i * 50, i + 1, 8) for i in range(n_names))
        model = as_dict(made)
        made = reloaded(volume, made)
        block = 1 + round(share * (made.n_nodes - 2))
        read = made.tree.read_block

        def read_block(index: int, block: int = block, read: Any = read) -> Any:
            if index == block:
                raise ChecksumError(f"block {index} does not match its checksum")
            return read(index)

        with monkeypatch.context() as patch:
            patch.setattr(made.tree, "read_block", read_block)
            for name in rng.permutation(sorted(model)).tolist():
                try:
                    assert made.remove(name)
                    del model[name]
                except ChecksumError:
                    n_refused += 1
        assert as_dict(made) == model
        assert as_dict(reloaded(volume, made)) == model
    assert n_refused > 0


class LikeADict(RuleBasedStateMachine):
    """Many inserts and removals in small steps; collisions in half of the runs."""

    volume: Volume

    def __init__(self) -> None:
        super().__init__()
        self.made = fresh(self.volume)
        self.model: dict[bytes, tuple[int, int]] = {}

    @rule(name=names, count=st.integers(1, 200), inode=st.integers(1, (1 << 48) - 1000))
    def insert(self, name: bytes, count: int, inode: int) -> None:
        for i in range(count):
            key = (name + b"/%d" % i).replace(b"/", b"+")[-255:]
            assert self.made.insert(key, inode + i, 8) == (key not in self.model)
            self.model.setdefault(key, (inode + i, 8))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), count=st.integers(1, 300))
    def remove(self, data: st.DataObject, count: int) -> None:
        ordered = sorted(self.model)
        start = data.draw(st.integers(0, len(ordered) - 1))
        for key in ordered[start : start + count]:
            assert self.made.remove(key)
            del self.model[key]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        self.made.replace(key, 5, 10)
        self.model[key] = (5, 10)

    @rule()
    def reload(self) -> None:
        self.made = reloaded(self.volume, self.made)

    @invariant()
    def same(self) -> None:
        assert as_dict(self.made) == self.model


def test_like_a_dict(volume: Volume) -> None:
    LikeADict.volume = volume
    run_state_machine_as_test(LikeADict, settings=settings(stateful_step_count=15))


@pytest.mark.usefixtures("colliding")
def test_like_a_dict_with_collisions(volume: Volume) -> None:
    test_like_a_dict(volume)


@pytest.fixture(scope="module")
def million(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """A volume with a directory of a million names of a thousand files."""
    path = tmp_path_factory.mktemp("million") / "vol"
    with Volume.create(path, disks=3, size="256M") as volume:
        fs = FileSystem(volume)
        fs.mkdir("/big")
        big = fs.resolver.find("/big")
        files = [fs.store.create(0o100644, big) for _ in range(1000)]
        fs.store.fill_directory(big, [(b"file-%07d" % i, files[i % 1000]) for i in range(1_000_000)])
    with Volume.open(path) as volume:
        yield volume


def read_blocks(volume: Volume) -> int:
    return volume.array.counters().read_bytes // 4096


def test_one_name_among_a_million_reads_at_most_24_blocks(million: Volume) -> None:
    for name in ("file-0000000", "file-0777777", "file-0999999", "no such file"):
        fs = FileSystem(million)
        before = read_blocks(million)
        assert fs.exists(f"/big/{name}") == name.startswith("file")
        assert read_blocks(million) - before <= 24


def test_a_million_names_are_listed(million: Volume) -> None:
    found = FileSystem(million).listdir("/big")
    assert (len(found), found[0], found[-1]) == (1_000_000, "file-0000000", "file-0999999")


def test_an_insert_among_a_million_touches_few_nodes(million: Volume) -> None:
    fs = FileSystem(million)
    inode = fs.resolver.find("/big")
    big = fs.store.directory(inode)
    assert big.depth() == 3
    for i in range(100):
        before = big.n_dirty
        fs.mknod(f"/big/new-{i}", 0o100600)
        assert big.n_dirty - before <= 4
        fs.unlink(f"/big/new-{i}")


def test_a_node_holds_what_it_says() -> None:
    node = Node(0)
    for i in range(100):
        node.insert(i, (i, b"name"), 1)
    assert node.used_bytes == 100 * 20
    again = Node.decode(node.encode(7), 7)
    assert (again.hashes, again.names, again.values) == (node.hashes, node.names, node.values)
    assert len(node.encode(7)) == 4096 == CAPACITY_BYTES + 16
