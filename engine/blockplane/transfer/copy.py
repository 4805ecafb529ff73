"""Copying an image from disk to disk: windows of the gather go straight to the landing, with no stream in between."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from blockplane.image.extents import n_blocks_in, split
from blockplane.image.gather import Gathered
from blockplane.image.image import Image
from blockplane.image.order import WINDOW_BLOCKS
from blockplane.image.store import VolumeStore
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, RefusedError, UsageError, VolumeDamagedError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.planes import combine
from blockplane.stream.arrival import spread
from blockplane.stream.codec import Role
from blockplane.stream.reader import StreamMap
from blockplane.transfer.copied import compare_copy
from blockplane.transfer.description import described
from blockplane.transfer.destination import VolumeDestination
from blockplane.transfer.foresight import Foreseen, foresee
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.keeping import OriginError, kept_or_given_up
from blockplane.transfer.newvolume import DiskWish, Opening
from blockplane.transfer.protocol import Destination, Landing, Sendable
from blockplane.transfer.resume import interrupted_receives
from blockplane.transfer.targets import destination_for
from blockplane.volume.groups import DiskNames
from blockplane.volume.volume import Volume
from blockplane.volume.waiting import Waiting

#: The fewest blocks of a window: 2 MiB, requests of 512 KiB on four disks.
MIN_WINDOW_BLOCKS: Final = 512
#: Windows of an image, at least, and of these in flight. What is read before the first one lands is this share of a
#: small image: in one window an image of 16 MiB was read whole before any of it was written.
N_WINDOWS: Final = 16
N_FLYING: Final = 4
#: Blocks handed on at a time: few enough bands that they lie in them at once whatever the target's geometry. A whole
#: window at a time was as fast on equal geometries, and went through memory twice on others.
PIECE_BLOCKS: Final = 256


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was copied, or with `dry_run` would be.

    n_blocks, n_bytes : read from the source and brought to the target. n_image_blocks : of the image.
    n_blocks_before : of the image, that an interrupted transfer of it had brought. n_blocks_shared : that were in the
        target under the same numbers, and were not written. n_blocks_verified : compared byte by byte afterwards.
    already_there : the top was there; nothing was done. makes_volume : the target is, or would be, made for it.
    arrived, left_out : names of snapshots. planning_blocks : read beside the image's own.
    """

    n_blocks: int
    n_bytes: int
    n_image_blocks: int
    seconds: float
    top: str
    base: str | None
    arrived: tuple[str, ...]
    left_out: tuple[str, ...]
    already_there: bool = False
    makes_volume: bool = False
    n_blocks_before: int = 0
    n_blocks_shared: int = 0
    n_blocks_verified: int = 0
    planning_blocks: int = 0

    @property
    def bytes_per_second(self) -> float:
        """Bytes copied a second, the commit and the comparison included."""
        return self.n_bytes / self.seconds if self.seconds else 0.0


def copy(
    image: Image | Sendable,
    target: str | os.PathLike[str] | Volume | Destination,
    *,
    disks: DiskNames | None = None,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
    discard: bool = False,
    relocate: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    progress: Progress = ignore_progress,
    opening: Opening | None = None,
) -> CopyReport:
    """Bring an image to another volume on this machine, block by block under the same numbers.

    Parameters
    ----------
    image : of a volume, or of another storage.
    target : a volume or its directory. Absent, or an empty folder: a volume is made there, and removed on failure.
    disks, size, parity, chunk, wipe : of a volume that is made, as for `Volume.create`; by default the source's.
    discard : give up what the image would replace and no snapshot holds.
    relocate : where the target has no place of a block's number, lay the image's blocks at other places: it need only
        be as large as what is in use. Later increments onto what came so do not need it said again.
    verify : afterwards read the target's blocks of the image, and the source's once more, and compare every byte.
    dry_run : say what would be copied, or why not; nothing is written. The target may be open for reading.
    opening : how a volume that is made, or named by its directory, is opened, and what goes on round its use.

    Raises
    ------
    RefusedError : the image is not a sum minus at most one base; source and target are one; something would be lost.
    StreamMismatchError : the base is not there, or the history is another. Nothing changed, as with every error above.
    ChecksumError : a block of the source does not match its check; what came until then is kept. With `verify`, also
        that the copy differs.
    DiskError : a disk failed. Of the source's what came is kept; the target shows its old state.
    NoSpaceError : the image does not fit; the target is as it was.

    Notes
    -----
    Durable on return. The target's old state stays readable, unchanged, until the new one is committed. An interrupted
    copy is gone on with by the next one of the same image, or by a stream with the target's token. Every block is held
    against its check once, by the thread that read it. Memory: the windows of a gather and the target's write pipeline,
    64 MiB each, and two planes. `verify` costs a second read of the source and one of the target, at once.
    """
    sending = _in_windows(image) if isinstance(image, Image) else image
    stream, wish = described(sending), DiskWish(disks, size, parity, chunk, wipe)
    _refuse_same(sending, target, wish)
    started = time.monotonic()
    if dry_run:
        found = foresee(target, stream, wish, discard=discard, relocate=relocate)
        return _report(sending, stream, found, time.monotonic() - started)
    with destination_for(target, stream, wish, opening or Opening(verb="copy"), relocate) as destination:
        if verify and not (isinstance(sending, ImageSending) and isinstance(destination, VolumeDestination)):
            raise UsageError("only a volume's copy on a volume can be read back", "leave the comparison out")
        found = _copy(sending, stream, destination, discard, progress)
        n_verified = _verified(sending, destination, progress) if verify else 0
    report = _report(sending, stream, found, time.monotonic() - started)
    return replace(report, n_blocks_verified=n_verified)


def is_half_copied(image: Image, target: Volume) -> bool:
    """Whether a copy of an image, or its stream, has left blocks on a target, which the next one goes on from."""
    wanted = described(_in_windows(image)).header.image_id
    return any(its.image_id == wanted for its in interrupted_receives(target))


def _in_windows(image: Image) -> ImageSending:
    """Return an image as something to send, a small one in small windows: it lands while it is read."""
    share = -(-len(image.plane) // N_WINDOWS // MIN_WINDOW_BLOCKS) * MIN_WINDOW_BLOCKS
    window_blocks = min(max(share, MIN_WINDOW_BLOCKS), WINDOW_BLOCKS)
    return ImageSending(image, window_blocks=window_blocks, ring_bytes=N_FLYING * window_blocks * BLOCK_BYTES)


def _copy(
    sending: Sendable, stream: StreamMap, destination: Destination, discard: bool, progress: Progress
) -> Foreseen:
    """Bring what the destination lacks, and commit; return what that was."""
    if destination.has_top(stream):
        return Foreseen(already_there=True)
    destination.accept(stream, discard=discard)
    started = time.monotonic()
    again = f"copy it again: what is there is passed over; `blockplane receive {destination.name} --abort` gives it up"
    with (
        destination.landing(stream) as landing,
        kept_or_given_up(landing, stream, destination, again),
    ):
        n_before, coming = len(landing.here), sending.plane
        if isinstance(sending, ImageSending) and n_before:
            coming = sending.part = combine([coming], minus=landing.here)
        n_bytes = len(coming) * BLOCK_BYTES
        _bring(sending, landing, Waiting(coming), n_bytes, progress, started)
        progress(ProgressEvent("commit", n_bytes, n_bytes, time.monotonic() - started))
        with destination.last_change() if isinstance(destination, VolumeDestination) else nullcontext():
            landing.commit(stream.arriving())
        n_shared = getattr(landing, "n_shared", 0)
    is_made = isinstance(destination, VolumeDestination) and destination.is_made
    return Foreseen(stream.header.image_blocks - n_before, n_before, n_shared, makes_volume=is_made)


def _bring(
    sending: Sendable, landing: Landing, waiting: Waiting, n_bytes: int, progress: Progress, started: float
) -> None:
    """Hand every window on; afterwards set(brought) is what waited, no block more and none less."""
    done = 0
    with _reading(sending) as windows:
        for window in windows:
            bad = waiting.take(window.extents)
            if bad >= 0:
                raise VolumeDamagedError(f"block {bad} was read twice, or is not in the image", "plan it again")
            _hand_on(window, landing)
            done += len(window.buffer)
            progress(ProgressEvent("blocks", done, n_bytes, time.monotonic() - started))
    if waiting.n_left:
        raise VolumeDamagedError(f"{waiting.n_left} blocks of the image were not read", "plan it again")


def _hand_on(window: Gathered, landing: Landing) -> None:
    """Copy a window to where the landing wants it; its buffer is free again on return."""
    at = 0
    for extents in split(window.extents, PIECE_BLOCKS):
        stop = at + n_blocks_in(extents)
        buffers = landing.buffers(extents, window.checks[at:stop])
        if buffers is not None:
            spread(window.buffer[at * BLOCK_BYTES : stop * BLOCK_BYTES].data, buffers)
            landing.landed()
        at = stop


@contextmanager
def _reading(sending: Sendable) -> Iterator[Iterator[Gathered]]:
    """Read the image; what fails on its side is an OriginError."""
    with ExitStack() as reading:
        try:
            windows = reading.enter_context(sending.windows())
        except BlockplaneError as error:
            raise OriginError(error) from error
        yield _from_origin(windows)


def _from_origin(windows: Iterator[Gathered]) -> Iterator[Gathered]:
    try:
        yield from windows
    except BlockplaneError as error:
        raise OriginError(error) from error


def _verified(sending: Sendable, destination: Destination, progress: Progress) -> int:
    """Compare what arrived with the source; return how many blocks that was."""
    assert isinstance(sending, ImageSending)
    assert isinstance(destination, VolumeDestination)
    return compare_copy(sending.image, destination.volume, progress)


def _refuse_same(sending: Sendable, target: object, wish: DiskWish) -> None:
    """Refuse a volume as its own target, and its disks as another's.

    Raises
    ------
    RefusedError : it is.
    """
    store = sending.image.store if isinstance(sending, ImageSending) else None
    if not isinstance(store, VolumeStore):
        return
    path = target.path if isinstance(target, Volume) else target
    if isinstance(path, (str, os.PathLike)) and _is_same(store.volume.path, Path(path)):
        raise RefusedError(f"{os.fspath(path)} is the volume that the image is of", "name another target")
    named = wish.disks if wish.disks is not None and not isinstance(wish.disks, int) else ()
    for disk in named:
        if any(_is_same(Path(own.path), Path(disk)) for own in store.array.disks):
            raise RefusedError(f"{os.fspath(disk)} is a disk of {store.volume.path}, the source", "take another one")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _report(sending: Sendable, stream: StreamMap, found: Foreseen, seconds: float) -> CopyReport:
    base = stream.base
    return CopyReport(
        found.n_blocks, found.n_blocks * BLOCK_BYTES, stream.header.image_blocks, seconds, stream.top.name,
        base.name if base is not None else None,
        tuple(record.name for role in (Role.TOP, Role.ARRIVES) for record in stream.with_role(role)),
        tuple(record.name for record in stream.with_role(Role.LEFT_OUT)),
        found.already_there, found.makes_volume, found.n_before, found.n_shared,
        planning_blocks=getattr(sending, "planning_blocks", 0),
    )  # fmt: skip
