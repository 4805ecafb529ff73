"""Receiving a stream from the page cache, beside O_DIRECT writes of the same bytes and parity to as many files."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold, warm
from yardstick.memory import status_kib
from yardstick.pairs import run_pairs
from yardstick.raw import extents_of, like_in, write_raw
from yardstick.world import Source

from blockplane.filesystem import FileSystem
from blockplane.image.image import Image, build
from blockplane.transfer.receive import receive
from blockplane.transfer.send import send
from blockplane.volume import Volume


@pytest.fixture(scope="module")
def streams(source: Source, folder: Path) -> dict[str, Path]:
    made = {}
    for name, expression in (("full", "june1"), ("increment", "june2 - june1")):
        made[name] = folder / f"{name}.bps"
        send(build(source.volume, expression), made[name])
    return made


def test_receive_full(benchmark: BenchmarkFixture, source: Source, streams: dict[str, Path], folder: Path) -> None:
    image = build(source.volume, "june1")
    receive_beside_raw(benchmark, source, streams["full"], image, folder, None)


def test_receive_increment(benchmark: BenchmarkFixture, source: Source, streams: dict[str, Path], folder: Path) -> None:
    image = build(source.volume, "june2 - june1")
    base = folder / "base"
    shutil.rmtree(base, ignore_errors=True)
    receive(streams["full"], base)
    receive_beside_raw(benchmark, source, streams["increment"], image, folder, base)
    shutil.rmtree(base)


def receive_beside_raw(
    benchmark: BenchmarkFixture, source: Source, stream: Path, image: Image, folder: Path, base: Path | None
) -> None:
    """Receive into a copy of the base, or a new volume, in turns with raw writes; what arrived is compared."""
    top = image.require_sendable().name
    benchmark.group = f"receive {top}" if image.base is None else f"receive {top} - {image.base.name}"
    copy, raw_folder = folder / f"copy of {top}", folder / "raw"
    extents = like_in(raw_folder, extents_of(image), n_parity=1)

    def fresh() -> None:
        for path in (copy, raw_folder):
            shutil.rmtree(path, ignore_errors=True)
        raw_folder.mkdir()
        if base is not None:
            shutil.copytree(base, copy)
        make_cold([])
        warm(stream)

    def run() -> None:
        assert receive(stream, copy).n_bytes == image.n_bytes

    def raw(*, huge: bool) -> None:
        assert write_raw(extents, source.disk_bytes, huge=huge) >= image.n_bytes * 5 / 4

    run_pairs(
        benchmark, run, lambda: raw(huge=False), before=fresh, n_bytes=image.n_bytes, target=0.80,
        limit=lambda: raw(huge=True),
    )  # fmt: skip
    assert_equal(source.volume, copy, top)
    shutil.rmtree(raw_folder)


def test_receive_memory(benchmark: BenchmarkFixture, source: Source, streams: dict[str, Path], folder: Path) -> None:
    """From a pipe: how far this process grows."""
    copy = folder / "piped"

    def run() -> int:
        shutil.rmtree(copy, ignore_errors=True)
        read_end, write_end = os.pipe()
        feeder = threading.Thread(target=feed, args=(streams["full"], write_end), daemon=True)
        feeder.start()
        Path("/proc/self/clear_refs").write_text("5")
        before = status_kib("VmRSS")
        report = receive(read_end, copy)
        feeder.join()
        os.close(read_end)
        assert report.top == "june1"
        return status_kib("VmHWM") - before

    grown_kib = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["grown_mib"] = grown_kib >> 10
    print(f"\nreceive from a pipe: grows memory by {grown_kib >> 10} MiB")
    assert grown_kib <= 128 << 10


def feed(path: Path, fd: int) -> None:
    with open(path, "rb") as stream, open(fd, "wb", buffering=0) as pipe:
        while pipe_bytes := stream.read(1 << 16):
            pipe.write(pipe_bytes)


def assert_equal(volume: Volume, copy: Path, snapshot: str) -> None:
    """Names and attributes of every entry, and the bytes of every file of one folder and of the largest file."""
    with Volume.open(copy) as received:
        there, here = FileSystem(received.get_snapshot(snapshot)), FileSystem(volume.get_snapshot(snapshot))
        n_files = 0
        for (top, folders, files), other in zip(here.walk("/"), there.walk("/"), strict=True):
            assert other == (top, folders, files)
            for name in files:
                path = f"{top.rstrip('/')}/{name}"
                assert there.lstat(path) == here.lstat(path)
                if n_files < 100:
                    assert there.read_bytes(path) == here.read_bytes(path)
                n_files += 1
        assert n_files >= 100
