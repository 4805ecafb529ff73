"""Consistency points and snapshots: what they read and write, counted, and how long creating a snapshot takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from yardstick.tree import GIB

from blockplane.filesystem import FileSystem
from blockplane.volume import Volume
from blockplane.volume.leafbits import LEAF_BLOCKS

N_DISKS, N_DATA = 5, 4
SMALL_VOLUME = 16 * GIB
LARGE_VOLUME = (16 << 40) if os.environ.get("BENCH_FULL") == "1" else 512 * GIB
#: A root record goes to both ends of every disk.
FSINFO_BLOCKS = 2 * N_DISKS


@dataclass(frozen=True, slots=True)
class Cost:
    """What an operation did to the disks."""

    read_blocks: int
    written_blocks: int
    flushes: int
    seconds: float


def cost_of(volume: Volume, work: Callable[[], object]) -> Cost:
    before, started = volume.array.counters(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - started, volume.array.counters()
    return Cost(
        (after.read_bytes - before.read_bytes) // 4096,
        (after.written_bytes - before.written_bytes) // 4096,
        after.flushes - before.flushes,
        seconds,
    )


def make_volume(path: Path, n_bytes: int) -> Volume:
    """Return an aged volume with a few files: half of all places are taken, in leaves that are really there."""
    volume = Volume.create(path, disks=N_DISKS, size=n_bytes // N_DATA)
    fs = FileSystem(volume)
    fs.mkdir("/files")
    for i in range(200):
        fs.write_bytes(f"/files/{i:03d}", bytes([i]) * 20_000)
    volume.sync()
    take_half(volume)
    volume.snapshot("first")
    return volume


def take_half(volume: Volume) -> None:
    rng = np.random.default_rng(1)
    n_leaves, active = volume.n_blocks // LEAF_BLOCKS, volume.active
    taken = rng.integers(0, 1 << 64, LEAF_BLOCKS // 64, np.uint64)
    taken[128:384] = 0
    first = 20
    for leaf in range(first, n_leaves - 20):
        active.blockmap.edit_block(leaf).view(np.uint64)[:] |= taken
        if leaf % 4096 == 0:
            active.is_dirty = True
            volume.commit()
    active.root.n_blocks += (n_leaves - 20 - first) * int(np.bitwise_count(taken).sum())
    active.is_dirty = True
    volume.commit()


@pytest.fixture(scope="module", params=["small", "large"])
def volume(request: pytest.FixtureRequest, folder: Path) -> Iterator[Volume]:
    is_large = request.param == "large"
    made = make_volume(folder / f"volume-{request.param}", LARGE_VOLUME if is_large else SMALL_VOLUME)
    yield made
    made.close()


SNAPSHOT_COSTS: dict[int, Cost] = {}


def test_snapshot_create(benchmark: BenchmarkFixture, volume: Volume) -> None:
    """Beyond the CP that comes first: the same at every size."""
    benchmark.group = "snapshot create"
    costs: list[Cost] = []

    def create() -> None:
        name = f"s{len(volume.snapshots)}"
        costs.append(cost_of(volume, lambda: volume.snapshot(name)))
        assert volume.snapshots[-1].name == name

    create()  # the first one in an area names it in a durable record
    costs.clear()
    benchmark.pedantic(create, setup=volume.sync, rounds=9 if benchmark.enabled else 3)
    typical = sorted(costs, key=lambda cost: cost.seconds)[len(costs) // 2]
    record(benchmark, f"snapshot create, {volume.n_blocks * 4096 / GIB:.0f} GiB", typical)
    SNAPSHOT_COSTS[volume.n_blocks] = typical
    assert typical.read_blocks <= 8
    assert typical.written_blocks <= 3 * FSINFO_BLOCKS
    if len(SNAPSHOT_COSTS) == 2:
        small, large = (SNAPSHOT_COSTS[n] for n in sorted(SNAPSHOT_COSTS))
        assert large.written_blocks <= 1.1 * small.written_blocks
        assert large.read_blocks <= 1.1 * small.read_blocks


def test_one_overwrite(benchmark: BenchmarkFixture, volume: Volume) -> None:
    """A CP for one 4 KiB overwrite: at most 16 blocks beside the root record."""
    benchmark.group = "CP of one 4 KiB overwrite"
    fs = FileSystem(volume)
    costs: list[Cost] = []

    def overwrite() -> None:
        with fs.open("/files/100", "r+b", buffering=0) as file:
            file.seek(4096)
            file.write(os.urandom(4096))
        costs.append(cost_of(volume, volume.sync))

    overwrite()  # the first one in an area names it in a durable record, and reads what lies there
    costs.clear()
    benchmark.pedantic(overwrite, rounds=9 if benchmark.enabled else 3)
    last = costs[-1]
    record(benchmark, f"one overwrite, {volume.n_blocks * 4096 / GIB:.0f} GiB", last)
    assert last.written_blocks - FSINFO_BLOCKS <= 16


def test_open_and_look(benchmark: BenchmarkFixture, volume: Volume) -> None:
    """Opening, and looking at one folder: under 8 MiB read, at every size. Last: it closes the volume."""
    benchmark.group = "open, ls"
    volume.close()

    def look() -> Cost:
        started = time.perf_counter()
        with Volume.open(volume.path, writable=False) as opened:
            assert len(FileSystem(opened).listdir("/files")) == 200
            read = opened.array.counters().read_bytes
        return Cost(read // 4096, 0, 0, time.perf_counter() - started)

    cost = benchmark.pedantic(look, rounds=1)
    record(benchmark, f"open and ls, {volume.n_blocks * 4096 / GIB:.0f} GiB", cost)
    assert cost.read_blocks * 4096 < 8 << 20


def record(benchmark: BenchmarkFixture, name: str, cost: Cost) -> None:
    found = {
        "read_blocks": cost.read_blocks,
        "written_blocks": cost.written_blocks,
        "flushes": cost.flushes,
        "ms": round(cost.seconds * 1000, 2),
    }
    benchmark.extra_info.update(found)
    print(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
