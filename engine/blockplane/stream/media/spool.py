"""Records of a set as they are written, tape after tape: labels, data, what closes a group, what closes a tape."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress

from blockplane.model.addresses import Checks
from blockplane.model.checks import crc32c
from blockplane.model.errors import RefusedError, TapeLabelError
from blockplane.model.release import WRITER
from blockplane.stream.fdsink import Buffer
from blockplane.stream.media.codec import (
    NO_FRAME,
    NO_ID,
    Contents,
    Label,
    RecordHead,
    RecordKind,
    Run,
    TapeEntry,
    encode_heads,
)
from blockplane.stream.media.labels import is_blank, read_label
from blockplane.stream.media.medium import Medium, MediumFullError
from blockplane.stream.media.rack import Rack
from blockplane.stream.media.setstate import SetState


class Spool:
    """Writes the records of one image of a set.

    Parameters
    ----------
    state : what is written; it goes on there. number : the image's. discard : overwrite tapes that hold something else.

    Attributes
    ----------
    stream_id : of the image's stream. offset : how many bytes of it are in records.
    """

    def __init__(self, rack: Rack, state: SetState, number: int, *, discard: bool = False) -> None:
        self._rack, self._state, self._number, self._discard = rack, state, number, discard
        self._medium: Medium | None = None
        self.stream_id, self.offset = NO_ID, 0
        self._runs: list[Run] = []
        #: the first record of the run that is being written
        self._first: RecordHead | None = None

    @property
    def medium(self) -> Medium:
        """The tape that is being written; taken when it is first asked for."""
        if self._medium is None:
            if self._state.tape:
                self._medium = self._rack.tape(self._state.tape)
                self._medium.seek(self._state.position)
            else:
                self._medium = self._begin_tape()
        return self._medium

    def settle(self) -> None:
        """Wait until no piece of a record is needed any more; raises what went wrong."""
        if self._medium is not None:
            self._medium.settle()

    # --- records -----------------------------------------------------------------------------------------------------

    def _write(
        self, kind: RecordKind, pieces: Sequence[Buffer], offset: int, crc: int, before: int = 0, first: int = NO_FRAME
    ) -> RecordHead:
        """Write one record. crc : of its pieces. Raises as `Medium.write`."""
        state, medium = self._state, self.medium
        n_bytes, image = sum(map(len, pieces)), 0 if kind is RecordKind.LABEL else self._number
        head = RecordHead(
            kind, state.set_id, state.tape, n_bytes, state.sequence, offset, medium.position, before, first, image,
            crc,
        )  # fmt: skip
        medium.write([head.encode(), *pieces])
        state.sequence += 1
        return head

    def write_data(self, pieces: Sequence[Buffer], crc: int, blocks_before: int, first_frame: int) -> None:
        """Write a record of the stream, on the next tape where this one is full. crc : of its pieces."""
        while True:
            try:
                head = self._write(RecordKind.DATA, pieces, self.offset, crc, blocks_before, first_frame)
                break
            except MediumFullError:
                self.next_tape(is_closed=False)
        if self._first is None:
            self._first = head
        self.offset += head.payload_bytes

    def write_full(self, payload: memoryview, crcs: Sequence[int] | Checks) -> int:
        """Write full records of the stream, in which no frame begins, together; return how many were: all, or none.

        crcs : of each.
        """
        state, medium = self._state, self.medium
        head = RecordHead(
            RecordKind.DATA, state.set_id, state.tape, state.capacity, state.sequence, self.offset, medium.position, 0,
            NO_FRAME, self._number, int(crcs[0]),
        )  # fmt: skip
        n_written = medium.write_records(encode_heads(head, crcs), payload)
        if n_written and self._first is None:
            self._first = head
        state.sequence += n_written
        self.offset += n_written * state.capacity
        return n_written

    @property
    def runs(self) -> list[Run]:
        """The runs of the group that is open."""
        first = self._first
        if first is None:
            return self._runs
        n_bytes = self.offset - first.offset
        return [*self._runs, Run(first.tape, first.image, first.position, first.sequence, first.offset, n_bytes)]

    @property
    def n_runs(self) -> int:
        """How many there are."""
        return len(self._runs) + (self._first is not None)

    def _end_run(self) -> None:
        self._runs, self._first = self.runs, None

    def write_parts(self, kind: RecordKind, payload: bytes) -> int:
        """Write records that hold something together, numbered where data have their offset; return how many."""
        capacity = self._state.capacity
        parts = [payload[at : at + capacity] for at in range(0, len(payload), capacity)]
        for number, part in enumerate(parts):
            self._write(kind, [part], number, crc32c(part))
        return len(parts)

    def close_group(self, contents: Contents) -> None:
        """Write what a group holds, and a filemark: on the next tape where the end of this one came early."""
        self._end_run()
        while True:
            try:
                self.write_parts(RecordKind.CONTENTS, contents.encode())
                self.medium.write_filemark(wait=False)
                break
            except MediumFullError:
                self.next_tape(is_closed=False)
        self._state.runs += self._runs
        self._state.position = self.medium.position
        self._runs = []

    def write_end(self, kind: RecordKind, payload: bytes) -> None:
        """Write a record that ends an image, or a tape, and a filemark that is waited for; raises as `Medium.write`."""
        self._write(kind, [payload], self.offset, crc32c(payload))
        self.medium.write_filemark(wait=True)

    # --- tapes -------------------------------------------------------------------------------------------------------

    def next_tape(self, *, is_closed: bool) -> None:
        """Go on with the next tape. is_closed : the group is, and there is room to say that the set goes on."""
        if is_closed:
            with suppress(MediumFullError):  # the next tape's label says as much
                self.write_end(RecordKind.CONTINUES, b"")
        self._end_run()
        self.medium.finish()
        self._medium = self._begin_tape()

    def _begin_tape(self) -> Medium:
        """Write a tape's label, and a filemark."""
        state, number = self._state, self._state.tape + 1
        medium = self._rack.tape(number)
        self._require_free(medium)
        before = state.tapes[-1] if state.tapes else TapeEntry(NO_ID, 0, 0)
        entry = TapeEntry(secrets.token_bytes(16), max(time.time_ns(), before.written_ns + 1), state.sequence + 1)
        label = Label(
            entry.tape_id, before.tape_id, state.created_ns, entry.written_ns, before.written_ns, state.record_bytes,
            self._number, entry.first_sequence, self.offset, self.stream_id, WRITER,
            state.part.number, state.part.n_parts, state.part.group_id,
        )  # fmt: skip
        self._medium, state.tape = medium, number
        payload = label.encode()
        self._write(RecordKind.LABEL, [payload], 0, crc32c(payload))
        medium.write_filemark(wait=False)
        state.tapes.append(entry)
        state.position = medium.position
        return medium

    def _require_free(self, medium: Medium) -> None:
        """Refuse to overwrite a tape that this set has written, and any other one unless that was asked for."""
        if is_blank(medium):
            return
        state = self._state
        try:
            found = read_label(medium)
        except TapeLabelError:
            found = None
        medium.seek(0)
        if found is not None and found.set_id == state.set_id and found.tape <= state.tape:
            raise RefusedError(
                f"{medium.name} is tape {found.tape} of the set that is being written, and tape {state.tape + 1} is "
                "wanted",
                "load another tape",
            )
        if not self._discard and (found is None or found.set_id != state.set_id):
            what = (
                "something that is no tape of ours"
                if found is None
                else f"tape {found.tape} of set {found.set_id.hex()}"
            )
            raise RefusedError(
                f"{medium.name} holds {what}, which would be overwritten",
                "say --append to add to a set, --discard to lose it",
            )
