"""Compressed frames: what is compressed, what is refused, and that nothing is decompressed unseen (S4)."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from blockplane.model import StreamDamagedError, StreamError, UsageError
from blockplane.model.checks import crc32c
from blockplane.stream import codec, compression
from blockplane.stream.codec import FLAG_ZSTD, FrameKind
from blockplane.stream.compression import DEFAULT_LEVEL, pack, parse_compression, unpack, zstd
from blockplane.transfer import receive, send
from streams.storage import DictSending, DictStorage, pair


def text(n_bytes: int, seed: int = 1) -> bytes:
    """Bytes that shrink to about half: noise of four bits."""
    return np.random.default_rng(seed).integers(0, 16, n_bytes, dtype=np.uint8).tobytes()


def head_for(stored: bytes, n_blocks: int) -> codec.FrameHead:
    return codec.FrameHead(
        FrameKind.DATA, 7, 48, len(stored), 0, 1, n_blocks, crc32c(stored), flags=FLAG_ZSTD
    )  # fmt: skip


@pytest.mark.parametrize("level", [1, DEFAULT_LEVEL, 19])
@pytest.mark.parametrize("n_blocks", [1, 3, 31, 256])
def test_what_is_packed_unpacks(level, n_blocks):
    payload = text(4096 * n_blocks)
    packed = pack(memoryview(payload), level)
    assert packed is not None
    assert len(packed) < 0.6 * len(payload)
    assert zstd.get_frame_info(packed).decompressed_size == len(payload)
    assert unpack(head_for(packed, n_blocks), memoryview(packed)) == payload


def test_what_does_not_shrink_is_sent_as_it_is(rng):
    for n_blocks in (1, 40, 256):
        assert pack(memoryview(rng.bytes(4096 * n_blocks)), 3) is None


def test_the_probe_spares_the_work(monkeypatch, rng):
    """Of a frame of noise only samples are compressed."""
    seen = []

    class Noting:
        def __init__(self, level):
            self.inner = zstd.ZstdCompressor(level)

        def set_pledged_input_size(self, n_bytes):
            self.inner.set_pledged_input_size(n_bytes)

        def compress(self, data, mode):
            seen.append(len(data))
            return self.inner.compress(data, mode)

    monkeypatch.setattr(compression, "_compressor", Noting)
    assert pack(memoryview(rng.bytes(1 << 20)), 3) is None
    assert seen == [65536]
    assert pack(memoryview(text(1 << 20)), 3) is not None
    assert seen == [65536, 65536, 1 << 20]


def test_each_thread_has_a_compressor_and_keeps_it():
    found = {}

    def look(name):
        found[name] = (id(compression._compressor(3)), id(compression._compressor(3)))
        barrier.wait()

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=look, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["a"][0] == found["a"][1]
    assert found["a"] != found["b"]


@pytest.mark.parametrize("word", ["", "zstd:", "zstd:0", "zstd:20", "zstd:-1", "zstd:three", "gzip", "zstd:3 ", "ZSTD"])
def test_compressions_that_there_are_not(word):
    with pytest.raises(UsageError, match="no compression"):
        parse_compression(word)


def test_compressions_that_there_are():
    assert [parse_compression(word) for word in ("zstd", "zstd:1", "zstd:19")] == [DEFAULT_LEVEL, 1, 19]


# --- hostile payloads: every CRC right ---


def unsized(data: bytes) -> bytes:
    """A frame that does not declare its size."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.content_size_flag: 0})
    return compressor.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def wide(data: bytes) -> bytes:
    """A frame (RFC 8878) that declares its size and asks for a window of 16 MiB; one raw block."""
    descriptor = struct.pack("<IBBI", 0xFD2FB528, 0x80, (24 - 10) << 3, len(data))
    return descriptor + (1 | len(data) << 3).to_bytes(3, "little") + data


BLOCKS = text(4 * 4096)
SHORT, LONG = zstd.compress(BLOCKS[:-1]), zstd.compress(BLOCKS + b"x")
WHOLE = zstd.compress(BLOCKS)
HOSTILE = {
    "a block too few": zstd.compress(BLOCKS[:-4096]),
    "a byte too few": SHORT,
    "a byte too many": LONG,
    "nothing": b"",
    "noise": bytes(range(200)),
    "cut": WHOLE[:-1],
    "two frames": WHOLE + WHOLE,
    "a skippable frame behind": WHOLE + struct.pack("<II", 0x184D2A50, 4) + b"abcd",
    "a skippable frame first": struct.pack("<II", 0x184D2A50, 4) + b"abcd" + WHOLE,
    "no declared size": unsized(BLOCKS),
    "a window of 16 MiB": wide(BLOCKS),
    "nested": zstd.compress(zstd.compress(BLOCKS)),
    # declares what the head claims, and holds something else
    "a lie about its size": WHOLE[:6] + bytes([WHOLE[6] ^ 1]) + WHOLE[7:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_payloads(name):
    stored = HOSTILE[name]
    with pytest.raises(StreamDamagedError, match="frame 7"):
        unpack(head_for(stored, 4), memoryview(stored))


def test_a_window_that_is_too_wide_is_refused_before_it_is_made():
    stored = HOSTILE["a window of 16 MiB"]
    assert zstd.decompress(stored) == BLOCKS
    with pytest.raises(StreamDamagedError, match="window of more than 8 MiB"):
        unpack(head_for(stored, 4), memoryview(stored))


@pytest.mark.parametrize("declared", [True, False])
def test_a_bomb_takes_no_memory(declared):
    """256 MiB of zeros in some KiB: refused with at most the frame's own size in memory."""
    zeros = bytes(1 << 28)
    bomb = zstd.compress(zeros) if declared else unsized(zeros)
    del zeros
    assert len(bomb) < 1 << 16
    tracemalloc.start()
    with pytest.raises(StreamDamagedError):
        unpack(head_for(bomb, 256), memoryview(bomb))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 3 << 20


def test_nothing_is_decompressed_before_its_crc_was_compared(monkeypatch):
    def never(*_):
        raise AssertionError("decompressed")

    monkeypatch.setattr(compression.zstd, "ZstdDecompressor", never)
    monkeypatch.setattr(compression.zstd, "get_frame_info", never)
    head = replace(head_for(WHOLE, 4), payload_crc=1)
    with pytest.raises(StreamDamagedError, match="does not match its checksum"):
        unpack(head, memoryview(WHOLE))


# --- streams ---


def streams(compress: str | None = "zstd") -> tuple[bytes, DictStorage]:
    storage = DictStorage()
    storage.write(range(15), 1)
    storage.blocks[3] = np.random.default_rng(2).bytes(4096)
    record = storage.snapshot("s", frozenset(range(15)), 1)
    out = io.BytesIO()
    send(DictSending(storage, record, window_blocks=3), out, compress=compress)
    return out.getvalue(), storage


def frames_of(stream: bytes) -> list[tuple[int, codec.FrameHead]]:
    found, at = [], codec.header_length(stream)
    while at < len(stream):
        head = codec.decode_frame_fixed(stream[at : at + codec.FRAME_FIXED_BYTES])
        found.append((at, head))
        at += head.head_bytes + head.payload_bytes
    return found


def sealed(stream: bytearray) -> bytes:
    """Put every checksum and the digest right."""
    n_header = codec.header_length(stream)
    struct.pack_into("<I", stream, n_header - 4, crc32c(stream[: n_header - 4]))
    digest = hashlib.sha256(stream[:n_header])
    for at, head in frames_of(stream):
        end = at + head.head_bytes
        if head.kind is not FrameKind.DATA or head.is_packed:
            struct.pack_into("<I", stream, at + 40, crc32c(stream[end : end + head.payload_bytes]))
        if head.kind is FrameKind.TRAILER:
            digest.update(stream[end : end + 96])
            stream[end + 96 : end + 128] = digest.digest()
            struct.pack_into("<I", stream, at + 40, crc32c(stream[end : end + 128]))
        struct.pack_into("<I", stream, at + 44, crc32c(stream[at + 48 : end], crc32c(stream[at : at + 44])))
        if head.kind is not FrameKind.TRAILER:
            digest.update(stream[at:end])
            digest.update(stream[end : end + head.payload_bytes] if head.kind is not FrameKind.DATA else b"")
    return bytes(stream)


def test_a_compressed_stream_is_received_and_smaller():
    stream, storage = streams()
    plain, _ = streams(None)
    data = [head for _, head in frames_of(stream) if head.kind is FrameKind.DATA]
    # the first frame ends, the second begins with the block of noise: both shrink all the same
    assert [head.is_packed for head in data] == [True, True, True, True, True]
    assert len(stream) < len(plain) / 4
    assert codec.decode_header(stream[: codec.header_length(stream)]).features == codec.ZSTD_FEATURES
    target = DictStorage()
    report = receive(io.BytesIO(stream), target)
    assert (report.n_blocks, report.stream_bytes) == (15, len(stream))
    assert target.blocks == storage.blocks
    assert sealed(bytearray(stream)) == stream


def test_an_increment_compressed(rng):
    source, old, new = pair()
    target = DictStorage()
    for sending in (DictSending(source, old), DictSending(source, new, old)):
        out = io.BytesIO()
        send(sending, out, compress="zstd:1")
        receive(io.BytesIO(out.getvalue()), target)
    assert {v: target.blocks[v] for v in source.snapshots[new.id][1]} == {
        v: source.blocks[v] for v in source.snapshots[new.id][1]
    }


def test_a_reader_without_it_refuses_by_name(monkeypatch):
    stream, _ = streams()
    monkeypatch.setattr(codec.header, "KNOWN_FEATURES", codec.Features())
    with pytest.raises(StreamError, match="receiving this stream needs zstd compression"):
        receive(io.BytesIO(stream), DictStorage())


def test_compressed_frames_that_the_header_does_not_announce():
    stream, _ = streams()
    bad = bytearray(stream)
    bad[16:24] = bytes(8)
    with pytest.raises(StreamDamagedError, match="the header knows nothing of it"):
        receive(io.BytesIO(sealed(bad)), DictStorage())


def test_flags_that_there_are_not():
    stream, _ = streams()
    for at, head in frames_of(stream):
        for flags in (2, 3, 0x8000, *([1] if head.kind is not FrameKind.DATA else [])):
            bad = bytearray(stream)
            struct.pack_into("<H", bad, at + 6, flags)
            with pytest.raises(StreamError):
                receive(io.BytesIO(bytes(bad)), DictStorage())


def test_flipped_bits_of_a_compressed_stream(rng, is_deep):
    """F13: every byte (a bit each), every one refused; the destination keeps nothing."""
    stream, _ = streams()
    accepted = []
    for place in range(0, len(stream), 1 if is_deep else 3):
        bad = bytearray(stream)
        bad[place] ^= 1 << int(rng.integers(8))
        target = DictStorage()
        try:
            receive(io.BytesIO(bytes(bad)), target)
            accepted.append(place)
        except StreamError:
            assert target == DictStorage()
    assert accepted == []


def test_cuts_of_a_compressed_stream(rng, is_deep):
    stream, _ = streams()
    for n_bytes in range(0 if is_deep else int(rng.integers(19)), len(stream), 1 if is_deep else 19):
        with pytest.raises(StreamError, match="ends after"):
            receive(io.BytesIO(stream[:n_bytes]), DictStorage())


def test_forged_payloads_in_a_stream(rng):
    """F16, S4: payloads of anything under right checksums: refused, or the very blocks."""
    stream, storage = streams()
    data = [(at, head) for at, head in frames_of(stream) if head.is_packed]
    n_refused = 0
    for _ in range(400):
        bad = bytearray(stream)
        at, head = data[int(rng.integers(len(data)))]
        place = at + head.head_bytes + int(rng.integers(min(head.payload_bytes, 24)))
        bad[place] = int(rng.integers(256))
        target = DictStorage()
        try:
            receive(io.BytesIO(sealed(bad)), target)
            assert target.blocks == storage.blocks
        except StreamDamagedError:
            n_refused += 1
            assert target == DictStorage()
    assert n_refused > 200
