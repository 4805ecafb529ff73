"""Writing images, and streams that are there, onto sets of tapes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final

from blockplane.image.image import Image
from blockplane.image.order import TAPE
from blockplane.model.addresses import Bytes
from blockplane.model.errors import BlockplaneError, RefusedError, UsageError
from blockplane.model.progress import Progress, ProgressEvent, ignore_progress
from blockplane.model.sizes import parse_size
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.codec import FrameHead, is_sealed
from blockplane.stream.compression import parse_compression
from blockplane.stream.input import Input, InputLike, open_input
from blockplane.stream.keyfile import Key, KeyLike, Keys, key_of, keys_of
from blockplane.stream.media import (
    DEFAULT_RECORD_BYTES,
    MIN_TAPE_BYTES,
    WHOLE,
    Changer,
    Names,
    PathLike,
    Rack,
    Resumption,
    SetPart,
    SetState,
    Standing,
    TapeSink,
    ending,
    new_set,
    resumption,
    shown,
    standing,
)
from blockplane.stream.reader import StreamMap, StreamReader, read_header
from blockplane.transfer.began import Began
from blockplane.transfer.claims import Claims
from blockplane.transfer.imagesending import EXPLICIT, ImageSending
from blockplane.transfer.keeping import tell_interrupted
from blockplane.transfer.send import SendReport, StreamForm, send_begun


@dataclass(frozen=True, slots=True)
class TapeWriteReport:
    """What was written.

    set_id : of the tapes. image : its number in the set. n_tapes : of the set. top, base : names, None where the stream
    is encrypted and its key was not given. n_blocks, stream_bytes : of the stream. n_bytes_before : of the stream, that
    an interrupted run had written. sent : of an image, what `send` says.
    """

    set_id: bytes
    image: int
    n_tapes: int
    top: str | None
    base: str | None
    n_blocks: int
    stream_bytes: int
    seconds: float
    n_bytes_before: int = 0
    sent: SendReport | None = None

    @property
    def bytes_per_second(self) -> float:
        """Bytes of the stream a second, that were written now."""
        return (self.stream_bytes - self.n_bytes_before) / self.seconds if self.seconds else 0.0


def _bytes(size: int | str | None) -> int | None:
    return parse_size(size) if isinstance(size, str) else size


@dataclass(frozen=True, slots=True)
class TapeForm:
    """How tapes are written.

    tape_size : of tapes that are files: bytes or text as `4G`; None: as long as there is space. record_size : as that,
    64 KiB to 1 MiB. append : add to the set that is there, of which the last tape is enough; discard : lose what is
    there; resume : go on with what an interrupted run has begun. changer : brings more tapes.
    """

    tape_size: int | str | None = None
    record_size: int | str = DEFAULT_RECORD_BYTES
    append: bool = False
    discard: bool = False
    resume: bool = False
    changer: Changer | None = None

    def __post_init__(self) -> None:
        size = _bytes(self.tape_size)
        if size is not None and size < MIN_TAPE_BYTES:
            raise UsageError(f"tapes of {size} bytes are not written", f"say at least {MIN_TAPE_BYTES >> 20}MiB")
        if sum((self.append, self.discard, self.resume)) > 1:
            raise UsageError("--append, --discard and --resume do not go together", "say one of them")
        new_set(_bytes(self.record_size) or DEFAULT_RECORD_BYTES)  # refuses records of no such size

    def require_set(self, tapes: Sequence[PathLike]) -> None:
        """Refuse to add to tapes none of which is there; their own are not looked at."""
        if self.append and not any(map(os.path.lexists, tapes)):
            raise RefusedError(
                f"there is no set on {os.fspath(tapes[0])} that could be added to",
                "name the tapes that it is on; or leave --append out: then one is begun",
            )


PLAIN: Final = TapeForm()


def write_tape(
    image: Image,
    tapes: PathLike | Sequence[PathLike],
    form: TapeForm = PLAIN,
    *,
    locations: str = EXPLICIT,
    compress: str | None = None,
    key: KeyLike | None = None,
    progress: Progress = ignore_progress,
    left: Callable[[], object] | None = None,
) -> TapeWriteReport:
    """Write an image onto tapes, by ascending block number.

    Parameters
    ----------
    tapes : devices and .tap files, which are filled in order. locations, compress, key : as for `send`.
    left : called where it ends early, and what is written can be gone on with.

    Raises
    ------
    RefusedError : a tape holds something; or what was begun is another image. TapeFullError : there are not tapes
        enough; what is written can be gone on with. TapeError and its kinds : a tape is not the one that is needed.

    Notes
    -----
    Durable on return. What an interrupted run has written is a group of records at most short of what came.
    """
    stream = StreamForm(
        parse_compression(compress) if compress is not None else None, key_of(key) if key is not None else None
    )
    sending = ImageSending(image, TAPE, locations=locations)
    with Writing(tapes, form, keys_of(stream.key), names_of(sending, stream), left=left) as writing:
        return write_image(sending, writing, stream, progress)


def names_of(sending: ImageSending, stream: StreamForm) -> Names:
    """Return what the table says of an image; nothing where that is encrypted."""
    image = sending.image
    if stream.key is not None:
        return Names()
    return Names(sending.snapshots()[0][0].name, image.base.name if image.base else "")


def write_image(sending: ImageSending, writing: Writing, stream: StreamForm, progress: Progress) -> TapeWriteReport:
    """Write an image, or a part of one, to tapes that were opened; durable on return."""
    began = Began()
    if writing.begun is not None:
        began = Began(partial=writing.begun.partial, name=writing.rack.names[0])
    with closing(began):
        report = send_begun(sending, stream, writing.sink, progress, began, read=True)
        writing.sink.commit()
    n_blocks = len(sending.chosen) if sending.chosen is not None else sending.image.n_blocks
    return writing.report(report.top, report.base, n_blocks, report)


def write_stream_to_tape(
    origin: InputLike,
    tapes: PathLike | Sequence[PathLike],
    form: TapeForm = PLAIN,
    *,
    key: Keys = None,
    progress: Progress = ignore_progress,
) -> TapeWriteReport:
    """Write a stream that `send` wrote onto tapes as it is: first over a fast link, say, then onto the medium.

    Parameters
    ----------
    origin : a path, a file object, a descriptor or a socket. key : for an encrypted stream, so that its blocks are
        verified; without, it is written by its CRCs alone, and ends where the input does.

    Raises
    ------
    StreamError and its kinds : it is no stream, damaged or cut off; what is on the tapes is no part of the set.
    As `write_tape` for the rest.
    """
    with closing(open_input(origin)) as source:
        header = read_header(source)
        keys = keys_of(key)
        with Writing(tapes, form, keys, Names()) as writing:
            passing = _Passing(source, header, writing)
            if is_sealed(header) and not keys:
                passing.pass_all()
                writing.sink.commit()
                return writing.report(None, None, 0, None)
            stream, n_blocks = _read_through(passing, keys, progress)
            top, base = stream.top.name, stream.base.name if stream.base is not None else None
            if not is_sealed(header):
                writing.names = Names(top, base or "")
            writing.sink.commit()
            return writing.report(top, base, n_blocks, None)


def _read_through(passing: _Passing, keys: Sequence[Key], progress: Progress) -> tuple[StreamMap, int]:
    """Read and verify a stream to its end."""
    started = time.monotonic()
    reader = StreamReader(passing, keys)
    stream = reader.read_map()
    claims, ring = Claims(stream.following), Ring()

    def place(head: FrameHead) -> Sequence[Bytes]:
        claims.take(head)
        return ring(head)

    with closing(arriving(reader, place)) as frames:
        for _ in frames:
            progress(ProgressEvent("tape", reader.n_bytes, 0, time.monotonic() - started))
    claims.require_all()
    return stream, claims.n_blocks


class Writing:
    """Tapes while an image is written to them: opened, the place found where it goes on.

    Parameters
    ----------
    part : of a set that is begun. left : as for `write_tape`.
    """

    def __init__(
        self,
        tapes: PathLike | Sequence[PathLike],
        form: TapeForm,
        keys: Sequence[Key],
        names: Names,
        part: SetPart = WHOLE,
        left: Callable[[], object] | None = None,
    ) -> None:
        self._form, self.names, self._part, self._left = form, names, part, left
        names_there = tape_names(tapes)
        form.require_set(names_there)
        self.rack = Rack(names_there, writable=True, size_bytes=_bytes(form.tape_size), changer=form.changer)
        self._started = time.monotonic()
        with ExitStack() as opened:
            opened.callback(self.rack.close)
            self.state, self.begun = self._place(keys)
            if self.begun is not None:
                opened.callback(self.begun.partial.written.index.close)
            self._n_before = self.begun.begun.n_bytes if self.begun is not None else 0
            self._n_images = len(self.state.images)
            self.sink = TapeSink(
                self.rack, self.state, names=lambda: self.names, discard=form.discard,
                begun=self.begun.begun if self.begun is not None else None,
            )  # fmt: skip
            opened.callback(self.sink.close)
            self._opened = opened.pop_all()

    def _place(self, keys: Sequence[Key]) -> tuple[SetState, Resumption | None]:
        """Return what of the set is written, and what was begun."""
        form = self._form
        record_bytes = _bytes(form.record_size) or DEFAULT_RECORD_BYTES
        if not (form.append or form.resume):
            return new_set(record_bytes, self._part), None
        found = ending(self.rack) if form.append else standing(self.rack)
        if found is None and form.append:
            raise RefusedError(
                f"there is no set on {self.rack.names[0]} that could be added to",
                "name the tapes that it is on; or leave --append out: then one is begun",
            )
        if found is None:
            return new_set(record_bytes, self._part), None
        self._require_its_part(found)
        if form.append and found.groups:
            raise RefusedError(
                f"the set on {self.rack.names[0]} ends with an image that was not finished",
                "go on with it first: --resume; or lose the whole set: --discard",
            )
        begun = resumption(self.rack, found, keys) if form.resume else None
        if begun is not None:
            return begun.state, begun
        self._require_something(found)
        return found.state, None

    def _require_its_part(self, found: Standing) -> None:
        """Refuse to go on with a set that has another part of its images than the one that is to come."""
        its, mine = found.state.part, self._part
        if its != mine:
            what = f"part {its.number + 1} of {its.n_parts} of its images" if its.n_parts > 1 else "its images whole"
            raise RefusedError(
                f"the set on {self.rack.names[0]} has {what}, and "
                + (f"part {mine.number + 1} of {mine.n_parts}" if mine.n_parts > 1 else "a whole one")
                + " was to come",
                "write with the drives that it was begun with",
            )

    def _require_something(self, found: Standing) -> None:
        """Refuse to go on with a set that is whole; one of several may be, where another one is not."""
        if self._form.resume and self._part == WHOLE and not found.groups and found.state.images:
            raise RefusedError(
                f"nothing was interrupted on {self.rack.names[0]}: its {len(found.state.images)} images are whole",
                "say --append to add one",
            )

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if error is None or not self.state.has_begun or isinstance(error, RefusedError):
            return
        more = "what is written can be gone on with: the same again with --resume"
        if isinstance(error, BlockplaneError):
            error.hint = f"{error.hint}; {more}" if error.hint else more
        elif isinstance(error, KeyboardInterrupt):
            tell_interrupted(error, more)
        if self._left is not None:
            self._left()

    @property
    def has_some(self) -> bool:
        """Whether it wrote what can be gone on with, or all."""
        return self.state.has_begun or len(self.state.images) > self._n_images

    def close(self) -> None:
        """Release the tapes; what is written stays. Once more is nothing."""
        self._opened.close()

    def report(self, top: str | None, base: str | None, n_blocks: int, sent: SendReport | None) -> TapeWriteReport:
        """Return what was written."""
        state = self.state
        seconds = time.monotonic() - self._started
        return TapeWriteReport(
            state.set_id, len(state.images), len(state.tapes), top, base, n_blocks, self.sink.n_bytes, seconds,
            self._n_before, sent,
        )  # fmt: skip


class _Passing:
    """See Input: what is read goes to the tapes too, but what they have already. The header was read before."""

    is_whole = False

    def __init__(self, source: Input, header: bytes, writing: Writing) -> None:
        self._source, self._header, self._sink = source, header, writing.sink
        self.name = source.name
        self._to_skip = 0
        if writing.begun is not None:
            begun = writing.begun.begun
            if begun.shown.stream_id != shown(header).stream_id:
                raise RefusedError(
                    f"{writing.rack.names[0]} has begun with another stream than {source.name}",
                    "give the very same stream, or begin anew with --discard",
                )
            self._to_skip = begun.n_bytes

    def _pass(self, data: memoryview) -> None:
        part = data[self._to_skip :] if self._to_skip < len(data) else data[:0]
        self._to_skip = max(self._to_skip - len(data), 0)
        if len(part):
            self._sink.write_all([part])

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """See Input."""
        total = 0
        for buffer in buffers:
            out = buffer.cast("B")
            n_head = min(len(self._header), len(out))
            out[:n_head] = self._header[:n_head]
            self._header = self._header[n_head:]
            n_read = n_head + (self._source.read_into([out[n_head:]]) if n_head < len(out) else 0)
            self._pass(out[:n_read])
            total += n_read
            if n_read < len(out):
                break
        return total

    def skip(self, n_bytes: int) -> int:
        """See Input: what is passed over is written all the same."""
        scratch, done = memoryview(bytearray(min(n_bytes, 1 << 20))), 0
        while done < n_bytes and (n_read := self.read_into([scratch[: n_bytes - done]])):
            done += n_read
        return done

    def pass_all(self) -> None:
        """Pass everything that the input has."""
        scratch = memoryview(bytearray(1 << 20))
        while self.read_into([scratch]):
            pass

    def close(self) -> None:
        """See Input: the source is its owner's."""


def tape_names(tapes: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    """Return one name, or several, as several."""
    return [tapes] if isinstance(tapes, (str, os.PathLike)) else tapes
