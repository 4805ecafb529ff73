"""Paths to inodes: component by component from the root, through symbolic links, with bounds on both."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from blockplane.filesystem.errors import (
    BadNameError,
    NameTooLongError,
    NotADirectoryPathError,
    NotFoundError,
    SymlinkLoopError,
)
from blockplane.filesystem.inode import ROOT_INODE, Inode
from blockplane.filesystem.names import NAME_BYTES, AnyPath, check_name, path_bytes, path_text
from blockplane.filesystem.store import Store

MAX_SYMLINKS = 40
# Far above any real path; it ends what 40 links of 4,095 bytes could otherwise make of one.
MAX_COMPONENTS = 65536


@dataclass(slots=True)
class Place:
    """Where a path leads: the directory, the last name in it, and the inode there (None: nothing yet).

    The root, and paths that end in `.` or `..`, have an empty name.
    """

    parent: Inode
    name: bytes
    inode: Inode | None
    must_be_directory: bool


class Resolver:
    """Resolves the paths of one store; the caller holds its lock."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, path: AnyPath, *, follow: bool = True) -> Inode:
        """Return the inode at a path.

        Raises
        ------
        NotFoundError, NotADirectoryPathError, SymlinkLoopError, BadNameError, NameTooLongError: as on the host.
        """
        place = self.locate(path, follow=follow)
        if place.inode is None:
            raise NotFoundError(path_text(path_bytes(path)))
        return place.inode

    def locate(self, path: AnyPath, *, follow: bool = True, is_new: bool = False) -> Place:
        """Return where a path leads; only its last component may be missing.

        Parameters
        ----------
        follow : go through a symbolic link at the end too; a slash behind it does so anyway, unless is_new: the path is
            for something that is to be made.
        """
        raw = path_bytes(path)
        text = path_text(raw)
        root = self._store.inodes.get(ROOT_INODE)
        chain = [root]
        name = b""
        pending, must_be_directory, must_exist = _split(raw)
        inode: Inode | None = root
        n_links = n_steps = 0
        while pending:
            component = pending.pop()
            n_steps += 1
            if n_steps > MAX_COMPONENTS:
                raise SymlinkLoopError(text)
            if component == b"..":
                if len(chain) > 1:
                    chain.pop()
                inode, name = chain[-1], b""
                continue
            if len(component) > NAME_BYTES:
                raise NameTooLongError(text)
            name, inode = component, self._store.lookup(chain[-1], component)
            if inode is None:
                if pending or must_exist:
                    raise NotFoundError(text)
                break
            kind = inode.mode & 0o170000
            if kind == stat.S_IFLNK and (pending or follow or must_exist or (must_be_directory and not is_new)):
                n_links += 1
                if n_links > MAX_SYMLINKS:
                    raise SymlinkLoopError(text)
                target = self.target(inode)
                more, slash, dot = _split(target)
                must_be_directory = must_be_directory or (slash and not pending)
                must_exist = must_exist or (dot and not pending)
                pending += more
                if target.startswith(b"/"):
                    chain = [root]
                inode, name = chain[-1], b""
            elif kind == stat.S_IFDIR:
                chain.append(inode)
            elif pending:
                raise NotADirectoryPathError(text)
        if inode is not None and must_be_directory and not inode.is_directory and (must_exist or not is_new):
            raise NotADirectoryPathError(text)
        parent = chain[-2] if inode is chain[-1] and len(chain) > 1 else chain[-1]
        return Place(parent, name, inode, must_be_directory)

    def require_name(self, place: Place, path: AnyPath) -> None:
        """Raise BadNameError where a path ends in the root, `.` or `..`."""
        if not place.name:
            text = path_text(path_bytes(path))
            raise BadNameError(text, f"{text}: the path must end in a name")
        check_name(place.name)

    def target(self, inode: Inode) -> bytes:
        """Return a symbolic link's target."""
        return self._store.link_target(inode)


def _split(raw: bytes) -> tuple[list[bytes], bool, bool]:
    """Return the components, last first; whether the path asks for a directory; for one that is there (ends in `.`)."""
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    parts.reverse()
    ends_in_dot = raw.rstrip(b"/").endswith((b"/.", b"/..")) or raw.rstrip(b"/") in (b".", b"..")
    return parts, ends_in_dot or raw.endswith(b"/"), ends_in_dot
