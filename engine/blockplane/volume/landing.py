"""Landing: taking the blocks of an image onto a volume that goes on living, and making its top the live state at the
end.

Every incoming block has a place from the start: its own number's where nothing holds that, another otherwise, and
then the new state's place map says where (law 4). Blocks are gathered in bands; a band goes out with its parity when
all that the image brings to it is there. Nothing the volume refers to is overwritten, nothing refers to what landed
until the one commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.array import spread
from blockplane.model.errors import (
    BlockplaneError,
    RefusedError,
    StreamDamagedError,
    StreamMismatchError,
)
from blockplane.planes import Plane, combine, combine_count
from blockplane.volume import held, marking
from blockplane.volume.arrivals import Arrivals, not_there, table_entries
from blockplane.volume.borrowing import Trial
from blockplane.volume.carrying import Carried, first_other, require_equal
from blockplane.volume.codec import NO_ID, Pointer, SnapshotRecord, TableEntry
from blockplane.volume.features import Features
from blockplane.volume.incoming import IncomingEntry, IncomingImage, leaves_of
from blockplane.volume.journal import LandedSlots
from blockplane.volume.landed import LandedBlocks, vbns_at
from blockplane.volume.landedchecks import LandedChecks
from blockplane.volume.landing_bands import LandingBands
from blockplane.volume.landing_places import Arrival, LandingPlaces, has_relocated, reaches
from blockplane.volume.leafbits import words_of
from blockplane.volume.live import LiveVolume
from blockplane.volume.loans import Loans, lender_of
from blockplane.volume.placemap import PlaceMap, union
from blockplane.volume.runs import runs_of
from blockplane.volume.state import State
from blockplane.volume.waiting import Waiting

# For less a volume that a receive made does not stay when the receive is interrupted: 1 MiB.
WORTH_BLOCKS = 256

Block = NDArray[np.uint8]
Checks = NDArray[np.uint32]


def first_part_missing(n_blocks: int, path: Path) -> StreamMismatchError:
    """Return the error for the rest of a transfer of whose first part so many blocks are not in a volume."""
    return StreamMismatchError(
        f"the stream brings the rest of an interrupted transfer, and {n_blocks} blocks of its first part are not "
        f"in {path}",
        "ask for a token with `blockplane receive --have` and send again with it",
    )


class Landing:
    """One receive in progress.

    Parameters
    ----------
    image : the VBNs of the image.
    base : the snapshot the image builds on, a regular one of this volume; None for a full image.
    entry : which image it is, so that the receive can go on after it was interrupted; None: it cannot.
    following : the VBNs that will come, where those are not all; the others landed before, or are the lender's.
    lender : the snapshot of this volume that has them, under the same VBNs. carried_id : the image whose interrupted
        receive has them.
    relocates : VBNs that are no places here may lie at others; so they may where the base has such already.
    arrival : gives the order in which blocks will come; None: ascending.
    is_part : the others may come later, with other parts of the image: what came is kept until then.
    features : what the states that arrive need; the volume's root record says so from then on.
    live : the live state whose replacement was agreed to; None: whatever it is now.
    keeper : the snapshot because of which it was: it has what the live state has. None: it may be lost.

    Attributes
    ----------
    placemap : where the image's blocks lie that are not at home.
    copied : the VBNs that landed before and are not wanted again. here : these, and what is lent.

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
        lender: TableEntry | None = None,
        carried_id: bytes = NO_ID,
        features: Features | None = None,
        relocates: bool = False,
        arrival: Arrival | None = None,
        is_part: bool = False,
        live: Pointer | None = None,
        keeper: SnapshotRecord | None = None,
    ) -> None:
        self._volume = volume
        self._features = features or Features()
        self._relocates, self._arrival, self._lender, self._is_part = relocates, arrival, lender, is_part
        self._image = image
        self._base, self._keeper = base, keeper
        self._is_lent = lender is not None
        self._loans = Loans(volume, image)
        self._trials: deque[Trial | None] = deque()
        self._places = LandingPlaces(volume)
        self._is_over = False
        #: None where blocks come without checks
        self._checks: LandedChecks | None = LandedChecks()
        self._kept: LandedBlocks | None = None
        self._bands: LandingBands | None = None
        try:
            with volume.lock:
                volume.commit()
                self._live = volume.committed.pointer
                if live is not None:
                    self._refuse_changed(live)
                self._refuse_gone([base, lender])
                self._refuse_unkept()
                self._begin(entry, following, lender, carried_id)
                self._require_all_to_come(following)
        except BaseException:
            self.abandon()
            raise

    def _begin(
        self, entry: IncomingEntry | None, following: Plane | None, lender: TableEntry | None, carried_id: bytes
    ) -> None:
        """Reserve places, or take up what an interrupted receive of the same image left."""
        volume, image, places = self._volume, self._image, self._places
        before, own = self._interrupted(entry.image_id) if entry is not None else None, image
        carried: Carried | None = None
        if before is not None:
            entry, self.placemap = before.entry, before.placemap()
            for leaf, words in leaves_of(before.places):
                places.reserve(leaf, words)
            if entry.lender_id != NO_ID:
                own = vbns_at(places.leaves, self.placemap, image.n_blocks)
                self._loans.borrow(lender_of(volume, entry), own)
        elif entry is not None and following is not None and carried_id != NO_ID:
            carried = Carried(volume, carried_id, combine([image], minus=following))
            places.refuse_misfit(image, max(len(following) - carried.n_freed, 0), self._may_relocate())
            carried.mark(entry)
            carried.release()
            for leaf, words in carried.leaves.items():
                places.reserve(leaf, words)
            self.placemap = union([carried.placemap, self._assigned(following)])
        else:
            if lender is not None and following is not None:
                own = following
                self._loans.borrow(lender, own)
            places.refuse_misfit(image, len(own), self._may_relocate())
            self.placemap = self._assigned(own)
        if entry is not None:
            entry.n_image = len(own)
            self._kept = LandedBlocks(volume, entry, places.leaves, self.placemap, before)
            volume.incoming.start(entry.landing_id)
            if carried is not None:
                self._kept.take_over(carried.leaves)
                carried.forget()
            if self._base is None and not self._is_part:  # what is shared is not noted for a later part
                self._loans.share(entry.space_id)
        kept = self._kept
        n_unsaved = kept.max_unsaved if kept is not None else len(own)
        self._bands = LandingBands(volume, self._due_words, self._saved, n_unsaved)
        if before is not None and kept is not None:
            kept.recall(self._bands.adopt)
        self.copied = kept.plane() if kept is not None else Plane.empty(image.n_blocks)
        self.here = combine([self.copied, self._loans.plane])
        self._waiting = Waiting(combine([image], minus=self.here))

    def _has_relocated(self) -> bool:
        return has_relocated(self._volume, [self._base, self._lender])

    def _may_relocate(self) -> bool:
        return self._relocates or self._has_relocated()

    def _assigned(self, vbns: Plane) -> PlaceMap:
        """Reserve places for blocks: their own, as far as the volume has and can spare them, or all in a row."""
        if reaches(self._image) > self._volume.geometry.n_blocks or self._has_relocated():
            return self._places.pack(vbns, self._arrival)
        return self._places.assign(vbns)

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
        if following is None or self._is_part:
            return
        n_missing = combine_count([self._image], minus=combine([following, self.here]))
        if not n_missing:
            return
        if self._is_lent:
            raise StreamMismatchError(
                f"the stream was sent against an offer, and an interrupted receive of the same image into "
                f"{self._volume.path} wants {n_missing} blocks that it lacks",
                "go on with what `blockplane receive --have` writes, or give that up with --abort",
            )
        raise first_part_missing(n_missing, self._volume.path)

    # --- blocks ------------------------------------------------------------------------------------------------------

    def buffers(self, extents: NDArray[np.int64], checks: Checks | None = None) -> list[Block] | None:
        """Return where the bytes of extents of VBNs go: buffers of whole blocks, in order; None: all are there already.

        Parameters
        ----------
        checks : one a block, bound to VBNs; not needed where the receive cannot be continued. At the end they are held
            against those of the states that arrive.

        Raises
        ------
        StreamDamagedError: a block was not announced, or came before.
        """
        if checks is None:
            self._checks = None
            checks = np.zeros(int((extents[:, 1] - extents[:, 0]).sum()), np.uint32)
        n_frame, wanted = len(checks), self._wanted(extents)
        if wanted is not None:
            if not wanted.any():
                return None
            vbns = spread(extents[:, 0], extents[:, 1] - extents[:, 0])[wanted]
            extents, checks = runs_of(vbns), checks[wanted]
        bad = self._waiting.take(extents)
        if bad >= 0:
            raise StreamDamagedError(f"block {bad} was not announced, or came before", hint="fetch the stream again")
        if self._checks is not None:
            self._checks.note(spread(extents[:, 0], extents[:, 1] - extents[:, 0]), checks)
        trial = self._loans.sharing.trial(extents, checks, n_frame, wanted) if self._loans.sharing is not None else None
        self._trials.append(trial)
        if trial is not None:
            return [trial.scratch]
        return self.bands.buffers(self.placemap.extents_to_places(extents), checks, wanted)

    def _wanted(self, extents: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Return which blocks of extents are not here yet; None: all are wanted."""
        if not len(self.here):
            return None
        wanted: NDArray[np.bool_] = ~self.here.contains_many(spread(extents[:, 0], extents[:, 1] - extents[:, 0]))
        return None if wanted.all() else wanted

    @property
    def bands(self) -> LandingBands:
        """The bands of this receive."""
        assert self._bands is not None
        return self._bands

    def landed(self) -> None:
        """Note that the buffers handed out longest ago are filled and verified."""
        trial = self._trials.popleft()
        if trial is None:
            self.bands.landed()
        else:
            self._judge(trial)

    def _judge(self, trial: Trial) -> None:
        """Write what came and is not here; give up the places of what is."""
        assert self._loans.sharing is not None
        same, places = trial.same(), self.placemap.to_places(trial.vbns)
        if same.any():
            self._loans.sharing.note(trial.vbns[same])
            self._places.spare(places[same])
            self.bands.pass_over(runs_of(places[same]))
        if not same.all():
            self.bands.bring(runs_of(places[~same]), trial.checks[~same], trial.blocks()[~same])

    def _due_words(self, first: int, n_words: int) -> NDArray[np.uint64]:
        due = words_of(self._places.leaf, first, n_words)
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

    def waiting(self) -> Plane:
        """Return the announced blocks that have not come, in this receive or one before."""
        return self._waiting.left()

    def commit(self, arriving: Sequence[SnapshotRecord]) -> None:
        """Make the image's snapshots this volume's, and the newest the live state: one root record, written last.

        Parameters
        ----------
        arriving : the records of the snapshots that are whole now, the top last.

        Raises
        ------
        StreamDamagedError: announced blocks are missing, or a snapshot is not whole, or has another check for a block
            than that came with; nothing changed.
        RefusedError: the volume was written to meanwhile, or what keeps its live state went, or is to go when this has
        ended; nothing changed.
        """
        if self.n_waiting:
            raise StreamDamagedError(f"{self.n_waiting} announced blocks did not come", hint="fetch the stream again")
        volume = self._volume
        self.bands.finish()
        with volume.lock:
            volume.commit()
            self._refuse_changed(self._live)
            self._refuse_unkept()
            records = not_there(volume.local, arriving)
            try:
                states = self._states(records)
            except StreamDamagedError:  # nobody knows which of the blocks: to go on with them would end here again
                self.abort()
                raise
            base = volume.snapshot_state(self._base) if self._base is not None else None
            self._flip(states, table_entries(self._base, base, records, states), volume.committed)
        if self._kept is not None:
            self._kept.forget()

    def _states(self, records: Sequence[SnapshotRecord]) -> list[State]:
        """Return the states of what arrived, each of them whole, with what it takes from snapshots here."""
        arrivals = Arrivals(self._volume, self._image, self._base, self._loans.placemap(self.placemap))
        with self._loans.proving():
            states = [arrivals.state(record) for record in records]
            for state in states:
                self._loans.require_equal(state)
                require_equal(self._volume, state, self.copied, self.placemap)
            self._require_checks(states)
        return states

    def _require_checks(self, states: list[State]) -> None:
        """Hold the checks that blocks came with against the states'."""
        if self._checks is None:
            return
        base = self._volume.snapshot_state(self._base) if self._base is not None else None
        landed = combine([self._image], minus=self.here)
        places = self._loans.placemap(self.placemap)
        self._checks.require_equal(
            states, base, landed, lambda state, vbns: first_other(self._volume, state, vbns, places)
        )

    @property
    def n_shared(self) -> int:
        """How many blocks of the image were here already and are not written: lent, or found to be equal."""
        return self._loans.n_blocks

    def _refuse_gone(self, entries: Sequence[TableEntry | None]) -> None:
        """What is built on is pinned by now; it may have gone before it was."""
        there = {entry.record.id for entry in self._volume.local.regular()}
        for entry in entries:
            if entry is not None and entry.record.id not in there:
                raise RefusedError(
                    f"snapshot {entry.record.name}, which the image builds on, went meanwhile from {self._volume.path}",
                    "bring the image that it is in first",
                )

    def _refuse_changed(self, live: Pointer) -> None:
        """What was agreed to be replaced is the live state as it was when that was agreed."""
        if self._volume.committed.pointer != live:
            raise RefusedError(
                f"{self._volume.path} was written to while it received; these changes would be lost",
                "keep them in a snapshot, then receive again with --discard",
            )

    def _refuse_unkept(self) -> None:
        keeper, entries = self._keeper, self._volume.local.regular()
        if keeper is not None and not any(e.record.id == keeper.id and not e.is_deleting for e in entries):
            raise RefusedError(
                f"snapshot {keeper.name}, which keeps what would be replaced in {self._volume.path}, went meanwhile",
                "do it again, and say --discard if that is meant",
            )

    def _flip(self, states: list[State], entries: list[TableEntry], old: State) -> None:
        """Enter what arrived, older first, and make the last of it the live state: all of it, or the volume stops."""
        with self._volume.changing():
            self._exchange(states, entries, old)

    def _exchange(self, states: list[State], entries: list[TableEntry], old: State) -> None:
        volume, top = self._volume, states[-1]
        volume.local.shadows.measure()  # as long as what arrived counts once
        volume.local.set_entries([*volume.local.entries(), *entries])
        for entry, state in zip(entries, states, strict=True):
            volume.local.set_map(entry, state.placemap)
            volume.adopt_state(entry.record.id, state)
        n_before = volume.active.root.n_blocks + volume.local.root.n_held
        volume.exchange(top, entries[-1].record.id)
        volume.local.note_brought(entries[-1].record.id)
        volume.features |= self._features.of_states()
        snapshots = volume.known_states()
        volume.local.set_held(held.worked_out(volume.local, snapshots, top, [old, *states[:-1]]))
        volume.local.marks.note(marking.exchanged(volume, old, top, snapshots, states[:-1]))
        n_after = volume.active.root.n_blocks + volume.local.root.n_held
        volume.space.n_freed_open += max(n_before + len(self._image) - self.n_shared - n_after, 0)
        for leaf in self._places.leaves:
            volume.local.shadows.cleared(leaf, self._places.leaf(leaf))
        self._loans.paid()
        self._forget_incoming()
        if self._kept is not None:
            self._kept.remove(n_kept=self._kept.n_stored)
        volume.commit()

    def _forget_incoming(self) -> None:
        self._places.give_up()
        if self._kept is not None:
            self._volume.incoming.stop(self._kept.entry.landing_id)
        self._volume.space.forget()
        self._loans.close()
        self._is_over = True

    def abort(self) -> None:
        """Give everything up: the volume is as it was."""
        if self._is_over:
            return
        kept = self._kept
        self.abandon()
        if kept is not None:
            with suppress(BlockplaneError), self._volume.lock:  # a volume that stopped keeps its entry
                kept.give_up()

    def suspend(self) -> int:
        """Leave it to be continued, by this process or another; return how many blocks of the image are durable here.

        Nothing is left where nothing landed, or where this receive cannot be continued; nor of a volume that it made,
        where less than a mebibyte landed, and no part of the image by itself: that is removed as after any failure.

        Raises
        ------
        VolumeDamagedError: the volume has stopped, or cannot take what landed last.
        """
        kept = self._kept
        if self._is_over or kept is None:
            self.abort()
            return 0
        self.bands.finish()
        if len(kept.plane()) < (WORTH_BLOCKS if kept.entry.made_volume and not self._is_part else 1):
            self.abort()
            return 0
        n_landed = kept.suspend()
        with self._volume.lock:
            self._forget_incoming()
        return n_landed

    @property
    def n_stored(self) -> int:
        """How many blocks of the image stay here though what landed last can be noted no more."""
        return self._kept.n_stored if self._kept is not None else 0

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
            failure = self._volume.array.failure
            if failure is not None and not self._volume.stopped_at:
                self._volume.stop(failure)  # the disks take nothing more: who has the volume opens it anew
