"""Joining a mirror again after it was broken off: from the newest common state, in either direction.

What each side has beyond that state is said before anything happens. The side that is brought into line loses nothing:
its snapshots stay, and what none of them has stays in one more, unless it is to be dropped. Where both sides were
written to, a person must say which one wins.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from blockplane.model.errors import BlockplaneError, RefusedError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.transfer.destination import settled
from blockplane.transfer.mirrors.listing import LastRun, MirrorDefinition, definitions, noted
from blockplane.transfer.mirrors.stepping import let_old_go, not_joined, own_name, refuse_mutual, require_listed, step
from blockplane.transfer.mirrors.turns import turn
from blockplane.transfer.peer import Brought, MirrorPeer, destination_of
from blockplane.transfer.replacing import LocalChanges, go_back, retain
from blockplane.transfer.resume import drop_pulled
from blockplane.transfer.since import Since, what_is_since
from blockplane.transfer.standing import Standing, common_state, standing_of
from blockplane.volume.codec import NO_ID, SnapshotRecord
from blockplane.volume.mirrorcodec import MIRROR, REHEARSING
from blockplane.volume.mirrored import in_state, refuse_replaced, refuse_unready
from blockplane.volume.mirrorstates import is_kept, is_own, kept_name, name_to_keep
from blockplane.volume.volume import Volume

SOURCE, DESTINATION = "source", "destination"
#: How often what was written to a destination meanwhile is brought back too.
MAX_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class ResyncPlan:
    """What a resync would do.

    common : the newest snapshot that both sides' live states descend from; None: there is none. source, destination :
    what each has beyond it. winner : the side whose state both will have; None: both were written to, and nobody said.
    n_blocks : what would travel, before the blocks that a snapshot made for it adds.
    """

    mirror: MirrorDefinition
    common: str | None
    source: Since
    destination: Since
    winner: str | None
    n_blocks: int

    @property
    def is_split(self) -> bool:
        """Whether both sides have what the other has not."""
        return not (self.source.is_nothing or self.destination.is_nothing)

    @property
    def loses(self) -> Since | None:
        """What the side that is brought into line has, and will not show any more."""
        if self.winner is None:
            return None
        return self.destination if self.winner == SOURCE else self.source


@dataclass(frozen=True, slots=True)
class ResyncReport:
    """What a resync did. brought : None: both sides were the same. kept : the snapshot, on the side that was brought
    into line, that has what no other there has; None: there was nothing, or it was dropped.
    """

    plan: ResyncPlan
    brought: Brought | None
    kept: str | None


def plan_resync(volume: Volume, mirror: MirrorDefinition, peer: MirrorPeer, winner: str | None = None) -> ResyncPlan:
    """Return what joining a mirror again would do; nothing changes but that what is dirty is committed.

    Parameters
    ----------
    winner : `source` or `destination`; None: the source, unless both were written to.

    Raises
    ------
    RefusedError : the destination is no mirror of this volume, or is to win and has nothing, or snapshots of whose
    names the source has others; the source is itself an unbroken mirror, of the destination, or would be brought
    another state, is in a rehearsal, or was brought nothing.
    """
    standing = peer.standing()
    _require_ours(volume, mirror, standing)
    refuse_mutual(volume, mirror.dest, standing.volume_id)
    common = common_state(volume, standing)
    with settled(volume):
        mine = what_is_since(volume, common.id if common is not None else NO_ID)
    theirs = peer.since(common.id if common is not None else NO_ID)
    is_split = not (mine.is_nothing or theirs.is_nothing)
    chosen = winner or (None if is_split else SOURCE)
    if chosen == DESTINATION:
        _require_content(mirror, standing)
        refuse_replaced(volume)
        destination_of(volume, pulls=True).refuse_name_clash(_would_come_back(volume, standing))
    refuse_unready(volume)
    ahead = theirs if chosen == DESTINATION else mine
    n_blocks = 0 if chosen is None or ahead.is_nothing else _n_to_bring(volume, standing, peer, chosen)
    return ResyncPlan(mirror, common.name if common is not None else None, mine, theirs, chosen, n_blocks)


def _would_come_back(volume: Volume, standing: Standing) -> list[SnapshotRecord]:
    """Return the snapshots that come with a destination's state: those since the newest that is here too."""
    mine = standing_of(volume)
    here = {record.id for record in mine.snapshots}
    both = [i for i, r in enumerate(standing.line) if r.id in mine.whole and mine.whole[r.id].space_id == r.space_id]
    return [record for record in standing.line[both[-1] + 1 if both else 0 :] if record.id not in here]


def _n_to_bring(volume: Volume, standing: Standing, peer: MirrorPeer, winner: str) -> int:
    """Return how many blocks travel: the side that is brought into line may have more of the winner than it shows."""
    mine = standing_of(volume)
    ahead, behind = (standing, mine) if winner == DESTINATION else (mine, standing)
    whole = behind.whole
    both = [r.id for r in ahead.line if r.id in whole and whole[r.id].space_id == r.space_id]
    base_id = both[-1] if both else NO_ID
    if winner == DESTINATION:
        return peer.since(base_id).n_to_bring
    with settled(volume):
        return what_is_since(volume, base_id).n_to_bring


def _require_ours(volume: Volume, mirror: MirrorDefinition, standing: Standing) -> None:
    if standing.volume_id.hex() != mirror.volume_id:
        raise RefusedError(f"{mirror.dest} is another volume than the one that was added as a mirror", "remove it")
    if standing.mirror is None or standing.mirror.source_id != volume.info.volume_id:
        raise RefusedError(f"{mirror.dest} is no mirror of {volume.path}", "`blockplane mirror add` makes it one")
    if standing.mirror.state == REHEARSING:
        raise not_joined(volume, mirror.dest, standing.mirror)


def _require_content(mirror: MirrorDefinition, standing: Standing) -> None:
    if standing.space_id == NO_ID:
        raise RefusedError(f"{mirror.dest} has nothing yet", "bring it up to date: blockplane mirror run")


def resync(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: MirrorPeer,
    winner: str | None = None,
    *,
    drop_changes: bool = False,
    full: bool = False,
    progress: Progress = ignore_progress,
) -> ResyncReport:
    """Join a mirror again: afterwards both sides show one state, and the destination is a mirror as before.

    Parameters
    ----------
    winner : as of `plan_resync`. drop_changes : do not keep what the other side has and none of its snapshots does.
    full : bring all where nothing is common.

    Raises
    ------
    RefusedError : both were written to and nobody said which is to win; nothing is common, and `full` was not said; or
    as of `plan_resync`. Nothing changed. Others as of `step`; it can be done again, and goes on.

    Notes
    -----
    Only what the winner has beyond the common state travels.
    """
    with turn(volume, mirror.name, progress) as its:
        return _resync(volume, mirror, peer, winner, drop_changes, full, its.watched(progress))


def _resync(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: MirrorPeer,
    winner: str | None,
    drop_changes: bool,
    full: bool,
    progress: Progress,
) -> ResyncReport:
    plan = plan_resync(volume, mirror, peer, winner)
    _require_choice(plan, full)
    changes = LocalChanges.FLUSH if drop_changes else LocalChanges.KEEP
    begun_ns = time.time_ns()
    if plan.winner == DESTINATION:
        brought, kept = _bring_back(volume, mirror, peer, plan, changes, progress)
    else:
        brought, kept = _bring_forth(volume, mirror, peer, plan, changes, progress, full)
    _drop_fetched(volume, mirror, peer)
    with volume.lock:
        noted(volume.path, mirror, _last_run(volume, mirror, begun_ns, brought, kept))
    return ResyncReport(plan, brought, kept)


def _drop_fetched(volume: Volume, mirror: MirrorDefinition, peer: MirrorPeer) -> None:
    """Give up what resyncs that were cut off had fetched from a destination; what is pulled elsewhere stays."""
    theirs = {record.id for record in peer.standing().snapshots}
    with volume.lock:
        entries = [image.entry for image in volume.local.incoming.images()]
        others = [e.top_id for e in entries if e.top_id not in theirs and not is_own(e.top_name, mirror.prefix)]
        drop_pulled(volume, others)


def _last_run(
    volume: Volume, mirror: MirrorDefinition, begun_ns: int, brought: Brought | None, kept: str | None
) -> LastRun:
    """Return what is noted of a resync that ended well; figures are of the last that brought anything."""
    if brought is not None:
        return LastRun(begun_ns, time.time_ns(), brought.n_blocks, brought.n_bytes, brought.seconds, kept=kept or "")
    known = next((each for each in definitions(volume.path) if each.name == mirror.name), mirror)
    return replace(
        known.last,
        begun_ns=begun_ns,
        ended_ns=time.time_ns(),
        error="",
        hint="",
        state="",
        kept=kept or known.last.kept,
    )


def _require_choice(plan: ResyncPlan, full: bool) -> None:
    """Refuse what a person has to decide."""
    if plan.winner is None:
        since = f"since {plan.common}" if plan.common is not None else "and they have nothing in common"
        raise RefusedError(
            f"both sides were written to {since}: the source has {told(plan.source)}, "
            f"the destination {told(plan.destination)}",
            "say which one is to win: --from source or --from destination; what the other has is kept in a snapshot",
        )
    if plan.common is None and not full and plan.n_blocks:
        raise RefusedError(
            f"{plan.mirror.dest} and the source have no state in common: all would travel",
            "--full brings it, and keeps what is there in a snapshot",
        )


def told(since: Since) -> str:
    """Say what a side has."""
    n = since.n_snapshots
    has = [f"{n} snapshot{'s' if n > 1 else ''}"] if n else []
    has += ["changes to files"] if since.is_changed else []
    return f"{' and '.join(has) or 'nothing'} ({since.n_blocks} blocks)"


def _become_mirror(volume: Volume, peer: MirrorPeer) -> None:
    """Have a destination be a mirror, of this volume where that is now, and what it shows be what was brought last."""
    record = peer.standing().mirror
    assert record is not None
    peer.become(replace(in_state(record, MIRROR), source=os.path.abspath(volume.path)))


def _bring_forth(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: MirrorPeer,
    plan: ResyncPlan,
    changes: LocalChanges,
    progress: Progress,
    full: bool,
) -> tuple[Brought | None, str | None]:
    """Let the destination show the source's state: it goes back where that is the common one, else it is brought."""
    kept = None
    if changes is LocalChanges.KEEP and not plan.destination.is_nothing:
        # no step drops it, whatever becomes of this one, and whatever history a source that was put back tells
        taken = {record.name for record in peer.standing().snapshots}
        kept = _if_kept(peer.retain(name_to_keep(mirror.volume_id, taken)))
    if plan.source.is_nothing and plan.common is not None:
        common = _id_of(volume, plan.common)
        if not plan.destination.is_nothing:
            kept = peer.go_back(common, changes) or kept
        _become_mirror(volume, peer)
        kept = peer.go_back(common, changes) or kept  # what was written before it refused to be
        _note_standing(volume, mirror, peer, plan.common)
        return None, kept
    with _as_mirror(volume, peer):
        brought = step(volume, mirror, peer, progress, changes, may_replace=full, force=True).brought
    if brought is None:
        return None, kept
    brought = replace(brought, kept=brought.kept or kept)
    return brought, brought.kept


@contextmanager
def _as_mirror(volume: Volume, peer: MirrorPeer) -> Iterator[None]:
    """Have a destination be a mirror from here on; where the `with` ends early it is what it was before."""
    before = peer.standing().mirror
    assert before is not None
    record = before if before.state == MIRROR else in_state(before, MIRROR)
    peer.become(replace(record, source=os.path.abspath(volume.path)))
    try:
        yield
    except BaseException:
        with suppress(BlockplaneError, OSError):  # contact is lost, say: what it has is in a snapshot
            peer.become(before)
        raise


def _bring_back(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: MirrorPeer,
    plan: ResyncPlan,
    changes: LocalChanges,
    progress: Progress,
) -> tuple[Brought | None, str | None]:
    """Let the source show the destination's state; only then is the destination a mirror again.

    What is written there meanwhile is brought too; what comes at the very last stays there, in a snapshot, by the next
    update.
    """
    brought, kept = None, None
    if changes is LocalChanges.KEEP and not plan.source.is_nothing:
        kept = _if_kept(retain(volume, kept_name(volume)))
    for _ in range(MAX_ROUNDS):
        top = peer.retain(own_name(volume, mirror.prefix))
        if top.id in standing_of(volume).whole:  # it is here, though it is not what is shown
            kept = go_back(volume, top.id, changes) or kept
        else:
            last = peer.bring(top.name, volume, changes, progress)
            brought = last if brought is None else last.after(brought)
            kept = last.kept or kept
        if peer.standing().at == top.id:
            break
    name = next(s.name for s in volume.snapshots if s.record.id == top.id)
    _note_standing(volume, mirror, peer, name)
    _become_mirror(volume, peer)
    return brought, kept


def _if_kept(record: SnapshotRecord) -> str | None:
    return record.name if is_kept(record.name) else None


def _id_of(volume: Volume, name: str) -> bytes:
    return volume.get_snapshot(name).record.id


def _note_standing(volume: Volume, mirror: MirrorDefinition, peer: MirrorPeer, name: str) -> None:
    """Note that the destination stands at a snapshot, whatever was under way to it."""
    with volume.lock:
        require_listed(volume, mirror)
        _stand_at(volume, mirror, name)
    let_old_go(volume, mirror, peer, peer.standing())


def _stand_at(volume: Volume, mirror: MirrorDefinition, name: str) -> None:
    found = next((each for each in volume.destinations.list() if each.name == mirror.name), None)
    if found is not None and found.acknowledged == name and found.status == "idle":
        return
    if found is not None and found.status != "idle" and found.under_way != name:
        volume.destinations.fail(mirror.name)
    volume.destinations.begin(mirror.name, name, needs_marks=False)
    volume.destinations.succeed(mirror.name)
