"""Comparing a copy with its source, block by block, byte by byte."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import aligned_buffer
from blockplane.image.extents import numbers_in
from blockplane.image.gather import Gathered
from blockplane.image.image import Image
from blockplane.image.layout import Layout
from blockplane.image.order import WINDOW_BLOCKS
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Numbers
from blockplane.model.errors import ChecksumError
from blockplane.model.progress import Progress, ProgressEvent
from blockplane.planes import Plane, combine
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume.codec import KIND_REGULAR
from blockplane.volume.live import LiveVolume

_WORDS: Final = BLOCK_BYTES // 8


def compare_copy(image: Image, volume: LiveVolume, progress: Progress) -> int:
    """Hold the blocks of an image against those of the same numbers in a volume that has it; return how many.

    Notes
    -----
    Both sides are read from their disks, at once; the source's are held against their checks on the way. Blocks that
    are only of snapshots which the volume does not have any more are passed over.

    Raises
    ------
    ChecksumError : some differ, or one of the source is damaged. DiskError : a read failed.
    """
    started = time.monotonic()
    with ExitStack() as reading:
        plane, layout = _there(image, volume, reading)
        sending = ImageSending(image)
        if len(plane) != len(image.plane):
            sending.part = plane
        buffer = aligned_buffer(WINDOW_BLOCKS * BLOCK_BYTES)
        differing, n_differing, done = -1, 0, 0
        for window in reading.enter_context(sending.windows()):
            bad = _differing(window, layout, volume, buffer[: len(window.buffer)])
            n_differing += len(bad)
            differing = int(bad[0]) if len(bad) and differing < 0 else differing
            done += len(window.buffer)
            progress(ProgressEvent("verify", done, len(plane) * BLOCK_BYTES, time.monotonic() - started))
    if n_differing:
        raise ChecksumError(
            f"{n_differing} of {len(plane)} blocks in {volume.path} differ from the source's: the first is {differing}",
            differing,
            f"`blockplane check {volume.path}` says what else is damaged; copy to other disks",
        )
    return len(plane)


def _there(image: Image, volume: LiveVolume, reading: ExitStack) -> tuple[Plane, Layout]:
    """Return which blocks of an image a volume has, and where; its snapshots stay while the stack is open."""
    with volume.lock:
        by_root = {e.record.root: e for e in volume.local.entries() if e.record.kind == KIND_REGULAR}
        found = [(by_root[state.pointer], owned) for state, owned in image.owners if state.pointer in by_root]
        parts = [(volume.snapshot_state(entry).placemap, owned) for entry, owned in found]
        for entry, _ in found:
            reading.enter_context(volume.pin(entry.record.id))
    plane = combine([owned for _, owned in parts]) if parts else Plane.empty(image.space_blocks)
    return plane, Layout(plane, parts, volume.geometry.n_blocks)


def _differing(window: Gathered, layout: Layout, volume: LiveVolume, buffer: Bytes) -> Numbers:
    """Read the copy of a window, all disks at once; return the VBNs of blocks that differ."""
    volume.array.submit_read(layout.to_places(window.extents), buffer).wait()
    mine, copy = (data.view(np.uint64) for data in (window.buffer, buffer))
    if np.array_equal(mine, copy):
        return np.empty(0, np.int64)
    differs: NDArray[np.bool_] = (mine.reshape(-1, _WORDS) != copy.reshape(-1, _WORDS)).any(axis=1)
    return numbers_in(window.extents)[differs]
