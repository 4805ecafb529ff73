"""Which tape it is: reading a label, and holding it against the tape that is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from blockplane.model.errors import (
    StreamDamagedError,
    TapeLabelError,
    TapeOrderError,
    TapeSetError,
    TapeTimeError,
)
from blockplane.stream.media import codec
from blockplane.stream.media.codec import NO_ID, Label, RecordKind
from blockplane.stream.media.medium import Kind, Medium
from blockplane.stream.media.records import Damage, Record, new_buffer, read_record
from blockplane.stream.media.setstate import SetPart


@dataclass(frozen=True, slots=True)
class TapeIdentity:
    """A tape by its label."""

    name: str
    set_id: bytes
    tape: int
    label: Label

    @property
    def part(self) -> SetPart:
        """Which part of its images the set has."""
        return SetPart(self.label.part, self.label.n_parts, self.label.group_id)

    @property
    def text(self) -> str:
        """What it is called in messages."""
        return f"{self.name} (tape {self.tape} of set {self.set_id.hex()})"


def is_blank(medium: Medium) -> bool:
    """Tell whether nothing is on a medium, or less than a label of ours; afterwards it is at its beginning.

    A label without its filemark, or a part of one, is what a kill may leave of a tape that was begun: nothing is lost
    with it.
    """
    medium.seek(0)
    buffer = new_buffer()
    found = medium.read(buffer)
    blank = found.kind in (Kind.END, Kind.FILEMARK)
    if found.kind is Kind.CUT:
        blank = bytes(buffer[: min(found.n_bytes, len(codec.MAGIC))]) == codec.MAGIC
    elif found.kind is Kind.RECORD and _is_label(buffer[: found.n_bytes]):
        blank = medium.read(buffer).kind in (Kind.END, Kind.CUT)
    medium.seek(0)
    return blank


def _is_label(record: memoryview) -> bool:
    try:
        return codec.decode_record_head(bytes(record[: codec.HEAD_BYTES])).kind is RecordKind.LABEL
    except StreamDamagedError:
        return False


def read_label(medium: Medium) -> TapeIdentity:
    """Read the label that a medium begins with; afterwards the position is behind it.

    Raises
    ------
    TapeLabelError : it has none of ours, or one that cannot be read.
    """
    medium.seek(0)
    found = read_record(medium, new_buffer())
    name = medium.name
    if isinstance(found, Damage):
        if "starts with" in found.what:
            what, hint = f"{name} is no tape of ours: {found.what}", "name a tape that `blockplane tape write` wrote"
        else:
            what, hint = f"the label of {name} is damaged: {found.what}", "which tape it is cannot be known"
        raise TapeLabelError(what, hint)
    if not isinstance(found, Record) or found.head.kind is not RecordKind.LABEL:
        what = f"a record of {found.head.kind.name.lower()}" if isinstance(found, Record) else found.kind.value
        raise TapeLabelError(f"{name} has no label: it begins with {what}", "write it with `blockplane tape write`")
    try:
        return TapeIdentity(name, found.head.set_id, found.head.tape, codec.decode_label(bytes(found.payload)))
    except StreamDamagedError as error:
        raise TapeLabelError(f"the label of {name} is damaged: {error.message}", "") from error


def require_next(found: TapeIdentity, number: int, before: TapeIdentity | None, set_id: bytes | None) -> None:
    """Hold a tape against the one that is wanted: the number-th of its set, behind another.

    Raises
    ------
    TapeSetError, TapeOrderError, TapeTimeError : as the class names say.
    """
    if set_id is not None and found.set_id != set_id:
        raise TapeSetError(
            f"{found.name} is tape {found.tape} of another set, {found.set_id.hex()}",
            f"tape {number} of set {set_id.hex()} is needed",
        )
    if found.tape != number:
        raise TapeOrderError(
            f"{found.name} is tape {found.tape} of its set, and tape {number} is needed here",
            "name the tapes in their order",
        )
    if before is not None:
        require_follows(found, before.label.tape_id, before.label.written_ns)


def require_follows(found: TapeIdentity, tape_id: bytes, written_ns: int) -> None:
    """Raise TapeTimeError unless a tape was begun behind the tape of an id, which was written when it says."""
    label = found.label
    if label.previous_id != tape_id:
        what = (
            "goes on behind no other tape"
            if label.previous_id == NO_ID
            else f"follows one of {moment(label.previous_ns)}"
        )
        raise TapeTimeError(
            f"{found.text} was written at another time than the tape before it: it {what}, and that is of "
            f"{moment(written_ns)}",
            "take the tapes of one writing",
        )


def moment(ns: int) -> str:
    """Return a time as people read it."""
    try:
        return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
    except (OverflowError, ValueError, OSError):
        return f"{ns} ns since 1970"
