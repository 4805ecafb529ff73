"""Restoring sets of tapes, all of it and in order; and what of them lies where."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

from blockplane.model.errors import TapeDamagedError, TapeError, TapeSetError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.stream.keyfile import Key, Keys, keys_of
from blockplane.stream.media import (
    Changer,
    ImageInput,
    LossyReader,
    PathLike,
    Rack,
    TapeSet,
    Walk,
    by_set,
    images,
    in_turns,
    is_drive,
)
from blockplane.stream.reader import StreamMap
from blockplane.transfer.newvolume import DiskWish, Opening
from blockplane.transfer.protocol import Destination
from blockplane.transfer.receive import ReceiveReport, receive_all_into
from blockplane.transfer.tapewrite import tape_names
from blockplane.transfer.targets import destination_for
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
    """What was restored.

    received : of each image, in order, and of each of its parts. problems : what was damaged, and made up for.
    """

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
    tapes : of one set, in order; or of several that were written side by side, which are read all at once. Where some
        of these are not there, what the others have of the first image that is not whole is kept, and reading ends:
        the report has n_blocks_missing. changer : brings those that were not named. The rest as for `receive`.

    Raises
    ------
    TapeDamagedError : records are gone, and blocks with them: `lost` says which. What is whole of the image is kept in
        the target, as of an interrupted receive; images before it are restored.
    TapeError and its kinds : a tape is missing, or not the one that comes next.
    As `receive` for the rest.
    """
    started, report = time.monotonic(), TapeReadReport()
    wish, keys = DiskWish(disks, size, parity, chunk, wipe), keys_of(key)
    bring = in_turns(changer)
    with ExitStack() as opened:
        racks = [opened.enter_context(closing(Rack(its.names, changer=bring))) for its in by_set(tape_names(tapes))]
        walks = [Walk(rack) for rack in racks]
        for ones in _side_by_side(walks):
            found = [opened_image(image, rack, keys) for image, rack in zip(ones, racks, strict=True)]
            stream = _one_image(found, racks)
            try:
                with destination_for(target, stream, wish, opening) as destination:
                    received = receive_all_into(found, destination, discard, progress, _ANOTHER_COPY)
            except TapeDamagedError as error:
                error.records = tuple(problem for walk in walks for problem in walk.problems)
                raise
            report.received += received
            if received[0].n_blocks_missing:
                break
            if not isinstance(target, Volume):
                wish = DiskWish()
        report.problems = [problem for walk in walks for problem in walk.problems]
    report.seconds = time.monotonic() - started
    return report


def _side_by_side(walks: Sequence[Walk]) -> Iterator[tuple[ImageInput, ...]]:
    """Yield the images of one number of all sets; TapeSetError: one of them has fewer."""
    for number, ones in enumerate(zip_longest(*map(images, walks)), 1):
        lacking = [walk for walk, image in zip(walks, ones, strict=True) if image is None]
        if lacking:
            identity = lacking[0].identity
            assert identity is not None, "a tape was taken"
            raise TapeSetError(
                f"the set of {identity.name} ends before image {number}, which the others have",
                "go on with writing it: the same again with tape write --resume",
            )
        yield ones


def _one_image(found: Sequence[tuple[LossyReader, StreamMap]], racks: Sequence[Rack]) -> StreamMap:
    """Hold what the sets have next against each other: parts of one image; return the first one's map."""
    first = found[0][1].header
    for (reader, stream), rack in zip(found, racks, strict=True):
        reader.require_receivable()
        if stream.header.image_id != first.image_id:
            raise TapeSetError(
                f"{rack.names[0]} has {stream.top.name} where {racks[0].names[0]} has {found[0][1].top.name}",
                "name tapes of sets that were written together",
            )
    return found[0][1]
