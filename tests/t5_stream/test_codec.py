"""The stream's format: the golden stream, FORMAT.md against the codec, and what a header may say."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockplane.model import StreamDamagedError, StreamError
from blockplane.model.checks import crc32c
from blockplane.stream import codec
from blockplane.stream.codec import FrameKind, Header, Role
from blockplane.stream.digest import image_id, plane_digest
from blockplane.stream.input import ObjectInput
from blockplane.stream.reader import StreamReader, verify_payload
from blockplane.stream.sink import ObjectSink
from blockplane.stream.writer import StreamWriter
from blockplane.volume.codec import NO_ID, Pointer, SnapshotRecord
from streams.storage import plane_of

FORMAT = (Path(codec.__file__).parents[1] / "FORMAT.md").read_text()
GOLDEN = Path(__file__).with_name("golden") / "one-block.sha256"


def worked_example() -> bytes:
    """The stream of FORMAT.md's last section."""
    data = np.full(4096, ord("A"), np.uint8)
    check = crc32c((5).to_bytes(8, "little"), crc32c(data.tobytes()))
    record = SnapshotRecord(b"s" * 16, b"n" * 16, NO_ID, NO_ID, 1, 0, Pointer(5, check), 1, "s")
    image, dropped = plane_of(frozenset({5})), plane_of(frozenset())
    planes = plane_digest(image, dropped)
    header = Header(
        "example", b"0123456789abcdef", image_id(b"n" * 16, b"s" * 16, NO_ID, planes), b"n" * 16, b"s" * 16, 65_536, 1,
        Pointer(5, check), after_blocks=1, n_snapshots=1, plane_digest=planes,
    )  # fmt: skip
    out = io.BytesIO()
    writer = StreamWriter(ObjectSink(out), header)
    writer.write_snapshots([(record, Role.TOP)])
    writer.write_branches([])
    writer.write_plane(FrameKind.IMAGE_PLANE, image)
    writer.write_plane(FrameKind.DROPPED_PLANE, dropped)
    writer.write_blocks(np.array([[5, 6]]), np.array([check], np.uint32), data)
    writer.finish()
    writer.close()
    return out.getvalue()


def test_the_golden_stream_is_what_it_was():
    assert hashlib.sha256(worked_example()).hexdigest() == GOLDEN.read_text().split()[0]


def test_the_worked_example_is_laid_out_as_format_md_says():
    rows = re.findall(r"^\| (\d+) \| (\d+)(?: \+ (\d+))? \| (header \||frame \d)", FORMAT, re.MULTILINE)
    sizes = [(int(offset), int(head) + int(body or 0)) for offset, head, body, _ in rows]
    stream = worked_example()
    assert len(rows) == 6
    assert [offset for offset, _ in sizes] == [0, *np.cumsum([size for _, size in sizes])[:-1].tolist()]
    assert sum(size for _, size in sizes) == len(stream)
    assert all(stream[offset : offset + 4] == codec.FRAME_MAGIC for offset, _ in sizes[1:])
    assert stream[632 + 64 :].startswith(bytes.fromhex("3A300000010000000000000010000000" + "0500"))


def table(title: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each field of a section's first table."""
    section = FORMAT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return {n: (int(o), int(s)) for o, s, n in re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)}


def test_header_fields_lie_where_format_md_says():
    header = Header(
        "w" * 32, b"S" * 16, b"I" * 16, b"P" * 16, b"T" * 16, 1 << 40, 7, Pointer(9, 10), b"B" * 16, 1, 3, 11, 12,
        "tape", 1, 77, 5, 6, codec.Locations.IMPLICIT, 99, b"D" * 32, (), codec.Features(2, 0x22, 0x33), 4, b"C" * 16,
    )  # fmt: skip
    raw, fields = header.encode(), table("Header")
    number = {k: int.from_bytes(raw[o : o + s], "little") for k, (o, s) in fields.items() if s <= 8}
    expected = {
        "version": 1, "header_bytes": len(raw), "receiving": 2, "reading": 0x22, "writing": 0x33, "part": 1,
        "n_parts": 3, "space_blocks": 1 << 40, "image_blocks": 7, "after_blocks": 11, "dropped_blocks": 12,
        "block_bytes": 4096, "check_kind": 1, "check_bytes": 4, "order_version": 1, "window_blocks": 77,
        "n_snapshots": 5, "n_branches": 6, "n_groups": 0, "locations": 2, "created_ns": 99, "part_blocks": 4,
    }  # fmt: skip
    assert {key: number[key] for key in expected} == expected
    ids = ("stream_id", "image_id", "space_id", "top_id", "base_id", "carried_id")
    for name, value in zip(ids, (b"S", b"I", b"P", b"T", b"B", b"C"), strict=True):
        offset, size = fields[name]
        assert raw[offset : offset + size] == value * 16
    assert raw[264:296] == b"D" * 32
    assert raw[slice(fields["root"][0], sum(fields["root"]))] == struct.pack("<QII", (1 << 56) + 9, 10, 0)
    assert codec.decode_header(raw) == header


def test_frame_and_trailer_fields_lie_where_format_md_says():
    fixed = table("Frame")
    assert (fixed["head_crc"][0], sum(fixed["head_crc"])) == (44, codec.FRAME_FIXED_BYTES)
    raw = codec.encode_frame_head(FrameKind.INDEX, 3, 4, b"tt", 5, 6, 7, 8)
    values = {k: int.from_bytes(raw[o : o + s], "little") for k, (o, s) in fixed.items() if k != "magic"}
    assert values == {
        "kind": 6, "flags": 0, "sequence": 3, "head_bytes": 50, "payload_bytes": 5, "tag": 4, "n_items": 6,
        "n_blocks": 7, "payload_crc": 8, "head_crc": crc32c(b"tt", crc32c(raw[:44])),
    }  # fmt: skip
    counts = codec.Trailer(1, 2, 3, 4, 5, 6, b"X" * 32).encode()
    expected = {"n_frames": 1, "n_data_frames": 2, "n_blocks": 3, "stream_bytes": 4, "index_offset": 5, "n_index": 6}
    where = table("Trailer")
    assert {k: int.from_bytes(counts[slice(where[k][0], sum(where[k]))], "little") for k in expected} == expected
    assert counts[96:128] == b"X" * 32
    assert len(counts) == codec.TRAILER_BYTES == sum(where["digest"])


@pytest.mark.parametrize(
    ("starts", "counts"),
    [([5], [2**32 - 1]), ([5, 9], [3, 0]), ([5, 9], [1, 1]), ([-1], [3]), ([2**63 - 1], [3])],
)
def test_extents_that_are_not_a_frames_blocks_are_refused_with_its_head(starts, counts):
    """Before whoever has the head lists its blocks one by one: 2^32 - 1 of them are 32 GiB."""
    extents = np.array(starts, "<i8").tobytes() + np.array(counts, "<u4").tobytes()
    raw = codec.encode_frame_head(FrameKind.DATA, 0, 1, extents + bytes(12), 3 * 4096, len(starts), 3, 0)
    with pytest.raises(StreamDamagedError, match="holds 3 blocks and names others"):
        codec.decode_frame_head(raw[:48], raw[48:], 1, 0)


def test_a_table_of_another_length_than_the_head_says_is_refused():
    raw = bytearray(codec.encode_data_head(0, 1, np.array([[5, 8]], np.int64), np.zeros(3, np.uint32))[:-4])
    raw[44:48] = struct.pack("<I", crc32c(raw[48:], crc32c(raw[:44])))
    with pytest.raises(StreamDamagedError, match="contradicts itself about its length"):
        codec.decode_frame_head(bytes(raw[:48]), bytes(raw[48:]), 1, 0)


def test_an_encrypted_stream_lies_as_format_md_says():
    section = FORMAT.split("\n## Encryption\n")[1].split("\n## ")[0]
    begin, frame = section.split("| offset | size | field of a sealed frame")
    rows = [re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", part, re.MULTILINE) for part in (begin, frame)]
    header = base_header(features=codec.SEALED_FEATURES).encode()
    clear = codec.encode_clear(header, b"K" * 16, b"S" * 32)
    raw = codec.encode_envelope(clear, b"X" * (len(header) + 16))
    number = {name: int.from_bytes(raw[int(o) : int(o) + int(s)], "little") for o, s, name in rows[0]}
    assert (
        number.items() >= {"cipher": 1, "zero": 0, "header_bytes": len(raw), "sealed_bytes": len(header) + 16}.items()
    )
    assert all(not any(raw[int(o) : int(o) + int(s)]) for o, s, name in rows[0] if name == "zero")
    assert (raw[336:352], raw[352:384], raw[384:386], len(clear)) == (b"K" * 16, b"S" * 32, b"XX", 384)
    assert "| 384 | | sealed |" in begin
    shown = codec.decode_envelope(raw)
    assert (shown.key_id, shown.salt, shown.clear, shown.sealed[:2]) == (b"K" * 16, b"S" * 32, clear, b"XX")
    head = codec.SealedHead(3, 115, 40, 4, 5, 6, 0)
    wire = head.encode(b"Y" * 67)
    found = {
        name: int.from_bytes(wire[int(o) : int(o) + int(s)], "little") for o, s, name in rows[1] if name != "magic"
    }
    assert found == {
        "zero": 0, "sequence": 3, "head_bytes": 115, "payload_bytes": 40, "tag": 4, "run": 5, "payload_crc": 6,
        "head_crc": crc32c(b"Y" * 67, crc32c(wire[:44])),
    }  # fmt: skip
    assert (wire[:4], wire[48:], head.authenticated()) == (b"BPse", b"Y" * 67, wire[:40])


def test_reading_gives_back_what_was_written():
    reader = StreamReader(ObjectInput(io.BytesIO(worked_example())))
    stream = reader.read_map()
    head = reader.next_data()
    assert (stream.top.name, len(stream.image), 5 in stream.image, len(stream.dropped)) == ("s", 1, True, 0)
    payload = np.zeros(4096, np.uint8)
    reader.read_payload([payload.data])
    verify_payload(head, payload)
    assert bytes(payload[:3]) == b"AAA"
    assert reader.next_data() is None
    assert reader.trailer.n_blocks == 1


def base_header(**changes) -> Header:
    header = Header("w", b"S" * 16, b"I" * 16, b"P" * 16, b"T" * 16, 65_536, 7, Pointer(9, 10))
    return replace(header, **changes)


EDGES = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("field", [f for f, (o, s) in table("Header").items() if s <= 8 and f not in ("magic", "zero")])
@pytest.mark.parametrize("value", EDGES)
def test_every_number_of_a_header_may_be_anything(field, value):
    # S3, S5: with a right CRC, any value is either taken or refused by a clear error; nothing is sized by it
    offset, size = table("Header")[field]
    raw = bytearray(base_header().encode())
    raw[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    raw[-4:] = struct.pack("<I", crc32c(bytes(raw[:-4])))
    with contextlib.suppress(StreamError):
        again = codec.decode_header(bytes(raw)).encode()
        assert field == "order" or again == bytes(raw)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"features": codec.Features(16, 0, 0)}, StreamError, "needs features 0x10"),
        ({"image_blocks": 65_537}, StreamDamagedError, "65537 for its image"),
        ({"space_blocks": (1 << 56) + 1}, StreamDamagedError, "for its space"),
        ({"part": 1, "n_parts": 1}, StreamDamagedError, "for its part"),
        ({"root": Pointer(65_536, 0)}, StreamDamagedError, "outside its space"),
        ({"n_snapshots": 1 << 21}, StreamDamagedError, "snapshot list"),
        ({"part_blocks": 1}, StreamDamagedError, "without being a part"),
        ({"part_blocks": 8, "features": codec.PART_FEATURES}, StreamDamagedError, "8 for its part plane"),
    ],
)
def test_headers_that_are_refused(change, kind, words):
    with pytest.raises(kind, match=words):
        codec.decode_header(base_header(**change).encode())


@pytest.mark.parametrize(
    ("change", "words"),
    [({"part": 1, "n_parts": 3}, "part 2 of 3")],
)
def test_what_is_read_but_not_received(change, words):
    reader = StreamReader(ObjectInput(io.BytesIO(base_header(**change).encode())))
    with pytest.raises(StreamError, match=words):
        reader.require_receivable()


def test_what_is_no_stream_or_of_another_version_says_so():
    with pytest.raises(StreamError, match="not an image stream"):
        codec.header_length(b"PK\x03\x04" + bytes(12))
    raw = bytearray(base_header().encode())
    for version, hint in ((0, "send it again"), (2, "upgrade"), (1 << 31, "upgrade")):
        raw[8:12] = version.to_bytes(4, "little")
        with pytest.raises(StreamError, match=f"format version {version}; this release reads 1") as caught:
            codec.header_length(bytes(raw))
        assert hint in caught.value.hint


def test_digest_of_planes_is_independent_of_how_they_come_in_pieces():
    digest = codec_digest([[1, 5], [7, 9]])
    assert digest == codec_digest([[1, 3], [3, 5], [7, 9]])
    assert digest != codec_digest([[1, 5], [7, 10]])


def codec_digest(extents):
    from blockplane.stream.digest import PlaneDigest

    one = PlaneDigest()
    for extent in extents:
        one.update(np.array([extent], np.int64))
    one.end_plane()
    return one.digest()
