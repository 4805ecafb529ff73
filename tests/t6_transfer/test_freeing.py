"""What deleting would free is what becomes free: any snapshots, in any order, with place maps and branches too."""

from __future__ import annotations

import numpy as np
import pytest

import blockplane as bp
from blockplane.model import NoSuchSnapshotError
from rig.sets import freed_by, used_places


def members(plane):
    return {n for start, stop in plane.extents().tolist() for n in range(start, stop)}


def change(volume, rng):
    files = bp.FileSystem(volume)
    for _ in range(int(rng.integers(1, 6))):
        name = f"/{rng.integers(12)}"
        if rng.integers(4) == 0 and files.exists(name):
            files.unlink(name)
        else:
            files.write_bytes(name, rng.bytes(int(rng.integers(200_000))))


def history(volume, rng, n_snapshots):
    for number in range(n_snapshots):
        change(volume, rng)
        volume.snapshot(f"s{number}")
        if number % 4 == 3:
            volume.rollback(f"s{rng.integers(number)}", drop_changes=True)
    change(volume, rng)
    volume.sync()


def receive_besides(volume, folder, rng):
    """Snapshots of another volume beside these: their blocks lie elsewhere."""
    with bp.Volume.create(folder / "other", disks=2, size="24M") as other:
        for name in ("o1", "o2"):
            change(other, rng)
            other.snapshot(name)
        bp.send(other.image("o1"), folder / "o1.bps")
        bp.send(other.image("o2 - o1"), folder / "o2.bps")
    volume.snapshot("mine")
    for name in ("o1", "o2"):
        bp.receive(folder / f"{name}.bps", volume, discard=True)
    assert any(not snapshot.state.placemap.is_empty for snapshot in volume.snapshots)


@pytest.mark.parametrize("is_mapped", [False, True], ids=["plain", "mapped"])
def test_what_is_said_becomes_free(tmp_path, rng, is_mapped, is_deep):
    for number in range(20 if is_deep else 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        with bp.Volume.create(folder / "v", disks=4, size="24M") as volume:
            history(volume, rng, 7)
            if is_mapped:
                receive_besides(volume, folder, rng)
            delete_in_random_order(volume, rng)


def delete_in_random_order(volume, rng):
    names = [snapshot.name for snapshot in volume.snapshots]
    rng.shuffle(names)
    while names:
        n_gone = int(rng.integers(1, 4))
        some, names = names[:n_gone], names[n_gone:]
        said = volume.freeing(*some)
        assert members(said.places) == freed_by(volume, some)
        assert said.n_blocks == sum(said.blocks_per_disk) == volume.freed_by(*some)
        assert said.alone == {name: len(freed_by(volume, [name])) for name in some}
        n_free, n_metafile = volume.free_blocks, volume.active.root.n_blocks + volume.local.root.n_local
        assert volume.delete_snapshot(*some) == said.n_blocks
        grown = volume.active.root.n_blocks + volume.local.root.n_local - n_metafile
        assert volume.free_blocks == n_free + said.n_blocks - grown
        assert not members(said.places) & used_places(volume)
    assert bp.check(volume).ok
    assert volume.local.root.n_held == 0


def test_blocks_per_disk_are_counted_where_they_lie(tmp_path, rng):
    with bp.Volume.create(tmp_path / "v", disks=4, size="16M") as volume:
        history(volume, rng, 4)
        found = volume.freeing("s0", "s1")
        places = np.array(sorted(members(found.places)), np.int64)
        disks, _ = volume.geometry.to_disk(places)
        assert list(found.blocks_per_disk) == np.bincount(disks, minlength=4).tolist()
        with pytest.raises(NoSuchSnapshotError):
            volume.freeing("s0", "absent")
