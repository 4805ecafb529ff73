"""put and get of the tree, cold, durable at the end, beside cp -a to the host's file system with a final sync."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.caches import make_cold
from yardstick.pairs import run_pairs
from yardstick.tree import TreeSize, file_sizes
from yardstick.world import Source, disk_bytes_for

from blockplane.filesystem import FileSystem
from blockplane.volume import Volume


def copy_tree(tree: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(tree), str(target)], check=True)
    os.sync()


@pytest.fixture
def n_bytes(size: TreeSize) -> int:
    return int(file_sizes(size).sum()) + size.large_bytes


def test_put(benchmark: BenchmarkFixture, tree: Path, size: TreeSize, folder: Path, n_bytes: int) -> None:
    benchmark.group = "put the tree"
    pool, plain = folder / "put", folder / "plain"

    def fresh() -> None:
        shutil.rmtree(pool, ignore_errors=True)
        shutil.rmtree(plain, ignore_errors=True)
        Volume.create(pool, disks=5, size=disk_bytes_for(size)).close()
        make_cold([tree])

    def run() -> None:
        with Volume.open(pool) as volume:
            report = FileSystem(volume).put(tree, "/tree")
            volume.sync()
        assert (report.n_files, report.n_bytes, report.skipped) == (size.n_files, n_bytes, [])

    run_pairs(benchmark, run, lambda: copy_tree(tree, plain), before=fresh, n_bytes=n_bytes, target=1 / 1.25)
    with Volume.open(pool) as volume:
        assert_equal_files(FileSystem(volume), "/tree", tree)
    shutil.rmtree(pool)


def test_get(benchmark: BenchmarkFixture, source: Source, tree: Path, folder: Path, n_bytes: int) -> None:
    benchmark.group = "get the tree"
    out, plain = folder / "out", folder / "plain2"
    snapshot = source.volume.get_snapshot("june1")

    def fresh() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(plain, ignore_errors=True)
        make_cold([tree, source.path])

    def run() -> None:
        report = FileSystem(snapshot).get("/tree", out)
        os.sync()
        assert (report.n_files, report.n_bytes, report.skipped) == (source.size.n_files, n_bytes, [])

    run_pairs(benchmark, run, lambda: copy_tree(tree, plain), before=fresh, n_bytes=n_bytes, target=1 / 1.25)
    subprocess.run(["diff", "-r", "--no-dereference", str(tree), str(out)], check=True)
    shutil.rmtree(out)


def assert_equal_files(fs: FileSystem, top: str, tree: Path) -> None:
    for path in sorted(tree.rglob("*.bin"))[:200]:
        name = f"{top}/{path.relative_to(tree)}"
        assert fs.read_bytes(name) == path.read_bytes()
        assert fs.stat(name).st_mtime_ns == path.stat().st_mtime_ns
