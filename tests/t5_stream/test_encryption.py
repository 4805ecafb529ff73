"""Encrypted streams: nothing readable, nothing changed unseen, one clear error for a wrong key."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from blockplane.model import (
    KeyFileError,
    RefusedError,
    StreamDamagedError,
    StreamError,
    StreamKeyError,
    StreamOrderError,
    StreamTruncatedError,
)
from blockplane.model.checks import crc32c
from blockplane.stream import codec, compression, open_stream
from blockplane.stream.encryption import SealedFraming
from blockplane.stream.keyfile import Key, create_key, keys_of, read_key
from blockplane.stream.source import stream_envelope
from blockplane.transfer import receive, send, stream_map, verify_streams
from forging import encrypted, opened_parts, sealed_parts
from streams.storage import DictSending, DictStorage, pair, renamed

KEY, OTHER = Key(bytes(range(32)), "mine.key"), Key(bytes(32), "other.key")


def sealed_stream(compress: str | None = None, **options) -> tuple[bytes, DictStorage]:
    storage = DictStorage()
    storage.write(range(15), 1)
    out = io.BytesIO()
    record = renamed(storage.snapshot("s", frozenset(range(15)), 1), "quarterly")
    send(DictSending(storage, record, window_blocks=4, **options), out, compress=compress, key=KEY)
    return out.getvalue(), storage


def frames_of(stream: bytes) -> list[bytes]:
    """The header and the frames of an encrypted stream."""
    parts = [stream[: codec.header_length(stream)]]
    at = len(parts[0])
    while at < len(stream):
        head = codec.decode_sealed_fixed(stream[at : at + codec.FRAME_FIXED_BYTES])
        parts.append(stream[at : at + head.head_bytes + head.payload_bytes])
        at += len(parts[-1])
    return parts


def refusal(stream: bytes, key: Key | None = KEY) -> StreamError:
    target = DictStorage()
    with pytest.raises(StreamError) as caught:
        receive(io.BytesIO(stream), target, key=key)
    assert target == DictStorage()
    return caught.value


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_an_encrypted_stream_is_received(compress):
    stream, storage = sealed_stream(compress)
    target = DictStorage()
    report = receive(io.BytesIO(stream), target, key=[OTHER, KEY])
    assert (report.n_blocks, report.stream_bytes) == (15, len(stream))
    assert target.blocks == storage.blocks


def test_nothing_of_the_contents_can_be_read():
    stream, storage = sealed_stream()
    out = io.BytesIO()
    record = renamed(storage.snapshots[b"s".ljust(16, b"\0")][0], "quarterly")
    sending = DictSending(storage, record, window_blocks=4)
    send(sending, out)
    plain = out.getvalue()
    header = codec.decode_header(plain[: codec.header_length(plain)])
    secrets = [b"quarterly", b"0:1:0:1:", header.plane_digest, header.root.encode(), sending.plane.serialize()]
    secrets += [plain[-32:], plain[plain.index(b"BPfr") : plain.index(b"BPfr") + 8]]
    assert [secret in plain for secret in secrets] == [True] * len(secrets)
    assert [secret in stream for secret in secrets] == [False] * len(secrets)
    # no number of blocks, snapshots or groups stands in the part that can be read
    assert not any(stream[160:208] + stream[224:256] + stream[264 : codec.HEADER_FIXED_BYTES])


def test_what_can_be_read_without_the_key(tmp_path):
    stream, _ = sealed_stream()
    (tmp_path / "s.bps").write_bytes(stream)
    shown = stream_envelope(tmp_path / "s.bps")
    assert (shown.key_id, shown.writer, shown.stream_id) == (KEY.id, "tests", b"stream-of-a-test")
    assert shown.top_id == b"s".ljust(16, b"\0")  # this storage makes ids of names; a volume draws them


def test_the_same_image_twice_has_nothing_in_common():
    one, two = sealed_stream()[0], sealed_stream()[0]
    assert len(one) == len(two)
    n = codec.header_length(one)
    same = np.frombuffer(one[n:], np.uint8) == np.frombuffer(two[n:], np.uint8)
    assert same.mean() < 0.05  # heads of frames: marks, lengths


# --- keys ---


def test_a_wrong_key_and_a_missing_one():
    stream, _ = sealed_stream()
    error = refusal(stream, OTHER)
    assert type(error) is StreamKeyError
    assert KEY.id.hex() in error.message
    assert f"other.key holds {OTHER.id.hex()}" in error.message
    error = refusal(stream, None)
    assert (type(error), KEY.id.hex() in error.message, "--key" in error.hint) == (StreamKeyError, True, True)


def test_another_key_that_claims_the_same_id(monkeypatch):
    stream, _ = sealed_stream()
    monkeypatch.setattr(Key, "id", KEY.id)
    assert type(refusal(stream, OTHER)) is StreamDamagedError


def test_key_files(tmp_path):
    path = tmp_path / "backup.key"
    made = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path) == made
    assert keys_of([path, KEY]) == (made, KEY)
    assert made.secret.hex() not in repr(made)
    before = path.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        create_key(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("split", [None, "64KiB"])
def test_no_stream_takes_the_place_of_a_key(tmp_path, split):
    """Not of its own either: it could never be read again."""
    path = tmp_path / ("k" if split is None else "k.000")
    create_key(path)
    storage, before = DictStorage(), path.read_bytes()
    storage.write(range(15), 1)
    sending = DictSending(storage, storage.snapshot("s", frozenset(range(15)), 1))
    with pytest.raises(RefusedError, match="is a key file: a key is never overwritten"):
        send(sending, tmp_path / "k", key=path, split=split)
    assert ([each.name for each in tmp_path.iterdir()], path.read_bytes()) == ([path.name], before)


def test_a_key_file_made_by_hand_is_what_it_was(tmp_path):
    path = tmp_path / "by-hand.key"
    path.touch(0o600)
    path.write_text(f"blockplane-key 1\n# of the office\nid {KEY.id.hex()}\nkey {KEY.secret.hex()}\n")
    assert read_key(path) == KEY
    assert KEY.id.hex() == "26b06fea3ef3cea58e39e28e2a36882b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key file"),
        ("blockplane-key 2\n", "later release"),
        ("blockplane-key 1\n", "damaged"),
        (f"blockplane-key 1\nid {KEY.id.hex()}\nkey {OTHER.secret.hex()}\n", "damaged"),
        (f"blockplane-key 1\nid {KEY.id.hex()}\nkey {KEY.secret.hex()[:-1]}\n", "damaged"),
        (f"blockplane-key 1\nid {KEY.id.hex()}\nkey {KEY.secret.hex()[:-1]}z\n", "damaged"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "no key file"),
    ],
)
def test_key_files_that_are_none(tmp_path, text, words):
    path = tmp_path / "k"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(KeyFileError, match=words) as caught:
        read_key(path)
    assert KEY.secret.hex()[:20] not in caught.value.message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_can_read_is_refused(tmp_path, mode):
    path = tmp_path / "k"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match="read by others") as caught:
        read_key(path)
    assert "chmod 600" in caught.value.hint


def test_a_key_from_a_pipe(tmp_path):
    create_key(tmp_path / "k")
    reader, writer = os.pipe()
    os.write(writer, (tmp_path / "k").read_bytes())
    os.close(writer)
    assert read_key(f"/dev/fd/{reader}") == read_key(tmp_path / "k")
    os.close(reader)


# --- damage, and worse ---


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_every_flipped_byte_is_refused(compress, rng, is_deep):
    stream, _ = sealed_stream(compress)
    structure = set(range(codec.header_length(stream)))
    at = len(structure)
    for part in frames_of(stream)[1:]:
        structure.update(range(at, at + codec.FRAME_FIXED_BYTES + 80))
        at += len(part)
    for place in sorted(p for p in structure | set(range(0, len(stream), 1 if is_deep else 41)) if p < len(stream)):
        bad = bytearray(stream)
        bad[place] ^= 1 << int(rng.integers(8))
        refusal(bytes(bad))


def test_every_cut_is_refused(rng, is_deep):
    stream, _ = sealed_stream("zstd")
    for n_bytes in range(0 if is_deep else int(rng.integers(19)), len(stream), 1 if is_deep else 19):
        assert type(refusal(stream[:n_bytes])) is StreamTruncatedError


def resealed(frame: bytes) -> bytes:
    """A frame whose CRCs are right again."""
    head = codec.decode_sealed_fixed(frame[: codec.FRAME_FIXED_BYTES])
    payload = frame[head.head_bytes :]
    return replace(head, payload_crc=crc32c(payload)).encode(frame[48 : head.head_bytes]) + payload


@pytest.mark.parametrize("where", ["head", "payload"])
def test_what_was_changed_under_right_crcs_is_refused_by_name(where, rng):
    header, *frames = frames_of(sealed_stream("zstd")[0])
    for i, frame in enumerate(frames):
        n_head = codec.decode_sealed_fixed(frame[:48]).head_bytes
        low, high = (48, n_head) if where == "head" else (n_head, len(frame))
        for place in {low, high - 1, int(rng.integers(low, high))}:
            bad = bytearray(frame)
            bad[place] ^= 1
            error = refusal(header + b"".join([*frames[:i], resealed(bytes(bad)), *frames[i + 1 :]]))
            assert (type(error), "was changed since it was encrypted" in error.message) == (StreamDamagedError, True)


def test_the_part_of_the_header_that_can_be_read_is_authenticated():
    stream, _ = sealed_stream()
    n = codec.header_length(stream)
    for place in (40, 72, 88, 104, 120, 136, 256, 336 + 16 + 3, n - 6):
        bad = bytearray(stream)
        bad[place] ^= 1
        bad[n - 4 : n] = crc32c(bytes(bad[: n - 4])).to_bytes(4, "little")
        assert "the header of the stream was changed" in refusal(bytes(bad)).message


def test_frames_swapped_doubled_left_out_and_from_another_stream():
    header, *frames = frames_of(sealed_stream()[0])
    _, *others = frames_of(sealed_stream()[0])
    _, *foreign = frames_of(sealed_stream(stream_id=b"another--stream.")[0])
    last = len(frames) - 1
    for i in range(last):
        swapped = [*frames[:i], frames[i + 1], frames[i], *frames[i + 2 :]]
        assert type(refusal(header + b"".join(swapped))) is StreamOrderError
        assert type(refusal(header + b"".join([*frames[: i + 1], *frames[i:]]))) is StreamOrderError
        assert type(refusal(header + b"".join([*frames[:i], *frames[i + 1 :]]))) is StreamOrderError
        # of another stream: by its tag; under the same tag and key, by its salt
        assert type(refusal(header + b"".join([*frames[:i], foreign[i], *frames[i + 1 :]]))) is StreamOrderError
        error = refusal(header + b"".join([*frames[:i], others[i], *frames[i + 1 :]]))
        assert "was changed since it was encrypted" in error.message
    # renumbered: the sequence is authenticated
    moved = bytearray(frames[3])
    moved[8:16] = (2).to_bytes(8, "little")
    error = refusal(header + b"".join([*frames[:2], resealed(bytes(moved)), *frames[3:]]))
    assert "was changed since it was encrypted" in error.message


def test_a_plain_frame_in_an_encrypted_stream():
    header, *frames = frames_of(sealed_stream()[0])
    plain = codec.encode_frame_head(codec.FrameKind.INDEX, 2, 0, b"", 24, 1, 0, 0) + bytes(24)
    assert type(refusal(header + frames[0] + frames[1] + plain + b"".join(frames[3:]))) is StreamDamagedError


def test_nothing_is_decompressed_before_it_was_authenticated(monkeypatch):
    header, *frames = frames_of(sealed_stream("zstd")[0])
    data = max(range(len(frames)), key=lambda i: len(frames[i]))
    bad = bytearray(frames[data])
    bad[-1] ^= 1
    seen = []
    real = compression.zstd.get_frame_info

    def noting(stored):
        seen.append(len(stored))
        return real(stored)

    monkeypatch.setattr(compression.zstd, "get_frame_info", noting)
    refusal(header + b"".join([*frames[:data], resealed(bytes(bad)), *frames[data + 1 :]]))
    assert len(frames[data]) - 200 > 0
    assert all(n_bytes != codec.decode_sealed_fixed(frames[data][:48]).payload_bytes - 16 for n_bytes in seen)


def test_runs_of_a_writer_have_keys_of_their_own():
    """A stream whose writing was resumed: the same frame, written twice, shares no key with itself."""
    salt = bytes(32)
    head = codec.encode_frame_head(codec.FrameKind.INDEX, 5, 7, b"", 24, 1, 0, crc32c(bytes(24)))
    first, second = SealedFraming(KEY, salt), SealedFraming(KEY, salt)
    wires = [framing.wire(5, 7, head, [bytes(24)]) for framing in (first, second)]
    assert wires[0][1] != wires[1][1]
    for fixed, sealed in wires:  # each opens what the other wrote
        found, raw = first.head(fixed[:48], fixed[48:], 7, 5)
        assert (raw, found.sealing.open(memoryview(sealed))) == (head, bytes(24))


# --- in place ---


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_reading_in_place(tmp_path, compress, rng):
    source, old, new = pair()
    paths = [tmp_path / "old.bps", tmp_path / "new.bps"]
    send(DictSending(source, old, window_blocks=3), paths[0], compress=compress, key=KEY)
    send(DictSending(source, new, old, window_blocks=3), paths[1], compress=compress, key=OTHER)
    assert stream_map(paths[0], key=KEY).top.name == "old"
    with open_stream(*paths, key=[KEY, OTHER]) as chain:
        for vbn in (0, 4, 20, 24):
            data = np.zeros(4096, np.uint8)
            chain.read_extents(np.array([[vbn, vbn + 1]]), data)
            assert data.tobytes() == source.blocks[vbn]
    with pytest.raises(StreamKeyError, match=r"new\.bps"):
        open_stream(*paths, key=KEY)
    with pytest.raises(StreamKeyError, match=r"old\.bps"):
        verify_streams(*paths, key=OTHER)
    whole = paths[0].read_bytes()
    n_refused = 0
    for _ in range(150):
        bad = bytearray(whole)
        bad[int(rng.integers(len(bad)))] ^= 1 << int(rng.integers(8))
        Path(paths[0]).write_bytes(bad)
        try:
            with open_stream(*paths, key=[KEY, OTHER]) as chain:
                data = np.zeros(5 * 4096, np.uint8)
                chain.read_extents(np.array([[0, 5]]), data)
                assert data.tobytes() == b"".join(source.blocks[vbn] for vbn in range(5))
        except StreamError:
            n_refused += 1
    assert n_refused > 30
    paths[0].write_bytes(whole[:-1])
    with pytest.raises(StreamTruncatedError):
        open_stream(paths[0], key=KEY)


def test_an_encrypted_stream_taken_apart_and_put_together():
    """The tool of the tests that forge: what it makes of a stream is that stream, under another salt."""
    stream, storage = sealed_stream("zstd")
    parts = opened_parts(stream, KEY)
    assert sealed_parts([bytearray(part) for part in parts]) == parts
    again = encrypted(parts, KEY)
    assert (len(again), again == stream) == (len(stream), False)
    target = DictStorage()
    receive(io.BytesIO(again), target, key=KEY)
    assert target.blocks == storage.blocks
