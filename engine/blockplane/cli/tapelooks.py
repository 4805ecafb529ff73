"""Looking into tapes: list, verify, retrieve."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import HostPath
from blockplane.cli.holders import block_range
from blockplane.cli.naming import open_volume, tell_problems, volume_only
from blockplane.cli.options import json_option, key_option, or_standard, progress_option, wait_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.tapes import changer_of, changer_option, lost_names, tape
from blockplane.cli.text import blocks, count, duration, iso, moment, print_json, printable, rate, sentence, size
from blockplane.cli.transfers import standard_output

if TYPE_CHECKING:
    from blockplane.transfer import TapeListing, TapeVerdict


@tape.command("list")
@click.argument("tapes", metavar="TAPE...", nargs=-1, required=True, type=HostPath())
@changer_option
@json_option
def list_(tapes: Sequence[str], changer: str | None, as_json: bool) -> None:
    """Say what is on tapes: the set, its images, and where they lie. No data are read."""
    found = bp.list_tape_sets(tapes, changer=changer_of(changer))
    if as_json:
        print_json(_listed(found[0]) if len(found) == 1 else {"sets": [_listed(its) for its in found]})
        return
    for its in found:
        for problem in its.problems:
            print(sentence(problem), file=sys.stderr)
        _print_listed(its)
    there = {its.part for its in found}
    if lacking := [str(i + 1) for i in range(found[0].n_parts) if i not in there]:
        print(f"missing    the tapes of part {', '.join(lacking)} of {found[0].n_parts}")


def _listed(found: TapeListing) -> dict[str, object]:
    return {
        "set_id": found.set_id.hex(),
        "created": iso(found.created_ns),
        "record_bytes": found.record_bytes,
        "part": found.part,
        "n_parts": found.n_parts,
        "complete": found.is_complete,
        "problems": list(found.problems),
        "unfinished_bytes": found.unfinished,
        "tapes": [
            {"tape": number, "id": its.tape_id.hex(), "written": iso(its.written_ns)}
            for number, its in enumerate(found.tapes, found.first_tape)
        ],
        "images": [
            {
                "image": its.number,
                "top": its.top or None,
                "base": its.base or None,
                "top_id": its.top_id.hex(),
                "base_id": its.base_id.hex() if any(its.base_id) else None,
                "stream_id": its.stream_id.hex(),
                "stream_bytes": its.stream_bytes,
                "n_blocks": its.n_blocks,
                "created": iso(its.created_ns),
                "encrypted": its.is_sealed,
                "tapes": sorted({run.tape for run in found.runs if run.image == its.number}),
            }
            for its in found.images
        ],
    }


def _print_listed(found: TapeListing) -> None:
    part = f", part {found.part + 1} of {found.n_parts} of its images" if found.n_parts > 1 else ""
    when = moment(found.created_ns)
    print(f"set        {found.set_id.hex()}, begun {when}, records of {size(found.record_bytes)}{part}")
    for number, its in enumerate(found.tapes, found.first_tape):
        print(f"tape {number:<5} written {moment(its.written_ns)}")
    for image in found.images:
        on = sorted({run.tape for run in found.runs if run.image == image.number})
        what = (
            f"id {image.top_id.hex()}, encrypted" if image.is_sealed else image.top or "of a name that cannot be read"
        )
        base = f" onto {image.base}" if image.base else ""
        where = f"tape {on[0]}" if len(on) == 1 else f"tapes {on[0]} to {on[-1]}" if on else "no tape"
        n_bytes = size(image.stream_bytes)
        print(f"image {image.number:<4} {what}{base}: {blocks(image.n_blocks)}, {n_bytes}, {where}")
    if found.unfinished is not None:
        print(f"unfinished {size(found.unfinished)} of one more image: tape write --resume goes on with it")
    elif not found.is_complete:
        print("incomplete the set goes on with a tape that was not named, or was cut off")


@tape.command()
@click.argument("tapes", metavar="TAPE...", nargs=-1, required=True, type=HostPath())
@click.option("--against", metavar="VOL", help="Compare with the snapshots of this volume, byte by byte.")
@changer_option
@key_option
@json_option
@wait_option
@progress_option
def verify(
    tapes: Sequence[str],
    against: str | None,
    changer: str | None,
    keys: Sequence[str],
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> int:
    """Read a set of tapes whole, and hold every byte against its checksums.

    Also proved is that the images hold every block of the snapshots that they bring. Lost blocks are listed, with the
    files they belong to. Exit status 1 when something is wrong.

    \b
    blockplane tape verify full-1.tap full-2.tap
    blockplane tape verify full-1.tap full-2.tap --against pool
    """
    with ExitStack() as stack:
        volume = None
        if against is not None:
            volume = stack.enter_context(open_volume(volume_only(against), "tape verify", wait_s, writable=False))
        line = stack.enter_context(ProgressLine(progress))
        verdict = bp.verify_tapes(tapes, changer=changer_of(changer), volume=volume, key=keys, progress=line)
    files = {its.image: lost_names(tapes, its.extents, keys, its.top) for its in verdict.lost}
    if as_json:
        print_json(_verified(verdict, files))
    else:
        _print_verdict(verdict, files)
    return 0 if verdict.ok else 1


def _verified(verdict: TapeVerdict, files: dict[int, list[str]]) -> dict[str, object]:
    return {
        "ok": verdict.ok,
        "problems": verdict.problems,
        "n_tapes": verdict.n_tapes,
        "n_images": verdict.n_images,
        "n_blocks": verdict.n_blocks,
        "stream_bytes": verdict.stream_bytes,
        "seconds": verdict.seconds,
        "snapshots": verdict.snapshots,
        "proved": verdict.proved,
        "lost": [
            {
                "image": its.image,
                "top": its.top,
                "extents": [list(run) for run in its.extents],
                "files": files[its.image],
            }
            for its in verdict.lost
        ],
        "compared": [{"snapshot": its.snapshot, "ok": its.ok, "n_blocks": its.n_blocks} for its in verdict.compared],
    }


def _print_verdict(verdict: TapeVerdict, files: dict[int, list[str]]) -> None:
    for problem in verdict.problems:
        print(sentence(problem))
    for its in verdict.lost:
        for what in files[its.image]:
            print(f"lost       image {its.image}, {its.top}: {what}")
    if verdict.proved:
        print(f"whole      {', '.join(verdict.proved)}")
    for found in verdict.compared:
        print(f"{'equal' if found.ok else 'DIFFERENT':<10} {found.snapshot}: {blocks(found.n_blocks)} compared")
    print(
        f"{'ok' if verdict.ok else 'DAMAGED'}: {count(verdict.n_tapes, 'tape')}, {count(verdict.n_images, 'image')}, "
        f"{blocks(verdict.n_blocks)}, {size(verdict.stream_bytes)} in {duration(verdict.seconds)} "
        f"({rate(verdict.stream_bytes, verdict.seconds)})"
    )


@tape.command()
@click.argument("tapes", metavar="TAPE...", nargs=-1, required=True, type=HostPath())
@click.option("--vbn", metavar="A-B", help="Block numbers, both ends included, or one: their bytes go to OUT.")
@click.option("--path", metavar="/PATH", help="A file or tree: it goes to OUT, as `get` names it.")
@click.option(
    "-o", "--output", type=HostPath(), callback=or_standard, metavar="OUT",
    help="Where to (blocks: standard output).",
)  # fmt: skip
@click.option("--snapshot", metavar="SNAP", help="Out of which snapshot (the newest).")
@key_option
@json_option
@progress_option
def retrieve(
    tapes: Sequence[str],
    vbn: str | None,
    path: str | None,
    output: str | None,
    snapshot: str | None,
    keys: Sequence[str],
    as_json: bool,
    progress: bool | None,
) -> int:
    """Take blocks or files out of tapes by position: beside the table nothing is read but what holds them.

    \b
    blockplane tape retrieve full-1.tap full-2.tap --path /include/stdio.h -o stdio.h
    blockplane tape retrieve full-1.tap full-2.tap --vbn 1000-1999 -o blocks
    """
    if (vbn is None) == (path is None):
        raise bp.errors.UsageError("retrieve needs blocks or a path", "say --vbn A-B, or --path /PATH")
    if path is not None and output is None:
        raise bp.errors.UsageError("a tree needs a place to go to", "say -o OUT")
    sink = output if output is not None else standard_output()
    with bp.open_stream(*tapes, snapshot=snapshot, key=keys) as chain, ProgressLine(progress) as line:
        tell_problems(chain)
        if vbn is not None:
            n_blocks = bp.retrieve_blocks(chain, *block_range(vbn), sink)
            shown: dict[str, object] = {"snapshot": chain.snapshot.name, "n_blocks": n_blocks}
            text, n_skipped = f"{blocks(n_blocks)} of {chain.snapshot.name}", 0
        else:
            report = _get(bp.FileSystem(chain), path or "/", str(output), line)
            n_skipped = len(report.skipped)
            shown = {"snapshot": chain.snapshot.name, "n_files": report.n_files, "n_bytes": report.n_bytes}
            text = f"{count(report.n_files, 'file')}, {size(report.n_bytes)} of {chain.snapshot.name}"
            for where, why in report.skipped:
                print(f"blockplane: {printable(where)}: {sentence(why)}", file=sys.stderr)
    to_stderr = not isinstance(sink, str)
    if as_json:
        print_json(shown, to_stderr=to_stderr)
    else:
        print(text, file=sys.stderr if to_stderr else sys.stdout)
    return 1 if n_skipped else 0


def _get(files: bp.FileSystem, path: str, output: str, line: ProgressLine) -> bp.GetReport:
    """Get a file or tree; where records are damaged, one file after the other, those that are not whole left out."""
    top = os.path.join(output, os.path.basename(path.rstrip("/"))) if os.path.isdir(output) else output
    try:
        return files.get(path, output, progress=line)
    except bp.errors.TapeDamagedError as error:
        if not files.is_dir(path):
            raise
        print(f"blockplane: {sentence(error.message)}; what is whole is fetched file by file", file=sys.stderr)
    report = bp.GetReport()
    for folder, _, names in files.walk(path):
        inside = os.path.relpath(os.fsdecode(folder), path)
        os.makedirs(os.path.join(top, inside), exist_ok=True)
        report.n_directories += 1
        for name in names:
            where = os.path.normpath(os.path.join(top, inside, os.fsdecode(name)))
            try:
                its = files.get(os.path.join(os.fsdecode(folder), os.fsdecode(name)), where)
            except bp.errors.TapeDamagedError as error:
                report.skipped.append((where, error.message))
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(where)
                continue
            report.n_files, report.n_bytes = report.n_files + its.n_files, report.n_bytes + its.n_bytes
    return report


#: Verbs of the group `tape`, which is a verb of `tapes`.
VERBS: tuple[click.Command, ...] = ()
