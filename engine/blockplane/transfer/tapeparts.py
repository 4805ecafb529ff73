"""Writing one image onto several sets of tapes at once, by a drive each: every set gets a part of its blocks.

The parts are disjoint, and each is read, in the order of its block numbers, by the thread that writes it: no block is
read twice, and a drive that is slow, or changes its tape, keeps no other waiting. One that fails does not end the
others: what they write is whole, and the image is when that one was gone on with.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import takewhile

from blockplane.image.division import Choice, divided
from blockplane.image.image import Image
from blockplane.image.order import TAPE
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import BlockplaneError, RefusedError, TapeSetError, UsageError
from blockplane.model.progress import Progress, ignore_progress
from blockplane.planes import Plane
from blockplane.stream.compression import parse_compression
from blockplane.stream.input import FileInput
from blockplane.stream.keyfile import KeyLike, key_of, keys_of
from blockplane.stream.media import (
    PathLike,
    Rack,
    SetPart,
    Standing,
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
from blockplane.stream.reader import StreamReader
from blockplane.transfer.imagesending import EXPLICIT, ImageSending
from blockplane.transfer.send import StreamForm
from blockplane.transfer.sidebyside import SideBySide, StoppedError, failures
from blockplane.transfer.tapewrite import PLAIN, TapeForm, TapeWriteReport, Writing, names_of, tape_names, write_image


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
) -> TapePartsReport:
    """Write an image onto tapes by several drives at once, a set for each, which has a part of the blocks.

    Parameters
    ----------
    drives : two or more. A drive takes of the blocks that none before it took those of its plane or expression; drives
        without one share the rest equally, in runs of ascending numbers. Sets that are there are added to, or gone on
        with, in any order. form.resume : drives whose part is whole are left alone. The rest as for `write_tape`.

    Raises
    ------
    RefusedError : the sets do not belong together, or are not all at the same image; nothing is written.
    BlockplaneError and its kinds : as `write_tape`, naming the drive. The others write their parts to the end before;
        the same again with `resume` writes what is missing.

    Notes
    -----
    Durable on return. Memory: that of a send for each drive.
    """
    _require_drives(drives)
    image.require_sendable()
    planes = divided(image, [drive.within for drive in drives])
    stream = StreamForm(
        parse_compression(compress) if compress is not None else None, key_of(key) if key is not None else None
    )
    _ = image.layout  # worked out once, for all of them
    numbers, group_id, whole = _looked_at(drives, form)
    form = replace(form, changer=in_turns(form.changer))
    running: SideBySide[TapeWriteReport | None] = SideBySide(len(drives), image.n_blocks * BLOCK_BYTES, progress)
    sendings = []
    for number in numbers:
        sending = ImageSending(image, TAPE, locations=locations)
        sending.take_part(planes[number], number, len(drives))
        sendings.append(sending)
    with ExitStack() as opened:
        writings = [
            None
            if n_tapes and _has_it(drive.names[:n_tapes], sending, stream)
            else opened.enter_context(_writing(drive, sending, form, stream, SetPart(number, len(drives), group_id)))
            for drive, sending, number, n_tapes in zip(drives, sendings, numbers, whole, strict=True)
        ]
        if all(writing is None for writing in writings):
            raise RefusedError(
                f"nothing was interrupted on {drives[0].names[0]} and the others: the image is whole",
                "say --append to add one",
            )

        opened.pop_all()

    def write_one(number: int) -> TapeWriteReport | None:
        writing = writings[number]
        if writing is None:
            return None
        with writing:
            return write_image(sendings[number], writing, stream, running.progress_of(number))

    results = running.run(write_one)
    _require_all(drives, results)
    base = image.base.name if image.base is not None else None
    parts = tuple(its for its in results if not isinstance(its, BaseException))
    seconds = max(part.seconds for part in parts if part is not None)
    top = sendings[0].snapshots()[0][0].name
    return TapePartsReport(parts, top, base, image.n_blocks, seconds)


def _require_drives(drives: Sequence[DriveTapes]) -> None:
    if len(drives) < 2:
        raise UsageError("an image is divided between two drives or more", "name another, or write it whole")
    names = [name for drive in drives for name in drive.names]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two drives are to write {name}", "name each tape once")


def _looked_at(drives: Sequence[DriveTapes], form: TapeForm) -> tuple[list[int], bytes, list[int]]:
    """Return which part each drive writes, what the sets have in common, and on how many tapes is a whole part."""
    n_parts, fresh = len(drives), secrets.token_bytes(16)
    if not (form.append or form.resume):
        if not form.discard:
            _refuse_written(drives)
        return list(range(n_parts)), fresh, [0] * n_parts
    known = [look_at(drive.names[0]) for drive in drives]
    there = [its for its in known if isinstance(its, TapeIdentity)]
    if not there:
        return list(range(n_parts)), fresh, [0] * n_parts
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


def _whole_ones(drives: Sequence[DriveTapes], known: Sequence[object], form: TapeForm) -> list[int]:
    """Return of each set that has its part of the image under way whole, how many tapes it has; of others 0.

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
    if form.append:
        low = counts.index(min(counts))
        if len(set(counts)) > 1 or any(begun):
            raise RefusedError(
                f"an image was not finished: {drives[low].names[0]} has {counts[low]} whole ones, "
                f"{drives[counts.index(max(counts))].names[0]} {max(counts)}",
                "go on with it first: --resume; or lose all sets: --discard",
            )
        return [0] * len(drives)
    due = max(count + is_begun for count, is_begun in zip(counts, begun, strict=True))
    for drive, count in zip(drives, counts, strict=True):
        if count < due - 1:
            raise RefusedError(
                f"{drive.names[0]} has {count} images, and the one under way is number {due}",
                "write what it lacks onto it first, or begin all anew with --discard",
            )
    return [its.state.tape if its is not None and n == due else 0 for its, n in zip(found, counts, strict=True)]


def _found(drive: DriveTapes, *, appends: bool) -> Standing | None:
    there = list(takewhile(os.path.lexists, drive.names))
    with closing(Rack(there)) as rack:
        return ending(rack, is_all=len(there) < len(drive.names)) if appends else standing(rack)


def _writing(drive: DriveTapes, sending: ImageSending, form: TapeForm, stream: StreamForm, part: SetPart) -> Writing:
    return Writing(drive.tapes, form, keys_of(stream.key), names_of(sending, stream), part)


def _has_it(names: Sequence[str], sending: ImageSending, stream: StreamForm) -> bool:
    """Whether the last image of a set is the part that is to be written; RefusedError: it is another one."""
    with closing(TapeSet(Rack(names))) as tapes:
        last: TapeStore = stores(tapes)[-1]
        found = StreamReader(FileInput(last), keys_of(stream.key)).read_map()
    base = sending.image.base
    same = found.top.id == sending.snapshots()[0][0].id and (found.base.id if found.base else None) == (
        base.id if base is not None else None
    )
    chosen: Plane | None = sending.chosen
    if not same or found.part != chosen:
        raise RefusedError(
            f"the set on {names[0]} ends with another image, or another part of it, than the one asked for",
            "name the same image, divided as before; or add one with --append",
        )
    return True


def _require_all(drives: Sequence[DriveTapes], results: Sequence[object]) -> None:
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
    if "--resume" not in error.hint:
        more = "the same again with --resume writes what is missing"
        error.hint = f"{error.hint}; {more}" if error.hint else more
    raise error
