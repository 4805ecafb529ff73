"""Where new blocks go: bands of whole free stripes, filled in memory, written with their parity in one go.

Three streams of bands: `bulk` (file data; 64 stripes at a time, in ascending place), `meta` (metafile blocks; stripe
by stripe, so that a small CP writes few stripes) and `local` (the local tree, from the far end of the volume). A
stripe that holds something live is never written while a wholly free one is left: a stream that finds none takes from
another's band. After that, places are taken one by one, and the rest of their stripes is read before parity is
computed, and what their loss would lose is logged (law 7).

A walk over all areas that found nothing is not made again, and the one for single places goes on where it was, until
bands are closed or places come free: what a consistency point costs grows with the areas once, not with each block.

What shadows mean is taken last (`spared.py`), as far as that leaves whole stripes whole, and costs a band of file data
no more than half its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.array import DiskArray
from blockplane.disks.band import Band
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, NoSpaceError
from blockplane.volume.leafbits import WORD_BLOCKS
from blockplane.volume.openband import BandKey, OpenBand
from blockplane.volume.space import AREA_STRIPES, Area, AreaName, Space
from blockplane.volume.spared import Round

# The first band of file data in a CP: one stripe; each is twice the one before. On 4 + 1 disks a CP of one block writes
# 15 blocks, parity included; 25 when it begins with 4 stripes.
FIRST_BULK_STRIPES = 1
# Before every way to take stripes, counted from the last, -1 (see `Placer._find`).
NO_WAY = -9

Block = NDArray[np.uint8]
# Takes stripes from an area: (first stripe, count); True: only such as no shadow means.
Take = Callable[[Area, bool], tuple[int, int] | None]


class Beside(Protocol):
    """What writes to stripes that hold live blocks (volume/beside.py)."""

    def write(self, band: Band) -> object:
        """Send out a band of whose stripes only some slots are written; what stays is read, verified and logged."""
        ...

    def sound(self, group: int, word: int) -> NDArray[np.bool_]:
        """Return which of 64 stripes, (64,), can be written to: nothing in them is damaged for good."""
        ...


class Placer:
    """Hands out places and buffers; see the module.

    Parameters
    ----------
    declare : called before the first write into areas no intent record names yet; returns when the record is durable.
    is_landing : tells whether a receive brings blocks to 64 stripes, (group, stripe word).
    beside : takes bands of whose stripes only some slots are written.
    stop : called with an error that may have left less than what was handed out; nothing is to be committed then.
    """

    def __init__(
        self,
        array: DiskArray,
        space: Space,
        declare: Callable[[list[AreaName]], None],
        is_landing: Callable[[int, int], bool],
        beside: Beside,
        stop: Callable[[BaseException], None],
    ) -> None:
        self._array = array
        self._space = space
        self._declare = declare
        self._is_landing = is_landing
        self._beside = beside
        self._stop = stop
        self._open: dict[BandKey, list[OpenBand]] = {}
        self._bulk: OpenBand | None = None
        self._meta: OpenBand | None = None
        self._local: OpenBand | None = None
        self._bulk_stripes = FIRST_BULK_STRIPES
        self.committing = False  # metafile blocks may then use up the band of file data
        self._areas: dict[bool, Area] = {}
        self._cursor: dict[bool, AreaName] = {False: (0, 0), True: space.last_area()}
        self._rounds: dict[tuple[int, bool], Round] = {}
        self._look_anew()

    # --- handing out -------------------------------------------------------------------------------------------------

    def run(self, n_blocks: int) -> list[tuple[int, int, Block]]:
        """Return places for file data: (first, count, buffer) runs, n_blocks in all.

        Raises
        ------
        NoSpaceError: there are not so many that can be written to; none was handed out.
        VolumeDamagedError: what stays beside them cannot be read; none was handed out.
        """
        runs: list[tuple[int, int, Block]] = []
        try:
            while n_blocks:
                band = self._bulk
                if band is None or band.is_spent:
                    band = self._bulk = self._next_bulk(n_blocks)
                if band is None:
                    runs.append(self.block())
                    n_blocks -= 1
                    continue
                n_blocks -= self._hand_out(band, n_blocks, runs)
        except BaseException as error:
            if self._goes_on(error):
                self._take_back(runs)
            raise
        return runs

    def _goes_on(self, error: BaseException) -> bool:
        """Whether all that was handed out is in its band still or on its way; where it may not be, the volume stops."""
        if isinstance(error, BlockplaneError) and self._array.failure is None:
            return True
        self._stop(error)
        return False

    def _take_back(self, runs: list[tuple[int, int, Block]]) -> None:
        """Undo the handing out of places: the last ones of their bands, none of them filled."""
        for first, count, _ in reversed(runs):
            self._owner(first).cursor -= count
            self._space.release_now(np.arange(first, first + count))

    def _hand_out(self, band: OpenBand, n_blocks: int, runs: list[tuple[int, int, Block]]) -> int:
        """Hand out up to n_blocks of a bulk band in ascending place; return how many."""
        disk, stripe = divmod(band.cursor, band.n_stripes)
        if band.group.chunk_blocks == WORD_BLOCKS == band.n_stripes:
            count = min(n_blocks, band.n_slots - band.cursor)  # one row of chunks: places ascend through the band
        else:
            count = min(n_blocks, band.n_stripes - stripe)
        first = band.place(disk, stripe)
        flat = band.band.data.reshape(-1)
        buffer = flat[band.cursor * BLOCK_BYTES : (band.cursor + count) * BLOCK_BYTES]
        band.cursor += count
        self._space.take(first, first + count)
        runs.append((first, count, buffer))
        return count

    def block(self) -> tuple[int, int, Block]:
        """Return one place for a metafile block: (place, 1, buffer)."""
        if self.committing and self._bulk is not None and not self._bulk.is_spent:
            return self._slot(self._bulk)
        if self._meta is None or self._meta.is_spent:
            self._meta = self._next_meta(backward=False)
        return self._slot(self._meta)

    def local_block(self) -> tuple[int, int, Block]:
        """Return one place for a block of the local tree."""
        if self._local is None or self._local.is_spent:
            self._local = self._next_meta(backward=True)
        return self._slot(self._local)

    def _slot(self, band: OpenBand) -> tuple[int, int, Block]:
        if band.slots is None and not band.by_stripe:
            runs: list[tuple[int, int, Block]] = []
            self._hand_out(band, 1, runs)
            return runs[0]
        if band.slots is not None:
            disk, stripe = divmod(int(band.slots[band.cursor]), band.n_stripes)
        else:
            stripe, disk = divmod(band.cursor, band.n_data)
        band.cursor += 1
        place = band.place(disk, stripe)
        self._space.take(place, place + 1)
        return place, 1, band.band.data[disk, stripe]

    # --- finding bands -----------------------------------------------------------------------------------------------

    def _look_anew(self) -> None:
        """Forget what walks did not find: stripes may have come free."""
        self._n_returns = self._space.n_returns
        self._vain = NO_WAY  # the last way to take stripes for which no area has any, nor for those before it
        self._partial: dict[bool, Iterator[OpenBand]] = {False: iter(()), True: iter(())}

    def _next_bulk(self, n_blocks: int) -> OpenBand | None:
        """Open wholly free stripes for file data; None where the volume has none left.

        A CP begins with few and takes twice as many each time, up to 64: what it leaves unused of its last band stays
        small beside what it wrote.
        """
        n_stripes = self._bulk_stripes
        self._bulk_stripes = min(2 * n_stripes, WORD_BLOCKS)
        n_data = min(group.n_data for group in self._space.geometry.groups)
        takes: list[Take] = []
        if n_stripes == WORD_BLOCKS or n_blocks >= n_data * WORD_BLOCKS:
            takes.append(Area.take_word)
        # a run half as long that spares shadows goes before one that does not
        takes.append(lambda area, clean: area.take_run(n_stripes, clean=clean, least=(n_stripes + 1) // 2))
        found = self._find(takes, backward=False)
        return None if found is None else self._open_band(*found, None, by_stripe=False)

    def _next_meta(self, backward: bool) -> OpenBand:
        found = self._find([lambda area, clean: area.take_run(WORD_BLOCKS, backward, clean)], backward)
        if found is not None:
            return self._open_band(*found, None, by_stripe=True)
        open_bands = (band for bands in self._open.values() for band in bands)
        shared = next((band for band in open_bands if not band.is_spent), None)
        return shared if shared is not None else self._next_partial(backward)

    def _find(self, takes: Sequence[Take], backward: bool) -> tuple[Area, int, int] | None:
        """Take stripes in the first way that finds any: (area, first stripe, count); sparing shadows, then not.

        Where one way finds none, those before it find none either.
        """
        if self._n_returns != self._space.n_returns:
            self._look_anew()
        for way, take in enumerate(takes, -len(takes)) if self._space.is_sparing else ():
            found = self._from_area_at_hand(take, backward, True)
            if found is None:
                around = self._rounds.setdefault((way, backward), Round(self._space, backward))
                names = around.names(self._cursor[backward]) if way > self._vain else []
                found = self._from_next_area(names, take, backward, True)
                if found is not None:
                    around.found()
            if found is not None:
                return found
        for way, take in enumerate(takes, -len(takes)):
            if way <= self._vain:
                continue
            found = self._from_area_at_hand(take, backward, False)
            if found is None:
                found = self._from_next_area(self._space.walk(self._cursor[backward], backward), take, backward, False)
            if found is not None:
                return found
            self._vain = way
        return None

    def _from_area_at_hand(self, take: Take, backward: bool, clean: bool) -> tuple[Area, int, int] | None:
        area = self._areas.get(backward)
        taken = take(area, clean) if area is not None else None
        return (area, *taken) if area is not None and taken is not None else None

    def _from_next_area(
        self, names: Iterable[AreaName], take: Take, backward: bool, clean: bool
    ) -> tuple[Area, int, int] | None:
        """Take stripes from the first of areas that has some; it is the one at hand from then on."""
        for name in names:
            area = self._view(name, backward)
            taken = take(area, clean)
            if taken is not None:
                self._areas[backward] = area
                self._cursor[backward] = name
                self._declare(self._upcoming(name, backward))
                return area, *taken
        return None

    def _view(self, name: AreaName, backward: bool) -> Area:
        """Return which stripes of an area are free and in no open band; both streams share one view of one area."""
        other = self._areas.get(not backward)
        if other is not None and other.name == name:
            return other
        area = self._space.area(name)
        for band in (band for bands in self._open.values() for band in bands):
            start = band.band.dbn_start // WORD_BLOCKS - area.first_word
            if band.group_index == name[0] and 0 <= start < len(area.free):
                area.withhold(band.band.dbn_start, band.band.n_stripes)
        return area

    def _upcoming(self, name: AreaName, backward: bool) -> list[AreaName]:
        """Return the areas likely next: the one at hand and its neighbours in walking order."""
        ahead = []
        for other in self._space.walk(name, backward):
            ahead.append(other)
            if len(ahead) == 8:
                break
        ahead = ahead[:1] if backward else ahead
        return [*ahead, self._cursor[not backward]]

    def _next_partial(self, backward: bool) -> OpenBand:
        """Open stripes that hold live blocks too: the last resort of a volume that is nearly full."""
        for is_new in (False, True):
            if is_new:  # none is left ahead, or that walk was cut short
                self._partial[backward] = self._walk_partial(backward)
            found = next(self._partial[backward], None)
            if found is not None:
                return found
        raise NoSpaceError(
            "the volume is full", "delete files or snapshots, or add a RAID group with `blockplane grow`"
        )

    def _walk_partial(self, backward: bool) -> Iterator[OpenBand]:
        """Open what is free of stripes, area by area, each 64 when it is asked for.

        Those near which a receive has places come last in their area: what landed there has its parity alone to be
        verified by. Not last of all: that would have the first band look through the volume.
        """
        for name in self._space.walk(self._cursor[backward], backward):
            for beside_landing in (False, True):
                yield from self._partial_in(name, beside_landing)

    def _partial_in(self, name: AreaName, beside_landing: bool) -> Iterator[OpenBand]:
        """Open what is free of each 64 stripes of an area, of such as a receive has places in, or of others."""
        for word in self._space.partial_words(name):
            # open bands there are spent: what is still free lies in other stripes than theirs
            if self._is_landing(name[0], word) == beside_landing:
                slots = self._space.free_slots(name, word)
                free = np.flatnonzero(slots & self._beside.sound(name[0], word) if slots.any() else slots)
                if len(free):
                    if self._space.is_sparing:
                        spared = self._space.spared_slots(name, word).reshape(-1)
                        free = free[np.argsort(spared[free], kind="stable")]
                    self._declare([name])
                    area = Area(name, self._space.geometry.groups[name[0]], np.zeros(1, np.uint64))
                    yield self._open_band(area, word * WORD_BLOCKS, WORD_BLOCKS, free.astype(np.int64), by_stripe=True)

    def _open_band(
        self, area: Area, stripe: int, n_stripes: int, slots: NDArray[np.int64] | None, by_stripe: bool
    ) -> OpenBand:
        band = self._array.new_band(area.name[0], stripe, n_stripes, zero=False)
        opened = OpenBand(band, area.group, slots, by_stripe)
        self._open.setdefault(opened.key, []).append(opened)
        return opened

    # --- filling and writing -----------------------------------------------------------------------------------------

    def filled(self, first: int, n_blocks: int) -> None:
        """Note that the bytes of places first, ... are in their buffers; a band that is spent and full is written.

        Where what stays beside it cannot be read, that is tried again with the consistency point.
        """
        band = self._owner(first)
        band.n_filled += n_blocks
        if band.is_spent and band.n_filled == band.n_slots:
            try:
                self._write(band)
            except BaseException as error:
                if not self._goes_on(error):
                    raise

    def _owner(self, place: int) -> OpenBand:
        """Return the open band that handed a place out."""
        index, dbn = self.locate(place)
        for band in self._open.get((index, dbn // WORD_BLOCKS), ()):
            if band.owns(place, dbn):
                return band
        raise AssertionError(f"place {place} was not handed out")

    def locate(self, place: int) -> tuple[int, int]:
        """Return the group and the dbn of a place."""
        index = self._array.geometry.group_of(place)
        group = self._array.geometry.groups[index]
        offset, chunk = place - group.first, group.chunk_blocks
        return index, offset // (chunk * group.n_data) * chunk + offset % chunk

    def close_all(self) -> None:
        """Write every open band as far as it is filled; all that was handed out must be filled."""
        for band in [band for bands in self._open.values() for band in bands]:
            self._close(band)
        self._bulk = self._meta = self._local = None
        self._areas.clear()
        self._look_anew()
        self._bulk_stripes = FIRST_BULK_STRIPES
        self.committing = False

    def _close(self, band: OpenBand) -> None:
        assert band.n_filled == band.cursor, "a band was closed before its blocks were filled"
        if band.cursor == 0:
            self._drop(band)
            self._array.drop_band(band.band)
            return
        if band.slots is None and band.by_stripe:
            band.n_stripes = -(-band.cursor // band.n_data)
        if band.slots is None:
            self._zero_rest(band)
        self._write(band)

    def _zero_rest(self, band: OpenBand) -> None:
        """Zero the places of whole stripes that nobody took, so that nothing stale reaches a disk."""
        data = band.band.data
        if not band.by_stripe:
            data.reshape(-1)[band.cursor * BLOCK_BYTES :] = 0
            return
        for disk in range(band.cursor - (band.n_stripes - 1) * band.n_data, band.n_data):
            data[disk, band.n_stripes - 1] = 0

    def _drop(self, band: OpenBand) -> None:
        bands = self._open[band.key]
        bands.remove(band)
        if not bands:
            del self._open[band.key]

    def _write(self, band: OpenBand) -> None:
        """Send a band out; after an error of a disk, or of what stays beside it, it is open as before."""
        self._drop(band)
        try:
            self._send(band)
        except BlockplaneError:
            self._open.setdefault(band.key, []).append(band)
            raise
        self._meta = None if band is self._meta else self._meta
        self._local = None if band is self._local else self._local
        self._bulk = None if band is self._bulk else self._bulk

    def _send(self, band: OpenBand) -> None:
        data = band.band
        self._declare([(band.group_index, data.dbn_start // AREA_STRIPES)])
        if band.slots is None:
            data.written[:, band.n_stripes :] = False
            data.touched[band.n_stripes :] = False
            self._array.write_band(data)
        else:
            data.written[:] = False
            data.written.reshape(-1)[band.slots[: band.cursor]] = True
            self._beside.write(data)

    def settle(self) -> None:
        """Wait until everything written has reached the disks' queues' ends.

        Raises
        ------
        DiskError: a write failed.
        """
        self._array.drain()

    def discard(self) -> None:
        """Forget open bands: an aborted CP."""
        for bands in self._open.values():
            for band in bands:
                self._array.drop_band(band.band)
        self._open.clear()
        self._bulk = self._meta = self._local = None
        self._areas.clear()
        self._look_anew()

    # --- reading back ------------------------------------------------------------------------------------------------

    @property
    def has_unsettled(self) -> bool:
        """Whether some handed out places are not yet on their way to the disks (what is, reads see)."""
        return bool(self._open)

    def read_back(self, places: NDArray[np.int64], out: Block) -> NDArray[np.bool_]:
        """Copy those of places that are still in open bands to their blocks of out; return which."""
        found = np.zeros(len(places), np.bool_)
        if not self._open:
            return found
        blocks = out.reshape(-1, BLOCK_BYTES)
        for band in (band for bands in self._open.values() for band in bands):
            here, disk, stripe = band.find(places)
            if here.any():
                blocks[here] = band.band.data[disk, stripe]
                found |= here
        return found
