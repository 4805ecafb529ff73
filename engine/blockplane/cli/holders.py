"""Who holds a block, or the blocks of a file: who."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import FileName
from blockplane.cli.naming import Target, open_volume, parse_target, volume_only
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.text import blocks, print_json, print_table, printable

if TYPE_CHECKING:
    from blockplane.filesystem.owners import Owner

_MAX_SHOWN = 1000
_USES = {
    "local": "the volume's own records of its snapshots and space",
    "kept": "the consistency point before the last; free after the next",
    "incoming": "a receive under way",
    "taken": "no state has this number; a block of another number lies at the place",
    "free": "nobody",
    "outside": "outside the volume",
}


@click.command()
@click.argument("name", metavar="VOL|VOL[@SNAP]:/PATH", type=FileName())
@click.argument("path", metavar="[:/PATH]", required=False)
@click.option("--vbn", metavar="A-B", help="Block numbers, both ends included, or one.")
@click.option("--no-files", is_flag=True, help="With --vbn: do not search for the files that the blocks belong to.")
@json_option
@wait_option
def who(name: str, path: str | None, vbn: str | None, no_files: bool, as_json: bool, wait_s: float) -> None:
    """Say who holds blocks.

    With --vbn: which states, at which place, and what the blocks are in the newest of them. The search for that reads
    all inodes and blocks of pointers, and no data. With a path: how many of its blocks each state has, and how many it
    alone; of a directory with all that lies below it. What is so small that it lies in its inode has the inode's block.

    \b
    blockplane who pool --vbn 4711
    blockplane who pool --vbn 1000-1999 --json
    blockplane who pool:/include/stdio.h
    blockplane who pool@june1:/include
    """
    if (vbn is None) == (path is None and ":/" not in name):
        raise bp.errors.UsageError("who needs blocks or a path", "say --vbn A-B, or VOL:/PATH")
    target = parse_target(name if path is None else name + path)
    if vbn is None:
        _who_has(target, as_json, wait_s)
        return
    start, stop = block_range(vbn)
    with open_volume(volume_only(name), "who", wait_s, writable=False) as volume:
        found = volume.who(start, stop, owners=not no_files)
    if as_json:
        print_json({"start": start, "stop": stop, "holdings": [_describe(use) for use in found]})
    else:
        _print(found)


def block_range(text: str) -> tuple[int, int]:
    """Return block numbers as a half-open range."""
    match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise bp.errors.UsageError(f"{text!r} are no block numbers", "write the first and the last: --vbn 1000-1999")
    return int(match[1]), int(match[2] or match[1]) + 1


def _describe(use: bp.BlockUse) -> dict[str, object]:
    holding = use.holding
    return {
        "start": holding.start,
        "stop": holding.stop,
        "place": holding.place,
        "states": list(holding.states),
        "use": holding.use,
        "owners": [
            {
                "start": owner.start,
                "stop": owner.stop,
                "what": owner.what,
                "level": owner.level,
                "offset_bytes": owner.offset_bytes,
                "inode": owner.inode,
                "paths": list(owner.paths),
            }
            for owner in use.owners
        ],
    }


def _print(found: list[bp.BlockUse]) -> None:
    for use in found[:_MAX_SHOWN]:
        holding = use.holding
        holders = ", ".join(holding.states) if holding.states else _USES[holding.use]
        place = f" at {shown_range(holding.place, holding.place + holding.stop - holding.start)}"
        elsewhere = place if holding.states and holding.place != holding.start else ""
        print(f"{shown_range(holding.start, holding.stop)}{elsewhere}: {holders}")
        for owner in use.owners:
            print(f"  {shown_range(owner.start, owner.stop)}: {owned(owner)}")
    if len(found) > _MAX_SHOWN:
        print(f"... and {len(found) - _MAX_SHOWN:,} more runs; --json lists them")


def owned(owner: Owner) -> str:
    """Return what blocks are of, as people read it."""
    of = " of " + ", ".join(map(printable, owner.paths)) if owner.paths else ""
    what = owner.what if owner.inode is None or owner.what == "attributes" else f"{owner.what} {owner.inode}"
    pointers = f"pointers (level {owner.level}) to " if owner.level else ""
    where = "" if owner.what == "state root" else f", from byte {owner.offset_bytes:,}"
    return f"{pointers}{what}{of}{where}"


def shown_range(start: int, stop: int) -> str:
    """Return blocks start..stop as people name them: both ends included."""
    return str(start) if stop == start + 1 else f"{start}-{stop - 1}"


def _who_has(target: Target, as_json: bool, wait_s: float) -> None:
    with open_volume(target.place, "who", wait_s, writable=False) as volume:
        found = volume.who_has(target.path or "/", target.snapshot)
    n_blocks = len(found.plane)
    if as_json:
        states = [
            {"name": share.name, "n_blocks": share.n_blocks, "exclusive_blocks": share.exclusive_blocks}
            for share in found.shares
        ]
        extents = found.plane.extents().tolist()
        print_json({"path": target.path, "snapshot": target.snapshot, "n_blocks": n_blocks,
                    "in_inodes": found.is_in_inodes, "states": states, "extents": extents})  # fmt: skip
        return
    where = " of the inode file, in which all of it lies" if found.is_in_inodes else ""
    print(f"{printable(target.text)}: {blocks(n_blocks)}{where}")
    if found.shares:
        rows = [["state", "blocks", "alone"]]
        rows += [[share.name, f"{share.n_blocks:,}", f"{share.exclusive_blocks:,}"] for share in found.shares]
        print_table(rows, right=(1, 2))


VERBS = (who,)
