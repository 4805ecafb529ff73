"""Several tape drives at once: what `--drive` says, and what was written by each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.text import blocks, count, duration, print_table, printable, rate, size

if TYPE_CHECKING:
    from blockplane.transfer import TapePartsReport

drive_option = click.option(
    "--drive",
    "drives",
    multiple=True,
    metavar="TAPE[,TAPE...][=EXPR]",
    help="A set by a drive of its own, for the blocks of EXPR that no --drive before it has, or a share; repeat.",
)


def drives_of(texts: Sequence[str]) -> list[bp.DriveTapes]:
    """Return the drives that options mean; of several `=` the last one counts."""
    found = []
    for text in texts:
        tapes, equals, words = text.rpartition("=")
        names = (tapes if equals else text).split(",")
        if not all(names):
            raise bp.errors.UsageError(f"--drive {text!r} names no tape", "write TAPE, TAPE,TAPE or TAPE=EXPR")
        found.append(bp.DriveTapes(names, words.strip() if equals and words.strip() else None))
    return found


def describe_drives(report: TapePartsReport, drives: Sequence[bp.DriveTapes]) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "top": report.top,
        "base": report.base,
        "n_blocks": report.n_blocks,
        "stream_bytes": report.stream_bytes,
        "bytes_before": report.n_bytes_before,
        "seconds": report.seconds,
        "parts": [
            {
                "tape": drive.names[0],
                "whole_before": its is None,
                "set_id": its.set_id.hex() if its is not None else None,
                "image": its.image if its is not None else None,
                "n_tapes": its.n_tapes if its is not None else None,
                "n_blocks": its.n_blocks if its is not None else None,
                "stream_bytes": its.stream_bytes if its is not None else None,
                "bytes_before": its.n_bytes_before if its is not None else None,
                "seconds": its.seconds if its is not None else None,
            }
            for drive, its in zip(drives, report.parts, strict=True)
        ],
    }


def print_drives(report: TapePartsReport, drives: Sequence[bp.DriveTapes]) -> None:
    """Say what each drive wrote."""
    base = f" onto {report.base}" if report.base else ""
    n_now = report.stream_bytes - report.n_bytes_before
    print(
        f"wrote {report.top}{base} by {len(drives)} drives: {blocks(report.n_blocks)}, {size(report.stream_bytes)} in "
        f"{duration(report.seconds)} ({rate(n_now, report.seconds)})"
    )
    rows = []
    for drive, its in zip(drives, report.parts, strict=True):
        if its is None:
            rows.append([f"  {printable(drive.names[0])}", "", "was whole"])
            continue
        before = f", {size(its.n_bytes_before)} of it before" if its.n_bytes_before else ""
        what = (
            f"image {its.image} of set {its.set_id.hex()[:8]}, {count(its.n_tapes, 'tape')}: {size(its.stream_bytes)}"
        )
        rows.append([f"  {printable(drive.names[0])}", blocks(its.n_blocks), f"{what}{before}"])
    print_table(rows, right=(1,))


def print_planned(report: bp.PartsReport, drives: Sequence[bp.DriveTapes]) -> None:
    """Say what each drive would write."""
    base, most = f" onto {report.base}" if report.base else "", " at most" if report.parts[0].compression else ""
    print(f"would write {report.top}{base} by {len(drives)} drives: {blocks(report.n_blocks)}")
    rows = [
        [f"  {printable(drive.names[0])}", blocks(its.n_blocks), f"a stream of {size(its.stream_bytes)}{most}"]
        for drive, its in zip(drives, report.parts, strict=True)
    ]
    print_table(rows, right=(1,))
