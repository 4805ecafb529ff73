"""The file system's check: every inode, directory and link of a state. Blocks and planes are `volume.check`'s."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blockplane.filesystem.directory import Entry
from blockplane.filesystem.directory_node import hash_name
from blockplane.filesystem.inode import FLAG_ATTRIBUTES, FLAG_FREE, INODES_PER_BLOCK, ROOT_INODE, Inode
from blockplane.filesystem.names import name_is_valid, path_text
from blockplane.filesystem.store import Store
from blockplane.model import BLOCK_BYTES, BlockplaneError, VolumeDamagedError

_MAX_PROBLEMS = 1000


@dataclass(slots=True)
class CheckReport:
    """What a check counted and what it found wrong, in sentences; at most 1,000 of them."""

    n_inodes: int = 0
    n_directories: int = 0
    n_files: int = 0
    n_entries: int = 0
    n_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, problem: str) -> None:
        """Note a problem."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


def check_store(store: Store, step: Callable[[], None] = lambda: None) -> CheckReport:
    """Check a state: links against entries, parents, order and hashes of entries, sizes, attributes, lists of inodes.

    Parameters
    ----------
    step : called for each inode; may raise.

    Notes
    -----
    Reads every inode and every directory once; memory grows by about 200 bytes an inode. The store's lock is held.
    """
    with store.lock:
        return _Check(store, step).run()


class _Check:
    def __init__(self, store: Store, step: Callable[[], None]) -> None:
        self._store, self._step = store, step
        self.report = CheckReport()
        self._links: dict[int, int] = {}
        self._kinds: dict[int, int] = {}
        self._homes: dict[int, int] = {}
        self._homeless: set[int] = set()

    def run(self) -> CheckReport:
        """Walk the directories from the root, then all inodes."""
        self._links[ROOT_INODE] = 1
        try:
            self._walk()
            self._check_inodes()
        except VolumeDamagedError as error:
            self.report.add(str(error))
        return self.report

    def _walk(self) -> None:
        pending = [ROOT_INODE]
        seen = {ROOT_INODE}
        while pending:
            self._step()
            number = pending.pop()
            try:
                inode = self._store.inodes.get(number)
                entries = list(self._entries(inode))
            except BlockplaneError as error:
                self.report.add(str(error))
                continue
            self.report.n_directories += 1
            self._check_directory(inode, entries)
            for entry in entries:
                if entry.type << 12 == stat.S_IFDIR:
                    if entry.inode in seen:
                        self.report.add(f"directory {entry.inode} lies in two places, one of them {number}")
                        continue
                    seen.add(entry.inode)
                    pending.append(entry.inode)

    def _entries(self, inode: Inode) -> Iterator[Entry]:
        """Yield a directory's entries, each checked by itself."""
        last = (-1, b"")
        for entry in self._store.directory(inode).entries():
            key = hash_name(entry.name), entry.name
            if not name_is_valid(entry.name):
                self.report.add(f"directory {inode.number}: {path_text(entry.name)!r} is not a valid name")
            if key <= last or self._store.directory(inode).find(entry.name) != entry:
                self.report.add(f"directory {inode.number}: {path_text(entry.name)!r} is not where its hash says")
            last = key
            yield entry

    def _check_directory(self, inode: Inode, entries: list[Entry]) -> None:
        report = self.report
        report.n_entries += len(entries)
        n_directories = 0
        for entry in entries:
            self._links[entry.inode] = self._links.get(entry.inode, 0) + 1
            if self._kinds.setdefault(entry.inode, entry.type) != entry.type:
                report.add(f"inode {entry.inode} is entered under two types")
            if entry.type << 12 == stat.S_IFDIR:
                n_directories += 1
                self._homes[entry.inode] = inode.number
            elif self._homes.get(entry.inode) is None:
                self._homes[entry.inode] = inode.number
            self._note_home(entry, inode)
        if inode.n_entries != len(entries):
            report.add(f"directory {inode.number} counts {inode.n_entries} entries and has {len(entries)}")
        if inode.nlink != 2 + n_directories:
            report.add(f"directory {inode.number} has {inode.nlink} links instead of {2 + n_directories}")

    def _note_home(self, entry: Entry, directory: Inode) -> None:
        """Note whether the directory that the inode names as its parent holds it."""
        try:
            inode = self._store.inodes.get(entry.inode)
        except BlockplaneError as error:
            self.report.add(f"entry {path_text(entry.name)!r} of directory {directory.number}: {error}")
            return
        if inode.mode >> 12 != entry.type:
            self.report.add(
                f"entry {path_text(entry.name)!r} of directory {directory.number} has another type than its inode"
            )
        if inode.parent == directory.number or (not inode.parent and not inode.is_directory):
            self._homeless.discard(entry.inode)
            self._homes[entry.inode] = -1
        elif self._homes.get(entry.inode) != -1:
            self._homeless.add(entry.inode)

    def _numbers(self) -> Iterator[int]:
        """Yield the numbers of inodes that have a place in the inode file; of a committed state a hole is damage."""
        store, stop = self._store, self._store.inodes.stop
        if store.volume is not None or store.inodes.is_new:
            yield from range(ROOT_INODE, stop)
            return
        at = 0
        for start, end in (store.state.inode_file.data_extents() * INODES_PER_BLOCK).tolist():
            if at < min(start, stop):
                self.report.add(f"inodes {at} to {min(start, stop) - 1} lie in a hole of the inode file")
            yield from range(max(start, ROOT_INODE), min(end, stop))
            at = end
        if at < stop:
            self.report.add(f"the inode table counts up to {stop - 1}, and the inode file ends before {at}")

    def _check_inodes(self) -> None:
        store, report = self._store, self.report
        free = store.inodes.free_numbers()
        orphans = {inode.number for inode in store.inodes.orphans()}
        for number in sorted(self._homeless):
            report.add(f"inode {number} names a parent that does not hold it")
        n_used = 0
        holders: dict[int, int] = {}
        for number in self._numbers():
            self._step()
            try:
                inode = store.inodes.peek(number)
            except BlockplaneError as error:
                report.add(str(error))
                continue
            if not inode.mode:
                if number not in free or not inode.flags & FLAG_FREE:
                    report.add(f"inode {number} is free but not on the list of free inodes")
                if number in self._links:
                    report.add(f"inode {number} is free and has an entry")
                continue
            n_used += 1
            if number in free:
                report.add(f"inode {number} is in use and on the list of free inodes")
            self._check_inode(inode, number in orphans, holders)
        for number, owner in holders.items():
            if number >= 0:
                report.add(f"inode {number} holds attributes of inode {owner}, which has others")
        report.n_inodes = n_used
        if n_used != store.inodes.n_inodes:
            report.add(f"the inode table counts {store.inodes.n_inodes} inodes in use and has {n_used}")
        root = store.state.root
        if store.volume is None and not store.inodes.is_new:  # a live state's root is brought up to date by its CP
            told, found = (root.n_inodes, root.next_inode), (store.inodes.n_inodes, store.inodes.stop)
            if told != found:
                report.add(f"the state root says {told[0]} inodes below {told[1]}, the table {found[0]} and {found[1]}")

    def _check_inode(self, inode: Inode, is_orphan: bool, holders: dict[int, int]) -> None:
        report, number = self.report, inode.number
        try:
            self._check_content(inode)
            if inode.flags & FLAG_ATTRIBUTES:
                owner = self._store.inodes.peek(inode.parent)
                if owner.attribute_inode != number:
                    report.add(f"inode {number} holds attributes of inode {inode.parent}, which does not name it")
                return
            self._store.attributes(inode)
        except BlockplaneError as error:
            report.add(str(error))
        n_links = self._links.get(number, 0)
        if inode.is_directory:
            if not n_links:
                report.add(f"directory {number} lies nowhere")
            return
        if not n_links and not is_orphan:
            report.add(f"inode {number} has no entry")
        if inode.nlink != n_links:
            report.add(f"inode {number} has {inode.nlink} links and {n_links} entries")

    def _check_content(self, inode: Inode) -> None:
        """Check size, inline bytes and blocks against each other."""
        report, number = self.report, inode.number
        if stat.S_ISREG(inode.mode) and not inode.flags & FLAG_ATTRIBUTES:
            report.n_files += 1
            report.n_bytes += inode.size_bytes
        tree = self._store.tree(inode)
        n_blocks = 0
        if tree is not None:
            try:
                extents = tree.data_extents()
            except VolumeDamagedError as error:
                report.add(f"inode {number}: {error}")
                return
            n_blocks = int((extents[:, 1] - extents[:, 0]).sum())
            if len(extents) and int(extents[-1, 1]) * BLOCK_BYTES >= inode.size_bytes + BLOCK_BYTES:
                report.add(f"inode {number} has blocks behind its end")
        if n_blocks != inode.n_blocks and not inode.is_directory:
            report.add(f"inode {number} counts {inode.n_blocks} blocks and has {n_blocks}")
        if stat.S_ISLNK(inode.mode):
            self._store.link_target(inode)
