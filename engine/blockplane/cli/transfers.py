"""Transfer of images: send, receive."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.completion import VolumeName
from blockplane.cli.images import EXPRESSION, Choice, ExpressionVerb, choice_options
from blockplane.cli.naming import is_there, open_volume, opening_to_make, volume_only
from blockplane.cli.offering import print_offer
from blockplane.cli.options import (
    Duration,
    disk_options,
    disks_of,
    json_option,
    key_option,
    progress_option,
    wait_option,
)
from blockplane.cli.progress import ProgressLine
from blockplane.cli.resuming import give_up, print_token
from blockplane.cli.text import blocks, duration, print_json, printable, rate, size

if TYPE_CHECKING:
    from blockplane.transfer import InterruptedReceive, ReceiveReport, SendReport


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@EXPRESSION
@click.option("-o", "--output", type=click.Path(), metavar="FILE", help="The stream file; appears when it is complete.")
@click.option("-n", "--dry-run", is_flag=True, help="Say exactly what would be sent; write nothing.")
@click.option("--order", type=click.Choice(["disk", "tape"]), default="disk", help="Order of the blocks (disk).")
@click.option(
    "--locations",
    type=click.Choice(["explicit", "implicit"]),
    default="explicit",
    help="Whether the stream lists where blocks belong, or its order says it (explicit).",
)
@click.option("--compress", metavar="zstd[:LEVEL]", help="Compress what shrinks; level 1 to 19 (3).")
@click.option("--encrypt", type=click.Path(), metavar="KEYFILE", help="Encrypt with a key that `key create` made.")
@click.option(
    "--resume",
    metavar="[TOKEN]",
    is_flag=False,
    flag_value="",
    help="Go on with an interrupted transfer: by its destination's token, even of an older image, or with the "
    "half-written FILE of -o.",
)
@click.option("--against", type=click.Path(), metavar="OFFER", help="Send only what differs from what OFFER offers.")
@click.option("--hold", type=Duration(), metavar="TIME", help="Keep its snapshots so long (as 7d) if it fails.")
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
    """
    sink = output if output is not None or dry_run else standard_output()
    with open_volume(volume_only(vol), "send", wait_s, writable=hold is not None) as volume, ExitStack() as stack:
        found = choice.image(volume, words)
        if hold is not None and not dry_run:
            stack.enter_context(bp.held(volume, found, hold))
        begun = bp.read_token(resume) if resume else resume is not None
        with ProgressLine(progress) as line:
            report = bp.send(
                found, sink, progress=line, dry_run=dry_run, order=order, locations=locations, compress=compress,
                key=encrypt, resume=begun, against=against,
            )  # fmt: skip
    if isinstance(begun, bp.ResumeToken) and begun.n_copied and not report.n_blocks_before:
        what = f"nothing that came of {printable(begun.top_name)} is of use for this image: all of it is sent"
        print(f"blockplane: {what}", file=sys.stderr)
    to_stderr = not isinstance(sink, str) and sink is not None
    if as_json:
        print_json({**_described(report), "dry_run": dry_run}, to_stderr=to_stderr)
    else:
        print(_sent(report, dry_run), file=sys.stderr if to_stderr else sys.stdout)


def standard_output() -> int | IO[bytes]:
    """Return what a stream goes to: a descriptor, or another process's; UsageError: nobody reads it there."""
    if sys.stdout is None or sys.stdout.isatty():
        what = "to a terminal" if sys.stdout is not None else "where nobody reads it: standard output is closed"
        raise bp.errors.UsageError(f"a stream is not written {what}", "say -o FILE, or pipe it on")
    return console.raw("output") or sys.stdout.fileno()


def _standard_input() -> int | IO[bytes]:
    if sys.stdin is None or sys.stdin.isatty():
        what = "from a terminal" if sys.stdin is not None else "from nowhere: standard input is closed"
        raise bp.errors.UsageError(f"a stream is not read {what}", "say -i FILE, or pipe it in")
    return console.raw("input") or sys.stdin.fileno()


def _measured(report: SendReport | ReceiveReport) -> dict[str, object]:
    """Return what both ends of a transfer say of it."""
    return {
        "n_blocks": report.n_blocks,
        "n_bytes": report.n_bytes,
        "stream_bytes": report.stream_bytes,
        "seconds": report.seconds,
        "bytes_per_second": report.bytes_per_second,
        "top": report.top,
        "base": report.base,
    }


def _described(report: SendReport) -> dict[str, object]:
    return {
        **_measured(report),
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


@click.command()
@click.argument("vol", type=VolumeName())
@click.option("-i", "--input", "origin", type=click.Path(), metavar="FILE", help="The stream file (standard input).")
@click.option("--discard", is_flag=True, help="Give up changes that the stream would replace.")
@click.option("--relocate", is_flag=True, help="Lay blocks elsewhere where VOL has no place of their number.")
@click.option("--have", is_flag=True, help="Write a token of what an interrupted receive has, for send --resume.")
@click.option(
    "--offer",
    metavar="[SNAP]",
    is_flag=False,
    flag_value="",
    help="Write an offer of a snapshot (the newest), for send --against.",
)
@click.option("--run", "run_blocks", type=int, metavar="N", help="With --offer: blocks a digest covers, to 256 (8).")
@click.option("--abort", "gives_up", is_flag=True, help="Give up what interrupted receives have.")
@click.option(
    "--of",
    "top",
    metavar="SNAP",
    help="With --have or --abort: of several, the one of this top, or image id (the last; all).",
)
@key_option
@disk_options
@json_option
@wait_option
@progress_option
def receive(
    vol: str,
    origin: str | None,
    discard: bool,
    relocate: bool,
    have: bool,
    offer: str | None,
    run_blocks: int | None,
    gives_up: bool,
    top: str | None,
    keys: Sequence[str],
    n_disks: int | None,
    size: int | None,
    disk: Sequence[str],
    parity: int | None,
    chunk: int | str | None,
    wipe: bool,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Take a stream in.

    A full one makes VOL, an incremental one goes onto the base it names.

    The disk options are for a volume that is made; by default it gets the source's geometry. FILE holds one stream
    alone; of standard input no more is read than the stream. A receive that was interrupted keeps what came, and the
    next one of the same image goes on from there.

    \b
    blockplane receive copy -i june1.bps
    blockplane receive copy -i june1.bps --disks 3 --size 4G --chunk 1MiB
    blockplane send pool 'june3 - june1' | blockplane receive copy
    blockplane receive small -i june1.bps --disks 3 --size 1G --relocate
    blockplane receive copy --offer > offer
    blockplane receive copy --have --of june3 > token

    With --relocate a volume need only have room for the blocks in use, however high their numbers are. It is said once:
    increments onto what came so find their places too.

    What arrives of a full image and is in VOL already, under the same block numbers, is compared and not written again.
    An offer reads its snapshot once, holds it for a week, and has 2 GiB a TiB of it with runs of 8 blocks, 1.5 with 16.
    """
    place = volume_only(vol)
    if have + gives_up + (offer is not None) > 1:
        raise bp.errors.UsageError("--have, --offer and --abort do not go together", "say one of them")
    if run_blocks is not None and offer is None:
        raise bp.errors.UsageError("--run is for an offer", "say --offer too")
    if top is not None and not (have or gives_up):
        raise bp.errors.UsageError("--of is for --have and --abort", "say one of them too")
    if offer is not None:
        print_offer(place, offer or None, run_blocks, wait_s, as_json, progress)
        return
    if have or gives_up:
        (print_token if have else give_up)(place, top, wait_s, as_json)
        return
    wish = disks_of(n_disks, size, disk, parity, chunk, wipe)
    source = origin if origin is not None else _standard_input()
    left: Sequence[InterruptedReceive] = ()
    with ProgressLine(progress) as line:
        if wish.is_plain and is_there(place):
            with open_volume(place, "receive", wait_s, writable=True) as volume:
                report = bp.receive(source, volume, discard=discard, relocate=relocate, key=keys, progress=line)
                left = bp.interrupted_receives(volume)
        else:
            report = bp.receive(
                source,
                place,
                disks=wish.disks,
                size=wish.size,
                parity=wish.parity,
                chunk=wish.chunk,
                wipe=wish.wipe,
                discard=discard,
                relocate=relocate,
                key=keys,
                progress=line,
                opening=opening_to_make("receive"),
            )
    if as_json:
        print_json(_received(report))
    else:
        print(_arrived(vol, report))
    tell_interrupted(place, left)


def tell_interrupted(place: str, left: Sequence[InterruptedReceive]) -> None:
    """Say on standard error what earlier receives of something else have left."""
    for its in left:
        if not its.is_running:
            what = f"an interrupted receive of {printable(its.top_name)} still has {blocks(its.n_image)} reserved"
            abort = f"blockplane receive {printable(place)} --abort --of {printable(its.top_name)}"
            how = f"go on with it, or give it up: {abort}"
            print(f"blockplane: {what}; {how}", file=sys.stderr)


def _received(report: ReceiveReport) -> dict[str, object]:
    return {
        **_measured(report),
        "arrived": list(report.arrived),
        "left_out": list(report.left_out),
        "already_there": report.already_there,
        "n_blocks_shared": report.n_blocks_shared,
    }


def _arrived(vol: str, report: ReceiveReport) -> str:
    if report.already_there:
        return f"{printable(vol)} has {report.top} already; nothing to do"
    base = f" onto {report.base}" if report.base else ""
    if report.n_blocks_shared:
        base += f", {blocks(report.n_blocks_shared)} of it there before"
    return (
        f"{printable(vol)} has {', '.join(report.arrived)}{base}: {blocks(report.n_blocks)} "
        f"in {duration(report.seconds)} ({rate(report.stream_bytes, report.seconds)})"
    )


VERBS = (send, receive)
