"""A snapshot whose root block is damaged is lost; the volume goes on beside it, and it can be deleted."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import blockplane as bp

HEAD_BLOCKS = 16


def flip(volume: bp.Volume, number: int) -> None:
    """Close a volume and change bytes of one of its blocks."""
    disk, dbn = volume.geometry.to_disk(np.array([number]))
    path = volume.array.disks[int(disk[0])].path
    volume.close()
    with open(path, "r+b") as file:
        file.seek((HEAD_BLOCKS + int(dbn[0])) * 4096 + 100)
        file.write(b"damage")


def test_a_volume_goes_on_beside_a_lost_snapshot(tmp_path: Path) -> None:
    volume = bp.Volume.create(tmp_path / "pool", disks=5, size="32M")
    files = bp.FileSystem(volume)
    for number in (1, 2, 3):
        files.write_bytes(f"/file{number}", bytes([number]) * 300_000)
        files.write_bytes("/changing", bytes([number]) * 200_000)
        volume.snapshot(f"june{number}")
    flip(volume, volume.get_snapshot("june2").record.root.number)

    with bp.Volume.open(tmp_path / "pool") as volume:
        files = bp.FileSystem(volume)
        files.mkdir("/new")
        files.unlink("/file1")
        volume.sync()
        problems = bp.check(volume).problems
        assert problems
        assert all("june2" in problem or "root block" in problem for problem in problems)
        volume.delete_snapshot("june2")
        assert bp.check(volume).problems == []
        for number in (1, 3):
            found = bp.FileSystem(volume.get_snapshot(f"june{number}")).read_bytes("/changing")
            assert found == bytes([number]) * 200_000
        volume.delete_snapshot("june1", "june3")
        assert bp.check(volume).problems == []
        assert volume.local.root.n_held == 0
