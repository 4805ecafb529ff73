"""Moving blocks home: what lies at another place than its number goes there, so that place maps stay small.

A block goes home where that place is free. Where a block lies that has a home of its own here, that one moves on
first, and where one of the local tree lies, that is placed anew; what else is there stays, and the block where it is.
Snapshots, shadows, marks and what is sent from the volume know nothing of all this.

The numbers are gone through once, ascending, some leaves at a time: what is in the way moves on, two consistency points
pass, then the blocks go home. Every step is a consistency point (`moving.py`). Cut short anywhere, the volume is as the
last step left it, and who begins again goes on with what is still to do.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import NoSpaceError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.volume import moving
from blockplane.volume.emptying import STEP_LOCAL_BLOCKS
from blockplane.volume.homes import OPEN_WAYS, Astray, Homes, Numbers, Way
from blockplane.volume.moving import STEP_BLOCKS

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


@dataclass(frozen=True, slots=True)
class SettlePlan:
    """What moving blocks home comes to.

    n_elsewhere : blocks of the live file system and of snapshots that lie at another place than their number.
    n_moving : of these, how many go home. n_passing, n_tables : at how many of their places there is now a block that
        has a home itself, and moves on before, or one of the volume's own tables, which is placed anew.
    n_taken, n_meant, n_arriving, n_read, n_no_place : those that stay: something lies there that stays; a shadow means
        what lay there; an interrupted receive has places beside; the block is being read; the volume has no such place.
    n_extents, n_extents_after : of all place maps, of which the live file system and each snapshot have one.
    """

    n_elsewhere: int
    n_moving: int
    n_passing: int
    n_tables: int
    n_taken: int
    n_meant: int
    n_arriving: int
    n_read: int
    n_no_place: int
    n_extents: int
    n_extents_after: int


@dataclass(frozen=True, slots=True)
class SettleReport:
    """What was done: blocks that went home, those that moved on before to make room, and what is still elsewhere.

    n_steps : consistency points that moved something. n_extents_before, n_extents : of all place maps.
    """

    n_moved: int
    n_passed: int
    n_elsewhere: int
    n_steps: int
    n_extents_before: int
    n_extents: int
    seconds: float


def plan(volume: LiveVolume) -> SettlePlan:
    """Return what moving blocks home comes to; nothing is changed but what is dirty committed.

    Raises
    ------
    VolumeDamagedError : a snapshot cannot be read: nobody knows what lies where.

    Notes
    -----
    Memory: the place maps and a leaf of each; where many blocks go home, 17 bytes for each.
    """
    with volume.lock:
        if volume.writable:
            volume.commit()
        homes = Homes(volume)
        counts, going = np.zeros(len(Way), np.int64), {}
        for leaf in homes.leaves():
            found = homes.astray(leaf)
            counts += np.bincount(found.ways, minlength=len(Way))
            going[leaf] = found.of(*OPEN_WAYS)
        n_of = {way: int(counts[way]) for way in Way}
        n_elsewhere, n_moving = homes.n_elsewhere(), sum(n_of[way] for way in OPEN_WAYS)
        # of two blocks with one number the second is not listed: its home is taken by the first
        n_second = n_elsewhere - int(counts.sum())
        return SettlePlan(
            n_elsewhere, n_moving, n_of[Way.PASSING], n_of[Way.TABLES], n_of[Way.TAKEN] + n_second, n_of[Way.MEANT],
            n_of[Way.ARRIVING], n_of[Way.READ], n_of[Way.NONE], homes.n_extents, homes.extents_without(going),
        )  # fmt: skip


def settle(volume: LiveVolume, progress: Progress = ignore_progress, step_blocks: int = STEP_BLOCKS) -> SettleReport:
    """Move blocks home. Each step is durable; it can be interrupted at any time, and begun again.

    Raises
    ------
    RefusedError : a receive is under way. NoSpaceError : nothing is free to copy blocks to.
    ChecksumError : a block is damaged. VolumeDamagedError : a snapshot cannot be read. What moved stays moved.

    Notes
    -----
    Others may read and write meanwhile: the volume's lock is held for a step at a time. Memory: 8 MiB, and 60 bytes a
    block of a step.
    """
    started, planned = time.monotonic(), plan(volume)
    settling, total = Settling(volume), planned.n_moving * BLOCK_BYTES
    for _ in settling.steps(step_blocks):
        done = min(settling.n_moved * BLOCK_BYTES, total)
        progress(ProgressEvent("move", done, total, time.monotonic() - started))
    with volume.lock:
        homes = Homes(volume)
        return SettleReport(
            settling.n_moved, settling.n_passed, homes.n_elsewhere(), settling.n_steps, planned.n_extents,
            homes.n_extents, time.monotonic() - started,
        )  # fmt: skip


class Settling:
    """The steps that move blocks home."""

    def __init__(self, volume: LiveVolume) -> None:
        self._volume = volume
        self.n_moved = self.n_passed = self.n_steps = 0

    def steps(self, most: int = STEP_BLOCKS) -> Iterator[int]:
        """Yield after each consistency point how many blocks it moved, at most so many."""
        at = -1
        try:
            while window := self._window(at, most):
                yield from self._fill(window, most)  # that by itself clears the way for some
                yield from self._clear(window, most)
                yield from self._fill(window, most)
                at = window[-1]
        finally:
            with self._volume.lock:
                self._volume.space.keep_free(np.empty(0, np.int64))

    def _window(self, after: int, most: int) -> list[int]:
        """Return the next leaves in which blocks go home, so many that they are not many more than a step's."""
        with self._volume.lock:
            moving.begin(self._volume)
            homes, window, n_blocks = Homes(self._volume), [], 0
            for leaf in (leaf for leaf in homes.leaves() if leaf > after):
                n_here = len(homes.astray(leaf).of(*OPEN_WAYS))
                if n_here:
                    window.append(leaf)
                    n_blocks += n_here
                if n_blocks >= most:
                    break
            return window

    def _astray(self, window: list[int]) -> Astray:
        """Return what of a window's numbers goes home."""
        homes = Homes(self._volume)
        found = [homes.astray(leaf).of(*OPEN_WAYS) for leaf in window]
        columns = zip(*((each.homes, each.places, each.ways) for each in found), strict=True)
        return Astray(*(np.concatenate(column) for column in columns))

    def _clear(self, window: list[int], most: int) -> Iterator[int]:
        """Move on what is in the way, and let two consistency points pass over it."""
        waits, left = False, -1
        while left:
            with self._volume.lock:
                moving.begin(self._volume)
                found = self._astray(window)
                self._volume.space.keep_free(found.homes)  # nothing else comes there meanwhile
                waits = waits or len(found.of(Way.FREE)) < len(found)
                ahead = found.of(Way.PASSING).homes
                n_before, left = left, len(ahead)
                if n_before >= 0 and left >= n_before:
                    break  # others brought as many as moved on
                tables = found.of(Way.TABLES).homes
                n_moved = self._pass_on(ahead, tables, most)
            if n_moved:
                yield n_moved
        with self._volume.lock:
            for _ in range(2 if waits else 0):
                self._volume.commit(force=True)

    def _pass_on(self, ahead: Numbers, tables: Numbers, most: int) -> int:
        """Move blocks on to any places, at most so many, and have those of tables placed anew."""
        volume = self._volume
        if len(tables) and moving.touched(volume, int(tables[0]), int(tables[-1]) + 1, STEP_LOCAL_BLOCKS):
            volume.commit(force=True)
        if len(ahead):
            ahead = ahead[: self._room(min(len(ahead), most))]
            moving.adopt(volume, ahead, moving.copied(volume, ahead))
            self._end_step(ahead)
            self.n_passed += len(ahead)
        return len(ahead)

    def _fill(self, window: list[int], most: int) -> Iterator[int]:
        """Bring blocks home."""
        n_moved = -1
        while n_moved:
            with self._volume.lock:
                moving.begin(self._volume)
                found = self._astray(window).of(Way.FREE)
                n_moved = self._bring(found, self._room(min(len(found), most))) if len(found) else 0
            if n_moved:
                self.n_moved += n_moved
                yield n_moved

    def _bring(self, found: Astray, most: int) -> int:
        places, homes = found.places[:most], found.homes[:most]
        moving.copied_to(self._volume, places, homes)
        moving.adopt(self._volume, places, homes)
        self._end_step(places)
        return len(homes)

    def _end_step(self, old: Numbers) -> None:
        self._volume.space.release(old)
        self._volume.commit(force=True)
        self.n_steps += 1

    def _room(self, n_blocks: int) -> int:
        """Return how many blocks, at most so many, can be copied: the places they leave are free two CPs later.

        Raises
        ------
        NoSpaceError : none.
        """
        volume = self._volume
        for _ in range(2 if volume.available_blocks < n_blocks else 0):
            volume.commit(force=True)
        room = min(volume.available_blocks, n_blocks)
        if not room:
            raise NoSpaceError(
                f"{n_blocks} blocks of {volume.path} could go home, and nothing is free to copy them to",
                "delete files or snapshots, or add a RAID group with `blockplane grow`; what moved stays moved",
            )
        return room
