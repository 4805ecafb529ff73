"""The held plane: places that regular snapshots hold and the live state does not (DESIGN.md, law 5).

Creating a snapshot does not change it. What changes it: the live state giving a place up that a snapshot has, a
snapshot going, the live state being exchanged. Comparing with neighbours is enough only where history is a line; else
every state that may share the leaf is asked (law 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import DiskError, VolumeDamagedError
from blockplane.volume.codec import TableEntry
from blockplane.volume.leafbits import EMPTY_LEAF, Leaf, count
from blockplane.volume.local import LocalTree
from blockplane.volume.state import State, differing_leaves
from blockplane.volume.treeread import FETCH_BLOCKS

StateOf = Callable[[TableEntry], State]


def is_line(entries: Sequence[TableEntry], parent_id: bytes) -> bool:
    """Whether the snapshots, oldest first, and the live state after them each descend from the one before.

    Shadows are passed over: they hold nothing.
    """
    passed = {entry.record.id: entry.record.parent_id for entry in entries if entry.is_shadow}
    last = bytes(16)
    for entry in entries:
        if not entry.is_shadow:
            if surviving(entry.record.parent_id, passed) != last:
                return False
            last = entry.record.id
    return surviving(parent_id, passed) == last


def surviving(parent_id: bytes, passed: dict[bytes, bytes]) -> bytes:
    """Return the nearest ancestor that is not among those passed over, each given with its own parent."""
    while parent_id in passed:
        parent_id = passed[parent_id]
    return parent_id


def union_leaf(states: Sequence[State], leaf: int) -> Leaf:
    """Return the places of a leaf's range that any of the states occupies; a shared leaf is read once."""
    out = EMPTY_LEAF
    seen: set[tuple[tuple[int, int], bytes]] = set()
    for state in states:
        placemap = state.placemap
        if not placemap.is_empty:
            out = out | placemap.range_leaf(leaf)
        key = state.blockmap.pointer(0, leaf), placemap.leaf_key(leaf)
        if key[0][0] and key not in seen:
            seen.add(key)
            out = out | (state.plane_leaf(leaf) & ~placemap.domain_leaf(leaf))
    return out


def may_hold_leaf(states: Sequence[State | None], leaf: int) -> Leaf:
    """As `union_leaf`; a snapshot that is damaged (None, or its blockmap is bad) may hold anything.

    Raises
    ------
    DiskError: a disk does not answer now; what it holds may be whole.
    """
    try:
        known = [state for state in states if state is not None]
        return union_leaf(known, leaf) if len(known) == len(states) else ~EMPTY_LEAF
    except DiskError:
        raise
    except VolumeDamagedError:
        return ~EMPTY_LEAF


def update_for_commit(
    local: LocalTree, snapshots: Sequence[State | None], before: State, after: State, leaves: list[int]
) -> int:
    """Bring held up to date with what the live state gave up between two CPs in some leaves.

    snapshots: the newest where history is a line, all otherwise. Returns how many places became held.
    """
    n_held = local.root.n_held
    if snapshots or local.root.n_shadows:
        for leaf in leaves:
            freed = before.place_leaf(leaf) & ~after.place_leaf(leaf)
            if freed.any():
                kept = may_hold_leaf(snapshots, leaf) | local.shadowed_leaf(leaf)
                local.set_held_leaf(leaf, local.held_leaf(leaf) | (freed & kept))
    return local.root.n_held - n_held


def let_go(
    local: LocalTree, snapshots: Sequence[State | None], given_up: dict[int, Leaf]
) -> Iterator[tuple[int, Leaf]]:
    """Take places that no shadow's tree has any more out of held where no snapshot has them; yield those, by leaf."""
    for leaf, words in given_up.items():
        alone = words & local.held_leaf(leaf) & ~local.shadowed_leaf(leaf)
        if alone.any():
            alone = alone & ~may_hold_leaf(snapshots, leaf)
            local.set_held_leaf(leaf, local.held_leaf(leaf) & ~alone)
            yield leaf, alone


def worked_out(
    local: LocalTree, snapshots: Sequence[State], active: State, others: Sequence[State]
) -> list[tuple[int, Leaf]]:
    """Return what of held is another once active is the live state: all leaves in which it differs from the others.

    Nothing changes; memory: the leaves, as the open CP would have them.
    """
    found = []
    n_leaves = local.held.size_bytes // BLOCK_BYTES  # names there may be more
    leaves = [leaf for leaf in differing_leaves([active, *others]) if leaf < n_leaves]
    for at in range(0, len(leaves), FETCH_BLOCKS):
        part = leaves[at : at + FETCH_BLOCKS]
        _fetch([active, *snapshots], part)
        for leaf in part:
            words = (union_leaf(snapshots, leaf) | local.shadowed_leaf(leaf)) & ~active.place_leaf(leaf)
            if not np.array_equal(words, local.held_leaf(leaf)):
                found.append((leaf, words))
    return found


def _fetch(states: Sequence[State], leaves: Sequence[int]) -> None:
    """Bring what `union_leaf` will read of the states' leaves into memory: a shared leaf of the first that has it."""
    seen: set[tuple[int, int]] = set()
    for state in states:
        pointers = [state.blockmap.pointer(0, leaf) for leaf in leaves]
        state.blockmap.fetch_blocks(leaf for leaf, pointer in zip(leaves, pointers, strict=True) if pointer not in seen)
        seen.update(pointers)


def exclusive_leaves(
    local: LocalTree, gone: Sequence[State | None], rest: Sequence[State | None], given_up: dict[int, Leaf]
) -> Iterator[tuple[int, Leaf, int]]:
    """Yield (leaf, places, count) of what only the states that go hold: what deleting them frees.

    rest: the regular snapshots that stay; where history is a line, the neighbours are enough; None for one that cannot
    be read. given_up: places of shadows' trees that go with them, by leaf. Only leaves in which anything is held are
    looked at, and those that one who stays shares with the one that goes are not read.
    """
    for start, stop in local.held.data_extents().tolist():
        for leaf in range(start, stop):
            shadows = given_up.get(leaf, EMPTY_LEAF)
            if len(gone) == 1 and not given_up and any(_share_leaf(gone[0], state, leaf) for state in rest):
                continue
            words = local.held_leaf(leaf) & (may_hold_leaf(gone, leaf) | shadows)
            if words.any():
                words = words & ~may_hold_leaf(rest, leaf) & ~(local.shadowed_leaf(leaf) & ~shadows)
                n_blocks = count(words)
                if n_blocks:
                    yield leaf, words, n_blocks


def leaving_leaves(
    local: LocalTree, gone: Sequence[State | None], rest: Sequence[State | None]
) -> Iterator[tuple[int, Leaf]]:
    """Yield (leaf, places) of what leaves the volume with states that go: as `exclusive_leaves`, shadowed or not."""
    for start, stop in local.held.data_extents().tolist():
        for leaf in range(start, stop):
            if len(gone) == 1 and any(_share_leaf(gone[0], state, leaf) for state in rest):
                continue
            words = local.held_leaf(leaf) & may_hold_leaf(gone, leaf)
            if words.any():
                words = words & ~may_hold_leaf(rest, leaf)
                if words.any():
                    yield leaf, words


def _share_leaf(a: State | None, b: State | None, leaf: int) -> bool:
    if a is None or b is None or a.placemap.maps_any(leaf) or b.placemap.maps_any(leaf):
        return False
    return a.blockmap.pointer(0, leaf) == b.blockmap.pointer(0, leaf)
