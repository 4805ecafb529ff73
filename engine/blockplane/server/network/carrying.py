"""Streams over stripes: an image goes out, without what is there; what comes is taken in."""

from __future__ import annotations

import contextlib
from typing import Final

from blockplane.image.feeds import Feeds
from blockplane.image.image import Image
from blockplane.model.errors import RefusedError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.server.network.striped import Incoming, Outgoing
from blockplane.stream.codec import MAX_FRAME_BLOCKS
from blockplane.transfer.against import Lent
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.peer import Brought
from blockplane.transfer.receive import ReceiveReport, receive
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import ResumeToken
from blockplane.transfer.send import SendReport, send

#: A frame that is cut is lost: an image is so many at least, each of so many blocks at least.
_FRAMES: Final = 400
_LEAST_FRAME: Final = 8


def send_rest(
    image: Image,
    outgoing: Outgoing,
    token: ResumeToken | None,
    progress: Progress = ignore_progress,
    feeds: Feeds | None = None,
    lent: Lent | None = None,
) -> SendReport:
    """Send an image, without what is lent or a token says is there; whole where the token is of something else."""
    n_frame = min(max(len(image.plane) // _FRAMES, _LEAST_FRAME), MAX_FRAME_BLOCKS)
    sending = ImageSending(image, feeds=feeds, frame_blocks=n_frame)
    if lent is not None:
        return send(sending, outgoing, against=lent, progress=progress)  # type: ignore[arg-type]
    if token is not None:
        with contextlib.suppress(RefusedError):  # it is refused before a byte is sent
            return send(sending, outgoing, resume=token, progress=progress)  # type: ignore[arg-type]
    return send(sending, outgoing, progress=progress)  # type: ignore[arg-type]


def taken_in(incoming: Incoming, target: VolumeDestination, changes: LocalChanges, progress: Progress) -> ReceiveReport:
    """Receive what comes."""
    discard = changes is not LocalChanges.REFUSE
    return receive(incoming, target, discard=discard, progress=progress)  # type: ignore[arg-type]


def received(report: ReceiveReport, kept: str | None) -> Brought:
    """Return what a receive did."""
    return Brought(report.top, report.base, report.n_blocks, report.n_bytes, report.seconds, report.already_there, kept)
