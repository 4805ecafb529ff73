"""The busy plane: which places something has, worked out leaf by leaf from everything that may have one (law 5)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from blockplane.model.errors import ChecksumError
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, LEAF_WORDS, Leaf, set_range

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.local import LocalTree
    from blockplane.volume.state import State


class BusyPlane:
    """See the module. Nothing is kept: `Space` does that."""

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume

    def leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range are not to be given out, fresh.

        The trees of the last two CPs and of the open one are asked; a leaf that two of them share is read once.
        """
        volume = self._volume
        words = volume.active.place_leaf(leaf) | self._cp_leaf(volume.committed, volume.committed_local, leaf)
        with contextlib.suppress(ChecksumError):  # then that CP is not whole any more, and not worth keeping
            words = words | self._cp_leaf(volume.previous, volume.previous_local, leaf)
        words = words | self.kept_leaf(leaf) | volume.local.local_leaf(leaf) | volume.incoming.leaf(leaf)
        return words | self._no_place_leaf(leaf)

    def _cp_leaf(self, state: State, local: LocalTree, leaf: int) -> Leaf:
        """Return what a CP has of a leaf's range, where its trees differ from the open CP's."""
        active, open_local, words = self._volume.active, self._volume.local, EMPTY_LEAF
        if not (state.blockmap.has_same(active.blockmap, leaf) and state.placemap == active.placemap):
            words = words | state.place_leaf(leaf)
        if not local.held.has_same(open_local.held, leaf):
            words = words | local.held_leaf(leaf)
        if not local.local.has_same(open_local.local, leaf):
            words = words | local.local_leaf(leaf)
        return words | self._given_up_leaf(local, leaf)

    def _given_up_leaf(self, local: LocalTree, leaf: int) -> Leaf:
        """Return where blocks of incoming images lie that the open CP has given up, or moved: that CP has them still.

        Places to which nothing had come by then hold nothing that it could miss.
        """
        words = EMPTY_LEAF
        for image in local.incoming.images():
            now = self._volume.local.incoming.find(image.entry.landing_id)
            if now is None or not image.landed.has_same(now.landed, leaf):
                words = words | image.landed_leaf(leaf)
        return words

    def settled_leaf(self, leaf: int) -> Leaf:
        """Return the numbers of a leaf's range that the open CP does not take: in use before, or no places."""
        volume = self._volume
        words = self._no_place_leaf(leaf) | volume.live_leaf(leaf)
        with contextlib.suppress(ChecksumError):
            words = words | volume.previous.place_leaf(leaf)
        return words

    def kept_leaf(self, leaf: int) -> Leaf:
        """Return what of a leaf is not free though the live state gave it up: held places; do not write to it."""
        return self._volume.local.held_leaf(leaf)

    def spared(self) -> Callable[[int], Leaf] | None:
        """Return what gives the places, leaf by leaf, that shadows mean; None where there is no shadow."""
        local = self._volume.local
        return local.shadows.spared.leaf if local.root.n_shadows else None

    def _no_place_leaf(self, leaf: int) -> Leaf:
        """Return the numbers of a leaf's range that no group has."""
        words = np.full(LEAF_WORDS, ~np.uint64(0), np.uint64)
        start = leaf * LEAF_BLOCKS
        for first, stop in self._volume.geometry.place_extents.tolist():
            low, high = max(first - start, 0), min(stop - start, LEAF_BLOCKS)
            if low < high:
                cover = np.zeros(LEAF_WORDS, np.uint64)
                set_range(cover, low, high)
                words &= ~cover
        return words

    def is_landing(self, group: int, word: int) -> bool:
        """Whether a receive brings blocks to 64 stripes of a group."""
        incoming = self._volume.incoming
        words = self._volume.space.words_of_stripes(group, word).tolist() if incoming else []
        return any(incoming.leaf(at // LEAF_WORDS)[at % LEAF_WORDS] for at in words)
