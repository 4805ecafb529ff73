"""A set of tapes by its table: its images, and any bytes of their streams by position, nothing else being read."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import (
    StreamDamagedError,
    TapeDamagedError,
    TapeEndError,
    TapeTimeError,
)
from blockplane.stream.media import codec
from blockplane.stream.media.closing import contents_ahead, parts_at
from blockplane.stream.media.codec import HEAD_BYTES, FrameEntry, ImageEntry, RecordKind, Run, Table
from blockplane.stream.media.labels import TapeIdentity, moment, read_label, require_next
from blockplane.stream.media.medium import Medium
from blockplane.stream.media.rack import Rack
from blockplane.stream.media.rebuild import rebuilt
from blockplane.stream.media.records import Damage, Record, new_buffer, read_record
from blockplane.stream.stored import Stored, new_key

#: Records kept: 16 MiB at most.
_KEPT_BYTES: Final = 16 << 20


class TapeSet:
    """A set that was finished, read at random through the table at its end.

    Parameters
    ----------
    rack : its tapes; the set closes them, also where it refuses them. table : what lies where, of a set that was not
        finished; by default what its last tape says. rebuilds : where that is damaged, make it anew out of the groups
        of records, which takes longer.

    Attributes
    ----------
    problems : what was damaged, and made up for.

    Any thread may read; one at a time does.

    Raises
    ------
    TapeEndError : the last tape does not end with an end record. TapeError and its kinds : a tape is not the one it
        should be.
    """

    def __init__(self, rack: Rack, table: Table | None = None, *, rebuilds: bool = False) -> None:
        self._rack = rack
        self._lock = threading.RLock()
        self._known: dict[int, tuple[Medium, TapeIdentity]] = {}
        #: of the group that was asked for last
        self._contents: dict[Run, Sequence[FrameEntry]] = {}
        self._kept: OrderedDict[tuple[int, int], memoryview] = OrderedDict()
        self.problems: list[str] = []
        self.last = rack.n_named if table is None else len(table.tapes)
        try:
            self._open(table, rebuilds=rebuilds)
        except BaseException:
            rack.close()
            raise

    def _open(self, table: Table | None, *, rebuilds: bool) -> None:
        """Hold all tapes against each other, and against the table."""
        self.first = self._checked(1)
        self.set_id, self.record_bytes = self.first.set_id, self.first.label.record_bytes
        for number in range(2, self.last + 1):
            self._checked(number)
        self.table = self._found_table(rebuilds=rebuilds) if table is None else table
        for number in range(1, self.last + 1):
            self._require_in_table(self._checked(number))

    @property
    def capacity(self) -> int:
        """How many bytes of a stream a record holds."""
        return self.record_bytes - HEAD_BYTES

    @property
    def read_bytes(self) -> int:
        """Bytes of records read so far."""
        return self._rack.read_bytes

    def close(self) -> None:
        """Release the tapes."""
        self._rack.close()

    # --- tapes -------------------------------------------------------------------------------------------------------

    def _checked(self, number: int) -> TapeIdentity:
        """Return a tape of the set by its label, held against its number and the set."""
        medium = self._rack.tape(number)
        known = self._known.get(number)
        if known is not None and known[0] is medium:
            return known[1]
        found = read_label(medium)
        before = self._known.get(number - 1)
        set_id = next(iter(self._known.values()))[1].set_id if self._known else None
        require_next(found, number, before[1] if before is not None else None, set_id)
        self._known[number] = medium, found
        return found

    def _medium(self, number: int) -> Medium:
        self._require_in_table(self._checked(number))
        return self._rack.tape(number)

    def _require_in_table(self, found: TapeIdentity) -> None:
        """Refuse a tape that is not the one the table is of."""
        tapes = self.table.tapes
        its = tapes[found.tape - 1] if found.tape <= len(tapes) else None
        if its is None or its.tape_id != found.label.tape_id:
            when = "not at all" if its is None else f"as one of {moment(its.written_ns)}"
            raise TapeTimeError(
                f"{found.text} was written at another time, {moment(found.label.written_ns)}: the set's table has it "
                f"{when}",
                "take the tapes of one writing",
            )

    def _found_table(self, *, rebuilds: bool) -> Table:
        try:
            return self._read_table()
        except TapeDamagedError as error:
            if not rebuilds:
                raise
            self.problems.append(f"{error.message}; where blocks lie was found group by group, which takes longer")
        return rebuilt(self._rack, [self._checked(number) for number in range(1, self.last + 1)])

    def _read_table(self) -> Table:
        """Read the table that the end record of the last tape names."""
        medium = self._rack.tape(self.last)
        self._checked(self.last)
        medium.seek_end()
        what = "has nothing behind its label"
        if medium.position >= 3:
            medium.seek(medium.position - 2)
            found = read_record(medium, new_buffer())
            if isinstance(found, Record) and found.head.kind is RecordKind.END:
                return self._table_of(self._end(found))
            if isinstance(found, Damage):
                what = f"record {found.position}: {found.what}"
                raise TapeDamagedError(f"the end of {medium.name} is damaged, {what}", "read the set in order")
            what = "goes on with another tape" if self._continues(found) else "ends early: it has no end record"
            if unwritten := self._rack.names[self.last :]:
                what += f", and nothing is on {', '.join(unwritten)}"
        raise TapeEndError(
            f"{medium.name}, tape {self.last} of its set, {what}",
            "name all tapes of the set; one that was not finished is gone on with by tape write --resume",
        )

    def _end(self, found: Record) -> codec.End:
        try:
            return codec.decode_end(bytes(found.payload))
        except StreamDamagedError as error:
            name = self._rack.tape(self.last).name
            raise TapeDamagedError(f"the end record of {name} is damaged: {error.message}") from error

    def _continues(self, found: object) -> bool:
        return isinstance(found, Record) and found.head.kind is RecordKind.CONTINUES

    def _table_of(self, end: codec.End) -> Table:
        medium = self._rack.tape(end.tape)
        found = parts_at(medium, end.position, end.n_records, RecordKind.TABLE)
        if isinstance(found, Damage):
            what = f"record {found.position}: {found.what}"
            raise TapeDamagedError(f"the table of the set on {medium.name} is damaged, {what}", "read the set in order")
        try:
            return codec.decode_table(found)
        except StreamDamagedError as error:
            raise TapeDamagedError(
                f"the table of the set on {medium.name} contradicts itself: {error.message}"
            ) from error

    def frames_of(self, run: Run) -> Sequence[FrameEntry]:
        """Return the frames of the group that a run is of, by its contents; none where they cannot be read."""
        with self._lock:
            if run not in self._contents:
                medium = self._medium(run.tape)
                medium.seek(run.position)
                found = contents_ahead(medium)
                self._contents = {run: found.frames if found is not None else ()}
            return self._contents[run]

    def start_of(self, image: ImageEntry) -> bytes:
        """Return what stands before an image's data, out of its second copy; empty: it has none that can be read."""
        if not image.start_records:
            return b""
        with self._lock:
            medium = self._medium(image.start_tape)
            start = parts_at(medium, image.start_position, image.start_records, RecordKind.START)
        n_due = image.data_offset or (len(start) if isinstance(start, bytes) else 0)
        return start if isinstance(start, bytes) and len(start) == n_due else b""

    # --- records -----------------------------------------------------------------------------------------------------

    def payload(self, run: Run, number: int) -> memoryview:
        """Return what the number-th record of a run holds.

        Raises
        ------
        TapeDamagedError : it cannot be read.
        """
        with self._lock:
            key = run.tape, run.position + number
            kept = self._kept.get(key)
            if kept is None:
                kept = self._kept[key] = self._read(run, number)
                if len(self._kept) * self.record_bytes > _KEPT_BYTES:
                    self._kept.popitem(last=False)
            else:
                self._kept.move_to_end(key)
            return kept

    def _read(self, run: Run, number: int) -> memoryview:
        medium = self._medium(run.tape)
        position = run.position + number
        medium.seek(position)
        found = read_record(medium, new_buffer()[: self.record_bytes])
        offset = run.offset + number * self.capacity
        if isinstance(found, Record):
            head = found.head
            is_it = head.set_id == self.set_id and head.kind is RecordKind.DATA and head.position == position
            n_due = min(self.capacity, run.n_bytes - number * self.capacity)
            if is_it and (head.image, head.offset, head.payload_bytes) == (run.image, offset, n_due):
                return found.payload
        what = found.what if isinstance(found, Damage) else "it is another one than the table says"
        raise TapeDamagedError(
            f"record {position} of {medium.name} is damaged: {what}", "take another copy of the tape"
        )


class TapeStore:
    """The stream of one image of a set: a StreamPlace, and Stored."""

    def __init__(self, tapes: TapeSet, image: ImageEntry, *, is_owner: bool) -> None:
        self.tapes, self._is_owner = tapes, is_owner
        self.image = image
        self._runs = tapes.table.runs_of(image.number)
        self._offsets = [run.offset for run in self._runs]
        self.name = f"image {image.number} of {tapes.first.name}"
        self.n_bytes, self.key = image.stream_bytes, new_key()
        self._start: memoryview | None = None

    def open_stored(self) -> Stored:
        """See StreamPlace: itself."""
        return self

    def read_into(self, out: memoryview, offset: int) -> int:
        """See Stored; before what is damaged it ends as at the end."""
        data = self.read(len(out), offset, 1)
        out[: len(data)] = data
        return len(data)

    def _spans(self, start: int, stop: int, at_least: int | None = None) -> list[tuple[int, memoryview]]:
        """Return what lies in start..stop of the stream: offsets and bytes, one after the other."""
        begins = start
        spans: list[tuple[int, memoryview]] = []
        capacity = self.tapes.capacity
        while start < min(stop, self.n_bytes):
            run = self._runs[bisect_right(self._offsets, start) - 1]
            number, inside = divmod(start - run.offset, capacity)
            try:
                part = self.tapes.payload(run, number)[inside : inside + stop - start]
            except TapeDamagedError:
                part = self._again(run, start, stop)
                if not len(part):
                    if at_least is not None and start - begins >= at_least:
                        return spans
                    raise
            spans.append((start, part))
            start += len(part)
        return spans

    def _again(self, run: Run, start: int, stop: int) -> memoryview:
        """Return the beginning of start..stop where it lies on the tapes twice: a head, or what is before the data."""
        copy = self._start_copy() if start < self.image.data_offset or not self.image.data_offset else memoryview(b"")
        if start < len(copy):
            return copy[start:stop]
        for frame in self.tapes.frames_of(run):
            if frame.offset <= start < frame.offset + len(frame.head):
                return memoryview(frame.head)[start - frame.offset : stop - frame.offset]
        return memoryview(b"")

    def _start_copy(self) -> memoryview:
        """Return what stands before the data, out of its second copy; empty where there is none."""
        if self._start is None:
            self._start = memoryview(self.tapes.start_of(self.image))
        return self._start

    def frame_heads(self) -> Iterator[tuple[int, bytes]]:
        """Yield where each frame of the stream begins, and its head, by what closes the groups: for a lost index."""
        stop = 0
        for run in self._runs:
            for frame in self.tapes.frames_of(run):
                if frame.offset >= stop:
                    yield frame.offset, frame.head
                    stop = frame.offset + len(frame.head)

    def note(self, problem: str) -> None:
        """Note what was damaged, and made up for."""
        self.tapes.problems.append(problem)

    def read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """See Stored."""
        return b"".join(part for _, part in self._spans(offset, offset + n_bytes, at_least))

    def read_segments(self, offsets: Numbers, lengths: Numbers, out: Bytes, into: Numbers) -> int:
        """See Stored: segments that follow each other are copied together."""
        if not len(offsets):
            return 0
        joins = (offsets[:-1] + lengths[:-1] == offsets[1:]) & (into[:-1] + lengths[:-1] == into[1:])
        first = np.flatnonzero(np.concatenate(([True], ~joins)))
        last = np.concatenate((first[1:], [len(offsets)])) - 1
        stops = offsets[last] + lengths[last]
        view, n_records = out.data, 0
        for start, stop, at in zip(offsets[first].tolist(), stops.tolist(), into[first].tolist(), strict=True):
            for where, part in self._spans(start, stop):
                view[at + where - start : at + where - start + len(part)] = part
                n_records += 1
        return n_records

    def read_blocks(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        """See Stored."""
        lengths = np.full(len(offsets), BLOCK_BYTES, np.int64)
        n_requests = self.read_segments(offsets, lengths, out, np.arange(len(offsets), dtype=np.int64) * BLOCK_BYTES)
        return n_requests, first_bad_block(out, numbers, checks)

    def advise(self, advice: int) -> None:
        """See Stored: a tape needs none."""

    def close(self) -> None:
        """See Stored."""
        if self._is_owner:
            self.tapes.close()


def stores(tapes: TapeSet) -> list[TapeStore]:
    """Return the images of a set as stores; closing the first one closes the set."""
    return [TapeStore(tapes, image, is_owner=i == 0) for i, image in enumerate(tapes.table.images)]
