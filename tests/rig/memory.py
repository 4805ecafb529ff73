"""Small volumes on disks in memory, of any geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blockplane.disks import HEAD_BLOCKS, TAIL_BLOCKS, Geometry, GroupRecord
from blockplane.disks.assembly import assemble_disks
from blockplane.volume.live import reserve_for
from blockplane.volume.volume import Volume
from faults import world
from faults.recording import MemoryDisk


@dataclass(frozen=True)
class Shape:
    """A RAID group: chunk_blocks and disk_blocks in blocks a disk; first a multiple of 65,536."""

    n_data: int
    n_parity: int
    chunk_blocks: int
    disk_blocks: int
    first: int = 0


def make_volume(shapes: Sequence[Shape], name: str = "volume") -> Volume:
    """An empty volume."""
    groups: list[GroupRecord] = []
    disks: list[MemoryDisk] = []
    for shape in shapes:
        members = range(len(disks), len(disks) + shape.n_data + shape.n_parity)
        groups.append(
            GroupRecord(
                shape.first, shape.n_data, shape.n_parity, shape.chunk_blocks, shape.disk_blocks, tuple(members)
            )
        )
        disks += [MemoryDisk(f"{name}/{i}", HEAD_BLOCKS + shape.disk_blocks + TAIL_BLOCKS) for i in members]
    geometry = Geometry(groups)
    return world.make_volume(geometry, disks, reserve_for(geometry.n_usable), place=Path(name))


def reopen(volume: Volume, *, crash: bool = False) -> Volume:
    """Close a volume, or drop it as a killed process does, and open what its disks hold."""
    disks = volume.array.disks
    if crash:
        volume.abandon()
    else:
        volume.close()
    copies = [MemoryDisk(disk.path, disk.n_blocks, overlay=disk.contents()) for disk in disks]
    return Volume.from_assembly(volume.path, assemble_disks(copies), writable=True)
