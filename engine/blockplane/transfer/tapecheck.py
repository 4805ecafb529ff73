"""Verifying sets of tapes, listing them, and taking chosen blocks out of them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.errors import RefusedError, StreamError, TapeDamagedError, TapeEndError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import FrameHead
from blockplane.stream.keyfile import Keys, keys_of
from blockplane.stream.media import (
    Changer,
    ImageEntry,
    ImageInput,
    PathLike,
    Rack,
    Run,
    TapeEntry,
    TapeSet,
    Walk,
    by_set,
    images,
    in_turns,
    is_unwritten,
    missing_parts,
    standing,
)
from blockplane.stream.sink import SinkLike, open_sink
from blockplane.stream.source import StreamChain
from blockplane.transfer.claims import Claims, extents_list
from blockplane.transfer.compare import StreamComparison, compare_streams
from blockplane.transfer.coverage import prove_chain
from blockplane.transfer.sidebyside import SideBySide
from blockplane.transfer.taperead import opened_image
from blockplane.transfer.tapewrite import tape_names
from blockplane.volume.live import LiveVolume

#: Blocks that `retrieve_blocks` reads at a time: 16 MiB.
_SPAN_BLOCKS: Final = 4096


@dataclass(frozen=True, slots=True)
class LostBlocks:
    """Blocks of an image that cannot be read off its tapes. extents : VBNs [start, stop). top : the snapshot's name."""

    image: int
    top: str
    extents: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class TapeVerdict:
    """What verifying tapes found.

    problems : one sentence each. lost : what of which image is gone. proved : names of snapshots that the tapes hold
    whole, where all of them were at hand. compared : with the live volume, where one was given.
    """

    problems: list[str] = field(default_factory=list)
    n_images: int = 0
    n_tapes: int = 0
    n_blocks: int = 0
    stream_bytes: int = 0
    seconds: float = 0.0
    snapshots: list[str] = field(default_factory=list)
    proved: list[str] = field(default_factory=list)
    lost: list[LostBlocks] = field(default_factory=list)
    compared: list[StreamComparison] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and all(found.ok for found in self.compared)


def verify_tapes(
    tapes: PathLike | Sequence[PathLike],
    *,
    changer: Changer | None = None,
    volume: LiveVolume | None = None,
    key: Keys = None,
    progress: Progress = ignore_progress,
) -> TapeVerdict:
    """Read a set of tapes whole: every record, every block, the table, and that they hold whole snapshots.

    Parameters
    ----------
    tapes : of a set, in order; of sets that were written side by side too, which are read all at once.
    volume : compare those snapshots of it that the tapes bring, byte by byte.

    Raises
    ------
    TapeError and its kinds : a tape is missing, or not the one that comes next. What is damaged is a problem in the
        list.
    """
    started, names = time.monotonic(), tape_names(tapes)
    sets, keys, bring = by_set(names), keys_of(key), in_turns(changer)
    running: SideBySide[TapeVerdict] = SideBySide(len(sets), 0, progress)

    def verify_one(number: int) -> TapeVerdict:
        return _verify_set(sets[number].names, bring, keys, running.progress_of(number), started)

    verdict = _together(running.run(verify_one)) if len(sets) > 1 else verify_one(0)
    if lacking := missing_parts(sets):
        verdict.problems.append(f"{lacking} of the images is on no tape named")
    if changer is None and not verdict.problems:
        written = [os.fspath(name) for name in names if not is_unwritten(name)]
        proof = prove_chain(written, keys)
        verdict.problems += proof.problems
        verdict.proved = proof.whole
        if volume is not None:
            verdict.compared = _compared(written, volume, verdict, key, progress)
    verdict.seconds = time.monotonic() - started
    return verdict


def _verify_set(
    names: Sequence[str], changer: Changer | None, keys: Keys, progress: Progress, started: float
) -> TapeVerdict:
    """Read one set whole."""
    verdict = TapeVerdict()
    with closing(Rack(names, changer=changer)) as rack:
        walk = Walk(rack)
        for image in images(walk):
            _verify_image(image, rack, verdict, keys, progress, started)
        verdict.n_tapes = walk.identity.tape if walk.identity is not None else 0
        verdict.problems += walk.problems
    return verdict


def _together(found: Sequence[TapeVerdict | BaseException]) -> TapeVerdict:
    """Return what was found of all sets; raises what ended one early."""
    verdict = TapeVerdict()
    for its in found:
        if isinstance(its, BaseException):
            raise its
        verdict.problems += its.problems
        verdict.n_images = max(verdict.n_images, its.n_images)
        verdict.n_tapes += its.n_tapes
        verdict.n_blocks += its.n_blocks
        verdict.stream_bytes += its.stream_bytes
        for lost in its.lost:
            _add_lost(verdict.lost, lost)
        verdict.snapshots += [name for name in its.snapshots if name not in verdict.snapshots]
    return verdict


def _add_lost(found: list[LostBlocks], more: LostBlocks) -> None:
    """Take up what one more set has lost of an image."""
    for i, its in enumerate(found):
        if its.image == more.image:
            found[i] = replace(its, extents=tuple(sorted(its.extents + more.extents)))
            return
    found.append(more)


def _verify_image(
    image: ImageInput, rack: Rack, verdict: TapeVerdict, keys: Keys, progress: Progress, started: float
) -> None:
    verdict.n_images += 1
    try:
        reader, stream = opened_image(image, rack, keys_of(keys))
    except TapeDamagedError as error:
        verdict.problems.append(error.message)
        return
    claims, ring = Claims(stream.following), Ring()

    def place(head: FrameHead) -> Sequence[Bytes]:
        claims.take(head)
        return ring(head)

    try:
        with closing(arriving(reader, place)) as frames:
            for _ in frames:
                progress(ProgressEvent("verify", verdict.stream_bytes + reader.n_bytes, 0, time.monotonic() - started))
    except TapeDamagedError as error:
        verdict.problems.append(error.message)
        verdict.lost.append(LostBlocks(image.number, stream.top.name, extents_list(claims.missing())))
    except StreamError as error:
        verdict.problems.append(f"{image.name}: {error.message}")
    verdict.n_blocks += claims.n_blocks
    verdict.stream_bytes += reader.n_bytes
    verdict.snapshots += [record.name for record in stream.arriving()]


def _compared(
    names: Sequence[PathLike], volume: LiveVolume, verdict: TapeVerdict, key: Keys, progress: Progress
) -> list[StreamComparison]:
    """Compare the snapshots that both have."""
    with volume.lock:
        mine = {entry.record.name for entry in volume.local.regular()}
    both = [name for name in verdict.snapshots if name in mine]
    if not both:
        raise RefusedError(
            f"{volume.path} has none of the snapshots that the tapes bring: {', '.join(verdict.snapshots)}",
            "verify without a volume",
        )
    return [compare_streams(*names, volume=volume, snapshot=name, key=key, progress=progress) for name in both]


# --- lists -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TapeListing:
    """What is on tapes.

    images : those that are whole. unfinished : bytes of the stream of one that was begun, that lie in closed groups;
    None: there is none. is_complete : the last tape named ends with the set's end. tapes : by number. part, n_parts :
    which part of its images the set has, from 0, of how many. problems : what was damaged: of images whose table is,
    neither names nor ids are known.
    """

    set_id: bytes
    created_ns: int
    record_bytes: int
    first_tape: int
    tapes: tuple[TapeEntry, ...]
    images: tuple[ImageEntry, ...]
    runs: tuple[Run, ...]
    is_complete: bool
    unfinished: int | None = None
    part: int = 0
    n_parts: int = 1
    problems: tuple[str, ...] = ()


def list_tapes(tapes: PathLike | Sequence[PathLike], *, changer: Changer | None = None) -> TapeListing:
    """Say what is on a tape, or on a set of them, by their labels and tables; data are not read.

    Raises
    ------
    TapeError and its kinds : a tape is not the one that comes next, or is none of ours.
    """
    sets = by_set(tape_names(tapes))
    if len(sets) > 1:
        raise UsageError(f"these are tapes of {len(sets)} sets", "list_tape_sets lists them")
    return _listing(sets[0].names, changer)


def list_tape_sets(tapes: PathLike | Sequence[PathLike], *, changer: Changer | None = None) -> list[TapeListing]:
    """Say what is on tapes of sets that were written side by side, by part; as `list_tapes` of each."""
    return [_listing(its.names, changer) for its in by_set(tape_names(tapes))]


def _listing(names: Sequence[str], changer: Changer | None) -> TapeListing:
    with closing(Rack(names, changer=changer)) as rack:
        try:
            found = TapeSet(rack, rebuilds=True)
        except TapeEndError:
            return _unfinished(rack)
        label, table = found.first.label, found.table
        return TapeListing(
            found.set_id, label.created_ns, found.record_bytes, found.first.tape, table.tapes, table.images, table.runs,
            True, None, label.part, label.n_parts, tuple(found.problems),
        )  # fmt: skip


def _unfinished(rack: Rack) -> TapeListing:
    """List a set whose end is not here, by what closes its groups."""
    found = standing(rack)
    assert found is not None, "its first tape has a label"
    state = found.groups[-1][1] if found.groups else found.state
    n_bytes = found.groups[-1][0].runs[-1].stop if found.groups else None
    return TapeListing(
        state.set_id, state.created_ns, state.record_bytes, found.first.tape, tuple(state.tapes),
        tuple(found.state.images), tuple(state.runs), False, n_bytes,
        state.part.number, state.part.n_parts,
    )  # fmt: skip


# --- blocks ----------------------------------------------------------------------------------------------------------


def retrieve_blocks(chain: StreamChain, start: int, stop: int, sink: SinkLike) -> int:
    """Write blocks start..stop of the snapshot that a chain reads, one after the other; return how many.

    Raises
    ------
    UsageError : that is no range. RefusedError : some of them are in none of the streams; nothing is written.
    StreamError and its kinds : they cannot be read.
    """
    if not 0 <= start < stop:
        raise UsageError(f"{start} to {stop} are no blocks", "the first is 0; the range ends behind its start")
    missing = chain.first_missing(start, stop)
    if missing is not None:
        raise RefusedError(f"block {missing} of {chain.snapshot.name} is on none of the tapes", "name blocks that are")
    with closing(open_sink(sink)) as opened:
        for at in range(start, stop, _SPAN_BLOCKS):
            end = min(at + _SPAN_BLOCKS, stop)
            out = np.empty((end - at) * BLOCK_BYTES, np.uint8)
            chain.read_extents(np.array([[at, end]], np.int64), out)
            opened.write_all([out.data])
        opened.commit()
    return stop - start
