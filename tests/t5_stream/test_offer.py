"""The offer's format: OFFER.md against the codec, a worked offer byte by byte, and what its reader refuses."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from blockplane.model.checks import crc32c, fresh_checks
from blockplane.model.errors import StreamDamagedError, StreamError, StreamTruncatedError
from blockplane.stream import offer
from blockplane.stream.input import ObjectInput
from blockplane.stream.offer import OfferFrame, OfferHeader, OfferKind, OfferReader, OfferWriter, RunDigests
from blockplane.stream.sink import ObjectSink
from blockplane.volume.codec import NO_ID, Pointer, SnapshotRecord
from streams.storage import plane_of

FORMAT = (Path(offer.__file__).with_name("OFFER.md")).read_text()
VBNS = np.array([3, 4, 5, 9, 10, 60_000, 65_535], np.int64)


def table(title: str) -> dict[str, tuple[int, int]]:
    section = FORMAT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return {n: (int(o), int(s)) for o, s, n in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)}


def record(n_blocks: int = len(VBNS)) -> SnapshotRecord:
    return SnapshotRecord(b"s" * 16, b"n" * 16, NO_ID, NO_ID, 1, 0, Pointer(5, 7), n_blocks, "s")


def header(**changes) -> OfferHeader:
    return OfferHeader(**{"record": record(), "space_blocks": 65_536, "run_blocks": 3, "offer_id": b"0123456789abcdef",
                          "created_ns": -5, **changes})  # fmt: skip


def data() -> np.ndarray:
    return np.arange(len(VBNS) * 4096, dtype=np.uint64).astype(np.uint8)


def worked() -> bytes:
    out = io.BytesIO()
    writer = OfferWriter(ObjectSink(out), header())
    writer.write_plane(plane_of(frozenset(VBNS.tolist())))
    with RunDigests(3) as digests:
        writer.write_blocks(fresh_checks(data(), VBNS), digests.of(data()))
    writer.finish()
    assert writer.n_bytes == len(out.getvalue())
    return out.getvalue()


def read(raw: bytes) -> list[offer.OfferedBlocks]:
    return list(OfferReader(ObjectInput(io.BytesIO(raw))).blocks())


def test_header_fields_lie_where_offer_md_says():
    raw, fields = header().encode(), table("Header")
    number = {k: int.from_bytes(raw[o : o + s], "little", signed=k == "created_ns") for k, (o, s) in fields.items()}
    expected = {
        "version": 1, "header_bytes": 332, "created_ns": -5, "space_blocks": 65_536, "n_blocks": 7, "run_blocks": 3,
        "digest_kind": 1, "digest_bytes": 32, "check_kind": 1, "check_bytes": 4, "zero": 0, "crc": crc32c(raw[:-4]),
    }  # fmt: skip
    assert {key: number[key] for key in expected} == expected
    assert raw[:8] == offer.MAGIC == bytes.fromhex("89 42 50 4F 0D 0A 1A 0A")
    assert raw[slice(fields["record"][0], sum(fields["record"]))] == record().encode()
    assert raw[16:32] == b"0123456789abcdef"
    assert sum(fields["crc"]) == len(raw) == offer.HEADER_BYTES
    assert OfferHeader.decode(raw) == header()


def test_frame_fields_lie_where_offer_md_says():
    raw, fields = OfferFrame(2, 3, 4, 5, 6, 7, 8).encode(), table("Frame")
    values = {k: int.from_bytes(raw[o : o + s], "little") for k, (o, s) in fields.items() if k != "magic"}
    assert values == {
        "kind": 2, "zero": 0, "sequence": 3, "payload_bytes": 4, "n_blocks": 5, "first": 6, "tag": 7, "payload_crc": 8,
        "head_crc": crc32c(raw[:44]),
    }  # fmt: skip
    assert (raw[:4], len(raw)) == (offer.FRAME_MAGIC, sum(fields["head_crc"]))


def test_an_offer_byte_by_byte():
    """As the page says, put together by hand: a header, a piece, the blocks, the end."""
    raw, blocks = worked(), data().tobytes()
    at, sha, tag = 332, hashlib.sha256(raw[:332]), int.from_bytes(b"01234567", "little")
    checks = b"".join(struct.pack("<I", int(check)) for check in fresh_checks(data(), VBNS))
    digests = b"".join(hashlib.sha256(blocks[i * 4096 : (i + 3) * 4096]).digest() for i in (0, 3, 6))
    (piece,) = [p for _, _, p in offer.plane_pieces(plane_of(frozenset(VBNS.tolist())))]
    for sequence, (kind, payload, n_blocks) in enumerate([(1, piece, 7), (2, checks + digests, 7), (3, None, 7)]):
        body = payload if payload is not None else sha.digest()
        head = struct.pack("<4sHHQIIQQI", b"BPof", kind, 0, sequence, len(body), n_blocks, 0, tag, crc32c(body))
        head += struct.pack("<I", crc32c(head))
        assert raw[at : at + 48 + len(body)] == head + body
        sha.update(head)
        at += 48 + len(body)
    assert at == len(raw)


def test_reading_gives_back_what_was_written():
    (part,) = read(worked())
    assert part.vbns.tolist() == VBNS.tolist()
    assert part.checks.tolist() == fresh_checks(data(), VBNS).tolist()
    blocks = data().tobytes()
    assert [bytes(d) for d in part.digests] == [
        hashlib.sha256(blocks[i * 4096 :][: 3 * 4096]).digest() for i in (0, 3, 6)
    ]


def test_damage_at_every_byte_and_every_cut():
    raw = worked()
    for at in range(len(raw)):
        bad = bytearray(raw)
        bad[at] ^= 1 << at % 8
        with pytest.raises(StreamError):
            read(bytes(bad))
    for length in range(len(raw)):
        with pytest.raises(StreamError):
            read(raw[:length])
    with pytest.raises(StreamTruncatedError):
        read(raw[:-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"run_blocks": 0},
        {"run_blocks": 257},
        {"space_blocks": 6},
        {"space_blocks": (1 << 56) + 1},
        {"record": record(0)},
    ],
)
def test_headers_out_of_range(changes):
    with pytest.raises(StreamDamagedError):
        OfferHeader.decode(header(**changes).encode())


@pytest.mark.parametrize(
    "frames",
    [
        [(OfferKind.BLOCKS, b"x" * 124, 7, 0)],
        [(OfferKind.PLANE, b"not a bitmap", 7, 0)],
        [(OfferKind.PLANE, None, 6, 0)],
        [(OfferKind.PLANE, None, 7, 64)],
        [(OfferKind.PLANE, None, 7, 0), (OfferKind.PLANE, None, 7, 0)],
        [(OfferKind.PLANE, None, 7, 0), (OfferKind.BLOCKS, b"x" * 124, 6, 0)],
        [(OfferKind.PLANE, None, 7, 0), (OfferKind.BLOCKS, b"x" * 124, 7, 1)],
        [(OfferKind.PLANE, None, 7, 0), (OfferKind.BLOCKS, b"x" * 123, 7, 0)],
        [(OfferKind.PLANE, None, 7, 0), (OfferKind.END, b"x" * 32, 7, 0)],
        [(OfferKind.PLANE, None, 7, 0), (OfferKind.BLOCKS, b"x" * 124, 7, 0), (OfferKind.END, b"x" * 32, 7, 0)],
        [(9, b"x", 7, 0)],
    ],
)
def test_frames_that_contradict_the_header(frames):
    """Every checksum is right; what they say is not."""
    (piece,) = [p for _, _, p in offer.plane_pieces(plane_of(frozenset(VBNS.tolist())))]
    out = header().encode()
    for sequence, (kind, payload, n_blocks, first) in enumerate(frames):
        body = piece if payload is None else payload
        out += OfferFrame(kind, sequence, len(body), n_blocks, first, header().tag, crc32c(body)).encode() + body
    with pytest.raises(StreamDamagedError):
        read(out)
