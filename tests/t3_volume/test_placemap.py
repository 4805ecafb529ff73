"""Place maps against a dict."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, numbers_in, set_numbers
from blockplane.volume.openmap import AddedNames, OpenMap
from blockplane.volume.placemap import PlaceMap, aligned, from_pairs, moved, range_leaf, union

#: Numbers round the border of two leaves, so that small maps meet it.
LOW, HIGH = LEAF_BLOCKS - 40, LEAF_BLOCKS + 40
numbers = st.integers(LOW, HIGH - 1)


@st.composite
def models(draw: st.DrawFn) -> dict[int, int]:
    """VBN -> place, one to one, in runs that meet and break."""
    model: dict[int, int] = {}
    free = set(range(LOW - 200, LOW - 60)) | set(range(LOW, HIGH))
    for _ in range(draw(st.integers(0, 6))):
        vbn, length = draw(numbers), draw(st.integers(1, 9))
        place = draw(st.sampled_from(sorted(free)))
        for i in range(length):
            if LOW <= vbn + i < HIGH and vbn + i not in model and place + i in free and vbn != place:
                model[vbn + i] = place + i
                free.discard(place + i)
    return model


def map_of(model: dict[int, int]) -> PlaceMap:
    vbns = np.array(sorted(model), np.int64)
    return from_pairs(vbns, np.array([model[vbn] for vbn in vbns.tolist()], np.int64))


def leaf_of(numbers: set[int], leaf: int) -> np.ndarray:
    words = np.zeros(LEAF_WORDS, np.uint64)
    low = np.array([n - leaf * LEAF_BLOCKS for n in numbers if n // LEAF_BLOCKS == leaf], np.int64)
    set_numbers(words, low)
    return words


every = np.arange(LOW - 250, HIGH + 10)


@given(models())
def test_lookups(model):
    placemap = map_of(model)
    moved = {vbn: place for vbn, place in model.items() if vbn != place}
    assert placemap.is_empty == (not moved)
    assert placemap.n_blocks == len(moved)
    assert placemap.vbns().tolist() == sorted(moved)
    assert placemap.to_places(every).tolist() == [moved.get(vbn, vbn) for vbn in every.tolist()]


@given(models(), st.lists(st.tuples(numbers, st.integers(1, 30)), max_size=5))
def test_extents(model, spans):
    placemap = map_of(model)
    extents = np.array([(start, start + n) for start, n in spans], np.int64).reshape(-1, 2)
    found = [n for start, stop in placemap.extents_to_places(extents).tolist() for n in range(start, stop)]
    assert found == [model.get(vbn, vbn) for start, n in spans for vbn in range(start, start + n)]


@given(models())
def test_turned_round(model):
    """Every VBN is found at its place; a place whose own VBN lies elsewhere belongs to nobody, or to who came."""
    placemap = map_of(model)
    back = {place: vbn for vbn, place in model.items()}
    expected = [back.get(place, -1 if place in model else place) for place in every.tolist()]
    assert placemap.to_vbns(every).tolist() == expected


@given(models(), st.sets(numbers))
def test_places_of_a_plane_leaf_by_leaf(model, held):
    held = held | set(model)
    placemap = map_of(model)
    places = {model.get(vbn, vbn) for vbn in held}
    for leaf in (0, 1):
        plane = leaf_of(held, leaf)
        before = plane.copy()
        found = placemap.place_leaf(plane, leaf)
        assert set(numbers_in(found, leaf * LEAF_BLOCKS).tolist()) == {n for n in places if n // LEAF_BLOCKS == leaf}
        assert (plane == before).all()
        assert set(numbers_in(placemap.domain_leaf(leaf), leaf * LEAF_BLOCKS).tolist()) == {
            vbn for vbn in model if vbn // LEAF_BLOCKS == leaf
        }
        touched = {n // LEAF_BLOCKS for pair in model.items() for n in pair}
        assert placemap.maps_any(leaf) == (leaf in touched)


@given(models(), st.sets(numbers))
def test_without(model, gone):
    rest = {vbn: place for vbn, place in model.items() if vbn not in gone}
    found = map_of(model).without(np.array(sorted(gone), np.int64))
    assert found == map_of(rest) or found.to_places(every).tolist() == map_of(rest).to_places(every).tolist()
    assert found.n_blocks == len(rest)


@given(models())
def test_union_and_codec(model):
    parts = [{v: p for v, p in model.items() if v % 3 == n} for n in range(3)]
    joined = union([map_of(part) for part in parts])
    assert joined.to_places(every).tolist() == map_of(model).to_places(every).tolist()
    assert PlaceMap.decode(map_of(model).encode()) == map_of(model)


@given(models(), numbers, st.integers(0, 60))
def test_parts_of_a_map(model, start, n):
    placemap, stop = map_of(model), start + n
    part = placemap.overlapping(start, stop).tolist()
    assert {low + i: place + i for low, high, place in part for i in range(high - low)} == {
        vbn: place for vbn, place in model.items() if start <= vbn < stop
    }
    part = placemap.overlapping_places(start, stop).tolist()
    assert {low + i: place + i for low, high, place in part for i in range(high - low)} == {
        vbn: place for vbn, place in model.items() if start <= place < stop
    }


@given(models(), st.sets(numbers))
def test_cut_to_a_plane_that_is_given_leaf_by_leaf(model, held):
    placemap = map_of(model)
    found = placemap.cut(lambda leaf: leaf_of(held, leaf))
    assert found == map_of({vbn: place for vbn, place in model.items() if vbn in held})
    assert (found is placemap) == (set(model) <= held)
    whole = placemap.cut(lambda leaf: ~np.zeros(LEAF_WORDS, np.uint64))
    assert whole is placemap


@given(models(), st.dictionaries(numbers, st.integers(10 * LEAF_BLOCKS, 10 * LEAF_BLOCKS + 500), max_size=20))
def test_blocks_move(model, moves):
    places = set()
    moves = {vbn: place for vbn, place in moves.items() if place not in places and not places.add(place)}
    vbns = list(moves)
    found = moved(map_of(model), np.array(vbns, np.int64), np.array([moves[vbn] for vbn in vbns], np.int64))
    assert found == map_of(model | moves)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.lists(st.integers(1, 40), max_size=12), st.randoms())
def test_extents_laid_on_places_in_order(sizes, room, shuffled):
    starts = [1000 * (i + 1) + i for i in range(len(sizes))]
    shuffled.shuffle(starts)
    vbns = np.array([(start, start + n) for start, n in zip(starts, sizes, strict=True)], np.int64)
    room = [*room, sum(sizes)]
    while sum(room) > sum(sizes):  # as many places as blocks
        room[-1] -= sum(room) - sum(sizes)
        if room[-1] <= 0:
            room.pop()
    places = np.array([(500 + 900 * i, 500 + 900 * i + n) for i, n in enumerate(room)], np.int64)
    pairs = zip(
        [n for a, b in vbns.tolist() for n in range(a, b)],
        [n for a, b in places.tolist() for n in range(a, b)],
        strict=True,
    )
    assert aligned(vbns, places) == map_of(dict(pairs))


@given(models(), st.lists(st.tuples(numbers, st.integers(1, 30)), max_size=5))
def test_the_open_map_is_both_maps(model, spans):
    base = {vbn: place for vbn, place in model.items() if vbn % 2}
    rest = {vbn: place for vbn, place in model.items() if not vbn % 2 and vbn != place}
    added = AddedNames()
    for vbn, place in rest.items():
        added.add(np.array([vbn], np.int64), place)
    both = OpenMap(map_of(base), added.placemap())
    assert both.to_places(every).tolist() == [model.get(vbn, vbn) for vbn in every.tolist()]
    extents = np.array([(start, start + n) for start, n in spans], np.int64).reshape(-1, 2)
    found = [n for start, stop in both.extents_to_places(extents).tolist() for n in range(start, stop)]
    assert found == [model.get(vbn, vbn) for start, n in spans for vbn in range(start, start + n)]
    assert [added.place_of(vbn) for vbn in every.tolist()] == [rest.get(vbn, vbn) for vbn in every.tolist()]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=90))
def test_a_leaf_of_many_ranges(gaps):
    ranges, at = [], 0
    for gap, n in gaps:
        ranges.append((at + gap, at + gap + n))
        at += gap + n
    expected = np.zeros(LEAF_WORDS, np.uint64)
    set_numbers(expected, np.array([n for a, b in ranges for n in range(a, b)], np.int64))
    assert (range_leaf(np.array(ranges, np.int64).reshape(-1, 2)) == expected).all()
