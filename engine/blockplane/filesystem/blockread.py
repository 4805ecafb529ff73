"""Reading the blocks of many files in one go: pointers of any trees of a state, verified, in one request."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import aligned_buffer
from blockplane.filesystem.errors import damaged
from blockplane.model import BLOCK_BYTES, ChecksumError
from blockplane.model.checks import first_bad_block
from blockplane.volume.codec import KIND_BLOCK, KIND_SHIFT, NUMBER_MASK, PointerArray
from blockplane.volume.runs import runs_of

if TYPE_CHECKING:
    from blockplane.volume.treeio import BlockReader

_local = threading.local()


def scratch(n_bytes: int) -> NDArray[np.uint8]:
    """Return this thread's aligned buffer, cut to n_bytes; it is overwritten by the thread's next call."""
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < n_bytes:
        buffer = _local.buffer = aligned_buffer(n_bytes)
    return buffer[:n_bytes]


def read_pointers(reader: BlockReader, pointers: PointerArray, out: NDArray[np.uint8]) -> None:
    """Read what pointers (n, 2), of one state and any of its trees, lead to; holes are zeros.

    Raises
    ------
    ChecksumError: a block is not what its pointer says. FileSystemDamagedError: a pointer is of unknown kind.
    """
    words = pointers[:, 0]
    present = words != 0
    if not present.all():
        _read_present(reader, pointers, present, out)
        return
    if (words >> np.uint64(KIND_SHIFT) != KIND_BLOCK).any():
        raise damaged("a tree holds a pointer of unknown kind")
    numbers = (words & np.uint64(NUMBER_MASK)).astype(np.int64)
    reader.read_extents(runs_of(numbers), out)
    bad = first_bad_block(out, numbers, pointers[:, 1].astype(np.uint32))
    if bad >= 0:
        raise ChecksumError(
            f"block {numbers[bad]} does not match its checksum",
            int(numbers[bad]),
            "run `blockplane check` to see what it belongs to; restore it from a snapshot or a stream",
        )


def _read_present(
    reader: BlockReader, pointers: PointerArray, present: NDArray[np.bool_], out: NDArray[np.uint8]
) -> None:
    """Read the blocks that exist into a buffer of their own, and spread them."""
    out[:] = 0
    n_present = int(present.sum())
    if n_present:
        packed = aligned_buffer(n_present * BLOCK_BYTES)
        read_pointers(reader, pointers[present], packed)
        out.reshape(-1, BLOCK_BYTES)[present] = packed.reshape(-1, BLOCK_BYTES)
