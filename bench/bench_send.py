"""Sending to /dev/null, cold, beside raw reads of the same extents: one thread a disk, O_DIRECT, 1 MiB requests.

The baseline reads into ordinary pages; the limit into a page that never leaves the cache.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold
from yardstick.pairs import run_pairs
from yardstick.raw import extents_of, read_raw
from yardstick.world import Source

from blockplane._native import checksum
from blockplane.image.image import build
from blockplane.stream.keyfile import create_key
from blockplane.transfer.send import SendReport, send


def test_send_encrypted(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    """Beside a plain send of the same image; the limit: the cipher alone, over as many bytes, a thread a core."""
    benchmark.group = "send encrypted"
    image = build(source.volume, "june1")
    key = folder / "bench.key"
    create_key(key)
    cipher, n_threads = AESGCM(os.urandom(32)), len(os.sched_getaffinity(0))
    piece = os.urandom(1 << 20)

    def seal(first: int) -> None:
        out = bytearray(len(piece) + 16)
        for number in range(first, image.n_bytes >> 20, n_threads):
            cipher.encrypt_into(number.to_bytes(12, "little"), piece, b"", out)

    def limit() -> None:
        with ThreadPoolExecutor(n_threads) as pool:
            list(pool.map(seal, range(n_threads)))

    def run(secret: Path | None) -> None:
        assert send(build(source.volume, "june1"), os.devnull, key=secret).n_bytes == image.n_bytes

    run_pairs(
        benchmark, lambda: run(key), lambda: run(None), before=lambda: None, n_bytes=image.n_bytes, target=0.5,
        limit=limit,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "target"), [("june1", 0.85), ("june2 - june1", 0.80)], ids=["full", "increment"]
)
def test_send(benchmark: BenchmarkFixture, source: Source, expression: str, target: float) -> None:
    benchmark.group = f"send {expression}"
    benchmark.extra_info["checksum_kernel"] = checksum.kernel_name()
    image = build(source.volume, expression)
    extents = extents_of(image)
    counters = source.volume.array.counters

    def raw(*, huge: bool) -> None:
        assert read_raw(extents, huge=huge) == image.n_bytes

    def run() -> None:
        before = counters().read_bytes
        planned = build(source.volume, expression)
        report = send(planned, os.devnull)
        check(report, counters().read_bytes - before)

    def check(report: SendReport, read_bytes: int) -> None:
        assert report.n_bytes == image.n_bytes
        assert report.stream_bytes > image.n_bytes
        assert read_bytes <= 1.05 * image.n_bytes + (4 << 20) + report.planning_blocks * 4096

    run_pairs(
        benchmark, run, lambda: raw(huge=False), before=lambda: make_cold([source.path]), n_bytes=image.n_bytes,
        target=target, limit=lambda: raw(huge=True),
    )  # fmt: skip
