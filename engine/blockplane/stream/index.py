"""The index of a stream in memory: which frame holds a block, and as which of its blocks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import Extents, Numbers
from blockplane.stream.codec import MAX_FRAME_BLOCKS

IndexEntries = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs of blocks that lie together in a frame, and where their bytes are wanted; columns of one length.

    vbn, n_blocks : the run. frame : offset of the frame's head in the stream. first : the run's first block within the
    frame. position : block of the caller's buffer where the run goes.
    """

    vbn: Numbers
    n_blocks: Numbers
    frame: Numbers
    first: Numbers
    position: Numbers

    def __len__(self) -> int:
        return len(self.vbn)

    def where(self, chosen: NDArray[np.bool_]) -> Pieces:
        """Return some of the pieces."""
        columns = (self.vbn, self.n_blocks, self.frame, self.first, self.position)
        return Pieces(*(column[chosen] for column in columns))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Extents of VBNs, any order, and the block of the caller's buffer where each one's bytes go."""

    extents: Extents
    position: Numbers

    @classmethod
    def one_after_another(cls, extents: Extents) -> Wanted:
        """Return extents whose blocks fill the buffer in their order."""
        counts = extents[:, 1] - extents[:, 0]
        return cls(extents, np.cumsum(counts) - counts)

    def __len__(self) -> int:
        return len(self.extents)


class Index:
    """The index of one stream, sorted by VBN.

    Parameters
    ----------
    parts : entries (`codec.INDEX_DTYPE`), in the order of the stream.

    Notes
    -----
    Memory: 28 bytes an entry; an entry is an extent of one frame.
    """

    def __init__(self, parts: Iterable[IndexEntries]) -> None:
        joined = list(parts)
        self.starts, self.stops, self.frames = (np.empty(0, np.int64) for _ in range(3))
        self.firsts = np.empty(0, np.uint32)
        if joined:
            order = np.argsort(np.concatenate([part["vbn"] for part in joined]), kind="stable")
            self.starts = np.concatenate([part["vbn"] for part in joined])[order]
            self.stops = self.starts + np.concatenate([part["n_blocks"] for part in joined])[order]
            self.frames = np.concatenate([part["frame"] for part in joined])[order]
            self.firsts = np.concatenate([part["first"] for part in joined])[order]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def n_blocks(self) -> int:
        """How many blocks the stream holds, by its index."""
        return int((self.stops - self.starts).sum())

    def is_sane(self, space_blocks: int, n_bytes: int) -> bool:
        """Tell whether the entries lie in the space and inside the file, and none overlaps another."""
        good = (self.starts >= 0) & (self.stops > self.starts) & (self.stops <= space_blocks)
        good &= (self.frames >= 0) & (self.frames < n_bytes)
        good &= self.stops - self.starts + self.firsts <= MAX_FRAME_BLOCKS
        return bool(good.all() and (self.starts[1:] >= self.stops[:-1]).all())

    def holds(self, vbn: int) -> bool:
        """Tell whether the stream holds a block."""
        at = int(np.searchsorted(self.stops, vbn, side="right"))
        return at < len(self.starts) and int(self.starts[at]) <= vbn

    def find(self, wanted: Wanted) -> tuple[Pieces, Wanted]:
        """Return what of the wanted blocks lies where in the stream, and what it does not hold; n log n, no loop."""
        starts, stops = wanted.extents[:, 0], wanted.extents[:, 1]
        low = np.searchsorted(self.stops, starts, side="right")
        counts = np.maximum(np.searchsorted(self.starts, stops, side="left") - low, 0)
        row = np.repeat(np.arange(len(wanted)), counts)
        entry = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + low[row]
        begin = np.maximum(self.starts[entry], starts[row])
        end = np.minimum(self.stops[entry], stops[row])
        first = self.firsts[entry] + begin - self.starts[entry]
        position = wanted.position[row] + begin - starts[row]
        found = Pieces(begin, end - begin, self.frames[entry], first, position)
        return found, _gaps(wanted, counts, begin, end)


def _gaps(wanted: Wanted, counts: Numbers, begin: Numbers, end: Numbers) -> Wanted:
    """Return what lies before, between and behind the pieces [begin, end) of wanted extents, `counts` of each."""
    n = counts + 1
    row = np.repeat(np.arange(len(wanted)), n)
    is_first, is_last = np.zeros(len(row), np.bool_), np.zeros(len(row), np.bool_)
    is_last[np.cumsum(n) - 1] = True
    is_first[np.cumsum(n) - n] = True
    low, high = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    low[is_first], low[~is_first] = wanted.extents[:, 0], end
    high[is_last], high[~is_last] = wanted.extents[:, 1], begin
    position = wanted.position[row] + low - wanted.extents[row, 0]
    there = high > low
    return Wanted(np.column_stack((low[there], high[there])), position[there])
