"""get: a tree of a volume, a snapshot or a stream out to the host, read in the order in which it lies on the disks."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockplane.disks.label import refuse_disk
from blockplane.filesystem.blockread import block_pointers
from blockplane.filesystem.dataout import DataOut
from blockplane.filesystem.directory import Entry
from blockplane.filesystem.errors import REMOVED, ExistsError, InvalidRequestError, damaged
from blockplane.filesystem.hostwrite import (
    UNREADABLE,
    Metadata,
    Refusal,
    apply_metadata,
    clear_way,
    ends_copy,
    make_special,
    refusal_of,
)
from blockplane.filesystem.inode import Inode
from blockplane.filesystem.names import AnyPath, path_bytes, path_text
from blockplane.filesystem.stat_result import stat_of
from blockplane.model import Progress, ProgressEvent, ignore_progress
from blockplane.model.errors import StreamError, VolumeDamagedError

if TYPE_CHECKING:
    from blockplane.filesystem.queries import Queries
    from blockplane.filesystem.store import Store

# Files are collected over this many, then written in the order of their first blocks.
_FILES_PER_ROUND = 50_000
# What lies between directory and content is read for so many at once: each alone costs a request and its wait.
_INODES_AT_ONCE = 2048
_FILES_AT_ONCE = 256
# Of what is written into a device or a pipe.
_PIECE_BYTES = 1 << 20


@dataclass(slots=True)
class GetReport:
    """What a get did; skipped: (host path, reason) of what could not be made there."""

    n_files: int = 0
    n_directories: int = 0
    n_others: int = 0
    n_bytes: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def get(fs: Queries, source: AnyPath, dest: str | os.PathLike[str], *, progress: Progress | None = None) -> GetReport:
    """Copy a file or tree to the host, with all attributes the process may set, links and holes.

    Parameters
    ----------
    source : path in the file system. dest : where; names as `cp -a`: into it where it is a directory, else as it. A
        source that ends in `/.` gives its content.

    Raises
    ------
    NotFoundError: source is not there. RefusedError: dest is a disk of a volume. OSError: the host refuses all (it is
    full, say), or the top.

    Notes
    -----
    What the host refuses of one path, too long or with something else in its way, and what is damaged, or not in the
    streams at hand, is skipped and reported. A get that ends early leaves whole files only. Where dest is a device or a
    pipe, a file is written into it; a link there is followed.
    As an ordinary user owners stay the user's own, and what needs root (devices) is skipped and reported. Of a mirror
    or replica it is one state, whatever arrives meanwhile.
    """
    with fs.steady() as steady:
        return _get(steady, source, dest, progress)


def _get(fs: Queries, source: AnyPath, dest: str | os.PathLike[str], progress: Progress | None) -> GetReport:
    started = time.monotonic()
    copy = _CopyOut(fs.store, progress or ignore_progress, started)
    raw = path_bytes(source)
    with fs.store.lock:
        top = fs.resolver.find(raw, follow=raw.endswith((b"/", b"/.")))
        name = fs.resolver.locate(raw, follow=False).name
    target = os.fsencode(os.fspath(dest))
    if os.path.isdir(target) and not (raw.endswith(b"/.") or raw in (b".", b"/") or not name):
        target = os.path.join(target, name)
    if os.path.isdir(target) and not top.is_directory:
        raise ExistsError(os.fsdecode(target), f"{os.fsdecode(target)}: a directory is not replaced by a file")
    target = _followed(target)
    refuse_disk(os.fsdecode(target))
    if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
        copy.write_into(top, target)
        return copy.report
    copy.run(top, target, path_text(raw))
    copy.report.seconds = time.monotonic() - started
    return copy.report


def _followed(target: bytes) -> bytes:
    """Return where a link leads that is named as the destination."""
    text = os.fsdecode(target)
    if os.path.islink(target) and not os.path.exists(target):
        raise ExistsError(text, f"{text}: a link that leads nowhere is not written through")
    return os.path.realpath(target) if os.path.islink(target) else target


class _CopyOut:
    """One get in progress."""

    def __init__(self, store: Store, progress: Progress, started: float) -> None:
        self.store = store
        self.report = GetReport()
        self._progress = progress
        self._started = started
        self._files: list[tuple[int, Inode, bytes]] = []
        self._linked: dict[int, bytes] = {}
        self._links: list[tuple[int, bytes]] = []
        self._directories: list[tuple[Inode, bytes]] = []

    def write_into(self, top: Inode, target: bytes) -> None:
        """Write a file's content into a device or a pipe, as `cp` does; nothing else is put in its place."""
        text = os.fsdecode(target)
        if not stat.S_ISREG(top.mode) or stat.S_ISSOCK(os.stat(target).st_mode):
            raise ExistsError(text, f"{text}: what is there is no file, and is not replaced")
        with open(target, "wb", buffering=0) as out:
            for at in range(0, top.size_bytes, _PIECE_BYTES):
                piece = memoryview(bytearray(min(_PIECE_BYTES, top.size_bytes - at)))
                with self.store.lock:
                    self.store.require_there(top)
                    self.store.read_into(top, at, piece)
                while piece:
                    piece = piece[out.write(piece) :]
        self.report.n_files, self.report.n_bytes = 1, top.size_bytes

    def run(self, top: Inode, target: bytes, text: str) -> None:
        """Copy everything: directories and special files on the way, contents in disk order, then what they need."""
        with DataOut(self.store, self.report) as data:
            if top.is_directory:
                self._make_directory(top, target)
                self._walk(data)
            else:
                self._visit(top, target)
            self._write_files(data)
            if not top.is_directory and target in data.refused:
                raise data.refused[target]
            self._try_other_names(data)
        self._make_links()
        for inode, path in reversed(self._directories):
            self._finish(inode, path)
        if not (self.report.n_files or self.report.n_others or self.report.n_directories or self.report.skipped):
            raise InvalidRequestError(text, f"{text}: nothing to copy")

    def _walk(self, data: DataOut) -> None:
        """Visit directories, parents first; self._directories grows while it is walked."""
        seen: set[int] = set()
        at = 0
        while at < len(self._directories):
            parent, path = self._directories[at]
            at += 1
            if parent.number in seen:
                raise damaged(f"directory {parent.number} lies in two places")
            seen.add(parent.number)
            try:
                with self.store.lock:
                    self.store.require_there(parent)
                    entries, listed_ns = self.store.directory(parent).all_entries(), parent.ctime_ns
            except UNREADABLE as error:
                self._pass_over(path, error)
                continue
            for first in range(0, len(entries), _INODES_AT_ONCE):
                batch = entries[first : first + _INODES_AT_ONCE]
                with self.store.lock:
                    children = self._children(parent, batch, listed_ns)
                for name, child in children:
                    if isinstance(child, Inode):
                        self._visit(child, path + b"/" + name)
                    else:
                        self._pass_over(path + b"/" + name, child)
                if len(self._files) >= _FILES_PER_ROUND:
                    self._write_files(data)

    def _children(
        self, parent: Inode, entries: Sequence[Entry], listed_ns: int
    ) -> list[tuple[bytes, Inode | VolumeDamagedError | StreamError]]:
        """Return the names and inodes of entries, or why there is none; called with the lock held.

        listed_ns : the directory's change time when they were listed. If that is another by now, or the live state,
        an entry may be gone, and its number be another's.
        """
        is_there = self.store.inodes.has(parent)
        with suppress(*UNREADABLE):  # then each is read by itself
            self.store.inodes.fetch(entry.inode for entry in entries)
        found: list[tuple[bytes, Inode | VolumeDamagedError | StreamError]] = []
        for entry in entries:
            try:
                if not is_there or (
                    parent.ctime_ns != listed_ns and self.store.directory(parent).find(entry.name) != entry
                ):
                    raise damaged(REMOVED)
                found.append((entry.name, self.store.inode_of(entry)))
            except UNREADABLE as error:
                found.append((entry.name, error))
        return found

    def _visit(self, inode: Inode, path: bytes) -> None:
        try:
            with self.store.lock:
                self.store.require_there(inode)
        except UNREADABLE as error:
            self._pass_over(path, error)
            return
        if inode.is_directory:
            try:
                self._make_directory(inode, path)
            except OSError as error:
                self._pass_over(path, error)
            return
        if inode.nlink > 1:
            if inode.number in self._linked:
                self._links.append((inode.number, path))
                return
            self._linked[inode.number] = path
        if stat.S_ISREG(inode.mode):
            self._files.append((first_number(inode), inode, path))
        else:
            self._make_other(inode, path)

    def _make_directory(self, inode: Inode, path: bytes) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path) or os.path.islink(path):
                raise
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o700)
        self._directories.append((inode, path))
        self.report.n_directories += 1

    def _make_other(self, inode: Inode, path: bytes) -> None:
        """Make a symbolic link or special file, whole."""
        try:
            clear_way(path)
            if stat.S_ISLNK(inode.mode):
                os.symlink(self.store.link_target(inode), path)
            else:
                with self.store.lock:
                    self.store.require_there(inode)
                    mode, device = inode.mode, stat_of(inode).st_rdev
                make_special(path, mode, device)
        except (OSError, *UNREADABLE) as error:
            self._pass_over(path, error)
            self._linked.pop(inode.number, None)  # its next name is tried by itself
            return
        self.report.n_others += 1
        self._finish(inode, path)

    def _write_files(self, data: DataOut) -> None:
        self._files.sort(key=lambda item: item[0])
        for at in range(0, len(self._files), _FILES_AT_ONCE):
            batch = self._files[at : at + _FILES_AT_ONCE]
            known = block_pointers(self.store, [inode for _, inode, _ in batch])
            for _, inode, path in batch:
                try:
                    metadata = metadata_of(self.store, inode)
                except UNREADABLE as error:
                    self._pass_over(path, error)
                    continue
                data.submit(inode, path, metadata, known.get(inode.number))
                self._progress(ProgressEvent("get", self.report.n_bytes, 0, time.monotonic() - self._started))
        self._files.clear()
        data.finish()

    def _try_other_names(self, data: DataOut) -> None:
        """Copy files of which the host refused the name that was to be the first under their next one."""
        while refused := {number for number, path in self._linked.items() if path in data.refused}:
            links, self._links = self._links, []
            for number in refused:
                del self._linked[number]
            for number, path in links:
                with self.store.lock:
                    inode = self.store.inodes.get(number)
                self._visit(inode, path)
            self._write_files(data)

    def _make_links(self) -> None:
        for number, path in self._links:
            try:
                clear_way(path)
                os.link(self._linked[number], path, follow_symlinks=False)
            except OSError as error:
                self._pass_over(path, error)

    def _finish(self, inode: Inode, path: bytes) -> None:
        try:
            problems = apply_metadata(path, metadata_of(self.store, inode))
            self.report.skipped += [(os.fsdecode(path), problem) for problem in problems]
        except (OSError, *UNREADABLE) as error:
            self._pass_over(path, error)

    def _pass_over(self, path: bytes, error: Refusal) -> None:
        """Report a path that the host refuses, or that cannot be read; where that is said of all, the copy ends."""
        if ends_copy(error):
            raise error
        self.report.skipped.append((os.fsdecode(path), refusal_of(error)))


def metadata_of(store: Store, inode: Inode) -> Metadata:
    """Return what the copy of an inode is to have."""
    with store.lock:
        store.require_there(inode)
        attributes = store.attributes(inode) if inode.attributes or inode.attribute_inode else {}
        return Metadata(inode.mode, inode.uid, inode.gid, inode.atime_ns, inode.mtime_ns, attributes)


def first_number(inode: Inode) -> int:
    """Return the number of the first block below an inode's tree root: where the file lies, roughly."""
    root = inode.tree.root if inode.tree is not None else inode.root
    if root is None:
        return 0
    words = root.pointers[:, 0]
    used = words[words != 0]
    return int(used[0]) if len(used) else 0
