"""The checks that blocks came with, held against those that the states which bring them have.

A block is verified when it lands, against the check beside it in the stream. Whoever reads it later holds it against
the checksum file of a state. Both must be the same check, or the state could not be read where it was taken for whole.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import Checks, Numbers
from blockplane.model.errors import ChecksumError, StreamDamagedError, VolumeDamagedError
from blockplane.planes import Plane, combine
from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in
from blockplane.volume.state import CHECKS_PER_LEAF, State
from blockplane.volume.statechecks import StateChecks
from blockplane.volume.waiting import leaves_of_plane, plane_leaf

#: A sum for each block of a checksum file, so many to a leaf of a plane.
_ROWS: Final = LEAF_BLOCKS // CHECKS_PER_LEAF
_MASK: Final = (1 << 64) - 1
Sums = NDArray[np.uint64]


class LandedChecks:
    """Notes checks while blocks land, and compares when all are there.

    Notes
    -----
    What is noted is a sum of check times factor, modulo 2^64, for 1,024 VBNs at a time. The factors are drawn anew for
    each receive: checks that differ have equal sums with a chance of 2^-33, whoever chose them. Memory: 8 bytes for
    1,024 VBNs. Of the disks nothing is read but checksum blocks, and the blocks of sums that differ, to name one.
    """

    def __init__(self) -> None:
        self._factors = np.frombuffer(secrets.token_bytes(8 * LEAF_BLOCKS), np.uint64)
        self._sums: dict[int, Sums] = {}

    def note(self, vbns: Numbers, checks: Checks) -> None:
        """Take in the checks of blocks, each block once."""
        products, rows = checks * self._factors[vbns & (LEAF_BLOCKS - 1)], vbns // CHECKS_PER_LEAF
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        for row, total in zip(rows[starts].tolist(), np.add.reduceat(products, starts).tolist(), strict=True):
            leaf, at = divmod(row, _ROWS)
            sums = self._sums.get(leaf)
            if sums is None:
                sums = self._sums[leaf] = np.zeros(_ROWS, np.uint64)
            sums[at] = (int(sums[at]) + total) & _MASK

    def require_equal(
        self, states: Sequence[State], base: State | None, landed: Plane, first_other: Callable[[State, Plane], int]
    ) -> None:
        """Compare with the checks that states have for what landed.

        Parameters
        ----------
        states : those that arrive, older first; their roots rightly say how many blocks they hold. base : what they
        build on. landed : the VBNs whose checks were noted.
        first_other : reads those blocks of a plane that a state holds, and returns the first one that does not match
        its check of the state's, or -1.

        Raises
        ------
        StreamDamagedError : a state has another check for a block, and the message names it; or its checksum file is
        damaged.
        """
        try:
            self._require_equal(states, base, landed, first_other)
        except (ChecksumError, VolumeDamagedError) as error:
            raise StreamDamagedError(
                f"the checksum file of what arrives cannot be read: {error.message}", "its sender is at fault"
            ) from error

    def _require_equal(
        self, states: Sequence[State], base: State | None, landed: Plane, first_other: Callable[[State, Plane], int]
    ) -> None:
        own = {state.pointer: state for state in reversed(states)}.values()  # one state has several names at times
        looked_up = [(state, StateChecks(state, base, state.root.n_blocks)) for state in own]
        for leaf in leaves_of_plane(landed):
            low, first = numbers_in(plane_leaf(landed, leaf)), leaf * LEAF_BLOCKS
            found, known = np.zeros(len(low), np.uint32), np.zeros(len(low), np.bool_)
            rows = np.zeros(_ROWS, np.bool_)
            for state, checks in looked_up:
                inside = state.holds(low + first) if leaf < state.n_leaves else np.zeros(len(low), np.bool_)
                if inside.any():
                    mine = checks.of(low[inside] + first)
                    rows[low[inside][known[inside] & (found[inside] != mine)] // CHECKS_PER_LEAF] = True
                    found[inside], known[inside] = mine, True
            starts = np.flatnonzero(np.diff(low // CHECKS_PER_LEAF, prepend=-1))
            sums = np.zeros(_ROWS, np.uint64)
            sums[low[starts] // CHECKS_PER_LEAF] = np.add.reduceat(found * self._factors[low], starts)
            rows |= sums != self._sums.get(leaf, np.zeros(_ROWS, np.uint64))
            for row in np.flatnonzero(rows).tolist():
                # it may be a block of a snapshot that does not arrive
                start = first + row * CHECKS_PER_LEAF
                stop = min(start + CHECKS_PER_LEAF, landed.n_blocks)
                suspects = combine([landed], within=Plane.from_extents([(start, stop)], landed.n_blocks))
                for state in own:
                    bad = first_other(state, suspects)
                    if bad >= 0:
                        raise StreamDamagedError(
                            f"block {bad} came with a checksum that is not the one which its snapshot has for it",
                            "its sender is at fault, or somebody changed the stream",
                        )
