"""Reading the host's side of a put: walking a tree ahead of the copy, and filling buffers from files."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import stat
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

from blockplane.filesystem.exclude import Exclusions
from blockplane.model import BLOCK_BYTES

Attributes = dict[bytes, bytes]

# Directories listed ahead of the copy. A cold walk is bound by the host's inode reads; further ahead gains nothing.
_LISTINGS_AHEAD = 64
_NO_ATTRIBUTES = (errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA)
_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY | os.O_NONBLOCK
_MEANWHILE = "while the tree was copied"
# What opening a listed file says where something else stands now. A socket cannot be opened, a fifo can.
_MEANWHILE_REASONS = {
    errno.ENOENT: f"vanished {_MEANWHILE}",
    errno.ELOOP: f"replaced by a symbolic link {_MEANWHILE}",
    errno.ENXIO: f"replaced by something that is no file {_MEANWHILE}",
}


@dataclass(slots=True)
class HostEntry:
    """A thing in a host directory; attributes are read at once for all but regular files."""

    name: bytes
    path: bytes
    stat: os.stat_result
    attributes: Attributes = field(default_factory=dict)
    target: bytes = b""
    listing: Listing | None = None

    @property
    def kind(self) -> int:
        """The S_IF* part of its mode."""
        return self.stat.st_mode & 0o170000


@dataclass(slots=True)
class Listing:
    """A host directory: its own entry and what lies in it; skipped: (path, reason) of what could not be read."""

    entry: HostEntry
    children: list[HostEntry] = field(default_factory=list)
    n_excluded: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def host_entry(path: bytes, name: bytes, status: os.stat_result) -> HostEntry:
    """Return the entry for a path; OSError: it cannot be read."""
    entry = HostEntry(name, path, status)
    kind = entry.kind
    if kind == stat.S_IFLNK:
        entry.target = os.readlink(path)
    if kind != stat.S_IFREG:
        entry.attributes = read_attributes(path)
    return entry


def read_attributes(target: bytes | int) -> Attributes:
    """Return the extended attributes of a path (itself, not what it links to) or of a file descriptor."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
        if not names:
            return {}
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return {}
        raise
    found: Attributes = {}
    for name in names:
        with contextlib.suppress(OSError):  # vanished since, or not this process's to read: cp -a goes on too
            found[os.fsencode(name)] = os.getxattr(target, name, follow_symlinks=follow)
    return found


def below(top: HostEntry, path: bytes) -> bytes:
    """Return a path in a tree as patterns see it: from the tree's top."""
    return path[len(top.path.rstrip(b"/")) + 1 :]


def reason_of(error: OSError) -> str:
    """Return why something that was listed could not be read, for people."""
    return _MEANWHILE_REASONS.get(error.errno or 0) or error.strerror or str(error)


def open_listed(path: bytes, listed: os.stat_result) -> int:
    """Open a regular file for reading: the one that was listed, or none.

    Raises
    ------
    OSError : it cannot be opened, or another file or something else stands there: the mode and owner that were listed
        are not those of its content.
    """
    # without waiting: the name may lead to a fifo by now
    fd = os.open(path, _READ_FLAGS)
    try:
        now = os.fstat(fd)
        if not stat.S_ISREG(now.st_mode):
            raise OSError(errno.ESTALE, f"replaced by something that is no file {_MEANWHILE}")
        # inode numbers that do not last, as some FUSE file systems have, are no replacement
        is_another = now.st_ino != listed.st_ino or now.st_dev != listed.st_dev
        if is_another and _metadata(now) != _metadata(listed):
            raise OSError(errno.ESTALE, f"replaced by another file {_MEANWHILE}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _metadata(status: os.stat_result) -> tuple[int, ...]:
    owner = status.st_mode, status.st_uid, status.st_gid
    return *owner, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def change_between(listed: os.stat_result, now: os.stat_result) -> str:
    """Return what happened to a file's content between two moments, for people; empty: nothing."""
    if now.st_size != listed.st_size:
        verb = "grew" if now.st_size > listed.st_size else "shrank"
        return f"{verb} from {listed.st_size} to {now.st_size} bytes {_MEANWHILE}"
    return f"written to {_MEANWHILE}" if now.st_mtime_ns != listed.st_mtime_ns else ""


def list_directory(entry: HostEntry, top: HostEntry, exclusions: Exclusions) -> Listing:
    """List a directory, its children by inode number: the order in which a cold disk gives them fastest."""
    listing = Listing(entry)
    try:
        with os.scandir(entry.path) as scan:
            found = sorted(scan, key=os.DirEntry.inode)
    except OSError as error:
        listing.skipped.append((os.fsdecode(entry.path), reason_of(error)))
        return listing
    for item in found:
        if exclusions and exclusions.excludes(below(top, item.path), item.is_dir(follow_symlinks=False)):
            listing.n_excluded += 1
            continue
        try:
            child = host_entry(item.path, item.name, item.stat(follow_symlinks=False))
        except OSError as error:
            listing.skipped.append((os.fsdecode(item.path), reason_of(error)))
            continue
        listing.children.append(child)
    if entry is not top and not _is_directory(entry.path):  # its children are those of what a link leads to
        reason = f"replaced by something that is no directory {_MEANWHILE}"
        return Listing(entry, skipped=[(os.fsdecode(entry.path), reason)])
    return listing


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return True  # gone since it was listed: what it held is reported name by name


def walk_ahead(top: HostEntry, exclusions: Exclusions) -> Generator[Listing, None, None]:
    """Yield the listings of a tree, parents before children, walked by a thread of its own."""
    ready: queue.Queue[Listing | BaseException | None] = queue.Queue(_LISTINGS_AHEAD)
    stopped = threading.Event()

    def offer(item: Listing | BaseException | None) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return True
        return False

    def walk() -> None:
        try:
            pending = [top]
            while pending:
                listing = list_directory(pending.pop(), top, exclusions)
                pending += [child for child in reversed(listing.children) if child.kind == stat.S_IFDIR]
                if not offer(listing):
                    return
            offer(None)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            offer(error)

    thread = threading.Thread(target=walk, name="put-walk", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()


def has_holes(fd: int, size_bytes: int) -> bool:
    """Whether a file has a hole before its end, as far as the host tells.

    `st_blocks` does not tell: it counts the host's own blocks, for attributes and extents, as well.
    """
    try:
        return size_bytes > 0 and os.lseek(fd, 0, os.SEEK_HOLE) < size_bytes
    except OSError:
        return False


def data_segments(fd: int, size_bytes: int) -> list[tuple[int, int]]:
    """Return the block ranges of a file's first bytes that hold data, half-open, ascending, by the host's holes."""
    segments: list[tuple[int, int]] = []
    n_blocks = -(-size_bytes // BLOCK_BYTES)
    at = 0
    while at < size_bytes:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            return [(0, n_blocks)]
        first, last = start // BLOCK_BYTES, min(-(-at // BLOCK_BYTES), n_blocks)  # it may have grown
        if first >= n_blocks:
            break
        if segments and first <= segments[-1][1]:
            segments[-1] = segments[-1][0], last
        else:
            segments.append((first, last))
    return segments


def read_fully(fd: int, offset: int, buffers: list[memoryview]) -> int:
    """Fill buffers one after the other from a file; zeros behind its end. Return the bytes read."""
    total = sum(map(len, buffers))
    n_read = 0
    while n_read < total:
        rest = _behind(buffers, n_read)
        n_bytes = os.preadv(fd, rest, offset + n_read)
        if n_bytes == 0:
            for buffer in _behind(buffers, n_read):
                buffer[:] = bytes(len(buffer))
            break
        n_read += n_bytes
    return n_read


def _behind(buffers: list[memoryview], n_bytes: int) -> list[memoryview]:
    """Return what is left of buffers behind their first n_bytes."""
    if not n_bytes:
        return buffers
    rest = []
    for buffer in buffers:
        if n_bytes < len(buffer):
            rest.append(buffer[n_bytes:])
        n_bytes = max(0, n_bytes - len(buffer))
    return rest
