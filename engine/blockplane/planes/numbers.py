"""Arrays of block numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from blockplane.model import Numbers


def as_numbers(numbers: npt.ArrayLike) -> Numbers:
    """View or copy numbers as one contiguous dimension of int64.

    Raises
    ------
    ValueError : another number of dimensions.
    """
    array = np.ascontiguousarray(numbers, dtype=np.int64)
    if array.ndim != 1:
        raise ValueError(f"block numbers have shape {array.shape}; one dimension was expected")
    return array


def distinct(numbers: Numbers) -> Numbers:
    """Return the numbers ascending, each once; themselves where they are so already.

    Notes
    -----
    Not NumPy's ``unique``: it hashes, which took nine to ten times as long as sorting 3.3 million random numbers below
    2**24 (NumPy 2.4). Turn back if that changes.
    """
    if (numbers[1:] > numbers[:-1]).all():
        return numbers
    ordered = np.sort(numbers)
    return ordered[firsts_of(ordered)]


def firsts_of(ordered: Numbers) -> Numbers:
    """Return where each value of ascending numbers stands first."""
    changes: Numbers = np.flatnonzero(np.diff(ordered)) + 1
    return np.concatenate([np.zeros(min(1, ordered.size), np.int64), changes])
