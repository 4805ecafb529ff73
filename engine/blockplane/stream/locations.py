"""Where blocks belong in a stream that does not list it: its order, worked out again from planes and groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from blockplane.disks import Geometry
from blockplane.image.extents import n_blocks_in
from blockplane.image.order import DISK, TAPE, VERSION, locations
from blockplane.model.addresses import Extents
from blockplane.model.errors import StreamDamagedError, StreamError
from blockplane.planes import Plane
from blockplane.stream.codec import FrameHead, Header

#: A stream's own word for its groups makes a reader order at most so many disks; a window costs 1 us for each.
MAX_DISKS: Final = 1024


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
        if not header.window_blocks:
            raise StreamDamagedError("the stream's order has windows of no blocks", "fetch the stream again")
        geometry = Geometry(header.groups)
        if header.order == DISK:
            _require_orderly(header, following, geometry)
        self._windows: Iterator[Extents] = locations(following, geometry, header.order, header.window_blocks)
        self._pending: Extents = np.empty((0, 2), np.int64)

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
            if not len(self._pending):
                window = next(self._windows, None)
                if window is None:
                    return
                self._pending = window
            part, self._pending = _cut(self._pending, n_left)
            yield part
            n_left -= n_blocks_in(part)


def _require_orderly(header: Header, image: Plane, geometry: Geometry) -> None:
    """Hold the groups against the image."""
    if geometry.n_disks > MAX_DISKS:
        message = f"the stream does not list where its blocks belong, and orders them over {geometry.n_disks} disks"
        raise StreamError(message, f"at most {MAX_DISKS} can be; send it with --locations explicit")
    stops = [(g.first, min(g.stop, image.n_blocks)) for g in header.groups if g.first < image.n_blocks]
    if sum(image.count(start, stop) for start, stop in stops) != header.following_blocks:
        raise StreamDamagedError("blocks of the stream lie in none of its RAID groups", "fetch the stream again")


def _cut(extents: Extents, n_blocks: int) -> tuple[Extents, Extents]:
    """Return the extents' first n_blocks blocks, or all, and the rest."""
    ends = np.cumsum(extents[:, 1] - extents[:, 0])
    if n_blocks >= int(ends[-1]):
        return extents, extents[:0]
    at = int(np.searchsorted(ends, n_blocks, side="right"))
    over = n_blocks - (int(ends[at - 1]) if at else 0)
    first, rest = extents[: at + 1].copy(), extents[at:].copy()
    rest[0, 0] += over
    first[-1, 1] = rest[0, 0]
    return (first if over else first[:-1]), rest
