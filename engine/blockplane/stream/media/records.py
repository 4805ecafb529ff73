"""Records of our tapes: written with their heads, and read back whole or named as damaged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError
from blockplane.stream.media import codec
from blockplane.stream.media.codec import HEAD_BYTES, RecordHead
from blockplane.stream.media.medium import Kind, Medium


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record; payload : of a buffer that the reader uses again, unless it was copied."""

    head: RecordHead
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Mark:
    """What is no record: a filemark, an end."""

    kind: Kind


@dataclass(frozen=True, slots=True)
class Damage:
    """A record that cannot be read, or is none of ours.

    position : on its tape. what : the reason. head : where that at least is whole.
    """

    position: int
    what: str
    head: RecordHead | None = None


def read_record(medium: Medium, buffer: memoryview) -> Record | Mark | Damage:
    """Read what stands at the position of a medium; a record's head and payload are held against their checksums."""
    position = medium.position
    found = medium.read(buffer)
    if found.kind is Kind.BAD:
        return Damage(position, "it cannot be read")
    if found.kind is not Kind.RECORD:
        return Mark(found.kind)
    try:
        head = codec.decode_record_head(bytes(buffer[: min(found.n_bytes, HEAD_BYTES)]))
    except StreamDamagedError as error:
        return Damage(position, error.message)
    payload = buffer[HEAD_BYTES : found.n_bytes]
    if len(payload) != head.payload_bytes:
        return Damage(position, f"it has {len(payload)} of {head.payload_bytes} bytes", head)
    if crc32c(payload) != head.payload_crc:
        return Damage(position, "its bytes do not match their checksum", head)
    return Record(head, payload)


def new_buffer() -> memoryview:
    """Return room for the longest record."""
    return np.empty(codec.MAX_RECORD_BYTES, np.uint8).data
