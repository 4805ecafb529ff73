"""Whether two trees, on the host or in a volume, are equal: names, types, modes, owners, times, bytes, holes, links,
device numbers, extended attributes and ACLs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields

from blockplane.filesystem import FileSystem

BLOCK = 4096
NOT_SETTABLE = ("security.", "trusted.", "system.nfs4")


@dataclass(frozen=True)
class Item:
    """What counts of one name; links: all names of the same inode within the tree; data: blocks that are no holes."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    size: int
    digest: str
    data: tuple[tuple[int, int], ...]
    links: tuple[str, ...]
    device: int
    attributes: tuple[tuple[str, bytes], ...]
    extra: tuple[int, ...] = ()


Tree = dict[str, Item]
_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
}  # fmt: skip


def host_tree(top: str | os.PathLike[str]) -> Tree:
    """Describe a tree of the host by paths relative to its top, which is `.`."""
    return _with_links({name: _host_item(path) for name, path in _host_paths(os.fspath(top), ".")})


def volume_tree(fs: FileSystem, top: str = "/", *, between_volumes: bool = False) -> Tree:
    """Describe a tree of a volume, snapshot or stream; between volumes also what no host keeps."""
    found = {}
    for name, path in _volume_paths(fs, top, "."):
        found[name] = _volume_item(fs, path, between_volumes)
    return _with_links(found)


def differences(left: Tree, right: Tree, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Name what differs, a line each; ignore: fields of Item."""
    lines = [f"{name}: only left" for name in sorted(left.keys() - right.keys())]
    lines += [f"{name}: only right" for name in sorted(right.keys() - left.keys())]
    for name in sorted(left.keys() & right.keys()):
        for field in fields(Item):
            a, b = getattr(left[name], field.name), getattr(right[name], field.name)
            if field.name not in ignore and a != b:
                lines.append(f"{name}: {field.name} {a!r} != {b!r}")
    return lines


def _host_paths(path: str, name: str) -> Iterator[tuple[str, str]]:
    yield name, path
    if os.path.isdir(path) and not os.path.islink(path):
        for child in sorted(os.listdir(path)):
            yield from _host_paths(os.path.join(path, child), child if name == "." else f"{name}/{child}")


def _volume_paths(fs: FileSystem, path: str, name: str) -> Iterator[tuple[str, str]]:
    yield name, path
    if stat.S_ISDIR(fs.lstat(path).st_mode):
        for child in fs.listdir(path):
            yield from _volume_paths(fs, f"{path.rstrip('/')}/{child}", child if name == "." else f"{name}/{child}")


def _host_item(path: str) -> tuple[tuple[int, int], Item]:
    status = os.lstat(path)
    data = b""
    ranges: list[tuple[int, int]] = []
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            data = file.read()
            ranges = _host_ranges(file.fileno(), status.st_size)
    elif stat.S_ISLNK(status.st_mode):
        data = os.fsencode(os.readlink(path))
    names = os.listxattr(path, follow_symlinks=False)
    attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    rdev = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
    return (status.st_dev, status.st_ino), _item(status, data, ranges, rdev, attributes, ())


def _volume_item(fs: FileSystem, path: str, between_volumes: bool) -> tuple[tuple[int, int], Item]:
    status = fs.lstat(path)
    data = b""
    ranges: list[tuple[int, int]] = []
    if stat.S_ISREG(status.st_mode):
        data, ranges = fs.read_bytes(path), fs.data_ranges(path)
    elif stat.S_ISLNK(status.st_mode):
        data = os.fsencode(fs.readlink(path))
    names = fs.listxattr(path, follow_symlinks=False)
    attributes = {name: fs.getxattr(path, name, follow_symlinks=False) for name in names}
    extra = (status.st_atime_ns, status.st_birthtime_ns, status.dos_attributes) if between_volumes else ()
    if not between_volumes:
        attributes = {name: value for name, value in attributes.items() if not name.startswith("system.nfs4")}
    return (0, status.st_ino), _item(status, data, ranges, status.st_rdev, attributes, extra)


def _item(status, data, ranges, rdev, attributes, extra) -> Item:  # type: ignore[no-untyped-def]
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    is_directory = kind == "directory"
    return Item(
        kind, stat.S_IMODE(status.st_mode) if kind != "symlink" else 0o777, (status.st_uid, status.st_gid),
        status.st_mtime_ns, 0 if is_directory else status.st_size, hashlib.sha256(data).hexdigest(), _blocks(ranges),
        (), rdev, tuple(sorted(attributes.items())), extra,
    )  # fmt: skip


def _host_ranges(fd: int, size: int) -> list[tuple[int, int]]:
    ranges = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        at = os.lseek(fd, start, os.SEEK_HOLE)
        ranges.append((start, at))
    return ranges


def _blocks(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Round byte ranges out to blocks and join what touches."""
    blocks: list[tuple[int, int]] = []
    for start, stop in ranges:
        first, last = start // BLOCK, -(-stop // BLOCK)
        if blocks and first <= blocks[-1][1]:
            blocks[-1] = blocks[-1][0], max(last, blocks[-1][1])
        else:
            blocks.append((first, last))
    return tuple(blocks)


def _with_links(found: dict[str, tuple[tuple[int, int], Item]]) -> Tree:
    groups: dict[tuple[int, int], list[str]] = {}
    for name, (key, item) in found.items():
        if item.kind != "directory":
            groups.setdefault(key, []).append(name)
    linked = {name: tuple(sorted(names)) for names in groups.values() if len(names) > 1 for name in names}
    return {
        name: Item(**{**{f.name: getattr(item, f.name) for f in fields(Item)}, "links": linked.get(name, ())})
        for name, (_, item) in found.items()
    }
