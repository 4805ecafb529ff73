"""Streams that do not list where their blocks belong: received, read in place, refused where the order lies."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.disks import Geometry, GroupRecord
from blockplane.image.extents import numbers_in
from blockplane.image.order import locations, shares_of_first
from blockplane.model import BlockplaneError, StreamDamagedError, StreamError
from blockplane.planes import Plane
from blockplane.stream import codec, open_stream
from blockplane.stream.codec import FrameKind, Locations
from blockplane.stream.locations import ImplicitLocations, _cut
from blockplane.transfer import receive, send, verify_streams
from forging import parts_of, sealed
from streams.storage import DictSending, DictStorage, pair

IMPLICIT = Locations.IMPLICIT


def implicit_stream(window_blocks: int = 4, **form) -> tuple[bytes, DictStorage]:
    storage = DictStorage()
    storage.write(range(3, 33, 2), 1)
    out = io.BytesIO()
    top = storage.snapshot("s", frozenset(storage.blocks), 1)
    send(DictSending(storage, top, window_blocks=window_blocks, locations=IMPLICIT), out, **form)
    return out.getvalue(), storage


@pytest.mark.parametrize(
    ("window_blocks", "compress", "lengths"), [(4, None, (4, 4, 4, 3)), (4, "zstd", (4, 4, 4, 3)), (15, "zstd", (15,))]
)
def test_an_implicit_stream_is_received_and_lists_no_extents(window_blocks, compress, lengths):
    stream, storage = implicit_stream(window_blocks, compress=compress)
    heads = [codec.decode_frame_fixed(part[:48]) for part in parts_of(stream)[1:]]
    data = [head for head in heads if head.kind is FrameKind.DATA]
    assert [(head.n_items, head.n_blocks, head.head_bytes) for head in data] == [(0, n, 48 + 4 * n) for n in lengths]
    target = DictStorage()
    receive(io.BytesIO(stream), target)
    assert target.blocks == storage.blocks


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_reading_an_implicit_chain_in_place(tmp_path, compress):
    storage, old, new = pair()
    paths = [tmp_path / "old.bps", tmp_path / "new.bps"]
    for path, sending in zip(paths, (DictSending(storage, old), DictSending(storage, new, old)), strict=True):
        send(replace(sending, locations=IMPLICIT, window_blocks=3), path, compress=compress)
    with open_stream(*paths) as chain:
        for vbn in (0, 4, 20, 24):
            data = np.zeros(4096, np.uint8)
            chain.read_extents(np.array([[vbn, vbn + 1]]), data)
            assert data.tobytes() == storage.blocks[vbn]
    assert "is not whole" in verify_streams(*paths).problems[0]  # of the snapshots alone: a dictionary has no block map


def changed(stream: bytes, offset: int, width: int, value: int) -> bytes:
    """The stream with a field of its header changed, every checksum right."""
    parts = [bytearray(part) for part in parts_of(stream)]
    parts[0][offset : offset + width] = value.to_bytes(width, "little")
    return sealed(parts)


@pytest.mark.parametrize(
    ("field", "kind", "words"),
    [
        ((224, 8, int.from_bytes(b"disk", "little")), StreamDamagedError, "none of its RAID groups"),
        ((224, 8, int.from_bytes(b"chain", "little")), StreamError, "says chain order"),
        ((232, 4, 2), StreamError, "tape order, version 2"),
        ((236, 4, 0), StreamDamagedError, "windows of 0 blocks over 0 disks"),
        ((252, 2, 1), StreamDamagedError, "differ about locations"),
    ],
)
def test_orders_that_are_not_the_streams(field, kind, words):
    stream, _ = implicit_stream()
    target = DictStorage()
    with pytest.raises(kind, match=words):
        receive(io.BytesIO(changed(stream, *field)), target)
    assert target == DictStorage()


def test_windows_that_cost_more_than_what_they_bring():
    """A block that may be compressed to nothing is not worth a window of its own."""
    n_blocks = 1 << 20
    plane = Plane.from_extents([[0, n_blocks]], n_blocks)
    for compress, window_blocks, costs_much in ((None, 1, False), ("zstd", 4, False), ("zstd", 1, True)):
        stream, _ = implicit_stream(compress=compress)
        header = codec.decode_header(parts_of(stream)[0])
        header = replace(header, image_blocks=n_blocks, window_blocks=window_blocks)
        if costs_much:
            with pytest.raises(StreamDamagedError, match="windows of 1 blocks over"):
                ImplicitLocations(header, plane)
        else:
            ImplicitLocations(header, plane)


def test_explicit_frames_in_an_implicit_stream():
    storage, old, _ = pair()
    out = io.BytesIO()
    send(DictSending(storage, old), out)
    with pytest.raises(StreamDamagedError, match="differ about locations"):
        receive(io.BytesIO(changed(out.getvalue(), 252, 2, 2)), DictStorage())


def test_a_frame_with_more_blocks_than_are_left():
    stream, _ = implicit_stream()
    header = codec.decode_header(parts_of(stream)[0])
    left = ImplicitLocations(header, Plane.from_extents([[3, 5]], 65_536))
    head = codec.FrameHead(FrameKind.DATA, 1, 60, 4096 * 3, 0, 0, 3, 0)
    with pytest.raises(StreamDamagedError, match="more blocks than"):
        left.take(head)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=8),
    st.integers(0, 1 << 16), st.integers(1, 45),
)  # fmt: skip
def test_cutting_extents(steps, start, n_blocks):
    rows, at = [], 0
    for gap, length in steps:
        rows.append((at + gap, at + gap + length))
        at += gap + length
    extents = np.array(rows, np.int64)
    numbers, ends = numbers_in(extents).tolist(), np.cumsum(extents[:, 1] - extents[:, 0])
    start %= len(numbers)
    assert numbers_in(_cut(extents, ends, start, n_blocks)).tolist() == numbers[start : start + n_blocks]
    assert numbers_in(extents).tolist() == numbers


# --- orders over groups of any size ---


def record(first, n_data, chunk, disk_blocks, disks) -> GroupRecord:
    return GroupRecord(first, n_data, 0, chunk, disk_blocks, tuple(disks))


def expected_order(numbers: list[int], geometry: Geometry, window_blocks: int) -> list[list[int]]:
    """Disk order by its definition: every block's turn, sorted."""
    disk, dbn = geometry.to_disk(np.array(numbers, np.int64))
    mine: dict[int, list[tuple[int, int]]] = {}
    for number, d, at in zip(numbers, disk.tolist(), dbn.tolist(), strict=True):
        mine.setdefault(d, []).append((at, number))
    turns = []
    for d, blocks in mine.items():
        turns += [(Fraction(2 * j + 1, 2 * len(blocks)), d, n) for j, (_, n) in enumerate(sorted(blocks))]
    taken = [number for _, _, number in sorted(turns)]
    return [sorted(taken[at : at + window_blocks]) for at in range(0, len(taken), window_blocks)]


@pytest.mark.parametrize("n_data", [1, 3])
@pytest.mark.parametrize("chunk", [64, 1 << 17, 1 << 20])
def test_sparse_images_over_vast_groups(n_data, chunk, rng):
    """A handful of blocks among 2^40 of a group: the order as it is defined, at once."""
    disk_blocks = (1 << 40) // chunk * chunk
    groups = [record(0, 2, 64, 1 << 16, (0, 1)), record(1 << 20, n_data, chunk, disk_blocks, range(2, 2 + n_data))]
    geometry, space = Geometry(groups), 1 << 52
    near = rng.integers(1 << 20, 1 << 22, 60)
    far = rng.integers(1 << 20, groups[1].stop, 60)
    numbers = sorted({*rng.integers(0, 1 << 17, 40).tolist(), *near.tolist(), *far.tolist()})
    plane = Plane.from_extents([[n, n + 1] for n in numbers], space)
    started = time.monotonic()
    found = [numbers_in(extents).tolist() for extents in locations(plane, geometry, "disk", 50)]
    assert time.monotonic() - started < 20
    assert found == expected_order(numbers, geometry, 50)


def test_shares_of_many_disks_take_no_time(rng):
    """What is given back or taken on goes turn by turn, as the definition says; not disk by disk each time."""
    counts = rng.integers(0, 50, 40).tolist()
    turns = sorted((Fraction(2 * j + 1, 2 * count), disk) for disk, count in enumerate(counts) for j in range(count))
    for k in range(0, len(turns) + 1, 7):
        expected = [0] * 40
        for _, disk in turns[:k]:
            expected[disk] += 1
        assert shares_of_first(counts, k) == expected
    started = time.monotonic()
    shares_of_first([1] * 1024, 511)
    assert time.monotonic() - started < 2


def test_any_groups_at_all(rng):
    """F16: an implicit stream whose groups are anything: refused or received whole, soon."""
    storage = DictStorage()
    storage.write(range(15), 1)
    out = io.BytesIO()
    send(DictSending(storage, storage.snapshot("s", frozenset(range(15)), 1), None, 4, locations=IMPLICIT), out)
    header, *frames = parts_of(out.getvalue())
    n_taken = 0
    for _ in range(300):
        body = bytearray(header[:-4])
        body[224:232] = b"disk\0\0\0\0"
        n_groups = int(rng.integers(1, 4))
        first = 0
        for _ in range(n_groups):
            chunk = int(rng.choice([64, 128, 1 << 16, 1 << 30]))
            blocks = chunk * int(rng.choice([1, 2, 1 << 11]))
            n_data = int(rng.choice([1, 2, 255]))
            body += first.to_bytes(8, "little") + blocks.to_bytes(8, "little") + chunk.to_bytes(8, "little")
            body += n_data.to_bytes(2, "little") + bytes(6)
            first += -(-n_data * blocks // 65536) * 65536
        body[248:252] = n_groups.to_bytes(4, "little")
        body += bytes(4)
        body[12:16] = len(body).to_bytes(4, "little")
        target = DictStorage()
        started = time.monotonic()
        try:
            receive(io.BytesIO(sealed([body, *map(bytearray, frames)])), target)
            n_taken += 1
        except BlockplaneError:
            assert target == DictStorage()
        assert time.monotonic() - started < 10
    # the order of other groups is another, and then a block's check, bound to its number, does not match
    assert n_taken < 300
