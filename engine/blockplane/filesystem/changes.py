"""The changing half of the path API. Each call is one change: a consistency point holds all of it or nothing."""

from __future__ import annotations

import os
import stat
import time

from blockplane.filesystem import acl
from blockplane.filesystem.attribute_changes import AttributeChanges
from blockplane.filesystem.errors import (
    ExistsError,
    InvalidRequestError,
    IsADirectoryPathError,
    NameTooLongError,
    NotADirectoryPathError,
    NotEmptyError,
    NotFoundError,
    NotPermittedError,
)
from blockplane.filesystem.inode import ROOT_INODE, Inode
from blockplane.filesystem.names import TARGET_BYTES, AnyPath, path_bytes, path_text
from blockplane.filesystem.paths import Place
from blockplane.filesystem.stat_result import pack_device
from blockplane.model import BlockplaneError

_SPECIAL = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG)


class Changes(AttributeChanges):
    """Creating, removing, renaming and linking by path."""

    def _create(
        self, place: Place, path: AnyPath, mode: int, rdev: int = 0, content: bytes = b"", umask: int = 0
    ) -> Inode:
        """Make an inode at a place where nothing is, owned by the process's user, with content if given.

        The directory's default ACL is passed on; umask counts only where there is none.
        """
        self.resolver.require_name(place, path)
        attributes, mode = self._inherited(place.parent, mode, umask)
        inode = self.store.create(mode, place.parent, uid=os.geteuid(), gid=os.getegid(), rdev=rdev)
        try:
            if attributes:
                self.store.set_attributes(inode, attributes)
            if content:
                self.store.write_part(inode, 0, memoryview(content))
            self.store.add_entry(place.parent, place.name, inode)
        except BlockplaneError:
            self.store.destroy(inode)
            raise
        return inode

    def _inherited(self, parent: Inode, mode: int, umask: int) -> tuple[dict[bytes, bytes], int]:
        """Return the attributes and the mode that something new gets in a directory."""
        raw = self.store.attributes(parent).get(acl.DEFAULT, b"") if not stat.S_ISLNK(mode) else b""
        default = acl.decode_acl(raw)
        if default is None:
            return {}, mode & ~umask
        access, mode = acl.inherited_acl(default, mode)
        attributes = {acl.ACCESS: acl.encode_acl(access)} if access is not None else {}
        return attributes | ({acl.DEFAULT: raw} if stat.S_ISDIR(mode) else {}), mode

    def _new_place(self, path: AnyPath) -> Place:
        self.store.require_writable(path_text(path_bytes(path)))
        if self.store.room.is_short:
            self.store.room.make()
            self.store.room.require()
        place = self.resolver.locate(path, follow=False, is_new=True)
        if place.inode is not None:
            raise ExistsError(path_text(path_bytes(path)))
        return place

    def mkdir(self, path: AnyPath, mode: int = 0o777, *, umask: int = 0) -> None:
        """Make a directory; the process's umask does not count, one that is given does where no default ACL is."""
        with self.store.lock:
            self._create(self._new_place(path), path, stat.S_IFDIR | mode & 0o7777, umask=umask)
            self.store.changed()

    def makedirs(self, path: AnyPath, mode: int = 0o777, *, umask: int = 0, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing; see `mkdir`."""
        raw = path_bytes(path).rstrip(b"/") or b"/"
        head = raw.rpartition(b"/")[0]
        with self.store.lock:
            if self.is_dir(raw):
                if not exist_ok:
                    raise ExistsError(path_text(raw))
                return
            if head and not self.exists(head):
                self.makedirs(head, mode, umask=umask, exist_ok=True)
            self.mkdir(raw, mode, umask=umask)

    def symlink(self, target: AnyPath, path: AnyPath) -> None:
        """Make a symbolic link that holds target."""
        raw = path_bytes(target)
        if len(raw) > TARGET_BYTES:
            raise NameTooLongError(
                path_text(path_bytes(path)), "the target of a symbolic link is limited to 4,095 bytes"
            )
        with self.store.lock:
            place = self._new_place(path)
            if place.must_be_directory:
                raise NotFoundError(path_text(path_bytes(path)))
            self._create(place, path, stat.S_IFLNK | 0o777, content=raw)
            self.store.changed()

    def mknod(self, path: AnyPath, mode: int, device: int = 0) -> None:
        """Make a fifo, socket, device (host's device number) or empty regular file: type and permissions in mode."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        text = path_text(path_bytes(path))
        if kind not in _SPECIAL:
            raise InvalidRequestError(text, f"{text}: mknod makes no such type ({mode:#o})")
        rdev = pack_device(device) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        with self.store.lock:
            self._create(self._new_place(path), path, kind | mode & 0o7777, rdev)
            self.store.changed()

    def mkfifo(self, path: AnyPath, mode: int = 0o666) -> None:
        """Make a fifo."""
        self.mknod(path, stat.S_IFIFO | mode & 0o7777)

    def link(self, source: AnyPath, path: AnyPath, *, follow_symlinks: bool = False) -> None:
        """Make a hard link to source; NotPermittedError: it is a directory."""
        with self.store.lock:
            self.store.require_writable(path_text(path_bytes(path)))
            inode = self._find(source, follow=follow_symlinks)
            place = self._new_place(path)
            if inode.is_directory:
                raise NotPermittedError(
                    path_text(path_bytes(source)), f"{path_text(path_bytes(source))}: is a directory"
                )
            self.resolver.require_name(place, path)
            self.store.add_entry(place.parent, place.name, inode)
            self.store.touch(inode)
            self.store.changed()

    def unlink(self, path: AnyPath) -> None:
        """Remove a file or link by its name."""
        with self.store.lock, self.store.room.removing():
            place, inode = self._existing(path)
            if inode.is_directory:
                raise IsADirectoryPathError(path_text(path_bytes(path)))
            self.store.remove_entry(place.parent, place.name, inode)
            self.store.changed()

    remove = unlink

    def rmdir(self, path: AnyPath) -> None:
        """Remove an empty directory."""
        text = path_text(path_bytes(path))
        with self.store.lock, self.store.room.removing():
            place, inode = self._existing(path)
            if not inode.is_directory:
                raise NotADirectoryPathError(text)
            if inode.n_entries:
                raise NotEmptyError(text)
            self.store.remove_entry(place.parent, place.name, inode)
            self.store.changed()

    def _existing(self, path: AnyPath) -> tuple[Place, Inode]:
        """Return where something that can be removed lies, and it."""
        self.store.require_writable(path_text(path_bytes(path)))
        self.store.room.admit(removes=True)
        place = self.resolver.locate(path, follow=False, is_new=True)
        return place, self._require_removable(place, path)

    def _require_removable(self, place: Place, path: AnyPath) -> Inode:
        text = path_text(path_bytes(path))
        if place.inode is None:
            raise NotFoundError(text)
        if place.inode.number == ROOT_INODE:
            raise NotPermittedError(text, "the root directory stays")
        if place.must_be_directory and not place.inode.is_directory:
            raise NotADirectoryPathError(text)
        self.resolver.require_name(place, path)
        return place.inode

    def rmtree(self, path: AnyPath) -> None:
        """Remove whatever lies at a path, with everything below it; a consistency point may come in between."""
        with self.store.lock, self.store.room.removing():
            place, inode = self._existing(path)
            if inode.is_directory:
                self.remove_children(inode)
            self.store.remove_entry(place.parent, place.name, inode)
            self.store.changed()

    def remove_children(self, inode: Inode) -> None:
        """Remove everything in a directory; the caller holds the store's lock."""
        store = self.store
        stack = [inode]
        while stack:
            parent = stack[-1]
            deeper = False
            for entry in store.directory(parent).entries():
                child = store.inode_of(entry)
                if child.is_directory and child.n_entries:
                    if child in stack:
                        raise NotPermittedError("", f"directory {child.number} holds itself; run `blockplane check`")
                    stack.append(child)
                    deeper = True
                    break
                store.room.admit(removes=True)
                store.remove_entry(parent, entry.name, child)
                store.changed()
            if not deeper:
                stack.pop()

    def rename(self, source: AnyPath, path: AnyPath) -> None:
        """Move source to path, replacing a file there, or an empty directory by a directory, in one change."""
        with self.store.lock:
            self.store.require_writable(path_text(path_bytes(path)))
            self.store.room.admit()
            old = self.resolver.locate(source, follow=False, is_new=True)
            new = self.resolver.locate(path, follow=False, is_new=True)
            inode = self._require_removable(old, source)
            self.resolver.require_name(new, path)
            if new.must_be_directory and not inode.is_directory:
                raise NotADirectoryPathError(path_text(path_bytes(path)))
            if new.inode is inode:
                return
            if inode.is_directory and self._lies_under(new.parent, inode):
                text = path_text(path_bytes(path))
                raise InvalidRequestError(text, f"{text}: a directory cannot be moved into itself")
            self._rename(old, new, inode, path)
            self.store.changed()

    replace = rename

    def _rename(self, old: Place, new: Place, inode: Inode, path: AnyPath) -> None:
        """Enter first, remove after: what can fail comes while nothing is lost."""
        store = self.store
        if new.inode is not None:
            self._require_replaceable(inode, new.inode, path_text(path_bytes(path)))
            store.replace_entry(new.parent, new.name, inode)
            inode.nlink += 2 if inode.is_directory else 1
            new.parent.nlink += inode.is_directory
            store.drop_link(new.parent, new.inode)
        else:
            store.add_entry(new.parent, new.name, inode)
        store.remove_entry(old.parent, old.name, inode)
        inode.parent = new.parent.number
        store.touch(inode)

    def _require_replaceable(self, inode: Inode, target: Inode, text: str) -> None:
        if target.is_directory and not inode.is_directory:
            raise IsADirectoryPathError(text)
        if inode.is_directory and not target.is_directory:
            raise NotADirectoryPathError(text)
        if target.n_entries:
            raise NotEmptyError(text)
        if target.number == ROOT_INODE:
            raise NotPermittedError(text, "the root directory stays")

    def _lies_under(self, inode: Inode, ancestor: Inode) -> bool:
        """Whether a directory is, or lies below, another; follows the parents that inodes name."""
        n_steps = 0
        while inode.number != ROOT_INODE:
            if inode is ancestor or n_steps > self.store.inodes.n_inodes:
                return True
            inode = self.store.inodes.get(inode.parent)
            n_steps += 1
        return inode is ancestor

    def truncate(self, path: AnyPath, size: int) -> None:
        """Set a regular file's size; it grows by a hole."""
        with self.store.lock:
            self.store.require_writable(path_text(path_bytes(path)))
            self.store.truncate(self.regular(path), size)

    def write_bytes(self, path: AnyPath, data: bytes | bytearray | memoryview) -> int:
        """Make a regular file hold exactly data; made when it is not there (mode 0o666)."""
        with self.store.lock, memoryview(data).cast("B") as view:
            inode = self._open_for_writing(path, exclusive=False)
            self.store.set_size(inode, 0)
            self.store.write(inode, 0, view)
            self.store.touch(inode)
            return len(view)

    def _open_for_writing(self, path: AnyPath, *, exclusive: bool, mode: int = 0o666) -> Inode:
        """Return a regular file's inode, made when it is not there; exclusive: it must not be."""
        text = path_text(path_bytes(path))
        self.store.require_writable(text)
        self.store.room.admit()
        place = self.resolver.locate(path, follow=not exclusive)
        if place.inode is None:
            if place.must_be_directory:
                raise IsADirectoryPathError(text)
            if self.store.room.is_short:
                self.store.room.make()
            inode = self._create(place, path, stat.S_IFREG | mode & 0o7777)
            self.store.changed()
            return inode
        if exclusive:
            raise ExistsError(text)
        return self.regular(path)

    def touch(self, path: AnyPath, mode: int = 0o666) -> None:
        """Make an empty file, or set the times of what is there to now."""
        with self.store.lock:
            self.store.room.admit()
            inode = (
                self._open_for_writing(path, exclusive=False, mode=mode) if not self.exists(path) else self._find(path)
            )
            inode.atime_ns = inode.mtime_ns = time.time_ns()
            self.store.touch(inode)
            self.store.changed()
