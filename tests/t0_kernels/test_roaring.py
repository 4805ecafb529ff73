"""Portable Roaring containers from and to words: against pyroaring, and against hostile bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap

from blockplane._native import roaring_decode, roaring_encode

SIZES = [1, 2, 63, 1023, 1024, 1025, 3000, 5 * 1024]
DENSITIES = [0.0, 1e-3, 0.05, 0.0625, 0.07, 0.5, 0.999, 1.0]


def numbers_of(words: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def encoded(words: np.ndarray) -> np.ndarray:
    rows = np.empty((-(-words.size // 1024), 4), np.int64)
    rows = rows[: roaring_encode.measure(words, rows)]
    n_header = roaring_encode.header_bytes(rows)
    out = np.full(n_header + rows[:, 3].sum() + 8, 0xEE, np.uint8)
    assert roaring_encode.header(rows, out) == n_header
    assert roaring_encode.encode(words, rows, out[n_header:]) == out.size - n_header - 8
    assert (out[-8:] == 0xEE).all()
    return out[:-8]


def decoded(data: np.ndarray, n_words: int) -> np.ndarray:
    rows = np.empty((roaring_decode.count(data), 4), np.int64)
    assert roaring_decode.index(data, rows) == data.size
    around = np.full(n_words + 2, 0xABCD, np.uint64)
    around[1:-1] = 0
    n = roaring_decode.decode(data, rows, around[1:-1])
    assert (around[0], around[-1]) == (0xABCD, 0xABCD)
    assert n == roaring_decode.validate(data, rows, n_words * 64)
    return around[1:-1]


@pytest.mark.parametrize("n_words", SIZES)
@pytest.mark.parametrize("density", DENSITIES)
def test_bytes_are_those_of_croaring(rng, n_words, density):
    words = np.packbits(rng.random(n_words * 64) < density, bitorder="little").view(np.uint64)
    bitmap = BitMap(numbers_of(words))
    bitmap.run_optimize()
    data = encoded(words)
    assert data.tobytes() == bitmap.serialize()
    assert np.array_equal(decoded(data, n_words), words)


@given(seed=st.integers(0, 2**32), lengths=st.lists(st.integers(1, 70_000), max_size=12))
def test_runs_of_any_length(seed, lengths):
    edges = np.cumsum(lengths)
    numbers = [np.arange(a, b) for a, b in zip(edges[::2], edges[1::2], strict=False)]
    bits = np.zeros(1024 * 64 * 16, np.uint8)
    if numbers:
        bits[np.concatenate(numbers)] = 1
    words = np.packbits(bits, bitorder="little").view(np.uint64)
    bitmap = BitMap(numbers_of(words))
    bitmap.run_optimize()
    assert encoded(words).tobytes() == bitmap.serialize()
    assert np.array_equal(decoded(encoded(words), words.size), words)


def test_containers_that_pyroaring_did_not_optimise(rng):
    numbers = np.unique(rng.integers(0, 1 << 20, 30_000)).astype(np.uint32)
    data = np.frombuffer(BitMap(numbers, optimize=False).serialize(), np.uint8)
    assert numbers_of(decoded(data, 1 << 14)).tolist() == numbers.tolist()


def test_a_window_of_containers(rng):
    words = rng.integers(0, 2**64, 8 * 1024, np.uint64)
    words[3 * 1024 : 5 * 1024] = 0
    data = encoded(words)
    rows = np.empty((roaring_decode.count(data), 4), np.int64)
    roaring_decode.index(data, rows)
    assert rows[:, 0].tolist() == [0, 1, 2, 5, 6, 7]
    window = np.zeros(2 * 1024, np.uint64)
    roaring_decode.decode(data, rows[2:4:1][:1], window, first_key=2)
    assert np.array_equal(window[:1024], words[2048:3072])
    assert not window[1024:].any()


# -- hostile bytes


def no_runs(*containers: tuple[int, int, bytes], offsets: list[int] | None = None) -> bytes:
    """Bytes of (key, cardinality, data), as one who lies would write them."""
    position, places = 8 + 8 * len(containers), []
    for _, _, data in containers:
        places.append(position)
        position += len(data)
    head = struct.pack("<II", 12346, len(containers))
    keys = b"".join(struct.pack("<HH", key, n - 1) for key, n, _ in containers)
    return head + keys + struct.pack(f"<{len(containers)}I", *(offsets or places)) + b"".join(c[2] for c in containers)


def with_runs(*runs: tuple[int, int], cardinality: int) -> bytes:
    """One container of (start, length - 1) pairs."""
    pairs = b"".join(struct.pack("<HH", *run) for run in runs)
    return struct.pack("<I", 12347) + b"\x01" + struct.pack("<HHH", 0, cardinality - 1, len(runs)) + pairs


def array(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}H", *numbers)


BITSET_OF_4097 = np.packbits(np.arange(65536) < 4097, bitorder="little").tobytes()

HOSTILE = {
    "empty": (b"", "end before"),
    "three bytes": (b"\x3a\x30\x00", "end before"),
    "no cookie": (b"GIF89a......", "no Roaring bitmap"),
    "count cut off": (struct.pack("<I", 12346), "end before"),
    "2**32 - 1 containers": (struct.pack("<II", 12346, 2**32 - 1), "65,536"),
    "65,537 containers": (struct.pack("<II", 12346, 65_537) + bytes(10**6), "65,536"),
    "header cut off": (struct.pack("<II", 12346, 2) + bytes(15), "end before"),
    "runs' header cut off": (struct.pack("<I", 12347 | 9 << 16) + bytes(20), "end before"),
    "keys equal": (no_runs((3, 1, array(1)), (3, 1, array(2))), "keys"),
    "keys descend": (no_runs((3, 1, array(1)), (2, 1, array(2))), "keys"),
    "offset into the header": (no_runs((0, 1, array(1)), offsets=[4]), "offset table"),
    "offset past the end": (no_runs((0, 1, array(1)), offsets=[2**32 - 1]), "offset table"),
    "containers overlap": (no_runs((0, 2, array(1, 2)), (1, 2, array(1, 2)), offsets=[24, 24]), "offset table"),
    "array cut off": (no_runs((0, 3, array(1, 2))), "end before"),
    "bitset cut off": (no_runs((0, 5000, bytes(8191))), "end before"),
    "runs cut off": (with_runs((1, 1), cardinality=2)[:-1], "end before"),
    "array not ascending": (no_runs((0, 3, array(1, 3, 2))), "ascend"),
    "array with a number twice": (no_runs((0, 3, array(1, 2, 2))), "ascend"),
    "bitset of another cardinality": (no_runs((0, 4098, BITSET_OF_4097)), "as many numbers"),
    "runs of another cardinality": (with_runs((0, 9), (100, 9), cardinality=21), "as many numbers"),
    "no runs": (with_runs(cardinality=1), "as many numbers"),
    "runs overlap": (with_runs((0, 9), (5, 9), cardinality=20), "runs overlap"),
    "runs touch": (with_runs((0, 9), (10, 9), cardinality=20), "runs overlap"),
    "runs descend": (with_runs((50, 9), (10, 9), cardinality=20), "runs overlap"),
    "run past the container": (with_runs((65_000, 60_000), cardinality=536), "past its container"),
    "number outside the plane": (no_runs((0, 1, array(64 * 64))), "outside"),
    "container outside the plane": (no_runs((1, 1, array(0))), "outside"),
}


def read(data: bytes, n_words: int = 64) -> None:
    view = np.frombuffer(data, np.uint8)
    rows = np.empty((roaring_decode.count(view), 4), np.int64)
    roaring_decode.index(view, rows)
    roaring_decode.decode(view, rows, np.zeros(n_words, np.uint64))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    data, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message):
        read(data)


@pytest.mark.parametrize("name", ["number outside the plane", "container outside the plane", "runs touch"])
def test_validate_refuses_what_decode_refuses(name):
    data, message = HOSTILE[name]
    view = np.frombuffer(data, np.uint8)
    rows = np.empty((roaring_decode.count(view), 4), np.int64)
    roaring_decode.index(view, rows)
    with pytest.raises(ValueError, match=message):
        roaring_decode.validate(view, rows, 64 * 64)


@given(seed=st.integers(0, 2**32), flips=st.integers(1, 8), cut=st.booleans())
def test_flipped_bits_never_read_outside_and_never_give_what_was_not_counted(seed, flips, cut):
    rng = np.random.default_rng(seed)
    words = np.packbits(rng.random(4 * 65_536) < rng.choice([0.001, 0.3, 0.9999]), bitorder="little").view(np.uint64)
    data = encoded(words).copy()
    for _ in range(flips):
        # Half of the flips go to headers, where they matter most.
        at = int(rng.integers(0, data.size if rng.random() < 0.5 else min(64, data.size)))
        data[at] ^= 1 << int(rng.integers(0, 8))
    if cut:
        data = data[: int(rng.integers(0, data.size))]
    out = np.zeros(words.size, np.uint64)
    try:
        rows = np.empty((roaring_decode.count(data), 4), np.int64)
        roaring_decode.index(data, rows)
        n = roaring_decode.decode(data, rows, out)
    except ValueError:
        return
    assert n == int(np.bitwise_count(out).sum())


@pytest.mark.parametrize(
    "row",
    [
        [0, 1, 0, -1],
        [0, 1, 0, 10**9],
        [0, 0, 0, 8],
        [0, 65_537, 0, 8],
        [0, 1, 3, 8],
        [0, 4097, 1, 8],
        [0, 1, 2, 19],
        [-1, 1, 0, 8],
    ],
)
def test_rows_that_point_outside_the_bytes_are_refused(row):
    data = np.frombuffer(no_runs((0, 2, array(5, 6))), np.uint8)
    rows = np.array([row], np.int64)
    for call in (
        lambda: roaring_decode.decode(data, rows, np.zeros(1024, np.uint64)),
        lambda: roaring_decode.validate(data, rows, 65_536),
    ):
        with pytest.raises(ValueError, match="rows do not describe"):
            call()


@pytest.mark.parametrize("row", [[0, 3, 0, 4], [0, 3, 2, 6], [0, 3, 1, 6], [0, 3, 7, 6], [5, 3, 0, 6], [0, 3, 2, 0]])
def test_encode_refuses_rows_of_other_words(row):
    words = np.array([0b10101], np.uint64)
    out = np.full(100, 0xEE, np.uint8)
    with pytest.raises(ValueError, match="rows do not describe"):
        roaring_encode.encode(words, np.array([row], np.int64), out)
    assert (out[8:] == 0xEE).all()


def test_encode_refuses_too_little_room():
    words = np.full(1024, 0x5555555555555555, np.uint64)
    rows = np.array([[0, 32_768, 1, 8192]], np.int64)
    with pytest.raises(ValueError, match="too little room"):
        roaring_encode.encode(words, rows, np.zeros(8191, np.uint8))
    with pytest.raises(ValueError, match="too little room"):
        roaring_encode.header(rows, np.zeros(15, np.uint8))
    with pytest.raises(ValueError, match="rows for"):
        roaring_encode.measure(words, np.zeros((0, 4), np.int64))


@pytest.mark.parametrize("keys", [[0, 0], [1, 0], [-1, 0], [0, 65_536]])
def test_a_header_needs_ascending_keys(keys):
    rows = np.array([[key, 1, 0, 2] for key in keys], np.int64)
    with pytest.raises(ValueError, match="rows do not describe"):
        roaring_encode.header(rows, np.zeros(100, np.uint8))


def test_shapes_are_judged():
    for call in (
        lambda rows: roaring_decode.index(np.frombuffer(no_runs(), np.uint8), rows),
        lambda rows: roaring_decode.decode(np.zeros(9, np.uint8), rows, np.zeros(1, np.uint64)),
        lambda rows: roaring_decode.validate(np.zeros(9, np.uint8), rows, 64),
        lambda rows: roaring_encode.measure(np.zeros(1, np.uint64), rows),
        lambda rows: roaring_encode.encode(np.zeros(1, np.uint64), rows, np.zeros(1, np.uint8)),
        lambda rows: roaring_encode.header_bytes(rows),
    ):
        with pytest.raises(ValueError, match=r"must be \(n, 4\)"):
            call(np.zeros((1, 3), np.int64))
