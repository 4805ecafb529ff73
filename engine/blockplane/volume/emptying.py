"""Moving what lies in a RAID group to the others: places change and names never do (DESIGN.md, law 4).

One step is one consistency point: blocks are copied to free places elsewhere, and the place map of every state that has
them says so, all at once. What several states share moves once. The old places stay as they are, and are given to
nobody, so that the CPs before are whole. Cut short anywhere, the next step goes on with what is still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from blockplane.disks.disk import aligned_buffer
from blockplane.disks.geometry import GroupRecord
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError, RefusedError
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, Leaf, count, numbers_in
from blockplane.volume.placemap import moved
from blockplane.volume.runs import runs_of
from blockplane.volume.state import State

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

#: Blocks of a step: 1 GiB. What a kill costs; each step writes anew what of the place maps it changes.
STEP_BLOCKS: Final = (1 << 30) // BLOCK_BYTES
#: Blocks read at once: 8 MiB.
BATCH_BLOCKS: Final = 2048
#: Blocks of the local tree that a step places anew: they stay in memory until its end, 16 MiB.
STEP_LOCAL_BLOCKS: Final = 4096

Numbers = NDArray[np.int64]


def leaves_of_group(group: GroupRecord) -> range:
    """Return the leaves of a group's places; no other group has any of them."""
    return range(group.first // LEAF_BLOCKS, -(-group.stop // LEAF_BLOCKS))


def state_leaf(volume: LiveVolume, leaf: int) -> Leaf:
    """Return the places of a leaf's range that states of the last CP have, shadows' trees included."""
    return volume.committed.place_leaf(leaf) | volume.committed_local.held_leaf(leaf)


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
        if words.any():
            return False
    return True


class Emptying:
    """The steps that empty the group which is to be taken out. The volume's lock is held during one."""

    def __init__(self, volume: LiveVolume, group: GroupRecord) -> None:
        self._volume, self._group = volume, group
        self._leaf = leaves_of_group(group).start

    def step(self, most: int = STEP_BLOCKS) -> int:
        """Move what lies there, at most so many blocks of states or else some of the local tree; return how many.

        Durable on return. 0: nothing is there any more.

        Raises
        ------
        RefusedError : a receive is under way. ChecksumError : a block is damaged, and stays where it is.
        """
        volume = self._volume
        if volume.incoming.is_running:
            raise RefusedError("a receive is under way", "go on when it has ended: what moved stays moved")
        volume.commit()
        for entry in volume.local.regular():
            volume.snapshot_state(entry)  # of one that cannot be read nobody knows what lies where
        places = self._next(most)
        if len(places):
            self._make_room(len(places))
            self._adopt(places, self._copied(places))
            n_moved = len(places)
        else:
            n_moved = volume.local.touch_within(self._group.first, self._group.stop, STEP_LOCAL_BLOCKS)
            if n_moved:
                volume.local.shadows.store()
        if n_moved:
            volume.commit(force=True)
            for entry in volume.local.entries():
                volume.forget_state(entry.record.id)
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

    def _copied(self, places: Numbers) -> Numbers:
        """Copy blocks to free places; return these, in order."""
        try:
            return self._copy(places)
        except ChecksumError:  # what was copied is nobody's
            self._volume.commit(force=True)
            self._volume.space.forget()
            raise

    def _copy(self, places: Numbers) -> Numbers:
        volume, new = self._volume, np.empty(len(places), np.int64)
        for start, data in self._read(places):
            at, n_blocks = start, len(data) // BLOCK_BYTES
            for first, n, buffer in volume.placer.run(n_blocks):
                low = (at - start) * BLOCK_BYTES
                buffer[:] = data[low : low + n * BLOCK_BYTES].reshape(buffer.shape)
                volume.placer.filled(first, n)
                new[at : at + n] = np.arange(first, first + n)
                at += n
        return new

    def _read(self, places: Numbers) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (which is the first, bytes) of blocks, a batch at a time, each held against its check."""
        volume = self._volume
        for start in range(0, len(places), BATCH_BLOCKS):
            part = places[start : start + BATCH_BLOCKS]
            data = aligned_buffer(len(part) * BLOCK_BYTES)
            volume.array.read_places(runs_of(part), data)
            bad = np.flatnonzero(volume.beside.checks.expected(part).bad(data.reshape(-1, BLOCK_BYTES)))
            if len(bad):
                place = int(part[bad[0]])
                raise ChecksumError(
                    f"the block at place {place} does not match its checksum, and is not moved", place,
                    "run `blockplane scrub --repair`, or delete what `blockplane check` says it belongs to; then go on",
                )  # fmt: skip
            yield start, data

    def _adopt(self, old: Numbers, new: Numbers) -> None:
        """Have every state that has blocks at old places look for them at the new ones."""
        volume, local = self._volume, self._volume.local
        local.shadows.relocate(old, new)
        for entry in local.regular():
            state = volume.snapshot_state(entry)
            vbns, mine = _names(state, old)
            if mine.any():
                local.replace_map(entry, moved(state.placemap, vbns[mine], new[mine]))
        active = volume.active
        vbns, mine = _names(active, old)
        if mine.any():
            volume.relocate(moved(active.placemap, vbns[mine], new[mine]))
        local.move_held(old, new)
        local.is_dirty = True


def _names(state: State, places: Numbers) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the VBNs that a state has at places, and which of these it has any at."""
    vbns = state.placemap.to_vbns(places)
    mine = (vbns >= 0) & (vbns < state.space_blocks)
    mine[mine] = state.holds(vbns[mine])
    return vbns, mine
