"""Streams cut, flipped, reordered and forged: each is refused by the right name; the destination keeps what it had."""

from __future__ import annotations

import copy
import io
import itertools
import os
import struct

import numpy as np
import pytest

from blockplane.model import (
    BlockplaneError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    StreamOrderError,
    StreamTruncatedError,
)
from blockplane.model.checks import crc32c, fresh_checks
from blockplane.stream import codec
from blockplane.stream.codec import FrameKind
from blockplane.transfer import receive, send
from streams.storage import DictSending, DictStorage, members, pair, plane_of

# A stream of about 64 KiB: fifteen blocks, all frame kinds but branches.
STRIDE = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 61


@pytest.fixture(scope="module")
def full() -> bytes:
    storage = DictStorage()
    storage.write(range(15), 1)
    out = io.BytesIO()
    send(DictSending(storage, storage.snapshot("s", frozenset(range(15)), 1), window_blocks=4), out)
    return out.getvalue()


def increment() -> tuple[bytes, DictStorage, DictStorage]:
    """A stream of new - old, its source, and a destination that holds old."""
    source, old, new = pair()
    out, first = io.BytesIO(), io.BytesIO()
    send(DictSending(source, new, old), out)
    send(DictSending(source, old), first)
    target = DictStorage()
    receive(io.BytesIO(first.getvalue()), target)
    return out.getvalue(), source, target


def frames(stream: bytes) -> list[bytes]:
    """The header and the frames."""
    parts = [stream[: codec.header_length(stream)]]
    at = len(parts[0])
    while at < len(stream):
        head = codec.decode_frame_fixed(stream[at : at + codec.FRAME_FIXED_BYTES])
        parts.append(stream[at : at + head.head_bytes + head.payload_bytes])
        at += len(parts[-1])
    return parts


def refused(stream: bytes, target: DictStorage | None = None) -> BlockplaneError:
    """The error of a stream that must be refused; the destination is untouched."""
    target = target or DictStorage()
    before = copy.deepcopy(target)
    with pytest.raises(BlockplaneError) as caught:
        receive(io.BytesIO(stream), target)
    assert target == before
    return caught.value


def test_the_whole_stream_is_received(full):
    target = DictStorage()
    report = receive(io.BytesIO(full), target)
    assert (report.n_blocks, report.top, report.stream_bytes) == (15, "s", len(full))
    assert sorted(target.blocks) == list(range(15))


def test_what_stands_behind_a_stream(full, tmp_path):
    """In a named file it is refused, and nothing arrives; of a descriptor it is left for the next reader."""
    path = tmp_path / "two.bps"
    path.write_bytes(full + full)
    target = DictStorage()
    with pytest.raises(StreamError, match="behind the trailer"):
        receive(path, target)
    assert target == DictStorage()
    with open(path, "rb", buffering=0) as file:
        for origin in (file.fileno(), file):
            target = DictStorage()
            assert receive(origin, target).n_blocks == 15
            assert sorted(target.blocks) == list(range(15))
        assert file.read() == b""


def test_an_increment_brings_what_differs_and_drops_the_rest():
    stream, source, target = increment()
    receive(io.BytesIO(stream), target)
    new = source.snapshots[b"new".ljust(16, b"\0")][1]
    assert target.snapshots[b"new".ljust(16, b"\0")][1] == new
    assert {vbn: target.blocks[vbn] for vbn in new} == {vbn: source.blocks[vbn] for vbn in new}


def test_cut_at_every_structure_and_many_other_places(full):
    ends = list(itertools.accumulate(len(part) for part in frames(full)))
    near = {e + d for e in [0, *ends] for d in range(-60, 61)} | set(range(0, len(full), STRIDE))
    places = sorted(n for n in near if 0 <= n < len(full))
    wrong = [n for n in places if type(refused(full[:n])) is not StreamTruncatedError]
    assert (len(places) > 2000, wrong) == (True, [])


def test_flip_a_bit_in_every_byte_of_structure_and_many_of_the_blocks(full, rng):
    places, at = set(range(0, len(full), STRIDE)), 0
    for i, part in enumerate(frames(full)):
        head = codec.decode_frame_fixed(part) if i else None
        structure = head.head_bytes if head is not None and head.kind is FrameKind.DATA else len(part)
        places.update(range(at, at + structure))
        at += len(part)
    accepted = []
    for place in sorted(places):
        bad = bytearray(full)
        bad[place] ^= 1 << int(rng.integers(8))
        error = refused(bytes(bad))
        if not isinstance(error, StreamError) or isinstance(error, StreamOrderError):
            accepted.append((place, error))
    assert (len(places) > 2000, accepted) == (True, [])


def test_a_flip_in_a_block_names_the_block(full):
    data = next(i for i, part in enumerate(frames(full)) if i and codec.decode_frame_fixed(part).kind is FrameKind.DATA)
    parts = frames(full)
    at = sum(len(part) for part in parts[:data]) + len(parts[data]) - 1
    error = refused(full[:at] + bytes([full[at] ^ 1]) + full[at + 1 :])
    assert (type(error), "block 3 in frame" in str(error)) == (StreamDamagedError, True)


def test_frames_swapped_doubled_and_left_out(full):
    header, *rest = frames(full)
    changed = []
    for i, j in itertools.combinations(range(len(rest)), 2):
        swapped = list(rest)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        changed.append(swapped)
    changed += [[*rest[: i + 1], *rest[i:]] for i in range(len(rest) - 1)]
    changed += [[*rest[:i], *rest[i + 1 :]] for i in range(len(rest) - 1)]
    kinds = [type(refused(b"".join((header, *part)))) for part in changed]
    assert len(kinds) == len(rest) * (len(rest) - 1) // 2 + 2 * (len(rest) - 1)
    assert set(kinds) == {StreamOrderError}


def test_frames_of_another_stream(full):
    source = DictStorage()
    source.write(range(15), 1)
    out = io.BytesIO()
    sending = DictSending(source, source.snapshot("s", frozenset(range(15)), 1), None, 4, stream_id=b"another--stream.")
    send(sending, out)
    header, *mine = frames(full)
    _, *theirs = frames(out.getvalue())
    error = refused(b"".join((header, *mine[:2], *theirs[2:])))
    assert (type(error), "another stream" in str(error)) == (StreamOrderError, True)


def test_a_base_that_is_not_there():
    stream, _, target = increment()
    error = refused(stream, DictStorage())
    assert (type(error), "old" in str(error)) == (StreamMismatchError, True)
    target.snapshots.clear()
    assert type(refused(stream, target)) is StreamMismatchError


def test_a_full_stream_onto_content(full):
    target = DictStorage()
    target.write([1], 9)
    assert refused(full, target).kind == "refused"
    receive(io.BytesIO(full), target, discard=True)
    assert len(target.snapshots) == 1


def test_a_stream_that_came_before_changes_nothing(full):
    target = DictStorage()
    receive(io.BytesIO(full), target)
    before = copy.deepcopy(target)
    report = receive(io.BytesIO(full), target)
    assert (report.already_there, report.n_blocks, target == before) == (True, 0, True)


# --- forged: every checksum right, the content wrong ---


class Lying(DictSending):
    """A sender that writes other blocks than its plane says."""

    def __init__(self, storage, top, sent):
        super().__init__(storage, top)
        self.sent = sent

    def _gathered(self):
        from blockplane.image.gather import Gathered

        for vbns in self.sent:
            numbers = np.array(vbns, np.int64)
            data = np.frombuffer(b"".join(self.storage.blocks[vbn] for vbn in vbns), np.uint8)
            extents = np.column_stack((numbers, numbers + 1))
            yield Gathered(extents, fresh_checks(data, numbers), data)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([[0, 1, 2], [3, 4, 5]], "not in the stream's plane"),
        ([[0, 1], [2, 3]], "ends without 1 block"),
        ([[0, 1, 2], [2, 3, 4]], "came before"),
        ([[0, 1, 2, 2], [3, 4]], "came before"),
        ([], "ends without 5 blocks"),
    ],
)
def test_blocks_that_are_not_what_the_plane_claims(sent, words):
    storage = DictStorage()
    storage.write(range(10), 1)
    out = io.BytesIO()
    send(Lying(storage, storage.snapshot("s", frozenset(range(5)), 1), sent), out)
    error = refused(out.getvalue())
    assert (type(error), words in str(error)) == (StreamDamagedError, True)


def forged(full: bytes, kind: FrameKind, change) -> bytes:
    """The stream with the first frame of a kind changed and its checksums put right again."""
    header, *rest = frames(full)
    for i, part in enumerate(rest):
        head = codec.decode_frame_fixed(part)
        if head.kind is kind:
            raw = bytearray(part)
            change(raw)
            if kind is not FrameKind.DATA:
                struct.pack_into("<I", raw, 40, crc32c(bytes(raw[head.head_bytes :])))
            struct.pack_into("<I", raw, 44, crc32c(bytes(raw[48 : head.head_bytes]), crc32c(bytes(raw[:44]))))
            rest[i] = bytes(raw)
            return b"".join((header, *rest))
    raise AssertionError(kind)


EDGES = [0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("kind", [FrameKind.SNAPSHOTS, FrameKind.IMAGE_PLANE, FrameKind.DATA, FrameKind.INDEX])
@pytest.mark.parametrize("offset", [4, 6, 8, 16, 20, 24, 32, 36, 40, 48, 52, 56, 60])
@pytest.mark.parametrize("value", EDGES)
def test_any_number_in_a_frame_head(full, kind, offset, value):
    width = 8 if offset in (8, 24, 48, 56) else 2 if offset in (4, 6) else 4

    def change(raw):
        raw[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")

    stream = forged(full, kind, change)
    if stream != full:
        assert isinstance(refused(stream), StreamError)


def test_blocks_outside_the_space(full):
    def change(raw):
        struct.pack_into("<Q", raw, 48, 65_536 - 2)

    assert "outside the stream's space" in str(refused(forged(full, FrameKind.DATA, change)))


@pytest.mark.parametrize(
    "bitmap",
    [
        b"",
        bytes(18),
        bytes.fromhex("3A300000FFFFFFFF"),  # container count far over 65,536
        bytes.fromhex("3A30000002000000" + "0000000000000000180000001A00000005000600"),  # keys not ascending
        bytes.fromhex("3A30000001000000000001001000000006000500"),  # values not ascending
        bytes.fromhex("3A3000000100000040000000100000000500"),  # beyond the piece
    ],
)
def test_planes_that_are_no_bitmaps(full, bitmap):
    header, *rest = frames(full)
    at = next(i for i, part in enumerate(rest) if codec.decode_frame_fixed(part).kind is FrameKind.IMAGE_PLANE)
    table = codec.encode_piece_table(0, 15)
    tag = codec.decode_frame_fixed(rest[at]).tag
    head = codec.encode_frame_head(FrameKind.IMAGE_PLANE, at, tag, table, len(bitmap), 0, 0, crc32c(bitmap))
    rest[at] = head + bitmap
    assert isinstance(refused(b"".join((header, *rest))), StreamDamagedError)


def test_an_input_that_gives_a_byte_at_a_time(full):
    class Slow(io.RawIOBase):
        def __init__(self):
            super().__init__()
            self.inner = io.BytesIO(full)

        def readable(self):
            return True

        def readinto(self, out):
            return self.inner.readinto(memoryview(out)[: min(len(out), 1000)])

    target = DictStorage()
    assert receive(Slow(), target).n_blocks == 15


@pytest.mark.parametrize("name", ["a\x1b[31m", "active", "a b", "-a"])
def test_names_that_no_snapshot_has(name):
    storage = DictStorage()
    storage.write(range(3), 1)
    out = io.BytesIO()
    send(DictSending(storage, storage.snapshot(name, frozenset(range(3)), 1)), out)
    error = refused(out.getvalue())
    assert (type(error), "\x1b" in str(error)) == (StreamDamagedError, False)


def test_planes_of_a_vast_space():
    plane = plane_of(frozenset({1, 70, 65_535}))
    assert members(plane) == [1, 70, 65_535]
