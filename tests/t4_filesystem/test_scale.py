"""What a verb costs does not follow the size of the volume: counted on a half-full, aged volume of 16 TiB.

The disks are sparse files; the blockmap's leaves, 512 MiB of them, are really there, with scattered free blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blockplane.filesystem import FileSystem
from blockplane.volume import Volume

LEAF_BLOCKS = 32_768
EDGE_LEAVES = 20  # left as they are: the file system proper, the local tree
COMMIT_LEAVES = 4096

MIB = 1 << 20


def age(volume: Volume, rng: np.random.Generator) -> int:
    """Fill the plane as years of use leave it: half full, scattered; return how many leaves."""
    n_leaves = volume.n_blocks // LEAF_BLOCKS
    n_taken = 0
    for leaf in range(EDGE_LEAVES, n_leaves - EDGE_LEAVES):
        words = volume.active.blockmap.edit_block(leaf).view(np.uint64)
        pattern = rng.integers(0, 2**64, 512, dtype=np.uint64)
        if leaf % 3 == 0:
            pattern[128:384] = 0
        n_taken += int(np.bitwise_count(pattern & ~words).sum())
        words |= pattern
        if leaf % COMMIT_LEAVES == 0:
            volume.active.is_dirty = True
            volume.commit()
    volume.active.root.n_blocks += n_taken
    volume.active.is_dirty = True
    volume.commit()
    return n_leaves


@pytest.fixture(scope="module")
def seeded() -> np.random.Generator:
    """One pattern for both sizes."""
    return np.random.default_rng(7_174_352)


def make_aged(path: Path, size: str, rng: np.random.Generator) -> Path:
    with Volume.create(path, disks=5, size=size) as volume:
        files = FileSystem(volume)
        files.mkdir("/a")
        files.write_bytes("/a/x", b"hello" * 10_000)
        age(volume, rng)
    return path


@pytest.fixture(scope="module")
def aged_16_tib(tmp_path_factory: pytest.TempPathFactory, seeded: np.random.Generator) -> Path:
    path = make_aged(tmp_path_factory.mktemp("aged") / "large", "4100G", seeded)
    with Volume.open(path) as volume:
        assert volume.n_blocks >= 1 << 32
        assert 0.4 < volume.used_blocks / volume.n_blocks < 0.6
    return path


@pytest.fixture(scope="module")
def aged_16_gib(tmp_path_factory: pytest.TempPathFactory, seeded: np.random.Generator) -> Path:
    return make_aged(tmp_path_factory.mktemp("aged") / "small", "4128M", seeded)


def info(volume: Volume) -> None:
    assert volume.free_blocks > 0
    assert all(snapshot.exclusive_blocks >= 0 for snapshot in volume.snapshots)


VERBS: dict[str, Callable[[Volume], object]] = {
    "info": info,
    "ls": lambda volume: FileSystem(volume).listdir("/a"),
    "mkdir": lambda volume: FileSystem(volume).mkdir("/b"),
    "snapshot create": lambda volume: volume.snapshot("june"),
    "info with a snapshot": info,
}


def test_verbs_read_little_of_a_large_volume(aged_16_tib: Path) -> None:
    for verb, work in VERBS.items():
        volume = Volume.open(aged_16_tib)
        work(volume)
        volume.close()
        read_bytes = volume.array.counters().read_bytes
        print(f"{verb}: {read_bytes / MIB:.2f} MiB read")
        assert read_bytes < 8 * MIB, verb


def test_a_plane_costs_at_most_four_bytes_a_block_and_a_hundredth_of_the_space(aged_16_tib: Path) -> None:
    with Volume.open(aged_16_tib) as volume:
        n_leaves = -(-volume.n_blocks // LEAF_BLOCKS)
        n_nodes = len(volume.active.blockmap.node_numbers())
        plane_bytes = (n_leaves + n_nodes) * 4096
        assert plane_bytes <= 4 * volume.n_blocks
        assert plane_bytes * 100 <= volume.n_blocks * 4096


def snapshot_costs(path: Path) -> list[tuple[int, int]]:
    """Return (blocks read, blocks written) of ten snapshots made one after the other, the first left out."""
    found = []
    with Volume.open(path) as volume:
        for number in range(11):
            before = volume.array.counters()
            volume.snapshot(f"s{number}")
            after = volume.array.counters()
            read, written = after.read_bytes - before.read_bytes, after.written_bytes - before.written_bytes
            found.append((read // 4096, written // 4096))
    return found[1:]


def test_a_snapshot_costs_the_same_on_16_gib_and_16_tib(aged_16_gib: Path, aged_16_tib: Path) -> None:
    small = np.median(snapshot_costs(aged_16_gib), axis=0)
    large = np.median(snapshot_costs(aged_16_tib), axis=0)
    print(f"16 GiB: {small} blocks read, written; 16 TiB: {large}")
    assert large[1] <= 1.1 * small[1]
    assert large[0] <= 1.1 * small[0]
