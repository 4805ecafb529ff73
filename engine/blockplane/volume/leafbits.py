"""Planes one leaf at a time: 32,768 blocks, 512 words, one block of the blockmap file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES

LEAF_BLOCKS = BLOCK_BYTES * 8
LEAF_WORDS = BLOCK_BYTES // 8
WORD_BLOCKS = 64

Leaf = NDArray[np.uint64]

EMPTY_LEAF: Leaf = np.zeros(LEAF_WORDS, np.uint64)
EMPTY_LEAF.flags.writeable = False

_ALL = (1 << WORD_BLOCKS) - 1


def set_range(words: Leaf, start: int, stop: int) -> None:
    """Set bits start..stop of words."""
    low, high = start >> 6, (stop - 1) >> 6
    first = (_ALL << (start & 63)) & _ALL
    last = _ALL >> (63 - ((stop - 1) & 63))
    if low == high:
        words[low] |= np.uint64(first & last)
        return
    words[low] |= np.uint64(first)
    words[low + 1 : high] = _ALL
    words[high] |= np.uint64(last)


def clear_range(words: Leaf, start: int, stop: int) -> None:
    """Clear bits start..stop of words."""
    low, high = start >> 6, (stop - 1) >> 6
    first = (_ALL << (start & 63)) & _ALL
    last = _ALL >> (63 - ((stop - 1) & 63))
    if low == high:
        words[low] &= np.uint64(_ALL ^ (first & last))
        return
    words[low] &= np.uint64(_ALL ^ first)
    words[low + 1 : high] = 0
    words[high] &= np.uint64(_ALL ^ last)


def count(words: Leaf) -> int:
    """Return how many bits are set."""
    return int(np.bitwise_count(words).sum())


def numbers_in(words: Leaf, first: int = 0) -> NDArray[np.int64]:
    """Return the numbers of the set bits, ascending, counted from first."""
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.int64) + first


def leaf_pieces(start: int, stop: int) -> list[tuple[int, int, int]]:
    """Split start..stop at leaf borders: (leaf, low, high) with low..high inside the leaf."""
    pieces = []
    while start < stop:
        leaf = start // LEAF_BLOCKS
        high = min(stop, (leaf + 1) * LEAF_BLOCKS)
        pieces.append((leaf, start - leaf * LEAF_BLOCKS, high - leaf * LEAF_BLOCKS))
        start = high
    return pieces


def by_leaf(numbers: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Group numbers by leaf: (leaf, numbers within it)."""
    if not len(numbers):
        return []
    if len(numbers) == 1:
        n = int(numbers[0])
        return [(n // LEAF_BLOCKS, numbers % LEAF_BLOCKS)]
    ordered = np.sort(numbers)
    leaves = ordered // LEAF_BLOCKS
    cuts = np.flatnonzero(np.diff(leaves)) + 1
    parts = np.split(ordered, cuts)
    return [(int(part[0]) // LEAF_BLOCKS, part % LEAF_BLOCKS) for part in parts]


def positions_by_leaf(numbers: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Group numbers, in any order, by leaf: (leaf, which of them)."""
    leaves = numbers // LEAF_BLOCKS
    order = np.argsort(leaves, kind="stable")
    cuts = np.flatnonzero(np.diff(leaves[order])) + 1
    return [(int(leaves[at[0]]), at) for at in np.split(order, cuts) if len(at)]


def bits_of(leaf_of: Callable[[int], Leaf], numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each number whether a plane, given leaf by leaf, has it."""
    out = np.zeros(len(numbers), np.bool_)
    for leaf, at in positions_by_leaf(numbers):
        low = numbers[at] % LEAF_BLOCKS
        out[at] = (leaf_of(leaf)[low >> 6] >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
    return out


def set_numbers(words: Leaf, low: NDArray[np.int64]) -> None:
    """Set the bits of numbers within the leaf."""
    np.bitwise_or.at(words, low >> 6, np.uint64(1) << (low & 63).astype(np.uint64))


def clear_numbers(words: Leaf, low: NDArray[np.int64]) -> None:
    """Clear the bits of numbers within the leaf."""
    np.bitwise_and.at(words, low >> 6, ~(np.uint64(1) << (low & 63).astype(np.uint64)))


def words_of(leaf_of: Callable[[int], Leaf], first: int, n_words: int) -> NDArray[np.uint64]:
    """Return words first, ... of a plane that is given leaf by leaf, fresh."""
    out = np.empty(n_words, np.uint64)
    at = 0
    while at < n_words:
        leaf, low = divmod(first + at, LEAF_WORDS)
        take = min(n_words - at, LEAF_WORDS - low)
        out[at : at + take] = leaf_of(leaf)[low : low + take]
        at += take
    return out
