"""Merging a chain of streams into one: a full backup, or one increment, out of streams alone.

The result is the image of the newest top: what its own block map says it holds, each block from the newest stream that
brings it. Streams are read in order, oldest first; frames of which nothing is kept are passed over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from blockplane.image.extents import extents_of, numbers_in
from blockplane.image.gather import Gathered
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.errors import StreamMismatchError, UsageError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.planes import Plane, combine
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import MAX_FRAME_BLOCKS, FrameHead, Header, Role
from blockplane.stream.file import StreamFile
from blockplane.stream.input import open_input
from blockplane.stream.keyfile import KeyLike, Keys
from blockplane.stream.reader import StreamReader
from blockplane.stream.sink import SinkLike
from blockplane.stream.source import StreamChain, named_again, open_stream, stream_names
from blockplane.stream.stateplane import plane_in
from blockplane.transfer.receive import Claims
from blockplane.transfer.send import WRITER, SendReport, send
from blockplane.volume.codec import NO_ID, Branch, SnapshotRecord

#: The name of the order in which blocks of a merged stream come: that of its members, oldest first.
CHAIN: Final = "chain"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging made.

    sent : counts, as of a send. order : the streams, oldest first. dropped_snapshots : (name, why) of those that the
    streams bring and the result does not. dead_blocks : blocks of the streams that the result does without.
    """

    sent: SendReport
    order: tuple[str, ...]
    dropped_snapshots: tuple[tuple[str, str], ...]
    dead_blocks: int


def merge_streams(
    *paths: str | os.PathLike[str],
    sink: SinkLike | None,
    compress: str | None = None,
    key: Keys = None,
    encrypt: KeyLike | Literal[False] | None = None,
    dry_run: bool = False,
    progress: Progress = ignore_progress,
) -> MergeReport:
    """Make one stream of a chain.

    Parameters
    ----------
    paths : the streams of one chain in any order, or a folder of them. With a full one the result is full, as if the
        top had been sent; without, it is an increment of the top onto the base of the oldest.
    sink, compress, dry_run : as for `send`.
    key : a key, a key file, or several, for streams that are encrypted.
    encrypt : the key that the result is encrypted with, or False: it is not. To be said where a stream is encrypted.

    Raises
    ------
    UsageError : one is named twice; the result would replace one of the streams, or show what they keep secret.
    StreamMismatchError : they are no one chain, or a block of the top is in none of them; nothing is written.
    StreamError and its kinds : a stream cannot be read, is damaged or cut off.

    Notes
    -----
    Reads the members once, in order. Memory: a plane a member, and the frames on their way.
    """
    names = stream_names(paths)
    for name in named_again(names):
        raise UsageError(f"{name} is named twice", "name each stream of the chain once")
    if isinstance(sink, (str, os.PathLike)) and os.path.exists(sink) and not dry_run:
        for name in names:
            if os.path.exists(name) and os.path.samefile(name, sink):
                raise UsageError(f"{name} would be replaced by what is merged from it", "name another file with -o")
    with closing(open_stream(*names, needs_full=False, key=key)) as chain:
        secret = _secret(chain, encrypt)
        merging = Merging(chain)
        report = send(merging, sink, compress=compress, key=secret, dry_run=dry_run, progress=progress)
        n_brought = sum(file.map.header.image_blocks for file in chain.path)
        order = tuple(file.path for file in reversed(chain.path))
        return MergeReport(report, order, tuple(merging.dropped_snapshots), n_brought - len(merging.plane))


def _secret(chain: StreamChain, encrypt: KeyLike | Literal[False] | None) -> KeyLike | None:
    """Return what the result is encrypted with; UsageError: nobody said, and a stream is."""
    sealed = [file.path for file in chain.files if file.is_sealed]
    if encrypt is None and sealed:
        message = f"{sealed[0]} is encrypted, and the merged stream would not be"
        raise UsageError(message, "say --encrypt KEYFILE, or --plain")
    return None if encrypt is False else encrypt


@dataclass(slots=True)
class _Snapshots:
    """What becomes of the snapshots that the members know."""

    arriving: list[SnapshotRecord] = field(default_factory=list)
    left_out: list[SnapshotRecord] = field(default_factory=list)
    why: list[tuple[str, str]] = field(default_factory=list)


class Merging:
    """The image of a chain's top, as something to send."""

    def __init__(self, chain: StreamChain) -> None:
        self._chain = chain
        self._members = chain.path  # newest first
        self._require_one_chain()
        self._top, self._base = chain.snapshot, self._members[-1].map.base
        self._keep = self._kept()
        self._plane = combine(self._keep)
        self._gone = self._dropped()
        self._snapshots = self._judge()

    def _require_one_chain(self) -> None:
        for file in self._chain.files:
            if file not in self._members and self._members[-1].map.base is not None:
                # what is missing may join the two
                raise self._chain.lineage.missing(self._chain.files.index(self._members[-1]))
            if file not in self._members:
                raise StreamMismatchError(
                    f"{file.path} is no part of the chain of {self._chain.snapshot.name}, the newest top",
                    "leave it out: one chain is merged at a time",
                )

    def _kept(self) -> list[Plane]:
        """Return for each member the blocks that the top has of it; StreamMismatchError: some are in none."""
        found = plane_in(self._chain)
        left, keep = found.plane, []
        for file in self._members:
            keep.append(left & file.map.image)
            left = left - file.map.image
        if self._base is None and (left or not found.is_whole):
            where = f"{len(left)} of its blocks, block {left.select(0)} first" if left else "blocks of its block map"
            raise StreamMismatchError(
                f"{self._top.name} is not whole in the streams: {where}, are in none of them",
                "`blockplane stream verify` says which stream lacks them",
            )
        return keep

    def _dropped(self) -> Plane:
        """Return what of the base the top does not hold: what a member dropped that no older member had brought."""
        gone = Plane.empty(self._plane.n_blocks)
        if self._base is not None:
            for i in range(len(self._members)):
                gone |= self._dropped_of_base(i)
        return gone - self._plane

    def _dropped_of_base(self, i: int) -> Plane:
        """Return what member i dropped of the merged base."""
        dropped = self._members[i].map.dropped
        older = [file.map.image for file in self._members[i + 1 :]]
        return combine([dropped], minus=combine(older)) if older else dropped

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def _judge(self) -> _Snapshots:
        """Find out which snapshots are whole in the result."""
        found = _Snapshots()
        done = {self._top.id, *([self._base.id] if self._base is not None else [])}
        for i, file in enumerate(self._members):
            for record in reversed(file.map.arriving()):
                if record.id not in done:
                    done.add(record.id)
                    why = self._lack(record, i)
                    (found.left_out if why else found.arriving).append(record)
                    found.why += [(record.name, why)] if why else []
        for file in self._members:
            for record in (*file.map.with_role(Role.LEFT_OUT), *file.map.with_role(Role.BASE)):
                if record.id not in done:
                    done.add(record.id)
                    found.left_out.append(record)
        return found

    def _lack(self, record: SnapshotRecord, i: int) -> str:
        """Return what keeps a snapshot of member i from being whole in the result, or nothing."""
        chain = self._chain.at(record)
        if chain.path != self._members[i:]:
            return "it is of another line"
        mine = plane_in(chain)
        newer = [file.map.image for file in self._members[:i]]
        superseded = combine(newer, within=mine.plane) if newer else Plane.empty(0)
        for k in range(i):  # what a newer member put where the base had something that the snapshot may hold
            superseded |= self._dropped_of_base(k) & self._plane
        if superseded:
            return f"{len(superseded)} of its blocks were superseded"
        brought = combine([file.map.image for file in self._members[i:]], within=mine.plane)
        lost = len(brought - self._plane)
        return f"{lost} of its blocks are not in {self._top.name}" if lost else ""

    @property
    def dropped_snapshots(self) -> list[tuple[str, str]]:
        """Name and reason of each snapshot that the members bring whole and the result does not."""
        return self._snapshots.why

    # --- what `send` asks --------------------------------------------------------------------------------------------

    @property
    def plane(self) -> Plane:
        """See Sendable."""
        return self._plane

    @property
    def dropped(self) -> Plane:
        """See Sendable."""
        return self._gone

    def header(self) -> Header:
        """See Sendable."""
        newest = self._members[0].map.header
        return Header(
            WRITER, os.urandom(16), os.urandom(16), newest.space_id, self._top.id, self._plane.n_blocks,
            len(self._plane), self._top.root, self._base.id if self._base is not None else NO_ID, order=CHAIN,
            window_blocks=MAX_FRAME_BLOCKS, groups=newest.groups, created_ns=time.time_ns(),
        )  # fmt: skip

    def snapshots(self) -> Sequence[tuple[SnapshotRecord, Role]]:
        """See Sendable."""
        base = [(self._base, Role.BASE)] if self._base is not None else []
        arriving = [(record, Role.ARRIVES) for record in self._snapshots.arriving]
        left_out = [(record, Role.LEFT_OUT) for record in self._snapshots.left_out]
        return [(self._top, Role.TOP), *arriving, *base, *left_out]

    def branches(self) -> Sequence[Branch]:
        """See Sendable."""
        return self._members[0].map.branches

    def windows(self, *, read: bool = True) -> AbstractContextManager[Iterator[Gathered]]:
        """See Sendable."""
        return self._windows(read)

    @contextmanager
    def _windows(self, read: bool) -> Iterator[Iterator[Gathered]]:
        frames = self._frames(read)
        with closing(frames):
            yield frames

    def _frames(self, read: bool) -> Generator[Gathered, None, None]:
        """Yield what is kept of each frame of each member, scraps of several frames together."""
        scraps = _Scraps()
        for file, keep in zip(reversed(self._members), reversed(self._keep), strict=True):
            with closing(_kept_of(file, keep, read)) as windows:
                for window in windows:
                    if len(window.checks) == MAX_FRAME_BLOCKS:
                        yield window
                    else:
                        yield from scraps.add(window)
        yield from scraps.rest()


def _kept_of(file: StreamFile, keep: Plane, read: bool) -> Generator[Gathered, None, None]:
    """Read a member and yield what is kept of each of its frames, verified."""
    with closing(open_input(file.path)) as source:
        reader = StreamReader(source, file.keys)
        claims = Claims(reader.read_map().image)
        with closing(_arriving_of(reader, keep, claims) if read else _planned_of(reader, keep, claims)) as windows:
            yield from windows
        claims.require_all()


def _arriving_of(reader: StreamReader, keep: Plane, claims: Claims) -> Generator[Gathered, None, None]:
    """Read the frames of which something is kept."""
    ring, masks = Ring(), dict[int, Mask]()
    mask_of = _mask_of(reader, keep)

    def wanted(head: FrameHead) -> Sequence[Bytes] | None:
        claims.take(head)
        mask = mask_of(head)
        if not mask.any():
            return None
        masks[head.sequence] = mask
        return ring(head)

    with closing(arriving(reader, wanted)) as frames:
        for head, (buffer,) in frames:
            yield _chosen(head, buffer, masks.pop(head.sequence))


def _planned_of(reader: StreamReader, keep: Plane, claims: Claims) -> Generator[Gathered, None, None]:
    """Pass over all frames; the bytes of what is yielded mean nothing."""
    blank = np.zeros(MAX_FRAME_BLOCKS * BLOCK_BYTES, np.uint8)
    mask_of = _mask_of(reader, keep)
    while (head := reader.next_data()) is not None:
        claims.take(head)
        reader.skip_payload()
        mask = mask_of(head)
        if mask.any():
            yield _chosen(head, blank[: head.n_blocks * BLOCK_BYTES], mask)


def _mask_of(reader: StreamReader, keep: Plane) -> Callable[[FrameHead], Mask]:
    """Return what tells which blocks of a frame are kept; a stream of which all is kept is not looked into."""
    if len(keep) == reader.header.image_blocks:
        return lambda head: np.ones(head.n_blocks, np.bool_)
    return lambda head: keep.contains_many(numbers_in(head.extents()))


def _chosen(head: FrameHead, buffer: Bytes, mask: Mask) -> Gathered:
    """Return the blocks of a frame that a mask chooses: the buffer itself where that is all."""
    if mask.all():
        return Gathered(head.extents(), head.checks(), buffer)
    numbers = numbers_in(head.extents())[mask]
    return Gathered(extents_of(numbers), head.checks()[mask], buffer.reshape(-1, BLOCK_BYTES)[mask].reshape(-1))


class _Scraps:
    """Parts of frames on their way into frames of their own."""

    def __init__(self) -> None:
        self._buffer = np.empty(2 * MAX_FRAME_BLOCKS * BLOCK_BYTES, np.uint8)
        self._numbers: list[Numbers] = []
        self._checks: list[Checks] = []
        self._n = 0

    def add(self, window: Gathered) -> Iterator[Gathered]:
        """Take what was kept of a frame; yield what is enough for a frame."""
        n_blocks = len(window.checks)
        if self._n + n_blocks > 2 * MAX_FRAME_BLOCKS:
            yield from self.rest()
        self._buffer[self._n * BLOCK_BYTES : (self._n + n_blocks) * BLOCK_BYTES] = window.buffer
        self._numbers.append(numbers_in(window.extents))
        self._checks.append(window.checks)
        self._n += n_blocks

    def rest(self) -> Iterator[Gathered]:
        """Yield what is there; it is used up when the next is asked for."""
        if self._n:
            numbers, checks = np.concatenate(self._numbers), np.concatenate(self._checks)
            yield Gathered(extents_of(numbers), checks, self._buffer[: self._n * BLOCK_BYTES])
        self._numbers, self._checks, self._n = [], [], 0
