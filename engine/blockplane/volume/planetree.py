"""A plane in memory in the place of a blockmap's tree, for those who compare such trees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.planes import Plane
from blockplane.volume.codec import ROOT_POINTERS, TreeRoot
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS
from blockplane.volume.treeread import NODE_SHIFT


class PlaneTree:
    """A plane's words as leaves; those without a member do not exist."""

    n_reads = 0

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        n_leaves, depth = -(-plane.n_blocks // LEAF_BLOCKS), 0
        while ROOT_POINTERS << (NODE_SHIFT * depth) < n_leaves:
            depth += 1
        self.root = TreeRoot(depth=depth, size_bytes=n_leaves * BLOCK_BYTES)
        self.size_bytes = self.root.size_bytes
        parts = [_leaves(extents) for extents in plane.iter_extents(1 << 16, 0, plane.n_blocks) if len(extents)]
        self._there: NDArray[np.int64] = np.unique(np.concatenate([*parts, np.empty(0, np.int64)]))

    def has(self, level: int, index: int) -> bool:
        """Tell whether a leaf or node exists."""
        low = np.searchsorted(self._there, index << NODE_SHIFT * level)
        return bool(low < np.searchsorted(self._there, (index + 1) << NODE_SHIFT * level))

    def pointers(self, start: int, stop: int) -> NDArray[np.uint64]:
        """Return (stop - start, 2): of leaves start..stop, 0 in the first column where one does not exist."""
        out = np.zeros((stop - start, 2), np.uint64)
        low, high = np.searchsorted(self._there, (start, stop))
        out[self._there[low:high] - start, 0] = 1
        return out

    def read(self, first: int, n_blocks: int, out: NDArray[np.uint8]) -> None:
        """Fill out with leaves first, ..."""
        out.view(np.uint64)[:] = self._plane.word_range(first * LEAF_WORDS, n_blocks * LEAF_WORDS)

    def data_extents(self) -> NDArray[np.int64]:
        """Return the leaves that exist, (n, 2)."""
        return np.column_stack((self._there, self._there + 1))


def _leaves(extents: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the leaves that extents touch, ascending."""
    first, last = extents[:, 0] // LEAF_BLOCKS, (extents[:, 1] - 1) // LEAF_BLOCKS
    counts = last - first + 1
    begins = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts)
    return np.unique(begins + np.arange(int(counts.sum())))
