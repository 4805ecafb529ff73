"""Re-baselining: what of an image a destination's offer proves to be there, and need not be sent.

A check that differs proves a difference; an equal one proves nothing, so that where checks are equal both sides read
their copies and compare 256-bit digests of runs (DESIGN.md, law 8).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np

from blockplane.image.expected import ExpectedChecks
from blockplane.image.extents import extents_of, numbers_in
from blockplane.image.gather import gathering
from blockplane.image.image import Image
from blockplane.image.order import Window, tape_window
from blockplane.image.store import require_alive
from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.errors import RefusedError, StreamMismatchError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.planes import Plane
from blockplane.stream.codec import MAX_SPACE_BLOCKS
from blockplane.stream.input import InputLike, open_input
from blockplane.stream.offer import OfferReader, RunDigests
from blockplane.stream.reader import StreamMap
from blockplane.volume.codec import SnapshotRecord


@dataclass(frozen=True, slots=True)
class Lent:
    """What of an image its destination has: in the snapshot of that record, the VBNs of the plane. n_read : blocks read
    here to know it.
    """

    record: SnapshotRecord
    plane: Plane
    n_read: int = 0


def compare_offer(
    image: Image,
    origin: InputLike,
    progress: Progress = ignore_progress,
    *,
    asked: bytes | None = None,
    most_blocks: int = MAX_SPACE_BLOCKS,
) -> Lent:
    """Return what of an image an offer proves to be at the destination.

    Parameters
    ----------
    asked : id of the snapshot that it must be of. most_blocks : block numbers that it may speak of; they bound the
        memory.

    Raises
    ------
    UsageError : the image has a base. RefusedError : the offer is of another volume, of another snapshot than the one
        asked for, or of one that the image brings. NoSuchSnapshotError, RefusedError : a snapshot was deleted, or
        became a shadow, meanwhile.
    StreamError, StreamDamagedError, StreamTruncatedError : the offer is none, is damaged, or ends too early.
    ChecksumError, DiskError : a block could not be read.

    Notes
    -----
    Reads every block whose check equals the offered one, at the same VBN. Memory: two planes, and the pipeline's.
    """
    with closing(open_input(origin)) as source:
        offered = OfferReader(source, most_blocks)
        _require_of_use(image, offered.record)
        if asked not in (None, offered.record.id):
            raise RefusedError(f"the offer is of snapshot {offered.record.name}, which was not asked for", "")
        return _Comparison(image, offered, progress).run()


def offered_in(origin: InputLike) -> SnapshotRecord:
    """Return the snapshot that an offer is of; no more of it is read.

    Raises
    ------
    StreamError, StreamDamagedError, StreamTruncatedError : the offer is none, is damaged, or ends too early.
    """
    with closing(open_input(origin)) as source:
        return OfferReader(source).record


def _require_of_use(image: Image, record: SnapshotRecord) -> None:
    top = image.require_sendable()
    if image.base is not None:
        raise UsageError(f"{image} has a base, and an offer is for images without", f"send {top.name} alone")
    if record.space_id != top.space_id:
        raise RefusedError(
            f"the offer is of snapshot {record.name} of another volume: its blocks have other numbers",
            "send without --against",
        )
    if record.id in {mine.id for mine in image.arriving}:
        raise RefusedError(
            f"the offer is of {record.name}, which is here too, and which the image brings",
            f"nothing needs to be compared: send {top.name} - {record.name}" if record.id != top.id else "it is there",
        )


class _Comparison:
    """One image against one offer."""

    def __init__(self, image: Image, offered: OfferReader, progress: Progress) -> None:
        self._image, self._offer, self._progress = image, offered, progress
        self._run = offered.header.run_blocks
        self._checks = ExpectedChecks(image.owners, image.base_state)
        #: the digests that the windows under way must have
        self._due: deque[Bytes] = deque()

    def run(self) -> Lent:
        """Read what may be equal; return what is."""
        image, store, started = self._image, self._image.store, time.monotonic()
        lent, done = Plane.empty(image.space_blocks), 0
        with ExitStack() as stack:
            for record in image.records():
                stack.enter_context(store.pin(record.id))
            require_alive(store, image.records())
            digests = stack.enter_context(RunDigests(self._run))
            ring = stack.enter_context(
                gathering(self._windows(), self._checks.of, store.array, self._offer.header.frame_blocks)
            )
            for window in ring.whole_windows():
                same = (digests.of(window.buffer) == self._due.popleft()).all(axis=1)
                vbns = numbers_in(window.extents)
                lent.add_many(vbns[np.repeat(same, self._run)[: len(vbns)]])
                done += len(vbns)
                event = ProgressEvent("compare", done * BLOCK_BYTES, image.n_bytes, time.monotonic() - started)
                self._progress(event)
        return Lent(self._offer.record, lent, done)

    def _windows(self) -> Iterator[Window]:
        """Yield what must be read: the runs whose blocks are all in the image, with equal checks."""
        image = self._image
        for offered in self._offer.blocks():
            equal = image.plane.contains_many(offered.vbns)
            equal[equal] = self._checks.of(offered.vbns[equal]) == offered.checks[equal]
            runs = np.logical_and.reduceat(equal, np.arange(0, len(equal), self._run))
            if runs.any():
                self._due.append(offered.digests[runs])
                vbns = offered.vbns[np.repeat(runs, self._run)[: len(equal)]]
                yield tape_window(image.layout, image.store.geometry, extents_of(vbns))


def no_lender(name: str, stream: StreamMap, lender: SnapshotRecord) -> StreamMismatchError:
    """Return the error for a stream that was sent against a snapshot that is not here."""
    return StreamMismatchError(
        f"the stream of {stream.top.name} was sent against an offer of snapshot {lender.name} (id {lender.id.hex()}), "
        f"which {name} does not hold",
        "receive it where the offer was made, or send without --against",
    )
