"""Stream files: info and verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.options import json_option, progress_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import blocks, count, duration, iso, moment, print_json, printable, rate, sentence, size

if TYPE_CHECKING:
    from blockplane.stream import StreamMap


@click.group(subcommand_metavar="VERB ...")
def stream() -> None:
    """Look into stream files without a volume."""


@stream.command()
@click.argument("file", metavar="FILE", type=click.Path())
@json_option
def info(file: str, as_json: bool) -> None:
    """Show what a stream says about itself: image, snapshots, base, order, source geometry."""
    found = bp.stream_map(file)
    if as_json:
        print_json(_described(found))
    else:
        _print_map(file, found)


def _described(found: StreamMap) -> dict[str, object]:
    header = found.header
    return {
        "writer": header.writer,
        "image_id": header.image_id.hex(),
        "space_id": header.space_id.hex(),
        "space_blocks": header.space_blocks,
        "n_blocks": header.image_blocks,
        "n_bytes": header.image_blocks * bp.BLOCK_BYTES,
        "dropped_blocks": header.dropped_blocks,
        "after_blocks": header.after_blocks,
        "order": header.order,
        "created": iso(header.created_ns),
        "top": found.top.name,
        "base": found.base.name if found.base is not None else None,
        "snapshots": [
            {"name": record.name, "id": record.id.hex(), "role": role.name.lower(), "n_blocks": record.n_blocks}
            for record, role in found.snapshots
        ],
    }


def _print_map(file: str, found: StreamMap) -> None:
    header = found.header
    print(f"stream     {printable(file)}, by {printable(header.writer)}, {moment(header.created_ns)}")
    print(f"image      {blocks(header.image_blocks)} in {header.order} order, id {header.image_id.hex()}")
    print(f"top        {found.top.name}")
    base = found.base
    print("base       none: a full image" if base is None else f"base       {base.name}, id {base.id.hex()}")
    for record, role in found.snapshots:
        what = role.name.lower().replace("_", " ")
        print(f"  {record.name}: {what}, {blocks(record.n_blocks)}, id {record.id.hex()}")


@stream.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@json_option
@progress_option
def verify(files: Sequence[str], as_json: bool, progress: bool | None) -> int:
    """Read streams whole and hold every byte against its checksums; of several, also that the chain is complete.

    Exit status 1 when something is wrong.
    """
    with ProgressLine(progress) as line:
        verdict = bp.verify_streams(*files, progress=line)
    if as_json:
        print_json(
            {
                "ok": verdict.ok,
                "problems": verdict.problems,
                "n_blocks": verdict.n_blocks,
                "stream_bytes": verdict.stream_bytes,
                "seconds": verdict.seconds,
                "snapshots": verdict.snapshots,
            }
        )
        return 0 if verdict.ok else 1
    for problem in verdict.problems:
        print(sentence(problem))
    chain = ", a complete chain" if len(files) > 1 else ""
    print(
        f"{'ok' + chain if verdict.ok else 'DAMAGED'}: {count(len(files), 'stream')}, {blocks(verdict.n_blocks)}, "
        f"{size(verdict.stream_bytes)} in {duration(verdict.seconds)} ({rate(verdict.stream_bytes, verdict.seconds)})"
    )
    return 0 if verdict.ok else 1


VERBS = (stream,)
