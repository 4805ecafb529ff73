"""Verbs on whole volumes: create, grow, info, check."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import VolumeName
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import DiskOptions, disk_options, json_option, progress_option, wait_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.resuming import describe_interrupted
from blockplane.cli.text import blocks, count, iso, moment, print_json, print_table, printable, sentence, size

if TYPE_CHECKING:
    from blockplane.disks import GroupRecord

_MAX_SHOWN_PROBLEMS = 50

#: Why the policy made a shadow of a snapshot.
DEMOTED_BY = {1: "less was free than its limit", 2: "an operation lacked room", 3: "a replica was not heard of"}


@click.command()
@click.argument("vol", type=VolumeName())
@disk_options
@click.option("--dry-run", "-n", is_flag=True, help="Say what would be made; make nothing.")
@json_option
def create(
    vol: str,
    wish: DiskOptions,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a volume.

    Makes disk files in VOL, or uses the files or devices named; one RAID group, all disks counted with parity.

    \b
    blockplane create pool --disks 5 --size 2G
    blockplane create pool --disk /dev/sdb --disk /dev/sdc --disk /dev/sdd --parity 1
    """
    path = volume_only(vol)
    disks = wish.disks if wish.disks is not None else 5
    if dry_run:
        names, group = bp.Volume.plan(path, disks, wish.size, wish.parity, wish.chunk)
        places = [str(Path(path) / name) for name in names]
        _report_group(vol, "would make", places, group, as_json, {"dry_run": True})
        return
    with bp.Volume.create(path, disks, wish.size, wish.parity, wish.chunk, wish.wipe) as volume:
        names = [d.path for d in volume.array.disks]
        _report_group(vol, "made", names, volume.geometry.groups[0], as_json, {"id": volume.info.volume_id.hex()})


@click.command()
@click.argument("vol", type=VolumeName())
@disk_options
@json_option
@wait_option
def grow(
    vol: str,
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
) -> None:
    """Add a RAID group to a volume.

    \b
    blockplane grow pool --disks 3 --size 4G
    """
    if wish.disks is None:
        raise bp.errors.UsageError("grow needs disks", "say --disks 3 --size 4G, or --disk PATH for each")
    with open_volume(volume_only(vol), "grow", wait_s, writable=True) as volume:
        n_before = volume.geometry.n_disks
        group = volume.grow(wish.disks, wish.size, wish.parity, wish.chunk, wish.wipe)
        names = [d.path for d in volume.array.disks[n_before:]]
        _report_group(vol, "added to", names, group, as_json, {"free_blocks": volume.free_blocks})


def _report_group(
    vol: str, what: str, names: Sequence[str], group: GroupRecord, as_json: bool, more: dict[str, object]
) -> None:
    if as_json:
        found = {
            "n_blocks": group.n_blocks,
            "block_bytes": bp.BLOCK_BYTES,
            "disks": list(names),
            "n_parity": group.n_parity,
            "chunk_blocks": group.chunk_blocks,
            "first": group.first,
        }
        print_json({**found, **more})
        return
    print(f"{what} {printable(vol)}: {_layout(group)}")
    print(f"room for {blocks(group.n_blocks)}")


def _layout(group: GroupRecord) -> str:
    members = f"{group.n_data} + {group.n_parity} parity disks" if group.n_parity else count(group.n_data, "disk")
    whole = group.chunk_blocks == group.disk_blocks
    chunk = "whole disks" if whole else f"chunks of {size(group.chunk_blocks * bp.BLOCK_BYTES)}"
    return f"{members} of {size(group.disk_blocks * bp.BLOCK_BYTES)}, {chunk}"


@click.command()
@click.argument("vol", type=VolumeName())
@json_option
@wait_option
def info(vol: str, as_json: bool, wait_s: float) -> None:
    """Show geometry, space and snapshots."""
    with open_volume(volume_only(vol), "info", wait_s, writable=False) as volume:
        if as_json:
            print_json(describe_volume(volume))
        else:
            _print_volume(volume)


def describe_volume(volume: bp.Volume) -> dict[str, object]:
    """Return what programs rely on; None for what cannot be known, and why in `damage`."""
    groups = [
        {
            "first": group.first,
            "n_data": group.n_data,
            "n_parity": group.n_parity,
            "chunk_blocks": group.chunk_blocks,
            "disk_blocks": group.disk_blocks,
            "disks": list(group.disks),
        }
        for group in volume.geometry.groups
    ]
    snapshots, damage = _readable_snapshots(volume)
    is_whole, live = not volume.damage, volume.active.root if volume.knows_live else None
    return {
        "id": volume.info.volume_id.hex(),
        "path": str(volume.path),
        "n_blocks": volume.n_blocks,
        "block_bytes": bp.BLOCK_BYTES,
        "disks": [{"path": disk.path, "n_blocks": disk.n_blocks} for disk in volume.array.disks],
        "groups": groups,
        "leaving_group": volume.info.leaving,
        "used_blocks": volume.used_blocks if is_whole else None,
        "free_blocks": volume.free_blocks if is_whole else None,
        "available_blocks": volume.coming_blocks if is_whole else None,
        "reserve_blocks": volume.info.reserve_blocks,
        "held_blocks": volume.local.root.n_held if volume.knows_local else None,
        "n_inodes": live.n_inodes if live is not None else None,
        "cp": live.cp if live is not None else None,
        "generation": volume.info.generation,
        "snapshots": [describe_snapshot(snapshot) for snapshot in snapshots],
        "policy": describe_policy(volume.pressure if volume.knows_local else None),
        "pointers": describe_pointers(volume) if volume.knows_local else None,
        **_describe_marks(volume),
        "incoming": describe_interrupted(volume) if volume.knows_local else None,
        "pins": _pins(snapshots),
        "damage": damage,
    }


def describe_policy(found: bp.PressurePolicy | None) -> dict[str, object] | None:
    """Return what is done when space runs short, as the JSON forms show it."""
    if found is None:
        return None
    found = bp.PressurePolicy.of(found.record())  # a size as a number, however it was written
    return {"demote_under": found.under, "keep": found.keep, "only": list(found.only)}


def _pins(snapshots: Sequence[bp.Snapshot]) -> list[dict[str, object]]:
    """Return what reads which snapshot now."""
    return [
        {"snapshot": snapshot.name, "verb": pin.verb, "pid": pin.pid, "since": iso(pin.since_ns)}
        for snapshot in snapshots
        for pin in snapshot.pins
    ]


def _describe_marks(volume: bp.Volume) -> dict[str, object]:
    """Return what is marked, and where destinations stand; nothing where that cannot be read."""
    try:
        marks, destinations = volume.positions, volume.destinations.list()
    except bp.errors.VolumeDamagedError:
        return {"marks": None, "destinations": None}
    shown = [{**dataclasses.asdict(mark), "begun": iso(mark.begun_ns)} for mark in marks]
    return {"marks": shown, "destinations": [dataclasses.asdict(destination) for destination in destinations]}


def _print_marks(volume: bp.Volume) -> None:
    try:
        marks, destinations = volume.positions, volume.destinations.list()
    except bp.errors.VolumeDamagedError as error:
        print(f"DAMAGED    {sentence(f'the marks cannot be read: {error}')}")
        return
    rows = [["marked", "at", "entered until the next", "left until the next"]]
    for mark in marks:
        known = (mark.n_alloc if mark.alloc_known else None, mark.n_dealloc if mark.dealloc_known else None)
        rows.append([mark.name, moment(mark.begun_ns), *("unknown" if n is None else f"{n:,}" for n in known)])
    if marks:
        print_table(rows, right=(2, 3))
    for d in destinations:
        going = f", {d.under_way} is {d.status}" if d.under_way else ""
        print(f"{printable(d.name)} has {d.acknowledged or 'nothing yet'}{going}")


def _readable_snapshots(volume: bp.Volume) -> tuple[list[bp.Snapshot], list[str]]:
    """Return the snapshots as far as they can be listed, and what is damaged."""
    damage = list(volume.damage)
    if volume.damage and not volume.knows_local:
        damage.append("the snapshots shown are those of the consistency point before, where there are any")
    try:
        return volume.snapshots, damage
    except bp.errors.VolumeDamagedError as error:
        return [], [*damage, f"the snapshot table is damaged: {error}"]


def describe_snapshot(snapshot: bp.Snapshot) -> dict[str, object]:
    """Return a snapshot as the JSON forms of info and snapshot list show it; of a shadow also how it goes."""
    found = {
        "name": snapshot.name,
        "id": snapshot.id,
        "created": iso(snapshot.created_ns),
        "kind": snapshot.kind,
        "n_blocks": snapshot.n_blocks,
        "exclusive_blocks": _exclusive_blocks(snapshot),
    }
    if snapshot.is_master:
        found["master"] = True
    if pointers := _pointers_at(snapshot):
        found["pointers"] = pointers
    if snapshot.volume.knows_local and (holds := [*snapshot.holds, *snapshot.expired_holds]):
        found["holds"] = [
            {
                "owner": h.owner,
                "made": iso(h.made_ns),
                "expires": iso(h.expires_ns) if h.expires_ns else None,
                "expired": h.has_expired,
            }
            for h in holds
        ]
    if pins := snapshot.pins:
        found["pins"] = [{"verb": pin.verb, "pid": pin.pid, "since": iso(pin.since_ns)} for pin in pins]
    if snapshot.shadowed_ns:
        found |= {
            "shadowed": iso(snapshot.shadowed_ns),
            "was_blocks": snapshot.was_blocks,
            "lost_blocks_per_second": snapshot.lost_per_s,
            "recent_lost_blocks_per_second": snapshot.recent_lost_per_s,
            "demotion": _demotion(snapshot),
        }
    return found


def _demotion(snapshot: bp.Snapshot) -> dict[str, object]:
    """Return who made a shadow of a snapshot, and why."""
    how = snapshot.demotion
    if how is None or how.by not in DEMOTED_BY:
        return {"by": "somebody", "freed_blocks": how.freed_blocks if how is not None else None}
    return {
        "by": "policy",
        "reason": DEMOTED_BY[how.by],
        "room_blocks": how.room_blocks,
        "wanted_blocks": how.wanted_blocks,
        "freed_blocks": how.freed_blocks,
    }


def describe_pointers(volume: bp.Volume) -> list[dict[str, object]] | None:
    """Return a volume's pointers as the JSON forms show them; snapshot: null where it is gone. None: damaged."""
    try:
        pointers = volume.pointers
    except bp.errors.VolumeDamagedError:
        return None
    return [{"name": p.name, "snapshot": p.snapshot, "moved": iso(p.moved_ns)} for p in pointers]


def _pointers_at(snapshot: bp.Snapshot) -> list[str]:
    """Return which pointers stand at a snapshot, as far as that can be read."""
    try:
        return snapshot.pointers if snapshot.volume.knows_local else []
    except bp.errors.VolumeDamagedError:
        return []


def print_pointers(volume: bp.Volume) -> None:
    """Print which pointers stand where."""
    try:
        pointers = volume.pointers
    except bp.errors.VolumeDamagedError as error:
        print(f"DAMAGED    {sentence(f'the pointers cannot be read: {error}')}")
        return
    for pointer in pointers:
        where = pointer.snapshot or "a snapshot that is gone"
        print(f"pointer    {pointer.name} -> {where} ({moment(pointer.moved_ns)})")


def _exclusive_blocks(snapshot: bp.Snapshot) -> int | None:
    """Return what deleting a snapshot alone would free; None where damage leaves that open."""
    if not snapshot.volume.knows_local:
        return None
    try:
        return snapshot.exclusive_blocks
    except bp.errors.VolumeDamagedError:
        return None


def _print_volume(volume: bp.Volume) -> None:
    from blockplane.volume.basegroup import has_base  # not above: help loads no NumPy

    snapshots, damage = _readable_snapshots(volume)
    print(f"volume     {volume.info.volume_id.hex()}")
    for index, group in enumerate(volume.geometry.groups):
        print(f"group {index}    {_layout(group)}")
    if has_base(volume):
        print("base       group 0: what is in it is read, and never written")
    elif volume.info.leaving is not None:
        print(f"leaving    group {volume.info.leaving}: `blockplane shrink` goes on, or calls it off")
    print(f"space      {blocks(volume.n_blocks)}")
    if not volume.damage:
        print(f"used       {blocks(volume.used_blocks)}, of them {blocks(volume.local.root.n_held)} by snapshots alone")
        print(f"available  {blocks(volume.coming_blocks)}")
    if volume.knows_live:
        print(f"inodes     {volume.active.root.n_inodes:,} in use")
    for problem in damage:
        print(f"DAMAGED    {sentence(problem)}")
    print_snapshots(snapshots)
    if volume.knows_local:
        print_pointers(volume)
    if volume.knows_local and volume.pressure is not None:
        print(f"policy     {printable(str(volume.pressure))}")
    _print_marks(volume)
    for its in bp.interrupted_receives(volume) if volume.knows_local else ():
        print(f"incoming   {its.top_name}: {its.n_landed:,} or more of {blocks(its.n_image)} are here")


def print_snapshots(found: Sequence[bp.Snapshot]) -> None:
    """Print a table of snapshots; `alone` is what deleting that one would free."""
    if not found:
        print("no snapshots")
        return
    rows = [["snapshot", "created", "kind", "blocks", "size", "alone"]]
    for s in found:
        alone = _exclusive_blocks(s)
        cells = [s.name, moment(s.created_ns), _kind(s), f"{s.n_blocks:,}", size(s.n_blocks * bp.BLOCK_BYTES)]
        rows.append([*cells, "?" if alone is None else size(alone * bp.BLOCK_BYTES)])
    print_table(rows, right=(3, 4, 5))


def _kind(snapshot: bp.Snapshot) -> str:
    """Return a snapshot's kind, who holds and who reads it, and of a shadow how much is left and how fast it goes."""
    if not snapshot.shadowed_ns:
        return ", ".join([snapshot.kind, *_needs(snapshot)])
    left = f"{snapshot.kind}, {snapshot.n_blocks / max(snapshot.was_blocks, 1):.1%} left"
    how = snapshot.demotion
    by = " by the policy" if how is not None and how.by in DEMOTED_BY else ""
    lost_per_s = snapshot.recent_lost_per_s
    if lost_per_s is None:
        return f"{left}{by}"
    return f"{left}, -{size(int(lost_per_s * 86400 * bp.BLOCK_BYTES))}/day{by}"


def _needs(snapshot: bp.Snapshot) -> list[str]:
    found = []
    if snapshot.volume.knows_local:
        owners = [hold.owner for hold in snapshot.holds]
        owners += [f"{hold.owner} (expired)" for hold in snapshot.expired_holds]
        found = [f"held by {', '.join(owners)}"] if owners else []
    if snapshot.is_master:
        found.insert(0, "master")
    readers = [f"{pin.verb} (process {pin.pid})" for pin in snapshot.pins]
    return [*found, f"read by {', '.join(readers)}"] if readers else found


@click.command()
@click.argument("vol", type=VolumeName())
@click.option("--parity/--no-parity", default=True, help="Recompute parity too (default).")
@json_option
@wait_option
@progress_option
def check(vol: str, parity: bool, as_json: bool, wait_s: float, progress: bool | None) -> int:
    """Check a volume's whole structure.

    Every block, checksum, plane, inode, directory and link of every state, the labels and root records at both ends of
    every disk, and the parity of every stripe. Writes nothing. Exit status 1 when something is wrong.
    """
    with open_volume(volume_only(vol), "check", wait_s, writable=False) as volume, ProgressLine(progress) as line:
        report = bp.check(volume, parity=parity, phase=line.phase)
    if as_json:
        print_json(
            {
                "ok": report.ok,
                "problems": report.problems,
                "n_states": report.n_states,
                "n_blocks": report.n_blocks,
                "n_stripes": report.n_stripes,
                "n_unsettled": report.n_unsettled,
                "n_inodes": report.n_inodes,
                "n_files": report.n_files,
                "n_directories": report.n_directories,
            }
        )
        return 0 if report.ok else 1
    for problem in report.problems[:_MAX_SHOWN_PROBLEMS]:
        print(sentence(problem))
    if len(report.problems) > _MAX_SHOWN_PROBLEMS:
        print(f"... and {len(report.problems) - _MAX_SHOWN_PROBLEMS} more; --json lists them")
    if report.n_unsettled:
        stripes = count(report.n_unsettled, "stripe")
        print(f"the volume was not closed: {stripes} under way then will be settled when it is next written to")
    if any(" of a file " in problem for problem in report.problems):
        print(f"`blockplane who {printable(vol)} --vbn N` says of which file a block is, and who has it")
    if parity and not report.n_stripes and not report.ok:
        print("parity was not compared: it is computed from blocks that are right")
    print(
        f"{printable(vol)}: {'ok' if report.ok else 'DAMAGED'}: {count(report.n_states, 'state')}, "
        f"{blocks(report.n_blocks)} read, {count(report.n_stripes, 'stripe')} with parity, "
        f"{count(report.n_inodes, 'inode')}, {count(report.n_directories, 'directory', 'directories')}"
    )
    return 0 if report.ok else 1


VERBS = (create, grow, info, check)
