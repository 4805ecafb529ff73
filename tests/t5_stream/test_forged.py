"""Streams whose checksums and digests are right and whose fields are anything: refused clearly, or received (F16)."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import BlockplaneError
from blockplane.model.errors import StreamDamagedError
from blockplane.stream import open_stream
from blockplane.stream.codec.header import HEADER_FIXED_BYTES
from blockplane.transfer import merge_streams, receive, send, verify_streams
from forging import VALUES, head_bytes, is_data, parts_of, sealed
from streams.storage import DictSending, DictStorage, pair

N_STREAMS = 200_000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 1_000


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


@pytest.mark.parametrize(("n_data", "chunk", "disk_blocks"), [(1000, 64, 16384), (1, 100, 16320)])
def test_groups_that_no_volume_can_have_are_damage(tmp_path, n_data, chunk, disk_blocks):
    """And no usage error: `stream verify` goes on with the next stream."""
    with bp.Volume.create(tmp_path / "pool", disks=2, size="4MiB") as volume:
        volume.snapshot("one")
        send(volume.image("one"), tmp_path / "good.bps")
    parts = [bytearray(part) for part in parts_of((tmp_path / "good.bps").read_bytes())]
    struct.pack_into("<QQQHHI", parts[0], HEADER_FIXED_BYTES, 0, disk_blocks, chunk, n_data, 0, 0)
    (tmp_path / "bad.bps").write_bytes(sealed(parts))
    verdict = verify_streams(tmp_path / "bad.bps", tmp_path / "good.bps")
    assert [problem for problem in verdict.problems if "RAID group 0" in problem]
    assert verdict.snapshots == ["one"]
    with pytest.raises(StreamDamagedError, match="RAID group 0"):
        receive(tmp_path / "bad.bps", tmp_path / "copy")


def test_extents_of_more_blocks_than_a_frame_has_go_onto_no_tape(tmp_path):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8M") as volume:
        volume.snapshot("one")
        send(volume.image("one"), tmp_path / "bad.bps")
    parts = [bytearray(part) for part in parts_of((tmp_path / "bad.bps").read_bytes())]
    frame = next(part for part in parts[1:] if is_data(part))
    struct.pack_into("<I", frame, 48 + 8 * struct.unpack_from("<I", frame, 32)[0], 1 << 20)
    (tmp_path / "bad.bps").write_bytes(sealed(parts))
    with pytest.raises(StreamDamagedError, match="names others"):
        bp.write_stream_to_tape(tmp_path / "bad.bps", tmp_path / "x.tap")


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
