"""Reading the blocks of many files in one go: pointers of any trees of a state, verified, in one request."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import aligned_buffer
from blockplane.filesystem.content import n_blocks_of
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.hostwrite import UNREADABLE
from blockplane.model import BLOCK_BYTES, ChecksumError
from blockplane.model.checks import first_bad_block
from blockplane.volume.codec import (
    FORM_TREE,
    KIND_BLOCK,
    KIND_SHIFT,
    NODE_POINTERS,
    NUMBER_MASK,
    ROOT_POINTERS,
    PointerArray,
)
from blockplane.volume.runs import runs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blockplane.filesystem.inode import Inode
    from blockplane.filesystem.store import Store
    from blockplane.volume.treeio import BlockReader

_local = threading.local()


def scratch(n_bytes: int) -> NDArray[np.uint8]:
    """Return this thread's aligned buffer, cut to n_bytes; it is overwritten by the thread's next call."""
    buffer: NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < n_bytes:
        buffer = _local.buffer = aligned_buffer(n_bytes)
    return buffer[:n_bytes]


def read_pointers(reader: BlockReader, pointers: PointerArray, out: NDArray[np.uint8]) -> None:
    """Read what pointers (n, 2), of one state and any of its trees, lead to; holes are zeros.

    Raises
    ------
    ChecksumError: a block is not what its pointer says. FileSystemDamagedError: a pointer is of unknown kind.
    """
    words = pointers[:, 0]
    present = words != 0
    if not present.all():
        _read_present(reader, pointers, present, out)
        return
    if (words >> np.uint64(KIND_SHIFT) != KIND_BLOCK).any():
        raise damaged("a tree holds a pointer of unknown kind")
    numbers = (words & np.uint64(NUMBER_MASK)).astype(np.int64)
    reader.read_extents(runs_of(numbers), out)
    bad = first_bad_block(out, numbers, pointers[:, 1].astype(np.uint32))
    if bad >= 0:
        raise ChecksumError(
            f"block {numbers[bad]} does not match its checksum",
            int(numbers[bad]),
            "run `blockplane check` to see what it belongs to; restore it from a snapshot or a stream",
        )


def block_pointers(store: Store, inodes: Sequence[Inode]) -> dict[int, PointerArray]:
    """Read the pointer blocks of files that have one level of them, of all with one request.

    Returns
    -------
    by inode number: pointers (n, 2) to the file's blocks from the first on, at least as many as it has. Files that are
    open, changed, sparse or of another depth are left out; in a live file system all are, where one has changed.
    """
    chosen = [inode for inode in inodes if _has_one_level(inode)]
    roots = [inode.root.pointers[: _n_nodes(inode)] for inode in chosen if inode.root is not None]
    if not chosen:
        return {}
    pointers = np.concatenate(roots)
    data = aligned_buffer(len(pointers) * BLOCK_BYTES)
    try:
        read_pointers(store.state.reader, pointers, data)
    except UNREADABLE:  # each by itself: who has the one that it is says so, or has it elsewhere by now
        return {}
    found = np.split(data.view(np.uint64).reshape(-1, 2), np.cumsum([len(root) for root in roots])[:-1] * NODE_POINTERS)
    return dict(zip((inode.number for inode in chosen), found, strict=True))


def _has_one_level(inode: Inode) -> bool:
    root = inode.root
    if root is None or inode.tree is not None or inode.dirty or inode.n_open or root.form != FORM_TREE:
        return False
    if root.depth != 1 or not inode.n_blocks == n_blocks_of(inode.size_bytes) <= ROOT_POINTERS * NODE_POINTERS:
        return False
    return bool(root.pointers[: _n_nodes(inode), 0].all())


def _n_nodes(inode: Inode) -> int:
    return -(-inode.n_blocks // NODE_POINTERS)


def _read_present(
    reader: BlockReader, pointers: PointerArray, present: NDArray[np.bool_], out: NDArray[np.uint8]
) -> None:
    """Read the blocks that exist into a buffer of their own, and spread them."""
    out[:] = 0
    n_present = int(present.sum())
    if n_present:
        packed = aligned_buffer(n_present * BLOCK_BYTES)
        read_pointers(reader, pointers[present], packed)
        out.reshape(-1, BLOCK_BYTES)[present] = packed.reshape(-1, BLOCK_BYTES)
