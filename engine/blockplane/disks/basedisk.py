"""A base as a disk: blocks of a full backup, in stream files or on tape, that a volume reads and never writes.

Only its head and tail areas, where labels and root slots lie, are on a disk of the volume's own: a small file.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

import numpy as np

from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS, Disk, DiskCounters
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.blocks import BlockSource
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import BlockplaneError, DiskError

END_BLOCKS: Final = HEAD_BLOCKS + TAIL_BLOCKS


class BaseDisk:
    """See the module. Its dbns are the base's VBNs. Thread-safe as far as the source is.

    Parameters
    ----------
    ends : holds the head area and behind it the tail area; owned from here on. source : the base; owned too, where it
    can be closed. n_numbers : VBNs that the base may hold.
    """

    def __init__(self, ends: Disk, source: BlockSource, n_numbers: int) -> None:
        self._ends, self._source = ends, source
        self.path = ends.path
        self.n_blocks = n_numbers + END_BLOCKS
        self.counters = DiskCounters()
        self.is_locked = getattr(ends, "is_locked", False)
        self._tail = self.n_blocks - TAIL_BLOCKS
        self._counting = threading.Lock()

    def read_plan(
        self,
        blocks: Numbers,
        n_blocks: Numbers,
        buffer: Bytes,
        positions: Numbers,
        numbers: Numbers | None = None,
        expected: Checks | None = None,
        max_gap_blocks: int = 0,
    ) -> int:
        """See `Disk.read_plan`."""
        if not len(blocks):
            return -1
        if self._is_end(blocks, n_blocks):
            return self._ends.read_plan(self._end_blocks(blocks), n_blocks, buffer, positions, numbers, expected)
        extents = np.column_stack((blocks, blocks + n_blocks)) - HEAD_BLOCKS
        out, rows = self._out(buffer, positions, n_blocks)
        try:
            self._source.read_extents(extents, out)
        except DiskError:
            raise
        except BlockplaneError as error:
            raise DiskError(f"{self.path}: the base cannot be read: {error}", self.path, error.hint) from error
        with self._counting:
            self.counters.read_bytes += out.nbytes
            self.counters.read_requests += 1
        if rows is not None:
            buffer[: len(buffer) // BLOCK_BYTES * BLOCK_BYTES].reshape(-1, BLOCK_BYTES)[rows] = out.reshape(
                -1, BLOCK_BYTES
            )
        return first_bad_block(out, numbers, expected) if numbers is not None and expected is not None else -1

    def _out(self, buffer: Bytes, positions: Numbers, n_blocks: Numbers) -> tuple[Bytes, Numbers | None]:
        """Return where to read to: the buffer's own part where it is one, else scratch and the rows it belongs to."""
        total = int(n_blocks.sum())
        stops = np.cumsum(n_blocks)
        if (positions == positions[0] + stops - n_blocks).all():
            at = int(positions[0]) * BLOCK_BYTES
            return buffer[at : at + total * BLOCK_BYTES], None
        rows = np.repeat(positions - (stops - n_blocks), n_blocks) + np.arange(total, dtype=np.int64)
        return np.empty(total * BLOCK_BYTES, np.uint8), rows

    def write_plan(self, blocks: Numbers, n_blocks: Numbers, buffer: Bytes, positions: Numbers) -> None:
        """See `Disk.write_plan`; DiskError: it is not at the ends."""
        self._refuse_base(blocks, n_blocks)
        self._ends.write_plan(self._end_blocks(blocks), n_blocks, buffer, positions)

    def write_gathered(self, blocks: Numbers, n_blocks: Numbers, buffers: Sequence[Bytes], positions: Numbers) -> None:
        """See `Disk.write_gathered`; DiskError: it is not at the ends."""
        self._refuse_base(blocks, n_blocks)
        self._ends.write_gathered(self._end_blocks(blocks), n_blocks, buffers, positions)

    def flush(self) -> None:
        """See `Disk.flush`."""
        self._ends.flush()

    def close(self) -> None:
        """See `Disk.close`."""
        self._ends.close()
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def _is_end(self, blocks: Numbers, n_blocks: Numbers) -> bool:
        """Whether all extents lie in the head area or the tail area."""
        return bool(((blocks + n_blocks <= HEAD_BLOCKS) | (blocks >= self._tail)).all())

    def _end_blocks(self, blocks: Numbers) -> Numbers:
        moved: Numbers = np.where(blocks >= self._tail, blocks - self._tail + HEAD_BLOCKS, blocks)
        return moved

    def _refuse_base(self, blocks: Numbers, n_blocks: Numbers) -> None:
        if not self._is_end(blocks, n_blocks):
            raise DiskError(f"{self.path}: a base is not written to", self.path)
