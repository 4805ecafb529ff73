"""The bands of a receive: stripes in memory that gather the blocks of an image until all it brings to them is there.

The caller's thread finds places and fills buffers; a thread of its own completes bands, computes their parity and
hands them to the disks, in the order in which they became whole.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.band import Band
from blockplane.disks.disk import aligned_buffer
from blockplane.disks.pending import Pending
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.volume.journal import LandedSlots
from blockplane.volume.livechecks import SlotChecks
from blockplane.volume.space import AREA_STRIPES, AreaName

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

Block = NDArray[np.uint8]
Words = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Checks = NDArray[np.uint32]
Mask = NDArray[np.bool_]
BandKey = tuple[int, int]

# Stripes of a band: 1 MiB a disk, one request. 64 took half as much CPU again; turn it down for many disks.
LANDING_STRIPES = 256
# Bands held at once: streams in another disk order bring the parts of a stripe from far apart. 32 MiB of the pool's 64.
MAX_OPEN_BYTES = 32 << 20
# Bands that are whole and wait for their parity: 10 MiB on 4 + 1 disks. More only hide that the disks are slower.
MAX_CLOSING = 2
# Bands go out as they are every so often, whatever is still to come to them: what a killed process had in memory comes
# again. A pause is so many times as long as that took. Where more comes in one, bands are whole soon anyway: 16 MiB.
FLUSH_S = 0.03
_FLUSH_PAUSE = 4
_FLUSH_BLOCKS = 4096
# Areas named in one durable record: each one costs flushes, and a receive goes on through the volume.
AREAS_AHEAD = 8


class _LandingBand:
    """A band that waits for its blocks.

    due : places the image still brings to it. n_handed : buffers of it that are being filled. checks : of what landed,
    (n_data * n_stripes,), bound to VBNs.
    """

    __slots__ = ("band", "checks", "due", "n_handed")

    def __init__(self, band: Band, due: int) -> None:
        self.band = band
        self.due = due
        self.n_handed = 0
        self.checks: Checks = np.zeros(band.written.size, np.uint32)


class _Handed(NamedTuple):
    """What one call of `buffers` gave out.

    pieces : (band, first slot, count). checks : one a block of them. scratch : where their bytes come to lie first,
        where they are so scattered that their bands would not all fit, or where not all of them are wanted; else None.
    wanted : which blocks of the scratch are meant; None: all.
    """

    pieces: list[tuple[BandKey, int, int]]
    checks: Checks
    scratch: Block | None
    wanted: Mask | None = None


class _Sent(NamedTuple):
    """A band that is with the disks."""

    writes: list[Pending]
    slots: LandedSlots


class LandingBands:
    """See the module. From one thread: `landed` is for the oldest call of `buffers` that it was not called for yet.

    Parameters
    ----------
    incoming : words of the plane of places that the image is still to bring.
    on_saved : called in a thread of the bands' own, in order, with what the disks have.
    max_unsaved : blocks that landed and are not with the disks yet: beyond, `landed` waits.
    """

    def __init__(
        self,
        volume: LiveVolume,
        incoming: Callable[[int, int], Words],
        on_saved: Callable[[LandedSlots], None],
        max_unsaved: int,
    ) -> None:
        self._volume = volume
        self._incoming = incoming
        self._on_saved = on_saved
        self._max_unsaved = max_unsaved
        self._n_landed = self._n_saved = 0  # blocks; the second is the closer's
        self._flying: deque[_Sent] = deque()  # the closer's
        self._left: dict[BandKey, int] = {}  # of bands that went out before they were whole: places still to come
        self._open: OrderedDict[BandKey, _LandingBand] = OrderedDict()
        self._handed: deque[_Handed] = deque()
        self._closing: deque[Future[None]] = deque()
        self._closer = ThreadPoolExecutor(1, "landing")
        self._named: set[AreaName] = set()  # areas that the closer was asked to name
        self._sent: dict[BandKey, SlotChecks] = {}  # the closer's: of bands that went out before they were whole
        self._pause = FLUSH_S
        self._flush_at = time.monotonic() + FLUSH_S  # infinite while one is under way
        self._n_flushed = 0  # blocks that had landed by then

    # --- buffers -----------------------------------------------------------------------------------------------------

    def buffers(self, places: NDArray[np.int64], checks: Checks, wanted: Mask | None = None) -> list[Block]:
        """Return where the bytes of extents of places go, in order: buffers of whole blocks.

        Parameters
        ----------
        checks : one a block. wanted : where more blocks come than these, which of them are meant.
        """
        pieces = self._pieces(places)
        if wanted is not None or self._is_scattered(pieces):
            scratch = aligned_buffer((len(checks) if wanted is None else len(wanted)) * BLOCK_BYTES)
            self._handed.append(_Handed(pieces, checks, scratch, wanted))
            return [scratch]
        out = []
        for key, offset, count in pieces:
            waiting = self._band(key)
            waiting.n_handed += 1
            out.append(waiting.band.buffer[offset * BLOCK_BYTES : (offset + count) * BLOCK_BYTES])
        self._handed.append(_Handed(pieces, checks, None))
        return out

    def bring(self, places: NDArray[np.int64], checks: Checks, blocks: Block) -> None:
        """Take blocks, (n, 4096), that are there and verified, to extents of places: no `landed` is called for them."""
        pieces = self._pieces(places)
        self._copy_in(_Handed(pieces, checks, blocks.reshape(-1)), blocks.reshape(-1))

    def pass_over(self, places: NDArray[np.int64]) -> None:
        """Note extents of places to which nothing comes after all, and which are no longer among those to come."""
        for key, _, count in self._pieces(places):
            waiting = self._open.get(key)
            if waiting is not None:
                waiting.due -= count
                if not waiting.due:
                    del self._open[key]
                    self._close(waiting)
            elif key in self._left:
                self._left[key] -= count

    def _is_scattered(self, pieces: list[tuple[BandKey, int, int]]) -> bool:
        """Whether the bands of all pieces together are more than may be open."""
        if len(pieces) <= 1:
            return False
        sizes = {key: len(self._volume.geometry.groups[key[0]].disks) for key, _, _ in pieces}
        return sum(sizes.values()) * LANDING_STRIPES * BLOCK_BYTES > MAX_OPEN_BYTES // 2

    def landed(self) -> None:
        """Note that the buffers handed out longest ago are filled and verified; bands that are whole go out."""
        handed = self._handed.popleft()
        if handed.scratch is not None:
            self._copy_in(handed, handed.scratch)
            return
        at = 0
        for key, offset, count in handed.pieces:
            waiting = self._open[key]
            waiting.n_handed -= 1
            self._note(key, waiting, offset, handed.checks[at : at + count])
            at += count
        self._bound()

    def _copy_in(self, handed: _Handed, scratch: Block) -> None:
        """Bring scattered blocks to their bands, never more of these open than may be."""
        at = 0
        if handed.wanted is not None:
            scratch = scratch.reshape(-1, BLOCK_BYTES)[handed.wanted].reshape(-1)
        for key, offset, count in handed.pieces:
            waiting = self._band(key)
            data = scratch[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES]
            waiting.band.buffer[offset * BLOCK_BYTES : (offset + count) * BLOCK_BYTES] = data
            self._note(key, waiting, offset, handed.checks[at : at + count])
            self._bound()
            at += count

    def _note(self, key: BandKey, waiting: _LandingBand, offset: int, checks: Checks) -> None:
        """Note blocks of a band that are there; send it out when it is whole."""
        count = len(checks)
        waiting.band.written.reshape(-1)[offset : offset + count] = True
        waiting.checks[offset : offset + count] = checks
        self._n_landed += count
        waiting.due -= count
        if not waiting.due:
            del self._open[key]
            self._close(waiting)

    def _pieces(self, places: NDArray[np.int64]) -> list[tuple[BandKey, int, int]]:
        """Cut extents at band borders: (band, first slot, count), neighbours in one band's buffer joined."""
        rows = self._volume.geometry.split_bands(places, LANDING_STRIPES)
        return [((group, index), offset, count) for group, index, offset, count in rows]

    def _band(self, key: BandKey) -> _LandingBand:
        waiting = self._open.get(key)
        if waiting is not None:
            self._open.move_to_end(key)
            return waiting
        group, index = key
        geometry, first = self._volume.geometry, index * LANDING_STRIPES
        n_stripes = min(LANDING_STRIPES, geometry.groups[group].disk_blocks - first)
        mine = geometry.disk_words(self._incoming, group, first, n_stripes)
        due = self._left.pop(key, 0) or int(np.bitwise_count(mine).sum())
        band = self._volume.array.new_band(group, first, n_stripes, zero=due < mine.size * 64)
        band.written[:] = False
        waiting = self._open[key] = _LandingBand(band, due)
        self._name_areas(band)
        return waiting

    def _name_areas(self, band: Band) -> None:
        """Have the areas of a band named while it is filled: that costs flushes, and the band need not wait for it."""
        names = _areas_from(band)
        if names[0] not in self._named:
            self._named.update(names)
            self.submit(lambda: self._volume.declare_areas(names))

    def _bound(self) -> None:
        """Close the bands longest untouched as they are, when too many are open; the rest of them comes later."""
        size = next(iter(self._open.values())).band.buffer.shape[0] if self._open else 0
        n_over = len(self._open) - MAX_OPEN_BYTES // max(size, 1)
        for key in self._closable()[: max(n_over, 0)]:
            self._close(self._open.pop(key))
        while self._n_landed - self._n_saved > self._max_unsaved and self._save_some():
            pass
        if time.monotonic() >= self._flush_at:
            self._flush()

    def _flush(self) -> None:
        """Send out what is open as it is, and pass it on when the disks have it; not where much came in the pause."""
        began, n_landed = time.monotonic(), self._n_landed
        is_much, self._n_flushed = n_landed - self._n_flushed > _FLUSH_BLOCKS, n_landed
        if is_much:
            self._flush_at = began + self._pause
            return
        self._flush_at = float("inf")
        for key in self._closable():
            self._close(self._open.pop(key))
        self.submit(lambda: self._flushed(began))

    def _flushed(self, began: float) -> None:
        while self._flying:
            self._save(wait=True)
        now = time.monotonic()
        self._pause = max(FLUSH_S, _FLUSH_PAUSE * (now - began))
        self._flush_at = now + self._pause

    def _closable(self) -> list[BandKey]:
        """Return the open bands of which no buffer is being filled, longest untouched first."""
        return [key for key, waiting in self._open.items() if not waiting.n_handed]

    def _save_some(self) -> bool:
        """Wait for what is on its way to the disks, else close the band longest untouched; False: there is none."""
        if self._closing or self._flying:
            while self._closing:
                self._closing.popleft().result()
            self._closer.submit(self._save, wait=True).result()
            return True
        for key in self._closable()[:1]:
            self._close(self._open.pop(key))
            return True
        return False

    # --- writing -----------------------------------------------------------------------------------------------------

    def _close(self, waiting: _LandingBand) -> None:
        if waiting.due:
            self._left[waiting.band.group, waiting.band.dbn_start // LANDING_STRIPES] = waiting.due
        try:
            while len(self._closing) >= MAX_CLOSING:
                self._closing.popleft().result()
        except BaseException:
            self._volume.array.drop_band(waiting.band)
            raise
        self._closing.append(self._closer.submit(self._write, waiting))

    def _write(self, waiting: _LandingBand) -> None:
        """Send a band out: what landed, and the parity of the stripes it touches."""
        band, volume = waiting.band, self._volume
        before = None if band.written.all() else self._sent_before(waiting)
        with volume.lock:  # a record that names other areas may come before or after, not in between
            try:
                volume.declare_areas(_areas_from(band))
                slots = _slots(waiting)
                writes = None if band.written.all() else volume.beside.write(band, before)
            except BaseException:
                volume.array.drop_band(band)
                raise
            self._flying.append(_Sent([volume.array.write_band(band)] if writes is None else writes, slots))
        self._save()

    def _save(self, wait: bool = False) -> None:
        """Pass on what the disks have by now; waiting, at least the oldest of what they were given."""
        while self._flying and (wait or all(write.is_done for write in self._flying[0].writes)):
            sent, wait = self._flying.popleft(), False
            for write in sent.writes:
                write.wait()
            self._n_saved += sent.slots.n_blocks
            self._on_saved(sent.slots)

    def adopt(self, band: Band) -> None:
        """Take up a band that an earlier process left partly written: what it says is written was read back."""
        self._sent[band.group, band.dbn_start] = checks = SlotChecks(band)
        checks.note(band)

    def submit(self, work: Callable[[], None]) -> None:
        """Have something done after what was closed so far, in the thread that calls `on_saved`."""
        self._closing.append(self._closer.submit(work))

    def _sent_before(self, waiting: _LandingBand) -> SlotChecks | None:
        """Return the checks of what went out early at a band's stripes; note this band's where more is to come."""
        key = waiting.band.group, waiting.band.dbn_start
        before = self._sent.pop(key, None)
        if waiting.due:
            self._sent[key] = after = SlotChecks(waiting.band, before)
            after.note(waiting.band)
        return before

    def finish(self) -> None:
        """Send out what is open, and wait until everything is with the disks."""
        while self._open:
            self._close(self._open.popitem(last=False)[1])
        while self._closing:
            self._closing.popleft().result()
        self._closer.shutdown()
        self._volume.array.drain()
        while self._flying:  # a band that has left the array may not have said yet that it is done
            self._save(wait=True)

    def drop(self) -> None:
        """Give up what is open; what is closing goes out: nothing refers to it. Not with the volume's lock held."""
        self._closer.shutdown()
        self._closing.clear()
        for waiting in self._open.values():
            self._volume.array.drop_band(waiting.band)
        self._open.clear()


def _areas_from(band: Band) -> list[AreaName]:
    """Return the area of a band, and those after it."""
    area = band.dbn_start // AREA_STRIPES
    return [(band.group, index) for index in range(area, min(area + AREAS_AHEAD, band.record.n_areas))]


def _slots(waiting: _LandingBand) -> LandedSlots:
    """Return what a band that goes out brings."""
    band = waiting.band
    written = band.written.copy()
    return LandedSlots(band.group, band.dbn_start, written, waiting.checks[written.reshape(-1)], not waiting.due)
