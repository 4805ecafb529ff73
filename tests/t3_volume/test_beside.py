"""Writing beside live blocks: every block that stays is held against the check that someone has for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest

from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.disks.stripelog import StripeLog
from blockplane.model import BLOCK_BYTES, ChecksumError, DiskError, NoSpaceError
from blockplane.volume import Volume, landing_bands
from blockplane.volume.beside import BesideWriter
from blockplane.volume.check import check
from blockplane.volume.livechecks import LiveChecks, PointerTable
from faults.degraded import live_slots
from faults.explore import Watch
from faults.stories import STORIES, IncrementStory, NearlyFullStory, RollbackStory, _Story
from faults.world import (
    FileClient,
    again,
    geometry_of,
    image_plane,
    make_volume,
    numbers_of,
    present,
    read_blocks,
    read_files,
    root_of,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")


def volume_of(story: _Story) -> tuple[Volume, FileClient]:
    """A volume as a story leaves it before it acts."""
    volume = make_volume(story.geometry)
    client = Watch({}).start(volume)
    story.prepare(volume, client)
    return volume, client


def blocks_at(volume: Volume, places: np.ndarray) -> np.ndarray:
    out = np.empty(len(places) * BLOCK_BYTES, np.uint8)
    volume.array.read_places(np.column_stack((places, places + 1)), out)
    return out.reshape(-1, BLOCK_BYTES)


def live_places(volume: Volume) -> np.ndarray:
    groups = volume.geometry.groups
    found = [
        volume.geometry.band_places(n, 0, group.disk_blocks)[live_slots(volume, n)] for n, group in enumerate(groups)
    ]
    return np.concatenate(found)


def require_all_known(volume: Volume, checks: LiveChecks) -> int:
    """Every live block has a check, and every other content fails it."""
    places = live_places(volume)
    expected = checks.expected(places)
    blocks = blocks_at(volume, places)
    assert expected.known.all()
    assert not expected.bad(blocks).any()
    blocks[:, 7] ^= 1
    assert expected.bad(blocks).all()
    return len(places)


@pytest.mark.parametrize("kind", STORIES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("variation", [0, 1])
def test_every_live_block_has_a_check_after_each_point(kind, variation):
    """State, checksum file, local tree, snapshots, blocks that a map moves; tables that follow and fresh ones."""
    story = kind(variation)
    volume, client = volume_of(story)
    following, counts = LiveChecks(volume), [require_all_known(volume, LiveChecks(volume))]
    original = volume._pass_on

    def passed() -> None:
        original()
        counts.append(require_all_known(volume, following))
        require_all_known(volume, LiveChecks(volume))

    volume._pass_on = passed
    story.act(volume, client)
    assert len(counts) > 3


def test_the_pointers_are_walked_once_and_then_followed():
    volume, client = volume_of(NearlyFullStory(0))
    walks: list[bool] = []  # of each: whether only what differs is read
    original = PointerTable.follow

    def follow(table: PointerTable, trees, is_next: bool) -> None:
        walks.append(is_next)
        original(table, trees, is_next)

    with mock.patch.object(PointerTable, "follow", follow), volume.dipping():
        volume.beside = volume.placer._beside = BesideWriter(volume)
        for step in range(5):
            for at in range(14):
                client.edit(2, at, 9000 + 100 * step + at)
            volume.sync()
    assert not walks[0]
    assert len(walks) > 3
    assert all(walks[1:])


def rot(volume: Volume, place: int) -> bytes:
    disk, dbn = (int(n[0]) for n in volume.geometry.to_disk(np.array([place], np.int64)))
    good = volume.array.disks[disk].block(HEAD_BLOCKS + dbn)
    volume.array.disks[disk].write(HEAD_BLOCKS + dbn, bytes([good[0] ^ 1]) + good[1:])
    return good


def rebuilt(volume: Volume, place: int) -> bytes:
    """A block as its stripe's other members give it; one parity disk."""
    disk, dbn = (int(n[0]) for n in volume.geometry.to_disk(np.array([place], np.int64)))
    group = volume.geometry.groups[volume.geometry.group_of(place)]
    others = [volume.array.disks[d].block(HEAD_BLOCKS + dbn) for d in group.disks if d != disk]
    return np.bitwise_xor.reduce([np.frombuffer(block, np.uint8) for block in others]).tobytes()


def test_rot_of_any_kind_of_block_is_never_baked_into_parity():
    """Blocks of files, of the checksum file, of the local tree: rotten while others are written beside them."""
    n_rotten, n_stopped = 0, 0
    for at in range(0, 200, 7):
        volume, client = volume_of(NearlyFullStory(0))
        places = live_places(volume)
        if at >= len(places):
            break
        place = int(places[at])
        good = rot(volume, place)
        try:
            with volume.dipping():
                for index in range(40, 62):
                    client.edit(2, index, 5000 + index)
                volume.sync()
        except ChecksumError:  # the block was read for itself, in a tree that changes
            n_stopped += 1
        if volume.live_leaf(0)[place >> 6] >> np.uint64(place & 63) & np.uint64(1):
            assert rebuilt(volume, place) == good
            n_rotten += 1
        volume.abandon()
    assert n_rotten > 15
    assert n_stopped < n_rotten


@pytest.mark.parametrize("shape", [0, 1, 2, 3])
def test_a_log_smaller_than_a_band_goes_round(shape):
    """Each round is logged, written, flushed before the next overwrites its records."""
    volume, client = volume_of(NearlyFullStory(shape))
    rounds: list[int] = []
    original = StripeLog.protect

    def protect(log: StripeLog, band, stripes, stays, generation: int) -> None:
        rounds.append(len(stripes))
        original(log, band, stripes, stays, generation)

    small = mock.patch.object(StripeLog, "capacity", return_value=1)
    with mock.patch.object(StripeLog, "protect", protect), small, volume.dipping():
        for index in range(40, 56):
            client.edit(2, index, 5000 + index)
        volume.sync()
    assert len(rounds) > 3
    assert set(rounds) == {1}
    assert read_files(volume.committed) == client.files
    assert check(volume).problems == []


def test_landing_beside_a_rotten_block_keeps_it_to_be_rebuilt():
    story = IncrementStory(0)
    volume, client = volume_of(story)
    tree = volume.active.tree(root_of(volume.active, 1))
    own = [place for place in live_places(volume).tolist() if place not in numbers_of(tree.pointers(0, 24))]
    goods = {}
    with contextlib.suppress(ChecksumError):
        for place in own[::9]:
            goods[place] = rot(volume, place)
        story.land(volume, client, "s2", "s1")
    assert goods
    for place, good in goods.items():
        assert rebuilt(volume, place) == good


@pytest.mark.parametrize("rots", [False, True])
def test_what_landed_early_is_verified_before_parity_beside_it(rots, monkeypatch):
    """Bands go out before they are whole: a block that rots meanwhile must not be baked in by what lands beside it."""
    source = make_volume(geometry_of(3, 1, 128))
    FileClient(source).write(1, 0, range(1, 200))
    source.snapshot("s1")
    target = make_volume(geometry_of(3, 1, 192))
    monkeypatch.setattr(landing_bands, "LANDING_STRIPES", 64)
    monkeypatch.setattr(landing_bands, "MAX_OPEN_BYTES", 0)
    plane = image_plane(source, "s1")
    vbns = np.concatenate([np.arange(start, stop) for start, stop in plane.extents().tolist()])
    halves = np.array_split(vbns, 2)
    stripes = [target.geometry.to_disk(half)[1] for half in halves]
    neighbours = halves[0][np.isin(stripes[0], stripes[1])]
    landing = target.landing(plane)
    with pytest.raises(ChecksumError, match="not what was written") if rots else contextlib.nullcontext():
        for n, part in enumerate(halves):
            for vbn in part.tolist():
                (buffer,) = landing.buffers(np.array([[vbn, vbn + 1]]))
                buffer[:] = read_blocks(source, "s1", vbn, vbn + 1)
                landing.landed()
            if rots and n == 0:
                landing._bands._closer.submit(lambda: None).result()
                rot(target, int(neighbours[len(neighbours) // 2]))
        landing.commit([source.get_snapshot("s1").record])
    assert rots or check(target).problems == []


def fail_once(monkeypatch, name: str, nth: int, error: BaseException) -> Iterator[int]:
    """The Nth call, from 1, of a function of the writer fails; return the count of calls."""
    real, calls = getattr(BesideWriter, name), itertools.count(1)

    def flaky(*arguments):
        if next(calls) == nth:
            raise error
        return real(*arguments)

    monkeypatch.setattr(BesideWriter, name, flaky)
    return calls


def fragmented() -> tuple[Volume, FileClient]:
    """A volume of which no stripe is wholly free, and a seventh of each 64 is."""
    volume = make_volume(geometry_of(3, 1, 512), reserve_blocks=64)
    client = FileClient(volume)
    with contextlib.suppress(NoSpaceError):
        for inode in itertools.count(1):
            client.write(inode, 0, range(100 * inode, 100 * inode + 49))
            volume.sync()
    with volume.dipping():
        for inode in list(client.files):
            for at in range(0, 49, 7):
                client.punch(inode, at, at + 1)
    for _ in range(4):
        volume.commit(force=True)
    return volume, client


def write_some(client: FileClient) -> None:
    """More blocks than two bands have room for, in files of a few each; one that fails is passed over."""
    for inode in range(100, 118):
        with contextlib.suppress(DiskError):
            client.write(inode, 0, range(100 * inode, 100 * inode + 9))


@pytest.mark.parametrize("nth", [1, 2])
def test_a_read_that_fails_once_while_files_are_written_costs_nothing(nth, monkeypatch):
    """The band is written with the consistency point: blocks of several files are in it."""
    volume, client = fragmented()
    calls = fail_once(monkeypatch, "_read_rest", nth, DiskError("disk1: read failed", "disk1"))
    write_some(client)
    assert next(calls) > nth
    volume.sync()
    volume = again(volume)
    assert read_files(volume.committed) == present(client.files)
    assert client.files.keys() >= set(range(100, 118))
    verdict(volume)


def test_a_read_that_fails_again_stops_the_volume_at_the_last_point(monkeypatch):
    volume, client = fragmented()
    before = present(client.files)
    error = DiskError("disk1: read failed", "disk1")
    monkeypatch.setattr(BesideWriter, "_read_rest", mock.Mock(side_effect=error))
    write_some(client)
    with pytest.raises(DiskError, match="disk1"):
        volume.sync()
    assert volume.stopped_at == "disk1: read failed"
    assert read_files(again(volume).committed) == before


def test_an_interrupt_while_a_band_goes_out_stops_the_volume(monkeypatch):
    """Nobody knows whether it did."""
    volume, client = fragmented()
    before = present(client.files)
    fail_once(monkeypatch, "write", 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write_some(client)
    assert volume.stopped_at
    assert read_files(again(volume).committed) == before


def test_places_that_were_handed_out_before_a_read_failed_are_taken_back(monkeypatch):
    volume, client = fragmented()
    fail_once(monkeypatch, "sound", 2, DiskError("disk1: read failed", "disk1"))
    write_some(client)
    assert sum(inode >= 100 for inode in client.files) == 17
    volume.sync()
    volume = again(volume)
    assert read_files(volume.committed) == present(client.files)
    verdict(volume)


def test_a_rollback_changes_whom_the_tables_follow():
    story = RollbackStory(0)
    volume, client = volume_of(story)
    checks = LiveChecks(volume)
    require_all_known(volume, checks)
    client.edit(1, 15, 9)
    volume.rollback("a", keep_as="kept")
    require_all_known(volume, checks)
    volume.delete_snapshot("b")
    require_all_known(volume, checks)
