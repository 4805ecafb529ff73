"""The bytes of one file: inline up to 256, else on a block tree; reading, writing, truncating, holes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blockplane.filesystem.errors import TooLargeError
from blockplane.filesystem.inode import INLINE_DATA_BYTES, MAX_FILE_BYTES, Inode
from blockplane.model import BLOCK_BYTES
from blockplane.volume.treeread import ZERO_BLOCK

if TYPE_CHECKING:
    from blockplane.volume.tree import BlockTree

Bytes = NDArray[np.uint8]

# From this many whole blocks on a write goes straight to new places; fewer are gathered as dirty blocks until the next
# consistency point. At 16 (64 KiB) the cost of a span, about 30 us, is below that of 16 edited blocks.
DIRECT_BLOCKS = 16
# What one write leaves buffered at most: below DIRECT_BLOCKS blocks of data, with the ends of a long write.
MAX_BUFFERED_BYTES = (DIRECT_BLOCKS + 2) * BLOCK_BYTES


def n_blocks_of(size_bytes: int) -> int:
    """Return how many blocks a size reaches into."""
    return -(-size_bytes // BLOCK_BYTES)


def read_into(inode: Inode, tree: BlockTree | None, offset: int, out: memoryview) -> int:
    """Read from offset into out (writable, of bytes); return how many bytes there were."""
    n_bytes = min(len(out), inode.size_bytes - offset)
    if n_bytes <= 0:
        return 0
    target = np.frombuffer(out, np.uint8)[:n_bytes]
    if inode.inline is not None:
        target[:] = np.frombuffer(inode.inline, np.uint8)[offset : offset + n_bytes]
    elif tree is None:
        target[:] = 0
    else:
        _read_tree(tree, offset, target)
    return n_bytes


def _read_tree(tree: BlockTree, offset: int, target: Bytes) -> None:
    """Read whole blocks into the target itself, and the ends through one block each."""
    at = 0
    while at < len(target):
        index, skip = divmod(offset + at, BLOCK_BYTES)
        n_whole = (len(target) - at) // BLOCK_BYTES if skip == 0 else 0
        if n_whole > 1:
            tree.read(index, n_whole, target[at : at + n_whole * BLOCK_BYTES])
            at += n_whole * BLOCK_BYTES
        else:
            n_bytes = min(BLOCK_BYTES - skip, len(target) - at)
            target[at : at + n_bytes] = tree.read_block(index)[skip : skip + n_bytes]
            at += n_bytes


def stays_inline(inode: Inode, end: int) -> bool:
    """Whether content that reaches to `end` needs no tree."""
    return inode.tree is None and inode.root is None and max(end, inode.size_bytes) <= INLINE_DATA_BYTES


def write_inline(inode: Inode, offset: int, data: Bytes) -> None:
    """Write into the inline bytes."""
    content = bytearray(inode.inline or bytes(inode.size_bytes))
    if len(content) < offset:
        content += bytes(offset - len(content))
    content[offset : offset + len(data)] = data.tobytes()
    inode.inline = bytes(content)
    inode.size_bytes = len(content)


def leave_inline(inode: Inode, tree: BlockTree) -> None:
    """Move inline bytes into the tree's first block."""
    if inode.inline is not None:
        tree.edit_block(0)[: len(inode.inline)] = np.frombuffer(inode.inline, np.uint8)
        inode.inline = None
        inode.n_blocks = 1


def write(inode: Inode, tree: BlockTree, offset: int, data: Bytes) -> None:
    """Write data (uint8) at an offset into a file that is on a tree; the file grows as needed.

    Raises
    ------
    NoSpaceError: the volume is full; what lay in the file before is as it was outside the written range, once
        `drop_behind` has taken back what lies behind its end.
    """
    end = offset + len(data)
    if end > MAX_FILE_BYTES:
        raise TooLargeError("", f"a file of {end} bytes is larger than the format allows ({MAX_FILE_BYTES})")
    old_blocks = n_blocks_of(inode.size_bytes)
    _write_blocks(inode, tree, offset, data, old_blocks)
    inode.size_bytes = max(inode.size_bytes, end)


def _write_blocks(inode: Inode, tree: BlockTree, offset: int, data: Bytes, old_blocks: int) -> None:
    """Write span by span and block by block, counting blocks that were holes."""
    at = 0
    while at < len(data):
        index, skip = divmod(offset + at, BLOCK_BYTES)
        n_whole = (len(data) - at) // BLOCK_BYTES if skip == 0 else 0
        if n_whole >= DIRECT_BLOCKS:
            n_old = count_blocks(tree, index, min(index + n_whole, old_blocks))
            write_spans(tree, index, data[at : at + n_whole * BLOCK_BYTES])
            inode.n_blocks += n_whole - n_old
            at += n_whole * BLOCK_BYTES
        else:
            n_bytes = min(BLOCK_BYTES - skip, len(data) - at)
            was_hole = index >= old_blocks or tree.read_block(index) is ZERO_BLOCK
            tree.edit_block(index)[skip : skip + n_bytes] = data[at : at + n_bytes]
            inode.n_blocks += was_hole
            old_blocks = max(old_blocks, index + 1)
            at += n_bytes


def write_spans(tree: BlockTree, index: int, data: Bytes) -> None:
    """Write whole blocks to new places."""
    spans = tree.allocate(index, len(data) // BLOCK_BYTES)
    at = 0
    for span in spans:
        n_bytes = span.n_blocks * BLOCK_BYTES
        span.buffer[:n_bytes] = data[at : at + n_bytes]
        at += n_bytes
    tree.filled(spans)


def truncate(inode: Inode, tree: BlockTree | None, size_bytes: int) -> None:
    """Set the size of a file: cut, or extended by a hole."""
    if size_bytes > MAX_FILE_BYTES:
        raise TooLargeError("", f"a file of {size_bytes} bytes is larger than the format allows ({MAX_FILE_BYTES})")
    if inode.inline is not None:
        inode.inline = inode.inline[:size_bytes].ljust(size_bytes, b"\0") or None
    elif tree is not None and size_bytes < inode.size_bytes:
        _clear_tail(tree, size_bytes)
        punch(inode, tree, n_blocks_of(size_bytes), n_blocks_of(inode.size_bytes))
    inode.size_bytes = size_bytes


def drop_behind(inode: Inode, tree: BlockTree) -> None:
    """After a write that broke off: make all behind the file's end a hole again, and count its blocks."""
    n_blocks = n_blocks_of(inode.size_bytes)
    tree.punch(n_blocks, tree.capacity_blocks())
    _clear_tail(tree, inode.size_bytes)
    inode.n_blocks = count_blocks(tree, 0, n_blocks)


def _clear_tail(tree: BlockTree, size_bytes: int) -> None:
    """Zero what lies behind a size in its last block."""
    index, skip = divmod(size_bytes, BLOCK_BYTES)
    if skip and tree.read_block(index) is not ZERO_BLOCK:
        tree.edit_block(index)[skip:] = 0


def punch(inode: Inode, tree: BlockTree, start: int, stop: int) -> None:
    """Make blocks start..stop holes."""
    if start >= stop:
        return
    n_gone = count_blocks(tree, start, stop)
    tree.punch(start, tree.capacity_blocks() if start == 0 and n_gone == inode.n_blocks else stop)
    inode.n_blocks -= n_gone


def keep_only(inode: Inode, tree: BlockTree, segments: list[tuple[int, int]]) -> None:
    """Make every block outside of ascending ranges of blocks a hole."""
    position = 0
    for start, stop in segments:
        punch(inode, tree, position, start)
        position = stop
    punch(inode, tree, position, n_blocks_of(inode.size_bytes))


def count_blocks(tree: BlockTree, start: int, stop: int) -> int:
    """Return how many blocks of start..stop are no holes."""
    if start >= stop:
        return 0
    extents = tree.data_extents(start, stop)
    return int((extents[:, 1] - extents[:, 0]).sum())


def data_ranges(inode: Inode, tree: BlockTree | None) -> list[tuple[int, int]]:
    """Return the byte ranges that are no holes, ascending, half-open, cut to the file's size."""
    if inode.inline is not None:
        return [(0, inode.size_bytes)]
    if tree is None:
        return []
    size_bytes = inode.size_bytes
    extents = tree.data_extents(0, n_blocks_of(size_bytes)) * BLOCK_BYTES
    return [(start, min(stop, size_bytes)) for start, stop in extents.tolist()]
