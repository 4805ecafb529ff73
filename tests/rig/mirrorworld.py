"""A source and its mirrors in directories, all open in one process, as tests of mirrors use them."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path

import blockplane as bp
from blockplane.transfer import mirrors
from blockplane.transfer.newvolume import DiskWish
from blockplane.transfer.peer import VolumePeer
from blockplane.volume.mirrorstates import is_own


class World:
    """A source, and destinations that this process has open by their places."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = bp.Volume.create(folder / "source", disks=3, size="8MiB")
        self.opened: dict[str, bp.Volume] = {}
        self.n_asked = 0

    def peers(self) -> mirrors.Peers:
        return mirrors.Peers(local=self.peer)

    @contextmanager
    def peer(self, dest: str):
        self.n_asked += 1
        if dest not in self.opened:
            self.opened[dest] = bp.Volume.open(dest)
        yield VolumePeer(self.opened[dest])

    def add(self, name: str = "copy", of: bp.Volume | None = None, **options) -> bp.Volume:
        dest, wish = str(self.folder / name), options.pop("wish", DiskWish(2, "16MiB"))
        mirrors.add(of or self.source, dest, peers=self.peers(), wish=wish, **options)
        with self.peers().open(dest):
            return self.opened[dest]

    def run(self, of: bp.Volume | None = None, **options) -> list[mirrors.Ran]:
        return list(mirrors.run_once(of or self.source, peers=self.peers(), now=True, **options))

    def outcomes(self, of: bp.Volume | None = None) -> list[str]:
        found = self.run(of)
        assert [ran.error for ran in found if ran.error] == []
        return [ran.report.outcome for ran in found if ran.report is not None]

    def definition(self, copy: bp.Volume, of: bp.Volume | None = None) -> mirrors.MirrorDefinition:
        return mirrors.find((of or self.source).path, str(copy.path))

    def resync(
        self, copy: bp.Volume, winner: str | None = None, of: bp.Volume | None = None, **options
    ) -> mirrors.ResyncReport:
        definition = self.definition(copy, of)
        return mirrors.resync(of or self.source, definition, VolumePeer(copy), winner, **options)

    def copy_source(self, name: str) -> Path:
        """Copy the source's directory, as a backup that people make of files."""
        self.source.close()
        shutil.copytree(self.source.path, self.folder / name)
        self.source = bp.Volume.open(self.source.path)
        return self.folder / name

    def restore_source(self, backup: Path) -> None:
        """Put the source back as it was when it was copied."""
        self.source.close()
        shutil.rmtree(self.source.path)
        backup.rename(self.source.path)
        self.source = bp.Volume.open(self.source.path)

    def close(self) -> None:
        for volume in (self.source, *self.opened.values()):
            volume.close()


def unreachable() -> mirrors.Peers:
    """Return ways to destinations of which none leads anywhere."""

    @contextmanager
    def gone(_dest: str):
        raise OSError("unreachable")
        yield

    return mirrors.Peers(local=gone)


def write(volume: bp.Volume, path: str, data: bytes) -> None:
    bp.FileSystem(volume).write_bytes(path, data)


def read(volume: bp.Volume, path: str, snapshot: str | None = None) -> bytes:
    source = volume if snapshot is None else volume.get_snapshot(snapshot)
    return bp.FileSystem(source).read_bytes(path)


def names(volume: bp.Volume) -> list[str]:
    return [snapshot.name for snapshot in volume.snapshots]


def states_with(volume: bp.Volume, path: str, data: bytes) -> set[str]:
    """Return what of a volume's states has this in a file: `live`, `own` for mirrors' own snapshots, or a name."""
    found = set()
    for name in ("live", *names(volume)):
        files = bp.FileSystem(volume if name == "live" else volume.get_snapshot(name))
        if files.exists(path) and files.read_bytes(path) == data:
            found.add("own" if is_own(name) else name)
    return found
