"""How far known replicas are behind: in time, in blocks, in bytes that would travel."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError
from blockplane.transfer.standing import Standing, image_towards
from blockplane.volume.codec import KIND_REGULAR, NO_ID, SnapshotRecord
from blockplane.volume.live import LiveVolume
from blockplane.volume.markcodec import STATUS_NAMES
from blockplane.volume.pointers import MASTER


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """Where a replica stands.

    via : the replica that told of it, from which it pulls or that is between; empty: it pulls from here. status :
    `idle`, `under way`, `unknown`, `lost`. newest : the newest snapshot that it has and that is here; None: none.
    wanted : where the pointer stands; empty: nowhere. lag_s : how long ago the first snapshot was made that it has not;
    0: it has all. left_blocks : what would travel to it; None where that cannot be known, as of one that stands on
    another branch, or at what is unknown here. contact_ns : when it was last heard of.
    """

    name: str
    volume_id: str
    via: str
    status: str
    newest: str | None
    wanted: str
    lag_s: float
    left_blocks: int | None
    contact_ns: int
    error: str
    error_ns: int

    @property
    def left_bytes(self) -> int | None:
        """Bytes of the blocks that would travel."""
        return None if self.left_blocks is None else self.left_blocks * BLOCK_BYTES


def replicas(volume: LiveVolume, pointer: str = MASTER) -> list[ReplicaReport]:
    """Return where every known replica stands, held against a pointer, or a snapshot; in the order they were heard of.

    Raises
    ------
    NoSuchSnapshotError : there is none of that name, and it is not `master`, which may never have stood anywhere.

    Notes
    -----
    What would travel is counted by algebra, once for all that stand at one snapshot.
    """
    with volume.lock:
        known = volume.local.replication().replicas
        if not known:
            return []
        top = _top(volume, pointer)
        records = {entry.record.id: entry.record for entry in volume.local.entries()}
        line = [entry.record for entry in volume.local.ancestors(top.id)] if top is not None else []
        had = {at: {e.record.id for e in volume.local.ancestors(at)} for at in {replica.stands for replica in known}}
        status = {record.name: STATUS_NAMES.get(record.status, "unknown") for record in volume.local.destinations()}
    left = {
        at: _left(volume, top, records.get(at), line, had[at]) if at == NO_ID or at in records else None for at in had
    }
    names = {replica.volume_id: replica.name for replica in known}
    return [
        ReplicaReport(
            r.name, r.volume_id.hex(), names.get(r.via, "") if not r.is_direct else "",
            "lost" if r.is_lost else status.get(r.name, "idle"),
            records[r.stands].name if r.stands in records else None, top.name if top is not None else "",
            _lag_s(line, had[r.stands]), left[r.stands],
            r.contact_ns, r.error, r.error_ns,
        )
        for r in known
    ]  # fmt: skip


def _top(volume: LiveVolume, pointer: str) -> SnapshotRecord | None:
    if pointer == MASTER and MASTER not in volume.local.replication().standing:
        return None
    return volume.local.entry(pointer).record


def _left(
    volume: LiveVolume,
    top: SnapshotRecord | None,
    stands: SnapshotRecord | None,
    line: list[SnapshotRecord],
    had: set[bytes],
) -> int | None:
    """Return how many blocks would travel to one that stands there, and had those that this one descends from."""
    if top is None:
        return None
    if top.id in had:
        return 0
    if stands is not None and stands not in line:
        return None
    there = (replace(stands, kind=KIND_REGULAR),) if stands is not None else ()
    try:
        return image_towards(volume, top.name, Standing(NO_ID, NO_ID, NO_ID, there, ())).n_blocks
    except BlockplaneError:
        return None


def _lag_s(line: list[SnapshotRecord], had: set[bytes]) -> float:
    """Return how long ago the first snapshot of a line was made that is newer than all that a replica had."""
    n_had = max((at + 1 for at, record in enumerate(line) if record.id in had), default=0)
    lacking = [record for record in line[n_had:] if record.kind == KIND_REGULAR]
    return max((time.time_ns() - lacking[0].created_ns) / 1e9, 0.0) if lacking else 0.0
