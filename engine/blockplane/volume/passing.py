"""Who has passed a master snapshot: replicas that stand at a later one of its line.

Nobody waits for one that no pointer leads to: pointers stand at what replicas are brought, and at what came before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from blockplane.volume.codec import FLAG_MASTER, KIND_REGULAR, NO_ID, TableEntry
from blockplane.volume.replicationcodec import ReplicaRecord

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def waiting_for(volume: LiveVolume, entry: TableEntry) -> list[str]:
    """Return which known replicas have not passed a snapshot, if it is a master; without those that are lost."""
    if not entry.record.flags & FLAG_MASTER or entry.record.kind != KIND_REGULAR or not _is_led_to(volume, entry):
        return []
    return [replica.name for replica in not_past(volume, entry) if not replica.is_lost]


def not_past(volume: LiveVolume, entry: TableEntry) -> Iterator[ReplicaRecord]:
    """Yield the replicas that have not passed a snapshot."""
    passed: dict[bytes, bool] = {}
    for replica in volume.local.replication().replicas:
        if replica.stands not in passed:
            passed[replica.stands] = _is_before(volume, entry, replica.stands)
        if not passed[replica.stands]:
            yield replica


def _is_led_to(volume: LiveVolume, entry: TableEntry) -> bool:
    """Whether a pointer stands at a snapshot, or at a later one of its line."""
    targets = set(volume.local.replication().standing.values())
    return entry.record.id in targets or any(_is_before(volume, entry, target) for target in targets)


def _is_before(volume: LiveVolume, entry: TableEntry, snapshot_id: bytes) -> bool:
    """Whether a snapshot is an older one of another's line."""
    line = volume.local.ancestors(snapshot_id)[:-1] if snapshot_id != NO_ID else []
    return any(other.record.id == entry.record.id for other in line)
