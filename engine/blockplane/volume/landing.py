"""Landing: taking the blocks of an image onto a volume that goes on living, and making its top the live state at the
end.

Every incoming block has a place from the start: its own number's where nothing holds that, another otherwise, and
then the new state's place map says where (law 4). Blocks are gathered in bands; a band goes out with its parity when
all that the image brings to it is there. Nothing the volume refers to is overwritten, nothing refers to what landed
until the one commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import (
    NoSpaceError,
    RefusedError,
    SnapshotExistsError,
    StreamDamagedError,
)
from blockplane.planes import Plane
from blockplane.volume import held
from blockplane.volume.codec import NO_ID, ROOT_POINTERS, SnapshotRecord, TableEntry
from blockplane.volume.landing_bands import LandingBands
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    Leaf,
    count,
    numbers_in,
    words_of,
)
from blockplane.volume.live import LiveVolume
from blockplane.volume.placemap import PlaceMap, from_pairs, union
from blockplane.volume.readers import PlaceReader
from blockplane.volume.state import State, differing_leaves
from blockplane.volume.treeread import FETCH_BLOCKS, NODE_SHIFT
from blockplane.volume.waiting import Waiting, plane_leaf

Block = NDArray[np.uint8]


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
        self._bands = LandingBands(volume, self._incoming_words)
        self._waiting = Waiting(image)
        self._incoming: dict[int, Leaf] = {}
        self._is_over = False
        try:
            with volume.lock:
                volume.commit()
                self._live = volume.committed.pointer
                self._refuse_misfit()
                self.placemap = self._assign()
        except BaseException:
            self.abort()
            raise

    # --- where blocks go ---------------------------------------------------------------------------------------------

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
            words = plane_leaf(self._image, leaf)
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

    def buffers(self, extents: NDArray[np.int64]) -> list[Block]:
        """Return where the bytes of extents of VBNs go: buffers of whole blocks, in order.

        Raises
        ------
        StreamDamagedError: a block was not announced, or came before.
        """
        bad = self._waiting.take(extents)
        if bad >= 0:
            raise StreamDamagedError(f"block {bad} was not announced, or came before", hint="fetch the stream again")
        return self._bands.buffers(self.placemap.extents_to_places(extents))

    def landed(self) -> None:
        """Note that the buffers handed out longest ago are filled and verified."""
        self._bands.landed()

    def _incoming_words(self, first: int, n_words: int) -> NDArray[np.uint64]:
        return words_of(lambda leaf: self._incoming.get(leaf, EMPTY_LEAF), first, n_words)

    # --- the end -----------------------------------------------------------------------------------------------------

    @property
    def n_waiting(self) -> int:
        """How many announced blocks have not come."""
        return self._waiting.n_left

    def commit(self, arriving: Sequence[SnapshotRecord]) -> None:
        """Make the image's snapshots this volume's, and the newest the live state: one root record, written last.

        Parameters
        ----------
        arriving : the records of the snapshots that are whole now, the top last.

        Raises
        ------
        StreamDamagedError: announced blocks are missing, or a snapshot is not whole; nothing changed.
        RefusedError: the volume was written to meanwhile; nothing changed.
        """
        if self.n_waiting:
            raise StreamDamagedError(f"{self.n_waiting} announced blocks did not come", hint="fetch the stream again")
        volume = self._volume
        self._bands.finish()
        with volume.lock:
            volume.commit()
            self._refuse_changed()
            entries = self._entries(arriving)
            states = [self._arrived(entry.record) for entry in entries]
            self._flip(states, entries, volume.committed)

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
        """Hold a snapshot's plane against what came and its base; leaves that it shares with that are whole."""
        self._refuse_boundless(state, record)
        n_blocks = base.root.n_blocks if base is not None else 0
        leaves = differing_leaves([state, base]) if base is not None else list(state.leaf_numbers())
        for at, leaf in enumerate(leaves):
            if at % FETCH_BLOCKS == 0:
                for each in (state, base) if base is not None else (state,):
                    each.blockmap.fetch_blocks(leaves[at : at + FETCH_BLOCKS])
            words, there = state.plane_leaf(leaf), plane_leaf(self._image, leaf)
            if base is not None:
                there |= base.plane_leaf(leaf)
                n_blocks -= count(base.plane_leaf(leaf))
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

    def _refuse_boundless(self, state: State, record: SnapshotRecord) -> None:
        """Refuse a blockmap whose size or depth is not the numbering's: walking it could take for ever."""
        n_leaves, depth = -(-self._image.n_blocks // LEAF_BLOCKS), 0
        while ROOT_POINTERS << (NODE_SHIFT * depth) < n_leaves:
            depth += 1
        if state.n_leaves > n_leaves or state.blockmap.root.depth > depth:
            raise StreamDamagedError(
                f"snapshot {record.name!r} has a blockmap of {state.n_leaves} leaves, and its numbering has {n_leaves}",
                hint="its sender is at fault",
            )

    def _entries(self, arriving: Sequence[SnapshotRecord]) -> list[TableEntry]:
        """Return table entries, older first, for what arrived and is not here yet.

        The parent is the state a snapshot was built on here, not the one it had at the source: only so a line in the
        table is one in which a place that two snapshots hold is held by all between them. One older than the base has
        none.
        """
        local, base = self._volume.local, self._base.record if self._base is not None else None
        known = {entry.record.id for entry in local.entries()}
        new = [record for record in sorted(arriving, key=lambda record: record.cp) if record.id not in known]
        if not new or new[-1].id != arriving[-1].id:
            raise StreamDamagedError("the stream's top is not its newest snapshot", hint="its sender is at fault")
        self._refuse_names(new)
        made: list[TableEntry] = []
        parent = base.id if base is not None else NO_ID
        for record in new:
            is_older = base is not None and record.cp < base.cp
            made.append(TableEntry(replace(record, parent_id=NO_ID if is_older else parent)))
            parent = parent if is_older else record.id
        return made

    def _refuse_changed(self) -> None:
        """What was agreed to be replaced is the live state as it was when the receive began."""
        if self._volume.committed.pointer != self._live:
            raise RefusedError(
                f"{self._volume.path} was written to while it received; these changes would be lost",
                "keep them in a snapshot, then receive again with --discard",
            )

    def _refuse_names(self, new: Sequence[SnapshotRecord]) -> None:
        names = {entry.record.name for entry in self._volume.local.entries()}
        for record in new:
            if record.name in names:
                raise SnapshotExistsError(
                    f"the stream brings a snapshot named {record.name!r}, and another of that name is here",
                    "rename the one that is here",
                )
            names.add(record.name)

    def _flip(self, states: list[State], entries: list[TableEntry], old: State) -> None:
        """Enter what arrived, older first, and make the last of it the live state."""
        volume, top = self._volume, states[-1]
        volume.local.set_entries([*volume.local.entries(), *entries])
        for entry, state in zip(entries, states, strict=True):
            volume.local.set_map(entry, state.placemap)
            volume.adopt_state(entry.record.id, state)
        n_before = volume.active.root.n_blocks + volume.local.root.n_held
        volume.exchange(top, entries[-1].record.id)
        held.rebuild(volume.local, volume.snapshot_states(), top, [old, *states[:-1]])
        n_after = volume.active.root.n_blocks + volume.local.root.n_held
        volume.space.n_freed_open += max(n_before + len(self._image) - n_after, 0)
        for leaf, words in self._incoming.items():
            volume.local.shadows.cleared(leaf, words)
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
        self._bands.drop()
        with self._volume.lock:
            self._forget_incoming()


def _without_plane(placemap: PlaceMap, plane: Plane) -> PlaceMap:
    """Return a map less the VBNs of a plane."""
    vbns = placemap.vbns()
    return placemap.without(vbns[plane.contains_many(vbns)])


def _cut_to_plane(placemap: PlaceMap, state: State) -> PlaceMap:
    """Return a map less the VBNs that a state does not hold."""
    vbns = placemap.vbns()
    return placemap.without(vbns[~state.holds(vbns)]) if len(vbns) else placemap
