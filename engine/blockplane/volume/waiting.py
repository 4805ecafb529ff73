"""Which blocks of a plane have not come yet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from blockplane._native.extents import take
from blockplane.planes import Plane
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, Leaf


def plane_leaf(plane: Plane, leaf: int) -> Leaf:
    """Return 32,768 bits of a plane, fresh; beyond its end they are clear."""
    first, stop = leaf * LEAF_WORDS, min((leaf + 1) * LEAF_WORDS, -(-plane.n_blocks // 64))
    words = np.zeros(LEAF_WORDS, np.uint64)
    if first < stop:
        words[: stop - first] = plane.word_range(first, stop - first)
    return words


def leaves_of_plane(plane: Plane) -> Iterator[int]:
    """Yield the leaves in which a plane has a block, ascending."""
    last = -1
    for extents in plane.iter_extents(1 << 16):
        low, high = extents[:, 0] // LEAF_BLOCKS, (extents[:, 1] - 1) // LEAF_BLOCKS
        for start, stop in np.unique(np.column_stack((low, high)), axis=0).tolist():
            for leaf in range(max(start, last + 1), stop + 1):
                last = leaf
                yield leaf


class Waiting:
    """The blocks of a plane, each to be taken once.

    Notes
    -----
    Memory: 1 bit a block of the leaves that were touched and are not empty yet.
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._leaves: dict[int, Leaf] = {}
        self.n_left = len(plane)

    def take(self, extents: NDArray[np.int64]) -> int:
        """Take the blocks of extents (n, 2), in any order; return -1, or a block that is not there, or is no more."""
        if not len(extents):
            return -1
        starts, stops = extents[:, 0], extents[:, 1]
        self.n_left -= int((stops - starts).sum())
        bad = -1
        for leaf in _leaves_of(starts // LEAF_BLOCKS, (stops - 1) // LEAF_BLOCKS):
            bad = max(bad, take(self._leaf(leaf), extents, base=leaf * LEAF_BLOCKS))
        return bad

    def left(self) -> Plane:
        """Return the blocks that were not taken: a plane of its own."""
        builder = Plane.builder(self._plane.n_blocks)
        n_words = -(-self._plane.n_blocks // 64)
        for leaf in leaves_of_plane(self._plane):
            first = leaf * LEAF_WORDS
            builder.append(first, (self._leaves.get(leaf, plane_leaf(self._plane, leaf)))[: n_words - first])
        return builder.finish()

    def _leaf(self, leaf: int) -> Leaf:
        words = self._leaves.get(leaf)
        if words is None:
            words = self._leaves[leaf] = plane_leaf(self._plane, leaf)
        return words


def _leaves_of(low: NDArray[np.int64], high: NDArray[np.int64]) -> Iterable[int]:
    """Return the leaves low..high of all extents, each once."""
    first, last = int(low.min()), int(high.max())
    if last - first < 2:
        return range(first, last + 1)
    return {leaf for start, stop in zip(low.tolist(), high.tolist(), strict=True) for leaf in range(start, stop + 1)}
