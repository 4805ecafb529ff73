"""What changed between two model trees: every path of both walked, files told apart by serial numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from model.tree import Node, Tree

Link = tuple[int, str]
Row = tuple[str, str | None, str, tuple[str, ...]]  # path, path before, what happened, kinds


@dataclass
class View:
    """A tree at one moment with what only the volume knows: times and counts of links, by serial."""

    nodes: dict[int, Node]
    paths: dict[Link, str]
    links: dict[int, set[Link]]
    status: dict[int, tuple[int, ...]]
    times: dict[int, tuple[int, int]]


def view_of(tree: Tree, lstat: Callable[[str], os.stat_result]) -> View:
    """Look at a tree; lstat says what the volume says of a path."""
    view = View({}, {}, {}, {}, {})
    parents = {"/": 0}
    for path, node in tree.walk():
        head, _, name = path.rpartition("/")
        link = (parents[head or "/"], name)
        if node.kind == "dir":
            parents[path] = node.serial
        view.nodes[node.serial] = node
        view.paths[link] = path
        view.links.setdefault(node.serial, set()).add(link)
        found = lstat(path)
        view.status[node.serial] = (
            found.st_mode, found.st_uid, found.st_gid, found.st_atime_ns, found.st_birthtime_ns, found.dos_attributes,
        )  # fmt: skip
        view.times[node.serial] = found.st_mtime_ns, found.st_ctime_ns
    return view


def expected_changes(a: View, b: View, claims_content: Callable[[int], bool]) -> list[Row]:
    """What must be reported; claims_content: whether the report says so of a file, which writing alone allows."""
    rows: list[Row] = []
    for serial in a.nodes.keys() | b.nodes.keys():
        before, after = a.links.get(serial, set()), b.links.get(serial, set())
        removed = sorted(a.paths[link] for link in before - after)
        added = sorted(b.paths[link] for link in after - before)
        if serial not in b.nodes:
            rows += [(path, path, "deleted", ()) for path in removed]
        elif serial not in a.nodes:
            rows += [(path, None, "added", ()) for path in added]
        else:
            kinds = _kinds(a, b, serial, bool(removed or added), claims_content)
            for old, new in zip_longest(removed, added):
                if new is None:
                    rows.append((old, old, "deleted", ("links",)))
                elif old is None:
                    rows.append((new, None, "added", ("links",)))
                elif old != new:
                    rows.append((new, old, "renamed", kinds))
                elif kinds:
                    rows.append((new, old, "changed", kinds))
            if kinds:
                rows += [(b.paths[link], a.paths[link], "changed", kinds) for link in before & after]
    return sorted(rows, key=repr)


def _kinds(a: View, b: View, serial: int, is_moved: bool, claims_content: Callable[[int], bool]) -> tuple[str, ...]:
    x, y = a.nodes[serial], b.nodes[serial]
    content = claims_content(serial)
    assert content or x.data == y.data, "a change of content was not found"
    assert not content or x.version != y.version, "a change of content was made up"
    links = x.kind != "dir" and len(a.links[serial]) != len(b.links[serial])
    has_entries = _entries(x) != _entries(y)
    attributes = a.status[serial] != b.status[serial] or x.attributes != y.attributes
    mtime, ctime = (one != two for one, two in zip(a.times[serial], b.times[serial], strict=True))
    attributes |= mtime and not (content or has_entries)
    attributes |= ctime and not (content or has_entries or links or attributes or is_moved)
    flags = {"content": content, "attributes": attributes, "links": links}
    return tuple(kind for kind, is_so in flags.items() if is_so)


def _entries(node: Node) -> set[Link]:
    return {(child.serial, name) for name, child in node.entries.items()}
