"""What changed between two states: diff, by path or by block."""

from __future__ import annotations

import stat as modes
from collections.abc import Mapping

import click

import blockplane as bp
from blockplane.cli.completion import SnapshotName
from blockplane.cli.files import type_name
from blockplane.cli.naming import Target, open_volume, parse_target
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.text import blocks, count, print_json, printable

_LETTERS = {"added": "+", "changed": "M", "deleted": "-", "renamed": "R"}


@click.command()
@click.argument("before", metavar="VOL@A", type=SnapshotName())
@click.argument("after", metavar="VOL@B|VOL", type=SnapshotName())
@click.option("--blocks", "by_block", is_flag=True, help="Block numbers instead of paths.")
@click.option("--atime", is_flag=True, help="List also what was only read: its access time changed, and nothing else.")
@json_option
@wait_option
def diff(before: str, after: str, by_block: bool, atime: bool, as_json: bool, wait_s: float) -> None:
    """Say what changed from A to B, by path.

    VOL alone is the live file system. `+` added, `-` deleted, `M` changed, `R` renamed; what changed about a file
    stands behind its path: its content, attributes, links. Of a renamed directory what lies in it is not listed, unless
    it changed itself. No data is read: the cost follows what changed.

    \b
    blockplane diff pool@june1 pool@june2
    blockplane diff pool@june1 pool --json
    blockplane diff --blocks pool@june1 pool@june2
    """
    one, two = _states(before, after)
    if one.snapshot is None:
        raise bp.errors.UsageError(f"{before!r} names no snapshot", f"write the older one first: {one.place}@june1")
    with open_volume(one.place, "diff", wait_s, writable=False) as volume:
        if by_block:
            _print_blocks(one, two, volume.block_diff(one.snapshot, two.snapshot), as_json)
        else:
            _print_paths(one, two, volume.diff(one.snapshot, two.snapshot, atime=atime), as_json)


def _states(before: str, after: str) -> tuple[Target, Target]:
    one, two = parse_target(before), parse_target(after)
    for target in (one, two):
        if target.path is not None:
            raise bp.errors.UsageError(f"{target.text!r} names a path", "name whole states: VOL@A VOL@B, or VOL@A VOL")
    if one.place.rstrip("/") != two.place.rstrip("/"):
        hint = "name two states of one volume; a copy that received both can tell"
        raise bp.errors.UsageError(f"{one.place} and {two.place} are two volumes", hint)
    return one, two


def _print_paths(one: Target, two: Target, found: bp.Difference, as_json: bool) -> None:
    if as_json:
        counts = {f"n_{sort}": n for sort, n in found.counts.items()}
        changes = [describe_change(change) for change in found.changes]
        print_json({"before": one.snapshot, "after": two.snapshot, **counts, "changes": changes})
        return
    for change in found.changes:
        print(_line(change))
    print(", ".join(f"{n:,} {sort}" for sort, n in found.counts.items() if n) or "nothing changed")


def describe_change(change: bp.Change) -> Mapping[str, object]:
    """Return a change as programs rely on it."""
    return {
        "path": change.path,
        "change": change.change,
        "path_before": change.path_before,
        "kinds": list(change.kinds),
        "type": type_name(change.mode),
        "inode": change.inode,
        "generation": change.generation,
    }


def _line(change: bp.Change) -> str:
    slash = "/" if modes.S_ISDIR(change.mode) and change.path != "/" else ""
    path, before = printable(change.path) + slash, change.path_before
    if before is not None and before != change.path:
        came = f"{printable(before)}{slash} -> "
        path = f"{came}{path}" if change.change == "renamed" else f"{path} (was {printable(before)}{slash})"
    kinds = f"  {', '.join(change.kinds)}" if change.kinds else ""
    return f"{_LETTERS[change.change]} {path}{kinds}"


def _print_blocks(one: Target, two: Target, found: bp.BlockDifference, as_json: bool) -> None:
    planes = {"added": found.added, "removed": found.removed, "exchanged": found.exchanged}
    if as_json:
        counts = {f"{name}_blocks": len(plane) for name, plane in planes.items()}
        lists = {f"{name}_extents": planes[name].extents().tolist() for name in ("added", "removed")}
        print_json({"before": one.snapshot, "after": two.snapshot, **counts, **lists})
        return
    for letter, plane in (("+", found.added), ("-", found.removed)):
        for extents in plane.iter_extents():
            for start, stop in extents.tolist():
                print(f"{letter} {_range(start, stop)}")
    print(f"{blocks(len(found.added))} added, {blocks(len(found.removed))} removed")
    if len(found.exchanged):
        print(f"{count(len(found.exchanged), 'number')} of them in both, where the two hold different blocks")


def _range(start: int, stop: int) -> str:
    """Return block numbers as `who --vbn` takes them, both ends included."""
    return f"{start}-{stop - 1}" if stop - start > 1 else str(start)


VERBS = (diff,)
