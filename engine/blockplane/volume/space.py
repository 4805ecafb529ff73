"""Free space: which places nothing holds, found area by area and handed out as whole stripes first.

A place is free when none of these has it: the last two committed CPs, the open one, a regular snapshot, the local
tree, an incoming image, a pin (DESIGN.md, law 5). Nothing here is on disk: leaves of the busy plane are worked out
from the trees when an area is first looked at, and forgotten when there are many. What was handed out since the last
commit is kept beside them, for no tree may have it yet: 4 KiB for each leaf that has any, as the blockmap takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    WORD_BLOCKS,
    Leaf,
    by_leaf,
    clear_numbers,
    leaf_pieces,
    set_numbers,
    set_range,
)

AREA_STRIPES = 8192
AREA_WORDS = AREA_STRIPES // WORD_BLOCKS

# 16 MiB of busy leaves: 512 GiB of a volume's space worked on at once.
MAX_LEAVES = 4096

AreaName = tuple[int, int]
LeafOf = Callable[[int], Leaf]
ALL_FREE = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


class Area:
    """8,192 stripes of a group (fewer at its end) while places are taken from it.

    free: one bit a stripe, set where no place of the stripe is busy. first_word: the stripe word the area starts at.
    spared: (n_words, n_data), the places that shadows mean; None where there is no shadow.
    """

    __slots__ = ("_n_spared", "_spared", "first_word", "free", "group", "name")

    def __init__(
        self, name: AreaName, group: GroupRecord, free: NDArray[np.uint64], spared: NDArray[np.uint64] | None = None
    ) -> None:
        self.name = name
        self.group = group
        self.first_word = name[1] * AREA_WORDS
        self.free = free
        self._spared: NDArray[np.uint64] | None = None
        self._n_spared: NDArray[np.int64] | None = None
        if spared is not None:
            self._spared = np.bitwise_or.reduce(spared, axis=1)
            self._n_spared = np.bitwise_count(spared & free[:, None]).sum(axis=1, dtype=np.int64)

    def whole_words(self, clean: bool) -> NDArray[np.bool_]:
        """Return which words have 64 stripes that are free together, and with clean no place that shadows mean."""
        whole: NDArray[np.bool_] = self.free == ALL_FREE
        return whole & (self._n_spared == 0) if clean and self._n_spared is not None else whole

    def take_word(self, clean: bool = False) -> tuple[int, int] | None:
        """Take 64 stripes, a whole word, that are free together; return (first stripe, 64), or None.

        Parameters
        ----------
        clean : only such as no shadow means; if not, the first of which shadows mean least.
        """
        whole = np.flatnonzero(self.free == ALL_FREE)
        if self._n_spared is not None and len(whole):
            least = self._n_spared[whole]
            whole = whole[least == 0] if clean else whole[least.argmin() :]
        if not len(whole):
            return None
        self.free[whole[0]] = 0
        return (self.first_word + int(whole[0])) * WORD_BLOCKS, WORD_BLOCKS

    def take_run(
        self, most: int, backward: bool = False, clean: bool = False, least: int = 1
    ) -> tuple[int, int] | None:
        """Take a run of free stripes within one word, from words in use first; return (first stripe, count), or None.

        Parameters
        ----------
        clean : only such as no shadow means, at least so many; if not, from the word of which shadows mean least.
        """
        in_use = self.free != ALL_FREE
        free = self.free & ~self._spared if clean and self._spared is not None else self.free
        some = np.flatnonzero((free != 0) & in_use)
        if clean:
            some = np.concatenate(
                [part[::-1] if backward else part for part in (some, np.flatnonzero((free != 0) & ~in_use))]
            )
        else:
            some = self._least_spared(some if len(some) else np.flatnonzero(free), backward)
        for at in some.tolist():
            start, count = _longest_run(int(free[at]))
            if count >= least or not clean:
                count = min(count, most)
                self.free[at] = np.uint64(int(self.free[at]) & ~(((1 << count) - 1) << start))
                return (self.first_word + at) * WORD_BLOCKS + start, count
        return None

    def _least_spared(self, words: NDArray[np.int64], backward: bool) -> NDArray[np.int64]:
        """Return the one of stripe words to take from: the first, or last, of those of which shadows mean least."""
        if self._n_spared is not None and len(words):
            n_spared = self._n_spared[words]
            words = words[n_spared == n_spared.min()]
        return words[-1:] if backward else words[:1]

    def withhold(self, stripe: int, count: int) -> None:
        """Take stripes of one word that an open band has."""
        at = stripe // WORD_BLOCKS - self.first_word
        self.free[at] = np.uint64(int(self.free[at]) & ~(((1 << count) - 1) << (stripe % WORD_BLOCKS)))


class Space:
    """The busy plane of places, in leaves, and the walk over areas.

    Parameters
    ----------
    geometry : the volume's.
    load : gives a leaf of the busy plane, worked out from all trees, fresh and writable.
    spared : gives what gives a leaf of the places that shadows mean; None where there is no shadow.
    """

    def __init__(self, geometry: Geometry, load: LeafOf, spared: Callable[[], LeafOf | None] = lambda: None) -> None:
        self.geometry = geometry
        self._load = load
        self._spared = spared
        self._leaves: dict[int, Leaf] = {}
        self._freed_open: dict[int, Leaf | None] = {}  # None: the leaf is to be worked out anew
        self._freed_last: dict[int, Leaf | None] = {}
        self._kept_free: dict[int, Leaf] = {}
        self._taken: dict[int, Leaf] = {}  # in the open CP; no tree may have it yet
        #: the group whose places are given to nobody
        self.closed: int | None = None
        self.n_freed_open = 0
        self.n_pending = 0
        #: how often places may have come free
        self.n_returns = 0

    # --- the busy plane ----------------------------------------------------------------------------------------------

    def leaf(self, index: int) -> Leaf:
        """Return a leaf of the busy plane; changes to it count until it is forgotten, `take` does longer."""
        if self._is_closed(index):
            return np.full(LEAF_WORDS, ALL_FREE)
        found = self._leaves.get(index)
        if found is None:
            if len(self._leaves) >= MAX_LEAVES:
                for key in list(self._leaves)[: MAX_LEAVES // 2]:
                    del self._leaves[key]
            found = self._leaves[index] = self._load(index)
            found |= self._kept_free.get(index, EMPTY_LEAF) | self._taken.get(index, EMPTY_LEAF)
            # what was given up before is in found as it is now, and may be handed out again: it is not cleared later
            for freed in (self._freed_last, self._freed_open):
                if index in freed:
                    freed[index] = None
        return found

    def _is_closed(self, leaf: int) -> bool:
        """Whether a leaf's places, all of one group, are given to nobody."""
        if self.closed is None:
            return False
        group = self.geometry.groups[self.closed]
        return group.first <= leaf * LEAF_BLOCKS < group.stop

    def take(self, start: int, stop: int) -> None:
        """Mark places busy; until the next commit they stay so whatever is forgotten."""
        for leaf, low, high in leaf_pieces(start, stop):
            set_range(self.leaf(leaf), low, high)
            set_range(self._taken_leaf(leaf), low, high)

    def _taken_leaf(self, leaf: int) -> Leaf:
        found = self._taken.get(leaf)
        if found is None:
            found = self._taken[leaf] = np.zeros(LEAF_WORDS, np.uint64)
        return found

    def keep_free(self, places: NDArray[np.int64]) -> None:
        """Give places to nobody, be they free or not yet, until this is called with others."""
        self._kept_free = {}
        for leaf, low in by_leaf(places):
            self._kept_free[leaf] = np.zeros(LEAF_WORDS, np.uint64)
            set_numbers(self._kept_free[leaf], low)
        self.forget()

    def take_numbers(self, places: NDArray[np.int64]) -> None:
        """As `take`, for places one by one."""
        for leaf, low in by_leaf(places):
            set_numbers(self.leaf(leaf), low)
            set_numbers(self._taken_leaf(leaf), low)

    def is_busy(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each place whether something has it."""
        out = np.zeros(len(places), np.bool_)
        leaves = places // LEAF_BLOCKS
        for leaf in np.unique(leaves).tolist():
            at = leaves == leaf
            low = places[at] % LEAF_BLOCKS
            words = self.leaf(leaf)[low >> 6]
            out[at] = (words >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
        return out

    def release(self, places: NDArray[np.int64]) -> None:
        """Note places given up in the open CP: free once two later commits have passed over them."""
        for leaf, low in by_leaf(places):
            words = np.zeros(LEAF_WORDS, np.uint64)
            set_numbers(words, low)
            self.release_words(leaf, words, len(low))

    def release_words(self, leaf: int, words: Leaf, n_blocks: int) -> None:
        """Note n_blocks places of a leaf, the set bits of words, given up in the open CP."""
        self.n_freed_open += n_blocks
        before = self._freed_open.get(leaf, EMPTY_LEAF)
        if before is not None:
            self._freed_open[leaf] = before | words if leaf in self._leaves else None

    def release_now(self, places: NDArray[np.int64]) -> None:
        """Give back places that no CP ever referred to (an aborted receive)."""
        self.n_returns += 1
        for leaf, low in by_leaf(places):
            for leaves in (self._leaves, self._taken):
                if leaf in leaves:
                    clear_numbers(leaves[leaf], low)

    def committed(self, kept: Callable[[int], Leaf], n_newly_held: int) -> None:
        """Pass a commit: what was given up before the last one becomes free.

        Stays busy: what kept names, the places of a leaf that something beside the live state has; and what the commit
        at hand gave up once more (a snapshot went that held it), for the CP before it still has it.
        """
        self.n_returns += 1
        for leaf, words in self._freed_last.items():
            again = self._freed_open.get(leaf, EMPTY_LEAF)
            if words is None or again is None:
                self._leaves.pop(leaf, None)
            elif leaf in self._leaves:
                stays = again | kept(leaf) | self._kept_free.get(leaf, EMPTY_LEAF)
                self._leaves[leaf] = self._leaves[leaf] & ~(words & ~stays)
        self._freed_last, self._freed_open, self._taken = self._freed_open, {}, {}
        self.n_pending, self.n_freed_open = self.n_freed_open - n_newly_held, 0

    def freed_leaves(self) -> list[int]:
        """Return the leaves in which the open CP gave places up."""
        return sorted(self._freed_open)

    def forget(self) -> None:
        """Drop all leaves; they are worked out again when needed, with what the open CP took."""
        self.n_returns += 1
        self._leaves.clear()

    # --- areas -------------------------------------------------------------------------------------------------------

    def area(self, name: AreaName) -> Area:
        """Work out which stripes of an area are free."""
        group = self.geometry.groups[name[0]]
        words = self._stripe_words(group, name[1])
        busy = self._words(words.ravel(), self.leaf).reshape(words.shape)
        spared_of = self._spared()
        spared = self._words(words.ravel(), spared_of).reshape(words.shape) if spared_of is not None else None
        return Area(name, group, ~np.bitwise_or.reduce(busy, axis=1), spared)

    @property
    def is_sparing(self) -> bool:
        """Whether there are places that shadows mean."""
        return self._spared() is not None

    def spared_leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range shadows mean; do not write to it."""
        spared_of = self._spared()
        return spared_of(leaf) if spared_of is not None else EMPTY_LEAF

    def _stripe_words(self, group: GroupRecord, area: int) -> NDArray[np.int64]:
        """Return the place words of each 64 stripes of an area, shape (n_words, n_data)."""
        first = area * AREA_WORDS
        n_words = min(AREA_WORDS, group.disk_blocks // WORD_BLOCKS - first)
        stripe = np.arange(first, first + n_words)[:, None]
        chunk = group.chunk_blocks // WORD_BLOCKS
        disk = np.arange(group.n_data)[None, :]
        return group.first // WORD_BLOCKS + ((stripe // chunk) * group.n_data + disk) * chunk + stripe % chunk

    def stripe_words(self, name: AreaName) -> NDArray[np.int64]:
        """Return the place words of each 64 stripes of an area, shape (n_words, n_data)."""
        return self._stripe_words(self.geometry.groups[name[0]], name[1])

    def _words(self, words: NDArray[np.int64], leaf_of: LeafOf) -> NDArray[np.uint64]:
        out = np.empty(len(words), np.uint64)
        leaves = words // LEAF_WORDS
        for leaf in np.unique(leaves).tolist():
            at = leaves == leaf
            out[at] = leaf_of(leaf)[words[at] % LEAF_WORDS]
        return out

    def free_slots(self, name: AreaName, word: int) -> NDArray[np.bool_]:
        """Return which places of 64 stripes are free, shape (n_data, 64): for stripes that are free in part."""
        return ~self._slots(name, word, self.leaf)

    def spared_slots(self, name: AreaName, word: int) -> NDArray[np.bool_]:
        """Return which places of 64 stripes shadows mean, shape (n_data, 64)."""
        return self._slots(name, word, self.spared_leaf)

    def _slots(self, name: AreaName, word: int, leaf_of: LeafOf) -> NDArray[np.bool_]:
        words = self._words(self.words_of_stripes(name[0], word), leaf_of)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        slots: NDArray[np.bool_] = bits.reshape(self.geometry.groups[name[0]].n_data, WORD_BLOCKS) != 0
        return slots

    def words_of_stripes(self, group: int, word: int) -> NDArray[np.int64]:
        """Return which words of a plane of places are 64 stripes of a group, one for each data disk."""
        area = word // AREA_WORDS
        words: NDArray[np.int64] = self._stripe_words(self.geometry.groups[group], area)[word - area * AREA_WORDS]
        return words

    def partial_words(self, name: AreaName) -> list[int]:
        """Return the stripe words of an area in which some place is free; those first in which no shadow means one."""
        group = self.geometry.groups[name[0]]
        words = self._stripe_words(group, name[1])
        free = ~self._words(words.ravel(), self.leaf).reshape(words.shape)
        found = np.flatnonzero(free.any(axis=1))
        spared_of = self._spared()
        if spared_of is not None:
            free &= ~self._words(words.ravel(), spared_of).reshape(words.shape)
            found = found[np.argsort((free == 0).all(axis=1)[found], kind="stable")]
        return (found + name[1] * AREA_WORDS).tolist()

    def walk(self, start: AreaName, backward: bool = False) -> Iterator[AreaName]:
        """Yield every area once, from start on and round, the groups taking turns so that all disks work."""
        counts = [-(-group.disk_blocks // AREA_STRIPES) for group in self.geometry.groups]
        n_groups, n_areas = len(counts), max(counts)
        total = n_groups * n_areas
        at = min(start[1] * n_groups + start[0], total - 1)
        for step in range(total):
            area, group = divmod((at - step if backward else at + step) % total, n_groups)
            if area < counts[group] and group != self.closed:
                yield group, area

    def last_area(self) -> AreaName:
        """Return the area at the far end of the volume."""
        return next(self.walk((len(self.geometry.groups) - 1, 1 << 62), backward=True))


def _longest_run(word: int) -> tuple[int, int]:
    """Return (start, count) of the longest run of ones in a 64-bit word that is not 0."""
    best_start, best = 0, 0
    at = 0
    while word >> at:
        if word >> at & 1:
            rest = ~(word >> at)
            count = (rest & -rest).bit_length() - 1
            if count > best:
                best_start, best = at, count
            at += count
        else:
            at += 1
    return best_start, best
