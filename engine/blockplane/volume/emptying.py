"""Moving what lies in a RAID group to the others, step by step, so that the group can be taken out.

Cut short anywhere, the next step goes on with what is still there. The old places are given to nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.geometry import GroupRecord
from blockplane.volume import moving, rehousing
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, count, numbers_in
from blockplane.volume.moving import STEP_BLOCKS, state_leaf

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Blocks of the local tree that a step places anew: they stay in memory until its end, 16 MiB.
STEP_LOCAL_BLOCKS: Final = 4096

Numbers = NDArray[np.int64]


def leaves_of_group(group: GroupRecord) -> range:
    """Return the leaves of a group's places; no other group has any of them."""
    return range(group.first // LEAF_BLOCKS, -(-group.stop // LEAF_BLOCKS))


def n_in_group(volume: LiveVolume, group: GroupRecord) -> tuple[int, int, int]:
    """Return how many places of a group states have, how many the local tree, and in how many runs the former lie."""
    n_state, n_local, n_runs = 0, 0, 0
    for leaf in leaves_of_group(group):
        words = state_leaf(volume, leaf)
        if words.any():
            n_state += count(words)
            before = np.concatenate(([np.uint64(0)], words[:-1])) >> np.uint64(63)
            n_runs += count(words & ~((words << np.uint64(1)) | before))
        n_local += count(volume.committed_local.local_leaf(leaf))
    return n_state, n_local, n_runs


def is_left(volume: LiveVolume, group: GroupRecord) -> bool:
    """Whether the last two CPs, and the open one, have nothing in a group."""
    states = (volume.committed, volume.previous)
    trees = (volume.committed_local, volume.previous_local)
    for leaf in leaves_of_group(group):
        words = EMPTY_LEAF
        for state in states:
            words = words | state.place_leaf(leaf)
        for local in trees:
            words = words | local.held_leaf(leaf) | local.local_leaf(leaf)
            for image in local.incoming.images():
                words = words | image.landed_leaf(leaf)
        words = words | volume.incoming.leaf(leaf)
        if words.any():
            return False
    return True


class Emptying:
    """The steps that empty the group which is to be taken out. The volume's lock is held during one."""

    def __init__(self, volume: LiveVolume, group: GroupRecord) -> None:
        self._volume, self._group = volume, group
        self._leaf = leaves_of_group(group).start

    def step(self, most: int = STEP_BLOCKS) -> int:
        """Move what lies there, at most so many; return how many.

        Blocks of states go first, then what interrupted receives have there, then the local tree's.

        Durable on return. 0: nothing is there any more.

        Raises
        ------
        RefusedError : a receive is under way. ChecksumError : a block is damaged, and stays where it is.
        """
        volume = self._volume
        moving.begin(volume)
        places = self._next(most)
        if len(places):
            self._make_room(len(places))
            moving.adopt(volume, places, moving.copied(volume, places))
            n_moved = len(places)
        elif not (n_moved := rehousing.move_on(volume, leaves_of_group(self._group), most)):
            n_moved = moving.touched(volume, self._group.first, self._group.stop, STEP_LOCAL_BLOCKS)
        if n_moved:
            volume.commit(force=True)
        return n_moved

    def _next(self, most: int) -> Numbers:
        """Return the next places that states have, ascending."""
        found = [np.empty(0, np.int64)]
        for leaf in range(self._leaf, leaves_of_group(self._group).stop):
            self._leaf = leaf
            numbers = numbers_in(state_leaf(self._volume, leaf), leaf * LEAF_BLOCKS)[:most]
            found.append(numbers)
            most -= len(numbers)
            if most <= 0:
                return np.concatenate(found)
        self._leaf = leaves_of_group(self._group).start
        return np.concatenate(found)

    def _make_room(self, n_blocks: int) -> None:
        """Let two CPs pass over what waits for that, where it is wanted now."""
        volume = self._volume
        if volume.free_blocks - volume.space.n_pending < n_blocks:
            volume.commit(force=True)
            volume.commit(force=True)
