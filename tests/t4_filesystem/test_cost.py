"""What changes cost, counted in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from blockplane.filesystem import FileSystem
from blockplane.volume import Volume

N_FILES = 100_000
N_DISKS = 5
SLOTS_A_DISK = 2


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Volume]:
    """A volume with 100,000 files of 300 bytes."""
    path = tmp_path_factory.mktemp("many") / "vol"
    with Volume.create(path, disks=N_DISKS, size="256M") as made:
        fs = FileSystem(made)
        for i in range(100):
            fs.mkdir(f"/d{i}")
            parent = fs.resolver.find(f"/d{i}")
            children = []
            for n in range(N_FILES // 100):
                inode = fs.store.create(0o100644, parent)
                fs.store.write_part(inode, 0, memoryview(b"x" * 300))
                children.append((b"f%d" % n, inode))
            fs.store.fill_directory(parent, children)
            fs.store.changed()
        fs.write_bytes("/large", b"y" * (8 << 20))
    with Volume.open(path) as made:
        yield made


def written(volume: Volume) -> int:
    return volume.array.counters().written_bytes // 4096


@pytest.mark.parametrize("path", ["/d50/f500", "/large"])
def test_one_overwrite_writes_at_most_16_blocks(volume: Volume, path: str) -> None:
    fs = FileSystem(volume)
    for offset in (0, 4096, 8192) if path == "/large" else (0,):
        with fs.open(path, "r+", buffering=0) as file:
            file.seek(offset)
            file.write(b"z" * 4096)
            before, generation = written(volume), volume.info.generation
            volume.sync()
        n_fsinfo = N_DISKS * SLOTS_A_DISK * (volume.info.generation - generation)
        assert written(volume) - before - n_fsinfo <= 16


def test_a_change_of_time_reads_and_writes_little(volume: Volume) -> None:
    fs = FileSystem(volume)
    before = volume.array.counters().read_bytes
    fs.utime("/d7/f7", ns=(1, 2))
    volume.sync()
    assert (volume.array.counters().read_bytes - before) // 4096 <= 40


def test_nothing_dirty_commits_nothing(volume: Volume) -> None:
    fs = FileSystem(volume)
    fs.stat("/d1/f1")
    fs.listdir("/d1")
    volume.sync()
    before = written(volume)
    volume.sync()
    assert written(volume) == before
