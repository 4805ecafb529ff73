"""Tapes: writing images to them, and restoring."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.holders import owned, shown_range
from blockplane.cli.holding import held_image
from blockplane.cli.images import Choice, choice_options
from blockplane.cli.naming import is_there, open_volume, opening_to_make, volume_only
from blockplane.cli.options import (
    DiskOptions,
    Size,
    compress_option,
    disk_options,
    encrypt_option,
    json_option,
    key_option,
    progress_option,
    wait_option,
)
from blockplane.cli.progress import ProgressLine
from blockplane.cli.receiving import standard_input
from blockplane.cli.tapedrives import describe_drives, drive_option, drives_of, print_drives, print_planned
from blockplane.cli.text import blocks, count, duration, print_json, printable, rate, size

if TYPE_CHECKING:
    from blockplane.stream.media import Change, Changer
    from blockplane.transfer import SendReport, TapeReadReport, TapeWriteReport

#: So many runs of lost blocks, and files, a message names.
_MAX_NAMED = 8


@click.group(subcommand_metavar="VERB ...")
def tape() -> None:
    """Write images to tapes, restore them, and take single files and blocks out of them.

    TAPE is a tape drive (/dev/nst0) or a file in SIMH's .tap format. Several TAPEs make a set, in order: the first
    tape of the set in the first, and so on; where it has more, they are changed in turns, by hand or with --changer.
    """


changer_option = click.option(
    "--changer",
    metavar="COMMAND",
    help="Run this to change tapes; BLOCKPLANE_TAPE is the number of the one that is wanted, BLOCKPLANE_DRIVE where.",
)


def changer_of(command: str | None, *, asks: bool = True) -> Changer | None:
    """Return what changes tapes: a command, or who sits at the terminal; None: nobody."""
    if command is not None:
        return bp.command_changer(command)
    if asks and console.raw("input") is None and sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty():
        return _ask
    return None


def _ask(its: Change) -> None:
    what = "a tape to write" if its.is_writing else "the tape"
    text = f"tape {its.tape}: load {what} in {printable(its.drive)} and press Enter"
    print(text, end=" ", file=sys.stderr, flush=True)
    if not sys.stdin.readline():
        raise bp.errors.TapeError(f"nobody loaded tape {its.tape}")


@tape.command()
@click.argument("words", metavar="TAPE... VOL EXPR", nargs=-1, required=True)
@drive_option
@click.option("-i", "--input", "origin", metavar="STREAM|-", help="Write a stream that is there, in place of VOL EXPR.")
@click.option(
    "-n", "--dry-run", is_flag=True, help="Say what would be written, with --compress at most; look at no tape."
)
@click.option("--tape-size", type=Size(), metavar="SIZE", help="Of each TAPE that is a file (as there is space).")
@click.option("--record-size", type=Size(), metavar="SIZE", help="Of each record, 64KiB to 1MiB (256KiB).")
@click.option("--append", is_flag=True, help="Add the image to the set that is on the TAPEs; its last is enough.")
@click.option("--resume", is_flag=True, help="Go on with an image that was interrupted.")
@click.option("--discard", is_flag=True, help="Overwrite what the TAPEs hold.")
@compress_option
@encrypt_option
@changer_option
@choice_options
@key_option
@json_option
@wait_option
@progress_option
def write(
    words: Sequence[str],
    drives: Sequence[str],
    origin: str | None,
    dry_run: bool,
    tape_size: int | None,
    record_size: int | None,
    append: bool,
    resume: bool,
    discard: bool,
    compress: str | None,
    encrypt: str | None,
    changer: str | None,
    choice: Choice,
    keys: Sequence[str],
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Write an image to tapes, in the order of its block numbers.

    EXPR is one word, in quotes where it has blanks. The first image makes a set; increments are appended to it. An
    interrupted one is gone on with from its last whole group of records. With several --drive each writes a set of its
    own, which has a part of the blocks, all at once; one that fails does not stop the others, and --resume goes on with
    it alone. Read them by naming the tapes of all sets.

    \b
    blockplane tape write full-1.tap full-2.tap --tape-size 8G pool june1
    blockplane tape write full-1.tap full-2.tap --append pool 'june2 - june1'
    blockplane tape write /dev/nst0 --changer 'mtx-load' pool june1
    blockplane tape write --drive /dev/nst0 --drive /dev/nst1 pool june1
    blockplane send pool june1 | ssh far blockplane tape write /dev/nst0 -i -
    """
    form = bp.TapeForm(
        tape_size, record_size or bp.TapeForm().record_size, append=append, discard=discard, resume=resume,
        changer=changer_of(changer, asks=origin != "-"),
    )  # fmt: skip
    if drives and origin is not None:
        raise bp.errors.UsageError(
            "a stream is written as it is, to one set", "divide it where it is sent: send --part"
        )
    if origin is not None:
        if compress is not None or encrypt is not None:
            raise bp.errors.UsageError("a stream is written as it is", "compress and encrypt where it is sent")
        if dry_run:
            raise bp.errors.UsageError("-n is for VOL EXPR", "what a stream holds says `blockplane stream info`")
        source = standard_input() if origin == "-" else origin
        with ProgressLine(progress) as line:
            report = bp.write_stream_to_tape(source, words, form, key=keys, progress=line)
    else:
        *names, vol, expression = _words_of(words, drives)
        place = volume_only(vol)
        left: list[bool] = []
        places = sorted(drive.names[0] for drive in drives_of(drives)) or list(names[:1])
        with (
            open_volume(place, "tape write", wait_s, writable=False) as volume,
            held_image(
                volume, [expression], choice, 0.0 if dry_run else None, places, lambda image: bool(left)
            ) as image,
            ProgressLine(progress) as line,
        ):
            told: dict[str, Any] = {"progress": line, "left": lambda: left.append(True)}
            if dry_run and drives:
                _plan_parts(image, drives_of(drives), form, as_json, compress=compress, key=encrypt)
                return
            if dry_run:
                form.require_set(names)
                _tell_planned(bp.send(image, None, dry_run=True, order="tape", compress=compress, key=encrypt), as_json)
                return
            if drives:
                _write_parts(image, drives_of(drives), form, as_json, compress=compress, key=encrypt, **told)
                return
            report = bp.write_tape(image, names, form, compress=compress, key=encrypt, **told)
    if as_json:
        print_json(_written(report))
    else:
        print(_said(report))


def _words_of(words: Sequence[str], drives: Sequence[str]) -> Sequence[str]:
    """Return the words where there are as many as there must be: tapes, unless drives are named, VOL and EXPR."""
    if drives and len(words) != 2:
        raise bp.errors.UsageError("with --drive tape write needs VOL EXPR alone", "name all tapes with --drive")
    if not drives and len(words) < 3:
        raise bp.errors.UsageError("tape write needs TAPE... VOL EXPR", "or TAPE... -i STREAM")
    return words


def _write_parts(
    image: bp.Image, drives: Sequence[bp.DriveTapes], form: bp.TapeForm, as_json: bool, **options: Any
) -> None:
    """Write an image by several drives, and say so. options : of `write_tape_parts`."""
    report = bp.write_tape_parts(image, drives, form, **options)
    if as_json:
        print_json(describe_drives(report, drives))
    else:
        print_drives(report, drives)


def _plan_parts(
    image: bp.Image, drives: Sequence[bp.DriveTapes], form: bp.TapeForm, as_json: bool, **options: Any
) -> None:
    """Say what several drives would write. options : of `send_parts`."""
    from blockplane.transfer.tapeparts import require_drives  # not above: help and completion do without

    require_drives(drives)
    for drive in drives:
        form.require_set(drive.names)
    parts = [bp.Part(None, drive.within) for drive in drives]
    report = bp.send_parts(image, parts, dry_run=True, order="tape", **options)
    if as_json:
        each = zip(drives, report.parts, strict=True)
        shown = [{"tape": d.names[0], "n_blocks": p.n_blocks, "stream_bytes": p.stream_bytes} for d, p in each]
        print_json({**_planned(report, report.parts[0].compression), "parts": shown})
    else:
        print_planned(report, drives)


def _tell_planned(report: SendReport, as_json: bool) -> None:
    """Say what an image would put onto tapes: by the stream, which their own records make longer by a thousandth."""
    if as_json:
        print_json(_planned(report, report.compression))
        return
    base = f" onto {report.base}" if report.base else ""
    most = " at most" if report.compression else ""
    print(f"would write {report.top}{base}: {blocks(report.n_blocks)}, a stream of {size(report.stream_bytes)}{most}")


def _planned(report: SendReport | bp.PartsReport, compression: str | None) -> dict[str, object]:
    return {
        "top": report.top,
        "base": report.base,
        "n_blocks": report.n_blocks,
        "stream_bytes": report.stream_bytes,
        "compression": compression,
        "dry_run": True,
    }


def _written(report: TapeWriteReport) -> dict[str, object]:
    return {
        "set_id": report.set_id.hex(),
        "image": report.image,
        "n_tapes": report.n_tapes,
        "top": report.top,
        "base": report.base,
        "n_blocks": report.n_blocks,
        "stream_bytes": report.stream_bytes,
        "bytes_before": report.n_bytes_before,
        "seconds": report.seconds,
        "bytes_per_second": report.bytes_per_second,
    }


def _said(report: TapeWriteReport) -> str:
    what = "a stream" if report.top is None else report.top + (f" onto {report.base}" if report.base else "")
    before = f", {size(report.n_bytes_before)} of it before" if report.n_bytes_before else ""
    return (
        f"wrote {what} as image {report.image} of set {report.set_id.hex()[:8]}, {count(report.n_tapes, 'tape')}: "
        f"{size(report.stream_bytes)}{before} in {duration(report.seconds)} "
        f"({rate(report.stream_bytes - report.n_bytes_before, report.seconds)})"
    )


@tape.command()
@click.argument("words", metavar="TAPE... VOL", nargs=-1, required=True)
@click.option("--discard", is_flag=True, help="Give up changes that the images would replace.")
@changer_option
@key_option
@disk_options
@json_option
@wait_option
@progress_option
def read(
    words: Sequence[str],
    discard: bool,
    changer: str | None,
    keys: Sequence[str],
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Restore all images of a set of tapes, in order.

    The full one makes VOL, increments go onto it; what is there already is passed over. Tapes of sets that were written
    by several drives at once are named all together, and read all at once; where those of one are not there, what came
    is kept, and the same with the others makes it whole. Where records are damaged the rest is kept in VOL, as of an
    interrupted receive, and the lost blocks and their files are named: another copy of the tape, or the source, can
    make it whole. Single files come out of damaged tapes with `get TAPE:/PATH`.

    \b
    blockplane tape read full-1.tap full-2.tap copy
    blockplane tape read /dev/nst0 copy --disks 3 --size 4G
    """
    if len(words) < 2:
        raise bp.errors.UsageError("tape read needs TAPE... VOL", "the volume is the last word")
    *names, vol = words
    place = volume_only(vol)
    bring = changer_of(changer)
    try:
        with ProgressLine(progress) as line:
            if wish.is_plain and is_there(place):
                with open_volume(place, "tape read", wait_s, writable=True) as volume:
                    report = bp.read_tape(names, volume, changer=bring, discard=discard, key=keys, progress=line)
            else:
                report = bp.read_tape(
                    names, place, changer=bring, disks=wish.disks, size=wish.size, parity=wish.parity, chunk=wish.chunk,
                    wipe=wish.wipe, discard=discard, key=keys, progress=line, opening=opening_to_make("tape read"),
                )  # fmt: skip
    except bp.errors.TapeDamagedError as error:
        for line_text in error.records:
            print(f"blockplane: {printable(line_text)}", file=sys.stderr)
        if error.lost:
            error.message += f"; lost are {', '.join(lost_names(names, error.lost, keys))}"
        raise
    if as_json:
        print_json(_restored(report))
    else:
        _print_restored(vol, report)


def lost_names(
    tapes: Sequence[str], lost: Sequence[tuple[int, int]], keys: Sequence[str], snapshot: str | None = None
) -> list[str]:
    """Return lost blocks as people read them, with what they are of where the tapes still say it."""
    named = dict.fromkeys(lost, "")
    try:
        with bp.open_stream(*tapes, snapshot=snapshot, key=keys, needs_full=False) as chain:
            found = bp.owners(chain, list(lost))
        for owner in found:
            run = next(((a, b) for a, b in lost if a <= owner.start < b), None)
            if run is not None:
                named[run] += f"{', ' if named[run] else ''}{owned(owner)}"
    except bp.BlockplaneError as error:
        why = f"which files they are of cannot be read: {printable(error.message)}"
        return [f"blocks {shown_range(*run)}" for run in list(named)[:_MAX_NAMED]] + [why]
    shown = [f"{shown_range(*run)} ({of or 'of no file of it'})" for run, of in list(named.items())[:_MAX_NAMED]]
    more = len(named) - len(shown)
    return [*shown, f"and {more} more runs: tape verify --json lists them"] if more > 0 else shown


def _restored(report: TapeReadReport) -> dict[str, object]:
    return {
        "images": [
            {
                "top": its.top,
                "base": its.base,
                "n_blocks": its.n_blocks,
                "already_there": its.already_there,
                "part": its.part,
                "n_parts": its.n_parts,
                "n_blocks_missing": its.n_blocks_missing,
            }
            for its in report.received
        ],
        "problems": report.problems,
        "seconds": report.seconds,
    }


def _print_restored(vol: str, report: TapeReadReport) -> None:
    for problem in report.problems:
        print(f"blockplane: {printable(problem)}; nothing was lost by it", file=sys.stderr)
    for top in dict.fromkeys(its.top for its in report.received):
        parts = [its for its in report.received if its.top == top]
        its, n_blocks = parts[0], sum(part.n_blocks for part in parts)
        if its.n_blocks_missing:
            named = ", ".join(str(part.part + 1) for part in parts)
            print(
                f"{printable(vol)} keeps {blocks(n_blocks)} of {top}, part {named} of {its.n_parts}; "
                f"{blocks(its.n_blocks_missing)} are still to come with the others"
            )
            continue
        base = f" onto {its.base}" if its.base else ""
        there = ", there already" if its.already_there else f": {blocks(n_blocks)}"
        print(f"{printable(vol)} has {top}{base}{there}")
    n_bytes = sum(its.stream_bytes for its in report.received)
    print(f"{size(n_bytes)} in {duration(report.seconds)} ({rate(n_bytes, report.seconds)})")


VERBS = (tape,)
