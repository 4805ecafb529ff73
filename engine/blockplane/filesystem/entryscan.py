"""Directory blocks of a committed state, those of many directories with one request: all entries, or some inodes'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import aligned_buffer
from blockplane.filesystem.blockread import read_pointers
from blockplane.filesystem.directory_node import HEADER_BYTES, INODE_MASK, MAGIC, Node, unpack_target
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import MAX_INODE, MODE_OFFSET, Inode
from blockplane.filesystem.records import Records
from blockplane.model import BLOCK_BYTES
from blockplane.volume.codec import PointerArray, empty_pointers
from blockplane.volume.state import State

# Directory blocks that one request reads: 4 MiB.
_BATCH_BLOCKS = 1024
_WORDS = BLOCK_BYTES // 8
_HEADER_WORDS = HEADER_BYTES // 8

Blocks = NDArray[np.uint64]  # (n, 512)


class Link(NamedTuple):
    """A name in a directory, and the inode it leads to."""

    directory: int
    name: bytes
    inode: int


def pointers_of(state: State, directory: Inode) -> PointerArray:
    """Return the pointers (n, 2) to all nodes of a directory."""
    n_nodes = directory.size_bytes // BLOCK_BYTES
    if directory.root is None or not n_nodes:
        return empty_pointers(0)
    tree = state.tree(directory.root)
    n_mapped = sum(stop - start for start, stop in tree.mapped(0, n_nodes))
    if n_nodes != n_mapped:  # before anything is sized by it
        raise damaged(f"directory {directory.number}: its size is impossible")
    return tree.pointers(0, n_nodes)


class EntryScan:
    """Reads directory nodes of one state in bulk. n_reads: how many."""

    def __init__(self, records: Records) -> None:
        self._records, self._state = records, records.state
        self.n_reads = 0

    def entries(self, nodes: Iterable[tuple[int, PointerArray]]) -> Iterator[Link]:
        """Yield the entries in nodes, given as (directory, pointers (n, 2))."""
        for owners, blocks in self._read(nodes):
            for owner, block in zip(owners.tolist(), blocks, strict=True):
                yield from _links(owner, block)

    def all_entries(self, directories: Sequence[Inode]) -> Iterator[Link]:
        """Yield the entries of whole directories."""
        return self.entries((inode.number, pointers_of(self._state, inode)) for inode in directories)

    def links_to(self, wanted: set[int], directories: Iterable[Inode]) -> Iterator[Link]:
        """Yield the entries of directories that lead to wanted inodes; only nodes with such entries are decoded."""
        numbers = np.array(sorted(wanted), np.int64)
        nodes = ((inode.number, pointers_of(self._state, inode)) for inode in directories)
        for owners, blocks in self._read(nodes):
            for at in _nodes_with(numbers, blocks).tolist():
                yield from (link for link in _links(int(owners[at]), blocks[at]) if link.inode in wanted)

    def all_directories(self) -> Iterator[Inode]:
        """Yield every directory of the state: reads the whole inode file."""
        for blocks, rows in self._records.all_rows():
            modes = rows[:, :, MODE_OFFSET : MODE_OFFSET + 4].copy().view(np.uint32)[:, :, 0]
            for block, slot in np.argwhere(modes & 0o170000 == 0o040000).tolist():
                number = int(blocks[block]) * rows.shape[1] + slot
                yield Inode.decode(number, rows[block, slot].tobytes())

    def _read(self, nodes: Iterable[tuple[int, PointerArray]]) -> Iterator[tuple[NDArray[np.int64], Blocks]]:
        """Yield (owners (n,), blocks (n, 512)) in batches; headers are checked."""
        owners: list[NDArray[np.int64]] = []
        pointers: list[PointerArray] = []
        n_waiting = 0
        for owner, found in nodes:
            for at in range(0, len(found), _BATCH_BLOCKS):
                part = found[at : at + _BATCH_BLOCKS]
                owners.append(np.full(len(part), owner, np.int64))
                pointers.append(part)
                n_waiting += len(part)
                if n_waiting >= _BATCH_BLOCKS:
                    yield self._batch(np.concatenate(owners), np.concatenate(pointers))
                    owners, pointers, n_waiting = [], [], 0
        if n_waiting:
            yield self._batch(np.concatenate(owners), np.concatenate(pointers))

    def _batch(self, owners: NDArray[np.int64], pointers: PointerArray) -> tuple[NDArray[np.int64], Blocks]:
        data = aligned_buffer(len(pointers) * BLOCK_BYTES)
        read_pointers(self._state.reader, pointers, data)
        self.n_reads += len(pointers)
        blocks = data.view(np.uint64).reshape(-1, _WORDS)
        wrong = np.flatnonzero((blocks[:, 0] & np.uint64(0xFFFF) != MAGIC) | (blocks[:, 1] != owners.astype(np.uint64)))
        if len(wrong):
            raise damaged(f"directory {owners[wrong[0]]}: a block is not one of its nodes")
        return owners, blocks


def _nodes_with(wanted: NDArray[np.int64], blocks: Blocks) -> NDArray[np.int64]:
    """Return which leaves hold an entry of a wanted inode."""
    n_entries = (blocks[:, 0] >> np.uint64(32)).astype(np.int64) & 0xFFFF
    level = (blocks[:, 0] >> np.uint64(16)).astype(np.int64) & 0xFF
    first = _HEADER_WORDS + n_entries[:, None]
    column = np.arange(_WORDS)
    is_value = (column >= first) & (column < first + n_entries[:, None]) & (level[:, None] == 0)
    values = (blocks[is_value] & np.uint64(INODE_MASK)).astype(np.int64)
    at = np.searchsorted(wanted, values)
    hits = wanted[np.minimum(at, len(wanted) - 1)] == values if len(wanted) else np.zeros(len(values), np.bool_)
    return np.unique(np.nonzero(is_value)[0][hits])


def _links(owner: int, block: NDArray[np.uint64]) -> Iterator[Link]:
    """Yield the entries of a leaf; a branch has none."""
    node = Node.decode(block.tobytes(), owner)
    if node.level:
        return
    for name, value in zip(node.names, node.values, strict=True):
        inode, _ = unpack_target(value)
        if not 0 < inode < MAX_INODE:
            raise damaged(f"directory {owner}: an entry names inode {inode}")
        yield Link(owner, name, inode)
