"""Which blocks of pointers a walk of trees has met: to follow one again may have no end."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import VolumeDamagedError
from blockplane.planes import Plane
from blockplane.volume.codec import KIND_BLOCK, KIND_SHIFT, NUMBER_MASK


class NodesMet:
    """Nodes by level: a tree that leads into itself, or two that share a node, has one of them twice."""

    def __init__(self) -> None:
        self._levels: dict[int, Plane] = {}

    def meet(self, level: int, words: NDArray[np.uint64]) -> None:
        """Note nodes of a level, by the first words (n,) of the pointers to them; holes are passed over.

        Raises
        ------
        VolumeDamagedError: a node was met before.
        """
        present = words[words >> np.uint64(KIND_SHIFT) == KIND_BLOCK]
        if not len(present):
            return
        met = self._levels.setdefault(level, Plane.empty(NUMBER_MASK + 1))
        if met.add_many((present & np.uint64(NUMBER_MASK)).astype(np.int64)):
            raise VolumeDamagedError("one block leads to several parts of a tree", "run `blockplane check`")
