"""Where get writes what is no new file, and what it does about what cannot be read."""

from __future__ import annotations

import os
import stat
import threading
import tty
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.filesystem.errors import ExistsError
from blockplane.model.errors import VolumeDamagedError

DATA = bytes(range(256)) * 4096


@pytest.fixture
def files(tmp_path):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="24MiB", parity=0) as volume:
        files = bp.FileSystem(volume)
        files.mkdir("/d")
        for name in ("a", "b", "c"):
            files.write_bytes(f"/d/{name}", name.encode() * 500_000)
            files.write_bytes(f"/d/small {name}", name.encode() * 5_000)
        files.link("/d/b", "/d/b again")
        files.write_bytes("/data", DATA)
        volume.snapshot("one")
        yield files


def damage(folder: Path, volume: bp.Volume, content: bytes) -> None:
    """Flip a bit of every block that has some content."""
    volume.sync()
    for disk in folder.iterdir():
        data = bytearray(disk.read_bytes())
        at = data.find(content)
        while at >= 0:
            data[at] ^= 1
            at = data.find(content, at + 1)
        with open(disk, "r+b") as file:
            file.write(data)


def test_what_is_damaged_is_named_and_the_rest_is_copied(files, tmp_path):
    files.write_bytes("/d/b", b"b" * 250_000 + b"here it is" + b"b" * 249_990)
    files.write_bytes("/d/small c", b"the small one" + b"c" * 5_000)
    volume = files.store.volume
    for content in (b"here it is", b"the small one"):
        damage(tmp_path / "pool/disks", volume, content)
    report = files.get("/d", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "c", "small a", "small b"]
    assert {os.path.basename(path) for path, _ in report.skipped} == {"b", "b again", "small c"}
    assert all("checksum" in why for _, why in report.skipped)
    assert (tmp_path / "out/a").read_bytes() == b"a" * 500_000
    with pytest.raises(VolumeDamagedError, match="checksum"):
        files.get("/d/b", tmp_path / "alone")
    assert not (tmp_path / "alone").exists()


def test_of_inodes_that_are_damaged_the_others_are_copied(files, tmp_path):
    """Also of one directory: 16 inodes lie in a block."""
    volume = files.store.volume
    files.mkdir("/d/sub")
    for number in range(100):
        files.write_bytes(f"/d/sub/{number:03}", b"content %03d" % number)
    damage(tmp_path / "pool/disks", volume, b"content 050")  # which lies in its inode
    volume.close()
    with bp.Volume.open(tmp_path / "pool", writable=False) as volume:
        report = bp.FileSystem(volume).get("/d/sub", tmp_path / "out")
    lost = {os.path.basename(path) for path, _ in report.skipped}
    assert "050" in lost
    assert 0 < len(lost) <= 16
    assert sorted(os.listdir(tmp_path / "out")) == sorted({f"{number:03}" for number in range(100)} - lost)


def test_a_directory_that_is_damaged_is_named(files, tmp_path):
    volume = files.store.volume
    files.mkdir("/d/sub")
    for number in range(300):
        files.write_bytes(f"/d/sub/a file of many of them {number:03}", b"x")
    damage(tmp_path / "pool/disks", volume, b"a file of many of them 250")
    volume.close()
    with bp.Volume.open(tmp_path / "pool", writable=False) as volume:
        report = bp.FileSystem(volume).get("/d", tmp_path / "out")
    assert {os.path.basename(path) for path, _ in report.skipped} == {"sub"}
    assert (tmp_path / "out/c").read_bytes() == b"c" * 500_000


def test_a_file_goes_into_a_pipe_and_the_pipe_stays(files, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reading.start()
    report = files.get("/data", tmp_path / "pipe")
    reading.join()
    assert (found, report.n_files, report.n_bytes) == ([DATA], 1, len(DATA))
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_device_is_written_into_and_stays(files):
    """A terminal: what a user has of devices, and what nobody can remove."""
    near, far = os.openpty()
    tty.setraw(far)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: [found.append(os.read(near, 5_000)) for _ in iter(found_all, True)])

    def found_all() -> bool:
        return sum(map(len, found)) >= 5_000

    reading.start()
    assert files.get("/d/small a", os.ttyname(far)).n_files == 1
    reading.join()
    assert b"".join(found) == b"a" * 5_000
    with pytest.raises(ExistsError, match="what is there is no file"):
        files.get("/d", os.ttyname(far))
    os.close(near)
    os.close(far)


def test_a_link_that_is_named_is_followed(files, tmp_path):
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there")
    files.get("/data", tmp_path / "link")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "there").read_bytes()) == (True, DATA)
    (tmp_path / "nowhere").symlink_to("gone")
    with pytest.raises(ExistsError, match="leads nowhere"):
        files.get("/data", tmp_path / "nowhere")
    assert (tmp_path / "nowhere").is_symlink()


def test_a_damaged_stream_is_read_as_far_as_it_is_right(files, tmp_path):
    volume = files.store.volume
    with bp.FileSystem(volume).open("/d/c", "r+b") as file:
        file.seek(200_000)
        file.write(b"look here")
    volume.snapshot("two")
    bp.send(volume.image("two"), tmp_path / "two.bps")
    data = bytearray((tmp_path / "two.bps").read_bytes())
    data[data.find(b"look here")] ^= 1
    (tmp_path / "two.bps").write_bytes(data)
    with bp.open_stream(tmp_path / "two.bps") as chain:
        report = bp.FileSystem(chain).get("/", tmp_path / "out")
    assert [os.path.basename(path) for path, _ in report.skipped] == ["c"]
    assert np.frombuffer((tmp_path / "out/data").read_bytes(), np.uint8).tobytes() == DATA
