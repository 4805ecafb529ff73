"""The bands of a receive: stripes in memory that gather the blocks of an image until all it brings to them is there.

The caller's thread finds places and fills buffers; a thread of its own completes bands, computes their parity and
hands them to the disks, in the order in which they became whole.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.array import spread
from blockplane.disks.band import Band
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.volume.space import AREA_STRIPES

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

Block = NDArray[np.uint8]
Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]
BandKey = tuple[int, int]

# Stripes of a band: 1 MiB a disk, one request. 64 took half as much CPU again; turn it down for many disks.
LANDING_STRIPES = 256
# Bands held at once: streams in another disk order bring the parts of a stripe from far apart. 32 MiB of the pool's 64.
MAX_OPEN_BYTES = 32 << 20
# Bands that are whole and wait for their parity: 10 MiB on 4 + 1 disks. More only hide that the disks are slower.
MAX_CLOSING = 2
# Areas named in one durable record: each one costs flushes, and a receive goes on through the volume.
AREAS_AHEAD = 8


class _LandingBand:
    """A band that waits for its blocks.

    due : places the image still brings to it.
    """

    __slots__ = ("band", "due")

    def __init__(self, band: Band, due: int) -> None:
        self.band = band
        self.due = due


class LandingBands:
    """See the module. `buffers`, then `landed`, in turns, from one thread.

    Parameters
    ----------
    incoming : words of the plane of places that the image brings.
    """

    def __init__(self, volume: LiveVolume, incoming: Callable[[int, int], Words]) -> None:
        self._volume = volume
        self._incoming = incoming
        self._open: OrderedDict[BandKey, _LandingBand] = OrderedDict()
        self._handed: list[tuple[BandKey, int, int]] = []
        self._closing: deque[Future[None]] = deque()
        self._closer = ThreadPoolExecutor(1, "landing")
        geometry = volume.geometry
        homes = [geometry.home(disk) for disk in range(geometry.n_disks)]
        rows = [(group, position, geometry.groups[group].disk_blocks) for group, position in homes]
        #: by disk: its group, its position there, its blocks
        self._homes = np.array(rows, np.int64).reshape(-1, 3)

    # --- buffers -----------------------------------------------------------------------------------------------------

    def buffers(self, places: NDArray[np.int64]) -> list[Block]:
        """Return where the bytes of extents of places go, in order: buffers of whole blocks."""
        out = []
        for group, index, offset, n_blocks in self._pieces(places):
            key = group, index
            waiting = self._band(key)
            out.append(waiting.band.buffer[offset * BLOCK_BYTES : (offset + n_blocks) * BLOCK_BYTES])
            self._handed.append((key, offset, n_blocks))
        return out

    def landed(self) -> None:
        """Note that the buffers handed out last are filled and verified; bands that are whole go out."""
        for key, offset, n_blocks in self._handed:
            waiting = self._open[key]
            waiting.band.written.reshape(-1)[offset : offset + n_blocks] = True
            waiting.due -= n_blocks
            if not waiting.due:
                del self._open[key]
                self._close(waiting)
        self._handed.clear()
        self._bound()

    def _pieces(self, places: NDArray[np.int64]) -> list[tuple[int, int, int, int]]:
        """Cut extents at band borders: (group, band, first slot, count), neighbours in one band's buffer joined."""
        pieces = self._volume.geometry.split(places)
        low, high = pieces.dbn, pieces.dbn + pieces.n_blocks
        first = low // LANDING_STRIPES
        n_parts = (high - 1) // LANDING_STRIPES - first + 1
        source = np.repeat(np.arange(len(low)), n_parts)
        index = spread(first, n_parts)
        base = index * LANDING_STRIPES
        start = np.maximum(low[source], base)
        counts = np.minimum(high[source], base + LANDING_STRIPES) - start
        group, position, disk_blocks = self._homes[pieces.disk[source]].T
        offset = position * np.minimum(LANDING_STRIPES, disk_blocks - base) + start - base
        joins = (group[1:] == group[:-1]) & (index[1:] == index[:-1]) & (offset[1:] == offset[:-1] + counts[:-1])
        heads = np.flatnonzero(np.concatenate(([True], ~joins)))
        lengths = np.add.reduceat(counts, heads)
        rows = group[heads].tolist(), index[heads].tolist(), offset[heads].tolist(), lengths.tolist()
        return list(zip(*rows, strict=True))

    def _band(self, key: BandKey) -> _LandingBand:
        waiting = self._open.get(key)
        if waiting is not None:
            self._open.move_to_end(key)
            return waiting
        group, index = key
        geometry, first = self._volume.geometry, index * LANDING_STRIPES
        n_stripes = min(LANDING_STRIPES, geometry.groups[group].disk_blocks - first)
        mine = geometry.disk_words(self._incoming, group, first, n_stripes)
        due = int(np.bitwise_count(mine).sum())
        band = self._volume.array.new_band(group, first, n_stripes, zero=due < mine.size * 64)
        band.written[:] = False
        waiting = self._open[key] = _LandingBand(band, due)
        return waiting

    def _bound(self) -> None:
        """Close the bands longest untouched as they are, when too many are open; the rest of them comes later."""
        size = next(iter(self._open.values())).band.buffer.shape[0] if self._open else 0
        while len(self._open) * size > MAX_OPEN_BYTES:
            _, waiting = self._open.popitem(last=False)
            self._close(waiting)

    # --- writing -----------------------------------------------------------------------------------------------------

    def _close(self, waiting: _LandingBand) -> None:
        while len(self._closing) >= MAX_CLOSING:
            self._closing.popleft().result()
        self._closing.append(self._closer.submit(self._write, waiting))

    def _write(self, waiting: _LandingBand) -> None:
        """Send a band out: what landed, and the parity of the stripes it touches."""
        band, volume = waiting.band, self._volume
        area = band.dbn_start // AREA_STRIPES
        ahead = range(area, min(area + AREAS_AHEAD, band.record.n_areas))
        try:
            volume.declare_areas([(band.group, index) for index in ahead])
            if not band.written.all():
                volume.write_beside(band)
                return
        except BaseException:
            volume.array.drop_band(band)
            raise
        volume.array.write_band(band)

    def finish(self) -> None:
        """Send out what is open, and wait until everything is with the disks."""
        for waiting in self._open.values():
            self._close(waiting)
        self._open.clear()
        while self._closing:
            self._closing.popleft().result()
        self._closer.shutdown()
        self._volume.array.drain()

    def drop(self) -> None:
        """Give up what is open; what is closing goes out: nothing refers to it. Not with the volume's lock held."""
        self._closer.shutdown()
        self._closing.clear()
        for waiting in self._open.values():
            self._volume.array.drop_band(waiting.band)
        self._open.clear()
