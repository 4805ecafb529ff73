"""Planes of both forms and widths beside Python sets."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pyroaring import BitMap, BitMap64

from blockplane.model import ReadOnlyError
from blockplane.planes import Form, Plane, combine, combine_count, portable
from blockplane.planes.roaring import WINDOW_BLOCKS, RoaringBits

FORMS = list(Form)
#: One word, tails, several containers, several windows, and past 2**32 (Roaring only: dense words would fill memory).
SPACES = [0, 1, 63, 64, 65, 1000, 65_536, 65_537, 200_003, WINDOW_BLOCKS + 77, 2 * WINDOW_BLOCKS]
WIDE = (1 << 32) + 200_003


def positions(n_blocks: int):
    """Positions that lie near borders of words, containers and windows more often than not."""
    borders = [0, 64, 128, 65_536, 131_072, WINDOW_BLOCKS, 1 << 32, (1 << 32) + 65_536, n_blocks]
    near = [b + d for b in borders for d in (-65, -64, -63, -2, -1, 0, 1, 2, 63) if 0 <= b + d <= n_blocks]
    return st.one_of(st.sampled_from(near), st.integers(0, n_blocks))


def short_ranges(n_blocks: int):
    """Ranges that a Python set can hold."""
    return st.tuples(positions(n_blocks), st.integers(0, 200)).map(lambda r: (r[0], min(r[0] + r[1], n_blocks)))


def members(ranges) -> set[int]:
    return {n for start, stop in ranges for n in range(start, stop)}


def make(ranges, n_blocks: int, form: Form) -> Plane:
    plane = Plane.empty(n_blocks, form)
    for start, stop in ranges:
        plane.add(start, stop)
    return plane


def blocks_of(plane: Plane) -> set[int]:
    return members(plane.extents().tolist())


def runs_of(numbers: set[int]) -> list[list[int]]:
    ordered = sorted(numbers)
    cuts = [0, *(i for i, (a, b) in enumerate(pairwise(ordered), 1) if b != a + 1), len(ordered)]
    return [[ordered[a], ordered[b - 1] + 1] for a, b in pairwise(cuts) if a < b]


class BesideASet(RuleBasedStateMachine):
    """One plane and one set, changed alike."""

    form: ClassVar[Form]
    spaces: ClassVar[list[int]]

    @initialize(data=st.data())
    def start(self, data):
        self.n_blocks = data.draw(st.sampled_from(self.spaces))
        self.plane = Plane.empty(self.n_blocks, self.form)
        self.model: set[int] = set()

    @rule(data=st.data(), value=st.booleans())
    def change_a_range(self, data, value):
        start, stop = data.draw(short_ranges(self.n_blocks))
        if value:
            self.plane.add(start, stop)
            self.model |= set(range(start, stop))
        else:
            self.plane.remove(start, stop)
            self.model -= set(range(start, stop))

    @precondition(lambda self: self.n_blocks)
    @rule(data=st.data(), value=st.booleans())
    def change_many(self, data, value):
        numbers = data.draw(st.lists(positions(self.n_blocks - 1), max_size=50))
        change = self.plane.add_many if value else self.plane.remove_many
        changed = set(numbers) - self.model if value else set(numbers) & self.model
        assert change(numbers) == len(numbers) - len(changed)
        self.model ^= changed

    @precondition(lambda self: self.n_blocks)
    @rule(data=st.data())
    def put_words(self, data):
        first = data.draw(positions(self.n_blocks - 1)) // 64
        words = np.array(data.draw(st.lists(st.sampled_from([0, 1, 2**63, 2**64 - 1, 0xF0F0]), max_size=5)), np.uint64)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        new = {first * 64 + int(i) for i in np.flatnonzero(bits)}
        if max(new, default=0) >= self.n_blocks:
            with pytest.raises(ValueError, match="outside"):
                self.plane.set_words(first, words)
            return
        self.plane.set_words(first, words)
        self.model = {n for n in self.model if not first * 64 <= n < first * 64 + len(bits)} | new

    @rule(data=st.data())
    def look_at_a_range(self, data):
        start, stop = sorted((data.draw(positions(self.n_blocks)), data.draw(positions(self.n_blocks))))
        inside = {n for n in self.model if start <= n < stop}
        assert self.plane.count(start, stop) == len(inside)
        assert self.plane.extents(start, stop).tolist() == runs_of(inside)
        assert self.plane.rank(stop) == len([n for n in self.model if n < stop])

    @rule(data=st.data())
    def look_at_numbers(self, data):
        numbers = data.draw(st.lists(positions(self.n_blocks + 10), max_size=20))
        assert self.plane.contains_many(numbers).tolist() == [n in self.model for n in numbers]
        assert [n in self.plane for n in numbers] == [n in self.model for n in numbers]
        assert -1 not in self.plane

    @rule(data=st.data(), n_words=st.integers(0, 40))
    def look_at_words(self, data, n_words):
        first = data.draw(positions(self.n_blocks)) // 64
        expected = [sum(1 << i for i in range(64) if (first + k) * 64 + i in self.model) for k in range(n_words)]
        assert self.plane.word_range(first, n_words).tolist() == expected

    @rule(max_extents=st.integers(1, 4))
    def look_piece_by_piece(self, max_extents):
        pieces = list(self.plane.iter_extents(max_extents))
        assert all(0 < len(piece) <= max_extents for piece in pieces)
        assert [extent for piece in pieces for extent in piece.tolist()] == runs_of(self.model)

    @rule(data=st.data(), min_blocks=st.integers(0, 300), max_extents=st.integers(1, 4))
    def look_for_room(self, data, min_blocks, max_extents):
        start, stop = sorted((data.draw(positions(self.n_blocks)), data.draw(positions(self.n_blocks))))
        edges = [start, *(edge for run in runs_of({n for n in self.model if start <= n < stop}) for edge in run), stop]
        gaps = [[a, b] for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a >= max(1, min_blocks)]
        found = self.plane.free_extents(start, stop, min_blocks=min_blocks, max_extents=max_extents)
        assert found.tolist() == gaps[:max_extents]

    @rule(index=st.integers(-1, 300))
    def look_for_an_index(self, index):
        if 0 <= index < len(self.model):
            assert self.plane.select(index) == sorted(self.model)[index]
        else:
            with pytest.raises(IndexError):
                self.plane.select(index)

    @rule()
    def travel(self):
        again = Plane.deserialize(self.plane.serialize(), self.n_blocks)
        assert blocks_of(again) == self.model
        assert again == self.plane

    @rule()
    def copies_are_independent(self):
        copy = self.plane.copy()
        assert copy.form == self.plane.form
        if self.n_blocks:
            copy.add(0, 1)
            copy.remove(0, 1)
        assert blocks_of(self.plane) == self.model

    @invariant()
    def counts(self):
        if hasattr(self, "plane"):
            assert len(self.plane) == len(self.model)
            assert bool(self.plane) == bool(self.model)

    def teardown(self):
        if hasattr(self, "plane"):
            assert blocks_of(self.plane) == self.model


class DenseBesideASet(BesideASet):
    form = Form.DENSE
    spaces: ClassVar = SPACES


class RoaringBesideASet(BesideASet):
    form = Form.ROARING
    spaces: ClassVar = [*SPACES, 1 << 32, WIDE]


_STEPS = settings(stateful_step_count=25)
TestDense = DenseBesideASet.TestCase
TestDense.settings = _STEPS
TestRoaring = RoaringBesideASet.TestCase
TestRoaring.settings = _STEPS


# -- algebra


@st.composite
def expressions(draw, spaces):
    """Operands of any form and of several spaces, each with its set."""

    def operand():
        n_blocks = draw(st.sampled_from(spaces))
        ranges = draw(st.lists(short_ranges(n_blocks), max_size=5))
        # Dense words of a wide space would fill memory.
        form = Form.ROARING if n_blocks > 1 << 30 else draw(st.sampled_from(FORMS))
        return make(ranges, n_blocks, form), members(ranges)

    plus = [operand() for _ in range(draw(st.integers(1, 4)))]
    minus = operand() if draw(st.booleans()) else (None, set())
    within = operand() if draw(st.booleans()) else (None, None)
    expected = set().union(*(blocks for _, blocks in plus)) - minus[1]
    if within[1] is not None:
        expected &= within[1]
    return [plane for plane, _ in plus], minus[0], within[0], expected


def check_expression(plus, minus, within, expected):
    result = combine(plus, minus, within)
    assert blocks_of(result) == expected
    assert len(result) == combine_count(plus, minus, within) == len(expected)
    assert result.n_blocks == max(plane.n_blocks for plane in plus)
    return result


@given(expressions([1000, 65_537, WINDOW_BLOCKS + 77, 2 * WINDOW_BLOCKS]))
def test_combine(expression):
    check_expression(*expression)


@given(expressions([1000, 65_537, 1 << 32, WIDE]))
def test_combine_across_2_to_the_32(expression):
    plus, minus, within, expected = expression
    if any(plane.form is Form.DENSE for plane in plus) and any(plane.n_blocks > 1 << 30 for plane in plus):
        plus = [plane.to_roaring() for plane in plus]
        within = within and within.to_roaring() if within is not None else None
        minus = minus.to_roaring() if minus is not None else None
    check_expression(plus, minus, within, expected)


@given(expressions([1000, 65_537, WINDOW_BLOCKS + 77]), st.sampled_from(FORMS), st.booleans())
def test_combine_into_a_plane(expression, form, dirty):
    plus, minus, within, expected = expression
    out = Plane.empty(WINDOW_BLOCKS + 77, form)
    if dirty:
        out.add(5, out.n_blocks)
    assert combine(plus, minus, within, out) is out
    assert (out.form, out.n_blocks) == (form, WINDOW_BLOCKS + 77)
    assert blocks_of(out) == expected
    assert len(out) == len(expected)


@given(expressions([200_003]), st.data())
def test_combine_into_an_operand(expression, data):
    plus, minus, within, expected = expression
    out = data.draw(st.sampled_from([plane for plane in (*plus, minus, within) if plane is not None]))
    combine(plus, minus, within, out)
    assert blocks_of(out) == expected


@pytest.mark.parametrize("piece_words", [1, 3, 64])
def test_pieces_that_all_cores_share(rng, monkeypatch, piece_words):
    monkeypatch.setattr("blockplane.planes.expression.PIECE_WORDS", piece_words)
    n_words = 200
    words = [rng.integers(0, 2**64, n_words, np.uint64) for _ in range(5)]
    a, b, c, minus, within = (Plane.from_words(some, n_words * 64) for some in words)
    expected = (words[0] | words[1] | words[2]) & ~words[3] & words[4]
    n_expected = int(np.bitwise_count(expected).sum())
    assert combine_count([a, b, c], minus, within) == n_expected
    assert np.array_equal(combine([a, b, c], minus, within).words(), expected)
    assert np.array_equal((a ^ b).words(), words[0] ^ words[1])
    result = combine([a, b, c], minus, within, out=b)  # in place
    assert np.array_equal(result.words(), expected)
    assert len(result) == n_expected
    shifted = np.zeros(n_words + 5, np.uint64)
    with pytest.raises(ValueError, match="overlaps an operand in part"):
        combine([Plane.from_words(shifted[5:], n_words * 64)], out=Plane.from_words(shifted[:-5], n_words * 64))


@given(expressions([1000, 65_537, WINDOW_BLOCKS + 77]))
def test_operators(expression):
    plus, minus, _, _ = expression
    a, b = plus[0], minus if minus is not None else plus[-1]
    x, y = blocks_of(a), blocks_of(b)
    for operator, expected in (("or", x | y), ("sub", x - y), ("and", x & y), ("xor", x ^ y)):
        assert blocks_of(getattr(a, f"__{operator}__")(b)) == expected
        target = make([], max(a.n_blocks, b.n_blocks), a.form) | a
        before = target.form
        assert getattr(target, f"__i{operator}__")(b) is target
        assert blocks_of(target) == expected
        assert target.form is before
    assert blocks_of(a) == x
    assert blocks_of(b) == y
    assert (a == b) == (x == y)


def test_a_result_of_one_summand_is_a_plane_of_its_own():
    for form in FORMS:
        plane = make([(3, 9)], 1000, form)
        result = combine([plane])
        result.add(500, 600)
        assert blocks_of(plane) == set(range(3, 9))


def test_an_expression_needs_a_summand_and_room():
    with pytest.raises(ValueError, match="without a summand"):
        combine([])
    with pytest.raises(ValueError, match="do not fit"):
        combine([Plane.empty(1000)], out=Plane.empty(999))


@pytest.mark.parametrize("form", FORMS)
def test_random_planes(rng, form):
    n_blocks = WINDOW_BLOCKS + 1001
    masks = [rng.random(n_blocks) < density for density in (0.5, 0.01, 0.0001, 0.3)]
    a, b, c, d = (Plane.empty(n_blocks, form) for _ in masks)
    for plane, mask in zip((a, b, c, d), masks, strict=True):
        assert plane.add_many(rng.permutation(np.flatnonzero(mask))) == 0
        assert len(plane) == int(mask.sum())
    expected = (masks[0] | masks[1] | masks[2]) & ~masks[3]
    result = combine([a, b, c], minus=d)
    numbers = np.flatnonzero(expected)
    assert len(result) == len(numbers)
    assert result.contains_many(numbers).all()
    extents, edges = result.extents(), np.zeros(n_blocks + 1, np.int8)
    edges[extents[:, 0]], edges[extents[:, 1]] = 1, -1
    assert np.array_equal(np.cumsum(edges[:-1], dtype=np.int8).astype(bool), expected)
    assert result.select(len(numbers) // 2) == numbers[len(numbers) // 2]


# -- making, forms, files


@given(st.data(), st.sampled_from([1000, 200_003, 2 * WINDOW_BLOCKS, WIDE]))
def test_from_extents_in_any_order(data, n_blocks):
    ranges = data.draw(st.lists(short_ranges(n_blocks), max_size=10))
    assert blocks_of(Plane.from_extents(ranges, n_blocks)) == members(ranges)


def test_from_many_extents(rng):
    n_blocks = 3 * WINDOW_BLOCKS + 5
    starts = rng.integers(0, n_blocks - 3000, 5000)
    extents = np.stack([starts, starts + rng.integers(0, 3000, 5000)], axis=1)
    extents[0] = [WINDOW_BLOCKS - 5, 2 * WINDOW_BLOCKS + 5]
    mask = np.zeros(n_blocks, bool)
    for start, stop in extents.tolist():
        mask[start:stop] = True
    plane = Plane.from_extents(extents, n_blocks)
    assert len(plane) == int(mask.sum())
    assert plane == Plane.from_words(
        np.packbits(np.append(mask, [False] * 59), bitorder="little").view(np.uint64), n_blocks
    )


@pytest.mark.parametrize("bad", [[[-1, 3]], [[0, 1001]], [[5, 4]], [[1, 2, 3]], [1, 2]])
def test_from_bad_extents(bad):
    with pytest.raises(ValueError, match="extent"):
        Plane.from_extents(bad, 1000)


def test_the_cheapest_form():
    n_blocks = 1 << 24
    assert Plane.from_extents([[0, n_blocks]], n_blocks).form is Form.ROARING
    every_other = np.arange(0, n_blocks, 2)
    assert Plane.from_extents(np.stack([every_other, every_other + 1], axis=1), n_blocks).form is Form.DENSE


@given(st.data(), st.sampled_from([1000, 65_536, 200_003, 2 * WINDOW_BLOCKS]))
def test_builder(data, n_blocks):
    plane = make(data.draw(st.lists(short_ranges(n_blocks), max_size=6)), n_blocks, Form.DENSE)
    builder, at, n_words = Plane.builder(n_blocks), 0, -(-n_blocks // 64)
    steps = st.sampled_from([1, 7, 512, 1024, 5000, WINDOW_BLOCKS // 64])
    while at < n_words:
        step = data.draw(steps)
        words = plane.word_range(at, step)
        # A leaf of zeros may be left out.
        if words.any() or data.draw(st.booleans()):
            builder.append(at, words)
        at += max(step, n_words // 10)
        plane.remove(min((at - max(step, n_words // 10) + step) * 64, n_blocks), min(at * 64, n_blocks))
    assert builder.finish() == plane


def test_a_builder_refuses_what_does_not_follow():
    builder = Plane.builder(1000)
    builder.append(3, np.array([5, 6], np.uint64))
    for first in (0, 3, 4):
        with pytest.raises(ValueError, match="does not follow"):
            builder.append(first, np.array([1], np.uint64))
    with pytest.raises(ValueError, match="past the 1000 blocks"):
        builder.append(15, np.array([1 << 40], np.uint64))
    with pytest.raises(ValueError, match="past the 1000 blocks"):
        builder.append(16, np.array([1], np.uint64))
    builder.append(15, np.array([1, 0, 0], np.uint64))
    assert builder.finish().extents().tolist() == [[192, 193], [194, 195], [257, 259], [960, 961]]


def test_words_are_judged():
    with pytest.raises(ValueError, match="words; a plane"):
        Plane.from_words(np.zeros(3, np.uint64), 64)
    with pytest.raises(ValueError, match="past the 63 blocks"):
        Plane.from_words(np.array([1 << 63], np.uint64), 63)
    with pytest.raises(ValueError, match="uint64"):
        Plane.from_words(np.zeros(1, np.int64), 64)
    with pytest.raises(ValueError, match="not contiguous"):
        Plane.from_words(np.zeros(4, np.uint64)[::2], 128)
    assert len(Plane.from_words(np.array([2**63 - 1], np.uint64), 63)) == 63


def test_bitmaps_are_judged_and_fit():
    with pytest.raises(ValueError, match="block 1000 lies outside"):
        Plane.from_roaring(BitMap([1, 1000]), 1000)
    assert isinstance(Plane.from_roaring(BitMap([5]), WIDE).roaring(), BitMap64)
    assert isinstance(Plane.from_roaring(BitMap64([5]), 1000).roaring(), BitMap)
    assert isinstance(Plane.from_roaring(BitMap64(), 1000).roaring(), BitMap)


def test_words_given_out_cannot_be_changed():
    plane = Plane.empty(1000, Form.DENSE)
    for words in (plane.words(), plane.word_range(0, 3)):
        with pytest.raises(ValueError, match="read-only"):
            words[0] = 1


def test_a_mapped_plane(tmp_path):
    path = tmp_path / "active"
    plane = Plane.open(path, 1001, "w+")
    plane.add(3, 999)
    plane.flush()
    assert path.stat().st_size == 16 * 8
    again = Plane.open(path, 1001, "r")
    assert again.extents().tolist() == [[3, 999]]
    assert combine([again], minus=plane).form is Form.DENSE
    for change in (lambda: again.add(0, 1), lambda: again.add_many([1]), lambda: combine([plane], out=again)):
        with pytest.raises(ReadOnlyError):
            change()
    Plane.open(path, 1001, "r+").remove(3, 500)
    assert len(Plane.open(path, 1001, "r")) == 499
    with pytest.raises(ValueError, match="128 bytes"):
        Plane.open(path, 2000, "r")
    with pytest.raises(ValueError, match="past the 990 blocks"):
        Plane.open(path, 990, "r")
    with pytest.raises(FileNotFoundError):
        Plane.open(tmp_path / "none", 1001, "r")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("start", "stop"), [(-1, 5), (5, 4), (0, 1001), (1001, 1001)])
def test_ranges_are_judged(form, start, stop):
    plane = Plane.empty(1000, form)
    for call in (plane.add, plane.remove, plane.count, plane.extents):
        with pytest.raises(ValueError, match="not a range"):
            call(start, stop)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [-1, 1000, 2**40])
def test_numbers_outside_change_nothing(form, number):
    plane = make([(5, 7)], 1000, form)
    for change in (plane.add_many, plane.remove_many):
        with pytest.raises(ValueError, match="outside"):
            change([1, 6, number])
    assert blocks_of(plane) == {5, 6}


def test_planes_have_no_hash_and_differ_from_other_things():
    with pytest.raises(TypeError):
        hash(Plane.empty(5))
    assert Plane.empty(5) != {1}
    assert Plane.empty(5) == Plane.empty(70, Form.DENSE)
    assert make([(0, 3)], 5, Form.DENSE) == make([(0, 3)], 99, Form.ROARING)
    assert make([(0, 3)], 5, Form.DENSE) != make([(1, 4)], 5, Form.DENSE)


def test_a_window_is_decoded_as_far_as_it_is_wanted(rng):
    """A plane of few blocks does not cost a window's 512 KiB."""
    numbers = np.sort(rng.choice(100_000, 50, replace=False)).astype(np.int64)
    bits = RoaringBits.from_portable(portable.from_numbers(numbers, wide=False).tobytes(), 1 << 23)
    windows = bits.windows()
    whole = windows.window(0).copy()
    assert windows.head(0).size == (int(numbers[-1]) // 65536 + 1) * 1024
    assert (windows.head(0) == whole[: windows.head(0).size]).all()
    for n_words in (1, 1000, 1024, 1025, 3000):
        words = windows.window(0, n_words)
        assert (words.tolist() if words is not None else [0] * n_words) == whole[:n_words].tolist()
    assert windows.window(1 << 16) is None
