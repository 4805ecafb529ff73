"""Volumes as destinations: whether a stream fits what is there, and volumes made for a stream."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from blockplane.model.errors import (
    RefusedError,
    StreamMismatchError,
)
from blockplane.stream.codec import Role
from blockplane.stream.kinship import kinship, no_way_on
from blockplane.stream.reader import StreamMap
from blockplane.transfer.against import no_lender
from blockplane.transfer.arriving import arrival_of
from blockplane.volume import landing
from blockplane.volume.codec import (
    KIND_DELETING,
    KIND_REGULAR,
    NO_ID,
    Pointer,
    SnapshotRecord,
    StateRoot,
    TableEntry,
)
from blockplane.volume.incoming import FLAG_IN_FOLDER, FLAG_MADE_VOLUME, FLAG_PULLED, MAX_MEMBERS, IncomingEntry
from blockplane.volume.landing_places import has_relocated
from blockplane.volume.lines import is_in_history
from blockplane.volume.live import LiveVolume
from blockplane.volume.naming import check_name
from blockplane.volume.pointers import all_of as all_pointers
from blockplane.volume.snapshots import standing_at


class VolumeDestination:
    """A volume that receives; relocates: see `Landing`; pulls: what is left of it goes when a later pull arrived.

    is_made : for what it receives; in_folder : in a folder that was there.
    """

    def __init__(
        self,
        volume: LiveVolume,
        *,
        is_made: bool = False,
        in_folder: bool = False,
        relocates: bool = False,
        is_opened: bool = False,
        pulls: bool = False,
    ) -> None:
        self.volume = volume
        self.is_made, self._relocates, self._is_opened, self._pulls = is_made, relocates, is_opened, pulls
        self._in_folder = in_folder
        #: what keeps the live state, which the stream replaces, where the top does not descend from that itself
        self._keeper: SnapshotRecord | None = None
        #: the live state that `accept` judged; None: whatever it is may be replaced
        self._judged: Pointer | None = None

    @property
    def name(self) -> str:
        """See Destination."""
        return str(self.volume.path)

    def _entries(self) -> Sequence[TableEntry]:
        with self.volume.lock:
            return list(self.volume.local.entries())

    def _find(self, record: SnapshotRecord) -> TableEntry | None:
        """Return the entry of a snapshot that is whole here."""
        for entry in self._entries():
            mine = entry.record
            if mine.id == record.id and mine.space_id == record.space_id and mine.kind == KIND_REGULAR:
                return entry
        return None

    def _base(self, record: SnapshotRecord) -> TableEntry | None:
        """Return the entry of a base: also one that is to be deleted when the receive has ended."""
        for entry in self._entries():
            mine = entry.record
            if (mine.id, mine.space_id) == (record.id, record.space_id) and mine.kind in (KIND_REGULAR, KIND_DELETING):
                return entry
        return None

    def has_top(self, stream: StreamMap) -> bool:
        """See Destination."""
        return self._find(stream.top) is not None

    def accept(self, stream: StreamMap, *, discard: bool) -> None:
        """See Destination."""
        self._keeper = None
        with settled(self.volume):  # before it is looked at: what is written from here on is seen by the landing
            self._judged = None if discard else self.volume.committed.pointer
        for record in stream.arriving():
            check_name(record.name)
        self.refuse_name_clash(stream.arriving())
        if stream.lender is not None and self._find(stream.lender) is None:
            raise no_lender(self.name, stream, stream.lender)
        if self._lends_to(stream):
            self._accept_lent(stream, discard)
        elif stream.base is None:
            self._accept_full(stream, discard)
        else:
            self._accept_increment(stream, stream.base, discard)

    def records(self) -> list[SnapshotRecord]:
        """Return the records of the snapshots that are whole here, older first."""
        return [entry.record for entry in self._entries() if entry.record.kind == KIND_REGULAR]

    def refuse_name_clash(self, arriving: Sequence[SnapshotRecord]) -> None:
        """Raise RefusedError where the names or ids of what an image brings are taken."""
        shadows = {entry.record.id: entry.record.name for entry in self._entries() if entry.is_shadow}
        for record in arriving:
            if record.id in shadows:
                raise RefusedError(
                    f"the image brings snapshot {record.name}, of which {self.name} has a shadow, and a shadow never "
                    "becomes a regular snapshot again",
                    f"delete the shadow first: blockplane snapshot delete {self.name}@{shadows[record.id]}",
                )
        self._refuse_other_names(arriving)
        mine = {entry.record.name: entry.record for entry in self._entries()}
        here = {record.id for record in mine.values()}
        going = {entry.record.id for entry in self._entries() if entry.is_deleting}
        for record in arriving:
            if record.id in going:
                raise RefusedError(
                    f"the image brings snapshot {record.name}, which is being deleted here",
                    "bring it when that is gone: nothing may read it, and nobody hold it",
                )
            other = mine.get(record.name)
            if other is not None and record.id not in here:
                raise RefusedError(
                    f"the image brings a snapshot {record.name}, and {self.name} has another one of that name",
                    f"rename the one that is there: blockplane snapshot rename {self.name}@{record.name} NEW",
                )

    def _refuse_other_names(self, arriving: Sequence[SnapshotRecord]) -> None:
        pointers = {pointer.name for pointer in all_pointers(self.volume)}
        with self.volume.lock:
            images = {image.name for image in self.volume.local.images.all()}
        here = {entry.record.id for entry in self._entries()}
        for record in arriving:
            if record.id in here:
                continue
            if record.name in images:
                raise RefusedError(
                    f"the image brings a snapshot {record.name}, and {self.name} has a stored image of that name",
                    f"delete the image, and save it under another name: blockplane image delete {self.name} "
                    f"{record.name}",
                )
            if record.name in pointers:
                raise RefusedError(
                    f"the image brings a snapshot {record.name}, and {self.name} has a pointer of that name",
                    f"delete the pointer: blockplane pointer {self.name} {record.name} --delete",
                )

    def _accept_full(self, stream: StreamMap, discard: bool) -> None:
        if is_blank(self.volume) or discard:
            return
        names = [entry.record.name for entry in self._entries()]
        lost = "its live file system" + (f" (its snapshots stay: {_listed(names)})" if names else "")
        raise RefusedError(
            f"{self.name} has content, and the image of {stream.top.name} is full: it would replace {lost}",
            "bring it to a new volume, or an increment onto a common snapshot, or say --discard",
        )

    def _lends_to(self, stream: StreamMap) -> bool:
        """Whether a snapshot here has a part of the image: the stream says so, or one did that was interrupted."""
        if stream.lender is not None:
            return True
        with self.volume.lock:
            entries = [image.entry for image in self.volume.local.incoming.images()]
        return any(e.image_id == stream.header.image_id and e.lender_id != NO_ID for e in entries)

    def _accept_lent(self, stream: StreamMap, discard: bool) -> None:
        """A full image of which this volume lends a part replaces the live state where that loses nothing."""
        with settled(self.volume):
            live, pointer = self.volume.committed.root, self.volume.committed.pointer
            keeper = next((record for record in self.records() if record.root == pointer), None)
        if discard or _is_known_past(live, pointer, stream):
            return
        if keeper is None:
            self._accept_full(stream, discard)
        self._keeper = keeper

    def _refuse_shadowed(self, base: SnapshotRecord) -> None:
        """Nothing is built on a shadow: its blocks may be others by now."""
        for entry in self._entries():
            if entry.is_shadow and entry.record.id == base.id:
                raise StreamMismatchError(
                    f"the image builds on snapshot {base.name}, of which {self.name} has only a shadow",
                    "bring it to a volume that holds it whole, or a full image to a new one",
                )

    def _accept_increment(self, stream: StreamMap, base: SnapshotRecord, discard: bool) -> None:
        self._refuse_shadowed(base)
        if self._base(base) is None:
            mine = {entry.record.id for entry in self._entries()}
            common = [record.name for record, role in stream.snapshots if role is Role.LEFT_OUT and record.id in mine]
            whole = [entry.record for entry in self._entries() if entry.record.kind == KIND_REGULAR]
            how = kinship(stream, base, whole, "here")
            raise StreamMismatchError(
                f"the image builds on snapshot {base.name} (id {base.id.hex()}), which {self.name} does not hold"
                + (f": {how}" if how else ""),
                f"take {stream.top.name} - {common[0]}" if common else "bring the image that it is in first",
            )
        with settled(self.volume):
            live, pointer, at = self.volume.committed.root, self.volume.committed.pointer, standing_at(self.volume)
        if discard or _is_known_past(live, pointer, stream):
            return
        if at is None and self.volume.is_replica and is_in_history(live, stream.top, stream.branches):
            raise RefusedError(
                f"{self.name} shows a state of which there is no snapshot any more, here or where {stream.top.name} "
                "comes from: if that was put back since, this is all there is of it, and would be lost",
                f"keep it (blockplane snapshot create {self.name}@NAME), or say --discard",
            )
        if at is None:
            raise RefusedError(
                f"{self.name} was written to since {base.name}, or rolled back: what it holds is no part of "
                f"{stream.top.name} and would be lost",
                "keep it in a snapshot of its own and take another volume, or say --discard",
            )
        if not is_in_history(at.record, stream.top, stream.branches):
            is_past = is_in_history(stream.top, at.record, self.volume.committed.branches())
            raise no_way_on(self.name, at.record.name, stream.top.name, is_past=is_past)
        self._keeper = at.record

    @contextmanager
    def landing(self, stream: StreamMap) -> Iterator[landing.Landing]:
        """Begin; the base is pinned meanwhile, and the snapshot that has what the live state has."""
        base = stream.base
        entry = self._base(base) if base is not None else None
        lender = self._find(stream.lender) if stream.lender is not None else None
        with ExitStack() as pinned:
            pinned.enter_context(self.volume.pin(entry.record.id if entry is not None else NO_ID))
            if self._keeper is not None:
                pinned.enter_context(self.volume.pin(self._keeper.id))
            begun = landing.Landing(
                self.volume, stream.image, entry, self._incoming(stream), stream.part, lender, stream.header.carried_id,
                stream.header.features, self._relocates, arrival_of(stream), stream.header.is_one_of_parts,
                self._judged, self._keeper,
            )  # fmt: skip
            pinned.callback(begun.abandon)  # where it has not ended otherwise: the volume can take the next one
            yield begun

    @contextmanager
    def last_change(self) -> Iterator[None]:
        """Say that a volume which was opened for one transfer is closed after what is committed in the context."""
        self.volume.ends_next = self._is_opened
        try:
            yield
        finally:
            self.volume.ends_next = False

    def has_relocated(self, stream: StreamMap) -> bool:
        """Whether what a stream builds on has blocks here of numbers that are no places here."""
        base = self._base(stream.base) if stream.base is not None else None
        lender = self._find(stream.lender) if stream.lender is not None else None
        with self.volume.lock:
            return has_relocated(self.volume, [base, lender])

    def _incoming(self, stream: StreamMap) -> IncomingEntry:
        header = stream.header
        flags = (FLAG_MADE_VOLUME if self.is_made else 0) | (FLAG_PULLED if self._pulls else 0)
        flags |= FLAG_IN_FOLDER if self._in_folder else 0
        return IncomingEntry(
            os.urandom(16), header.image_id, header.space_id, header.top_id, header.base_id, header.image_blocks, 0,
            header.space_blocks, time.time_ns(), stream.top.name, flags,
            lender_id=stream.lender.id if stream.lender is not None else NO_ID,
            member_ids=tuple(record.id for record in reversed(stream.arriving()))[:MAX_MEMBERS],
        )  # fmt: skip


def _is_known_past(live: StateRoot, pointer: Pointer, stream: StreamMap) -> bool:
    """Whether a live state is one that a stream's top descends from, and that it lists: of another its history is no
    proof, since copies of a volume's disks count their consistency points alike.
    """
    is_listed = any(record.root == pointer for record, _ in stream.snapshots)
    return is_listed and is_in_history(live, stream.top, stream.branches)


def is_blank(volume: LiveVolume) -> bool:
    """Tell whether a volume was never written to."""
    with settled(volume):
        return not volume.was_written


@contextmanager
def settled(volume: LiveVolume) -> Iterator[None]:
    """Hold a volume's lock with everything so far committed; what is open for reading is so anyway."""
    with volume.lock:
        if volume.writable:
            volume.commit()
        yield


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[-5:])
    return f"{len(names) - 5} and {shown}" if len(names) > 5 else shown
