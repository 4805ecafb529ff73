"""Arithmetic on extents: (n, 2) int64 half-open ranges whose order carries meaning (that of a buffer)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from blockplane.model.addresses import Extents, Numbers


def n_blocks_in(extents: Extents) -> int:
    """Return how many blocks extents hold."""
    return int((extents[:, 1] - extents[:, 0]).sum())


def numbers_in(extents: Extents) -> Numbers:
    """Return the numbers in extents, in their order."""
    counts = extents[:, 1] - extents[:, 0]
    return expand(extents[:, 0], counts)


def extents_of(numbers: Numbers) -> Extents:
    """Return extents of numbers, in their order."""
    if not len(numbers):
        return np.empty((0, 2), np.int64)
    stops = numbers + 1
    gaps = np.flatnonzero(numbers[1:] != stops[:-1])
    found = np.empty((len(gaps) + 1, 2), np.int64)
    found[0, 0], found[-1, 1] = numbers[0], stops[-1]
    found[1:, 0], found[:-1, 1] = numbers[gaps + 1], stops[gaps]
    return found


def expand(starts: Numbers, counts: Numbers) -> Numbers:
    """Return starts[0], starts[0] + 1, ... for counts[0] numbers, then the same for starts[1], and so on."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    found: Numbers = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - counts), counts)
    return found


def merged(extents: Extents) -> Extents:
    """Join neighbours of which one ends where the next begins."""
    if len(extents) < 2:
        return extents
    gaps = np.flatnonzero(extents[1:, 0] != extents[:-1, 1])
    starts = extents[np.concatenate(([0], gaps + 1)), 0]
    stops = extents[np.concatenate((gaps, [len(extents) - 1])), 1]
    return np.column_stack((starts, stops))


def split(extents: Extents, most_blocks: int) -> list[Extents]:
    """Cut extents into groups of most_blocks blocks each, the last one perhaps shorter; none where there are no
    blocks.
    """
    sizes = extents[:, 1] - extents[:, 0]
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    if total <= most_blocks:
        return [extents] if total else []
    found, at, inside = [], 0, 0
    for cut in [*range(most_blocks, total, most_blocks), total]:
        last = int(np.searchsorted(ends, cut))
        part = extents[at : last + 1].copy()
        part[0, 0] += inside
        over = int(ends[last]) - cut
        part[-1, 1] -= over
        at, inside = (last, int(sizes[last]) - over) if over else (last + 1, 0)
        found.append(part)
    return found


def portions(chunks: Iterable[Extents], most_blocks: int) -> Iterator[Extents]:
    """Cut ascending extents that come in chunks into portions of most_blocks; only the last one may be shorter."""
    pending = np.empty((0, 2), np.int64)
    for chunk in chunks:
        found = split(np.concatenate((pending, chunk)), most_blocks)
        pending = found.pop() if found else pending
        yield from found
    if len(pending):
        yield pending
