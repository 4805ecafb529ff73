"""What a volume has beyond a snapshot: what it would lose if it went back to it. By algebra; no block is read."""

from __future__ import annotations

from dataclasses import dataclass

from blockplane.image.blockdiff import block_difference, n_in_any
from blockplane.model.errors import NoSuchSnapshotError
from blockplane.volume.codec import FORM_EMPTY, KIND_REGULAR, NO_ID, TableEntry
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrorstates import is_own
from blockplane.volume.snapshots import standing_at


@dataclass(frozen=True, slots=True)
class Since:
    """What a volume has beyond one of its snapshots, as of its last consistency point.

    snapshots : names of the regular ones that the live file system descends from and that are newer, without those that
    mirrors made. n_blocks : of the live file system, that the snapshot has not. is_changed : whether its files are
    others. n_unnamed : older ones that are not named: a network carries the names of the newest 256. n_to_bring : of
    the live file system and of the snapshots between: what an update from the snapshot brings.
    """

    snapshots: tuple[str, ...]
    n_blocks: int
    is_changed: bool
    n_unnamed: int = 0
    n_to_bring: int = 0

    @property
    def n_snapshots(self) -> int:
        """How many these are."""
        return len(self.snapshots) + self.n_unnamed

    @property
    def is_nothing(self) -> bool:
        """Whether it stands exactly at the snapshot."""
        return not (self.snapshots or self.is_changed)


def what_is_since(volume: LiveVolume, snapshot_id: bytes) -> Since:
    """Return what a volume has beyond a snapshot; NO_ID: beyond nothing. The caller has committed.

    Raises
    ------
    NoSuchSnapshotError : it has none of that id.
    """
    with volume.lock:
        line = [entry.record for entry in volume.local.ancestors(volume.local.root.parent_id)]
        ids = [record.id for record in line]
        newer = line[ids.index(snapshot_id) + 1 :] if snapshot_id in ids else line
        names = tuple(r.name for r in newer if r.kind == KIND_REGULAR and not is_own(r.name))
        if snapshot_id == NO_ID:
            is_changed = volume.active.root.inode_file.form != FORM_EMPTY
            return Since(names, volume.committed.root.n_blocks, is_changed, n_to_bring=n_to_bring(volume, None))
        found = next((each for each in volume.local.entries() if each.record.id == snapshot_id), None)
        if found is None:
            raise NoSuchSnapshotError(f"{volume.path} has no snapshot of id {snapshot_id.hex()}", "it was deleted")
        name, is_changed = found.record.name, not has_files_of(volume, found)
        added = block_difference(volume, name, None).added
        at = standing_at(volume)  # whose record the live file system has beside what travels
        return Since(names, len(added), is_changed, n_to_bring=n_to_bring(volume, name, at.record.name if at else None))


def n_to_bring(volume: LiveVolume, since: str | None, until: str | None = None) -> int:
    """Return how many blocks an update brings: of a state, and of the snapshots between that are no mirror's own.

    Parameters
    ----------
    since : the snapshot that it is brought onto; None: nothing is there. until : the snapshot that is brought; None:
    the live file system.
    """
    with volume.lock:
        stop = volume.local.entry(until).record.id if until is not None else volume.local.root.parent_id
        line = [entry.record for entry in volume.local.ancestors(stop)]
        there = {e.record.id for e in volume.local.ancestors(volume.local.entry(since).record.id)} if since else set()
        newer = [r for r in line if r.kind == KIND_REGULAR and r.id not in there and not is_own(r.name)]
        return n_in_any(volume, [until, *(r.name for r in newer)], [since] if since is not None else [])


def has_files_of(volume: LiveVolume, entry: TableEntry) -> bool:
    """Whether the files of the live file system are a snapshot's: by the root of the inode file, which names all."""
    mine, theirs = volume.active.root.inode_file, volume.snapshot_state(entry).root.inode_file
    return mine.form == theirs.form and bool((mine.pointers == theirs.pointers).all())
