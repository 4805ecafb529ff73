"""The checks that an image's blocks must have: from the checksum file of the state that owns each, or from the
pointer to it.

The checksum file does not cover its own blocks, nor the state root; their checks stand in the pointers to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockplane.disks import aligned_buffer
from blockplane.model.addresses import BLOCK_BYTES, Checks, Numbers
from blockplane.planes import Plane
from blockplane.volume.state import CHECKS_PER_LEAF, State


class ExpectedChecks:
    """Looks checks up for the blocks of an image.

    Parameters
    ----------
    owners : states and the blocks that are read from each; the first owns whatever no other does.
    base : what its trees share with an owner's is not in the image and is not walked.
    """

    def __init__(self, owners: Sequence[tuple[State, Plane]], base: State | None) -> None:
        # with places of their own two states may both send a block that their trees share
        self._owners = [
            (_StateChecks(state, base if base is not None and base.placemap == state.placemap else None), owned)
            for state, owned in owners
        ]

    def of(self, vbns: Numbers) -> Checks:
        """Return the checks of blocks of the image, (n,) uint32."""
        first, _ = self._owners[0]
        if len(self._owners) == 1:
            return first.of(vbns)
        out = np.empty(len(vbns), np.uint32)
        left = np.ones(len(vbns), np.bool_)
        for checks, owned in self._owners[1:]:
            mine = owned.contains_many(vbns) & left
            if mine.any():
                out[mine] = checks.of(vbns[mine])
                left &= ~mine
        out[left] = first.of(vbns[left])
        return out

    @property
    def n_reads(self) -> int:
        """Blocks read to look checks up."""
        return sum(checks.n_reads for checks, _ in self._owners)


class _StateChecks:
    """The checks of one state."""

    def __init__(self, state: State, base: State | None) -> None:
        self._tree = state.checksums
        self._before = self._tree.n_reads
        numbers, checks = state.pointed_checks(base)
        order = np.argsort(numbers, kind="stable")
        self._pointed, self._pointed_checks = numbers[order], checks[order]
        #: the leaves of the call before: what advances in parallel on all disks needs few of them again
        self._leaves = np.empty(0, np.int64)
        self._rows = np.empty((0, CHECKS_PER_LEAF), np.uint32)

    @property
    def n_reads(self) -> int:
        return self._tree.n_reads - self._before

    def of(self, vbns: Numbers) -> Checks:
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
