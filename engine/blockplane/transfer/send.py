"""Sending: an image becomes a stream."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace

from blockplane.image.extents import n_blocks_in
from blockplane.image.image import Image
from blockplane.image.order import DISK
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, RefusedError, StreamError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.model.sizes import parse_size
from blockplane.planes import Plane
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import FrameKind, Header, Role
from blockplane.stream.compression import DEFAULT_LEVEL, parse_compression
from blockplane.stream.fdsink import Buffer
from blockplane.stream.filenames import FileForm
from blockplane.stream.filesink import FileSink, split_beside
from blockplane.stream.input import InputLike, blaming, open_input
from blockplane.stream.keyfile import Key, KeyLike, key_of, keys_of
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.stream.sink import Sink, SinkLike, folder_of, open_sink, refuse_sink
from blockplane.stream.stored import StreamPlace
from blockplane.stream.writer import StreamWriter
from blockplane.transfer.against import Lent, compare_offer, offered_in
from blockplane.transfer.began import Began, began_beside, began_in, is_finished, lacks, map_beside
from blockplane.transfer.claims import Claims
from blockplane.transfer.description import completed
from blockplane.transfer.imagesending import EXPLICIT, ImageSending
from blockplane.transfer.protocol import Sendable
from blockplane.transfer.resume import ResumeToken
from blockplane.volume.codec import NO_ID, SnapshotRecord


@dataclass(frozen=True, slots=True)
class SendReport:
    """What was sent, or with `dry_run` would be.

    n_blocks, n_bytes : of the image. stream_bytes : all of the stream; of a dry run with compression, what it would be
        without. planning_blocks : blocks read to plan and to look checks up. arriving, left_out : names of snapshots.
    compression : `zstd:LEVEL`, `zstd` of a file that was finished before, or None; what was begun goes on as it began,
        whatever was asked for. n_blocks_before : of the image, that were sent before; not counted elsewhere.
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
    against: InputLike | Lent | None = None,
    split: int | str | None = None,
    preallocate: bool = False,
    digests: bool = False,
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
        stream says that its reader needs to know zstd. What is gone on with is compressed if it was begun so.
    key : a key or its file: the stream is encrypted with it, names, planes and index too. The stream shows ids, who
        wrote it and when, how long its frames are, and the key's id.
    resume : a token: only what the destination that gave it lacks is sent; of another image of the same volume, unless
        an offer began it, what came counts as far as snapshots of it that are still here show it unchanged; a file
        beside the path that holds half of just that is gone on with. True: the file that an interrupted send left
        beside the path is gone on with, where there is one; what an offer began, with that offer.
    against : an offer of the destination: what that proves to be there is not sent. All of it that may be equal is read
        here first, by a dry run too. Or what `compare_offer` found.
    split : of a path FILE, write the stream to FILE.000, FILE.001, ..., each so long, the last as long as it is.
        What is gone on with may leave it out where two pieces are there.
    preallocate : of a path, make room for all of the stream before anything is written; with compression, for as much
        as it could be.
    digests : of a path FILE, write FILE.sha256 too, a line for each file as `sha256sum` prints it. A thread works on
        them while the stream is written, 0.8 s of a core for a GiB; what an interrupted send had written is read again.

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
    form = _file_form(sink, split, digests, goes_on=resume is True)
    _require_file(sink, preallocate)
    if resume is True and sink is not None and folder_of(sink) is None:
        raise UsageError("only a file is gone on with by itself", "give the token that `receive --have` wrote")
    sending: Sendable = ImageSending(image, order, locations=locations) if isinstance(image, Image) else image
    began = Began()
    if resume and not isinstance(sending, ImageSending):
        raise UsageError("what is merged from streams is not gone on with", "merge again")
    if isinstance(resume, ResumeToken) and isinstance(sending, ImageSending):
        began = Began(token=resume, image=sending.image)
    goes_on = resume is True or _is_beside(sending, began, sink, secret, form)
    if against is not None and (began.token is not None or not isinstance(sending, ImageSending)):
        raise UsageError("a token says what is left, and an offer is for images of a volume", "leave the offer out")
    if resume and sink is not None and is_finished(sink, form):
        done = _already_sent(sending, began, sink, secret, against, progress)
        if done is not None:
            return done
    if dry_run or sink is None:
        if sink is not None:
            refuse_sink(sink, goes_on, form)
        if goes_on and sink is not None:
            beside = began_beside(sink, secret, form)
            began = replace(beside, token=began.token, image=began.image)
        with closing(began):
            began = _lent(sending, began, against, progress)
            report = send_begun(sending, StreamForm(level, secret), _Nowhere(), progress, began, read=False)
        if sink is not None and report.compression is None and began.partial is None:
            refuse_sink(sink, goes_on, form, report.stream_bytes)
        return report
    with closing(open_sink(sink, goes_on, form)) as opened, ExitStack() as stack:
        try:
            if isinstance(opened, FileSink) and opened.is_old and goes_on:
                began = replace(began_in(opened, secret), token=began.token, image=began.image)
                stack.callback(began.close)
            began = _lent(sending, began, against, progress)
            if preallocate and isinstance(opened, FileSink):
                opened.allocate(_most_bytes(sending, secret, began))
            report = send_begun(sending, StreamForm(level, secret), opened, progress, began, read=True)
            started = time.monotonic()
            opened.commit()
        except BaseException as error:
            may_go_on = isinstance(sending, ImageSending)
            kept = opened.suspend() if may_go_on and isinstance(opened, FileSink) else ""
            if kept and isinstance(error, BlockplaneError):
                how = "the same --resume TOKEN" if began.token is not None else "--resume"
                how += " and --against" if against is not None else ""
                more = f"what is written is kept in {kept}: go on with {how}, or delete it"
                error.hint = f"{error.hint}; {more}" if error.hint else more
            raise
        return replace(report, seconds=report.seconds + time.monotonic() - started)


def _file_form(sink: SinkLike | None, split: int | str | None, digests: bool, *, goes_on: bool) -> FileForm:
    """Return how the stream lies in files; of one that is gone on with, as its pieces say."""
    size = parse_size(split) if isinstance(split, str) else split
    file = folder_of(sink)
    if size is None and goes_on and file is not None:
        size = split_beside(*file)
    return FileForm(size, digests)


def is_half_sent(image: Image, sink: SinkLike, *, key: KeyLike | None = None, split: int | str | None = None) -> bool:
    """Whether a send of an image to a path has left a half-written file, which can be gone on with."""
    found = map_beside(sink, key_of(key) if key is not None else None, _file_form(sink, split, False, goes_on=True))
    ids = [record.id if record is not None else NO_ID for record in (image.top, image.base)]
    return found is not None and ids == [found.top.id, found.base.id if found.base is not None else NO_ID]


def _require_file(sink: SinkLike | None, preallocate: bool) -> None:
    if preallocate and sink is not None and folder_of(sink) is None:
        raise UsageError("room can be made for a file alone", "name a file with -o")


def _most_bytes(sending: Sendable, secret: Key | None, began: Began) -> int:
    """Return how long the stream is, or with compression could be; of one that is gone on with, if it began anew."""
    again = replace(began, partial=None)
    return send_begun(sending, StreamForm(None, secret), _Nowhere(), ignore_progress, again, read=False).stream_bytes


def _offered(against: InputLike | Lent) -> SnapshotRecord:
    return against.record if isinstance(against, Lent) else offered_in(against)


def _lent(sending: Sendable, began: Began, against: InputLike | Lent | None, progress: Progress) -> Began:
    """Return what is begun with, and what the destination has by its offer."""
    if against is None or not isinstance(sending, ImageSending):
        return began
    if began.partial is not None:
        return replace(began, offered=_offered(against))
    lent = against if isinstance(against, Lent) else compare_offer(sending.image, against, progress)
    sending.lender = lent.record
    return replace(began, lent=lent)


def _is_beside(sending: Sendable, began: Began, sink: SinkLike | None, secret: Key | None, form: FileForm) -> bool:
    """Whether what is half written beside a path is what a token asks for: else it is begun anew."""
    found = map_beside(sink, secret, form) if sink is not None and began.token is not None else None
    if found is None:
        return False
    asked, rest = _asked_for(sending, began)
    return found.header.image_id == asked.image_id and lacks(found, asked, rest, None) is None


def _asked_for(sending: Sendable, began: Began) -> tuple[Header, Plane | None]:
    """Return the header of the stream that would be written, and its VBNs; None: all."""
    header = completed(sending, sending.snapshots(), len(sending.branches()))
    return began.rest_of(header, sending.plane, getattr(sending, "chosen", None))


def _already_sent(
    sending: Sendable,
    began: Began,
    path: SinkLike,
    secret: Key | None,
    against: InputLike | Lent | None,
    progress: Progress,
) -> SendReport | None:
    """Return the report of a send that was finished before, whose file is read and found whole.

    None : a token says what is asked for, and the file is something else: it is replaced, as without a token.

    Raises
    ------
    RefusedError : the file is a stream of something else, or is not encrypted where it should be. StreamKeyError : it
    is encrypted, with another key. StreamDamagedError, StreamTruncatedError : it is not whole.
    """
    assert isinstance(path, (str, os.PathLike, StreamPlace)), "what is there is a file"
    asked, rest = _asked_for(sending, began)
    planned = send_begun(sending, StreamForm(None, secret), _Nowhere(), progress, began, read=False)
    with suppress(*(() if began.token is None else (RefusedError, StreamError))):
        with closing(open_input(path)) as source, blaming(source):
            reader = StreamReader(source, keys_of(secret))
            found = reader.read_map()
            offered = _offered(against) if against is not None and found.header.is_lent else None
            _require_asked_for(source.name, found, asked, rest, secret, offered)
            _read_through(reader, found, progress)
        return replace(
            planned, n_blocks=0, n_bytes=0, stream_bytes=0, n_blocks_before=found.header.following_blocks,
            compression="zstd" if found.header.may_be_compressed else None, encrypted=found.header.is_sealed,
        )  # fmt: skip
    return None


def _read_through(reader: StreamReader, found: StreamMap, progress: Progress) -> None:
    claims, total, started = Claims(found.following), found.header.following_blocks * BLOCK_BYTES, time.monotonic()
    with closing(arriving(reader, Ring())) as frames:
        for head, _ in frames:
            claims.take(head)
            progress(ProgressEvent("verify", claims.n_blocks * BLOCK_BYTES, total, time.monotonic() - started))
    claims.require_all()


def _require_asked_for(
    name: str,
    found: StreamMap,
    asked: Header,
    rest: Plane | None,
    secret: Key | None,
    offered: SnapshotRecord | None,
) -> None:
    if secret is not None and not found.header.is_sealed:
        raise RefusedError(
            f"{name} is there already, and is not encrypted", "name another file, or leave --resume out to replace it"
        )
    if found.header.image_id != asked.image_id:
        raise RefusedError(
            f"{name} is there already, a stream of {found.top.name}: another image than the one asked for",
            "name another file, or leave --resume out to replace it",
        )
    what = lacks(found, asked, rest, offered)
    if what is not None:
        raise RefusedError(
            f"{name} is there already, with {what[0]}",
            f"{what[1]}, name another file, or leave --resume out to replace it",
        )


def _named(level: int | None) -> str | None:
    return f"zstd:{level}" if level is not None else None


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How frames are written: the level of compression, the key; None: without."""

    level: int | None
    key: Key | None


def send_begun(
    sending: Sendable, form: StreamForm, sink: Sink, progress: Progress, began: Began, *, read: bool
) -> SendReport:
    """Write an image, or what is left of it, into a sink, which its owner commits; see `send`."""
    started = time.monotonic()
    snapshots, branches = sending.snapshots(), sending.branches()
    chosen: Plane | None = getattr(sending, "chosen", None)
    header, rest = began.rest_of(completed(sending, snapshots, len(branches)), sending.plane, chosen)
    if isinstance(sending, ImageSending):
        sending.n_skipped = began.n_windows
        sending.part = rest if not sending.n_skipped else began.planned
    frame_blocks: int | None = getattr(sending, "frame_blocks", None)
    n_following = len(sending.plane if rest is None else rest)
    total, written, level = n_following * BLOCK_BYTES, began.written, form.level
    if written is not None:  # it goes on as it began
        level = (level or DEFAULT_LEVEL) if header.may_be_compressed else None
    with (
        sending.windows(read=read) as gathered,
        closing(
            StreamWriter(_behind(sending, sink), header, level if read else None, form.key, written, frame_blocks)
        ) as writer,
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
    n_asked = header.image_blocks if chosen is None else len(chosen)
    names: dict[Role, list[str]] = {role: [] for role in Role}
    for record, role in snapshots:
        names[role].append(record.name)
    return SendReport(
        n_following, total, trailer.stream_bytes - n_before, time.monotonic() - started, names[Role.TOP][0],
        names[Role.BASE][0] if names[Role.BASE] else None, (*names[Role.TOP], *names[Role.ARRIVES]),
        tuple(names[Role.LEFT_OUT]), getattr(sending, "planning_blocks", 0),
        _named(level), n_asked - n_following - n_lent, form.key is not None, n_lent,
        began.lent.n_read if began.lent is not None else 0, header.image_id,
    )  # fmt: skip


def _behind(sending: Sendable, sink: Sink) -> Sink:
    """Return where to write: a Sendable may want to do it itself, behind what it reads."""
    behind: Callable[[Sink], Sink] | None = getattr(sending, "behind", None)
    return behind(sink) if behind is not None else sink
