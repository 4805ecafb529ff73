"""What changed between two states of a volume, by file and with names, without reading data.

The blocks of the two inode files that are not one and the same are read and compared inode by inode; then the blocks
that changed directories do not share. A name that no changed directory tells is looked for in the directory that its
inode names as its parent. A file is the same in both states where number and generation are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from blockplane.filesystem.entryscan import Link, pointers_of
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import FLAG_ATTRIBUTES, FLAG_ORPHAN, INODES_PER_BLOCK, ROOT_INODE, Inode
from blockplane.filesystem.names import path_text
from blockplane.filesystem.records import Records
from blockplane.filesystem.whereabouts import Whereabouts, n_names
from blockplane.volume.codec import PointerArray
from blockplane.volume.lines import descends_from
from blockplane.volume.state import State
from blockplane.volume.tree import BlockTree
from blockplane.volume.treediff import differing_blocks

Kind = Literal["content", "attributes", "links"]
Sort = Literal["added", "changed", "deleted", "renamed"]


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """What happened to one path.

    path : where it is afterwards; of a deleted one, where it was. path_before : None for an added one.
    change : added, changed, deleted or renamed. kinds : of a file that is in both states what changed about it:
        `content` (what it holds was written), `attributes`, `links` (how many names it has).
    mode : type and permissions, of the later state that has the file.
    """

    path: str
    change: Sort
    path_before: str | None
    kinds: tuple[Kind, ...]
    mode: int
    inode: int
    generation: int


@dataclass(slots=True)
class Difference:
    """What changed, by path; n_reads: blocks of inode files and directories that were read to find it."""

    changes: list[Change] = field(default_factory=list)
    n_reads: int = 0

    @property
    def counts(self) -> dict[Sort, int]:
        """How many paths were added, changed, deleted and renamed."""
        found = Counter(change.change for change in self.changes)
        return {sort: found[sort] for sort in ("added", "changed", "deleted", "renamed")}


def compare(before: State, after: State, atime: bool = False) -> Difference:
    """Return what changed from one committed state of a volume to another.

    Parameters
    ----------
    atime : list also files of which only the time of the last access changed.

    Notes
    -----
    Cost follows what changed: inode blocks and directory blocks that differ, the directories that hold changed files,
    and those above them; every directory only where a file with several names changed and not all were met. What lies
    in a renamed directory is not listed unless it changed itself; a directory is not listed for its entries' sake.
    Between states of which none descends from the other a file is the same only where its time of creation is too.
    """
    return _Comparison(before, after, atime).run()


class _Comparison:
    """gone, fresh : inodes that only one state has; kept : (before, after) of those in both that are not equal."""

    def __init__(self, before: State, after: State, atime: bool) -> None:
        self._atime = atime
        records = Records(before), Records(after)
        self._b = Whereabouts(records[1])
        self._a = Whereabouts(records[0])
        self._states = before, after
        self._is_related = before.root.space_id == after.root.space_id
        self._is_line = _is_known_past(before, after) or _is_known_past(after, before)
        self._gone: dict[int, Inode] = {}
        self._fresh: dict[int, Inode] = {}
        self._kept: dict[int, tuple[Inode, Inode]] = {}

    def run(self) -> Difference:
        for number, x, y in self._differing_inodes():
            if x is not None and y is not None and self._is_same(x, y):
                self._kept[number] = x, y
                continue
            if x is not None:
                self._gone[number] = x
            if y is not None:
                self._fresh[number] = y
        removed, added = self._links()
        self._take_unchanged({link.inode for link in removed | added})
        self._learn(removed, added)
        changes = list(self._changes(_by_inode(removed), _by_inode(added)))
        return Difference(sorted(changes), self._a.n_reads + self._b.n_reads)

    # --- inodes ---

    def _differing_inodes(self) -> Iterator[tuple[int, Inode | None, Inode | None]]:
        a, b = self._a.records, self._b.records
        blocks = self._differing([state.inode_file for state in self._states])
        for (part, before), (_, after) in zip(a.rows(blocks), b.rows(blocks), strict=True):
            for at, slot in np.argwhere((before != after).any(axis=2)).tolist():
                number = int(part[at]) * INODES_PER_BLOCK + slot
                x, y = a.decode(number, before[at, slot]), b.decode(number, after[at, slot])
                yield number, _named(x), _named(y)

    def _differing(self, trees: Sequence[BlockTree]) -> NDArray[np.int64]:
        """Return the blocks that a tree does not have in common with its other state."""
        maps = [state.placemap for state in self._states]
        return np.array(differing_blocks(trees, maps), np.int64)

    def _take_unchanged(self, linked: set[int]) -> None:
        """Take inodes whose entries changed and whose records are as they were."""
        for number in linked - self._gone.keys() - self._fresh.keys() - self._kept.keys():
            self._kept[number] = self._a.records.get(number), self._b.records.get(number)

    def _is_same(self, x: Inode, y: Inode) -> bool:
        if x.number == ROOT_INODE:
            return True
        is_one = self._is_related and x.generation == y.generation and x.type == y.type
        return is_one and (self._is_line or x.created_ns == y.created_ns)

    # --- links ---

    def _links(self) -> tuple[set[Link], set[Link]]:
        """Return the links that went and that came."""
        nodes = self._changed_nodes()
        removed = set(self._a.scan.entries([*nodes[0], *_all_nodes(self._states[0], self._gone.values())]))
        added = set(self._b.scan.entries([*nodes[1], *_all_nodes(self._states[1], self._fresh.values())]))
        same = {link for link in removed & added if not {link.inode, link.directory} & self._gone.keys()}
        return removed - same, added - same

    def _changed_nodes(self) -> tuple[list[tuple[int, PointerArray]], list[tuple[int, PointerArray]]]:
        """Return the nodes of directories in both states that the two do not share."""
        found: tuple[list[tuple[int, PointerArray]], list[tuple[int, PointerArray]]] = ([], [])
        for number, pair in self._kept.items():
            if not pair[0].is_directory:
                continue
            trees = [state.tree(inode.tree_root()) for state, inode in zip(self._states, pair, strict=True)]
            differing = self._differing(trees)
            for nodes, state, inode in zip(found, self._states, pair, strict=True):
                pointers = pointers_of(state, inode)
                pointers = pointers[differing[differing < len(pointers)]]
                nodes.append((number, pointers[pointers[:, 0] != 0]))
        return found

    def _learn(self, removed: set[Link], added: set[Link]) -> None:
        """Take the names of directories out of what was read; where none moved, both states' paths are alike."""
        gone = [link for link in removed if self._is_directory(self._gone, 0, link.inode)]
        came = [link for link in added if self._is_directory(self._fresh, 1, link.inode)]
        self._a.learn(gone)
        self._b.learn(came)
        if not any(link.inode in self._kept for link in gone):
            self._a.share(self._b, self._gone)

    def _is_directory(self, alone: dict[int, Inode], side: int, number: int) -> bool:
        inode = alone.get(number) or (self._kept[number][side] if number in self._kept else None)
        return inode is not None and inode.is_directory

    # --- names ---

    def _changes(self, removed: dict[int, list[Link]], added: dict[int, list[Link]]) -> Iterator[Change]:
        touched = {link.directory for links in (*removed.values(), *added.values()) for link in links}
        kinds = {
            number: self._kinds(x, y, number in removed or number in added, number in touched)
            for number, (x, y) in self._kept.items()
        }
        kept = self._kept_links(added, {number for number, found in kinds.items() if found})
        moved = [link for links in removed.values() for link in links]
        self._a.resolve({link.directory for link in (*moved, *(x for links in kept.values() for x in links))}, {})
        self._b.resolve({link.directory for links in (*added.values(), *kept.values()) for link in links}, {})
        for number, inode in self._gone.items():
            yield from (self._change("deleted", inode, link, None, ()) for link in removed.get(number, ()))
        for number, inode in self._fresh.items():
            yield from (self._change("added", inode, None, link, ()) for link in added.get(number, ()))
        if kinds.get(ROOT_INODE):
            root = self._kept[ROOT_INODE][1]
            yield Change("/", "changed", "/", kinds[ROOT_INODE], root.mode, root.number, root.generation)
        for number, (x, y) in self._kept.items():
            links = kept.get(number, ())
            yield from (self._change("changed", y, link, link, kinds[number]) for link in links)
            yield from self._moves(x, y, removed.get(number, []), added.get(number, []), kinds[number])

    def _moves(
        self, x: Inode, y: Inode, removed: list[Link], added: list[Link], kinds: tuple[Kind, ...]
    ) -> Iterator[Change]:
        """Yield renames, and names that a file lost or got besides; paths in their order make the pairs."""
        pairs = zip_longest(sorted(removed, key=self._a.path), sorted(added, key=self._b.path))
        for old, new in pairs:
            if new is None:
                yield self._change("deleted", x, old, None, ("links",))
            elif old is None:
                yield self._change("added", y, None, new, ("links",))
            elif self._a.path(old) != self._b.path(new):
                yield self._change("renamed", y, old, new, kinds)
            elif kinds:
                yield self._change("changed", y, old, new, kinds)

    def _change(self, sort: Sort, inode: Inode, old: Link | None, new: Link | None, kinds: tuple[Kind, ...]) -> Change:
        before = path_text(self._a.path(old)) if old is not None else None
        after = path_text(self._b.path(new)) if new is not None else None
        path = after if after is not None else before
        assert path is not None, "a change of nothing"
        return Change(path, sort, before, kinds, inode.mode, inode.number, inode.generation)

    def _kept_links(self, added: dict[int, list[Link]], changed: set[int]) -> dict[int, list[Link]]:
        """Return the names of changed inodes that both states have."""
        missing = {number: n_names(self._kept[number][1]) - len(added.get(number, ())) for number in changed}
        asked = {number: self._kept[number][1] for number, n in missing.items() if n and number != ROOT_INODE}
        known = {link for links in added.values() for link in links}
        found = _by_inode(link for link in self._b.find(asked, missing, known) if link not in known)
        for number in asked:
            if len(found.get(number, ())) != missing[number]:
                raise damaged(f"inode {number} has other names than it counts")
        return found

    # --- kinds ---

    def _kinds(self, x: Inode, y: Inode, is_moved: bool, has_entries: bool) -> tuple[Kind, ...]:
        """Tell what changed about an inode, besides its names and its entries."""
        content = not x.is_directory and _content_differs(x, y)
        links = not x.is_directory and x.nlink != y.nlink
        attributes = _plain_attributes(x) != _plain_attributes(y) or self._extended_differ(x, y)
        explained = content or has_entries
        attributes |= x.mtime_ns != y.mtime_ns and not explained
        accessed = x.atime_ns != y.atime_ns
        attributes |= self._atime and accessed
        explained |= attributes or links or is_moved or accessed  # setting the time of access changes ctime too
        attributes |= x.ctime_ns != y.ctime_ns and not explained
        flags: tuple[tuple[Kind, bool], ...] = (("content", content), ("attributes", attributes), ("links", links))
        return tuple(kind for kind, is_so in flags if is_so)

    def _extended_differ(self, x: Inode, y: Inode) -> bool:
        if not (x.attribute_inode or y.attribute_inode):
            return x.attributes != y.attributes
        return self._a.records.attributes(x) != self._b.records.attributes(y)


def _is_known_past(older: State, newer: State) -> bool:
    """Whether a state is one that another came from, and that it lists: copies of disks tell one history alike."""
    is_listed = older.pointer == newer.pointer or any(r.root == older.pointer for r in newer.listed_snapshots())
    return is_listed and descends_from(newer, older)


def _named(inode: Inode | None) -> Inode | None:
    """Return an inode that entries may name."""
    return inode if inode is not None and inode.mode and not inode.flags & (FLAG_ATTRIBUTES | FLAG_ORPHAN) else None


def _all_nodes(state: State, inodes: Iterable[Inode]) -> Iterator[tuple[int, PointerArray]]:
    return ((inode.number, pointers_of(state, inode)) for inode in inodes if inode.is_directory)


def _by_inode(links: Iterable[Link]) -> dict[int, list[Link]]:
    found: dict[int, list[Link]] = {}
    for link in links:
        found.setdefault(link.inode, []).append(link)
    return found


def _content_differs(x: Inode, y: Inode) -> bool:
    if (x.size_bytes, x.n_blocks, x.rdev, x.inline) != (y.size_bytes, y.n_blocks, y.rdev, y.inline):
        return True
    if x.root is None or y.root is None:
        return x.root is not y.root
    return x.root.depth != y.root.depth or bool((x.root.pointers != y.root.pointers).any())


def _plain_attributes(inode: Inode) -> tuple[int, ...]:
    return inode.mode, inode.uid, inode.gid, inode.dos_attributes, inode.created_ns
