"""Entering: what a put copied waits until it is complete, and is entered in its directories together."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from blockplane.filesystem.errors import ExistsError
from blockplane.filesystem.inode import FLAG_ORPHAN
from blockplane.filesystem.metadata import set_metadata
from blockplane.model import BlockplaneError

if TYPE_CHECKING:
    from blockplane.filesystem.hostread import HostEntry
    from blockplane.filesystem.inode import Inode
    from blockplane.filesystem.putreport import PutReport
    from blockplane.filesystem.store import Store

DIRECTORY_GONE = "its directory in the volume was removed while the tree was copied"
_NAME_TAKEN = "its name in the volume was taken while the tree was copied"


class Target:
    """A directory that is being filled: fresh children wait here until they are complete and are entered together."""

    __slots__ = ("entry", "inode", "is_fresh", "ready")

    def __init__(self, inode: Inode, entry: HostEntry, is_fresh: bool) -> None:
        self.inode = inode
        self.entry = entry
        self.is_fresh = is_fresh
        self.ready: list[tuple[HostEntry, Inode]] = []

    @property
    def is_gone(self) -> bool:
        """Whether somebody removed it between two batches; a number that is used again is another inode."""
        return not self.inode.mode


class Entering:
    """The directories that a batch changes; the caller holds the store's lock."""

    def __init__(self, store: Store, report: PutReport) -> None:
        self._store = store
        self._report = report
        self._touched: dict[Target, None] = {}

    def touch(self, target: Target) -> None:
        """Have a directory look as on the host when the batch ends."""
        self._touched[target] = None

    def add(self, target: Target, child: HostEntry, inode: Inode) -> None:
        """Have a complete child entered when the batch ends."""
        target.ready.append((child, inode))
        self.touch(target)

    def enter(self) -> None:
        """Enter complete children in their directories, whose own times are then the host's again.

        Those whose directory is gone go as well, and are reported.

        Raises
        ------
        BlockplaneError : the first of what kept children from being entered; all other directories are filled.
        """
        touched, self._touched = list(self._touched), {}
        left: list[tuple[HostEntry, Inode]] = []
        failures = [error for target in touched if (error := self._fill(target, left)) is not None]
        for child, inode in left:  # only now: one that has another name stays
            if inode.mode and not inode.nlink:
                self._report.uncount(child)
                self._store.destroy(inode)
        if failures:
            raise failures[0]

    def _fill(self, target: Target, left: list[tuple[HostEntry, Inode]]) -> BlockplaneError | None:
        """Enter what waits for a directory; what cannot be entered is added to what is left."""
        ready = [(child, inode) for child, inode in target.ready if inode.mode and not inode.flags & FLAG_ORPHAN]
        target.ready = []
        if target.is_gone:
            left += ready
            for child, _ in ready:
                self._report.skip(child, DIRECTORY_GONE)
            return None
        try:
            self._enter_children(target, ready, left)
            if target.entry.kind == stat.S_IFDIR and target.inode.is_directory:
                self._report.n_blocks_written += set_metadata(self._store, target.inode, target.entry)
        except BlockplaneError as error:
            left += ready
            return error
        return None

    def _enter_children(
        self, target: Target, ready: list[tuple[HostEntry, Inode]], left: list[tuple[HostEntry, Inode]]
    ) -> None:
        distinct = len({child.name for child, _ in ready}) == len(ready)
        if ready and not target.inode.n_entries and distinct:
            self._store.fill_directory(target.inode, [(child.name, inode) for child, inode in ready])
            return
        for child, inode in ready:
            try:
                self._store.add_entry(target.inode, child.name, inode)
            except ExistsError:
                left.append((child, inode))
                self._report.skip(child, _NAME_TAKEN)
