"""Inode records of a committed state, many at a time: for what compares and searches, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import aligned_buffer
from blockplane.filesystem.attributes import MAX_ATTRIBUTES_BYTES, decode_attributes
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import (
    FLAG_ATTRIBUTES,
    FLAG_ORPHAN,
    FLAG_TABLE,
    INODE_BYTES,
    INODES_PER_BLOCK,
    TABLE_INODE,
    Inode,
)
from blockplane.model import BLOCK_BYTES
from blockplane.volume.state import State

Rows = NDArray[np.uint8]  # (n, INODES_PER_BLOCK, INODE_BYTES)

# Blocks of the inode file that one request reads: 4 MiB.
_BATCH_BLOCKS = 1024


class Records:
    """The inodes of one committed state by number; blocks that were read stay in memory."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.n_reads = 0
        self._blocks: dict[int, Rows] = {}
        self.stop = 0
        if state.inode_file.size_bytes:
            table = self._read(TABLE_INODE)
            if not table.flags & FLAG_TABLE:
                raise damaged("inode 0 is not the table's record")
            self.stop = table.rdev

    def rows(self, blocks: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Yield (blocks, rows) of blocks of the inode file, ascending, a batch at a time; holes are zeros."""
        for at in range(0, len(blocks), _BATCH_BLOCKS):
            part = blocks[at : at + _BATCH_BLOCKS]
            data = aligned_buffer(len(part) * BLOCK_BYTES)
            self.state.inode_file.read_scattered(part, data)
            self.n_reads += len(part)
            yield part, data.reshape(-1, INODES_PER_BLOCK, INODE_BYTES)

    def all_rows(self) -> Iterator[tuple[NDArray[np.int64], Rows]]:
        """Yield the whole inode file, as far as it has blocks: the table's own count is not to be believed."""
        file, end = self.state.inode_file, -(-self.stop // INODES_PER_BLOCK)
        for start, stop in file.data_extents(0, end).tolist():
            yield from self.rows(np.arange(start, stop, dtype=np.int64))

    def fetch(self, numbers: Iterable[int]) -> None:
        """Read the blocks of inodes that are asked for next."""
        missing = {number // INODES_PER_BLOCK for number in numbers} - self._blocks.keys()
        for part, rows in self.rows(np.array(sorted(missing), np.int64)):
            self._blocks.update(zip(part.tolist(), rows, strict=True))

    def find(self, number: int) -> Inode | None:
        """Return an inode that something may name; None for a free one, an orphan, a holder of attributes."""
        inode = self._read(number) if 0 < number < self.stop else None
        if inode is None or not inode.mode or inode.flags & (FLAG_ATTRIBUTES | FLAG_ORPHAN):
            return None
        return inode

    def decode(self, number: int, row: NDArray[np.uint8]) -> Inode | None:
        """Return the inode in a row of 512 bytes; None for the table's record and for numbers never used."""
        return Inode.decode(number, row.tobytes()) if TABLE_INODE < number < self.stop else None

    def peek(self, number: int) -> Inode:
        """Return any inode's record."""
        return self._read(number)

    def get(self, number: int) -> Inode:
        """Return an inode that is named somewhere.

        Raises
        ------
        FileSystemDamagedError: it is not in use.
        """
        inode = self.find(number)
        if inode is None:
            raise damaged(f"inode {number} is named somewhere but not in use")
        return inode

    def _read(self, number: int) -> Inode:
        block, slot = divmod(number, INODES_PER_BLOCK)
        if block not in self._blocks:
            self.fetch([number])
        return Inode.decode(number, self._blocks[block][slot].tobytes())

    def attributes(self, inode: Inode) -> dict[bytes, bytes]:
        """Return an inode's extended attributes."""
        if not inode.attribute_inode:
            return decode_attributes(inode.attributes, inode.number)
        holder = self._read(inode.attribute_inode) if inode.attribute_inode < self.stop else None
        if holder is None or not holder.flags & FLAG_ATTRIBUTES or holder.size_bytes > MAX_ATTRIBUTES_BYTES:
            raise damaged(f"inode {inode.number}: its attributes are not where it says")
        return decode_attributes(holder.inline or self._content(holder), inode.number)

    def _content(self, holder: Inode) -> bytes:
        n_blocks = -(-holder.size_bytes // BLOCK_BYTES)
        data = aligned_buffer(n_blocks * BLOCK_BYTES)
        if holder.root is not None:
            self.state.tree(holder.root).read(0, n_blocks, data)
            self.n_reads += n_blocks
        return data[: holder.size_bytes].tobytes()
