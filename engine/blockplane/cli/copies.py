"""Trees in and out: put and get."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import FileName, HostPath
from blockplane.cli.naming import file_of, live_file_of, open_files, open_volume, plane_name
from blockplane.cli.options import json_option, key_option, progress_option, wait_option
from blockplane.cli.planefiles import get_planes, said
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import count, duration, print_json, printable, rate, sentence, size

if TYPE_CHECKING:
    from blockplane.filesystem import GetReport, PutReport

_MAX_SHOWN_SKIPPED = 20


@click.command()
@click.argument("dest", metavar="VOL:/DEST", type=FileName())
@click.argument("source", metavar="SRC", type=HostPath())
@click.option("--update", is_flag=True, help="Make DEST equal to SRC; rewrite only the blocks that differ.")
@click.option("--delete", is_flag=True, help="With --update: remove what SRC lacks.")
@click.option("--checksum", is_flag=True, help="With --update: compare contents even where size and time agree.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out what matches; repeat.")
@json_option
@wait_option
@progress_option
def put(
    dest: str,
    source: str,
    update: bool,
    delete: bool,
    checksum: bool,
    exclude: Sequence[str],
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> int:
    """Copy a file or tree in.

    With all its attributes. Names as `cp -a` does: into DEST where that is a directory, else as DEST.

    \b
    blockplane put pool:/ /usr/include          makes /include
    blockplane put --update --delete pool:/include /usr/include
    blockplane put pool:/ src --exclude '*.o' --exclude /build --exclude 'cache/'

    A PATTERN with a slash at its start or within it names a path from SRC on, one without an entry wherever it lies; a
    slash at its end means directories only. `*` and `?` stop at slashes, `**` does not, `[a-z]` is one of a set. What
    is below a directory left out is left out too, and in directories that SRC has --delete leaves alone what matches.
    """
    target = live_file_of(dest)
    if (delete or checksum) and not update:
        raise bp.errors.UsageError("--delete and --checksum go with --update", "say --update too")
    with open_volume(target.place, "put", wait_s, writable=True) as volume, ProgressLine(progress) as line:
        files = bp.FileSystem(volume)
        report = files.put(
            source, target.path or "/", update=update, delete=delete, checksum=checksum, exclude=exclude, progress=line
        )
        volume.sync()
    if as_json:
        print_json(_shown(report))
    else:
        gone = "removed" if update else "replaced"
        removed = f", {count(report.n_removed, 'entry', 'entries')} {gone}" if report.n_removed else ""
        removed += f", {count(report.n_excluded, 'entry', 'entries')} left out" if report.n_excluded else ""
        written = f", {size(report.n_blocks_written * bp.BLOCK_BYTES)} written" if update else ""
        print(f"put {_counts(report)}{written}{removed}")
    return _status("skipped", report.skipped) | _status("changed", report.changed)


@click.command()
@click.argument("source", metavar="VOL[@SNAP]:/PATH", type=FileName())
@click.argument("dest", metavar="DEST", type=HostPath())
@key_option
@json_option
@wait_option
@progress_option
def get(source: str, dest: str, keys: Sequence[str], as_json: bool, wait_s: float, progress: bool | None) -> int:
    """Copy a file or tree out.

    Out of a volume, a snapshot or a stream, with all its attributes; names as `cp -a` does.

    \b
    blockplane get pool@june1:/include /tmp/include
    blockplane get june1.bps:/include/stdio.h .
    """
    target = file_of(source)
    if (plane := plane_name(target)) is not None:
        got = get_planes(target, plane, dest, wait_s)
        print_json({"n_planes": got[0], "n_bytes": got[1]}) if as_json else print(f"got {said(*got)}")
        return 0
    with open_files(target, "get", wait_s, keys) as files, ProgressLine(progress) as line:
        report = files.get(target.path or "/", dest, progress=line)
    if as_json:
        print_json(_shown(report))
    else:
        print(f"got {_counts(report)}")
    return _status("skipped", report.skipped)


def _shown(report: PutReport | GetReport) -> dict[str, object]:
    lists = ("skipped", "changed")
    return {
        name: [{"path": path, "reason": reason} for path, reason in value] if name in lists else value
        for name, value in asdict(report).items()
    }


def _counts(report: PutReport | GetReport) -> str:
    others = f", {count(report.n_others, 'other')}" if report.n_others else ""
    return (
        f"{count(report.n_files, 'file')}, {count(report.n_directories, 'directory', 'directories')}{others}, "
        f"{size(report.n_bytes)} in {duration(report.seconds)} ({rate(report.n_bytes, report.seconds)})"
    )


def _status(what: str, found: Sequence[tuple[str, str]]) -> int:
    """Name what was skipped, or is not as it should be; return the exit status."""
    for path, reason in found[:_MAX_SHOWN_SKIPPED]:
        print(f"blockplane: {what} {printable(path)}: {sentence(reason)}", file=sys.stderr)
    if len(found) > _MAX_SHOWN_SKIPPED:
        print(f"  and {len(found) - _MAX_SHOWN_SKIPPED} more; --json lists them", file=sys.stderr)
    return 1 if found else 0


VERBS = (put, get)
