"""The checks that an image's blocks must have: from the checksum file of the state that owns each, or from the
pointer to it.

The checksum file does not cover its own blocks, nor the state root; their checks stand in the pointers to them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES, Checks, Numbers
from blockplane.planes import Plane
from blockplane.volume.state import CHECKS_PER_LEAF, State

#: Leaves kept a state: 2 MiB. Disks are a few stripes apart, so that what one window read the next one needs.
_KEPT_LEAVES: Final = 512


class ExpectedChecks:
    """Looks checks up for the blocks of an image.

    Parameters
    ----------
    owners : states and the blocks that are read from each; the first owns whatever no other does.
    base : what its trees share with an owner's is not in the image and is not walked.
    """

    def __init__(self, owners: Sequence[tuple[State, Plane]], base: State | None) -> None:
        self._owners = [(_StateChecks(state, base), owned) for state, owned in owners]

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
        self._kept: OrderedDict[int, Checks] = OrderedDict()

    @property
    def n_reads(self) -> int:
        return self._tree.n_reads - self._before

    def of(self, vbns: Numbers) -> Checks:
        leaves = vbns // CHECKS_PER_LEAF
        wanted = np.unique(leaves)
        self._fetch(wanted)
        rows = np.stack([self._kept[leaf] for leaf in wanted.tolist()]) if len(wanted) else np.empty((0, 1), np.uint32)
        out = rows[np.searchsorted(wanted, leaves), vbns % CHECKS_PER_LEAF]
        at = np.searchsorted(self._pointed, vbns)
        inside = at < len(self._pointed)
        special = np.flatnonzero(inside)[self._pointed[at[inside]] == vbns[inside]]
        out[special] = self._pointed_checks[at[special]]
        return out

    def _fetch(self, wanted: Numbers) -> None:
        """Bring leaves into the cache, neighbours in one read."""
        missing = np.array([leaf for leaf in wanted.tolist() if leaf not in self._kept], np.int64)
        for run in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else ():
            data = np.empty(len(run) * BLOCK_BYTES, np.uint8)
            self._tree.read(int(run[0]), len(run), data)
            for leaf, row in zip(run.tolist(), data.view(np.uint32).reshape(len(run), -1), strict=True):
                self._kept[leaf] = row
        for leaf in wanted.tolist():
            self._kept.move_to_end(leaf)
        while len(self._kept) > max(_KEPT_LEAVES, len(wanted)):
            self._kept.popitem(last=False)
