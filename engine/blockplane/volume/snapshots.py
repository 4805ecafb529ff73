"""Snapshots of a volume: making, listing, renaming, making shadows of them, rolling back."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockplane.model.errors import RefusedError, UsageError
from blockplane.planes import Plane
from blockplane.volume import held, marking, shadows
from blockplane.volume.codec import (
    FLAG_MASTER,
    FORM_EMPTY,
    KIND_DELETING,
    KIND_NAMES,
    KIND_REGULAR,
    NAME_BYTES,
    Hold,
    SnapshotRecord,
    TableEntry,
)
from blockplane.volume.deleting import drop_or_defer, freed_by
from blockplane.volume.demotioncodec import Demotion
from blockplane.volume.holds import all_of as all_holds_of
from blockplane.volume.holds import holds_of, is_base, refuse_deleting, refuse_needed
from blockplane.volume.markcodec import FLAG_ASKED
from blockplane.volume.mirrorstates import only_in
from blockplane.volume.naming import check_name, refuse_existing
from blockplane.volume.pins import Pin
from blockplane.volume.pointers import names_at, refuse_pointed
from blockplane.volume.positions import refuse_more
from blockplane.volume.state import State

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A retained state of a volume."""

    volume: LiveVolume
    entry: TableEntry

    @property
    def record(self) -> SnapshotRecord:
        """The record that travels."""
        return self.entry.record

    @property
    def name(self) -> str:
        """The name people gave it."""
        return self.entry.record.name

    @property
    def id(self) -> str:
        """Its id, 32 hexadecimal digits."""
        return self.entry.record.id.hex()

    @property
    def kind(self) -> str:
        """regular, shadow, ...; deleting, whatever it was, once it goes when nothing needs it any more."""
        if self.entry.is_deleting:
            return KIND_NAMES[KIND_DELETING]
        return KIND_NAMES.get(self.entry.record.kind, f"kind {self.entry.record.kind}")

    @property
    def created_ns(self) -> int:
        """When it was made, ns since 1970."""
        return self.entry.record.created_ns

    @property
    def n_blocks(self) -> int:
        """How many blocks it holds; of a shadow, how many are left."""
        return self.entry.n_left if self.entry.is_shadow else self.entry.record.n_blocks

    @property
    def state(self) -> State:
        """The state it retains; RefusedError: it is a shadow."""
        with self.volume.lock:
            return self.volume.snapshot_state(self.entry)

    @property
    def plane(self) -> Plane:
        """Its plane: exactly the blocks reachable from its root; of a shadow, those not reused yet."""
        with self.volume.lock:
            if self.entry.is_shadow:
                return self.volume.plane(shadows.find(self.volume, self.name))
        with self.volume.pin(self.entry.record.id):
            return self.volume.plane(self.state)

    @property
    def holds(self) -> list[Hold]:
        """Who wants it kept, older first; expired ones do not count."""
        return holds_of(self.volume, self.entry.record.id)

    @property
    def expired_holds(self) -> list[Hold]:
        """Holds that mean nothing any more, and go with the next change to any hold."""
        return [hold for hold in all_holds_of(self.volume, self.entry.record.id) if hold.has_expired]

    @property
    def pins(self) -> list[Pin]:
        """What reads it now through this process, older first."""
        return self.volume.pins.of(self.entry.record.id)

    @property
    def is_master(self) -> bool:
        """Whether replicas synchronise to it."""
        return bool(self.entry.record.flags & FLAG_MASTER)

    @property
    def pointers(self) -> list[str]:
        """The pointers that stand at it, by name."""
        with self.volume.lock:
            return names_at(self.volume, self.entry.record.id)

    @property
    def was_blocks(self) -> int:
        """How many blocks it held when it was made; of a regular snapshot, what it holds."""
        return self.entry.record.n_blocks

    @property
    def shadowed_ns(self) -> int:
        """When it became a shadow, ns since 1970; 0: it is none."""
        return self.entry.shadowed_ns

    @property
    def lost_per_s(self) -> float:
        """How many blocks a second a shadow has lost since it became one; 0 for a regular snapshot."""
        if not self.entry.is_shadow:
            return 0.0
        return (self.was_blocks - self.n_blocks) / max((time.time_ns() - self.shadowed_ns) / 1e9, 1.0)

    @property
    def recent_lost_per_s(self) -> float | None:
        """How many blocks a second a shadow lost of late: since a count an hour old or more; None where there is none.

        Counts are made as blocks are lost, an hour apart at least; 0 for a regular snapshot.
        """
        return self.entry.pace.lost_per_s(time.time_ns(), self.n_blocks) if self.entry.is_shadow else 0.0

    @property
    def demotion(self) -> Demotion | None:
        """How it became a shadow; None: it is none."""
        return self.entry.demotion if self.entry.is_shadow else None

    @property
    def exclusive_blocks(self) -> int:
        """What deleting it alone would free."""
        return freed_by(self.volume, [self.name])


def create(volume: LiveVolume, name: str, mark: bool = False) -> Snapshot:
    """Retain the live state under a name. Durable on return; the same work whatever the volume's size.

    Parameters
    ----------
    mark : let an interval of marks begin with it; see `volume.marks`.

    Raises
    ------
    NoSpaceError: the volume is full, and as much of its reserve is taken as snapshots may take.
    """
    check_name(name)
    with volume.lock:
        refuse_existing(volume, name)
        _refuse_beside_receive(volume)
        if mark:
            refuse_more(volume)
        volume.commit()
        return _retain(volume, name, mark)


def _refuse_beside_receive(volume: LiveVolume) -> None:
    """A snapshot of what was written here is listed in the live state, and a receive that replaces that would fail."""
    if volume.incoming.is_running and not volume.is_replica:
        raise RefusedError(
            f"{volume.path} is receiving what replaces its live file system, and a snapshot would be a change to that",
            "make it when the receive has ended",
        )


def _retain(volume: LiveVolume, name: str, mark: bool = False) -> Snapshot:
    """Put the committed state into the table, and its record into the list of the state after it.

    NoSpaceError: what is left of the reserve is for deleting; nothing changed.
    """
    if volume.over_floor() < 0:
        volume.keep_floor()
    local, active, is_replica = volume.local, volume.active, volume.is_replica
    if not is_replica:
        active.listed_snapshots()  # what cannot be read is found before anything changes
    record = SnapshotRecord(
        id=os.urandom(16), space_id=active.root.space_id, parent_id=local.root.parent_id,
        branch_id=active.root.branch_id,
        cp=active.root.cp, created_ns=time.time_ns(), root=volume.info.state, n_blocks=active.root.n_blocks, name=name,
    )  # fmt: skip
    entry = TableEntry(record)
    with volume.changing():
        local.set_entries([*local.entries(), entry])
        local.set_map(entry, active.placemap)
        local.set_parent(record.id)
        if mark:  # what the CP after the snapshot's does is the first that belongs to the new interval
            local.marks.begin(record.id, FLAG_ASKED)
        if not is_replica:
            active.list_snapshots([e.record for e in local.ancestors(record.id)])
        volume.adopt_state(record.id, volume.committed)
        volume.commit()
    return Snapshot(volume, entry)


def all_of(volume: LiveVolume) -> list[Snapshot]:
    """Return the snapshots, older first."""
    with volume.lock:
        return [Snapshot(volume, entry) for entry in volume.local.entries()]


def rename(volume: LiveVolume, name: str, new: str) -> None:
    """Give a snapshot another name. Its id stays; copies elsewhere keep the old name."""
    check_name(new)
    with volume.lock:
        found = volume.local.entry(name)
        refuse_deleting(found)
        refuse_existing(volume, new)
        _renamed(volume, found, new)


def _renamed(volume: LiveVolume, entry: TableEntry, name: str) -> None:
    with volume.changing():
        entry.record = entry.record.renamed(name)
        volume.local.rewrite_entries()
        volume.commit()


def named_range(volume: LiveVolume, first: str, last: str) -> list[str]:
    """Return the names from first to last in the order of the table."""
    names = [entry.record.name for entry in volume.local.entries()]
    start, stop = (names.index(volume.local.entry(name).record.name) for name in (first, last))
    if start > stop:
        raise UsageError(f"{first!r} is younger than {last!r}", f"write {last}..{first}")
    return names[start : stop + 1]


def changed_since_newest(volume: LiveVolume) -> bool:
    """Whether the live state is more than the snapshot it descends from and the record of that.

    One that is a shadow, is being deleted or is damaged keeps nothing.
    """
    parent = _kept_parent(volume)
    state = volume.known_state(parent) if parent is not None else None
    if state is None:
        return volume.active.root.inode_file.form != FORM_EMPTY
    mine = volume.active.root.inode_file
    return bool((mine.pointers != state.root.inode_file.pointers).any())


def standing_at(volume: LiveVolume) -> TableEntry | None:
    """Return the regular snapshot that has all that the live state has, if any. The caller has committed."""
    parent = _kept_parent(volume)
    if parent is None or volume.known_state(parent) is None or changed_since_newest(volume):
        return None
    return parent


def _kept_parent(volume: LiveVolume) -> TableEntry | None:
    """Return the regular snapshot that the live state descends from, if it is one that stays."""
    parent_id = volume.local.root.parent_id
    return next((e for e in volume.local.entries() if e.record.id == parent_id and e.record.kind == KIND_REGULAR), None)


def shown_by(volume: LiveVolume) -> Snapshot | None:
    """Return the snapshot that the live state is, where it was received, or rolled back to, and not written to since.

    Such a state may be exchanged for another at any time; None: it may not, or no snapshot has it.
    """
    if not volume.is_replica or volume.has_unsaved:
        return None
    entry = standing_at(volume)
    return Snapshot(volume, entry) if entry is not None else None


def rollback(
    volume: LiveVolume,
    name: str,
    keep_as: str | None = None,
    drop_later: bool = False,
    drop_changes: bool = False,
    defer: bool = False,
) -> str | None:
    """Make a snapshot the live file system.

    Parameters
    ----------
    keep_as : name of the snapshot that keeps changes since the newest; made up where None. What is in a snapshot that
    a mirror made for itself alone is kept too: that one is renamed, for the mirror would delete it.
    drop_later : delete the snapshots made after it; defer : those that are needed when they no longer are.
    drop_changes : give up what no snapshot has.

    Returns
    -------
    the name of the snapshot that keeps the changes; None where there were none, or they were dropped.
    """
    if keep_as is not None:
        check_name(keep_as)
    with volume.lock:
        target = volume.local.entry(name)
        refuse_deleting(target)
        volume.snapshot_state(target)  # a shadow is refused before anything changes
        later = [e for e in volume.local.entries() if target in volume.local.ancestors(e.record.id)[:-1]]
        if drop_later:
            refuse_pointed(volume, later)
        if drop_later:
            refuse_needed(volume, later if not defer else [e for e in later if is_base(volume, e)], may_defer=True)
        volume.commit()
        kept = None
        if not drop_changes:
            kept = keep_live(volume, target, keep_as or _free_name(volume, f"before-rollback-to-{name}"))
        if not drop_later:
            _go_back(volume, target)
            return kept
        with volume.changing():
            drop_or_defer(volume, [entry for entry in later if entry.record.name != kept])
            _go_back(volume, target)
        return kept


def keep_live(volume: LiveVolume, towards: TableEntry | None, name: str) -> str | None:
    """Keep under a name what no snapshot has of the live state, or none but a mirror's own. The caller has committed.

    Parameters
    ----------
    towards : the snapshot that is to be live next; None: what a mirror's own has stays there.

    Returns
    -------
    the name; None: there was nothing to keep.
    """
    own = only_in(volume, standing_at(volume), towards) if towards is not None else None
    if own is None and not changed_since_newest(volume):
        return None
    check_name(name)
    refuse_existing(volume, name)
    if own is not None and not own.is_deleting:
        _renamed(volume, own, name)
    else:
        with volume.pin(towards.record.id) if towards is not None else nullcontext():
            _retain(volume, name)
    return name


def _free_name(volume: LiveVolume, name: str) -> str:
    taken = {entry.record.name for entry in volume.local.entries()} | {i.name for i in volume.local.images.all()}
    taken |= set(volume.local.replication().standing)
    name = name[: NAME_BYTES - 8]
    numbered = [name, *(f"{name}-{i}" for i in range(2, len(taken) + 3))]
    return next(candidate for candidate in numbered if candidate not in taken)


def _go_back(volume: LiveVolume, target: TableEntry) -> None:
    """Exchange the live state, bring held in line with it, commit on a branch of its own."""
    local, state, old = volume.local, volume.snapshot_state(target), volume.committed
    snapshots = volume.known_states()
    leaves = held.worked_out(local, snapshots, state, [old])
    notes = marking.exchanged(volume, old, state, snapshots)
    n_held, n_active = local.root.n_held, volume.active.root.n_blocks
    with volume.changing():
        volume.exchange(state, target.record.id)
        local.set_held(leaves)
        local.marks.note(notes)
        gone = n_active + n_held - volume.active.root.n_blocks - local.root.n_held
        volume.space.n_freed_open += gone
        volume.active.is_dirty = True
        volume.commit()
