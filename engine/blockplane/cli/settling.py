"""The verb settle: blocks that lie elsewhere go to the places of their numbers."""

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
@click.option("-n", "--dry-run", is_flag=True, help="Say what would move, and what stays and why; change nothing.")
@json_option
@wait_option
@progress_option
def settle(vol: str, dry_run: bool, as_json: bool, wait_s: float, progress: bool | None) -> None:
    """Move blocks home: to the places of their numbers.

    After `receive --relocate`, `shrink`, or receives beside local changes, blocks lie at other places than their
    numbers, and place maps say where. Once there is room, as after `grow`, this makes the maps small again. It goes in
    steps each of which is durable, may be stopped at any time, and goes on when it is begun again. Files, snapshots,
    marks and what destinations have stay as they are; what is being read stays where it is.

    \b
    blockplane settle pool -n
    blockplane settle pool
    """
    with open_volume(volume_only(vol), "settle", wait_s, writable=not dry_run) as volume:
        if dry_run:
            plan = volume.plan_settle()
            found, text = {**dataclasses.asdict(plan), "dry_run": True}, _planned(vol, plan)
        else:
            with ProgressLine(progress) as line:
                report = volume.settle(line)
            found, text = dataclasses.asdict(report), _done(vol, report)
    if as_json:
        print_json(found)
    else:
        print(text)


def _planned(vol: str, plan: bp.SettlePlan) -> str:
    stays = [
        (plan.n_no_place, "have no such place here"),
        (plan.n_taken, "find something there that stays"),
        (plan.n_meant, "find what a shadow means"),
        (plan.n_arriving, "lie beside what a receive is to bring"),
        (plan.n_read, "are being read"),
    ]
    lines = [
        f"{blocks(plan.n_elsewhere)} of {printable(vol)} lie elsewhere; {plan.n_moving:,} would go home, and the place "
        f"maps would have {plan.n_extents_after:,} extents instead of {plan.n_extents:,}",
        *(f"{n:,} stay: they {why}" for n, why in stays if n),
    ]
    return "\n".join(lines)


def _done(vol: str, report: bp.SettleReport) -> str:
    return (
        f"{blocks(report.n_moved)} of {printable(vol)} went home in {count(report.n_steps, 'step')}, "
        f"{duration(report.seconds)}; {report.n_elsewhere:,} lie elsewhere; the place maps have {report.n_extents:,} "
        f"extents, of {report.n_extents_before:,}"
    )


VERBS = (settle,)
