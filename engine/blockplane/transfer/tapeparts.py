"""Writing one image onto several sets of tapes at once, by a drive each: every set gets a part of its blocks.

The parts are disjoint, and each is read, in the order of its block numbers, by the thread that writes it: no block is
read twice, and a drive that is slow, or changes its tape, keeps no other waiting. One that fails does not end the
others: what they write is whole, and the image is when that one was gone on with.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

from blockplane.image.division import Choice, divided
from blockplane.image.image import Image
from blockplane.image.order import TAPE
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, RefusedError, TapeSetError, UsageError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.stream.compression import parse_compression
from blockplane.stream.input import FileInput
from blockplane.stream.keyfile import KeyLike, key_of, keys_of
from blockplane.stream.media import (
    PathLike,
    Rack,
    SetPart,
    SetState,
    Standing,
    Table,
    TapeIdentity,
    TapeSet,
    TapeStore,
    ending,
    in_turns,
    is_blank,
    look_at,
    open_medium,
    standing,
    stores,
)
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.transfer.imagesending import EXPLICIT, ImageSending
from blockplane.transfer.keeping import tell_interrupted
from blockplane.transfer.send import StreamForm
from blockplane.transfer.sidebyside import SideBySide, StoppedError, failures
from blockplane.transfer.tapewrite import PLAIN, TapeForm, TapeWriteReport, Writing, names_of, tape_names, write_image

_GO_ON: Final = "the same again with --resume writes what is missing"


@dataclass(frozen=True, slots=True)
class DriveTapes:
    """A drive's tapes, and what of an image they take: see `image.division.divided`.

    tapes : the drive, or .tap files that are filled in order.
    """

    tapes: PathLike | Sequence[PathLike]
    within: Choice = None

    @property
    def names(self) -> list[str]:
        """The names of the tapes."""
        return [str(name) for name in tape_names(self.tapes)]


@dataclass(frozen=True, slots=True)
class TapePartsReport:
    """What was written.

    parts : a report for each drive, in their order; None: an interrupted run had written all of it.
    """

    parts: tuple[TapeWriteReport | None, ...]
    top: str
    base: str | None
    n_blocks: int
    seconds: float

    @property
    def stream_bytes(self) -> int:
        """Bytes of all streams that were written now, or gone on with."""
        return sum(part.stream_bytes for part in self.parts if part is not None)

    @property
    def n_bytes_before(self) -> int:
        """Of these, what an interrupted run had written."""
        return sum(part.n_bytes_before for part in self.parts if part is not None)


def write_tape_parts(
    image: Image,
    drives: Sequence[DriveTapes],
    form: TapeForm = PLAIN,
    *,
    locations: str = EXPLICIT,
    compress: str | None = None,
    key: KeyLike | None = None,
    progress: Progress = ignore_progress,
    left: Callable[[], object] | None = None,
) -> TapePartsReport:
    """Write an image onto tapes by several drives at once, a set for each, which has a part of the blocks.

    Parameters
    ----------
    drives : two or more. A drive takes of the blocks that none before it took those of its plane or expression; drives
        without one share the rest equally, in runs of ascending numbers. Sets that are there are added to, or gone on
        with, in any order. form.resume : drives whose part is whole are left alone. left : called where not all is
        written, and what is can be gone on with. The rest as for `write_tape`.

    Raises
    ------
    RefusedError : the sets do not belong together, or are not all at the same image; nothing is written.
    BlockplaneError and its kinds : as `write_tape`, naming the drive. The others write their parts to the end before;
        the same again with `resume` writes what is missing.

    Notes
    -----
    Durable on return. Memory: that of a send for each drive.
    """
    require_drives(drives)
    image.require_sendable()
    stream = StreamForm(
        parse_compression(compress) if compress is not None else None, key_of(key) if key is not None else None
    )
    _ = image.layout  # worked out once, for all of them
    numbers, group_id, whole = _looked_at(drives, form)
    planes = divided(image, [drives[numbers.index(i)].within for i in range(len(drives))])
    form = replace(form, changer=in_turns(form.changer))
    running: SideBySide[TapeWriteReport | None] = SideBySide(len(drives), image.n_blocks * BLOCK_BYTES, progress)
    sendings = []
    for number in numbers:
        sending = ImageSending(image, TAPE, locations=locations)
        sending.take_part(planes[number], number, len(drives))
        sendings.append(sending)
    with ExitStack() as opened:
        writings: list[Writing | None] = []
        for drive, sending, number, its in zip(drives, sendings, numbers, whole, strict=True):
            part = SetPart(number, len(drives), group_id)
            writings.append(_writing(drive, its, sending, form, stream, part))
            if (writing := writings[-1]) is not None:
                opened.callback(writing.close)
        _require_one_to_write(drives, writings)

        def write_one(number: int) -> TapeWriteReport | None:
            writing = writings[number]
            if writing is None:
                return None
            with writing:
                return write_image(sendings[number], writing, stream, running.progress_of(number))

        try:
            results = running.run(write_one)
        except KeyboardInterrupt as error:
            if _can_be_gone_on_with(writings):
                tell_interrupted(error, _GO_ON)
                if left is not None:
                    left()
            raise
    is_short = any(isinstance(its, BaseException) for its in results)
    if is_short and left is not None and _can_be_gone_on_with(writings):
        left()
    _require_all(drives, writings, results)
    base = image.base.name if image.base is not None else None
    parts = tuple(its for its in results if not isinstance(its, BaseException))
    seconds = max(part.seconds for part in parts if part is not None)
    top = sendings[0].snapshots()[0][0].name
    return TapePartsReport(parts, top, base, image.n_blocks, seconds)


def require_drives(drives: Sequence[DriveTapes]) -> None:
    """Refuse fewer than two drives, and a tape that two would write."""
    if len(drives) < 2:
        raise UsageError("an image is divided between two drives or more", "name another, or write it whole")
    names = [name for drive in drives for name in drive.names]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two drives are to write {name}", "name each tape once")


def _looked_at(drives: Sequence[DriveTapes], form: TapeForm) -> tuple[list[int], bytes, list[SetState | None]]:
    """Return which part each drive writes, what the sets have in common, and those that have their part whole."""
    none: list[SetState | None] = [None] * len(drives)
    n_parts, fresh = len(drives), secrets.token_bytes(16)
    if not (form.append or form.resume):
        if not form.discard:
            _refuse_written(drives)
        return list(range(n_parts)), fresh, none
    known = [look_at(drive.names[0]) for drive in drives]
    there = [its for its in known if isinstance(its, TapeIdentity)]
    if not there:
        return list(range(n_parts)), fresh, none
    _require_one_group(there, n_parts)
    left = [i for i in range(n_parts) if i not in {its.part.number for its in there}]
    numbers = [its.part.number if isinstance(its, TapeIdentity) else left.pop(0) for its in known]
    return numbers, there[0].label.group_id, _whole_ones(drives, known, form)


def _refuse_written(drives: Sequence[DriveTapes]) -> None:
    """Refuse to overwrite what a tape holds, before anything is written to another."""
    for name in [drive.names[0] for drive in drives if os.path.lexists(drive.names[0])]:
        with closing(open_medium(name)) as medium:
            if not is_blank(medium):
                raise RefusedError(
                    f"{name} holds something, which would be overwritten",
                    "say --append to add to the sets, --discard to lose what the tapes hold",
                )


def _require_one_group(there: Sequence[TapeIdentity], n_parts: int) -> None:
    first = there[0]
    for its in there:
        if its.part.n_parts != n_parts:
            what = f"one of {its.part.n_parts} parts of its images" if its.part.n_parts > 1 else "its images whole"
            raise RefusedError(
                f"{its.text} has {what}, and {n_parts} drives were named", "name the drives that it was begun with"
            )
        if its.label.group_id != first.label.group_id:
            raise TapeSetError(
                f"{its.text} was not written beside {first.name}", "name sets that were written together"
            )
    if len({its.part.number for its in there}) < len(there):
        raise TapeSetError("two of the drives have tapes of the same part", "name a tape of each set")


def _whole_ones(drives: Sequence[DriveTapes], known: Sequence[object], form: TapeForm) -> list[SetState | None]:
    """Return the sets that have their part of the image under way whole; None: it is to be written, or the rest of it.

    Raises
    ------
    RefusedError : the sets are not at the same image.
    """
    found = [
        _found(drive, appends=form.append) if isinstance(its, TapeIdentity) else None
        for drive, its in zip(drives, known, strict=True)
    ]
    counts = [len(its.state.images) if its is not None else 0 for its in found]
    begun = [its is not None and bool(its.groups) for its in found]
    none: list[SetState | None] = [None] * len(drives)
    if form.append:
        low = counts.index(min(counts))
        if len(set(counts)) > 1 or any(begun):
            raise RefusedError(
                f"an image was not finished: {drives[low].names[0]} has {counts[low]} whole ones, "
                f"{drives[counts.index(max(counts))].names[0]} {max(counts)}",
                "go on with it first: --resume; or lose all sets: --discard",
            )
        return none
    due = max(1, *(count + is_begun for count, is_begun in zip(counts, begun, strict=True)))
    for drive, count in zip(drives, counts, strict=True):
        if count < due - 1:
            raise RefusedError(
                f"{drive.names[0]} has {count} images, and the one under way is number {due}",
                "write what it lacks onto it first, or begin all anew with --discard",
            )
    return [its.state if its is not None and n == due else None for its, n in zip(found, counts, strict=True)]


def _found(drive: DriveTapes, *, appends: bool) -> Standing | None:
    there = list(takewhile(os.path.lexists, drive.names))
    with closing(Rack(there)) as rack:
        return ending(rack, is_all=len(there) < len(drive.names)) if appends else standing(rack)


def _writing(
    drive: DriveTapes,
    whole: SetState | None,
    sending: ImageSending,
    form: TapeForm,
    stream: StreamForm,
    part: SetPart,
) -> Writing | None:
    """Open the tapes of a drive; None: they have its part whole. What is on them is of the image that is asked for."""
    if whole is not None:
        _require_whole(drive, whole, sending, stream)
        return None
    writing = Writing(drive.tapes, form, keys_of(stream.key), names_of(sending, stream), part)
    if writing.begun is not None and not _is_it(writing.begun.partial.map, sending):
        writing.close()
        raise _another(drive, "was begun with")
    return writing


def _require_whole(drive: DriveTapes, state: SetState, sending: ImageSending, stream: StreamForm) -> None:
    """Refuse a set whose last image is not the part that is asked for; it may have been begun with one more."""
    table = Table(tuple(state.tapes), tuple(state.images), tuple(state.runs))
    with closing(TapeSet(Rack(drive.names[: len(state.tapes)]), table)) as tapes:
        last: TapeStore = stores(tapes)[-1]
        found = StreamReader(FileInput(last), keys_of(stream.key)).read_map()
    if not _is_it(found, sending):
        raise _another(drive, "ends with")


def _is_it(found: StreamMap, sending: ImageSending) -> bool:
    """Whether a stream is the part of the image that is to be written."""
    base, chosen = sending.image.base, sending.chosen
    its_base = found.base.id if found.base is not None else None
    same = found.top.id == sending.snapshots()[0][0].id and its_base == (base.id if base is not None else None)
    return same and chosen is not None and found.part == chosen


def _another(drive: DriveTapes, what: str) -> RefusedError:
    return RefusedError(
        f"the set on {drive.names[0]} {what} another image, or another part of it, than the one asked for",
        "name the same image, divided as before; or add one with --append",
    )


def _require_one_to_write(drives: Sequence[DriveTapes], writings: Sequence[Writing | None]) -> None:
    if all(writing is None for writing in writings):
        raise RefusedError(
            f"nothing was interrupted on {drives[0].names[0]} and the others: the image is whole",
            "say --append to add one",
        )


def _require_all(drives: Sequence[DriveTapes], writings: Sequence[Writing | None], results: Sequence[object]) -> None:
    """Raise what went wrong with a drive, saying what became of the others."""
    failed = failures([drive.names[0] for drive in drives], results)
    if not failed:
        return
    name, error = failed[0]
    if not isinstance(error, BlockplaneError):
        raise error
    others = [
        f"{other}: {getattr(why, 'message', why)}" for other, why in failed[1:] if not isinstance(why, StoppedError)
    ]
    n_whole = len(drives) - len(failed)
    rest = f"the parts of the other {n_whole} drives are whole" if n_whole > 1 else "the other drive's part is whole"
    error.message = f"{name}: {error.message}" if name not in error.message else error.message
    error.message += "".join(f"; {other}" for other in others)
    error.message += f"; {rest}" if n_whole else ""
    error.args = (error.message,)
    if _can_be_gone_on_with(writings) and "--resume" not in error.hint:
        error.hint = f"{error.hint}; {_GO_ON}" if error.hint else _GO_ON
    raise error


def _can_be_gone_on_with(writings: Sequence[Writing | None]) -> bool:
    """Whether some drive has its part of the image whole, or has begun it."""
    return any(writing is None or writing.has_some for writing in writings)
