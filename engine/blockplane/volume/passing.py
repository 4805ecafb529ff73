"""Who has passed a master snapshot: replicas that stand at a later one of its line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from blockplane.volume.codec import FLAG_MASTER, KIND_REGULAR, NO_ID, TableEntry
from blockplane.volume.replicationcodec import ReplicaRecord

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def waiting_for(volume: LiveVolume, entry: TableEntry) -> list[str]:
    """Return which known replicas have not passed a snapshot, if it is a master; without those that are lost."""
    if not entry.record.flags & FLAG_MASTER or entry.record.kind != KIND_REGULAR:
        return []
    return [replica.name for replica in not_past(volume, entry) if not replica.is_lost]


def not_past(volume: LiveVolume, entry: TableEntry) -> Iterator[ReplicaRecord]:
    """Yield the replicas that have not passed a snapshot."""
    passed: dict[bytes, bool] = {}
    for replica in volume.local.replication().replicas:
        if replica.stands not in passed:
            line = volume.local.ancestors(replica.stands)[:-1] if replica.stands != NO_ID else []
            passed[replica.stands] = any(other.record.id == entry.record.id for other in line)
        if not passed[replica.stands]:
            yield replica
