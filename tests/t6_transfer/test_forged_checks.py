"""Streams whose blocks match the checks beside them, and not those that their own snapshots have: refused."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

import blockplane as bp
from blockplane.image.extents import numbers_in
from blockplane.model.checks import fresh_checks
from blockplane.model.errors import StreamDamagedError, StreamTruncatedError
from blockplane.stream import codec
from blockplane.stream.codec import FrameKind
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume.carrying import first_other
from blockplane.volume.landedchecks import LandedChecks
from blockplane.volume.statechecks import StateChecks
from forging import parts_of, sealed

NAMES = ["one", "two"]
_KIND_AT, _HEAD_BYTES = 4, 48


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    rng = np.random.default_rng(13)
    with bp.Volume.create(tmp_path_factory.mktemp("source") / "pool", disks=3, size="24M") as volume:
        files = bp.FileSystem(volume)
        for name in NAMES:
            files.write_bytes(f"/{name}", f"of {name}".encode().ljust(4096, b"."))
            files.write_bytes(f"/more {name}", rng.bytes(5_000_000))
            volume.snapshot(name)
        yield volume


def stream_of(source, text: str, **options) -> bytes:
    out = io.BytesIO()
    bp.send(source.image(text), out, **options)
    return out.getvalue()


def forged(stream: bytes, what: bytes) -> tuple[bytes, int, int]:
    """Return a stream with another block in the place of one, every check, CRC and digest put right; which one it is,
    and where that frame ends.
    """
    parts = [bytearray(part) for part in parts_of(stream)]
    at = 0
    for part in parts:
        at += len(part)
        inside = bytes(part).find(what.ljust(4096, b"."))
        if inside < 0 or len(part) < _HEAD_BYTES or struct.unpack_from("<H", part, _KIND_AT)[0] != FrameKind.DATA:
            continue
        fixed = codec.decode_frame_fixed(bytes(part[:_HEAD_BYTES]))
        rest = bytes(part[_HEAD_BYTES : fixed.head_bytes])
        head = codec.decode_frame_head(bytes(part[:_HEAD_BYTES]), rest, fixed.tag, fixed.sequence)
        index = (inside - fixed.head_bytes) // 4096
        vbn = int(numbers_in(head.extents())[index])
        part[inside : inside + 6] = b"FORGED"
        check = fresh_checks(np.frombuffer(bytes(part[inside : inside + 4096]), np.uint8), np.array([vbn]))[0]
        struct.pack_into("<I", part, _HEAD_BYTES + 12 * fixed.n_items + 4 * index, int(check))
        return sealed(parts), vbn, at
    raise AssertionError("the block is in no frame")


@pytest.mark.parametrize("text", ["one", "two", "two + one"])
def test_a_forged_block_is_not_received(source, tmp_path, text):
    stream, vbn, _ = forged(stream_of(source, text), b"of one")
    with pytest.raises(StreamDamagedError, match=f"block {vbn} came with a checksum that is not the one"):
        bp.receive(io.BytesIO(stream), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_verifying_finds_a_forged_block(source, tmp_path, compress):
    good = {text: stream_of(source, text, compress=compress) for text in ("one", "two - one", "two + one")}
    for text, data in good.items():
        (tmp_path / text).write_bytes(data)
    assert bp.verify_streams(tmp_path / "one", tmp_path / "two - one").problems == []
    assert bp.verify_streams(tmp_path / "two + one", part=(1, 2)).problems == []
    if compress is None:
        for text, what, others in (("two + one", b"of one", []), ("two - one", b"of two", ["one"])):
            data, vbn, _ = forged(good[text], what)
            (tmp_path / "bad").write_bytes(data)
            verdict = bp.verify_streams(tmp_path / "bad", *(tmp_path / other for other in others))
            assert len(verdict.problems) == 1
            assert f"block {vbn} came with a checksum that is not the one" in verdict.problems[0]


def test_a_forged_increment_is_not_received(source, tmp_path):
    bp.receive(io.BytesIO(stream_of(source, "one")), tmp_path / "copy")
    stream, vbn, _ = forged(stream_of(source, "two - one"), b"of two")
    with pytest.raises(StreamDamagedError, match=f"block {vbn} came with"):
        bp.receive(io.BytesIO(stream), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert [snapshot.name for snapshot in copy.snapshots] == ["one"]
        assert bp.check(copy).problems == []
        bp.receive(io.BytesIO(stream_of(source, "two - one")), copy)
        assert bp.FileSystem(copy).read_bytes("/two").startswith(b"of two")


def test_a_forged_block_that_came_before_an_interruption_is_found(source, tmp_path):
    """Its check is not known any more when the rest comes: the block is read. It is not kept for the next try."""
    good = stream_of(source, "two", order="tape")
    stream, vbn, end = forged(good, b"of one")
    with pytest.raises(StreamTruncatedError):
        bp.receive(io.BytesIO(stream[: end + 3_000_000]), tmp_path / "copy")
    with pytest.raises(StreamDamagedError, match=f"block {vbn}, which an interrupted receive brought, is another one"):
        bp.receive(io.BytesIO(good), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert copy.snapshots == []
        assert bp.receive(io.BytesIO(good), copy).arrived == ("two",)


def test_blocks_of_a_snapshot_that_does_not_arrive_are_nobodys(source):
    """Their checks are in the same sums: the other blocks of these are read, and are held against their state's."""
    state = source.snapshot_state(source.get_snapshot("one").entry)
    mine, landed = source.image("one").plane, source.image("two").plane | source.image("one").plane
    assert len(landed) > len(mine)
    vbns = numbers_in(landed.extents())
    checks = np.arange(len(vbns), dtype=np.uint32)
    inside = mine.contains_many(vbns)
    checks[inside] = StateChecks(state).of(vbns[inside])
    found = LandedChecks()
    for at in range(0, len(vbns), 256):
        found.note(vbns[at : at + 256], checks[at : at + 256])
    found.require_equal(
        [state, state], None, landed, lambda state, plane: first_other(source, state, plane, state.placemap)
    )
    with pytest.raises(StreamDamagedError, match="block 7 came with a checksum"):
        found.require_equal([state], None, landed, lambda state, plane: 7)


@pytest.mark.parametrize("change", [{"kind": 2}, {"kind": 5}, {"kind": 77}, {"id": bytes(16)}])
def test_a_snapshot_that_arrives_as_something_else_than_a_snapshot(source, tmp_path, change):
    snapshots = ImageSending.snapshots

    def forged(self):
        return [(replace(each, **change) if each.name == "one" else each, role) for each, role in snapshots(self)]

    with mock.patch.object(ImageSending, "snapshots", forged):
        stream = stream_of(source, "two + one")
    with pytest.raises(StreamDamagedError, match="a snapshot that is not a regular one, or has no id"):
        bp.receive(io.BytesIO(stream), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
