"""Comparing a snapshot in streams with the one of a volume: names, checks and bytes."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from blockplane.image.extents import extents_of, numbers_in
from blockplane.image.gather import Gathered
from blockplane.image.image import Image, build
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Numbers
from blockplane.model.errors import StreamMismatchError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.planes import Plane, combine
from blockplane.stream.keyfile import Keys
from blockplane.stream.source import StreamChain, StreamName, open_stream
from blockplane.stream.stateplane import HeldPlane, plane_in
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume.live import LiveVolume

#: So many blocks that differ are listed; all are counted.
MAX_LISTED = 20


@dataclass(slots=True)
class StreamComparison:
    """How a snapshot in streams and in a volume differ.

    n_blocks : compared, byte by byte. base_blocks : of a snapshot whose base is in no stream, those that were not
    compared. only_in_stream, only_in_volume, n_differing : counts. differing : the first of the VBNs.
    """

    snapshot: str
    n_blocks: int = 0
    base_blocks: int = 0
    only_in_stream: int = 0
    only_in_volume: int = 0
    n_differing: int = 0
    seconds: float = 0.0
    differing: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the two are equal as far as they were compared."""
        return not (self.only_in_stream or self.only_in_volume or self.n_differing)


def compare_streams(
    *paths: StreamName,
    volume: LiveVolume,
    snapshot: str,
    key: Keys = None,
    progress: Progress = ignore_progress,
) -> StreamComparison:
    """Compare a snapshot in streams with the same one of a volume: which blocks, and every byte of them.

    Parameters
    ----------
    paths : a stream or the streams of a chain, or a folder. Without a full one, what the increments bring is compared.
    snapshot : its name in the volume; the streams must bring the one of the same id.
    key : a key, a key file, or several, for streams that are encrypted.

    Raises
    ------
    StreamMismatchError : they do not bring it. NoSuchSnapshotError : the volume does not have it.
    StreamDamagedError, StreamError : a block of a stream does not match its check, or a stream cannot be read: that is
        no difference, and nothing is said of one. The message names the file and the first block.

    Notes
    -----
    The volume's disks are read all at once, the streams through their indexes; both sides are verified.
    """
    started = time.monotonic()
    image = build(volume, snapshot)
    with closing(open_stream(*paths, needs_full=False, key=key, chooses=False)) as opened:
        chain = _at_same(opened, image)
        held = plane_in(chain)
        found = StreamComparison(snapshot)
        _compare_planes(found, held, _brought(chain, held), image.plane)
        total = image.n_bytes
        with ImageSending(image).windows() as windows:
            for window in windows:
                _compare_window(found, chain, window, _within(window, held.plane, chain))
                done = (found.n_blocks + found.base_blocks) * BLOCK_BYTES
                progress(ProgressEvent("compare", done, total, time.monotonic() - started))
    found.seconds = time.monotonic() - started
    return found


def _at_same(chain: StreamChain, image: Image) -> StreamChain:
    """Return the chain at the snapshot of the image's top's id."""
    top = image.require_sendable()
    for record in chain.snapshots:
        if record.id == top.id:
            if record.space_id != top.space_id:
                break
            return chain.at(record)
    names = ", ".join(f"{record.name} (id {record.id.hex()})" for record in chain.snapshots[-4:])
    raise StreamMismatchError(
        f"the streams do not bring the snapshot {top.name} of the volume (id {top.id.hex()})", f"they bring {names}"
    )


def _brought(chain: StreamChain, held: HeldPlane) -> Plane:
    """Return the blocks of the snapshot that the streams hold themselves."""
    return combine([file.map.image for file in chain.path], within=held.plane)


def _compare_planes(found: StreamComparison, held: HeldPlane, brought: Plane, mine: Plane) -> None:
    """Count what the volume does not have."""
    found.only_in_stream = len((held.plane if held.is_whole else brought) - mine)


def _within(window: Gathered, plane: Plane, chain: StreamChain) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return which blocks of a window the streams hold of the snapshot."""
    numbers = numbers_in(window.extents)
    brought = np.zeros(len(numbers), np.bool_)
    for file in chain.path:
        brought |= file.map.image.contains_many(numbers)
    return brought & plane.contains_many(numbers)


def _compare_window(
    found: StreamComparison, chain: StreamChain, window: Gathered, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> None:
    """Hold the blocks of a window against the streams'."""
    numbers = numbers_in(window.extents)
    n_elsewhere = int(len(mask) - mask.sum())
    if chain.path[-1].map.base is not None:
        found.base_blocks += n_elsewhere
    else:
        found.only_in_volume += n_elsewhere
    mine = window.buffer if mask.all() else window.buffer.reshape(-1, BLOCK_BYTES)[mask].reshape(-1)
    numbers = numbers[mask]
    theirs = np.empty(len(numbers) * BLOCK_BYTES, np.uint8)
    chain.read_extents(extents_of(numbers), theirs)
    found.n_blocks += len(numbers)
    if not np.array_equal(mine, theirs):
        _note_differing(found, numbers, mine, theirs)


def _note_differing(found: StreamComparison, numbers: Numbers, mine: Bytes, theirs: Bytes) -> None:
    differs = (mine.reshape(-1, BLOCK_BYTES) != theirs.reshape(-1, BLOCK_BYTES)).any(axis=1)
    found.n_differing += int(differs.sum())
    room = MAX_LISTED - len(found.differing)
    found.differing += numbers[differs][:room].tolist()
