"""Planes and places as Python sets: the algebra done by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in
from blockplane.volume.state import State
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


def _local_places(volume: Volume) -> set[int]:
    local = volume.committed_local
    n_leaves = -(-volume.geometry.n_blocks // LEAF_BLOCKS)
    return {int(n) for leaf in range(n_leaves) for n in numbers_in(local.local_leaf(leaf), leaf * LEAF_BLOCKS)}


def used_places(volume: Volume) -> set[int]:
    """Places that the last consistency point refers to: live state, snapshots, local tree."""
    found = places(volume.committed) | _local_places(volume)
    for snapshot in volume.snapshots:
        found |= places(snapshot.state)
    return found


def freed_by(volume: Volume, names: Sequence[str]) -> set[int]:
    """Places that only these snapshots hold."""
    rest = [snapshot.state for snapshot in volume.snapshots if snapshot.name not in names]
    kept = set().union(places(volume.committed), *map(places, rest))
    gone = set().union(*(places(snapshot.state) for snapshot in volume.snapshots if snapshot.name in names))
    return gone - kept


def numbers(extents: np.ndarray) -> set[int]:
    """Extents (n, 2) as a set."""
    return {n for start, stop in extents.tolist() for n in range(start, stop)}
