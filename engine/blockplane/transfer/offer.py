"""Offering: a destination says what it has of a snapshot, for a source that shares none with it to send against."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

from blockplane.image.image import build
from blockplane.image.order import TAPE
from blockplane.model.errors import RefusedError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.stream.offer import MAX_RUN_BLOCKS, RUN_BLOCKS, OfferHeader, OfferWriter, RunDigests
from blockplane.stream.sink import SinkLike, open_sink
from blockplane.transfer.imagesending import ImageSending
from blockplane.volume.codec import NAME_BYTES, SnapshotRecord
from blockplane.volume.holds import OFFER_OWNER, hold_by_id, refuse_deleting, release_offers
from blockplane.volume.live import LiveVolume

#: How long an offered snapshot is held: 7 days.
HOLD_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class OfferReport:
    """What was offered. n_blocks : of the snapshot, all of which were read. offer_bytes : of the offer."""

    snapshot: str
    n_blocks: int
    offer_bytes: int
    run_blocks: int
    seconds: float


def offer(
    volume: LiveVolume,
    sink: SinkLike,
    snapshot: str | None = None,
    *,
    run_blocks: int = RUN_BLOCKS,
    hold_s: float | None = HOLD_S,
    progress: Progress = ignore_progress,
) -> OfferReport:
    """Write what a volume says of a snapshot it has, for a source that shares none with it to send against.

    Parameters
    ----------
    sink : as for `send`. snapshot : a regular one; by default the newest. run_blocks : how many blocks one digest
        covers, 1 to 256. hold_s : how long the snapshot is held for the answer; what is sent against it gives the hold
        up when it has arrived. None: who calls sees to it that it stays.

    Raises
    ------
    UsageError : there are no such runs. NoSuchSnapshotError, RefusedError : there is no such snapshot, or none at all.
    ChecksumError, DiskError : a block could not be read.
    StreamError, NoSpaceError : the offer could not be written.

    Notes
    -----
    Reads every block of the snapshot once. An offer has 4 + 32 / run_blocks bytes a block: 2 GiB a TiB by default.
    """
    if not 1 <= run_blocks <= MAX_RUN_BLOCKS:
        raise UsageError(f"a digest over {run_blocks} blocks", f"say 1 to {MAX_RUN_BLOCKS}")
    started = time.monotonic()
    image = build(volume, _offered(volume, snapshot).name)
    top = image.require_sendable()
    # the snapshot's own numbering: the volume may have places for far more
    header = OfferHeader(top, image.top_state.space_blocks, run_blocks)
    with (
        closing(open_sink(sink)) as opened,
        _held(volume, top, hold_s),
        RunDigests(run_blocks) as digests,
        ImageSending(image, TAPE, header.frame_blocks).windows() as windows,
    ):
        writer = OfferWriter(opened, header)
        writer.write_plane(image.plane)
        done = 0
        for window in windows:
            writer.write_blocks(window.checks, digests.of(window.buffer))
            done += len(window.buffer)
            progress(ProgressEvent("blocks", done, image.n_bytes, time.monotonic() - started))
        writer.finish()
        opened.commit()
    return OfferReport(top.name, top.n_blocks, writer.n_bytes, run_blocks, time.monotonic() - started)


def _offered(volume: LiveVolume, name: str | None) -> SnapshotRecord:
    with volume.lock:
        if name is not None:
            entry = volume.local.entry(name)
            refuse_deleting(entry)
            return entry.record
        regular = [entry for entry in volume.local.regular() if not entry.is_deleting]
        if not regular:
            raise RefusedError(f"{volume.path} has no snapshot that could be offered", "receive a full stream")
        return regular[-1].record


@contextmanager
def _held(volume: LiveVolume, record: SnapshotRecord, seconds: float | None) -> Iterator[None]:
    """Hold a snapshot from now on, for so many seconds; where what is done in the `with` fails, no longer."""
    if seconds is None:
        yield
        return
    owner = f"{OFFER_OWNER}{record.name}"[:NAME_BYTES]
    with volume.lock:
        hold_by_id(volume, record.id, owner, time.time_ns() + int(seconds * 1e9))
        volume.commit()
    try:
        yield
    except BaseException:
        with volume.lock:
            release_offers(volume, record.id)
            volume.commit()
        raise
