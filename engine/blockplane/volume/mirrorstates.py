"""Snapshots that mirrors make for themselves, `mirror.NAME.TIME`, and delete again: what only they have is kept first.

They are there for a moment, and keep nothing for a person. While the live state is one of them, or came from it, that
is no loss; once the live state is given up for one that does not descend from it, somebody's work may be in it alone.
Then it is not a mirror's any more, and has a name that says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from blockplane.volume.codec import TableEntry
from blockplane.volume.lines import descends_from

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: What mirrors call their own snapshots.
OWN_NAME: Final = re.compile(r"mirror\.[^.]+\.[0-9a-f]{8}\.\d{8}T\d{6}\.\d{6}Z")
#: What a snapshot is called that keeps what a transfer, or the end of a rehearsal, replaced.
_KEPT: Final = "kept-{}"
_KEPT_NAME: Final = re.compile(r"kept-\d{8}T\d{6}Z-[0-9a-f]{8}(\.\d+)?")


def is_own(name: str, prefix: str | tuple[str, ...] = "") -> bool:
    """Whether a snapshot is a mirror's own, by its name; prefix: of the mirror's, or mirrors', that count."""
    return name.startswith(prefix) and OWN_NAME.fullmatch(name) is not None


def is_passed(volume: LiveVolume, entry: TableEntry) -> bool:
    """Whether the live state is a snapshot, or came from it by changes alone. The caller has committed.

    By the table's line, and by branches: a line says only on what a state was built here.
    """
    if all(each.record.id != entry.record.id for each in volume.local.ancestors(volume.local.root.parent_id)):
        return False
    older = volume.known_state(entry)
    return older is not None and descends_from(volume.committed, older)


def only_in(volume: LiveVolume, at: TableEntry | None, towards: TableEntry | None = None) -> TableEntry | None:
    """Return the snapshot that has the live state, where none does but mirrors' own; None: another has it too.

    Parameters
    ----------
    at : where the live state stands, see `standing_at`. towards : what is to be live next: with the same files, nothing
    is given up, and it is None too.
    """
    if at is None or not is_own(at.record.name) or (towards is not None and _has_same_files(volume, at, towards)):
        return None
    return at if all(is_own(entry.record.name) for entry in of_same_files(volume, at)) else None


def of_same_files(volume: LiveVolume, at: TableEntry) -> list[TableEntry]:
    """Return a snapshot and those just before it on its line that have the same files, newest first."""
    found = [at]
    for entry in volume.local.ancestors(at.record.id)[-2::-1]:
        if entry.is_shadow or entry.is_deleting or not _has_same_files(volume, at, entry):
            break
        found.append(entry)
    return found


def _has_same_files(volume: LiveVolume, one: TableEntry, other: TableEntry) -> bool:
    """Whether two regular snapshots have the same files: by the roots of the inode files, which name all."""
    state, known = volume.snapshot_state(one), volume.known_state(other)
    return known is not None and bool((known.root.inode_file.pointers == state.root.inode_file.pointers).all())


def kept_name(volume: LiveVolume) -> str:
    """Return a name for a snapshot that keeps what is replaced, see `name_to_keep`."""
    return name_to_keep(volume.info.volume_id.hex(), {entry.record.name for entry in volume.local.entries()})


def name_to_keep(volume_id: str, taken: Collection[str]) -> str:
    """Return a name that is not taken: when, and whose it is.

    Snapshots travel, and two volumes may keep theirs in the same second.
    """
    stamp = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{volume_id[:8]}"
    names = (_KEPT.format(stamp if n == 0 else f"{stamp}.{n}") for n in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def is_kept(name: str) -> bool:
    """Whether a snapshot keeps what was replaced, by its name."""
    return _KEPT_NAME.fullmatch(name) is not None
