"""The main job on a tree of real size, start to end: 24,000 files and 3 GiB with --deep, a twentieth of it otherwise.

The tree goes in, is changed and snapshot nine times; levels go through files and a pipe to volumes of other geometries;
every snapshot reads back there equal in names, contents and every attribute.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from yardstick.tree import FULL, LARGE, SMALL, TreeSize, change_tree, make_tree

import blockplane as bp
from equality import Tree, differences, host_tree, volume_tree

LEVELS = ("june3 + june2 + june1", "june5 + june4 - june3", "june7 + june6 - june5")
ALTERNATIVE = "june9 + june8 - june3"


@pytest.fixture(scope="module")
def size(pytestconfig: pytest.Config) -> TreeSize:
    return FULL if pytestconfig.getoption("--deep") else SMALL


def change(files: bp.FileSystem, size: TreeSize, number: int) -> None:
    """Change everything of every kind before june2, and something before each later snapshot."""
    rng = np.random.default_rng(number)
    if number == 2:
        change_tree(files, "/tree", size)
        return
    with files.open(f"/tree/{LARGE}", "r+b", buffering=0) as large:
        for block in rng.choice(size.large_bytes // 4096, 100, replace=False).tolist():
            large.seek(block * 4096)
            large.write(rng.bytes(4096))
    files.write_bytes(f"/tree/day{number}", rng.bytes(100_000 * number))
    if number > 4:
        files.unlink(f"/tree/day{number - 2}")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, size: TreeSize) -> Iterator[bp.Volume]:
    folder = tmp_path_factory.mktemp("large")
    tree = folder / "tree"
    tree.mkdir()
    make_tree(tree, size)
    with bp.Volume.create(folder / "source", disks=5, size=max(size.n_bytes, 64 << 20)) as volume:
        files = bp.FileSystem(volume)
        files.put(tree, "/tree")
        volume.snapshot("june1")
        assert not differences(host_tree(tree), volume_tree(files, "/tree"))
        for number in range(2, 10):
            change(files, size, number)
            volume.snapshot(f"june{number}")
        yield volume


@pytest.fixture(scope="module")
def trees(source: bp.Volume, size: TreeSize) -> dict[str, Tree]:
    """What snapshots hold; of a large tree the two that differ most and the tops of two levels."""
    names = [f"june{number}" for number in (range(1, 10) if size == SMALL else (1, 2, 7, 9))]
    return {name: volume_tree(bp.FileSystem(source.get_snapshot(name)), between_volumes=True) for name in names}


def assert_equal(volume: bp.Volume, trees: dict[str, Tree], names: list[str]) -> None:
    assert [snapshot.name for snapshot in volume.snapshots] == names
    for snapshot in volume.snapshots:
        if snapshot.name in trees:
            found = volume_tree(bp.FileSystem(snapshot), between_volumes=True)
            assert not differences(trees[snapshot.name], found)
    assert bp.check(volume).problems == []


def test_levels_through_files_onto_another_geometry(source: bp.Volume, trees: dict[str, Tree], tmp_path: Path) -> None:
    for number, level in enumerate(LEVELS):
        stream = tmp_path / f"level{number}.bps"
        image = source.image(level)
        report = bp.send(image, stream)
        assert report.n_blocks == image.n_blocks == sum(image.blocks_per_disk)
        geometry = {} if number else {"disks": 4, "parity": 2, "chunk": "1MiB"}
        bp.receive(stream, tmp_path / "copy", **geometry)
        stream.unlink()
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert_equal(copy, trees, [f"june{number}" for number in range(1, 8)])
    assert bp.check(source).problems == []


def test_the_alternative_level_through_a_pipe(source: bp.Volume, trees: dict[str, Tree], tmp_path: Path) -> None:
    geometry = {"disks": 2, "parity": 0, "chunk": "disk"}
    for level in (LEVELS[0], ALTERNATIVE):
        reading, writing = os.pipe()

        def send(level: str = level, writing: int = writing) -> None:
            with os.fdopen(writing, "wb", buffering=0) as pipe:
                bp.send(source.image(level), pipe)

        sender = threading.Thread(target=send)
        sender.start()
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            bp.receive(pipe, tmp_path / "copy", **geometry)
        geometry = {}
        sender.join()
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert_equal(copy, trees, ["june1", "june2", "june3", "june8", "june9"])
