"""Stream files as block sources: files can be listed and read out of a stream, or a chain of them, without restoring
it.

A chain is read by state: the blocks of a snapshot lie in the stream that brings it, or in what that stream builds on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from copy import copy
from functools import cached_property
from types import TracebackType
from typing import Final

import numpy as np

from blockplane.image.extents import numbers_in
from blockplane.model.addresses import Bytes, Extents
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import (
    NoSuchSnapshotError,
    StreamDamagedError,
    StreamError,
    StreamMismatchError,
    TapeEndError,
)
from blockplane.stream import codec
from blockplane.stream.cache import Counters, FrameCache
from blockplane.stream.file import StreamFile
from blockplane.stream.folder import PARTIAL
from blockplane.stream.index import Wanted
from blockplane.stream.input import open_input
from blockplane.stream.keyfile import Keys, keys_of
from blockplane.stream.lineage import Lineage, Member
from blockplane.stream.media import Rack, TapeSet, by_set, is_tape, is_unwritten, stores
from blockplane.stream.partset import PartSet, joined
from blockplane.stream.pieces import base_of, pieces_of, without_later
from blockplane.stream.reader import read_header
from blockplane.stream.stored import StreamPlace
from blockplane.volume.codec import SnapshotRecord
from blockplane.volume.features import Features

SUFFIX: Final = ".bps"
StreamName = str | os.PathLike[str] | StreamPlace


class StreamChain:
    """A snapshot inside stream files, as a block source.

    Attributes
    ----------
    files : the streams, in the order given, the parts of an image as one. lineage : how they build on each other.
    snapshots : every snapshot the streams bring, older first.
    counters : requests, bytes and frames decompressed since the files were opened, indexes included.
    problems : what was damaged, and made up for when the chain was opened.

    Notes
    -----
    Any number of threads may read. Memory: the planes and indexes of the streams, the frames used last (20 MiB).
    """

    def __init__(
        self,
        files: Sequence[StreamFile | PartSet],
        cache: FrameCache,
        snapshot: str | SnapshotRecord | None = None,
        *,
        needs_full: bool = True,
    ) -> None:
        self.files, self._cache = list(files), cache
        self.lineage = Lineage([Member(file.path, file.map) for file in files], needs_full=needs_full)
        self.problems: list[str] = []
        brought = [record for file in files for record in file.map.arriving()]
        self.snapshots = sorted({record.id: record for record in brought}.values(), key=lambda r: (r.cp, r.created_ns))
        self._wanted = snapshot

    @cached_property
    def snapshot(self) -> SnapshotRecord:
        """The snapshot that is read; StreamMismatchError: none was named, and there is no newest one."""
        return self._chosen(self._wanted)

    @cached_property
    def path(self) -> list[StreamFile | PartSet]:
        """The streams that it is read from, newest first: of a block that several hold the first one's is meant."""
        return [self.files[i] for i in self.lineage.path(self.snapshot.id)]

    def _chosen(self, name: str | SnapshotRecord | None) -> SnapshotRecord:
        if isinstance(name, SnapshotRecord):
            return name
        if name is None:
            return self.lineage.newest.map.top
        found = [record for record in self.snapshots if record.name == name]
        if found:
            self._refuse_rivals(found)
            return found[-1]
        listed = {record.name for file in self.files for record, _ in file.map.snapshots}
        what = "list the snapshot, and do not bring it whole" if name in listed else "bring no snapshot"
        names = ", ".join(record.name for record in self.snapshots[-8:])
        raise NoSuchSnapshotError(f"the streams {what}: {name}", f"there are {names}")

    def _refuse_rivals(self, found: Sequence[SnapshotRecord]) -> None:
        """Refuse a name that snapshots have of which the newest does not know the others: it did not just move on."""
        newest = found[-1].id
        maps = [file.map for file in self.files if any(record.id == newest for record in file.map.arriving())]
        known = {record.id for its in maps for record, _ in its.snapshots}
        if any(record.id not in known for record in found):
            name = found[-1].name
            raise StreamMismatchError(
                f"the streams bring different snapshots of the name {name}", "name the streams of one of them"
            )

    @property
    def counters(self) -> Counters:
        """Requests and bytes so far."""
        return self._cache.counters

    @property
    def features(self) -> Features:
        """What the states in the streams need."""
        found = Features()
        for file in self.path:
            found |= file.map.header.features.of_states()
        return found

    def at(self, snapshot: str | SnapshotRecord) -> StreamChain:
        """Return the same streams, another snapshot being read; close either one, once."""
        found = copy(self)
        found.snapshot = self._chosen(snapshot)
        found.path = [self.files[i] for i in self.lineage.path(found.snapshot.id)]
        return found

    def root_pointer(self) -> tuple[int, int]:
        """See BlockSource."""
        return self.snapshot.root.number, self.snapshot.root.check

    def holds(self, vbn: int) -> bool:
        """Tell whether a stream that the snapshot is read from holds a block."""
        return any(file.holds(vbn) for file in self.path)

    def first_missing(self, start: int, stop: int) -> int | None:
        """Return the first block of start..stop that no stream of the snapshot holds; None: all are there."""
        wanted = Wanted.one_after_another(np.array([[start, stop]], np.int64))
        for part in (part for file in self.path for part in file.parts):
            _, wanted = part.index.find(wanted)
        return int(wanted.extents[:, 0].min()) if len(wanted) else None

    def read_extents(self, extents: Extents, out: Bytes) -> None:
        """See BlockSource; every block is held against its check in the stream.

        Raises
        ------
        StreamDamagedError : a block does not match its check, or no stream of the chain holds it.
        StreamPartMissingError : it is in a part of an image that is not among the streams.
        """
        wanted = Wanted.one_after_another(extents)
        numbers = numbers_in(extents)
        checks = np.empty(len(numbers), np.uint32)
        for file in self.path:
            wanted = file.read(wanted, out, checks)
            if not len(wanted):
                break
        if len(wanted):
            raise StreamDamagedError(f"block {wanted.extents[0, 0]} of {self.snapshot.name} is in none of the streams")
        bad = first_bad_block(out, numbers, checks)
        if bad >= 0:
            raise self._bad_block(int(numbers[bad]))

    def _bad_block(self, vbn: int) -> StreamDamagedError:
        file = next(file for file in self.path if file.holds(vbn))
        return StreamDamagedError(
            f"block {vbn} in {file.place_of(vbn)} does not match its checksum", "fetch the stream again"
        )

    def close(self) -> None:
        """Release the files."""
        self._cache.close()
        for file in self.files:
            file.close()

    def __enter__(self) -> StreamChain:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_stream(
    *paths: StreamName, snapshot: str | None = None, needs_full: bool = True, key: Keys = None, chooses: bool = True
) -> StreamChain:
    """Open a stream, or a chain of them, in any order.

    Parameters
    ----------
    paths : stream files; or one folder of them; tapes of one set, in order, among them, or of
        sets that were written side by side.
    snapshot : which snapshot to read; by default the newest top, which streams of several branches do not have.
    needs_full : whether the chain must begin with a full stream; without one, blocks of its base cannot be read.
    key : a key, a key file, or several, for streams that are encrypted.
    chooses : False: no snapshot is chosen; `at` says which.

    Raises
    ------
    StreamError and its kinds : a file is no stream, cut off or damaged. StreamKeyError : it is encrypted with a key
        that is not among those named. StreamMismatchError : they are no chain, and the message names the snapshot that
        is missing; or of several branches, and it names these. NoSuchSnapshotError : they do not bring that snapshot.
    """
    files: list[StreamFile] = []
    sets: list[TapeSet] = []
    cache, keys = FrameCache(), keys_of(key)
    names = stream_names(paths)
    tapes = [name for name in names if isinstance(name, str) and (is_tape(name) or _is_unwritten_tape(name))]
    try:
        places: list[str | StreamPlace] = [name for name in names if name not in tapes]
        for named in by_set(tapes) if tapes else []:
            sets.append(TapeSet(Rack(named.names), rebuilds=True))
            images = stores(sets[-1])
            if not images:
                raise TapeEndError(
                    f"there is no whole image on {named.names[0]}", "go on with writing it: tape write --resume"
                )
            places += images
        for place in places:
            files.append(StreamFile(place, cache, keys))  # noqa: PERF401 - what is open must be known when one fails
        chain = StreamChain(joined(files), cache, snapshot, needs_full=needs_full)
        chain.problems = [problem for its in sets for problem in its.problems]
        return chain.at(chain.snapshot) if chooses else chain
    except BaseException:
        for file in files:
            file.close()
        for its in sets:
            its.close()
        raise


def stream_names(paths: Sequence[StreamName]) -> list[str | StreamPlace]:
    """Return the stream files that paths name: themselves, or those in the one folder; StreamError: there are none."""
    names = [path if isinstance(path, StreamPlace) else os.fspath(path) for path in paths]
    if len(names) == 1 and isinstance(names[0], str) and os.path.isdir(names[0]):
        names = [*_in_folder(names[0])]
    if not names:
        raise StreamError(f"there are no {SUFFIX} files to read", "name stream files, or a folder of them")
    kept = set(without_later([name for name in names if isinstance(name, str)]))
    return [name for name in names if not isinstance(name, str) or name in kept]


def _in_folder(folder: str) -> list[str]:
    """Return the streams of a folder: what is called so, and what begins as one does."""
    found = []
    for path in sorted(os.path.join(folder, name) for name in os.listdir(folder)):
        if path.endswith(PARTIAL) or not os.path.isfile(path):
            continue
        if path.endswith((SUFFIX, f"{SUFFIX}.000")) or is_stream(path):
            found.append(base_of(path) or path)
    return found


def is_stored(name: str | StreamPlace) -> bool:
    """Whether a stream is in files, which can be read again."""
    return isinstance(name, StreamPlace) or os.path.isfile(name) or pieces_of(name) is not None


def stored_bytes(name: str | StreamPlace) -> int:
    """Return how long a stream in files is; 0 where it is in none."""
    if isinstance(name, StreamPlace):
        with closing(name.open_stored()) as stored:
            return stored.n_bytes
    return sum(os.path.getsize(file) for file in pieces_of(name) or [name] if os.path.isfile(file))


def named_once(
    names: Sequence[str | StreamPlace],
) -> tuple[list[str | StreamPlace], list[str | StreamPlace]]:
    """Return names, each file's first, and those of files that a name before them names too."""
    once: list[str | StreamPlace] = []
    again: list[str | StreamPlace] = []
    seen: set[tuple[int, int]] = set()
    for name in names:
        first = (pieces_of(name) or [name])[0] if isinstance(name, str) else ""
        status = os.stat(first) if os.path.isfile(first) else None
        key = (status.st_dev, status.st_ino) if status is not None else None
        (again if key in seen else once).append(name)
        if key is not None:
            seen.add(key)
    return once, again


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file begins as a stream does."""
    try:
        name = os.fspath(path)
        with open((pieces_of(name) or [name])[0], "rb") as file:
            return file.read(len(codec.MAGIC)) == codec.MAGIC
    except (OSError, StreamError):
        return False


def stream_envelope(path: StreamName) -> codec.Envelope | None:
    """Return what an encrypted stream shows without its key; None: it is not encrypted.

    Raises
    ------
    StreamError and its kinds : it is no stream, cut off or damaged.
    """
    with closing(open_input(path)) as origin:
        header = read_header(origin)
    return codec.decode_envelope(header) if codec.is_sealed(header) else None


def _is_unwritten_tape(name: str) -> bool:
    """Whether a name is one of a tape on which nothing is: one that its set did not need, say."""
    return name.endswith(".tap") and is_unwritten(name)
