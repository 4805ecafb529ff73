"""Interrupted transfers of encrypted streams go on; no key is used twice for what differs."""

from __future__ import annotations

import io
import random
from contextlib import closing

import pytest

import blockplane as bp
from blockplane.model import StreamKeyError, StreamTruncatedError, UsageError
from blockplane.stream import Key, codec
from blockplane.transfer.began import began_beside
from blockplane.transfer.imagesending import ImageSending

KEY, OTHER = Key(bytes(range(32))), Key(bytes(32))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with bp.Volume.create(tmp_path_factory.mktemp("source") / "pool", disks=3, size="16MiB") as volume:
        bp.FileSystem(volume).write_bytes("/large", random.Random(3).randbytes(9 << 20))
        volume.snapshot("june1")
        yield volume


def stream_of(volume, **options) -> bytes:
    sink = io.BytesIO()
    bp.send(volume.image("june1"), sink, **options)
    return sink.getvalue()


def runs_of(stream: bytes) -> list[int]:
    """The run of each frame."""
    runs, at = [], codec.header_length(stream)
    while at < len(stream):
        head = codec.decode_sealed_fixed(stream[at : at + codec.FRAME_FIXED_BYTES])
        runs.append(head.run)
        at += head.head_bytes + head.payload_bytes
    return runs


@pytest.mark.parametrize("compress", [None, "zstd:1"])
def test_a_half_written_file_goes_on_under_the_same_key(source, tmp_path, compress, rng):
    whole = stream_of(source, key=KEY, compress=compress)
    path, partial = tmp_path / "s.bps", tmp_path / "s.bps.partial"
    partial.write_bytes(whole[: int(rng.integers(3 << 20, 6 << 20))])
    for key, kind in ((None, StreamKeyError), (OTHER, StreamKeyError)):
        before = partial.read_bytes()
        with pytest.raises(kind):
            bp.send(source.image("june1"), path, key=key, compress=compress, resume=True)
        assert partial.read_bytes() == before
    report = bp.send(source.image("june1"), path, key=KEY, compress=compress, resume=True)
    assert report.n_blocks_before > 256
    assert bp.verify_streams(path, key=KEY).problems == []
    runs = runs_of(path.read_bytes())
    assert len(set(runs)) == 2
    assert runs == sorted(runs, key=runs.index)  # first one's, then the other's
    assert path.read_bytes()[: 1 << 20] == whole[: 1 << 20]
    bp.receive(path, tmp_path / "copy", key=KEY)


def test_a_plain_half_written_file_is_not_gone_on_with_encrypted(source, tmp_path):
    partial = tmp_path / "s.bps.partial"
    partial.write_bytes(stream_of(source)[: 4 << 20])
    with pytest.raises(UsageError, match="is not encrypted"):
        bp.send(source.image("june1"), tmp_path / "s.bps", key=KEY, resume=True)


def test_a_cut_receive_goes_on_with_a_token(source, tmp_path):
    whole = stream_of(source, key=KEY)
    with pytest.raises(StreamTruncatedError, match="are kept in"):
        bp.receive(io.BytesIO(whole[: 6 << 20]), tmp_path / "copy", key=KEY)
    with bp.Volume.open(tmp_path / "copy") as volume:
        token = bp.resume_token(volume)
    rest = stream_of(source, key=OTHER, resume=token)
    assert len(rest) < len(whole) - (4 << 20)
    bp.receive(io.BytesIO(rest), tmp_path / "copy", key=OTHER)
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert bp.FileSystem(volume).read_bytes("/large") == random.Random(3).randbytes(9 << 20)
        assert bp.check(volume).ok


@pytest.mark.parametrize("order", ["disk", "tape"])
def test_the_rest_of_an_implicit_stream(source, tmp_path, order):
    """A part has an order of its own: that of the blocks that follow."""
    whole = stream_of(source, locations="implicit", order=order)
    with pytest.raises(StreamTruncatedError, match="are kept in"):
        bp.receive(io.BytesIO(whole[: 6 << 20]), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        token = bp.resume_token(volume)
    rest = stream_of(source, locations="implicit", order=order, resume=token)
    bp.receive(io.BytesIO(rest), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as volume:
        assert bp.FileSystem(volume).read_bytes("/large") == random.Random(3).randbytes(9 << 20)
        assert bp.check(volume).ok


@pytest.mark.parametrize("at_mib", [2, 5, 8])
def test_a_half_written_implicit_file(source, tmp_path, at_mib, monkeypatch):
    """It goes on at a window's end: windows are 2 MiB here."""
    monkeypatch.setattr(ImageSending.__init__, "__defaults__", ("disk", 512, *ImageSending.__init__.__defaults__[2:]))
    written = stream_of(source, locations="implicit", key=KEY)[: at_mib << 20]
    (tmp_path / "s.bps.partial").write_bytes(written)
    options = {"locations": "implicit", "key": KEY, "resume": True}
    with closing(began_beside(tmp_path / "s.bps", KEY)) as began:
        n_windows = began.n_windows  # in disk order what is left has another order of its own
    report = bp.send(source.image("june1"), tmp_path / "s.bps", **options)
    assert report.n_blocks_before == n_windows * 512
    assert (at_mib - 3) * 256 < report.n_blocks_before <= at_mib * 256
    assert bp.verify_streams(tmp_path / "s.bps", key=KEY).problems == []
    with bp.open_stream(tmp_path / "s.bps", key=KEY) as stream:
        assert bp.FileSystem(stream).read_bytes("/large") == random.Random(3).randbytes(9 << 20)
