"""Every way in and out of a volume marks: what enters and leaves with each change (see `volume/marks.py`).

Called inside the CP that does it, with the states before and after; nothing is done where there is no position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from blockplane.volume import held
from blockplane.volume.codec import TableEntry
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, LEAF_WORDS, Leaf, numbers_in, set_numbers
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.shadows import ShadowPlane
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
        marks.entered(leaf, not_in(after, before, leaf))
    for leaf in freed:
        gone = before.place_leaf(leaf) & ~after.place_leaf(leaf)
        if gone.any():
            marks.left_places(leaf, gone & ~held.may_hold_leaf(snapshots, leaf), before.placemap)


def exchanged(volume: LiveVolume, old: State, top: State, arrived: Sequence[State] = ()) -> None:
    """Mark what a rollback or a receive brings into the live state's place, and what goes; all are in the table.

    Parameters
    ----------
    arrived : states of snapshots that came with the top.
    """
    marks = volume.local.marks
    if not marks.is_on:
        return
    snapshots = volume.known_states()
    for leaf in differing_leaves([top, old, *arrived]):
        for state in (top, *arrived):
            marks.entered(leaf, not_in(state, old, leaf))
        gone = old.place_leaf(leaf) & ~top.place_leaf(leaf)
        if gone.any():
            marks.left_places(leaf, gone & ~held.may_hold_leaf(snapshots, leaf), old.placemap)


def dropped(volume: LiveVolume, gone: Sequence[TableEntry], staying: held.Staying) -> None:
    """Mark what only snapshots that are deleted, or become shadows, hold.

    Parameters
    ----------
    gone : regular snapshots; they hold their blocks still. staying : those that may have the same ones.

    Notes
    -----
    Where a leaf of one that goes is damaged, what left is not known from then on.
    """
    local = volume.local
    if not local.marks.is_on:
        return
    states = [volume.known_state(entry) for entry in gone]
    maps = [local.map_of(entry.place_map) for entry in gone]
    left: list[tuple[int, Leaf, PlaceMap]] = []
    is_known = True
    for leaf, words in held.leaving_leaves(local, states, staying):
        for state, placemap in zip(states, maps, strict=True):
            mine = held.known_leaf([state], leaf) if state is not None else ~EMPTY_LEAF
            if mine is None:
                is_known = False
            else:
                left.append((leaf, words & mine, placemap))
    for leaf, words, placemap in left:  # only now: until here reading may fail, and then nothing has left
        local.marks.left_places(leaf, words, placemap)
    if not is_known:
        local.marks.lose("dealloc")
