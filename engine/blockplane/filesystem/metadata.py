"""What an inode takes from the host besides its content: mode, owner, times, attributes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from blockplane.filesystem.inode import Inode, clamp_time

if TYPE_CHECKING:
    from blockplane.filesystem.hostread import Attributes, HostEntry
    from blockplane.filesystem.store import Store


def set_times(inode: Inode, status: os.stat_result) -> None:
    """Give an inode the host's access and modification time."""
    inode.atime_ns, inode.mtime_ns = clamp_time(status.st_atime_ns), clamp_time(status.st_mtime_ns)


def set_metadata(store: Store, inode: Inode, entry: HostEntry) -> int:
    """Give an inode the host's mode, owner, times and attributes; nothing where only the time of access differs.

    Returns
    -------
    How many blocks attributes were written to.
    """
    n_blocks, status = 0, entry.stat
    if _other_attributes(store, inode, entry.attributes):
        n_blocks = store.set_attributes(inode, entry.attributes)
    elif _plain(inode) == _host_plain(status):
        return 0
    inode.mode = inode.mode & ~0o7777 | status.st_mode & 0o7777
    inode.uid, inode.gid = status.st_uid, status.st_gid
    set_times(inode, status)
    store.touch(inode)
    return n_blocks


def is_same_metadata(store: Store, inode: Inode, entry: HostEntry) -> bool:
    """Whether `set_metadata` has nothing to do."""
    return _plain(inode) == _host_plain(entry.stat) and not _other_attributes(store, inode, entry.attributes)


def keeps_time(status: os.stat_result) -> bool:
    """Whether the record holds a host's time of modification as it is; that of the access is nobody's loss."""
    return clamp_time(status.st_mtime_ns) == status.st_mtime_ns


def _other_attributes(store: Store, inode: Inode, attributes: Attributes) -> bool:
    has_any = attributes or inode.attributes or inode.attribute_inode
    return bool(has_any) and store.attributes(inode) != attributes


def _plain(inode: Inode) -> tuple[int, ...]:
    return inode.mode & 0o7777, inode.uid, inode.gid, inode.mtime_ns


def _host_plain(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mode & 0o7777, status.st_uid, status.st_gid, clamp_time(status.st_mtime_ns)
