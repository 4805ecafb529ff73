"""Adding mirrors to a volume, and taking them out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from blockplane.model.errors import BlockplaneError, RefusedError, UsageError
from blockplane.model.places import is_remote, is_same_place
from blockplane.transfer.mirrors import listing
from blockplane.transfer.mirrors.listing import (
    BROKEN_OFF,
    DEFAULT_EVERY_S,
    FULL,
    INCREMENTAL,
    LATEST,
    LastRun,
    MirrorDefinition,
)
from blockplane.transfer.mirrors.peers import Peers, place_of
from blockplane.transfer.mirrors.stepping import clear_away, hold_for, known_destination, not_joined, refuse_mutual
from blockplane.transfer.mirrors.turns import last_turn
from blockplane.transfer.newvolume import DiskWish, Opening, create_like, remove
from blockplane.transfer.peer import MirrorPeer, Peer, VolumePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import Standing, standing_of
from blockplane.transfer.structure import create_structure
from blockplane.transfer.targets import is_vacant, not_to_be_made
from blockplane.volume.basegroup import has_base
from blockplane.volume.codec import NO_ID, SnapshotRecord
from blockplane.volume.making import missing_of
from blockplane.volume.mirrorcodec import (
    BROKEN,
    MIRROR,
    WRITES_FLUSHED,
    WRITES_KEPT,
    WRITES_REFUSED,
    MirrorRecord,
)
from blockplane.volume.volume import Volume

_WRITES = {LocalChanges.KEEP: WRITES_KEPT, LocalChanges.FLUSH: WRITES_FLUSHED, LocalChanges.REFUSE: WRITES_REFUSED}


@dataclass(frozen=True, slots=True)
class AddReport:
    """What was added.

    made : the destination was made for it. common : the newest snapshot that both have. is_broken : it was broken off
    before, and stays so until a resync joins it again.
    """

    mirror: MirrorDefinition
    made: bool
    common: str | None
    is_broken: bool = False


def add(
    volume: Volume,
    dest: str,
    *,
    peers: Peers | None = None,
    kind: str | None = None,
    base: Sequence[str | os.PathLike[str]] = (),
    every_s: float | None = None,
    local_changes: LocalChanges | None = None,
    late: str | None = None,
    wish: DiskWish | None = None,
    opening: Opening | None = None,
) -> AddReport:
    """Make a volume at a destination a mirror of this one; nothing is sent yet. Durable on both sides on return.

    Parameters
    ----------
    dest : a volume's directory, or host:port/name. A directory that is absent or empty gets a volume. peers : how it is
    reached. every_s : seconds between updates (10). local_changes : whether files of the mirror may be written to, and
    what the next update does with that; by default, or REFUSE: they may not. late : `latest` (the default) or `next`,
    see `run`.
    kind : `full`, or `incremental`: a volume is made that holds only what differs from `base`, streams or tapes of this
    volume (`create_structure`); None: as the destination is, where it is made full. wish : disks of a volume that is
    made; by default as this volume's. opening : how it is opened.

    Raises
    ------
    UsageError : not a mirror, or of another kind. RefusedError : the destination has content of its own, is a mirror of
    another volume or in a rehearsal, or is one of this volume's mirrors by another name, or a copy of one that is still
    there; nothing changed.

    Notes
    -----
    Adding one that is there changes the options that are given. One that was broken off, and that was taken out here,
    stays broken off until a resync.
    """
    listing.require_sane(DEFAULT_EVERY_S if every_s is None else every_s, kind or FULL, late or LATEST)
    place, wish = place_of(dest), wish or DiskWish()
    _refuse_itself(volume, place)
    opening = opening or Opening(verb="mirror add")
    if not is_remote(place):
        opening.kind.clear_half_made(Path(place))
    made = not is_remote(place) and is_vacant(Path(place))
    missing = missing_of(Path(place)) if made else []
    new_disks = wish.disks_to_make()
    new: Volume | None = None
    if made or base:
        _require_base(place, kind or FULL, bool(base), made)
    if not made and not wish.is_default:
        raise not_to_be_made(Path(place))
    if made and base:
        new = create_structure(
            place, base, disks=wish.disks if wish.disks is not None else 1, size=wish.size, parity=wish.parity,
            chunk=wish.chunk, wipe=wish.wipe, opening=opening,
        )  # fmt: skip
    elif made:
        new = create_like(Path(place), volume.geometry.groups, wish, opening)
    try:
        report = _add(volume, place, peers or Peers(), kind, every_s, local_changes, late, new)
    except BaseException:
        if new is not None:
            remove(new, missing, new_disks)
        raise
    if new is not None:
        new.close()
    return report


def _require_base(place: str, kind: str, has_base: bool, made: bool) -> None:
    if not made:
        raise UsageError(f"{place} is there already, with the base that it has", "leave --base out: options need none")
    if (kind == INCREMENTAL) is not has_base:
        raise UsageError(
            f"a mirror of kind {kind} with{'' if has_base else 'out'} a base",
            "an incremental one has a base, and no other does",
        )


def _refuse_itself(volume: Volume, place: str) -> None:
    with suppress(OSError):
        if os.path.samefile(volume.path, place):
            raise RefusedError(f"{place} is the volume itself", "name another destination")


def _add(
    volume: Volume,
    place: str,
    peers: Peers,
    kind: str | None,
    every_s: float | None,
    local_changes: LocalChanges | None,
    late: str | None,
    new: Volume | None,
) -> AddReport:
    """Add a destination. new : it was just made, and is open until it is a mirror: nobody else has it before."""
    with nullcontext(VolumePeer(new)) if new is not None else peers.open(place) as peer:
        standing = peer.standing()
        common = newest_common(standing_of(volume), standing)
        before = listing.of_volume(volume.path, standing.volume_id)
        if before is not None:
            _refuse_second(volume, peers, before, place)
            if local_changes is None and before.local_changes is not None:
                local_changes = LocalChanges(before.local_changes)
        is_lost = (before is None or not _is_place_of(before, place)) and _is_broken_off(volume, standing)
        if not is_lost:
            _refuse_unfit(volume, peers, place, standing, common, local_changes)
        now = time.time_ns()
        if before is None:
            last = LastRun(state=BROKEN_OFF) if is_lost else LastRun()
            name = listing.name_for(place, standing.volume_id)
            showed = tuple(id_.hex() for id_ in standing.shown)
            before = MirrorDefinition(name, place, standing.volume_id.hex(), added_ns=now, showed=showed, last=last)
        mirror = replace(
            before, dest=place, kind=_kind_of(peer, before, kind),
            every_s=before.every_s if every_s is None else every_s,
            local_changes=local_changes.value if local_changes is not None else None,
            late=late or before.late,
        )  # fmt: skip
        if isinstance(peer, MirrorPeer):
            peer.become(_record(volume, standing, local_changes, now))
        with volume.lock:
            known = known_destination(volume, mirror)
            if common is not None and (known is None or known.acknowledged is None):
                hold_for(volume, mirror, common.id)
            listing.put(volume.path, mirror)
    return AddReport(mirror, new is not None, common.name if common is not None else None, is_lost)


def _is_broken_off(volume: Volume, standing: Standing) -> bool:
    record = standing.mirror
    return record is not None and record.source_id == volume.info.volume_id and record.state == BROKEN


def _refuse_second(volume: Volume, peers: Peers, before: MirrorDefinition, place: str) -> None:
    """Refuse a destination that is a mirror by another name, or a copy of one: the two would be taken for one."""
    if _is_place_of(before, place) or _is_gone(peers, before):
        return
    raise RefusedError(
        f"{place} is the mirror {before.dest} by another name, or a copy of it: they have one volume id",
        f"take that one out first: blockplane mirror remove {volume.path} {before.dest}; or have a volume made: name a "
        "directory that is empty or does not exist",
    )


def _is_place_of(mirror: MirrorDefinition, place: str) -> bool:
    return mirror.dest == place or is_same_place(mirror.dest, place)


def _is_gone(peers: Peers, mirror: MirrorDefinition) -> bool:
    """Whether a destination is not at its place any more; one here that cannot be looked at is taken to be."""
    dest = mirror.dest
    if not is_remote(dest) and not os.path.exists(dest):
        return True
    try:
        with peers.open(dest) as peer:
            return peer.standing().volume_id.hex() != mirror.volume_id
    except (BlockplaneError, OSError):
        return is_remote(dest)


def _kind_of(peer: Peer, before: MirrorDefinition, asked: str | None) -> str:
    """Return the kind of a destination, which is what it was made as.

    Raises
    ------
    UsageError : another one was asked for.
    """
    found = before.kind
    if isinstance(peer, VolumePeer):
        found = INCREMENTAL if has_base(peer.volume) else FULL
    if asked not in (None, found):
        raise UsageError(f"{peer.name} is {found}, and stays so", "leave --kind out, or name another destination")
    return found


def _record(volume: Volume, standing: Standing, local_changes: LocalChanges | None, now_ns: int) -> MirrorRecord:
    """Return what the destination will say of itself; one of ours stays what it is, and keeps its times."""
    writes = _WRITES[local_changes] if local_changes is not None else WRITES_REFUSED
    old, mine, source = standing.mirror, volume.info.volume_id, os.path.abspath(volume.path)
    if old is not None and old.source_id == mine:
        return replace(old, writes=writes, source=source)
    return MirrorRecord(MIRROR, writes, mine, now_ns, now_ns, source)


def newest_common(mine: Standing, theirs: Standing) -> SnapshotRecord | None:
    """Return the newest snapshot that both sides have whole, as it is here; None: there is none."""
    found = [r for r in mine.whole.values() if r.id in theirs.whole and theirs.whole[r.id].space_id == r.space_id]
    return max(found, key=lambda record: (record.cp, record.created_ns), default=None)


def _refuse_unfit(
    volume: Volume,
    peers: Peers,
    place: str,
    standing: Standing,
    common: SnapshotRecord | None,
    local_changes: LocalChanges | None,
) -> None:
    """Refuse a destination that would lose something, or that serves another volume."""
    record = standing.mirror
    if standing.volume_id == volume.info.volume_id:
        raise RefusedError(f"{place} is the volume itself", "name another destination")
    if record is not None and record.source_id != volume.info.volume_id and record.state != BROKEN:
        raise RefusedError(
            f"{place} is a mirror of {record.source or 'another volume'}", f"first: blockplane mirror break {place}"
        )
    refuse_mutual(volume, place, standing.volume_id, peers)
    if record is not None and record.source_id == volume.info.volume_id and record.state != MIRROR:
        raise not_joined(volume, place, record)
    is_blank = standing.space_id == NO_ID and not standing.whole
    if not is_blank and common is None:
        raise RefusedError(
            f"{place} has content of its own, and no snapshot that {volume.path} has too",
            "name a directory that is empty or does not exist",
        )
    if not is_blank and standing.at == NO_ID and local_changes not in (LocalChanges.KEEP, LocalChanges.FLUSH):
        raise RefusedError(
            f"{place} was written to since its newest snapshot, and the first update would replace that",
            "say what becomes of it: --local-changes keep (a snapshot of its own) or flush",
        )


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What was taken out. told : the destination knows that it is no mirror any more; why_not : else."""

    mirror: MirrorDefinition
    told: bool
    why_not: str = ""


def remove_mirror(volume: Volume, dest: str, *, peers: Peers | None = None) -> RemoveReport:
    """Take a mirror out: what was kept here for it alone goes, the destination stays as it is and may be written to.

    An update of it that goes on ends first, and what came of it goes there too. Where it cannot be reached it is taken
    out all the same, and the report says so.

    Raises
    ------
    RefusedError : there is no such mirror.
    """
    mirror = listing.find(volume.path, dest)
    with last_turn(volume, mirror.name):
        why_not = _dismiss(volume, mirror, peers or Peers())
        with volume.lock:  # beside what has not ended yet, and looks for the definition before it goes on
            clear_away(volume, mirror)
            listing.drop(volume.path, mirror.name)
    return RemoveReport(mirror, not why_not, why_not)


def _dismiss(volume: Volume, mirror: MirrorDefinition, peers: Peers) -> str:
    """Tell a destination that it is no mirror any more; return why it was not told."""
    try:
        with peers.open(mirror.dest) as peer:
            standing = peer.standing()
            is_ours = standing.mirror is not None and standing.mirror.source_id == volume.info.volume_id
            if is_ours and standing.volume_id.hex() == mirror.volume_id and isinstance(peer, MirrorPeer):
                peer.become(None)
    except (BlockplaneError, OSError) as error:
        return str(error) or type(error).__name__
    return ""
