"""Block checks: CRC32C of a block, bound to its number. The one door to the checksum kernel.

check(block, number) = CRC32C over the 4,096 bytes, continued over the number as 8 little-endian bytes. The number is
the VBN for blocks of a state, the place for blocks of the local tree.
"""

from __future__ import annotations

import numpy as np

from blockplane._native import checksum
from blockplane._native.checksum import crc32c, join_block_crcs, kernel_name
from blockplane.model.addresses import Bytes, Checks, Numbers

__all__ = [
    "block_check",
    "crc32c",
    "first_bad_block",
    "fresh_checks",
    "join_block_crcs",
    "kernel_name",
    "piece_crcs",
    "unbound_crcs",
]


def fresh_checks(data: Bytes, numbers: Numbers | int) -> Checks:
    """Compute the checks of blocks.

    Parameters
    ----------
    data : (n * 4096,) uint8, C-contiguous, read-only.
    numbers : (n,) int64, or the first of consecutive ones.

    Returns
    -------
    (n,) uint32, fresh.

    Notes
    -----
    Without the GIL.
    """
    checks = np.empty(data.shape[0] // 4096, dtype=np.uint32)
    if isinstance(numbers, np.ndarray):
        checksum.crc32c_blocks(data, numbers, checks)
    else:
        checksum.crc32c_blocks_from(data, int(numbers), checks)
    return checks


def block_check(block: Bytes | bytes, number: int) -> int:
    """Check of one block."""
    return crc32c(number.to_bytes(8, "little", signed=True), crc32c(block))


def first_bad_block(data: Bytes, numbers: Numbers | int, expected: Checks) -> int:
    """Index of the first block whose check is not the expected one, or -1; parameters as for `fresh_checks`."""
    if isinstance(numbers, np.ndarray):
        return checksum.verify_blocks(data, numbers, expected)
    return checksum.verify_blocks_from(data, int(numbers), expected)


def unbound_crcs(checks: Checks, numbers: Numbers) -> Checks:
    """Return the CRC32C of each block's bytes alone, by its check: `join_block_crcs` makes of them that of many blocks.

    Parameters
    ----------
    checks, numbers : (n,) of the blocks.

    Returns
    -------
    (n,) uint32, fresh. Where a check is not that of its block, neither is this.

    Notes
    -----
    A few nanoseconds a block; without the GIL.
    """
    crcs = np.empty(len(checks), np.uint32)
    checksum.unbound_crcs(checks, numbers, crcs)
    return crcs


def piece_crcs(data: Bytes | memoryview, n_pieces: int, crcs: Checks, start: int) -> Checks:
    """Return the CRC32C of equal pieces of blocks, by that of each block: what lies whole in a piece is not read.

    Parameters
    ----------
    data : the pieces, one after the other; they begin `start` bytes behind the first block.
    crcs : of the blocks, each alone.

    Returns
    -------
    (n_pieces,) uint32, fresh.

    Notes
    -----
    Without the GIL.
    """
    out = np.empty(n_pieces, np.uint32)
    checksum.piece_crcs(data, crcs, start, out)
    return out
