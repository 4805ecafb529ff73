"""Planted bugs: each is made by replacing one named function, and each must be found."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from unittest import mock

import numpy as np
import pytest

from blockplane import check
from blockplane.disks.disk import HEAD_BLOCKS, aligned_buffer
from blockplane.disks.stripelog import StripeLog
from blockplane.filesystem import FileSystem
from blockplane.image import build
from blockplane.image.expected import ExpectedChecks
from blockplane.model import BLOCK_BYTES, ChecksumError
from blockplane.planes import Plane, combine
from blockplane.stream import StreamMap
from blockplane.transfer import compare_streams, coverage, merge_streams, receive, stream_map, verify_streams
from blockplane.transfer.imagesending import ImageSending
from blockplane.transfer.send import send
from blockplane.volume import Volume, held, live, points
from blockplane.volume.beside import BesideWriter
from blockplane.volume.landing_places import LandingPlaces
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.rootslots import slots_of
from blockplane.volume.space import Space
from blockplane.volume.waiting import leaves_of_plane, plane_leaf
from faults.crash import Plan
from faults.explore import Stage, Story, Tally, ViolationError, explore, judge
from faults.inline import inline_workers
from faults.recording import MemoryDisk
from faults.stories import FilesStory, FullStory, IncrementStory, NearlyFullStory, RollbackStory
from faults.world import FileClient, geometry_of, make_volume, numbers_of, root_of

PLAN = Plan(n_random=20, max_pairs=20, n_torn=1)


def hunt(story: Story, plant: contextlib.AbstractContextManager[object], most: int = 600) -> list[str]:
    """What the explorer finds wrong when the story's acts run with a bug in them; [] where nothing."""
    stage = Stage.prepare(story)
    with inline_workers(), plant:
        played = stage.play()
    if played.error is not None:
        return [f"stopped: {played.error}"]
    last = len(played.points) - 1
    found: list[str] = []
    try:
        disks = [MemoryDisk(disk.path, disk.n_blocks, disk.contents()) for disk in played.recorder.disks]
        judge(disks, played.points, last, stage.models)
    except ViolationError as error:
        found.append(f"without a crash: {error}")
    tally: Tally = explore(played, PLAN, stage.models, most=most, enough=12)
    return found + tally.violations


@pytest.mark.parametrize("story", [FilesStory, NearlyFullStory, RollbackStory, FullStory], ids=lambda story: story.name)
def test_the_hunt_finds_nothing_where_nothing_is_planted(story):
    assert hunt(story(0), contextlib.nullcontext(), most=80) == []


# --- what each bug does -------------------------------------------------------------------------------------------


def both_halves_at_once(array, record) -> None:
    block = aligned_buffer(BLOCK_BYTES)
    block[:] = np.frombuffer(record.encode(), np.uint8)
    slots = [(index, slot) for index, disk in enumerate(array.disks) for slot in slots_of(disk)]
    array.write_raw(slots, block)
    array.flush()


def settle_without_a_flush(volume) -> None:
    volume.placer.close_all()
    volume.placer.settle()


def declare_nothing(volume, names: Sequence[tuple[int, int]]) -> None:
    if volume.info.clean:
        volume._write_info(areas=[], clean=False)


def log_without_a_flush(log: StripeLog, band, stripes, counted, generation: int) -> None:
    flush = log._array.flush
    with mock.patch.object(log._array, "flush", lambda disks=None: flush() if disks is None else None):
        real_protect(log, band, stripes, counted, generation)


def log_over_what_is_under_way(log: StripeLog, band, stripes, counted, generation: int) -> None:
    log.settled()
    real_protect(log, band, stripes, counted, generation)


real_protect = StripeLog.protect


def release_at_once(space: Space, places) -> None:
    real_release(space, places)
    space.release_now(places)


real_release = Space.release


def assign_home(places: LandingPlaces, vbns: Plane) -> PlaceMap:
    """Every block at the place of its number, whatever is there."""
    for leaf in leaves_of_plane(vbns):
        places.reserve(leaf, plane_leaf(vbns, leaf))
    return PlaceMap()


def test_both_halves_of_the_root_record_in_one_flush_epoch():
    found = hunt(FilesStory(0), mock.patch.object(points, "write_record", both_halves_at_once))
    assert any("does not open" in text for text in found)


def test_the_root_before_the_data():
    found = hunt(FilesStory(0), mock.patch.object(live.LiveVolume, "_settle_data", settle_without_a_flush))
    assert len(found) > 5


def test_no_intent_record():
    found = hunt(NearlyFullStory(0), mock.patch.object(live.LiveVolume, "_declare", declare_nothing))
    assert any("parity of stripe" in text for text in found)


@pytest.mark.parametrize("story", [NearlyFullStory, IncrementStory], ids=lambda story: story.name)
def test_no_log_before_a_stripe_beside_live_blocks(story):
    found = hunt(story(0), mock.patch.object(StripeLog, "protect", return_value=None))
    assert any("would not survive the loss of a disk" in text for text in found)


def test_a_log_that_is_not_flushed():
    found = hunt(NearlyFullStory(0), mock.patch.object(StripeLog, "protect", log_without_a_flush), most=1500)
    assert any("would not survive the loss of a disk" in text for text in found)


def test_a_log_that_begins_again_before_its_stripes_are_flushed():
    found = hunt(NearlyFullStory(2), mock.patch.object(StripeLog, "protect", log_over_what_is_under_way))
    assert any("would not survive the loss of a disk" in text for text in found)


def test_a_freed_block_reused_in_the_same_point():
    found = hunt(NearlyFullStory(0), mock.patch.object(Space, "release", release_at_once))
    assert len(found) > 5


def test_deletion_by_neighbours_after_a_rollback():
    found = hunt(RollbackStory(0), mock.patch.object(held, "is_line", return_value=True))
    assert any("held" in text or "differs" in text or "stopped" in text for text in found)


def test_an_incoming_block_over_one_that_another_snapshot_holds():
    found = hunt(FullStory(0), mock.patch.object(LandingPlaces, "assign", assign_home))
    assert any("own differs" in text or "go on" in text or "stopped" in text for text in found)


# --- parity beside a block that nobody verified -------------------------------------------------------------------


def rot(volume, place: int) -> np.ndarray:
    """Flip a bit of a block behind the volume's back; return what was there."""
    disk, dbn = volume.geometry.to_disk(np.array([place], np.int64))
    member, block = volume.array.disks[int(disk[0])], int(dbn[0]) + HEAD_BLOCKS
    good = member.block(block)
    member.write(block, bytes([good[0] ^ 1]) + good[1:])
    return np.frombuffer(good, np.uint8)


def rebuilt(volume, place: int) -> np.ndarray:
    """A block as its stripe's other members give it."""
    disk, dbn = volume.geometry.to_disk(np.array([place], np.int64))
    others = [member for member in range(volume.geometry.n_disks) if member != int(disk[0])]
    blocks = [np.frombuffer(volume.array.disks[m].block(int(dbn[0]) + HEAD_BLOCKS), np.uint8) for m in others]
    return np.bitwise_xor.reduce(blocks)


def write_beside_rot(plant: contextlib.AbstractContextManager[object]) -> list[bool]:
    """For live blocks of a nearly full volume, each rotten when others are written: can it still be rebuilt?"""
    story, outcomes = NearlyFullStory(0), []
    for at in range(0, 40, 4):
        with inline_workers(), plant:
            volume = make_volume(story.geometry)
            client = FileClient(volume)
            story.prepare(volume, client)
            places = places_beside_free_ones(volume)
            place = places[at % len(places)]
            good = rot(volume, place)
            with contextlib.suppress(ChecksumError), volume.dipping():
                for index in range(40, 70):
                    client.edit(2, index, 5000 + index)
                volume.sync()
            outcomes.append(bool((rebuilt(volume, place) == good).all()))
    return outcomes


def places_beside_free_ones(volume) -> list[int]:
    """Places of blocks of file 1 whose stripe has a free place; nothing that follows reads them for itself."""
    tree = volume.active.tree(root_of(volume.active, 1))
    places = np.array(numbers_of(tree.pointers(0, tree.capacity_blocks())), np.int64)
    (group,) = volume.geometry.groups
    _, dbns = volume.geometry.to_disk(places)
    stripes = np.array(
        [[volume.geometry.from_disk(np.array([d]), np.array([n]))[0] for d in group.disks[:2]] for n in dbns]
    )
    free = ~volume.space.is_busy(stripes.reshape(-1)).reshape(stripes.shape)
    return places[free.any(axis=1)].tolist()


def test_parity_beside_rot_leaves_the_block_to_be_rebuilt():
    assert all(write_beside_rot(contextlib.nullcontext()))


def test_parity_over_an_unverified_block():
    plant = mock.patch.object(BesideWriter, "verify", return_value=None)
    assert not all(write_beside_rot(plant))


# --- a gather that looks a block's check up in a state that does not hold it --------------------------------------


def check_of_the_top(checks: ExpectedChecks, vbns):
    """The checksum file of the top for every block, whoever holds it."""
    return checks._owners[0][0].of(vbns)


def send_two_branches(sink: io.BytesIO) -> int:
    """Send the sum of two snapshots on two branches: blocks of the one are unknown to the other's checksum file."""
    with inline_workers():
        volume = make_volume(geometry_of(2, 1, 128))
        client = FileClient(volume)
        client.write(1, 0, range(10))
        volume.snapshot("root")
        client.write(2, 0, range(20, 40))
        volume.snapshot("left")
        volume.rollback("root")
        client.write(3, 0, range(50, 60))
        volume.snapshot("right")
        try:
            return send(build(volume, "right + left", with_=["left"]), sink).n_blocks
        finally:
            volume.abandon()


def test_two_branches_in_one_image_are_each_verified_by_their_own_state():
    sink = io.BytesIO()
    assert send_two_branches(sink) > 40
    assert len(sink.getvalue()) > 40 * BLOCK_BYTES


def test_the_checksum_file_of_a_state_that_does_not_hold_the_block():
    plant = mock.patch.object(ExpectedChecks, "of", check_of_the_top)
    with plant, pytest.raises(ChecksumError):
        send_two_branches(io.BytesIO())


# --- the set of deallocated blocks applied after the blocks that came (law: first drop, then add) ---------------------


class Reusing(ImageSending):
    """Says of blocks that it brings, too, that the base's of these numbers are gone: they are, and are used again."""

    @property
    def dropped(self) -> Plane:
        return combine([super().dropped, self.plane])


def dropped_at_the_end(base: Plane, stream: StreamMap) -> Plane:
    return combine([base, stream.image], minus=stream.dropped)


def test_a_deallocated_set_applied_after_the_blocks(tmp_path):
    with Volume.create(tmp_path / "pool", disks=3, size="8MiB") as volume:
        files = FileSystem(volume)
        files.write_bytes("/one", b"1" * 300_000)
        volume.snapshot("one")
        files.write_bytes("/two", b"2" * 300_000)
        files.unlink("/one")
        volume.snapshot("two")
        send(build(volume, "one"), tmp_path / "one.bps")
        send(Reusing(build(volume, "two - one")), tmp_path / "two.bps")
        paths = [tmp_path / "one.bps", tmp_path / "two.bps"]
        verdict = verify_streams(*paths)
        assert (verdict.problems, verdict.proved) == ([], ["one", "two"])
        assert compare_streams(*paths, volume=volume, snapshot="two").ok
        merge_streams(*paths, sink=tmp_path / "merged.bps")
        assert stream_map(tmp_path / "merged.bps").image == build(volume, "two").plane
        for path in paths:
            receive(path, tmp_path / "copy")
        with Volume.open(tmp_path / "copy") as copy:
            assert FileSystem(copy).read_bytes("/two") == b"2" * 300_000
            assert check(copy).ok
        with mock.patch.object(coverage, "held_after", dropped_at_the_end):
            assert "snapshot two is not whole" in verify_streams(*paths).problems[0]
