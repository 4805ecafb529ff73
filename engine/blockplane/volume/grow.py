"""Growing a volume by a RAID group.

The labels say which disks a volume has, the root record which groups it uses. The order makes every power cut end in
one of two volumes, the old one or the grown one:

1. the new disks are made, their ends blanked, root slots and all, and labelled with the geometry to come, one label
   generation ahead;
2. volume.toml names them: from here on opening finds them, takes the newest label's word, and ends what is left;
3. the labels of all disks are brought to that geometry;
4. the root record takes the group up.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from blockplane.disks.assembly import Assembly
from blockplane.disks.disk import Disk
from blockplane.disks.geometry import Geometry, GroupRecord, without
from blockplane.disks.label import (
    Label,
    MemberState,
    encode_label,
    make_labels,
    read_label,
    write_label_step,
    write_labels,
)
from blockplane.model.errors import RefusedError, UsageError, VolumeDamagedError
from blockplane.volume.basegroup import has_base
from blockplane.volume.config import VolumeConfig, config_of, read_config, write_config
from blockplane.volume.fsinfo import MAX_GROUPS, MAX_MEMBERS, FsInfo
from blockplane.volume.groups import GroupWish, blank_ends, next_first
from blockplane.volume.live import LiveVolume, grown, shrunk


def grow(volume: LiveVolume, wish: GroupWish) -> GroupRecord:
    """Add the group that was asked for; durable on return.

    Raises
    ------
    UsageError, DiskError, RefusedError: the disks make no group; the volume is as it was.
    """
    with volume.lock:
        config = config_of(volume.path, volume.info.volume_id)
        first_disk = volume.geometry.n_disks
        names = wish.names(volume.path, first_disk)
        opened: list[Disk] = []
        made: list[str] = []
        try:
            wish.open_disks(volume.path, names, opened, made)
            group = wish.group(opened, next_first(volume.geometry), first_disk)
            added = VolumeConfig(volume.info.volume_id, (*config.disks, *names), config.base, config.base_id)
            add_group(volume, group, opened, lambda: write_config(volume.path, added))
        except BaseException:
            if not volume.array.disks[first_disk:]:
                _give_up(opened, made, volume, config.disks)
            raise
    return group


def add_group(volume: LiveVolume, group: GroupRecord, disks: Sequence[Disk], name_disks: Callable[[], None]) -> None:
    """Take open disks up as a group; name_disks makes durable where they are found.

    Raises
    ------
    RefusedError: a receive is under way. UsageError: the records have no room.
    DiskError, OSError: a write failed, and the volume stopped; opening it anew shows the old volume or the grown one.
    """
    with volume.lock:
        if volume.incoming.is_running:
            raise RefusedError("a receive is under way", "grow the volume when it has ended")
        if volume.info.leaving is not None and not has_base(volume):
            raise RefusedError(
                f"RAID group {volume.info.leaving} is being taken out", "end that first, with `blockplane shrink`"
            )
        volume.commit(clean=True)
        geometry = Geometry((*volume.geometry.groups, group))
        old = [read_label(disk) for disk in volume.array.disks]
        labels = _labels(volume, geometry, old, disks)
        generation = max(label.generation for label in old)
        for disk in disks:
            blank_ends(disk)
        write_label_step(disks, labels[len(old) :], generation + 1)
        with volume.changing():
            name_disks()
            write_labels([*volume.array.disks, *disks], labels, generation)
            volume.take_groups(geometry, disks)


def _labels(volume: LiveVolume, geometry: Geometry, old: Sequence[Label], disks: Sequence[Disk]) -> list[Label]:
    """Return the labels of all disks under the new geometry; UsageError: no label or root record has room for it."""
    if len(geometry.groups) > MAX_GROUPS or geometry.n_disks > MAX_MEMBERS:
        raise UsageError(
            f"a volume of {len(geometry.groups)} groups and {geometry.n_disks} disks is too large",
            f"at most {MAX_GROUPS} groups and {MAX_MEMBERS} disks",
        )
    ids = [label.member_id for label in old] + [os.urandom(16) for _ in disks]
    sizes = [label.n_blocks for label in old] + [disk.n_blocks for disk in disks]
    states = [label.states[label.position] for label in old] + [MemberState.IN for _ in disks]
    labels = make_labels(geometry, volume.info.volume_id, ids, sizes, states)
    for label in labels:
        encode_label(label)
    return labels


def _give_up(opened: Sequence[Disk], made: Sequence[str], volume: LiveVolume, names: Sequence[str]) -> None:
    """Remove what was made for a group that is not to be, unless volume.toml already names it."""
    for disk in opened:
        disk.close()
    if read_config(volume.path).disks == tuple(names):
        for path in made:
            os.unlink(path)


def record_for(record: FsInfo, assembly: Assembly) -> FsInfo:
    """Return the root record with the groups that the labels name: growing, or taking one out, was cut short.

    Raises
    ------
    VolumeDamagedError: labels and root record contradict each other.
    """
    own, labelled = record.geometry.groups, assembly.geometry.groups
    if own == labelled:
        return record
    gone = record.leaving if record.has_left else None
    if gone is not None and labelled == without(record.geometry, gone).groups:
        return replace(record, **shrunk(record, assembly.geometry))  # type: ignore[arg-type]
    if labelled[: len(own)] != own:
        raise VolumeDamagedError("labels and root record name different RAID groups", "the disks are of two volumes")
    return replace(record, **grown(record, assembly.geometry))  # type: ignore[arg-type]
