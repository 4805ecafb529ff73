"""Holding stream files against themselves and against each other, without a volume."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from blockplane.image.extents import numbers_in
from blockplane.model.addresses import Bytes
from blockplane.model.errors import StreamError, StreamKeyError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import FrameHead
from blockplane.stream.encryption import framing_of
from blockplane.stream.input import Input, blaming, open_input
from blockplane.stream.keyfile import Key, Keys, keys_of
from blockplane.stream.lineage import Lineage, Member
from blockplane.stream.reader import StreamMap, StreamReader, read_header
from blockplane.stream.source import StreamName, is_stored, named_once, stored_bytes, stream_names
from blockplane.stream.stored import StreamPlace
from blockplane.transfer.claims import Claims
from blockplane.transfer.coverage import missing_links, prove_chain
from blockplane.volume.landedchecks import LandedChecks

PathLike = StreamName


@dataclass(slots=True)
class StreamVerdict:
    """What verifying streams found.

    problems : one sentence each. n_blocks, stream_bytes : of what could be read. verified_blocks : those whose bytes
    were held against their checks; fewer where a part was asked for. order : the streams, in the order in which they
    apply. snapshots : names of those they bring. proved : names of those that the streams were proved to hold whole.
    branches : where they are of several, the newest top of each; a volume takes one of them.
    plain : streams that are not encrypted.
    part : (k, n), where it was asked for. repeated : streams that were named before, and not read again.
    """

    problems: list[str] = field(default_factory=list)
    n_blocks: int = 0
    verified_blocks: int = 0
    stream_bytes: int = 0
    seconds: float = 0.0
    snapshots: list[str] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    proved: list[str] = field(default_factory=list)
    part: tuple[int, int] | None = None
    repeated: list[str] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def stream_map(path: PathLike, key: Keys = None) -> StreamMap:
    """Read what stands before a stream's data: header, snapshots, planes.

    Parameters
    ----------
    key : a key, a key file, or several, for a stream that is encrypted.

    Raises
    ------
    StreamKeyError : it is encrypted with another key.
    StreamError and its kinds : it is no stream, is cut off before its data, or damaged.
    """
    with closing(open_input(path)) as source, blaming(source):
        return StreamReader(source, keys_of(key)).read_map()


def verify_streams(
    *paths: PathLike,
    part: tuple[int, int] | None = None,
    key: Keys = None,
    require_encrypted: bool = False,
    progress: Progress = ignore_progress,
) -> StreamVerdict:
    """Verify streams: every byte, and that together they hold every block of every snapshot they bring.

    Of a chain that begins with a full stream, the checks beside the blocks are held against the snapshots' own, too.

    Parameters
    ----------
    paths : stream files in any order, or a folder of them. The full streams and their increments make a chain; the
        proof is left out for an increment that is named alone.
    part : (k, n), k from 1: of the blocks only those in the k-th of n parts of the bytes are read; all else is verified
        as ever. All n parts, whenever each is done, verify everything.
    key : a key, a key file, or several, for streams that are encrypted.
    require_encrypted : refuse streams that are not encrypted with one of the keys: anybody may have written those.

    Raises
    ------
    StreamError, StreamMissingError : a file cannot be opened; none is read then. What is wrong inside one is a problem
        in the list. UsageError : there is no such part.

    Notes
    -----
    One thread reads, one a core decompresses and holds blocks against their checks.
    """
    if part is not None and not 1 <= part[0] <= part[1]:
        raise UsageError(f"there is no part {part[0]} of {part[1]}", "say K/N, from 1/N to N/N")
    (names, repeated), keys = named_once(stream_names(paths)), keys_of(key, require_encrypted)
    if part is not None and not all(is_stored(name) for name in names):
        raise UsageError("what is read once has no parts", "verify it whole, or name files")
    _require_keys(names, keys)
    started = time.monotonic()
    run = _Run(sum(stored_bytes(name) for name in names), part, keys, progress, started)
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(open_input(name))) for name in names]
        whole = [name for name, source in zip(names, sources, strict=True) if run.read(str(name), source)]
    verdict = run.verdict
    verdict.order, verdict.repeated = [str(name) for name in names], [str(name) for name in repeated]
    if all(is_stored(name) for name in names) and whole == names and not run.is_part_alone:
        proof = prove_chain(names, keys, noted=run.noted)
        verdict.problems += proof.problems
        verdict.order, verdict.proved, verdict.branches = proof.order, proof.whole, proof.branches
    elif len(names) > 1 and all(is_stored(name) for name in names):
        verdict.problems += _missing_links(names, keys)
    verdict.seconds = time.monotonic() - started
    return verdict


def _missing_links(names: Sequence[StreamName], keys: Sequence[Key]) -> list[str]:
    """Return what is missing between streams of which some are damaged: nothing where one says not even what it is."""
    try:
        members = [Member(str(name), stream_map(name, keys)) for name in names]
    except StreamError:
        return []
    lineage = Lineage(members, needs_full=False)
    try:
        lineage.require_one_volume()
    except StreamError as error:
        return [error.message]
    return missing_links(lineage)


def _require_keys(names: Sequence[str | StreamPlace], keys: Sequence[Key]) -> None:
    """Raise StreamKeyError where the key of a stream is not at hand: before any is read."""
    for name in names:
        if is_stored(name):
            with closing(open_input(name)) as source:
                try:
                    framing_of(read_header(source), keys, source.name)
                except StreamKeyError:
                    raise
                except StreamError:
                    continue  # a problem of the list, later


class _Run:
    """One verification on its way."""

    def __init__(
        self, n_bytes: int, part: tuple[int, int] | None, keys: Sequence[Key], progress: Progress, started: float
    ) -> None:
        self.verdict = StreamVerdict(part=part)
        self._keys = keys
        self._total, self._progress, self._started = n_bytes, progress, started
        k, n = part if part is not None else (1, 1)
        self._low, self._high = n_bytes * (k - 1) // n, n_bytes * k // n
        self._is_all = part is None
        self._ring = Ring()
        #: by stream: the checks in the heads of its frames
        self.noted: dict[str, LandedChecks] = {}
        self._n_parts = self._n_streams = 0

    @property
    def is_part_alone(self) -> bool:
        """Whether all there is is the rest of an interrupted transfer: by itself that proves nothing."""
        return self._n_parts == self._n_streams == 1

    def read(self, name: str, source: Input) -> bool:
        """Verify one stream; return whether it is whole."""
        verdict = self.verdict
        try:
            with blaming(source):
                stream = self._read(source, self.noted.setdefault(name, LandedChecks()))
        except StreamError as error:
            verdict.problems.append(error.message if name in error.message else f"{name}: {error.message}")
            return False
        verdict.plain += [] if stream.header.is_sealed else [name]
        verdict.snapshots += [record.name for record in stream.arriving()]
        return True

    def _read(self, source: Input, noted: LandedChecks) -> StreamMap:
        verdict, before = self.verdict, self.verdict.stream_bytes
        reader = StreamReader(source, self._keys)
        stream = reader.read_map()
        self._n_streams += 1
        self._n_parts += stream.part is not None
        claims = Claims(stream.following)

        def wanted(head: FrameHead) -> Sequence[Bytes] | None:
            claims.take(head)
            noted.note(numbers_in(head.extents()), head.checks())
            is_mine = self._is_all or self._low <= before + reader.n_bytes < self._high
            return self._ring(head) if is_mine else None

        with closing(arriving(reader, wanted)) as frames:
            for head, _ in frames:
                verdict.verified_blocks += head.n_blocks
                done_bytes = before + reader.n_bytes
                self._progress(ProgressEvent("verify", done_bytes, self._total, time.monotonic() - self._started))
        claims.require_all()
        verdict.n_blocks += claims.n_blocks
        verdict.stream_bytes += reader.n_bytes
        return stream
