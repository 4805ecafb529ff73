"""What an interrupted receive of one image has, taken over by the receive of another.

The stream of the other says which blocks: their bytes are the same there. They stay where they are, the rest is given
up; at the end each is read and held against the check that the new image has for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

import numpy as np

from blockplane.disks import Pending, aligned_buffer
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Numbers
from blockplane.model.checks import fresh_checks
from blockplane.model.errors import RefusedError, StreamDamagedError, StreamMismatchError
from blockplane.planes import Plane, combine, combine_count
from blockplane.volume.incoming import FLAG_CARRIED, IncomingEntry, IncomingImage, leaves_of
from blockplane.volume.landed import LandedBlocks
from blockplane.volume.leafbits import LEAF_BLOCKS, LEAF_WORDS, Leaf, by_leaf, count, numbers_in, set_numbers
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.runs import runs_of
from blockplane.volume.state import State
from blockplane.volume.statechecks import StateChecks
from blockplane.volume.waiting import leaves_of_plane, plane_leaf

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Blocks read at once to be verified: 4 MiB, and as many are on their way meanwhile.
VERIFY_BLOCKS: Final = 1024


class Carried:
    """Blocks of an interrupted receive that another image takes over. The volume's lock is held.

    Parameters
    ----------
    image_id : of the image that was interrupted. wanted : the VBNs that are taken over.

    Attributes
    ----------
    leaves : their places. placemap : where those of them lie that are not at home. n_freed : how many places of the old
    image come free at once: those to which nothing came.

    Raises
    ------
    StreamMismatchError : no such receive was interrupted here, or it lacks some of them. RefusedError : it runs.
    """

    def __init__(self, volume: LiveVolume, image_id: bytes, wanted: Plane) -> None:
        self._volume = volume
        self._old = self._interrupted(image_id)
        entry = self._old.entry
        placemap = self._old.placemap()
        self._kept = LandedBlocks(volume, entry, dict(leaves_of(self._old.places)), placemap, self._old)
        self._kept.recall(lambda _: None)
        self._kept.close()
        n_missing = combine_count([wanted], minus=self._kept.plane())
        if n_missing:
            raise StreamMismatchError(
                f"the stream builds on what came of {entry.top_name}, and {n_missing} blocks of that are not in "
                f"{volume.path}",
                "ask for a token with `blockplane receive --have` and send again with it",
            )
        self.placemap = placemap.within(wanted)
        self.leaves = _leaves_at(placemap, wanted)
        #: of what the local tree knows to have landed
        self._n_kept = sum(count(words & self._old.landed_leaf(leaf)) for leaf, words in self.leaves.items())
        self.n_freed = entry.n_image - entry.n_landed - (len(wanted) - self._n_kept)

    def _interrupted(self, image_id: bytes) -> IncomingImage:
        volume = self._volume
        for image in volume.local.incoming.images():
            if image.entry.image_id != image_id:
                continue
            if volume.incoming.runs(image.entry.landing_id):
                raise RefusedError(
                    f"a receive of {image.entry.top_name} into {volume.path} is under way", "wait for its end"
                )
            return image
        raise StreamMismatchError(
            f"the stream builds on an interrupted receive of another image (id {image_id.hex()}), which {volume.path} "
            "has not",
            "ask for a token with `blockplane receive --have` and send again with it, or send without one",
        )

    def mark(self, entry: IncomingEntry) -> None:
        """Note in the entry of the new image whose blocks it has."""
        entry.flags |= FLAG_CARRIED | self._old.entry.how_made

    def release(self) -> None:
        """Give the old image's entry and places up, in the open CP; what is taken over is to be reserved at once."""
        self._kept.remove(n_kept=self._n_kept)

    def forget(self) -> None:
        """Remove what is left of the old receive, once the new one's entry is durable in both last CPs."""
        self._volume.commit(force=True)
        self._kept.forget()


def require_equal(volume: LiveVolume, state: State, copied: Plane, placemap: PlaceMap) -> None:
    """Read blocks that came before and that a state holds, and compare them with its checks.

    Parameters
    ----------
    copied : VBNs. placemap : where they lie that are not at home.

    Raises
    ------
    StreamDamagedError : a block is another one.
    """
    bad = first_other(volume, state, copied, placemap)
    if bad >= 0:
        raise StreamDamagedError(
            f"block {bad}, which an interrupted receive brought, is another one in the image",
            f"send the image whole; give up what is incoming first: blockplane receive {volume.path} --abort",
        )


def first_other(volume: LiveVolume, state: State, landed: Plane, placemap: PlaceMap) -> int:
    """Read blocks that a state holds; return the first one that does not match its check of the state's, or -1.

    Parameters
    ----------
    landed : VBNs. placemap : where they lie that are not at home.
    """
    checks = StateChecks(state)
    ahead: tuple[Numbers, Bytes, Pending] | None = None
    for vbns in chain(_spans(state, landed), [None]):
        behind, ahead = ahead, None
        if vbns is not None:
            data = aligned_buffer(len(vbns) * BLOCK_BYTES)
            ahead = vbns, data, volume.array.submit_read(runs_of(placemap.to_places(vbns)), data)
        if behind is None:
            continue
        numbers, data, pending = behind
        pending.wait()
        bad = np.flatnonzero(fresh_checks(data, numbers) != checks.of(numbers))
        if len(bad):
            return int(numbers[bad[0]])
    return -1


def _spans(state: State, copied: Plane) -> Iterator[Numbers]:
    """Yield the VBNs of a plane that a state holds, ascending, as many as are read at once."""
    for leaf in leaves_of_plane(copied):
        if leaf < state.n_leaves:
            vbns = numbers_in(plane_leaf(copied, leaf) & state.plane_leaf(leaf), leaf * LEAF_BLOCKS)
            for start in range(0, len(vbns), VERIFY_BLOCKS):
                yield vbns[start : start + VERIFY_BLOCKS]


def _leaves_at(placemap: PlaceMap, vbns: Plane) -> dict[int, Leaf]:
    """Return the places of VBNs, by leaf."""
    moved = placemap.within(vbns)
    home = vbns
    if not moved.is_empty:
        home = combine([vbns])
        home.remove_many(moved.vbns())
    leaves = {leaf: plane_leaf(home, leaf) for leaf in leaves_of_plane(home)}
    for leaf, low in by_leaf(np.sort(moved.to_places(moved.vbns()))):
        set_numbers(leaves.setdefault(leaf, np.zeros(LEAF_WORDS, np.uint64)), low)
    return leaves
