"""A plane that is the sum of several trees, worked out leaf by leaf: `alloc(P)` over the intervals from P on.

It stands where a state stands as an operand of images. Its blocks have no places of their own: a mark means a VBN
wherever it lies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.codec import TreeRoot
from blockplane.volume.leafbits import Leaf
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.planetree import PlaneTree
from blockplane.volume.tree import BlockTree

#: Numbers that no VBN, place or shadow has, so that no other tree's block is taken for one of a sum.
_SUM_FLAG: Final = 1 << 54
_SLOT_SHIFT, _LEVEL_SHIFT, _SLOTS = 38, 35, 1 << 16
_slots = itertools.count()


class SumTree:
    """Reads trees as one: what `BlockTree` offers those who compare blockmaps. Blocks are told apart by position."""

    def __init__(self, trees: Sequence[BlockTree | PlaneTree]) -> None:
        self._trees = trees
        self._first = _SUM_FLAG | (next(_slots) % _SLOTS) << _SLOT_SHIFT
        self.root = TreeRoot(
            depth=max((tree.root.depth for tree in trees), default=0),
            size_bytes=max((tree.size_bytes for tree in trees), default=0),
        )

    @property
    def n_reads(self) -> int:
        """How many blocks were read."""
        return sum(tree.n_reads for tree in self._trees)

    @property
    def size_bytes(self) -> int:
        """The size of the longest."""
        return self.root.size_bytes

    def pointer(self, level: int, index: int) -> tuple[int, int]:
        """Return a pointer that nothing else has to leaf or node (level, index); (0, 0) where no tree has one."""
        there = any(self._has(tree, level, index) for tree in self._trees)
        return (self._first | level << _LEVEL_SHIFT | index, 0) if there else (0, 0)

    @staticmethod
    def _has(tree: BlockTree | PlaneTree, level: int, index: int) -> bool:
        if isinstance(tree, PlaneTree):
            return tree.has(level, index)
        if level > tree.root.depth:
            return index == 0 and bool(tree.root.pointers[:, 0].any())
        return bool(tree.pointer(level, index)[0])

    def pointers(self, start: int, stop: int) -> NDArray[np.uint64]:
        """Return pointers to leaves start..stop, shape (stop - start, 2)."""
        out = np.zeros((stop - start, 2), np.uint64)
        for tree in self._trees:
            out[:, 0] |= tree.pointers(start, stop)[:, 0] != 0
        out[:, 0] *= np.arange(self._first + start, self._first + stop, dtype=np.uint64)
        return out

    def read(self, first: int, n_blocks: int, out: NDArray[np.uint8]) -> None:
        """Fill out with leaves first, ..."""
        out[:] = 0
        part = np.empty_like(out)
        for tree in self._trees:
            tree.read(first, n_blocks, part)
            out |= part

    def read_block(self, index: int) -> NDArray[np.uint8]:
        """Return a leaf."""
        out = np.empty(BLOCK_BYTES, np.uint8)
        self.read(index, 1, out)
        return out

    def leaf_numbers(self) -> Iterator[int]:
        """Yield the leaves that exist in any tree, ascending."""
        extents = [tuple(row) for tree in self._trees for row in tree.data_extents().tolist()]
        last = -1
        for start, stop in sorted(extents):
            yield from range(max(start, last + 1), stop)
            last = max(last, stop - 1)


class MarkPlane:
    """The sum of some trees.

    Parameters
    ----------
    placemap : where its blocks are counted as lying: that of the live state.
    """

    #: a mark means a VBN, at whatever place
    cp = -1

    def __init__(self, trees: Sequence[BlockTree | PlaneTree], placemap: PlaceMap | None = None) -> None:
        self.blockmap = SumTree(trees)
        self.placemap = placemap if placemap is not None else PlaceMap()

    @property
    def space_blocks(self) -> int:
        """How many VBNs the numbering reaches."""
        return self.blockmap.size_bytes * 8

    def leaf(self, leaf: int) -> Leaf:
        """Return the VBNs of a leaf's range."""
        return self.blockmap.read_block(leaf).view(np.uint64)

    def leaves(self) -> Iterator[tuple[int, Leaf]]:
        """Yield (index, bits) of every leaf that exists."""
        for leaf in self.blockmap.leaf_numbers():
            yield leaf, self.leaf(leaf)

    @property
    def is_whole(self) -> bool:
        """Whether every leaf can be read."""
        try:
            for _ in self.leaves():
                pass
        except VolumeDamagedError:
            return False
        return True
