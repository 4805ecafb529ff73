"""Small volumes and their streams, made once; disks that are hostile in what their checksums say is right."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS, Disk
from blockplane.disks.label import label_blocks
from blockplane.filesystem import FileSystem
from blockplane.image import Image, build
from blockplane.model import BLOCK_BYTES, StreamTruncatedError
from blockplane.model.checks import crc32c, fresh_checks
from blockplane.planes import Plane
from blockplane.stream import codec
from blockplane.transfer import offer, receive, resume_token, send
from blockplane.volume import Volume
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.rootslots import slots_of
from blockplane.volume.tree import BlockTree
from faults.inline import inline_workers
from faults.recording import MemoryDisk
from faults.world import geometry_of, make_volume, open_volume
from fuzzing.mutators import EDIT, KEY, MOST_EDITS

GEOMETRY = geometry_of(2, 1, 256)
#: How streams are written.
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zstd": {"compress": "zstd"},
    "encrypted": {"key": KEY},
    "zstd, encrypted": {"compress": "zstd", "key": KEY},
    "implicit": {"locations": "implicit"},
    "implicit, tape": {"locations": "implicit", "order": "tape"},
}
#: Streams of little have several frames all the same.
FRAME_BLOCKS = 4
Contents = list[dict[int, bytes]]


class World(NamedTuple):
    """Disks of a source with the snapshots one and two, of a destination that has one, and what went between them."""

    source: Contents
    target: Contents
    full: dict[str, bytes]
    steps: dict[str, bytes]
    rest: bytes
    offer: bytes
    token: bytes


def fill(volume: Volume) -> FileSystem:
    """A few files of every kind, the same each time."""
    files, draw = FileSystem(volume), random.Random(1)
    files.mkdir("/folder")
    for number in range(10):
        files.write_bytes(f"/folder/file{number}", bytes(draw.choices(b"abcd", k=draw.randrange(1, 12_000))))
    files.symlink("folder/file1", "/link")
    files.link("/folder/file2", "/other")
    files.setxattr("/folder/file3", "user.a", b"b" * 300)
    with files.open("/sparse", "wb") as sparse:
        sparse.seek(1 << 20)
        sparse.write(b"end")
    return files


@cache
def world() -> World:
    """Make everything that seeds are taken from."""
    with inline_workers():
        volume = make_volume(GEOMETRY)
        files = fill(volume)
        volume.snapshot("one", mark=True)
        files.write_bytes("/folder/new", bytes(9000))
        files.unlink("/folder/file5")
        volume.snapshot("two")
        full, steps = {}, {}
        for name, form in FORMS.items():
            full[name], steps[name] = sent(volume, "one", **form), sent(volume, "two - one", **form)
        target = make_volume(GEOMETRY)
        receive(io.BytesIO(full["plain"]), target)
        had, made = io.BytesIO(), contents_of(target)
        offer(target, had, "one")
        with suppress(StreamTruncatedError):
            receive(io.BytesIO(steps["plain"][: len(steps["plain"]) * 2 // 3]), target)
        # a volume without a directory keeps no journal: what landed is said here
        some = build(volume, "two - one").plane
        token = replace(resume_token(target), copied=some & Plane.from_extents([[0, some.select(5)]], some.n_blocks))
        rest = sent(volume, "two - one", resume=token)
        files.write_bytes("/folder/file1", b"changed")
        files.rename("/folder/file2", "/folder/moved")
        volume.snapshot("three")
        volume.shadow_snapshot("three")
        volume.hold_snapshot("two", "someone")
        volume.sync()
        return World(contents_of(volume), made, full, steps, rest, had.getvalue(), token.encode())


@cache
def offered_image() -> Image:
    """What would be sent against an offer: a full image of a volume that stays open."""
    return build(open_volume(disks_of(world().source), writable=False), "two")


def sent(volume: Volume, expression: str, **form: Any) -> bytes:
    out = io.BytesIO()
    with mock.patch.object(codec, "MAX_FRAME_BLOCKS", FRAME_BLOCKS):
        send(build(volume, expression), out, **form)
    return out.getvalue()


def contents_of(volume: Volume) -> Contents:
    return [disk.contents() for disk in volume.array.disks if isinstance(disk, MemoryDisk)]


def disks_of(contents: Contents) -> list[Disk]:
    """Fresh disks over contents that stay as they are."""
    n_blocks = HEAD_BLOCKS + GEOMETRY.groups[0].disk_blocks + TAIL_BLOCKS
    return [MemoryDisk(f"disk{i}", n_blocks, base) for i, base in enumerate(contents)]


@contextmanager
def opened(disks: Sequence[Disk], writable: bool = True) -> Iterator[Volume]:
    """A volume on disks, dropped afterwards as a killed process drops it."""
    volume = open_volume(disks, writable)
    try:
        yield volume
    finally:
        volume.abandon()


# --- edits --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One change of a block of metadata: a field written, or bytes copied from elsewhere in the same tree.

    where : which tree, or which block of those that stand outside of trees. what : bit 7 copies up to 512 bytes, else
    the low bits are the width of a field. value : of the field; of a copy the offset (16 bits) and the leaf it is from.
    """

    where: int
    what: int
    offset: int
    leaf: int
    value: int

    @property
    def is_copy(self) -> bool:
        return self.what >= 128

    @property
    def width(self) -> int:
        return (16, 32, 64, 512)[self.what & 3] if self.is_copy else 1 << (self.what & 3)

    def apply(self, block: np.ndarray, other: np.ndarray) -> None:
        at = self.offset % BLOCK_BYTES
        stop = min(at + self.width, BLOCK_BYTES)
        if self.is_copy:
            start = self.value % BLOCK_BYTES
            piece = other[start : start + stop - at].copy()
        else:
            piece = np.frombuffer((self.value % (1 << 8 * self.width)).to_bytes(self.width, "little"), np.uint8)
        n = min(len(piece), stop - at)
        block[at : at + n] = piece[:n]

    def apply_to_bytes(self, data: bytes) -> bytes:
        block = np.frombuffer(data, np.uint8).copy()
        self.apply(block, block)
        return block.tobytes()

    def apply_to_tree(self, tree: BlockTree) -> None:
        leaves = [leaf for start, stop in tree.data_extents().tolist() for leaf in range(start, min(stop, start + 64))]
        if leaves:
            other = tree.read_block(leaves[(self.value >> 16) % len(leaves)]).copy()
            self.apply(tree.edit_block(leaves[self.leaf % len(leaves)]), other)


def edits_of(data: bytes) -> list[Edit]:
    stop = min(len(data) - EDIT.size + 1, MOST_EDITS * EDIT.size)
    return [Edit(*EDIT.unpack_from(data, at)) for at in range(0, stop, EDIT.size)]


def disfigure_state(volume: Volume, edits: Sequence[Edit]) -> None:
    """Write into the metadata of the live state through its trees, so that every checksum is right."""
    files, active = FileSystem(volume), volume.active
    folders = [files.store.directory(files.resolver.find(path)).tree for path in ("/", "/folder")]
    trees = [active.inode_file, active.inode_file, *folders, active.snapshot_list, active.blockmap]
    for edit in edits:
        tree = trees[edit.where % len(trees)]
        edit.apply_to_tree(tree)
        if tree in folders:
            tree.flush()
    active.is_dirty = True


def disfigure_local(volume: Volume, edits: Sequence[Edit]) -> None:
    """Write into the local trees: the snapshot table, holds, marks, planes."""
    trees = volume.local.trees
    for edit in edits:
        edit.apply_to_tree(trees[edit.where // 8 % len(trees)])
        volume.local.is_dirty = volume.active.is_dirty = True
    volume.commit()


# --- what stands outside of trees: labels, root records, roots (volume/FORMAT.md, disks/label.py) -----------------

LABEL_CRC_AT = 12
FSINFO_POINTERS = {"state": 104, "local": 136}


def disfigure_roots(disks: Sequence[MemoryDisk], edits: Sequence[Edit]) -> None:
    """Write into roots, then into root records, then into labels, each with its checks put right."""
    for edit in edits:
        if edit.where % 8 in (0, 1):
            _edit_root(disks, edit, ("state", "local")[edit.where % 8])
    for edit in edits:
        if edit.where % 8 in (2, 3):
            for disk in disks:
                for slot in slots_of(disk)[: 3 - edit.where % 8]:
                    disk.overlay[slot] = sealed_fsinfo(edit.apply_to_bytes(disk.block(slot)))
        elif edit.where % 8 in (4, 5):
            for disk in disks if edit.where % 8 == 4 else [disks[edit.leaf % len(disks)]]:
                for block in label_blocks(disk):
                    disk.overlay[block] = sealed_label(edit.apply_to_bytes(disk.block(block)))


def _edit_root(disks: Sequence[MemoryDisk], edit: Edit, which: str) -> None:
    at = FSINFO_POINTERS[which]
    number = struct.unpack_from("<Q", disks[0].block(slots_of(disks[0])[0]), at)[0] & NUMBER_MASK
    member, dbn = (int(part[0]) for part in GEOMETRY.to_disk(np.array([number], np.int64)))
    block = edit.apply_to_bytes(disks[member].block(dbn + HEAD_BLOCKS))
    disks[member].overlay[dbn + HEAD_BLOCKS] = block
    check = int(fresh_checks(np.frombuffer(block, np.uint8), number)[0])
    for disk in disks:
        for slot in slots_of(disk):
            record = bytearray(disk.block(slot))
            struct.pack_into("<I", record, at + 8, check)
            disk.overlay[slot] = sealed_fsinfo(bytes(record))


def sealed_fsinfo(block: bytes) -> bytes:
    return block[:-4] + struct.pack("<I", crc32c(block[:-4]))


def sealed_label(block: bytes) -> bytes:
    blank = block[:LABEL_CRC_AT] + bytes(4) + block[LABEL_CRC_AT + 4 :]
    return block[:LABEL_CRC_AT] + struct.pack("<I", crc32c(blank)) + block[LABEL_CRC_AT + 4 :]
