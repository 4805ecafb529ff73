"""In which order the blocks of a stream come, as far as its header says: what a receive lays in a row follows it."""

from __future__ import annotations

from collections.abc import Iterator

from blockplane.disks.geometry import Geometry
from blockplane.image.layout import count_within
from blockplane.image.order import DISK, TAPE, WINDOW_BLOCKS, locations
from blockplane.model.addresses import Extents
from blockplane.model.errors import UsageError
from blockplane.planes import Plane
from blockplane.stream.locations import MAX_DISKS
from blockplane.stream.reader import StreamMap
from blockplane.volume.landing_places import Arrival

#: Smaller windows cost more than the guess is worth.
_MIN_WINDOW_BLOCKS = 256


def arrival_of(stream: StreamMap) -> Arrival:
    """Return what gives the order in which a plane's blocks come, window by window.

    Notes
    -----
    A guess where the source's blocks lie elsewhere than at their numbers: nothing but speed depends on it.
    """
    header = stream.header
    # a guess: what the header says is followed where that costs little
    window_blocks = min(max(header.window_blocks, _MIN_WINDOW_BLOCKS), WINDOW_BLOCKS)

    def arrival(plane: Plane) -> Iterator[Extents]:
        geometry = _geometry(stream)
        is_cheap = geometry is not None and geometry.n_disks <= min(window_blocks, MAX_DISKS)
        if header.order == DISK and geometry is not None and is_cheap and _is_inside(plane, geometry):
            return locations(plane, geometry, DISK, window_blocks)
        return locations(plane, Geometry(()), TAPE, window_blocks)

    return arrival


def _geometry(stream: StreamMap) -> Geometry | None:
    try:
        return Geometry(stream.header.groups)
    except UsageError:
        return None


def _is_inside(plane: Plane, geometry: Geometry) -> bool:
    """Whether every block of a plane has its number's place in a geometry."""
    return sum(count_within(plane, group.first, group.stop) for group in geometry.groups) == len(plane)
