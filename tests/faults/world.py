"""A volume on disks in memory, a client that keeps small files in it, and a plain model of what they hold.

A file is a dict from block index to a number; the block's bytes are that number over and over.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blockplane.disks import GroupRecord, make_labels, write_labels
from blockplane.disks.assembly import assemble_disks
from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS, Disk
from blockplane.disks.geometry import FIRST_MULTIPLE, Geometry
from blockplane.model import BLOCK_BYTES
from blockplane.model.checks import fresh_checks
from blockplane.planes import Plane
from blockplane.volume import State, TreeRoot, Volume
from blockplane.volume.check import CheckReport, check
from blockplane.volume.codec import NUMBER_MASK, TREE_ROOT_BYTES, Pointer
from blockplane.volume.fsinfo import MEMBER_OK, FsInfo
from blockplane.volume.live import LiveVolume
from blockplane.volume.rootslots import group_that_left
from faults.recording import MemoryDisk

NOWHERE = Path("nowhere")
INODE_BYTES = 512
INODES_PER_BLOCK = BLOCK_BYTES // INODE_BYTES

File = dict[int, int]
Files = dict[int, File]


def geometry_of(
    n_data: int = 2, n_parity: int = 1, disk_blocks: int = 256, chunk_blocks: int = 64, n_groups: int = 1
) -> Geometry:
    """Equal groups, one behind the other with the hole that first numbers leave."""
    groups, first = [], 0
    width = n_data + n_parity
    for index in range(n_groups):
        members = tuple(range(index * width, (index + 1) * width))
        groups.append(GroupRecord(first, n_data, n_parity, chunk_blocks, disk_blocks, members))
        first = -(-groups[-1].stop // FIRST_MULTIPLE) * FIRST_MULTIPLE
    return Geometry(groups)


def raw_blocks(geometry: Geometry, disk: int) -> int:
    return HEAD_BLOCKS + geometry.groups[geometry.home(disk)[0]].disk_blocks + TAIL_BLOCKS


def memory_disks(geometry: Geometry) -> list[Disk]:
    return [MemoryDisk(f"disk{disk}", raw_blocks(geometry, disk)) for disk in range(geometry.n_disks)]


def make_volume(
    geometry: Geometry,
    disks: Sequence[Disk] | None = None,
    reserve_blocks: int | None = None,
    kind: type[Volume] = Volume,
    place: Path = NOWHERE,
) -> Volume:
    """An empty volume; the reserve of a tiny volume is what a few consistency points need."""
    disks = disks if disks is not None else memory_disks(geometry)
    volume_id = os.urandom(16)
    members = [os.urandom(16) for _ in disks]
    write_labels(disks, make_labels(geometry, volume_id, members, [disk.n_blocks for disk in disks]), 0)
    reserve = reserve_blocks if reserve_blocks is not None else max(geometry.n_usable // 8, 48)
    record = FsInfo(volume_id, geometry, reserve_blocks=reserve, member_states=bytes([MEMBER_OK]) * len(disks))
    return kind.on_disks(place, geometry, disks, record)


def open_volume(disks: Sequence[Disk], writable: bool = True, kind: type[Volume] = Volume) -> Volume:
    return kind.from_assembly(NOWHERE, assemble_disks(disks, leaving=group_that_left), writable)


def again(volume: Volume) -> Volume:
    """What opens after the process died: nothing of memory is left."""
    volume.abandon()
    return open_volume(revived(volume.array.disks))


def revived(disks: Sequence[Disk]) -> list[Disk]:
    """The same disks, open again."""
    for disk in disks:
        assert isinstance(disk, MemoryDisk)
        disk.is_closed = False
    return list(disks)


class FileClient:
    """Files in the live state; `files` is the model."""

    def __init__(self, volume: Volume, models: dict[Pointer, Files] | None = None) -> None:
        """models: what states hold, by their root's pointer; read from the volume where it does not say."""
        self.volume = volume
        self.models = models if models is not None else {}
        self.files: Files = self._known()
        self._trees: dict = {}
        self._changed: set[int] = set()
        volume.register_client(self)

    def _tree(self, inode: int):
        if inode not in self._trees:
            self._trees[inode] = self.volume.new_tree(root_of(self.volume.active, inode))
        return self._trees[inode]

    def write(self, inode: int, first: int, values: Sequence[int]) -> None:
        """Whole blocks, placed at once."""
        tree = self._tree(inode)
        for span in tree.allocate(first, len(values)):
            blocks = span.buffer.view(np.uint64).reshape(span.n_blocks, -1)
            at = span.index - first
            blocks[:] = np.array(values[at : at + span.n_blocks], np.uint64)[:, None]
            tree.filled([span])
        self._note(inode, tree, first + len(values))
        self.files.setdefault(inode, {}).update({first + i: value for i, value in enumerate(values)})

    def edit(self, inode: int, index: int, value: int) -> None:
        """One block, kept in memory until the consistency point."""
        tree = self._tree(inode)
        tree.edit_block(index).view(np.uint64)[:] = value
        self._note(inode, tree, index + 1)
        self.files.setdefault(inode, {})[index] = value

    def punch(self, inode: int, start: int, stop: int) -> None:
        tree = self._tree(inode)
        tree.punch(start, stop)
        self._note(inode, tree, 0)
        model = self.files.get(inode, {})
        for index in [index for index in model if start <= index < stop]:
            del model[index]

    def remove(self, inode: int) -> None:
        tree = self._tree(inode)
        tree.punch(0, tree.capacity_blocks())
        tree.size_bytes = 0
        self._note(inode, tree, 0)
        self.files.pop(inode, None)

    def _note(self, inode: int, tree, stop: int) -> None:
        tree.size_bytes = max(tree.size_bytes, stop * BLOCK_BYTES)
        self._changed.add(inode)
        self.volume.active.is_dirty = True

    def flush(self, volume: LiveVolume) -> None:
        for inode in sorted(self._changed):
            tree = self._trees[inode]
            tree.flush()
            put_root(volume.active, inode, tree.root)
        volume.active.root.n_inodes = max(len(self.files), volume.active.root.n_inodes)
        self._changed.clear()

    def reload(self) -> None:
        self._trees.clear()
        self._changed.clear()
        self.files = self._known()

    def _known(self) -> Files:
        model = self.models.get(self.volume.active.pointer)
        return copy.deepcopy(model) if model is not None else read_files(self.volume.active)


def root_of(state: State, inode: int) -> TreeRoot:
    block, slot = divmod(inode, INODES_PER_BLOCK)
    data = state.inode_file.read_block(block)[slot * INODE_BYTES :][:TREE_ROOT_BYTES]
    return TreeRoot.decode(data.tobytes())


def put_root(state: State, inode: int, root: TreeRoot) -> None:
    block, slot = divmod(inode, INODES_PER_BLOCK)
    data = state.inode_file.edit_block(block)[slot * INODE_BYTES :][:TREE_ROOT_BYTES]
    data[:] = np.frombuffer(root.encode(), np.uint8)
    state.inode_file.size_bytes = max(state.inode_file.size_bytes, (block + 1) * BLOCK_BYTES)


def read_files(state: State) -> Files:
    """Everything a state holds, read through verified blocks; files without a block are left out."""
    files: Files = {}
    for start, stop in state.inode_file.data_extents().tolist():
        for inode in range(start * INODES_PER_BLOCK, stop * INODES_PER_BLOCK):
            tree = state.tree(root_of(state, inode))
            found: File = {}
            for low, high in tree.data_extents().tolist():
                out = np.empty((high - low) * BLOCK_BYTES, np.uint8)
                tree.read(low, high - low, out)
                blocks = out.view(np.uint64).reshape(high - low, -1)
                assert (blocks == blocks[:, :1]).all(), f"inode {inode}: a block is a mixture"
                found.update(zip(range(low, high), blocks[:, 0].tolist(), strict=True))
            if found:
                files[inode] = found
    return files


def present(files: Files) -> Files:
    """The model without empty files, a copy."""
    return {inode: copy.copy(file) for inode, file in files.items() if file}


def snapshot_files(volume: Volume) -> dict[str, Files]:
    return {snapshot.name: read_files(snapshot.state) for snapshot in volume.snapshots}


def verdict(volume: Volume) -> CheckReport:
    report = check(volume)
    assert report.problems == []
    return report


# --- images without a stream --------------------------------------------------------------------------------------


def image_plane(volume: Volume, top: str, base: str | None = None) -> Plane:
    """The plane of a full image, or what the top has and the base has not: blocks whose places differ included."""
    state = volume.get_snapshot(top).state
    if base is None:
        return volume.plane(state)
    old = volume.get_snapshot(base).state
    mine = volume.plane(state).extents()
    vbns = np.concatenate([np.arange(start, stop) for start, stop in mine.tolist()])
    shared = old.holds(vbns) & (old.placemap.to_places(vbns) == state.placemap.to_places(vbns))
    plane = Plane.empty(max(volume.geometry.n_blocks, state.space_blocks))
    plane.add_many(vbns[~shared])
    return plane


def read_blocks(volume: Volume, name: str, start: int, stop: int) -> np.ndarray:
    """The raw bytes of VBNs of a snapshot."""
    out = np.empty((stop - start) * BLOCK_BYTES, np.uint8)
    volume.get_snapshot(name).state.reader.read_extents(np.array([[start, stop]], np.int64), out)
    return out


def fill(
    landing, source: Volume, top: str, plane: Plane, reverse: bool = False, piece: int = 7, most: int | None = None
) -> None:
    """Hand the blocks of an image to a landing, in pieces, at most so many of them."""
    pieces = [
        (at, min(at + piece, stop)) for start, stop in plane.extents().tolist() for at in range(start, stop, piece)
    ]
    for start, stop in (pieces[::-1] if reverse else pieces)[:most]:
        data = read_blocks(source, top, start, stop)
        at, checks = 0, fresh_checks(data, np.arange(start, stop))
        buffers = landing.buffers(np.array([[start, stop]], np.int64), checks)
        for buffer in buffers or ():
            buffer[:] = data[at : at + len(buffer)]
            at += len(buffer)
        if buffers is not None:
            landing.landed()


def receive(source: Volume, target: Volume, top: str, base: str | None = None, reverse: bool = False) -> None:
    """Bring a snapshot to another volume, full or on a base both have."""
    plane = image_plane(source, top, base)
    landing = target.landing(plane, target.get_snapshot(base) if base is not None else None)
    try:
        fill(landing, source, top, plane, reverse)
        landing.commit([source.get_snapshot(top).record])
    except BaseException:
        landing.abort()
        raise


def numbers_of(pointers: np.ndarray) -> list[int]:
    """Block numbers of pointers (n, 2) that are no holes."""
    return [int(word) & NUMBER_MASK for word in pointers[:, 0] if word]


# --- damage -------------------------------------------------------------------------------------------------------


def spoil_place(volume: Volume, place: int) -> None:
    """Write other bytes over a place, below everything that keeps checksums and parity."""
    disk, dbn = volume.geometry.to_disk(np.array([place], np.int64))
    volume.array.disks[int(disk[0])].write(HEAD_BLOCKS + int(dbn[0]), bytes([0x5A]) * BLOCK_BYTES)


def leaf_place(volume: Volume, name: str, leaf: int = 0) -> int:
    """Where a leaf of a snapshot's blockmap lies."""
    state = volume.get_snapshot(name).state
    numbers = numbers_of(state.blockmap.pointers(leaf, leaf + 1))
    return int(state.placemap.to_places(np.array(numbers, np.int64))[0])
