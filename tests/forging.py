"""Streams taken apart, changed, and put together again with every checksum and the digest right."""

from __future__ import annotations

import hashlib
import struct

from blockplane.model.checks import crc32c
from blockplane.stream import codec
from blockplane.stream.codec import FLAG_ZSTD, FrameKind
from blockplane.stream.encryption import SealedFraming, framing_of
from blockplane.stream.keyfile import Key

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
    return b"".join(sealed_parts(parts))


def sealed_parts(parts: list[bytearray]) -> list[bytes]:
    """The header and the frames, every checksum and the digest right."""
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
    return [bytes(part) for part in parts]


# --- encrypted streams, their key known ---


def opened_parts(stream: bytes, key: Key) -> list[bytes]:
    """The header and the frames of an encrypted stream, decrypted."""
    framing, header = framing_of(stream[: codec.header_length(stream)], [key], "a stream")
    tag = codec.decode_header(header).tag
    parts, at = [header], codec.header_length(stream)
    while at < len(stream):
        fixed = stream[at : at + codec.FRAME_FIXED_BYTES]
        rest = stream[at + len(fixed) : at + len(fixed) + framing.rest_bytes(fixed)]
        head, raw = framing.head(fixed, rest, tag, None)
        at += head.stored_head_bytes
        parts.append(raw + head.sealing.open(memoryview(stream[at : at + head.stored_bytes])))
        at += head.stored_bytes
    return parts


def encrypted(parts: list[bytes], key: Key) -> bytes:
    """Encrypt a header and frames, whatever they say; what can be read of a frame is right."""
    framing = SealedFraming(key, bytes(codec.SALT_BYTES))
    header, *frames = parts
    out = [framing.sealed_header(header)]
    tag = struct.unpack_from("<Q", header, 72)[0]
    for sequence, frame in enumerate(frames):
        n = head_bytes(bytearray(frame))
        out += framing.wire(sequence, tag, frame[:n], [frame[n:]])
    return b"".join(out)
