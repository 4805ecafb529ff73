"""What a put did."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockplane.filesystem.metadata import keeps_time

if TYPE_CHECKING:
    from blockplane.filesystem.hostread import HostEntry


@dataclass(slots=True)
class PutReport:
    """What a put did.

    n_blocks_written: blocks of content, and of attributes that have their own. Content of up to 256 bytes lies in the
    inode and takes none.
    skipped: (host path, reason) of what could not be read, which cp would complain about too, or not be kept, and was
    left out: a file, a directory, or of either only what the reason names.
    changed: (host path, reason) of files that went in as they were read, and changed while the tree was copied: some
    bytes may be older than others, and what grew behind the listed size was left out.
    """

    n_files: int = 0
    n_directories: int = 0
    n_others: int = 0
    n_bytes: int = 0
    n_blocks_written: int = 0
    n_removed: int = 0
    n_excluded: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    changed: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, entry: HostEntry, reason: str) -> None:
        """Note that an entry of the host, or something of it, was left out."""
        self.skipped.append((os.fsdecode(entry.path), reason))

    def count(self, entry: HostEntry) -> None:
        """Count an entry that is copied, and name what of it cannot be kept."""
        self._add(entry.kind, 1)
        if not keeps_time(entry.stat):
            self.skip(entry, "its time of modification lies beyond what is kept (1677 to 2262)")

    def uncount(self, entry: HostEntry) -> None:
        """Take an entry back that was counted and is not there."""
        self._add(entry.kind, -1)

    def _add(self, kind: int, n: int) -> None:
        self.n_files += n * (kind == stat.S_IFREG)
        self.n_directories += n * (kind == stat.S_IFDIR)
        self.n_others += n * (kind not in (stat.S_IFREG, stat.S_IFDIR))
