"""Master snapshots: those that replicas synchronise to, kept until every known replica has passed them.

A replica has passed a master when it stands at a later snapshot of its line; the one it stands at is a base, and held.
One that is not heard of within the limit is waited for no longer; then shadows take the place of masters that only it
needed, so that it can still be brought what it lacks, by an increment, when it comes back (DESIGN.md, law 9).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from blockplane.model.errors import RefusedError, UsageError
from blockplane.volume import demoting
from blockplane.volume.codec import FLAG_MASTER, KIND_REGULAR
from blockplane.volume.demotioncodec import UNHEARD, Demotion
from blockplane.volume.destinations import Destinations
from blockplane.volume.holds import needs, refuse_deleting, release_all
from blockplane.volume.passing import not_past
from blockplane.volume.pointers import MASTER, names_at, set_pointer
from blockplane.volume.replicationcodec import FLAG_LOST, ReplicaRecord

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: The owner of holds for replicas that pull elsewhere; those that pull here hold as destinations.
OWNER = "replica:{}"


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
        volume.local.set_replication(replace(volume.local.replication(), limit_s=seconds))
        volume.commit()
    expire(volume)


def expire(volume: LiveVolume, now_ns: int | None = None) -> list[str]:
    """Give up waiting for replicas that were not heard of within the limit; return which masters became shadows.

    Their holds go. Of the masters that only they needed shadows stay, except of those at which pointers stand. Durable
    on return; nothing is done where no limit was set.
    """
    now = time.time_ns() if now_ns is None else now_ns
    with volume.lock:
        table = volume.local.replication()
        if not table.limit_s or not table.replicas:
            return []
        due = [r for r in table.replicas if not r.is_lost and now - r.contact_ns > table.limit_s * 10**9]
        if due:
            lost = {r.name for r in due}
            rest = (replace(r, flags=r.flags | FLAG_LOST) if r.name in lost else r for r in table.replicas)
            volume.local.set_replication(replace(table, replicas=tuple(rest)))
            for replica in due:
                let_go(volume, replica)
            volume.commit()
        return _shadowed(volume)


def let_go(volume: LiveVolume, replica: ReplicaRecord) -> None:
    """Hold nothing for a replica any more, in the open CP. The volume's lock is held."""
    release_all(volume, OWNER.format(replica.name))
    if any(record.name == replica.name for record in volume.local.destinations()):
        Destinations(volume).forget(replica.name)


def _shadowed(volume: LiveVolume) -> list[str]:
    """Make shadows of masters that only replicas which are lost have not passed."""
    gone = []
    for entry in [e for e in volume.local.entries() if e.record.flags & FLAG_MASTER and e.record.kind == KIND_REGULAR]:
        behind = list(not_past(volume, entry))
        if not behind or not all(r.is_lost for r in behind) or names_at(volume, entry.record.id):
            continue
        if any(needs(volume, entry)) or volume.known_state(entry) is None:
            continue
        volume.commit()
        demoting.make_shadow(volume, entry, Demotion(UNHEARD))
        volume.commit()
        gone.append(entry.record.name)
    return gone
