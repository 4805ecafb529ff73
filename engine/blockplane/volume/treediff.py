"""Which blocks trees of one volume do not share, found from their pointers: what they share is not read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blockplane.volume.codec import (
    FORM_TREE,
    KIND_BLOCK,
    KIND_SHIFT,
    NODE_POINTERS,
    NUMBER_MASK,
    ROOT_POINTERS,
    PointerArray,
)
from blockplane.volume.nodesmet import NodesMet
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.treeread import NODE_SHIFT, TreeReader


def differing_blocks(trees: Sequence[TreeReader], maps: Sequence[PlaceMap] = ()) -> list[int]:
    """Return the indexes, ascending, of the blocks that are not one and the same block in all trees.

    Parameters
    ----------
    maps : for each tree where its blocks lie; where none are given, blocks of one number are one block.

    Raises
    ------
    VolumeDamagedError: one block of a tree leads to several parts of it: to follow that may have no end.

    Notes
    -----
    Cost follows what differs: below a node that all trees share nothing is read.
    """
    found: list[int] = []
    moved = [] if all(placemap == maps[0] for placemap in maps) else list(maps)
    met = [NodesMet() for _ in trees]

    def descend(level: int, index: int) -> None:
        children = [children_of(tree, level, index, mark) for mark, tree in enumerate(trees)]
        differs = np.zeros(NODE_POINTERS, np.bool_)
        for other in children[1:]:
            differs |= (children[0] != other).any(axis=1)
        if moved:
            differs |= _lie_apart(children, moved)
        if level > 1:
            for nodes, pointers in zip(met, children, strict=True):
                nodes.meet(level - 1, pointers[differs, 0])
        for child in (np.flatnonzero(differs) + (index << NODE_SHIFT)).tolist():
            if level == 1:
                found.append(child)
            else:
                descend(level - 1, child)

    descend(max(tree.root.depth for tree in trees) + 1, 0)
    return found


def _lie_apart(children: Sequence[PointerArray], maps: Sequence[PlaceMap]) -> NDArray[np.bool_]:
    """Return which pointers, of trees whose maps are not one, lead to different places."""
    places = []
    for pointers, placemap in zip(children, maps, strict=True):
        is_block = pointers[:, 0] >> np.uint64(KIND_SHIFT) == KIND_BLOCK
        numbers = (pointers[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64)
        places.append(np.where(is_block, placemap.to_places(numbers), -1))
    apart: NDArray[np.bool_] = (np.stack(places[1:]) != places[0]).any(axis=0)
    return apart


def children_of(tree: TreeReader, level: int, index: int, mark: int) -> PointerArray:
    """Return the 256 pointers below (level, index) of a tree that may be less deep: then its root stands at index 0.

    mark : tells a level that the tree does not have from every other tree's.
    """
    root = tree.root
    if level <= root.depth:
        return tree.node(level, index)
    out = np.zeros((NODE_POINTERS, 2), np.uint64)
    if index == 0 and root.form == FORM_TREE:
        if level == root.depth + 1:
            out[:ROOT_POINTERS] = root.pointers
        else:
            out[0] = mark + 1
    return out
