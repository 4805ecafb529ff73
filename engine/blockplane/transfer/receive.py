"""Receiving: a stream becomes a volume, or the next state of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.errors import StreamError, TapeDamagedError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.planes import Plane, combine
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import FrameHead, Role
from blockplane.stream.input import InputLike, arriving_whole, blaming, open_input
from blockplane.stream.keyfile import Keys, keys_of
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.transfer.claims import Claims, extents_list
from blockplane.transfer.keeping import kept_or_given_up
from blockplane.transfer.landtogether import land_together
from blockplane.transfer.newvolume import DiskWish, Opening
from blockplane.transfer.protocol import Destination, Landing
from blockplane.transfer.targets import destination_for
from blockplane.volume.groups import DiskNames
from blockplane.volume.volume import Volume


@dataclass(frozen=True, slots=True)
class ReceiveReport:
    """What was received.

    n_blocks, n_bytes : that the stream brought. already_there : the top was there; nothing was done. arrived : names of
        the snapshots that are there now, newest first. n_blocks_shared : blocks of the image that were here already
        under the same numbers, and were not written: the stream says so, or they were compared byte by byte.
    part, n_parts : which part of the image it was, from 0, of how many. n_blocks_missing : blocks of the image that
        other parts have still to bring: what came is kept, and nothing of it is visible before.
    encrypted : whether the stream was.
    """

    n_blocks: int
    n_bytes: int
    stream_bytes: int
    seconds: float
    top: str
    base: str | None
    arrived: tuple[str, ...]
    left_out: tuple[str, ...]
    already_there: bool = False
    n_blocks_shared: int = 0
    part: int = 0
    n_parts: int = 1
    n_blocks_missing: int = 0
    encrypted: bool = False

    @property
    def bytes_per_second(self) -> float:
        """Stream bytes a second."""
        return self.stream_bytes / self.seconds if self.seconds else 0.0


def receive(
    origin: InputLike,
    target: str | os.PathLike[str] | Volume | Destination,
    *,
    disks: DiskNames | None = None,
    size: int | str | None = None,
    parity: int | None = None,
    chunk: int | str | None = None,
    wipe: bool = False,
    discard: bool = False,
    relocate: bool = False,
    key: Keys = None,
    require_encrypted: bool = False,
    progress: Progress = ignore_progress,
    opening: Opening | None = None,
) -> ReceiveReport:
    """Take a stream in.

    Parameters
    ----------
    origin : a path, a file object, a descriptor or a socket. Of a stream that was split, its first piece, or FILE of
        FILE.000.
    target : a volume or its directory. Absent, or an empty folder: a volume is made there, and removed on failure.
    disks, size, parity, chunk, wipe : of a volume that is made, as for `Volume.create`; by default the source's.
    discard : give up what the stream would replace and no snapshot holds.
    relocate : where the volume has no place of a block's number, lay the image's blocks at other places: a volume need
        only be as large as what is in use. Later increments onto what came so do not need it said again.
    key : a key, a key file, or several, for a stream that is encrypted.
    require_encrypted : refuse streams that are not encrypted with one of the keys: anybody may have written those.
    opening : how a volume that is made, or named by its directory, is opened, and what goes on round its use.

    Raises
    ------
    RefusedError : something would be lost; nothing changed.
    StreamKeyError : the stream is encrypted with another key, or is not, and should be; nothing changed.
    StreamMismatchError : the base is not here, or the history is another; nothing changed.
    StreamTruncatedError, StreamDamagedError, StreamOrderError : the stream is bad; the volume is as it was.
    ConnectionLostError : it is, and what it came over may have changed it; what matched until then is kept.
    NoSpaceError : the image does not fit; the volume is as it was.

    Notes
    -----
    Durable on return. The old state stays readable, unchanged, until the new one is committed. Memory: the volume's
    write pipeline and two planes; of a relocated image, 24 bytes for each run of blocks that came together, and once
    more for each snapshot.
    """
    with closing(open_input(origin)) as source, blaming(source), arriving_whole(source):
        reader = StreamReader(source, keys_of(key, require_encrypted))
        reader.require_receivable()
        stream = reader.read_map()
        wish = DiskWish(disks, size, parity, chunk, wipe)
        with destination_for(target, stream, wish, opening, relocate) as destination:
            return receive_into(reader, stream, destination, discard, progress)


def receive_into(
    reader: StreamReader,
    stream: StreamMap,
    destination: Destination,
    discard: bool,
    progress: Progress,
    again: str = "receive the stream again",
) -> ReceiveReport:
    """Take in a stream whose map was read; as `receive`. again : what helps where it is cut off."""
    return receive_all_into([(reader, stream)], destination, discard, progress, again)[0]


def receive_all_into(
    parts: Sequence[tuple[StreamReader, StreamMap]],
    destination: Destination,
    discard: bool,
    progress: Progress,
    again: str = "receive the stream again",
) -> list[ReceiveReport]:
    """Take in streams that bring parts of one image, all at once, by a thread each; or one stream, in this thread.

    As `receive_into`. They need not be all the parts that there are.
    """
    started = time.monotonic()
    stream = parts[0][1]
    already_there, n_shared, n_missing = destination.has_top(stream), 0, 0
    if already_there:
        for reader, _ in parts:
            _drain(reader)
    else:
        destination.accept(stream, discard=discard)
        whole = replace(stream, part=combine([its.following for _, its in parts])) if len(parts) > 1 else stream
        with (
            destination.landing(whole) as landing,
            kept_or_given_up(landing, stream, destination, _again(destination.name, again)),
        ):
            _require_parts_fit(stream, landing, destination)
            if len(parts) == 1:
                _land(parts[0][0], stream, landing, progress, started)
            else:
                land_together(parts, landing, progress)
            n_read = sum(reader.n_bytes for reader, _ in parts)
            progress(ProgressEvent("commit", n_read, n_read, time.monotonic() - started))
            n_missing = _n_still_to_come(stream, landing)
            if n_missing:
                landing.suspend()
            else:
                landing.commit(stream.arriving())
            n_shared = getattr(landing, "n_shared", 0)
    seconds = time.monotonic() - started
    return [
        report_of(its, reader.n_bytes, seconds, n_missing, already_there=already_there, n_shared=0 if i else n_shared)
        for i, (reader, its) in enumerate(parts)
    ]


def report_of(
    stream: StreamMap, n_bytes: int, seconds: float, n_missing: int, *, already_there: bool, n_shared: int = 0
) -> ReceiveReport:
    """Return what is told of a stream that was received, or would be."""
    n_blocks, base = 0 if already_there else stream.header.following_blocks, stream.base
    return ReceiveReport(
        n_blocks, n_blocks * BLOCK_BYTES, n_bytes, seconds, stream.top.name,
        base.name if base is not None else None,
        () if n_missing else tuple(r.name for role in (Role.TOP, Role.ARRIVES) for r in stream.with_role(role)),
        tuple(record.name for record in stream.with_role(Role.LEFT_OUT)), already_there, n_shared,
        stream.header.part, stream.header.n_parts, n_missing, stream.header.is_sealed,
    )  # fmt: skip


def _require_parts_fit(stream: StreamMap, landing: Landing, destination: Destination) -> None:
    if stream.header.is_one_of_parts and not hasattr(landing, "n_waiting"):
        raise StreamError(
            f"{destination.name} takes whole images, and this is part {stream.header.part + 1} of "
            f"{stream.header.n_parts} of {stream.top.name}",
            "make one stream of the parts first: blockplane stream merge",
        )


def _n_still_to_come(stream: StreamMap, landing: Landing) -> int:
    """Return how many blocks of the image other parts have still to bring."""
    return int(getattr(landing, "n_waiting", 0)) if stream.header.is_one_of_parts else 0


def _again(name: str, again: str) -> str:
    """Return how to go on with what was received in part."""
    return (
        f"{again}: what is there is passed over; or send only the rest, with the token that "
        f"`blockplane receive {name} --have` prints; `blockplane receive {name} --abort` gives it up"
    )


def _land(reader: StreamReader, stream: StreamMap, landing: Landing, progress: Progress, started: float) -> None:
    """Bring every block to where the landing wants it, verified; afterwards set(written) is what the stream claims."""
    claims = Claims(stream.following)
    total = stream.header.following_blocks * BLOCK_BYTES

    def place(head: FrameHead) -> Sequence[Bytes] | None:
        claims.take(head)
        return landing.buffers(head.extents(), head.checks())

    try:
        with arriving_whole(reader.origin), closing(arriving(reader, place)) as frames:
            for _ in frames:
                landing.landed()
                progress(ProgressEvent("blocks", claims.n_blocks * BLOCK_BYTES, total, time.monotonic() - started))
    except TapeDamagedError as error:
        left: Callable[[], Plane] = getattr(landing, "waiting", claims.missing)
        error.lost = extents_list(left())
        if error.lost:
            raise
    else:
        claims.require_all()


def _drain(reader: StreamReader) -> None:
    """Read a stream that is not needed to its end, so that its sender ends well; what is wrong with it still shows."""
    with closing(arriving(reader, Ring())) as frames:
        for _ in frames:
            pass
