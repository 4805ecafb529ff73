"""The volume that benchmarks send from and read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blockplane.filesystem import FileSystem
from blockplane.volume import Volume
from yardstick.tree import TreeSize, change_tree


@dataclass(frozen=True, slots=True)
class Source:
    """A volume of 4 + 1 disks with snapshots june1 (the tree) and june2 (the tree changed)."""

    volume: Volume
    path: Path
    size: TreeSize
    disk_bytes: int


def disk_bytes_for(size: TreeSize) -> int:
    """Return bytes of each of 4 + 1 disks that hold the tree twice."""
    return max(size.n_bytes // 2, 64 << 20)


def make_source(path: Path, tree: Path, size: TreeSize) -> Source:
    """Make the volume from a tree on the host."""
    disk_bytes = disk_bytes_for(size)
    volume = Volume.create(path, disks=5, size=disk_bytes)
    fs = FileSystem(volume)
    fs.put(tree, "/tree")
    volume.snapshot("june1")
    change_tree(fs, "/tree", size)
    volume.snapshot("june2")
    return Source(volume, path, size, disk_bytes)
