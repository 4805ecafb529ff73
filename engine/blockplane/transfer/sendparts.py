"""Sending one image to several destinations at once, each getting the blocks of a part plane.

Every part is a stream of its own, read and written at its destination's speed: the parts are disjoint, so that no block
is read twice. What tells where a block is, are the planes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass

from blockplane.image.division import Choice, divided
from blockplane.image.image import Image
from blockplane.image.order import DISK
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.stream.behind import PATIENCE_S
from blockplane.stream.folder import PARTIAL, WritablePlace
from blockplane.stream.keyfile import KeyLike, key_of
from blockplane.stream.pieces import DIGESTS, piece_of
from blockplane.stream.sink import SinkLike, folder_of
from blockplane.transfer.imagesending import EXPLICIT, ImageSending
from blockplane.transfer.send import SendReport, send


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part of an image goes, and what it takes: see `image.division.divided`.

    sink : a path, a file object, a descriptor or a socket; not used by a dry run.
    """

    sink: SinkLike | None
    within: Choice = None

    @property
    def name(self) -> str:
        """What a person calls it."""
        if isinstance(self.sink, (str, os.PathLike)):
            return os.fspath(self.sink)
        return self.sink.folder.shown(self.sink.file_name) if isinstance(self.sink, WritablePlace) else "a stream"


@dataclass(frozen=True, slots=True)
class PartsReport:
    """What was sent: a report for each part, in their order; and of all of them together."""

    parts: tuple[SendReport, ...]
    seconds: float

    @property
    def n_blocks(self) -> int:
        """How many blocks were sent."""
        return sum(part.n_blocks for part in self.parts)

    @property
    def n_bytes(self) -> int:
        """Bytes of these blocks."""
        return self.n_blocks * BLOCK_BYTES

    @property
    def stream_bytes(self) -> int:
        """Bytes of all streams."""
        return sum(part.stream_bytes for part in self.parts)

    @property
    def top(self) -> str:
        """The newest snapshot of the image."""
        return self.parts[0].top

    @property
    def base(self) -> str | None:
        """The snapshot that it builds on."""
        return self.parts[0].base

    @property
    def bytes_per_second(self) -> float:
        """Stream bytes a second."""
        return self.stream_bytes / self.seconds if self.seconds else 0.0


def send_parts(
    image: Image,
    parts: Sequence[Part],
    *,
    progress: Progress = ignore_progress,
    dry_run: bool = False,
    order: str = DISK,
    locations: str = EXPLICIT,
    compress: str | None = None,
    key: KeyLike | None = None,
    resume: bool = False,
    split: int | str | None = None,
    preallocate: bool = False,
    digests: bool = False,
) -> PartsReport:
    """Write an image as several streams at once, each of which has a part of its blocks.

    Parameters
    ----------
    parts : two or more. A part takes of the blocks that no part before it took those of its plane or expression; parts
        without one share the rest equally.
    resume : parts that are there whole are left, and half-written ones gone on with.
    others : as for `send`, of every part.

    Raises
    ------
    UsageError : there are fewer than two parts, two go to one path, or blocks are in none.
    BlockplaneError and its kinds : as `send`; the message names the part. The others stop, and keep what they have.

    Notes
    -----
    Parts are read side by side, each in an order of its own, by a thread that writes it: none waits for another.
    Memory: that of a send for each.
    """
    started = time.monotonic()
    _require_parts(parts, split is not None)
    image.require_sendable()
    planes = divided(image, [part.within for part in parts])
    secret = key_of(key) if key is not None else None
    _ = image.layout  # worked out once, for all of them
    running = _Running([len(plane) for plane in planes], progress, started)

    def send_one(number: int) -> SendReport:
        sending = ImageSending(image, order, locations=locations)
        sending.take_part(planes[number], number, len(parts))
        sink = parts[number].sink
        return send(
            sending, sink, progress=running.progress_of(number), dry_run=dry_run, compress=compress, key=secret,
            resume=resume, split=split, preallocate=preallocate, digests=digests,
        )  # fmt: skip

    if dry_run:
        reports = [send_one(number) for number in range(len(parts))]
    else:
        reports = running.run(send_one, parts)
    return PartsReport(tuple(reports), time.monotonic() - started)


def _require_parts(parts: Sequence[Part], is_split: bool) -> None:
    if len(parts) < 2:
        raise UsageError("an image is divided into two parts or more", "name another part, or send it whole")
    keys: list[set[Hashable]] = []
    pieces: list[set[Hashable]] = []
    for number, part in enumerate(parts):
        keys.append(_keys_of(part.sink))
        pieces.append(_whose_piece(part.sink, is_split))
        for other, its, of in zip(parts[:number], keys, pieces, strict=False):
            if its & (keys[-1] | pieces[-1]) or of & keys[-1]:
                what = f"{other.name} and {part.name}, with what is written beside each"
                raise UsageError(f"two parts go to one file: {what}", "name a file for each")


def _keys_of(sink: SinkLike | None) -> set[Hashable]:
    """Return what the files that are written for a stream, or its device, are known by, however they are spelled."""
    file = folder_of(sink)
    if file is not None:
        folder, name = file
        return {folder.key(f"{name}{end}") for end in ("", PARTIAL, DIGESTS, DIGESTS + PARTIAL)}
    return {os.path.realpath(sink)} if isinstance(sink, (str, os.PathLike)) else set()


def _whose_piece(sink: SinkLike | None, is_split: bool) -> set[Hashable]:
    """Return what the stream is known by of whose pieces a file has the name, on its way too; unless all are split, of
    the first one, which says that a stream is.
    """
    file = folder_of(sink)
    found = piece_of(file[1].removesuffix(PARTIAL)) if file is not None else None
    if file is None or found is None or (found[1] and not is_split):
        return set()
    return {file[0].key(found[0])}


class _StoppedError(Exception):
    """Another part failed, or all of it was interrupted."""


class _Running:
    """The threads of the parts, and what they report together."""

    def __init__(self, n_blocks: Sequence[int], progress: Progress, started: float) -> None:
        #: guards done and calls of the caller's progress
        self._lock = threading.Lock()
        self._done = [0] * len(n_blocks)
        self._total, self._progress, self._started = sum(n_blocks) * BLOCK_BYTES, progress, started
        self._is_over = False

    def progress_of(self, number: int) -> Progress:
        """Return what a part tells how far it is; it stops the part when another failed."""

        def note(event: ProgressEvent) -> None:
            if self._is_over:
                raise _StoppedError
            with self._lock:
                self._done[number] = event.done_bytes
                seconds = time.monotonic() - self._started
                self._progress(ProgressEvent(event.phase, sum(self._done), self._total, seconds))

        return note

    def run(self, work: Callable[[int], SendReport], parts: Sequence[Part]) -> list[SendReport]:
        """Do the work of all parts side by side; raise the first error, when the others have stopped.

        A write into a pipe or socket whose reader takes nothing is not waited for then, beyond PATIENCE_S.
        """
        futures: list[Future[SendReport]] = [Future() for _ in parts]
        threads = [threading.Thread(target=_do, args=(future, work, i), name=f"blockplane part {i + 1}", daemon=True)
                   for i, future in enumerate(futures)]  # fmt: skip
        for thread in threads:
            thread.start()
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            self._is_over = True
            for thread, future, part in zip(threads, futures, parts, strict=True):
                thread.join(None if future.done() or folder_of(part.sink) is not None else PATIENCE_S)
        for future, part in zip(futures, parts, strict=True):
            error = future.exception() if future.done() else None
            if error is not None and not isinstance(error, _StoppedError):
                raise _named(error, part.name)
        return [future.result() for future in futures]


def _do(future: Future[SendReport], work: Callable[[int], SendReport], number: int) -> None:
    try:
        future.set_result(work(number))
    except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
        future.set_exception(error)


def _named(error: BaseException, name: str) -> BaseException:
    """Return the error of a part, naming it."""
    if isinstance(error, BlockplaneError) and name not in error.message:
        error.message = f"{name}: {error.message}"
        error.args = (error.message,)
    return error
