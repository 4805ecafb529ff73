"""Plane algebra beside NumPy, pyroaring and a plain read of the same memory.

    python -m pytest bench/bench_planes.py --benchmark-enable          (sizes that pass in seconds)
    BENCH_FULL=1 python -m pytest bench/bench_planes.py --benchmark-enable   (2**30 and 2**32 blocks: 3 GiB of memory)

Within a group compare `per GB/s` of extra_info: bytes moved over the median. `test_ratios` prints the ratios that are
promised, each the median of 5 interleaved pairs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
from pyroaring import BitMap

from blockplane._native import algebra
from blockplane.planes import Form, Plane, combine, combine_count
from blockplane.planes.words import allocate_words

FULL = os.environ.get("BENCH_FULL", "0") == "1"
DENSE_BLOCKS = [1 << 30, 1 << 32] if FULL else [1 << 24]
ROARING_BLOCKS = 1 << 32 if FULL else 1 << 24
N_OPERANDS = 4
PAIRS = 5


class Operands:
    """Four random dense planes, their result and a target."""

    def __init__(self, n_blocks: int) -> None:
        rng = np.random.default_rng(n_blocks)
        n_words = n_blocks // 64
        self.words = []
        for _ in range(N_OPERANDS):
            words = allocate_words(n_words)
            words[:] = np.resize(rng.integers(0, 2**64, min(n_words, 1 << 17), np.uint64), n_words)
            self.words.append(words)
        self.planes = [Plane.from_words(words, n_blocks) for words in self.words]
        self.out = Plane.empty(n_blocks, Form.DENSE)
        self.out.add(0, n_blocks)  # existing: its pages are there
        self.n_bytes = n_words * 8
        a, b, c, d = (words[: 1 << 17] for words in self.words)
        self.count = int(np.bitwise_count((a | b | c) & ~d).sum()) * max(1, n_words >> 17)


@pytest.fixture(scope="module", params=DENSE_BLOCKS, ids=lambda n: f"2^{n.bit_length() - 1}")
def operands(request):
    return Operands(request.param)


def count_fused(operands: Operands) -> int:
    a, b, c, d = operands.planes
    return combine_count([a, b, c], minus=d)


def count_numpy(operands: Operands) -> int:
    a, b, c, d = operands.words
    return int(np.bitwise_count((a | b | c) & ~d).sum())


def read_plainly(operands: Operands) -> int:
    return sum(algebra.read(words) for words in operands.words)


def write_fused(operands: Operands) -> int:
    a, b, c, d = operands.planes
    return len(combine([a, b, c], minus=d, out=operands.out))


def record(benchmark, operands: Operands, n_planes: int) -> None:
    benchmark.extra_info.update(kernel=algebra.kernel_name(), n_bytes=operands.n_bytes * n_planes)
    if benchmark.stats:
        benchmark.extra_info["GB/s"] = round(operands.n_bytes * n_planes / benchmark.stats["median"] / 1e9, 2)


@pytest.mark.benchmark(group="a + b + c - d, dense, counted")
@pytest.mark.parametrize("how", [count_fused, count_numpy], ids=["fused", "numpy"])
def test_count(benchmark, operands, how):
    assert benchmark(how, operands) == operands.count
    record(benchmark, operands, N_OPERANDS)


@pytest.mark.benchmark(group="a + b + c - d, dense, counted")
def test_plain_read(benchmark, operands):
    assert benchmark(read_plainly, operands) == sum(int(np.bitwise_xor.reduce(words)) for words in operands.words)
    record(benchmark, operands, N_OPERANDS)


@pytest.mark.benchmark(group="a + b + c - d, dense, into a plane")
def test_write_fused(benchmark, operands):
    assert benchmark(write_fused, operands) == operands.count
    record(benchmark, operands, N_OPERANDS + 1)


@pytest.mark.benchmark(group="a + b + c - d, dense, into a plane")
def test_write_numpy(benchmark, operands):
    a, b, c, d = operands.words
    out, scratch = allocate_words(a.size), allocate_words(a.size)

    def write() -> int:
        np.bitwise_or(a, b, out=out)
        np.bitwise_or(out, c, out=out)
        np.invert(d, out=scratch)
        np.bitwise_and(out, scratch, out=out)
        return int(np.bitwise_count(out).sum())

    assert benchmark(write) == operands.count
    record(benchmark, operands, N_OPERANDS + 1)


# -- Roaring


@pytest.fixture(scope="module", params=[1e-4, 1e-2, 0.2], ids=lambda d: f"density {d:g}")
def bitmaps(request) -> list[BitMap]:
    rng = np.random.default_rng(7)
    n_blocks = ROARING_BLOCKS if request.param < 1e-3 else min(ROARING_BLOCKS, 1 << 26)
    n = int(n_blocks * request.param)
    planes = [Plane.empty(ROARING_BLOCKS) for _ in range(N_OPERANDS)]
    for plane in planes:
        plane.add_many(rng.integers(0, n_blocks, n))
    return [plane.roaring() for plane in planes]


def combine_bitmaps(bitmaps: list[BitMap]) -> int:
    a, b, c, d = bitmaps
    return len((a | b | c) - d)


def combine_planes(planes: list[Plane]) -> int:
    return len(combine(planes[:3], minus=planes[3]))


def as_planes(bitmaps: list[BitMap]) -> list[Plane]:
    return [Plane.from_roaring(bitmap, ROARING_BLOCKS) for bitmap in bitmaps]


@pytest.mark.benchmark(group="a + b + c - d, Roaring")
def test_roaring_planes(benchmark, bitmaps):
    assert benchmark(combine_planes, as_planes(bitmaps)) == combine_bitmaps(bitmaps)


@pytest.mark.benchmark(group="a + b + c - d, Roaring")
def test_pyroaring(benchmark, bitmaps):
    a, b, c, d = bitmaps
    assert benchmark(combine_bitmaps, bitmaps) == len(a) + len((b | c) - a) - len((a | b | c) & d)


# -- conversions and extents


@pytest.mark.benchmark(group="dense to Roaring and back")
@pytest.mark.parametrize("density", [1e-3, 0.03, 0.5])
def test_convert(benchmark, density):
    n_blocks = 1 << 28 if FULL else 1 << 22
    bits = np.random.default_rng(5).random(1 << 22) < density
    plane = Plane.from_words(np.resize(np.packbits(bits).view(np.uint64), n_blocks // 64), n_blocks)
    assert benchmark(lambda: plane.to_roaring().to_dense()) == plane


@pytest.mark.benchmark(group="extents")
@pytest.mark.parametrize("form", list(Form))
def test_extents(benchmark, form):
    n_blocks = 1 << 26 if FULL else 1 << 22
    starts = np.arange(0, n_blocks - 64, 64) + np.random.default_rng(6).integers(0, 30, n_blocks // 64 - 1)
    extents = np.stack([starts, starts + 20], axis=1)
    plane = Plane.from_extents(extents, n_blocks)
    plane = plane.to_dense() if form is Form.DENSE else plane.to_roaring()
    assert np.array_equal(benchmark(plane.extents), extents)


# -- the promised ratios


def ratio(baseline: Callable[[], object], ours: Callable[[], object]) -> float:
    """Return the median over interleaved pairs of baseline time over our time."""
    baseline(), ours()
    ratios = []
    for _ in range(PAIRS):
        begin = time.perf_counter()
        baseline()
        middle = time.perf_counter()
        ours()
        ratios.append((middle - begin) / (time.perf_counter() - middle))
    return statistics.median(ratios)


if FULL:  # a ratio at a small size would say something about the caches

    def test_ratios(operands, capsys):
        read = ratio(lambda: read_plainly(operands), lambda: count_fused(operands))
        numpy = ratio(lambda: count_numpy(operands), lambda: count_fused(operands))
        # The baseline reads four planes; ours reads four and writes one.
        write = ratio(lambda: read_plainly(operands), lambda: write_fused(operands)) * (N_OPERANDS + 1) / N_OPERANDS
        with capsys.disabled():
            print(
                f"\n{algebra.kernel_name()}, {operands.n_bytes * 8} blocks: counted {read:.2f} of a plain read, ",
                end="",
            )
            print(f"{numpy:.1f} x NumPy; into a plane {write:.2f} of a plain read by bytes read and written")
        assert read >= 0.8
        assert numpy >= 4
        assert write >= 0.7

    def test_roaring_ratio(bitmaps, capsys):
        planes = as_planes(bitmaps)
        measured = ratio(lambda: combine_bitmaps(bitmaps), lambda: combine_planes(planes))
        with capsys.disabled():
            print(f"\nRoaring: {measured:.2f} of pyroaring itself")
        assert measured >= 0.95
