"""What a transfer replaces: a volume's live file system is kept in a snapshot where it has to be, or is let go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum

from blockplane.model.errors import (
    BlockplaneError,
    NoSuchSnapshotError,
    RefusedError,
    StreamTruncatedError,
)
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.transfer.destination import settled
from blockplane.transfer.resume import drop_incoming, interrupted_receives
from blockplane.volume.codec import NO_ID, SnapshotRecord, TableEntry
from blockplane.volume.deleting import delete
from blockplane.volume.holds import needs
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrorcodec import BROKEN, MIRROR, REHEARSING, MirrorRecord
from blockplane.volume.mirrorstates import is_kept, is_own, is_passed, kept_name, of_same_files, only_in
from blockplane.volume.pointers import names_at
from blockplane.volume.snapshots import create, keep_live, rename, rollback, standing_at


class LocalChanges(Enum):
    """What becomes of a destination's own changes when an image that does not descend from them arrives."""

    REFUSE = "refuse"  # nothing changes
    KEEP = "keep"  # they stay as a snapshot of their own
    FLUSH = "flush"  # they go, as the patent has it


def let_go(volume: LiveVolume, ids: Sequence[bytes]) -> None:
    """Let go of snapshots that mirrors made for themselves; nothing is written where there are none of these ids.

    What the live file system is, or came from, is deleted where nobody reads or holds it and no pointer stands there.
    Another may be all that there is of what somebody did: it is kept, under a name that says so. Those of this volume's
    own mirrors are left alone.
    """
    with volume.lock:
        mine = tuple(f"mirror.{record.name}." for record in volume.local.destinations())
        theirs = [entry for entry in volume.local.regular() if not entry.record.name.startswith(mine)]
        _let_go(volume, [entry for entry in theirs if entry.record.id in ids])


def let_own_go(volume: LiveVolume, ids: Sequence[bytes]) -> None:
    """As `let_go`, of snapshots that this volume's own mirrors made."""
    with volume.lock:
        _let_go(volume, [entry for entry in volume.local.regular() if entry.record.id in ids])


def _let_go(volume: LiveVolume, entries: Sequence[TableEntry]) -> None:
    own = [entry for entry in entries if is_own(entry.record.name)]
    found = [entry for entry in own if not any(needs(volume, entry)) and not names_at(volume, entry.record.id)]
    if not found:
        return
    with settled(volume):
        passed = [entry for entry in found if is_passed(volume, entry)]
        for entry in found:
            if entry not in passed and not entry.is_deleting:
                rename(volume, entry.record.name, kept_name(volume))
        if passed:
            delete(volume, [entry.record.name for entry in passed])


def go_back(volume: LiveVolume, snapshot_id: bytes, changes: LocalChanges) -> str | None:
    """Let a snapshot be the live file system; return the one that keeps what was changed, None: there is none.

    Raises
    ------
    NoSuchSnapshotError : it was deleted. RefusedError : there are changes, and they may not be lost.
    """
    with settled(volume):
        target = next((e for e in volume.local.regular() if e.record.id == snapshot_id), None)
        if target is None:
            raise NoSuchSnapshotError(f"{volume.path} has no snapshot of id {snapshot_id.hex()}", "it was deleted")
        at = standing_at(volume)
        if at is not None and at.record.id == snapshot_id:
            return None
        if changes is LocalChanges.REFUSE and (at is None or only_in(volume, at, target) is not None):
            raise RefusedError(f"{volume.path} was written to since its newest snapshot", "keep that in a snapshot")
        kept = keep_changes(volume, target) if changes is LocalChanges.KEEP else None
        rollback(volume, target.record.name, drop_changes=True)
        return kept


@dataclass(frozen=True, slots=True)
class Ready:
    """A volume that was made ready for a transfer that replaces its live file system.

    kept : the snapshot that keeps its own changes; None: there are none, or they are not to be kept. progress : what
    the transfer's is to be told to, which ends it once the live file system is another than the one that was looked at.
    shown : id of the mirror's own snapshot that alone has what is shown; NO_ID: there is none, or it is not to be kept.
    later : ids of the snapshots that came from that one, so that the volume was turned back to it.
    """

    kept: str | None
    progress: Progress
    shown: bytes = NO_ID
    later: frozenset[bytes] = frozenset()


def made_ready(volume: LiveVolume, changes: LocalChanges, progress: Progress, source_id: bytes = NO_ID) -> Ready:
    """Make a volume ready for a transfer that replaces its live file system; when it has ended, see `kept_by`.

    Parameters
    ----------
    source_id : of the volume whose mirror it must be, unbroken; NO_ID: it need not be one.

    Raises
    ------
    RefusedError : it is not, or not any more, a mirror of that volume.
    """
    with settled(volume):
        if source_id != NO_ID:
            _require_mirror_of(volume, source_id)
        kept = keep_changes(volume) if changes is LocalChanges.KEEP else None
        shown = only_in(volume, standing_at(volume)) if changes is not LocalChanges.FLUSH else None
        watched = _unless_changed(volume, progress)
        if shown is None:
            return Ready(kept, watched)
        return Ready(kept, watched, shown.record.id, _after(volume, shown))


def _after(volume: LiveVolume, entry: TableEntry) -> frozenset[bytes]:
    """Return the ids of the snapshots that descend from one."""
    children: dict[bytes, list[bytes]] = {}
    for each in volume.local.entries():
        children.setdefault(each.record.parent_id, []).append(each.record.id)
    found: set[bytes] = set()
    left = children.pop(entry.record.id, [])
    while left:
        found.add(left[-1])
        left += children.pop(left.pop(), [])
    return frozenset(found)


def kept_by(volume: LiveVolume, ready: Ready) -> str | None:
    """Return the snapshot that has what a transfer replaced, now that it has ended; None: there was nothing.

    A mirror's own that alone has it is the mirror's no more, unless the new state came from it, and not by a way that
    the volume had been turned back from.
    """
    if ready.shown == NO_ID:
        return ready.kept
    with settled(volume):
        found = next((e for e in volume.local.regular() if e.record.id == ready.shown), None)
        if found is None or found.is_deleting or not is_own(found.record.name):
            return ready.kept
        way = {each.record.id for each in volume.local.ancestors(volume.local.root.parent_id)}
        if is_passed(volume, found) and not (way & ready.later):
            return ready.kept
        name = kept_name(volume)
        rename(volume, found.record.name, name)
        return name


def forget_superseded(volume: LiveVolume, source_id: bytes) -> None:
    """Give up what interrupted updates of a mirror left, once a later one arrived: they will not be gone on with.

    source_id : as for `made_ready`; NO_ID: nothing is given up.
    """
    if source_id == NO_ID:
        return
    for found in interrupted_receives(volume):
        with suppress(RefusedError):  # it is gone meanwhile, or runs
            if not found.is_running:
                drop_incoming(volume, found.image_id.hex())


@contextmanager
def updating(volume: LiveVolume) -> Iterator[None]:
    """Give up what a transfer leaves that ends, in the `with`, since the volume is nobody's mirror any more."""
    before = volume.local.root.mirror
    try:
        yield
    except BaseException:
        if before is not None and volume.local.root.mirror is None:
            with suppress(BlockplaneError, OSError):  # a volume that stopped keeps it
                forget_brought(volume, before)
        raise


def forget_brought(volume: LiveVolume, before: MirrorRecord) -> None:
    """Give up what interrupted updates left of a volume that is no mirror any more.

    Nothing else is received while it is one; once it was broken off, what began as a mirror's own is an update's.
    """
    for found in interrupted_receives(volume):
        with suppress(RefusedError):  # it is gone meanwhile, or runs
            if not found.is_running and (before.state != BROKEN or is_own(found.top_name)):
                drop_incoming(volume, found.image_id.hex())


def retain(volume: LiveVolume, name: str) -> SnapshotRecord:
    """Return a snapshot that has all that the live state has: one that is there, or a new one of a name.

    A name that says that it keeps what is replaced is what the snapshot has then: a mirror's own gets it, and beside
    one that people made, which their retention may delete, is a further one. Durable on return.
    """
    with settled(volume):
        there = standing_at(volume)
        if there is None:
            return create(volume, name).record
        if is_own(name):
            return there.record
        own = only_in(volume, there)
        if own is not None and not own.is_deleting:
            rename(volume, own.record.name, name)
            return own.record
        same = of_same_files(volume, there)
        keeps = there if not is_kept(name) else next((e for e in same if is_kept(e.record.name)), None)
        return keeps.record if keeps is not None and own is None else create(volume, name).record


def _require_mirror_of(volume: LiveVolume, source_id: bytes) -> None:
    record = volume.local.root.mirror
    if record is None or record.source_id != source_id:
        raise RefusedError(f"{volume.path} is no mirror of this volume any more", "add it anew: blockplane mirror add")
    if record.state == REHEARSING:
        raise RefusedError(
            f"a rehearsal goes on in {volume.path}: updates wait", "mirror break --end-rehearsal ends it"
        )
    if record.state != MIRROR:
        raise RefusedError(f"the mirror {volume.path} was broken off", "`blockplane mirror resync` joins it again")


def _unless_changed(volume: LiveVolume, progress: Progress) -> Progress:
    """Have a transfer end, and what came kept, once the live file system is another, or no mirror's any more."""
    live, mirror = volume.committed.pointer, volume.local.root.mirror
    was_mirror = mirror is not None and mirror.state == MIRROR

    def watched(event: ProgressEvent) -> None:
        now = volume.local.root.mirror
        if was_mirror and (now is None or now.state != MIRROR):
            raise StreamTruncatedError(f"the mirror {volume.path} was broken off", "`blockplane mirror resync` goes on")
        if volume.committed.pointer != live:
            raise StreamTruncatedError(
                f"{volume.path} was written to meanwhile", "the next transfer goes on from there"
            )
        progress(event)

    return watched


def keep_changes(volume: LiveVolume, towards: TableEntry | None = None) -> str | None:
    """Keep what no snapshot has of a volume's live file system in one; return its name, None: there was nothing.

    Parameters
    ----------
    towards : what is to be live next: then what none but a mirror's own has is kept too; see `keep_live`.
    """
    with settled(volume):
        return keep_live(volume, towards, kept_name(volume)) if volume.was_written else None
