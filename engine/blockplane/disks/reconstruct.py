"""One block of a stripe worked out from the others: through P (XOR), through Q (GF(2^8), 0x11d)."""

from __future__ import annotations

import functools

import numpy as np

from blockplane.disks.parity import compute_parity
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Numbers

_POLYNOMIAL = 0x11D


def missing_blocks(data: Bytes, parity: Bytes, which: int, missing: Numbers) -> Bytes:
    """Work out one data block of each of some stripes; what data holds in its place does not count.

    Parameters
    ----------
    data : (n_data, n, 4096). parity : (n, 4096), P for which = 0, Q for 1.
    missing : (n,) int64, the data disk whose block is wanted, for each stripe.

    Returns
    -------
    (n, 4096) uint8, fresh.
    """
    n = len(missing)
    known = data.copy()
    known[missing, np.arange(n)] = 0
    found = np.empty((which + 1, n, BLOCK_BYTES), np.uint8)
    compute_parity(known, found)
    rest: Bytes = found[which] ^ parity
    if which:
        for disk in np.unique(missing).tolist():
            at = missing == disk
            rest[at] = _divide_table(disk)[rest[at]]
    return rest


@functools.cache
def _divide_table(disk: int) -> Bytes:
    """(256,): every byte divided by 2^disk in GF(2^8)."""
    table = np.arange(256, dtype=np.uint16)
    for _ in range(disk):
        table = np.where(table & 1, (table ^ _POLYNOMIAL) >> 1, table >> 1)
    return table.astype(np.uint8)
