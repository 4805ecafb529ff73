"""The digest over a stream's planes."""

from __future__ import annotations

import hashlib

import numpy as np

from blockplane.image.extents import merged
from blockplane.model.addresses import Extents
from blockplane.planes import Plane


class PlaneDigest:
    """SHA-256 over planes as runs: the same for every encoding of the same sets.

    Fed with the image plane and then the dropped plane; each is a sequence of maximal runs, ascending, as pairs of
    64-bit numbers [start, stop), closed by a pair of all ones.
    """

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._pending: Extents = np.empty((0, 2), np.int64)

    def update(self, extents: Extents) -> None:
        """Add runs above those added so far; a run may touch the one before."""
        if not len(extents):
            return
        runs = merged(np.concatenate((self._pending, extents)))
        self._sha.update(runs[:-1].astype("<i8").tobytes())
        self._pending = runs[-1:]

    def end_plane(self) -> None:
        """Close a plane."""
        self._sha.update(self._pending.astype("<i8").tobytes() + b"\xff" * 16)
        self._pending = np.empty((0, 2), np.int64)

    def digest(self) -> bytes:
        """Return the 32 bytes."""
        return self._sha.digest()


def image_id(space_id: bytes, top_id: bytes, base_id: bytes, planes: bytes) -> bytes:
    """Return the 16 bytes that name an image: equal ones mean the same blocks with the same bytes.

    Parameters
    ----------
    planes : `plane_digest` over the image plane and the dropped plane. The ids are those of snapshots, whose blocks
        never change.
    """
    return hashlib.sha256(space_id + top_id + base_id + planes).digest()[:16]


def plane_digest(*planes: Plane) -> bytes:
    """Return the digest over planes, in this order."""
    digest = PlaneDigest()
    for plane in planes:
        for extents in plane.iter_extents(1 << 16):
            digest.update(extents)
        digest.end_plane()
    return digest.digest()
