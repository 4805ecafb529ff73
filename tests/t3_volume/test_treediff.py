"""Blocks that trees do not share, against every pointer of both; and which state descends from which."""

from __future__ import annotations

import numpy as np
import pytest

from blockplane.volume import Volume
from blockplane.volume.codec import NUMBER_MASK, TreeRoot
from blockplane.volume.lines import descends_from
from blockplane.volume.placemap import PlaceMap, from_pairs
from blockplane.volume.state import State
from blockplane.volume.tree import BlockTree
from blockplane.volume.treediff import differing_blocks
from rig.memory import Shape, make_volume
from streams.volumes import Files, roots

SPAN = 70_000  # blocks of a tree that tests look at: past what two levels of pointers reach


@pytest.fixture
def volume():
    made = make_volume([Shape(3, 1, 64, 4096)])
    yield made
    made.abandon()


def tree_of(state: State, number: int) -> BlockTree:
    found = roots(state).get(number)
    return state.tree(TreeRoot.decode(found.tobytes()) if found is not None else TreeRoot())


def by_hand(one: BlockTree, two: BlockTree, maps: tuple[PlaceMap, PlaceMap]) -> list[int]:
    pointers = one.pointers(0, SPAN), two.pointers(0, SPAN)
    numbers = [(found[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64) for found in pointers]
    places = [placemap.to_places(found) for placemap, found in zip(maps, numbers, strict=True)]
    lie_apart = (places[0] != places[1]) & (pointers[0][:, 0] != 0)
    return np.flatnonzero((pointers[0] != pointers[1]).any(axis=1) | lie_apart).tolist()


def test_differing_blocks_are_those_whose_pointers_or_places_differ(volume: Volume, rng: np.random.Generator) -> None:
    files, names = Files(volume, rng), []
    for number in range(10):
        for _ in range(int(rng.integers(1, 4))):
            file = int(rng.integers(1, 4))
            start = int(rng.choice([0, 3, 14, 250, 4000, 66_000]))
            files.write(file, start, int(rng.integers(1, 8)))
            if rng.integers(3) == 0:
                files.punch(file, start, start + 2)
        volume.snapshot(f"s{number}")
        names.append(f"s{number}")
    depths = set()
    for _ in range(60):
        one, two = (volume.state(str(rng.choice(names))) for _ in range(2))
        file = int(rng.integers(1, 4))
        trees = tree_of(one, file), tree_of(two, file)
        depths |= {tree.root.depth for tree in trees}
        same = PlaceMap(), PlaceMap()
        assert differing_blocks(trees) == by_hand(*trees, same)
        maps = PlaceMap(), moved(trees[1], rng)
        found = differing_blocks(trees, maps)
        assert set(by_hand(*trees, maps)) == set(found)
        assert differing_blocks(trees, (maps[1], maps[1])) == by_hand(*trees, same)
    assert len(depths) > 1


def moved(tree: BlockTree, rng: np.random.Generator) -> PlaceMap:
    """A map that sends some of a tree's blocks, and with each the blocks of pointers above it, elsewhere."""
    words = tree.pointers(0, SPAN)[:, 0]
    leaves = np.flatnonzero(words)
    some = leaves[rng.random(len(leaves)) < 0.2]
    numbers = {int(words[leaf]) & NUMBER_MASK for leaf in some}
    for level in range(1, tree.root.depth + 1):
        numbers |= {tree.pointer(level, int(leaf) >> 8 * level)[0] & NUMBER_MASK for leaf in some}
    vbns = np.array(sorted(numbers), np.int64)
    return from_pairs(vbns, vbns + 1_000_000)


def test_what_is_shared_is_not_read(volume: Volume, rng: np.random.Generator) -> None:
    files = Files(volume, rng)
    files.write(1, 0, 4096)
    volume.snapshot("a")
    files.write(1, 700, 1)
    volume.snapshot("b")
    trees = tree_of(volume.state("a"), 1), tree_of(volume.state("b"), 1)
    assert differing_blocks(trees) == [700]
    assert [tree.n_reads for tree in trees] == [1, 1]
    assert differing_blocks([trees[0], trees[0]]) == []


def test_a_state_descends_from_those_its_line_went_through(volume: Volume, rng: np.random.Generator) -> None:
    files = Files(volume, rng)
    parents: dict[str, set[str]] = {}
    at: set[str] = set()
    for number in range(12):
        files.write(1, int(rng.integers(20)), 1)
        name = f"s{number}"
        volume.snapshot(name)
        at = parents[name] = at | {name}
        if rng.integers(3) == 0:
            back = str(rng.choice(list(parents)))
            volume.rollback(back, drop_changes=True)
            files.reload()
            at = parents[back]
    for name, older in parents.items():
        found = {other for other in parents if descends_from(volume.state(name), volume.state(other))}
        assert found == older, name
