"""What block trees ask of whoever holds their blocks, and the spans they hand out for bulk data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.uint8]


@dataclass(slots=True)
class Span:
    """Freshly allocated blocks of a file: consecutive indexes, consecutive numbers, and where their bytes go."""

    index: int
    n_blocks: int
    vbn: int
    buffer: Block


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

    def allocate_run(self, n_blocks: int) -> list[tuple[int, int, Block]]:
        """Return runs of fresh numbers, (first, count, buffer), in all n_blocks."""
        ...

    def claim(self, n_blocks: int) -> None:
        """Reserve room for blocks that became dirty; NoSpaceError: there is none."""
        ...

    def filled(self, first: int, checks: NDArray[np.uint32]) -> None:
        """Note that the bytes of numbers first, first + 1, ... are in their buffers, and what their checks are."""
        ...

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Give up numbers that the tree no longer points to."""
        ...
