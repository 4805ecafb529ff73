"""What of an incoming image has landed, kept so that the receive can go on after its process died.

Blocks that the disks have go into a journal at once, and at a consistency point of their own every so often into the
local tree: those of stripes that nothing else of the image will touch. Those of other stripes stay in the journal, with
the checks that say later whether they are what was written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.band import Band
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.volume.beside import read_slots
from blockplane.volume.codec import NAME_BYTES, NO_ID
from blockplane.volume.holds import hold_by_id, release_all
from blockplane.volume.incoming import IncomingEntry, IncomingImage, leaves_of
from blockplane.volume.journal import LandedSlots, LandingJournal, read_journal
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    Leaf,
    by_leaf,
    clear_numbers,
    numbers_in,
    set_numbers,
)
from blockplane.volume.placemap import PlaceMap

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

# Between consistency points: what a power cut may cost, and how long a journal grows.
STORE_BLOCKS: Final = (1 << 30) // BLOCK_BYTES
STORE_S: Final = 10.0
# An image up to this size, 16 MiB, is brought again whole, unless it takes longer than this: what lets a receive go on
# costs a consistency point.
SMALL_BLOCKS: Final = 4096
SMALL_S: Final = 0.25
# How long an interrupted receive keeps its base from being deleted: 30 days.
HOLD_NS: Final = 30 * 86_400 * 10**9
# A journal is not written anew for less.
MIN_RESTART_BYTES: Final = 1 << 20

BandKey = tuple[int, int]


class LandedBlocks:
    """See the module. One thread calls `saved`; the others are for when it does not.

    Parameters
    ----------
    entry : what the local tree will say, or says. image : the same in the local tree, where it is there.
    places : what is reserved, by leaf.
    """

    def __init__(
        self,
        volume: LiveVolume,
        entry: IncomingEntry,
        places: dict[int, Leaf],
        placemap: PlaceMap,
        image: IncomingImage | None,
    ) -> None:
        self._volume, self.entry, self._places, self._placemap = volume, entry, places, placemap
        self._is_stored = image is not None
        self._landed: dict[int, Leaf] = dict(leaves_of(image.landed)) if image is not None else {}
        self._unstored: dict[int, Leaf] = {}
        self._partial: dict[BandKey, list[LandedSlots]] = {}
        self._journal = LandingJournal(volume.path, entry.landing_id)
        self._n_since, self._stored_s = 0, time.monotonic()

    @property
    def max_unsaved(self) -> int:
        """How many blocks may have landed and not be saved: half of what may be sent again."""
        return max(self.entry.n_image // 100, SMALL_BLOCKS // 2)

    def leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range have their block; do not write to it."""
        return self._landed.get(leaf, EMPTY_LEAF)

    def take_over(self, leaves: dict[int, Leaf]) -> None:
        """Note places whose blocks an earlier receive of another image brought; durable on return."""
        for leaf, words in leaves.items():
            self._landed[leaf], self._unstored[leaf] = words.copy(), words
        self.store()

    # --- while it lands ----------------------------------------------------------------------------------------------

    def saved(self, slots: LandedSlots) -> None:
        """Note what the disks have; commits when enough came."""
        self._note(slots)
        self._journal.append(slots)
        self._n_since += slots.n_blocks
        if not self._is_stored:
            is_much = self.entry.n_image > SMALL_BLOCKS and self._n_since * 2 >= self.max_unsaved
            is_due = is_much or time.monotonic() - self._stored_s >= SMALL_S
        else:
            is_due = self._n_since >= STORE_BLOCKS or time.monotonic() - self._stored_s >= STORE_S
        if is_due:
            self.store()

    def _note(self, slots: LandedSlots) -> None:
        key = slots.group, slots.dbn_start
        self._set(self._landed, slots)
        if not slots.is_whole:
            self._partial.setdefault(key, []).append(slots)
            return
        for part in [*self._partial.pop(key, []), slots]:
            self._set(self._unstored, part)

    def _set(self, leaves: dict[int, Leaf], slots: LandedSlots) -> None:
        places = self._volume.geometry.band_places(slots.group, slots.dbn_start, slots.written.shape[1])
        for leaf, low in by_leaf(np.sort(places[slots.written])):
            words = leaves.setdefault(leaf, np.zeros(LEAF_WORDS, np.uint64))
            set_numbers(words, low)

    def store(self) -> None:
        """Make what the disks have durable, and the local tree know of it: a consistency point."""
        volume = self._volume
        with volume.changing():
            image = volume.local.incoming.find(self.entry.landing_id)
            if image is None:
                image = volume.local.incoming.add(self.entry)
                image.fill(self._places, self._placemap)
                self._hold_needed()
                self._is_stored = True
            for leaf, words in self._unstored.items():
                image.add_landed(leaf, words)
            volume.local.incoming.changed()
            volume.commit()
        self._unstored = {}
        self._n_since, self._stored_s = 0, time.monotonic()
        if not self._journal.is_open or self._journal.n_bytes > max(2 * self._partial_bytes(), MIN_RESTART_BYTES):
            self._journal.restart(slots for parts in self._partial.values() for slots in parts)

    @property
    def n_stored(self) -> int:
        """How many blocks a consistency point has; those behind it are found by the journal."""
        return self.entry.n_landed if self._is_stored else 0

    @property
    def _owner(self) -> str:
        """Who holds base and lender, as `snapshot list` shows it."""
        return f"receive:{self.entry.top_name}:{self.entry.landing_id.hex()[:8]}"[:NAME_BYTES]

    def _hold_needed(self) -> None:
        """Keep base and lender until the receive ends, or is not gone on with for long."""
        for snapshot_id in {self.entry.base_id, self.entry.lender_id} - {NO_ID}:
            hold_by_id(self._volume, snapshot_id, self._owner, time.time_ns() + HOLD_NS)

    def _partial_bytes(self) -> int:
        return sum(slots.written.size // 8 + 4 * slots.n_blocks for parts in self._partial.values() for slots in parts)

    def suspend(self) -> int:
        """Leave it to be continued: everything saved is durable; return how many blocks will be found again.

        Without a journal those of stripes that wait for other blocks will not be.
        """
        self.store()
        n_lost = 0 if self._journal.is_open else sum(s.n_blocks for parts in self._partial.values() for s in parts)
        self.close()
        return len(self.plane()) - n_lost

    def close(self) -> None:
        """Release the journal."""
        self._journal.close()

    def remove(self, n_kept: int = 0) -> bool:
        """Take the entry out of the local tree; the next commit makes that durable. The volume's lock is held.

        Parameters
        ----------
        n_kept : how many of the blocks that landed something else has, in the same commit.

        Returns
        -------
        whether it was there.

        Notes
        -----
        Nothing is written over the others until two commits have passed: a power cut before the end of the first
        brings the entry back, and then these blocks are not asked for again.
        """
        image = self._volume.local.incoming.find(self.entry.landing_id)
        if image is None:
            return False
        with self._volume.changing():
            self._volume.local.incoming.remove(image)
            release_all(self._volume, self._owner)
            self._volume.note_given_up(image.entry.n_landed - n_kept)
        return True

    def give_up(self) -> None:
        """Remove entry and blocks; durable on return, and the places are free."""
        if self.remove():
            self._volume.commit()
            self._volume.commit(force=True)  # who receives the image anew finds its blocks' own places free
        self.forget()

    def forget(self) -> None:
        """Take the journal away, once no consistency point has the entry."""
        self._journal.remove()

    # --- going on ----------------------------------------------------------------------------------------------------

    def recall(self, adopt: Callable[[Band], None], *, store: bool = True) -> None:
        """Take up what the journal of an earlier process says, as far as the disks agree; durable on return.

        Parameters
        ----------
        adopt : called with each band of which some, not all, is there; what is says is written was read and verified.
        store : False: nothing is written, to look at it alone.
        """
        for slots in self._journaled():
            band = self._volume.array.new_band(slots.group, slots.dbn_start, slots.written.shape[1])
            try:
                found = self._verified(band, slots)
                if found is not None:
                    self._note(found)
                    if not found.is_whole:
                        adopt(band)
            finally:
                self._volume.array.drop_band(band)
        if store:
            self.store()

    def _journaled(self) -> Iterator[LandedSlots]:
        """Yield what the journal has, the records of a band as one."""
        bands: dict[BandKey, tuple[NDArray[np.bool_], NDArray[np.uint32]]] = {}
        geometry = self._volume.geometry
        for slots in read_journal(self._volume.path, self.entry.landing_id):
            n_data, n_stripes = slots.written.shape
            if slots.group >= len(geometry.groups) or n_data != geometry.groups[slots.group].n_data:
                return
            if slots.dbn_start + n_stripes > geometry.groups[slots.group].disk_blocks:
                return
            key = slots.group, slots.dbn_start
            if key not in bands or bands[key][0].shape != slots.written.shape:
                bands[key] = np.zeros_like(slots.written), np.zeros(slots.written.shape, np.uint32)
            bands[key][0][slots.written] = True
            bands[key][1][slots.written] = slots.checks
        for (group, dbn_start), (written, checks) in bands.items():
            yield LandedSlots(group, dbn_start, written, checks[written], is_whole=False)

    def _verified(self, band: Band, slots: LandedSlots) -> LandedSlots | None:
        """Return what of slots is reserved, not known to have landed, and on the disks with the right checks."""
        places = self._volume.geometry.band_places(band.group, band.dbn_start, band.n_stripes)
        due = _holds(self._places, places) & ~_holds(self._landed, places)
        chosen = slots.written & due
        if not chosen.any():
            return None
        read_slots(self._volume.array, band, chosen)
        checks = np.zeros(slots.written.shape, np.uint32)
        checks[slots.written] = slots.checks
        vbns = self._placemap.to_vbns(places[chosen])
        good = fresh_checks(band.data[chosen].reshape(-1), vbns) == checks[chosen]
        chosen[chosen] = good
        band.written[:] = chosen
        return LandedSlots(band.group, band.dbn_start, chosen, checks[chosen], not (due & ~chosen).any())

    def plane(self) -> Plane:
        """Return the VBNs that have landed."""
        return vbns_at(self._landed, self._placemap, self.entry.space_blocks)


def vbns_at(leaves: dict[int, Leaf], placemap: PlaceMap, space_blocks: int) -> Plane:
    """Return the VBNs whose blocks lie at places, given by leaf, or will."""
    builder, astray = Plane.builder(space_blocks), [np.empty(0, np.int64)]
    for leaf, words in sorted(leaves.items()):
        places = numbers_in(words, leaf * LEAF_BLOCKS)
        vbns = placemap.to_vbns(places)
        is_home = vbns == places
        if not is_home.all():
            astray.append(vbns[~is_home])
            words = words.copy()
            clear_numbers(words, places[~is_home] % LEAF_BLOCKS)
        if words.any():
            builder.append(leaf * LEAF_WORDS, words)
    plane = builder.finish()
    plane.add_many(np.concatenate(astray))
    return plane


def _holds(leaves: dict[int, Leaf], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which places the bits of leaves have."""
    found = np.zeros(places.shape, np.bool_)
    for leaf in np.unique(places // LEAF_BLOCKS).tolist():
        at = places // LEAF_BLOCKS == leaf
        low = places[at] % LEAF_BLOCKS
        words = leaves.get(leaf, EMPTY_LEAF)
        found[at] = words[low >> 6] >> (low & 63).astype(np.uint64) & np.uint64(1) != 0
    return found
