"""Blocks of an incoming image that a state here has already, under the same VBNs: they are lent, and not written anew.

A lent block lies where the lender's has it, and the new state's place map says so. Which blocks those are, the stream
says, which names the lender; or the receive finds it out, comparing what arrives with what is here, byte by byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import Pending, aligned_buffer
from blockplane.disks.array import spread
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Extents, Numbers
from blockplane.model.errors import ChecksumError, DiskError, StreamDamagedError
from blockplane.planes import Plane
from blockplane.volume.codec import SnapshotRecord
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, LEAF_WORDS, Leaf, by_leaf, numbers_in, set_numbers
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.runs import runs_of
from blockplane.volume.state import State
from blockplane.volume.statechecks import StateChecks
from blockplane.volume.waiting import leaves_of_plane, plane_leaf

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

Mask = NDArray[np.bool_]


class Borrowed:
    """What a stream takes from a snapshot here.

    Parameters
    ----------
    lender : its state. record : of the snapshot. plane : the VBNs.

    Raises
    ------
    StreamDamagedError : the lender does not have all of them.
    """

    def __init__(self, lender: State, record: SnapshotRecord, plane: Plane) -> None:
        self._lender, self._name, self.snapshot_id, self.plane = lender, record.name, record.id, plane
        for leaf in leaves_of_plane(plane):
            there = lender.plane_leaf(leaf) if leaf < lender.n_leaves else EMPTY_LEAF
            missing = plane_leaf(plane, leaf) & ~there
            if missing.any():
                vbn = int(numbers_in(missing, leaf * LEAF_BLOCKS)[0])
                raise StreamDamagedError(
                    f"the stream takes block {vbn} from snapshot {record.name}, which does not hold it",
                    "its sender is at fault",
                )

    def placemap(self) -> PlaceMap:
        """Return where those of them lie that are not at home."""
        return self._lender.placemap.within(self.plane)

    def require_equal(self, state: State) -> None:
        """Hold the checks that a state which arrived has for what it takes from the lender against the lender's.

        Raises
        ------
        StreamDamagedError : a block is another one here.

        Notes
        -----
        Reads the checksum files of both, and none of the blocks.
        """
        theirs, mine = StateChecks(state), StateChecks(self._lender)
        for leaf in leaves_of_plane(self.plane):
            vbns = numbers_in(plane_leaf(self.plane, leaf) & _state_leaf(state, leaf), leaf * LEAF_BLOCKS)
            if not len(vbns):
                continue
            differ = np.flatnonzero(theirs.of(vbns) != mine.of(vbns))
            if len(differ):
                raise self.error(f"block {int(vbns[differ[0]])} is another one there")

    def error(self, what: str) -> StreamDamagedError:
        """Return the error for a stream that takes what is not there."""
        return StreamDamagedError(
            f"the stream takes blocks from snapshot {self._name} that it does not have: {what}",
            "make a new offer with `blockplane receive VOL --offer`, and send against that",
        )


def _state_leaf(state: State, leaf: int) -> Leaf:
    return state.plane_leaf(leaf) if leaf < state.n_leaves else EMPTY_LEAF


class Trial:
    """The blocks of a frame of which some may be here already.

    Parameters
    ----------
    vbns, checks : of those blocks of the frame that are wanted. scratch : where the frame comes to lie. wanted : which
        of its blocks are; None: all. at : indexes, among the wanted, of those that are compared. local : these, as they
        are here, once `pending` is done.
    """

    def __init__(
        self, vbns: Numbers, checks: Checks, scratch: Bytes, wanted: Mask | None, at: Numbers, local: Bytes,
        pending: Pending,
    ) -> None:  # fmt: skip
        self.vbns, self.checks, self.scratch = vbns, checks, scratch
        self._wanted, self._at, self._local, self._pending = wanted, at, local, pending

    def blocks(self) -> Bytes:
        """Return the wanted blocks, (n, 4096)."""
        blocks = self.scratch.reshape(-1, BLOCK_BYTES)
        return blocks if self._wanted is None else blocks[self._wanted]

    def same(self) -> Mask:
        """Return which of the wanted blocks are here, byte for byte; after the frame came."""
        found = np.zeros(len(self.vbns), np.bool_)
        try:
            self._pending.wait()
        except DiskError:  # then they are written
            return found
        mine = self._local.view(np.uint64).reshape(-1, BLOCK_BYTES // 8)
        theirs = self.blocks().view(np.uint64)[self._at]
        found[self._at] = (mine == theirs).all(axis=1)
        return found


class Sharing:
    """Finds blocks that arrive and are here already: equal checks are candidates, equal bytes are proof.

    Parameters
    ----------
    lender : the state whose blocks are compared; it stays as it is meanwhile.
    """

    def __init__(self, volume: LiveVolume, lender: State) -> None:
        self._volume, self._lender = volume, lender
        self._checks = StateChecks(lender)
        self._shared: dict[int, Leaf] = {}
        self.n_blocks = 0

    def trial(self, extents: Extents, checks: Checks, n_frame: int, wanted: Mask | None) -> Trial | None:
        """Begin to read what may be equal to blocks that come; None: nothing may.

        Parameters
        ----------
        extents, checks : VBNs of the blocks that are wanted, and their checks. n_frame, wanted : blocks of the frame
            that brings them, and which of these are meant.
        """
        vbns = spread(extents[:, 0], extents[:, 1] - extents[:, 0])
        inside = np.flatnonzero(vbns < self._lender.space_blocks)
        at = inside[self._lender.holds(vbns[inside])]
        if len(at):
            try:
                at = at[self._checks.of(vbns[at]) == checks[at]]
            except ChecksumError:  # what the lender says of itself is damaged: it lends nothing
                at = at[:0]
        if not len(at):
            return None
        local = aligned_buffer(len(at) * BLOCK_BYTES)
        places = self._lender.placemap.to_places(vbns[at])
        pending = self._volume.array.submit_read(runs_of(places), local)
        return Trial(vbns, checks, aligned_buffer(n_frame * BLOCK_BYTES), wanted, at, local, pending)

    def note(self, vbns: Numbers) -> None:
        """Note blocks that are here."""
        self.n_blocks += len(vbns)
        for leaf, low in by_leaf(vbns):
            set_numbers(self._shared.setdefault(leaf, np.zeros(LEAF_WORDS, np.uint64)), low)

    def plane(self, n_blocks: int) -> Plane:
        """Return the VBNs that are here, of a space of n_blocks."""
        builder = Plane.builder(n_blocks)
        for leaf, words in sorted(self._shared.items()):
            builder.append(leaf * LEAF_WORDS, words[: -(-n_blocks // 64) - leaf * LEAF_WORDS])
        return builder.finish()

    def placemap(self, plane: Plane) -> PlaceMap:
        """Return where those of a plane lie that are not at home."""
        return self._lender.placemap.within(plane)
