"""Work that streams ask for, by what they say: in proportion to their bytes, however wide or sparse it is."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.image import order
from blockplane.image.extents import numbers_in
from blockplane.planes import Plane
from blockplane.stream import source as streams
from blockplane.stream.codec import PIECE_BLOCKS
from blockplane.stream.input import ObjectInput
from blockplane.stream.offer import OfferFrame, OfferHeader, OfferKind, OfferReader, OfferWriter
from blockplane.stream.sink import ObjectSink
from blockplane.transfer.arriving import arrival_of
from blockplane.volume.codec import NO_ID, Pointer, SnapshotRecord

SPAN = order._SPAN_STRIPES


def wide(n_disks: int, chunk: int, n_spans: int) -> Geometry:
    return Geometry([GroupRecord(0, n_disks, 0, chunk, n_spans * SPAN, tuple(range(n_disks)))])


def extents_of(plane: Plane, geometry: Geometry, window: int) -> list[list[int]]:
    return [numbers_in(extents).tolist() for extents in order.locations(plane, geometry, order.DISK, window)]


@pytest.mark.parametrize(("n_disks", "chunk"), [(3, 64), (5, 512), (40, 64)])
@pytest.mark.parametrize("n_blocks", [1, 300, 5000])
def test_few_blocks_have_the_order_that_many_have(monkeypatch, rng, n_disks, chunk, n_blocks):
    geometry = wide(n_disks, chunk, 4)
    starts = np.unique(rng.integers(0, geometry.n_blocks - 200, n_blocks))
    runs = np.minimum(starts + rng.integers(1, 200, len(starts)), np.append(starts[1:] - 1, geometry.n_blocks))
    plane = Plane.from_extents(np.column_stack((starts, np.maximum(runs, starts + 1))), geometry.n_blocks)
    found = []
    for few in (0, 1 << 40):
        monkeypatch.setattr(order, "_FEW_BLOCKS", few)
        found.append(extents_of(plane, geometry, 256))
    assert found[0] == found[1]
    assert sorted(vbn for window in found[0] for vbn in window) == numbers_in(plane.extents()).tolist()


def test_a_span_is_decoded_once_for_all_disks_and_once_for_each_that_has_blocks(monkeypatch, rng):
    """One block a span, on another disk each time, of 200: each disk passes over what is not its own."""
    geometry = wide(200, 64, 100)
    stride = SPAN * 200
    places = np.arange(100) * stride + rng.integers(0, stride, 100)
    plane = Plane.from_extents(np.column_stack((places, places + 1)), geometry.n_blocks)
    calls: Counter[str] = Counter()
    for name in ("_decode", "_few"):
        real = getattr(order._Spans, name)
        monkeypatch.setattr(
            order._Spans, name, lambda self, *its, name=name, real=real: calls.update([name]) or real(self, *its)
        )
    for kept in (order._ROWS_KEPT, 0):
        calls.clear()
        monkeypatch.setattr(order, "_ROWS_KEPT", kept)
        assert sorted(vbn for window in extents_of(plane, geometry, 1) for vbn in window) == places.tolist()
        assert calls["_few"] <= (100 if kept else 200)
        assert calls["_decode"] == 0


def test_a_stream_of_many_names_is_worked_out_once(tmp_path, monkeypatch):
    with bp.Volume.create(tmp_path / "pool", disks=1, size="16M") as volume:
        bp.FileSystem(volume).write_bytes("/a", b"a")
        names = [f"s{i}" for i in range(30)]
        for name in names:
            volume.snapshot(name)
        bp.send(volume.image(" + ".join(reversed(names))), tmp_path / "s.bps")
    made: Counter[str] = Counter()
    real = streams.Lineage
    monkeypatch.setattr(streams, "Lineage", lambda *its, **more: made.update(["lineage"]) or real(*its, **more))
    assert sorted(bp.verify_streams(tmp_path / "s.bps").proved) == sorted(names)
    assert made["lineage"] == 1
    with bp.open_stream(tmp_path / "s.bps") as chain:
        assert [bp.FileSystem(chain.at(name)).read_bytes("/a") for name in names] == [b"a"] * 30
    assert made["lineage"] == 2


def words_unpacked(monkeypatch) -> list[int]:
    """How many words are asked of planes, from now on."""
    n_words: list[int] = []
    real, whole = Plane.word_range, Plane.words
    monkeypatch.setattr(Plane, "word_range", lambda self, *its: n_words.append(its[1]) or real(self, *its))
    monkeypatch.setattr(Plane, "words", lambda self: n_words.append(self.n_blocks // 64) or whole(self))
    return n_words


def test_a_piece_of_one_block_is_a_word(tmp_path, monkeypatch):
    with bp.Volume.create(tmp_path / "pool", disks=1, size="16M") as volume:
        bp.FileSystem(volume).write_bytes("/a", b"a")
        volume.snapshot("s")
        bp.send(volume.image("s"), tmp_path / "s.bps")
    n_words = words_unpacked(monkeypatch)
    extents = bp.stream_map(tmp_path / "s.bps").image.extents()
    assert 0 < sum(n_words) <= (int(extents[-1, 1]) + 63) // 64 - int(extents[0, 0]) // 64


def test_a_piece_of_one_block_of_an_offer_is_a_word(monkeypatch):
    """Of each of 40 pieces, at both ends of it and between."""
    space = 40 * PIECE_BLOCKS
    vbns = np.arange(40) * PIECE_BLOCKS + np.resize([0, PIECE_BLOCKS - 1, 64, 12_345], 40)
    record = SnapshotRecord(b"s" * 16, b"n" * 16, NO_ID, NO_ID, 1, 0, Pointer(0, 7), 40, "s")
    out = io.BytesIO()
    OfferWriter(ObjectSink(out), OfferHeader(record, space)).write_plane(
        Plane.from_extents(np.column_stack((vbns, vbns + 1)), space)
    )
    out.seek(0)
    end = OfferFrame(OfferKind.END, 40, 32, 0, 0, OfferHeader.decode(out.getvalue()[:332]).tag, 0).encode()
    n_words = words_unpacked(monkeypatch)
    plane = OfferReader(ObjectInput(io.BytesIO(out.getvalue() + end))).plane
    assert numbers_in(plane.extents()).tolist() == vbns.tolist()
    assert n_words[:40] == [1] * 40


@pytest.mark.parametrize(("n_groups", "n_disks", "is_followed"), [(1, 4, True), (1000, 255, False)])
@pytest.mark.parametrize("window_blocks", [1, 2048])
def test_an_order_of_very_many_disks_is_not_worked_out(tmp_path, n_groups, n_disks, window_blocks, is_followed):
    """Where blocks should land is a guess: the header's disks and windows are followed where that costs little."""
    with bp.Volume.create(tmp_path / "pool", disks=1, size="16M") as volume:
        volume.snapshot("s")
        bp.send(volume.image("s"), tmp_path / "s.bps")
    stream = bp.stream_map(tmp_path / "s.bps")
    disks = [tuple(range(first, first + n_disks)) for first in range(0, n_groups * n_disks, n_disks)]
    groups = tuple(GroupRecord(n << 24, n_disks, 0, 4096, 1 << 16, each) for n, each in enumerate(disks))
    header = replace(stream.header, groups=groups, window_blocks=window_blocks)
    plane = Plane.from_extents([[0, 10_000]], groups[-1].stop)
    found = [numbers_in(piece) for piece in arrival_of(replace(stream, header=header))(plane)]
    assert len(found) < 10_000 / 64  # windows of one block are not followed
    numbers = np.concatenate(found)
    assert sorted(numbers.tolist()) == list(range(10_000))
    assert (numbers[1:] < numbers[:-1]).any() == is_followed
