"""The check finds each kind of damage, and names it."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from blockplane.filesystem import FileSystem
from blockplane.filesystem.inode import FLAG_ATTRIBUTES, Inode
from blockplane.volume import Volume


def at(fs: FileSystem, path: str) -> Inode:
    return fs.resolver.find(path, follow=False)


def lose_an_entry(fs: FileSystem) -> None:
    fs.store.directory(at(fs, "/d")).remove(b"f")


def enter_a_directory_twice(fs: FileSystem) -> None:
    fs.store.directory(at(fs, "/")).insert(b"again", at(fs, "/d/e").number, stat.S_IFDIR >> 12)


def wrong_hash(fs: FileSystem) -> None:
    root = fs.store.directory(at(fs, "/"))
    root._nodes[0].names[0] = b"Z" * len(root._nodes[0].names[0])


def set_field(path: str, field: str, value: object) -> Callable[[FileSystem], None]:
    return lambda fs: setattr(at(fs, path), field, value)


def free_in_use(fs: FileSystem) -> None:
    inode = at(fs, "/d/f")
    fs.store.inodes.free(inode)


def leak_an_inode(fs: FileSystem) -> None:
    fs.store.create(stat.S_IFREG, at(fs, "/"))


def leak_attributes(fs: FileSystem) -> None:
    holder = fs.store.create(stat.S_IFREG, at(fs, "/d/f"))
    holder.flags |= FLAG_ATTRIBUTES


DAMAGE: dict[str, tuple[Callable[[FileSystem], None], str]] = {
    "lost entry": (lose_an_entry, "counts 2 entries and has 1"),
    "lost entry's inode": (lose_an_entry, "has no entry"),
    "directory twice": (enter_a_directory_twice, "lies in two places"),
    "hash": (wrong_hash, "not where its hash says"),
    "links": (set_field("/d/f", "nlink", 3), "has 3 links and 1 entries"),
    "links of a directory": (set_field("/d", "nlink", 9), "has 9 links instead of 3"),
    "entries": (set_field("/d", "n_entries", 7), "counts 7 entries and has 2"),
    "parent of a directory": (set_field("/d/e", "parent", 1), "names a parent that does not hold it"),
    "parent of a file": (set_field("/d/f", "parent", 1), "names a parent that does not hold it"),
    "type": (set_field("/d/f", "mode", stat.S_IFIFO), "has another type than its inode"),
    "blocks": (set_field("/d/f", "n_blocks", 2), "counts 2 blocks and has 25"),
    "size": (set_field("/d/f", "size_bytes", 4096), "has blocks behind its end"),
    "a freed inode": (free_in_use, "not in use"),
    "a leaked inode": (leak_an_inode, "has no entry"),
    "leaked attributes": (leak_attributes, "which does not name it"),
    "attributes": (set_field("/d/f", "attributes", b"\xff"), "attributes are cut short"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(fs: FileSystem, name: str) -> None:
    spoil, message = DAMAGE[name]
    fs.makedirs("/d/e")
    fs.write_bytes("/d/f", b"x" * 100_000)
    fs.write_bytes("/g", b"y")
    assert fs.check().ok
    spoil(fs)
    problems = fs.check().problems
    assert any(message in problem for problem in problems), problems


def test_the_state_root_counts_inodes_as_the_table_does(volume: Volume) -> None:
    fs = FileSystem(volume)
    fs.makedirs("/d/e")
    fs.write_bytes("/f", b"1")
    fs.write_bytes("/g", b"2")
    fs.unlink("/f")
    snapshot = volume.snapshot("s")
    root = snapshot.state.root
    assert (root.n_inodes, root.next_inode) == (4, 6)
    assert FileSystem(snapshot).check().problems == []
    root.n_inodes += 1
    assert "says 5 inodes" in FileSystem(snapshot).check().problems[0]


def test_a_report_counts(fs: FileSystem) -> None:
    fs.makedirs("/d/e")
    fs.write_bytes("/d/f", b"x" * 100)
    fs.symlink("f", "/d/l")
    report = fs.check()
    assert (report.n_inodes, report.n_directories, report.n_files, report.n_entries, report.n_bytes) == (
        5,
        3,
        1,
        4,
        100,
    )


def test_a_table_that_counts_more_inodes_than_the_file_has(volume: Volume) -> None:
    """It ends at once, however many are counted."""
    fs = FileSystem(volume)
    fs.write_bytes("/f", b"1")
    volume.sync()
    inode = Inode.decode(0, volume.active.inode_file.read_block(0)[:512].tobytes())
    inode.rdev = 1 << 30
    volume.active.inode_file.edit_block(0)[:512] = list(inode.encode())
    volume.active.is_dirty = True
    volume.unregister_client(fs.store)
    volume.sync()
    problems = FileSystem(volume.committed).check().problems
    assert any("counts up to 1073741823, and the inode file ends before" in problem for problem in problems)
