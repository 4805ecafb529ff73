"""A set's table made anew where its own is damaged: out of what closes the groups of records, tape after tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blockplane.model.errors import TapeDamagedError
from blockplane.stream.media.closing import before_mark, contents_before, table_before
from blockplane.stream.media.codec import HEAD_BYTES, NO_ID, ImageEntry, RecordKind, Run, Table, TapeEntry
from blockplane.stream.media.labels import TapeIdentity
from blockplane.stream.media.medium import Medium
from blockplane.stream.media.rack import Rack
from blockplane.stream.media.records import Mark, Record, new_buffer, read_record


def rebuilt(rack: Rack, identities: Sequence[TapeIdentity]) -> Table:
    """Return what lies where in a set, by its groups: images up to a table that is whole come from that.

    Of the others the names and ids are not known: they stand before their data. An image whose end was not written is
    left out.

    Raises
    ------
    TapeDamagedError : not even that can be read of an image.
    """
    tapes = tuple(TapeEntry(i.label.tape_id, i.label.written_ns, i.label.first_sequence) for i in identities)
    known, found = Table(tapes), _Found(identities[0].label.record_bytes - HEAD_BYTES)
    for identity in identities:
        medium = rack.tape(identity.tape)
        table = found.take_tape(medium, identity)
        if table is not None:
            known = table
    images, runs = list(known.images), list(known.runs)
    for number in range(len(images) + 1, max(found.ended, default=0) + 1):
        entry, its_runs = found.image(number, identities[0])
        images.append(entry)
        runs += its_runs
    return Table(tapes, tuple(images), tuple(runs))


class _Found:
    """Runs of groups, by image, and the images that ended; starts : where what stands before the data lies again."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._runs: dict[int, list[Run]] = {}
        self._starts: dict[int, tuple[int, int, int]] = {}
        self.ended: set[int] = set()
        #: a tape, and from where on it has records of a group that is closed on a later one
        self._open: tuple[Medium, TapeIdentity, int] | None = None

    def take_tape(self, medium: Medium, identity: TapeIdentity) -> Table | None:
        """Take up what a tape has; return the last table on it that is whole."""
        table: Table | None = None
        medium.seek(0)
        medium.pass_filemark()
        while True:
            start = medium.position
            if not medium.pass_filemark():
                if medium.position > start:
                    self._open = medium, identity, start
                return table
            stop = medium.position
            table = self._take_group(medium, identity, start, stop) or table
            medium.seek(stop)

    def _take_group(self, medium: Medium, identity: TapeIdentity, start: int, stop: int) -> Table | None:
        record = before_mark(medium, stop, 0)
        kind = record.head.kind if record is not None else None
        if kind is RecordKind.CONTINUES:
            return None
        if record is not None and kind is RecordKind.END:
            table = table_before(medium, record)
            if table is not None:
                self._open = None
                return table
        contents = contents_before(medium, stop, record) if record is not None else None
        if contents is not None:
            for run in contents.runs:
                self._runs.setdefault(run.image, []).append(run)
        else:
            if self._open is not None:
                self._walk(*self._open, self._open[0].position)
            self._walk(medium, identity, start, stop)
        self._open = None
        return None

    def _walk(self, medium: Medium, identity: TapeIdentity, start: int, stop: int) -> None:
        """Take up records by their own heads: what says what they hold is damaged."""
        medium.seek(start)
        first: Run | None = None
        while medium.position < stop:
            at, found = medium.position, read_record(medium, new_buffer())
            if isinstance(found, Mark):
                break
            head = found.head
            if head is None:
                continue
            if head.kind in (RecordKind.START, RecordKind.TABLE, RecordKind.END):
                self.ended.add(head.image)
                if head.kind is RecordKind.START:
                    tape, position, n_records = self._starts.get(head.image, (identity.tape, at - head.offset, 0))
                    self._starts[head.image] = tape, position, max(n_records, head.offset + 1)
            elif head.kind is RecordKind.DATA and isinstance(found, Record):
                n_before = 0 if first is None else at - first.position
                if first is None or head.offset != first.offset + n_before * self._capacity:
                    n_before = min(at - start, head.offset // self._capacity) if first is None else 0
                    first = Run(
                        identity.tape, head.image, at - n_before, head.sequence - n_before,
                        head.offset - n_before * self._capacity, 0,
                    )  # fmt: skip
                    self._runs.setdefault(head.image, []).append(first)
                stop_offset = head.offset + head.payload_bytes
                first = Run(
                    first.tape, first.image, first.position, first.sequence, first.offset, stop_offset - first.offset
                )
                self._runs[head.image][-1] = first

    def image(self, number: int, of: TapeIdentity) -> tuple[ImageEntry, list[Run]]:
        """Return an image and its runs, which follow each other."""
        runs: list[Run] = []
        for run in sorted(self._runs.get(number, ()), key=lambda run: run.offset):
            if runs and runs[-1].stop < run.offset:  # its last records are damaged, and still there
                last = runs[-1]
                runs[-1] = Run(
                    last.tape, last.image, last.position, last.sequence, last.offset, run.offset - last.offset
                )
            runs.append(run)
        if not runs or runs[0].offset:
            raise TapeDamagedError(
                f"where image {number} of {of.text} begins cannot be found", "read the set in order: tape read"
            )
        tape, position, n_start = self._starts.get(number, (0, 0, 0))
        entry = ImageEntry(number, NO_ID, NO_ID, NO_ID, NO_ID, NO_ID, runs[-1].stop, 0, 0, 0, 0)
        entry = replace(entry, start_tape=tape, start_records=n_start, start_position=position)
        return entry, runs
