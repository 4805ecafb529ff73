"""Which check each live block on the disks must have: from whoever refers to it (DESIGN.md, law 8).

The checksum file of a state covers what the state holds but its own blocks and the state root; these, and the local
tree's blocks, are known to the pointers to them only. Both kinds of pointers are kept as sorted tables. From one
consistency point to the next only what differs between the trees is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.model.checks import fresh_checks
from blockplane.model.errors import ChecksumError
from blockplane.volume.codec import NUMBER_MASK, PointerArray
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, Leaf, words_of
from blockplane.volume.shadows import LOCAL_FLAG, ShadowPlane
from blockplane.volume.state import State, changed_pointers
from blockplane.volume.tree import BlockTree

if TYPE_CHECKING:
    from blockplane.disks.band import Band
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.local import LocalTree

Block = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]
Checks = NDArray[np.uint32]

# Snapshots whose pointers are kept: each costs 16 bytes a block of its checksum file.
MAX_SNAPSHOTS = 16


class PointerTable:
    """The checks in the pointers of some trees, every level, by number.

    Parameters
    ----------
    spares : of trees that may be damaged, since nothing is lost with them: what can be known of them is enough.
    """

    def __init__(self, spares: bool = False) -> None:
        self._spares = spares
        self._trees: Sequence[BlockTree] = ()
        self._numbers: Numbers = np.empty(0, np.int64)
        self._checks: Checks = np.empty(0, np.uint32)

    def follow(self, trees: Sequence[BlockTree], is_next: bool) -> None:
        """Go over to other trees; is_next: those before are still whole, and what both share is not read."""
        try:
            self._follow(trees, is_next)
        except ChecksumError:
            if not self._spares:
                raise
            self._take([_split(tree.known_pointers()) for tree in trees], trees)

    def _follow(self, trees: Sequence[BlockTree], is_next: bool) -> None:
        numbers, checks = self._numbers, self._checks
        if is_next and trees and len(trees) == len(self._trees):
            pairs = list(zip(self._trees, trees, strict=True))
            gone = np.concatenate([_pointers([before, after])[0] for before, after in pairs])
            come = [_pointers([after, before]) for before, after in pairs]
            stay = ~np.isin(numbers, gone)
            come.append((numbers[stay], checks[stay]))
        else:
            come = [_pointers([tree]) for tree in trees]
        self._take(come, trees)

    def _take(self, come: Sequence[tuple[Numbers, Checks]], trees: Sequence[BlockTree]) -> None:
        numbers = np.concatenate([np.empty(0, np.int64), *(part[0] for part in come)])
        checks = np.concatenate([np.empty(0, np.uint32), *(part[1] for part in come)])
        order = np.argsort(numbers, kind="stable")
        self._numbers, self._checks, self._trees = numbers[order], checks[order], tuple(trees)

    def find(self, numbers: Numbers) -> tuple[Mask, Checks]:
        """Return which numbers a pointer leads to, and the checks in those pointers (others: undefined)."""
        if not len(self._numbers):
            return np.zeros(len(numbers), np.bool_), np.zeros(len(numbers), np.uint32)
        at = np.minimum(np.searchsorted(self._numbers, numbers), len(self._numbers) - 1)
        return self._numbers[at] == numbers, self._checks[at]


def _pointers(trees: Sequence[BlockTree]) -> tuple[Numbers, Checks]:
    """Return numbers and checks of the pointers of the first tree that the others do not have."""
    parts = [np.empty((0, 2), np.uint64), *changed_pointers(trees)]
    return _split(np.concatenate(parts))


def _split(pointers: PointerArray) -> tuple[Numbers, Checks]:
    return (pointers[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64), pointers[:, 1].astype(np.uint32)


class Expected:
    """For some places: whether a check is known, the number it is bound to, the check; all (n,)."""

    def __init__(self, places: Numbers) -> None:
        self.known: Mask = np.zeros(len(places), np.bool_)
        self.numbers: Numbers = places.copy()
        self.checks: Checks = np.zeros(len(places), np.uint32)

    def put(self, at: Numbers, numbers: Numbers, checks: Checks) -> None:
        """Note what is known of the places at some indexes."""
        self.known[at], self.numbers[at], self.checks[at] = True, numbers, checks

    def bad(self, blocks: Block, at: Numbers | None = None) -> Mask:
        """Return which blocks (n, 4096), of all places or of those at some indexes, differ from a check known."""
        chosen = np.arange(len(self.known)) if at is None else at
        found = np.zeros(len(chosen), np.bool_)
        tested = np.flatnonzero(self.known[chosen])
        if len(tested):
            data = np.ascontiguousarray(blocks[tested]).reshape(-1)
            index = chosen[tested]
            found[tested] = fresh_checks(data, self.numbers[index]) != self.checks[index]
        return found


class SlotChecks:
    """The checks of slots of one band that were written and that no state refers to yet, bound to the slot."""

    def __init__(self, band: Band, before: SlotChecks | None = None) -> None:
        """Start with what is known of a band's stripes before; a copy."""
        self._there: Mask = np.zeros_like(band.written) if before is None else before._there.copy()
        self._checks: Checks = np.zeros(band.written.shape, np.uint32) if before is None else before._checks.copy()

    def note(self, band: Band) -> None:
        """Take the checks of what a band at the same stripes says is written."""
        at = band.written
        self._checks[at] = fresh_checks(band.data[at].reshape(-1), np.flatnonzero(at))
        self._there |= at

    def refuse_bad(self, band: Band) -> None:
        """Compare what a later band at the same stripes read of them.

        Raises
        ------
        ChecksumError: a block is not what was written.
        """
        at = self._there & band.touched & ~band.written
        bad = np.flatnonzero(fresh_checks(band.data[at].reshape(-1), np.flatnonzero(at)) != self._checks[at])
        if len(bad):
            member, stripe = (int(n[bad[0]]) for n in np.nonzero(at))
            disk, dbn = band.record.disks[member], band.dbn_start + stripe
            raise ChecksumError(f"block {dbn} of disk {disk} is not what was written there", -1, "check that disk")


class LiveChecks:
    """See the module. The volume's lock is held."""

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume
        self._own = PointerTable()
        self._own_of: State | None = None
        self._local = PointerTable()
        self._local_maps = PointerTable()
        self._planes = PointerTable(spares=True)
        self._shadows: dict[bytes, PointerTable] = {}
        self._local_of: LocalTree | None = None
        self._snapshots: dict[bytes, PointerTable] = {}

    def live(self, band: Band) -> Mask:
        """Return the slots of a band, (n_data, n_stripes), that the last CP refers to."""
        return self._slots(band, [self._volume.live_leaf])

    def stays(self, band: Band) -> Mask:
        """Return the slots of a band that the last two CPs refer to: nothing writes to them."""
        return self._slots(band, [self._volume.live_leaf, self._previous_leaf])

    def landed(self, band: Band) -> Mask:
        """Return the slots of a band that blocks of incoming images are known to have, as of the last CP."""
        images = self._volume.committed_local.incoming.images()
        return self._slots(band, [image.landed_leaf for image in images])

    def expected(self, places: Numbers) -> Expected:
        """Return the checks of the blocks at places that the last CP refers to.

        Raises
        ------
        ChecksumError, VolumeDamagedError: what says so is not whole.
        """
        expected = Expected(places)
        self._ask_local(places, expected)
        self._ask_state(self._volume.committed, self._own_table, places, expected)
        self._ask_snapshots(places, expected)
        self._ask_shadows(places, expected)
        return expected

    def _ask_local(self, places: Numbers, expected: Expected) -> None:
        """Blocks of the local tree: their checks are bound to places."""
        at = _where(self._volume.committed_local.local_leaf, places)
        if not len(at):
            return
        root = self._volume.info.local
        for table in self._local_tables():
            found, checks = table.find(places[at])
            expected.put(at[found], places[at[found]], checks[found])
        here = at[places[at] == root.number]
        expected.put(here, places[here], np.full(len(here), root.check, np.uint32))

    def _ask_state(
        self, state: State, table_of: Callable[[State], PointerTable], places: Numbers, expected: Expected
    ) -> None:
        """Blocks of a state: their checks are bound to VBNs."""
        at = np.flatnonzero(~expected.known)
        vbns = state.placemap.to_vbns(places[at])
        inside = (vbns >= 0) & (vbns < state.space_blocks)
        inside[inside] = state.holds(vbns[inside])
        at, vbns = at[inside], vbns[inside]
        if not len(at):
            return
        checks = state.checks(vbns)
        found, pointed = table_of(state).find(vbns)
        checks[found] = pointed[found]
        checks[vbns == state.pointer.number] = state.pointer.check
        expected.put(at, vbns, checks)

    def _ask_snapshots(self, places: Numbers, expected: Expected) -> None:
        """Blocks that only snapshots hold: the newest first, until each is found."""
        local = self._volume.committed_local
        wanted = np.zeros(len(places), np.bool_)
        wanted[_where(local.held_leaf, places)] = True
        for entry in reversed(local.regular()):
            if not (wanted & ~expected.known).any():
                return
            state = self._volume.known_state(entry)
            if state is not None:
                self._ask_state(state, self._snapshot_table, places, expected)

    def _ask_shadows(self, places: Numbers, expected: Expected) -> None:
        """Blocks of shadows' trees: those of states that were, bound to VBNs, and those bound to flagged places."""
        for plane in self._volume.committed_local.shadows.planes():
            at = np.flatnonzero(~expected.known)
            if not len(at):
                return
            for numbers in (plane.placemap.to_vbns(places[at]), places[at] | LOCAL_FLAG):
                found, checks = self._shadow_table(plane).find(numbers)
                expected.put(at[found], numbers[found], checks[found])

    def _slots(self, band: Band, planes: Sequence[Callable[[int], Leaf]]) -> Mask:
        """Return which slots of a band any of some planes of places, given leaf by leaf, has."""
        out = np.zeros((band.record.n_data, band.n_stripes), np.bool_)
        for leaf_of in planes:
            words = self._volume.geometry.disk_words(
                functools.partial(words_of, leaf_of), band.group, band.dbn_start, band.n_stripes
            )
            bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
            out |= bits.astype(np.bool_)
        return out

    def _previous_leaf(self, leaf: int) -> Leaf:
        """Return what the CP before the last has; nothing where that one is not whole any more."""
        volume = self._volume
        try:
            local = volume.previous_local
            return volume.previous.place_leaf(leaf) | local.held_leaf(leaf) | local.local_leaf(leaf)
        except ChecksumError:
            return EMPTY_LEAF

    # --- tables of pointers ------------------------------------------------------------------------------------------

    def _own_table(self, state: State) -> PointerTable:
        """The committed state's own blocks of its checksum file."""
        if self._own_of is not state:
            self._own.follow([state.checksums], is_next=self._own_of is self._volume.previous)
            self._own_of = state
        return self._own

    def _local_tables(self) -> list[PointerTable]:
        local = self._volume.committed_local
        if self._local_of is not local:
            is_next = self._local_of is self._volume.previous_local
            self._local.follow(local.trees, is_next)
            self._planes.follow(local.plane_trees(), is_next)
            self._local_maps.follow([*local.entry_maps(), *local.incoming.trees()], is_next=False)
            self._shadows = {}
            self._local_of = local
        return [self._local, self._local_maps, self._planes]

    def _shadow_table(self, plane: ShadowPlane) -> PointerTable:
        """The pointers of a shadow's tree; followed with the other tables of the local tree."""
        table = self._shadows.get(plane.entry.record.id)
        if table is None:
            table = self._shadows[plane.entry.record.id] = PointerTable()
            table.follow([plane.blockmap], is_next=False)
        return table

    def _snapshot_table(self, state: State) -> PointerTable:
        key = state.pointer.encode()
        table = self._snapshots.pop(key, None)
        if table is None:
            table = PointerTable()
            table.follow([state.checksums], is_next=False)
        self._snapshots[key] = table
        if len(self._snapshots) > MAX_SNAPSHOTS:
            del self._snapshots[next(iter(self._snapshots))]
        return table


def _where(leaf_of: Callable[[int], Leaf], places: Numbers) -> Numbers:
    """Return the indexes of the places that a plane, given leaf by leaf, has."""
    inside = np.zeros(len(places), np.bool_)
    leaves = places // LEAF_BLOCKS
    for leaf in np.unique(leaves).tolist():
        at = leaves == leaf
        low = places[at] % LEAF_BLOCKS
        inside[at] = (leaf_of(leaf)[low >> 6] >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
    return np.flatnonzero(inside)
