"""put: a tree of the host into a volume, in one pass: the host is walked and read ahead, its bytes go straight into the
buffers that the disks are written from.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockplane.filesystem.content import n_blocks_of
from blockplane.filesystem.datain import DataIn, Job
from blockplane.filesystem.directory import Entry
from blockplane.filesystem.entering import DIRECTORY_GONE, Entering, Target
from blockplane.filesystem.errors import (
    REMOVED,
    InvalidRequestError,
    IsADirectoryPathError,
    NotADirectoryPathError,
    NotFoundError,
)
from blockplane.filesystem.exclude import Exclusions
from blockplane.filesystem.hostread import HostEntry, Listing, below, host_entry, walk_ahead
from blockplane.filesystem.inode import FLAG_ORPHAN, Inode
from blockplane.filesystem.metadata import set_times
from blockplane.filesystem.names import NAME_BYTES, AnyPath, check_name, path_bytes, path_text
from blockplane.filesystem.putreport import PutReport
from blockplane.filesystem.stat_result import pack_device
from blockplane.filesystem.update import Updater
from blockplane.model import (
    BLOCK_BYTES,
    BlockplaneError,
    NoSpaceError,
    Progress,
    ProgressEvent,
    RefusedError,
    format_size,
    ignore_progress,
)

if TYPE_CHECKING:
    from blockplane.filesystem.changes import Changes
    from blockplane.filesystem.paths import Place
    from blockplane.filesystem.store import Store

# A consistency point may come after this much: all of it is then entered in its directories. The lock is held
# meanwhile, 50 to 100 ms; the pipeline runs empty each time, which at 64 MiB costs below 2 %.
_BATCH_BYTES = 64 << 20
_BATCH_ENTRIES = 4096


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
        copy.epoch = fs.store.epoch
        place = _destination(fs, top, raw, dest, update)
        keeps = functools.partial(_is_excluded, exclusions, top) if exclusions else None
        updater = Updater(fs, copy.report, delete=delete, checksum=checksum, update=update, keeps=keeps)
    copy.run(top, place, updater, exclusions)
    copy.report.seconds = time.monotonic() - started
    return copy.report


def _is_excluded(exclusions: Exclusions, top: HostEntry, directory: HostEntry, entry: Entry) -> bool:
    """Whether an entry of a directory that is made equal to one of the host is among those left out."""
    path = below(top, os.path.join(directory.path, entry.name))
    return exclusions.excludes(path, entry.type << 12 == stat.S_IFDIR)


def _top_entry(raw: bytes) -> HostEntry:
    if not raw:
        raise NotFoundError("", "the source has no name")
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


_HostInode = tuple[int, int]


class _CopyIn:
    """One put in progress."""

    def __init__(self, store: Store, report: PutReport, progress: Progress, started: float) -> None:
        self.store = store
        self.report = report
        self.data = DataIn(store, report)
        self._progress = progress
        self._started = started
        self._entering = Entering(store, report)
        self._targets: dict[bytes, Target] = {}
        self._links: dict[_HostInode, Inode] = {}
        #: by inode number: further names, this batch, of a file that is perhaps still being read
        self._further_names: dict[int, list[bytes]] = {}
        #: by host inode: names that can be dealt with only when all of them are met
        self._waiting: dict[_HostInode, list[tuple[Target, HostEntry]]] = {}
        #: large files that are complete, open until no piece of them is under way
        self._complete: list[Inode] = []
        self._n_entries = 0
        #: of the live state that the inodes at hand are of
        self.epoch = store.epoch

    def _require_current(self) -> None:
        """Raise where the live state was exchanged while the lock was let go: no inode at hand is one of it."""
        if self.epoch != self.store.epoch:
            raise RefusedError(
                "the live file system became another one while the tree was copied: of what was put so far it has what "
                "it had then",
                "do it again",
            )

    def run(self, top: HostEntry, place: Place, updater: Updater, exclusions: Exclusions) -> None:
        """Copy everything; the lock is let go between batches."""
        store = self.store
        updater.require_room, updater.complete = self._require_room, self._complete_all
        try:
            store.lock.acquire()
            self._require_current()
            parent = Target(place.parent, top, is_fresh=False)
            top.name = place.name
            if top.kind != stat.S_IFDIR:
                self._place(parent, top, place.inode, updater)
            else:
                self._enter_top(top, place)
                with contextlib.closing(walk_ahead(top, exclusions)) as listings:
                    for listing in listings:
                        self._fill(listing, updater)
            self._place_waiting(updater)
            self._end_batch()
        except BaseException:
            # Whatever it was: places that were taken are filled, and what is complete gets its name. Where the volume
            # stopped there is no filling, and nothing is to come between the caller and what it was.
            if store.volume is None or not store.volume.stopped_at:
                with contextlib.suppress(BlockplaneError):
                    self.data.abandon()
            with contextlib.suppress(BlockplaneError):
                self._entering.enter()
            raise
        finally:
            self.data.close()
            self._close_complete()
            store.lock.release()

    def _enter_top(self, top: HostEntry, place: Place) -> None:
        inode = place.inode
        if inode is None:
            inode = self._new_inode(top, place.parent)
            try:
                self.store.add_entry(place.parent, place.name, inode)
            except BlockplaneError:
                self.store.destroy(inode)
                raise
        self._targets[top.path] = Target(inode, top, is_fresh=place.inode is None)
        self.report.count(top)

    # --- one directory ---

    def _fill(self, listing: Listing, updater: Updater) -> None:
        """Copy the children of a directory; subdirectories are entered, and filled by their own listings."""
        report = self.report
        report.skipped += listing.skipped
        report.n_excluded += listing.n_excluded
        target = self._targets.pop(listing.entry.path, None)
        if target is None:
            return
        if not target.is_fresh and not target.is_gone:
            self.store.room.admit(removes=True, complete=self._complete_all)
            updater.prepare(target.inode, listing)
        for child in listing.children:
            if target.is_gone:
                report.skip(target.entry, REMOVED)
                return
            existing = None if target.is_fresh else self.store.lookup(target.inode, child.name)
            self._place(target, child, existing, updater)
            self._count_entry()
        self._entering.touch(target)

    def _count_entry(self) -> None:
        self._n_entries += 1
        if self.data.n_bytes_batch >= _BATCH_BYTES or self._n_entries >= _BATCH_ENTRIES:
            self._end_batch()

    def _place(self, target: Target, child: HostEntry, existing: Inode | None, updater: Updater) -> None:
        """Copy one entry into a directory, or have it wait until all are met."""
        if len(child.name) > NAME_BYTES:
            self.report.skip(child, "name too long")
            return
        key = child.stat.st_dev, child.stat.st_ino
        if child.kind == stat.S_IFDIR:
            self._place_directory(target, child, existing, updater)
        elif key in self._waiting or (existing and not self._linked(child) and updater.waits(child, existing)):
            self._waiting.setdefault(key, []).append((target, child))
        else:
            self._place_file(target, child, existing, updater)

    def _place_waiting(self, updater: Updater) -> None:
        """Deal with names that waited: an inode that has no others is updated, else they get a fresh one."""
        for names in self._waiting.values():
            whole = self._whole(names)
            for target, child in sorted(names, key=lambda name: self._number(*name) not in whole):
                if target.is_gone:
                    self.report.skip(child, DIRECTORY_GONE)
                    continue
                updater.whole = self._whole(names) if self._linked(child) is None else frozenset()
                self._place_file(target, child, self.store.lookup(target.inode, child.name), updater)
                self._entering.touch(target)
                self._count_entry()
        self._waiting.clear()

    def _whole(self, names: list[tuple[Target, HostEntry]]) -> frozenset[int]:
        """Return the inodes that have these names, as yet, and no others."""
        met = Counter(self._number(*name) for name in names)
        return frozenset(number for number, n in met.items() if number and self.store.inodes.get(number).nlink == n)

    def _number(self, target: Target, child: HostEntry) -> int:
        """Return the number of the inode that now has a name, 0 for none."""
        found = None if target.is_gone else self.store.directory(target.inode).find(child.name)
        return found.inode if found is not None else 0

    def _linked(self, child: HostEntry) -> Inode | None:
        """Return what another name of the same file was copied to."""
        linked = self._links.get((child.stat.st_dev, child.stat.st_ino)) if child.stat.st_nlink > 1 else None
        # somebody may remove it between two batches; what is removed and still open gets no further name
        return linked if linked is not None and linked.mode and not linked.flags & FLAG_ORPHAN else None

    def _place_file(self, target: Target, child: HostEntry, existing: Inode | None, updater: Updater) -> None:
        """Copy an entry that is no directory."""
        status = child.stat
        key = status.st_dev, status.st_ino
        linked = self._linked(child)
        if existing is not None and linked is None and not self._fits(child):
            self._ensure_room(status.st_size)
            existing = None if target.is_gone else self.store.lookup(target.inode, child.name)  # others were let in
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
        self.report.count(child)
        if child.kind == stat.S_IFREG and status.st_size >= _BATCH_BYTES:
            self._place_large(target, child, inode)
        elif child.kind == stat.S_IFREG:
            self.data.submit(Job(child.path, inode, status, lambda ok: self._filled(target, child, inode, ok)))
        else:
            self._entering.add(target, child, inode)

    def _fits(self, child: HostEntry, n_freed: int = 0) -> bool:
        """Whether there is room for a file, beside what it replaces: of that n_freed blocks come free."""
        volume = self.store.volume
        if volume is None or child.kind != stat.S_IFREG:
            return True
        n_bytes = min(child.stat.st_size, child.stat.st_blocks * 512)  # what a sparse file has
        return n_blocks_of(n_bytes) + self.data.n_bytes_batch // BLOCK_BYTES <= volume.coming_blocks + n_freed

    def _require_room(self, child: HostEntry, existing: Inode) -> None:
        """Refuse a file for which there is no room, before what it replaces is removed.

        Where there are snapshots, what that has may be theirs too, and counts for nothing.
        """
        volume = self.store.volume
        if volume is not None and not self._fits(child, 0 if volume.local.regular() else existing.n_blocks):
            asked, there = format_size(child.stat.st_size), format_size(volume.coming_blocks * BLOCK_BYTES)
            raise NoSpaceError(
                f"the volume {volume.path} is full: {os.fsdecode(child.path)} has {asked}, and there is room for "
                f"{there}; what it was to replace stays",
                volume.room_hint(),
            )

    def _place_large(self, target: Target, child: HostEntry, inode: Inode) -> None:
        """Copy a file over several batches; it is entered first: no consistency point holds it without a name.

        It is open meanwhile: who removes it between two batches does not take it from under its pieces.
        """
        self._entering.add(target, child, inode)
        self._end_batch()
        if not inode.mode:
            return
        self.store.opened(inode)

        def between() -> None:
            if self.data.n_bytes_batch >= _BATCH_BYTES:
                self._end_batch()

        def done(ok: bool) -> None:
            if self.epoch != self.store.epoch:
                return
            self._complete.append(inode)
            if ok:
                set_times(inode, child.stat)
                self.store.inodes.mark_dirty(inode)
                return
            self._forget(child, inode)
            if self._number(target, child) == inode.number:
                self.store.remove_entry(target.inode, child.name, inode)

        self.data.submit(Job(child.path, inode, child.stat, done), between)

    def _place_directory(self, target: Target, child: HostEntry, existing: Inode | None, updater: Updater) -> None:
        if existing is not None and not existing.is_directory:
            existing = updater.make_way(target.inode, child, existing)
            if existing is not None:
                return
        self.report.count(child)
        if existing is not None:
            self._targets[child.path] = Target(existing, child, is_fresh=False)
            return
        inode = self._new_inode(child, target.inode)
        self._entering.add(target, child, inode)
        self._targets[child.path] = Target(inode, child, is_fresh=True)

    def _enter_link(self, target: Target, child: HostEntry, linked: Inode) -> None:
        """Enter another name of a file that was copied already, or is being read."""
        self._entering.add(target, child, linked)
        self._further_names.setdefault(linked.number, []).append(child.path)

    def _filled(self, target: Target, child: HostEntry, inode: Inode, ok: bool) -> None:
        """A file's content is in place, or could not be read."""
        if ok:
            set_times(inode, child.stat)
            self._entering.add(target, child, inode)
        else:
            self._forget(child, inode)
            self.store.destroy(inode)

    def _forget(self, child: HostEntry, inode: Inode) -> None:
        """A file could not be read: its further names so far go with it, and those to come are files of their own."""
        self._links.pop((child.stat.st_dev, child.stat.st_ino), None)
        self.report.uncount(child)
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
                self.report.n_blocks_written += self.store.set_attributes(inode, entry.attributes)
            if entry.target:
                self.store.write_part(inode, 0, memoryview(entry.target))
                self.report.n_blocks_written += inode.n_blocks
                set_times(inode, status)
        except BlockplaneError:
            self.store.destroy(inode)
            raise
        return inode

    # --- batches ---

    def _ensure_room(self, n_bytes: int) -> None:
        """Where space is short, commit first: what was removed or replaced becomes free."""
        volume = self.store.volume
        if volume is not None and volume.available_blocks * BLOCK_BYTES < n_bytes + _BATCH_BYTES // 4:
            self._end_batch()
            self.store.room.make(n_bytes)

    def _complete_all(self) -> None:
        """Complete what is under way and enter it: from here on a consistency point may come."""
        n_bytes = self.data.finish()
        self._further_names.clear()
        self._entering.enter()
        self.report.n_bytes += n_bytes

    def _end_batch(self) -> None:
        """Complete what is under way, enter it, and let a consistency point come."""
        self._complete_all()
        self._close_complete()
        self.store.changed(self._n_entries * 1024)
        self._n_entries = 0
        self.store.lock.release()
        try:
            self._progress(ProgressEvent("put", self.report.n_bytes, 0, time.monotonic() - self._started))
        finally:
            self.store.lock.acquire()
        self._require_current()

    def _close_complete(self) -> None:
        """Let go of large files that are complete; those that were removed meanwhile go with that."""
        complete, self._complete = self._complete, []
        for inode in complete if self.epoch == self.store.epoch else ():
            self.store.closed(inode)
