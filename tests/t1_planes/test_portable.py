"""The portable Roaring format, both ways, against pyroaring; hostile bytes; the claims' sizes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroaring import BitMap, BitMap64

from blockplane.planes import Form, Plane, PlaneFormatError

WIDE = (1 << 34) + 5
TIB_16 = 1 << 32  # blocks of 16 TiB


def mixed_numbers(rng, n_blocks: int) -> np.ndarray:
    """Sparse, dense and run containers, some at the very end."""
    parts = [rng.integers(0, n_blocks, 3000), n_blocks - 1 - rng.integers(0, 4, 3)]
    base = n_blocks // 2 >> 16 << 16
    parts += [base + rng.integers(0, 65_536, 30_000), base + 100_000 + np.arange(90_000)]
    return np.unique(np.concatenate(parts))


@pytest.mark.parametrize(("n_blocks", "bitmap"), [(5_000_001, BitMap), (1 << 32, BitMap), (WIDE, BitMap64)])
def test_serialised_planes_are_read_by_pyroaring_and_back(rng, n_blocks, bitmap):
    numbers = mixed_numbers(rng, n_blocks)
    plane = Plane.empty(n_blocks, Form.ROARING)
    plane.add_many(numbers)
    data = plane.serialize()
    assert np.array_equal(np.asarray(bitmap.deserialize(data).to_array()), numbers)
    theirs = bitmap(numbers.astype(np.uint64 if bitmap is BitMap64 else np.uint32))
    assert Plane.deserialize(theirs.serialize(), n_blocks) == plane
    theirs.run_optimize()
    assert data == theirs.serialize()


@pytest.mark.parametrize("n_blocks", [5_000_001, (1 << 32) + (1 << 22) + 1])
def test_dense_and_roaring_planes_serialise_alike(rng, n_blocks):
    numbers = mixed_numbers(rng, n_blocks)
    roaring = Plane.empty(n_blocks, Form.ROARING)
    roaring.add_many(numbers)
    dense = roaring.to_dense()
    assert dense.form is Form.DENSE
    assert dense.serialize() == roaring.serialize()
    assert dense.to_roaring() == roaring
    assert len(dense) == len(numbers)


@pytest.mark.parametrize("n_blocks", [0, 1000, WIDE])
def test_empty_planes_travel(n_blocks):
    data = Plane.empty(n_blocks).serialize()
    assert data == (BitMap64() if n_blocks == WIDE else BitMap()).serialize()
    assert len(Plane.deserialize(data, n_blocks)) == 0


def test_a_buffer_of_any_kind_is_read():
    data = BitMap([1, 2, 70_000]).serialize()
    for buffer in (data, bytearray(data), memoryview(data)):
        assert Plane.deserialize(buffer, 100_000).extents().tolist() == [[1, 3], [70_000, 70_001]]


NARROW = BitMap([1, 2, 70_000]).serialize()
LOW = b"\0" * 4 + NARROW


@pytest.mark.parametrize(
    ("data", "n_blocks", "message"),
    [
        (b"", 1000, "end before"),
        (NARROW[:-1], 100_000, "end before"),
        (NARROW + b"\0", 100_000, "1 bytes follow"),
        (NARROW, 70_000, "outside the plane"),
        (NARROW, 65_536, "outside the plane"),
        (NARROW, 2, "outside the plane"),
        (b"", WIDE, "end before"),
        (struct.pack("<Q", 1), WIDE, "end before"),
        (struct.pack("<Q", 2**64 - 1) + LOW, WIDE, "end before"),
        (struct.pack("<Q", 2) + LOW + LOW, WIDE, "do not ascend"),
        (struct.pack("<Q", 2) + b"\1\0\0\0" + NARROW + LOW, WIDE, "do not ascend"),
        (struct.pack("<Q", 1) + LOW + b"x", WIDE, "1 bytes follow"),
        (struct.pack("<Q", 1) + b"\4\0\0\0" + NARROW, WIDE, "outside the plane"),
        (struct.pack("<Q", 1) + b"\xff\xff\xff\xff" + NARROW, WIDE, "outside the plane"),
        (NARROW, WIDE, "cannot be read"),
        (struct.pack("<Q", 1) + LOW, 1 << 32, "no Roaring bitmap"),
    ],
)
def test_hostile_bytes_are_refused(data, n_blocks, message):
    with pytest.raises(PlaneFormatError, match=message):
        Plane.deserialize(data, n_blocks)


@given(seed=st.integers(0, 2**32), wide=st.booleans())
def test_a_flipped_bit_is_refused_or_gives_a_sound_plane(seed, wide):
    rng = np.random.default_rng(seed)
    n_blocks = WIDE if wide else 1 << 22
    plane = Plane.empty(n_blocks)
    plane.add_many(mixed_numbers(rng, n_blocks))
    data = bytearray(plane.serialize())
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, len(data) if rng.random() < 0.5 else 200))
        data[at] ^= 1 << int(rng.integers(0, 8))
    if rng.random() < 0.3:
        data = data[: int(rng.integers(0, len(data)))]
    try:
        damaged = Plane.deserialize(bytes(data), n_blocks)
    except PlaneFormatError:
        return
    extents = damaged.extents()
    assert (extents[:, 0] < extents[:, 1]).all()
    assert (extents[1:, 0] > extents[:-1, 1]).all()
    assert extents.max(initial=0) <= n_blocks
    assert int((extents[:, 1] - extents[:, 0]).sum()) == len(damaged)


# -- the claims: at most 4 bytes a block and 1/100 of the space; ours: one bit a block, or less


def test_a_plane_of_16_tib_takes_at_most_one_bit_a_block():
    dense = Plane.empty(TIB_16, Form.DENSE)
    assert dense.n_bytes * 8 == TIB_16
    assert dense.n_bytes * 100 <= TIB_16 * 4096


def test_the_cheapest_form_of_16_tib_takes_at_most_one_bit_a_block(rng):
    n_leaf_words = 512
    for density in (0.0, 1e-5, 0.01, 0.5, 1.0):
        builder = Plane.builder(TIB_16)
        patterns = [np.packbits(rng.random(n_leaf_words * 64) < density).view(np.uint64) for _ in range(8)]
        # One leaf in eight has content of its own, so that the test takes seconds, not minutes; it is still 2 TiB.
        for leaf in range(0, TIB_16 // 64 // n_leaf_words, 8):
            builder.append(leaf * n_leaf_words, patterns[leaf // 8 % 8])
        plane = builder.finish()
        assert plane.n_bytes * 8 <= TIB_16
        assert len(plane.serialize()) <= 4 * TIB_16
        assert len(plane) == sum(int(np.bitwise_count(p).sum()) for p in patterns) * (
            TIB_16 // 64 // n_leaf_words // 64
        )
