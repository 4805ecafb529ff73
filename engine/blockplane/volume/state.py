"""States: a file system at one consistency point and all its metadata, over any block source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.blocks import BlockSource
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import ChecksumError, VolumeDamagedError
from blockplane.volume.codec import (
    BRANCH_BYTES,
    FORM_TREE,
    NODE_POINTERS,
    NUMBER_MASK,
    RECORD_BYTES,
    ROOT_POINTERS,
    Branch,
    Pointer,
    PointerArray,
    SnapshotRecord,
    StateRoot,
    TreeRoot,
)
from blockplane.volume.leafbits import Leaf, bits_of
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.tree import BlockTree
from blockplane.volume.treediff import differing_blocks
from blockplane.volume.treeio import BlockReader

CHECKS_PER_LEAF = BLOCK_BYTES // 4
#: More than any metafile that is read whole has: a table of a million snapshots, a place map of 44 million extents.
MAX_METAFILE_BYTES: Final = 1 << 30


class State:
    """The read side of a state: its trees, its plane, its checks. Immutable once committed.

    Attributes
    ----------
    root : the decoded state root.
    pointer : where the state root lies.
    placemap : where the state's blocks lie when not at home.
    inode_file, blockmap, checksums : block trees.
    """

    def __init__(
        self, reader: BlockReader, root: StateRoot, pointer: Pointer, placemap: PlaceMap | None = None
    ) -> None:
        self.reader = reader
        self.root = root
        self.pointer = pointer
        self.placemap = placemap if placemap is not None else PlaceMap()
        self.inode_file = BlockTree(reader, root.inode_file)
        self.blockmap = BlockTree(reader, root.blockmap)
        self.checksums = BlockTree(reader, root.checksums)
        self.snapshot_list = BlockTree(reader, root.snapshots)
        self.branch_list = BlockTree(reader, root.branches)

    @classmethod
    def open(cls, source: BlockSource) -> State:
        """Return the state a block source gives.

        Raises
        ------
        ChecksumError, VolumeDamagedError: the state root is not whole.
        """
        number, check = source.root_pointer()
        return cls.read(source, Pointer(number, check))

    @classmethod
    def read(cls, reader: BlockReader, pointer: Pointer, placemap: PlaceMap | None = None) -> State:
        """Return the state whose root block pointer names."""
        block = read_root(reader, pointer)
        return cls(reader, StateRoot.decode(block), pointer, placemap)

    @property
    def cp(self) -> int:
        """The state's CP number on its own line."""
        return self.root.cp

    def tree(self, root: TreeRoot) -> BlockTree:
        """Return a read-only tree of this state."""
        return BlockTree(self.reader, root)

    # --- planes ------------------------------------------------------------------------------------------------------

    @property
    def n_leaves(self) -> int:
        """How many leaves the plane's space has."""
        return -(-self.blockmap.size_bytes // BLOCK_BYTES)

    @property
    def space_blocks(self) -> int:
        """How many VBNs the state's numbering has."""
        return self.blockmap.size_bytes * 8

    def plane_leaf(self, leaf: int) -> Leaf:
        """Return 32,768 bits of the plane; do not write to them."""
        return self.blockmap.read_block(leaf).view(np.uint64)

    def place_leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range the state occupies; do not write to it."""
        return self.placemap.place_leaf(self.plane_leaf(leaf), leaf)

    def holds(self, vbns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each VBN whether the state holds it."""
        return bits_of(self.plane_leaf, vbns)

    def leaf_numbers(self) -> Iterator[int]:
        """Yield the leaves of the plane that exist, ascending; the others are empty."""
        for start, stop in self.blockmap.data_extents().tolist():
            yield from range(start, stop)

    def leaves(self) -> Iterator[tuple[int, Leaf]]:
        """Yield (index, leaf) for every leaf of the plane that exists."""
        for leaf in self.leaf_numbers():
            yield leaf, self.plane_leaf(leaf)

    # --- checks ------------------------------------------------------------------------------------------------------

    def checks(self, vbns: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Return the checks the checksum file has for VBNs (not its own blocks', nor the state root's)."""
        out = np.empty(len(vbns), np.uint32)
        leaves = vbns // CHECKS_PER_LEAF
        for leaf in np.unique(leaves).tolist():
            at = leaves == leaf
            out[at] = self.checksums.read_block(leaf).view(np.uint32)[vbns[at] % CHECKS_PER_LEAF]
        return out

    def pointed_checks(
        self, base: State | None = None, most: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return (VBNs, checks) of the blocks the checksum file does not cover: its own and the state root.

        Those that base shares are left out, and what lies below a shared node is not read.

        Raises
        ------
        VolumeDamagedError: they are more than `most`; no more was read.
        """
        roots = [self.checksums, base.checksums] if base is not None else [self.checksums]
        numbers = [np.array([self.pointer.number], np.int64)]
        checks = [np.array([self.pointer.check], np.uint32)]
        n_pointers = 0
        for pointers in changed_pointers(roots):
            n_pointers += len(pointers)
            if most is not None and n_pointers > most:
                raise VolumeDamagedError(
                    f"the checksum file has more blocks than the state, which holds {most}", "run `blockplane check`"
                )
            numbers.append((pointers[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64))
            checks.append(pointers[:, 1].astype(np.uint32))
        return np.concatenate(numbers), np.concatenate(checks)

    # --- lists -------------------------------------------------------------------------------------------------------

    def listed_snapshots(self) -> list[SnapshotRecord]:
        """Return the snapshots that existed when the state was committed, older first."""
        data = read_all(self.snapshot_list, RECORD_BYTES)
        return [SnapshotRecord.decode(data[at : at + RECORD_BYTES]) for at in range(0, len(data), RECORD_BYTES)]

    def branches(self) -> list[Branch]:
        """Return the branch history, older first."""
        data = read_all(self.branch_list, BRANCH_BYTES)
        return [Branch.decode(data[at : at + BRANCH_BYTES]) for at in range(0, len(data), BRANCH_BYTES)]


def read_root(reader: BlockReader, pointer: Pointer) -> bytes:
    """Return the verified bytes of a root block."""
    block = np.empty(BLOCK_BYTES, np.uint8)
    reader.read_extents(np.array([[pointer.number, pointer.number + 1]], np.int64), block)
    if first_bad_block(block, pointer.number, np.array([pointer.check], np.uint32)) >= 0:
        raise ChecksumError(
            f"root block {pointer.number} does not match its checksum",
            pointer.number,
            "the disks lost or changed a write",
        )
    return block.tobytes()


def read_all(tree: BlockTree, record_bytes: int = 1) -> bytes:
    """Return the bytes of a small metafile, whole records.

    Raises
    ------
    VolumeDamagedError: its size is not that of such a file; nothing was sized by it.
    """
    if tree.size_bytes > MAX_METAFILE_BYTES or tree.size_bytes % record_bytes:
        raise VolumeDamagedError(
            f"a metafile of {record_bytes} bytes a record claims to have {tree.size_bytes}", "run `blockplane check`"
        )
    n_blocks = -(-tree.size_bytes // BLOCK_BYTES)
    out = np.empty(n_blocks * BLOCK_BYTES, np.uint8)
    tree.read(0, n_blocks, out)
    return out[: tree.size_bytes].tobytes()


def write_all(tree: BlockTree, data: bytes) -> None:
    """Make a small metafile hold data; blocks whose bytes stay the same are not touched."""
    n_blocks = -(-len(data) // BLOCK_BYTES)
    padded = np.frombuffer(data.ljust(n_blocks * BLOCK_BYTES, b"\0"), np.uint8).reshape(-1, BLOCK_BYTES)
    for index in range(n_blocks):
        if not np.array_equal(tree.read_block(index), padded[index]):
            tree.edit_block(index)[:] = padded[index]
    old_blocks = -(-tree.size_bytes // BLOCK_BYTES)
    if n_blocks < old_blocks:
        tree.punch(n_blocks, max(old_blocks, tree.capacity_blocks()) if n_blocks == 0 else old_blocks)
    tree.size_bytes = len(data)


def _level_pointers(tree: BlockTree, level: int, index: int) -> PointerArray:
    """Return the pointers below (level, index), or the root's for level = depth + 1."""
    if level == tree.root.depth + 1:
        return tree.root.pointers
    return tree.node(level, index)


def changed_pointers(trees: Sequence[BlockTree]) -> Iterator[PointerArray]:
    """Yield the pointers (n, 2), of every level, of the first tree that the others do not have at the same spot."""
    first = trees[0]
    if first.root.form != FORM_TREE:
        return
    others = [t for t in trees[1:] if t.root.form == FORM_TREE and t.root.depth == first.root.depth]
    width = {first.root.depth + 1: ROOT_POINTERS}

    def descend(level: int, index: int) -> Iterator[PointerArray]:
        mine = _level_pointers(first, level, index)
        fresh = mine[:, 0] != 0
        for other in others:
            fresh &= ~(_level_pointers(other, level, index) == mine).all(axis=1)
        if fresh.any():
            yield mine[fresh]
            if level > 1:
                base = index * width.get(level, NODE_POINTERS) if level <= first.root.depth else 0
                for child in np.flatnonzero(fresh).tolist():
                    yield from descend(level - 1, base + child)

    yield from descend(first.root.depth + 1, 0)


class Mapped(Protocol):
    """A plane as a blockmap, and where its blocks lie when not at home: a state, or what is left of one."""

    @property
    def blockmap(self) -> BlockTree:
        """The plane."""
        ...

    @property
    def placemap(self) -> PlaceMap:
        """The map."""
        ...


def differing_leaves(states: Sequence[Mapped]) -> list[int]:
    """Return the leaves, ascending, in which the planes, or the places, of the states are not all the same block.

    Cost follows what differs: below a node that all states share nothing is read.
    """
    return sorted({*_mapped_leaves(states), *differing_blocks([state.blockmap for state in states])})


def _mapped_leaves(states: Sequence[Mapped]) -> Iterator[int]:
    """Yield the leaves of which a place map says something, where the states' maps are not one and the same."""
    if all(state.placemap == states[0].placemap for state in states[1:]):
        return
    for state in states:
        yield from state.placemap.leaves()
