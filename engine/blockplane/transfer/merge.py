"""Merging a chain of streams into one: a full backup, or one increment, out of streams alone.

The result is the image of the newest top: what its own block map says it holds, each block from the newest stream that
brings it. Streams are read in order, oldest first; frames of which nothing is kept are passed over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from blockplane.image.gather import Gathered
from blockplane.model.errors import StreamMismatchError, UsageError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.model.release import WRITER
from blockplane.planes import Plane, combine
from blockplane.stream.behind import BehindSink
from blockplane.stream.codec import MAX_FRAME_BLOCKS, Header, Role
from blockplane.stream.folder import WritablePlace
from blockplane.stream.keyfile import KeyLike, Keys, keys_of
from blockplane.stream.partset import PartSet
from blockplane.stream.pieces import piece_name, pieces_of
from blockplane.stream.sink import Sink, SinkLike
from blockplane.stream.source import StreamChain, StreamName, named_once, open_stream, stream_names
from blockplane.stream.stateplane import plane_in
from blockplane.transfer.picking import Packing
from blockplane.transfer.send import SendReport, send
from blockplane.volume.codec import NO_ID, Branch, SnapshotRecord

#: The name of the order in which blocks of a merged stream come: that of its members, oldest first.
CHAIN: Final = "chain"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging made.

    sent : counts, as of a send. order : the streams, oldest first. dropped_snapshots : (name, why) of those that the
    streams bring and the result does not. dead_blocks : blocks of the streams that the result does without. plain :
    those of the streams that are not encrypted.
    """

    sent: SendReport
    order: tuple[str, ...]
    dropped_snapshots: tuple[tuple[str, str], ...]
    dead_blocks: int
    plain: tuple[str, ...] = ()


def merge_streams(
    *paths: StreamName,
    sink: SinkLike | None,
    compress: str | None = None,
    key: Keys = None,
    encrypt: KeyLike | Literal[False] | None = None,
    require_encrypted: bool = False,
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
    require_encrypted : refuse streams that are not encrypted with one of the keys: anybody may have written those.
    encrypt : the key that the result is encrypted with, or False: it is not. To be said where a stream is encrypted.

    Raises
    ------
    UsageError : one is named twice; the result would replace one of the streams, or show what they keep secret.
    StreamMismatchError : they are no one chain, or a block of the top is in none of them; nothing is written.
    StreamError and its kinds : a stream cannot be read, is damaged or cut off.

    Notes
    -----
    Reads the members once, in order, and of them what the top has; every block of that is verified. Memory: three
    planes a member, and the frames on their way.
    """
    names, repeated = named_once(stream_names(paths))
    for again in repeated:
        raise UsageError(f"{again} is named twice", "name each stream of the chain once")
    if isinstance(sink, WritablePlace):
        _refuse_places(sink, names)
    elif isinstance(sink, (str, os.PathLike)) and os.path.exists(sink):
        _refuse_members(sink, names)
    with closing(open_stream(*names, needs_full=False, key=keys_of(key, require_encrypted))) as chain:
        secret = _secret(chain, encrypt)
        merging = Merging(chain, behind=compress is None and secret is None)
        report = send(merging, sink, compress=compress, key=secret, dry_run=dry_run, progress=progress)
        n_brought = sum(file.map.header.image_blocks for file in chain.path)
        order = tuple(name for file in reversed(chain.path) for name in file.names)
        plain = tuple(part.path for file in chain.files for part in file.parts if not part.is_sealed)
        return MergeReport(report, order, tuple(merging.dropped_snapshots), n_brought - len(merging.plane), plain)


def _refuse_members(sink: str | os.PathLike[str], names: Sequence[StreamName]) -> None:
    """Raise UsageError where a file is one of the streams, or a piece of one."""
    for name in names:
        for file in (pieces_of(name) or [name]) if isinstance(name, str) else ():
            if os.path.exists(file) and os.path.samefile(file, sink):
                raise UsageError(f"{file} would be replaced by what is merged from it", "name another file with -o")


def _refuse_places(sink: WritablePlace, names: Sequence[StreamName]) -> None:
    """Raise UsageError where a file that is not the host's is one of the streams, or the first piece of one."""
    key = sink.folder.key(sink.file_name)
    for name in names:
        if not isinstance(name, WritablePlace):
            continue
        if key in [name.folder.key(file) for file in (name.file_name, piece_name(name.file_name, 0))]:
            raise UsageError(f"{name} would be replaced by what is merged from it", "name another file")


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
    """The image of a chain's top, as something to send.

    Parameters
    ----------
    behind : frames go out as they are: a thread writes them, behind the one that reads.
    """

    def __init__(self, chain: StreamChain, *, behind: bool = False) -> None:
        self._chain, self._behind = chain, behind
        self._sink: BehindSink | None = None
        self._members = chain.path  # newest first
        self._require_one_chain()
        self._refuse_missing_parts()
        self._top, self._base = chain.snapshot, self._members[-1].map.base
        self._keep = self._kept()
        self._plane = combine(self._keep)
        self._since = self._unions()
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

    def _refuse_missing_parts(self) -> None:
        for file in self._members:
            if isinstance(file, PartSet) and file.missing:
                raise file.lacks(f"block {file.missing.select(0)} of {file.map.top.name}")

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

    def _unions(self) -> list[Plane]:
        """Return for each member what it or an older one brings."""
        since = [self._members[-1].map.image]
        for file in reversed(self._members[:-1]):
            since.append(since[-1] | file.map.image)
        return since[::-1]

    def _dropped_of_base(self, i: int) -> Plane:
        """Return what member i dropped of the merged base."""
        dropped = self._members[i].map.dropped
        return dropped - self._since[i + 1] if i + 1 < len(self._members) else dropped

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def _judge(self) -> _Snapshots:
        """Find out which snapshots are whole in the result."""
        found = _Snapshots()
        done = {self._top.id, *([self._base.id] if self._base is not None else [])}
        # what newer members bring, and what they put where the base had something that a snapshot may hold
        newer = put = Plane.empty(self._plane.n_blocks)
        for i, file in enumerate(self._members):
            for record in reversed(file.map.arriving()):
                if record.id not in done:
                    done.add(record.id)
                    why = self._lack(record, i, newer, put)
                    (found.left_out if why else found.arriving).append(record)
                    found.why += [(record.name, why)] if why else []
            newer, put = newer | file.map.image, put | (self._dropped_of_base(i) & self._plane)
        for file in self._members:
            for record in (*file.map.with_role(Role.LEFT_OUT), *file.map.with_role(Role.BASE)):
                if record.id not in done:
                    done.add(record.id)
                    found.left_out.append(record)
        return found

    def _lack(self, record: SnapshotRecord, i: int, newer: Plane, put: Plane) -> str:
        """Return what keeps a snapshot of member i from being whole in the result, or nothing."""
        chain = self._chain.at(record)
        if chain.path != self._members[i:]:
            return "it is of another line"
        mine = plane_in(chain).plane
        superseded = (newer & mine) | put
        if superseded:
            return f"{len(superseded)} of its blocks were superseded"
        lost = len((self._since[i] & mine) - self._plane)
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
            features=self._chain.features,
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
        try:
            with closing(self._frames(read)) as frames:
                yield frames
            self._settle()
        finally:
            if self._sink is not None:
                self._sink.close()

    def behind(self, sink: Sink) -> Sink:
        """Return where to write while windows are taken."""
        if not self._behind:
            return sink
        self._sink = BehindSink(sink)
        return self._sink

    def _settle(self) -> None:
        if self._sink is not None:
            self._sink.settle()

    def _frames(self, read: bool) -> Generator[Gathered, None, None]:
        """Yield what is kept of each member, oldest first."""
        with closing(Packing(read=read, settle=self._settle)) as packing:
            for file, keep in zip(reversed(self._members), reversed(self._keep), strict=True):
                for part in file.parts:
                    mine = keep & part.map.following
                    yield from packing.add(part, mine)
                    keep = keep - mine
            yield from packing.rest()
