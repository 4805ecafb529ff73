"""Small volumes with masters, for tests of replication."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import blockplane as bp

Make = Callable[..., bp.Volume]


@contextmanager
def making(folder: Path) -> Iterator[Make]:
    """Give what makes volumes below a folder, which are closed at the end."""
    made: list[bp.Volume] = []

    def make_volume(name: str, disks: int = 2) -> bp.Volume:
        made.append(bp.Volume.create(folder / name, disks=disks, size="6MiB", parity=0))
        return made[-1]

    yield make_volume
    for volume in made:
        if not volume._failure:
            volume.close()


def write(volume: bp.Volume, path: str, data: bytes) -> None:
    bp.FileSystem(volume).write_bytes(path, data)


def read(volume: bp.Volume | bp.Snapshot, path: str) -> bytes:
    return bp.FileSystem(volume).read_bytes(path)


def master(volume: bp.Volume, name: str, data: bytes) -> None:
    write(volume, "/file", data)
    volume.snapshot(name)
    volume.make_master(name)


def kinds(volume: bp.Volume) -> dict[str, str]:
    return {snapshot.name: snapshot.kind for snapshot in volume.snapshots}
