"""Level plans: image plan."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

import blockplane as bp
from blockplane.cli.completion import ExpressionWord, VolumeName
from blockplane.cli.naming import CONFIG_NAME, open_volume, volume_only
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.text import print_json, print_table, size


@click.command()
@click.argument("vol", metavar="[VOL]", required=False, type=VolumeName())
@click.argument("words", metavar="[NAMES|A..B]...", nargs=-1, type=ExpressionWord())
@click.option("--scheme", default="hanoi", metavar="SCHEME", help="hanoi[:LEVELS], gfs[:WEEK:MONTH], levels:0,2,1,..., "
              "cumulative, chain, full (hanoi).")  # fmt: skip
@click.option("--days", type=click.IntRange(1), metavar="N", help="Plan N days: day1, day2, ..., or VOL's and more.")
@click.option("--carry", is_flag=True, help="Each image carries all snapshots since its base along.")
@click.option("--full-every", type=click.IntRange(1), metavar="N", help="A full image every N days.")
@json_option
@wait_option
def plan(
    vol: str | None,
    words: Sequence[str],
    scheme: str,
    days: int | None,
    carry: bool,
    full_every: int | None,
    as_json: bool,
    wait_s: float,
) -> None:
    """Plan levels of backups: what to send each day, and what must be kept until when.

    The days are the snapshots named, all of VOL's where none is, and made-up ones up to --days. A level-n image is an
    increment to the newest earlier day of a lower level. `snapshot until`: the last day whose image names it;
    `stream until`: the last day that is restored through its stream. Sizes are exact where VOL has the snapshots.

    \b
    blockplane image plan --days 16 --scheme hanoi:4
    blockplane image plan pool june1..june9 --scheme gfs:3:9 --carry
    blockplane image plan pool --scheme levels:0,3,2,5,4,7,6
    """
    if vol is None:
        _print(bp.plan_levels(_made_up([], days), scheme, carry=carry, full_every=full_every), {}, scheme, as_json)
        return
    with open_volume(_known(vol), "image plan", wait_s, writable=False) as volume:
        names = _made_up(_days_of(volume, words), days)
        backups = bp.plan_levels(names, scheme, carry=carry, full_every=full_every)
        _print(backups, _sizes(volume, backups), scheme, as_json)


def _known(vol: str) -> str:
    place = volume_only(vol)
    if not os.path.exists(os.path.join(place, CONFIG_NAME)):
        raise bp.errors.NotAVolumeError(f"{place} is no volume", "name a volume first, or none and --days N")
    return place


def _made_up(names: list[str], n_days: int | None) -> list[str]:
    """Return names, and made-up ones behind them up to n_days."""
    from blockplane.image.plan import MAX_DAYS  # not above: help loads no NumPy

    if n_days is None:
        return names
    if n_days > MAX_DAYS:
        raise bp.errors.UsageError(f"a plan of {n_days} days", f"plan 1 to {MAX_DAYS:,} days")
    if n_days < len(names):
        raise bp.errors.UsageError(f"--days {n_days} and {len(names)} snapshots", "name the snapshots to plan for")
    more = (name for number in range(1, n_days + len(names) + 1) if (name := f"day{number}") not in names)
    return [*names, *(next(more) for _ in range(n_days - len(names)))]


def _days_of(volume: bp.Volume, words: Sequence[str]) -> list[str]:
    if not words:
        line = volume.line
        kinds = {snap.name: snap.kind if snap.name in line else "of another branch" for snap in volume.snapshots}
        left_out = [f"{name} ({kind})" for name, kind in kinds.items() if kind != "regular"]
        if left_out:
            print(f"blockplane: left out: {', '.join(left_out)}", file=sys.stderr)
        return [name for name, kind in kinds.items() if kind == "regular"]
    names: list[str] = []
    for word in " ".join(words).replace(",", " ").split():
        first, dots, last = word.partition("..")
        names += volume.snapshot_range(first, last) if dots else [word]
    return names


def _sizes(volume: bp.Volume, backups: Sequence[bp.Backup]) -> dict[str, int]:
    """Return how many blocks each image holds whose snapshots are all there."""
    there = {snapshot.name for snapshot in volume.snapshots}
    last = 0
    while last < len(backups) and backups[last].name in there:
        last += 1
    try:
        return {backup.name: volume.image(backup.expression).n_blocks for backup in backups[:last]}
    except bp.errors.UsageError as error:
        error.hint = "name the days older first, and of one line"
        raise


def _print(backups: Sequence[bp.Backup], sizes: dict[str, int], scheme: str, as_json: bool) -> None:
    if as_json:
        print_json({"scheme": scheme, "backups": [_describe(backup, sizes.get(backup.name)) for backup in backups]})
        return
    rows = [["day", "level", "size", "snapshot until", "stream until", "restored through", "image"]]
    for b in backups:
        n_blocks = sizes.get(b.name)
        shown = size(n_blocks * bp.BLOCK_BYTES) if n_blocks is not None else "?"
        chain = ", ".join(b.chain)
        rows.append([b.name, str(b.level), shown, b.keep_snapshot_until, b.keep_stream_until, chain, b.expression])
    print_table(rows, right=(1, 2))


def _describe(backup: bp.Backup, n_blocks: int | None) -> dict[str, object]:
    return {
        "name": backup.name,
        "level": backup.level,
        "expression": backup.expression,
        "base": backup.base,
        "chain": list(backup.chain),
        "keep_snapshot_until": backup.keep_snapshot_until,
        "keep_stream_until": backup.keep_stream_until,
        "n_blocks": n_blocks,
        "n_bytes": n_blocks * bp.BLOCK_BYTES if n_blocks is not None else None,
    }


VERBS: tuple[click.Command, ...] = ()
PAIRS = {("image", "plan"): plan}
