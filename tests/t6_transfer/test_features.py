"""What a later release's states need travels with them: into the volume that receives them, and on from there."""

from __future__ import annotations

from dataclasses import replace

import pytest

import blockplane as bp
from blockplane.model import RefusedError
from blockplane.stream import open_stream
from blockplane.stream.codec import Features, Header
from blockplane.transfer import merge_streams, receive, send, stream_map, verify_streams
from blockplane.transfer.send import ImageSending

READ, WRITE = 1 << 40, 1 << 41
#: A bit of the stream's form, which ends with the stream.
FORM = 1 << 20


@pytest.fixture
def source(tmp_path):
    with bp.Volume.create(tmp_path / "source", disks=2, size="32M") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/a", b"a" * 100_000)
        volume.snapshot("one")
        files.write_bytes("/b", b"b" * 100_000)
        volume.snapshot("two")
        yield volume


def later(volume, expression, path, features):
    """A stream as a release would write it whose states need more."""

    class Later(ImageSending):
        def header(self) -> Header:
            return replace(super().header(), features=features)

    send(Later(volume.image(expression)), path)
    return path


def test_what_reading_needs_stops_readers_alone(source, tmp_path):
    stream = later(source, "one", tmp_path / "one.bps", Features(reading=READ | FORM))
    receive(stream, tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert copy.info.features == Features(reading=READ)
        for open_files in (lambda: bp.FileSystem(copy), lambda: bp.FileSystem(copy.get_snapshot("one"))):
            with pytest.raises(RefusedError, match=f"reading files of .*copy needs features {READ:#x}"):
                open_files()
        assert copy.image("one").n_blocks == source.image("one").n_blocks
        send(copy.image("one"), tmp_path / "on.bps")
    assert stream_map(tmp_path / "on.bps").header.features == Features(reading=READ)
    assert verify_streams(tmp_path / "on.bps").ok


def test_what_writing_needs_stops_writers_alone(source, tmp_path):
    receive(later(source, "one", tmp_path / "one.bps", Features(writing=WRITE)), tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        files = bp.FileSystem(copy)
        assert files.read_bytes("/a") == b"a" * 100_000
        for change in (
            lambda: files.write_bytes("/a", b""),
            lambda: files.mkdir("/d"),
            lambda: files.unlink("/a"),
            lambda: files.chmod("/a", 0o600),
            lambda: files.open("/a", "r+b"),
            lambda: files.put(tmp_path / "one.bps", "/"),
        ):
            with pytest.raises(RefusedError, match=f"writing files of .*copy needs features {WRITE:#x}"):
                change()
        copy.snapshot("mine")
        copy.delete_snapshot("mine")
        bp.send(source.image("two - one"), tmp_path / "two.bps")
        bp.receive(tmp_path / "two.bps", copy)
        assert files.read_bytes("/b") == b"b" * 100_000
    with bp.Volume.open(tmp_path / "copy") as copy:  # the older states that need it are here still
        assert copy.info.features == Features(writing=WRITE)
        assert bp.check(copy).problems == []


def test_merging_keeps_what_any_member_needs(source, tmp_path):
    one = later(source, "one", tmp_path / "one.bps", Features(reading=READ))
    two = later(source, "two - one", tmp_path / "two.bps", Features(writing=WRITE))
    merge_streams(one, two, sink=tmp_path / "merged.bps")
    assert stream_map(tmp_path / "merged.bps").header.features == Features(reading=READ, writing=WRITE)
    with open_stream(one, two) as chain, pytest.raises(RefusedError, match=f"reading files of the stream .*{READ:#x}"):
        bp.FileSystem(chain)


def test_what_receiving_needs_keeps_a_volume_shut(source, tmp_path):
    source.features = Features(receiving=WRITE)
    source.commit(force=True)
    source.abandon()
    with pytest.raises(bp.errors.VolumeDamagedError, match=f"format version {1} and features {WRITE:#x}"):
        bp.Volume.open(tmp_path / "source", writable=False)
