"""Names that mean two contents: which snapshots an image would spoil.

With place maps (DESIGN.md, law 4) two states may hold a block of one name at different places. A destination that takes
the image's block under that name has no longer what its base holds under it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockplane.planes import Plane
from blockplane.volume.state import State


def is_spoilt(state: State, owners: Sequence[tuple[State, Plane]]) -> bool:
    """Whether a state holds, under the name of a block of the image, another one.

    Parameters
    ----------
    owners : the states that the image's blocks are read from, and which; they partition the image.
    """
    maps = [state.placemap, *(owner.placemap for owner, _ in owners)]
    rows, counts = np.unique(np.concatenate([m.extents for m in maps]), axis=0, return_counts=True)
    spans = [np.arange(low, high, dtype=np.int64) for low, high, _ in rows[counts < len(maps)].tolist()]
    if not spans:
        return False
    vbns = np.unique(np.concatenate(spans))
    for owner, owned in owners:
        here = vbns[owned.contains_many(vbns)]
        here = here[state.holds(here)]
        if (state.placemap.to_places(here) != owner.placemap.to_places(here)).any():
            return True
    return False
