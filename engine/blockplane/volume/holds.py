"""Holds: who wants a snapshot kept until they say otherwise, or until a moment (DESIGN.md, law 12).

A pin says that a living process reads a snapshot; a hold outlives processes. It has an owner: a mirror, a resumable
transfer, a person. Holds stand in the local tree, never travel, and follow a snapshot's id, not its name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from blockplane.model.errors import RefusedError, UsageError
from blockplane.volume.basegroup import BASE_OWNER, base_snapshot
from blockplane.volume.codec import NAME_BYTES, NO_ID, Hold, TableEntry
from blockplane.volume.mirrorcodec import BROKEN, MIRROR, REHEARSING
from blockplane.volume.passing import waiting_for

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Owners of snapshots that a re-baseline is sent against.
OFFER_OWNER: Final = "offer:"
#: Owners of what the next update of somewhere else builds on.
_BASES: Final = ("mirror:", "replica:")
#: Owners that are no persons.
_OWN: Final = (*_BASES, "receive:", OFFER_OWNER)
#: How long what has expired stays in the table: a clock that was ahead for a while takes nothing away.
_STAYS_NS: Final = 30 * 86_400 * 10**9
_MOST_NS: Final = (1 << 63) - 1
_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*")


def holds_of(volume: LiveVolume, snapshot_id: bytes) -> list[Hold]:
    """Return the holds on a snapshot that have not expired, older first."""
    return [hold for hold in all_of(volume, snapshot_id) if not hold.has_expired]


def all_of(volume: LiveVolume, snapshot_id: bytes) -> list[Hold]:
    """Return the holds on a snapshot, older first, and those that expired and that no change has cleared away yet."""
    with volume.lock:
        return [hold for hold in volume.local.holds() if hold.snapshot_id == snapshot_id]


def hold(volume: LiveVolume, name: str, owner: str, expires_ns: int = 0) -> Hold:
    """Keep a snapshot from being deleted or made a shadow. Durable on return.

    Parameters
    ----------
    owner : who holds it: letters, digits and _ . : / @ -, at most 127 bytes; an owner's second hold replaces the first.
    expires_ns : when it ends by itself, ns since 1970; 0: never.

    Raises
    ------
    NoSuchSnapshotError: it does not exist. UsageError: not an owner, or the moment is past, or past all counting.
    RefusedError: it is being deleted; or what holds it by that name is no person's.
    """
    if not _OWNER.fullmatch(owner) or len(owner.encode()) > NAME_BYTES:
        raise UsageError(
            f"{owner!r} cannot own a hold", "take letters, digits and _ . : / @ - (a letter, a digit or _ first)"
        )
    now = time.time_ns()
    if expires_ns and expires_ns <= now:
        raise UsageError("the hold would have ended before it began", "let it end later")
    if expires_ns > _MOST_NS:
        raise UsageError("the hold would end after the year 2262", "let it end sooner, or never: leave the end out")
    with volume.lock:
        entry = volume.local.entry(name)
        refuse_deleting(entry)
        if any(old.owner == owner for old in holds_of(volume, entry.record.id)) and (
            owner == BASE_OWNER or owner.startswith(_OWN)
        ):
            raise RefusedError(f"{owner} holds {name} already, for as long as it has to", "take another owner's name")
        made = Hold(entry.record.id, owner, now, expires_ns)
        with volume.changing():
            volume.local.set_holds([*_others(volume, made.snapshot_id, owner), made])
            volume.commit()
        return made


def release(volume: LiveVolume, name: str, owner: str) -> None:
    """Give a hold up. Durable on return.

    Raises
    ------
    NoSuchSnapshotError: the snapshot does not exist. RefusedError: that owner has no hold on it, or it is the base.

    Notes
    -----
    Holds that expired a month ago, on whatever snapshot, are cleared away with it.
    """
    with volume.lock:
        snapshot_id = volume.local.entry(name).record.id
        if owner == BASE_OWNER and snapshot_id == base_snapshot(volume):
            raise RefusedError(f"{volume.path} is built on {name}", "it stays as long as the volume")
        kept = [hold for hold in volume.local.holds() if (hold.snapshot_id, hold.owner) != (snapshot_id, owner)]
        if len(kept) == len(volume.local.holds()):
            owners = ", ".join(hold.owner for hold in holds_of(volume, snapshot_id))
            raise RefusedError(f"{owner} does not hold {name}", f"it is held by {owners}" if owners else "nobody does")
        with volume.changing():
            volume.local.set_holds([hold for hold in kept if not _is_long_gone(hold)])
            volume.commit()


def hold_by_id(volume: LiveVolume, snapshot_id: bytes, owner: str, expires_ns: int = 0) -> None:
    """Keep a snapshot, known by its id, in the open CP: durable with its commit. The volume's lock is held.

    As with `hold`, those that expired a month ago are cleared away.
    """
    made = Hold(snapshot_id, owner, time.time_ns(), expires_ns)
    with volume.changing():
        volume.local.set_holds([*_others(volume, snapshot_id, owner), made])


def _others(volume: LiveVolume, snapshot_id: bytes, owner: str) -> list[Hold]:
    """Return the holds but one owner's on a snapshot, and but those that expired long ago."""
    found = [old for old in volume.local.holds() if (old.snapshot_id, old.owner) != (snapshot_id, owner)]
    return [old for old in found if not _is_long_gone(old)]


def _is_long_gone(hold: Hold) -> bool:
    return bool(hold.expires_ns) and hold.expires_ns + _STAYS_NS <= time.time_ns()


def release_all(volume: LiveVolume, owner: str) -> None:
    """Give up whatever an owner holds, and what has expired, in the open CP. The volume's lock is held."""
    _keep(volume, [hold for hold in volume.local.holds() if hold.owner != owner and not _is_long_gone(hold)])


def release_offers(volume: LiveVolume, snapshot_id: bytes) -> None:
    """Give up what holds a snapshot that was offered, in the open CP. The volume's lock is held."""
    holds = volume.local.holds()
    _keep(volume, [h for h in holds if h.snapshot_id != snapshot_id or not h.owner.startswith(OFFER_OWNER)])


def _keep(volume: LiveVolume, kept: list[Hold]) -> None:
    if len(kept) < len(volume.local.holds()):
        with volume.changing():
            volume.local.set_holds(kept)


def refuse_deleting(entry: TableEntry) -> None:
    """Refuse to do anything lasting with a snapshot that is being deleted.

    Raises
    ------
    RefusedError: it is.
    """
    if entry.is_deleting:
        raise RefusedError(
            f"snapshot {entry.record.name!r} is being deleted",
            "it goes as soon as nothing reads it and nobody holds it",
        )


def needs(volume: LiveVolume, entry: TableEntry) -> Iterator[tuple[str, str]]:
    """Yield what keeps a snapshot from going, in words, and what to do about it."""
    if is_rehearsed(volume, entry):
        yield "is what a rehearsal goes back to", f"end it: blockplane mirror break {volume.path} --end-rehearsal"
    elif is_last_complete(volume, entry):
        yield "is the last complete state of a mirror", f"break the mirror off: blockplane mirror break {volume.path}"
    for pin in volume.pins.of(entry.record.id):
        yield f"is being read by {pin}", "wait until that has ended"
    for held in holds_of(volume, entry.record.id):
        until = (
            time.strftime(" until %Y-%m-%d %H:%M UTC", time.gmtime(held.expires_ns / 1e9)) if held.expires_ns else ""
        )
        yield f"is held by {held.owner}{until}", _to_let_go(volume, entry, held.owner)
    if behind := waiting_for(volume, entry):
        forget = f"blockplane replicas {volume.path} --forget {behind[0]}"
        yield f"is a master that {', '.join(behind)} has not passed", f"if it does not come back: {forget}"


def _to_let_go(volume: LiveVolume, entry: TableEntry, owner: str) -> str:
    """Return what to do about a hold: whoever a mirror or a replica is held for would lack it, and not know."""
    kind, _, name = owner.partition(":")
    if f"{kind}:" in _BASES and any(replica.name == name for replica in volume.local.replication().replicas):
        return f"if it does not come back: blockplane replicas {volume.path} --forget {name}"
    if kind == "mirror" and any(record.name == name for record in volume.local.destinations()):
        return f"if that is to be no mirror any more: blockplane mirror remove {volume.path} {name}"
    release_it = f"blockplane snapshot release {volume.path}@{entry.record.name} {owner}"
    return f"if it is needed no longer: {release_it}"


def is_last_complete(volume: LiveVolume, entry: TableEntry) -> bool:
    """Whether a snapshot is what was brought last to a mirror, which the next update builds on.

    Where it is not noted, it is the newest that the live state came from; of snapshots that were made of that here,
    which have the same root, the oldest.
    """
    mirror = volume.local.root.mirror
    if mirror is None or mirror.state == BROKEN:
        return False
    brought = brought_last(volume)
    if brought is not None:
        return brought.record.id == entry.record.id
    line = volume.local.ancestors(stands_at(volume))
    same = [each for each in line if each.record.root == line[-1].record.root]
    return bool(same) and same[0].record.id == entry.record.id


def brought_last(volume: LiveVolume) -> TableEntry | None:
    """Return the snapshot that was brought last to a mirror; None: it is not noted, or was deleted after a break."""
    wanted = volume.local.root.brought_id
    return next((entry for entry in volume.local.regular() if wanted != NO_ID and entry.record.id == wanted), None)


def is_rehearsed(volume: LiveVolume, entry: TableEntry) -> bool:
    """Whether a snapshot is the state at which a rehearsal began, and ends."""
    mirror = volume.local.root.mirror
    return mirror is not None and mirror.state == REHEARSING and mirror.broken_at == entry.record.id


def stands_at(volume: LiveVolume) -> bytes:
    """Return the id of the snapshot that a mirror's live state is, or descends from; where it was broken off, was."""
    mirror = volume.local.root.mirror
    if mirror is not None and mirror.state != MIRROR and mirror.broken_at != NO_ID:
        return mirror.broken_at
    return volume.local.root.parent_id


def refuse_needed(volume: LiveVolume, entries: Iterable[TableEntry], may_defer: bool = False) -> None:
    """Refuse to give up snapshots that something reads, or that somebody holds.

    Parameters
    ----------
    may_defer : say that deleting can be deferred.

    Raises
    ------
    RefusedError: names the first, who needs it, and until when.
    """
    for entry in entries:
        for need, hint in needs(volume, entry):
            may_wait = may_defer and not is_base(volume, entry)
            later = "; or have it deleted when nothing needs it any more: --defer" if may_wait else ""
            raise RefusedError(f"snapshot {entry.record.name!r} {need}", hint + later)


def is_base(volume: LiveVolume, entry: TableEntry) -> bool:
    """Whether a mirror's or a replica's next update builds on a snapshot: with it gone there would be none."""
    owners = [held.owner for held in holds_of(volume, entry.record.id)]
    return (
        is_last_complete(volume, entry)
        or is_rehearsed(volume, entry)
        or any(owner.startswith(_BASES) for owner in owners)
        or bool(waiting_for(volume, entry))
    )


def needed(volume: LiveVolume, entries: Iterable[TableEntry]) -> list[TableEntry]:
    """Return those of the snapshots that cannot go now, and may go later.

    Raises
    ------
    RefusedError: the next update of a mirror or a replica builds on one of them.
    """
    entries = list(entries)
    refuse_needed(volume, [entry for entry in entries if is_base(volume, entry)])
    return [entry for entry in entries if any(needs(volume, entry))]


def defer(volume: LiveVolume, entries: Sequence[TableEntry]) -> None:
    """Mark snapshots as being deleted, in the open CP.

    From then on they are no part of new images, cannot be held, and go when nothing needs them (`deferred`).
    """
    if entries:
        with volume.changing():
            for entry in entries:
                entry.record = entry.record.deferred()
            volume.local.rewrite_entries()
