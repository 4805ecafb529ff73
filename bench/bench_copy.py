"""Copying from disk to disk, beside O_DIRECT copies of the same extents, and parity, by as many threads."""

from __future__ import annotations

import shutil
from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold
from yardstick.memory import status_kib
from yardstick.pairs import run_pairs
from yardstick.raw import copy_raw, extents_of, like_in
from yardstick.world import Source

from blockplane.image.image import build
from blockplane.transfer.copied import compare_copy
from blockplane.transfer.copy import copy
from blockplane.volume import Volume


def test_copy_full(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    copy_beside_raw(benchmark, source, "june1", folder, None)


def test_copy_increment(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    base = folder / "copied base"
    shutil.rmtree(base, ignore_errors=True)
    copy(build(source.volume, "june1"), base)
    copy_beside_raw(benchmark, source, "june2 - june1", folder, base)
    shutil.rmtree(base)


def copy_beside_raw(
    benchmark: BenchmarkFixture, source: Source, expression: str, folder: Path, base: Path | None
) -> None:
    """Copy onto a copy of the base, or to a new volume, in turns with raw copies; what arrived is compared.

    The limit is the raw copy without the parity disk.
    """
    image = build(source.volume, expression)
    benchmark.group = f"copy {expression}"
    target, raw_folder = folder / "copied", folder / "raw"
    origins = extents_of(image)
    targets = like_in(raw_folder, origins, n_parity=1)

    def fresh() -> None:
        for path in (target, raw_folder):
            shutil.rmtree(path, ignore_errors=True)
        raw_folder.mkdir()
        if base is not None:
            shutil.copytree(base, target)
        make_cold([source.path, target])

    def run() -> None:
        assert copy(build(source.volume, expression), target).n_bytes == image.n_bytes

    def raw() -> None:
        assert copy_raw(origins, targets, source.disk_bytes) >= image.n_bytes * 5 / 4

    def without_parity() -> None:
        assert copy_raw(origins, targets[:-1], source.disk_bytes) == image.n_bytes

    run_pairs(
        benchmark, run, raw, before=fresh, n_bytes=image.n_bytes, target=0.90, limit=without_parity
    )  # fmt: skip
    with Volume.open(target, writable=False) as copied:
        assert compare_copy(image, copied, lambda _: None) == image.n_blocks
    for path in (target, raw_folder):
        shutil.rmtree(path)


def test_copy_memory(benchmark: BenchmarkFixture, source: Source, folder: Path) -> None:
    """How far this process grows: the windows of the gather and the landing's bands, 64 MiB each, and no stream."""
    target = folder / "copied once"

    def run() -> int:
        shutil.rmtree(target, ignore_errors=True)
        Path("/proc/self/clear_refs").write_text("5")
        before = status_kib("VmRSS")
        assert copy(build(source.volume, "june1"), target).top == "june1"
        return status_kib("VmHWM") - before

    grown_kib = benchmark.pedantic(run, rounds=1)
    benchmark.extra_info["grown_mib"] = grown_kib >> 10
    print(f"\ncopy: grows memory by {grown_kib >> 10} MiB")
    assert grown_kib <= 176 << 10
    shutil.rmtree(target)
