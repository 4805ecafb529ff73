"""Free places in long runs: what a receive that relocates lays its blocks in, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import NoSpaceError
from blockplane.volume.leafbits import LEAF_BLOCKS, WORD_BLOCKS, Leaf
from blockplane.volume.placemap import bit_runs, range_leaf
from blockplane.volume.space import AreaName, Space

#: Stripe words laid disk by disk where chunks are long: 256 stripes, one band of a receive.
_UNIT_WORDS: Final = 4

Extents = NDArray[np.int64]


class FreePlaces:
    """Takes free places: those of 64 whole stripes at a time, which a receive writes without reading, then single ones.

    Parameters
    ----------
    reserve : (leaf, words) takes places.
    """

    def __init__(self, space: Space, reserve: Callable[[int, Leaf], None]) -> None:
        self._space = space
        self._reserve = reserve

    def take(self, n_blocks: int) -> Extents:
        """Take n_blocks places and return them as extents, in the order in which they are best filled.

        Raises
        ------
        NoSpaceError : so many are not free. What was taken stays so; its taker gives it up.
        """
        found = [np.empty((0, 2), np.int64)]
        for part in self._parts():
            if n_blocks <= 0:
                break
            sizes = np.cumsum(part[:, 1] - part[:, 0])
            part = part[: int(np.searchsorted(sizes, n_blocks)) + 1].copy()
            part[-1, 1] -= max(int(sizes[len(part) - 1]) - n_blocks, 0)
            self._take(part)
            found.append(part)
            n_blocks -= int((part[:, 1] - part[:, 0]).sum())
        if n_blocks > 0:
            raise NoSpaceError(f"there is no place for {n_blocks} more blocks", "delete snapshots, or grow the volume")
        return np.concatenate(found)

    def _parts(self) -> Iterator[Extents]:
        """Yield free places, some at a time; what one yields is taken, all of it or the rest not asked for."""
        for clean in (True, False) if self._space.is_sparing else (False,):
            for name in self._space.walk((0, 0)):
                words = self._whole_words(name, clean)
                if len(words):
                    yield np.column_stack((words, words + 1)) * WORD_BLOCKS
        for leaf in range(-(-self._space.geometry.n_blocks // LEAF_BLOCKS)):
            free = ~self._space.leaf(leaf)
            if free.any():
                yield bit_runs(free) + leaf * LEAF_BLOCKS

    def _whole_words(self, name: AreaName, clean: bool) -> NDArray[np.int64]:
        """Return the place words of an area's stripe words that are wholly free, in the order to fill them."""
        area = self._space.area(name)
        whole = np.flatnonzero(area.whole_words(clean))
        words = self._space.stripe_words(name)[whole]
        unit = min(area.group.chunk_blocks // WORD_BLOCKS, _UNIT_WORDS)
        if unit == 1 or not len(whole):
            return words.reshape(-1)
        stripe, disk = np.broadcast_arrays(whole[:, None], np.arange(words.shape[1])[None, :])
        order = np.lexsort((stripe.reshape(-1), disk.reshape(-1), (stripe // unit).reshape(-1)))
        return words.reshape(-1)[order]

    def _take(self, extents: Extents) -> None:
        pieces = extents.copy()
        while len(pieces):
            leaf = int(pieces[0, 0]) // LEAF_BLOCKS
            start, stop = leaf * LEAF_BLOCKS, (leaf + 1) * LEAF_BLOCKS
            here = (pieces[:, 0] >= start) & (pieces[:, 1] <= stop)
            self._reserve(leaf, range_leaf(pieces[here] - start))
            pieces = pieces[~here]
