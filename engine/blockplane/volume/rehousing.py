"""Moving what interrupted receives have reserved out of a RAID group (part of `emptying.py`).

Places to which nothing has come yet are exchanged for others. Blocks that have come are copied: no state knows what
checks they must have, so they are held against those of the image when it is whole, before anybody sees them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.array import spread
from blockplane.model.errors import NoSpaceError
from blockplane.volume import moving
from blockplane.volume.incoming import FLAG_CARRIED, IncomingImage, leaves_of
from blockplane.volume.landed import LandedBlocks
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, Leaf, count, numbers_in
from blockplane.volume.packing import FreePlaces

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

Numbers = NDArray[np.int64]


def n_reserved(volume: LiveVolume, leaves: range) -> int:
    """Return how many places of leaves interrupted receives have reserved."""
    return sum(count(volume.incoming.leaf(leaf)) for leaf in leaves) if volume.incoming else 0


def move_on(volume: LiveVolume, leaves: range, most: int) -> int:
    """Move places of leaves that an interrupted receive has, at most so many, in the open CP; return how many.

    Raises
    ------
    NoSpaceError : the other groups have no room for them.
    """
    for image in volume.local.incoming.images():
        if any(image.places.read_block(leaf).any() for leaf in leaves):
            return _move_image(volume, image, leaves, most)
    return 0


def _move_image(volume: LiveVolume, image: IncomingImage, leaves: range, most: int) -> int:
    landed, flags = _landed(volume, image), image.entry.flags
    empty, full = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for leaf in leaves:
        words, came = image.places.read_block(leaf).view(np.uint64), landed.get(leaf, EMPTY_LEAF)
        empty.append(numbers_in(words & ~came, leaf * LEAF_BLOCKS))
        full.append(numbers_in(words & came, leaf * LEAF_BLOCKS))
    old = np.concatenate(empty)[:most]
    if len(old):  # first: what comes later goes to no stripes that have blocks of this image
        new = _taken(volume, len(old))
    else:
        old = np.concatenate(full)[:most]
        new = moving.copied(volume, old, are_known=False)
        flags |= FLAG_CARRIED
    with volume.changing():
        image.relocate(old, new, landed)
        image.entry.flags = flags
        volume.local.incoming.changed()
    return len(old)


def _landed(volume: LiveVolume, image: IncomingImage) -> dict[int, Leaf]:
    """Return what came, by leaf, what the journal of the receive alone knows included."""
    places = dict(leaves_of(image.places))
    kept = LandedBlocks(volume, image.entry, places, image.placemap(), image)
    kept.recall(lambda _: None)
    kept.close()
    return {leaf: kept.leaf(leaf) for leaf in places}


def _taken(volume: LiveVolume, n_blocks: int) -> Numbers:
    """Take so many free places, or none."""
    found = [np.empty(0, np.int64)]

    def take(leaf: int, words: Leaf) -> None:
        found.append(numbers_in(words, leaf * LEAF_BLOCKS))
        volume.space.take_numbers(found[-1])

    try:
        extents = FreePlaces(volume.space, take).take(n_blocks)
    except NoSpaceError:
        volume.space.release_now(np.concatenate(found))
        raise
    return spread(extents[:, 0], extents[:, 1] - extents[:, 0])
