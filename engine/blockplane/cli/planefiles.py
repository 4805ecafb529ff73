"""`VOL:/.planes`: the planes of a volume as files for ls, cat, stat and get.

A directory that is no file of the volume, and that the volume part of a name alone has: `VOL@SNAP:/.planes` and
`VOL:/./.planes` are files as any other.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import blockplane as bp
from blockplane.cli.naming import PLANES_DIRECTORY, Target, open_volume
from blockplane.cli.text import blocks, iso, moment, print_json, print_table, printable, size

if TYPE_CHECKING:
    from blockplane.image.planefiles import PlaneFile


def _warn(volume: bp.Volume, place: str) -> None:
    """Say that a file of the volume is called so, too."""
    with contextlib.suppress(bp.errors.BlockplaneError):
        if bp.FileSystem(volume).lexists(PLANES_DIRECTORY):
            print(
                f"blockplane: the volume has a file {PLANES_DIRECTORY} of its own: {place}:/.{PLANES_DIRECTORY}",
                file=sys.stderr,
            )


def describe_plane(file: PlaneFile) -> dict[str, object]:
    """Return what programs rely on."""
    return {"name": file.name, "type": "plane", "kind": file.kind, "n_blocks": file.n_blocks, "made": iso(file.made_ns)}


def list_planes(target: Target, name: str, is_long: bool, as_json: bool, wait_s: float) -> None:
    """What `ls` shows of the directory, or of one plane."""
    with open_volume(target.place, "ls", wait_s, writable=False) as volume:
        _warn(volume, target.place)
        found = volume.planes if not name else [volume.plane_file(name)]
    if as_json:
        print_json({"path": target.path, "entries": [describe_plane(file) for file in found]})
    elif is_long and found:
        rows = [[f.kind, "?" if f.n_blocks is None else f"{f.n_blocks:,}", moment(f.made_ns), f.name] for f in found]
        print_table(rows, right=(1,))
    else:
        for file in found:
            print(file.name)


def read_plane(target: Target, name: str, verb: str, wait_s: float) -> tuple[PlaneFile, int, bytes]:
    """Return a plane, how many blocks it means, and its bytes."""
    if verb == "cat" and sys.stdout is not None and sys.stdout.isatty():
        raise bp.errors.UsageError("a bitmap is not written to a terminal", "redirect it, or `get` it")
    if not name:
        raise bp.errors.UsageError(f"{target.text!r} is a directory", f"name a plane: {target.text.rstrip('/')}/NAME")
    with open_volume(target.place, verb, wait_s, writable=False) as volume:
        _warn(volume, target.place)
        file = volume.plane_file(name)
        return file, len(file.load()), file.read()


def show_plane(target: Target, name: str, as_json: bool, wait_s: float) -> None:
    """What `stat` shows of a plane."""
    file, n_blocks, data = read_plane(target, name, "stat", wait_s)
    if as_json:
        print_json({**describe_plane(file), "path": target.path, "n_blocks": n_blocks, "n_bytes": len(data)})
        return
    print_table(
        [
            ["path", printable(target.path or "")],
            ["type", f"plane of {_ORIGIN[file.kind]}, a portable 64-bit Roaring bitmap"],
            ["size", f"{len(data):,} bytes"],
            ["means", blocks(n_blocks)],
            ["made", moment(file.made_ns)],
        ]
    )


_ORIGIN = {
    "snapshot": "a snapshot",
    "shadow": "a shadow",
    "alloc": "what entered the volume",
    "dealloc": "what left the volume",
    "image": "a stored image",
}


def get_planes(target: Target, name: str, dest: str, wait_s: float) -> tuple[int, int]:
    """Write a plane, or all of them into a directory; return how many planes and bytes."""
    with open_volume(target.place, "get", wait_s, writable=False) as volume:
        _warn(volume, target.place)
        if name:
            place = os.path.join(dest, name) if os.path.isdir(dest) else dest
            return 1, _put(volume.plane_file(name), place)
        os.makedirs(dest, exist_ok=True)
        sizes = [_put(file, os.path.join(dest, file.name)) for file in volume.planes]
        return len(sizes), sum(sizes)


def _put(file: PlaneFile, place: str) -> int:
    from blockplane.disks.label import refuse_disk  # not above: it loads all that help and completion do without

    refuse_disk(place)
    data = file.read()
    with open(place, "wb") as sink:
        return sink.write(data)


def said(n_planes: int, n_bytes: int) -> str:
    """Return the line that `get` prints."""
    return f"{n_planes} plane{'s' * (n_planes != 1)}, {size(n_bytes)}"
