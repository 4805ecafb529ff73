"""Block devices as disks: sectors of both sizes, odd and growing lengths, exclusive, write-protected."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from blockplane.disks import FileDisk, Geometry, GroupRecord, aligned_buffer, assemble, make_labels, write_labels
from blockplane.model import (
    DiskDuplicateError,
    DiskError,
    DiskMisplacedError,
    DiskShortError,
    VolumeInUseError,
)
from loopdevices import loop_device

MiB = 1 << 20


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.fixture
def device(tmp_path):
    """Makes devices that are gone when the test is over."""
    with ExitStack() as stack:

        def make(size: int = MiB, **options) -> str:
            path = tmp_path / f"backing{len(os.listdir(tmp_path))}"
            return stack.enter_context(loop_device(path, size, **options))

        yield make


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize("shift", [0, 8, 512])
def test_what_is_written_past_the_page_cache_is_read(device, sector, shift):
    with closing(FileDisk.open(device(sector=sector))) as disk:
        assert (disk.direct, disk.n_blocks) == (True, 256)
        whole = aligned_buffer(10 * 4096)
        source = whole[shift : shift + 8 * 4096]
        source[:] = np.random.default_rng(1).integers(0, 256, source.size, dtype=np.uint8)
        disk.write_plan(ints(0, 251), ints(3, 5), source, ints(5, 0))
        disk.flush()
        target = aligned_buffer(10 * 4096)[shift : shift + 8 * 4096]
        disk.read_plan(ints(251, 0), ints(5, 3), target, ints(0, 5))
        assert target.tobytes() == source.tobytes()
        with pytest.raises(DiskShortError):
            disk.write_plan(ints(252), ints(5), source, ints(0))


def test_sectors_behind_the_last_whole_block_do_not_count(device):
    with closing(FileDisk.open(device(MiB + 7 * 512))) as disk:
        assert (disk.direct, disk.n_blocks) == (True, 256)
        disk.write_plan(ints(255), ints(1), aligned_buffer(4096), ints(0))
        with pytest.raises(DiskShortError):
            disk.read_plan(ints(256), ints(1), aligned_buffer(4096), ints(0))


def test_a_write_protected_device_is_read_and_refused_to_writers(device):
    name = device(read_only=True)
    with closing(FileDisk.open(name, writable=False)) as disk:
        disk.read_plan(ints(0), ints(256), aligned_buffer(MiB), ints(0))
    with pytest.raises(DiskError, match=rf"^{name}: a read-only device$"):
        FileDisk.open(name)
    FileDisk.open(name, writable=False).close()


def test_a_device_has_one_writer(device):
    name = device()
    with closing(FileDisk.open(name)), pytest.raises(VolumeInUseError, match=f"{name}: in use"):
        FileDisk.open(name)
    mount = os.open(name, os.O_RDONLY | os.O_EXCL)  # what mounting, swapping and RAID do
    try:
        with pytest.raises(VolumeInUseError, match=f"{name}: in use"):
            FileDisk.open(name)
    finally:
        os.close(mount)
    FileDisk.open(name).close()


def test_a_watcher_that_looks_at_the_device_is_waited_for(device, monkeypatch):
    name = device()
    watcher = os.open(name, os.O_RDONLY)
    fcntl.flock(watcher, fcntl.LOCK_SH)
    waits = []

    def leave(seconds: float) -> None:
        waits.append(seconds)
        fcntl.flock(watcher, fcntl.LOCK_UN)

    monkeypatch.setattr(time, "sleep", leave)
    try:
        FileDisk.open(name).close()
    finally:
        os.close(watcher)
    assert len(waits) == 1


def label(names: list[str]) -> None:
    disks = [FileDisk.open(name) for name in names]
    try:
        geometry = Geometry((GroupRecord(0, len(disks) - 1, 1, 64, 192, tuple(range(len(disks)))),))
        ids = [bytes([i + 1]) * 16 for i in range(len(disks))]
        write_labels(disks, make_labels(geometry, b"v" * 16, ids, [disk.n_blocks for disk in disks]), 0)
    finally:
        for disk in disks:
            disk.close()


def test_devices_are_known_by_their_labels(device, tmp_path):
    names = [device(sector=512), device(sector=4096), device(2 * MiB)]
    label(names)
    assemble(names).close()
    with pytest.raises(DiskMisplacedError, match=f"^{names[1]}: stands in place of disk 0 of group 0"):
        assemble([names[1], names[0], names[2]])
    found = assemble([names[2], names[0], names[1]], in_order=False)
    assert [disk.path for disk in found.disks] == names
    found.close()
    other = tmp_path / "another name of the device"
    os.mknod(other, 0o600 | 0o060000, os.stat(names[0]).st_rdev)
    with pytest.raises(DiskDuplicateError, match="the same disk as"):
        assemble([*names, str(other)])


def test_a_device_that_became_longer_still_belongs(device, tmp_path):
    names = [device(), device()]
    label(names)
    backing = Path(tmp_path, "backing0")
    os.truncate(backing, 3 * MiB)
    subprocess.run(["losetup", "--set-capacity", names[0]], check=True)
    found = assemble(names)
    assert [disk.n_blocks for disk in found.disks] == [768, 256]
    found.close()
