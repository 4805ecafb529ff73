"""A stream onto tapes: cut into records, in groups of whole frames, each closed by a list of what it holds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import IO, Final

from blockplane.model.errors import StreamDamagedError, TapeError
from blockplane.stream.codec import FrameKind, tag_of
from blockplane.stream.fdsink import Buffer
from blockplane.stream.media import codec
from blockplane.stream.media.codec import HEAD_BYTES, NO_FRAME, Contents, End, FrameEntry, ImageEntry, RecordKind
from blockplane.stream.media.cutting import Cutter, PassingFrame, RecordCrc, StreamShown
from blockplane.stream.media.medium import MediumFullError
from blockplane.stream.media.rack import Rack
from blockplane.stream.media.setstate import SetState
from blockplane.stream.media.spool import Spool
from blockplane.stream.media.tapfile import WORD_BYTES, framed_bytes

#: What a kill loses at most, and how far filemarks lie apart: 64 MiB in records of 256 KiB.
GROUP_RECORDS: Final = 256
MIN_TAPE_BYTES: Final = 4 << 20
#: From so many full records on they are written together; fewer cost as much one by one.
_TOGETHER: Final = 4
#: What stands before the data waits in a temporary file where it is more.
_START_MEMORY_BYTES: Final = 16 << 20
#: Records of heads and marks that a tape has beside those of a group's data and contents.
_CLOSING_BYTES: Final = 2 * framed_bytes(HEAD_BYTES) + 4 * WORD_BYTES


@dataclass(frozen=True, slots=True)
class Names:
    """What a table says of an image that its header does not show without a key; empty where it is encrypted."""

    top: str = ""
    base: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """An image whose stream was begun: what its header shows, and what of it lies in closed groups."""

    shown: StreamShown
    n_bytes: int
    n_blocks: int
    n_frames: int
    data_offset: int
    start: bytes


def new_start() -> IO[bytes]:
    """Return where what stands before the data waits."""
    return tempfile.SpooledTemporaryFile(max_size=_START_MEMORY_BYTES)


class TapeSink:
    """Takes one stream and puts it onto tapes, as the next image of a set: see Sink.

    Parameters
    ----------
    state : what of the set is written. names : asked at the end. discard : overwrite tapes that hold something else.
    begun : of a stream that is gone on with.

    Notes
    -----
    With `commit` the image becomes part of the set. Until then what is in closed groups can be gone on from.
    """

    def __init__(
        self,
        rack: Rack,
        state: SetState,
        *,
        names: Callable[[], Names] = Names,
        discard: bool = False,
        begun: Begun | None = None,
    ) -> None:
        self.name = rack.names[0]
        self._state, self._names = state, names
        self._number = len(state.images) + 1
        self._spool = Spool(rack, state, self._number, discard=discard)
        self._group_bytes = GROUP_RECORDS * state.capacity
        self._cutter = Cutter(self)
        self._shown: StreamShown | None = None
        self._n_blocks = self._n_frames = self._data_offset = self._group_start = 0
        if begun is not None:
            self._cutter = Cutter(self, tag_of(begun.shown.stream_id), begun.n_frames)
            self._shown, self._data_offset = begun.shown, begun.data_offset
            self._n_blocks, self._n_frames = begun.n_blocks, begun.n_frames
            self._spool.stream_id = begun.shown.stream_id
            self._spool.offset = self._group_start = begun.n_bytes
        #: the record that is being filled
        self._pieces: list[Buffer] = []
        self._crc = RecordCrc()
        self._filled, self._blocks_before, self._first_frame = 0, 0, NO_FRAME
        self._frames: list[FrameEntry] = []
        self._frames_bytes = 0
        #: what stands before the data: it is written once more behind them
        self._start = new_start()
        self._is_start = begun is None
        if begun is not None and not begun.shown.is_sealed:
            self._start.write(begun.start)

    @property
    def n_bytes(self) -> int:
        """How many bytes of the stream came, with those before it was gone on with."""
        return self._spool.offset + self._filled

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink."""
        try:
            self._cutter.take(buffers)
            if self._pieces:
                self._pieces = [b"".join(self._pieces)]
        finally:
            self._spool.settle()  # the caller may change its buffers now

    # --- the stream, taken apart -------------------------------------------------------------------------------------

    def take_header(self, header: bytes, its: StreamShown) -> None:
        """See Taker."""
        self._shown, self._spool.stream_id = its, its.stream_id
        self._is_start = not its.is_sealed
        self._make_room(len(header), 0)
        self._put(memoryview(header), self._crc.add)

    def take_frame(self, frame: PassingFrame) -> None:
        """See Taker."""
        if self.n_bytes - self._group_start >= self._group_bytes:
            self._close_group()
        n_entry = codec.entry_bytes(len(frame.head))
        self._make_room(len(frame.head) + frame.payload_bytes, n_entry)
        if self._first_frame == NO_FRAME:
            self._first_frame, self._blocks_before = self._filled, self._n_blocks
        self._frames.append(FrameEntry(self.n_bytes, frame.head))
        self._frames_bytes += n_entry
        if frame.kind is FrameKind.DATA:
            self._data_offset = self._data_offset or self.n_bytes
            self._is_start = False
            self._n_blocks += frame.n_blocks
        self._n_frames += 1
        self._put(memoryview(frame.head), self._crc.add)
        self._crc.begin_payload(frame)

    def take_payload(self, part: memoryview) -> None:
        """See Taker: the records that it fills alone go out together."""
        capacity = self._state.capacity
        ahead = -self._filled % capacity
        n_bytes = (len(part) - ahead) // capacity * capacity
        if n_bytes >= _TOGETHER * capacity and not self._is_start:
            self._put(part[:ahead], self._crc.add_payload)
            part = part[ahead:]
            if self._spool.write_full(part[:n_bytes], self._crc.of_pieces(part[:n_bytes], capacity)):
                self._crc.pass_payload(n_bytes)
                part = part[n_bytes:]
        self._put(part, self._crc.add_payload)

    def _put(self, view: memoryview, note: Callable[[memoryview], None]) -> None:
        """Add bytes to the record that is being filled; write it when it is full."""
        capacity = self._state.capacity
        if self._is_start:
            self._start.write(view)
        while len(view):
            piece = view[: capacity - self._filled]
            note(piece)
            self._pieces.append(piece)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == capacity:
                self._flush()

    def _flush(self) -> None:
        if self._filled:
            self._spool.write_data(self._pieces, self._crc.take(), self._blocks_before, self._first_frame)
            self._pieces, self._filled = [], 0
            self._blocks_before, self._first_frame = 0, NO_FRAME

    # --- groups and tapes --------------------------------------------------------------------------------------------

    def _close_group(self) -> None:
        """Close the group, which ends with a frame; one that holds nothing is none."""
        self._flush()
        if runs := self._spool.runs:
            self._spool.close_group(Contents(tuple(runs), tuple(self._frames)))
        self._frames, self._frames_bytes, self._group_start = [], 0, self.n_bytes

    def _make_room(self, n_bytes: int, n_entry: int) -> None:
        """Go on to the next tape where a frame, and what closes group and tape then, does not fit on this one."""
        medium = self._spool.medium
        if self._fits(n_bytes, n_entry) and not medium.is_near_end:
            return
        has_more = medium.position > 2 or self._filled
        if has_more:
            self._close_group()
            self._spool.next_tape(is_closed=True)
        if not self._fits(n_bytes, n_entry):
            raise TapeError(
                f"{n_bytes} bytes that belong together do not fit on {self._spool.medium.name}",
                "say a larger --tape-size",
            )

    def _fits(self, n_bytes: int, n_entry: int) -> bool:
        room = self._spool.medium.room_bytes
        if room is None:
            return True
        capacity, n_data = self._state.capacity, self._filled + n_bytes
        n_contents = codec.contents_bytes(self._spool.n_runs + 1) + self._frames_bytes + n_entry
        n_records = -(-n_data // capacity) - (-n_contents // capacity)
        return n_data + n_contents + n_records * (framed_bytes(HEAD_BYTES) + 1) + _CLOSING_BYTES <= room

    # --- the end -----------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """See Sink: durable on return, and part of the set."""
        if not self._cutter.is_whole or self._shown is None:
            raise StreamDamagedError("the stream ends before its trailer", "write it again")
        self._close_group()
        start = self._start_again()
        payload = self._state.table(self._entry(self._shown)).encode()
        medium = self._spool.medium
        if medium.is_near_end or not self._fits(len(start) + len(payload) + codec.END_BYTES, 4 * HEAD_BYTES):
            self._spool.next_tape(is_closed=True)
        while True:
            try:
                entry = self._write_end(self._entry(self._shown), start)
                break
            except MediumFullError:
                self._spool.next_tape(is_closed=False)
        self._spool.medium.finish()
        self._state.images.append(entry)
        self._state.position = self._spool.medium.position

    def _start_again(self) -> bytes:
        """Return what stands before the data, where the stream shows where that ends."""
        self._start.seek(0)
        return self._start.read() if self._data_offset else b""

    def _write_end(self, entry: ImageEntry, start: bytes) -> ImageEntry:
        """Write what closes an image; return what the table says of it."""
        if start:
            position, tape = self._spool.medium.position, self._state.tape
            n_start = self._spool.write_parts(RecordKind.START, start)
            entry = replace(entry, start_tape=tape, start_records=n_start, start_position=position)
        payload, position = self._state.table(entry).encode(), self._spool.medium.position
        n_records = self._spool.write_parts(RecordKind.TABLE, payload)
        end = End(self._state.tape, n_records, position, len(payload))
        self._spool.write_end(RecordKind.END, end.encode())
        return entry

    def _entry(self, its: StreamShown) -> ImageEntry:
        names = self._names()
        return ImageEntry(
            self._number, its.stream_id, its.image_id, its.space_id, its.top_id, its.base_id, self._spool.offset,
            self._n_blocks, self._n_frames, self._data_offset, its.created_ns, names.top, names.base, its.is_sealed,
        )  # fmt: skip

    def close(self) -> None:
        """See Sink: what is written stays, to be gone on with."""
        self._start.close()
