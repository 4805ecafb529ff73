"""Reading blocks by number: of a committed state straight from the disks, of the open CP out of its bands too."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.array import DiskArray
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.openmap import OpenMap
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.placer import Placer
from blockplane.volume.runs import runs_of
from blockplane.volume.treeio import Block


class PlaceReader:
    """Reads VBNs of one committed state straight from the disks.

    Attributes
    ----------
    placemap : where they lie; exchanged where blocks of the state have moved.
    """

    def __init__(self, array: DiskArray, placemap: PlaceMap) -> None:
        self._array = array
        self.placemap = placemap

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Fill out with the blocks of extents, in order.

        Raises
        ------
        VolumeDamagedError: a number lies outside the volume.
        """
        _read_in_range(self._array, self.placemap.extents_to_places(extents), out)


class LiveReader:
    """Reads of the open CP: sees what is still in bands.

    Parameters
    ----------
    lock : the volume's. placemap : gives the map of what is read, as it is now.
    """

    def __init__(
        self, array: DiskArray, placer: Placer, lock: threading.RLock, placemap: Callable[[], PlaceMap | OpenMap]
    ) -> None:
        self._array = array
        self._placer = placer
        self._lock = lock
        self._placemap = placemap

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Fill out with the blocks of extents, in order."""
        places = self._placemap().extents_to_places(extents)
        with self._lock:
            if self._placer.has_unsettled:
                self._read_unsettled(places, out)
                return
        _read_in_range(self._array, places, out)

    def _read_unsettled(self, places: NDArray[np.int64], out: Block) -> None:
        """Read places of which some may still be in bands."""
        numbers = np.concatenate([np.arange(start, stop) for start, stop in places.tolist()])
        found = self._placer.read_back(numbers, out)
        if not found.any():
            _read_in_range(self._array, places, out)
            return
        rest = np.flatnonzero(~found)
        if len(rest):
            part = np.empty(len(rest) * BLOCK_BYTES, np.uint8)
            _read_in_range(self._array, runs_of(numbers[rest]), part)
            out.reshape(-1, BLOCK_BYTES)[rest] = part.reshape(-1, BLOCK_BYTES)


def _read_in_range(array: DiskArray, places: NDArray[np.int64], out: Block) -> None:
    """Read places that come from pointers.

    Raises
    ------
    VolumeDamagedError: a place lies outside every group.
    """
    try:
        array.read_places(places, out)
    except IndexError as error:
        raise VolumeDamagedError(f"a pointer leads outside the volume: {error}", "run `blockplane check`") from None
