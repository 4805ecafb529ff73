"""What the verbs print: names without raw control bytes, sizes and times for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import blockplane as bp
from blockplane.text import printable as printable
from blockplane.text import sentence as sentence

if TYPE_CHECKING:
    from blockplane.transfer import PartsReport, ReceiveReport, SendReport


def size(n_bytes: int) -> str:
    """Return a size for people."""
    return bp.format_size(n_bytes)


def blocks(n_blocks: int) -> str:
    """Return a number of blocks with the size they have."""
    noun = "block" if n_blocks == 1 else "blocks"
    return f"{n_blocks:,} {noun} ({size(n_blocks * bp.BLOCK_BYTES)})"


def count(n: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return a duration for people."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def rate(n_bytes: float, seconds: float) -> str:
    """Return a rate for people."""
    return f"{size(round(n_bytes / seconds))}/s" if seconds > 0 else "-"


def moment(ns: int) -> str:
    """Return a time for people, local."""
    return datetime.fromtimestamp(ns // 10**9).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def iso(ns: int) -> str:
    """Return a time for programs: ISO 8601, UTC, microseconds."""
    seconds, rest = divmod(ns, 10**9)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000).isoformat()


def print_json(found: Mapping[str, object], to_stderr: bool = False) -> None:
    """Print one JSON object on one line; names that are no UTF-8 hold their bytes as lone surrogates (\\udcNN)."""
    print(json.dumps(found), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def print_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print rows in columns; right: columns that are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def dryness(dry_run: bool) -> dict[str, object]:
    """Return what programs are told behind the figures of what may have been a dry run: that had no speed."""
    return {"dry_run": dry_run, **({"bytes_per_second": None} if dry_run else {})}


def measured(report: SendReport | ReceiveReport | PartsReport) -> dict[str, object]:
    """Return what programs are told of any transfer."""
    return {
        "n_blocks": report.n_blocks,
        "n_bytes": report.n_bytes,
        "stream_bytes": report.stream_bytes,
        "seconds": report.seconds,
        "bytes_per_second": report.bytes_per_second,
        "top": report.top,
        "base": report.base,
    }
