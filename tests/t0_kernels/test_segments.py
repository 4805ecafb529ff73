"""Segments of a file read into a buffer: against slices of bytes."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane._native.checksum import crc32c
from blockplane._native.segments import read_blocks, read_segments

CONTENT = np.random.default_rng(3).bytes(5000)


def ints(values) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.fixture(scope="module")
def fd(tmp_path_factory):
    path = tmp_path_factory.mktemp("segments") / "file"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


@st.composite
def segments(draw) -> list[tuple[int, int, int]]:
    """(offset, length, position), the positions apart; some follow each other in both."""
    found, position, offset = [], draw(st.integers(0, 3)), 0
    for _ in range(draw(st.integers(0, 9))):
        length = draw(st.integers(0, 700))
        offset = draw(st.one_of(st.just(min(offset, 5000 - length)), st.integers(0, 5000 - length)))
        found.append((offset, length, position))
        offset += length
        position += length + draw(st.sampled_from([0, 0, 1, 64]))
    return found


@given(segments())
def test_each_segment_lands_where_it_should_and_nothing_else_changes(fd, chosen):
    expected = bytearray(b"\xee" * 9000)
    for offset, length, position in chosen:
        expected[position : position + length] = CONTENT[offset : offset + length]
    buffer = np.full(9000, 0xEE, np.uint8)
    offsets, lengths, positions = (ints([s[i] for s in chosen]) for i in range(3))
    n_requests = read_segments(fd, offsets, lengths, buffer, positions)
    assert buffer.tobytes() == bytes(expected)
    follows = [a[0] + a[1] == b[0] and a[2] + a[1] == b[2] for a, b in itertools.pairwise(chosen)]
    assert n_requests == len(chosen) - sum(follows)


def test_what_cannot_be_read(fd):
    buffer = np.zeros(100, np.uint8)
    with pytest.raises(EOFError):
        read_segments(fd, ints([4950]), ints([51]), buffer, ints([0]))
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_segments(-1, ints([0]), ints([1]), buffer, ints([0]))
    for offset, length, position in [(-1, 1, 0), (0, -1, 0), (0, 1, -1), (0, 101, 0), (0, 2, 99), (2**62, 1, 0)]:
        with pytest.raises(ValueError, match="segment 0"):
            read_segments(fd, ints([offset]), ints([length]), buffer, ints([position]))
    with pytest.raises(ValueError, match="entries"):
        read_segments(fd, ints([0]), ints([1, 2]), buffer, ints([0]))
    assert (buffer[:50].tobytes(), buffer[50:].any()) == (CONTENT[4950:], False)


# --- blocks ---

BLOCK = 4096
BLOCKS = np.random.default_rng(4).bytes(700 * BLOCK)


@pytest.fixture(scope="module")
def long_fd(tmp_path_factory):
    path = tmp_path_factory.mktemp("blocks") / "file"
    path.write_bytes(BLOCKS)
    opened = os.open(path, os.O_RDONLY)
    yield opened
    os.close(opened)


def checks_of(offsets, numbers) -> np.ndarray:
    """By the definition: CRC32C of the bytes, continued over the number."""
    found = [
        crc32c(n.to_bytes(8, "little"), crc32c(BLOCKS[o : o + BLOCK])) for o, n in zip(offsets, numbers, strict=True)
    ]
    return np.array(found, np.uint32)


@given(st.lists(st.integers(0, 699 * BLOCK), max_size=6), st.integers(0, 60), st.sampled_from([0, 1, 48, 70000]))
def test_blocks_land_one_after_the_other(long_fd, chosen, n_more, gap):
    offsets = [*chosen, *(i * (BLOCK + gap) for i in range(n_more) if i * (BLOCK + gap) <= 699 * BLOCK)]
    numbers = [7 * i + 1 for i in range(len(offsets))]
    buffer = np.full((len(offsets) + 2) * BLOCK, 0xEE, np.uint8)
    inner = buffer[BLOCK : len(buffer) - BLOCK]
    n_requests, bad = read_blocks(long_fd, ints(offsets), inner, ints(numbers), checks_of(offsets, numbers))
    assert inner.tobytes() == b"".join(BLOCKS[offset : offset + BLOCK] for offset in offsets)
    assert (bad, set(buffer[:BLOCK]) | set(buffer[-BLOCK:])) == (-1, {0xEE})
    assert (n_requests == 0) == (not offsets)
    assert n_requests <= len(offsets)


def test_requests_of_blocks(long_fd):
    """Up to 64 KiB between two are read through; a request is of at most 256 blocks."""
    for step, n, expected in [(1, 256, 1), (1, 257, 2), (2, 256, 1), (17, 40, 1), (18, 38, 38), (-1, 3, 3), (0, 3, 3)]:
        offsets = [(3 + i * step) * BLOCK for i in range(n)] if step > 0 else [(9 + i * step) * BLOCK for i in range(n)]
        numbers = list(range(n))
        buffer = np.zeros(n * BLOCK, np.uint8)
        found = read_blocks(long_fd, ints(offsets), buffer, ints(numbers), checks_of(offsets, numbers))
        assert (step, n, found) == (step, n, (expected, -1))


@pytest.mark.parametrize("at", [0, 1, 47, 48, 255, 256, 299])
def test_the_first_block_that_differs(long_fd, at):
    offsets, numbers = [i * (BLOCK + 8) for i in range(300)], list(range(300))
    expected = checks_of(offsets, numbers)
    expected[at] ^= 1
    expected[299] ^= 2 if at != 299 else 0
    assert read_blocks(long_fd, ints(offsets), np.zeros(300 * BLOCK, np.uint8), ints(numbers), expected)[1] == at


def test_blocks_that_cannot_be_read(long_fd):
    one, check = np.zeros(BLOCK, np.uint8), np.zeros(1, np.uint32)
    with pytest.raises(EOFError):
        read_blocks(long_fd, ints([700 * BLOCK]), one, ints([0]), check)
    with pytest.raises(EOFError):
        read_blocks(long_fd, ints([699 * BLOCK + 1]), one.copy(), ints([0]), check)
    with pytest.raises(OSError, match="Bad file descriptor"):
        read_blocks(-1, ints([0]), one, ints([0]), check)
    with pytest.raises(ValueError, match="block 0 begins at -1"):
        read_blocks(long_fd, ints([-1]), one, ints([0]), check)
    for offsets, buffer, numbers, checks in [
        ([0, 1], one, [0], check), ([0], one[1:], [0], check), ([0], one, [0, 1], check), ([0], one, [0], check[:0]),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="entries"):
            read_blocks(long_fd, ints(offsets), buffer, ints(numbers), checks)
    assert not one.any()
