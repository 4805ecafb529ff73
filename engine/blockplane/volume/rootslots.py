"""Reading and writing fsinfo in its slots: half one at the head of every disk, half two at the tail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from blockplane.disks.array import DiskArray
from blockplane.disks.disk import FSINFO_HEAD_BLOCK, HEAD_BLOCKS, TAIL_BLOCKS, Disk, aligned_buffer, fsinfo_tail_block
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import DiskError, DiskStaleError, NotAVolumeError, VolumeDamagedError
from blockplane.volume.fsinfo import FsInfo, decode

_ZERO = np.zeros(1, np.int64)
_ONE = np.ones(1, np.int64)


def slots_of(disk: Disk) -> tuple[int, int]:
    """Return the raw block numbers of a disk's head slot and tail slot."""
    return FSINFO_HEAD_BLOCK, fsinfo_tail_block(disk.n_blocks)


def read_newest(disks: list[Disk]) -> tuple[FsInfo, bool]:
    """Return the newest valid record of all slots, and whether every slot holds it.

    Raises
    ------
    NotAVolumeError: no slot holds a valid record.
    VolumeDamagedError: two records are of different copies of the volume, which each went on for itself.
    DiskStaleError: a disk was not there when the others went on.
    """
    slots = [[_read(disk, slot) for slot in slots_of(disk)] for disk in disks]
    found = [record for pair in slots for record in pair if record is not None]
    if not found:
        raise NotAVolumeError(
            "no disk holds a valid root record", "the volume was never finished, or all copies are damaged"
        )
    newest = max(found, key=lambda record: record.generation)
    _refuse_other_copy(disks, slots, newest)
    is_half_flushed = any(
        all(record is not None and record.generation == newest.generation for record in pair) for pair in slots
    )
    for disk, pair in zip(disks, slots, strict=True):
        _refuse_stale(disk, [record.generation for record in pair if record is not None], newest, is_half_flushed)
    return newest, all(r.generation == newest.generation for r in found) and len(found) == 2 * len(disks)


def has_record(disk: Disk) -> bool:
    """Whether a disk holds a valid root record; DiskError: it cannot be read."""
    has_ends = disk.n_blocks >= HEAD_BLOCKS + TAIL_BLOCKS  # its maker had the time
    return has_ends and any(_in_slot(disk, slot) is not None for slot in slots_of(disk))


def group_that_left(disks: Sequence[Disk]) -> int | None:
    """Return the index of a group in which disks' newest root record has nothing, so that it can be taken out."""
    slots = [_read(disk, slot) for disk in disks for slot in slots_of(disk)]
    found = [record for record in slots if record is not None]
    newest = max(found, key=lambda record: record.generation) if found else None
    return newest.leaving if newest is not None and newest.has_left else None


def _refuse_other_copy(disks: Sequence[Disk], slots: list[list[FsInfo | None]], newest: FsInfo) -> None:
    """Refuse records that are not of the newest's line, which is written everywhere where it is the only one."""
    nonces = {newest.generation: newest.nonce, newest.generation - 1: newest.previous_nonce}
    for disk, pair in zip(disks, slots, strict=True):
        for record in pair:
            if record is not None and record.nonce != nonces.get(record.generation, record.nonce):
                raise VolumeDamagedError(
                    f"{disk.path}: two different root records claim generation {record.generation}",
                    "a disk of another copy of the volume is among them, this one or those that differ from it",
                )


def _refuse_stale(disk: Disk, generations: list[int], newest: FsInfo, is_half_flushed: bool) -> None:
    """Refuse a disk that missed a commit.

    A power cut leaves a disk one generation behind, while half one is written. Where any disk has the newest record in
    half two as well, half one was flushed on all: both slots of a disk whole and older mean that it was not there.

    Parameters
    ----------
    generations : of the disk's valid slots.
    """
    least = newest.generation - (0 if is_half_flushed and len(generations) == 2 else 1)
    if generations and max(generations) < least:
        raise DiskStaleError(
            f"{disk.path}: stale: its root record has generation {max(generations)}, the volume's newest "
            f"{newest.generation}",
            disk.path,
            "it missed what the others wrote; put back the disk that was there, or restore the volume from a stream",
        )


def _read(disk: Disk, slot: int) -> FsInfo | None:
    try:
        return _in_slot(disk, slot)
    except DiskError:
        return None


def _in_slot(disk: Disk, slot: int) -> FsInfo | None:
    buffer = aligned_buffer(BLOCK_BYTES)
    disk.read_plan(np.array([slot], np.int64), _ONE, buffer, _ZERO)
    return decode(buffer.tobytes())


def write_record(array: DiskArray, record: FsInfo) -> None:
    """Make a record durable: half one, flush, half two, flush.

    Raises
    ------
    DiskError: a write or flush failed; the record before, or this one, is what the volume opens with.
    """
    block = aligned_buffer(BLOCK_BYTES)
    block[:] = np.frombuffer(record.encode(), np.uint8)
    for half in (0, 1):
        array.write_raw([(index, slots_of(disk)[half]) for index, disk in enumerate(array.disks)], block)
        array.flush()


def successor(record: FsInfo, **changes: object) -> FsInfo:
    """Return the record of the next generation: a fresh nonce, the old one's beside it."""
    return replace(
        record,
        generation=record.generation + 1,
        nonce=os.urandom(16),
        previous_nonce=record.nonce,
        **changes,  # type: ignore[arg-type]
    )
