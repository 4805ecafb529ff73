"""The checks that an image's blocks must have: from the checksum file of the state that owns each, or from the
pointer to it.

The checksum file does not cover its own blocks, nor the state root; their checks stand in the pointers to them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockplane.model.addresses import Checks, Numbers
from blockplane.planes import Plane
from blockplane.volume.state import State
from blockplane.volume.statechecks import StateChecks


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
            (StateChecks(state, base if base is not None and base.placemap == state.placemap else None), owned)
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
