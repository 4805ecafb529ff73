"""One step of a mirror: from where the destination stands to what the volume is now.

Whatever happened before, a step first asks where the destination stands; so a step that was cut off, by either side or
in between, is gone on with by the next one. Its own snapshots are named `mirror.NAME.TIME`; those older than the one
that the destination acknowledged go, on both sides, as soon as nobody reads or holds them and no pointer stands there,
but for one of a state that was given up since, which is kept. Other mirrors' never travel; where the volume is a mirror
itself, what was brought to it stands for its own. People's do, but where the destination has another of a name.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace

from blockplane.image.image import Image
from blockplane.model.errors import BlockplaneError, NoSpaceError, RefusedError, StreamMismatchError
from blockplane.model.places import is_remote
from blockplane.model.progress import Progress, ignore_progress
from blockplane.transfer.destination import settled
from blockplane.transfer.mirrors.listing import MirrorDefinition, definitions
from blockplane.transfer.mirrors.peers import Peers
from blockplane.transfer.mirrors.turns import taken_out, turn_of
from blockplane.transfer.peer import Brought, MirrorPeer, Peer
from blockplane.transfer.replacing import LocalChanges, let_own_go
from blockplane.transfer.since import has_files_of
from blockplane.transfer.standing import Standing, base_for, common_state, image_towards, meeting
from blockplane.volume.codec import KIND_REGULAR, NO_ID
from blockplane.volume.destinations import OWNER, Destination
from blockplane.volume.holds import hold_by_id, holds_of, release_all
from blockplane.volume.lines import is_on_line
from blockplane.volume.mirrorcodec import BROKEN, REHEARSING, MirrorRecord
from blockplane.volume.mirrored import awaits_first, is_rehearsing
from blockplane.volume.mirrorstates import is_kept, is_own, name_to_keep
from blockplane.volume.snapshots import create, standing_at
from blockplane.volume.volume import Volume

#: What leaves a destination as it was (see Peer.take): the step failed, and is known to have.
CLEAN_FAILURES = (RefusedError, StreamMismatchError, NoSpaceError)


class BrokenOffError(RefusedError):
    """A destination was broken off: it is a volume of its own until a resync."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did.

    outcome : `idle`, nothing had changed and nothing was written; `brought`; `waiting`, a rehearsal goes on in the
    volume `rehearses`: the destination, or the source, which is a mirror itself; `busy`, somebody else brings it up to
    date. top, brought : what arrived last. settled : the top of an earlier step that had not ended, or of which nobody
    had known whether it arrived, and which is there now.
    """

    name: str
    dest: str
    outcome: str
    top: str | None = None
    brought: Brought | None = None
    settled: str | None = None
    rehearses: str | None = None


def known_destination(volume: Volume, mirror: MirrorDefinition) -> Destination | None:
    """Return where a mirror stands by the volume's own table; None: nothing was ever sent."""
    return next((found for found in volume.destinations.list() if found.name == mirror.name), None)


def is_up_to_date(volume: Volume, mirror: MirrorDefinition) -> bool:
    """Whether a destination has all that the volume has: by the pointers of both states; nothing is read or written.

    The volume's own dirty state is committed first, as it would be anyway.
    """
    found = known_destination(volume, mirror)
    if found is None or found.acknowledged is None or found.status != "idle":
        return False
    with settled(volume):
        entry = volume.local.entry(found.acknowledged)
        if entry.is_shadow or not has_files_of(volume, entry):
            return False
        line = [each.record for each in volume.local.ancestors(volume.local.root.parent_id)]
        ids = [record.id for record in line]
        if entry.record.id not in ids:
            return False
        newer = line[ids.index(entry.record.id) + 1 :]
        return all(record.kind != KIND_REGULAR or is_own(record.name) for record in newer)


def own_prefixes(volume: Volume) -> tuple[str, ...]:
    """Return what the names of snapshots that mirrors of this volume made begin with."""
    names = {each.name for each in definitions(volume.path)} | {each.name for each in volume.destinations.list()}
    return tuple(f"mirror.{name}." for name in sorted(names))


def step(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: Peer,
    progress: Progress = ignore_progress,
    changes: LocalChanges | None = None,
    may_replace: bool = False,
    force: bool = False,
    asks: bool = False,
) -> StepReport:
    """Bring a destination up to date, where it is not; durable there, and noted here, on return.

    Parameters
    ----------
    changes : what becomes of the destination's own, where not as listing. may_replace : bring all where nothing is
    common any more, in place of what is there. force : also where the table says that it is up to date, and where the
    destination is ahead. asks : where it stands, also where there is nothing to bring: one that is gone, or was broken
    off, shows.

    Raises
    ------
    BrokenOffError : it was broken off. RefusedError, StreamMismatchError, NoSpaceError : it was refused, and left as it
    was; or the mirror was taken out meanwhile. Another BlockplaneError, or OSError : contact was lost, or a disk
    failed; what came is kept, and the next step finds out.

    Notes
    -----
    When nothing changed, nothing is written, and no peer is asked unless `asks`. Readers of the destination see the
    state before until the new one is whole there. Memory as of `copy`.
    """
    try:
        return _step(volume, mirror, peer, (progress, changes or mirror.changes, may_replace), force, asks)
    finally:
        if not is_listed(volume, mirror):  # who took it out did not wait for this to end
            clear_away(volume, mirror)


def _step(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: Peer,
    how: tuple[Progress, LocalChanges, bool],
    force: bool,
    asks: bool,
) -> StepReport:
    if is_rehearsing(volume):
        return StepReport(mirror.name, mirror.dest, "waiting", rehearses=str(volume.path))
    if awaits_first(volume):
        return StepReport(mirror.name, mirror.dest, "idle")
    has_all = not force and is_up_to_date(volume, mirror)
    if has_all and not asks:
        return StepReport(mirror.name, mirror.dest, "idle")
    standing = peer.standing()
    _require_mirror(volume, mirror, peer, standing)
    if standing.mirror is not None and standing.mirror.state == REHEARSING:
        return StepReport(mirror.name, mirror.dest, "waiting", rehearses=mirror.dest)
    if not force:
        _refuse_ahead(volume, mirror, standing)
    if has_all and _shows_acknowledged(volume, mirror, standing):
        return StepReport(mirror.name, mirror.dest, "idle")
    arrived, brought, top = settle(volume, mirror, standing), None, _unfinished(volume, mirror)
    if top is not None:
        arrived, brought = top, _bring(volume, mirror, peer, standing, top, *how)
        standing = peer.standing()
    if not (arrived is not None and is_up_to_date(volume, mirror)) or (force and brought is None):
        top = _top(volume, mirror, standing)
        last = _bring(volume, mirror, peer, standing, top, *how)
        brought = last if brought is None else last.after(brought)
    let_old_go(volume, mirror, peer, standing)
    return StepReport(mirror.name, mirror.dest, "brought" if brought is not None else "idle", top, brought, arrived)


def _require_mirror(volume: Volume, mirror: MirrorDefinition, peer: Peer, standing: Standing) -> None:
    """Refuse a destination that is another volume, or is a volume of its own by now."""
    if standing.volume_id.hex() != mirror.volume_id:
        raise RefusedError(
            f"{mirror.dest} is another volume than the one that was added as a mirror",
            f"take it out and add it anew: blockplane mirror remove {volume.path} {mirror.dest}",
        )
    mine, record = volume.info.volume_id, standing.mirror
    if record is None and isinstance(peer, MirrorPeer):
        raise RefusedError(
            f"{mirror.dest} is no mirror of {volume.path} any more",
            f"blockplane mirror remove {volume.path} {mirror.dest} takes it out here; mirror add makes it one again",
        )
    if record is not None and record.source_id != mine:
        raise RefusedError(f"{mirror.dest} is a mirror of another volume ({record.source})", "take it out here")
    if record is not None and record.state == BROKEN:
        raise not_joined(volume, mirror.dest, record)


def not_joined(volume: Volume, dest: str, record: MirrorRecord) -> RefusedError:
    """Return the error for a destination that is no mirror just now: it was broken off, or a rehearsal goes on."""
    if record.state == REHEARSING:
        end = break_text(dest, "--end-rehearsal")
        return RefusedError(f"a rehearsal goes on in the mirror {dest}", f"end it first: {end}")
    return BrokenOffError(f"the mirror {dest} was broken off", f"{resync_text(volume, dest)} joins it again")


def refuse_mutual(volume: Volume, dest: str, volume_id: bytes, peers: Peers | None = None) -> None:
    """Refuse a destination that this volume is an unbroken mirror of, be it by way of others that peers reach."""
    record, above = volume.local.root.mirror, {volume.info.volume_id: str(volume.path)}
    while record is not None and record.state != BROKEN and record.source_id not in above:
        if record.source_id == volume_id:
            _, *between = above.values()
            none = f", by way of {', '.join(between)}: none of them" if between else ": neither"
            raise RefusedError(
                f"{volume.path} is itself a mirror of {dest}{none} could be written to",
                f"break it off first: blockplane mirror break {volume.path}",
            )
        above[record.source_id] = record.source
        record = _record_above(record, peers) if peers is not None else None


def _record_above(record: MirrorRecord, peers: Peers) -> MirrorRecord | None:
    """Return whose mirror a mirror's source is itself; None: nobody's, or it is not to be asked from here."""
    if record.source and not any(record.key):
        with suppress(BlockplaneError, OSError), peers.open(record.source) as peer:
            standing = peer.standing()
            return standing.mirror if standing.volume_id == record.source_id else None
    return None


def break_text(dest: str, *more: str) -> str:
    """Return what is typed to break a mirror off, or to end its rehearsal."""
    return " ".join(["blockplane mirror break", dest, *(["--tls DIR"] if is_remote(dest) else []), *more])


def resync_text(volume: Volume, dest: str, *more: str) -> str:
    """Return what is typed to join a mirror again; one behind a network does not know where its source is."""
    where = [f"--source {volume.path}", "--tls DIR"] if is_remote(dest) else []
    return " ".join(["blockplane mirror resync", dest, *where, *more])


def _refuse_ahead(volume: Volume, mirror: MirrorDefinition, standing: Standing) -> None:
    """Refuse to take a destination back from a state that the source does not know, and that may be all there is of it.

    What it shows is what was brought to it, unless it may be written to: the source was put back from an older copy, or
    another copy of it brings to this destination too. Where it shows what the acknowledged state came from, it is the
    destination that was put back. Where nothing was acknowledged yet, what it was added with may be replaced.
    """
    found = known_destination(volume, mirror)
    if mirror.may_write or not standing.shown:
        return
    shown = min(standing.shown.values(), key=lambda record: record.created_ns)
    with volume.lock:
        if any(entry.record.id in standing.shown for entry in volume.local.entries()):
            return
        if found is None or found.acknowledged is None:
            is_behind = any(id_.hex() in mirror.showed for id_ in standing.shown)
        else:
            brought = volume.local.entry(found.acknowledged)
            state = volume.snapshot_state(brought)
            # two copies of a source count their consistency points alike, and a source may be put back to another
            # numbering: so the time has to agree too
            is_behind = shown.created_ns <= brought.record.created_ns and (
                shown.space_id != state.root.space_id
                or is_on_line(shown.branch_id, shown.cp, state.root.branch_id, state.root.cp, state.branches())
            )
    if is_behind:
        return
    _hold_common(volume, mirror, standing)
    raise RefusedError(
        f"the mirror {mirror.dest} is ahead of {volume.path}: it shows {shown.name}, which is unknown here; it was "
        "written to since, or the source was put back from an older copy",
        f"{break_text(mirror.dest)} makes it a volume of its own; or say whose state both are to have, and keep the "
        f"other's in a snapshot: {resync_text(volume, mirror.dest, '--from source')}, or destination",
    )


def _hold_common(volume: Volume, mirror: MirrorDefinition, standing: Standing) -> None:
    """Hold what a destination that is ahead has in common with the volume, until a resync: else all would travel."""
    common = common_state(volume, standing)
    if common is not None:
        hold_for(volume, mirror, common.id)


def hold_for(volume: Volume, mirror: MirrorDefinition, snapshot_id: bytes) -> None:
    """Hold a snapshot for a mirror until something arrives there, or it is taken out. Durable on return."""
    owner = OWNER.format(mirror.name)
    with volume.lock:
        if all(found.owner != owner for found in holds_of(volume, snapshot_id)):
            hold_by_id(volume, snapshot_id, owner)
            volume.commit()


def _shows_acknowledged(volume: Volume, mirror: MirrorDefinition, standing: Standing) -> bool:
    """Whether a destination shows what it said last that it has; or, where it may be written to, what became of it."""
    found = known_destination(volume, mirror)
    if found is None or found.acknowledged is None:
        return False
    acknowledged = volume.get_snapshot(found.acknowledged).record.id
    if acknowledged in standing.shown:
        return True
    return mirror.may_write and any(record.id == acknowledged for record in standing.line)


def settle(volume: Volume, mirror: MirrorDefinition, standing: Standing) -> str | None:
    """Take a destination's word for whether what was under way arrived; return its name where it did, and is shown.

    What arrived only in part stays under way: the step that follows goes on with it. What arrived, and is not shown any
    more, is what the destination has.
    """
    found = known_destination(volume, mirror)
    if found is None or found.status == "idle" or found.under_way is None:
        return None
    top = volume.get_snapshot(found.under_way).record
    if top.id in standing.whole:
        volume.destinations.succeed(mirror.name)
        return found.under_way if _shows_acknowledged(volume, mirror, standing) else None
    if not any(receive.top_name == found.under_way for receive in standing.interrupted):
        _give_up(volume, mirror, found.under_way)
    return None


def _give_up(volume: Volume, mirror: MirrorDefinition, top: str) -> None:
    """Note that a top did not arrive; one of our own that nobody needs goes."""
    with suppress(RefusedError):  # the mirror was taken out meanwhile, and forgotten
        volume.destinations.fail(mirror.name)
    _let_top_go(volume, mirror, top)


def _let_top_go(volume: Volume, mirror: MirrorDefinition, top: str) -> None:
    """Let go of a top that is the mirror's own, and did not travel."""
    if is_own(top, mirror.prefix):
        let_own_go(volume, [s.record.id for s in volume.snapshots if s.name == top])


def _unfinished(volume: Volume, mirror: MirrorDefinition) -> str | None:
    found = known_destination(volume, mirror)
    return found.under_way if found is not None else None


def _top(volume: Volume, mirror: MirrorDefinition, standing: Standing) -> str:
    """Return the snapshot that has what the volume has: one there is, not another mirror's, else a new one.

    One that the destination has, and does not show, is not brought again, and would not be shown: then it is a new one.
    So it is where the destination has another of that name.
    """
    with settled(volume):
        there = standing_at(volume)
        foreign = tuple(prefix for prefix in own_prefixes(volume) if prefix != mirror.prefix)
        if there is not None and not (foreign and is_own(there.record.name, foreign)):
            is_hidden = there.record.id in standing.whole and there.record.id not in standing.shown
            if not is_hidden and not standing.has_other(there.record):
                return there.record.name
        return create(volume, own_name(volume, mirror.prefix)).name


def own_name(volume: Volume, prefix: str) -> str:
    """Return a name for a new snapshot of a mirror: the time, UTC, to the microsecond, and later than any there is."""
    taken = {entry.record.name for entry in volume.local.entries()}
    now = time.time_ns()
    while True:
        name = prefix + time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9)) + f".{now // 1000 % 10**6:06d}Z"
        if name not in taken:
            return name
        now += 1000


def image_for(volume: Volume, top: str, standing: Standing) -> Image:
    """Return the image that brings a top, and the users' snapshots between, to who stands there.

    Mirrors' own do not travel but as a top, be they of this volume's or of those that it was brought with; nor do those
    of whose names there are others there.
    """
    with volume.lock:
        line = [e.record for e in volume.local.ancestors(volume.local.entry(top).record.id) if e.record.name != top]
    taken = [record for record in line if standing.has_other(record)]
    exclude = [record.name for record in (*taken, *line) if record in taken or is_own(record.name)]
    return image_towards(volume, top, standing, exclude, keep_out=[record.id for record in taken])


def _left_out(volume: Volume, image: Image, standing: Standing) -> tuple[str, ...]:
    """Return which snapshots between an image's base and its top do not come: there are others of their names there."""
    assert image.top is not None
    with volume.lock:
        line = [e.record for e in volume.local.ancestors(image.top.id) if e.record.kind == KIND_REGULAR]
        before = volume.local.ancestors(image.base.id) if image.base is not None else []
    passed = {entry.record.id for entry in before}
    return tuple(r.name for r in line[:-1] if r.id not in passed and standing.has_other(r))


def _bring(
    volume: Volume,
    mirror: MirrorDefinition,
    peer: Peer,
    standing: Standing,
    top: str,
    progress: Progress,
    changes: LocalChanges,
    may_replace: bool,
) -> Brought:
    """Send what brings the destination to a top; the table of destinations follows."""
    is_blank = standing.space_id == NO_ID and not standing.whole
    found = known_destination(volume, mirror)
    is_first = found is None or found.acknowledged is None
    is_its_own = is_first and mirror.may_write
    try:
        with volume.lock:
            require_listed(volume, mirror)
            if not (is_blank or is_its_own or may_replace) and base_for(volume, top, standing) is None:
                all_of_it = resync_text(volume, mirror.dest, "--full", "--from source")
                raise RefusedError(
                    f"{mirror.dest} and {volume.path} have no snapshot in common",
                    f"{all_of_it} brings all, and keeps what is there in a snapshot",
                )
            # a full volume may be so by what is kept for this mirror, which goes when this arrived
            volume.destinations.begin(mirror.name, top, needs_marks=False)
    except BlockplaneError:
        _let_top_go(volume, mirror, top)
        raise
    kept = None
    try:
        source_id = volume.info.volume_id if isinstance(peer, MirrorPeer) else NO_ID
        if isinstance(peer, MirrorPeer) and changes is not LocalChanges.FLUSH:
            kept = _set_aside(volume, mirror, peer, standing, top)
        image = image_for(volume, top, standing)
        left_out = _left_out(volume, image, standing)
        brought = peer.take(image, changes, progress, source_id=source_id)
    except CLEAN_FAILURES:
        _give_up(volume, mirror, top)
        raise
    except BaseException:
        with suppress(BlockplaneError, OSError):  # a volume that stopped still says `under way`, which means the same
            volume.destinations.unknown(mirror.name)
        raise
    with volume.lock:
        require_listed(volume, mirror)
        volume.destinations.succeed(mirror.name)
    return replace(brought, kept=brought.kept or kept, left_out=left_out)


def _set_aside(volume: Volume, mirror: MirrorDefinition, peer: MirrorPeer, standing: Standing, top: str) -> str | None:
    """Keep what a destination shows in a snapshot that is no mirror's, where a top came from nothing that it has.

    Return that one's name; None: the top did, or there was one. Whatever the image builds on then, the histories of a
    source that was put back from an older copy may call it the top's past, and it would be let go.
    """
    shows = standing.whole.get(standing.at)
    if shows is None or not is_own(shows.name) or meeting(volume, top, standing.whole) is not None:
        return None
    name = peer.retain(name_to_keep(mirror.volume_id, {record.name for record in standing.snapshots})).name
    return name if is_kept(name) else None


def is_listed(volume: Volume, mirror: MirrorDefinition) -> bool:
    """Whether a mirror was not taken out meanwhile."""
    return any(each.name == mirror.name for each in definitions(volume.path))


def require_listed(volume: Volume, mirror: MirrorDefinition) -> None:
    """Refuse to go on with a mirror that was taken out meanwhile, or is about to be. The volume's lock is held."""
    if turn_of(volume, mirror.name).is_over or not is_listed(volume, mirror):
        raise taken_out(mirror.name)


def clear_away(volume: Volume, mirror: MirrorDefinition) -> None:
    """Let go of all that is kept for a mirror: where it stands, and its own snapshots."""
    with volume.lock:
        if known_destination(volume, mirror) is not None:
            volume.destinations.forget(mirror.name)
        else:  # what it was to begin from
            release_all(volume, OWNER.format(mirror.name))
            volume.commit()
        let_own_go(volume, [s.record.id for s in volume.snapshots if is_own(s.name, mirror.prefix)])


def let_old_go(volume: Volume, mirror: MirrorDefinition, peer: Peer, standing: Standing) -> None:
    """Let go of the mirror's own snapshots, on both sides, that are older than the one that was acknowledged.

    What either side came from is deleted; what it gave up is kept there, see `let_go`. At the destination those go too
    that a volume further up made, and that came as tops; not what a person gave a name here, nor what is for the
    destination's own mirrors.
    """
    found = known_destination(volume, mirror)
    stops = [name for name in ((found.acknowledged, found.under_way) if found is not None else ()) if name is not None]
    keep = {volume.get_snapshot(name).record.id for name in stops}
    old = [s.record for s in volume.snapshots if is_own(s.name, mirror.prefix) and s.record.id not in keep]
    let_own_go(volume, [record.id for record in old])
    with volume.lock:
        line = [entry.record for entry in volume.local.ancestors(volume.local.root.parent_id)]
    mine = {record.id for record in line if not is_own(record.name)}
    theirs = [r.id for r in standing.snapshots if is_own(r.name) and r.id not in keep | mine]
    if theirs and isinstance(peer, MirrorPeer):
        peer.let_go(theirs)
