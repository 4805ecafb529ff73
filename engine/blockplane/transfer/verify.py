"""Holding stream files against themselves and against each other, without a volume."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

from blockplane.model.errors import StreamError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import Role
from blockplane.stream.input import Input, open_input
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.transfer.receive import Claims

PathLike = str | os.PathLike[str]


@dataclass(slots=True)
class StreamVerdict:
    """What verifying streams found. problems: one sentence each. n_blocks, stream_bytes: of what could be read."""

    problems: list[str] = field(default_factory=list)
    n_blocks: int = 0
    stream_bytes: int = 0
    seconds: float = 0.0
    snapshots: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def stream_map(path: PathLike) -> StreamMap:
    """Read what stands before a stream's data: header, snapshots, planes.

    Raises
    ------
    StreamError and its kinds : it is no stream, is cut off before its data, or damaged.
    """
    with closing(open_input(path)) as source:
        return StreamReader(source).read_map()


def verify_streams(*paths: PathLike, progress: Progress = ignore_progress) -> StreamVerdict:
    """Verify every byte of streams; of several also that they are a chain: each base is brought by one before it.

    Raises
    ------
    StreamError, StreamMissingError : a file cannot be opened; none is read then. What is wrong inside one is a problem
        in the list.
    """
    started = time.monotonic()
    verdict = StreamVerdict()
    total = sum(os.stat(path).st_size for path in paths if os.path.isfile(path))
    maps: list[tuple[PathLike, StreamMap]] = []
    with ExitStack() as stack:
        sources = [stack.enter_context(closing(open_input(path))) for path in paths]
        for path, source in zip(paths, sources, strict=True):
            try:
                maps.append((path, _verify(source, verdict, progress, total, started)))
            except StreamError as error:
                verdict.problems.append(f"{os.fspath(path)}: {error}")
    if len(maps) > 1 and len(maps) == len(paths):
        _verify_chain(maps, verdict)
    verdict.seconds = time.monotonic() - started
    return verdict


def _verify(source: Input, verdict: StreamVerdict, progress: Progress, total: int, started: float) -> StreamMap:
    before = verdict.stream_bytes
    reader = StreamReader(source)
    stream = reader.read_map()
    claims = Claims(stream.image)
    with closing(arriving(reader, Ring())) as frames:
        for head, _ in frames:
            claims.take(head)
            progress(ProgressEvent("verify", before + reader.n_bytes, total, time.monotonic() - started))
    claims.require_all()
    verdict.n_blocks += claims.n_blocks
    verdict.stream_bytes += reader.n_bytes
    verdict.snapshots += [record.name for record in stream.arriving()]
    return stream


def _verify_chain(maps: Sequence[tuple[PathLike, StreamMap]], verdict: StreamVerdict) -> None:
    """Note every stream whose base no stream before it brings, or that numbers its blocks otherwise."""
    brought: dict[bytes, bytes] = {}
    for path, stream in maps:
        base, space = stream.base, stream.header.space_id
        if base is not None and brought.get(base.id) != space:
            verdict.problems.append(
                f"{os.fspath(path)}: builds on snapshot {base.name}, which no stream before it brings whole"
            )
        for role in (Role.TOP, Role.ARRIVES):
            brought.update((record.id, space) for record in stream.with_role(role))
