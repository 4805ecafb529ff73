"""Copying an image from disk to disk."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.completion import VolumeName
from blockplane.cli.holding import held_image
from blockplane.cli.images import EXPRESSION, Choice, ExpressionVerb, choice_options
from blockplane.cli.naming import is_same_place, is_there, open_volume, opening_to_make, volume_only
from blockplane.cli.options import (
    DiskOptions,
    disk_options,
    hold_option,
    json_option,
    progress_option,
    wait_option,
)
from blockplane.cli.progress import ProgressLine
from blockplane.cli.receiving import tell_interrupted
from blockplane.cli.text import blocks, dryness, duration, print_json, printable, rate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockplane.transfer import CopyReport, InterruptedReceive


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the options say about a copy."""

    wish: DiskOptions
    discard: bool
    relocate: bool
    verify: bool
    dry_run: bool
    wait_s: float


@click.command(cls=ExpressionVerb)
@click.argument("vol", type=VolumeName())
@EXPRESSION
@click.argument("target", type=VolumeName())
@click.option("-n", "--dry-run", is_flag=True, help="Say exactly what would be copied; write nothing.")
@click.option("--verify", is_flag=True, help="Read both sides again afterwards, and compare every byte.")
@click.option("--discard", is_flag=True, help="Give up changes that the image would replace.")
@click.option("--relocate", is_flag=True, help="Lay blocks elsewhere where TARGET has no place of their number.")
@hold_option
@choice_options
@disk_options
@json_option
@wait_option
@progress_option
def copy(
    vol: str,
    words: Sequence[str],
    target: str,
    dry_run: bool,
    verify: bool,
    discard: bool,
    relocate: bool,
    hold: float | None,
    choice: Choice,
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Copy an image to another volume on this machine, block by block under the same numbers.

    A full one makes TARGET, an incremental one goes onto the base it names. There is no stream in between.

    The disk options are for a volume that is made; by default it gets the source's geometry. A copy that was
    interrupted keeps what came, and the next one of the same image goes on from there. Either volume may be in use by
    another process, which then runs the verb; where two processes have one each, pipe a send into a receive.

    \b
    blockplane copy pool june1 spare
    blockplane copy pool june1 spare --disks 3 --size 4G --chunk 1MiB
    blockplane copy pool 'june3 - june1' spare --verify
    blockplane copy pool 'june3 - june1' spare -n
    blockplane copy pool june1 small --disks 3 --size 1G --relocate

    With --relocate TARGET need only have room for the blocks in use, however high their numbers are. Increments onto a
    snapshot that has a block of such a number do not need it; where all fitted at their own, say it again.

    --verify costs a second read of the image's blocks, from both sides at once.
    """
    source, place = volume_only(vol), volume_only(target)
    if is_same_place(source, place):
        raise bp.errors.RefusedError(f"{place} is the volume that the image is of", "name another target")
    asked = _Asked(wish, discard, relocate, verify, dry_run, wait_s)
    left: Sequence[InterruptedReceive] = ()
    with (
        open_volume(source, "copy", wait_s, writable=bool(hold) and not dry_run, kind="SNAPSHOTS") as volume,
        held_image(
            volume, words, choice, hold if not dry_run else 0.0, [place], lambda image: _is_left(image, place, asked)
        ) as image,
        ProgressLine(progress) as line,
    ):
        if asked.wish.is_plain and is_there(place):
            with _target(place, source, asked) as opened:
                report = bp.copy(
                    image, opened, discard=discard, relocate=relocate, verify=verify, dry_run=dry_run, progress=line
                )
                left = bp.interrupted_receives(opened) if not dry_run else ()
        else:
            report = _to_new(image, place, asked, line)
    if as_json:
        print_json({**_described(report), **dryness(dry_run)})
    else:
        print(_would(target, report) if dry_run else _said(target, report))
    tell_interrupted(place, left)


def _is_left(image: bp.Image, place: str, asked: _Asked) -> bool:
    """Whether a target keeps blocks of an image whose copy ended early."""
    if not is_there(place):
        return False
    with open_volume(place, "copy", asked.wait_s, writable=False) as volume:
        return bp.is_half_copied(image, volume)


@contextmanager
def _target(place: str, source: str, asked: _Asked) -> Iterator[bp.Volume]:
    """Open the target; VolumeInUseError: a process has it that is not asked, since the one that has the source is."""
    try:
        with open_volume(place, "copy", asked.wait_s, writable=not asked.dry_run) as volume:
            yield volume
    except bp.errors.VolumeInUseError as error:
        if console.streams_of() is not None:
            how = f"blockplane send {printable(source)} EXPR | blockplane receive {printable(place)}"
            error.hint = f"two processes have one volume each: let each do its part: {how}"
        raise


def _to_new(image: bp.Image, place: str, asked: _Asked, line: ProgressLine) -> CopyReport:
    """Copy to a volume that is made, or was made by a copy that was interrupted."""
    wish = asked.wish
    return bp.copy(
        image,
        place,
        disks=wish.disks,
        size=wish.size,
        parity=wish.parity,
        chunk=wish.chunk,
        wipe=wish.wipe,
        discard=asked.discard,
        relocate=asked.relocate,
        verify=asked.verify,
        dry_run=asked.dry_run,
        progress=line,
        opening=opening_to_make("copy"),
    )


def _described(report: CopyReport) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "n_blocks": report.n_blocks,
        "n_bytes": report.n_bytes,
        "n_image_blocks": report.n_image_blocks,
        "seconds": report.seconds,
        "bytes_per_second": report.bytes_per_second,
        "top": report.top,
        "base": report.base,
        "arrived": list(report.arrived),
        "left_out": list(report.left_out),
        "already_there": report.already_there,
        "makes_volume": report.makes_volume,
        "n_blocks_before": report.n_blocks_before,
        "n_blocks_shared": report.n_blocks_shared,
        "n_blocks_verified": report.n_blocks_verified,
    }


def _what(report: CopyReport) -> str:
    base = f" onto {report.base}" if report.base else ""
    if report.n_blocks_before:
        base += f", all but {blocks(report.n_blocks_before)} that were copied before"
    if report.n_blocks_shared:
        base += f", {blocks(report.n_blocks_shared)} of it there before"
    return f"{', '.join(report.arrived)}{base}: {blocks(report.n_blocks)}"


def _would(target: str, report: CopyReport) -> str:
    if report.already_there:
        return f"{printable(target)} has {report.top} already; nothing to do"
    made = f"make {printable(target)} and " if report.makes_volume else ""
    return f"would {made}copy {_what(report)}"


def _said(target: str, report: CopyReport) -> str:
    compared = f", {blocks(report.n_blocks_verified)} read back and equal" if report.n_blocks_verified else ""
    if report.already_there:
        return f"{printable(target)} has {report.top} already; nothing to do{compared}"
    took = f"in {duration(report.seconds)} ({rate(report.n_bytes, report.seconds)})"
    return f"{printable(target)} has {_what(report)} {took}{compared}"


VERBS = (copy,)
