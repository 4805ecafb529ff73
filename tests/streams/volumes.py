"""Small volumes with files made of bare block trees: what levels below the file system can write and compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blockplane.volume import Volume
from blockplane.volume.codec import TREE_ROOT_BYTES, TreeRoot
from blockplane.volume.state import State

MAX_FILES = 64


class Files:
    """Files 1, 2, ... of a volume, each a block tree whose root stands in a block of the inode file."""

    def __init__(self, volume: Volume, rng: np.random.Generator) -> None:
        self.volume, self.rng = volume, rng
        self.trees = {}

    def write(self, number: int, start: int, n_blocks: int) -> None:
        """Fill blocks with random bytes."""
        tree = self.trees.setdefault(number, self.volume.new_tree())
        spans = tree.allocate(start, n_blocks)
        for span in spans:
            span.buffer[:] = self.rng.integers(0, 256, len(span.buffer), dtype=np.uint8)
        tree.filled(spans)
        self._save(number)

    def punch(self, number: int, start: int, stop: int) -> None:
        """Make a hole."""
        self.trees[number].punch(start, stop)
        self._save(number)

    def _save(self, number: int) -> None:
        tree, active = self.trees[number], self.volume.active
        tree.flush()
        active.inode_file.edit_block(number)[:TREE_ROOT_BYTES] = np.frombuffer(tree.root.encode(), np.uint8)
        active.inode_file.size_bytes = MAX_FILES * 4096
        active.root.n_inodes = 1 + max(1, len(self.trees))
        active.is_dirty = True

    def reload(self) -> None:
        """Take up the files of the live state: after a rollback or a receive."""
        self.trees = {
            number: self.volume.new_tree(TreeRoot.decode(raw.tobytes()))
            for number, raw in roots(self.volume.active).items()
        }


def roots(state: State) -> dict[int, np.ndarray]:
    """The tree roots in a state's inode file."""
    found = {}
    for start, stop in state.inode_file.data_extents().tolist():
        for number in range(start, stop):
            raw = state.inode_file.read_block(number)[:TREE_ROOT_BYTES]
            if raw.any():
                found[number] = raw
    return found


def contents(state: State) -> dict[int, dict[int, bytes]]:
    """Everything in a state: file -> block -> bytes, read and verified through its trees."""
    found = {}
    for number, raw in roots(state).items():
        tree = state.tree(TreeRoot.decode(raw.tobytes()))
        blocks = {}
        for start, stop in tree.data_extents().tolist():
            out = np.empty((stop - start) * 4096, np.uint8)
            tree.read(start, stop - start, out)
            blocks |= {start + i: row.tobytes() for i, row in enumerate(out.reshape(-1, 4096))}
        found[number] = blocks
    return found


def fresh(path: Path, **options) -> Volume:
    """A small volume."""
    return Volume.create(path, **{"disks": 5, "size": "8M", "parity": 1, **options})


def members(plane) -> set[int]:
    """A plane as a set."""
    return {vbn for start, stop in plane.extents().tolist() for vbn in range(start, stop)}
