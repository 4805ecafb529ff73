"""Holds: who wants a snapshot kept until they say otherwise, or until a moment (DESIGN.md, law 12).

A pin says that a living process reads a snapshot; a hold outlives processes. It has an owner: a mirror, a resumable
transfer, a person. Holds stand in the local tree, never travel, and follow a snapshot's id, not its name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockplane.model.errors import RefusedError, UsageError
from blockplane.volume.codec import NAME_BYTES, Hold, TableEntry

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

_OWNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@-]*")


def holds_of(volume: LiveVolume, snapshot_id: bytes) -> list[Hold]:
    """Return the holds on a snapshot that have not expired, older first."""
    now = time.time_ns()
    with volume.lock:
        found = [hold for hold in volume.local.holds() if hold.snapshot_id == snapshot_id]
    return [hold for hold in found if not hold.expires_ns or hold.expires_ns > now]


def hold(volume: LiveVolume, name: str, owner: str, expires_ns: int = 0) -> Hold:
    """Keep a snapshot from being deleted or made a shadow. Durable on return.

    Parameters
    ----------
    owner : who holds it: letters, digits and _ . : / @ -, at most 127 bytes; an owner's second hold replaces the first.
    expires_ns : when it ends by itself, ns since 1970; 0: never.

    Raises
    ------
    NoSuchSnapshotError: it does not exist. UsageError: not an owner, or the moment is past.
    """
    if not _OWNER.fullmatch(owner) or len(owner.encode()) > NAME_BYTES:
        raise UsageError(
            f"{owner!r} cannot own a hold", "take letters, digits and _ . : / @ - (a letter, a digit or _ first)"
        )
    now = time.time_ns()
    if expires_ns and expires_ns <= now:
        raise UsageError("the hold would have ended before it began", "let it end later")
    with volume.lock:
        made = Hold(volume.local.entry(name).record.id, owner, now, expires_ns)
        rest = [old for old in volume.local.holds() if (old.snapshot_id, old.owner) != (made.snapshot_id, owner)]
        volume.local.set_holds([*rest, made])
        volume.commit()
        return made


def release(volume: LiveVolume, name: str, owner: str) -> None:
    """Give a hold up. Durable on return.

    Raises
    ------
    NoSuchSnapshotError: the snapshot does not exist. RefusedError: that owner has no hold on it.
    """
    with volume.lock:
        snapshot_id = volume.local.entry(name).record.id
        kept = [hold for hold in volume.local.holds() if (hold.snapshot_id, hold.owner) != (snapshot_id, owner)]
        if len(kept) == len(volume.local.holds()):
            owners = ", ".join(hold.owner for hold in holds_of(volume, snapshot_id))
            raise RefusedError(f"{owner} does not hold {name}", f"it is held by {owners}" if owners else "nobody does")
        volume.local.set_holds(kept)
        volume.commit()


def hold_by_id(volume: LiveVolume, snapshot_id: bytes, owner: str, expires_ns: int = 0) -> None:
    """Keep a snapshot, known by its id, in the open CP: durable with its commit. The volume's lock is held."""
    rest = [old for old in volume.local.holds() if (old.snapshot_id, old.owner) != (snapshot_id, owner)]
    volume.local.set_holds([*rest, Hold(snapshot_id, owner, time.time_ns(), expires_ns)])


def release_all(volume: LiveVolume, owner: str) -> None:
    """Give up whatever an owner holds, in the open CP. The volume's lock is held."""
    kept = [hold for hold in volume.local.holds() if hold.owner != owner]
    if len(kept) < len(volume.local.holds()):
        volume.local.set_holds(kept)


def refuse_needed(volume: LiveVolume, entries: Iterable[TableEntry]) -> None:
    """Refuse to give up snapshots that something reads, or that somebody holds.

    Raises
    ------
    RefusedError: names the first, who needs it, and until when.
    """
    for entry in entries:
        name = entry.record.name
        if volume.is_pinned(entry.record.id):
            raise RefusedError(f"snapshot {name!r} is being read", "wait until the reader has finished")
        for held in holds_of(volume, entry.record.id):
            until = time.strftime(" until %Y-%m-%d %H:%M UTC", time.gmtime(held.expires_ns / 1e9))
            raise RefusedError(
                f"snapshot {name!r} is held by {held.owner}{until if held.expires_ns else ''}",
                f"if it is needed no longer: blockplane snapshot release {volume.path}@{name} {held.owner}",
            )
