"""Snapshots of volumes that nothing was written to yet: rolled back to, sent, received."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockplane as bp


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[bp.Volume]:
    with bp.Volume.create(tmp_path / "volume", disks=3, size="8M") as made:
        yield made


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("drop_changes", [False, True])
def test_rollback_to_a_snapshot_of_nothing(volume, is_open, drop_changes):
    files = bp.FileSystem(volume) if is_open else None
    volume.snapshot("s0")
    files = files or bp.FileSystem(volume)
    files.write_bytes("/a", b"1")
    volume.snapshot("s1")
    volume.rollback("s0", drop_changes=drop_changes)
    assert bp.check(volume).problems == []
    assert files.listdir("/") == bp.FileSystem(volume).listdir("/") == []
    files.write_bytes("/b", b"2")
    volume.sync()
    assert bp.check(volume).problems == []
    assert bp.FileSystem(volume.get_snapshot("s1")).read_bytes("/a") == b"1"


def test_an_increment_of_nothing_onto_nothing(volume, tmp_path):
    bp.FileSystem(volume)
    streams = []
    for name, text in (("s1", "s1"), ("s2", "s2 - s1")):
        volume.snapshot(name)
        streams.append(io.BytesIO())
        bp.send(volume.image(text), streams[-1])
        streams[-1].seek(0)
    bp.receive(streams[0], tmp_path / "copy")
    with bp.Volume.open(tmp_path / "copy") as copy:
        files = bp.FileSystem(copy)
        assert files.listdir("/") == []
        assert bp.receive(streams[1], copy).top == "s2"
        assert files.listdir("/") == []
        assert bp.check(copy).problems == []
        files.write_bytes("/a", b"1")
        copy.sync()
        assert bp.check(copy).problems == []
