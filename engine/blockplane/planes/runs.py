"""Extents of words, and words from extents: the door to the extents kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from blockplane._native import extents as _kernel
from blockplane.model import Extents, Words


def empty_extents() -> Extents:
    """No extents."""
    return np.empty((0, 2), np.int64)


def as_extents(extents: npt.ArrayLike) -> Extents:
    """View or copy ``(n, 2)`` numbers as extents.

    Raises
    ------
    ValueError : another shape, or a stop before its start.
    """
    array = np.ascontiguousarray(extents, dtype=np.int64)
    if array.size == 0:
        return empty_extents()
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"extents have shape {array.shape}; (n, 2) was expected")
    if (array[:, 0] > array[:, 1]).any():
        raise ValueError("an extent stops before it starts")
    return array


def normalise(extents: Extents) -> Extents:
    """Return fresh extents, ascending and apart, of extents in any order that may be empty, touch or overlap."""
    kept = extents[extents[:, 0] < extents[:, 1]]
    if not len(kept):
        return empty_extents()
    kept = kept[np.argsort(kept[:, 0], kind="stable")]
    reach = np.maximum.accumulate(kept[:, 1])
    begins = np.flatnonzero(np.concatenate([[True], kept[1:, 0] > reach[:-1]]))
    ends = np.append(begins[1:], len(kept)) - 1
    return np.stack([kept[begins, 0], reach[ends]], axis=1)


def extents_of(words: Words, start: int, stop: int, base: int = 0) -> Extents:
    """Runs of set bits of ``[start, stop)``, ``base`` added to each number; a fresh array."""
    n = _kernel.count(words, start, stop)
    out = np.empty((n, 2), np.int64)
    if n:
        _kernel.runs(words, start, stop, out, base=base)
    return out


def iter_extents(words: Words, start: int, stop: int, max_extents: int) -> Iterator[Extents]:
    """Runs of set bits of ``[start, stop)``, up to ``max_extents`` at a time; fresh arrays, none of them empty."""
    while start < stop:
        out = np.empty((max_extents, 2), np.int64)
        n, start = _kernel.runs(words, start, stop, out)
        if n:
            yield out[:n]


def free_extents(words: Words, start: int, stop: int, min_blocks: int, max_extents: int) -> Extents:
    """Up to ``max_extents`` runs of at least ``min_blocks`` clear bits of ``[start, stop)``; fresh, ascending."""
    out = np.empty((max_extents, 2), np.int64)
    n, _ = _kernel.runs(words, start, stop, out, zeros=True, min_blocks=min_blocks)
    return out[:n]


def fill_extents(words: Words, extents: Extents, base: int = 0, value: bool = True) -> None:
    """Set or clear the bits of all extents; bit 0 of ``words`` is number ``base``."""
    _kernel.fill(words, extents, base=base, value=value)


def join_touching(chunks: Iterable[Extents]) -> Iterator[Extents]:
    """Join extents that touch where one chunk ends and the next begins; chunks ascend, none of them is empty."""
    last: Extents | None = None
    for chunk in chunks:
        if last is None:
            last = chunk
            continue
        if last[-1, 1] == chunk[0, 0]:
            chunk[0, 0] = last[-1, 0]
            last = last[:-1]
        if len(last):
            yield last
        last = chunk
    if last is not None:
        yield last
