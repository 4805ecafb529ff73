"""Where blocks belong in a stream that does not list it: its order, worked out again from planes and groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from blockplane.disks import Geometry
from blockplane.image.extents import n_blocks_in
from blockplane.image.order import DISK, TAPE, VERSION, locations
from blockplane.model.addresses import Extents, Numbers
from blockplane.model.errors import StreamDamagedError, StreamError
from blockplane.planes import Plane
from blockplane.stream.codec import FrameHead, Header

#: A stream's own word for its groups makes a reader order at most so many disks; a window costs 1 us for each.
MAX_DISKS: Final = 1024
#: About what an order may cost in all, and for each block beside, where 4,096 bytes need not come with that, in us; and
#: a window, beside what it costs for each disk.
_MOST_COST, _BLOCK_COST, _WINDOW_COST = 1 << 20, 16, 50


class ImplicitLocations:
    """The VBNs of a stream's blocks, in its order; `take` them frame by frame.

    Raises
    ------
    StreamError : an order that this release does not know, or of more disks than it orders.
    StreamDamagedError : blocks that follow lie in none of the groups.

    Notes
    -----
    Memory: a window, and some spans of stripes; nothing grows with the image.
    """

    def __init__(self, header: Header, following: Plane) -> None:
        if header.order not in (DISK, TAPE) or header.order_version != VERSION:
            what = f"{header.order} order, version {header.order_version}"
            raise StreamError(
                f"the stream does not list where its blocks belong, but says {what}", "upgrade blockplane"
            )
        geometry = Geometry(header.groups)
        if not header.window_blocks or _costs_too_much(header, geometry):
            what = f"windows of {header.window_blocks} blocks over {geometry.n_disks} disks"
            raise StreamDamagedError(f"the stream's order has {what}", "send it with --locations explicit")
        if header.order == DISK:
            _require_orderly(header, following, geometry)
        self._windows: Iterator[Extents] = locations(following, geometry, header.order, header.window_blocks)
        #: the window under way, where each extent of it ends, and how many blocks of it were taken
        self._window, self._ends, self._taken = np.empty((0, 2), np.int64), np.empty(0, np.int64), 0

    def take(self, head: FrameHead) -> FrameHead:
        """Return a data frame's head with its extents: the next blocks of the order.

        Raises
        ------
        StreamDamagedError : there are not so many left.
        """
        parts = list(self._next(head.n_blocks))
        if sum(map(n_blocks_in, parts)) < head.n_blocks:
            message = f"frame {head.sequence} brings more blocks than the stream's plane has"
            raise StreamDamagedError(message, "fetch the stream again")
        return head.located(np.concatenate(parts))

    def skip(self, n_blocks: int) -> None:
        """Pass over blocks whose frames are lost."""
        for _ in self._next(n_blocks):
            pass

    def _next(self, n_left: int) -> Iterator[Extents]:
        """Yield the next blocks of the order, fewer at its end."""
        while n_left:
            if not len(self._ends) or self._taken == int(self._ends[-1]):
                window = next(self._windows, None)
                if window is None:
                    return
                self._window, self._ends, self._taken = window, np.cumsum(window[:, 1] - window[:, 0]), 0
            part = _cut(self._window, self._ends, self._taken, n_left)
            yield part
            n_blocks = n_blocks_in(part)
            self._taken, n_left = self._taken + n_blocks, n_left - n_blocks


def _costs_too_much(header: Header, geometry: Geometry) -> bool:
    """Whether an order costs more than its blocks are worth, which may be compressed to next to nothing."""
    n_windows = -(-header.following_blocks // header.window_blocks)
    most = _MOST_COST + _BLOCK_COST * header.following_blocks
    return header.may_be_compressed and n_windows * (_WINDOW_COST + geometry.n_disks) > most


def _require_orderly(header: Header, image: Plane, geometry: Geometry) -> None:
    """Hold the groups against the image."""
    if geometry.n_disks > MAX_DISKS:
        message = f"the stream does not list where its blocks belong, and orders them over {geometry.n_disks} disks"
        raise StreamError(message, f"at most {MAX_DISKS} can be; send it with --locations explicit")
    stops = [(g.first, min(g.stop, image.n_blocks)) for g in header.groups if g.first < image.n_blocks]
    if sum(image.count(start, stop) for start, stop in stops) != header.following_blocks:
        raise StreamDamagedError("blocks of the stream lie in none of its RAID groups", "fetch the stream again")


def _cut(extents: Extents, ends: Numbers, start: int, n_blocks: int) -> Extents:
    """Return n_blocks blocks of extents from one on, or all that are left: cost follows what is returned."""
    stop = min(start + n_blocks, int(ends[-1]))
    first, last = int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop))
    part = extents[first : last + 1].copy()
    part[0, 0] = extents[first, 1] - (int(ends[first]) - start)
    part[-1, 1] = extents[last, 1] - (int(ends[last]) - stop)
    return part
