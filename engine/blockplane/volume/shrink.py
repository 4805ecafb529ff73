"""Taking a RAID group out of a volume: what lies there moves to the others, then labels, volume.toml and root record
are without it.

The order makes every power cut end in a volume that opens, with the group or without it, and goes on from there:

1. the root record says that the group leaves: its places are given to nobody (`leaving`);
2. step by step, each a consistency point, what lies there moves (`emptying.py`);
3. two CPs later the root record says that nothing is there (`has_left`);
4. volume.toml names its disks no more: from here on opening finds it gone, and ends what is left;
5. the labels of the other disks are without it;
6. so is the root record; the ends of the disks that left are blanked.

Until step 4 it can be called off. Snapshots, mirrors, marks and what is sent from the volume know nothing of all this.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockplane.disks.disk import Disk
from blockplane.disks.geometry import GroupRecord, without
from blockplane.disks.label import make_labels, read_label, write_labels
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, NoSpaceError, RefusedError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.volume import moving
from blockplane.volume.basegroup import has_base
from blockplane.volume.config import DISKS_DIR, VolumeConfig, config_of, write_config
from blockplane.volume.emptying import Emptying, is_left, leaves_of_group, n_in_group
from blockplane.volume.groups import blank_ends
from blockplane.volume.journal import without_group
from blockplane.volume.leafbits import LEAF_WORDS
from blockplane.volume.live import LiveVolume, reserve_for
from blockplane.volume.moving import STEP_BLOCKS
from blockplane.volume.placemap import EXTENT_BYTES
from blockplane.volume.rehousing import n_reserved
from blockplane.volume.space import ALL_FREE

#: Extents a block of a place map has room for.
_EXTENTS_PER_BLOCK: Final = BLOCK_BYTES // EXTENT_BYTES


@dataclass(frozen=True, slots=True)
class ShrinkPlan:
    """What taking a group out means.

    group : its index, in the order of places. n_blocks : places it has. disks : paths of its disks.
    n_moving : blocks of states that lie there; n_local : of the local tree. n_arriving : places there that interrupted
    receives have. room_blocks : what the other groups can
    take beside their new reserve; map_blocks : what the place maps may take of that at most.
    is_under_way : whether it was begun before.
    """

    group: int
    n_blocks: int
    disks: tuple[str, ...]
    n_moving: int
    n_local: int
    n_arriving: int
    room_blocks: int
    map_blocks: int
    is_under_way: bool

    @property
    def needed_blocks(self) -> int:
        """Places that the other groups must have free."""
        return self.n_moving + self.n_local + self.n_arriving + self.map_blocks

    @property
    def fits(self) -> bool:
        """Whether they have them."""
        return self.needed_blocks <= self.room_blocks


@dataclass(frozen=True, slots=True)
class ShrinkReport:
    """What was done: blocks moved by this call, in how many steps, and the disks that may be taken out.

    removed : those of them that were files in the volume's own folder, and are gone.
    """

    group: int
    n_moved: int
    n_steps: int
    seconds: float
    disks: tuple[str, ...]
    removed: tuple[str, ...]


def plan(volume: LiveVolume, index: int) -> ShrinkPlan:
    """Return what taking a group out means; nothing is changed but what is dirty committed.

    Raises
    ------
    UsageError : there is no such group, or it is the only one.
    RefusedError : another one is being taken out.
    """
    with volume.lock:
        geometry, leaving = volume.geometry, volume.info.leaving
        if not 0 <= index < len(geometry.groups):
            raise UsageError(
                f"{volume.path} has no RAID group {index}", f"its groups are 0 to {len(geometry.groups) - 1}"
            )
        if len(geometry.groups) == 1:
            raise UsageError(f"{volume.path} has one RAID group alone", "add one first, with `blockplane grow`")
        if has_base(volume):
            raise RefusedError(
                f"{volume.path} is built on a base, and gives no RAID group back", "make one volume of both first"
            )
        if leaving is not None and leaving != index:
            raise RefusedError(
                f"RAID group {leaving} is being taken out", f"end that first: shrink --group {leaving}, or --cancel"
            )
        if volume.writable:
            volume.commit()
        group = geometry.groups[index]
        n_state, n_local, n_runs = n_in_group(volume, group)
        rest = geometry.n_usable - group.n_blocks
        n_arriving = n_reserved(volume, leaves_of_group(group))
        elsewhere = volume.used_blocks - n_state - n_local + volume.n_incoming - n_arriving
        room = rest - elsewhere - reserve_for(rest)
        n_maps = len(volume.local.entries()) + 1
        # each map as it is and as it was, in a step; runs are cut by free space at most once in 64 blocks
        maps = 2 * n_maps * -(-(n_runs + n_state // 64) // _EXTENTS_PER_BLOCK) if n_state else 0
        maps += 2 * -(-n_arriving // _EXTENTS_PER_BLOCK)
        disks = tuple(volume.array.disks[disk].path for disk in group.disks)
        found = n_state, n_local, n_arriving, max(room, 0), maps
        return ShrinkPlan(index, group.n_blocks, disks, *found, leaving == index)


def shrink(
    volume: LiveVolume, index: int, progress: Progress = ignore_progress, step_blocks: int = STEP_BLOCKS
) -> ShrinkReport:
    """Take a group out; what was begun before and cut short goes on. Durable on return.

    Raises
    ------
    UsageError, RefusedError : see `plan`; a receive is under way; a snapshot is being read.
    NoSpaceError : the other groups cannot hold what lies there; nothing moved.
    ChecksumError : a block there is damaged; what moved stays moved.
    """
    started, planned = time.monotonic(), plan(volume, index)
    group = volume.geometry.groups[index]
    with volume.lock:
        if volume.incoming.is_running:
            raise RefusedError("a receive is under way", "shrink the volume when it has ended")
        if not planned.fits:
            raise NoSpaceError(
                f"{planned.needed_blocks} blocks of RAID group {index} have to move, and the other groups of "
                f"{volume.path} have room for {planned.room_blocks}",
                "delete files or snapshots, or add a RAID group with `blockplane grow` first",
            )
        config_of(volume.path, volume.info.volume_id)
        if volume.info.leaving is None:
            volume.commit(clean=True)
            volume.close_group(index)
    n_moved, n_steps, total = 0, 0, (planned.n_moving + planned.n_local + planned.n_arriving) * BLOCK_BYTES
    emptying = Emptying(volume, group)
    while True:
        with volume.lock:
            _require_leaving(volume, index, group)
            n = emptying.step(step_blocks)
        if not n:
            break
        n_moved, n_steps = n_moved + n, n_steps + 1
        progress(ProgressEvent("move", n_moved * BLOCK_BYTES, total, time.monotonic() - started))
    with volume.lock:
        _require_leaving(volume, index, group)
        disks = tuple(volume.array.disks[disk] for disk in group.disks)
        config = config_of(volume.path, volume.info.volume_id)
        _leave(volume)
        names = [name for disk, name in enumerate(config.disks) if disk not in group.disks]
        remaining = VolumeConfig(volume.info.volume_id, tuple(names))
        remove_group(volume, lambda: write_config(volume.path, remaining))
        for image in volume.local.incoming.images():
            without_group(volume.path, image.entry.landing_id, index)
    removed = _give_back(volume.path, disks)
    return ShrinkReport(index, n_moved, n_steps, time.monotonic() - started, planned.disks, removed)


def cancel(volume: LiveVolume) -> int:
    """Call off that a group is taken out; what moved stays where it is. Returns which it was.

    Raises
    ------
    RefusedError : none is being taken out.
    """
    with volume.lock:
        leaving = volume.info.leaving if not has_base(volume) else None
        if leaving is None:
            raise RefusedError(f"no RAID group of {volume.path} is being taken out", "")
        volume.commit(clean=True)
        volume.close_group(None)
        return leaving


def _require_leaving(volume: LiveVolume, index: int, group: GroupRecord) -> None:
    if volume.info.leaving != index or volume.geometry.groups[index] != group:
        raise RefusedError(f"taking RAID group {index} out was called off", "")


def _leave(volume: LiveVolume) -> None:
    """See to it that the last two CPs have nothing in the group, and say so."""
    assert volume.info.leaving is not None
    group = volume.geometry.groups[volume.info.leaving]
    pins = volume.pins.all()
    if pins:
        raise RefusedError(
            f"a snapshot is being read, perhaps from where it was: by {pins[0]}",
            "go on when that has ended: everything has moved",
        )
    leaves = leaves_of_group(group)
    with volume.changing():
        for leaf in leaves:  # what shadows mean there goes with the places
            volume.local.shadows.cleared(leaf, _FULL)
        volume.local.forget_leaves(leaves.start, leaves.stop)
    for _ in range(4):
        volume.commit(force=True)
        if moving.touched(volume, group.first, group.stop, 1) == 0 and is_left(volume, group):
            break
    else:
        raise RefusedError("something was written to the group that is being taken out", "run `blockplane check`")
    volume.commit(clean=True)
    volume.note_left()


def remove_group(volume: LiveVolume, forget_disks: Callable[[], None]) -> None:
    """Take the group that has left out of labels and root record; forget_disks makes durable which disks are left.

    Raises
    ------
    DiskError, OSError : a write failed, and the volume stopped; opening it anew shows it without the group, or with it
    still on its way out.
    """
    assert volume.info.has_left
    assert volume.info.leaving is not None
    geometry = without(volume.geometry, volume.info.leaving)
    gone = volume.geometry.groups[volume.info.leaving].disks
    kept = [disk for index, disk in enumerate(volume.array.disks) if index not in gone]
    old = [read_label(disk) for disk in kept]
    ids, sizes = [label.member_id for label in old], [label.n_blocks for label in old]
    states = [label.states[label.position] for label in old]
    labels = make_labels(geometry, volume.info.volume_id, ids, sizes, states)
    with volume.changing():
        forget_disks()
        write_labels(kept, labels, max(label.generation for label in old))
        volume.drop_group(geometry)


def _give_back(directory: Path, disks: tuple[Disk, ...]) -> tuple[str, ...]:
    """Blank the ends of disks that left, and remove those that are files in the volume's own folder."""
    removed = []
    for disk in disks:
        with contextlib.suppress(BlockplaneError, OSError):
            blank_ends(disk)
            disk.flush()
        disk.close()
        path = Path(disk.path)
        if path.parent == directory / DISKS_DIR and path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed.append(disk.path)
    return tuple(removed)


_FULL = ALL_FREE.repeat(LEAF_WORDS)
_FULL.flags.writeable = False
