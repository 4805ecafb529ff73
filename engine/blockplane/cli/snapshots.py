"""Snapshots: create, list, delete, rename, shadow, and rollback."""

from __future__ import annotations

import click

import blockplane as bp
from blockplane.cli.completion import SnapshotName, VolumeName
from blockplane.cli.naming import open_volume, snapshot_of, volume_only
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.text import blocks, print_json, printable
from blockplane.cli.volumes import describe_snapshot, print_snapshots


@click.group(subcommand_metavar="VERB ...")
def snapshot() -> None:
    """Make, list, delete, rename and shadow snapshots.

    \b
    blockplane snapshot create pool@june1
    blockplane snapshot list pool
    blockplane snapshot delete pool@june1..june4
    """


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@json_option
@wait_option
def create(name: str, as_json: bool, wait_s: float) -> None:
    """Retain the live file system under a name."""
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot create", wait_s, writable=True) as volume:
        made = volume.snapshot(snap)
        if as_json:
            print_json(describe_snapshot(made))
        else:
            print(f"{printable(name)}: {blocks(made.n_blocks)}")


@snapshot.command("list")
@click.argument("vol", type=VolumeName())
@json_option
@wait_option
def list_(vol: str, as_json: bool, wait_s: float) -> None:
    """List a volume's snapshots.

    Older first; `alone` is what deleting that one would free.
    """
    with open_volume(volume_only(vol), "snapshot list", wait_s, writable=False) as volume:
        if as_json:
            print_json({"snapshots": [describe_snapshot(found) for found in volume.snapshots]})
        else:
            print_snapshots(volume.snapshots)


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@json_option
@wait_option
def delete(name: str, as_json: bool, wait_s: float) -> None:
    """Delete a snapshot, or a range of them.

    VOL@FIRST..LAST are all from one to the other, as `list` shows them.
    """
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot delete", wait_s, writable=True) as volume:
        first, dots, last = snap.partition("..")
        names = volume.snapshot_range(first, last) if dots else [snap]
        n_freed = volume.delete_snapshot(*names)
    if as_json:
        print_json({"deleted": names, "freed_blocks": n_freed})
    else:
        print(f"deleted {', '.join(names)}: {blocks(n_freed)} freed")


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@json_option
@wait_option
def shadow(name: str, as_json: bool, wait_s: float) -> None:
    """Let the blocks of a snapshot be reused, and keep its plane.

    A shadow holds next to no space and cannot be read; it can be subtracted: `newer - shadow` is exactly what changed
    since, for a destination that has the snapshot. It never becomes regular again.
    """
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot shadow", wait_s, writable=True) as volume:
        n_freed = volume.shadow_snapshot(snap)
        if as_json:
            print_json({**describe_snapshot(volume.get_snapshot(snap)), "freed_blocks": n_freed})
        else:
            print(f"{printable(name)} is a shadow: {blocks(n_freed)} freed")


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@click.argument("new", metavar="NEW")
@json_option
@wait_option
def rename(name: str, new: str, as_json: bool, wait_s: float) -> None:
    """Give a snapshot another name.

    Its id stays, and so do the names it has elsewhere.
    """
    place, snap = snapshot_of(name)
    new = new.removeprefix(f"{place}@")
    with open_volume(place, "snapshot rename", wait_s, writable=True) as volume:
        volume.rename_snapshot(snap, new)
        if as_json:
            print_json(describe_snapshot(volume.get_snapshot(new)))


@click.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@click.option("--keep-as", metavar="NAME", help="Name of the snapshot that keeps changes since the newest.")
@click.option("--drop-later", is_flag=True, help="Delete the snapshots made after it.")
@click.option("--drop-changes", is_flag=True, help="Give up changes that no snapshot has.")
@json_option
@wait_option
def rollback(
    name: str, keep_as: str | None, drop_later: bool, drop_changes: bool, as_json: bool, wait_s: float
) -> None:
    """Make a snapshot the live file system.

    Later snapshots stay, and changes since the newest one are kept in a snapshot of their own.
    """
    if keep_as and drop_changes:
        raise bp.errors.UsageError("--keep-as and --drop-changes contradict each other", "say one of them")
    place, snap = snapshot_of(name)
    with open_volume(place, "rollback", wait_s, writable=True) as volume:
        kept = volume.rollback(snap, keep_as, drop_later, drop_changes)
    if as_json:
        print_json({"live": snap, "kept_as": kept})
    else:
        print(f"{printable(place)} is at {snap}" + (f"; what it had changed is in {kept}" if kept else ""))


VERBS = (snapshot, rollback)
