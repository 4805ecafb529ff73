"""Merging while another thread writes: memory is used again only when it is written, errors of either side are told."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import NoSpaceError, StreamDamagedError, StreamTruncatedError
from blockplane.model.checks import first_bad_block
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.input import open_input
from blockplane.stream.keyfile import create_key, keys_of
from blockplane.stream.reader import StreamReader
from blockplane.transfer import merge_streams, picking, send, stream_map, verify_streams

N_MIB = 10
NAMES = ["s0", "s1", "s2"]
FORMS = {
    "plain": ["", "", ""],
    "mixed": ["zstd", "", "key"],
    "turns": ["", "zstd", ""],
    "sealed": ["key", "key", "key"],
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A volume of three snapshots: a file, half of it noise in turns, then single blocks, then runs changed."""
    folder = tmp_path_factory.mktemp("windows")
    rng = np.random.default_rng(5)
    create_key(folder / "key")
    with bp.Volume.create(folder / "pool", disks=3, size="24MiB", parity=1) as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/f", b"".join(rng.bytes(1 << 19) + b"line of text\n" * 40330 for _ in range(N_MIB)))
        volume.snapshot("s0")
        for name, step in (("s1", 7), ("s2", 90)):
            with files.open("/f", "r+b", buffering=0) as file:
                for block in range(0, N_MIB * 256 - 40, step):
                    file.seek(block * 4096)
                    file.write(rng.bytes(4096) if step == 7 else b"%08d" % block * 512 * 40)
            volume.snapshot(name)
        yield volume, folder / "key"


def chain_of(source, folder: Path, forms: list[str]) -> list[Path]:
    volume, key = source
    paths = [folder / f"{name}.bps" for name in NAMES]
    for path, expression, form in zip(paths, ("s0", "s1 - s0", "s2 - s1"), forms, strict=True):
        send(volume.image(expression), path, compress=form or None if form != "key" else None,
             key=key if form == "key" else None)  # fmt: skip
    return paths


def blocks_in(path: Path, key: Path) -> dict[int, bytes]:
    found = {}
    source = open_input(path)
    reader = StreamReader(source, keys_of(key))
    reader.read_map()
    for head, (buffer,) in arriving(reader, Ring()):
        numbers = np.concatenate([np.arange(start, stop) for start, stop in head.extents().tolist()])
        assert first_bad_block(buffer, numbers, head.checks()) == -1
        for i, number in enumerate(numbers.tolist()):
            found[number] = buffer[i * 4096 : (i + 1) * 4096].tobytes()
    source.close()
    return found


class SlowSink:
    """A file object of which every write takes a while, and that is full at some point."""

    def __init__(self, room: int = 1 << 40) -> None:
        self.data, self.room, self.calls = bytearray(), room, []

    def write(self, data) -> int:
        self.calls.append(threading.get_ident())
        time.sleep(0.0005)
        if len(self.data) + len(data) > self.room:
            raise OSError(28, "No space left on device")
        self.data += data
        return len(data)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compress", [None, "zstd:1"])
def test_memory_is_used_again_only_when_it_is_written(source, tmp_path, monkeypatch, form, compress):
    volume, key = source
    monkeypatch.setattr(picking, "WINDOW_BLOCKS", 256)
    chain = chain_of(source, tmp_path, FORMS[form])
    sink = SlowSink()
    report = merge_streams(*chain, sink=sink, key=key, encrypt=False, compress=compress)
    (tmp_path / "merged.bps").write_bytes(sink.data)
    send(volume.image("s2"), tmp_path / "direct.bps")
    merged, direct = tmp_path / "merged.bps", tmp_path / "direct.bps"
    assert blocks_in(merged, key) == blocks_in(direct, key)
    assert stream_map(merged).header.plane_digest == stream_map(direct).header.plane_digest
    assert (verify_streams(merged).ok, report.sent.stream_bytes) == (True, len(sink.data))
    if compress is None:
        behind = set(sink.calls) - {threading.get_ident()}
        assert (len(behind), sink.calls.count(threading.get_ident())) == (1, 0)
    planned = merge_streams(*chain, sink=None, key=key, encrypt=False, dry_run=True)
    assert (planned.sent.n_blocks, planned.order) == (report.sent.n_blocks, report.order)


def test_an_error_of_the_sink_ends_it_and_nothing_is_written_behind(source, tmp_path):
    chain = chain_of(source, tmp_path, FORMS["plain"])
    whole = SlowSink()
    merge_streams(*chain, sink=whole)
    before = threading.active_count()
    for room in (0, 3000, 1 << 20, len(whole.data) - 1):
        sink = SlowSink(room)
        with pytest.raises((NoSpaceError, OSError)):
            merge_streams(*chain, sink=sink)
        assert len(sink.data) <= room
        assert threading.active_count() == before
        assert len(sink.calls) <= len(whole.calls)


@pytest.mark.parametrize("form", ["plain", "sealed"])
def test_a_damaged_or_short_member_is_named_and_leaves_nothing(source, tmp_path, form):
    _, key = source
    chain = chain_of(source, tmp_path, FORMS[form])
    raw = chain[2].read_bytes()
    for at in (
        len(raw) // 3,
        len(raw) * 2 // 3,
    ):  # all of the newest is kept; of others, what is not kept is not verified
        chain[2].write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises(StreamDamagedError, match=r"s2\.bps"):
            merge_streams(*chain, sink=tmp_path / "out.bps", key=key, encrypt=False)
    chain[2].write_bytes(raw[: len(raw) // 2])
    with pytest.raises((StreamTruncatedError, StreamDamagedError), match=r"s2\.bps"):
        merge_streams(*chain, sink=tmp_path / "out.bps", key=key, encrypt=False)
    assert not list(tmp_path.glob("out*"))


def test_windows_hold_whole_frames_of_kept_blocks(source, tmp_path):
    chain = chain_of(source, tmp_path, FORMS["plain"])
    merge_streams(*chain, sink=tmp_path / "out.bps")
    with open(tmp_path / "out.bps", "rb") as opened:
        reader = StreamReader(open_input(opened.fileno()))
        reader.read_map()
        sizes = []
        while (head := reader.next_data()) is not None:
            sizes.append(head.n_blocks)
            reader.skip_payload()
    assert set(sizes[:-1]) == {256}
    assert all(a >= b for a, b in itertools.pairwise(sizes))
