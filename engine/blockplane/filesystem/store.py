"""The store: inodes, directories, file contents and attributes of one state, without paths.

Paths, open files, put, get and check are built on it. On a volume it is the client that consistency points flush.
"""

from __future__ import annotations

import contextlib
import stat
import threading
import time
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from blockplane.filesystem import content
from blockplane.filesystem.attributes import MAX_ATTRIBUTES_BYTES, decode_attributes, encode_attributes
from blockplane.filesystem.directory import Directory, Entry
from blockplane.filesystem.errors import (
    REMOVED,
    ExistsError,
    NotADirectoryPathError,
    ReadOnlyPathError,
    StaleHandleError,
    TooLargeError,
    damaged,
)
from blockplane.filesystem.inode import FLAG_ATTRIBUTES, INLINE_ATTRIBUTE_BYTES, Inode
from blockplane.filesystem.inode_table import InodeTable
from blockplane.filesystem.names import TARGET_BYTES, path_text
from blockplane.filesystem.room import Room
from blockplane.model import BLOCK_BYTES, BlockSource, NoSpaceError
from blockplane.volume.codec import FORM_EMPTY, TreeRoot
from blockplane.volume.features import Features
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrored import refusal_of, write_hint
from blockplane.volume.points import Points
from blockplane.volume.snapshots import Snapshot
from blockplane.volume.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from blockplane.volume.tree import BlockTree


Source = LiveVolume | Snapshot | State | BlockSource

# What a small change costs until it is flushed: an inode block, rounded to what an Inode object takes in memory.
_CHANGE_BYTES = 1024
# A long write holds the lock for this much at a time, so that a consistency point can come between.
WRITE_BYTES = 8 << 20
MAX_LINKS = 1 << 31


class Store:
    """See the module.

    Notes
    -----
    Public methods take `lock`, which on a volume is the volume's own: a consistency point sees whole changes only.
    """

    @classmethod
    def of(cls, source: Source) -> Store:
        """Return the store of a source; all file systems over one open volume share theirs, and so what it buffers."""
        if not isinstance(source, LiveVolume):
            return cls(source)
        with source.lock:
            found = _live_stores.get(id(source))
            if found is None or found.volume is not source:
                found = _live_stores[id(source)] = cls(source)
            return found

    def __init__(self, source: Source) -> None:
        self.volume = source if isinstance(source, LiveVolume) else None
        self._snapshot = source if isinstance(source, Snapshot) else None
        self.lock: threading.RLock = self.volume.lock if self.volume is not None else threading.RLock()
        self.state = _state_of(source)
        self.epoch = 0
        _features_of(source).require_known("reading", _name_of(source))
        self._open_pins: list[contextlib.AbstractContextManager[None]] = []
        with self.lock:
            self._load()
        if self.volume is not None:
            self.volume.register_client(self)

    @property
    def is_writable(self) -> bool:
        """Whether the source is a live volume."""
        return self.volume is not None and self.volume.writable

    def _load(self) -> None:
        self.inodes = InodeTable(self.state.inode_file)
        self._make_tree: Callable[[TreeRoot], BlockTree] = (
            self.volume.new_tree if self.volume is not None else self.state.tree
        )
        self.room = Room(self.volume, self.inodes)
        self._reaped = False

    # --- consistency points ---

    def flush(self, volume: Points) -> None:
        """Push everything buffered into trees and the inode file; the volume calls it when a CP begins."""
        dirty = self.inodes.dirty
        if dirty:
            volume.active.is_dirty = True
        for inode in dirty:
            if inode.directory is not None:
                inode.directory.flush()
            tree = inode.tree
            if tree is not None:
                tree.size_bytes = inode.size_bytes
                tree.flush()
                if inode.directory is None and not inode.n_open:
                    inode.root, inode.tree = tree.root if tree.root.form != FORM_EMPTY else None, None
        self.inodes.write_back()
        if not self.inodes.is_new:
            volume.active.root.n_inodes, volume.active.root.next_inode = self.inodes.n_inodes, self.inodes.stop
        self.room.flushed()

    def reload(self) -> None:
        """Forget everything in memory; the volume calls it after a rollback or receive."""
        assert self.volume is not None
        self.state = self.volume.active
        self.epoch += 1
        self._load()

    def pinned(self) -> contextlib.AbstractContextManager[None]:
        """Keep a snapshot from being deleted, and its blocks from being reused, while it is read at length."""
        if self._snapshot is None:
            return contextlib.nullcontext()
        return self._snapshot.volume.pin(self._snapshot.record.id)

    def require_writable(self, path: str) -> None:
        """Raise ReadOnlyPathError on a snapshot, stream or mirror; reclaim what a crash left the first time."""
        if self.volume is None or not self.volume.writable:
            raise ReadOnlyPathError(path, hint="write to the live file system of a volume")
        why = refusal_of(self.volume.local.root.mirror)
        if why is not None:
            raise ReadOnlyPathError(path, f"{path}: cannot be written: {why}", write_hint(self.volume))
        self.volume.features.require_known("writing", str(self.volume.path))
        if not self._reaped:
            self._reaped = True
            if not self.inodes.is_new:
                for inode in self.inodes.orphans():
                    self.inodes.remove_orphan(inode)
                    self.destroy(inode)

    def changed(self, n_bytes: int = _CHANGE_BYTES) -> None:
        """Tell the volume what was buffered; a CP may happen here, so everything must be consistent."""
        if self.volume is not None:
            self.volume.mark_dirty(n_bytes)
            if self.room.must_commit:
                self.volume.sync()

    def touch(self, inode: Inode) -> None:
        """Have an inode written, its change time now."""
        inode.ctime_ns = time.time_ns()
        self.inodes.mark_dirty(inode)

    # --- content ---

    def tree(self, inode: Inode) -> BlockTree | None:
        """Return the tree of an inode's content, or None where it has none.

        The inode keeps it only while it is open, changed or a directory: its cached blocks go with it.
        """
        if inode.tree is not None or inode.root is None:
            return inode.tree
        tree = self._make_tree(inode.root)
        if inode.n_open or inode.dirty or inode.is_directory:
            inode.tree = tree
        return tree

    def writable_tree(self, inode: Inode) -> BlockTree:
        """Return the tree of an inode's content, made when there is none; inline bytes move into it."""
        tree = self.tree(inode)
        if tree is None:
            tree = self._make_tree(TreeRoot())
            content.leave_inline(inode, tree)  # where there is no room the inode stays inline, and without a tree
            inode.tree = tree
        return tree

    def read_into(self, inode: Inode, offset: int, out: memoryview) -> int:
        """Read into out (writable bytes); return how many bytes there were before the end."""
        with self.lock:
            return content.read_into(inode, self.tree(inode), offset, out)

    def read(self, inode: Inode, offset: int = 0, n_bytes: int | None = None) -> bytes:
        """Return bytes of the content."""
        with self.lock:
            size = max(0, inode.size_bytes - offset)
            out = np.empty(size if n_bytes is None else min(size, n_bytes), np.uint8)
            self.read_into(inode, offset, out.data)
            return out.tobytes()

    def write(self, inode: Inode, offset: int, data: memoryview) -> None:
        """Write data at an offset; a long write becomes several changes, each atomic in a CP."""
        for start in range(0, len(data), WRITE_BYTES):
            with self.lock:
                self.require_current(inode)  # the live state may be another since the piece before
                part = data[start : start + WRITE_BYTES]
                try:
                    self.write_part(inode, offset + start, part)
                except NoSpaceError:
                    self.room.make(len(part))
                    self.write_part(inode, offset + start, part)
                self.changed(min(len(data) - start, WRITE_BYTES, content.MAX_BUFFERED_BYTES) + _CHANGE_BYTES)

    def require_there(self, inode: Inode) -> None:
        """Raise FileSystemDamagedError for an inode that was removed since it was looked up; with the lock held."""
        if not inode.mode:
            raise damaged(REMOVED)

    def link_target(self, inode: Inode) -> bytes:
        """Return a symbolic link's target; FileSystemDamagedError: it is none."""
        with self.lock:
            self.require_there(inode)
            if not 0 < inode.size_bytes <= TARGET_BYTES:
                raise damaged(f"inode {inode.number}: a symbolic link of {inode.size_bytes} bytes")
            target = self.read(inode)
            if b"\0" in target:
                raise damaged(f"inode {inode.number}: a symbolic link's target holds NUL")
            return target

    def require_current(self, inode: Inode) -> None:
        """Raise StaleHandleError for an inode of a state that is not live any more; the caller holds the lock."""
        if not self.inodes.has(inode):
            raise StaleHandleError(f"inode {inode.number}")

    def write_part(self, inode: Inode, offset: int, data: memoryview) -> None:
        """Write as one change, of which the volume is not told; the caller holds the lock."""
        array = np.frombuffer(data, np.uint8)
        self.inodes.mark_dirty(inode)
        if content.stays_inline(inode, offset + len(array)):
            content.write_inline(inode, offset, array)
        else:
            with self.growing(inode) as tree:
                content.write(inode, tree, offset, array)
        inode.mtime_ns = inode.ctime_ns = time.time_ns()

    @contextlib.contextmanager
    def growing(self, inode: Inode) -> Iterator[BlockTree]:
        """Give the tree to what writes and sets the size last: where it breaks off, nothing is left behind the end."""
        tree = self.writable_tree(inode)
        try:
            yield tree
        except BaseException:
            with self.room.removing():
                content.drop_behind(inode, tree)
            raise

    def truncate(self, inode: Inode, size_bytes: int) -> None:
        """Set the size; what lies beyond the old one is a hole."""
        with self.lock:
            self.room.admit(removes=size_bytes < inode.size_bytes)
            self.require_current(inode)
            self.set_size(inode, size_bytes)
            inode.mtime_ns = inode.ctime_ns = time.time_ns()
            self.changed()

    def set_size(self, inode: Inode, size_bytes: int) -> None:
        """Set the size without a word to the volume; the caller holds the lock and sets the times."""
        if size_bytes < 0:
            raise TooLargeError("", f"a size cannot be negative ({size_bytes})")
        self.inodes.mark_dirty(inode)
        if inode.inline is not None and not content.stays_inline(inode, size_bytes):
            self.writable_tree(inode)
        with self.room.removing():
            content.truncate(inode, self.tree(inode), size_bytes)
        if inode.tree is not None and not inode.n_blocks and not size_bytes:
            inode.tree.punch(0, inode.tree.capacity_blocks())
            inode.tree = inode.root = None

    def data_ranges(self, inode: Inode) -> list[tuple[int, int]]:
        """Return the byte ranges that are no holes."""
        with self.lock:
            return content.data_ranges(inode, self.tree(inode))

    # --- directories ---

    def directory(self, inode: Inode) -> Directory:
        """Return a directory's entries; NotADirectoryPathError: it is something else."""
        found = inode.directory
        if found is None:
            if not inode.is_directory:
                raise NotADirectoryPathError(f"inode {inode.number}")
            tree = self.tree(inode)
            if tree is None:
                tree = inode.tree = self._make_tree(TreeRoot())
            if inode.inline is not None or tree.size_bytes // BLOCK_BYTES > max(tree.capacity_blocks(), 1):
                raise damaged(f"directory {inode.number}: its size is impossible")
            found = inode.directory = Directory(inode.number, tree)
        return found

    def lookup(self, parent: Inode, name: bytes) -> Inode | None:
        """Return the inode of an entry, or None."""
        entry = self.directory(parent).find(name)
        return self.inode_of(entry) if entry is not None else None

    def inode_of(self, entry: Entry) -> Inode:
        """Return an entry's inode; FileSystemDamagedError: the two disagree."""
        inode = self.inodes.get(entry.inode)
        if inode.mode >> 12 != entry.type or inode.flags & FLAG_ATTRIBUTES:
            raise damaged(f"entry {path_text(entry.name)!r} and inode {entry.inode} disagree about its type")
        return inode

    def add_entry(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Enter an inode under a name and count the link; ExistsError: the name is taken."""
        directory = self.directory(parent)
        if inode.nlink >= MAX_LINKS:
            raise TooLargeError(path_text(name), f"{path_text(name)}: the file has too many links")
        if not directory.insert(name, inode.number, inode.mode >> 12):
            raise ExistsError(path_text(name))
        parent.n_entries += 1
        inode.nlink += 2 if inode.is_directory else 1
        if inode.is_directory:
            inode.parent = parent.number
            parent.nlink += 1
        elif inode.nlink == 1:
            inode.parent = parent.number
        self._entries_changed(parent, directory)
        self.inodes.mark_dirty(inode)

    def remove_entry(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Remove an entry and the link; the inode goes away with its last one, unless it is open."""
        directory = self.directory(parent)
        if not directory.remove(name):
            raise damaged(f"directory {parent.number}: an entry vanished")
        parent.n_entries -= 1
        self._entries_changed(parent, directory)
        self.drop_link(parent, inode)

    def drop_link(self, parent: Inode, inode: Inode) -> None:
        """Count a link less after its entry went; the inode goes away with its last one, unless it is open."""
        inode.nlink -= 2 if inode.is_directory else 1
        if inode.is_directory:
            parent.nlink -= 1
        elif inode.parent == parent.number:
            inode.parent = 0  # which other directory holds it is not known
        self.touch(inode)
        if inode.nlink <= 0:
            if inode.n_open:
                self.inodes.add_orphan(inode)
            else:
                self.destroy(inode)

    def replace_entry(self, parent: Inode, name: bytes, inode: Inode) -> None:
        """Point an entry at another inode; links are the caller's."""
        directory = self.directory(parent)
        directory.replace(name, inode.number, inode.mode >> 12)
        self._entries_changed(parent, directory)

    def fill_directory(self, parent: Inode, children: list[tuple[bytes, Inode]]) -> None:
        """Enter fresh inodes into an empty directory in one go; all names distinct."""
        directory = self.directory(parent)
        directory.build(Entry(name, inode.number, inode.mode >> 12) for name, inode in children)
        for _, inode in children:
            inode.nlink += 2 if inode.is_directory else 1
            inode.parent = parent.number
            parent.nlink += inode.is_directory
            self.inodes.mark_dirty(inode)
        parent.n_entries += len(children)
        self._entries_changed(parent, directory)

    def _entries_changed(self, parent: Inode, directory: Directory) -> None:
        self.room.note_nodes(parent.number, directory.n_dirty)
        parent.size_bytes = directory.size_bytes
        parent.n_blocks = directory.n_nodes
        parent.mtime_ns = parent.ctime_ns = time.time_ns()
        self.inodes.mark_dirty(parent)

    # --- inodes ---

    def create(self, mode: int, parent: Inode, *, uid: int = 0, gid: int = 0, rdev: int = 0) -> Inode:
        """Return a fresh inode, not yet entered anywhere; NoSpaceError: the volume is full."""
        self.room.require()
        inode = self.inodes.allocate(mode, parent.number, time.time_ns())
        inode.uid, inode.gid, inode.rdev = uid, gid, rdev
        return inode

    def destroy(self, inode: Inode) -> None:
        """Give back an inode's attributes, blocks and number; no entry may name it."""
        if inode.attribute_inode:
            self.destroy(self._attribute_inode(inode))
        inode.directory = None
        tree = self.tree(inode)
        if tree is not None:
            with self.room.removing():
                tree.punch(0, tree.capacity_blocks())
        self.inodes.free(inode)

    def opened(self, inode: Inode) -> None:
        """Count an open file on the inode; a snapshot is pinned while a file of it is open."""
        pin = self.pinned()
        pin.__enter__()
        self._open_pins.append(pin)
        inode.n_open += 1

    def closed(self, inode: Inode) -> None:
        """Count an open file less; an inode without links goes away with the last one."""
        with self.lock:
            inode.n_open -= 1
            if not inode.n_open and not inode.nlink and inode.mode and self.is_writable:
                self.inodes.remove_orphan(inode)
                self.destroy(inode)
                self.changed()
        self._open_pins.pop().__exit__(None, None, None)

    # --- attributes ---

    def _attribute_inode(self, inode: Inode) -> Inode:
        holder = self.inodes.get(inode.attribute_inode)
        if not holder.flags & FLAG_ATTRIBUTES or holder.parent != inode.number or holder.attribute_inode:
            raise damaged(f"inode {inode.number}: its attribute inode {holder.number} is not one")
        return holder

    def attributes(self, inode: Inode) -> dict[bytes, bytes]:
        """Return all extended attributes, a fresh dict in order of names."""
        with self.lock:
            data = inode.attributes
            if inode.attribute_inode:
                holder = self._attribute_inode(inode)
                if holder.size_bytes > MAX_ATTRIBUTES_BYTES:
                    raise damaged(f"inode {inode.number}: its attributes are impossibly large")
                data = self.read(holder)
            return decode_attributes(data, inode.number) if data else {}

    def set_attributes(self, inode: Inode, attributes: dict[bytes, bytes]) -> int:
        """Replace all extended attributes, or none of them where that fails.

        Returns
        -------
        How many blocks they were written to; none where they lie in an inode.

        Raises
        ------
        TooLargeError: more than 1 MiB in all. NoSpaceError: the volume is full.
        """
        data = encode_attributes(attributes)
        if len(data) > MAX_ATTRIBUTES_BYTES:
            raise TooLargeError("", f"the attributes of one file are limited to {MAX_ATTRIBUTES_BYTES} bytes")
        with self.lock:
            old = self._attribute_inode(inode) if inode.attribute_inode else None
            holder = self._make_holder(inode, data) if len(data) > INLINE_ATTRIBUTE_BYTES else None
            inode.attribute_inode, inode.attributes = (holder.number, b"") if holder is not None else (0, data)
            self.touch(inode)
            if old is not None:
                self.destroy(old)
            return holder.n_blocks if holder is not None else 0

    def _make_holder(self, inode: Inode, data: bytes) -> Inode:
        """Return a fresh inode that holds attributes of another, which does not name it yet."""
        if not inode.attribute_inode:  # else one goes for the one that comes
            self.room.require()
        holder = self.inodes.allocate(stat.S_IFREG, inode.number, time.time_ns())
        holder.flags, holder.nlink = FLAG_ATTRIBUTES, 1
        try:
            self.write_part(holder, 0, memoryview(data))
        except BaseException:
            self.destroy(holder)
            raise
        return holder


#: by the id of the volume, which keeps its store alive; guarded by that volume's lock
_live_stores: WeakValueDictionary[int, Store] = WeakValueDictionary()


def _state_of(source: Source) -> State:
    """Return the state that a source shows."""
    if isinstance(source, LiveVolume):
        source.require_live()
        return source.active
    if isinstance(source, Snapshot):
        return source.state
    return source if isinstance(source, State) else State.open(source)


def _features_of(source: Source) -> Features:
    """Return what the states of a source need: a block source may say it too."""
    volume = source.volume if isinstance(source, Snapshot) else source
    found: Features = getattr(volume, "features", Features())
    return found


def _name_of(source: Source) -> str:
    volume = source.volume if isinstance(source, Snapshot) else source
    return str(volume.path) if isinstance(volume, LiveVolume) else "the stream"
