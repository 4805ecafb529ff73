"""What a copy or a chain of streams would do, or why it would be refused; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blockplane.model.errors import NoSpaceError
from blockplane.stream.reader import StreamMap
from blockplane.transfer.based import BasedVolume
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.newvolume import DiskWish, planned_blocks, widest
from blockplane.transfer.protocol import Destination
from blockplane.transfer.resume import landed_of
from blockplane.transfer.targets import (
    is_vacant,
    refuse_other_disks,
    refuse_without_volume,
)
from blockplane.volume.landing_places import refuse_beyond
from blockplane.volume.live import LiveVolume, reserve_for


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What is, or was, brought: n_blocks; of the image n_before from an interrupted transfer, n_shared there anyway."""

    n_blocks: int = 0
    n_before: int = 0
    n_shared: int = 0
    already_there: bool = False
    makes_volume: bool = False


def foresee(
    target: str | os.PathLike[str] | LiveVolume | Destination,
    stream: StreamMap,
    wish: DiskWish,
    *,
    discard: bool,
    relocate: bool = False,
) -> Foreseen:
    """Return what bringing an image to a target would come to; relocate: see `copy`.

    Raises
    ------
    what bringing it would raise before the first block.

    Notes
    -----
    That a pressure policy would make room is not foreseen: where there is one, room is not asked for.
    """
    if isinstance(target, (str, os.PathLike)):
        path = Path(target)
        if is_vacant(path) or BasedVolume.is_of_no_use(path):
            refuse_new_misfit(path, [stream], wish, relocate)
            return Foreseen(stream.header.image_blocks, makes_volume=True)
        refuse_other_disks(path, wish)
    with _opened(target) as destination:
        if destination.has_top(stream):
            return Foreseen(already_there=True)
        destination.accept(stream, discard=discard)
        n_before = 0
        if isinstance(destination, VolumeDestination):
            n_before = len(landed_of(destination.volume, stream.header.image_id, stream.image))
            refuse_misfit(destination, [stream], relocate, [0 if n_before else stream.header.image_blocks])
        return Foreseen(stream.header.image_blocks - n_before, n_before)


def refuse_new_misfit(path: Path, streams: Sequence[StreamMap], wish: DiskWish, relocate: bool) -> None:
    """Refuse images, one after the other, that the volume which would be made for them does not hold.

    Raises
    ------
    StreamMismatchError : the first is no beginning. RefusedError : a VBN has no place there. NoSpaceError : no room.
    """
    refuse_without_volume(path, streams[0])
    reach, n_places = planned_blocks(path, widest(streams), wish)
    if not relocate:
        for stream in streams:
            refuse_beyond(stream.image, reach, path)
    _require_room([stream.header.image_blocks for stream in streams], n_places - reserve_for(n_places), path)


def refuse_misfit(
    destination: VolumeDestination, streams: Sequence[StreamMap], relocate: bool, n_coming: Sequence[int]
) -> None:
    """Refuse images, one after the other, that a volume does not hold; n_coming: places that each has still to take.

    Raises
    ------
    RefusedError : a VBN has no place there. NoSpaceError : no room.
    """
    volume = destination.volume
    if not (relocate or destination.has_relocated(streams[0])):
        for stream in streams:
            refuse_beyond(stream.image, volume.geometry.n_blocks, volume.path)
    if volume.local.root.pressure is None:
        _require_room(n_coming, volume.coming_blocks, volume.path)


def _require_room(n_coming: Sequence[int], room: int, path: Path) -> None:
    if sum(n_coming) > room:
        what = "the image has" if len(n_coming) == 1 else "together the images have"
        raise NoSpaceError(
            f"{what} {sum(n_coming)} blocks, and {path} has room for {room}",
            "take larger disks, or add a RAID group with `blockplane grow`",
        )


@contextmanager
def _opened(target: str | os.PathLike[str] | LiveVolume | Destination) -> Iterator[Destination]:
    if isinstance(target, LiveVolume):
        yield VolumeDestination(target)
    elif isinstance(target, (str, os.PathLike)):
        with BasedVolume.open(Path(target), writable=False, verb="copy") as volume:
            yield VolumeDestination(volume)
    else:
        yield target
