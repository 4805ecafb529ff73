"""put of what does not fit: what it was to replace stays."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import NoSpaceError

MIB = 1 << 20


@pytest.fixture
def volume(tmp_path: Path):
    with bp.Volume.create(tmp_path / "pool", disks=1, size="16MiB") as made:
        yield made


def put(volume: bp.Volume, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    bp.FileSystem(volume).put(path, "/")


@pytest.mark.parametrize("has_snapshot", [False, True])
@pytest.mark.parametrize("size", [12, 18, 70])  # more than is free, than the volume has, than a batch
def test_a_file_that_does_not_fit_leaves_the_old_one(volume, rng, tmp_path, has_snapshot, size):
    old = rng.bytes(6 * MIB)
    put(volume, tmp_path / "db", old)
    if has_snapshot:
        volume.snapshot("june1")
    elif size == 12:
        put(volume, tmp_path / "other", rng.bytes(2 * MIB))
        size = 13
    with pytest.raises(NoSpaceError):
        put(volume, tmp_path / "db", rng.bytes(size * MIB))
    assert bp.FileSystem(volume).read_bytes("/db") == old
    assert bp.check(volume).problems == []


def test_what_fits_in_the_place_of_the_old_one_replaces_it(volume, rng, tmp_path):
    for _ in range(4):
        put(volume, tmp_path / "db", data := rng.bytes(9 * MIB))
        assert bp.FileSystem(volume).read_bytes("/db") == data
    assert bp.check(volume).problems == []


def test_a_tree_of_which_all_is_replaced(volume, rng, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for _ in range(3):
        for number in range(12):
            (tree / str(number)).write_bytes(rng.bytes(MIB))
        bp.FileSystem(volume).put(tree, "/")
    assert all(bp.FileSystem(volume).read_bytes(f"/tree/{n}") == (tree / str(n)).read_bytes() for n in range(12))
    assert bp.check(volume).problems == []
