"""Where blocks of the open CP lie: the live state's place map, and beside it what was written since the last CP."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockplane.volume.placemap import PlaceMap, from_pairs, pieces_of

#: (n, 2): VBN, place.
Pairs = NDArray[np.int64]


class AddedNames:
    """Blocks of the open CP that have another name than their place: parts, each ascending, every one larger by far
    than the next, so that what is added is merged a few times and looked up in few.
    """

    def __init__(self) -> None:
        self._parts: list[Pairs] = []
        self._placemap: PlaceMap | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self._parts

    def add(self, vbns: NDArray[np.int64], first: int) -> None:
        """Note the names of blocks at places first, ..., in order; those that are their places are passed over."""
        places = np.arange(first, first + len(vbns), dtype=np.int64)
        away = vbns != places
        if not away.any():
            return
        pairs = _ascending(np.column_stack((vbns[away], places[away])))
        while self._parts and len(self._parts[-1]) < 2 * len(pairs):
            pairs = _ascending(np.concatenate((self._parts.pop(), pairs)))
        self._parts.append(pairs)
        self._placemap = None

    def place_of(self, vbn: int) -> int:
        """Return the place of a VBN: its own where it is none of them."""
        for pairs in self._parts:
            at = int(np.searchsorted(pairs[:, 0], vbn))
            if at < len(pairs) and pairs[at, 0] == vbn:
                return int(pairs[at, 1])
        return vbn

    def placemap(self) -> PlaceMap:
        """Return them as a map."""
        if self._placemap is None:
            pairs = _ascending(np.concatenate([np.empty((0, 2), np.int64), *self._parts]))
            self._placemap = from_pairs(pairs[:, 0], pairs[:, 1])
        return self._placemap


def _ascending(pairs: Pairs) -> Pairs:
    return np.asfortranarray(pairs[np.argsort(pairs[:, 0], kind="stable")])


class OpenMap:
    """Two maps as one: the second wins."""

    def __init__(self, base: PlaceMap, added: PlaceMap) -> None:
        self._base, self._added = base, added

    def extents_to_places(self, extents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return VBN extents (n, 2) as extents of places, in the same order of blocks."""
        pieces, _, row = pieces_of(extents, self._added.extents)
        if (row < 0).all():
            return self._base.extents_to_places(extents)
        parts, source, under = pieces_of(pieces, self._base.extents)
        row = row[source]
        moved = np.zeros(len(parts), np.int64)
        for rows, at in ((self._base.extents, np.where(row < 0, under, -1)), (self._added.extents, row)):
            mine = at >= 0
            moved[mine] = rows[at[mine], 2] - rows[at[mine], 0]
        places: NDArray[np.int64] = parts + moved[:, None]
        return places

    def to_places(self, vbns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the places of VBNs."""
        places = self._added.to_places(vbns)
        return np.where(places != vbns, places, self._base.to_places(vbns))
