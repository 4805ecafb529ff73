"""Block sources: whatever gives the bytes of a VBN of one state (a volume, a snapshot, a stream, a tape)."""

from __future__ import annotations

from typing import Protocol


class BlockSource(Protocol):
    """The blocks of one immutable state."""

    def root_pointer(self) -> tuple[int, int]:
        """VBN and check of the state root block."""
        ...

    def read_blocks(self, vbn: int, n_blocks: int, out: memoryview) -> None:
        """Read the raw bytes of consecutive VBNs.

        Parameters
        ----------
        vbn : first of them.
        n_blocks : how many.
        out : writable, ``n_blocks * 4096`` bytes.

        Notes
        -----
        Does not verify: the checksum file belongs to the caller's state.
        """
        ...


class BlockSink(Protocol):
    """Something that takes blocks of one state by VBN."""

    def write_blocks(self, vbn: int, n_blocks: int, data: memoryview) -> None:
        """Take consecutive VBNs; the bytes may be read until the sink is flushed."""
        ...
