"""The volume that benchmarks send from and read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blockplane.filesystem import FileSystem
from blockplane.image.image import build
from blockplane.transfer.send import send
from blockplane.volume import Volume
from yardstick.tree import MIB, TreeSize, change_tree


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


def make_chain(folder: Path, n_bytes: int, kind: str, n_steps: int = 10) -> tuple[list[Path], Path]:
    """Send a full stream of one file and increments, and the newest snapshot directly; return the chain, and that.

    Parameters
    ----------
    kind : what changes from one to the next, 3 % of the file: `single` blocks, or `runs` of a mebibyte.
    """
    rng, n_run = np.random.default_rng(11), 4096 if kind == "single" else MIB
    chain = [folder / f"{kind}{step:02d}.bps" for step in range(n_steps + 1)]
    direct, n_runs = folder / f"{kind}-direct.bps", n_bytes // n_run
    with Volume.create(folder / kind, disks=5, size=max(n_bytes // 2, 64 * MIB)) as volume:
        fs = FileSystem(volume)
        with fs.open("/f", "wb") as file:
            for _ in range(n_bytes // MIB):
                file.write(rng.bytes(MIB))
        for step, path in enumerate(chain):
            with fs.open("/f", "r+b", buffering=0) as file:
                for run in np.sort(rng.choice(n_runs, max(n_runs // 33, 1), replace=False)).tolist() if step else []:
                    file.seek(run * n_run)
                    file.write(rng.bytes(n_run))
            volume.snapshot(f"s{step}")
            send(build(volume, f"s{step} - s{step - 1}" if step else "s0"), path)
        send(build(volume, f"s{n_steps}"), direct)
    shutil.rmtree(folder / kind)
    return chain, direct
