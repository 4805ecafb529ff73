"""Places that shadows mean: new content goes elsewhere as long as something else is free (DESIGN.md, Volume).

Only a wish. Every place is given out before the volume is full, and nothing depends on what stands here: leaves are
worked out from the shadows' planes when an area is looked at, and forgotten when there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from blockplane.model.errors import DiskError, VolumeDamagedError
from blockplane.volume.leafbits import EMPTY_LEAF, Leaf
from blockplane.volume.space import AreaName, Space

if TYPE_CHECKING:
    from blockplane.volume.shadows import ShadowPlane

# 16 MiB, as many as `Space` keeps.
MAX_LEAVES: Final = 4096
# Areas looked at for one band, for stripes that no shadow means. Each costs at most a few block reads for each leaf
# that is in no memory; more find such stripes sooner, and make a band's first block wait longer.
LOOK_AREAS: Final = 4


class SparedPlaces:
    """What the shadows of a local tree mean, as places.

    Parameters
    ----------
    planes : gives what is left of every shadow.
    """

    def __init__(self, planes: Callable[[], Iterable[ShadowPlane]]) -> None:
        self._planes = planes
        self._leaves: dict[int, Leaf] = {}

    def leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range some shadow means; do not write to it."""
        found = self._leaves.get(leaf)
        if found is None:
            if len(self._leaves) >= MAX_LEAVES:
                for key in list(self._leaves)[: MAX_LEAVES // 2]:
                    del self._leaves[key]
            found = self._leaves[leaf] = self._union(leaf)
        return found

    def _union(self, leaf: int) -> Leaf:
        """Read a leaf of every shadow; one that several share once. One that is damaged spares nothing.

        Raises
        ------
        DiskError: a disk does not answer now.
        """
        out, seen = EMPTY_LEAF, set()
        for plane in self._planes():
            try:
                key = plane.leaf_key(leaf)
                if key not in seen:
                    out = out | plane.place_leaf(leaf)
                    seen.add(key)
            except DiskError:
                raise
            except VolumeDamagedError:
                continue
        return out

    def cleared(self, leaf: int, words: Leaf) -> None:
        """Note places that got new content: no shadow means them any more."""
        if leaf in self._leaves:
            self._leaves[leaf] = self._leaves[leaf] & ~words

    def forget(self) -> None:
        """Drop all leaves: a shadow came or went."""
        self._leaves.clear()


class Round:
    """A walk round the areas, a few at a time, for stripes that no shadow means.

    After a round that found none, as many calls look at nothing as it looked at areas: what a band costs does not grow
    with the volume.
    """

    def __init__(self, space: Space, backward: bool) -> None:
        self._space, self._backward = space, backward
        self._ahead: Iterator[AreaName] = iter(())
        self._n_looked = self._n_wait = 0

    def names(self, start: AreaName) -> list[AreaName]:
        """Return the areas to look at now; a new round begins at start."""
        if self._n_wait:
            self._n_wait -= 1
            return []
        if not self._n_looked:
            self._ahead = self._space.walk(start, self._backward)
        found = list(islice(self._ahead, LOOK_AREAS))
        self._n_looked += len(found)
        if len(found) < LOOK_AREAS:
            self._n_wait, self._n_looked = self._n_looked, 0
        return found

    def found(self) -> None:
        """Note that an area had some: the next round begins there."""
        self._n_looked = self._n_wait = 0
