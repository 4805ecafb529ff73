"""Streams whose checksums and digests are right and whose fields are anything: refused clearly, or received (F16)."""

from __future__ import annotations

import hashlib
import io
import os
import struct

import numpy as np
import pytest

from blockplane.model import BlockplaneError
from blockplane.model.checks import crc32c
from blockplane.stream import codec, open_stream
from blockplane.stream.codec import FLAG_ZSTD, FrameKind
from blockplane.transfer import merge_streams, receive, send, verify_streams
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
        if not is_data(frame) or struct.unpack_from("<H", frame, 6)[0] & FLAG_ZSTD:
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


def test_forged_streams_in_place(tmp_path, rng):
    """Opened, read at random, verified and merged: an error of ours, or the blocks the stream has (F16)."""
    source, old, new = pair()
    out = {}
    for name, sending in (("old", DictSending(source, old)), ("new", DictSending(source, new, old, window_blocks=3))):
        sink = io.BytesIO()
        send(sending, sink, compress="zstd" if name == "new" else None)
        out[name] = sink.getvalue()
        (tmp_path / f"{name}.bps").write_bytes(out[name])
    n_refused = n_read = 0
    for _ in range(N_STREAMS // 2):
        name = str(rng.choice(["old", "new"]))
        parts = [bytearray(part) for part in parts_of(out[name])]
        part = parts[int(rng.integers(len(parts)))]
        end = head_bytes(part) if part is not parts[0] and is_data(part) else len(part)
        width = int(rng.choice([1, 2, 4, 8]))
        at = int(rng.integers(max(end - width, 1)))
        value = VALUES[int(rng.integers(len(VALUES)))] if rng.integers(4) else int(rng.integers(1 << 62))
        part[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
        (tmp_path / "forged.bps").write_bytes(sealed(parts))
        paths = [tmp_path / "forged.bps" if each == name else tmp_path / f"{each}.bps" for each in ("old", "new")]
        verify_streams(*paths)
        with pytest.raises(BlockplaneError):  # the blocks of a dictionary are no block map
            merge_streams(*paths, sink=tmp_path / "merged.bps")
        try:
            with open_stream(*paths, snapshot="new") as chain:
                data = np.zeros(4096, np.uint8)
                for vbn in (0, 4, 20, 24):
                    chain.read_extents(np.array([[vbn, vbn + 1]], np.int64), data)
                    assert data.tobytes() == source.blocks[vbn]
            n_read += 1
        except BlockplaneError:
            n_refused += 1
    assert n_refused + n_read == N_STREAMS // 2
    assert min(n_refused, n_read) > N_STREAMS // 40
