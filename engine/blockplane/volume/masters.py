"""Master snapshots: those that replicas synchronise to, kept until every known replica has passed them.

A replica has passed a master when it stands at a later snapshot of its line; the one it stands at is a base, and held.
One that is not heard of within the limit is waited for no longer; then a shadow takes the place of the master at which
it stands, so that it can still be brought what it lacks, by an increment, when it comes back (DESIGN.md, law 9). Those
in between are snapshots as any other.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from blockplane.model.errors import DiskError, RefusedError, UsageError, VolumeDamagedError
from blockplane.volume import demoting
from blockplane.volume.calling import calls
from blockplane.volume.codec import FLAG_MASTER, KIND_REGULAR, TableEntry
from blockplane.volume.demotioncodec import UNHEARD, Demotion
from blockplane.volume.destinations import Destinations
from blockplane.volume.holds import needs, refuse_deleting, release_all
from blockplane.volume.naming import refuse_existing
from blockplane.volume.passing import not_past
from blockplane.volume.pointers import MASTER, names_at, set_pointer
from blockplane.volume.replicationcodec import FLAG_LOST, ReplicaRecord

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: The owner of holds for replicas that pull elsewhere; those that pull here hold as destinations.
OWNER = "replica:{}"
_DAY_NS = 86_400 * 10**9


def make_master(volume: LiveVolume, name: str) -> None:
    """Let replicas synchronise to a snapshot: it is a master from now on, and the pointer `master` moves to it.

    Durable on return, both at once.

    Raises
    ------
    NoSuchSnapshotError: it does not exist. RefusedError: it is a shadow, or being deleted; or something else is named
    `master`.
    """
    with volume.lock:
        entry = volume.local.entry(name)
        refuse_deleting(entry)
        if entry.record.kind != KIND_REGULAR:
            raise RefusedError(f"{name} is a shadow: nothing can be synchronised to it", "name another snapshot")
        if any(other.record.name == MASTER for other in volume.local.entries()):
            raise RefusedError(
                f"a snapshot is named {MASTER!r}, which is the pointer's name",
                f"rename it: blockplane snapshot rename {volume.path}@{MASTER} NEW",
            )
        if MASTER not in volume.local.replication().standing:
            refuse_existing(volume, MASTER)
        with volume.changing():
            entry.record = replace(entry.record, flags=entry.record.flags | FLAG_MASTER)
            volume.local.rewrite_entries()
            set_pointer(volume, MASTER, entry.record.id)
            volume.commit()
    expire(volume)


def set_limit(volume: LiveVolume, seconds: int) -> None:
    """Say how long a replica that is not heard of is waited for; 0: for ever. Durable on return.

    Raises
    ------
    UsageError: it is no time.
    """
    if not 0 <= seconds < 1 << 40:
        raise UsageError(f"{seconds} s is no limit", "say a time, or 0 for none")
    with volume.lock:
        table = replace(volume.local.replication(), limit_s=seconds)
        with volume.changing():
            volume.local.set_replication(table)
            volume.commit()
    expire(volume)


def expire(volume: LiveVolume, now_ns: int | None = None) -> list[str]:
    """Give up waiting for replicas that were not heard of within the limit; return which masters became shadows.

    Their holds go. Masters at which they stand, and which nobody else waits for, become shadows, except where pointers
    stand. Durable on return; nothing is done where no limit was set.

    Notes
    -----
    One is given up when it was found silent twice, an eighth of the limit apart, a day at most: a clock that is wrong
    for a while costs nobody his base.
    """
    now = time.time_ns() if now_ns is None else now_ns
    with volume.lock:
        table = volume.local.replication()
        if not table.limit_s or not table.replicas:
            return []
        looked = tuple(_looked_at(volume, replica, table.limit_s, now) for replica in table.replicas)
        if looked != table.replicas:
            with volume.changing():
                volume.local.set_replication(replace(table, replicas=looked))
                for old, new in zip(table.replicas, looked, strict=True):
                    if new.is_lost and not old.is_lost:
                        let_go(volume, new)
                volume.commit()
        return _shadowed(volume)


def _looked_at(volume: LiveVolume, replica: ReplicaRecord, limit_s: int, now: int) -> ReplicaRecord:
    """Return the record of a replica after one look at how long it has been silent.

    What one look finds, by a clock that may be wrong now, only a second one some time later acts on.
    """
    if replica.is_lost or any(calls(volume, by) for by in (replica.volume_id, replica.via)):
        return replica
    is_ahead, silent = replica.contact_ns > now, now - replica.contact_ns > limit_s * 10**9
    if not (is_ahead or silent):
        return replace(replica, silent_ns=0)
    if not 0 < replica.silent_ns <= now:
        return replace(replica, silent_ns=now)
    if now - replica.silent_ns < min(limit_s * 10**9 // 8, _DAY_NS):
        return replica
    if is_ahead:  # the clock was, when it called
        return replace(replica, contact_ns=now, silent_ns=0)
    return replace(replica, flags=replica.flags | FLAG_LOST)


def let_go(volume: LiveVolume, replica: ReplicaRecord) -> None:
    """Hold nothing for a replica any more, in the open CP. The volume's lock is held."""
    release_all(volume, OWNER.format(replica.name))
    if any(record.name == replica.name for record in volume.local.destinations()):
        Destinations(volume).forget(replica.name)


def _shadowed(volume: LiveVolume) -> list[str]:
    """Make shadows of masters at which replicas that are lost stand, and which only such have not passed."""
    bases = {replica.stands for replica in volume.local.replication().replicas if replica.is_lost}
    masters = [e for e in volume.local.entries() if e.record.flags & FLAG_MASTER and e.record.kind == KIND_REGULAR]
    return [entry.record.name for entry in masters if entry.record.id in bases and _make_shadow(volume, entry)]


def _make_shadow(volume: LiveVolume, entry: TableEntry) -> bool:
    """Make a master a shadow, where nobody who is not lost needs it; one that is damaged stays as it is."""
    if names_at(volume, entry.record.id) or not all(replica.is_lost for replica in not_past(volume, entry)):
        return False
    if any(needs(volume, entry)) or volume.known_state(entry) is None:
        return False
    volume.commit()
    try:
        demoting.make_shadow(volume, entry, Demotion(UNHEARD))
    except VolumeDamagedError as error:
        if isinstance(error, DiskError) or volume.stopped_at:
            raise
        return False
    volume.commit()
    return True
