"""The recipe of the golden volumes: small ones in which everything stands that a release keeps on disks.

    python -m rig.goldens FOLDER

Ids and times are of the day they were made, so that another run gives other bytes: what they hold is written beside
them. They are made once for each format version, and never again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

import blockplane as bp
from blockplane.volume.codec import TableEntry
from rig.listing import describe

NAMES = ("source", "waiting", "mapped")


def block(number: int) -> bytes:
    return number.to_bytes(4, "little") * 1024


def fill(files: bp.FileSystem) -> None:
    """A name of each kind, files inline, flat and below nodes, a large directory, attributes inline and in blocks."""
    files.makedirs("/dir/deep")
    files.write_bytes("/inline", b"hello")
    files.write_bytes("/flat", b"".join(map(block, range(5))) + b"tail")
    files.write_bytes("/dir/nodes", b"".join(map(block, range(40))))
    with files.open("/sparse", "wb") as file:
        file.seek(30 << 20)
        file.write(b"end")
    files.symlink("dir/nodes", "/link")
    files.link("/flat", "/dir/again")
    files.mkfifo("/fifo")
    files.mknod("/device", 0o060640, (7 << 8) | 3)
    files.setxattr("/flat", "user.small", b"1")
    files.setxattr("/dir", "user.large", b"x" * 3000)
    files.chmod("/inline", 0o4751)
    files.chown("/inline", 12, 34)
    files.utime("/inline", ns=(1, -2))
    files.mkdir("/many")
    for number in range(300):
        files.write_bytes(f"/many/{number:03d} {'n' * 40}", b"")


def make(folder: Path) -> None:
    """A volume with a history of its own, and two that received it and keep what they wrote: one waits for more."""
    with bp.Volume.create(folder / "source", disks=3, size="4M") as volume:
        files = bp.FileSystem(volume)
        fill(files)
        volume.snapshot("one")
        files.write_bytes("/flat", b"other")
        files.unlink("/dir/nodes")
        volume.snapshot("two", mark=True)
        volume.grow(disks=4, size="4M", parity=2)
        files.write_bytes("/later", b"".join(map(block, range(500, 1100))))
        volume.snapshot("three")
        files.rename("/later", "/dir/later")
        files.write_bytes("/flat", b"".join(map(block, range(60, 80))))
        volume.snapshot("four")
        bp.send(volume.image("two"), folder / "two.bps")
        bp.send(volume.image("four - two"), folder / "four.bps")
        volume.shadow_snapshot("one")
        volume.hold_snapshot("three", "golden")
        volume.save_image("week", "four - two")
        volume.destinations.begin("far", "four")
        volume.set_pressure(bp.PressurePolicy("1%", keep=2, only=("auto-*",)))
        volume.rollback("three", keep_as="kept")
        files.write_bytes("/branch", b"grown")
    for name in ("waiting", "mapped"):
        bp.receive(folder / "two.bps", folder / name, disks=1, size="9M")
        with bp.Volume.open(folder / name) as volume:
            bp.FileSystem(volume).write_bytes("/mine", b"".join(map(block, range(900, 930))))
            volume.snapshot("mine")
            volume.rollback("two")
            data = (folder / "four.bps").read_bytes()
            with contextlib.suppress(bp.errors.StreamTruncatedError):
                bp.receive(io.BytesIO(data[:1_500_000] if name == "waiting" else data), volume, discard=True)


def contents(path: Path) -> dict[str, Any]:
    """Return what stands in a volume, so far as it can be compared."""
    with bp.Volume.open(path, writable=False) as volume:
        states = {s.name: s for s in volume.snapshots if s.kind == "regular"}
        trees = {name: _digest(bp.FileSystem(s)) for name, s in states.items()} | {
            "active": _digest(bp.FileSystem(volume))
        }
        return {
            "id": volume.info.volume_id.hex(),
            "groups": [[g.first, g.n_data, g.n_parity, g.chunk_blocks, g.disk_blocks] for g in volume.geometry.groups],
            "used_blocks": volume.used_blocks,
            "snapshots": [[s.name, s.id, s.kind, s.n_blocks] for s in volume.snapshots],
            "trees": trees,
            "planes": {file.name: hashlib.sha256(file.read()).hexdigest() for file in volume.planes},
            "holds": [[s.name, [hold.owner for hold in s.holds]] for s in volume.snapshots if s.holds],
            "marks": [[p.name, p.n_alloc, p.n_dealloc] for p in volume.positions],
            "images": [[i.name, i.definition, i.n_blocks] for i in volume.saved_images],
            "destinations": [[d.name, d.status] for d in volume.destinations.list()],
            "policy": repr(volume.pressure),
            "maps": {e.record.name: _map_of(volume, e) for e in volume.local.entries()},
            "incoming": [[r.top_name, r.n_image, r.n_landed] for r in bp.interrupted_receives(volume)],
        }


def _map_of(volume: bp.Volume, entry: TableEntry) -> str:
    return hashlib.sha256(volume.committed_local.map_of(entry.place_map).encode()).hexdigest()


def _digest(files: bp.FileSystem) -> str:
    return hashlib.sha256(repr(sorted(describe(files).items())).encode()).hexdigest()


def pack(path: Path) -> bytes:
    """Return a volume's directory as a compressed archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for file in sorted(path.rglob("*")):
            if file.is_file() and file.name != "lock":
                archive.add(file, str(file.relative_to(path.parent)))
    return zstd.compress(out.getvalue(), 19)


def unpack(data: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(data))) as archive:
        archive.extractall(folder, filter="data")


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        for volume in NAMES:
            (target / f"{volume}.tar.zst").write_bytes(pack(Path(name, volume)))
            (target / f"{volume}.json").write_text(json.dumps(contents(Path(name, volume)), indent=1) + "\n")


if __name__ == "__main__":
    main()
