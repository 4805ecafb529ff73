"""What stands before a filemark: the records that close a group, read backwards from it."""

from __future__ import annotations

from contextlib import suppress

from blockplane.model.errors import StreamDamagedError, TapeError
from blockplane.stream.media import codec
from blockplane.stream.media.codec import Contents, RecordKind, Table
from blockplane.stream.media.medium import Medium
from blockplane.stream.media.records import Damage, Record, new_buffer, read_record


def before_mark(medium: Medium, stop: int, n_between: int) -> Record | None:
    """Return the record before the filemark that ends at a position, and before others there; None: it is not whole."""
    if stop < 2 + n_between:
        return None
    medium.seek(stop - 2 - n_between)
    record = read_record(medium, new_buffer())
    return record if isinstance(record, Record) else None


def contents_before(medium: Medium, stop: int, last: Record) -> Contents | None:
    """Return the contents of which the last record is given."""
    if last.head.kind is not RecordKind.CONTENTS or last.head.offset > stop - 2:
        return None
    records = [before_mark(medium, stop, n) for n in range(last.head.offset, 0, -1)] + [last]
    if any(r is None or r.head.kind is not RecordKind.CONTENTS for r in records):
        return None
    with suppress(StreamDamagedError):
        return codec.decode_contents(b"".join(bytes(r.payload) for r in records if r is not None))
    return None


def parts_at(medium: Medium, position: int, n_records: int, kind: RecordKind) -> bytes | Damage:
    """Return what records of a kind hold together, from a position on; or what is wrong with one of them.

    Raises
    ------
    TapeError : the medium ends before the position.
    """
    medium.seek(position)
    parts: list[bytes] = []
    for _ in range(n_records):
        at = medium.position
        found = read_record(medium, new_buffer())
        if not isinstance(found, Record) or found.head.kind is not kind:
            return found if isinstance(found, Damage) else Damage(at, "it is not where the end record says")
        parts.append(bytes(found.payload))
    return b"".join(parts)


def table_before(medium: Medium, record: Record) -> Table | None:
    """Return the table that an end record names; None: it is not whole, or not on this tape."""
    with suppress(StreamDamagedError, TapeError):
        end = codec.decode_end(bytes(record.payload))
        if end.tape != record.head.tape:
            return None
        found = parts_at(medium, end.position, end.n_records, RecordKind.TABLE)
        return codec.decode_table(found) if isinstance(found, bytes) else None
    return None


def contents_ahead(medium: Medium) -> Contents | None:
    """Return the contents of the group that a medium stands in, and stay there; None: they cannot be read."""
    here = medium.position
    try:
        if not medium.pass_filemark():
            return None
        stop = medium.position
        last = before_mark(medium, stop, 0)
        return contents_before(medium, stop, last) if last is not None else None
    finally:
        medium.seek(here)
