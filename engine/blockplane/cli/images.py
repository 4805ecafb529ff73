"""Images and their transfer: image, send, receive."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Literal

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.completion import ExpressionWord, VolumeName
from blockplane.cli.naming import CONFIG_NAME, MARK_NAME, open_volume, volume_only
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
from blockplane.cli.text import blocks, duration, print_json, print_table, printable, rate, size

if TYPE_CHECKING:
    from blockplane.transfer import ReceiveReport, SendReport


class ExpressionVerb(click.Command):
    """A verb whose words are an expression: one that begins with an operator is not taken for an option."""

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        """Give `- june1` and the like a blank in front, unless an option before it wants it as its value."""
        takers = {name for option in self.params if isinstance(option, click.Option) and not option.is_flag
                  for name in option.opts}  # fmt: skip
        before = ["", *words]
        shifted = [
            f" {word}" if _OPERATOR_FIRST.match(word) and before[at] not in takers else word
            for at, word in enumerate(words)
        ]
        return super().parse_args(context, shifted)


_OPERATOR_FIRST = re.compile(r"-[^\w-]")
_EXPRESSION = click.argument("words", metavar="EXPR", nargs=-1, required=True, type=ExpressionWord())


@dataclass(frozen=True, slots=True)
class Choice:
    """What was said about the terms of an image beside its expression."""

    older: Literal["all"] | Sequence[str] = ()
    with_: Sequence[str] = ()
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def image(self, volume: bp.Volume, words: Sequence[str], *, allow_active: bool = False) -> bp.Image:
        """Return the image of an expression and the choice."""
        return volume.image(
            _joined(words),
            older=self.older,
            with_=self.with_,
            include=self.include,
            exclude=self.exclude,
            allow_active=allow_active,
        )


def choice_options(function: Callable[..., object]) -> Callable[..., object]:
    """Add the options that choose terms; the verb takes them as `choice`."""

    @functools.wraps(function)
    def wrapped(
        *arguments: object,
        older: str | None,
        with_: str | None,
        include: str | None,
        exclude: str | None,
        **options: object,
    ) -> object:
        lists = [tuple(_names(text)) for text in (older, with_, include, exclude)]
        choice = Choice("all" if older == "all" else lists[0], *lists[1:])
        return function(*arguments, choice=choice, **options)

    found: Callable[..., object] = wrapped
    for names, metavar, text in reversed(_CHOICES):
        found = click.option(*names, metavar=metavar, type=ExpressionWord(), help=text)(found)
    return found


_CHOICES = (
    (("--older",), "all|NAMES", "Add these older snapshots, or all that the base lacks."),
    (("--with", "with_"), "NAMES", "Allow these snapshots (commas), though no ancestors."),
    (("--include",), "NAMES", "Of the ranges in EXPR take only these snapshots."),
    (("--exclude",), "NAMES", "Of the ranges in EXPR leave these snapshots out."),
)


def _joined(words: Sequence[str]) -> str:
    """Return the expression that words make, unquoted or in one piece."""
    return " ".join(words).strip()


def _names(text: str | None) -> list[str]:
    return [name for name in re.split(r"[,\s]+", text) if name] if text else []


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@_EXPRESSION
@choice_options
@click.option("--freed", is_flag=True, help="EXPR names snapshots: what deleting all of them would free.")
@json_option
@wait_option
def image(vol: str, words: Sequence[str], choice: Choice, freed: bool, as_json: bool, wait_s: float) -> None:
    """Say exactly what an image holds; `image save`, `list`, `delete` store images, `image plan` plans levels of them.

    No block of it is read. A volume called `plan` is ./plan, and so on.

    \b
    blockplane image pool 'june5 - june3'
    blockplane image pool 'june5 + june4 - june3'
    blockplane image pool 'june5 ^ june3'              what one of the two has alone
    blockplane image pool 'june1..june9' --exclude june3,june4
    blockplane image pool --freed june3 june4
    """
    with open_volume(volume_only(vol), "image", wait_s, writable=False) as volume:
        if freed:
            if choice != Choice():
                raise bp.errors.UsageError("--freed takes names and ranges alone", "leave the other options out")
            _freed(volume, words, as_json)
            return
        found = choice.image(volume, words, allow_active=True)
        if as_json:
            print_json(describe_image(found))
        else:
            _print_image(volume, found)


def _freed(volume: bp.Volume, words: Sequence[str], as_json: bool) -> None:
    found = volume.freeing(*_snapshots_in(volume, " ".join(words)))
    if as_json:
        print_json(describe_freeing(found))
        return
    print(f"deleting {', '.join(found.names)} would free {blocks(found.n_blocks)}")
    if len(found.names) > 1:
        print_table([[f"  {name} alone", blocks(n_blocks)] for name, n_blocks in found.alone.items()])
    for disk, n_blocks in zip(volume.array.disks, found.blocks_per_disk, strict=True):
        print(f"  {printable(disk.path)}: {blocks(n_blocks)}")


def _snapshots_in(volume: bp.Volume, text: str) -> list[str]:
    """Return the snapshots that names and ranges, joined by blanks, commas or +, stand for; each once."""
    names: list[str] = []
    for word in _names(text.replace("+", " ")):
        if word in ("-", "&", "^") or "(" in word or ")" in word:
            hint = "name snapshots, or ranges: june3 june5..june8"
            raise bp.errors.UsageError(f"{word!r} does not say which snapshots are to go", hint)
        first, dots, last = word.partition("..")
        names += volume.snapshot_range(first, last) if dots else [word]
    return list(dict.fromkeys(names))


def describe_freeing(found: bp.Freeing) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "snapshots": list(found.names),
        "freed_blocks": found.n_blocks,
        "freed_bytes": found.n_bytes,
        "blocks_per_disk": list(found.blocks_per_disk),
        "alone_blocks": found.alone,
    }


def describe_image(found: bp.Image) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "expression": str(found),
        "n_blocks": found.n_blocks,
        "n_bytes": found.n_bytes,
        "blocks_per_disk": found.blocks_per_disk,
        "top": found.top.name if found.top is not None else None,
        "base": found.base.name if found.base is not None else None,
        "complete": found.complete,
        "arriving": [record.name for record in found.arriving],
        "left_out": [record.name for record in found.left_out],
        "dropped_blocks": len(found.dropped),
    }


def _print_image(volume: bp.Volume, found: bp.Image) -> None:
    top = found.top.name if found.top is not None else "the live file system"
    print(f"image      {found}")
    print(f"holds      {blocks(found.n_blocks)}")
    print(f"top        {top}" + ("" if found.complete else " (not whole: it cannot be sent)"))
    if found.base is not None:
        print(f"base       {found.base.name}, of which {blocks(len(found.dropped))} go")
    print(f"arriving   {', '.join(record.name for record in found.arriving) or 'no snapshot'}")
    if found.left_out:
        print(f"left out   {', '.join(record.name for record in found.left_out)}")
    for disk, n_blocks in zip(volume.array.disks, found.blocks_per_disk, strict=True):
        print(f"  {printable(disk.path)}: {blocks(n_blocks)}")


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@_EXPRESSION
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
    help="Go on with an interrupted transfer: by its destination's token, or with the half-written FILE of -o.",
)
@click.option("--against", type=click.Path(), metavar="OFFER", help="Send only what differs from what OFFER offers.")
@click.option("--hold", type=Duration(), metavar="TIME", help="Should it fail, keep its snapshots so long (7d).")
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


def _described(report: SendReport) -> dict[str, object]:
    return {
        "n_blocks": report.n_blocks,
        "n_bytes": report.n_bytes,
        "stream_bytes": report.stream_bytes,
        "seconds": report.seconds,
        "bytes_per_second": report.bytes_per_second,
        "top": report.top,
        "base": report.base,
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
@click.option("--have", is_flag=True, help="Write a token of what an interrupted receive has, for send --resume.")
@click.option(
    "--offer",
    metavar="[SNAP]",
    is_flag=False,
    flag_value="",
    help="Write an offer of a snapshot (the newest), for send --against.",
)
@click.option("--run", "run_blocks", type=int, metavar="N", help="With --offer: blocks a digest covers, to 256 (8).")
@click.option("--abort", "gives_up", is_flag=True, help="Give up what an interrupted receive has.")
@key_option
@disk_options
@json_option
@wait_option
@progress_option
def receive(
    vol: str,
    origin: str | None,
    discard: bool,
    have: bool,
    offer: str | None,
    run_blocks: int | None,
    gives_up: bool,
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
    blockplane receive copy --offer > offer

    What arrives of a full image and is in VOL already, under the same block numbers, is compared and not written again.
    An offer reads its snapshot once, holds it for a week, and has 2 GiB a TiB of it with runs of 8 blocks, 1.5 with 16.
    """
    place = volume_only(vol)
    if have + gives_up + (offer is not None) > 1:
        raise bp.errors.UsageError("--have, --offer and --abort do not go together", "say one of them")
    if run_blocks is not None and offer is None:
        raise bp.errors.UsageError("--run is for an offer", "say --offer too")
    if offer is not None:
        print_offer(place, offer or None, run_blocks, wait_s, as_json, progress)
        return
    if have or gives_up:
        (print_token if have else give_up)(place, wait_s, as_json)
        return
    wish = disks_of(n_disks, size, disk, parity, chunk, wipe)
    source = origin if origin is not None else _standard_input()
    is_plain = wish.disks is None and wish.size is None and wish.parity is None and wish.chunk is None
    with ProgressLine(progress) as line:
        is_volume = os.path.exists(os.path.join(place, CONFIG_NAME))
        if is_plain and is_volume and not os.path.exists(os.path.join(place, MARK_NAME)):
            with open_volume(place, "receive", wait_s, writable=True) as volume:
                report = bp.receive(source, volume, discard=discard, key=keys, progress=line)
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
                key=keys,
                progress=line,
            )
    if as_json:
        print_json(_received(report))
    else:
        print(_arrived(vol, report))


def _received(report: ReceiveReport) -> dict[str, object]:
    return {
        "n_blocks": report.n_blocks,
        "n_bytes": report.n_bytes,
        "stream_bytes": report.stream_bytes,
        "seconds": report.seconds,
        "bytes_per_second": report.bytes_per_second,
        "top": report.top,
        "base": report.base,
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


VERBS = (image, send, receive)
