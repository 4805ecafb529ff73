"""The recipe of the golden volumes: small ones in which everything stands that a release keeps on disks.

    python -m rig.goldens FOLDER [NAME...]

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

NAMES = ("source", "waiting", "mapped", "pointed")


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


def make_pointed(folder: Path) -> None:
    """A volume with masters and pointers that replicas follow: one is behind one that is, one met something."""
    with (
        bp.Volume.create(folder / "pointed", disks=2, size="4M") as volume,
        bp.Volume.create(folder / "near", disks=1, size="9M") as near,
        bp.Volume.create(folder / "far", disks=1, size="9M") as far,
        bp.Volume.create(folder / "small", disks=1, size="5M") as small,
    ):
        files = bp.FileSystem(volume)
        files.write_bytes("/file", b"".join(map(block, range(200))))
        volume.snapshot("one")
        volume.make_master("one")
        volume.move_pointer("stable", "one")
        volume.move_pointer("gone", "one")
        volume.delete_pointer("gone")
        bp.replicate(bp.VolumePeer(volume), near)
        bp.replicate(bp.VolumePeer(near), far)
        bp.FileSystem(small).write_bytes("/mine", block(1))
        with contextlib.suppress(bp.errors.RefusedError):
            bp.replicate(bp.VolumePeer(volume), small, changes=bp.LocalChanges.REFUSE)
        files.write_bytes("/file", b"".join(map(block, range(100, 150))))
        volume.snapshot("two")
        volume.make_master("two")
        bp.replicate(bp.VolumePeer(volume), near)
        volume.set_replica_limit(86_400)


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
            **_replication(volume),
            "incoming": [[r.top_name, r.n_image, r.n_landed] for r in bp.interrupted_receives(volume)],
        }


def _replication(volume: bp.Volume) -> dict[str, Any]:
    """Return pointers and replicas, where there are any: the first goldens were written before there were."""
    if not volume.pointers:
        return {}
    replicas = [[r.name, r.via, r.status, r.newest, r.left_blocks, bool(r.error)] for r in bp.replicas(volume)]
    return {
        "pointers": [[p.name, p.snapshot] for p in volume.pointers],
        "remembered": [[p.name, p.version, p.snapshot_id.hex()] for p in volume.local.replication().pointers],
        "masters": [s.name for s in volume.snapshots if s.is_master],
        "replicas": replicas,
        "limit": volume.replica_limit_s,
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
        make_pointed(Path(name))
        for volume in sys.argv[2:] or NAMES:
            (target / f"{volume}.tar.zst").write_bytes(pack(Path(name, volume)))
            (target / f"{volume}.json").write_text(json.dumps(contents(Path(name, volume)), indent=1) + "\n")


if __name__ == "__main__":
    main()
