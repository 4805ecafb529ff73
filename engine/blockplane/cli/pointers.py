"""Pointers: names that stand at snapshots, and can be moved."""

from __future__ import annotations

import click

import blockplane as bp
from blockplane.cli.completion import VolumeName
from blockplane.cli.naming import open_volume, volume_only
from blockplane.cli.options import json_option, wait_option
from blockplane.cli.text import print_json, printable
from blockplane.cli.volumes import describe_pointers, print_pointers


@click.command()
@click.argument("vol", type=VolumeName())
@click.argument("name", metavar="[NAME]", required=False)
@click.argument("snap", metavar="[SNAP]", required=False)
@click.option("--delete", is_flag=True, help="Let NAME stand for nothing any more; the snapshot stays.")
@json_option
@wait_option
def pointer(vol: str, name: str | None, snap: str | None, delete: bool, as_json: bool, wait_s: float) -> None:
    """Let NAME stand at a snapshot, or move it there; without a name, show the pointers.

    A pointer's name stands wherever a snapshot's may. The snapshot that it stands at is neither deleted nor made a
    shadow. Replicas follow: see `replicate`.

    \b
    blockplane pointer pool stable june3
    blockplane ls pool@stable:/include
    blockplane pointer pool stable june5
    blockplane pointer pool stable --delete
    """
    if (delete and (name is None or snap is not None)) or (not delete and name is not None and snap is None):
        raise bp.errors.UsageError(
            "a pointer is moved to a snapshot, or deleted", "write VOL NAME SNAP, or VOL NAME --delete"
        )
    place = volume_only(vol)
    with open_volume(place, "pointer", wait_s, writable=name is not None) as volume:
        if name is not None and snap is not None:
            volume.move_pointer(name, snap.removeprefix(f"{place}@"))
        elif name is not None:
            volume.delete_pointer(name)
        if as_json:
            print_json({"pointers": describe_pointers(volume)})
        elif name is None:
            print_pointers(volume)
        else:
            print(f"{printable(vol)}: {name} " + ("is deleted" if delete else f"stands at {snap}"))


VERBS = (pointer,)
