r"""Disk labels: which volume a disk belongs to, where, and what its neighbours are. At both ends of every disk.

One block, little-endian:

| offset | size | meaning |
| --- | --- | --- |
| 0 | 8 | magic ``BLKPLN\r\n`` |
| 8 | 4 | format version |
| 12 | 4 | CRC32C of the block with these four bytes zero |
| 16 | 16 | volume id |
| 32 | 16 | member id, this disk's |
| 48 | 8 | label generation |
| 56 | 8 | blocks of this disk that the volume counts on, head and tail areas included |
| 64 | 2 | group of this disk |
| 66 | 2 | position in the group |
| 68 | 2 | n_groups |
| 70 | 2 | n_members of this disk's group |
| 72 | 56 | zero |
| 128 | 32 each | groups: first u64, chunk_blocks u64, disk_blocks u64, n_data u16, n_parity u16, zero u32 |
| after | 16 each | ids of the members of this disk's group |
| after | 1 each | their states |

Generations: an update writes an odd generation everywhere, flushes, then the next even one. So a disk that is two
behind the newest missed an update that the others completed, and one that is one behind missed a step of the last.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from blockplane.disks.disk import (
    HEAD_BLOCKS,
    LABEL_HEAD_BLOCK,
    TAIL_BLOCKS,
    Disk,
    aligned_buffer,
    label_tail_block,
)
from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.checks import crc32c
from blockplane.model.errors import DiskError, DiskForeignError, RefusedError, UsageError

MAGIC: Final = b"BLKPLN\r\n"
#: Of labels; 0 and 0xB10C0001 were development builds'.
FORMAT_VERSION: Final = 1

_HEADER: Final = struct.Struct("<8sII16s16sQQHHHH56x")
_GROUP: Final = struct.Struct("<QQQHH4x")
_CRC_AT: Final = 12
ID_BYTES: Final = 16
#: After which no update could count on.
MAX_GENERATION: Final = (1 << 64) - 8


class MemberState(enum.IntEnum):
    """What a member is good for."""

    IN = 0
    #: Failed; what it holds is stale. Comes back only through resync.
    OUT = 1
    #: Being filled again: written to, not read from.
    RESYNC = 2


@dataclass(frozen=True, slots=True)
class Label:
    """What one disk says about itself. ``groups`` name no disks: those of all groups are known only together."""

    volume_id: bytes
    member_id: bytes
    generation: int
    n_blocks: int
    group: int
    position: int
    groups: tuple[tuple[int, int, int, int, int], ...]
    """per group: first, n_data, n_parity, chunk_blocks, disk_blocks"""
    member_ids: tuple[bytes, ...]
    states: tuple[MemberState, ...]

    def geometry(self) -> Geometry:
        """The volume's geometry, its disks in label order: group after group."""
        records, at = [], 0
        for first, n_data, n_parity, chunk_blocks, disk_blocks in self.groups:
            disks = tuple(range(at, at + n_data + n_parity))
            records.append(GroupRecord(first, n_data, n_parity, chunk_blocks, disk_blocks, disks))
            at += len(disks)
        return Geometry(records)


def group_rows(geometry: Geometry) -> tuple[tuple[int, int, int, int, int], ...]:
    """The label's form of a geometry."""
    return tuple((g.first, g.n_data, g.n_parity, g.chunk_blocks, g.disk_blocks) for g in geometry.groups)


def encode_label(label: Label) -> bytes:
    """One block.

    Raises
    ------
    UsageError : too many groups and members for one block.
    """
    parts = [
        _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            0,
            label.volume_id,
            label.member_id,
            label.generation,
            label.n_blocks,
            label.group,
            label.position,
            len(label.groups),
            len(label.member_ids),
        )
    ]
    for first, n_data, n_parity, chunk_blocks, disk_blocks in label.groups:
        parts.append(_GROUP.pack(first, chunk_blocks, disk_blocks, n_data, n_parity))
    parts += label.member_ids
    parts.append(bytes(label.states))
    block = bytearray(b"".join(parts))
    if len(block) > BLOCK_BYTES:
        raise UsageError(
            f"a volume of {len(label.groups)} groups, {len(label.member_ids)} disks in one, has no room in its labels"
        )
    block += bytes(BLOCK_BYTES - len(block))
    struct.pack_into("<I", block, _CRC_AT, crc32c(block))
    return bytes(block)


def decode_label(block: bytes) -> Label:
    """Read a label; every field is checked before it is used.

    Raises
    ------
    ValueError : not a label, damaged, or of another format version; the message says which.
    """
    if block[: len(MAGIC)] != MAGIC:
        raise ValueError("no label")
    _, version, crc, volume_id, member_id, generation, n_blocks, group, position, n_groups, n_members = (
        _HEADER.unpack_from(block)
    )
    if crc32c(block[:_CRC_AT] + bytes(4) + block[_CRC_AT + 4 :]) != crc:
        raise ValueError("a damaged label")
    if version != FORMAT_VERSION:
        raise ValueError(f"a label of format version {version}, not {FORMAT_VERSION}")
    ids_at = _HEADER.size + n_groups * _GROUP.size
    states_at = ids_at + n_members * ID_BYTES
    if states_at + n_members > BLOCK_BYTES or not group < n_groups or not position < n_members:
        raise ValueError("a label with impossible counts")
    states = block[states_at : states_at + n_members]
    if max(states, default=0) > max(MemberState):
        raise ValueError("a label with unknown member states")
    groups = []
    for index in range(n_groups):
        first, chunk_blocks, disk_blocks, n_data, n_parity = _GROUP.unpack_from(
            block, _HEADER.size + index * _GROUP.size
        )
        groups.append((first, n_data, n_parity, chunk_blocks, disk_blocks))
    label = Label(
        volume_id,
        member_id,
        generation,
        n_blocks,
        group,
        position,
        tuple(groups),
        tuple(block[at : at + ID_BYTES] for at in range(ids_at, states_at, ID_BYTES)),
        tuple(map(MemberState, states)),
    )
    _check_sense(label)
    return label


def _check_sense(label: Label) -> None:
    """What a correct CRC does not promise."""
    try:
        geometry = label.geometry()
    except UsageError as error:
        raise ValueError(f"a label with an impossible geometry: {error}") from error
    own = geometry.groups[label.group]
    if label.generation > MAX_GENERATION:
        raise ValueError("a label of a generation that no volume comes to")
    if len(own.disks) != len(label.member_ids) or label.n_blocks < HEAD_BLOCKS + own.disk_blocks + TAIL_BLOCKS:
        raise ValueError("a label with impossible counts")
    if len(set(label.member_ids)) != len(label.member_ids) or label.member_ids[label.position] != label.member_id:
        raise ValueError("a label whose member ids contradict each other")


def read_raw_block(disk: Disk, block: int) -> Bytes:
    """One raw block of a disk, fresh, aligned."""
    buffer = aligned_buffer(BLOCK_BYTES)
    one = np.array([1], dtype=np.int64)
    disk.read_plan(np.array([block], dtype=np.int64), one, buffer, one - 1)
    return buffer


def write_raw_block(disk: Disk, block: int, data: bytes) -> None:
    """Write one raw block; durable after `Disk.flush`."""
    buffer = aligned_buffer(BLOCK_BYTES)
    buffer[:] = np.frombuffer(data, dtype=np.uint8)
    one = np.array([1], dtype=np.int64)
    disk.write_plan(np.array([block], dtype=np.int64), one, buffer, one - 1)


@dataclass(frozen=True, slots=True)
class FoundLabel:
    """The newest valid label of a disk; lost : the raw blocks of ends that can be read and do not hold it."""

    label: Label
    lost: tuple[int, ...]


def find_label(disk: Disk) -> FoundLabel:
    """Read both ends of a disk, once.

    Raises
    ------
    DiskForeignError : neither end holds a label; the message says what was found.
    """
    labels, found, blocks = [], [], {}
    for block in label_blocks(disk) if disk.n_blocks > HEAD_BLOCKS else ():
        try:
            blocks[block] = read_raw_block(disk, block).tobytes()
            labels.append(decode_label(blocks[block]))
        except (ValueError, DiskError) as error:
            found.append(str(error))
    if not labels:
        what = " and ".join(dict.fromkeys(found)) or "a file too small for one"
        raise DiskForeignError(
            f"{disk.path}: not a disk of a blockplane volume: {what} found", disk.path, "name the disks of one volume"
        )
    newest = max(labels, key=lambda label: label.generation)
    encoded = encode_label(newest)
    return FoundLabel(newest, tuple(block for block, data in blocks.items() if data != encoded))


def carries_label(path: str | os.PathLike[str]) -> bool:
    """Whether a file or device has, at either end, what a label of a volume's disk begins with, in any version."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        n_blocks = os.lseek(fd, 0, os.SEEK_END) // BLOCK_BYTES
        ends = (LABEL_HEAD_BLOCK, label_tail_block(n_blocks)) if n_blocks > HEAD_BLOCKS else ()
        return any(os.pread(fd, len(MAGIC), block * BLOCK_BYTES) == MAGIC for block in ends)
    except OSError:  # no file, and no device that has an end
        return False
    finally:
        os.close(fd)


def refuse_disk(path: str | os.PathLike[str]) -> None:
    """Raise RefusedError where a file or device, which is to be written over, is the disk of a volume, whichever."""
    if carries_label(path):
        raise RefusedError(
            f"{os.fspath(path)} is a disk of a volume: what is on it would be lost",
            "name another file",
        )


def read_label(disk: Disk) -> Label:
    """The newest valid label of a disk's two ends; errors as of `find_label`."""
    return find_label(disk).label


def mend_labels(disks: Sequence[Disk], labels: Sequence[Label], lost: Sequence[tuple[int, ...]]) -> None:
    """Write again the end of a disk that lost its label; an end that cannot be read is left alone. Durable on return.

    The other end is not touched: it may be the only one.

    Parameters
    ----------
    labels, lost : one per disk, settled, and as `find_label` found them.
    """
    for disk, label, blocks in zip(disks, labels, lost, strict=True):
        for block in blocks:
            write_raw_block(disk, block, encode_label(label))
        if blocks:
            disk.flush()


def label_blocks(disk: Disk) -> tuple[int, int]:
    """Raw blocks of a disk's labels: at its head, at its tail."""
    return LABEL_HEAD_BLOCK, label_tail_block(disk.n_blocks)


def write_labels(disks: Sequence[Disk], labels: Sequence[Label], generation: int) -> int:
    """Bring new labels onto all disks, so that a power cut at any moment leaves an openable set.

    Parameters
    ----------
    labels : one per disk; their ``generation`` is replaced.
    generation : newest one on the disks so far; 0: none.

    Returns
    -------
    the new generation. Durable on return.
    """
    odd = generation + 1 + generation % 2
    for step in (odd, odd + 1):
        write_label_step(disks, labels, step)
    return odd + 1


def write_label_step(disks: Sequence[Disk], labels: Sequence[Label], generation: int) -> None:
    """Write labels of one generation at both ends of disks; durable on return."""
    blocks = [encode_label(dataclasses.replace(label, generation=generation)) for label in labels]
    # one end at a time: a torn write costs one of a disk's two labels
    for at_tail in (False, True):
        for disk, block in zip(disks, blocks, strict=True):
            write_raw_block(disk, label_tail_block(disk.n_blocks) if at_tail else LABEL_HEAD_BLOCK, block)
        for disk in disks:
            disk.flush()


def settle_labels(disks: Sequence[Disk], labels: Sequence[Label]) -> None:
    """Bring a label update that was cut short to its end: every disk gets what the newest label says.

    Parameters
    ----------
    labels : what the disks hold, at most one generation apart.
    """
    newest = max(labels, key=lambda label: label.generation)
    complete = []
    for label in labels:
        judge = max((one for one in labels if one.group == label.group), key=lambda one: one.generation)
        complete.append(
            dataclasses.replace(label, groups=newest.groups, member_ids=judge.member_ids, states=judge.states)
        )
    for step in range(newest.generation, newest.generation + 1 + newest.generation % 2):
        write_label_step(disks, complete, step)


def make_labels(
    geometry: Geometry,
    volume_id: bytes,
    member_ids: Sequence[bytes],
    n_blocks: Sequence[int],
    states: Sequence[MemberState] | None = None,
) -> list[Label]:
    """Labels for all disks of a volume.

    Parameters
    ----------
    member_ids, n_blocks, states : per disk, in the order of the geometry's indexes; default: all IN.
    """
    known = list(states) if states is not None else [MemberState.IN] * geometry.n_disks
    labels = []
    for disk in range(geometry.n_disks):
        group, position = geometry.home(disk)
        members = geometry.groups[group].disks
        labels.append(
            Label(
                volume_id,
                member_ids[disk],
                0,
                n_blocks[disk],
                group,
                position,
                group_rows(geometry),
                tuple(member_ids[member] for member in members),
                tuple(known[member] for member in members),
            )
        )
    return labels
