"""A tree of files that is the same for the same seed: one very large file, the others from 500 bytes to 16 MiB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from blockplane.filesystem import FileSystem

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SMALLEST_BYTES, LARGEST_BYTES = 500, 16 * MIB
FILES_PER_FOLDER = 40
LARGE = "large.bin"
_PIECE_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True)
class TreeSize:
    """How much: files, bytes in all, bytes of the largest."""

    n_files: int
    n_bytes: int
    large_bytes: int


FULL = TreeSize(24_000, 3 * GIB, 1843 * MIB)
SMALL = TreeSize(300, 48 * MIB, 24 * MIB)


def chosen_size() -> TreeSize:
    """Return the full size where BENCH_FULL=1 asks for it, else the small one."""
    return FULL if os.environ.get("BENCH_FULL") == "1" else SMALL


def file_sizes(size: TreeSize, seed: int = 1) -> NDArray[np.int64]:
    """Return the sizes of all files but the large one: many small, few large, their sum as asked (within 1 %)."""
    rng = np.random.default_rng(seed)
    shape = rng.lognormal(0.0, 2.0, size.n_files - 1)
    wanted = size.n_bytes - size.large_bytes
    low, high = 0.0, float(LARGEST_BYTES)
    for _ in range(60):
        scale = (low + high) / 2
        sizes = np.clip(shape * scale, SMALLEST_BYTES, LARGEST_BYTES)
        low, high = (scale, high) if sizes.sum() < wanted else (low, scale)
    return sizes.astype(np.int64)


def names(size: TreeSize) -> Iterator[str]:
    """Yield the path of every file but the large one."""
    for i in range(size.n_files - 1):
        folder = i // FILES_PER_FOLDER
        yield f"part{folder % 16:02d}/folder{folder:04d}/file{i:05d}.bin"


def make_tree(root: Path, size: TreeSize, seed: int = 1) -> int:
    """Write the tree; return its bytes."""
    rng = np.random.default_rng(seed + 1)
    sizes = file_sizes(size, seed).tolist()
    noise = rng.bytes(LARGEST_BYTES + 64 * KIB)
    for i, (name, n_bytes) in enumerate(zip(names(size), sizes, strict=True)):
        path = root / name
        if i % FILES_PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        at = int(rng.integers(0, 64 * KIB))
        path.write_bytes(i.to_bytes(8, "little") + noise[at : at + n_bytes - 8])
    with open(root / LARGE, "wb") as large:
        for at in range(0, size.large_bytes, _PIECE_BYTES):
            large.write(rng.bytes(min(_PIECE_BYTES, size.large_bytes - at)))
    return sum(sizes) + size.large_bytes


def change_tree(fs: FileSystem, top: str, size: TreeSize, seed: int = 1) -> None:
    """Change a copy of the tree: 5 % of the large file's blocks at random places; files rewritten, deleted, renamed,
    added, 2 % of each.
    """
    rng = np.random.default_rng(seed + 2)
    n_blocks = size.large_bytes // 4096
    with fs.open(f"{top}/{LARGE}", "r+b", buffering=0) as large:
        for block in np.sort(rng.choice(n_blocks, n_blocks // 20, replace=False)).tolist():
            large.seek(block * 4096)
            large.write(rng.bytes(4096))
    sizes = file_sizes(size, seed)
    paths = [f"{top}/{name}" for name in names(size)]
    count = size.n_files // 50
    chosen = rng.choice(size.n_files - 1, 3 * count, replace=False).tolist()
    for i in chosen[:count]:
        fs.write_bytes(paths[i], rng.bytes(int(sizes[i])))
    for i in chosen[count : 2 * count]:
        fs.unlink(paths[i])
    for i in chosen[2 * count :]:
        fs.rename(paths[i], f"{paths[i]}.renamed")
    fs.mkdir(f"{top}/added")
    for i in range(count):
        fs.write_bytes(f"{top}/added/file{i:05d}.bin", rng.bytes(int(sizes[i])))
