"""The pressure policy: snapshot policy; and what a policy did while a verb ran."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import blockplane as bp
from blockplane.cli.completion import VolumeName
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.snapshots import snapshot
from blockplane.cli.text import blocks, print_json, print_table, printable
from blockplane.cli.volumes import describe_policy


@snapshot.command()
@click.argument("vol", type=VolumeName())
@click.option("--demote-under", metavar="SIZE|PERCENT", help="How much is to be free for files: 10G, or 5%.")
@click.option("--keep", type=click.IntRange(1), metavar="N", help="The N newest stay (1).")
@click.option("--only", multiple=True, metavar="PATTERN", help="Names with * and ? that may go (all); repeat.")
@click.option("--off", is_flag=True, help="Have no policy any more.")
@click.option("-n", "--dry-run", is_flag=True, help="Say which would go now, in order, and what each would free.")
@json_option
@wait_option
def policy(
    vol: str,
    demote_under: str | None,
    keep: int | None,
    only: Sequence[str],
    off: bool,
    dry_run: bool,
    as_json: bool,
    wait_s: float,
) -> None:
    """Let snapshots become shadows when space runs short, or show what is set.

    After a consistency point that leaves less free than --demote-under, and before a verb that lacks room, snapshots
    become shadows, older first, until there is enough: they can still be subtracted, and no longer be read. None goes
    that is being read or held, that a mirror or an interrupted receive stands on, that is one of the newest, or that
    would free less than 16 blocks; none is deleted. `snapshot list` shows those that went.

    \b
    blockplane snapshot policy pool --demote-under 5% --keep 7 --only 'auto-*' -n
    blockplane snapshot policy pool --demote-under 20G
    blockplane snapshot policy pool --off
    """
    wanted = _wanted(demote_under, keep, only, off)
    changes = not dry_run and (wanted is not None or off)
    with open_volume(volume_only(vol), "snapshot policy", wait_s, writable=changes) as volume:
        if changes:
            volume.set_pressure(wanted)
            volume.sync()
        set_now = wanted if dry_run and wanted is not None else None if off else volume.pressure
        plan = volume.plan_demotions(set_now) if set_now is not None else None
        if as_json:
            print_json({"policy": describe_policy(set_now), **_describe(plan), "dry_run": dry_run})
        else:
            _print(set_now, plan)


def _wanted(demote_under: str | None, keep: int | None, only: Sequence[str], off: bool) -> bp.PressurePolicy | None:
    """Return what the options ask for; None: nothing, or to have none."""
    if demote_under is None:
        if keep is not None or only:
            raise bp.errors.UsageError("--keep and --only say nothing alone", "say --demote-under too")
        return None
    if off:
        raise bp.errors.UsageError("--demote-under and --off contradict each other", "say one of them")
    wanted = bp.PressurePolicy(demote_under, keep or 1, tuple(only) or ("*",))
    wanted.record()  # what is impossible is refused before anything is opened
    return wanted


def _describe(plan: bp.DemotionPlan | None) -> dict[str, object]:
    if plan is None:
        return {"room_blocks": None, "wanted_blocks": None, "enough": None, "going": [], "kept": []}
    return {
        "room_blocks": plan.room_blocks,
        "wanted_blocks": plan.wanted_blocks,
        "enough": plan.is_enough,
        "going": [{"name": name, "freed_blocks": n_blocks} for name, n_blocks in plan.going],
        "kept": [{"name": name, "reason": reason} for name, reason in plan.kept],
    }


def _print(found: bp.PressurePolicy | None, plan: bp.DemotionPlan | None) -> None:
    if found is None or plan is None:
        print("no policy: when space runs short writes fail, and snapshots stay")
        return
    print(f"policy: {printable(str(found))}")
    print(f"room for {blocks(plan.room_blocks)}, {blocks(plan.wanted_blocks)} wanted")
    rows = [[name, "goes", f"frees {blocks(n_blocks)}"] for name, n_blocks in plan.going]
    print_table([*rows, *([name, "stays", reason] for name, reason in plan.kept)])
    if not plan.is_enough:
        print("that would not be enough")


def tell_demoted(volume: bp.Volume, known: int = 0) -> None:
    """Say on standard error which snapshots a policy made shadows, but those known before."""
    for name in volume.demoted[known:]:
        print(
            f"blockplane: {printable(str(volume.path))}@{name} became a shadow: the policy wants more space free",
            file=sys.stderr,
        )


#: The verb is one of `snapshot`'s.
VERBS: tuple[click.Command, ...] = ()
