"""Pointers: names that stand at snapshots, can be moved, and stand wherever a snapshot's name may.

They stand in the local tree and are not rolled back. Where replicas pull, moves travel: each is one more than the one
before, wherever it is made, so that of two the same counts everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from blockplane.model.errors import NoSuchSnapshotError, RefusedError, UsageError
from blockplane.volume.codec import FLAG_MASTER, KIND_REGULAR, NO_ID, TableEntry
from blockplane.volume.holds import refuse_deleting
from blockplane.volume.naming import check_name, refuse_existing
from blockplane.volume.replicationcodec import PointerRecord, Replication

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: The pointer that replicas follow where nothing else is said.
MASTER: Final = "master"
MAX_POINTERS: Final = 64
#: Deleted ones are remembered, so that their deletion travels: so many.
MAX_REMEMBERED: Final = 192


@dataclass(frozen=True, slots=True)
class SnapshotPointer:
    """A pointer as it is now. snapshot : its name; None: it is gone. moved_ns : ns since 1970."""

    name: str
    snapshot: str | None
    snapshot_id: str
    moved_ns: int


def all_of(volume: LiveVolume) -> list[SnapshotPointer]:
    """Return the pointers, by name."""
    with volume.lock:
        names = {entry.record.id: entry.record.name for entry in volume.local.entries()}
        found = [p for p in volume.local.replication().pointers if p.snapshot_id != NO_ID]
        return [
            SnapshotPointer(p.name, names.get(p.snapshot_id), p.snapshot_id.hex(), p.moved_ns)
            for p in sorted(found, key=lambda p: p.name)
        ]


def move(volume: LiveVolume, name: str, snapshot: str) -> None:
    """Let a pointer, which may be new, stand at a snapshot. Durable on return.

    Raises
    ------
    UsageError: it cannot be named so, or there are too many. SnapshotExistsError: the name is another thing's.
    NoSuchSnapshotError: the snapshot does not exist. RefusedError: it is a shadow, or being deleted.
    """
    check_name(name, "a pointer")
    with volume.lock:
        table, entry = volume.local.replication(), volume.local.entry(snapshot)
        _refuse_not_regular(entry)
        if name not in table.standing:
            refuse_existing(volume, name)
            if len(table.standing) >= MAX_POINTERS:
                raise UsageError(f"{volume.path} has {MAX_POINTERS} pointers", "delete some: pointer VOL NAME --delete")
        with volume.changing():
            set_pointer(volume, name, entry.record.id)
            volume.commit()


def _refuse_not_regular(entry: TableEntry) -> None:
    refuse_deleting(entry)
    if entry.record.kind != KIND_REGULAR:
        raise RefusedError(
            f"no pointer can stand at {entry.record.name}: it is a shadow, and cannot be read", "name another snapshot"
        )


def delete(volume: LiveVolume, name: str) -> None:
    """Let a name stand for nothing any more; the snapshot stays. Durable on return.

    Raises
    ------
    NoSuchSnapshotError: no pointer is named so.
    """
    with volume.lock:
        standing = volume.local.replication().standing
        if name not in standing:
            hint = f"there are: {', '.join(sorted(standing))}" if standing else "there are none"
            raise NoSuchSnapshotError(f"no pointer is named {name!r}", hint)
        with volume.changing():
            set_pointer(volume, name, NO_ID)
            volume.commit()


def set_pointer(volume: LiveVolume, name: str, snapshot_id: bytes) -> None:
    """Move a pointer in the open CP: one version on. The volume's lock is held."""
    table = volume.local.replication()
    old = next((p for p in table.pointers if p.name == name), None)
    version = old.version + 1 if old is not None else 1
    made = PointerRecord(name, snapshot_id, version, volume.info.volume_id, time.time_ns())
    _put(volume, table, [made])


def _put(volume: LiveVolume, table: Replication, records: Iterable[PointerRecord]) -> None:
    by_name = {p.name: p for p in table.pointers} | {p.name: p for p in records}
    gone = sorted((p for p in by_name.values() if p.snapshot_id == NO_ID), key=lambda p: p.moved_ns)
    for pointer in gone[: max(len(gone) - MAX_REMEMBERED, 0)]:
        del by_name[pointer.name]
    volume.local.set_replication(replace(table, pointers=tuple(by_name.values())))


def adopt(volume: LiveVolume, records: Sequence[PointerRecord], masters: Collection[bytes]) -> list[PointerRecord]:
    """Take over what a source says of pointers and masters, as far as their snapshots are here: one CP, durable.

    Returns
    -------
    the pointers that moved, or went.
    """
    with volume.lock:
        entries = volume.local.entries()
        whole = {entry.record.id for entry in entries if entry.record.kind == KIND_REGULAR}
        table = volume.local.replication()
        mine = {p.name: p for p in table.pointers}
        others = {entry.record.name for entry in entries} | {image.name for image in volume.local.images.all()}
        later = [
            p
            for p in sorted(records, key=lambda p: p.rank)
            if (p.name not in mine or p.rank > mine[p.name].rank)
            and (p.snapshot_id == NO_ID or (p.snapshot_id in whole and p.name not in others))
        ]
        new = [e for e in entries if e.record.id in masters and not e.record.flags & FLAG_MASTER]
        if not later and not new:
            return []
        with volume.changing():
            for entry in new:
                entry.record = replace(entry.record, flags=entry.record.flags | FLAG_MASTER)
            if new:
                volume.local.rewrite_entries()
            if later:
                _put(volume, table, later)
            volume.commit()
        return list({p.name: p for p in later}.values())


def refuse_foreign(volume: LiveVolume, records: Sequence[PointerRecord]) -> None:
    """Refuse pointers of a source that cannot be here.

    Raises
    ------
    RefusedError: there are too many, or a snapshot or a stored image here has the name of one. UsageError: one is named
        as none can be.
    """
    with volume.lock:
        mine = {entry.record.name for entry in volume.local.entries()}
        images = {image.name for image in volume.local.images.all()}
    if len(records) > MAX_POINTERS + MAX_REMEMBERED or any(p.version >> 62 for p in records):
        raise RefusedError("the source has pointers that no volume can have", "look what is there")
    for pointer in records:
        check_name(pointer.name, "a pointer")
    for pointer in records:
        if pointer.snapshot_id != NO_ID and pointer.name in mine:
            raise RefusedError(
                f"the source has a pointer {pointer.name}, and {volume.path} a snapshot of that name",
                f"rename the snapshot: blockplane snapshot rename {volume.path}@{pointer.name} NEW",
            )
        if pointer.snapshot_id != NO_ID and pointer.name in images:
            raise RefusedError(
                f"the source has a pointer {pointer.name}, and {volume.path} a stored image of that name",
                f"save it under another name: blockplane image delete {volume.path} {pointer.name}",
            )


def names_at(volume: LiveVolume, snapshot_id: bytes) -> list[str]:
    """Return which pointers stand at a snapshot."""
    return sorted(name for name, at in volume.local.replication().standing.items() if at == snapshot_id)


def refuse_pointed(volume: LiveVolume, entries: Iterable[TableEntry]) -> None:
    """Refuse to give up snapshots at which pointers stand.

    Raises
    ------
    RefusedError: one does; says which.
    """
    for entry in entries:
        for name in names_at(volume, entry.record.id):
            raise RefusedError(
                f"the pointer {name} stands at snapshot {entry.record.name!r}",
                f"move it first: blockplane pointer {volume.path} {name} SNAP, or delete it with --delete",
            )
