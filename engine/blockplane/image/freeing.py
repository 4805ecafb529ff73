"""What deleting snapshots frees: the places that no other state has, worked out before anything is deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockplane.image.layout import Layout
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.planes import Plane
from blockplane.volume import deleting
from blockplane.volume.live import LiveVolume


@dataclass(frozen=True, slots=True)
class Freeing:
    """What deleting snapshots together would free.

    places : what becomes free, two consistency points after. alone : by name what deleting that one alone would free;
    their sum is less where several share what no other has. The consistency points that delete write metafile blocks of
    their own: they are not counted here.
    """

    names: tuple[str, ...]
    places: Plane
    blocks_per_disk: tuple[int, ...]
    alone: dict[str, int]

    @property
    def n_blocks(self) -> int:
        """How many blocks become free."""
        return len(self.places)

    @property
    def n_bytes(self) -> int:
        """Their bytes."""
        return self.n_blocks * BLOCK_BYTES


def freeing(volume: LiveVolume, names: Sequence[str]) -> Freeing:
    """Return what deleting these snapshots would free; nothing changes.

    Raises
    ------
    NoSuchSnapshotError : a name is not a snapshot here.
    """
    names = tuple(dict.fromkeys(names))
    with volume.lock:
        places = deleting.freed_places(volume, names)
        alone = {name: deleting.freed_by(volume, [name]) for name in names}
    per_disk = Layout(places, [], places.n_blocks).blocks_per_disk(volume.geometry)
    return Freeing(names, places, tuple(per_disk), alone)
