"""put: a tree of the host into a volume, in one pass: the host is walked and read ahead, its bytes go straight into the
buffers that the disks are written from.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockplane.filesystem.datain import DataIn, Job
from blockplane.filesystem.directory import Entry
from blockplane.filesystem.errors import (
    InvalidRequestError,
    IsADirectoryPathError,
    NotADirectoryPathError,
    NotFoundError,
)
from blockplane.filesystem.exclude import Exclusions
from blockplane.filesystem.hostread import HostEntry, Listing, below, host_entry, walk_ahead
from blockplane.filesystem.inode import Inode, clamp_time
from blockplane.filesystem.names import AnyPath, check_name, path_bytes, path_text
from blockplane.filesystem.stat_result import pack_device
from blockplane.filesystem.update import Updater
from blockplane.model import BLOCK_BYTES, BlockplaneError, Progress, ProgressEvent, ignore_progress

if TYPE_CHECKING:
    from blockplane.filesystem.changes import Changes
    from blockplane.filesystem.paths import Place
    from blockplane.filesystem.store import Store

# A consistency point may come after this much: all of it is then entered in its directories. The lock is held
# meanwhile, 50 to 100 ms; the pipeline runs empty each time, which at 64 MiB costs below 2 %.
_BATCH_BYTES = 64 << 20
_BATCH_ENTRIES = 4096


@dataclass(slots=True)
class PutReport:
    """What a put did.

    skipped: (host path, reason) of what could not be read, which cp would complain about too, and was left out.
    changed: (host path, reason) of files that went in as they were read, and changed while the tree was copied: some
    bytes may be older than others, and what grew behind the listed size was left out.
    """

    n_files: int = 0
    n_directories: int = 0
    n_others: int = 0
    n_bytes: int = 0
    n_blocks_written: int = 0
    n_removed: int = 0
    n_excluded: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)


def put(
    fs: Changes,
    source: str | os.PathLike[str],
    dest: AnyPath,
    *,
    update: bool = False,
    delete: bool = False,
    checksum: bool = False,
    exclude: Sequence[AnyPath] = (),
    progress: Progress | None = None,
) -> PutReport:
    """Copy a file or tree of the host into a volume, with all attributes, links and holes.

    Parameters
    ----------
    source : what to copy. dest : where; names as `cp -a`: into it where it is a directory, else as it. A source that
        ends in `/.` gives its content.
    update : dest becomes source's copy; only blocks that differ are written. Without it a file that is in the way is
        replaced.
    delete : with update, remove what source lacks. checksum : with update, compare content though size and time agree.
    exclude : patterns of entries to leave out, and to leave alone where `delete` would remove them; see `exclude`. The
        source itself is never left out.

    Raises
    ------
    InvalidRequestError: a pattern is none. NotFoundError: source, or the directory that is to hold dest, is not there.
    NoSpaceError: the volume is full; what was put so far is there, and can be deleted.

    Notes
    -----
    What of the host changes meanwhile is reported, file by file, and the rest goes in.
    Not one change: consistency points come in between. The times of a directory are set when it is complete.
    """
    if (delete or checksum) and not update:
        raise InvalidRequestError(path_text(path_bytes(dest)), "--delete and --checksum go with --update")
    started = time.monotonic()
    raw = os.fsencode(os.fspath(source))
    top = _top_entry(raw)
    exclusions = Exclusions(exclude)
    copy = _CopyIn(fs.store, PutReport(), progress or ignore_progress, started)
    with fs.store.lock:
        fs.store.require_writable(path_text(path_bytes(dest)))
        place = _destination(fs, top, raw, dest, update)
        keeps = functools.partial(_is_excluded, exclusions, top) if exclusions else None
        updater = Updater(fs, copy.report, delete=delete, checksum=checksum, update=update, keeps=keeps)
    copy.run(top, place, updater, exclusions)
    copy.report.seconds = time.monotonic() - started
    return copy.report


def _is_excluded(exclusions: Exclusions, top: HostEntry, directory: HostEntry, entry: Entry) -> bool:
    """Whether an entry of a directory that is made equal to one of the host is among those left out."""
    path = below(top, directory.path + b"/" + entry.name)
    return exclusions.excludes(path, entry.type << 12 == stat.S_IFDIR)


def _top_entry(raw: bytes) -> HostEntry:
    path = raw.rstrip(b"/") or b"/"
    try:
        status = os.stat(path) if raw.endswith((b"/", b"/.")) or raw == b"." else os.lstat(path)
        return host_entry(path, os.path.basename(os.path.abspath(path)), status)
    except FileNotFoundError:
        raise NotFoundError(os.fsdecode(raw), f"{os.fsdecode(raw)}: no such file or directory on the host") from None


def _destination(fs: Changes, top: HostEntry, raw: bytes, dest: AnyPath, update: bool) -> Place:
    """Return where the copy goes, by the rules of cp -a."""
    place = fs.resolver.locate(dest)
    takes_content = update or raw.endswith(b"/.") or raw == b"."
    if place.inode is not None and place.inode.is_directory and not (takes_content and top.kind == stat.S_IFDIR):
        check_name(top.name)
        place = fs.resolver.locate(path_bytes(dest).rstrip(b"/") + b"/" + top.name, follow=False)
    text = path_text(path_bytes(dest))
    if place.inode is None:
        fs.resolver.require_name(place, dest)
        if place.must_be_directory and top.kind != stat.S_IFDIR:
            raise NotFoundError(text)
    elif place.inode.is_directory and top.kind != stat.S_IFDIR:
        raise IsADirectoryPathError(text, f"{text}: a directory is not replaced by a file")
    elif not place.inode.is_directory and top.kind == stat.S_IFDIR:
        raise NotADirectoryPathError(text, f"{text}: a file is not replaced by a directory")
    return place


class _Target:
    """A directory that is being filled: fresh children wait here until they are complete and are entered together."""

    __slots__ = ("entry", "inode", "is_fresh", "ready")

    def __init__(self, inode: Inode, entry: HostEntry, is_fresh: bool) -> None:
        self.inode = inode
        self.entry = entry
        self.is_fresh = is_fresh
        self.ready: list[tuple[bytes, Inode]] = []


class _CopyIn:
    """One put in progress."""

    def __init__(self, store: Store, report: PutReport, progress: Progress, started: float) -> None:
        self.store = store
        self.report = report
        self.data = DataIn(store, report)
        self._progress = progress
        self._started = started
        self._targets: dict[bytes, _Target] = {}
        self._touched: dict[int, _Target] = {}
        self._links: dict[tuple[int, int], Inode] = {}
        #: by inode number: further names, this batch, of a file that is perhaps still being read
        self._further_names: dict[int, list[bytes]] = {}
        self._n_entries = 0

    def run(self, top: HostEntry, place: Place, updater: Updater, exclusions: Exclusions) -> None:
        """Copy everything; the lock is let go between batches."""
        store = self.store
        try:
            store.lock.acquire()
            parent = _Target(place.parent, top, is_fresh=False)
            top.name = place.name
            if top.kind != stat.S_IFDIR:
                self._place(parent, top, place.inode, updater)
                self._end_batch()
                return
            self._enter_top(top, place)
            with contextlib.closing(walk_ahead(top, exclusions)) as listings:
                for listing in listings:
                    self._fill(listing, updater)
            self._end_batch()
        except BaseException:
            # Whatever it was: places that were taken are filled, and what is complete gets its name.
            with contextlib.suppress(BlockplaneError):
                self.data.abandon()
            with contextlib.suppress(BlockplaneError):
                self._enter_ready()
            raise
        finally:
            self.data.close()
            store.lock.release()

    def _enter_top(self, top: HostEntry, place: Place) -> None:
        inode = place.inode
        if inode is None:
            inode = self._new_inode(top, place.parent)
            self.store.add_entry(place.parent, place.name, inode)
            self._targets[top.path] = _Target(inode, top, is_fresh=True)
        else:
            self._targets[top.path] = _Target(inode, top, is_fresh=False)
        self.report.n_directories += 1

    # --- one directory ---

    def _fill(self, listing: Listing, updater: Updater) -> None:
        """Copy the children of a directory; subdirectories are entered, and filled by their own listings."""
        report = self.report
        report.skipped += listing.skipped
        report.n_excluded += listing.n_excluded
        target = self._targets.pop(listing.entry.path, None)
        if target is None:
            return
        if not target.is_fresh:
            updater.prepare(target.inode, listing)
        for child in listing.children:
            existing = None if target.is_fresh else self.store.lookup(target.inode, child.name)
            self._place(target, child, existing, updater)
            self._n_entries += 1
            if self.data.n_bytes_batch >= _BATCH_BYTES or self._n_entries >= _BATCH_ENTRIES:
                self._end_batch()
        self._touched[target.inode.number] = target

    def _place(self, target: _Target, child: HostEntry, existing: Inode | None, updater: Updater) -> None:
        """Copy one entry into a directory."""
        status = child.stat
        key = status.st_dev, status.st_ino
        if child.kind == stat.S_IFDIR:
            self._place_directory(target, child, existing, updater)
            return
        linked = self._links.get(key) if status.st_nlink > 1 else None
        if linked is not None and not linked.mode:  # somebody removed it between two batches
            linked = None
        if existing is not None:
            existing, is_copy = updater.settle(target.inode, child, existing, linked)
            if existing is not None:
                if is_copy and status.st_nlink > 1:
                    self._links[key] = existing
                return
        if linked is not None:
            self._enter_link(target, child, linked)
            return
        self._ensure_room(status.st_size)
        inode = self._new_inode(child, target.inode)
        if status.st_nlink > 1:
            self._links[key] = inode
        self._count(child)
        if child.kind == stat.S_IFREG and status.st_size >= _BATCH_BYTES:
            self._place_large(target, child, inode)
        elif child.kind == stat.S_IFREG:
            self.data.submit(Job(child.path, inode, status, lambda ok: self._filled(target, child, inode, ok)))
        else:
            target.ready.append((child.name, inode))
            self._touched[target.inode.number] = target

    def _place_large(self, target: _Target, child: HostEntry, inode: Inode) -> None:
        """Copy a file over several batches; it is entered first: no consistency point holds it without a name."""
        target.ready.append((child.name, inode))
        self._touched[target.inode.number] = target
        self._end_batch()

        def between() -> None:
            if self.data.n_bytes_batch >= _BATCH_BYTES:
                self._end_batch()

        def done(ok: bool) -> None:
            if ok:
                set_times(inode, child.stat)
                self.store.inodes.mark_dirty(inode)
            else:
                self._forget(child, inode)
                self.store.remove_entry(target.inode, child.name, inode)

        self.data.submit(Job(child.path, inode, child.stat, done), between)

    def _place_directory(self, target: _Target, child: HostEntry, existing: Inode | None, updater: Updater) -> None:
        if existing is not None and not existing.is_directory:
            existing = updater.make_way(target.inode, child, existing)
            if existing is not None:
                return
        self.report.n_directories += 1
        if existing is not None:
            self._targets[child.path] = _Target(existing, child, is_fresh=False)
            return
        inode = self._new_inode(child, target.inode)
        target.ready.append((child.name, inode))
        self._touched[target.inode.number] = target
        self._targets[child.path] = _Target(inode, child, is_fresh=True)

    def _enter_link(self, target: _Target, child: HostEntry, linked: Inode) -> None:
        """Enter another name of a file that was copied already, or is being read."""
        target.ready.append((child.name, linked))
        self._touched[target.inode.number] = target
        self._further_names.setdefault(linked.number, []).append(child.path)

    def _filled(self, target: _Target, child: HostEntry, inode: Inode, ok: bool) -> None:
        """A file's content is in place, or could not be read."""
        if ok:
            set_times(inode, child.stat)
            target.ready.append((child.name, inode))
            self._touched[target.inode.number] = target
        else:
            self._forget(child, inode)
            self.store.destroy(inode)

    def _forget(self, child: HostEntry, inode: Inode) -> None:
        """A file could not be read: its further names so far go with it, and those to come are files of their own."""
        self._links.pop((child.stat.st_dev, child.stat.st_ino), None)
        self.report.n_files -= 1
        reason = f"another name of {os.fsdecode(child.path)}, which could not be read"
        self.report.skipped += [(os.fsdecode(path), reason) for path in self._further_names.pop(inode.number, ())]

    def _new_inode(self, entry: HostEntry, parent: Inode) -> Inode:
        status = entry.stat
        kind = entry.kind
        rdev = pack_device(status.st_rdev) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        inode = self.store.create(status.st_mode & 0o177777, parent, uid=status.st_uid, gid=status.st_gid, rdev=rdev)
        set_times(inode, status)
        try:
            if entry.attributes:
                self.store.set_attributes(inode, entry.attributes)
            if entry.target:
                self.store.write_part(inode, 0, memoryview(entry.target))
                set_times(inode, status)
        except BlockplaneError:
            self.store.destroy(inode)
            raise
        return inode

    def _count(self, child: HostEntry) -> None:
        if child.kind == stat.S_IFREG:
            self.report.n_files += 1
        else:
            self.report.n_others += 1

    # --- batches ---

    def _ensure_room(self, n_bytes: int) -> None:
        """Where space is short, commit first: what was removed or replaced becomes free."""
        volume = self.store.volume
        if volume is not None and volume.available_blocks * BLOCK_BYTES < n_bytes + _BATCH_BYTES // 4:
            self._end_batch()
            self.store.room.make(n_bytes)

    def _end_batch(self) -> None:
        """Complete what is under way, enter it, and let a consistency point come."""
        n_bytes = self.data.finish()
        self._further_names.clear()
        self._enter_ready()
        self.report.n_bytes += n_bytes
        self.store.changed(self._n_entries * 1024)
        self._n_entries = 0
        self.store.lock.release()
        try:
            self._progress(ProgressEvent("put", self.report.n_bytes, 0, time.monotonic() - self._started))
        finally:
            self.store.lock.acquire()

    def _enter_ready(self) -> None:
        """Enter complete children in their directories, whose own times are then the host's again."""
        for target in self._touched.values():
            ready = [(name, inode) for name, inode in target.ready if inode.mode]
            target.ready = []
            distinct = len({name for name, _ in ready}) == len(ready)
            if ready and not target.inode.n_entries and distinct:
                self.store.fill_directory(target.inode, ready)
            else:
                for name, inode in ready:
                    self.store.add_entry(target.inode, name, inode)
            if target.entry.kind == stat.S_IFDIR and target.inode.is_directory:
                set_metadata(self.store, target.inode, target.entry)
        self._touched.clear()


def set_times(inode: Inode, status: os.stat_result) -> None:
    """Give an inode the host's access and modification time."""
    inode.atime_ns, inode.mtime_ns = clamp_time(status.st_atime_ns), clamp_time(status.st_mtime_ns)


def set_metadata(store: Store, inode: Inode, entry: HostEntry) -> None:
    """Give an inode the host's mode, owner, times and attributes."""
    status = entry.stat
    inode.mode = inode.mode & ~0o7777 | status.st_mode & 0o7777
    inode.uid, inode.gid = status.st_uid, status.st_gid
    set_times(inode, status)
    if entry.attributes or inode.attributes or inode.attribute_inode:
        store.set_attributes(inode, entry.attributes)
    store.inodes.mark_dirty(inode)
