"""Breaking a mirror off: for good, or for a rehearsal that ends with the mirror as it was."""

from __future__ import annotations

import time
from dataclasses import dataclass

from blockplane.model.errors import RefusedError
from blockplane.transfer.replacing import keep_changes
from blockplane.transfer.resume import interrupted_receives
from blockplane.volume import snapshots
from blockplane.volume.codec import NO_ID
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrorcodec import BROKEN, MIRROR, REHEARSING
from blockplane.volume.mirrored import STATE_NAMES, break_off, in_state, require_mirror, set_mirror


@dataclass(frozen=True, slots=True)
class BreakReport:
    """What became writable.

    state : the snapshot that the live file system was, or descends from; None: there is none. set_aside : of a transfer
    that was under way, the top; what came of it is kept and gone on with by `resync`. kept : at the end of a rehearsal,
    the snapshot that has its changes; None: there were none, or they were dropped.
    """

    state: str | None
    seconds: float
    set_aside: tuple[str, ...] = ()
    kept: str | None = None


def break_mirror(volume: LiveVolume, *, rehearse: bool = False) -> BreakReport:
    """Make a destination writable at its last complete state; its source is not asked. Durable on return.

    Parameters
    ----------
    rehearse : for a while: the mirror goes on after `end_rehearsal`. Its updates wait until then, and the source keeps
    what they need.

    Raises
    ------
    RefusedError : it is no mirror, or was broken off before; there is nothing yet to rehearse with.

    Notes
    -----
    Costs two consistency points, whatever the volume's size. A transfer that is under way ends without effect.
    """
    started = time.monotonic()
    record = require_mirror(volume)
    if record.state == BROKEN or (rehearse and record.state == REHEARSING):
        raise RefusedError(
            f"{volume.path} is {STATE_NAMES[record.state]} already, and can be written",
            "join it again, where its source is: blockplane mirror resync"
            if record.state == BROKEN
            else f"end it: blockplane mirror break {volume.path} --end-rehearsal",
        )
    if rehearse and not volume.was_written:
        raise RefusedError(f"{volume.path} has no complete state yet", "bring one first: blockplane mirror run")
    with volume.lock:
        if rehearse:  # what the mirror has of its own is a part of what the rehearsal begins at, and ends at
            keep_changes(volume)
        found = break_off(volume, REHEARSING if rehearse else BROKEN)
    tops = tuple(receive.top_name for receive in interrupted_receives(volume))
    return BreakReport(found.name if found is not None else None, time.monotonic() - started, tops)


def end_rehearsal(volume: LiveVolume, *, drop_changes: bool = False) -> BreakReport:
    """Bring a destination back to the state at which its rehearsal began; it is a mirror again. Durable on return.

    Parameters
    ----------
    drop_changes : give the rehearsal's changes up; by default they stay in a snapshot of their own.

    Raises
    ------
    RefusedError : no rehearsal goes on.
    """
    started = time.monotonic()
    with volume.lock:
        record = require_mirror(volume)
        if record.state != REHEARSING:
            raise RefusedError(f"no rehearsal goes on in {volume.path}", "mirror break --rehearse begins one")
        volume.commit()
        state = next((e for e in volume.local.regular() if e.record.id == record.broken_at), None)
        if state is None and record.broken_at != NO_ID:
            raise RefusedError(
                f"the snapshot at which the rehearsal in {volume.path} began was deleted",
                f"end the mirror, and join it again: blockplane mirror break {volume.path}",
            )
        kept = None if drop_changes else keep_changes(volume, state)
        if state is not None:
            snapshots.rollback(volume, state.record.name, drop_changes=True)
        set_mirror(volume, in_state(record, MIRROR))
    name = state.record.name if state is not None else None
    return BreakReport(name, time.monotonic() - started, kept=kept)
