"""What a copy would do, or why it would be refused; nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blockplane.model.errors import NoSpaceError
from blockplane.stream.reader import StreamMap
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.newvolume import DiskWish, planned_blocks
from blockplane.transfer.protocol import Destination
from blockplane.transfer.resume import landed_of
from blockplane.transfer.targets import (
    is_half_made,
    is_of_no_use,
    is_vacant,
    not_to_be_made,
    refuse_without_volume,
)
from blockplane.volume.landing_places import refuse_beyond
from blockplane.volume.live import LiveVolume, reserve_for
from blockplane.volume.volume import Volume


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
        if is_vacant(path) or is_of_no_use(path):
            return _foresee_new(path, stream, wish, relocate)
        if not wish.is_default and not is_half_made(path):
            raise not_to_be_made(path)
    with _opened(target) as destination:
        if destination.has_top(stream):
            return Foreseen(already_there=True)
        destination.accept(stream, discard=discard)
        n_before = 0
        if isinstance(destination, VolumeDestination):
            n_before = len(landed_of(destination.volume, stream.header.image_id, stream.image))
            if not (relocate or destination.has_relocated(stream)):
                refuse_beyond(stream.image, destination.volume.geometry.n_blocks, destination.volume.path)
            _refuse_misfit(destination.volume, stream, n_before)
        return Foreseen(stream.header.image_blocks - n_before, n_before)


def _foresee_new(path: Path, stream: StreamMap, wish: DiskWish, relocate: bool) -> Foreseen:
    refuse_without_volume(path, stream)
    reach, n_places = planned_blocks(path, stream, wish)
    if not relocate:
        refuse_beyond(stream.image, reach, path)
    room = n_places - reserve_for(n_places)
    if len(stream.image) > room:
        raise _no_space(stream, path, room)
    return Foreseen(stream.header.image_blocks, makes_volume=True)


def _refuse_misfit(volume: LiveVolume, stream: StreamMap, n_before: int) -> None:
    """Refuse what has no room; an interrupted receive of it has its room already."""
    room = volume.coming_blocks
    if not n_before and volume.local.root.pressure is None and len(stream.image) > room:
        raise _no_space(stream, volume.path, room)


def _no_space(stream: StreamMap, path: Path, room: int) -> NoSpaceError:
    return NoSpaceError(
        f"the image has {len(stream.image)} blocks, and {path} has room for {room}",
        "take larger disks, or add a RAID group with `blockplane grow`",
    )


@contextmanager
def _opened(target: str | os.PathLike[str] | LiveVolume | Destination) -> Iterator[Destination]:
    if isinstance(target, LiveVolume):
        yield VolumeDestination(target)
    elif isinstance(target, (str, os.PathLike)):
        with Volume.open(Path(target), writable=False, verb="copy") as volume:
            yield VolumeDestination(volume)
    else:
        yield target
