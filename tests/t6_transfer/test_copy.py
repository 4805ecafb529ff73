"""`copy`: the same blocks under the same numbers, no stream; what a receive promises holds for it."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks import HEAD_BLOCKS
from blockplane.disks.disk import FileDisk
from blockplane.image.order import DISK, WINDOW_BLOCKS, Window, windows
from blockplane.model.errors import DiskError
from blockplane.transfer.copied import compare_copy
from blockplane.transfer.resume import interrupted_receives
from blockplane.transfer.send import ImageSending
from blockplane.volume import making
from blockplane.volume.landing import Landing
from equality import differences, volume_tree
from places import contents
from streams.storage import DictSending, DictStorage, members, pair

MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """48 MiB in june1, 30 MiB of change in june2, little more in june3."""
    rng = np.random.default_rng(17)
    with bp.Volume.create(tmp_path_factory.mktemp("copy") / "pool", disks=5, size="90M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(12):
            files.write_bytes(f"/f{i}", rng.bytes(4 * MIB))
        volume.snapshot("june1")
        for i in range(0, 12, 2):
            files.write_bytes(f"/f{i}", rng.bytes(5 * MIB))
        volume.snapshot("june2")
        files.write_bytes("/f1", rng.bytes(MIB))
        volume.snapshot("june3")
        yield volume


def require_equal(source: bp.Volume, target: str | os.PathLike[str], *names: str) -> None:
    with bp.Volume.open(target) as volume:
        for name in names:
            one, other = source.get_snapshot(name), volume.get_snapshot(name)
            assert other.plane == one.plane
            trees = [volume_tree(bp.FileSystem(snapshot), between_volumes=True) for snapshot in (one, other)]
            assert differences(*trees) == []
        assert bp.check(volume).problems == []
        assert volume.incoming.n_blocks == 0
    assert sorted(os.listdir(target)) == ["disks", "lock", "volume.toml"]


def stop_after(n_bytes: int):
    """Return a progress callback that interrupts once so much was handed on."""

    def told(event: bp.ProgressEvent) -> None:
        if event.phase == "blocks" and event.done_bytes >= n_bytes:
            raise KeyboardInterrupt

    return told


def interrupted(image: bp.Image, target: str | os.PathLike[str], n_bytes: int, **options) -> KeyboardInterrupt:
    with pytest.raises(KeyboardInterrupt) as caught:
        bp.copy(image, target, progress=stop_after(n_bytes), **options)
    return caught.value


# --- what arrives ---------------------------------------------------------------------------------------------------


def test_a_copy_is_what_a_stream_brings(source, tmp_path):
    for expression in ("june1", "june2 - june1"):
        image = source.image(expression)
        events: list[bp.ProgressEvent] = []
        report = bp.copy(image, tmp_path / "copied", progress=events.append)
        assert (report.n_blocks, report.n_bytes) == (image.n_blocks, image.n_bytes)
        assert [event.phase for event in events[-2:]] == ["blocks", "commit"]
        assert {event.done_bytes for event in events[-2:]} == {image.n_bytes}
        bp.send(image, tmp_path / "stream.bps")
        received = bp.receive(tmp_path / "stream.bps", tmp_path / "received")
        assert (received.arrived, received.n_blocks) == (report.arrived, report.n_blocks)
    require_equal(source, tmp_path / "copied", "june1", "june2")
    with bp.Volume.open(tmp_path / "copied") as one, bp.Volume.open(tmp_path / "received") as other:
        assert [group.disk_blocks for group in one.geometry.groups] == [
            group.disk_blocks for group in source.geometry.groups
        ]
        assert [snapshot.id for snapshot in one.snapshots] == [snapshot.id for snapshot in other.snapshots]
        assert one.get_snapshot("june2").plane == other.get_snapshot("june2").plane


def test_a_small_copy_writes_two_root_records_and_lands_while_it_is_read(source, tmp_path):
    """Areas named, and the one commit, which is the last before closing."""
    for expression in ("june1", "june2 - june1"):
        bp.copy(source.image(expression), tmp_path / "copied")
    with bp.Volume.open(tmp_path / "copied", writable=False) as copied:
        before, is_clean = copied.info.generation, copied.info.clean
    bp.copy(source.image("june3 - june2"), tmp_path / "copied")
    with bp.Volume.open(tmp_path / "copied", writable=False) as copied:
        assert (copied.info.generation - before, copied.info.clean, is_clean) == (2, True, True)
        assert copied.info.areas == []
    events: list[bp.ProgressEvent] = []
    shutil.rmtree(tmp_path / "copied")
    bp.copy(source.image("june1"), tmp_path / "copied", progress=events.append)
    steps = np.diff([0, *(event.done_bytes for event in events if event.phase == "blocks")])
    assert steps.max() <= image_share(source.image("june1").n_bytes)


def image_share(n_bytes: int) -> int:
    """The largest window of a small image: a sixteenth of it, and up to 2 MiB more."""
    return n_bytes // 16 + 2 * MIB


def test_a_new_volume_has_all_the_groups_of_its_source_and_both_may_grow(tmp_path, rng):
    with bp.Volume.create(tmp_path / "pool", disks=3, size="12M") as volume:
        volume.grow(2, "16M", parity=0, chunk="1MiB")
        files = bp.FileSystem(volume)
        files.write_bytes("/one", rng.bytes(34 * MIB))  # more than the first group holds
        volume.snapshot("s1")
        for dry in (True, False):
            assert bp.copy(volume.image("s1"), tmp_path / "copied", dry_run=dry).makes_volume
        shapes = [(g.first, g.n_data, g.n_parity, g.chunk_blocks, g.disk_blocks) for g in volume.geometry.groups]
        with bp.Volume.open(tmp_path / "copied") as copied:
            found = copied.geometry.groups
            assert [(g.first, g.n_data, g.n_parity, g.chunk_blocks, g.disk_blocks) for g in found] == shapes
            volume.grow(1, "32M")
            files.write_bytes("/two", rng.bytes(20 * MIB))
            volume.snapshot("s2")
            image = volume.image("s2 - s1")
            for dry in (True, False):
                with pytest.raises(bp.errors.RefusedError, match="the image holds block") as caught:
                    bp.copy(image, copied, dry_run=dry)
                assert "blockplane grow" in caught.value.hint
            copied.grow(4, "12M", parity=2)
            copied.grow(2, "20M")
            foreseen = bp.copy(image, copied, dry_run=True)
            assert bp.copy(image, copied, verify=True).n_blocks_verified == foreseen.n_blocks == image.n_blocks
        require_equal(volume, tmp_path / "copied", "s1", "s2")


def test_it_reads_the_image_once_and_keeps_no_stream(source, tmp_path):
    image, before = source.image("june1"), source.array.counters()
    report = bp.copy(image, tmp_path / "copied")
    read = source.array.counters().read_bytes - before.read_bytes
    assert image.n_bytes <= read <= 1.05 * image.n_bytes + 4 * MIB
    assert report.planning_blocks < image.n_blocks // 100
    again = source.array.counters().read_bytes
    bp.copy(source.image("june1"), tmp_path / "copied", verify=True)
    assert source.array.counters().read_bytes - again >= image.n_bytes


def test_what_the_target_keeps_stays_and_what_comes_lands_elsewhere(source, tmp_path):
    """Its own snapshot holds places that the image's blocks have as their numbers (law 4)."""
    with bp.Volume.create(tmp_path / "copied", disks=2, size="300M", chunk="1MiB") as volume:
        files = bp.FileSystem(volume)
        files.write_bytes("/own", np.random.default_rng(2).bytes(20 * MIB))
        own = volume.snapshot("own")
        was = volume_tree(bp.FileSystem(own))
        bp.copy(source.image("june1"), volume, discard=True, verify=True)
        assert not volume.get_snapshot("june1").state.placemap.is_empty
        bp.copy(source.image("june3 + june2 - june1"), volume, verify=True)
        assert differences(volume_tree(bp.FileSystem(volume.get_snapshot("own"))), was) == []
    with bp.Volume.open(tmp_path / "copied") as volume:
        assert bp.check(volume).problems == []
        # and on from there: a source whose blocks do not lie at their numbers
        bp.copy(volume.image("june3", older=("june1",)), tmp_path / "third", disks=1, size="300M", verify=True)
    require_equal(source, tmp_path / "third", "june1", "june3")


def test_what_is_there_is_compared_and_not_written(source, tmp_path):
    bp.copy(source.image("june1"), tmp_path / "copied")
    report = bp.copy(source.image("june3"), tmp_path / "copied", discard=True, verify=True)
    assert 0 < report.n_blocks_shared < report.n_blocks == report.n_blocks_verified
    require_equal(source, tmp_path / "copied", "june1", "june3")


def test_another_storage_copies_to_a_volume_and_back(tmp_path):
    """A dict of blocks has no disks: its windows and its landing are enough."""
    storage, old, new = pair()
    other = DictStorage("other")
    for top, base in ((old, None), (new, old)):
        report = bp.copy(DictSending(storage, top, base), other)
        assert report.n_blocks == len(DictSending(storage, top, base).plane)
    assert other.snapshots.keys() == storage.snapshots.keys()
    assert all(other.blocks[vbn] == storage.blocks[vbn] for vbn in members(DictSending(storage, new).plane))
    with pytest.raises(bp.errors.UsageError, match="read back"):
        bp.copy(DictSending(storage, new), DictStorage("third"), verify=True)


def test_windows_that_lie_are_refused(tmp_path):
    """What came is what the image claims, or nothing is committed."""
    storage, old, _ = pair()

    class Twice(DictSending):
        def _gathered(self):
            yield from [*super()._gathered()] * 2

    class Less(DictSending):
        def _gathered(self):
            yield next(super()._gathered())

    for lying, said in (
        (Twice(storage, old, window_blocks=4), "read twice"),
        (Less(storage, old, None, 4), "not read"),
    ):
        target = DictStorage("target")
        with pytest.raises(bp.errors.VolumeDamagedError, match=said):
            bp.copy(lying, target)
        assert target.snapshots == {}


# --- comparing ------------------------------------------------------------------------------------------------------


def place_on_disk(volume: bp.Volume, snapshot: str, vbn: int) -> tuple[Path, int]:
    """Return the disk file and the offset where a block of a snapshot lies."""
    place = int(volume.get_snapshot(snapshot).state.placemap.to_places(np.array([vbn]))[0])
    disk, dbn = volume.geometry.locate(place, place + 1)
    return Path(volume.array.disks[disk].path), (dbn + HEAD_BLOCKS) * bp.BLOCK_BYTES


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x40]))
        os.fsync(file.fileno())


@pytest.mark.parametrize("geometry", [{}, {"disks": 2, "size": "200M", "chunk": "disk"}], ids=["same", "other"])
def test_a_bit_that_differs_is_named(source, tmp_path, rng, geometry):
    image = source.image("june1")
    bp.copy(image, tmp_path / "copied", **geometry)
    vbns = sorted(int(image.plane.select(int(i))) for i in rng.choice(image.n_blocks, 3, replace=False))
    with bp.Volume.open(tmp_path / "copied", writable=False) as volume:
        assert compare_copy(image, volume, lambda _: None) == image.n_blocks
        for vbn in vbns:
            path, offset = place_on_disk(volume, "june1", vbn)
            flip(path, offset + int(rng.integers(4096)))
    with pytest.raises(bp.errors.ChecksumError, match=r"3 of .* blocks in .* differ") as caught:
        bp.copy(image, tmp_path / "copied", verify=True)
    assert caught.value.number in vbns


# --- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", [{}, {"disks": 3, "size": "120M", "chunk": "1MiB"}], ids=["same", "other"])
@pytest.mark.parametrize("expression", ["june1", "june2 - june1"])
def test_an_interrupted_copy_goes_on(source, tmp_path, expression, geometry):
    image = source.image(expression)
    if image.base is not None:
        bp.copy(source.image("june1"), tmp_path / "copied", **geometry)
        geometry = {}
    error = interrupted(image, tmp_path / "copied", 16 * MIB, **geometry)
    assert "are kept in" in error.__notes__[0]
    assert "copy it again" in error.__notes__[1]
    foreseen = bp.copy(image, tmp_path / "copied", dry_run=True)
    with bp.Volume.open(tmp_path / "copied", writable=False) as volume:
        (left,) = interrupted_receives(volume)
        assert left.n_image == image.n_blocks
        was_landed = left.n_landed
    read = source.array.counters().read_bytes
    report = bp.copy(image, tmp_path / "copied", verify=False, **geometry)
    read = source.array.counters().read_bytes - read
    assert (report.n_blocks, report.n_blocks_before) == (foreseen.n_blocks, foreseen.n_blocks_before)
    assert report.n_blocks + report.n_blocks_before == image.n_blocks
    assert report.n_blocks_before >= was_landed > 0
    assert report.n_blocks_before >= 16 * MIB // 4096 - 4096 // 4
    assert read <= 1.05 * report.n_bytes + 4 * MIB
    require_equal(source, tmp_path / "copied", image.top.name)


def test_a_stream_goes_on_with_what_a_copy_brought_and_the_other_way(source, tmp_path):
    image = source.image("june1")
    interrupted(image, tmp_path / "copied", 16 * MIB)
    with bp.Volume.open(tmp_path / "copied") as volume:
        token = bp.resume_token(volume)
    assert token.n_copied > 0
    bp.send(image, tmp_path / "rest.bps", resume=token)
    bp.receive(tmp_path / "rest.bps", tmp_path / "copied")
    require_equal(source, tmp_path / "copied", "june1")
    image = source.image("june2 - june1")
    stream = io.BytesIO()
    bp.send(image, stream)
    with pytest.raises(bp.errors.StreamTruncatedError):
        bp.receive(io.BytesIO(stream.getvalue()[: len(stream.getvalue()) // 2]), tmp_path / "copied")
    assert bp.copy(image, tmp_path / "copied").n_blocks_before > 0
    require_equal(source, tmp_path / "copied", "june1", "june2")


def test_giving_up_an_interrupted_copy_removes_what_it_made(source, tmp_path):
    interrupted(source.image("june1"), tmp_path / "copied", 16 * MIB)
    assert bp.abort_receive(tmp_path / "copied") == source.image("june1").n_blocks
    assert not (tmp_path / "copied").exists()


def test_growing_the_target_invalidates_nothing_that_came(source, tmp_path):
    image = source.image("june1")
    interrupted(image, tmp_path / "copied", 16 * MIB, disks=4, size="60M", parity=0, chunk="512KiB")
    with bp.Volume.open(tmp_path / "copied") as volume:
        volume.grow(2, "40M", parity=0)
    report = bp.copy(image, tmp_path / "copied", verify=True)
    assert report.n_blocks_before > 0
    require_equal(source, tmp_path / "copied", "june1")


def test_a_damaged_block_of_the_source_keeps_what_came(source, tmp_path):
    """The copy goes on once the block is mended."""
    pool = tmp_path / "pool"
    source.sync()
    shutil.copytree(source.path, pool)
    with bp.Volume.open(pool) as volume:
        image = volume.image("june1")
        plans = [window.disks[-1] for window in planned(image)]
        plan = plans[-1]
        path = Path(volume.array.disks[plan.disk].path)
        offset = (int(plan.dbn[-1]) + HEAD_BLOCKS) * bp.BLOCK_BYTES + 77
        flip(path, offset)
        with pytest.raises(bp.errors.ChecksumError, match=r"does not match its checksum; \d+ of .* are kept") as caught:
            bp.copy(image, tmp_path / "copied")
        assert "copy it again" in caught.value.hint
        flip(path, offset)
        report = bp.copy(image, tmp_path / "copied", verify=True)
        assert 0 < report.n_blocks < image.n_blocks
    require_equal(source, tmp_path / "copied", "june1")


def planned(image: bp.Image) -> list[Window]:
    return list(windows(image.layout, image.plane, image.store.geometry, DISK, WINDOW_BLOCKS))


def test_a_snapshot_that_goes_before_the_copy_is_refused_and_leaves_nothing(source, tmp_path):
    source.snapshot("short")
    image = source.image("short")
    source.delete_snapshot("short")
    with pytest.raises(bp.errors.NoSuchSnapshotError):
        bp.copy(image, tmp_path / "copied")
    assert not (tmp_path / "copied").exists()


def test_the_source_is_pinned_while_it_is_copied(source, tmp_path):
    seen: list[list[str]] = []

    def told(event: bp.ProgressEvent) -> None:
        if event.phase == "blocks":
            seen.append([snapshot.name for snapshot in source.snapshots if snapshot.pins])

    bp.copy(source.image("june2"), tmp_path / "copied", progress=told)
    assert seen[0] == ["june2"]
    assert [snapshot.name for snapshot in source.snapshots if snapshot.pins] == []


def test_two_volumes_copy_to_each_other_at_once(tmp_path, rng):
    """Each is read and landed in at the same time, by threads of one process: nobody waits for the other's lock."""
    with bp.Volume.create(tmp_path / "one", disks=3, size="80M") as one:
        bp.FileSystem(one).write_bytes("/both", rng.bytes(4 * MIB))
        one.snapshot("common")
        bp.copy(one.image("common"), tmp_path / "other")
        with bp.Volume.open(tmp_path / "other") as other:
            trees = {}
            for volume, name in ((one, "of-one"), (other, "of-other")):
                bp.FileSystem(volume).write_bytes(f"/{name}", rng.bytes(24 * MIB))
                trees[name] = volume_tree(bp.FileSystem(volume.snapshot(name)))
            images = [(one.image("of-one - common"), other), (other.image("of-other - common"), one)]
            with ThreadPoolExecutor(2) as pool:
                copies = [pool.submit(bp.copy, *each, discard=True, verify=True) for each in images]
                assert all(each.result(120).n_blocks_verified > 6000 for each in copies)
            for volume in (one, other):
                assert {snapshot.name for snapshot in volume.snapshots} == {"common", "of-one", "of-other"}
                assert bp.check(volume).problems == []
                for name, tree in trees.items():
                    assert differences(volume_tree(bp.FileSystem(volume.get_snapshot(name))), tree) == []


# --- refused --------------------------------------------------------------------------------------------------------


def test_its_own_volume_and_its_disks_are_no_target(source, tmp_path):
    image = source.image("june1")
    source.sync()
    before = contents(source.path)
    (tmp_path / "alias").symlink_to(source.path)
    for target in (source, source.path, str(source.path), tmp_path / "alias"):
        for dry in (False, True):
            with pytest.raises(bp.errors.RefusedError, match="is the volume that the image is of"):
                bp.copy(image, target, dry_run=dry)
    own = source.array.disks[1].path
    (tmp_path / "link").symlink_to(own)
    for disk in (own, tmp_path / "link"):
        with pytest.raises(bp.errors.RefusedError, match="is a disk of"):
            bp.copy(image, tmp_path / "new", disks=[disk], wipe=True)
    assert not (tmp_path / "new").exists()
    assert contents(source.path) == before


def test_a_dry_run_writes_nothing(source, tmp_path):
    bp.copy(source.image("june1"), tmp_path / "copied")
    interrupted(source.image("june2 - june1"), tmp_path / "copied", 16 * MIB)
    before = contents(tmp_path / "copied")
    report = bp.copy(source.image("june2 - june1"), tmp_path / "copied", dry_run=True)
    assert 0 < report.n_blocks_before < report.n_image_blocks
    assert contents(tmp_path / "copied") == before
    with bp.Volume.open(tmp_path / "copied", writable=False) as volume:
        assert bp.copy(source.image("june2 - june1"), volume, dry_run=True).n_blocks == report.n_blocks
    assert contents(tmp_path / "copied") == before


def test_a_dry_run_leaves_what_a_killed_copy_had_begun_to_make(source, tmp_path):
    """Nothing of it can be gone on with: the copy clears it away, and the dry run looks past it."""
    source_image = source.image("june1")
    bp.Volume.create(tmp_path / "copied", disks=3, size="16M").close()
    making.mark(tmp_path / "copied")
    before = contents(tmp_path / "copied")
    report = bp.copy(source_image, tmp_path / "copied", disks=2, size="200M", dry_run=True)
    assert (report.makes_volume, report.n_blocks) == (True, source_image.n_blocks)
    assert contents(tmp_path / "copied") == before
    bp.copy(source_image, tmp_path / "copied", disks=2, size="200M")
    require_equal(source, tmp_path / "copied", "june1")


def test_small_windows_arrive_as_large_ones_do(source, tmp_path):
    sending = ImageSending(source.image("june2"), window_blocks=100)
    assert bp.copy(sending, tmp_path / "copied", disks=8, size="40M", parity=2, verify=True).n_blocks_verified > 0
    require_equal(source, tmp_path / "copied", "june2")


def test_a_volume_whose_disk_took_no_more_says_that_it_stopped(source, tmp_path, monkeypatch):
    """So that whoever has it open for long opens it anew, and the copy goes on once there is room."""
    written = FileDisk.write_plan

    def full(disk: FileDisk, *arguments) -> None:
        if str(tmp_path) in str(disk.path):
            raise DiskError(f"{disk.path}: write failed: No space left on device")
        written(disk, *arguments)

    with bp.Volume.create(tmp_path / "copy", disks=2, size="90M", parity=0) as target:
        with monkeypatch.context() as patch:
            patch.setattr(FileDisk, "write_plan", full)
            patch.setattr(FileDisk, "write_gathered", full)
            with pytest.raises(DiskError, match="No space left"):
                bp.copy(source.image("june1"), target)
        assert "No space left" in target.stopped_at
    with bp.Volume.open(tmp_path / "copy") as again:
        assert again.stopped_at == ""
        bp.copy(source.image("june1"), again)
    require_equal(source, tmp_path / "copy", "june1")


@contextlib.contextmanager
def interrupted_before(function, n: int) -> Iterator[list[bool]]:
    """Interrupt before the n-th line of a function runs; the list is empty where it has fewer."""
    done: list[bool] = []
    left = [n]

    def line(frame, event, argument):
        left[0] -= event == "line"
        if left[0] < 0 and not done:
            done.append(True)
            raise KeyboardInterrupt
        return line

    sys.settrace(lambda frame, event, argument: line if frame.f_code is function.__code__ else None)
    try:
        yield done
    finally:
        sys.settrace(None)


@pytest.mark.parametrize("size", ["1M", "20M"])
def test_an_interrupt_at_any_step_of_the_end_leaves_the_old_state_or_the_new_one(tmp_path, rng, is_deep, size):
    """An image that is too small for what landed to be noted on the way, and one of which it is noted."""
    with bp.Volume.create(tmp_path / "pool", disks=3, size="40M") as source:
        files = bp.FileSystem(source)
        files.write_bytes("/a", rng.bytes(MIB))
        source.snapshot("june1")
        files.write_bytes("/b", rng.bytes(bp.parse_size(size)))
        source.snapshot("june2")
        bp.copy(source.image("june1"), tmp_path / "base", disks=3, size="40M")
        steps = interrupted_ends(source, tmp_path, range(0, 100, 1 if is_deep else 3 if size == "1M" else 5))
    assert steps > 15


def interrupted_ends(source, tmp_path, steps: range) -> int:
    """Go through all of it at each step; return how many there are."""
    for step in steps:
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "base", copy)
        with bp.Volume.open(copy) as target:
            with interrupted_before(Landing._exchange, step) as done, contextlib.suppress(KeyboardInterrupt):
                bp.copy(source.image("june2 - june1"), target)
            if not done:
                return step
            assert target.stopped_at
            with pytest.raises(bp.errors.BlockplaneError):  # whoever goes on with it in the same process is told
                target.snapshot("more")
        with bp.Volume.open(copy) as target:
            assert [snapshot.name for snapshot in target.snapshots] == ["june1"]
            assert bp.check(target).problems == []
            bp.copy(source.image("june2 - june1"), target)
            assert bp.interrupted_receives(target) == []
        require_equal(source, copy, "june1", "june2")
        shutil.rmtree(copy)
    raise AssertionError("it has no end")


def test_an_interrupt_at_any_step_of_the_end_keeps_what_came_of_a_volume_that_is_made(tmp_path, rng, is_deep):
    with bp.Volume.create(tmp_path / "pool", disks=3, size="40M") as source:
        bp.FileSystem(source).write_bytes("/a", rng.bytes(24 * MIB))
        source.snapshot("june1")
        for step in range(0, 100, 1 if is_deep else 4):
            copy = tmp_path / "copy"
            with interrupted_before(Landing._exchange, step) as done, contextlib.suppress(KeyboardInterrupt):
                bp.copy(source.image("june1"), copy)
            if not done:
                break
            again = bp.copy(source.image("june1"), copy)
            assert again.n_blocks_before > 16 * MIB // bp.BLOCK_BYTES
            require_equal(source, copy, "june1")
            shutil.rmtree(copy)
    assert step > 15
