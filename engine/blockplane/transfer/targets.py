"""What a target's name stands for: a volume that is there, that is made for an image, or that was left half made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from blockplane.disks import GroupRecord
from blockplane.model.errors import (
    BlockplaneError,
    NotAVolumeError,
    StreamMismatchError,
    UsageError,
    VolumeInUseError,
)
from blockplane.stream.reader import StreamMap
from blockplane.transfer.against import no_lender
from blockplane.transfer.based import BasedVolume
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.newvolume import DiskWish, Opening, create_like, has_disks, remove, remove_made
from blockplane.transfer.protocol import Destination
from blockplane.transfer.resume import drop_incoming, made_by_receive
from blockplane.volume import making
from blockplane.volume.incoming import FLAG_IN_FOLDER
from blockplane.volume.live import LiveVolume
from blockplane.volume.volume import Volume


def destination_for(
    target: str | os.PathLike[str] | LiveVolume | Destination,
    stream: StreamMap,
    wish: DiskWish,
    opening: Opening | None = None,
    relocates: bool = False,
    groups: Sequence[GroupRecord] | None = None,
) -> AbstractContextManager[Destination]:
    """Return the destination, open; a volume that was opened or made here is closed on leaving.

    groups : as which one is made that is not there; None: the stream's.

    Raises
    ------
    UsageError : disk options for a volume that is there already; see `refuse_other_disks`.
    """
    if isinstance(target, LiveVolume):
        return _as_it_is(VolumeDestination(target, relocates=relocates))
    if not isinstance(target, (str, os.PathLike)):
        return _as_it_is(target)
    path, opening = Path(target), opening or Opening()
    opening.kind.clear_half_made(path)
    if is_vacant(path):
        refuse_without_volume(path, stream)
        return _made(path, stream.header.groups if groups is None else groups, wish, opening, relocates)
    refuse_other_disks(path, wish)
    return _opened(path, opening, relocates)


def not_to_be_made(path: Path) -> UsageError:
    """Return the error for disk options of a volume that is there."""
    return UsageError(f"{path} is there already: its disks are what they are", "leave the disk options out")


def refuse_other_disks(path: Path, wish: DiskWish) -> None:
    """Refuse disk options for a volume that is there.

    One that a receive made which was interrupted may be given its own again, with the rest of the command.

    Raises
    ------
    UsageError : it is no such volume, or has other disks.
    """
    if wish.is_default:
        return
    try:
        with BasedVolume.open(path, writable=False, verb="receive") as volume:
            is_half_made, groups = made_by_receive(volume), volume.geometry.groups
    except BlockplaneError:
        is_half_made = False
    if not is_half_made:
        raise not_to_be_made(path)
    if not has_disks(path, groups, wish):
        raise UsageError(
            f"an interrupted receive made {path} with other disks than these, and they are what they are",
            f"leave the disk options out, or give up what it has first: blockplane receive {path} --abort",
        )


def is_vacant(path: Path) -> bool:
    """Whether a volume can be made there: nothing is, or an empty folder."""
    if path.is_symlink() and not path.exists():
        raise NotAVolumeError(f"{path} is a symbolic link that leads nowhere", "name the directory itself")
    return not path.exists() or (path.is_dir() and making.is_vacant(path))


@contextmanager
def _as_it_is(destination: Destination) -> Iterator[Destination]:
    yield destination


@contextmanager
def _opened(path: Path, opening: Opening, relocates: bool) -> Iterator[Destination]:
    with opening.open(path) as volume, opening.entered(volume):
        yield VolumeDestination(volume, relocates=relocates, is_opened=True)


def refuse_without_volume(path: Path, stream: StreamMap) -> None:
    """Refuse what cannot be the beginning of a volume.

    Raises
    ------
    StreamMismatchError : it builds on what would have to be there.
    """
    base = stream.base
    if base is not None:
        raise StreamMismatchError(
            f"the image builds on snapshot {base.name}, and there is no volume {path}",
            "bring the full image that it is in first",
        )
    if stream.lender is not None:
        raise no_lender(str(path), stream, stream.lender)


@contextmanager
def _made(
    path: Path, groups: Sequence[GroupRecord], wish: DiskWish, opening: Opening, relocates: bool
) -> Iterator[Destination]:
    was_there = path.exists()
    with made_volume(path, groups, wish, opening) as volume:
        yield VolumeDestination(volume, is_made=True, in_folder=was_there, relocates=relocates, is_opened=True)


@contextmanager
def made_volume(path: Path, groups: Sequence[GroupRecord], wish: DiskWish, opening: Opening) -> Iterator[Volume]:
    """Make a volume for what a source of such groups sends; when that fails, remove what was made and nothing else.

    It stays where something arrived, or others wrote to it meanwhile.
    """
    missing = making.missing_of(path)
    new_disks = wish.disks_to_make()
    volume = create_like(path, groups, wish, opening)
    making.mark(path, *([making.NEW_FOLDER] if path in missing else []))
    try:
        with opening.entered(volume):
            yield volume
        volume.close()
        making.unmark(path)
    except BaseException:
        on_disk = volume.committed_local
        # something arrived, or others wrote, and then something went wrong; or it was interrupted, and can go on
        if volume.was_written or on_disk.root.n_entries or on_disk.incoming.n_stored:
            with suppress(BlockplaneError):  # of a volume that stopped: what its last CP has stays
                volume.close()
            making.unmark(path)
            raise
        remove(volume, missing, new_disks)
        raise


def abort_receive(
    path: str | os.PathLike[str],
    wait_s: float = 0.0,
    opened: AbstractContextManager[LiveVolume] | None = None,
    top: str | None = None,
) -> int:
    """Give up what interrupted receives have left in a volume; one that such a receive made is removed.

    Its folder goes with it, but one that was there before stays, empty.

    Parameters
    ----------
    opened : gives the volume, open for writing, where it is not to be opened here. It is not removed while it is open.
    top : of which alone, as for `resume_token`; by default of all.

    Returns
    -------
    how many blocks were reserved.

    Raises
    ------
    RefusedError : no receive was interrupted here, or not that; one that is under way is not.
    """
    directory = Path(path)
    with opened or BasedVolume.open(directory, wait_s=wait_s, verb="receive --abort") as volume:
        is_made = made_by_receive(volume)
        in_folder = any(image.entry.how_made & FLAG_IN_FOLDER for image in volume.local.incoming.images())
        n_blocks = drop_incoming(volume, top)
        is_made = is_made and not volume.local.incoming.images()
    if is_made:
        with suppress(VolumeInUseError):  # it stays, empty, for who has it
            remove_made(directory, [] if in_folder else [directory])
    return n_blocks
