"""Every way in and out of a volume marks: what enters and leaves with each change (see `volume/marks.py`).

Called inside the CP that does it, with the states before and after; nothing is done where there is no position. Of a
change in several steps everything is worked out before the first of them, and noted with the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from blockplane.volume import held
from blockplane.volume.codec import TableEntry
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, LEAF_WORDS, Leaf, numbers_in, set_numbers
from blockplane.volume.marks import Note
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.shadows import ShadowPlane, leaves_of
from blockplane.volume.state import State, differing_leaves

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.points import Points


def not_in(state: State, other: State | ShadowPlane, leaf: int) -> Leaf:
    """Return the VBNs of a leaf that a state has and the other has not, or has at another place."""
    mine, theirs = state.plane_leaf(leaf), other.blockmap.read_block(leaf).view(np.uint64)
    found = mine & ~theirs
    if state.placemap.maps_any(leaf) or other.placemap.maps_any(leaf):
        vbns = numbers_in(mine & theirs, leaf * LEAF_BLOCKS)
        apart = vbns[state.placemap.to_places(vbns) != other.placemap.to_places(vbns)]
        words = np.zeros(LEAF_WORDS, np.uint64)
        set_numbers(words, apart - leaf * LEAF_BLOCKS)
        found = found | words
    return found


def written(
    volume: Points, before: State, entered: Sequence[int], freed: Sequence[int], snapshots: Sequence[State | None]
) -> None:
    """Mark what the live state took and gave up since a state.

    Parameters
    ----------
    entered : leaves of the plane that blocks were written in. freed : leaves of places in which some were given up.
    snapshots : those that can hold what was given up.
    """
    marks, after = volume.local.marks, volume.active
    if not marks.is_on:
        return
    for leaf in entered:
        marks.note([("alloc", leaf, not_in(after, before, leaf))])
    for leaf in freed:
        gone = before.place_leaf(leaf) & ~after.place_leaf(leaf)
        if gone.any():
            marks.note(_left(leaf, gone & ~held.may_hold_leaf(snapshots, leaf), before.placemap))


def exchanged(
    volume: LiveVolume, old: State, top: State, snapshots: Sequence[State | None], arrived: Sequence[State] = ()
) -> list[Note]:
    """Return what to note of a rollback or a receive, which brings a top into the live state's place.

    Parameters
    ----------
    snapshots : the states of all that there are then. arrived : of those that came with the top.
    """
    notes: list[Note] = []
    if not volume.local.marks.is_on:
        return notes
    for leaf in differing_leaves([top, old, *arrived]):
        notes += [("alloc", leaf, not_in(state, old, leaf)) for state in (top, *arrived)]
        gone = old.place_leaf(leaf) & ~top.place_leaf(leaf)
        if gone.any():
            notes += _left(leaf, gone & ~held.may_hold_leaf(snapshots, leaf), old.placemap)
    return notes


def dropped(volume: LiveVolume, gone: Sequence[TableEntry], staying: held.Staying) -> tuple[list[Note], bool]:
    """Return what to note of snapshots that are deleted or become shadows: what only they have; and if that is all.

    Parameters
    ----------
    gone : regular snapshots; they hold their blocks still. staying : those that may have the same ones.

    Notes
    -----
    Where a leaf of one that goes is damaged, what left is not known from then on.
    """
    local, notes = volume.local, list[Note]()
    if not local.marks.is_on:
        return notes, True
    states = [volume.known_state(entry) for entry in gone]
    maps = [local.map_of(entry.place_map) for entry in gone]
    is_known = True
    for leaf, words in held.leaving_leaves(local, states, staying):
        for state, placemap in zip(states, maps, strict=True):
            mine = held.known_leaf([state], leaf) if state is not None else ~EMPTY_LEAF
            if mine is None:
                is_known = False
            else:
                notes += _left(leaf, words & mine, placemap)
    return notes, is_known


def _left(leaf: int, words: Leaf, placemap: PlaceMap) -> list[Note]:
    """Return what to note of places of a leaf; placemap is that of the state whose blocks they were."""
    if placemap.is_empty:
        return [("dealloc", leaf, words)]
    vbns = placemap.to_vbns(numbers_in(words, leaf * LEAF_BLOCKS))
    return [("dealloc", index, mine) for index, mine in leaves_of(vbns[vbns >= 0]).items()]
