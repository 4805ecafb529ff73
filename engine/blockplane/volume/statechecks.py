"""The checks of a state's blocks, looked up many at a time.

The checksum file does not cover its own blocks, nor the state root; their checks stand in the pointers to them.
"""

from __future__ import annotations

import numpy as np

from blockplane.disks import aligned_buffer
from blockplane.model.addresses import BLOCK_BYTES, Checks, Numbers
from blockplane.volume.state import CHECKS_PER_LEAF, State


class StateChecks:
    """Looks checks up for the blocks of one state.

    Parameters
    ----------
    base : what its checksum file shares with the state's is not asked for and is not walked. most : how many blocks
    the checksum file may have, where somebody else wrote it; None: as many as it has.

    Raises
    ------
    VolumeDamagedError : it has more.
    """

    def __init__(self, state: State, base: State | None = None, most: int | None = None) -> None:
        self._tree = state.checksums
        self._before = self._tree.n_reads
        numbers, checks = state.pointed_checks(base, most)
        order = np.argsort(numbers, kind="stable")
        self._pointed, self._pointed_checks = numbers[order], checks[order]
        #: the leaves of the call before: what advances in parallel on all disks needs few of them again
        self._leaves = np.empty(0, np.int64)
        self._rows = np.empty((0, CHECKS_PER_LEAF), np.uint32)

    @property
    def n_reads(self) -> int:
        """Blocks read to look checks up."""
        return self._tree.n_reads - self._before

    def of(self, vbns: Numbers) -> Checks:
        """Return the checks of blocks of the state, (n,) uint32."""
        leaves = vbns // CHECKS_PER_LEAF
        self._fetch(np.unique(leaves))
        out = self._rows[np.searchsorted(self._leaves, leaves), vbns % CHECKS_PER_LEAF]
        at = np.searchsorted(self._pointed, vbns)
        inside = at < len(self._pointed)
        special = np.flatnonzero(inside)[self._pointed[at[inside]] == vbns[inside]]
        out[special] = self._pointed_checks[at[special]]
        return out

    def _fetch(self, wanted: Numbers) -> None:
        """Hold the wanted leaves, those that are not held already read with one request."""
        held = np.isin(wanted, self._leaves, assume_unique=True)
        if held.all() and len(wanted) == len(self._leaves):
            return
        rows = aligned_buffer(len(wanted) * BLOCK_BYTES).view(np.uint32).reshape(-1, CHECKS_PER_LEAF)
        missing = aligned_buffer(int((~held).sum()) * BLOCK_BYTES)
        self._tree.read_scattered(wanted[~held], missing)
        rows[held] = self._rows[np.searchsorted(self._leaves, wanted[held])]
        rows[~held] = missing.view(np.uint32).reshape(-1, CHECKS_PER_LEAF)
        self._leaves, self._rows = wanted, rows
