"""Where inodes lie in a committed state: paths of directories by the parents they name, names by searching those.

No inode tells its name: it is looked for in the directory that the inode names as its parent. That directory is read
once for all inodes that are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping

from blockplane.filesystem.entryscan import EntryScan, Link
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import ROOT_INODE, Inode
from blockplane.filesystem.records import Records


def n_names(inode: Inode) -> int:
    """Return how many entries lead to an inode."""
    return 1 if inode.is_directory else inode.nlink


class Whereabouts:
    """Paths in one state."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.scan = EntryScan(records)
        self._elsewhere: Whereabouts | None = None
        self._own: Mapping[int, object] = {}
        self._homes: dict[int, Link] = {}
        self._paths: dict[int, bytes] = {ROOT_INODE: b""}

    @property
    def n_reads(self) -> int:
        """Blocks of the inode file and of directories that were read."""
        return self.records.n_reads + self.scan.n_reads

    def share(self, elsewhere: Whereabouts, own: Mapping[int, object]) -> None:
        """Take the paths of all directories but one's own from another state, in which they are the same."""
        self._elsewhere, self._own = elsewhere, own

    def learn(self, links: Iterable[Link]) -> None:
        """Take the names of directories from entries that were read already."""
        self._homes.update((link.inode, link) for link in links)

    def resolve(self, directories: Iterable[int], others: Mapping[int, Inode]) -> list[Link]:
        """Find the paths of directories, and return the names of other inodes in the directories that hold them.

        Returns
        -------
        links to `others` in the directories they name as parent, and in those that were read besides.
        """
        parents = {inode.parent for inode in others.values() if inode.parent}
        nameless = self._nameless({*directories, *parents})
        homes = {self.records.get(number).parent for number in nameless}
        wanted = {*nameless, *others}
        self.records.fetch(homes | parents)
        found: list[Link] = []
        for link in self.scan.links_to(wanted, [self._directory(number) for number in sorted(homes | parents)]):
            if link.inode in others:
                found.append(link)
            if link.inode in nameless:
                self._homes[link.inode] = link
        return found

    def search(self, others: Mapping[int, Inode]) -> list[Link]:
        """Return all names of inodes; reads every directory of the state."""
        found = list(self.scan.links_to(set(others), self.scan.all_directories())) if others else []
        self.resolve((link.directory for link in found), {})
        return found

    def find(self, others: Mapping[int, Inode], wanted: Mapping[int, int], known: Container[Link] = ()) -> list[Link]:
        """Return names of inodes: those in the directories they name as parent; all, where too few of them are new."""
        found = self.resolve((), others)
        counts = Counter(link.inode for link in found if link not in known)
        rest = {number: inode for number, inode in others.items() if counts[number] < wanted[number]}
        return [link for link in found if link.inode not in rest] + self.search(rest)

    def names(self, inodes: Mapping[int, Inode]) -> dict[int, list[bytes]]:
        """Return all paths of inodes that are in use."""
        found: dict[int, list[bytes]] = {ROOT_INODE: [b"/"]} if ROOT_INODE in inodes else {}
        others = {number: inode for number, inode in inodes.items() if number != ROOT_INODE}
        for link in self.find(others, {number: n_names(inode) for number, inode in others.items()}):
            found.setdefault(link.inode, []).append(self.path(link))
        return found

    def _nameless(self, directories: set[int]) -> set[int]:
        """Return the directories, those above them included, whose names are not known."""
        nameless: set[int] = set()
        seen: set[int] = set()
        elsewhere: set[int] = set()
        frontier = directories
        while frontier:
            seen |= frontier
            here = {number for number in frontier if number not in self._paths}
            if self._elsewhere is not None:
                elsewhere |= here - self._own.keys()
                here &= self._own.keys()
            self.records.fetch(here - self._homes.keys())
            nameless |= here - self._homes.keys()
            homes = (self._homes.get(number) for number in here)
            above = {home.directory for home in homes if home is not None}
            above |= {self._directory(number).parent for number in here - self._homes.keys()}
            frontier = above - seen
        if self._elsewhere is not None:
            self._elsewhere.resolve(elsewhere, {})
        return nameless

    def _directory(self, number: int) -> Inode:
        inode = self.records.get(number)
        if not inode.is_directory:
            raise damaged(f"inode {number} is named as a parent and is no directory")
        return inode

    def path(self, link: Link) -> bytes:
        """Return the path of an entry, whose directory was resolved."""
        return self._path_of(link.directory) + b"/" + link.name

    def _path_of(self, directory: int) -> bytes:
        """Return a directory's path; empty for the root."""
        pending: list[int] = []
        number = directory
        while number not in self._paths:
            if self._elsewhere is not None and number not in self._own:
                self._paths[number] = self._elsewhere._path_of(number)
                break
            home = self._homes.get(number)
            if home is None or len(pending) > len(self._homes):
                raise damaged(f"directory {number} lies nowhere")
            pending.append(number)
            number = home.directory
        for below in reversed(pending):
            home = self._homes[below]
            self._paths[below] = self._paths[home.directory] + b"/" + home.name
        return self._paths[directory]
