"""The held plane: places that regular snapshots hold and the live state does not (DESIGN.md, law 5).

Creating a snapshot does not change it. What changes it: the live state giving a place up that a snapshot has, a
snapshot going, the live state being exchanged. Comparing with neighbours is enough only where history is a line; else
every state that may share the leaf is asked (law 11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError, DiskError, VolumeDamagedError
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
    for _ in passed:  # no more steps than that: a table that lies may go round
        if parent_id not in passed:
            break
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


def known_leaf(states: Sequence[State | None], leaf: int) -> Leaf | None:
    """As `union_leaf`; None where one of the states is damaged: None itself, or its blockmap is bad there.

    Raises
    ------
    DiskError: a disk does not answer now; what it holds may be whole.
    """
    try:
        known = [state for state in states if state is not None]
        return union_leaf(known, leaf) if len(known) == len(states) else None
    except DiskError:
        raise
    except VolumeDamagedError:
        return None


def may_hold_leaf(states: Sequence[State | None], leaf: int) -> Leaf:
    """As `known_leaf`; a snapshot that is damaged may hold anything."""
    known = known_leaf(states, leaf)
    return known if known is not None else ~EMPTY_LEAF


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
    local: LocalTree, snapshots: Sequence[State | None], active: State, others: Sequence[State]
) -> list[tuple[int, Leaf]]:
    """Return what of held is another once active is the live state: all leaves in which it differs from the others.

    Parameters
    ----------
    snapshots : all regular ones; None for one that cannot be read: it may have any of the places that were held.
    others : what the live state was, and what arrived: with what is held, all that any snapshot has.

    Notes
    -----
    Nothing changes; memory: the leaves, as the open CP would have them.
    """
    found = []
    n_leaves = local.held.size_bytes // BLOCK_BYTES  # names there may be more
    leaves = [leaf for leaf in differing_leaves([active, *others]) if leaf < n_leaves]
    for at in range(0, len(leaves), FETCH_BLOCKS):
        part = leaves[at : at + FETCH_BLOCKS]
        _fetch([active, *(state for state in snapshots if state is not None)], part)
        for leaf in part:
            kept = known_leaf(snapshots, leaf)
            if kept is None:
                kept = local.held_leaf(leaf) | union_leaf(others, leaf)
            words = (kept | local.shadowed_leaf(leaf)) & ~active.place_leaf(leaf)
            if not np.array_equal(words, local.held_leaf(leaf)):
                found.append((leaf, words))
    return found


def _fetch(states: Sequence[State], leaves: Sequence[int]) -> None:
    """Bring what `union_leaf` will read of the states' leaves into memory: a shared leaf of the first that has it."""
    seen: set[tuple[int, int]] = set()
    for state in states:
        with suppress(ChecksumError):  # who reads the leaf meets it again
            pointers = [state.blockmap.pointer(0, leaf) for leaf in leaves]
            fresh = (leaf for leaf, pointer in zip(leaves, pointers, strict=True) if pointer not in seen)
            state.blockmap.fetch_blocks(fresh)
            seen.update(pointers)


@dataclass(frozen=True, slots=True)
class Staying:
    """The regular snapshots that stay when others go; None for one that cannot be read.

    near : those that are enough where what goes can be read: the neighbours where history is a line, else all.
    every : gives all of them. What cannot be read of one that goes may be any of theirs, not only its neighbours'.
    """

    near: Sequence[State | None]
    every: Callable[[], Sequence[State | None]]

    def shares_leaf(self, state: State | None, leaf: int) -> bool:
        """Whether one that is near has the same leaf as a state that goes; nothing of it is read."""
        return any(_share_leaf(state, other, leaf) for other in self.near)

    def only_gone_leaf(self, gone: Sequence[State | None], leaf: int, words: Leaf, given_up: Leaf = EMPTY_LEAF) -> Leaf:
        """Return which of some held places the states that go have, or are given up with them, and none that stays."""
        mine = known_leaf(gone, leaf)
        words = words & (mine | given_up) if mine is not None else words
        if not words.any():
            return EMPTY_LEAF
        return words & ~may_hold_leaf(self.near if mine is not None else self.every(), leaf)


def exclusive_leaves(
    local: LocalTree, gone: Sequence[State | None], staying: Staying, given_up: dict[int, Leaf]
) -> Iterator[tuple[int, Leaf, int]]:
    """Yield (leaf, places, count) of what only the states that go hold: what deleting them frees.

    given_up: places of shadows' trees that go with them, by leaf. Only leaves in which anything is held are looked at,
    and those that one who stays shares with the one that goes are not read.
    """
    for start, stop in local.held.data_extents().tolist():
        for leaf in range(start, stop):
            shadows = given_up.get(leaf, EMPTY_LEAF)
            if len(gone) == 1 and not given_up and staying.shares_leaf(gone[0], leaf):
                continue
            words = local.held_leaf(leaf) & ~(local.shadowed_leaf(leaf) & ~shadows)
            words = staying.only_gone_leaf(gone, leaf, words, shadows)
            n_blocks = count(words)
            if n_blocks:
                yield leaf, words, n_blocks


def leaving_leaves(local: LocalTree, gone: Sequence[State | None], staying: Staying) -> Iterator[tuple[int, Leaf]]:
    """Yield (leaf, places) of what leaves the volume with states that go: as `exclusive_leaves`, shadowed or not."""
    for start, stop in local.held.data_extents().tolist():
        for leaf in range(start, stop):
            if len(gone) == 1 and staying.shares_leaf(gone[0], leaf):
                continue
            words = staying.only_gone_leaf(gone, leaf, local.held_leaf(leaf))
            if words.any():
                yield leaf, words


def _share_leaf(a: State | None, b: State | None, leaf: int) -> bool:
    if a is None or b is None or a.placemap.maps_any(leaf) or b.placemap.maps_any(leaf):
        return False
    try:
        return a.blockmap.pointer(0, leaf) == b.blockmap.pointer(0, leaf)
    except DiskError:
        raise
    except VolumeDamagedError:
        return False
