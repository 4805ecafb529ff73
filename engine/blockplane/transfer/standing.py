"""What a volume says of itself to the other end of a transfer, and the image that brings it further."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from blockplane.disks import GroupRecord
from blockplane.image.image import Image, build
from blockplane.transfer.destination import settled
from blockplane.transfer.resume import InterruptedReceive, interrupted_receives
from blockplane.volume import replicas
from blockplane.volume.codec import KIND_REGULAR, KIND_SHADOW, NO_ID, SnapshotRecord
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrorcodec import MirrorRecord
from blockplane.volume.mirrorstates import of_same_files
from blockplane.volume.replicationcodec import PointerRecord, ReplicaRecord
from blockplane.volume.snapshots import standing_at


@dataclass(frozen=True)
class Standing:
    """What a volume says of itself.

    space_id : of its live file system's numbering; NO_ID: it was never written to. at : id of the snapshot that has all
    that the live file system has; NO_ID: none has. snapshots : older first, of every kind. interrupted : receives that
    can be gone on with. label : what its replica may be called. generation : counts its consistency points. pointers :
    with those that were deleted. below : where those stand that pull from it, or further down. groups : its geometry.
    mirror : whose mirror it is; None: nobody's, or it does not say. parent : id of the snapshot that the live file
    system descends from; NO_ID: there is none, or it does not say. first : id of the oldest on the line that has the
    same files as `at`; NO_ID: there is none, or it does not say.
    """

    volume_id: bytes
    space_id: bytes
    at: bytes
    snapshots: tuple[SnapshotRecord, ...]
    interrupted: tuple[InterruptedReceive, ...]
    label: str = ""
    generation: int = 0
    pointers: tuple[PointerRecord, ...] = ()
    below: tuple[ReplicaRecord, ...] = ()
    groups: tuple[GroupRecord, ...] = ()
    mirror: MirrorRecord | None = None
    parent: bytes = NO_ID
    first: bytes = NO_ID

    @cached_property
    def whole(self) -> dict[bytes, SnapshotRecord]:
        """The snapshots that can be built upon, by id."""
        return {record.id: record for record in self.snapshots if record.kind == KIND_REGULAR}

    @cached_property
    def _names_and_ids(self) -> tuple[frozenset[str], frozenset[bytes]]:
        return frozenset(r.name for r in self.snapshots), frozenset(r.id for r in self.snapshots)

    def has_other(self, record: SnapshotRecord) -> bool:
        """Whether it has another snapshot of a record's name, and not that one, which so cannot arrive."""
        names, ids = self._names_and_ids
        return record.name in names and record.id not in ids

    @cached_property
    def shown(self) -> dict[bytes, SnapshotRecord]:
        """The snapshots of the line that have all that the live file system has, by id: from `first` to `at`.

        Who makes a snapshot of what was brought to it stands at that one, and shows the same.
        """
        line = self.line
        ids = [record.id for record in line]
        if self.at not in ids:
            return {}
        start = ids.index(self.first) if self.first in ids else ids.index(self.at)
        return {record.id: record for record in line[start : ids.index(self.at) + 1]}

    @cached_property
    def line(self) -> list[SnapshotRecord]:
        """The whole snapshots that the live file system is, or descends from, older first."""
        by_id = {record.id: record for record in self.snapshots}
        found: list[SnapshotRecord] = []
        at = self.parent
        while (record := by_id.pop(at, None)) is not None:
            if record.kind == KIND_REGULAR:
                found.append(record)
            at = record.parent_id
        return found[::-1]


def standing_of(volume: LiveVolume) -> Standing:
    """Return what a volume says of itself; everything so far is committed."""
    with settled(volume):
        at = standing_at(volume) if volume.was_written else None
        return Standing(
            volume.info.volume_id,
            volume.committed.root.space_id if volume.was_written else NO_ID,
            at.record.id if at is not None else NO_ID,
            tuple(entry.record for entry in volume.local.entries()),
            tuple(interrupted_receives(volume)),
            label=volume.path.name,
            generation=volume.info.generation,
            pointers=volume.local.replication().pointers,
            below=tuple(replicas.reported(volume)),
            groups=volume.geometry.groups,
            mirror=volume.local.root.mirror,
            parent=volume.local.root.parent_id,
            first=of_same_files(volume, at)[-1].record.id if at is not None else NO_ID,
        )


def known_below(volume: LiveVolume, standing: Standing) -> list[ReplicaRecord]:
    """Return where those below the other side stand, by what is known here.

    One that follows what was made on the way has what that came from: not what has the very same state, which does not
    arrive as a snapshot with it.
    """
    with volume.lock:
        here = {entry.record.id for entry in volume.local.entries()}
    came_from = {at: _came_from(standing, at, here) for at in {below.stands for below in standing.below} - here}
    return [replace(below, stands=came_from.get(below.stands, below.stands)) for below in standing.below]


def _came_from(standing: Standing, at: bytes, here: Collection[bytes]) -> bytes:
    """Return the newest snapshot here that one of the other side descends from; that one itself where there is none."""
    by_id = {record.id: record for record in standing.snapshots}
    record = stands = by_id.pop(at, None)
    while record is not None and stands is not None:
        if record.id in here and record.root != stands.root:
            return record.id
        record = by_id.pop(record.parent_id, None)
    return at


def common_state(volume: LiveVolume, standing: Standing) -> SnapshotRecord | None:
    """Return the newest snapshot that the live states of both sides descend from, found by ids and histories.

    It is whole on both sides: what it holds need not travel.
    """
    theirs = {record.id: record for record in standing.line}
    for record in reversed(standing_of(volume).line):
        if record.id in theirs and theirs[record.id].space_id == record.space_id:
            return record
    return None


def meeting(volume: LiveVolume, top: str, whole: dict[bytes, SnapshotRecord]) -> SnapshotRecord | None:
    """Return the newest snapshot that a top descends from, or is, and that the other side can build on; None: none.

    It may be a shadow here: it is only subtracted.
    """
    with volume.lock:
        line = [entry.record for entry in volume.local.ancestors(volume.local.entry(top).record.id)]
    for record in reversed(line):
        theirs = whole.get(record.id)
        if theirs is not None and theirs.space_id == record.space_id and record.kind in (KIND_REGULAR, KIND_SHADOW):
            return record
    return None


def image_towards(
    volume: LiveVolume, top: str, standing: Standing, exclude: Sequence[str] = (), keep_out: Collection[bytes] = ()
) -> Image:
    """Return the image that brings a snapshot, and those between, to who stands there: an increment if it can be.

    Parameters
    ----------
    exclude : snapshots between that are not to arrive. keep_out : ids of those that must not, whatever blocks do.
    """
    base = base_for(volume, top, standing)
    if base is None:
        return build(volume, top, older="all" if not exclude else _older(volume, top, exclude), keep_out=keep_out)
    if base.name == top:
        return build(volume, top, keep_out=keep_out)
    listed = _listed(volume, top)
    news = [r for r in _line(volume, top, after=base.id) if r.id in listed and r.id not in standing.whole]
    between = [record.name for record in news if record.name not in (*exclude, top)]
    with_ = [] if base.id in listed else [base.name]
    return build(volume, " + ".join([top, *between]) + f" - {base.name}", with_=with_, keep_out=keep_out)


def base_for(volume: LiveVolume, top: str, standing: Standing) -> SnapshotRecord | None:
    """Return what an image of a top builds on: where both meet, else the newest that both have on whatever line.

    One name has one content in a volume, so the difference of two snapshots of it is right whatever their histories.
    """
    found = meeting(volume, top, standing.whole)
    if found is not None:
        return found
    with volume.lock:
        mine = [entry.record for entry in volume.local.regular()]
    there = standing.whole
    both = [r for r in mine if r.kind == KIND_REGULAR and r.id in there and there[r.id].space_id == r.space_id]
    return max(both, key=lambda record: (record.cp, record.created_ns), default=None)


def _older(volume: LiveVolume, top: str, exclude: Sequence[str]) -> list[str]:
    """Return what an image of all of a top's line has beside it: not what the top itself knows nothing of."""
    listed = _listed(volume, top)
    return [r.name for r in _line(volume, top) if r.id in listed and r.name not in (*exclude, top)]


def _listed(volume: LiveVolume, top: str) -> dict[bytes, SnapshotRecord]:
    """Return the snapshots that a top's own state lists, by id."""
    with volume.lock:
        state = volume.snapshot_state(volume.local.entry(top))
    return {record.id: record for record in state.listed_snapshots()}


def _line(volume: LiveVolume, top: str, after: bytes = NO_ID) -> list[SnapshotRecord]:
    """Return the regular snapshots that a top descends from, newest first, down to one and without it."""
    with volume.lock:
        line = [entry.record for entry in volume.local.ancestors(volume.local.entry(top).record.id)]
    ids = [record.id for record in line]
    newer = line[ids.index(after) + 1 :] if after in ids else line
    return [record for record in reversed(newer) if record.kind == KIND_REGULAR]
