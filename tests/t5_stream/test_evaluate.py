"""Evaluation over planes with place maps, against Python sets of pairs (VBN, place); and what it reads."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blockplane.image.evaluate import evaluate, is_empty
from blockplane.image.formula import Sums, Var, difference
from blockplane.volume.codec import BLOCK_WORD, empty_pointers
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, numbers_in, set_range
from blockplane.volume.placemap import from_pairs
from streams.formulas import by_sets, formulas

N_LEAVES = 300
N_BLOCKS = N_LEAVES * LEAF_BLOCKS
#: Leaves lie in VBNs of their own, one for each content, so that equal leaves are one block.
LEAF_VBNS = 10 * N_BLOCKS
#: VBNs that tests play with: around the borders of words, leaves and groups of leaves.
SPOTS = [0, 1, 63, 64, 65, LEAF_BLOCKS - 1, LEAF_BLOCKS, 255 * LEAF_BLOCKS + 7, 256 * LEAF_BLOCKS, N_BLOCKS - 1]


@dataclass
class Root:
    depth: int = 1


@dataclass
class FakeTree:
    """A blockmap whose leaves are numbered by content."""

    leaves: dict[int, bytes]
    shelf: dict[bytes, int]
    root: Root = field(default_factory=Root)
    n_reads: int = 0

    def pointers(self, start, stop):
        out = empty_pointers(stop - start)
        for leaf, content in self.leaves.items():
            if start <= leaf < stop:
                out[leaf - start, 0] = BLOCK_WORD | self.shelf.setdefault(content, LEAF_VBNS + len(self.shelf))
        return out

    def pointer(self, level, index):
        assert level == 1
        inside = sorted((n, c) for n, c in self.leaves.items() if n // 256 == index)
        number = self.shelf.setdefault(repr(inside).encode(), LEAF_VBNS + len(self.shelf))
        return (BLOCK_WORD | number, 0) if inside else (0, 0)

    def read(self, first, n_blocks, out):
        self.n_reads += n_blocks
        for i in range(n_blocks):
            out[i * 4096 : (i + 1) * 4096] = np.frombuffer(self.leaves.get(first + i, bytes(4096)), np.uint8)


class FakeOperand:
    """A set of pairs as a state shows it."""

    def __init__(self, pairs, shelf):
        self.pairs = pairs
        leaves = {}
        for vbn, _ in pairs:
            words = leaves.setdefault(vbn // LEAF_BLOCKS, np.zeros(LEAF_WORDS, np.uint64))
            set_range(words, vbn % LEAF_BLOCKS, vbn % LEAF_BLOCKS + 1)
        self.blockmap = FakeTree({leaf: words.tobytes() for leaf, words in leaves.items()}, shelf)
        ordered = np.array(sorted(pairs), np.int64).reshape(-1, 2)
        self.placemap = from_pairs(ordered[:, 0].copy(), ordered[:, 1].copy())


def states(places):
    """Three sets of pairs; a VBN has one place in a set."""
    one = st.dictionaries(st.sampled_from(SPOTS), st.integers(0, places - 1), max_size=8)
    return st.lists(one, min_size=3, max_size=3)


def pairs_of(choice):
    return {(vbn, vbn if not place else N_BLOCKS + place * 20 + SPOTS.index(vbn)) for vbn, place in choice.items()}


def members(plane):
    return {int(v) for start, stop in plane.extents().tolist() for v in range(start, stop)}


@settings(max_examples=200)
@given(formula=formulas(3, 3, 6), other=formulas(3, 3, 6), choices=states(3))
def test_pairs_of_names_and_places(formula, other, choices):
    shelf: dict[bytes, int] = {}
    operands = [FakeOperand(pairs_of(choice), shelf) for choice in choices]
    found = evaluate([formula, other], operands, N_BLOCKS)
    sets = [operand.pairs for operand in operands]
    expected = by_sets(formula, sets)
    assert members(found.planes[0]) == {vbn for vbn, _ in expected}
    assert members(found.planes[1]) == {vbn for vbn, _ in by_sets(other, sets)}
    assert found.n_places == len(expected)
    owned = [members(plane) for plane in found.owned]
    assert sum(len(part) for part in owned) == len({vbn for vbn, _ in expected})
    for operand, part in zip(operands, owned, strict=True):
        mine = dict(operand.pairs)
        assert all((vbn, mine[vbn]) in expected for vbn in part)
    assert is_empty(formula, operands, N_BLOCKS) == (not expected)


@given(choices=states(1))
def test_reads_are_at_most_two_for_each_leaf_that_differs(choices):
    shelf: dict[bytes, int] = {}
    a, b, _ = (FakeOperand(pairs_of(choice), shelf) for choice in choices)
    found = evaluate([Sums((("+", Var(0)), ("-", Var(1)))), Sums((("+", Var(1)), ("-", Var(0))))], [a, b], N_BLOCKS)
    differ = [leaf for leaf in range(N_LEAVES) if a.blockmap.leaves.get(leaf) != b.blockmap.leaves.get(leaf)]
    assert a.blockmap.n_reads + b.blockmap.n_reads == found.n_leaves <= 2 * len(differ)


def test_a_sum_holds_its_terms_without_a_read():
    shelf: dict[bytes, int] = {}
    operands = [FakeOperand({(SPOTS[i], SPOTS[i])}, shelf) for i in range(3)]
    whole = Sums((("+", Var(0)), ("+", Var(1)), ("-", Var(2))))
    assert is_empty(difference(Var(1), whole, Var(2)), operands, N_BLOCKS)
    assert [operand.blockmap.n_reads for operand in operands] == [0, 0, 0]


def test_spots_are_what_the_leaves_hold():
    operand = FakeOperand({(vbn, vbn) for vbn in SPOTS}, {})
    found = [
        int(v) + leaf * LEAF_BLOCKS
        for leaf, content in operand.blockmap.leaves.items()
        for v in numbers_in(np.frombuffer(content, np.uint64))
    ]
    assert sorted(found) == SPOTS
