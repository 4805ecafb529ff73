"""Finding frames in bytes that may begin anywhere in a stream."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from blockplane.model.checks import crc32c
from blockplane.stream.codec.sealed import SEALED_MAGIC
from blockplane.stream.codec.words import FRAME_MAGIC, MAX_HEAD_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES

#: So many bytes from anywhere in a stream hold the whole head of a frame, unless the stream ends before.
SEARCH_BYTES: Final = MAX_PAYLOAD_BYTES + 2 * MAX_HEAD_BYTES + MAX_HEADER_BYTES
#: Of frames as of encrypted ones: number, bytes of the head, tag; its CRC.
_FIXED = struct.Struct("<8xQI4xQ12xI")
_CRC_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class FoundFrame:
    """A frame: whose it is, its number, and where it begins in the bytes."""

    tag: int
    sequence: int
    offset: int


def find_frame(data: bytes) -> FoundFrame | None:
    """Return the first frame whose head is whole in some bytes; its CRC says that it is one."""
    for magic in (FRAME_MAGIC, SEALED_MAGIC):
        at = data.find(magic)
        while 0 <= at <= len(data) - _FIXED.size:
            sequence, head_bytes, tag, crc = _FIXED.unpack_from(data, at)
            table = data[at + _FIXED.size : at + min(head_bytes, MAX_HEAD_BYTES)]
            if crc32c(table, crc32c(data[at : at + _FIXED.size - _CRC_BYTES])) == crc:
                return FoundFrame(tag, sequence, at)
            at = data.find(magic, at + 1)
    return None
