"""Replication: a volume asks a source for what a pointer stands at, and follows its pointers (patent, figure 3).

Whichever volume has a newer master can be the source: snapshots are the same by their ids, and moves of pointers are
ranked the same everywhere. Nothing goes back: where the source is behind, it hears where the volume stands, no more.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockplane.model.errors import NoSpaceError, NoSuchSnapshotError, RefusedError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.transfer.destination import settled
from blockplane.transfer.newvolume import DiskWish, Opening
from blockplane.transfer.peer import Brought, Peer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import drop_pulled
from blockplane.transfer.standing import Standing, standing_of
from blockplane.transfer.targets import is_vacant, made_volume, not_to_be_made
from blockplane.volume import pointers, replicas
from blockplane.volume.codec import FLAG_MASTER, KIND_REGULAR, NO_ID, TableEntry
from blockplane.volume.groups import DiskNames
from blockplane.volume.holds import hold
from blockplane.volume.mirrored import refuse_replaced
from blockplane.volume.mirrorstates import is_passed
from blockplane.volume.pointers import MASTER
from blockplane.volume.replicationcodec import PointerRecord
from blockplane.volume.snapshots import standing_at
from blockplane.volume.volume import Volume

#: Who holds what a pull left behind.
LEFT_OWNER: Final = "left-behind"


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did.

    top : the snapshot that was asked for; what was there already, or came with it, is in `brought`. moved, gone :
    pointers that moved here, and that were deleted here as they were there. is_ahead : the pointer was moved more often
    here than at the source, which was perhaps put back from an older copy: nothing was asked for. left : the snapshot
    that was shown, which the source does not know and the top does not come from, held from now on; None: none.
    """

    source: str
    top: str
    brought: Brought
    moved: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    is_ahead: bool = False
    left: str | None = None


def pull(
    source: Peer,
    target: Volume,
    pointer: str = MASTER,
    changes: LocalChanges | None = None,
    progress: Progress = ignore_progress,
) -> PullReport:
    """Bring a volume to where a source's pointer stands, and its pointers after it.

    Parameters
    ----------
    pointer : a pointer of the source, or a snapshot. changes : what becomes of changes made here; None: they are kept,
    and a target that has nothing of the source's, and something of its own, is refused.

    Raises
    ------
    NoSuchSnapshotError : the source has none of that name. RefusedError : the target is a mirror that was not broken
    off; a name is another thing's here; another update is under way; what `Peer.bring` refuses. What came of a transfer
    that fails is kept, and the next goes on; once one has brought something, what others left is given up.

    Notes
    -----
    Durable on return. Pointers move, all in one consistency point, when what they stand at is there. Who asks this
    volume for a pointer meanwhile waits (`volume.updates`); snapshots and files stay readable.
    """
    with target.updates.update(f"the update of {target.path} from {source.name}"):
        refuse_replaced(target)
        theirs = source.standing()
        target.updates.comes_from(theirs.volume_id)
        pointers.refuse_foreign(target, theirs.pointers)
        wanted = _pointer(theirs.pointers, pointer)
        if wanted is None and all(record.name != pointer for record in theirs.snapshots):
            raise NoSuchSnapshotError(
                f"{source.name} has no pointer or snapshot {pointer}",
                "make one there: `blockplane snapshot master VOL@SNAP`, or `blockplane pointer VOL NAME SNAP`",
            )
        with settled(target):
            mine = _pointer(target.local.replication().pointers, pointer)
        if changes is None:
            _refuse_unrelated(source.name, target, theirs, pointer)
            changes = LocalChanges.KEEP
        if wanted is not None and mine is not None and _is_beyond(mine, wanted):
            return _called(source, target, theirs, mine, changes)
        with settled(target):
            shown = standing_at(target)
        brought = _brought(source, target, theirs, pointer, changes, progress)
        left = _left(target, theirs, shown) if shown is not None and changes is not LocalChanges.FLUSH else None
        _note_source(target, theirs, brought.top)
        return PullReport(source.name, brought.top, brought, *_follow(target, theirs, source.standing()), left=left)


def replicate(
    source: Peer,
    target: str | os.PathLike[str] | Volume,
    pointer: str = MASTER,
    changes: LocalChanges | None = None,
    *,
    disks: DiskNames | None = None,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
    progress: Progress = ignore_progress,
    opening: Opening | None = None,
) -> PullReport:
    """As `pull`; the target may be a directory: absent, or an empty folder, a volume is made there.

    Parameters
    ----------
    disks, size, parity, chunk, wipe : of a volume that is made, as for `Volume.create`; by default the source's. It is
        removed where the first pull brings nothing.
    opening : how a volume that is named by its directory is opened, and what goes on round its use.

    Raises
    ------
    UsageError : disk options for a volume that is there. What `pull` raises.
    """
    wish, opening = DiskWish(disks, size, parity, chunk, wipe), opening or Opening(verb="replicate")
    if isinstance(target, Volume):
        return pull(source, target, pointer, changes, progress)
    path = Path(target)
    opening.kind.clear_half_made(path)
    if is_vacant(path):
        with made_volume(path, source.standing().groups, wish, opening) as volume:
            return pull(source, volume, pointer, changes, progress)
    if not wish.is_default:
        raise not_to_be_made(path)
    with opening.open(path) as volume, opening.entered(volume):
        return pull(source, volume, pointer, changes, progress)


def _left(target: Volume, theirs: Standing, shown: TableEntry) -> str | None:
    """Hold what was shown before where the source does not know it, and what is shown now does not come from it here.

    The source was put back, or deleted it, or this volume follows another one now: no retention takes what may be
    nowhere else. Histories are no proof of the contrary: copies of a volume's disks count their states alike. One that
    was made here, of the very state that the source knows by another, is not lost with this.
    """
    known = {record.id for record in theirs.snapshots}
    with settled(target):
        line = [entry.record for entry in target.local.ancestors(shown.record.id) if not entry.is_shadow]
        if any(record.id in known and record.root == shown.record.root for record in line):
            return None
        entry = next((each for each in target.local.regular() if each.record.id == shown.record.id), None)
        if entry is None or entry.is_deleting or is_passed(target, entry):
            return None
        hold(target, entry.record.name, LEFT_OWNER)
        return entry.record.name


def _note_source(target: Volume, theirs: Standing, top: str) -> None:
    """Note of a source that was this volume's replica before, and does not call any more, that it has a top."""
    with target.lock:
        known = replicas.find(target, theirs.volume_id)
        entry = next((each for each in target.local.regular() if each.record.name == top), None)
    if known is not None and known.is_direct and entry is not None:
        replicas.arrived(target, theirs.volume_id, entry.record)


def _pointer(found: tuple[PointerRecord, ...], name: str) -> PointerRecord | None:
    return next((p for p in found if p.name == name and p.snapshot_id != NO_ID), None)


def _refuse_unrelated(name: str, target: Volume, theirs: Standing, pointer: str) -> None:
    found = _pointer(theirs.pointers, pointer)
    top = next((r for r in theirs.snapshots if r.name == pointer or (found and r.id == found.snapshot_id)), None)
    mine = standing_of(target)
    spaces = {mine.space_id, *(record.space_id for record in mine.snapshots)}
    if top is not None and mine.space_id != NO_ID and top.space_id not in spaces:
        raise RefusedError(
            f"{target.path} has content of its own, and nothing of {name}",
            "name a directory that is empty or does not exist; with --changes keep what is there stays in a snapshot",
        )


def _is_beyond(mine: PointerRecord, theirs: PointerRecord) -> bool:
    """Whether a pointer was moved more often here, and to another snapshot."""
    return mine.rank > theirs.rank and mine.snapshot_id != theirs.snapshot_id


def _brought(
    source: Peer, target: Volume, theirs: Standing, pointer: str, changes: LocalChanges, progress: Progress
) -> Brought:
    """Ask for a pointer; what interrupted pulls have left goes once that is there, or where it takes the room for it.

    What came last before may stay the same towards a later top, and does not travel again: until then it is kept. What
    other pointers stand at may be on its way too.
    """
    try:
        brought = source.bring(pointer, target, changes, progress)
    except NoSpaceError:
        if not drop_pulled(target, _still_wanted(target, theirs)):
            raise
        return source.bring(pointer, target, changes, progress)
    if not brought.already_there:
        drop_pulled(target, _still_wanted(target, theirs))
    return brought


def _still_wanted(target: Volume, theirs: Standing) -> set[bytes]:
    """Return the ids of what pointers of a source stand at, and is not here."""
    with target.lock:
        return {pointer.snapshot_id for pointer in theirs.pointers} - {e.record.id for e in target.local.regular()}


def _follow(target: Volume, *standings: Standing) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Take over pointers and masters, as far as their snapshots are here; return which moved, and which went."""
    moves = [pointer for standing in standings for pointer in standing.pointers]
    masters = {r.id for standing in standings for r in standing.snapshots if r.flags & FLAG_MASTER}
    changed = pointers.adopt(target, moves, masters)
    moved, gone = (tuple(p.name for p in changed if (p.snapshot_id == NO_ID) is is_gone) for is_gone in (False, True))
    return moved, gone


def _called(source: Peer, target: Volume, theirs: Standing, mine: PointerRecord, changes: LocalChanges) -> PullReport:
    """Let a source that is behind hear where the volume stands: at the newest snapshot of its line that both have."""
    with target.lock:
        line = [entry.record for entry in target.local.ancestors(mine.snapshot_id)]
    common = next((r for r in reversed(line) if r.kind == KIND_REGULAR and r.id in theirs.whole), None)
    brought = Brought("", None, 0, 0, 0.0, already_there=True)
    if common is not None:
        brought = source.bring(theirs.whole[common.id].name, target, changes)
    return PullReport(source.name, brought.top, brought, *_follow(target, theirs), is_ahead=True)
