"""Block sources: whatever gives the bytes of a VBN of one state (a volume, a snapshot, a stream, a tape)."""

from __future__ import annotations

from typing import Protocol

from blockplane.model.addresses import Bytes, Extents


class BlockSource(Protocol):
    """The blocks of one immutable state."""

    def root_pointer(self) -> tuple[int, int]:
        """VBN and check of the state root block."""
        ...

    def read_extents(self, extents: Extents, out: Bytes) -> None:
        """Read the raw bytes of blocks.

        Parameters
        ----------
        extents : (n, 2), VBNs, in any order; their blocks follow one another in ``out``.
        out : writable, 4,096 bytes for each block.

        Notes
        -----
        Does not verify: the checks are in the pointers and in the checksum file of the caller's state.
        """
        ...


class BlockSink(Protocol):
    """Something that takes blocks of one state by VBN."""

    def write_blocks(self, vbn: int, n_blocks: int, data: memoryview) -> None:
        """Take consecutive VBNs; the bytes may be read until the sink is flushed."""
        ...
