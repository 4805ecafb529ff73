"""Where blocks of the open CP lie: the live state's place map, and beside it what was written since the last CP."""

from __future__ import annotations

import bisect

import numpy as np
from numpy.typing import NDArray

from blockplane.volume.placemap import PlaceMap, joined, pieces_of


class AddedNames:
    """Blocks of the open CP that have another name than their place."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int]] = []  # VBN, end, place; ascending
        self._placemap: PlaceMap | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is none."""
        return not self._rows

    def add(self, vbn: int, place: int, n_blocks: int) -> None:
        """Note blocks."""
        bisect.insort(self._rows, (vbn, vbn + n_blocks, place))
        self._placemap = None

    def place_of(self, vbn: int) -> int:
        """Return the place of a VBN: its own where it is none of them."""
        at = bisect.bisect_right(self._rows, (vbn, 1 << 62, 0)) - 1
        low, high, place = self._rows[at] if at >= 0 else (0, 0, 0)
        return place + vbn - low if low <= vbn < high else vbn

    def placemap(self) -> PlaceMap:
        """Return them as a map."""
        if self._placemap is None:
            self._placemap = PlaceMap(joined(np.array(self._rows, np.int64).reshape(-1, 3)))
        return self._placemap


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
