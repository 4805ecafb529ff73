"""Chains of stream files: merge them into one, compare them with a volume."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import HostPath, SnapshotName
from blockplane.cli.naming import open_volume, snapshot_of
from blockplane.cli.options import (
    compress_option,
    encrypt_option,
    json_option,
    key_option,
    or_standard,
    progress_option,
    require_encrypted_option,
    wait_option,
)
from blockplane.cli.progress import ProgressLine
from blockplane.cli.streamplaces import opened_streams, refuse_volumes
from blockplane.cli.streams import stream, tell_plain
from blockplane.cli.text import blocks, dryness, duration, print_json, printable, rate, sentence, size
from blockplane.cli.transfers import standard_output

if TYPE_CHECKING:
    from blockplane.transfer import MergeReport, StreamComparison


@stream.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=HostPath())
@click.option(
    "-o", "--output", type=HostPath(), callback=or_standard, metavar="FILE",
    help="The stream file; appears when it is complete.",
)  # fmt: skip
@click.option("-n", "--dry-run", is_flag=True, help="Say exactly what would be written; read no block but block maps.")
@compress_option
@key_option
@require_encrypted_option
@encrypt_option
@click.option("--plain", is_flag=True, help="Do not encrypt the result, although a FILE is encrypted.")
@json_option
@wait_option
@progress_option
def merge(
    files: Sequence[str],
    output: str | None,
    dry_run: bool,
    compress: str | None,
    keys: Sequence[str],
    require_encrypted: bool,
    encrypt: str | None,
    plain: bool,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Make one stream of a chain, from the streams alone.

    With the full stream the result is full, as if the newest snapshot had been sent; without, one increment onto the
    base of the oldest. Snapshots that are not whole in it are left out, and named.

    \b
    blockplane stream merge june1.bps june2.bps june3.bps -o full3.bps
    blockplane stream merge june2.bps june3.bps -o june1to3.bps
    """
    if plain and encrypt is not None:
        raise bp.errors.UsageError("--encrypt and --plain contradict each other", "say one of them")
    if output is not None:
        refuse_volumes(output, "stream merge")
    sink = output if output is not None or dry_run else standard_output()
    with opened_streams(files, "stream merge", wait_s) as streams, ProgressLine(progress) as line:
        report = bp.merge_streams(
            *streams, sink=sink, compress=compress, key=keys, encrypt=False if plain else encrypt, dry_run=dry_run,
            require_encrypted=require_encrypted, progress=line,
        )  # fmt: skip
    tell_plain(keys, report.plain)
    to_stderr = not isinstance(sink, str) and sink is not None
    if as_json:
        print_json({**_described(report), **dryness(dry_run)}, to_stderr=to_stderr)
    else:
        _print_merged(report, dry_run, to_stderr)


def _described(report: MergeReport) -> dict[str, object]:
    sent = report.sent
    return {
        "n_blocks": sent.n_blocks,
        "n_bytes": sent.n_bytes,
        "stream_bytes": sent.stream_bytes,
        "seconds": sent.seconds,
        "bytes_per_second": sent.bytes_per_second,
        "top": sent.top,
        "base": sent.base,
        "arriving": list(sent.arriving),
        "left_out": list(sent.left_out),
        "dropped_snapshots": [{"name": name, "reason": reason} for name, reason in report.dropped_snapshots],
        "dead_blocks": report.dead_blocks,
        "order": list(report.order),
        "compression": sent.compression,
        "encrypted": sent.encrypted,
    }


def _print_merged(report: MergeReport, dry_run: bool, to_stderr: bool) -> None:
    out, sent = sys.stderr if to_stderr else sys.stdout, report.sent
    base = f" onto {sent.base}" if sent.base else ""
    print(f"order      {', '.join(printable(name) for name in report.order)}", file=out)
    for name, reason in report.dropped_snapshots:
        print(f"left out   {name}: {sentence(reason)}", file=out)
    most = " at most" if dry_run and sent.compression else ""
    did = "would merge" if dry_run else f"merged in {duration(sent.seconds)} ({rate(sent.stream_bytes, sent.seconds)})"
    print(
        f"{did}: {', '.join(sent.arriving)}{base}, {blocks(sent.n_blocks)} in {size(sent.stream_bytes)}{most}, "
        f"without {blocks(report.dead_blocks)}",
        file=out,
    )


@stream.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=HostPath())
@click.argument("snapshot", metavar="VOL@SNAP", type=SnapshotName())
@key_option
@json_option
@wait_option
@progress_option
def compare(
    files: Sequence[str], snapshot: str, keys: Sequence[str], as_json: bool, wait_s: float, progress: bool | None
) -> int:
    """Compare a snapshot in streams with the same one of a volume, byte by byte.

    Without the full stream, what the increments bring is compared. Exit status 1 when they differ,
    and when a stream is damaged: the error names the block then, and nothing is said of differences.

    \b
    blockplane stream compare june1.bps june2.bps pool@june2
    """
    place, name = snapshot_of(snapshot)
    with (
        opened_streams(files, "stream compare", wait_s) as streams,
        open_volume(place, "stream compare", wait_s, writable=False) as volume,
        ProgressLine(progress) as line,
    ):
        found = bp.compare_streams(*streams, volume=volume, snapshot=name, key=keys, progress=line)
    if as_json:
        print_json(_compared(found))
    else:
        _print_compared(found)
    return 0 if found.ok else 1


def _compared(found: StreamComparison) -> dict[str, object]:
    return {
        "ok": found.ok,
        "snapshot": found.snapshot,
        "n_blocks": found.n_blocks,
        "base_blocks": found.base_blocks,
        "only_in_stream": found.only_in_stream,
        "only_in_volume": found.only_in_volume,
        "n_differing": found.n_differing,
        "differing": found.differing,
        "seconds": found.seconds,
    }


def _print_compared(found: StreamComparison) -> None:
    for what, n_blocks in (
        ("only in the stream", found.only_in_stream),
        ("only in the volume", found.only_in_volume),
        ("different", found.n_differing),
    ):
        if n_blocks:
            print(f"{what}: {blocks(n_blocks)}")
    if found.differing:
        print(f"first: {', '.join(map(str, found.differing))}")
    base = f"; {blocks(found.base_blocks)} are the base's and were not compared" if found.base_blocks else ""
    print(
        f"{'equal' if found.ok else 'DIFFERENT'}: {found.snapshot}, {blocks(found.n_blocks)} compared in "
        f"{duration(found.seconds)}{base}"
    )


#: Verbs of the group `stream`, which is a verb of `streams`.
VERBS: tuple[click.Command, ...] = ()
