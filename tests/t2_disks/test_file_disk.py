"""Files as disks: direct and buffered, aligned and not, exclusive."""

from __future__ import annotations

import contextlib
import fcntl
import os

import numpy as np
import pytest

from blockplane.disks import Disk, FileDisk, aligned_buffer
from blockplane.disks.disk import address
from blockplane.model import DiskError, DiskMissingError, DiskShortError, VolumeInUseError
from blockplane.model.checks import fresh_checks


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.fixture(params=[True, False], ids=["direct", "buffered"])
def disk(request, tmp_path):
    disk = FileDisk.create(str(tmp_path / "disk"), 100, direct=request.param)
    yield disk
    disk.close()


@pytest.mark.parametrize("shift", [0, 8, 512])
def test_what_is_written_is_read(disk, shift):
    whole = aligned_buffer(10 * 4096)
    source = whole[shift : shift + 8 * 4096]
    source[:] = np.random.default_rng(1).integers(0, 256, source.size, dtype=np.uint8)
    disk.write_plan(ints(5, 90), ints(3, 5), source, ints(5, 0))
    disk.flush()
    target = aligned_buffer(10 * 4096)[shift : shift + 9 * 4096]
    expected = source.reshape(-1, 4096)
    numbers = ints(1, 2, 3)
    checks = fresh_checks(expected[5:8].reshape(-1), numbers)
    assert disk.read_plan(ints(5), ints(3), target, ints(6), numbers, checks) == -1
    assert (target.reshape(-1, 4096)[6:] == expected[5:8]).all()
    assert not target.reshape(-1, 4096)[:6].any()
    checks[1] ^= 1
    assert disk.read_plan(ints(5), ints(3), target, ints(0), numbers, checks) == 1
    disk.read_plan(ints(90, 4), ints(5, 1), target, ints(1, 0))
    assert (target.reshape(-1, 4096)[1:6] == expected[:5]).all()
    assert not target[:4096].any()
    assert disk.counters.written_bytes == 8 * 4096
    assert disk.counters.write_requests == 2
    assert disk.counters.flushes == 1


def test_gathered_buffers_may_be_unaligned(disk):
    parts = [np.full(3 * 4096 + 8, i + 1, dtype=np.uint8)[8 * (i % 2) :][: 3 * 4096] for i in range(4)]
    disk.write_gathered(ints(0, 1, 2, 50), ints(1, 1, 2, 1), parts, ints(2, 0, 1, 0))
    target = aligned_buffer(100 * 4096)
    disk.read_plan(ints(0), ints(100), target, ints(0))
    first_bytes = target.reshape(-1, 4096)[:, 0]
    assert first_bytes[:5].tolist() == [1, 2, 3, 3, 0]
    assert first_bytes[50] == 4


def test_read_only_data_can_be_written(disk):
    data = np.frombuffer(bytes([7]) * 4096, dtype=np.uint8)
    disk.write_plan(ints(1), ints(1), data, ints(0))
    target = aligned_buffer(4096)
    disk.read_plan(ints(1), ints(1), target, ints(0))
    assert target.tobytes() == data.tobytes()


def test_nothing_reaches_past_the_end(disk):
    buffer = aligned_buffer(2 * 4096)
    with pytest.raises(DiskShortError, match="disk: ends before"):
        disk.read_plan(ints(99), ints(2), buffer, ints(0))
    with pytest.raises(DiskShortError, match="disk: ends before"):
        disk.write_plan(ints(99), ints(2), buffer, ints(0))
    with pytest.raises(DiskShortError, match="disk: ends before"):
        disk.write_gathered(ints(99), ints(2), [buffer], ints(0))
    assert os.path.getsize(disk.path) == 100 * 4096


def test_a_disk_has_one_holder(disk):
    with pytest.raises(VolumeInUseError, match=r"disk: in use"):
        FileDisk.open(disk.path)
    FileDisk.open(disk.path, lock=False).close()
    disk.close()
    FileDisk.open(disk.path).close()
    disk.close()


def test_readers_share_a_disk_and_keep_writers_out(disk):
    disk.close()
    with contextlib.closing(FileDisk.open(disk.path, writable=False)) as first:
        with contextlib.closing(FileDisk.open(disk.path, writable=False)) as second:
            assert (first.is_locked, second.is_locked) == (True, True)
            with pytest.raises(VolumeInUseError):
                FileDisk.open(disk.path)
        with pytest.raises(DiskError, match="write failed"):
            first.write_plan(ints(0), ints(1), aligned_buffer(4096), ints(0))
    FileDisk.open(disk.path).close()


def test_reads_of_ones_own_keep_no_disk_from_being_written(disk):
    disk.close()
    with contextlib.closing(FileDisk.open(disk.path, writable=False)) as mine:
        under_way = os.dup(mine._fd)  # what a read does that has begun: it keeps open what it reads
        try:
            other = FileDisk.open(disk.path, writable=False)
            with contextlib.closing(other), pytest.raises(VolumeInUseError):
                mine.take_for_writing()
            mine.take_for_writing()
            with pytest.raises(VolumeInUseError):
                FileDisk.open(disk.path, writable=False)
        finally:
            os.close(under_way)
        mine.write_plan(ints(0), ints(1), aligned_buffer(4096), ints(0))
    FileDisk.open(disk.path).close()


def test_files_are_private_new_and_sparse(tmp_path):
    path = str(tmp_path / "disk")
    FileDisk.create(path, 1 << 20).close()
    status = os.stat(path)
    assert status.st_mode & 0o777 == 0o600
    assert status.st_size == 1 << 32
    assert status.st_blocks < 100
    with pytest.raises(DiskError, match="File exists"):
        FileDisk.create(path, 10)
    os.symlink(tmp_path / "nowhere", tmp_path / "link")
    with pytest.raises(DiskError, match="cannot be created"):
        FileDisk.create(str(tmp_path / "link"), 10)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(DiskMissingError, match="gone: cannot be opened: No such file"):
        FileDisk.open(str(tmp_path / "gone"))
    with pytest.raises(DiskError, match="neither a file nor a block device"):
        FileDisk.open(str(tmp_path))


def test_a_read_only_disk_refuses_writes(tmp_path):
    path = str(tmp_path / "disk")
    FileDisk.create(path, 10).close()
    disk = FileDisk.open(path, writable=False)
    with pytest.raises(DiskError, match="write failed: Bad file descriptor"):
        disk.write_plan(ints(0), ints(1), aligned_buffer(4096), ints(0))
    disk.close()


def test_a_file_disk_is_a_disk(disk):
    as_disk: Disk = disk
    assert as_disk.n_blocks == 100


def test_an_odd_tail_of_bytes_does_not_count(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(5 * 4096 + 100))
    disk = FileDisk.open(str(path))
    assert disk.n_blocks == 5
    disk.close()


def test_aligned_buffers():
    for n_bytes in (0, 1, 4096, 1 << 20):
        buffer = aligned_buffer(n_bytes)
        assert buffer.shape == (n_bytes,)
        assert address(buffer) % 4096 == 0
        assert buffer.flags.writeable


def generation_of(path) -> bytes:
    """What the file system says by FS_IOC_GETVERSION; nothing where it says nothing."""
    with open(path, "rb") as file, contextlib.suppress(OSError):
        return fcntl.ioctl(file, 0x80087601, bytes(8))
    return b""


def test_a_file_in_the_place_of_another_is_another(tmp_path):
    """Also where it gets the same inode number, as far as the file system tells; by another name it is the same."""
    found, known = [], set()
    for number in range(20):
        with contextlib.closing(FileDisk.create(str(tmp_path / "disk"), 64)) as disk:
            found.append(disk.file_id)
        os.rename(tmp_path / "disk", tmp_path / "moved")
        with contextlib.closing(FileDisk.open(str(tmp_path / "moved"), writable=bool(number % 2))) as disk:
            assert disk.file_id == found[-1] != bytes(16)
        known.add((os.stat(tmp_path / "moved").st_ino, generation_of(tmp_path / "moved")))
        os.unlink(tmp_path / "moved")
    assert len(set(found)) == len(known)
