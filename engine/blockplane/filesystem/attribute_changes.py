"""Changing attributes by path: mode, owner, times, extended attributes, ACLs, DOS attributes."""

from __future__ import annotations

import os
import time

from blockplane.filesystem import acl
from blockplane.filesystem.attributes import MAX_ATTRIBUTE_NAME_BYTES, MAX_VALUE_BYTES
from blockplane.filesystem.errors import (
    AttributeExistsError,
    InvalidRequestError,
    NoAttributeError,
    TooLargeError,
)
from blockplane.filesystem.inode import DOS_MASK, MAX_TIME_NS, Inode
from blockplane.filesystem.names import AnyPath, path_bytes, path_text
from blockplane.filesystem.queries import Queries

_MAX_ID = (1 << 32) - 1


class AttributeChanges(Queries):
    """Changing what an inode says about itself."""

    def _to_change(self, path: AnyPath, follow: bool) -> Inode:
        self.store.require_writable(path_text(path_bytes(path)))
        self.store.room.admit()
        return self._find(path, follow=follow)

    def chmod(self, path: AnyPath, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the permission bits; an access ACL follows, as on the host."""
        with self.store.lock:
            inode = self._to_change(path, follow_symlinks)
            attributes = self.store.attributes(inode)
            entries = acl.decode_acl(attributes.get(acl.ACCESS, b""))
            if entries is not None:
                attributes[acl.ACCESS] = acl.encode_acl(acl.acl_of_mode(entries, mode))
                self.store.set_attributes(inode, attributes)
            inode.mode = inode.mode & ~0o7777 | mode & 0o7777
            self._commit(inode)

    def chown(self, path: AnyPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Set owner and group; -1 leaves one as it is."""
        for number in (uid, gid):
            if not -1 <= number <= _MAX_ID:
                raise InvalidRequestError(path_text(path_bytes(path)), f"{number} is not a user's or group's number")
        with self.store.lock:
            inode = self._to_change(path, follow_symlinks)
            inode.uid = inode.uid if uid == -1 else uid
            inode.gid = inode.gid if gid == -1 else gid
            self._commit(inode)

    def utime(
        self,
        path: AnyPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        created_ns: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set access and modification time, as `os.utime` does, and the creation time where given."""
        if times is not None:
            ns = round(times[0] * 1e9), round(times[1] * 1e9)
        elif ns is None:
            ns = time.time_ns(), time.time_ns()
        if any(abs(time_ns) > MAX_TIME_NS for time_ns in (*ns, created_ns or 0)):
            text = path_text(path_bytes(path))
            raise InvalidRequestError(text, f"{text}: the time lies beyond what is kept (1677 to 2262)")
        with self.store.lock:
            inode = self._to_change(path, follow_symlinks)
            inode.atime_ns, inode.mtime_ns = ns
            if created_ns is not None:
                inode.created_ns = created_ns
            self._commit(inode)

    def setxattr(
        self, path: AnyPath, name: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """Set an extended attribute; flags: os.XATTR_CREATE, os.XATTR_REPLACE. An access ACL sets the mode too."""
        text, key = path_text(path_bytes(path)), path_bytes(name)
        if len(key) > MAX_ATTRIBUTE_NAME_BYTES or len(value) > MAX_VALUE_BYTES:
            raise TooLargeError(text, f"{text}: an attribute's name is limited to 255 bytes, its value to 65,536")
        if b"." not in key.strip(b"."):
            raise InvalidRequestError(text, f"{text}: attribute {path_text(key)!r} has no namespace, such as `user.`")
        with self.store.lock:
            inode = self._to_change(path, follow_symlinks)
            attributes = self.store.attributes(inode)
            if flags & os.XATTR_CREATE and key in attributes:
                raise AttributeExistsError(text)
            if flags & os.XATTR_REPLACE and key not in attributes:
                raise NoAttributeError(text)
            is_acl = key in (acl.ACCESS, acl.DEFAULT)
            mode = self._mode_with_acl(inode, key, bytes(value), text) if is_acl else inode.mode
            attributes[key] = bytes(value)
            self.store.set_attributes(inode, attributes)
            inode.mode = mode
            self._commit(inode)

    def _mode_with_acl(self, inode: Inode, key: bytes, value: bytes, text: str) -> int:
        """Return the mode that goes with an ACL; InvalidRequestError: it is none, or not for this inode."""
        entries = acl.decode_acl(value)
        if entries is None:
            raise InvalidRequestError(text, f"{text}: not a POSIX ACL")
        if key == acl.ACCESS:
            return acl.mode_of_acl(entries, inode.mode)
        if not inode.is_directory:
            raise InvalidRequestError(text, f"{text}: only a directory has a default ACL")
        return inode.mode

    def removexattr(self, path: AnyPath, name: str | bytes, *, follow_symlinks: bool = True) -> None:
        """Remove an extended attribute; NoAttributeError: there is none of that name."""
        with self.store.lock:
            inode = self._to_change(path, follow_symlinks)
            attributes = self.store.attributes(inode)
            if attributes.pop(path_bytes(name), None) is None:
                raise NoAttributeError(path_text(path_bytes(path)))
            self.store.set_attributes(inode, attributes)
            self._commit(inode)

    def set_dos_attributes(self, path: AnyPath, attributes: int) -> None:
        """Set the DOS attributes; InvalidRequestError: bits other than the four that are kept."""
        if attributes & ~DOS_MASK:
            text = path_text(path_bytes(path))
            raise InvalidRequestError(text, f"{text}: unknown DOS attributes {attributes & ~DOS_MASK:#x}")
        with self.store.lock:
            inode = self._to_change(path, follow=True)
            inode.dos_attributes = attributes
            self._commit(inode)

    def _commit(self, inode: Inode) -> None:
        self.store.touch(inode)
        self.store.changed()
