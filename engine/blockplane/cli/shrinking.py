"""The verb shrink: a RAID group is taken out of a volume."""

from __future__ import annotations

import dataclasses

import click

import blockplane as bp
from blockplane.cli.completion import VolumeName
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import json_option, progress_option, wait_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import blocks, count, duration, print_json, printable


@click.command()
@click.argument("vol", type=VolumeName())
@click.option("--group", type=int, metavar="G", help="The group, counted from 0 as `info` lists them.")
@click.option("--cancel", is_flag=True, help="Call off what was begun; what moved stays where it is.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would move, and whether it fits; change nothing.")
@json_option
@wait_option
@progress_option
def shrink(
    vol: str, group: int | None, cancel: bool, dry_run: bool, as_json: bool, wait_s: float, progress: bool | None
) -> None:
    """Take a RAID group out of a volume.

    What lies in the group moves to the others, in steps each of which is durable; then the volume is without it, and
    says which disks may be taken out. Snapshots, marks and what destinations have stay as they are. Cut short anywhere,
    the same command goes on; until the end nothing new goes to the group. Groups behind it count one less afterwards.

    \b
    blockplane shrink pool --group 1 -n
    blockplane shrink pool --group 1
    blockplane shrink pool --cancel
    """
    if cancel == (group is not None) or (cancel and dry_run):
        raise bp.errors.UsageError("shrink takes one group, or calls off what was begun", "say --group G, or --cancel")
    with open_volume(volume_only(vol), "shrink", wait_s, writable=not dry_run) as volume:
        if group is None:
            index = volume.cancel_shrink()
            _print(as_json, {"cancelled": index}, f"RAID group {index} stays in {printable(vol)}")
        elif dry_run:
            plan = volume.plan_shrink(group)
            found = {**dataclasses.asdict(plan), "needed_blocks": plan.needed_blocks, "fits": plan.fits}
            _print(as_json, {**found, "dry_run": True}, _planned(vol, plan))
        else:
            with ProgressLine(progress) as line:
                report = volume.shrink(group, line)
            _print(as_json, {**dataclasses.asdict(report), "free_blocks": volume.free_blocks}, _done(vol, report))


def _print(as_json: bool, found: dict[str, object], text: str) -> None:
    if as_json:
        print_json(found)
    else:
        print(text)


def _planned(vol: str, plan: bp.ShrinkPlan) -> str:
    moving = f"{blocks(plan.n_moving)} of files and snapshots, {plan.n_local:,} of tables and planes"
    moving += f", {plan.n_arriving:,} places of interrupted receives" if plan.n_arriving else ""
    verdict = "they fit" if plan.fits else "they do not fit"
    begun = "; it was begun" if plan.is_under_way else ""
    return (
        f"taking RAID group {plan.group} out of {printable(vol)} would move {moving}: "
        f"{plan.needed_blocks:,} places wanted at most, {plan.room_blocks:,} free: {verdict}{begun}\n"
        f"disks: {', '.join(printable(disk) for disk in plan.disks)}"
    )


def _done(vol: str, report: bp.ShrinkReport) -> str:
    left = [disk for disk in report.disks if disk not in report.removed]
    ends = [f"may be taken out: {', '.join(printable(disk) for disk in left)}"] if left else []
    ends += [f"removed: {', '.join(printable(disk) for disk in report.removed)}"] if report.removed else []
    return "\n".join(
        [
            f"{printable(vol)} is without RAID group {report.group}: {blocks(report.n_moved)} moved in "
            f"{count(report.n_steps, 'step')}, {duration(report.seconds)}",
            *ends,
        ]
    )


VERBS = (shrink,)
