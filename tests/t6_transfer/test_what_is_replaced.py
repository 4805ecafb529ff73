"""What a stream must not take the place of: disks of volumes, what belongs to volumes, streams that it is made from."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError, UsageError
from blockplane.stream.folder import HostFolder

DISK = "is a disk of a volume: what is on it would be lost"


@pytest.fixture
def source(tmp_path, rng):
    with bp.Volume.create(tmp_path / "pool", disks=2, size="8M") as volume:
        bp.FileSystem(volume).write_bytes("/a", rng.bytes(200_000))
        volume.snapshot("a")
        bp.FileSystem(volume).write_bytes("/b", rng.bytes(200_000))
        volume.snapshot("b")
        yield volume


@pytest.fixture
def other(tmp_path) -> Path:
    """Another volume, closed; one of its disks has lost the label at its head."""
    with bp.Volume.create(tmp_path / "other", disks=2, size="8M") as volume:
        bp.FileSystem(volume).write_bytes("/precious", b"precious")
    with (tmp_path / "other/disks/1").open("r+b") as disk:
        disk.write(bytes(4096))
    return tmp_path / "other"


def of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["disks/0", "disks/1"])
@pytest.mark.parametrize("which", ["pool", "other"])
def test_no_stream_replaces_a_disk(source, other, tmp_path, which, name):
    disk, before = tmp_path / which / name, of(other)
    (tmp_path / "link").symlink_to(disk)
    for path in (disk, tmp_path / "link"):
        with pytest.raises(RefusedError, match=DISK):
            bp.send(source.image("a"), path)
    bp.send(source.image("a"), tmp_path / "a.bps")
    bp.send(source.image("b - a"), tmp_path / "b.bps")
    with pytest.raises(RefusedError, match=DISK):
        bp.merge_streams(tmp_path / "a.bps", tmp_path / "b.bps", sink=disk)
    assert of(other) == before
    assert bp.check(source).problems == []


def test_no_piece_digest_or_half_written_file_replaces_a_disk(source, other, tmp_path):
    for name, options in (
        ("x.000", {"split": 1 << 16}),
        ("x.007", {"split": 1 << 16}),
        ("x.sha256", {"digests": True}),
        ("x.partial", {}),
        ("x.000.partial", {"split": 1 << 16, "resume": True}),
    ):
        shutil.copy(other / "disks/0", tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(RefusedError, match=DISK):
            bp.send(source.image("a"), tmp_path / "x", **options)
        assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()


@pytest.mark.parametrize("name", ["volume.toml", "lock"])
def test_what_belongs_to_a_volume_stays(source, other, name):
    before = of(other)
    with pytest.raises(RefusedError, match=f"{name} belongs to the volume"):
        bp.send(source.image("a"), other / name)
    assert of(other) == before
    bp.send(source.image("a"), other / "a.bps")


def test_a_merged_stream_replaces_no_piece_of_a_member(source, tmp_path):
    bp.send(source.image("a"), tmp_path / "m", split=1 << 16)
    bp.send(source.image("b - a"), tmp_path / "b.bps")
    before = of(tmp_path)
    for number in (0, 1, 2):
        with pytest.raises(UsageError, match=rf"m\.00{number} would be replaced by what is merged from it"):
            bp.merge_streams(tmp_path / "m", tmp_path / "b.bps", sink=tmp_path / f"m.00{number}")
    with pytest.raises(RefusedError, match=r"m\.001 is there, of a stream that was split"):
        bp.send(source.image("b"), tmp_path / "m.000")
    with pytest.raises(RefusedError, match=r"m\.002 is a piece of a stream that was split"):
        bp.send(source.image("b"), tmp_path / "m.002")
    assert of(tmp_path) == before
    assert bp.verify_streams(tmp_path / "m", tmp_path / "b.bps").ok


def test_a_name_that_ends_like_a_pieces_is_free_beside_streams_of_their_own(source, tmp_path):
    for number in (1, 0):
        bp.send(source.image("a"), tmp_path / f"day.{number:03}")
        bp.send(source.image("a"), tmp_path / f"day.{number:03}")
    assert [bp.verify_streams(tmp_path / f"day.00{i}").problems for i in range(2)] == [[], []]
    assert np.array_equal(*(bp.stream_map(tmp_path / f"day.00{i}").image.words() for i in range(2)))


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_stream_is_its_owners_alone_unless_that_was_changed(source, tmp_path):
    """It may hold all that the disks do, which others cannot read."""
    path, old = tmp_path / "a.bps", os.umask(0o022)
    try:
        bp.send(source.image("a"), path, digests=True)
        assert (mode_of(path), mode_of(tmp_path / "a.bps.sha256")) == (0o600, 0o644)
        bp.send(source.image("a"), tmp_path / "b", split=1 << 16)
        assert {mode_of(piece) for piece in tmp_path.glob("b.*")} == {0o600}
        path.chmod(0o640)
        bp.send(source.image("b"), path)
        assert mode_of(path) == 0o640
        bp.write_tape(source.image("a"), [tmp_path / "a.tap"])
        assert mode_of(tmp_path / "a.tap") == 0o600
    finally:
        os.umask(old)


def test_digests_are_those_of_the_stream_beside_them(source, tmp_path):
    path, digests = tmp_path / "a.bps", tmp_path / "a.bps.sha256"
    for options in ({"digests": True}, {}, {"digests": True}, {"digests": True}):
        bp.send(source.image("a"), path, **options)
        assert digests.exists() is bool(options)
        if options:
            assert digests.read_text().split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
    bp.send(source.image("a"), tmp_path / "b", split=1 << 16, digests=True)
    bp.send(source.image("a"), tmp_path / "b", split=1 << 17)
    assert not list(tmp_path.glob("b*sha256*"))


def test_digests_get_their_name_after_the_stream(source, tmp_path, monkeypatch):
    """Where it ends between the two there are none, rather than another stream's."""
    path, names = tmp_path / "a.bps", []
    bp.send(source.image("a"), path, digests=True)
    rename = HostFolder.rename
    monkeypatch.setattr(HostFolder, "rename", lambda self, old, new: (names.append(new), rename(self, old, new)))
    bp.send(source.image("b"), path, digests=True)
    assert names == ["a.bps", "a.bps.sha256"]
