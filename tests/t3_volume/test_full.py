"""A full volume: what fails leaves nothing behind, and counts stay true."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blockplane.disks import HEAD_BLOCKS
from blockplane.disks.resync import verify_parity
from blockplane.filesystem import FileSystem
from blockplane.model import BLOCK_BYTES, NoSpaceError
from blockplane.volume.check import check
from blockplane.volume.incoming import IncomingEntry, leaves_of
from blockplane.volume.landing import Landing
from blockplane.volume.leafbits import LEAF_BLOCKS, numbers_in
from blockplane.volume.volume import Volume
from faults.inline import inline_workers
from faults.world import FileClient, fill, geometry_of, image_plane, make_volume, present, snapshot_files, verdict
from rig import Shape
from rig.memory import make_volume as volume_of
from rig.memory import reopen
from rig.site import Site, fill_pattern


@pytest.fixture
def site():
    made = Site("full", [Shape(2, 1, 64, 384)])
    yield made
    made.check_everything()
    made.close()


def test_where_there_was_no_room_a_hole_stays_a_hole(site, monkeypatch):
    site.replace("/sparse", fill_pattern(5000, 1))
    site.truncate("/sparse", 40 * 4096)
    site.sync()

    claim, calls = site.volume.active.claim, []

    def no_room_at_first(n_blocks: int) -> None:
        calls.append(n_blocks)
        if len(calls) == 2:  # the leaf, after the node above it
            raise NoSpaceError("full", "")
        claim(n_blocks)

    monkeypatch.setattr(site.volume.active, "claim", no_room_at_first)
    site.write("/sparse", 20 * 4096, b"x" * 4096)
    assert site.fs.stat("/sparse").st_blocks == 3 * 8


def test_places_handed_out_are_always_filled(site):
    """The nodes above a long write claim their room before its places are taken."""
    n_blocks = site.volume.available_blocks
    site.replace("/big", fill_pattern(n_blocks * 4096, 3))
    assert site.n_full == 1
    site.sync()
    site.unlink("/big")


def test_an_inline_file_that_finds_no_room_to_grow_stays_inline(site, monkeypatch):
    """It had a tree then beside its inline bytes: what was written next went into one and was read from the other."""
    site.replace("/small", fill_pattern(143, 1))
    site.sync()
    claim, calls = site.volume.active.claim, []

    def no_room_at_first(n_blocks: int) -> None:
        calls.append(n_blocks)
        if len(calls) == 1:
            raise NoSpaceError("full", "")
        claim(n_blocks)

    monkeypatch.setattr(site.volume.active, "claim", no_room_at_first)
    site.write("/small", 37_864, fill_pattern(5096, 2))
    assert len(calls) > 1
    site.check_live()


class Beside:
    """A volume in which a receive has a third of most of it: places of one disk or another in each stripe."""

    def __init__(self, path) -> None:
        geometry = geometry_of(3, 1, 320)
        self.source = make_volume(geometry)
        client = FileClient(self.source)
        client.write(1, 0, range(1, 801))
        for at in range(0, 800, 3):
            client.punch(1, at, at + 2)
        self.source.snapshot("june1")
        self.files = present(client.files)
        self.plane = image_plane(self.source, "june1")
        self.volume = make_volume(geometry, reserve_blocks=100, place=path)

    def receive(self, most: int | None = None) -> None:
        """Bring some of it, or all but the end."""
        landing = self.landing()
        fill(landing, self.source, "june1", self.plane, most=most)
        landing.suspend()

    def landing(self) -> Landing:
        record = self.source.get_snapshot("june1").record
        entry = IncomingEntry(
            b"L" * 16, b"I" * 16, record.space_id, record.id, bytes(16), len(self.plane), 0, self.plane.n_blocks, 0,
            "june1",
        )  # fmt: skip
        return Landing(self.volume, self.plane, None, entry)

    def landed(self) -> list[int]:
        (image,) = self.volume.local.incoming.images()
        return [int(n) for leaf, words in leaves_of(image.landed) for n in numbers_in(words, leaf * LEAF_BLOCKS)]

    def fill(self) -> FileClient:
        """Write until there is no room."""
        client = FileClient(self.volume)
        with pytest.raises(NoSpaceError, match="blocks asked"):
            self._write_on(client)
        self.volume.sync()
        return client

    def _write_on(self, client: FileClient) -> None:
        for at in range(1000):
            client.write(9, 5 * at, range(7000 + 5 * at, 7005 + 5 * at))
            if at % 8 == 7:
                self.volume.sync()


@pytest.fixture
def beside(tmp_path):
    with inline_workers():
        made = Beside(tmp_path)
        yield made
        made.volume.abandon()


def test_what_is_free_beside_an_interrupted_receive_is_used(beside):
    """It was counted as available and as reserve, and given to nobody: commits found the volume full."""
    volume = beside.volume
    beside.receive(60)
    n_available = volume.available_blocks
    client = beside.fill()
    assert n_available > 400
    assert volume.available_blocks < 5 + 8
    for at in range(0, 200, 40):
        with volume.dipping():
            client.punch(9, at, at + 40)
        volume.sync()
    verdict(volume)
    landing = beside.landing()
    fill(landing, beside.source, "june1", beside.plane)
    landing.commit([beside.source.get_snapshot("june1").record])
    verdict(volume)
    assert snapshot_files(volume)["june1"] == beside.files


def test_a_rotten_block_that_landed_is_not_hidden_by_what_is_written_beside_it(beside):
    """No check of it is known before the image is whole; the parity on the disks goes on to explain it."""
    volume = beside.volume
    beside.receive()
    place = beside.landed()[20]
    disks, dbns = volume.geometry.to_disk(np.array([place]))
    disk = volume.array.disks[int(disks[0])]
    disk.write(HEAD_BLOCKS + int(dbns[0]), b"\xee" * BLOCK_BYTES)
    beside.fill()
    torn = verify_parity(volume.array, 0, 0, 320).tolist()
    assert torn == [int(dbns[0])]


def filled(fs: FileSystem, volume: Volume, n_bytes: int = 20_000) -> None:
    """Write files until the volume is full, the last of them tiny."""
    for prefix, size in (("f", n_bytes), ("g", 1)):
        with pytest.raises(NoSpaceError):
            write_files(fs, prefix, size)
    volume.sync()


def write_files(fs: FileSystem, prefix: str, size: int) -> None:
    for number in range(10_000):
        fs.write_bytes(f"/{prefix}{number}", fill_pattern(size, number))


def sound(volume: Volume) -> bool:
    return check(volume).problems == [] and FileSystem(volume).check().problems == []


def make_snapshots(volume: Volume, fs: FileSystem, changes: bool) -> None:
    for number in range(10_000):
        if changes:
            fs.chmod("/f0", 0o600 + number % 64)
        volume.snapshot(f"s{number}")


def each(volume: Volume, change: Callable[[str], None], names: list[str]) -> None:
    """Change files one by one, a consistency point after every eight."""
    for number, name in enumerate(names):
        change(name)
        if number % 8 == 7:
            volume.sync()


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("shape", [
    Shape(1, 0, 64, 384), Shape(1, 0, 64, 1280), Shape(2, 1, 64, 1024),
], ids=["tiny", "small", "parity"])  # fmt: skip
def test_after_snapshots_of_a_full_volume_everything_can_be_deleted(shape, changes):
    """They took the whole reserve: then nothing could be deleted but all of them at once, and each try stopped it."""
    volume = volume_of([shape])
    fs = FileSystem(volume)
    filled(fs, volume)
    with pytest.raises(NoSpaceError, match="is for deleting"):
        make_snapshots(volume, fs, changes)
    assert len(volume.snapshots) > 2
    assert not volume.stopped_at
    generation = volume.info.generation
    with pytest.raises(NoSpaceError, match="is for deleting"):
        volume.snapshot("more")
    assert volume.info.generation == generation
    fs.unlink("/f1")
    volume.sync()
    volume = reopen(volume)
    fs = FileSystem(volume)
    fs.unlink("/f2")
    volume.sync()
    assert sound(volume)
    volume.delete_snapshot(volume.snapshots[0].name)
    volume.delete_snapshot(*[snapshot.name for snapshot in volume.snapshots[1::2]])
    for snapshot in volume.snapshots:
        volume.delete_snapshot(snapshot.name)
    fs.unlink("/f3")
    volume.sync()
    assert sound(volume)
    fs.write_bytes("/f4", fill_pattern(20_000, 4))
    volume.snapshot("again")
    volume.close()


def test_a_snapshot_that_a_rollback_keeps_leaves_the_reserve_alone():
    volume = volume_of([Shape(1, 0, 64, 1280)])
    fs = FileSystem(volume)
    fs.write_bytes("/first", b"1")
    volume.snapshot("first")
    filled(fs, volume)
    with pytest.raises(NoSpaceError, match="is for deleting"):
        make_snapshots(volume, fs, changes=True)
    fs.unlink("/f0")  # what no snapshot has
    with pytest.raises(NoSpaceError, match="is for deleting"):
        volume.rollback("first")
    assert not fs.exists("/f0")
    assert volume.rollback("first", drop_changes=True) is None
    assert fs.read_bytes("/first") == b"1"
    assert sound(volume)
    volume.close()


def full_beside_a_tree(n_files: int) -> tuple[Volume, FileSystem, list[str]]:
    """A full volume, and the paths of small files that a snapshot holds."""
    volume = volume_of([Shape(1, 0, 64, 1280)])
    fs = FileSystem(volume)
    fs.mkdir("/t")
    names = [f"/t/a-file-of-a-tree-{number:04d}" for number in range(n_files)]
    for name in names:
        fs.write_bytes(name, b"small")
    volume.snapshot("only")
    filled(fs, volume, 200_000)
    return volume, fs, names


@pytest.mark.parametrize("at_once", [False, True])
def test_what_a_snapshot_holds_is_unlinked_until_that_would_stop_the_volume(at_once):
    """Nothing comes free, and what a consistency point writes anew is held: the reserve ran out in the midst of it."""
    volume, fs, names = full_beside_a_tree(1500)
    with pytest.raises(NoSpaceError, match="is for deleting") as refused:
        each(volume, *(fs.rmtree, ["/t"]) if at_once else (fs.unlink, names))
    assert refused.value.hint.startswith("delete snapshots (")
    assert not volume.stopped_at
    left = fs.listdir("/t")
    assert 100 < len(left) < len(names) - 100
    volume = reopen(volume)
    fs = FileSystem(volume)
    assert fs.listdir("/t") == left
    assert sound(volume)
    volume.delete_snapshot("only")
    fs.rmtree("/t")
    volume.sync()
    assert sound(volume)
    volume.close()


@pytest.mark.parametrize("change", ["chmod", "rename", "write", "touch", "setxattr"])
def test_changes_that_take_little_leave_the_reserve_to_deleting(change):
    volume, fs, names = full_beside_a_tree(1500)

    def do(name: str) -> None:
        if change == "chmod":
            fs.chmod(name, 0o400)
        elif change == "rename":
            fs.rename(name, f"{name}-{'x' * 200}")
        elif change == "write":
            with fs.open(name, "r+", buffering=0) as file:
                file.write(b"SMALL")
        elif change == "touch":
            fs.touch(name)
        else:
            fs.setxattr(name, "user.colour", b"red")

    with pytest.raises(NoSpaceError, match="full"):
        each(volume, do, names)
    assert not volume.stopped_at
    for name in fs.listdir("/t")[-30:]:
        fs.unlink(f"/t/{name}")
    volume.sync()
    volume.delete_snapshot("only")
    fs.rmtree("/t")
    volume.sync()
    assert sound(volume)
    volume.close()


def test_without_a_snapshot_files_are_removed_whatever_is_left_of_the_reserve(monkeypatch):
    volume = volume_of([Shape(1, 0, 64, 1280)])
    fs = FileSystem(volume)
    filled(fs, volume)
    monkeypatch.setattr("blockplane.volume.capacity.REMOVING_LEAVES", 8)  # as though more than all were taken
    for number in range(20):
        fs.unlink(f"/f{number}")
    volume.sync()
    assert sound(volume)
    volume.close()
