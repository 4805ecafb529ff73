"""Disks, their labels and geometry, RAID groups, parity; I/O plans run by one thread per disk."""

from blockplane.disks.array import DiskArray, spread
from blockplane.disks.assembly import Assembly, assemble, assemble_disks
from blockplane.disks.band import BAND_STRIPES, Band
from blockplane.disks.disk import (
    FSINFO_HEAD_BLOCK,
    HEAD_BLOCKS,
    TAIL_BLOCKS,
    Disk,
    DiskCounters,
    FileDisk,
    aligned_buffer,
    fsinfo_tail_block,
    write_buffers,
)
from blockplane.disks.geometry import AREA_STRIPES, DiskExtents, Geometry, GroupRecord, Pieces
from blockplane.disks.label import Label, MemberState, make_labels, read_label, write_labels
from blockplane.disks.parity import compute_parity, xor_into
from blockplane.disks.pending import Pending
from blockplane.disks.pool import BufferPool
from blockplane.disks.resync import read_members, resync_parity, verify_parity

__all__ = [
    "AREA_STRIPES",
    "BAND_STRIPES",
    "FSINFO_HEAD_BLOCK",
    "HEAD_BLOCKS",
    "TAIL_BLOCKS",
    "Assembly",
    "Band",
    "BufferPool",
    "Disk",
    "DiskArray",
    "DiskCounters",
    "DiskExtents",
    "FileDisk",
    "Geometry",
    "GroupRecord",
    "Label",
    "MemberState",
    "Pending",
    "Pieces",
    "aligned_buffer",
    "assemble",
    "assemble_disks",
    "compute_parity",
    "fsinfo_tail_block",
    "make_labels",
    "read_label",
    "read_members",
    "resync_parity",
    "spread",
    "verify_parity",
    "write_buffers",
    "write_labels",
    "xor_into",
]
