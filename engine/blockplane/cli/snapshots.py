"""Snapshots: create, list, delete, rename, shadow, master, mark, unmark, hold, release, and rollback."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

import blockplane as bp
from blockplane.cli.completion import SnapshotName, VolumeName
from blockplane.cli.naming import open_volume, snapshot_of, volume_only
from blockplane.cli.options import Duration, defer_option, json_option, wait_option
from blockplane.cli.text import blocks, print_json, printable
from blockplane.cli.volumes import describe_pointers, describe_snapshot, print_pointers, print_snapshots


@click.group(subcommand_metavar="VERB ...")
def snapshot() -> None:
    """Make, list, delete, rename, shadow, mark and hold snapshots; make them masters.

    \b
    blockplane snapshot create pool@june1
    blockplane snapshot list pool
    blockplane snapshot delete pool@june1..june4
    """


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@click.option("--mark", is_flag=True, help="Note from now on what enters and leaves the volume: alloc(SNAP).")
@json_option
@wait_option
def create(name: str, mark: bool, as_json: bool, wait_s: float) -> None:
    """Retain the live file system under a name."""
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot create", wait_s, writable=True) as volume:
        made = volume.snapshot(snap, mark)
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
            snapshots = [describe_snapshot(found) for found in volume.snapshots]
            print_json({"snapshots": snapshots, "pointers": describe_pointers(volume)})
        else:
            print_snapshots(volume.snapshots)
            print_pointers(volume)


@snapshot.command()
@click.argument("names", metavar="VOL@SNAP...", nargs=-1, required=True, type=SnapshotName())
@click.option("-n", "--dry-run", is_flag=True, help="Say exactly what that would free; delete nothing.")
@defer_option
@json_option
@wait_option
def delete(names: Sequence[str], dry_run: bool, defer: bool, as_json: bool, wait_s: float) -> None:
    """Delete snapshots, or ranges of them, in one commit.

    VOL@FIRST..LAST are all from one to the other, as `list` shows them. What becomes free is told apart from the
    metafile blocks that the commit itself takes, or gives back.
    """
    place, wanted = _of_one_volume(names)
    with open_volume(place, "snapshot delete", wait_s, writable=not dry_run) as volume:
        gone = [name for snap in wanted for name in _range_of(volume, snap)]
        delete_snapshots(volume, list(dict.fromkeys(gone)), dry_run, defer, as_json)


def _of_one_volume(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return the volume, and the snapshots or ranges named of it."""
    found = [snapshot_of(name) for name in names]
    places = list(dict.fromkeys(place.rstrip("/") for place, _ in found))
    if len(places) > 1:
        raise bp.errors.UsageError(f"{places[0]} and {places[1]} are two volumes", "delete in one at a time")
    return found[0][0], [snap for _, snap in found]


def _range_of(volume: bp.Volume, text: str) -> list[str]:
    first, dots, last = text.partition("..")
    return volume.snapshot_range(first, last) if dots else [text]


def delete_snapshots(volume: bp.Volume, names: Sequence[str], dry_run: bool, defer: bool, as_json: bool) -> None:
    """Delete snapshots and say what that freed, or would free."""
    waiting: list[str] = []
    if dry_run:
        at_once = volume.plan_delete(*names, defer=defer)
        waiting = [name for name in names if name not in at_once]
        n_freed, n_metafile = volume.freeing(*at_once).n_blocks if at_once else 0, 0
    else:
        n_before = _metafile_blocks(volume)
        n_freed = volume.delete_snapshot(*names, defer=defer) if names else 0
        n_metafile = max(_metafile_blocks(volume) - n_before, 0)  # what only the snapshots' own records took is freed
        waiting = [snap.name for snap in volume.snapshots if snap.name in names and snap.kind == "deleting"]
    gone = [name for name in names if name not in waiting]
    if as_json:
        print_json(
            {
                "deleted": gone,
                "deferred": waiting,
                "freed_blocks": n_freed,
                "metafile_blocks": n_metafile,
                "dry_run": dry_run,
            }
        )
        return
    if not names:
        print("nothing to delete")
    if gone:
        own = f"; the commit itself took {blocks(n_metafile)}" if n_metafile > 0 else ""
        print(f"{'would delete' if dry_run else 'deleted'} {', '.join(gone)}: {blocks(n_freed)} freed{own}")
    if waiting:
        did = "would defer" if dry_run else "deferred"
        print(f"{did} {', '.join(waiting)}: until nothing reads or holds what is to go")


def _metafile_blocks(volume: bp.Volume) -> int:
    """Return how many blocks the live state and the local tree have; of a commit without files' changes, metafiles."""
    return volume.active.root.n_blocks + volume.local.root.n_local


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
@json_option
@wait_option
def master(name: str, as_json: bool, wait_s: float) -> None:
    """Let replicas synchronise to a snapshot: the pointer `master` moves to it.

    A master stays until every known replica has passed it; `blockplane replicas` shows them, and sets a limit after
    which a shadow takes its place.
    """
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot master", wait_s, writable=True) as volume:
        volume.make_master(snap)
        made = volume.get_snapshot(snap)
        if as_json:
            print_json(describe_snapshot(made))
        else:
            print(f"{printable(place)}: master stands at {made.name}")


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@json_option
@wait_option
def mark(name: str, as_json: bool, wait_s: float) -> None:
    """Keep marks from a snapshot on: which blocks entered and left the volume.

    They are operands of images: `june5 & alloc(june3)`; `cat VOL:/.planes/alloc-june3` reads them. What entered since
    is found by comparing; what left before marking is known only where an older snapshot is marked. `snapshot create
    --mark` knows both. Of a snapshot that is marked already, what damage took is worked out anew, as far as it can be.
    """
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot mark", wait_s, writable=True) as volume:
        volume.mark(snap)
        if as_json:
            print_json(describe_snapshot(volume.get_snapshot(snap)))


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@json_option
@wait_option
def unmark(name: str, as_json: bool, wait_s: float) -> None:
    """Keep marks from a snapshot on no longer; those of older snapshots lose nothing."""
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot unmark", wait_s, writable=True) as volume:
        volume.unmark(snap)
        if as_json:
            print_json(describe_snapshot(volume.get_snapshot(snap)))


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@click.argument("owner", metavar="OWNER")
@click.option("--expires", type=Duration(), metavar="TIME", help="Let it end by itself: 90s, 30m, 12h, 7d, 4w.")
@json_option
@wait_option
def hold(name: str, owner: str, expires: float | None, as_json: bool, wait_s: float) -> None:
    """Keep a snapshot from being deleted or made a shadow, until OWNER releases it.

    A second hold of the same owner replaces the first.
    """
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot hold", wait_s, writable=True) as volume:
        volume.hold_snapshot(snap, owner, 0 if expires is None else time.time_ns() + int(expires * 1e9))
        if as_json:
            print_json(describe_snapshot(volume.get_snapshot(snap)))


@snapshot.command()
@click.argument("name", metavar="VOL@SNAP", type=SnapshotName())
@click.argument("owner", metavar="OWNER")
@json_option
@wait_option
def release(name: str, owner: str, as_json: bool, wait_s: float) -> None:
    """Give OWNER's hold on a snapshot up."""
    place, snap = snapshot_of(name)
    with open_volume(place, "snapshot release", wait_s, writable=True) as volume:
        snapshot_id = volume.get_snapshot(snap).id
        volume.release_snapshot(snap, owner)
        found = next((snapshot for snapshot in volume.snapshots if snapshot.id == snapshot_id), None)
        if as_json:
            print_json(describe_snapshot(found) if found is not None else {"name": snap, "deleted": True})
        elif found is None:
            print(f"{printable(name)} was waiting for that, and is deleted")


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
@defer_option
@json_option
@wait_option
def rollback(
    name: str, keep_as: str | None, drop_later: bool, drop_changes: bool, defer: bool, as_json: bool, wait_s: float
) -> None:
    """Make a snapshot the live file system.

    Later snapshots stay, and changes since the newest one are kept in a snapshot of their own.
    """
    if keep_as and drop_changes:
        raise bp.errors.UsageError("--keep-as and --drop-changes contradict each other", "say one of them")
    if defer and not drop_later:
        raise bp.errors.UsageError("--defer says when snapshots go, and none is to go", "say --drop-later too")
    place, snap = snapshot_of(name)
    with open_volume(place, "rollback", wait_s, writable=True) as volume:
        kept = volume.rollback(snap, keep_as, drop_later, drop_changes, defer)
    if as_json:
        print_json({"live": snap, "kept_as": kept})
    else:
        print(f"{printable(place)} is at {snap}" + (f"; what it had changed is in {kept}" if kept else ""))


VERBS = (snapshot, rollback)
