"""What block trees ask of whoever holds their blocks, and the spans they hand out for bulk data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@dataclass(slots=True)
class Span:
    """Freshly allocated blocks of a file: consecutive indexes, their numbers, and where their bytes go."""

    index: int
    numbers: Numbers
    buffer: Block

    @property
    def n_blocks(self) -> int:
        """How many blocks."""
        return len(self.numbers)


class BlockReader(Protocol):
    """Gives the raw bytes of numbered blocks."""

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Fill out with the blocks of extents (n, 2), in order; unverified."""
        ...


class BlockWriter(BlockReader, Protocol):
    """What a writable tree asks of its volume."""

    def allocate_block(self) -> tuple[int, Block]:
        """Return a fresh number and the buffer its bytes must be in before the commit."""
        ...

    def allocate_run(self, n_blocks: int) -> list[tuple[Numbers, Block]]:
        """Return fresh numbers, in all n_blocks, and the buffers of as many blocks each."""
        ...

    def claim(self, n_blocks: int) -> None:
        """Reserve room for blocks that became dirty; NoSpaceError: there is none."""
        ...

    def filled(self, numbers: Numbers, checks: NDArray[np.uint32]) -> None:
        """Note that the bytes of numbers that were given out together are in their buffer, and their checks."""
        ...

    def release(self, numbers: Numbers) -> None:
        """Give up numbers that the tree no longer points to."""
        ...
