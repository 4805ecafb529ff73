"""Restoring sets of tapes, all of it and in order; and what of them lies where."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Final

from blockplane.model.errors import TapeDamagedError, TapeError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.stream.keyfile import Key, Keys, keys_of
from blockplane.stream.media import Changer, ImageInput, LossyReader, PathLike, Rack, TapeSet, Walk, images, is_drive
from blockplane.stream.reader import StreamMap
from blockplane.transfer.destination import destination_for
from blockplane.transfer.newvolume import DiskWish, Opening
from blockplane.transfer.protocol import Destination
from blockplane.transfer.receive import ReceiveReport, receive_into
from blockplane.transfer.tapewrite import tape_names
from blockplane.volume.groups import DiskNames
from blockplane.volume.volume import Volume

_ANOTHER_COPY: Final = "read another copy of the tape"


def opened_image(image: ImageInput, rack: Rack, keys: Sequence[Key]) -> tuple[LossyReader, StreamMap]:
    """Return a reader of an image, and what stands before its data: out of its second copy where that is damaged.

    Raises
    ------
    TapeDamagedError : both are; or the tapes are in drives, which read in order.
    """
    try:
        reader = LossyReader(image, keys)
        return reader, reader.read_map()
    except TapeDamagedError:
        start = _start_again(image.number, rack)
        if not start:
            raise
    image.begin_with(start)
    reader = LossyReader(image, keys)
    return reader, reader.read_map()


def _start_again(number: int, rack: Rack) -> bytes:
    """Return the second copy of what stands before an image's data, empty where it cannot be had."""
    if any(map(is_drive, rack.names)) or rack.has_changer:
        return b""
    with closing(Rack(rack.names)) as beside, suppress(TapeError, TapeDamagedError):
        tapes = TapeSet(beside)
        return tapes.start_of(tapes.table.images[number - 1])
    return b""


@dataclass(slots=True)
class TapeReadReport:
    """What was restored. received : of each image, in order. problems : what was damaged, and made up for."""

    received: list[ReceiveReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def read_tape(
    tapes: PathLike | Sequence[PathLike],
    target: str | os.PathLike[str] | Volume | Destination,
    *,
    changer: Changer | None = None,
    disks: DiskNames | None = None,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
    discard: bool = False,
    key: Keys = None,
    progress: Progress = ignore_progress,
    opening: Opening | None = None,
) -> TapeReadReport:
    """Restore all images of a set of tapes, in order: the full one makes a volume, increments go onto it.

    Parameters
    ----------
    tapes : of one set, in order. changer : brings those that were not named. The rest as for `receive`.

    Raises
    ------
    TapeDamagedError : records are gone, and blocks with them: `lost` says which. What is whole of the image is kept in
        the target, as of an interrupted receive; images before it are restored.
    TapeError and its kinds : a tape is missing, or not the one that comes next.
    As `receive` for the rest.
    """
    started, report = time.monotonic(), TapeReadReport()
    wish, keys = DiskWish(disks, size, parity, chunk, wipe), keys_of(key)
    with closing(Rack(tape_names(tapes), changer=changer)) as rack:
        walk = Walk(rack)
        for image in images(walk):
            reader, stream = opened_image(image, rack, keys)
            reader.require_receivable()
            try:
                with destination_for(target, stream, wish, opening) as destination:
                    report.received.append(receive_into(reader, stream, destination, discard, progress, _ANOTHER_COPY))
            except TapeDamagedError as error:
                error.records = tuple(walk.problems)
                raise
            if not isinstance(target, Volume):
                wish = DiskWish()
        report.problems = walk.problems
    report.seconds = time.monotonic() - started
    return report
