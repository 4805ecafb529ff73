"""Offers: what a destination has, for a source that shares no snapshot with it."""

from __future__ import annotations

import sys

import blockplane as bp
from blockplane.cli import console
from blockplane.cli.naming import open_volume
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import blocks, duration, print_json, printable, size


def print_offer(
    place: str, snapshot: str | None, run_blocks: int | None, wait_s: float, as_json: bool, progress: bool | None
) -> None:
    """Write an offer to standard output; --json says to standard error what it holds."""
    if sys.stdout is None or sys.stdout.isatty():
        raise bp.errors.UsageError("an offer is not written to a terminal", "redirect it: receive VOL --offer > OFFER")
    options = {"run_blocks": run_blocks} if run_blocks is not None else {}
    with open_volume(place, "receive --offer", wait_s, writable=True) as volume, ProgressLine(progress) as line:
        report = bp.offer(volume, console.raw("output") or sys.stdout.fileno(), snapshot, progress=line, **options)
    if as_json:
        found = {
            "snapshot": report.snapshot,
            "n_blocks": report.n_blocks,
            "offer_bytes": report.offer_bytes,
            "run_blocks": report.run_blocks,
            "seconds": report.seconds,
        }
        print_json(found, to_stderr=True)
        return
    what = f"{printable(place)}@{report.snapshot}: {blocks(report.n_blocks)}"
    print(f"offered {what} in {size(report.offer_bytes)}, in {duration(report.seconds)}", file=sys.stderr)
