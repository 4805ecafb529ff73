"""What stands before the data of an image's transfer: its header with all counts, its snapshots, its planes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from blockplane.stream.codec import Header, Role
from blockplane.stream.digest import image_id, plane_digest
from blockplane.stream.reader import StreamMap
from blockplane.transfer.protocol import Sendable
from blockplane.volume.codec import SnapshotRecord


def completed(sending: Sendable, snapshots: Sequence[tuple[SnapshotRecord, Role]], n_branches: int) -> Header:
    """Return the header with what follows from planes and lists."""
    plane, dropped = sending.plane, sending.dropped
    header = sending.header()
    base_blocks = sum(record.n_blocks for record, role in snapshots if role is Role.BASE)
    planes = plane_digest(plane, dropped)
    return replace(
        header,
        image_id=image_id(header.space_id, header.top_id, header.base_id, planes),
        image_blocks=len(plane),
        dropped_blocks=len(dropped),
        after_blocks=header.after_blocks or len(plane) + base_blocks - len(dropped),
        plane_digest=planes,
        n_snapshots=len(snapshots),
        n_branches=n_branches,
        created_ns=time.time_ns(),
    )


def described(sending: Sendable) -> StreamMap:
    """Return what a reader would know of an image before its first block, without a stream in between."""
    snapshots, branches = tuple(sending.snapshots()), tuple(sending.branches())
    header = completed(sending, snapshots, len(branches))
    return StreamMap(header, snapshots, branches, sending.plane, sending.dropped)
