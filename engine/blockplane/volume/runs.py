"""Runs of numbers and of mask bits, as half-open ranges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def runs_of(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the runs of consecutive numbers, in the order given, as extents (n, 2)."""
    if len(numbers) == 1:
        first = int(numbers[0])
        return np.array([[first, first + 1]], np.int64)
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    out = np.empty((len(breaks) + 1, 2), np.int64)
    out[0, 0] = numbers[0]
    out[1:, 0] = numbers[breaks + 1]
    out[:-1, 1] = numbers[breaks] + 1
    out[-1, 1] = numbers[-1] + 1
    return out


def mask_extents(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the half-open runs of True in a mask as extents (n, 2)."""
    return np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0)).astype(np.int64).reshape(-1, 2)


def mask_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the half-open runs of True in a mask."""
    return [(low, high) for low, high in mask_extents(mask).tolist()]


def merge_extents(found: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Return extents (n, 2), ascending and non-touching, that cover the ranges found in any order."""
    out: list[list[int]] = []
    for start, stop in sorted(found):
        if out and start <= out[-1][1]:
            out[-1][1] = max(out[-1][1], stop)
        else:
            out.append([start, stop])
    return np.array(out, np.int64).reshape(-1, 2)
