"""A file system read back in the form of the model's description."""

from __future__ import annotations

import os
import stat

from blockplane.filesystem import FileSystem

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def times_of(fs: FileSystem, path: str) -> tuple[int, ...]:
    """The times that are to stay as they are: of access, change and creation."""
    found = fs.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns, found.st_birthtime_ns


def describe(fs: FileSystem) -> dict[str, tuple[object, ...]]:
    """All that makes two trees equal, by path; hard links by the inode they share."""
    groups: dict[int, list[str]] = {}
    found: dict[str, tuple[object, ...]] = {}
    paths = ["/"]
    for path in paths:
        status = fs.lstat(path)
        groups.setdefault(status.st_ino, []).append(path)
        kind = KINDS[stat.S_IFMT(status.st_mode)]
        if kind == "dir":
            paths += [f"{path.rstrip('/')}/{name}" for name in fs.listdir(path)]
        data = fs.read_bytes(path) if kind == "file" else b""
        if kind == "file":
            assert status.st_size == len(data), path
        target = os.fsencode(fs.readlink(path)) if kind == "symlink" else b""
        names = fs.listxattr(path, follow_symlinks=False)
        attributes = tuple((name, fs.getxattr(path, name, follow_symlinks=False)) for name in sorted(names))
        found[path] = (
            kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, times_of(fs, path), data, target,
            status.st_rdev, attributes, groups[status.st_ino],
        )  # fmt: skip
    return {path: (*entry[:-1], tuple(sorted(groups_of))) for path, entry in found.items() for groups_of in [entry[-1]]}


def data_ranges(fs: FileSystem) -> dict[str, list[tuple[int, int]]]:
    """The byte ranges of every regular file that are no holes."""
    paths, found = ["/"], {}
    for path in paths:
        mode = fs.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            paths += [f"{path.rstrip('/')}/{name}" for name in fs.listdir(path)]
        elif stat.S_ISREG(mode):
            found[path] = fs.data_ranges(path)
    return found
