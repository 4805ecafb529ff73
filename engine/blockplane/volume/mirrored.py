"""Volumes that are mirrors: what they know of it, and whether their files may be written to.

The record belongs to this set of disks: it stands in the local root, survives opening, and neither travels nor is
rolled back. A mirror that refuses writes stays exactly what was brought to it; `break_off` makes it a volume of its
own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from blockplane.model.errors import RefusedError
from blockplane.volume.codec import KIND_REGULAR, NO_ID, SnapshotRecord
from blockplane.volume.holds import brought_last, stands_at
from blockplane.volume.mirrorcodec import BROKEN, MIRROR, REHEARSING, WRITES_REFUSED, MirrorRecord
from blockplane.volume.mirrorstates import of_same_files
from blockplane.volume.snapshots import standing_at

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

STATE_NAMES = {MIRROR: "mirror", BROKEN: "broken", REHEARSING: "rehearsing"}


@dataclass(frozen=True, slots=True)
class MirrorOf:
    """What a volume is a mirror of.

    state : `mirror`, `broken`, `rehearsing`. last_complete : the newest state that was brought; None: none was.
    """

    state: str
    source_id: str
    source: str
    since_ns: int
    changed_ns: int
    may_write: bool
    last_complete: str | None


def mirror_of(volume: LiveVolume) -> MirrorOf | None:
    """Return what a volume is a mirror of; None: it is none."""
    with volume.lock:
        record = volume.local.root.mirror
        if record is None:
            return None
        brought = brought_last(volume)
        line = volume.local.ancestors(stands_at(volume)) if brought is None else [brought]
        names = [entry.record.name for entry in line if entry.record.kind == KIND_REGULAR]
        return MirrorOf(
            STATE_NAMES[record.state], record.source_id.hex(), record.source, record.since_ns, record.changed_ns,
            refusal_of(record) is None, names[-1] if names else None,
        )  # fmt: skip


def set_mirror(volume: LiveVolume, record: MirrorRecord | None) -> None:
    """Say what a volume is a mirror of, or with None that it is none; durable on return."""
    with volume.lock:
        if volume.local.root.mirror == record:
            return
        with volume.changing():
            volume.local.root.brought_id = _brought_to(volume, record)
            volume.local.root.mirror = record
            volume.local.is_dirty = True
            volume.commit()


def _brought_to(volume: LiveVolume, record: MirrorRecord | None) -> bytes:
    """Return which snapshot counts as brought last once a volume is a mirror so: who joins its source again has it."""
    root = volume.local.root
    if record is None or root.mirror is None or record.source_id != root.mirror.source_id:
        return NO_ID
    is_joined = root.mirror.state in (BROKEN, MIRROR) and root.mirror.changed_ns != record.changed_ns
    if is_joined and record.state == MIRROR:
        volume.commit()
        return _left_at(volume, record, BROKEN)
    if root.mirror.state == MIRROR and record.state == BROKEN:  # joining it failed
        return record.broken_at
    return root.brought_id


def in_state(record: MirrorRecord, state: int, broken_at: bytes = NO_ID) -> MirrorRecord:
    """Return a record as of now in another state."""
    return replace(record, state=state, changed_ns=time.time_ns(), broken_at=broken_at)


def refusal_of(record: MirrorRecord | None) -> str | None:
    """Return why files may not be written to; None: they may."""
    if record is None or record.state != MIRROR or record.writes != WRITES_REFUSED:
        return None
    of = f" of {record.source}" if record.source else ""
    return f"the volume is a mirror{of}"


def refuse_written(volume: LiveVolume) -> None:
    """Refuse to change the live file system of a mirror.

    Raises
    ------
    RefusedError: it is one, and local changes are not allowed.
    """
    why = refusal_of(volume.local.root.mirror)
    if why is not None:
        raise RefusedError(f"{volume.path} cannot be written: {why}", write_hint(volume))


def refuse_replaced(volume: LiveVolume) -> None:
    """Refuse to have another than its source replace what a mirror shows.

    Raises
    ------
    RefusedError: it is one, and was not broken off.
    """
    record = volume.local.root.mirror
    if record is None or record.state == BROKEN:
        return
    of = record.source or "another volume"
    raise RefusedError(
        f"{volume.path} is a mirror of {of}, which alone says what it shows",
        f"break it off first: blockplane mirror break {volume.path}",
    )


def is_rehearsing(volume: LiveVolume) -> bool:
    """Whether a volume is a mirror, and what it shows is a rehearsal's, which ends with what it showed before."""
    record = volume.local.root.mirror
    return record is not None and record.state == REHEARSING


def awaits_first(volume: LiveVolume) -> bool:
    """Whether a volume is a mirror that was brought nothing yet: a snapshot of it would be in the way of what comes."""
    record = volume.local.root.mirror
    return record is not None and record.state == MIRROR and not volume.was_written


def refuse_unready(volume: LiveVolume) -> None:
    """Refuse to bring to anybody what a rehearsal did, or what a mirror has that was brought nothing yet.

    Raises
    ------
    RefusedError: it is so.
    """
    if is_rehearsing(volume):
        raise RefusedError(
            f"a rehearsal goes on in {volume.path}: its own mirrors wait until it has ended",
            f"end it: blockplane mirror break {volume.path} --end-rehearsal",
        )
    refuse_awaiting(volume)


def refuse_awaiting(volume: LiveVolume) -> None:
    """Refuse what would be in the way of a mirror's first update, which comes whole.

    Raises
    ------
    RefusedError: it is a mirror that was brought nothing yet.
    """
    if awaits_first(volume):
        raise RefusedError(
            f"{volume.path} is a mirror that was brought nothing yet", "bring it up to date first: `mirror run`"
        )


def write_hint(volume: LiveVolume) -> str:
    """Return what to do where a mirror is to be written to."""
    return f"make it a volume of its own: blockplane mirror break {volume.path} (--rehearse: for a while)"


def require_mirror(volume: LiveVolume) -> MirrorRecord:
    """Return a volume's record; RefusedError: it is no mirror."""
    record = volume.local.root.mirror
    if record is None:
        raise RefusedError(f"{volume.path} is no mirror", "`blockplane mirror add VOL DEST` makes a destination")
    return record


def _left_at(volume: LiveVolume, record: MirrorRecord, state: int) -> bytes:
    """Return the snapshot at whose state a mirror is left: what was brought, and not what was made of that here."""
    if record.state == REHEARSING and record.broken_at != NO_ID:  # what the rehearsal did was brought by nobody
        return record.broken_at
    at = standing_at(volume)
    if at is not None:
        same = [entry.record.id for entry in of_same_files(volume, at)]
        return volume.local.root.brought_id if volume.local.root.brought_id in same else same[-1]
    return volume.local.root.parent_id if state == BROKEN else NO_ID


def break_off(volume: LiveVolume, state: int = BROKEN) -> SnapshotRecord | None:
    """Make a mirror writable, at the state it shows: `BROKEN`, or `REHEARSING`. Durable on return.

    Returns
    -------
    the snapshot that the live state is, or descends from; None: there is none.

    Notes
    -----
    A branch of history begins (DESIGN.md, law 11), so that a transfer which is under way cannot replace the live state
    any more, whatever its source does. At most two consistency points; cost does not grow with the volume.
    """
    with volume.lock:
        record = require_mirror(volume)
        volume.commit()
        parent = next((e for e in volume.local.regular() if e.record.id == volume.local.root.parent_id), None)
        with volume.changing():
            volume.local.root.mirror = in_state(record, state, _left_at(volume, record, state))
            volume.local.is_dirty = True
            volume.active.is_dirty = True
            volume.commit()
        return parent.record if parent is not None else None
