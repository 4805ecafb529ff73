"""Landing: taking the blocks of an image onto a volume that goes on living, and making its top the live state at the
end.

Every incoming block has a place from the start: its own number's where nothing holds that, another otherwise, and
then the new state's place map says where (law 4). Blocks are gathered in bands; a band goes out with its parity when
all that the image brings to it is there. Nothing the volume refers to is overwritten, nothing refers to what landed
until the one commit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.array import spread
from blockplane.model.errors import (
    BlockplaneError,
    NoSpaceError,
    RefusedError,
    SnapshotExistsError,
    StreamDamagedError,
    StreamMismatchError,
)
from blockplane.planes import Plane, combine, combine_count
from blockplane.volume import held, marking
from blockplane.volume.arrivals import Arrivals
from blockplane.volume.codec import NO_ID, SnapshotRecord, TableEntry
from blockplane.volume.incoming import IncomingEntry, IncomingImage, leaves_of
from blockplane.volume.journal import LandedSlots
from blockplane.volume.landed import LandedBlocks
from blockplane.volume.landing_bands import LandingBands
from blockplane.volume.leafbits import (
    EMPTY_LEAF,
    LEAF_BLOCKS,
    LEAF_WORDS,
    Leaf,
    numbers_in,
    words_of,
)
from blockplane.volume.live import LiveVolume
from blockplane.volume.placemap import PlaceMap, from_pairs
from blockplane.volume.state import State
from blockplane.volume.waiting import Waiting, plane_leaf

# For less a volume that a receive made does not stay when the receive is interrupted: 1 MiB.
WORTH_BLOCKS = 256

Block = NDArray[np.uint8]
Checks = NDArray[np.uint32]


class Landing:
    """One receive in progress.

    Parameters
    ----------
    image : the VBNs of the image.
    base : the snapshot the image builds on, a regular one of this volume; None for a full image.
    entry : which image it is, so that the receive can go on after it was interrupted; None: it cannot.
    following : the VBNs that will come, where those are not all; the others landed before.

    Attributes
    ----------
    placemap : where the image's blocks lie that are not at home.
    copied : the VBNs that landed before and are not wanted again.

    Raises
    ------
    RefusedError: a VBN has no place on this volume. NoSpaceError: the blocks do not fit. StreamMismatchError: blocks
    are neither here nor to come. Nothing changed.
    """

    def __init__(
        self,
        volume: LiveVolume,
        image: Plane,
        base: TableEntry | None = None,
        entry: IncomingEntry | None = None,
        following: Plane | None = None,
    ) -> None:
        self._volume = volume
        self._image = image
        self._base = base
        self._incoming: dict[int, Leaf] = {}
        self._is_over = False
        self._kept: LandedBlocks | None = None
        self._bands: LandingBands | None = None
        try:
            with volume.lock:
                volume.commit()
                self._live = volume.committed.pointer
                self._begin(entry)
                self._require_all_to_come(following)
        except BaseException:
            self.abandon()
            raise

    def _begin(self, entry: IncomingEntry | None) -> None:
        """Reserve places, or take up what an interrupted receive of the same image left."""
        before = self._interrupted(entry.image_id) if entry is not None else None
        if before is None:
            self._refuse_misfit()
            self.placemap = self._assign()
        else:
            entry, self.placemap = before.entry, before.placemap()
            for leaf, words in leaves_of(before.places):
                self._reserve(leaf, words)
        if entry is not None:
            self._kept = LandedBlocks(self._volume, entry, self._incoming, self.placemap, before)
            self._volume.incoming.start(entry.landing_id)
        kept = self._kept
        n_unsaved = kept.max_unsaved if kept is not None else len(self._image)
        self._bands = LandingBands(self._volume, self._due_words, self._saved, n_unsaved)
        if before is not None and kept is not None:
            kept.recall(self._bands.adopt)
        self.copied = kept.plane() if before is not None and kept is not None else Plane.empty(self._image.n_blocks)
        self._waiting = Waiting(combine([self._image], minus=self.copied))

    def _interrupted(self, image_id: bytes) -> IncomingImage | None:
        for image in self._volume.local.incoming.images():
            if image.entry.image_id == image_id:
                if self._volume.incoming.runs(image.entry.landing_id):
                    raise RefusedError(
                        f"a receive of {image.entry.top_name} into {self._volume.path} is under way", "wait for its end"
                    )
                return image
        return None

    def _require_all_to_come(self, following: Plane | None) -> None:
        if following is None:
            return
        n_missing = combine_count([self._image], minus=combine([following, self.copied]))
        if n_missing:
            raise StreamMismatchError(
                f"the stream brings the rest of an interrupted transfer, and {n_missing} blocks of its first part are "
                f"not in {self._volume.path}",
                "ask for a token with `blockplane receive --have` and send again with it",
            )

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
        self._volume.incoming.reserve(leaf, words)
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

    def buffers(self, extents: NDArray[np.int64], checks: Checks | None = None) -> list[Block] | None:
        """Return where the bytes of extents of VBNs go: buffers of whole blocks, in order; None: all are there already.

        Parameters
        ----------
        checks : one a block, bound to VBNs; not needed where the receive cannot be continued.

        Raises
        ------
        StreamDamagedError: a block was not announced, or came before.
        """
        if checks is None:
            checks = np.zeros(int((extents[:, 1] - extents[:, 0]).sum()), np.uint32)
        wanted = self._wanted(extents)
        if wanted is not None:
            if not wanted.any():
                return None
            vbns = spread(extents[:, 0], extents[:, 1] - extents[:, 0])[wanted]
            heads = np.concatenate(([True], np.diff(vbns) != 1))
            starts = vbns[heads]
            extents = np.column_stack((starts, starts + np.diff(np.append(np.flatnonzero(heads), len(vbns)))))
            checks = checks[wanted]
        bad = self._waiting.take(extents)
        if bad >= 0:
            raise StreamDamagedError(f"block {bad} was not announced, or came before", hint="fetch the stream again")
        return self.bands.buffers(self.placemap.extents_to_places(extents), checks, wanted)

    def _wanted(self, extents: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which blocks of extents are not here yet; None: all are wanted."""
        if not len(self.copied):
            return None
        wanted: NDArray[np.bool_] = ~self.copied.contains_many(spread(extents[:, 0], extents[:, 1] - extents[:, 0]))
        return None if wanted.all() else wanted

    @property
    def bands(self) -> LandingBands:
        """The bands of this receive."""
        assert self._bands is not None
        return self._bands

    def landed(self) -> None:
        """Note that the buffers handed out longest ago are filled and verified."""
        self.bands.landed()

    def _due_words(self, first: int, n_words: int) -> NDArray[np.uint64]:
        due = words_of(lambda leaf: self._incoming.get(leaf, EMPTY_LEAF), first, n_words)
        if self._kept is not None:
            due &= ~words_of(self._kept.leaf, first, n_words)
        return due

    def _saved(self, slots: LandedSlots) -> None:
        if self._kept is not None:
            self._kept.saved(slots)

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
        self.bands.finish()
        with volume.lock:
            volume.commit()
            self._refuse_changed()
            entries = self._entries(arriving)
            arrivals = Arrivals(volume, self._image, self._base, self.placemap)
            states = [arrivals.state(entry.record) for entry in entries]
            self._flip(states, entries, volume.committed)
        if self._kept is not None:
            self._kept.forget()

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
        images = {image.name for image in self._volume.local.images.all()}
        for record in new:
            if record.name in names:
                raise SnapshotExistsError(
                    f"the stream brings a snapshot named {record.name!r}, and another of that name is here",
                    "rename the one that is here",
                )
            if record.name in images:
                raise SnapshotExistsError(
                    f"the stream brings a snapshot named {record.name!r}, and a stored image here is named so",
                    "delete the image, and save it under another name",
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
        marking.exchanged(volume, old, top, states[:-1])
        n_after = volume.active.root.n_blocks + volume.local.root.n_held
        volume.space.n_freed_open += max(n_before + len(self._image) - n_after, 0)
        for leaf, words in self._incoming.items():
            volume.local.shadows.cleared(leaf, words)
        self._forget_incoming()
        if self._kept is not None:
            self._kept.remove()
        volume.commit()

    def _forget_incoming(self) -> None:
        for leaf, words in self._incoming.items():
            self._volume.incoming.give_up(leaf, words)
        if self._kept is not None:
            self._volume.incoming.stop(self._kept.entry.landing_id)
        self._incoming = {}
        self._volume.space.forget()
        self._is_over = True

    def abort(self) -> None:
        """Give everything up: the volume is as it was."""
        if self._is_over:
            return
        kept = self._kept
        self.abandon()
        if kept is not None:
            with contextlib.suppress(BlockplaneError), self._volume.lock:  # a volume that stopped keeps its entry
                kept.remove()
                self._volume.commit()
                kept.forget()

    def suspend(self) -> int:
        """Leave it to be continued, by this process or another; return how many blocks of the image are durable here.

        Nothing is left where nothing landed, or where this receive cannot be continued; nor of a volume that it made,
        where less than a mebibyte landed: that is removed as after any failure.
        """
        kept = self._kept
        if self._is_over or kept is None:
            self.abort()
            return 0
        self.bands.finish()
        n_landed = len(kept.plane())
        if not n_landed or (kept.entry.made_volume and n_landed < WORTH_BLOCKS):
            self.abort()
            return 0
        kept.suspend()
        with self._volume.lock:
            self._forget_incoming()
        return n_landed

    def abandon(self) -> None:
        """Give up what is in memory, and leave what the local tree knows of it."""
        if self._is_over:
            return
        if self._bands is not None:
            self._bands.drop()
        if self._kept is not None:
            self._kept.close()
        with self._volume.lock:
            self._forget_incoming()
