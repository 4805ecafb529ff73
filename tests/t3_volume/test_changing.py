"""Changes of several steps: what cannot be read is found before the first, and an error in between stops the volume."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.model import ChecksumError, DiskError, ReadOnlyError, VolumeDamagedError
from blockplane.volume import Volume, moving, positions
from blockplane.volume.active import ActiveState
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.emptying import Emptying
from blockplane.volume.incoming import Incoming
from blockplane.volume.landed import LandedBlocks
from blockplane.volume.leafbits import LEAF_BLOCKS
from blockplane.volume.live import LiveVolume
from blockplane.volume.local import LocalTree
from blockplane.volume.marks import Marks
from blockplane.volume.shadows import Shadows
from blockplane.volume.tree import BlockTree
from faults.recording import MemoryDisk
from faults.world import (
    FileClient,
    geometry_of,
    make_volume,
    open_volume,
    read_files,
    receive,
    revived,
    snapshot_files,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")

BAD_READ = DiskError("disk 0: read failed: Input/output error", "disk 0")


@pytest.fixture
def volume() -> Volume:
    """One without parity: what is spoilt is lost."""
    return make_volume(geometry_of(2, 0, 384))


def fill_three(volume: Volume, client: FileClient) -> None:
    for at, name in enumerate(("a", "b", "c")):
        client.write(1, 0, range(100 * at, 100 * at + 40))
        client.write(2 + at, 0, range(50, 90))
        volume.snapshot(name)
    client.remove(3)
    client.write(1, 0, range(900, 940))
    volume.sync()


def spoil(volume: Volume, tree: BlockTree) -> Volume:
    """Open a volume anew after the first block of a tree was lost."""
    number = int(tree.pointers(0, 1)[0, 0]) & NUMBER_MASK
    ((disk,), (dbn,)) = (found.tolist() for found in volume.geometry.to_disk(np.array([number])))
    volume.close()
    lost = revived(volume.array.disks)[disk]
    assert isinstance(lost, MemoryDisk)
    lost.write(HEAD_BLOCKS + dbn, b"\xa5" * 4096)
    return open_volume(volume.array.disks)


def seen(volume: Volume) -> tuple:
    return read_files(volume.committed), snapshot_files(volume)


def closed_and_opened(volume: Volume) -> Volume:
    volume.close()
    return open_volume(revived(volume.array.disks))


# --- what cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_changes", [False, True])
def test_a_rollback_to_what_cannot_be_read_whole_changes_nothing(volume, client, drop_changes):
    fill_three(volume, client)
    volume = spoil(volume, volume.get_snapshot("b").state.blockmap)
    before = read_files(volume.committed), volume.local.root.n_held, volume.info.state
    with pytest.raises(ChecksumError):
        volume.rollback("b", drop_changes=drop_changes)
    assert volume.stopped_at == ""
    volume = closed_and_opened(volume)
    if drop_changes:
        assert (read_files(volume.committed), volume.local.root.n_held, volume.info.state) == before
    assert read_files(volume.committed) == before[0]
    client = FileClient(volume)
    for step in range(20):
        client.write(50 + step, 0, range(2000, 2010))
        volume.commit()
    assert set(read_files(volume.get_snapshot("b").state)) == {1, 2, 3}


def test_a_snapshot_of_a_state_whose_list_cannot_be_read_is_not_made(volume, client):
    fill_three(volume, client)
    volume = spoil(volume, volume.active.snapshot_list)
    with pytest.raises(ChecksumError):
        volume.snapshot("d")
    assert volume.stopped_at == ""
    assert [snapshot.name for snapshot in closed_and_opened(volume).snapshots] == ["a", "b", "c"]


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_what_states_have_cannot_be_read_and_nothing_moves(nth):
    volume = make_volume(geometry_of(2, 0, 384, n_groups=2))
    client = FileClient(volume)
    fill_three(volume, client)
    volume.commit(clean=True)
    volume.close_group(0)
    before, calls = seen(volume), []

    def names_at(state, places):
        calls.append(state)
        if len(calls) == nth:
            raise BAD_READ
        return real(state, places)

    real = moving.names_at
    with mock.patch.object(moving, "names_at", names_at), pytest.raises(DiskError):
        Emptying(volume, volume.geometry.groups[0]).step()
    assert volume.stopped_at == ""
    verdict(volume)
    volume = closed_and_opened(volume)
    verdict(volume)
    assert seen(volume) == before
    while Emptying(volume, volume.geometry.groups[0]).step():
        pass
    assert seen(volume) == before
    verdict(volume)


@pytest.mark.parametrize("act", ["shadow_snapshot", "delete_snapshot"])
def test_what_a_snapshot_alone_holds_cannot_be_read_and_it_stays(volume, client, act):
    fill_three(volume, client)
    before = seen(volume)
    with mock.patch.object(LocalTree, "held_leaf", side_effect=BAD_READ), pytest.raises(DiskError):
        getattr(volume, act)("b")
    assert volume.stopped_at == ""
    volume = closed_and_opened(volume)
    assert seen(volume) == before
    verdict(volume)


def test_what_entered_cannot_be_read_and_nothing_is_marked(volume, client):
    fill_three(volume, client)
    with mock.patch.object(positions, "not_in", side_effect=BAD_READ), pytest.raises(DiskError):
        volume.mark("a")
    assert volume.stopped_at == ""
    volume = closed_and_opened(volume)
    assert volume.positions == []
    verdict(volume)


def test_blocks_of_a_plane_that_cannot_be_read_are_not_given_up_in_part():
    """What left the plane and was not told to be free would be missing in what snapshots hold."""
    volume = make_volume(geometry_of(2, 0, LEAF_BLOCKS))
    vbns, before = np.array([10, LEAF_BLOCKS + 10]), volume.active.root.n_blocks
    volume.active.blockmap.edit_block(0)[:] = 0xFF
    real = BlockTree.edit_block

    def edit_block(tree: BlockTree, index: int):
        if tree is volume.active.blockmap and index == 1:
            raise BAD_READ
        return real(tree, index)

    with mock.patch.object(BlockTree, "edit_block", edit_block), pytest.raises(DiskError):
        volume.active.leave(vbns)
    assert (volume.active.plane_leaf(0) == ~np.uint64(0)).all()
    assert (volume.active.root.n_blocks, volume.space.freed_leaves()) == (before, [])


# --- an error between two steps -----------------------------------------------------------------------------------

#: what is done, and the step of it that fails
HALVES: list[tuple[Callable[[Volume], object], type, str]] = [
    (lambda volume: volume.snapshot("d"), ActiveState, "list_snapshots"),
    (lambda volume: volume.rollback("a", drop_changes=True), Marks, "note"),
    (lambda volume: volume.rollback("a", drop_later=True, drop_changes=True), LiveVolume, "exchange"),
    (lambda volume: volume.shadow_snapshot("b"), LocalTree, "set_held_leaf"),
    (lambda volume: volume.delete_snapshot("b"), Shadows, "remove"),
    (lambda volume: volume.rename_snapshot("b", "d"), LocalTree, "rewrite_entries"),
    (lambda volume: volume.destinations.begin("far", "b"), LocalTree, "set_holds"),
    (lambda volume: volume.make_master("b"), LocalTree, "set_replication"),
    (lambda volume: volume.close_group(None), LiveVolume, "_load"),
    (lambda volume: receive(source(), volume, "top"), LiveVolume, "exchange"),
]


def source() -> Volume:
    volume = make_volume(geometry_of(2, 0, 64))
    FileClient(volume).write(1, 0, range(30))
    volume.snapshot("top")
    return volume


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BAD_READ], ids=["interrupt", "error"])
@pytest.mark.parametrize(("act", "part", "step"), HALVES, ids=[f"{half[1].__name__}.{half[2]}" for half in HALVES])
def test_an_error_between_two_steps_stops_the_volume(volume, client, act, part, step, error):
    fill_three(volume, client)
    before, positions = seen(volume), volume.positions
    with mock.patch.object(part, step, side_effect=error), pytest.raises(type(error)):
        act(volume)
    assert volume.stopped_at == (str(error) or "KeyboardInterrupt")
    with pytest.raises(VolumeDamagedError, match="the volume stopped at an error") as refusal:
        volume.sync()
    assert refusal.value.hint == "close it and open it again"
    info = volume.info
    volume = closed_and_opened(volume)
    assert (volume.info.state, volume.info.local) == (info.state, info.local)
    assert (seen(volume), volume.positions) == (before, positions)
    verdict(volume)


def test_an_entry_of_a_receive_that_is_given_up_in_part_stays(volume, client):
    fill_three(volume, client)
    with (
        mock.patch.object(Incoming, "find"),
        mock.patch.object(Incoming, "remove", side_effect=BAD_READ),
        pytest.raises(DiskError),
    ):
        LandedBlocks(volume, mock.Mock(landing_id=bytes(16)), {}, mock.Mock(), None).remove()
    assert volume.stopped_at == str(BAD_READ)


# --- who may not write --------------------------------------------------------------------------------------------


def test_what_is_refused_to_a_reader_is_not_in_memory_either(volume, client):
    """It may go over to writing later."""
    fill_three(volume, client)
    volume.close()
    volume = open_volume(revived(volume.array.disks), writable=False)
    with pytest.raises(ReadOnlyError):
        volume.rename_snapshot("a", "d")
    with pytest.raises(ReadOnlyError):
        volume.hold_snapshot("a", "somebody")
    assert [snapshot.name for snapshot in volume.snapshots] == ["a", "b", "c"]
    assert volume.get_snapshot("a").holds == []
    assert volume.stopped_at == ""


def test_a_volume_that_cannot_be_opened_is_given_up(tmp_path: Path) -> None:
    Volume.create(tmp_path / "pool", disks=3, size="64M").close()
    (tmp_path / "pool" / f"incoming-{'0' * 32}.journal").touch()
    with mock.patch.object(Incoming, "images", side_effect=BAD_READ), pytest.raises(DiskError):
        Volume.open(tmp_path / "pool")
    assert [thread.name for thread in threading.enumerate() if thread.name == "blockplane timer"] == []
    Volume.open(tmp_path / "pool").close()
