"""Landing: taking the blocks of an image onto a volume that goes on living, and making its top the live state at the
end.

Every incoming block has a place from the start: its own number's where nothing holds that, another otherwise, and
then the new state's place map says where (law 4). Blocks are gathered in bands; a band goes out with its parity when
all that the image brings to it is there. Nothing the volume refers to is overwritten, nothing refers to what landed
until the one commit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.band import BAND_STRIPES, Band
from blockplane.model.errors import (
    NoSpaceError,
    RefusedError,
    SnapshotExistsError,
    StreamDamagedError,
    VolumeDamagedError,
)
from blockplane.planes import Plane
from blockplane.volume import held
from blockplane.volume.codec import NO_ID, SnapshotRecord, TableEntry
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    Leaf,
    clear_range,
    count,
    leaf_pieces,
    numbers_in,
)
from blockplane.volume.live import LiveVolume, PlaceReader
from blockplane.volume.placemap import PlaceMap, from_pairs, union
from blockplane.volume.space import AREA_STRIPES
from blockplane.volume.state import State
from blockplane.volume.tree import mask_runs

if TYPE_CHECKING:
    from blockplane.volume.space import AreaName

Block = NDArray[np.uint8]
BandKey = tuple[int, int]

# Bands held at once: streams in another disk order bring the parts of a stripe from far apart. 32 MiB of the pool's 64.
MAX_OPEN_BYTES = 32 << 20


class _LandingBand:
    """A band that waits for its blocks. due: places the image still brings to it."""

    __slots__ = ("band", "due", "live")

    def __init__(self, band: Band, due: int, live: NDArray[np.bool_]) -> None:
        self.band = band
        self.due = due
        self.live = live  # (n_data, n_stripes): slots that something else holds; they are read, not written


class Landing:
    """One receive in progress.

    Parameters
    ----------
    image : the VBNs that will come.
    base : the snapshot the image builds on, a regular one of this volume; None for a full image.

    Raises
    ------
    RefusedError: a VBN has no place on this volume. NoSpaceError: the blocks do not fit; nothing changed.
    """

    def __init__(self, volume: LiveVolume, image: Plane, base: TableEntry | None = None) -> None:
        self._volume = volume
        self._image = image
        self._base = base
        self._bands: OrderedDict[BandKey, _LandingBand] = OrderedDict()
        self._waiting: dict[int, Leaf] = {}
        self._n_waiting = 0
        self._incoming: dict[int, Leaf] = {}
        self._is_over = False
        with volume.lock:
            volume.commit()
            self._refuse_misfit()
            try:
                self.placemap = self._assign()
            except BaseException:
                self.abort()
                raise

    # --- where blocks go ---------------------------------------------------------------------------------------------

    def _leaf(self, leaf: int) -> Leaf:
        """Return a leaf of the image, fresh."""
        first, stop = leaf * LEAF_WORDS, min((leaf + 1) * LEAF_WORDS, -(-self._image.n_blocks // 64))
        words = np.zeros(LEAF_WORDS, np.uint64)
        if first < stop:
            words[: stop - first] = self._image.word_range(first, stop - first)
        return words

    def _leaves(self) -> Iterator[int]:
        """Yield the leaves in which the image has a block."""
        last = -1
        for extents in self._image.iter_extents(1 << 16):
            low, high = extents[:, 0] // LEAF_BLOCKS, (extents[:, 1] - 1) // LEAF_BLOCKS
            for start, stop in np.unique(np.column_stack((low, high)), axis=0).tolist():
                for leaf in range(max(start, last + 1), stop + 1):
                    last = leaf
                    yield leaf

    def _refuse_misfit(self) -> None:
        volume, n_blocks = self._volume, len(self._image)
        top = int(self._image.select(n_blocks - 1)) if n_blocks else 0
        if top >= volume.geometry.n_blocks:
            raise RefusedError(
                f"the image holds block {top}, and {volume.path} has {volume.geometry.n_blocks} blocks",
                "receive onto a volume at least as large as the source, or add a RAID group with `blockplane grow`",
            )
        volume.make_room(n_blocks)
        if volume.available_blocks < n_blocks:
            raise NoSpaceError(
                f"the image has {n_blocks} blocks, and {volume.path} has room for {volume.available_blocks}",
                "delete snapshots that are not needed, or add a RAID group with `blockplane grow`",
            )

    def _assign(self) -> PlaceMap:
        """Give every block its place: home where that is free; return the map of the others."""
        space, astray = self._volume.space, []
        for leaf in self._leaves():
            words = self._leaf(leaf)
            self._waiting[leaf] = words
            self._n_waiting += count(words)
            busy = space.leaf(leaf)
            conflict = words & busy
            if conflict.any():
                astray.append(numbers_in(conflict, leaf * LEAF_BLOCKS))
            self._reserve(leaf, words & ~busy)
        if not astray:
            return PlaceMap()
        vbns = np.concatenate(astray)
        return from_pairs(vbns, self._places_elsewhere(len(vbns)))

    def _reserve(self, leaf: int, words: Leaf) -> None:
        self._incoming[leaf] = self._incoming.get(leaf, EMPTY_LEAF) | words
        self._volume.incoming[leaf] = self._volume.incoming.get(leaf, EMPTY_LEAF) | words
        self._volume.space.leaf(leaf)[:] |= words

    def _places_elsewhere(self, n_blocks: int) -> NDArray[np.int64]:
        """Return places nothing holds and no block of the image has as its home, ascending."""
        found: list[NDArray[np.int64]] = []
        n_leaves = -(-self._volume.geometry.n_blocks // LEAF_BLOCKS)
        for leaf in range(n_leaves - 1, -1, -1):
            free = numbers_in(~self._volume.space.leaf(leaf), leaf * LEAF_BLOCKS)[:n_blocks]
            if len(free):
                words = np.zeros(LEAF_WORDS, np.uint64)
                low = free - leaf * LEAF_BLOCKS
                np.bitwise_or.at(words, low >> 6, np.uint64(1) << (low & 63).astype(np.uint64))
                self._reserve(leaf, words)
                found.append(free)
                n_blocks -= len(free)
            if not n_blocks:
                return np.sort(np.concatenate(found))
        raise NoSpaceError(
            f"{self._volume.path} has no place for {n_blocks} more blocks", "delete snapshots, or grow it"
        )

    # --- blocks ------------------------------------------------------------------------------------------------------

    def buffers(self, vbn: int, n_blocks: int) -> list[tuple[int, Block]]:
        """Return where the bytes of consecutive VBNs go: (count, buffer of count * 4096 bytes), in order.

        Raises
        ------
        StreamDamagedError: a block was not announced, or came before.
        """
        self._claim(vbn, n_blocks)
        extents = self.placemap.extents_to_places(np.array([[vbn, vbn + n_blocks]], np.int64))
        pieces = self._volume.geometry.split(extents)
        found: list[tuple[int, Block]] = []
        for disk, dbn, n in zip(pieces.disk.tolist(), pieces.dbn.tolist(), pieces.n_blocks.tolist(), strict=True):
            group, position = self._volume.geometry.home(disk)
            at = dbn
            while at < dbn + n:
                band = self._band(group, at // BAND_STRIPES).band
                stop = min(dbn + n, band.dbn_start + band.n_stripes)
                low, high = at - band.dbn_start, stop - band.dbn_start
                found.append((stop - at, band.data[position, low:high].reshape(-1)))
                at = stop
        return found

    def _claim(self, vbn: int, n_blocks: int) -> None:
        """Note blocks as come; each comes once."""
        for leaf, low, high in leaf_pieces(vbn, vbn + n_blocks):
            words = self._waiting.get(leaf, EMPTY_LEAF)
            before = count(words)
            if before:
                clear_range(words, low, high)
            if before - count(words) != high - low:
                raise StreamDamagedError(
                    f"blocks {vbn} to {vbn + n_blocks} were not announced, or came before",
                    hint="fetch the stream again",
                )
        self._n_waiting -= n_blocks

    def landed(self, vbn: int, n_blocks: int) -> None:
        """Note that the buffers of consecutive VBNs are filled and verified; bands that are whole go out."""
        extents = self.placemap.extents_to_places(np.array([[vbn, vbn + n_blocks]], np.int64))
        pieces = self._volume.geometry.split(extents)
        for disk, dbn, n in zip(pieces.disk.tolist(), pieces.dbn.tolist(), pieces.n_blocks.tolist(), strict=True):
            group, position = self._volume.geometry.home(disk)
            at = dbn
            while at < dbn + n:
                key = (group, at // BAND_STRIPES)
                waiting = self._bands[key]
                band = waiting.band
                stop = min(dbn + n, band.dbn_start + band.n_stripes)
                band.written[position, at - band.dbn_start : stop - band.dbn_start] = True
                waiting.due -= stop - at
                if not waiting.due:
                    del self._bands[key]
                    self._write(waiting)
                at = stop
        self._bound()

    def _bound(self) -> None:
        """Write the bands longest untouched as they are, when too many are open; the rest of them comes later."""
        if not self._bands:
            return
        size = next(iter(self._bands.values())).band.buffer.shape[0]
        while len(self._bands) * size > MAX_OPEN_BYTES:
            _, waiting = self._bands.popitem(last=False)
            self._write(waiting)

    def _band(self, group: int, word: int) -> _LandingBand:
        waiting = self._bands.get((group, word))
        if waiting is not None:
            self._bands.move_to_end((group, word))
            return waiting
        record = self._volume.geometry.groups[group]
        first = word * BAND_STRIPES
        n_stripes = min(BAND_STRIPES, record.disk_blocks - first)
        band = self._volume.array.new_band(group, first, n_stripes)
        band.written[:] = False
        mine = self._slots(self._incoming_words, group, first)
        with self._volume.lock:
            busy = self._slots(self._busy_words, group, first)
        waiting = _LandingBand(band, int(mine.sum()), busy & ~mine)
        self._bands[group, word] = waiting
        return waiting

    def _slots(self, word_range: object, group: int, first: int) -> NDArray[np.bool_]:
        """Return bits of a plane of places as (n_data, n_stripes)."""
        words = self._volume.geometry.disk_words(word_range, group, first, BAND_STRIPES)  # type: ignore[arg-type]
        bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), bitorder="little")
        return bits.reshape(words.shape[0], -1).astype(np.bool_)

    def _incoming_words(self, first: int, n_words: int) -> NDArray[np.uint64]:
        return _words_of(lambda leaf: self._incoming.get(leaf, EMPTY_LEAF), first, n_words)

    def _busy_words(self, first: int, n_words: int) -> NDArray[np.uint64]:
        return _words_of(self._volume.space.leaf, first, n_words)

    def _write(self, waiting: _LandingBand) -> None:
        """Send a band out: what landed, and the parity of the stripes it touches."""
        band = waiting.band
        if not band.written.any():
            self._volume.array.drop_band(band)
            return
        band.touched[:] = band.written.any(axis=0)
        if band.record.n_parity:
            self._fill_rest(band, waiting.live)
        area: AreaName = (band.group, band.dbn_start // AREA_STRIPES)
        self._volume.declare_area(area)
        self._volume.array.write_band(band)

    def _fill_rest(self, band: Band, live: NDArray[np.bool_]) -> None:
        """Fill the slots that are not written now from the disks: they keep what is there, and parity counts it."""
        missing = band.touched & ~band.written
        places = self._volume.geometry.band_places(band.group, band.dbn_start, band.n_stripes)
        reads = []
        for disk in range(band.record.n_data):
            runs = np.array(mask_runs(missing[disk]), np.int64).reshape(-1, 2)
            if len(runs):
                at = runs[:, 0] + disk * band.n_stripes
                member, counts = band.record.disks[disk], runs[:, 1] - runs[:, 0]
                reads.append(
                    self._volume.array.submit_disk_read(member, runs[:, 0] + band.dbn_start, counts, band.buffer, at)
                )
        for read in reads:
            read.wait()
        beside = missing & live
        if beside.any():
            self._volume.verify_places(places[beside], band.data[beside])

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def n_waiting(self) -> int:
        """How many announced blocks have not come."""
        return self._n_waiting

    def commit(self, arriving: Sequence[SnapshotRecord]) -> None:
        """Make the image's snapshots this volume's, and the newest the live state: one root record, written last.

        Parameters
        ----------
        arriving : the records of the snapshots that are whole now, the top last.

        Raises
        ------
        StreamDamagedError: announced blocks are missing, or a snapshot is not whole; nothing changed.
        """
        if self._n_waiting:
            raise StreamDamagedError(f"{self._n_waiting} announced blocks did not come", hint="fetch the stream again")
        volume = self._volume
        for waiting in list(self._bands.values()):
            self._write(waiting)
        self._bands.clear()
        volume.array.drain()
        with volume.lock:
            volume.commit()
            states = [self._arrived(record) for record in arriving]
            entries = self._entries(arriving)
            old = volume.committed
            self._flip(states, entries, old)

    def _arrived(self, record: SnapshotRecord) -> State:
        """Return the state of a snapshot that came, its map cut to its plane; every block of it must be here."""
        volume = self._volume
        base = volume.snapshot_state(self._base) if self._base is not None else None
        candidate = self.placemap
        if base is not None and not base.placemap.is_empty:
            kept = _without_plane(base.placemap, self._image)
            candidate = union([kept, self.placemap])
        state = State.read(PlaceReader(volume.array, candidate), record.root, candidate)
        self._require_whole(state, base, record)
        trimmed = _cut_to_plane(candidate, state)
        return State.read(PlaceReader(volume.array, trimmed), record.root, trimmed)

    def _require_whole(self, state: State, base: State | None, record: SnapshotRecord) -> None:
        n_blocks = 0
        for leaf, words in state.leaves():
            there = self._leaf(leaf)
            if base is not None:
                there |= base.plane_leaf(leaf)
            if (words & ~there).any():
                missing = int(numbers_in(words & ~there, leaf * LEAF_BLOCKS)[0])
                raise StreamDamagedError(
                    f"snapshot {record.name!r} would not be whole: block {missing} is not in the stream or its base",
                    hint="fetch the stream again; if that does not help, its sender is at fault",
                )
            n_blocks += count(words)
        if n_blocks != record.n_blocks or state.root.n_blocks != n_blocks:
            raise StreamDamagedError(
                f"snapshot {record.name!r} holds {n_blocks} blocks, and its record says {record.n_blocks}",
                hint="its sender is at fault",
            )

    def _entries(self, arriving: Sequence[SnapshotRecord]) -> list[TableEntry]:
        """Return table entries for what arrived, each a child of the newest ancestor that is here."""
        local = self._volume.local
        names = {entry.record.name for entry in local.entries()}
        known = {entry.record.id for entry in local.entries()}
        parent = self._base.record.id if self._base is not None else NO_ID
        made = []
        for record in sorted(arriving, key=lambda r: r.cp):
            if record.name in names:
                raise SnapshotExistsError(
                    f"the stream brings a snapshot named {record.name!r}, and another of that name is here",
                    "rename the one that is here",
                )
            own = record.parent_id if record.parent_id in known else parent
            made.append(TableEntry(replace(record, parent_id=own)))
            known.add(record.id)
            parent = record.id
        return made

    def _flip(self, states: list[State], entries: list[TableEntry], old: State) -> None:
        volume = self._volume
        by_id = dict(zip([entry.record.id for entry in entries], entries, strict=True))
        top = states[-1]
        ordered = sorted(states, key=lambda state: state.cp)
        volume.local.set_entries([*volume.local.entries(), *entries])
        for entry, state in zip(entries, ordered, strict=True):
            volume.local.set_map(entry, state.placemap)
            volume.adopt_state(entry.record.id, state)
        if by_id[entries[-1].record.id].record.root != top.pointer:
            raise VolumeDamagedError("the stream's top is not its newest snapshot", "its sender is at fault")
        n_before = volume.active.root.n_blocks + volume.local.root.n_held
        volume.exchange(top, entries[-1].record.id)
        held.rebuild(volume.local, volume.snapshot_states(), top, [old, *states[:-1]])
        n_after = volume.active.root.n_blocks + volume.local.root.n_held
        volume.space.n_freed_open += max(n_before + len(self._image) - n_after, 0)
        self._forget_incoming()
        volume.commit()

    def _forget_incoming(self) -> None:
        for leaf, words in self._incoming.items():
            rest = self._volume.incoming.get(leaf, EMPTY_LEAF) & ~words
            if rest.any():
                self._volume.incoming[leaf] = rest
            else:
                self._volume.incoming.pop(leaf, None)
        self._incoming = {}
        self._volume.space.forget()
        self._is_over = True

    def abort(self) -> None:
        """Give everything up: the volume is as it was."""
        if self._is_over:
            return
        with self._volume.lock:
            for waiting in self._bands.values():
                self._volume.array.drop_band(waiting.band)
            self._bands.clear()
            self._forget_incoming()


def _words_of(leaf_of: object, first: int, n_words: int) -> NDArray[np.uint64]:
    """Return words of a plane kept in leaves."""
    out = np.empty(n_words, np.uint64)
    at = 0
    while at < n_words:
        leaf, low = divmod(first + at, LEAF_WORDS)
        take = min(n_words - at, LEAF_WORDS - low)
        out[at : at + take] = leaf_of(leaf)[low : low + take]  # type: ignore[operator]
        at += take
    return out


def _without_plane(placemap: PlaceMap, plane: Plane) -> PlaceMap:
    """Return a map less the VBNs of a plane."""
    vbns = _domain(placemap)
    return placemap.without(vbns[plane.contains_many(vbns)])


def _cut_to_plane(placemap: PlaceMap, state: State) -> PlaceMap:
    """Return a map less the VBNs that a state does not hold."""
    vbns = _domain(placemap)
    return placemap.without(vbns[~state.holds(vbns)]) if len(vbns) else placemap


def _domain(placemap: PlaceMap) -> NDArray[np.int64]:
    parts = [np.arange(low, high, dtype=np.int64) for low, high, _ in placemap.extents.tolist()]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)
