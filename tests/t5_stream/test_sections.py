"""What a later release adds: sections that are passed over by name, features that must be known."""

from __future__ import annotations

import io
import struct
from dataclasses import replace

import numpy as np
import pytest

from blockplane.model import StreamDamagedError, StreamError, StreamOrderError
from blockplane.stream import Key, codec, open_stream
from blockplane.stream.codec import FrameKind
from blockplane.stream.writer import StreamWriter
from blockplane.transfer import receive, send, stream_map, verify_streams
from forging import parts_of, sealed
from streams.storage import DictSending, DictStorage

KEY = Key(bytes(range(32)))


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def later(request, monkeypatch) -> tuple[bytes, DictStorage]:
    """A stream of a later release: sections before, between and behind everything."""
    real_frame = StreamWriter._record_frame

    def index_and_section(self, kind, *arguments):
        real_frame(self, kind, *arguments)
        if kind is FrameKind.INDEX:
            self.write_section("weather", b"rain")

    def behind_a_section(real):
        def both(self, *arguments):
            self.write_section("weather", b"rain")
            return real(self, *arguments)

        return both

    monkeypatch.setattr(StreamWriter, "_record_frame", index_and_section)
    for name in ("write_snapshots", "write_branches", "write_plane", "write_blocks", "finish"):
        monkeypatch.setattr(StreamWriter, name, behind_a_section(getattr(StreamWriter, name)))
    storage = DictStorage()
    storage.write(range(15), 1)
    out = io.BytesIO()
    send(DictSending(storage, storage.snapshot("s", frozenset(range(15)), 1), window_blocks=4), out, key=request.param)
    monkeypatch.undo()
    return out.getvalue(), storage


def test_sections_are_passed_over_by_every_reader(later, tmp_path):
    stream, storage = later
    target = DictStorage()
    receive(io.BytesIO(stream), target, key=KEY)
    assert target.blocks == storage.blocks
    (tmp_path / "s.bps").write_bytes(stream)
    assert stream_map(tmp_path / "s.bps", key=KEY).sections == ("weather",)
    with open_stream(tmp_path / "s.bps", key=KEY) as chain:
        data = np.zeros(15 * 4096, np.uint8)
        chain.read_extents(np.array([[0, 15]]), data)
        assert data.tobytes() == b"".join(storage.blocks[vbn] for vbn in range(15))
    verdict = verify_streams(tmp_path / "s.bps", key=KEY)
    assert [problem for problem in verdict.problems if "is not whole" not in problem] == []
    n_sections = stream.count(b"weather")
    assert n_sections == 0 if codec.is_sealed(stream) else n_sections == 10


def with_section(change) -> bytes:
    """A stream whose first frame is a section, changed; every checksum right."""
    storage = DictStorage()
    storage.write(range(3), 1)
    out = io.BytesIO()
    writer_of = StreamWriter.write_snapshots

    def first(self, records):
        self.write_section("weather", b"rain")
        writer_of(self, records)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StreamWriter, "write_snapshots", first)
        send(DictSending(storage, storage.snapshot("s", frozenset(range(3)), 1)), out)
    parts = [bytearray(part) for part in parts_of(out.getvalue())]
    change(parts)
    return sealed(parts)


def refused(stream: bytes) -> StreamError:
    target = DictStorage()
    with pytest.raises(StreamError) as caught:
        receive(io.BytesIO(stream), target)
    assert target == DictStorage()
    return caught.value


@pytest.mark.parametrize("kind", [0x8000, 0x8001, 0x8005, 0xFFFF])
def test_any_kind_with_the_bit_is_passed_over(kind):
    def change(parts):
        struct.pack_into("<HH", parts[1], 4, kind, 0x1234)

    target = DictStorage()
    receive(io.BytesIO(with_section(change)), target)
    assert len(target.blocks) == 3


def test_kinds_without_the_bit_are_not():
    for kind in (0, 9, 10, 0x7FFF):
        stream = with_section(lambda parts, kind=kind: struct.pack_into("<H", parts[1], 4, kind))
        assert type(refused(stream)) is StreamDamagedError


def test_a_section_counts_and_is_verified():
    def left_out(parts):
        del parts[1]

    def swapped(parts):
        parts[1], parts[2] = parts[2], parts[1]

    assert type(refused(with_section(left_out))) is StreamOrderError
    assert type(refused(with_section(swapped))) is StreamOrderError
    stream = bytearray(with_section(lambda parts: None))
    at = stream.index(b"rain")
    stream[at] ^= 1
    assert "does not match its checksum" in refused(bytes(stream)).message


@pytest.mark.parametrize("n_name", [0, 65])
def test_names_too_short_and_too_long(n_name):
    def change(parts):
        tag = codec.decode_frame_fixed(bytes(parts[1][:48])).tag
        head = codec.encode_frame_head(FrameKind.SECTION, 0, tag, b"w" * n_name, 4, 0, 0, 0)
        parts[1] = bytearray(head + b"rain")

    assert type(refused(with_section(change))) is StreamDamagedError


def test_names_are_fit_to_be_shown():
    def change(parts):
        parts[1][48:55] = b"we\x1b[31m"

    stream = with_section(change)
    assert codec.decode_frame_head(stream[324:372], stream[372:379], 0x6F2D6D6165727473, 0).name() == "we?[31m"


@pytest.mark.parametrize(("bit", "words"), [(16, "features 0x10 of a later release"), (1 << 20, "0x100000")])
def test_a_feature_that_must_be_known(bit, words, tmp_path):
    storage = DictStorage()
    storage.write(range(3), 1)
    sending = DictSending(storage, storage.snapshot("s", frozenset(range(3)), 1))
    for features, refuses in ((codec.Features(receiving=bit), {"receive"}), (codec.Features(reading=bit), {"read"})):
        path = tmp_path / f"{bit}-{sorted(refuses)[0]}.bps"

        class Later(DictSending):
            def header(self, features=features):
                return replace(super().header(), features=features)

        send(Later(sending.storage, sending.top), path)
        if "receive" in refuses:
            with pytest.raises(StreamError, match=words):
                receive(path, DictStorage())
        else:  # it can still be received
            receive(path, DictStorage())
            with pytest.raises(StreamError, match=words):
                open_stream(path)
