"""Evaluates formulas over the planes of states, leaf by leaf, reading only what the result depends on.

A state's plane is its blockmap file: one bit a block, 32,768 a leaf, under a tree of pointers. Two states that share
a leaf or a whole subtree point to the same block at the same place; where a formula over such equals is empty,
nothing below is read. Cost follows what differs.

With place maps an operand is a set of pairs (VBN, place): a block that two states hold at different places is two
blocks of one name, and the difference keeps it (DESIGN.md, law 4).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from blockplane.image.formula import Formula, apply, needed, positive
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.planes import Plane, PlaneBuilder
from blockplane.volume.codec import NODE_POINTERS, NUMBER_MASK, ROOT_POINTERS
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS
from blockplane.volume.markplane import MarkPlane, SumTree
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.tree import BlockTree

#: Leaves are worked on in groups under one tree node: 256 leaves, 1 MiB of bits, 8,388,608 blocks.
GROUP_LEAVES: Final = NODE_POINTERS

Leaves = NDArray[np.uint64]  # (n, LEAF_WORDS)
Keys = NDArray[np.int64]


class Operand(Protocol):
    """A state as a set of blocks."""

    @property
    def blockmap(self) -> BlockTree | SumTree:
        """Its plane."""
        ...

    @property
    def placemap(self) -> PlaceMap:
        """Where its blocks lie when not at home."""
        ...


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What formulas hold.

    planes : one for each formula.
    owned : for each operand the blocks of the first formula that are to be read from it: the first operand, in the
        order given, that holds the block at the place the result means. Operands that own nothing have an empty
        plane.
    n_places : how many places the first formula means; more than blocks where one name lies at several of them.
    n_leaves : blockmap leaves read.
    """

    planes: tuple[Plane, ...]
    owned: tuple[Plane, ...]
    n_places: int
    n_leaves: int


def evaluate(formulas: Sequence[Formula], operands: Sequence[Operand], n_blocks: int) -> Evaluation:
    """Evaluate formulas over the same operands in one pass.

    Notes
    -----
    Reads at most each operand's version of the leaves in which the operands differ. Memory: a group of leaves for each
    operand (1 MiB), and the results.
    """
    builders = [Plane.builder(n_blocks) for _ in formulas]
    sole = positive(formulas[0])
    owners = [Plane.builder(n_blocks) for _ in operands] if len(sole) > 1 else []
    n_leaves = n_places = 0
    for group in _groups(formulas, operands, n_blocks):
        n_leaves += group.n_leaves
        n_places += group.n_places
        for builder, leaves in zip(builders, group.results, strict=True):
            _append(builder, group.first_leaf, leaves, n_blocks)
        for builder, leaves in zip(owners, group.owners(), strict=True) if owners else ():
            _append(builder, group.first_leaf, leaves, n_blocks)
    planes = tuple(builder.finish() for builder in builders)
    if owners:
        owned = tuple(builder.finish() for builder in owners)
    else:
        owned = tuple(planes[0] if i in sole else Plane.empty(n_blocks) for i in range(len(operands)))
    return Evaluation(planes, owned, n_places, n_leaves)


def is_empty(formula: Formula, operands: Sequence[Operand], n_blocks: int) -> bool:
    """Tell whether a formula holds no block; stops at the first it finds, and reads nothing where algebra decides."""
    if not needed(formula, range(len(operands))):
        return True
    return not any(group.results[0].any() for group in _groups([formula], operands, n_blocks))


def _append(builder: PlaneBuilder, first_leaf: int, leaves: Leaves, n_blocks: int) -> None:
    """Append the leaves that are not empty, cut at the end of the space."""
    full = leaves.any(axis=1)
    edges = np.flatnonzero(np.diff(full, prepend=False, append=False)).tolist()
    end_word = -(-n_blocks // 64)
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        first_word = (first_leaf + start) * LEAF_WORDS
        words = leaves[start:stop].reshape(-1)[: max(end_word - first_word, 0)]
        if len(words):
            builder.append(first_word, words)


# --- walking ---------------------------------------------------------------------------------------------------------


def _groups(formulas: Sequence[Formula], operands: Sequence[Operand], n_blocks: int) -> Iterator[_Group]:
    """Yield the groups of leaves in which any formula may hold something, ascending."""
    touched = _touched_leaves(operands)
    n_leaves = -(-n_blocks // LEAF_BLOCKS)
    for index in _nodes(formulas, operands, touched, n_leaves):
        first = index * GROUP_LEAVES
        group = _Group(operands, formulas, first, min(GROUP_LEAVES, n_leaves - first), touched)
        if group.evaluate():
            yield group


def _nodes(
    formulas: Sequence[Formula], operands: Sequence[Operand], touched: NDArray[np.int64], n_leaves: int
) -> Iterator[int]:
    """Yield the indexes of level-1 nodes that cannot be skipped."""
    level = max(1, *(operand.blockmap.root.depth for operand in operands))
    stack = [(level, index) for index in reversed(range(ROOT_POINTERS))]
    while stack:
        level, index = stack.pop()
        span = NODE_POINTERS**level
        if index * span >= n_leaves or not _may_hold(formulas, operands, touched, level, index):
            continue
        if level == 1:
            yield index
        else:
            stack += [(level - 1, child) for child in reversed(range(index << 8, (index + 1) << 8))]


def _may_hold(
    formulas: Sequence[Formula], operands: Sequence[Operand], touched: NDArray[np.int64], level: int, index: int
) -> bool:
    span = NODE_POINTERS**level
    if np.searchsorted(touched, index * span) != np.searchsorted(touched, (index + 1) * span):
        return True
    keys = [_node_key(operand, i, level, index) for i, operand in enumerate(operands)]
    classes = [-1 if key == 0 else keys.index(key) for key in keys]
    return any(needed(formula, classes) for formula in formulas)


def _node_key(operand: Operand, number: int, level: int, index: int) -> int:
    """Return a number equal for equal subtrees; 0 for an empty one. A tree too low for the level is its own."""
    tree = operand.blockmap
    if level > tree.root.depth:
        return -1 - number if index == 0 else 0
    word, _ = tree.pointer(level, index)
    return _place_keys(operand, np.array([word], np.uint64))[0] if word else 0


def _place_keys(operand: Operand, words: NDArray[np.uint64]) -> Keys:
    """Return place + 1 of what pointer words name, 0 for holes."""
    vbns = (words & np.uint64(NUMBER_MASK)).astype(np.int64)
    return np.where(words != 0, operand.placemap.to_places(vbns) + 1, 0)


def _touched_leaves(operands: Sequence[Operand]) -> NDArray[np.int64]:
    """Return the leaves in which the operands' place maps differ, ascending."""
    rows = [operand.placemap.extents for operand in operands]
    if not any(len(r) for r in rows):
        return np.empty(0, np.int64)
    unique, counts = np.unique(np.concatenate(rows), axis=0, return_counts=True)
    differing = unique[counts < len(operands)]
    spans = [np.arange(a // LEAF_BLOCKS, -(-b // LEAF_BLOCKS)) for a, b, _ in differing.tolist()]
    return np.unique(np.concatenate(spans)) if spans else np.empty(0, np.int64)


# --- one group -------------------------------------------------------------------------------------------------------


class _Group:
    """The leaves under one node: their classes, what must be read of them, and the results."""

    def __init__(
        self,
        operands: Sequence[Operand],
        formulas: Sequence[Formula],
        first_leaf: int,
        n_leaves: int,
        touched: NDArray[np.int64],
    ) -> None:
        self.first_leaf = first_leaf
        self._operands, self._formulas, self._n = operands, formulas, n_leaves
        low, high = np.searchsorted(touched, (first_leaf, first_leaf + n_leaves))
        self._touched: list[int] = (touched[low:high] - first_leaf).tolist()
        self._bits: dict[int, Leaves] = {}
        self._plans: dict[tuple[int, ...], list[int]] = {}
        self.results: list[Leaves] = []
        self.n_leaves = self.n_places = 0

    def evaluate(self) -> bool:
        """Read what is needed and compute the results; False: nothing here, and `results` is not there."""
        classes = self._classes()
        patterns = self._patterns(classes)
        if not patterns and not self._touched:
            return False
        self._plans = patterns
        self._read(patterns)
        shape = (self._n, LEAF_WORDS)
        self.results = [np.zeros(shape, np.uint64) for _ in self._formulas]
        for pattern, leaves in patterns.items():
            values = [self._bits[c][leaves] if c in self._bits else None for c in pattern]
            for out, formula in zip(self.results, self._formulas, strict=True):
                found = apply(formula, values)
                if found is not None:
                    out[leaves] = found
        self.n_places = int(np.bitwise_count(self.results[0]).sum())
        for leaf in self._touched:
            self._pairs(leaf)
        return True

    def _classes(self) -> Keys:
        """Return (operands, leaves): the lowest operand with the same leaf at the same place, -1 for a hole."""
        start, stop = self.first_leaf, self.first_leaf + self._n
        keys = np.stack([_place_keys(o, o.blockmap.pointers(start, stop)[:, 0]) for o in self._operands])
        order = np.argsort(keys, axis=0, kind="stable")
        ranked = np.take_along_axis(keys, order, axis=0)
        begins = np.ones(keys.shape, bool)
        begins[1:] = ranked[1:] != ranked[:-1]
        numbers = np.arange(len(keys))[:, None]
        heads = np.maximum.accumulate(np.where(begins, numbers, 0), axis=0)
        classes = np.empty_like(keys)
        np.put_along_axis(classes, order, np.take_along_axis(order, heads, axis=0), axis=0)
        classes[keys == 0] = -1
        return classes

    def _patterns(self, classes: Keys) -> dict[tuple[int, ...], list[int]]:
        """Group the leaves by pattern, leaving out those where every formula is empty, and those with mapped blocks."""
        found: dict[tuple[int, ...], list[int]] = {}
        touched = set(self._touched)
        for leaf, pattern in enumerate(map(tuple, classes.T.tolist())):
            if leaf not in touched:
                found.setdefault(pattern, []).append(leaf)
        return {p: leaves for p, leaves in found.items() if any(needed(f, p) for f in self._formulas)}

    def _read(self, patterns: dict[tuple[int, ...], list[int]]) -> None:
        wanted: dict[int, list[int]] = {i: list(self._touched) for i in range(len(self._operands)) if self._touched}
        for pattern, leaves in patterns.items():
            for c in frozenset().union(*(needed(f, pattern) for f in self._formulas)):
                wanted.setdefault(c, []).extend(leaves)
        for i, leaves in wanted.items():
            bits = np.zeros((self._n, LEAF_WORDS), np.uint64)
            for start, stop in _runs(sorted(leaves)):
                out = bits[start:stop].reshape(-1).view(np.uint8)
                self._operands[i].blockmap.read(self.first_leaf + start, stop - start, out)
                self.n_leaves += stop - start
            self._bits[i] = bits

    def owners(self) -> list[Leaves]:
        """Return for each operand what of the first result is read from it."""
        out = [np.zeros((self._n, LEAF_WORDS), np.uint64) for _ in self._operands]
        for pattern, leaves in self._plans.items():
            left = self.results[0][leaves]
            for c in sorted(needed(self._formulas[0], pattern)):
                out[c][leaves] = left & self._bits[c][leaves]
                left = left & ~self._bits[c][leaves]
                if not left.any():
                    break
        for leaf in self._touched:
            taken = np.zeros(LEAF_WORDS, np.uint64)
            for i, part in enumerate(self._by_place(self._formulas[0], leaf)):
                out[i][leaf] = part & ~taken
                taken |= part
        return out

    def _pairs(self, leaf: int) -> None:
        """Evaluate a leaf whose blocks lie at different places in different operands."""
        for number, (out, formula) in enumerate(zip(self.results, self._formulas, strict=True)):
            parts = self._by_place(formula, leaf)
            for part in parts:
                out[leaf] |= part
            if number == 0:
                self.n_places += self._count_places(parts, leaf)

    def _count_places(self, parts: Sequence[NDArray[np.uint64]], leaf: int) -> int:
        """Count the blocks of all operands' parts, those that lie at one place in several of them once."""
        places, n_places = self._places(leaf), 0
        for i, part in enumerate(parts):
            new = part
            for j in range(i):
                new = new & ~(_pack(places[j] == places[i]) & parts[j])
            n_places += int(np.bitwise_count(new).sum())
        return n_places

    def _places(self, leaf: int) -> list[NDArray[np.int64]]:
        vbns = np.arange(LEAF_BLOCKS, dtype=np.int64) + (self.first_leaf + leaf) * LEAF_BLOCKS
        return [operand.placemap.to_places(vbns) for operand in self._operands]

    def _by_place(self, formula: Formula, leaf: int) -> list[NDArray[np.uint64]]:
        """Return for each operand the blocks whose place in it the formula holds."""
        places = self._places(leaf)
        bits = [self._bits[i][leaf] for i in range(len(self._operands))]
        found = []
        for mine, own in zip(places, bits, strict=True):
            same = [
                b if isinstance(operand, MarkPlane) else _pack(other == mine) & b  # a mark means a VBN at any place
                for operand, other, b in zip(self._operands, places, bits, strict=True)
            ]
            value = apply(formula, same)
            found.append(value & own if value is not None else np.zeros(LEAF_WORDS, np.uint64))
        return found


def _pack(mask: NDArray[np.bool_]) -> NDArray[np.uint64]:
    return np.packbits(mask, bitorder="little").view(np.uint64)


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the runs in ascending numbers."""
    array = np.array(numbers, np.int64)
    for part in np.split(array, np.flatnonzero(np.diff(array) > 1) + 1):
        if len(part):
            yield int(part[0]), int(part[-1]) + 1


assert LEAF_WORDS * 8 == BLOCK_BYTES, "a leaf is one block"
