"""Where the writing of a set stands: found from filemark to filemark, without reading what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from blockplane.model.errors import (
    StreamDamagedError,
    StreamError,
    StreamOrderError,
    StreamTruncatedError,
    TapeEndError,
)
from blockplane.planes import Plane
from blockplane.stream.codec import FRAME_FIXED_BYTES, FrameHead, FrameKind, Locations, header_length
from blockplane.stream.input import FileInput
from blockplane.stream.keyfile import Key
from blockplane.stream.media import codec
from blockplane.stream.media.closing import before_mark, contents_before, table_before
from blockplane.stream.media.codec import Contents, FrameEntry, ImageEntry, RecordKind, Table, TapeEntry
from blockplane.stream.media.cutting import shown
from blockplane.stream.media.labels import TapeIdentity, is_blank, read_label, require_next
from blockplane.stream.media.medium import Medium
from blockplane.stream.media.rack import Rack
from blockplane.stream.media.records import Record
from blockplane.stream.media.setstate import SetState
from blockplane.stream.media.tapeset import TapeSet, TapeStore
from blockplane.stream.media.writer import Begun
from blockplane.stream.partial import PartialStream, note_frame
from blockplane.stream.reader import StreamReader
from blockplane.stream.written import Written, new_index


@dataclass(slots=True)
class Standing:
    """What of a set is written.

    state : behind its last image. groups : closed ones of an image that was begun, and how the set stood behind each.
    goes_on : the last tape that was looked at says that the set goes on with another.
    """

    state: SetState
    first: TapeIdentity
    groups: list[tuple[Contents, SetState]] = field(default_factory=list)
    goes_on: bool = False


def ending(rack: Rack, *, is_all: bool = False) -> Standing | None:
    """Find where a set ends: its last tape is enough, whose table says all of those before; None: it is blank.

    The tapes of the rack are numbered as their labels say. is_all : those that the set goes on with are not written.

    Raises
    ------
    TapeEndError : the set does not end on the tapes that there are. The rest as `standing`.
    """
    medium = rack.tape(rack.first)
    if not is_blank(medium):
        rack.number_from(read_label(medium).tape)
    found = standing(rack)
    if found is not None and is_all:
        found.goes_on = False
    if found is not None and (found.goes_on or (rack.first > 1 and not found.state.images)):
        what = "goes on with another tape" if found.goes_on else "does not have its end"
        raise TapeEndError(
            f"the set of {found.first.text} {what}",
            "load its last tape, or name all; what was interrupted is gone on with: --resume",
        )
    return found


def standing(rack: Rack) -> Standing | None:
    """Find where a set stands on the tapes of a rack, from the first on; None: the first one is blank.

    Where that is not the set's first, what is before the table of an image is not known.

    Raises
    ------
    TapeError and its kinds : a tape is not the one that comes next, or is none of ours.
    """
    found: Standing | None = None
    before: TapeIdentity | None = None
    now: SetState | None = None
    for number in range(rack.first, rack.first + rack.n_named):
        medium = rack.tape(number)
        if is_blank(medium):
            if found is not None:
                found.goes_on = False  # nothing was written there
            break
        its = read_label(medium)
        require_next(its, number, before, before.set_id if before is not None else None)
        before = its
        if found is None or now is None:
            now = SetState(its.set_id, its.label.created_ns, its.label.record_bytes, part=its.part)
            found = Standing(now, its)
        now.tapes.append(TapeEntry(its.label.tape_id, its.label.written_ns, its.label.first_sequence))
        now.tape, now.sequence, found.goes_on = number, its.label.first_sequence, False
        medium.pass_filemark()
        now.position = medium.position
        if found.state is now:
            found.state = _kept(now)
        if not _scan_tape(medium, now, found):
            break
    return found


def _scan_tape(medium: Medium, now: SetState, found: Standing) -> bool:
    """Take up what is closed on a tape; return whether the set goes on behind it."""
    while True:
        start = medium.position
        if not medium.pass_filemark():
            return bool(found.groups or now.images)
        stop = medium.position
        record = before_mark(medium, stop, 0)
        if record is None or stop - start < 2:
            return False
        kind = record.head.kind
        if kind is RecordKind.CONTINUES:
            found.goes_on = True
            return True
        if kind is RecordKind.END:
            table = table_before(medium, record)
            if table is None or table.tapes[-len(now.tapes) :] != tuple(now.tapes):
                return False
            now.tapes = list(table.tapes)
            now.images, now.runs = list(table.images), list(table.runs)
            found.groups = []
            found.state = _stood(now, stop, record)
        elif kind is RecordKind.CONTENTS:
            contents = contents_before(medium, stop, record)
            if contents is None or not _goes_on(found, contents):
                return False
            now.runs = [*now.runs, *contents.runs]
            found.groups.append((contents, _stood(now, stop, record)))
        else:
            return False
        medium.seek(stop)


def _stood(now: SetState, stop: int, last: Record) -> SetState:
    """Take a record and its filemark for written; return how the set stands behind them, to be kept."""
    now.position, now.sequence = stop, last.head.sequence + 1
    return _kept(now)


def _kept(now: SetState) -> SetState:
    return replace(now, tapes=list(now.tapes), images=list(now.images), runs=list(now.runs))


def _goes_on(found: Standing, contents: Contents) -> bool:
    """Whether a group begins where the last one ends: else it is of an earlier writing, of which its tape is left."""
    if not contents.runs:
        return False
    if not found.groups and found.first.tape > 1:
        return True  # what is on the tapes before is not known
    return contents.runs[0].offset == (found.groups[-1][0].runs[-1].stop if found.groups else 0)


@dataclass(frozen=True, slots=True)
class Resumption:
    """An image that was begun, and can be gone on with. state : of the set where that is."""

    partial: PartialStream
    begun: Begun
    state: SetState


def resumption(rack: Rack, found: Standing, keys: Sequence[Key]) -> Resumption | None:
    """Return how the image that was begun goes on; None: nothing of it is of use.

    Notes
    -----
    Of the tapes what stands before the data is read, and the contents of groups.

    Raises
    ------
    StreamKeyError : it is encrypted with another key.
    """
    if not found.groups:
        return None
    entry = _open_entry(found)
    runs = tuple(run for contents, _ in found.groups for run in contents.runs)
    tapes = TapeSet(rack, Table(tuple(found.groups[-1][1].tapes), (entry,), runs))
    store = TapeStore(tapes, entry, is_owner=False)
    try:
        reader = StreamReader(FileInput(store), keys)
        stream = reader.read_map()
        offset, sequence, sha = reader.data_start()
    except (StreamTruncatedError, StreamDamagedError, StreamOrderError):
        return None
    written = Written(stream.header, reader.framing, sha, new_index(), sequence, offset)
    partial = PartialStream(stream, written, Plane.empty(stream.header.space_blocks))
    state = _note_groups(partial, found)
    if state is None or stream.header.locations is Locations.IMPLICIT:
        written.index.close()
        return None
    seen = shown(store.read(header_length(store.read(16, 0)), 0))
    n_blocks = 0 if seen.is_sealed else written.n_blocks
    begun = Begun(seen, written.n_bytes, n_blocks, written.sequence, offset, store.read(offset, 0))
    return Resumption(partial, begun, state)


def _open_entry(found: Standing) -> ImageEntry:
    number, last = len(found.state.images) + 1, found.groups[-1][0]
    stop = last.runs[-1].stop if last.runs else 0
    none = codec.NO_ID
    return ImageEntry(number, none, none, none, none, none, stop, 0, 0, 0, 0)


def _note_groups(partial: PartialStream, found: Standing) -> SetState | None:
    """Take up the data frames of whole groups; return how the set stood behind the last of them, None without one."""
    written, stood = partial.written, None
    for contents, state in found.groups:
        behind = max((run.stop for run in contents.runs), default=0)
        if behind < written.n_bytes:
            continue  # nothing but what stands before the data
        due = [frame for frame in contents.frames if frame.offset >= written.n_bytes]
        heads = _data_heads(written, due)
        ends = written.n_bytes + sum(head.stored_head_bytes + head.stored_bytes for head, _ in heads)
        if len(heads) < len(due) or ends != behind:
            break  # the index was begun: the group is written again
        for head, raw in heads:
            note_frame(partial, head, raw)
        stood = state
    return stood


def _data_heads(written: Written, frames: Sequence[FrameEntry]) -> list[tuple[FrameHead, bytes]]:
    """Return the heads of data frames that follow each other, up to one that is none."""
    heads: list[tuple[FrameHead, bytes]] = []
    for number, frame in enumerate(frames):
        fixed, rest = frame.head[:FRAME_FIXED_BYTES], frame.head[FRAME_FIXED_BYTES:]
        try:
            head, raw = written.framing.head(fixed, rest, written.header.tag, written.sequence + number)
        except StreamError:
            break
        if head.kind is not FrameKind.DATA or not head.is_located:
            break
        heads.append((head, raw))
    return heads
