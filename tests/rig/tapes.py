"""A volume with four snapshots, its set of tapes, and the means to spoil one."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import blockplane as bp
from rig.simh import places

#: Records of 64 KiB and tapes of 4 MiB: a few megabytes make a set.
FORM = bp.TapeForm(tape_size="4MiB", record_size="64KiB")
APPEND = bp.TapeForm(tape_size="4MiB", append=True)
SNAPSHOTS = ("s0", "s1", "s2", "s3")


@dataclass
class Backup:
    """A volume and its tapes. files : by snapshot, what each path holds."""

    folder: Path
    volume: bp.Volume
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def tapes(self) -> list[str]:
        """The tapes there are, in order."""
        return sorted(str(path) for path in self.folder.glob("t*.tap"))

    @property
    def names(self) -> list[str]:
        """Names enough for any set here."""
        return [str(self.folder / f"t{i}.tap") for i in range(1, 10)]

    def copied(self, folder: Path) -> list[str]:
        """A copy of the tapes."""
        folder.mkdir()
        return [shutil.copy(name, folder) for name in self.tapes]


def fill(folder: Path, rng: np.random.Generator, n_files: int = 40) -> Backup:
    """A volume with four snapshots, each with some files changed, and 1 MiB in /tree/big."""
    volume = bp.Volume.create(folder / "pool", disks=4, size="32M")
    fs, backup, now = bp.FileSystem(volume), Backup(folder, volume), {}
    fs.mkdir("/tree")
    for name, n_bytes in [("big", 1 << 20), *((f"f{i}", 300_000) for i in range(n_files))]:
        now[f"/tree/{name}"] = rng.bytes(n_bytes)
        fs.write_bytes(f"/tree/{name}", now[f"/tree/{name}"])
    for number, snapshot in enumerate(SNAPSHOTS):
        if number:
            now[f"/tree/f{number}"] = rng.bytes(200_000)
            fs.write_bytes(f"/tree/f{number}", now[f"/tree/f{number}"])
            now[f"/new{number}"] = rng.bytes(150_000)
            fs.write_bytes(f"/new{number}", now[f"/new{number}"])
        volume.snapshot(snapshot)
        backup.files[snapshot] = dict(now)
    return backup


def write_all(backup: Backup, **form: object) -> list[bp.TapeWriteReport]:
    """Write the full image and three increments."""
    volume = backup.volume
    reports = [bp.write_tape(volume.image("s0"), backup.names, FORM, **form)]
    for before, after in itertools.pairwise(SNAPSHOTS):
        reports.append(bp.write_tape(volume.image(f"{after} - {before}"), backup.names, APPEND, **form))
    return reports


def same(source: object, files: dict[str, bytes]) -> bool:
    """Whether a state holds these files and no others."""
    fs = bp.FileSystem(source)
    found = {f"{folder.rstrip('/')}/{name}" for folder, _, names in fs.walk("/") for name in names}
    return found == set(files) and all(fs.read_bytes(path) == content for path, content in files.items())


def spoil(name: str, record: int, byte: int = -1) -> None:
    """Change a byte of a record of a tape, counted among records alone."""
    offset, n_bytes = places(name)[record]
    with open(name, "r+b") as file:
        at = offset + (n_bytes + byte if byte < 0 else byte)
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 0x40]))
