"""Deleting snapshots, and what that frees: exact, by algebra, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from blockplane.planes import Plane
from blockplane.volume import held, marking
from blockplane.volume.codec import (
    TableEntry,
)
from blockplane.volume.holds import defer, is_base, needed, needs, refuse_needed
from blockplane.volume.leafbits import LEAF_WORDS, Leaf
from blockplane.volume.pointers import refuse_pointed
from blockplane.volume.state import State

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def freed_by(volume: LiveVolume, names: Sequence[str]) -> int:
    """Return how many blocks deleting these snapshots together frees: exact, by algebra."""
    with volume.lock:
        entries = [volume.local.entry(name) for name in names]
        return sum(n for _, _, n in _exclusive(volume, entries))


def freed_places(volume: LiveVolume, names: Sequence[str]) -> Plane:
    """Return the places that deleting these snapshots together frees."""
    with volume.lock:
        builder = Plane.builder(volume.geometry.n_blocks)
        for leaf, words, _ in _exclusive(volume, [volume.local.entry(name) for name in names]):
            builder.append(leaf * LEAF_WORDS, words[: -(-volume.geometry.n_blocks // 64) - leaf * LEAF_WORDS])
        return builder.finish()


def _exclusive(volume: LiveVolume, gone: Sequence[TableEntry]) -> list[tuple[int, Leaf, int]]:
    """Return (leaf, places, count) that only these snapshots hold."""
    going = [entry for entry in gone if not entry.is_shadow]
    given_up = volume.local.shadows.given_up_by(gone)
    states = [volume.known_state(entry) for entry in going]
    staying = staying_beside(volume, going, may_narrow=not given_up)
    return list(held.exclusive_leaves(volume.local, states, staying, given_up))


def staying_beside(volume: LiveVolume, going: Sequence[TableEntry], may_narrow: bool = True) -> held.Staying:
    """Return the states that may hold what those that go hold: where history is a line, one's neighbours are enough."""
    entries, local = volume.local.regular(), volume.local
    rest = near = [entry for entry in entries if entry not in going]
    if may_narrow and len(going) == 1 and held.is_line(local.entries(), local.root.parent_id):
        at = entries.index(going[0])
        near = entries[max(at - 1, 0) : at] + entries[at + 1 : at + 2]

    @cache
    def every() -> list[State | None]:
        return [volume.known_state(entry) for entry in rest]

    return held.Staying([volume.known_state(entry) for entry in near], every)


def delete(volume: LiveVolume, names: Sequence[str], defer: bool = False) -> int:
    """Delete snapshots in one commit; return how many blocks that freed.

    Parameters
    ----------
    defer : those that are being read, or held, go when they no longer are; until then they are of the kind `deleting`.

    Raises
    ------
    NoSuchSnapshotError: one does not exist; none was deleted. RefusedError: one is being read, or held, or a pointer
        stands at it.
    """
    with volume.lock:
        gone = _may_go(volume, names, defer)
        volume.commit()
        n_freed = drop_or_defer(volume, gone)
        volume.commit()
        return n_freed


def plan_delete(volume: LiveVolume, names: Sequence[str], defer: bool = False) -> list[str]:
    """Return which of some snapshots `delete` would take away at once; raises what that raises, changes nothing."""
    with volume.lock:
        return [e.record.name for e in _may_go(volume, names, defer) if not any(needs(volume, e))]


def _may_go(volume: LiveVolume, names: Sequence[str], defer: bool) -> list[TableEntry]:
    gone = [volume.local.entry(name) for name in dict.fromkeys(names)]
    refuse_pointed(volume, gone)
    refuse_needed(volume, gone if not defer else [entry for entry in gone if is_base(volume, entry)], may_defer=True)
    return gone


def drop_or_defer(volume: LiveVolume, gone: Sequence[TableEntry]) -> int:
    """Drop what nothing needs, and mark the others as being deleted; return how many blocks that frees."""
    waiting = needed(volume, gone)
    n_freed = drop(volume, [entry for entry in gone if entry not in waiting])
    defer(volume, waiting)
    return n_freed


def drop(volume: LiveVolume, gone: Sequence[TableEntry]) -> int:
    """Take snapshots out of the table and what only they held out of held; the caller commits before and after."""
    local, n_freed = volume.local, 0
    # what cannot be read is found before anything changes
    exclusive, holds, given_up = _exclusive(volume, gone), local.holds(), local.shadows.given_up_by(gone)
    going = [entry for entry in gone if not entry.is_shadow]
    notes, is_known = marking.dropped(volume, going, staying_beside(volume, going))
    parents = {entry.record.id: entry.record.parent_id for entry in gone}
    rest = [entry for entry in local.entries() if entry.record.id not in parents]
    with volume.changing():
        local.marks.note(notes, is_known)
        local.marks.give_up(parents)
        local.shadows.remove(gone, given_up)
        for leaf, words, n_blocks in exclusive:
            local.set_held_leaf(leaf, local.held_leaf(leaf) & ~words)
            volume.space.release_words(leaf, words, n_blocks)
            n_freed += n_blocks
        for entry in rest:
            entry.record = replace(entry.record, parent_id=held.surviving(entry.record.parent_id, parents))
        local.set_entries(rest)
        local.set_holds(holds)
        local.set_parent(held.surviving(local.root.parent_id, parents))
        for entry in gone:
            volume.forget_state(entry.record.id)
    return n_freed
