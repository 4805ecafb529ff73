"""Positions: the snapshots from which on marks are kept; how marks are looked at, and worked out anew.

A snapshot becomes a position when it is made, which costs nothing, or afterwards: then what entered since is found by
subtraction, and what left is taken from the position before. It stops being one when it is unmarked or deleted; its
interval is summed into the one before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blockplane.model.errors import ChecksumError, NoSpaceError, RefusedError, UsageError, VolumeDamagedError
from blockplane.planes import Plane
from blockplane.volume.codec import TableEntry
from blockplane.volume.holds import refuse_deleting
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_WORDS, Leaf
from blockplane.volume.markcodec import FLAG_ALLOC_UNKNOWN, FLAG_ASKED, FLAG_DEALLOC_UNKNOWN
from blockplane.volume.marking import not_in
from blockplane.volume.markplane import MarkPlane
from blockplane.volume.marks import KINDS, Interval, Kind
from blockplane.volume.shadows import ShadowPlane
from blockplane.volume.state import State, differing_leaves

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.local import LocalTree

#: Each takes 640 bytes of a table that is rewritten where it changed, and two planes.
MAX_POSITIONS = 1024


@dataclass(frozen=True, slots=True)
class Position:
    """A snapshot from which on marks are kept.

    asked : somebody marked it; if not, only a destination stands at it. n_alloc, n_dealloc : of its own interval, up to
    the next position. alloc_known, dealloc_known : whether all is known from here on.
    """

    name: str
    asked: bool
    begun_ns: int
    n_alloc: int
    n_dealloc: int
    alloc_known: bool
    dealloc_known: bool


def positions(volume: LiveVolume) -> list[Position]:
    """Return the positions of the last CP, older first; without those of which only `check` knows what they are."""
    with volume.lock:
        local = volume.committed_local
        names = {entry.record.id: entry.record.name for entry in local.entries()} if local.marks.is_on else {}
        intervals = local.marks.intervals() if names else []
        return [_described(local, each, names) for each in intervals if each.record.snapshot_id in names]


def _described(local: LocalTree, interval: Interval, names: dict[bytes, str]) -> Position:
    record = interval.record
    known = {kind: all(i.is_known(kind) for i in local.marks.since(record.snapshot_id)) for kind in KINDS}
    return Position(
        names[record.snapshot_id], bool(record.flags & FLAG_ASKED), record.begun_ns, record.n_alloc, record.n_dealloc,
        known["alloc"], known["dealloc"],
    )  # fmt: skip


def refuse_more(volume: LiveVolume) -> None:
    """Refuse another position where there are too many, or the volume is full: its planes would eat the reserve."""
    if len(volume.local.marks.intervals()) >= MAX_POSITIONS:
        raise UsageError(f"{volume.path} has {MAX_POSITIONS} marked snapshots", "unmark some: snapshot unmark VOL@SNAP")
    if not volume.available_blocks:
        raise NoSpaceError(
            f"{volume.path} is full: there is no room for marks", "make the snapshot without, or free some space"
        )


def mark(volume: LiveVolume, name: str) -> bool:
    """Make a snapshot a position; return whether it was one already. Durable on return.

    Then what is unknown of any position is worked out anew, as far as it can be.

    Notes
    -----
    What entered since the snapshot is found by subtraction: cost follows what changed. What left is known only where
    an older snapshot is a position.

    Raises
    ------
    NoSuchSnapshotError: it does not exist. RefusedError: it is being deleted.
    """
    with volume.lock:
        entry, marks = volume.local.entry(name), volume.local.marks
        refuse_deleting(entry)
        found = marks.find(entry.record.id)
        if found is None:
            refuse_more(volume)
        volume.commit()
        if found is None:
            add_position(volume, entry, FLAG_ASKED)
        else:
            rebuild(volume)
            found.record.flags |= FLAG_ASKED
            marks.changed()
        volume.commit()
        return found is not None


def add_position(volume: LiveVolume, entry: TableEntry, flags: int) -> None:
    """Let an interval begin at a snapshot that is there already; the caller has committed, and commits.

    The interval that it is cut from keeps all it has: positions stand for the sum of all intervals behind them.
    """
    marks = volume.local.marks
    later = {other.record.id for other in _later(volume.local, entry)}
    at = sum(interval.record.snapshot_id not in later for interval in marks.intervals())
    entered = _entered_since(volume, entry)  # what cannot be read is found before anything changes
    before = marks.intervals()[at - 1] if at else None
    made = marks.make(entry.record.id, flags)
    _enter(made, entered)
    if before is None or not before.is_known("dealloc"):
        made.record.flags |= FLAG_DEALLOC_UNKNOWN
    else:  # what left since an older position: all that left since this one, and more
        try:
            for leaf in before.leaf_numbers("dealloc"):
                made.add("dealloc", leaf, before.leaf("dealloc", leaf))
        except ChecksumError:
            made.record.flags |= FLAG_DEALLOC_UNKNOWN
    marks.insert(at, made)  # whole: where reading failed before there is no position


def _later(local: LocalTree, entry: TableEntry) -> list[TableEntry]:
    """Return the snapshots that came into the table after one."""
    entries = local.entries()
    return entries[entries.index(entry) + 1 :]


def operand(volume: LiveVolume, local: LocalTree, entry: TableEntry) -> State | ShadowPlane | None:
    """Return a position's plane; None where it cannot be known."""
    return local.shadows.plane(entry) if entry.is_shadow else volume.known_state(entry)


def later_states(volume: LiveVolume, local: LocalTree, entry: TableEntry) -> list[State]:
    """Return the states that came after a snapshot and are there: the live one, and regular snapshots."""
    known = (volume.known_state(other) for other in _later(local, entry) if not other.is_shadow)
    return [*(state for state in known if state is not None), volume.committed]


def _entered_since(volume: LiveVolume, entry: TableEntry) -> dict[int, Leaf] | None:
    """Return, by leaf, what the states after a position have and it has not; None: its plane cannot be known."""
    base, found = operand(volume, volume.local, entry), dict[int, Leaf]()
    if base is None:
        return None
    for state in later_states(volume, volume.local, entry):
        for leaf in differing_leaves([state, base]):
            found[leaf] = found.get(leaf, EMPTY_LEAF) | not_in(state, base, leaf)
    return found


def _enter(interval: Interval, entered: dict[int, Leaf] | None) -> None:
    """Add what entered since a position to alloc."""
    if entered is None:
        interval.record.flags |= FLAG_ALLOC_UNKNOWN
    for leaf, words in entered.items() if entered is not None else ():
        interval.add("alloc", leaf, words)


def unmark(volume: LiveVolume, name: str) -> None:
    """Let a snapshot be a position no longer. Durable on return.

    Raises
    ------
    RefusedError: it is none, or a destination stands at it.
    """
    with volume.lock:
        snapshot_id = volume.local.entry(name).record.id
        if volume.local.marks.find(snapshot_id) is None:
            raise RefusedError(f"{name} is not marked", "`blockplane info` shows which snapshots are")
        for destination in volume.local.destinations():
            if snapshot_id in (destination.acknowledged, destination.under_way):
                raise RefusedError(
                    f"{name} stays marked: {destination.name} stands at it", "forget that destination first"
                )
        with volume.changing():
            volume.local.marks.give_up({snapshot_id})
            volume.commit()


def rebuild(volume: LiveVolume) -> list[str]:
    """Work out anew the marks that are unknown or cannot be read; return the names of their positions.

    What entered is found by subtraction from the position's plane. What left cannot be: it stays unknown, except of
    positions that come later. The caller has committed, and commits.
    """
    local, names = volume.local, []
    by_id = {entry.record.id: entry for entry in local.entries()}
    for interval in (each for each in local.marks.intervals() if each.record.snapshot_id in by_id):
        bad = [kind for kind in KINDS if not interval.is_known(kind) or not MarkPlane([interval.tree(kind)]).is_whole]
        entry = by_id[interval.record.snapshot_id]
        entered = _entered_since(volume, entry) if "alloc" in bad else None
        with volume.changing():
            for kind in bad:
                interval.clear(kind)
            if "alloc" in bad:
                _enter(interval, entered)
            if "dealloc" in bad:
                interval.record.flags |= FLAG_DEALLOC_UNKNOWN
            if bad:
                names.append(entry.record.name)
                local.marks.changed()
    return names


def mark_plane(volume: LiveVolume, kind: Kind, name: str) -> MarkPlane:
    """Return what entered (`alloc`) or left (`dealloc`) the volume since a position, as the last CP has it.

    Raises
    ------
    NoSuchSnapshotError: nothing is named so. RefusedError: it is no position, or this is not known of it.
    """
    local = volume.committed_local
    entry = local.entry(name)
    intervals = local.marks.since(entry.record.id)
    if not intervals:
        marked = [p.name for p in positions(volume)]
        hint = f"marked are: {', '.join(marked[-8:])}" if marked else "no snapshot is marked"
        raise RefusedError(
            f"{kind}({name}) is not known: {name} is not marked", f"{hint}; blockplane snapshot create VOL@SNAP --mark"
        )
    if not all(interval.is_known(kind) for interval in intervals):
        what = "what entered" if kind == "alloc" else "what left"
        raise RefusedError(
            f"{kind}({name}) is not known: {what} the volume since {name} was not noted whole",
            f"blockplane snapshot mark VOL@{name} works it out anew, where that can be done",
        )
    return MarkPlane([interval.tree(kind) for interval in intervals], volume.committed.placemap)


def plane_of(volume: LiveVolume, leaves: MarkPlane) -> Plane:
    """Return a mark plane in memory."""
    builder = Plane.builder(max(volume.geometry.n_blocks, leaves.space_blocks))
    for leaf, words in leaves.leaves():
        builder.append(leaf * LEAF_WORDS, words)
    return builder.finish()


def problems(volume: LiveVolume) -> Iterator[str]:
    """Yield what is wrong with the marks of the last CP, held against subtraction; see `volume.marks`."""
    local = volume.committed_local
    if not local.marks.is_on:
        return
    by_id = {entry.record.id: entry for entry in local.entries()}
    for interval in local.marks.intervals():
        entry = by_id.get(interval.record.snapshot_id)
        if entry is None:
            yield "marks begin at a snapshot that does not exist"
            continue
        try:
            yield from _problems_of(volume, entry, interval)
        except VolumeDamagedError as error:
            yield f"the marks of {entry.record.name!r} cannot be read: {error}"


def _problems_of(volume: LiveVolume, entry: TableEntry, interval: Interval) -> Iterator[str]:
    local, name = volume.committed_local, entry.record.name
    since = local.marks.since(entry.record.id)
    known = {kind: all(i.is_known(kind) for i in since) for kind in KINDS}
    for kind in KINDS:
        n_bits = sum(int(np.bitwise_count(words).sum()) for _, words in MarkPlane([interval.tree(kind)]).leaves())
        if interval.is_known(kind) and n_bits != interval.count(kind):
            yield f"{kind} of {name!r} has {n_bits} marks, and its record says {interval.count(kind)}"
    if not known["alloc"]:
        yield f"what entered since {name!r} is not known"
        return
    alloc, dealloc = (MarkPlane([one.tree(kind) for one in since]) for kind in KINDS)
    base = operand(volume, local, entry)
    for state in later_states(volume, local, entry):
        if base is not None:
            leaves = differing_leaves([state, base])
            lost = sum(int(np.bitwise_count(not_in(state, base, n) & ~alloc.leaf(n)).sum()) for n in leaves)
            if lost:
                yield f"{lost} blocks entered since {name!r} and are not marked"
    if known["dealloc"]:
        yield from _unaccounted(volume, name, alloc, dealloc)


def _unaccounted(volume: LiveVolume, name: str, alloc: MarkPlane, dealloc: MarkPlane) -> Iterator[str]:
    """Whatever is marked as entered is there, or marked as gone."""
    states = [volume.committed, *volume.snapshot_states()]
    lost = 0
    for leaf, words in alloc.leaves():
        rest = words & ~dealloc.leaf(leaf)
        for state in states if rest.any() else ():
            rest = rest & ~state.plane_leaf(leaf)
        lost += int(np.bitwise_count(rest).sum())
    if lost:
        yield f"{lost} blocks that entered since {name!r} are gone and not marked as gone"
