"""Work, counted in blocks: what it may not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from blockplane.disks import DiskCounters
from blockplane.disks.disk import fsinfo_tail_block
from blockplane.model import BLOCK_BYTES
from blockplane.volume import Volume
from blockplane.volume.deleting import freed_by
from blockplane.volume.state import differing_leaves
from faults.recording import MemoryDisk
from faults.world import FileClient, geometry_of, make_volume, open_volume, put_root, revived, root_of

#: 4 data disks and 1 parity disk, together 16 GiB and 16 TiB; disks in memory are sparse.
SIZES = {"16 GiB": 1 << 20, "16 TiB": 1 << 30}


pytestmark = pytest.mark.usefixtures("inline")


class Meter:
    """Blocks that went to and from the disks; root records are counted apart."""

    def __init__(self, volume: Volume) -> None:
        self.disks = volume.array.disks
        self.slots = 0
        for disk in self.disks:
            assert isinstance(disk, MemoryDisk)
            self._watch(disk)
        self.reset()

    def _watch(self, disk: MemoryDisk) -> None:
        write = disk.write

        def counted(start: int, data: bytes) -> None:
            self.slots += start in (1, fsinfo_tail_block(disk.n_blocks))
            write(start, data)

        disk.write = counted  # type: ignore[method-assign]

    def reset(self) -> None:
        self.slots = 0
        for disk in self.disks:
            disk.counters = DiskCounters()  # type: ignore[misc]

    @property
    def read(self) -> int:
        return sum(disk.counters.read_bytes for disk in self.disks) // BLOCK_BYTES

    @property
    def written(self) -> int:
        return sum(disk.counters.written_bytes for disk in self.disks) // BLOCK_BYTES - self.slots


def volume_of(size: str, n_files: int = 200) -> tuple[Volume, FileClient]:
    volume = make_volume(geometry_of(4, 1, SIZES[size]), reserve_blocks=65536)
    client = FileClient(volume)
    for inode in range(1, n_files):
        client.write(inode, 0, [inode] * 3)
    volume.sync()
    return volume, client


def snapshot_work(size: str) -> tuple[int, int]:
    volume, client = volume_of(size)
    volume.snapshot("warm")
    client.write(1, 0, [7])
    volume.sync()
    meter = Meter(volume)
    volume.snapshot("one")
    return meter.read, meter.written


def test_a_snapshot_costs_the_same_at_16_gib_and_at_16_tib():
    small, large = snapshot_work("16 GiB"), snapshot_work("16 TiB")
    assert abs(large[0] - small[0]) <= max(small[0] // 10, 4)  # a level or two of nodes more
    assert abs(large[1] - small[1]) <= max(small[1] // 10, 8)
    assert sum(large) < 60


@pytest.mark.parametrize("size", SIZES)
def test_opening_reads_nothing_that_grows(size):
    volume, _ = volume_of(size)
    for n in range(3):
        volume.snapshot(f"s{n}")
    volume.close()
    disks = revived(volume.array.disks)
    for disk in disks:
        disk.counters = DiskCounters()
    reopened = open_volume(disks)
    read = sum(disk.counters.read_bytes for disk in disks) // BLOCK_BYTES
    # both ends' labels, looked at again for a lost one, and root records; the two roots of each of two points; a map
    assert read <= 3 * len(disks) * 2 + 8
    assert len(reopened.snapshots) == 3


def test_one_overwritten_block_among_100_000_files_writes_at_most_16_blocks(record_property):
    volume = make_volume(geometry_of(4, 1, 1 << 18), reserve_blocks=65536)
    client = FileClient(volume)
    client.write(1, 0, [1])
    volume.sync()
    template = root_of(volume.active, 1)
    victims = range(90_000, 90_003)
    for inode in victims:
        client.write(inode, 0, [inode])
    for inode in range(2, 100_000):
        if inode not in victims:
            put_root(volume.active, inode, type(template)(1, 0, 5, inline=b"hello"))
    volume.active.is_dirty = True
    volume.sync()
    volume.snapshot("before")
    client.write(victims[0], 0, [4])
    volume.sync()
    assert volume.active.root.n_blocks > 12_500
    meter = Meter(volume)
    for n, inode in enumerate(victims):
        assert places_taken(volume, client, inode, n + 5) <= 16
        record_property(
            "summary", f"one overwrite among 100,000 files: {meter.written} blocks to the disks, parity included"
        )
        assert meter.written <= 16  # with the zeros that fill the last stripes, and their parity
        meter.reset()


def places_taken(volume: Volume, client: FileClient, inode: int, value: int) -> int:
    """Blocks that overwriting one block of a file puts into the trees."""
    taken = 0
    take = volume.space.take

    def counted(start: int, stop: int) -> None:
        nonlocal taken
        taken += stop - start
        take(start, stop)

    volume.space.take = counted  # type: ignore[method-assign]
    client.write(inode, 0, [value])
    volume.sync()
    volume.space.take = take  # type: ignore[method-assign]
    return taken


def spread_volume() -> tuple[Volume, FileClient]:
    """Blocks in many leaves of the blockmap: 64 groups' worth of numbering, some of it used everywhere."""
    volume = make_volume(geometry_of(1, 0, 1 << 16, n_groups=24), reserve_blocks=1024)
    client = FileClient(volume)
    for inode in range(1, 60):
        client.write(inode, 0, [inode] * 1000)
        volume.sync()
    return volume, client


def test_a_difference_skips_what_two_states_share():
    volume, client = spread_volume()
    volume.snapshot("a")
    client.write(1, 0, [5])
    volume.snapshot("b")
    a, b = volume.get_snapshot("a").state, volume.get_snapshot("b").state
    n_leaves = sum(stop - start for start, stop in a.blockmap.data_extents().tolist())
    assert n_leaves >= 3
    for state in (a, b):
        state.blockmap.drop_cache()
        state.blockmap.n_reads = 0
    leaves = list(differing_leaves([a, b]))
    assert a.blockmap.n_reads + b.blockmap.n_reads <= 2 * 2  # the nodes above, not the leaves
    truth = [
        leaf
        for leaf in range(max(a.n_leaves, b.n_leaves))
        if not np.array_equal(a.plane_leaf(leaf), b.plane_leaf(leaf))
    ]
    assert set(truth) <= set(leaves)
    assert len(leaves) <= 2 + len(truth)


def test_what_a_deletion_frees_is_found_in_the_leaves_that_differ():
    volume, client = spread_volume()
    volume.snapshot("a")
    client.write(1, 0, [5])
    volume.snapshot("b")
    client.write(2, 0, [5])
    volume.snapshot("c")
    for snapshot in volume.snapshots:
        snapshot.state.blockmap.drop_cache()
        snapshot.state.blockmap.n_reads = 0
    freed = freed_by(volume, ["b"])
    reads = sum(snapshot.state.blockmap.n_reads for snapshot in volume.snapshots)
    n_leaves = sum(stop - start for start, stop in volume.committed.blockmap.data_extents().tolist())
    assert freed > 0
    assert reads <= 3 * (2 + 3) < 3 * n_leaves + 3


def test_a_commit_reads_little():
    volume, client = volume_of("16 TiB")
    client.write(1, 0, [7])
    volume.sync()
    meter = Meter(volume)
    for value in range(5):
        meter.reset()
        client.write(2, 0, [value])
        volume.sync()
        assert meter.read <= 6
