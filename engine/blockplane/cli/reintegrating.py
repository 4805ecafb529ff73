"""Reintegration: an incremental mirror and its base become one volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

import blockplane as bp
from blockplane.cli.completion import VolumeName
from blockplane.cli.mirrors import mirror
from blockplane.cli.naming import is_same_place, is_there, open_volume, opening_to_make, volume_only
from blockplane.cli.options import DiskOptions, disk_options, json_option, progress_option, wait_option
from blockplane.cli.progress import ProgressLine
from blockplane.cli.text import blocks, print_json, printable

if TYPE_CHECKING:
    from blockplane.transfer.copy import CopyReport
    from blockplane.transfer.peer import Brought


@mirror.command()
@click.argument("dest", type=VolumeName())
@click.argument("vol", type=VolumeName())
@disk_options
@json_option
@wait_option
@progress_option
def reintegrate(
    dest: str,
    vol: str,
    wish: DiskOptions,
    as_json: bool,
    wait_s: float,
    progress: bool | None,
) -> None:
    """Make one volume, VOL, of the incremental mirror DEST and its base.

    VOL gets the last state that arrived whole, read from DEST's disks and from the base at once. Where VOL is there and
    has a snapshot of DEST's, only what is newer travels; a mirror is broken off first. DEST stays as it is.

    \b
    blockplane mirror reintegrate fast whole --disks 4 --size 16G
    """
    place, where = volume_only(vol), volume_only(dest)
    if is_same_place(where, place):
        raise bp.errors.RefusedError(f"{vol} is the incremental mirror itself", "name another volume, or one to make")
    with open_volume(where, "mirror reintegrate", wait_s, writable=False) as structure:
        top = _last_whole(structure)
        with ProgressLine(progress) as line:
            found = _reintegrated(structure, top, place, wish, wait_s, line)
    if as_json:
        print_json(
            {
                "top": found.top,
                "base": found.base,
                "n_blocks": found.n_blocks,
                "n_bytes": found.n_bytes,
                "seconds": found.seconds,
                "already_there": found.already_there,
            }
        )
    elif found.already_there:
        print(f"{printable(vol)} has {printable(found.top)} already")
    else:
        print(f"{printable(vol)} shows {printable(found.top)}: {blocks(found.n_blocks)} in {found.seconds:.1f} s")


def _last_whole(volume: bp.Volume) -> str:
    """Return the state that was brought to a mirror last, in a rehearsal and after it was broken off too."""
    mirror = volume.mirror_of
    found = mirror.last_complete if mirror is not None else None
    if mirror is None:
        standing = bp.VolumePeer(volume).standing()
        found = next((r.name for r in standing.snapshots if r.id in (standing.at, standing.parent)), None)
    if found is None:
        raise bp.errors.RefusedError(f"{volume.path} has no state that was brought to it", "`mirror run` brings one")
    return found


def _reintegrated(
    structure: bp.Volume, top: str, place: str, wish: DiskOptions, wait_s: float, progress: bp.Progress
) -> Brought | CopyReport:
    if is_there(place) and wish.is_plain:
        from blockplane.volume.mirrored import refuse_replaced  # not above: help and completion do without

        with open_volume(place, "mirror reintegrate", wait_s, writable=True) as target:
            refuse_replaced(target)
            return bp.VolumePeer(structure).bring(top, target, bp.LocalChanges.REFUSE, progress)
    return bp.copy(
        structure.image(top, older="all"), place, disks=wish.disks, size=wish.size, parity=wish.parity,
        chunk=wish.chunk, wipe=wish.wipe, progress=progress, opening=opening_to_make("mirror reintegrate"),
    )  # fmt: skip


VERBS = ()
