"""A tree of files as dicts and bytes; errors are those of the host's calls."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

BLOCK = 4096
#: Up to this size a file that never was larger may lie in its inode: it then has no holes.
INLINE = 256


@dataclass(eq=False)
class Node:
    """A file, directory, symbolic link or special file; hard links share one.

    blocks : numbers of the blocks that were written to, all others are holes. times : what the volume said. serial : of
        the node and its copies, where a test gives them. version : of the content, likewise.
    """

    kind: str
    mode: int = 0
    uid: int = field(default_factory=os.geteuid)
    gid: int = field(default_factory=os.getegid)
    data: bytearray = field(default_factory=bytearray)
    blocks: set[int] = field(default_factory=set)
    target: bytes = b""
    device: int = 0
    entries: dict[str, Node] = field(default_factory=dict)
    attributes: dict[str, bytes] = field(default_factory=dict)
    times: tuple[int, ...] = ()
    serial: int = 0
    version: int = 0


class Tree:
    """A file system."""

    def __init__(self) -> None:
        self.root = Node("dir", 0o755, uid=0, gid=0)

    def copy(self) -> Tree:
        """A tree of its own, hard links kept."""
        return copy.deepcopy(self)

    # --- looking ---

    def walk(self) -> Iterator[tuple[str, Node]]:
        """All paths and what lies there, parents first; the root is "/"."""
        stack = [("/", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            names = sorted(node.entries, reverse=True)
            stack += [(f"{path.rstrip('/')}/{name}", node.entries[name]) for name in names]

    def paths(self, *kinds: str) -> list[str]:
        """Paths of these kinds, all where none is named, the root left out but for "dir"."""
        return [p for p, n in self.walk() if (n.kind in kinds if kinds else p != "/")]

    def node(self, path: str) -> Node:
        """What lies at a path; links are not followed."""
        node = self.root
        for name in [part for part in path.split("/") if part]:
            if node.kind != "dir":
                raise NotADirectoryError(path)
            if name not in node.entries:
                raise FileNotFoundError(path)
            node = node.entries[name]
        return node

    def _place(self, path: str) -> tuple[Node, str]:
        head, _, name = path.rpartition("/")
        parent = self.node(head or "/")
        if parent.kind != "dir":
            raise NotADirectoryError(path)
        return parent, name

    def _new(self, path: str) -> tuple[Node, str]:
        parent, name = self._place(path)
        if name in parent.entries:
            raise FileExistsError(path)
        return parent, name

    def _file(self, path: str) -> Node:
        node = self.node(path)
        if node.kind == "dir":
            raise IsADirectoryError(path)
        if node.kind != "file":
            raise OSError(path)
        return node

    # --- content ---

    def create(self, path: str, mode: int = 0o666) -> Node:
        """An empty file, or the one that is there."""
        parent, name = self._place(path)
        if name not in parent.entries:
            parent.entries[name] = Node("file", mode)
        return self._file(path)

    def write(self, path: str, offset: int, data: bytes) -> None:
        """Write into a file that is there; it grows by a hole up to offset."""
        node = self._file(path)
        if not data:
            return
        node.data.extend(bytes(max(0, offset - len(node.data))))
        node.data[offset : offset + len(data)] = data
        node.blocks.update(range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)))

    def replace(self, path: str, data: bytes) -> None:
        """Make a file hold exactly data."""
        node = self.create(path)
        node.data.clear()
        node.blocks.clear()
        self.write(path, 0, data)

    def truncate(self, path: str, size: int) -> None:
        """Cut, or extend by a hole."""
        node = self._file(path)
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        node.blocks = {block for block in node.blocks if block * BLOCK < size}

    # --- names ---

    def mkdir(self, path: str, mode: int) -> None:
        """Make a directory."""
        parent, name = self._new(path)
        parent.entries[name] = Node("dir", mode)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link."""
        parent, name = self._new(path)
        parent.entries[name] = Node("symlink", 0o777, target=target.encode())

    def special(self, path: str, kind: str, mode: int, device: int = 0) -> None:
        """Make a fifo, socket or device."""
        parent, name = self._new(path)
        parent.entries[name] = Node(kind, mode, device=device)

    def link(self, source: str, path: str) -> None:
        """Make a hard link."""
        parent, name = self._new(path)
        node = self.node(source)
        if node.kind == "dir":
            raise PermissionError(source)
        parent.entries[name] = node

    def unlink(self, path: str) -> None:
        """Remove a name that is no directory."""
        parent, name = self._place(path)
        if self.node(path).kind == "dir":
            raise IsADirectoryError(path)
        del parent.entries[name]

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        parent, name = self._place(path)
        node = self.node(path)
        if node.kind != "dir":
            raise NotADirectoryError(path)
        if node.entries:
            raise OSError(path)
        del parent.entries[name]

    def rename(self, source: str, path: str) -> bool:
        """Move, replacing a file or an empty directory; False: both are one, and nothing changed."""
        old_parent, old_name = self._place(source)
        node = self.node(source)
        parent, name = self._place(path)
        target = parent.entries.get(name)
        if target is node:
            return False
        if node.kind == "dir" and (path + "/").startswith(source + "/"):
            raise OSError(path)
        if target is not None:
            if target.kind == "dir" and node.kind != "dir":
                raise IsADirectoryError(path)
            if target.kind != "dir" and node.kind == "dir":
                raise NotADirectoryError(path)
            if target.entries:
                raise OSError(path)
        del old_parent.entries[old_name]
        parent.entries[name] = node
        return True

    # --- attributes ---

    def set_mode(self, path: str, mode: int, uid: int, gid: int) -> None:
        """Set permissions and owner."""
        node = self.node(path)
        node.mode, node.uid, node.gid = mode, uid, gid

    def set_attribute(self, path: str, name: str, value: bytes | None) -> None:
        """Set an extended attribute, or remove it."""
        node = self.node(path)
        if value is None:
            if name not in node.attributes:
                raise OSError(path)
            del node.attributes[name]
        else:
            node.attributes[name] = value

    # --- describing ---

    def describe(self) -> dict[str, tuple[object, ...]]:
        """All that makes two trees equal, by path."""
        groups: dict[int, list[str]] = {}
        for path, node in self.walk():
            groups.setdefault(id(node), []).append(path)
        return {
            path: (
                node.kind, node.mode, node.uid, node.gid, node.times, bytes(node.data), node.target, node.device,
                tuple(sorted(node.attributes.items())), tuple(sorted(groups[id(node)])),
            )
            for path, node in self.walk()
        }  # fmt: skip

    def data_ranges(self, path: str) -> list[tuple[int, int]]:
        """Byte ranges of a file that are no holes, cut to its size."""
        node = self._file(path)
        ranges: list[tuple[int, int]] = []
        for block in sorted(node.blocks):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, len(node.data))
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))
        return ranges
