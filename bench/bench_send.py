"""Sending to /dev/null, cold, beside raw reads of the same extents: one thread a disk, O_DIRECT, 1 MiB requests.

The baseline reads into ordinary pages; the limit into a page that never leaves the cache.
"""

from __future__ import annotations

import os

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold
from yardstick.pairs import run_pairs
from yardstick.raw import extents_of, read_raw
from yardstick.world import Source

from blockplane._native import checksum
from blockplane.image.image import build
from blockplane.transfer.send import SendReport, send


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
