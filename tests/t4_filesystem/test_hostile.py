"""Metadata that somebody made up: an error, whatever it is; never a loop, a crash or a wrong type of exception."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.filesystem import FileSystem, compare
from blockplane.filesystem.attributes import decode_attributes
from blockplane.filesystem.directory import Directory, Entry
from blockplane.filesystem.directory_node import FIRST_KEY, Node
from blockplane.filesystem.errors import FileSystemDamagedError
from blockplane.filesystem.inode import INODE_BYTES, Inode
from blockplane.filesystem.owners import blocks_below, owners_of
from blockplane.model import BlockplaneError, VolumeDamagedError
from blockplane.planes import Plane
from blockplane.volume import Volume
from blockplane.volume.check import check as check_volume
from blockplane.volume.codec import FORM_INLINE, TreeRoot


def an_inode() -> bytes:
    inode = Inode(5, stat.S_IFREG | 0o644, 1, 1)
    inode.nlink, inode.inline, inode.size_bytes, inode.attributes = 1, b"hello", 5, b"\x06\x01\0\0\0user.av"
    return inode.encode()


@given(st.lists(st.tuples(st.integers(0, INODE_BYTES - 1), st.integers(0, 255)), max_size=6), st.integers(0, 2))
def test_mutated_inodes(changes: list[tuple[int, int]], form: int) -> None:
    data = bytearray(an_inode())
    data[0] = form
    for position, value in changes:
        data[position] = value
    try:
        inode = Inode.decode(5, bytes(data))
    except VolumeDamagedError:
        return
    assert Inode.decode(5, inode.encode()).encode() == inode.encode()


@given(st.binary(min_size=INODE_BYTES, max_size=INODE_BYTES))
def test_random_inodes(data: bytes) -> None:
    with pytest.raises(VolumeDamagedError):
        Inode.decode(5, data)


def test_a_device_number_that_no_host_has() -> None:
    inode = Inode(5, stat.S_IFREG | 0o644, 1, 1)
    inode.nlink, inode.rdev = 1, 1 << 63
    with pytest.raises(FileSystemDamagedError, match="device number"):
        Inode.decode(5, inode.encode())


def test_an_inode_whose_inline_size_lies() -> None:
    data = bytearray(an_inode())
    assert TreeRoot.decode(bytes(data)).form == FORM_INLINE
    struct.pack_into("<Q", data, 8, 100)
    with pytest.raises(FileSystemDamagedError, match="inode 5"):
        Inode.decode(5, bytes(data))


@given(st.binary(max_size=300))
def test_random_attributes(data: bytes) -> None:
    try:
        found = decode_attributes(data, 5)
    except FileSystemDamagedError:
        return
    assert sum(5 + len(name) + len(value) for name, value in found.items()) == len(data)


def a_leaf() -> Node:
    node = Node(0)
    for i in range(60):
        node.insert(i, (i * 1000, b"name %d" % i), i + 1)
    return node


@given(st.lists(st.tuples(st.integers(0, 1600), st.integers(0, 255)), min_size=1, max_size=4))
def test_mutated_nodes(changes: list[tuple[int, int]]) -> None:
    data = bytearray(a_leaf().encode(7))
    for position, value in changes:
        data[position] = value
    try:
        node = Node.decode(bytes(data), 7)
    except FileSystemDamagedError:
        return
    assert node.is_sorted()
    assert Node.decode(node.encode(7), 7).names == node.names


def test_a_node_of_another_directory() -> None:
    with pytest.raises(FileSystemDamagedError, match="directory 8"):
        Node.decode(a_leaf().encode(7), 8)


def branch(*children: tuple[tuple[int, bytes], int], level: int = 1) -> Node:
    node = Node(level)
    for i, (key, block) in enumerate(children):
        node.insert(i, key if i else FIRST_KEY, block)
    return node


def leaf(*hashes: int) -> Node:
    node = Node(0)
    for i, hash_ in enumerate(hashes):
        node.insert(i, (hash_, b"n%d" % hash_), 1)
    return node


MADE_UP: dict[str, list[Node]] = {
    "root is its own child": [branch((FIRST_KEY, 0))],
    "a child twice": [branch((FIRST_KEY, 1), ((5, b""), 1)), leaf(1, 2)],
    "a loop over two": [branch((FIRST_KEY, 1), level=2), branch((FIRST_KEY, 0))],
    "keys outside the range": [branch((FIRST_KEY, 1), ((5, b""), 2)), leaf(1, 7), leaf(8)],
    "an empty leaf below": [branch((FIRST_KEY, 1), ((5, b""), 2)), leaf(), leaf(8)],
    "a missing block": [branch((FIRST_KEY, 1), ((5, b""), 9)), leaf(1)],
    "a wrong level": [branch((FIRST_KEY, 1), level=3), leaf(1)],
    "an empty root branch": [branch()],
    "an inode number of 0": [leaf(1)],
}


@pytest.mark.parametrize("nodes", MADE_UP.values(), ids=MADE_UP.keys())
def test_made_up_directories(volume: Volume, nodes: list[Node]) -> None:
    tree = volume.new_tree()
    if len(nodes) == 1 and not nodes[0].level:
        nodes[0].values[0] = 0
    for block, node in enumerate(nodes):
        tree.edit_block(block)[:] = np.frombuffer(node.encode(7), np.uint8)
    tree.size_bytes = len(nodes) * 4096
    calls: list[Callable[[Directory], object]] = [
        lambda made: made.all_entries(), lambda made: [made.find(b"x%d" % i) for i in range(50)] + made.all_entries(),
        lambda made: [made.insert(b"i%d" % i, 1, 8) for i in range(2000)] + made.all_entries(),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(FileSystemDamagedError):
            call(Directory(7, tree))


def spoil(fs: FileSystem, rnd: random.Random) -> None:
    """Write random bytes into metadata of a live volume, under valid checksums."""
    store = fs.store
    tree = rnd.choice([store.state.inode_file, store.directory(fs.resolver.find("/d")).tree])
    extents = tree.data_extents().tolist()
    start, stop = rnd.choice(extents)
    block = tree.edit_block(rnd.randrange(start, stop))
    for _ in range(rnd.randrange(1, 8)):
        at = rnd.randrange(4096)
        block[at : at + rnd.choice([1, 1, 2, 8])] = rnd.randrange(256)


def use_everything(fs: FileSystem, out: Path) -> None:
    for call in (
        lambda: fs.check(), lambda: list(fs.walk("/")), lambda: [fs.read_bytes(f"/d/f{i}") for i in range(60)],
        lambda: fs.get("/", out), lambda: [fs.write_bytes(f"/d/g{i}", b"x" * 9000) for i in range(50)],
        lambda: [fs.unlink(f"/d/f{i}") for i in range(60)], lambda: fs.listxattr("/d/f1"), lambda: fs.rmtree("/d"),
    ):  # fmt: skip
        try:
            call()
        except (BlockplaneError, OSError):
            continue


@pytest.mark.parametrize("seed", range(40))
def test_a_spoilt_file_system_gives_errors_only(tmp_path: Path, seed: int) -> None:
    rnd = random.Random(seed)
    with Volume.create(tmp_path / "vol", disks=1, size="32M") as volume:
        fs = FileSystem(volume)
        fs.mkdir("/d")
        for i in range(300):
            fs.write_bytes(f"/d/f{i}", rnd.randbytes(rnd.choice([10, 300, 80_000])))
            fs.setxattr(f"/d/f{i}", "user.x", b"y" * rnd.choice([5, 500]))
        volume.sync()
        fs.store.reload()
        spoil(fs, rnd)
        fs.store.reload()
        use_everything(fs, tmp_path / "out")
        volume.abandon()


@pytest.mark.parametrize("seed", range(30))
def test_comparing_and_searching_a_spoilt_state_gives_errors_only(tmp_path: Path, seed: int) -> None:
    rnd = random.Random(seed)
    with Volume.create(tmp_path / "vol", disks=1, size="32M") as volume:
        fs = FileSystem(volume)
        fs.makedirs("/d/e")
        for i in range(300):
            fs.write_bytes(f"/d/f{i}", rnd.randbytes(rnd.choice([10, 300, 80_000])))
            fs.setxattr(f"/d/f{i}", "user.x", b"y" * rnd.choice([5, 500]))
        fs.link("/d/f1", "/d/e/link")
        volume.snapshot("whole")
        fs.store.reload()
        spoil(fs, rnd)
        volume.active.is_dirty = True
        volume.snapshot("spoilt")
        whole, spoilt = volume.state("whole"), volume.state("spoilt")
        everything = Plane.from_extents([[0, volume.n_blocks]], volume.n_blocks)
        for call in (
            lambda: compare(whole, spoilt), lambda: compare(spoilt, whole), lambda: owners_of(spoilt, everything),
            lambda: blocks_below(spoilt, 1),
        ):  # fmt: skip
            with contextlib.suppress(BlockplaneError):
                assert call() is not None
        assert compare(whole, whole).changes == []
        volume.abandon()


def snapshot_though_full(volume: Volume, name: str) -> None:
    """A snapshot of a state whose count of blocks is a lie: by that, nothing is free."""
    with mock.patch.object(volume, "keep_floor"):
        volume.snapshot(name)


@pytest.mark.parametrize("path", ["/file", "/d"])
def test_a_tree_without_end_ends(volume: Volume, path: str) -> None:
    """Five levels of pointers that all lead to one block of the next: 256 to the fifth if they were followed.

    The root claims as many blocks.
    """
    fs = FileSystem(volume)
    fs.mkdir("/d")
    for name in ("/d/f", "/file", "/level0"):
        fs.write_bytes(name, b"x" * 4096)
    volume.snapshot("whole")
    for level in range(6):
        volume.sync()
        root = fs.resolver.find(f"/level{level}").root
        assert root is not None
        word, check = root.pointers[0].tolist()
        fs.write_bytes(f"/level{level + 1}", struct.pack("<QII", word, check, 0) * 256)
    number = fs.stat(path).st_ino
    block = fs.store.state.inode_file.edit_block(number // 8)
    record = block[number % 8 * INODE_BYTES :][:INODE_BYTES]
    record[1] = 5
    struct.pack_into("<QII", record, 16, word, check, 0)
    volume.active.root.n_blocks = 1 << 50
    volume.active.is_dirty = True
    snapshot_though_full(volume, "spoilt")
    whole, spoilt = volume.state("whole"), volume.state("spoilt")
    with pytest.raises(VolumeDamagedError, match="several parts of a tree"):
        owners_of(spoilt, Plane.from_extents([[0, volume.n_blocks]], volume.n_blocks))
    if path == "/d":
        with pytest.raises(VolumeDamagedError, match="several parts of a tree"):
            compare(whole, spoilt)
    else:
        assert path in {c.path for c in compare(whole, spoilt).changes}
    assert any("with another owner" in problem for problem in check_volume(volume).problems)
    found = FileSystem(spoilt).check()
    assert any("leads to several parts of a tree" in problem for problem in found.problems)
    tree = volume.active.tree(TreeRoot.decode(bytes(record)))
    assert len(tree.known_pointers()) == 6
    for change in (lambda: tree.punch(0, tree.capacity_blocks()), lambda: tree.touch_within(0, 1, 1)):
        with pytest.raises(VolumeDamagedError, match="several parts of a tree"):
            change()
    assert not tree.is_dirty
    volume.abandon()


def test_a_directory_is_not_sized_by_what_it_claims(volume: Volume) -> None:
    fs = FileSystem(volume)
    fs.mkdir("/d")
    fs.write_bytes("/d/f", b"x")
    volume.snapshot("whole")
    with fs.open("/far", "wb") as file:
        file.seek(1 << 48)
        file.write(b"x")
    volume.sync()
    inode = fs.resolver.find("/d")
    inode.root, inode.size_bytes = fs.resolver.find("/far").root, 1 << 48
    fs.store.inodes.mark_dirty(inode)
    volume.active.root.n_blocks = 1 << 50
    snapshot_though_full(volume, "spoilt")
    with pytest.raises(VolumeDamagedError, match="its size is impossible"):
        compare(volume.state("whole"), volume.state("spoilt"))
    volume.abandon()


@pytest.mark.parametrize(("size_bytes", "inline"), [(4 << 30, None), (5, b"ab\0cd"), (0, None)])
def test_a_symbolic_link_that_leads_nowhere(
    tmp_path: Path, volume: Volume, size_bytes: int, inline: bytes | None
) -> None:
    """It is passed over, found, and replaced; nothing is sized by what it claims."""
    fs = FileSystem(volume)
    fs.symlink("target", "/link")
    fs.write_bytes("/other", b"other")
    inode = fs.resolver.find("/link", follow=False)
    inode.inline, inode.size_bytes = inline, size_bytes
    fs.store.touch(inode)
    volume.active.is_dirty = True
    volume.snapshot("s")
    snapshot = FileSystem(volume.get_snapshot("s"))
    assert any("symbolic link" in problem for problem in snapshot.check().problems)
    report = snapshot.get("/.", tmp_path / "out")
    assert ["link" in str(skipped) for skipped in report.skipped] == [True]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other"]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to("target")
    fs.put(f"{tmp_path}/source/.", "/", update=True)
    assert fs.readlink("/link") == "target"


@pytest.mark.parametrize("bits", [36, 44])
def test_an_inode_table_that_claims_to_be_large(volume: Volume, bits: int) -> None:
    fs = FileSystem(volume)
    fs.write_bytes("/file", b"x" * 9000)
    volume.snapshot("whole")
    record = fs.store.inodes._record
    record.rdev = 1 << bits
    fs.store.inodes.mark_dirty(record)
    fs.write_bytes("/file", b"y" * 9000)
    volume.snapshot("spoilt")
    whole, spoilt = volume.state("whole"), volume.state("spoilt")
    assert owners_of(spoilt, Plane.from_extents([[0, volume.n_blocks]], volume.n_blocks))
    assert [change.path for change in compare(whole, spoilt).changes] == ["/file"]
    volume.abandon()


@pytest.mark.parametrize("size", [3 << 20, 9 << 20, 1 << 30])
def test_holes_that_the_count_of_blocks_denies_are_holes(tmp_path: Path, volume: Volume, size: int) -> None:
    fs = FileSystem(volume)
    fs.mkdir("/d")
    with fs.open("/d/f", "wb") as file:
        for at in (0, size // 2, size - 1):
            file.seek(at)
            file.write(b"x")
    fs.write_bytes("/d/other", b"o" * (2 << 20))
    volume.sync()
    inode = fs.resolver.find("/d/f")
    inode.n_blocks = size // 4096
    fs.store.inodes.mark_dirty(inode)
    fs.store.changed()
    volume.snapshot("spoilt")
    report = FileSystem(volume.get_snapshot("spoilt")).get("/d", tmp_path / "out")
    assert report.skipped == []
    assert report.n_bytes < 7 << 20
    assert os.stat(tmp_path / "out/f").st_size == size
    assert os.stat(tmp_path / "out/f").st_blocks * 512 < 1 << 20
    with open(tmp_path / "out/f", "rb") as got:
        for at in (0, size // 2, size - 1):
            got.seek(at)
            assert got.read(2).rstrip(b"\0") == b"x"
    assert (tmp_path / "out/other").read_bytes() == b"o" * (2 << 20)


def test_an_entry_that_leads_nowhere(volume: Volume) -> None:
    fs = FileSystem(volume)
    fs.write_bytes("/a", b"")
    root = fs.resolver.find("/")
    directory = fs.store.directory(root)
    directory.replace(b"a", 1 << 40, 8)
    with pytest.raises(VolumeDamagedError):
        fs.stat("/a")
    directory.replace(b"a", 1, 8)
    with pytest.raises(VolumeDamagedError):
        fs.stat("/a")
    assert directory.all_entries() == [Entry(b"a", 1, 8)]
