"""What `stat` and `scandir` return."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Protocol

from blockplane.filesystem.inode import Inode
from blockplane.model import BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class StatResult:
    """The fields of `os.stat_result` under the same names, and birth time, DOS attributes, generation."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_rdev: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_birthtime_ns: int
    dos_attributes: int
    generation: int
    st_dev: int = 0
    st_blksize: int = BLOCK_BYTES

    @property
    def st_atime(self) -> float:
        """Last access as noted, seconds."""
        return self.st_atime_ns / 1e9

    @property
    def st_mtime(self) -> float:
        """Last change of content, seconds."""
        return self.st_mtime_ns / 1e9

    @property
    def st_ctime(self) -> float:
        """Last change of the inode, seconds."""
        return self.st_ctime_ns / 1e9


def stat_of(inode: Inode) -> StatResult:
    """Return an inode's stat; st_blocks counts 512 bytes, as on the host."""
    return StatResult(
        inode.mode, inode.number, inode.nlink, inode.uid, inode.gid, inode.size_bytes,
        _host_device(inode.rdev), inode.n_blocks * (BLOCK_BYTES // 512),
        inode.atime_ns, inode.mtime_ns, inode.ctime_ns, inode.created_ns,
        inode.dos_attributes, inode.generation,
    )  # fmt: skip


def pack_device(rdev: int) -> int:
    """Return what an inode stores for a host's device number: major in the upper 32 bits, minor in the lower."""
    return os.major(rdev) << 32 | os.minor(rdev)


def _host_device(stored: int) -> int:
    return os.makedev(stored >> 32, stored & 0xFFFFFFFF) if stored else 0


class StatCall(Protocol):
    """`Queries.stat`."""

    def __call__(self, path: str, *, follow_symlinks: bool) -> StatResult:
        """Return the stat of a path."""
        ...


class DirEntry:
    """An entry as `scandir` gives it; the inode is looked up only when asked for."""

    __slots__ = ("_stat", "inode_number", "kind", "name", "path")

    def __init__(self, name: str, path: str, inode_number: int, kind: int, stat_call: StatCall) -> None:
        self.name = name
        self.path = path
        self.inode_number = inode_number
        self.kind = kind
        self._stat = stat_call

    def inode(self) -> int:
        """Return the inode number."""
        return self.inode_number

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory, or a link to one."""
        return self._is(stat.S_IFDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file, or a link to one."""
        return self._is(stat.S_IFREG, follow_symlinks)

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return self.kind == stat.S_IFLNK

    def stat(self, *, follow_symlinks: bool = True) -> StatResult:
        """Return the stat of the entry, or of what it links to."""
        return self._stat(self.path, follow_symlinks=follow_symlinks)

    def _is(self, kind: int, follow: bool) -> bool:
        if not (follow and self.is_symlink()):
            return self.kind == kind
        try:
            return stat.S_IFMT(self._stat(self.path, follow_symlinks=True).st_mode) == kind
        except OSError:
            return False

    def __repr__(self) -> str:
        return f"<DirEntry {self.name!r}>"
