"""Tapes that are .tap files beside plain writes of the same bytes, and reading one file by position."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold, warm
from yardstick.pairs import run_pairs
from yardstick.world import Source

from blockplane.filesystem import FileSystem
from blockplane.image.image import build
from blockplane.stream import open_stream
from blockplane.stream.media import Rack, TapeSet, TapeSink, new_set, stores
from blockplane.transfer import TapeForm, read_tape, receive, send, write_tape

MIB = 1 << 20


@pytest.mark.parametrize("record_kib", [64, 256, 1024])
def test_records_beside_a_plain_write(
    benchmark: BenchmarkFixture, source: Source, folder: Path, record_kib: int
) -> None:
    """The same stream, out of memory: cut into records, beside write(2) by the mebibyte; both synced."""
    benchmark.group = "tape records"
    stream, tape, plain = folder / "june1.bps", folder / "june1.tap", folder / "plain"
    send(build(source.volume, "june1"), stream, order="tape")
    data = memoryview(stream.read_bytes())
    pieces = [data[at : at + 16 * MIB] for at in range(0, len(data), 16 * MIB)]

    def before() -> None:
        for path in (tape, plain):
            path.unlink(missing_ok=True)
        make_cold([])

    def write_plain() -> None:
        fd = os.open(plain, os.O_WRONLY | os.O_CREAT, 0o666)
        for at in range(0, len(data), MIB):
            assert os.write(fd, data[at : at + MIB]) == len(data[at : at + MIB])
        os.fsync(fd)
        os.close(fd)

    def write_records() -> None:
        rack = Rack([tape], writable=True)
        sink = TapeSink(rack, new_set(record_kib << 10))
        for piece in pieces:
            sink.write_all([piece])
        sink.commit()
        sink.close()
        rack.close()

    run_pairs(benchmark, write_records, write_plain, before=before, n_bytes=len(data), target=0.80)
    assert 0 <= tape.stat().st_size - len(data) < 0.01 * len(data) + MIB
    with closing(TapeSet(Rack([tape]))) as tapes:
        store = stores(tapes)[0]
        assert all(store.read(len(piece), i * 16 * MIB) == piece for i, piece in enumerate(pieces))


def test_write_tape(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    """A volume's image onto a tape beside the same image into a stream file, in the same order."""
    benchmark.group = "tape write"
    stream, tape = folder / "plain.bps", folder / "image.tap"
    image = build(source.volume, "june1")

    def before() -> None:
        for path in (stream, tape):
            path.unlink(missing_ok=True)
        make_cold([source.path])

    def run() -> None:
        assert write_tape(build(source.volume, "june1"), tape).n_blocks == image.n_blocks

    def plain() -> None:
        send(build(source.volume, "june1"), stream, order="tape")

    run_pairs(benchmark, run, plain, before=before, n_bytes=image.n_bytes, target=0.80)


def test_read_tape(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    """Restoring off a tape beside receiving the stream."""
    benchmark.group = "tape read"
    stream, tape, copy = folder / "in.bps", folder / "in.tap", folder / "restored"
    image = build(source.volume, "june1")
    send(image, stream, order="tape")
    write_tape(image, tape, TapeForm(discard=True))

    def before() -> None:
        if copy.exists():
            shutil.rmtree(copy)
        for path in (stream, tape):
            warm(path)

    run_pairs(
        benchmark, lambda: read_tape(tape, copy), lambda: receive(stream, copy), before=before, n_bytes=image.n_bytes,
        target=0.80,
    )  # fmt: skip


def test_a_mebibyte_by_position(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    benchmark.group = "tape retrieve"
    tape = folder / "at.tap"
    write_tape(build(source.volume, "june1"), tape, TapeForm(discard=True))

    def run() -> int:
        with open_stream(tape) as opened, FileSystem(opened).open("/tree/large.bin") as file:
            tapes = opened.files[0].stored.tapes
            before = tapes.read_bytes
            file.seek(8 * MIB)
            assert len(file.read(MIB)) == MIB
            return tapes.read_bytes - before

    assert benchmark(run) <= 4 * MIB
