"""Transfer of images: send."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.completion import HostPath, VolumeName
from blockplane.cli.holding import held_image
from blockplane.cli.images import EXPRESSION, Choice, ExpressionVerb, choice_options
from blockplane.cli.options import (
    Duration,
    compress_option,
    encrypt_option,
    file_options,
    json_option,
    or_standard,
    progress_option,
    wait_option,
)
from blockplane.cli.parts import part_option, parts_of, send_in_parts
from blockplane.cli.progress import ProgressLine
from blockplane.cli.streamplaces import opened_to_send
from blockplane.cli.text import blocks, dryness, duration, measured, print_json, printable, rate, size

if TYPE_CHECKING:
    from blockplane.transfer import SendReport


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@EXPRESSION
@click.option(
    "-o", "--output", type=HostPath(), callback=or_standard, metavar="FILE",
    help="The stream file, or VOL:/PATH; appears when whole.",
)  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Say exactly what would be sent; write nothing.")
@click.option("--order", type=click.Choice(["disk", "tape"]), default="disk", help="Order of the blocks (disk).")
@click.option(
    "--locations",
    type=click.Choice(["explicit", "implicit"]),
    default="explicit",
    help="Whether the stream lists where blocks belong, or its order says it (explicit).",
)
@compress_option
@encrypt_option
@click.option(
    "--resume",
    metavar="[TOKEN]",
    is_flag=False,
    flag_value="",
    help="Go on with an interrupted transfer: by its destination's token, even of an older image unless --against "
    "began it, or with the half-written FILE of -o.",
)
@click.option("--against", type=HostPath(), metavar="OFFER", help="Send only what differs from what OFFER offers.")
@click.option(
    "--hold",
    type=Duration(),
    metavar="TIME",
    help="Keep its snapshots so long, from its start, if it fails (30d where it leaves a half-written FILE; 0s: not).",
)
@file_options
@part_option
@choice_options
@json_option
@wait_option
@progress_option
def send(
    vol: str,
    words: Sequence[str],
    output: str | None,
    dry_run: bool,
    order: str,
    locations: str,
    compress: str | None,
    encrypt: str | None,
    resume: str | None,
    against: str | None,
    hold: float | None,
    split: int | None,
    preallocate: bool,
    digests: bool,
    parts: Sequence[str],
    choice: Choice,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Write an image as a stream.

    To FILE, or to standard output where no file is named.

    \b
    blockplane send pool june1 -o june1.bps
    blockplane send pool 'june3 - june1' | ssh far blockplane receive copy
    blockplane send pool 'june3 - june1' -n
    blockplane key create backup.key; blockplane send pool june1 -o june1.bps --encrypt backup.key
    blockplane send pool june1 -o june1.bps --resume

    An interrupted receive keeps what came; only the rest is sent with its token:

    \b
    ssh far blockplane receive copy --have > token
    blockplane send pool june1 --resume token | ssh far blockplane receive copy

    Where no snapshot is common any more, only what differs from one of the destination's is sent. All that may be equal
    is read on both sides, by a dry run too:

    \b
    ssh far blockplane receive copy --offer > offer
    blockplane send pool june9 --against offer | ssh far blockplane receive copy

    In files of a size, FILE.000 and so on, with room made before and SHA-256 as `sha256sum -c` reads it; and to several
    places at once, each of which gets the blocks of a plane: what is wanted soon on a disk, the rest on slow media.

    \b
    blockplane send pool june1 -o june1.bps --split 4G --preallocate --digests
    blockplane send pool june1 -o vault:/backups/june1.bps
    blockplane send pool june9 --part fast.bps='meta(june9) + (june9 - june2)' --part slow.bps
    """
    chosen = parts_of(parts)
    if chosen and (output is not None or against is not None or resume):
        raise bp.errors.UsageError("-o, --against and a token do not go with --part", "each part names its file")
    outputs = [part.name for part in chosen] if chosen else [output] if output is not None else []
    out = None if outputs or dry_run else standard_output()
    with (
        opened_to_send(vol, outputs, wait_s, writable=bool(hold)) as (volume, sinks),
        held_image(
            volume, words, choice, hold if not dry_run else 0.0, outputs,
            lambda image: any(bp.is_half_sent(image, sink, key=encrypt, split=split) for sink in sinks),
        ) as found,
    ):  # fmt: skip
        if chosen:
            send_in_parts(
                found, [bp.Part(*each) for each in zip(sinks, [part.within for part in chosen], strict=True)],
                dry_run, as_json, progress, order=order, locations=locations, compress=compress, key=encrypt,
                resume=resume is not None, split=split, preallocate=preallocate, digests=digests,
            )  # fmt: skip
            return
        sink = sinks[0] if sinks else out
        begun = bp.read_token(resume) if resume else resume is not None
        with ProgressLine(progress) as line:
            report = bp.send(
                found, sink, progress=line, dry_run=dry_run, order=order, locations=locations, compress=compress,
                key=encrypt, resume=begun, against=against, split=split, preallocate=preallocate, digests=digests,
            )  # fmt: skip
    if isinstance(begun, bp.ResumeToken) and begun.n_copied and not report.n_blocks_before:
        what = f"nothing that came of {printable(begun.top_name)} is of use for this image: all of it is sent"
        print(f"blockplane: {what}", file=sys.stderr)
    if report.n_blocks_before and (compress is None) is not (report.compression is None):
        form = "without compression" if report.compression is None else "with compression"
        print(f"blockplane: what is there was begun {form}, and stays so", file=sys.stderr)
    to_stderr = output is None and sink is not None
    if as_json:
        print_json({**_described(report), **dryness(dry_run)}, to_stderr=to_stderr)
    else:
        print(_sent(report, dry_run), file=sys.stderr if to_stderr else sys.stdout)


def standard_output() -> int | IO[bytes]:
    """Return what a stream goes to: a descriptor, or another process's; UsageError: nobody reads it there."""
    if sys.stdout is None or sys.stdout.isatty():
        what = "to a terminal" if sys.stdout is not None else "where nobody reads it: standard output is closed"
        raise bp.errors.UsageError(f"a stream is not written {what}", "say -o FILE, or pipe it on")
    return console.raw("output") or sys.stdout.fileno()


def _described(report: SendReport) -> dict[str, object]:
    return {
        **measured(report),
        "arriving": list(report.arriving),
        "left_out": list(report.left_out),
        "compression": report.compression,
        "n_blocks_before": report.n_blocks_before,
        "encrypted": report.encrypted,
        "n_blocks_lent": report.n_blocks_lent,
        "n_blocks_compared": report.n_blocks_compared,
    }


def _sent(report: SendReport, dry_run: bool) -> str:
    base = f" onto {report.base}" if report.base else ""
    stream = f"a stream of {size(report.stream_bytes)} ({report.stream_bytes:,} bytes)"
    if report.n_blocks_before:
        base += f", all but {blocks(report.n_blocks_before)} that were sent before"
    if report.n_blocks_lent:
        base += f", all but {blocks(report.n_blocks_lent)} that are there"
    if dry_run:
        stream += " at most" if report.compression else ""
        return f"would send {', '.join(report.arriving)}{base}: {blocks(report.n_blocks)}, {stream}"
    return (
        f"sent {', '.join(report.arriving)}{base}: {blocks(report.n_blocks)}, {stream} "
        f"in {duration(report.seconds)} ({rate(report.stream_bytes, report.seconds)})"
    )


VERBS = (send,)
