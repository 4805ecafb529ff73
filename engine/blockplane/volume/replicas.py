"""Known replicas: who pulls, from here or further down, and where each stands.

A replica is known by its volume's id. One that pulls from here is a destination as well (`destinations`); what it says
of those that pull from it comes along, and what they need is held here too, so that one that loses its source can go on
here. Of two reports on a replica the one of its own later consistency point counts, whatever way they came.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import TYPE_CHECKING, Final

from blockplane.model.errors import NoSpaceError, RefusedError
from blockplane.volume.codec import KIND_REGULAR, NO_ID, SnapshotRecord
from blockplane.volume.destinations import Destinations
from blockplane.volume.holds import hold_by_id, release_all
from blockplane.volume.markcodec import DESTINATION_NAME_BYTES, STATUS_IDLE, DestinationRecord
from blockplane.volume.masters import OWNER, let_go
from blockplane.volume.replicationcodec import FLAG_LOST, ReplicaRecord

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: 512 bytes each.
MAX_REPLICAS: Final = 1024
#: Of those, that one peer has, with what it tells of: by its certificate, plain ones together; from this machine, what
#: one volume tells of.
MAX_TOLD: Final = 128
#: The key of all who call without a certificate; it binds nobody.
PLAIN_KEY: Final = b"plain".ljust(16, b"\0")
#: How long what a replica said itself counts for more than what others say of it.
ITSELF_NS: Final = 86_400 * 10**9
#: An age is told some time after it was looked at: what is later by less is the same contact.
_ON_THE_WAY_NS: Final = 60 * 10**9
#: A contact that changes nothing else is noted when the one noted before is so old.
NOTE_NS: Final = 10 * 10**9


@dataclass(frozen=True, slots=True)
class Caller:
    """A replica as it says of itself.

    label : what it would be called. below : what it knows of those below it. key : by whose certificate it calls;
    NO_ID: from this machine.
    """

    volume_id: bytes
    label: str
    generation: int
    below: Sequence[ReplicaRecord] = ()
    key: bytes = NO_ID


def records_of(volume: LiveVolume) -> list[ReplicaRecord]:
    """Return the known replicas, in the order in which they were first heard of."""
    with volume.lock:
        return list(volume.local.replication().replicas)


def find(volume: LiveVolume, volume_id: bytes) -> ReplicaRecord | None:
    """Return what is known of a replica."""
    return next((r for r in records_of(volume) if r.volume_id == volume_id), None)


def heard(volume: LiveVolume, caller: Caller, stands: SnapshotRecord | None) -> ReplicaRecord:
    """Note where a replica that calls stands, and those below it: durable where it is news.

    Parameters
    ----------
    stands : the newest snapshot here that it has whole; it is held from now on, in place of the one before.

    Raises
    ------
    RefusedError: somebody else calls for it; there are as many as there may be, of this peer or of all.
    """
    with volume.lock:
        now = time.time_ns()
        record = _named(volume, caller)
        if _is_anothers(record, caller):
            raise _called_by_another(volume, record)
        if find(volume, caller.volume_id) is None:  # in the CP that holds something for it, or before
            _enter(volume, record)
        _settle(volume, record.name, stands)
        at = stands.id if stands is not None else NO_ID
        key = caller.key if caller.key != NO_ID else record.key if record.is_direct else NO_ID
        new = replace(
            record, generation=caller.generation, stands=at, via=NO_ID, contact_ns=now, flags=0, silent_ns=0, key=key
        )
        here = volume.info.volume_id  # who told of whom: what they have of this volume is no news here
        told = [r for r in caller.below if r.volume_id not in (here, caller.volume_id) and r.via != here]
        _put(volume, [new, *_news(volume, caller, told, now)])
        return new


def _named(volume: LiveVolume, caller: Caller) -> ReplicaRecord:
    """Return the record of who calls; a new one gets a name that is nobody's."""
    known = records_of(volume)
    for record in known:
        if record.volume_id == caller.volume_id:
            return record
    mine = [record for record in known if _is_of(record, caller)]
    if len(mine) >= MAX_TOLD and not _make_room(volume, [r for r in mine if r.is_lost or not r.is_direct]):
        raise _too_many(volume, f"{MAX_TOLD} replicas of who calls")
    if len(records_of(volume)) >= MAX_REPLICAS and not _make_room(volume, [r for r in known if r.is_lost]):
        raise _too_many(volume, f"{MAX_REPLICAS} replicas")
    taken = {r.name for r in known} | {d.name for d in volume.local.destinations()}
    return ReplicaRecord(_free(caller.label, caller.volume_id, taken), caller.volume_id, key=caller.key)


def _too_many(volume: LiveVolume, of_what: str) -> RefusedError:
    return RefusedError(f"{volume.path} has {of_what}", f"forget some: blockplane replicas {volume.path} --forget NAME")


def _is_of(replica: ReplicaRecord, caller: Caller) -> bool:
    """Whether a replica is one of those that a peer may have so many of."""
    return replica.key == caller.key if caller.key != NO_ID else replica.via == caller.volume_id


def _make_room(volume: LiveVolume, among: Sequence[ReplicaRecord]) -> bool:
    """Forget the one of some replicas that was not heard of for longest, in the open CP; False: there is none."""
    if among:
        gone = min(among, key=lambda record: record.contact_ns)
        let_go(volume, gone)
        table = volume.local.replication()
        volume.local.set_replication(
            replace(table, replicas=tuple(r for r in table.replicas if r.volume_id != gone.volume_id))
        )
    return bool(among)


def _enter(volume: LiveVolume, record: ReplicaRecord) -> None:
    """Add a record, in the open CP."""
    table = volume.local.replication()
    volume.local.set_replication(replace(table, replicas=(*table.replicas, record)))


def _free(label: str, volume_id: bytes, taken: Iterable[str]) -> str:
    """Return a name that can own holds and that nobody has."""
    name = re.sub(r"[^A-Za-z0-9_.:/@-]", "_", label).lstrip(".:/@-")[: DESTINATION_NAME_BYTES - 33] or "replica"
    own = f"{name}-{volume_id.hex()[:8]}"
    is_mirrors = re.search(r"\.[0-9a-f]{8}$", name) is not None  # what destinations of mirrors are named like
    candidates = chain(() if is_mirrors else (name,), (own,), (f"{own}-{n}" for n in count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def _news(volume: LiveVolume, caller: Caller, told: Sequence[ReplicaRecord], now: int) -> list[ReplicaRecord]:
    """Return the records of those below that are known to be later than what is known here.

    What they say of the time is how long ago it was: their clock may be another. Of who calls here itself, by another
    certificate, and has done so of late, nobody else is believed: it would lose what is held for it.
    """
    via = caller.volume_id
    known = {record.volume_id: record for record in records_of(volume)}
    taken = {record.name for record in known.values()} | {d.name for d in volume.local.destinations()}
    news, n_new, n_places = list[ReplicaRecord](), 0, _places_for(volume, caller, told)
    for record in told:
        old = known.get(record.volume_id)
        heard_ns = now - max(record.contact_ns, 0)
        if old is None and n_new >= n_places:
            continue
        n_new += old is None
        if old is not None and _speaks_for_itself(old, caller, now):
            continue
        # put back from an older copy, it counts from there again: who told of it before tells of a later call
        is_later = old is not None and old.via == via and heard_ns - old.contact_ns > _ON_THE_WAY_NS
        if old is None or record.generation > old.generation or (is_later and record.generation < old.generation):
            name = old.name if old is not None else _free(record.name, record.volume_id, taken)
            taken.add(name)
            news.append(
                ReplicaRecord(name, record.volume_id, record.generation, record.stands, via, heard_ns, key=caller.key)
            )
        elif record.generation == old.generation and is_later:
            news.append(replace(old, contact_ns=heard_ns, silent_ns=0, flags=0))
    return news


def _places_for(volume: LiveVolume, caller: Caller, told: Sequence[ReplicaRecord]) -> int:
    """Return of how many new replicas a caller may tell; those it told of, and does not any more, make room."""
    known = records_of(volume)
    ids = {record.volume_id for record in told}
    mine = [record for record in known if _is_of(record, caller)]
    idle = [record for record in mine if record.via == caller.volume_id and record.volume_id not in ids]
    n_missing = len(mine) + len(ids - {record.volume_id for record in known}) - MAX_TOLD
    gone = sorted(idle, key=lambda record: record.contact_ns)[: max(n_missing, 0)]
    for record in gone:
        _make_room(volume, [record])
    return min(MAX_TOLD - len(mine), MAX_REPLICAS - 1 - len(known)) + len(gone)


def _speaks_for_itself(replica: ReplicaRecord, caller: Caller, now: int) -> bool:
    return _is_anothers(replica, caller) and now - replica.contact_ns < ITSELF_NS


def _is_anothers(replica: ReplicaRecord, caller: Caller) -> bool:
    """Whether a replica that is waited for calls by another certificate than who calls now, or from this machine."""
    is_known = replica.is_direct and not replica.is_lost
    return is_known and caller.key not in (NO_ID, replica.key) and replica.key != PLAIN_KEY


def _called_by_another(volume: LiveVolume, replica: ReplicaRecord) -> RefusedError:
    calls, anew = "calls with another certificate", "that has a new name"
    if replica.key == NO_ID:
        calls, anew = "pulls on that machine", "it pulls over a network now"
    return RefusedError(
        f"{volume.path} knows this volume as its replica {replica.name}, which {calls}",
        f"if {anew}: blockplane replicas {volume.path} --forget {replica.name}",
    )


def _put(volume: LiveVolume, records: Sequence[ReplicaRecord]) -> None:
    """Enter records, and hold what those that pull elsewhere need; commit where anything is news."""
    table = volume.local.replication()
    by_id = {record.volume_id: record for record in table.replicas}
    whole = {e.record.id for e in volume.local.entries() if e.record.kind == KIND_REGULAR}
    is_news = False
    with volume.changing():
        for record in records:
            old = by_id.get(record.volume_id)
            by_id[record.volume_id] = record
            is_news = is_news or old is None or _differs(old, record)
            if not record.is_direct and old is not None and old.is_direct:
                let_go(volume, old)  # it pulls elsewhere now
            if record.is_direct:
                release_all(volume, OWNER.format(record.name))
            elif old is None or old.stands != record.stands or old.is_direct or old.is_lost:
                release_all(volume, OWNER.format(record.name))
                if record.stands in whole:
                    hold_by_id(volume, record.stands, OWNER.format(record.name))
        if is_news:
            volume.local.set_replication(replace(table, replicas=tuple(by_id.values())))
            volume.commit()


def _differs(old: ReplicaRecord, new: ReplicaRecord) -> bool:
    """Whether a record says more than that a replica was heard of again, a moment after the last time."""
    same = replace(old, generation=new.generation, contact_ns=new.contact_ns)
    return same != new or abs(new.contact_ns - old.contact_ns) >= NOTE_NS


def _settle(volume: LiveVolume, name: str, stands: SnapshotRecord | None) -> None:
    """Bring a destination's record in line with where it says it stands."""
    destinations = Destinations(volume)
    record = _destination(volume, name)
    if record is not None and record.status != STATUS_IDLE:
        if stands is not None and record.under_way == stands.id:
            destinations.succeed(name)
        else:
            destinations.fail(name)
        record = _destination(volume, name)
    has = record.acknowledged if record is not None else NO_ID
    if stands is None or stands.kind != KIND_REGULAR:
        if has != NO_ID:  # nothing it has can be held here
            destinations.forget(name)
    elif has != stands.id and begin(volume, name, stands.name):
        destinations.succeed(name)


def _destination(volume: LiveVolume, name: str) -> DestinationRecord | None:
    return next((d for d in volume.local.destinations() if d.name == name), None)


def begin(volume: LiveVolume, name: str, top: str) -> bool:
    """Note that a top goes to a replica; False: the volume is too full for marks, and it goes without."""
    try:
        Destinations(volume).begin(name, top)
    except NoSpaceError:
        return False
    return True


def arrived(volume: LiveVolume, volume_id: bytes, top: SnapshotRecord) -> None:
    """Note that a replica has a snapshot now. Durable on return."""
    with volume.lock:
        record = find(volume, volume_id)
        if record is not None:
            _settle(volume, record.name, top)
            now = time.time_ns()
            _put(volume, [replace(record, stands=top.id, contact_ns=now, error="", error_ns=0, flags=0, silent_ns=0)])


def failed(volume: LiveVolume, volume_id: bytes, error: str, *, is_refused: bool = False) -> None:
    """Note what a transfer to a replica met: nobody knows what arrived, until it calls again. Durable on return.

    Parameters
    ----------
    is_refused : nothing arrived, and nothing is kept there: one that has nothing is not known any more.
    """
    with volume.lock:
        record = find(volume, volume_id)
        if record is None:
            return
        if is_refused and record.stands == NO_ID:
            forget(volume, record.name)
            return
        going = _destination(volume, record.name)
        if going is not None and going.status != STATUS_IDLE:
            Destinations(volume).unknown(record.name)
        now = time.time_ns()
        _put(volume, [replace(record, contact_ns=now, error=error, error_ns=now, silent_ns=0)])


def forget(volume: LiveVolume, name: str) -> None:
    """Drop a replica and all that is held for it; when it calls again it is known again. Durable on return.

    Raises
    ------
    RefusedError: none is named so.
    """
    with volume.lock:
        table = volume.local.replication()
        gone = next((r for r in table.replicas if r.name == name), None)
        if gone is None:
            names = ", ".join(r.name for r in table.replicas)
            raise RefusedError(f"no replica is named {name!r}", f"there are: {names}" if names else "there are none")
        with volume.changing():
            let_go(volume, gone)
            rest = tuple(r for r in volume.local.replication().replicas if r is not gone and r.name != name)
            volume.local.set_replication(replace(volume.local.replication(), replicas=rest))
            volume.commit()


def forget_volume(volume: LiveVolume, volume_id: bytes) -> None:
    """Drop a replica of that id, if it is one. Durable on return."""
    with volume.lock:
        found = find(volume, volume_id)
        if found is not None:
            forget(volume, found.name)


def reported(volume: LiveVolume) -> list[ReplicaRecord]:
    """Return what is told up of the replicas below: those that are not lost, each with how long ago it was heard of."""
    now = time.time_ns()
    return [
        replace(r, contact_ns=max(now - r.contact_ns, 0), key=NO_ID)
        for r in records_of(volume)
        if not r.flags & FLAG_LOST
    ]
