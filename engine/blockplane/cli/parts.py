"""Parts of images: what `--part` says, sending several streams at once, and what each of them holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

import blockplane as bp
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import blocks, dryness, duration, measured, print_json, print_table, printable, rate, size

part_option = click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="FILE[=EXPR]",
    help="Send to FILE the blocks of EXPR that no --part before it has, or a share of the rest; repeat.",
)


def parts_of(texts: Sequence[str]) -> list[bp.Part]:
    """Return the parts that options mean: FILE=EXPR, or FILE alone; of several `=` the last one counts."""
    found = []
    for text in texts:
        file, equals, words = text.rpartition("=")
        file, words = (file, words) if equals else (text, "")
        if not file:
            raise bp.errors.UsageError(f"--part {text!r} names no file", "write FILE=EXPR, or FILE for the rest")
        found.append(bp.Part(file, words.strip() or None))
    return found


def send_in_parts(
    image: bp.Image,
    parts: Sequence[bp.Part],
    dry_run: bool,
    as_json: bool,
    progress: bool | None,
    **options: Any,
) -> None:
    """Send an image in parts, and say so. options : of `send_parts`."""
    with ProgressLine(progress) as line:
        report = bp.send_parts(image, parts, progress=line, dry_run=dry_run, **options)
    if as_json:
        first = report.parts[0]
        shown = {"arriving": list(first.arriving), "left_out": list(first.left_out), **dryness(dry_run)}
        print_json({**measured(report), **shown, "parts": describe_parts(report, parts)})
    else:
        print_parts(report, parts, dry_run)


def describe_parts(report: bp.PartsReport, parts: Sequence[bp.Part]) -> list[dict[str, object]]:
    """Return what programs rely on."""
    return [
        {
            "file": part.name,
            "n_blocks": its.n_blocks,
            "n_bytes": its.n_bytes,
            "stream_bytes": its.stream_bytes,
            "seconds": its.seconds,
            "n_blocks_before": its.n_blocks_before,
            "compression": its.compression,
        }
        for part, its in zip(parts, report.parts, strict=True)
    ]


def print_parts(report: bp.PartsReport, parts: Sequence[bp.Part], dry_run: bool) -> None:
    """Say what was sent where."""
    first = report.parts[0]
    base = f" onto {first.base}" if first.base else ""
    would = "would send" if dry_run else "sent"
    took = "" if dry_run else f" in {duration(report.seconds)} ({rate(report.stream_bytes, report.seconds)})"
    print(f"{would} {', '.join(first.arriving)}{base} in {len(parts)} parts: {blocks(report.n_blocks)}{took}")
    rows = []
    for part, its in zip(parts, report.parts, strict=True):
        before = f", all but {blocks(its.n_blocks_before)} that were sent before" if its.n_blocks_before else ""
        most = " at most" if dry_run and its.compression else ""
        rows.append([f"  {printable(part.name)}", blocks(its.n_blocks), f"{size(its.stream_bytes)}{most}{before}"])
    print_table(rows, right=(1,))
    sys.stdout.flush()


def shown_parts(image: bp.Image, parts: Sequence[bp.Part]) -> list[dict[str, object]]:
    """Return how many blocks each part would have: in all, on each disk, and of each snapshot that arrives."""
    from blockplane.image import of_snapshots  # not above: help and completion do without

    planes = bp.divided(image, [part.within for part in parts])
    return [
        {
            "file": part.name,
            "n_blocks": len(plane),
            "n_bytes": len(plane) * bp.BLOCK_BYTES,
            "blocks_per_disk": image.layout.within(plane).blocks_per_disk(image.store.geometry),
            "of_snapshots": of_snapshots(image, plane),
        }
        for part, plane in zip(parts, planes, strict=True)
    ]


def describe_reach(found: bp.Reach) -> dict[str, object]:
    """Return what programs rely on."""
    return {
        "n_reachable": len(found.reachable),
        "by_stream": found.by_stream,
        "elsewhere": found.elsewhere,
        "in_none": found.in_none,
    }


def print_reach(found: bp.Reach) -> None:
    """Print what can be read now, and what needs another medium."""
    print(f"at hand    {blocks(len(found.reachable))}")
    for name, n_blocks in found.by_stream.items():
        print(f"  {printable(name)}: {blocks(n_blocks)}")
    for where, n_blocks in found.elsewhere.items():
        print(f"elsewhere  {blocks(n_blocks)}, in {where}")
    if found.in_none:
        print(f"missing    {blocks(found.in_none)}, in none of the streams of the chain")


def print_shown(shown: Sequence[dict[str, object]]) -> None:
    """Print what each part would hold."""
    for part in shown:
        counts = part["of_snapshots"]
        assert isinstance(counts, dict)
        of = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        print(f"part       {printable(str(part['file']))}: {blocks(int(str(part['n_blocks'])))}; of {of}")
