"""Who holds a block: which states, at which place, and what a place is that no state holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from blockplane.volume.leafbits import LEAF_BLOCKS, Leaf
from blockplane.volume.live import LiveVolume
from blockplane.volume.state import State

#: The name of the live file system among snapshots' names; no snapshot can have it.
ACTIVE: Final = "active"
#: VBNs looked at together: with 255 states 8 MiB of places.
_WINDOW_BLOCKS: Final = 4096
_NOWHERE: Final = np.iinfo(np.int64).min

PlaceUse = Literal["held", "live", "local", "kept", "incoming", "taken", "free", "outside"]


@dataclass(frozen=True, slots=True)
class Holding:
    """Neighbouring VBNs that the same states hold side by side at neighbouring places.

    start, stop : VBNs. place : where the first of them lies, and the others behind it.
    states : names of the states that hold them there; the live file system is `active`, and comes last.
    use : what the places are in use for: `live` (the live file system, and snapshots maybe), `held` (snapshots alone);
        where no state holds the VBNs, of the places of the same numbers: `local` (the local tree), `kept` (the
        consistency point before the last), `incoming` (a receive under way), `taken` (a block of another number lies
        there), `free`, or `outside` the volume.
    """

    start: int
    stop: int
    place: int
    states: tuple[str, ...]
    use: PlaceUse


def named_states(volume: LiveVolume) -> list[tuple[str, State]]:
    """Return the states of snapshots, older first, then the live file system's, with their names."""
    names = [entry.record.name for entry in volume.local.regular()]
    return [*zip(names, volume.snapshot_states(), strict=True), (ACTIVE, volume.state(None))]


def holders(volume: LiveVolume, start: int, stop: int) -> Iterator[Holding]:
    """Yield who holds VBNs start..stop, ascending: all of them, those that nobody holds too.

    Notes
    -----
    The caller holds the volume's lock. Reads one blockmap leaf of each state for every 32,768 VBNs.
    """
    states = named_states(volume)
    waiting: list[Holding] = []
    for at in range(start, stop, _WINDOW_BLOCKS):
        for found in _window(volume, states, at, min(at + _WINDOW_BLOCKS, stop)):
            waiting, done = _joined(waiting, found)
            yield from done
    yield from waiting


def _joined(waiting: list[Holding], found: list[Holding]) -> tuple[list[Holding], list[Holding]]:
    """Put the holdings of neighbouring runs together where they go on; return what may still grow, and what is done."""
    if len(waiting) == len(found) and all(_goes_on(one, two) for one, two in zip(waiting, found, strict=True)):
        pairs = zip(waiting, found, strict=True)
        return [Holding(one.start, two.stop, one.place, one.states, one.use) for one, two in pairs], []
    return found, waiting


def _goes_on(one: Holding, two: Holding) -> bool:
    is_next = one.stop == two.start and one.place - one.start == two.place - two.start
    return is_next and (one.states, one.use) == (two.states, two.use)


def _window(volume: LiveVolume, states: Sequence[tuple[str, State]], start: int, stop: int) -> Iterator[list[Holding]]:
    """Yield the holdings of each run of VBNs that are alike: one for every place that states have them at."""
    vbns = np.arange(start, stop, dtype=np.int64)
    shifts = np.stack([_shifts(state, vbns) for _, state in states])
    uses = np.where((shifts == _NOWHERE).all(axis=0), _place_uses(volume, vbns, states), 0)
    rows = np.vstack((shifts, uses))
    edges = np.flatnonzero((rows[:, 1:] != rows[:, :-1]).any(axis=0)) + 1
    for low, high in zip([0, *edges.tolist()], [*edges.tolist(), len(vbns)], strict=True):
        first, last = int(vbns[low]), int(vbns[high - 1]) + 1
        found: dict[int, list[str]] = {}
        for (name, _), shift in zip(states, shifts[:, low].tolist(), strict=True):
            if shift != _NOWHERE:
                found.setdefault(shift, []).append(name)
        if found:
            yield [
                Holding(first, last, first + shift, tuple(names), "live" if ACTIVE in names else "held")
                for shift, names in found.items()
            ]
        else:
            yield [Holding(first, last, first, (), _USES[int(uses[low])])]


def _shifts(state: State, vbns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return place - VBN of each VBN that a state holds."""
    inside = vbns < state.n_leaves * LEAF_BLOCKS
    holds = np.zeros(len(vbns), np.bool_)
    holds[inside] = state.holds(vbns[inside])
    return np.where(holds, state.placemap.to_places(vbns) - vbns, _NOWHERE)


#: What a place may be in use for while no state holds its number, the first that is so.
_USES: Final[tuple[PlaceUse, ...]] = ("free", "kept", "incoming", "taken", "local", "outside")


def _place_uses(
    volume: LiveVolume, places: NDArray[np.int64], states: Sequence[tuple[str, State]]
) -> NDArray[np.int64]:
    """Return what each place is in use for, as an index of `_USES`."""
    out = np.zeros(len(places), np.int64)
    for leaf in np.unique(places // LEAF_BLOCKS).tolist():
        at = np.flatnonzero(places // LEAF_BLOCKS == leaf)
        low = places[at] % LEAF_BLOCKS
        for use, words in _leaves(volume, leaf, states):
            out[at[_bits(words, low)]] = _USES.index(use)
    geometry = volume.geometry
    inside = np.zeros(len(places), np.bool_)
    for group in geometry.groups:
        inside |= (places >= group.first) & (places < group.first + group.n_blocks)
    out[~inside] = _USES.index("outside")
    return out


def _leaves(volume: LiveVolume, leaf: int, states: Sequence[tuple[str, State]]) -> Iterator[tuple[PlaceUse, Leaf]]:
    """Yield uses and a leaf of places each, a stronger use after a weaker one."""
    before, local = volume.previous, volume.committed_local
    yield "kept", before.place_leaf(leaf) | volume.previous_local.local_leaf(leaf)
    yield "incoming", volume.incoming.leaf(leaf)
    for _, state in states:
        if state.placemap.maps_any(leaf):
            yield "taken", state.place_leaf(leaf)
    yield "local", local.local_leaf(leaf) | local.shadowed_leaf(leaf)


def _bits(words: Leaf, low: NDArray[np.int64]) -> NDArray[np.bool_]:
    bits: NDArray[np.bool_] = (words[low >> 6] >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
    return bits


@dataclass(frozen=True, slots=True)
class StateShare:
    """How many of some blocks a state holds, and how many of them no other does."""

    name: str
    n_blocks: int
    exclusive_blocks: int


def shares(volume: LiveVolume, state: State, vbns: NDArray[np.int64]) -> list[StateShare]:
    """Return for every state that holds any of a state's blocks its share; a block is one where its place is."""
    places = state.placemap.to_places(vbns)
    found = []
    for name, other in named_states(volume):
        shifts = _shifts(other, vbns)
        found.append((name, (shifts != _NOWHERE) & (vbns + shifts == places)))
    n_holders = np.sum([mask for _, mask in found], axis=0)
    return [
        StateShare(name, int(mask.sum()), int((mask & (n_holders == 1)).sum())) for name, mask in found if mask.any()
    ]
