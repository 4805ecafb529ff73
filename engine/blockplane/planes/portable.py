"""The portable Roaring format: 32-bit form up to 2**32 numbers, 64-bit form beyond; the door to its kernels.

The 64-bit form is a u64 count of 32-bit bitmaps, each behind a u32 that holds the upper half of its numbers, ascending.

Source: RoaringBitmap, RoaringFormatSpec, with "extension for 64-bit implementations".
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from blockplane._native import roaring_decode, roaring_encode
from blockplane.model import BlockplaneError, Bytes, Numbers, Words
from blockplane.planes.numbers import firsts_of

#: Containers: key (number >> 16), cardinality, kind, position of their data (or size, where words were measured).
Rows = npt.NDArray[np.int64]

CONTAINER_WORDS: Final = 1024
CONTAINER_BLOCKS: Final = 65_536
#: Numbers below this fit the 32-bit form.
NARROW_BLOCKS: Final = 1 << 32

_KEY, _CARDINALITY, _KIND, _POSITION = range(4)
_ROW: Final = 4
_ARRAY, _BITSET = 0, 1
_ARRAY_LIMIT: Final = 4096
_BUCKET_KEYS: Final = 65_536
_COUNT_BYTES: Final = 8
_HIGH_BYTES: Final = 4


class PlaneFormatError(BlockplaneError):
    """Bytes that should be a portable Roaring bitmap are not, or hold numbers outside the plane."""

    kind = "plane-format"


def is_wide(n_blocks: int) -> bool:
    """Whether a plane of this many blocks needs the 64-bit form."""
    return n_blocks > NARROW_BLOCKS


def as_bytes(data: object) -> Bytes:
    """View a contiguous buffer as bytes."""
    return np.frombuffer(data, np.uint8)  # type: ignore[call-overload, no-any-return]


def read_rows(data: Bytes, wide: bool) -> Rows:
    """Describe the containers of a whole bitmap; keys count through all 32-bit parts.

    Raises
    ------
    PlaneFormatError : the bytes are no such bitmap, or more than one.
    """
    try:
        rows, n_bytes = _read_wide(data) if wide else _read_narrow(data, 0)
    except ValueError as error:
        raise PlaneFormatError(f"a plane cannot be read: {error}") from error
    if n_bytes != data.size:
        raise PlaneFormatError(f"a plane cannot be read: {data.size - n_bytes} bytes follow the bitmap")
    return rows


def _read_narrow(data: Bytes, at: int) -> tuple[Rows, int]:
    """Rows of the 32-bit bitmap that begins at byte ``at``, and where it ends."""
    rows = np.empty((roaring_decode.count(data[at:]), _ROW), np.int64)
    n_bytes = roaring_decode.index(data[at:], rows)
    rows[:, _POSITION] += at
    return rows, at + n_bytes


def _read_wide(data: Bytes) -> tuple[Rows, int]:
    if data.size < _COUNT_BYTES:
        raise ValueError("the bytes end before the bitmap does")
    n_parts, at, last = int(data[:_COUNT_BYTES].view("<u8")[0]), _COUNT_BYTES, -1
    parts = [np.empty((0, _ROW), np.int64)]
    for _ in range(n_parts):
        if data.size - at < _HIGH_BYTES:
            raise ValueError("the bytes end before the bitmap does")
        high = int(data[at : at + _HIGH_BYTES].copy().view("<u4")[0])
        if high <= last:
            raise ValueError("the upper halves of numbers do not ascend")
        rows, at = _read_narrow(data, at + _HIGH_BYTES)
        rows[:, _KEY] += high * _BUCKET_KEYS
        parts.append(rows)
        last = high
    return np.concatenate(parts), at


def validate(data: Bytes, rows: Rows, n_blocks: int) -> int:
    """Judge every container and return how many numbers there are.

    Raises
    ------
    PlaneFormatError : a container contradicts itself, or a number is not below ``n_blocks``.
    """
    try:
        return roaring_decode.validate(data, rows, n_blocks)
    except ValueError as error:
        raise PlaneFormatError(f"a plane of {n_blocks} blocks cannot be read: {error}") from error


def decode_window(data: Bytes, rows: Rows, first_container: int, words: Words) -> int:
    """Write the containers that lie in ``words`` (zeroed by the caller; word 0 begins container ``first_container``).

    Returns
    -------
    how many containers were written.
    """
    stop_container = first_container - (-words.size // CONTAINER_WORDS)
    low, high = np.searchsorted(rows[:, _KEY], [first_container, stop_container])
    roaring_decode.decode(data, rows[low:high], words, first_key=first_container)
    return int(high - low)


def measure(words: Words, first_container: int) -> Rows:
    """Describe the containers of ``words`` that hold numbers, each in its smallest kind."""
    rows = np.empty((-(-words.size // CONTAINER_WORDS), _ROW), np.int64)
    return rows[: roaring_encode.measure(words, rows, first_key=first_container)]


def encode(words: Words, rows: Rows, first_container: int) -> Bytes:
    """Write the data of the containers that ``measure`` described."""
    out = np.empty(int(rows[:, _POSITION].sum()), np.uint8)
    roaring_encode.encode(words, rows, out, first_key=first_container)
    return out


def assemble(rows: Rows, data: Bytes, wide: bool) -> Bytes:
    """Put headers before the containers' data, which lies end to end in the order of ``rows``."""
    if not wide:
        return np.concatenate([_header(rows), data])
    starts = np.concatenate([[0], np.cumsum(rows[:, _POSITION])])
    high_of_row = rows[:, _KEY] // _BUCKET_KEYS
    firsts = firsts_of(high_of_row).tolist()
    pieces = [_little(len(firsts), _COUNT_BYTES)]
    for low, top in pairwise([*firsts, len(rows)]):
        high = int(high_of_row[low])
        part = rows[low:top].copy()
        part[:, _KEY] -= high * _BUCKET_KEYS
        pieces += [_little(high, _HIGH_BYTES), _header(part), data[starts[low] : starts[top]]]
    return np.concatenate(pieces)


def _little(value: int, n_bytes: int) -> Bytes:
    return np.frombuffer(value.to_bytes(n_bytes, "little"), np.uint8)


def _header(rows: Rows) -> Bytes:
    out = np.empty(roaring_encode.header_bytes(rows), np.uint8)
    roaring_encode.header(rows, out)
    return out


def from_words(words: Words, wide: bool) -> Bytes:
    """Serialise dense words, each container in its smallest kind."""
    rows = measure(words, 0)
    return assemble(rows, encode(words, rows, 0), wide)


def from_numbers(numbers: Numbers, wide: bool) -> Bytes:
    """Serialise ascending, distinct numbers, without a pass over the space between them."""
    keys = numbers >> 16
    firsts = firsts_of(keys)
    counts = np.diff(firsts, append=numbers.size)
    rows = np.zeros((firsts.size, _ROW), np.int64)
    rows[:, _KEY], rows[:, _CARDINALITY] = keys[firsts], counts
    rows[:, _KIND] = np.where(counts > _ARRAY_LIMIT, _BITSET, _ARRAY)
    rows[:, _POSITION] = np.where(counts > _ARRAY_LIMIT, CONTAINER_WORDS * 8, 2 * counts)
    low_halves = (numbers & 0xFFFF).astype("<u2")
    data, done = [np.empty(0, np.uint8)], 0
    for i in np.flatnonzero(counts > _ARRAY_LIMIT).tolist():
        first, stop = int(firsts[i]), int(firsts[i] + counts[i])
        bits = np.zeros(CONTAINER_BLOCKS, np.uint8)
        bits[low_halves[first:stop]] = 1
        data += [low_halves[done:first].view(np.uint8), np.packbits(bits, bitorder="little")]
        done = stop
    data.append(low_halves[done:].view(np.uint8))
    return assemble(rows, np.concatenate(data), wide)


def widen(data: bytes) -> bytes:
    """Turn the 32-bit form into the 64-bit form."""
    return (1).to_bytes(_COUNT_BYTES, "little") + bytes(_HIGH_BYTES) + data


def narrow(data: bytes) -> bytes:
    """Turn the 64-bit form of a bitmap that has no number past 2**32 into the 32-bit form."""
    skip = _COUNT_BYTES + _HIGH_BYTES
    return (
        data[skip:] if data[:_COUNT_BYTES] != bytes(_COUNT_BYTES) else _header(np.empty((0, _ROW), np.int64)).tobytes()
    )
