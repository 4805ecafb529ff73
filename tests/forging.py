"""Streams taken apart, changed, and put together again with every checksum and the digest right."""

from __future__ import annotations

import hashlib
import struct

from blockplane.model.checks import crc32c
from blockplane.stream import codec
from blockplane.stream.codec import FLAG_ZSTD, FrameKind

VALUES = [0, 1, 2, 3, 255, 2**16, 2**31, 2**32 - 1, 2**56, 2**63, 2**64 - 1]


def parts_of(stream: bytes) -> list[bytes]:
    parts, at = [stream[: codec.header_length(stream)]], codec.header_length(stream)
    while at < len(stream):
        head = codec.decode_frame_fixed(stream[at : at + codec.FRAME_FIXED_BYTES])
        parts.append(stream[at : at + head.head_bytes + head.payload_bytes])
        at += len(parts[-1])
    return parts


def head_bytes(frame: bytearray) -> int:
    """The length a frame claims for its head, kept inside the frame."""
    return min(max(struct.unpack_from("<I", frame, 16)[0], codec.FRAME_FIXED_BYTES), len(frame))


def is_data(frame: bytearray) -> bool:
    return struct.unpack_from("<H", frame, 4)[0] == FrameKind.DATA


def sealed(parts: list[bytearray]) -> bytes:
    """Put every checksum and the digest right."""
    header, *frames, trailer = parts
    struct.pack_into("<I", header, len(header) - 4, crc32c(header[:-4]))
    digest = hashlib.sha256(header)
    for frame in frames:
        n = head_bytes(frame)
        if not is_data(frame) or struct.unpack_from("<H", frame, 6)[0] & FLAG_ZSTD:
            struct.pack_into("<I", frame, 40, crc32c(frame[n:]))
        struct.pack_into("<I", frame, 44, crc32c(frame[48:n], crc32c(frame[:44])))
        digest.update(frame[:n] if is_data(frame) else frame)
    digest.update(trailer[48 : 48 + 96])
    trailer[48 + 96 :] = digest.digest()
    struct.pack_into("<I", trailer, 40, crc32c(trailer[48:]))
    struct.pack_into("<I", trailer, 44, crc32c(trailer[:44]))
    return b"".join(parts)
