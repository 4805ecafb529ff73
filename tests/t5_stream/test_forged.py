"""Streams whose checksums and digests are right and whose fields are anything: refused clearly, or received (F16)."""

from __future__ import annotations

import hashlib
import io
import os
import struct

from blockplane.model import BlockplaneError
from blockplane.model.checks import crc32c
from blockplane.stream import codec
from blockplane.stream.codec import FrameKind
from blockplane.transfer import receive, send
from streams.storage import DictSending, DictStorage, pair

N_STREAMS = 200_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 1_000
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
        if not is_data(frame):
            struct.pack_into("<I", frame, 40, crc32c(frame[n:]))
        struct.pack_into("<I", frame, 44, crc32c(frame[48:n], crc32c(frame[:44])))
        digest.update(frame[:n] if is_data(frame) else frame)
    digest.update(trailer[48 : 48 + 96])
    trailer[48 + 96 :] = digest.digest()
    struct.pack_into("<I", trailer, 40, crc32c(trailer[48:]))
    struct.pack_into("<I", trailer, 44, crc32c(trailer[:44]))
    return b"".join(parts)


def test_forged_streams(rng):
    source, old, new = pair()
    first, out = io.BytesIO(), io.BytesIO()
    send(DictSending(source, old), first)
    left_out = source.snapshot("x", frozenset({1}), 1)
    send(DictSending(source, new, old, window_blocks=3, left_out=(left_out,)), out)
    n_refused = n_received = 0
    for _ in range(N_STREAMS):
        parts = [bytearray(part) for part in parts_of(out.getvalue())]
        for _ in range(int(rng.integers(1, 4))):
            part = parts[int(rng.integers(len(parts)))]
            end = head_bytes(part) if part is not parts[0] and is_data(part) else len(part)
            width = int(rng.choice([1, 2, 4, 8]))
            at = int(rng.integers(max(end - width, 1)))
            value = VALUES[int(rng.integers(len(VALUES)))] if rng.integers(4) else int(rng.integers(1 << 62))
            part[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        target = DictStorage()
        receive(io.BytesIO(first.getvalue()), target)
        before = dict(target.blocks)
        try:
            receive(io.BytesIO(sealed(parts)), target)
            n_received += 1
        except BlockplaneError:
            n_refused += 1
            assert target.blocks == before
    assert n_refused + n_received == N_STREAMS
    assert n_refused > N_STREAMS // 4
