"""Segments of a file read into a buffer: against slices of bytes."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane._native.segments import read_segments

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
