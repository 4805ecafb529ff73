"""Retention: prune."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import blockplane as bp
from blockplane.cli.completion import VolumeName
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import Duration, defer_option, json_option, wait_option
from blockplane.cli.text import blocks, count, iso, moment, print_json, print_table, printable

_keep = click.IntRange(-1)


@click.command()
@click.argument("vol", type=VolumeName())
@click.option("--keep-last", default=0, type=_keep, metavar="N", help="The N newest.")
@click.option("--keep-hourly", default=0, type=_keep, metavar="N", help="The newest of each of the last N hours.")
@click.option("--keep-daily", default=0, type=_keep, metavar="N", help="The newest of each of the last N days.")
@click.option("--keep-weekly", default=0, type=_keep, metavar="N", help="The newest of each of the last N weeks.")
@click.option("--keep-monthly", default=0, type=_keep, metavar="N", help="The newest of each of the last N months.")
@click.option("--keep-yearly", default=0, type=_keep, metavar="N", help="The newest of each of the last N years.")
@click.option(
    "--keep-within",
    type=Duration(),
    default="0s",
    metavar="12h|7d|4w",
    help="All that are at most so much older than the newest.",
)
@click.option("--keep-name", multiple=True, metavar="PATTERN", help="Names with * and ? that stay; repeat.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Judge only names that match; others stay; repeat.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted, and what that would free.")
@defer_option
@json_option
@wait_option
def prune(
    vol: str,
    keep_last: int,
    keep_hourly: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    keep_yearly: int,
    keep_within: float,
    keep_name: Sequence[str],
    only: Sequence[str],
    dry_run: bool,
    defer: bool,
    as_json: bool,
    wait_s: float,
) -> None:
    """Delete the snapshots that no rule keeps.

    Newest is asked twice, by what came last and by the times that were recorded: what either keeps stays. Hours, days,
    weeks, months and years without a snapshot do not count; they begin by this machine's clock. N is -1 for all. A
    policy that would keep nothing is refused.

    \b
    blockplane prune pool --keep-last 3 --keep-daily 7 --keep-weekly 4 --keep-monthly 12 -n
    blockplane prune pool --keep-within 7d --keep-name 'release-*' --only 'auto-*'
    """
    policy = bp.Policy(
        keep_last,
        keep_hourly,
        keep_daily,
        keep_weekly,
        keep_monthly,
        keep_yearly,
        int(keep_within),
        tuple(keep_name),
        tuple(only) or ("*",),
    )
    with open_volume(volume_only(vol), "prune", wait_s, writable=not dry_run) as volume:
        shadows = [] if dry_run else volume.expire_replicas()  # first: what only those needed that are lost may go
        found = volume.prune(policy, dry_run=dry_run, defer=defer)
    if only and not found.verdicts:
        print(f"blockplane: no snapshot matches --only {' or '.join(map(printable, only))}", file=sys.stderr)
    if as_json:
        print_json(_describe(found) | {"became_shadows": shadows})
    else:
        for name in shadows:
            print(f"{printable(name)} is a shadow now: only replicas that are lost needed it (replicas --limit)")
        _print(found)


def _describe(found: bp.PruneReport) -> dict[str, object]:
    verdicts = [{"name": v.name, "created": iso(v.created_ns), "reasons": list(v.reasons)} for v in found.verdicts]
    return {
        "kept": [verdict for verdict in verdicts if verdict["reasons"]],
        "deleted": found.deleted,
        "deferred": list(found.deferred),
        "freed_blocks": found.freed_blocks,
        "freed_bytes": found.freed_blocks * bp.BLOCK_BYTES,
        "dry_run": found.is_dry,
    }


def _print(found: bp.PruneReport) -> None:
    verb = "goes" if found.is_dry else "gone"
    rows = [
        [v.name, moment(v.created_ns), "stays" if v.reasons else _fate(found, v.name, verb), ", ".join(v.reasons)]
        for v in found.verdicts
    ]
    print_table(rows)
    would = "would be " if found.is_dry else ""
    deferred = f"{len(found.deferred):,} deferred, " if found.deferred else ""
    deleted = f"{count(len(found.deleted) - len(found.deferred), 'snapshot')} {would}deleted"
    kept = f"{count(len(found.kept), 'snapshot')} kept"
    print(f"{kept}, {deleted}, {deferred}{blocks(found.freed_blocks)} {would}freed")


def _fate(found: bp.PruneReport, name: str, verb: str) -> str:
    return "deferred" if name in found.deferred else verb


VERBS = (prune,)
