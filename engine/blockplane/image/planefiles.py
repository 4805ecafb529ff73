"""Planes as files: what `VOL:/.planes` lists, each as a portable 64-bit Roaring bitmap.

There are the plane of every snapshot, what is left of every shadow, the marks of every position and every stored image.
A name is what stands for the plane in an expression, so no two are alike: `june3`, `alloc(june3)`. For those who type
it, `alloc-june3` means `alloc(june3)` where nothing else is named so. The plane of a stored image is the one it had
when it was saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from blockplane.model.errors import RefusedError
from blockplane.planes import Plane
from blockplane.planes.portable import is_wide, widen
from blockplane.volume import shadows
from blockplane.volume.imagetable import ImageTable, StoredImage
from blockplane.volume.live import LiveVolume
from blockplane.volume.marks import KINDS, Kind
from blockplane.volume.positions import mark_plane, plane_of, positions
from blockplane.volume.snapshots import all_of

#: The directory's name: it stands in no directory of the volume.
PLANES_DIRECTORY: Final = "/.planes"

PlaneKind = Literal["snapshot", "shadow", "alloc", "dealloc", "image"]


@dataclass(frozen=True, slots=True)
class PlaneFile:
    """A plane that can be read. n_blocks: its bits; None where counting them means reading it."""

    name: str
    kind: PlaneKind
    n_blocks: int | None
    made_ns: int
    load: Callable[[], Plane]

    def read(self) -> bytes:
        """Return the plane as a portable 64-bit Roaring bitmap."""
        plane = self.load()
        return plane.serialize() if is_wide(plane.n_blocks) else widen(plane.serialize())


def plane_files(volume: LiveVolume) -> list[PlaneFile]:
    """Return all planes: snapshots and shadows, older first, then marks, then stored images."""
    with volume.lock:
        found = [
            PlaneFile(s.name, "shadow" if s.shadowed_ns else "snapshot", s.n_blocks, s.created_ns, _of(volume, s.name))
            for s in all_of(volume)
        ]
        return found + _marks(volume) + _images(volume)


def _of(volume: LiveVolume, name: str) -> Callable[[], Plane]:
    def load() -> Plane:
        with volume.lock:
            entry = volume.local.entry(name)
            return volume.plane(shadows.find(volume, name) if entry.is_shadow else volume.snapshot_state(entry))

    return load


def _images(volume: LiveVolume) -> list[PlaneFile]:
    """The planes of stored images, as they were when they were saved."""
    table = volume.committed_local.images
    return [PlaneFile(i.name, "image", i.n_blocks, i.made_ns, _stored(volume, table, i)) for i in table.all()]


def _stored(volume: LiveVolume, table: ImageTable, image: StoredImage) -> Callable[[], Plane]:
    return functools.partial(plane_of, volume, table.plane(image))


def _marks(volume: LiveVolume) -> list[PlaneFile]:
    found = []
    for position in positions(volume):
        known = {"alloc": position.alloc_known, "dealloc": position.dealloc_known}
        for kind in KINDS:
            if known[kind]:
                load = functools.partial(volume_marks, volume, kind, position.name)
                found.append(PlaneFile(f"{kind}({position.name})", kind, None, position.begun_ns, load))
    return found


def volume_marks(volume: LiveVolume, kind: Kind, name: str) -> Plane:
    """Return a mark plane in memory."""
    with volume.lock:
        return plane_of(volume, mark_plane(volume, kind, name))


def plane_file(volume: LiveVolume, name: str) -> PlaneFile:
    """Return one by its name.

    Raises
    ------
    RefusedError: there is no plane of that name.
    """
    by_name = {file.name: file for file in plane_files(volume)}
    for kind in KINDS:
        alias = f"{kind}({name.removeprefix(f'{kind}-')})"
        if name.startswith(f"{kind}-") and name not in by_name and alias in by_name:
            return by_name[alias]
    if name not in by_name:
        raise RefusedError(
            f"there is no plane {name!r}", f"`blockplane ls {volume.path}:{PLANES_DIRECTORY}` lists them"
        )
    return by_name[name]
