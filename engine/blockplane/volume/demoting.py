"""Making snapshots shadows: what stays of them, what that frees, alone and one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from blockplane.model.errors import DiskError, RefusedError, VolumeDamagedError
from blockplane.volume import held, marking
from blockplane.volume.codec import KIND_SHADOW, TableEntry
from blockplane.volume.deleting import staying_beside
from blockplane.volume.demotioncodec import ASKED, Demotion, Pace
from blockplane.volume.holds import refuse_deleting, refuse_needed
from blockplane.volume.leafbits import EMPTY_LEAF, Leaf, count
from blockplane.volume.pointers import refuse_pointed
from blockplane.volume.shadows import leaves_of, own_places

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.state import State


def demote(volume: LiveVolume, name: str) -> int:
    """Make a snapshot a shadow: its plane stays, its blocks may be reused; return how many that frees.

    Raises
    ------
    NoSuchSnapshotError: it does not exist. RefusedError: it is being read or held, a pointer stands at it, or it is
        a shadow already.

    Notes
    -----
    Needs no space beyond the reserve. Cost: the nodes of its blockmap, and the leaves in which something is held.
    """
    with volume.lock:
        entry = volume.local.entry(name)
        if entry.is_shadow:
            raise RefusedError(f"{name} is a shadow already")
        refuse_deleting(entry)
        refuse_pointed(volume, [entry])
        refuse_needed(volume, [entry])
        volume.commit()
        n_freed = make_shadow(volume, entry, Demotion(ASKED))
        volume.commit()
        return n_freed


def make_shadow(volume: LiveVolume, entry: TableEntry, how: Demotion) -> int:
    """Hand a snapshot's blockmap over to the local tree; what only the snapshot held beside it is free.

    The caller has committed, and commits. Returns how many places that frees; how is noted with that.
    """
    local, n_freed, now = volume.local, 0, time.time_ns()
    # what cannot be read is found before anything changes
    state, staying = volume.snapshot_state(entry), staying_beside(volume, [entry])
    own = leaves_of(own_places(state.blockmap, state.placemap))
    notes, is_known = marking.dropped(volume, [entry], staying)
    alone = [(leaf, words) for leaf, words, _ in held.exclusive_leaves(local, [state], staying, {})]
    with volume.changing():
        local.marks.note(notes, is_known)
        entry.record = replace(entry.record, kind=KIND_SHADOW)
        entry.plane, entry.n_left, entry.shadowed_ns = state.root.blockmap.copy(), entry.record.n_blocks, now
        local.shadows.add(entry)
        for leaf, exclusive in alone:
            words = exclusive & ~own.get(leaf, EMPTY_LEAF)  # the blocks of its blockmap stay
            local.set_held_leaf(leaf, local.held_leaf(leaf) & ~words)
            volume.space.release_words(leaf, words, count(words))
            n_freed += count(words)
        entry.demotion, entry.pace = replace(how, freed_blocks=n_freed), Pace(last_ns=now, last_left=entry.n_left)
        local.rewrite_entries()
        volume.forget_state(entry.record.id)
    return n_freed


def freed_in_order(volume: LiveVolume, going: Sequence[TableEntry], least: int = 0) -> dict[bytes, int]:
    """Return, by id, what making each of snapshots a shadow would free after those before it: exact, by algebra.

    A place is free when the last that has it goes; what lies in any of their blockmaps stays for the shadows. Those
    that cannot be read are left out, and stay; so are those that have fewer than `least` of all places that would be
    free: without them the others free nearly as much. The caller has committed.

    Notes
    -----
    One pass over the leaves in which anything is held, whatever their number; another where some were left out.
    """
    left = list(going)
    while True:
        found = _freed(volume, left, least)
        if found.unreadable is not None:
            left.remove(found.unreadable)
        elif any(n_blocks < least for n_blocks in found.shares):
            left = [entry for entry, n_blocks in zip(left, found.shares, strict=True) if n_blocks >= least]
        else:
            return {entry.record.id: n_blocks for entry, n_blocks in zip(left, found.freed, strict=True)}


@dataclass(slots=True)
class _Freed:
    """What making some snapshots shadows frees.

    freed : by each, after those before it. shares : how many of all these places each has; where that is the least that
    is asked for, maybe more. unreadable : the first that
    cannot be read; nothing else is known then.
    """

    freed: list[int]
    shares: list[int]
    unreadable: TableEntry | None = None


def _freed(volume: LiveVolume, going: Sequence[TableEntry], least: int) -> _Freed:
    """Return what each frees; or the first that cannot be read."""
    local, found = volume.local, _Freed([0] * len(going), [0] * len(going))
    states, parts = [], [np.empty(0, np.int64)]
    for entry in going:
        try:
            states.append(volume.snapshot_state(entry))
            parts.append(own_places(states[-1].blockmap, states[-1].placemap))
        except DiskError:
            raise
        except VolumeDamagedError:
            return _Freed([], [], entry)
    own, chosen = leaves_of(np.unique(np.concatenate(parts))), {entry.record.id for entry in going}
    rest = [volume.known_state(entry) for entry in local.regular() if entry.record.id not in chosen]
    for start, stop in local.held.data_extents().tolist():
        for leaf in range(start, stop):
            words = local.held_leaf(leaf) & ~local.shadowed_leaf(leaf) & ~own.get(leaf, EMPTY_LEAF)
            if words.any():
                words = words & ~held.may_hold_leaf(rest, leaf)
            if words.any() and (bad := _share_out(found, words, states, leaf, least)) >= 0:
                return _Freed([], [], going[bad])
    return found


def _share_out(found: _Freed, words: Leaf, states: Sequence[State], leaf: int, least: int) -> int:
    """Count places of a leaf for those that have them, the last alone frees one; return which cannot be read, or -1."""
    left = words
    for at in range(len(states) - 1, -1, -1):
        if found.shares[at] >= least and not left.any():
            continue
        try:
            mine = words & states[at].place_leaf(leaf)
        except DiskError:
            raise
        except VolumeDamagedError:
            return at
        found.shares[at] += count(mine)
        found.freed[at] += count(mine & left)
        left = left & ~mine
    return -1
