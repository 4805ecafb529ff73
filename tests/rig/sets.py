"""Planes and places as Python sets: the algebra done by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in
from blockplane.volume.snapshots import Snapshot
from blockplane.volume.state import State
from blockplane.volume.statechecks import StateChecks
from blockplane.volume.volume import Volume


def pairs(state: State) -> set[tuple[int, int]]:
    """(VBN, place) of every block a state holds."""
    found: set[tuple[int, int]] = set()
    for leaf, words in state.leaves():
        vbns = numbers_in(words, leaf * LEAF_BLOCKS)
        found.update(zip(vbns.tolist(), state.placemap.to_places(vbns).tolist(), strict=True))
    return found


def places(state: State) -> set[int]:
    """Places a state occupies."""
    return {place for _, place in pairs(state)}


def pairs_of(snapshot: Snapshot) -> set[tuple[int, int]]:
    """(VBN, place) of every block that a snapshot holds, or that a shadow has left."""
    if snapshot.kind != "shadow":
        return pairs(snapshot.state)
    placemap = snapshot.volume.local.map_of(snapshot.entry.place_map)
    vbns = np.array(sorted(numbers(snapshot.plane.extents())), np.int64)
    return set(zip(vbns.tolist(), placemap.to_places(vbns).tolist(), strict=True))


def contents(state: State) -> dict[tuple[int, int], int]:
    """The check of every block a state holds, by (VBN, place)."""
    held = sorted(pairs(state))
    checks = StateChecks(state).of(np.array([vbn for vbn, _ in held], np.int64))
    found = dict(zip(held, checks.tolist(), strict=True))
    root = state.pointer.number
    return {**found, **{pair: state.pointer.check for pair in held if pair[0] == root}}


def _local_places(volume: Volume) -> set[int]:
    """Places of the local tree, and of what it has taken over from shadows."""
    local = volume.committed_local
    n_leaves = -(-volume.geometry.n_blocks // LEAF_BLOCKS)
    words = ((leaf, local.local_leaf(leaf) | local.shadowed_leaf(leaf)) for leaf in range(n_leaves))
    return {int(n) for leaf, found in words for n in numbers_in(found, leaf * LEAF_BLOCKS)}


def used_places(volume: Volume) -> set[int]:
    """Places that the last consistency point refers to: live state, snapshots, local tree."""
    found = places(volume.committed) | _local_places(volume)
    for snapshot in volume.snapshots:
        if snapshot.kind != "shadow":
            found |= places(snapshot.state)
    return found


def freed_by(volume: Volume, names: Sequence[str]) -> set[int]:
    """Places that only these snapshots, no shadows, hold."""
    readable = [snapshot for snapshot in volume.snapshots if snapshot.kind != "shadow"]
    rest = [snapshot.state for snapshot in readable if snapshot.name not in names]
    kept = set().union(places(volume.committed), _local_places(volume), *map(places, rest))
    gone = set().union(*(places(snapshot.state) for snapshot in readable if snapshot.name in names))
    return gone - kept


def numbers(extents: np.ndarray) -> set[int]:
    """Extents (n, 2) as a set."""
    return {n for start, stop in extents.tolist() for n in range(start, stop)}
