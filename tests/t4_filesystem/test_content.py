"""File contents against a bytearray and a set of blocks that were written."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blockplane.filesystem import FileSystem
from blockplane.filesystem.errors import InvalidRequestError, TooLargeError
from blockplane.model import NoSpaceError
from blockplane.volume import Volume

BLOCK = 4096
offsets = st.one_of(st.integers(0, 600), st.integers(0, 400_000), st.integers(0, 96).map(lambda n: n * BLOCK))
lengths = st.one_of(st.integers(1, 300), st.integers(1, 200_000), st.integers(1, 40).map(lambda n: n * BLOCK))


class LikeABytearray(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="blockplane-test-"))
        self.volume = Volume.create(self.base / "vol", disks=3, size="32M")
        self.fs = FileSystem(self.volume)
        self.fs.write_bytes("/f", b"")
        self.model = bytearray()
        self.written: set[int] = set()
        self.counter = 0

    def teardown(self) -> None:
        self.volume.sync()
        report = self.fs.check()
        assert report.problems == []
        self.volume.close()
        shutil.rmtree(self.base)

    @rule(offset=offsets, length=lengths)
    def write(self, offset: int, length: int) -> None:
        self.counter += 1
        data = (self.counter.to_bytes(4, "little") * (length // 4 + 1))[:length]
        with self.fs.open("/f", "r+", buffering=0) as file:
            file.seek(offset)
            assert file.write(data) == length
        if len(self.model) < offset + length:
            self.model.extend(bytes(offset + length - len(self.model)))
        self.model[offset : offset + length] = data
        self.written.update(range(offset // BLOCK, -(-(offset + length) // BLOCK)))

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.fs.truncate("/f", size)
        self.model = self.model[:size] + bytearray(max(0, size - len(self.model)))
        self.written = {block for block in self.written if block * BLOCK < size}

    @rule(offset=offsets, length=lengths)
    def read(self, offset: int, length: int) -> None:
        assert self.fs.read_bytes("/f", offset, length) == self.model[offset : offset + length]

    @rule()
    def commit(self) -> None:
        self.volume.sync()

    @rule()
    def reopen(self) -> None:
        self.volume.close()
        self.volume = Volume.open(self.base / "vol")
        self.fs = FileSystem(self.volume)

    @invariant()
    def size_and_holes(self) -> None:
        status = self.fs.stat("/f")
        assert status.st_size == len(self.model)
        ranges = self.fs.data_ranges("/f")
        blocks = {i for start, stop in ranges for i in range(start // BLOCK, -(-stop // BLOCK))}
        if len(self.model) > 256:
            assert self.written <= blocks
            assert status.st_blocks == 8 * len(blocks)
        for block in blocks - self.written:
            assert not any(self.model[block * BLOCK : (block + 1) * BLOCK])


TestLikeABytearray = LikeABytearray.TestCase
TestLikeABytearray.settings = settings(stateful_step_count=25)


def test_whole_content_after_reopening(tmp_path: Path) -> None:
    pieces = {0: b"a" * 255, 5000: b"b" * 70_000, 1 << 20: b"c" * 4096, (3 << 20) + 7: b"d"}
    with Volume.create(tmp_path / "vol", disks=3, size="64M") as volume, FileSystem(volume).open("/f", "w") as file:
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)
    with Volume.open(tmp_path / "vol") as volume:
        content = FileSystem(volume).read_bytes("/f")
    expected = bytearray((3 << 20) + 8)
    for offset, data in pieces.items():
        expected[offset : offset + len(data)] = data
    assert content == expected


def test_a_file_past_a_tebibyte(volume: Volume, fs: FileSystem) -> None:
    far = (1 << 41) + 12345
    with fs.open("/f", "w+") as file:
        file.write(b"start")
        file.seek(far)
        file.write(b"end")
        file.flush()
        assert file.seek(4096, os.SEEK_DATA) == far - far % BLOCK
        assert file.seek(0, os.SEEK_HOLE) == BLOCK
        assert file.seek(far, os.SEEK_HOLE) == far + 3
        with pytest.raises(OSError) as caught:
            file.seek(far + 3, os.SEEK_DATA)
        assert caught.value.errno == 6
    volume.sync()
    assert fs.read_bytes("/f", far - 2) == b"\0\0end"
    assert fs.stat("/f").st_blocks == 16
    assert fs.check().problems == []
    fs.truncate("/f", 5)
    assert fs.read_bytes("/f") == b"start"
    assert fs.stat("/f").st_blocks == 8


def test_sizes_past_the_limit_are_refused(fs: FileSystem) -> None:
    fs.write_bytes("/f", b"x")
    with pytest.raises(TooLargeError):
        fs.truncate("/f", (1 << 52) + 1)
    with fs.open("/f", "r+", buffering=0) as file:
        file.seek(1 << 52)
        with pytest.raises(TooLargeError):
            file.write(b"x")
        with pytest.raises(InvalidRequestError):
            file.seek(-1)
    assert fs.read_bytes("/f") == b"x"


def test_tiny_files_take_no_block(volume: Volume, fs: FileSystem) -> None:
    fs.write_bytes("/f", b"x" * 256)
    fs.symlink("y" * 256, "/l")
    volume.sync()
    assert (fs.stat("/f").st_blocks, fs.stat("/f").st_size) == (0, 256)
    assert fs.lstat("/l").st_blocks == 0
    with fs.open("/f", "a") as file:
        file.write(b"z")
    assert fs.stat("/f").st_blocks == 8
    assert fs.read_bytes("/f") == b"x" * 256 + b"z"
    fs.write_bytes("/f", b"small again")
    assert fs.stat("/f").st_blocks == 0
    volume.sync()
    assert fs.check().problems == []


def test_modes_of_open(fs: FileSystem) -> None:
    with fs.open("/f", "x") as file:
        file.write(b"0123456789")
    with pytest.raises(FileExistsError):
        fs.open("/f", "x")
    with fs.open("/f", "r+") as file:
        assert file.read(3) == b"012"
        file.write(b"xyz")
    assert fs.read_bytes("/f") == b"012xyz6789"
    with fs.open("/f", "ab") as file:
        file.write(b"!")
    assert fs.read_bytes("/f") == b"012xyz6789!"
    with fs.open("/f", "w+b") as file:
        file.write(b"new")
        file.seek(0)
        assert file.read() == b"new"
    with fs.open("/f") as file, pytest.raises(OSError, match="write"):
        file.write(b"")
    for mode in ("", "rw", "t", "rt", "q"):
        with pytest.raises(ValueError, match="is not one of"):
            fs.open("/f", mode)


def test_a_full_volume_keeps_what_it_had_and_can_delete(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "vol", disks=1, size="16M") as volume:
        fs = FileSystem(volume)
        fs.write_bytes("/kept", b"k" * 100_000)
        volume.sync()
        file = fs.open("/big", "w", buffering=0)
        with pytest.raises(NoSpaceError):
            file.write(b"x" * (100 << 20))
        file.close()
        volume.sync()
        assert fs.read_bytes("/kept") == b"k" * 100_000
        assert fs.check().problems == []
        fs.unlink("/big")
        fs.write_bytes("/second", b"s" * (4 << 20))
        volume.sync()
        assert fs.read_bytes("/second") == b"s" * (4 << 20)
        assert fs.check().problems == []


@pytest.mark.parametrize("offset", [5000, BLOCK])
def test_a_write_that_finds_no_room_leaves_nothing_behind_the_end(tmp_path: Path, fill_up: Any, offset: int) -> None:
    with Volume.create(tmp_path / "vol", disks=1, size="16M") as volume:
        fs = FileSystem(volume)
        fs.write_bytes("/f", b"a" * 5000)
        volume.sync()
        fill_up(volume, 40)
        n_refused = 0
        for n_blocks in range(20, 44):  # room ends before, at and in each part of a write
            with fs.open("/f", "r+", buffering=0) as file:
                file.seek(offset)
                try:
                    file.write(b"B" * (n_blocks * BLOCK + 1))
                except NoSpaceError:
                    n_refused += 1
                    assert (fs.stat("/f").st_size, fs.stat("/f").st_blocks) == (5000, 16)
                    fs.truncate("/f", 1 << 20)
                    assert fs.read_bytes("/f", 5000) == bytes((1 << 20) - 5000)
            assert fs.check().problems == []
            fs.truncate("/f", 5000)
        assert 4 < n_refused < 24


@pytest.mark.parametrize("size", [0, 10, 3 << 20])
def test_a_file_is_cut_on_a_full_volume(tmp_path: Path, fill_up: Any, size: int) -> None:
    with Volume.create(tmp_path / "vol", disks=1, size="16M") as volume:
        fs = FileSystem(volume)
        data = os.urandom(4 << 20)
        fs.write_bytes("/f", data)
        volume.sync()
        fill_up(volume, 0)
        fs.truncate("/f", size)
        volume.sync()
        assert fs.read_bytes("/f") == data[:size]
        assert fs.check().problems == []


def test_a_volume_full_of_tiny_files_commits_and_deletes(tmp_path: Path) -> None:
    with Volume.create(tmp_path / "vol", disks=1, size="16M") as volume:
        fs = FileSystem(volume)
        made: list[str] = []

        def fill() -> None:
            for i in range(100_000):
                fs.mkdir(f"/{i}")
                made.append(str(i))
                fs.write_bytes(f"/{i}/file", b"x" * 200)

        with pytest.raises(NoSpaceError):
            fill()
        volume.sync()
        assert len(made) > 500
        assert fs.check().problems == []
        for name in made[::2]:
            fs.rmtree(f"/{name}")
        volume.sync()
        assert fs.check().problems == []
        fs.mkdir("/again")
        assert sorted(fs.listdir()) == sorted([*made[1::2], "again"])
