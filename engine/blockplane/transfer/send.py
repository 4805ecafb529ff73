"""Sending: an image becomes a stream."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np

from blockplane.image.expected import ExpectedChecks
from blockplane.image.extents import n_blocks_in
from blockplane.image.gather import Gathered, gathering
from blockplane.image.image import Image
from blockplane.image.order import DISK, VERSION, WINDOW_BLOCKS, Window, windows
from blockplane.image.store import require_alive
from blockplane.model.addresses import BLOCK_BYTES, Checks, Numbers
from blockplane.model.errors import BlockplaneError, RefusedError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.planes import Plane
from blockplane.stream.codec import FrameKind, Header, Locations, Role
from blockplane.stream.compression import DEFAULT_LEVEL, parse_compression
from blockplane.stream.input import InputLike, open_input
from blockplane.stream.keyfile import Key, KeyLike, key_of, keys_of
from blockplane.stream.reader import StreamReader
from blockplane.stream.sink import Buffer, FileSink, Sink, SinkLike, open_sink
from blockplane.stream.writer import StreamWriter
from blockplane.transfer.against import compare_offer
from blockplane.transfer.began import Began, began_beside, began_in, is_finished
from blockplane.transfer.description import completed
from blockplane.transfer.protocol import Sendable
from blockplane.transfer.resume import ResumeToken
from blockplane.volume.codec import KIND_REGULAR, NO_ID, Branch, SnapshotRecord

WRITER: Final = "blockplane 0.1"
EXPLICIT: Final = "explicit"


@dataclass(frozen=True, slots=True)
class SendReport:
    """What was sent, or with `dry_run` would be.

    n_blocks, n_bytes : of the image. stream_bytes : all of the stream; of a dry run with compression, what it would be
        without. planning_blocks : blocks read to plan and to look checks up. arriving, left_out : names of snapshots.
    compression : `zstd:LEVEL`, or None. n_blocks_before : of the image, that were sent before; not counted elsewhere.
    encrypted : whether the stream is.
    n_blocks_lent : of the image, that the destination has by its offer; not counted elsewhere either.
    n_blocks_compared : blocks read to know that. image_id : what names the image.
    """

    n_blocks: int
    n_bytes: int
    stream_bytes: int
    seconds: float
    top: str
    base: str | None
    arriving: tuple[str, ...]
    left_out: tuple[str, ...]
    planning_blocks: int = 0
    compression: str | None = None
    n_blocks_before: int = 0
    encrypted: bool = False
    n_blocks_lent: int = 0
    n_blocks_compared: int = 0
    image_id: bytes = NO_ID

    @property
    def bytes_per_second(self) -> float:
        """Stream bytes a second."""
        return self.stream_bytes / self.seconds if self.seconds else 0.0


class ImageSending:
    """A volume's image as a Sendable.

    Attributes
    ----------
    part : the VBNs that are to be read; None: all of the image. n_skipped : windows of them that are passed over.
    lender : the snapshot of the destination that has the others.
    """

    def __init__(
        self, image: Image, order: str = DISK, window_blocks: int = WINDOW_BLOCKS, locations: str = EXPLICIT
    ) -> None:
        self.image, self._order, self._window_blocks = image, order, window_blocks
        self._top = image.require_sendable()
        self._locations = _locations(locations)
        if self._locations is Locations.IMPLICIT and order == DISK and not image.layout.is_home:
            raise UsageError(
                "blocks of the image lie elsewhere than at their numbers: no reader can work out their disk order",
                "say --order tape, or --locations explicit",
            )
        self._checks: ExpectedChecks | None = None
        self.part: Plane | None = None
        self.n_skipped = 0
        self.lender: SnapshotRecord | None = None

    @property
    def plane(self) -> Plane:
        """See Sendable."""
        return self.image.plane

    @property
    def dropped(self) -> Plane:
        """See Sendable."""
        return self.image.dropped

    @property
    def planning_blocks(self) -> int:
        """Blocks read beside the image's own."""
        return self.image.n_planning_reads + (self._checks.n_reads if self._checks is not None else 0)

    def header(self) -> Header:
        """See Sendable."""
        image = self.image
        return Header(
            WRITER, os.urandom(16), NO_ID, self._top.space_id, self._top.id, image.space_blocks,
            len(image.plane), self._top.root, image.base.id if image.base is not None else NO_ID,
            order=self._order, order_version=VERSION, window_blocks=self._window_blocks,
            groups=image.store.geometry.groups, after_blocks=image.after_blocks, locations=self._locations,
            features=image.store.features,
        )  # fmt: skip

    def snapshots(self) -> Sequence[tuple[SnapshotRecord, Role]]:
        """See Sendable."""
        image = self.image
        # a shadow's bits are this volume's affair: where the base is, it is a regular snapshot
        base = [(replace(image.base, kind=KIND_REGULAR), Role.BASE)] if image.base is not None else []
        arriving = [(record, Role.ARRIVES) for record in image.arriving if record.id != self._top.id]
        lender = [(self.lender, Role.LENDER)] if self.lender is not None else []
        left_out = [record for record in image.left_out if self.lender is None or record.id != self.lender.id]
        return [(self._top, Role.TOP), *arriving, *base, *lender, *((record, Role.LEFT_OUT) for record in left_out)]

    def branches(self) -> Sequence[Branch]:
        """See Sendable."""
        return self.image.top_state.branches()

    @contextmanager
    def windows(self, *, read: bool = True) -> Iterator[Iterator[Gathered]]:
        """See Sendable."""
        image, store = self.image, self.image.store
        plane, layout = image.plane, image.layout
        if self.part is not None:
            plane, layout = self.part, layout.within(self.part)
        every = windows(layout, plane, store.geometry, self._order, self._window_blocks)
        planned = islice(every, self.n_skipped, None)
        if not read:
            yield self._blank(planned)
            return
        with ExitStack() as reading:
            for record in image.records():
                reading.enter_context(store.pin(record.id))
            require_alive(store, image.records())
            yield reading.enter_context(gathering(planned, self._checks_of, store.array, self._window_blocks))

    def _blank(self, planned: Iterator[Window]) -> Iterator[Gathered]:
        blank = np.zeros(self._window_blocks * BLOCK_BYTES, np.uint8)
        checks = np.zeros(self._window_blocks, np.uint32)
        for window in planned:
            yield Gathered(window.extents, checks[: window.n_blocks], blank[: window.n_blocks * BLOCK_BYTES])

    def _checks_of(self, vbns: Numbers) -> Checks:
        if self._checks is None:
            self._checks = ExpectedChecks(self.image.owners, self.image.base_state)
        return self._checks.of(vbns)


def _locations(text: str) -> Locations:
    try:
        return Locations[text.upper()]
    except KeyError:
        raise UsageError(f"there are no locations {text!r}", "take explicit or implicit") from None


class _Nowhere:
    """A sink that counts."""

    name = "nowhere"

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """Take nothing."""

    def commit(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def send(
    image: Image | Sendable,
    sink: SinkLike | None,
    *,
    progress: Progress = ignore_progress,
    dry_run: bool = False,
    order: str = DISK,
    locations: str = EXPLICIT,
    compress: str | None = None,
    key: KeyLike | None = None,
    resume: ResumeToken | bool = False,
    against: InputLike | None = None,
) -> SendReport:
    """Write an image as a stream.

    Parameters
    ----------
    sink : a path (appears under its name when complete and durable), a file object, a descriptor or a socket; not used
        by a dry run, which says exactly what would be sent.
    order : `disk`, which keeps all disks busy, or `tape`, by block number.
    locations : `explicit`: each frame lists where its blocks belong; `implicit`: readers work it out from the planes,
        the order and the source's RAID groups. Only of an image: another Sendable says it in its header.
    compress : `zstd` or `zstd:LEVEL`: each frame that shrinks by a sixteenth is compressed, by a thread a core. The
        stream says that its reader needs to know zstd.
    key : a key or its file: the stream is encrypted with it, names, planes and index too. The stream shows ids, who
        wrote it and when, how long its frames are, and the key's id.
    resume : a token: only what the destination that gave it lacks is sent; of another image of the same volume, what
        came counts as far as snapshots of that image that are still here show it unchanged. True: the file that an
        interrupted send left beside the path is gone on with, where there is one.
    against : an offer of the destination: what that proves to be there is not sent. All of it that may be equal is read
        here first, by a dry run too.

    Raises
    ------
    UsageError : there is no such compression or order, no reader could work the order out, or there is nothing that
        could be gone on with.
    KeyFileError : the key file cannot be used.
    RefusedError : the image is not a sum minus at most one base, or its top would not be whole; or what was begun is
        another image; or the offer is of another volume.
    ChecksumError, DiskError : a block could not be read.
    StreamError, NoSpaceError : the stream could not be written.

    Notes
    -----
    The states are pinned while they are read. The calling thread writes; one thread a disk reads. What an interrupted
    send has written to a path stays beside it as NAME.partial, where it is a mebibyte or more.
    """
    level = parse_compression(compress) if compress is not None else None
    secret = key_of(key) if key is not None else None
    sending: Sendable = ImageSending(image, order, locations=locations) if isinstance(image, Image) else image
    began = Began()
    if resume and not isinstance(sending, ImageSending):
        raise UsageError("what is merged from streams is not gone on with", "merge again")
    if isinstance(resume, ResumeToken):
        began = Began(token=resume, image=sending.image if isinstance(sending, ImageSending) else None)
    if against is not None and (began.token is not None or not isinstance(sending, ImageSending)):
        raise UsageError("a token says what is left, and an offer is for images of a volume", "leave the offer out")
    if dry_run or sink is None:
        if resume is True and isinstance(sink, (str, os.PathLike)):
            began = began_beside(sink, secret)
        with closing(began):
            began = _lent(sending, began, against, progress)
            report = _send(sending, StreamForm(None, secret), _Nowhere(), progress, began, read=False)
        return replace(report, compression=_named(level))
    if resume is True and isinstance(sink, (str, os.PathLike)) and is_finished(sink):
        report = _send(sending, StreamForm(None, secret), _Nowhere(), progress, Began(), read=False)
        return already_sent(sink, report, secret)
    if resume is True and not isinstance(sink, (str, os.PathLike)):
        raise UsageError("only a file is gone on with by itself", "give the token that `receive --have` wrote")
    with closing(open_sink(sink, resume is True)) as opened, ExitStack() as stack:
        try:
            if isinstance(opened, FileSink) and opened.is_old and resume is True:
                began = began_in(opened, secret)
                stack.callback(began.close)
            began = _lent(sending, began, against, progress)
            report = _send(sending, StreamForm(level, secret), opened, progress, began, read=True)
            started = time.monotonic()
            opened.commit()
        except BaseException as error:
            may_go_on = isinstance(sending, ImageSending)
            kept = opened.suspend() if may_go_on and isinstance(opened, FileSink) else ""
            if kept and isinstance(error, BlockplaneError):
                more = f"what is written is kept in {kept}: go on with --resume, or delete it"
                error.hint = f"{error.hint}; {more}" if error.hint else more
            raise
        return replace(report, seconds=report.seconds + time.monotonic() - started)


def _lent(sending: Sendable, began: Began, against: InputLike | None, progress: Progress) -> Began:
    """Return what is begun with, and what the destination has by its offer."""
    if against is None or not isinstance(sending, ImageSending) or began.partial is not None:
        return began
    lent = compare_offer(sending.image, against, progress)
    sending.lender = lent.record
    return replace(began, lent=lent)


def already_sent(path: str | os.PathLike[str], planned: SendReport, secret: Key | None) -> SendReport:
    """Return the report of a send that was finished before; RefusedError: the file is a stream of something else."""
    with closing(open_input(path)) as source:
        found = StreamReader(source, keys_of(secret)).read_map()
    if found.header.image_id != planned.image_id:
        raise RefusedError(
            f"{os.fspath(path)} is there already, a stream of {found.top.name}: another image than the one asked for",
            "name another file, or leave --resume out to replace it",
        )
    return replace(planned, n_blocks=0, n_bytes=0, stream_bytes=0, n_blocks_before=found.header.image_blocks)


def _named(level: int | None) -> str | None:
    return f"zstd:{level}" if level is not None else None


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How frames are written: the level of compression, the key; None: without."""

    level: int | None
    key: Key | None


def _send(
    sending: Sendable, form: StreamForm, sink: Sink, progress: Progress, began: Began, *, read: bool
) -> SendReport:
    started = time.monotonic()
    snapshots, branches = sending.snapshots(), sending.branches()
    header, rest = began.rest_of(completed(sending, snapshots, len(branches)), sending.plane)
    if isinstance(sending, ImageSending):
        sending.n_skipped = began.n_windows
        sending.part = rest if not sending.n_skipped else began.planned
    n_following = len(sending.plane if rest is None else rest)
    total, written, level = n_following * BLOCK_BYTES, began.written, form.level
    if written is not None:
        level = (level or DEFAULT_LEVEL) if header.may_be_compressed else None
    with (
        sending.windows(read=read) as gathered,
        closing(StreamWriter(_behind(sending, sink), header, level, form.key, written)) as writer,
    ):
        if written is None:
            writer.write_snapshots(snapshots)
            writer.write_branches(branches)
            writer.write_plane(FrameKind.IMAGE_PLANE, sending.plane)
            writer.write_plane(FrameKind.DROPPED_PLANE, sending.dropped)
            if header.is_part and rest is not None:
                writer.write_plane(FrameKind.PART_PLANE, rest)
        done, n_before = 0, writer.n_bytes if written is not None else 0
        for window in gathered:
            writer.write_blocks(window.extents, window.checks, window.buffer)
            done += n_blocks_in(window.extents) * BLOCK_BYTES
            if read:
                progress(ProgressEvent("blocks", done, total, time.monotonic() - started))
        trailer = writer.finish()
    n_lent = header.image_blocks - header.part_blocks if header.is_lent else 0
    names: dict[Role, list[str]] = {role: [] for role in Role}
    for record, role in snapshots:
        names[role].append(record.name)
    return SendReport(
        n_following, total, trailer.stream_bytes - n_before, time.monotonic() - started, names[Role.TOP][0],
        names[Role.BASE][0] if names[Role.BASE] else None, (*names[Role.TOP], *names[Role.ARRIVES]),
        tuple(names[Role.LEFT_OUT]), getattr(sending, "planning_blocks", 0),
        _named(level), header.image_blocks - n_following - n_lent, form.key is not None, n_lent,
        began.lent.n_read if began.lent is not None else 0, header.image_id,
    )  # fmt: skip


def _behind(sending: Sendable, sink: Sink) -> Sink:
    """Return where to write: a Sendable may want to do it itself, behind what it reads."""
    behind: Callable[[Sink], Sink] | None = getattr(sending, "behind", None)
    return behind(sink) if behind is not None else sink
