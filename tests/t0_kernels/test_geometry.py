"""Places and disks: the kernels against the formula of the format, place by place."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockplane._native import geometry as kernel
from blockplane.disks.geometry import Geometry, GroupRecord

FAR = np.iinfo(np.int64).max


def home_of(groups: list[GroupRecord], place: int) -> tuple[int, int]:
    """The format's formula."""
    for group in groups:
        if group.first <= place < group.stop:
            off = place - group.first
            row = off // (group.chunk_blocks * group.n_data)
            data_disk = off // group.chunk_blocks % group.n_data
            return group.disks[data_disk], row * group.chunk_blocks + off % group.chunk_blocks
    raise IndexError(place)


@st.composite
def group_lists(draw, max_groups: int = 3) -> list[GroupRecord]:
    groups: list[GroupRecord] = []
    first, disks = 0, 0
    for _ in range(draw(st.integers(1, max_groups))):
        n_data, n_parity = draw(st.integers(1, 5)), draw(st.integers(0, 2))
        chunk = 64 * draw(st.integers(1, 3))
        disk_blocks = chunk * draw(st.integers(1, 5))
        first += 65536 * draw(st.integers(0, 2))
        indexes = tuple(range(disks, disks + n_data + n_parity))
        groups.append(GroupRecord(first, n_data, n_parity, chunk, disk_blocks, indexes))
        disks += n_data + n_parity
        first = -(-groups[-1].stop // 65536) * 65536
    order = draw(st.permutations(range(disks)))
    return [
        GroupRecord(g.first, g.n_data, g.n_parity, g.chunk_blocks, g.disk_blocks, tuple(order[d] for d in g.disks))
        for g in groups
    ]


@st.composite
def extents_in(draw, groups: list[GroupRecord]) -> np.ndarray:
    extents = []
    for _ in range(draw(st.integers(0, 6))):
        group = draw(st.sampled_from(groups))
        start = draw(st.integers(group.first, group.stop - 1))
        extents.append((start, draw(st.integers(start, group.stop))))
    return np.array(extents, dtype=np.int64).reshape(-1, 2)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_places_to_disks_and_back(data):
    groups = data.draw(group_lists())
    geometry = Geometry(groups)
    every = np.concatenate([np.arange(g.first, g.stop) for g in groups])
    places = data.draw(
        st.lists(st.sampled_from(every.tolist()), max_size=40).map(lambda p: np.array(p, dtype=np.int64))
    )
    disk, dbn = geometry.to_disk(places)
    assert list(zip(disk.tolist(), dbn.tolist(), strict=True)) == [home_of(groups, place) for place in places.tolist()]
    assert geometry.from_disk(disk, dbn).tolist() == places.tolist()
    for place in places[:5].tolist():
        assert geometry.locate(place, place + 1) == home_of(groups, place)


def slots_of(groups: list[GroupRecord], extents: np.ndarray, n_stripes: int) -> list[tuple[int, int, int]]:
    """Group, band and slot of every place, one by one."""
    found = []
    for place in (place for start, stop in extents.tolist() for place in range(start, stop)):
        index = next(i for i, group in enumerate(groups) if group.first <= place < group.stop)
        disk, dbn = home_of(groups, place)
        base = dbn // n_stripes * n_stripes
        rows = min(n_stripes, groups[index].disk_blocks - base)
        found.append((index, dbn // n_stripes, groups[index].disks.index(disk) * rows + dbn - base))
    return found


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_extents_fall_in_bands_slot_by_slot(data):
    groups = data.draw(group_lists())
    extents, n_stripes = data.draw(extents_in(groups)), data.draw(st.sampled_from([1, 64, 100, 256, 1 << 40]))
    found = Geometry(groups).split_bands(extents, n_stripes)
    slots = [(group, band, first + i) for group, band, first, count in found for i in range(count)]
    assert slots == slots_of(groups, extents, n_stripes)
    joined = [a[:2] == b[:2] and a[2] + a[3] == b[2] for a, b in itertools.pairwise(found)]
    assert not any(joined)


def test_bands_of_what_lies_nowhere():
    geometry = Geometry([GroupRecord(0, 2, 1, 64, 128, (0, 1, 2)), GroupRecord(65536, 1, 0, 64, 64, (3,))])
    for start, stop in [(0, 257), (256, 257), (65600, 65601), (-1, 0), (5, 4), (FAR - 1, FAR)]:
        with pytest.raises(IndexError, match="outside every group"):
            geometry.split_bands(np.array([[0, 5], [start, stop]], np.int64), 256)
    rows, members = np.array([[0, 2, 1, 64, 128, 0]], np.int64), np.arange(3, dtype=np.int64)
    extents, out = np.array([[0, 129]], np.int64), np.zeros((2, 4), np.int64)
    assert kernel.split_bands(rows, members, extents, 64, out[:1]) == 2
    assert kernel.split_bands(rows, members, extents, 64, out) == 2
    assert out.tolist() == [[0, 0, 0, 128], [0, 1, 0, 1]], "the disks of a band follow each other"
    with pytest.raises(ValueError, match="bands of 0 stripes"):
        kernel.split_bands(rows, members, extents, 0, out)


@given(group_lists())
@settings(max_examples=30, deadline=None)
def test_every_block_of_every_data_disk_has_one_place(groups):
    every = np.concatenate([np.arange(g.first, g.stop, dtype=np.int64) for g in groups])
    disk, dbn = Geometry(groups).to_disk(every)
    homes = set(zip(disk.tolist(), dbn.tolist(), strict=True))
    assert len(homes) == len(every)
    assert homes == {(d, b) for g in groups for d in g.disks[: g.n_data] for b in range(g.disk_blocks)}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_extents_are_cut_where_the_disk_changes(data):
    groups = data.draw(group_lists())
    extents = data.draw(extents_in(groups))
    pieces = Geometry(groups).split(extents)
    expected = [home_of(groups, place) for start, stop in extents.tolist() for place in range(start, stop)]
    found: list[tuple[int, int]] = []
    for disk, dbn, n_blocks, position in zip(*(column.tolist() for column in pieces), strict=True):
        assert position == len(found)
        assert n_blocks > 0
        found += [(disk, dbn + i) for i in range(n_blocks)]
    assert found == expected
    if extents.shape[0] == 1:
        start, stop = extents[0].tolist()
        whole = Geometry(groups).locate(start, stop)
        assert (whole is not None) == (len(pieces.disk) <= 1) or start == stop


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_window_extents(data):
    groups = data.draw(group_lists(max_groups=2))
    index = data.draw(st.integers(0, len(groups) - 1))
    group = groups[index]
    total_words = group.n_blocks // 64
    first_word = data.draw(st.integers(0, total_words))
    n_words = data.draw(st.integers(0, total_words - first_word))
    word = st.one_of(st.sampled_from([0, 1, 2**63, 2**64 - 1, 2**64 - 2, 2**63 - 1]), st.integers(0, 2**64 - 1))
    words = np.array(data.draw(st.lists(word, min_size=n_words, max_size=n_words)), dtype=np.uint64)
    first = group.first + 64 * first_word
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    members = [first + int(i) for i in np.flatnonzero(bits)]
    for merge in (True, False):
        found = Geometry(groups).window_extents(index, first, words, merge=merge)
        assert len(found) == group.n_data
        for d, extents in enumerate(found):
            mine = sorted(home_of(groups, p)[1] for p in members if home_of(groups, p)[0] == group.disks[d])
            listed = []
            previous_stop = -1
            for dbn, n_blocks, place in zip(*(column.tolist() for column in extents), strict=True):
                assert home_of(groups, place) == (group.disks[d], dbn)
                if merge:
                    assert dbn > previous_stop
                else:
                    assert dbn // group.chunk_blocks == (dbn + n_blocks - 1) // group.chunk_blocks or group.n_data == 1
                previous_stop = dbn + n_blocks
                listed += range(dbn, dbn + n_blocks)
            assert listed == mine


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_busy_stripes(data):
    groups = data.draw(group_lists(max_groups=2))
    index = data.draw(st.integers(0, len(groups) - 1))
    group = groups[index]
    geometry = Geometry(groups)
    words = np.random.default_rng(data.draw(st.integers(0, 99))).integers(
        0, 2**63, geometry.n_blocks // 64, dtype=np.uint64
    )
    words[data.draw(st.integers(0, 7)) :: 2] = 0
    start = 64 * data.draw(st.integers(0, group.disk_blocks // 64))
    n_stripes = 64 * data.draw(st.integers(0, (group.disk_blocks - start) // 64))
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    per_disk = np.zeros((group.n_data, group.disk_blocks), dtype=np.uint8)
    for place in range(group.first, group.stop):
        disk, dbn = home_of(groups, place)
        per_disk[group.disks.index(disk), dbn] = bits[place]
    per_disk = per_disk[:, start : start + n_stripes]

    def word_range(first_word: int, n_words: int) -> np.ndarray:
        return words[first_word : first_word + n_words]

    found = geometry.disk_words(word_range, index, start, n_stripes)
    assert (np.unpackbits(np.ascontiguousarray(found).view(np.uint8), axis=1, bitorder="little") == per_disk).all()
    busy = geometry.stripe_busy(word_range, index, start, n_stripes)
    assert (np.unpackbits(busy.view(np.uint8), bitorder="little") == per_disk.any(axis=0)).all()
    places = geometry.band_places(index, start, n_stripes)
    assert (bits[places] == per_disk).all()


def test_busy_stripes_kernel_adds():
    words = np.array([1, 2, 4, 8, 16, 32], dtype=np.uint64)
    out = np.array([64, 0], dtype=np.uint64)
    kernel.stripe_busy(words, 3, 1, out)
    assert out.tolist() == [64 + 7, 56]
    out = np.zeros(2, dtype=np.uint64)
    kernel.stripe_busy(words, 3, 2, out)
    assert out.tolist() == [1 + 4 + 16, 2 + 8 + 32]


def test_places_outside_are_named():
    geometry = Geometry([GroupRecord(0, 2, 0, 64, 128, (0, 1)), GroupRecord(131072, 1, 1, 64, 64, (2, 3))])
    for place in (-1, 256, 65536, 131071, 131136, FAR):
        with pytest.raises(IndexError, match=f"place {place} "):
            geometry.to_disk(np.array([0, place], dtype=np.int64))
        with pytest.raises(IndexError, match="lie outside"):
            geometry.split(np.array([[0, 1], [place, max(place, place + 1)] if place < FAR else [place, place - 1]]))
        with pytest.raises(IndexError):
            geometry.group_of(place)
    for disk, dbn in ((3, 0), (4, 0), (-1, 0), (0, 128), (0, -1), (2, 64)):
        with pytest.raises(IndexError, match="has no place"):
            geometry.from_disk(np.array([disk], dtype=np.int64), np.array([dbn], dtype=np.int64))
    with pytest.raises(IndexError):
        geometry.split(np.array([[200, 300]], dtype=np.int64))
    with pytest.raises(IndexError):
        geometry.split(np.array([[10, 5]], dtype=np.int64))


def test_numbers_past_16_tib():
    disk_blocks = 1 << 34
    geometry = Geometry([GroupRecord(0, 4, 1, 64, disk_blocks, (0, 1, 2, 3, 4))])
    place = 4 * disk_blocks - 1
    disk, dbn = geometry.to_disk(np.array([place], dtype=np.int64))
    assert (disk[0], dbn[0]) == (3, disk_blocks - 1)
    assert geometry.from_disk(disk, dbn)[0] == place
    pieces = geometry.split(np.array([[place - 70, place + 1]], dtype=np.int64))
    assert pieces.disk.tolist() == [2, 3]
    assert pieces.n_blocks.tolist() == [7, 64]


@pytest.mark.parametrize(
    "row",
    [
        (0, 0, 0, 64, 64, 0),
        (0, 1, 0, 65, 130, 0),
        (0, 1, 0, 64, 96, 0),
        (0, 1, 0, 128, 64, 0),
        (0, 2, 0, 64, 64, 0),
        (0, 1, 0, 64, 64, -1),
        (-64, 1, 0, 64, 64, 0),
        (0, 2**40, 0, 64, 64, 0),
        (0, 1, 0, 64, 2**60, 0),
    ],
)
def test_the_group_table_is_checked(row):
    rows, members = np.array([row], dtype=np.int64), np.zeros(1, dtype=np.int64)
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="groups: row 0"):
        kernel.to_disk(rows, members, one, one.copy(), one.copy())


def test_overlapping_groups_are_refused():
    rows = np.array([(0, 1, 0, 64, 128, 0), (64, 1, 0, 64, 64, 1)], dtype=np.int64)
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="groups: row 1 begins inside"):
        kernel.to_disk(rows, np.arange(2), one, one.copy(), one.copy())


def test_memory_gates():
    geometry = Geometry([GroupRecord(0, 2, 0, 64, 128, (0, 1))])
    with pytest.raises(ValueError, match="ends beyond"):
        geometry.window_extents(0, 192, np.zeros(2, dtype=np.uint64))
    with pytest.raises(ValueError, match="does not begin"):
        geometry.window_extents(0, 63, np.zeros(1, dtype=np.uint64))
    with pytest.raises(ValueError, match="whole words"):
        geometry.disk_words(lambda first, n: np.zeros(n, dtype=np.uint64), 0, 64, 128)
    with pytest.raises(ValueError, match="whole rows"):
        kernel.disk_words(np.zeros(3, dtype=np.uint64), 1, np.zeros((2, 2), dtype=np.uint64))
    with pytest.raises(ValueError, match="whole rows"):
        kernel.stripe_busy(np.zeros(4, dtype=np.uint64), 2, 4, np.zeros(2, dtype=np.uint64))
    row = np.array((0, 2, 0, 64, 128, 0), dtype=np.int64)
    words = np.full(2, 1, dtype=np.uint64)
    empty = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="counts"):
        kernel.window_extents(row, 0, words, True, np.zeros(2, dtype=np.int64), empty, empty.copy(), empty.copy())
