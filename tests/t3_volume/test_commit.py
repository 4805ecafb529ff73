"""Consistency points: what is written in which order, what opening takes, the intent record, the reserve."""

from __future__ import annotations

import contextlib
import errno
import itertools
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest

from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS
from blockplane.model import (
    BlockplaneError,
    DiskStaleError,
    NoSpaceError,
    NotAVolumeError,
    ReadOnlyError,
    VolumeDamagedError,
)
from blockplane.planes import Plane
from blockplane.volume import landing_bands, points, rootslots
from blockplane.volume.fsinfo import MAX_AREAS, decode
from blockplane.volume.live import reserve_for
from blockplane.volume.rootslots import read_newest, slots_of, successor
from blockplane.volume.space import AREA_STRIPES
from faults.recording import Flush, MemoryDisk, Recorder, Write
from faults.world import (
    FileClient,
    again,
    geometry_of,
    make_volume,
    memory_disks,
    open_volume,
    present,
    raw_blocks,
    read_files,
    revived,
    verdict,
)

pytestmark = pytest.mark.usefixtures("inline")


def recorded(geometry) -> tuple[Recorder, object]:
    recorder = Recorder()
    for disk in range(geometry.n_disks):
        recorder.disk(raw_blocks(geometry, disk))
    make_volume(geometry, recorder.disks).close()
    volume = open_volume(revived(recorder.disks))
    recorder.start()
    return recorder, volume


def epochs(recorder: Recorder) -> list[list[Write]]:
    """Writes between barriers: a barrier is a flush of every disk in a row."""
    out: list[list[Write]] = [[]]
    flushed: set[int] = set()
    for entry in recorder.log:
        if isinstance(entry, Write):
            if len(flushed) == len(recorder.disks):
                out.append([])
            flushed = set()
            out[-1].append(entry)
        elif isinstance(entry, Flush):
            flushed.add(entry.disk)
    assert len(flushed) == len(recorder.disks), "the last writes were not flushed"
    return out


def kind_of(write: Write, recorder: Recorder) -> str:
    head, tail = slots_of(recorder.disks[write.disk])
    if write.block in (head, tail):
        return "half one" if write.block == head else "half two"
    assert HEAD_BLOCKS <= write.block < recorder.disks[write.disk].n_blocks - TAIL_BLOCKS, "outside the data area"
    return "data"


def test_the_order_of_a_commit():
    """Intent (half one, half two), data, root (half one, half two): each in a flush epoch of its own."""
    recorder, volume = recorded(geometry_of(2, 1, 128))
    client = FileClient(volume)
    client.write(1, 0, range(10))
    volume.sync()
    kinds = [{kind_of(write, recorder) for write in epoch} for epoch in epochs(recorder)]
    assert all(len(kind) == 1 for kind in kinds), kinds
    order = [kind.pop() for kind in kinds]
    assert order[-2:] == ["half one", "half two"]
    assert order[0:2] == ["half one", "half two"]
    assert order.count("data") >= 1
    for before, after in itertools.pairwise(order):
        assert (before, after) != ("half one", "data")
        assert (before == "half one") == (after == "half two")
    for epoch in epochs(recorder):
        if kind_of(epoch[0], recorder) != "data":
            assert sorted(write.disk for write in epoch) == [0, 1, 2]
            assert len({write.data for write in epoch}) == 1


def test_a_clean_record_follows_what_a_receive_that_was_given_up_wrote(monkeypatch):
    """There is no consistency point to end with: that record lies in a flush epoch of its own all the same."""
    monkeypatch.setattr(landing_bands, "LANDING_STRIPES", 64)
    recorder, volume = recorded(geometry_of(2, 1, 256))
    landing = volume.landing(Plane.from_extents([[128, 300]], 512))
    for buffer in landing.buffers(np.array([[128, 256]])):
        buffer[:] = 1
    landing.landed()  # a band is whole
    landing.abort()
    volume.commit(clean=True)
    kinds = [{kind_of(write, recorder) for write in epoch} for epoch in epochs(recorder)]
    assert kinds == [{"half one"}, {"half two"}, {"data"}, {"half one"}, {"half two"}]
    assert volume.info.clean


def test_every_data_write_lies_in_an_area_that_was_named_before():
    geometry = geometry_of(1, 1, 3 * AREA_STRIPES, n_groups=2)
    recorder, volume = recorded(geometry)
    client = FileClient(volume)
    for inode in range(1, 5):
        client.write(inode, 0, [inode] * 300)
        volume.sync()
    named: set[tuple[int, int]] = set()
    for epoch in epochs(recorder):
        for write in epoch:
            if kind_of(write, recorder) == "data":
                stripe = write.block - HEAD_BLOCKS
                group, _ = geometry.home(write.disk)
                areas = range(stripe // AREA_STRIPES, (stripe + write.n_blocks - 1) // AREA_STRIPES + 1)
                assert {(group, area) for area in areas} <= named
        last = decode(epoch[-1].data) if kind_of(epoch[-1], recorder) == "half two" else None
        if last is not None:
            named = set(last.areas)
            assert not last.clean


def test_nothing_dirty_is_no_commit():
    recorder, volume = recorded(geometry_of(2, 1, 128))
    volume.sync()
    volume.sync()
    assert recorder.log == []
    client = FileClient(volume)
    client.edit(1, 0, 1)
    volume.sync()
    n_log = len(recorder.log)
    volume.sync()
    assert len(recorder.log) == n_log


def test_generations_and_nonces_follow_each_other():
    recorder, volume = recorded(geometry_of(2, 1, 128))
    client, before = FileClient(volume), volume.info
    for value in range(3):
        client.edit(1, 0, value + 1)
        volume.sync()
    records = {}
    for epoch in epochs(recorder):
        for write in epoch:
            record = decode(write.data[:4096])
            if record is not None and kind_of(write, recorder) != "data":
                records[record.generation] = record
    last = before
    for generation in sorted(records):
        record = records[generation]
        assert record.generation == last.generation + 1
        assert record.previous_nonce == last.nonce
        assert record.nonce != last.nonce
        last = record
    assert volume.info == last
    assert last.previous_state.exists


def test_closing_leaves_a_clean_record_without_areas():
    disks = memory_disks(geometry_of(2, 1, 128))
    volume = make_volume(geometry_of(2, 1, 128), disks)
    FileClient(volume).edit(1, 0, 1)
    volume.close()
    for disk in disks:
        disk.is_closed = False
    record, everywhere = read_newest(disks)
    assert everywhere
    assert record.clean
    assert record.areas == []


def test_the_newest_valid_record_is_taken_and_written_everywhere():
    disks = memory_disks(geometry_of(2, 1, 128))
    volume = make_volume(geometry_of(2, 1, 128), disks)
    client = FileClient(volume)
    client.write(1, 0, range(5))
    volume.close()
    for disk in disks:
        disk.is_closed = False
    record, _ = read_newest(disks)
    newer = successor(record, clean=True)
    disks[1].write(slots_of(disks[1])[1], newer.encode())
    disks[0].write(slots_of(disks[0])[0], b"\xff" * 4096)
    found, everywhere = read_newest(disks)
    assert (found.generation, everywhere) == (newer.generation, False)
    volume = open_volume(disks)
    assert read_files(volume.committed) == present(client.files)
    generations = {decode(disk.block(slot)).generation for disk in disks for slot in slots_of(disk)}
    assert generations == {newer.generation + 1}


@pytest.mark.parametrize("stale", range(3))
@pytest.mark.parametrize("is_clean", [False, True])
def test_a_disk_that_missed_the_last_commit_is_refused(stale, is_clean):
    """Half two has the newest record, so half one was flushed everywhere: no power cut leaves a disk with neither."""
    volume = make_volume(geometry_of())
    client = FileClient(volume)
    client.write(1, 0, range(100))
    volume.sync()
    before = volume.array.disks[stale].contents()
    generation = volume.info.generation
    client.write(2, 0, range(40))
    volume.ends_next = is_clean
    volume.sync()
    assert (volume.info.generation, volume.info.clean) == (generation + 1, is_clean)
    volume.abandon()
    disks = revived(volume.array.disks)
    disks[stale] = MemoryDisk(f"disk{stale}", disks[stale].n_blocks, before)
    with pytest.raises(DiskStaleError, match=f"disk{stale}: stale.* {generation}, .* {generation + 1}"):
        open_volume(disks)


def test_a_disk_is_a_generation_behind_while_half_one_is_written():
    """Or its newer slot is damaged: then nothing says that it missed anything."""
    volume = make_volume(geometry_of())
    older = volume.info.encode()
    volume.commit(force=True)
    generation = volume.info.generation
    volume.abandon()
    disks = revived(volume.array.disks)
    head, tail = slots_of(disks[1])
    disks[1].write(head, bytes(4096))
    disks[1].write(tail, older)
    assert read_newest(disks)[0].generation == generation
    for disk in disks:
        disk.write(slots_of(disk)[1], older)
    disks[1].write(head, older)
    assert read_newest(disks)[0].generation == generation


def test_two_records_of_one_generation_are_refused():
    disks = memory_disks(geometry_of(2, 1, 128))
    make_volume(geometry_of(2, 1, 128), disks).close()
    for disk in disks:
        disk.is_closed = False
    record, _ = read_newest(disks)
    disks[2].write(slots_of(disks[2])[0], successor(record).encode())
    disks[0].write(slots_of(disks[0])[0], successor(record).encode())
    with pytest.raises(VolumeDamagedError, match="two different"):
        read_newest(disks)


@pytest.mark.parametrize("foreign", [0, 2])
def test_a_disk_of_another_copy_is_refused_though_it_is_a_generation_apart(foreign):
    """The copy's power went after half one of its next record, which would be taken, and written over this one's."""
    disks = memory_disks(geometry_of(2, 1, 128))
    volume = make_volume(geometry_of(2, 1, 128), disks)
    client = FileClient(volume)
    client.write(1, 0, range(5))
    volume.close()
    for disk in disks:
        disk.is_closed = False
    record, _ = read_newest(disks)
    others = successor(replace(record, generation=record.generation - 1))
    head, tail = slots_of(disks[foreign])
    kept = disks[foreign].block(tail)
    disks[foreign].write(head, successor(others).encode())
    disks[foreign].write(tail, others.encode())
    before = [disk.contents() for disk in disks]
    with pytest.raises(VolumeDamagedError, match="two different"):
        open_volume(disks)
    assert [disk.contents() for disk in disks] == before
    for slot in (head, tail):
        disks[foreign].write(slot, kept)
    assert read_files(open_volume(disks).committed) == present(client.files)


def test_a_record_that_was_cut_short_is_the_last():
    """Areas are named; another record of that generation would leave a volume that nobody opens."""
    volume = make_volume(geometry_of(2, 1, 128))
    client = FileClient(volume)
    client.write(1, 0, range(5))
    volume.commit(clean=True)
    before = present(client.files)
    with mock.patch.object(volume.array, "flush", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        client.write(2, 0, range(20))

    def cut(array, record) -> None:  # the power, when the head of one disk has it
        array.write_raw([(0, slots_of(array.disks[0])[0])], np.frombuffer(record.encode(), np.uint8))
        raise KeyboardInterrupt

    with mock.patch.object(points, "write_record", cut), contextlib.suppress(VolumeDamagedError, KeyboardInterrupt):
        client.write(3, 0, range(20))
    assert read_files(again(volume).committed) == before


def test_areas_are_named_when_a_record_on_the_disks_names_them():
    volume = make_volume(geometry_of(2, 1, 128))
    no_memory = OSError(errno.ENOMEM, "Cannot allocate memory")
    with mock.patch.object(rootslots, "aligned_buffer", side_effect=no_memory), pytest.raises(OSError, match="memory"):
        volume.declare_areas([(0, 20)])
    with pytest.raises(VolumeDamagedError, match="memory"):
        volume.declare_areas([(0, 20)])


def test_no_record_at_all():
    disks = memory_disks(geometry_of(2, 1, 128))
    make_volume(geometry_of(2, 1, 128), disks).close()
    for disk in disks:
        disk.is_closed = False
        for slot in slots_of(disk):
            disk.write(slot, bytes(4096))
    with pytest.raises(NotAVolumeError):
        read_newest(disks)


def test_parity_is_mended_after_an_unclean_stop():
    """Every stripe of the named areas is wrong; opening puts it right, and a clean volume is left alone."""
    geometry = geometry_of(2, 2, 128)
    disks = memory_disks(geometry)
    volume = make_volume(geometry, disks)
    client = FileClient(volume)
    client.write(1, 0, range(60))
    volume.sync()
    assert volume.info.areas
    volume.abandon()
    for disk in disks:
        disk.is_closed = False
    for disk in disks[2:]:
        for block in range(HEAD_BLOCKS, HEAD_BLOCKS + 128):
            disk.write(block, b"\x5a" * 4096)
    volume = open_volume(disks)
    verdict(volume)
    assert volume.info.areas == []


def test_areas_do_not_run_over():
    """More areas than a record holds are named in turns, the earlier ones settled first."""
    geometry = geometry_of(1, 0, 64, n_groups=2)
    _, volume = recorded(geometry)
    with volume.lock:
        for area in range(MAX_AREAS + 20):
            volume._declare([(0, area)])
            assert (0, area) in volume.info.areas
            assert len(volume.info.areas) <= MAX_AREAS


def test_a_read_only_volume_writes_nothing():
    disks = memory_disks(geometry_of(2, 1, 128))
    volume = make_volume(geometry_of(2, 1, 128), disks)
    client = FileClient(volume)
    client.write(1, 0, range(5))
    volume.sync()
    volume.abandon()  # not clean: even so nothing is mended
    for disk in disks:
        disk.is_closed = False
    before = [disk.contents() for disk in disks]
    volume = open_volume(disks, writable=False)
    assert read_files(volume.committed) == present(client.files)
    for change in (
        volume.sync, lambda: volume.snapshot("a"), lambda: volume.new_tree().edit_block(0),
        lambda: volume.rollback("a"), lambda: volume.new_tree().allocate(0, 1),
    ):  # fmt: skip
        with pytest.raises(BlockplaneError):
            change()
    with pytest.raises(ReadOnlyError):
        volume.sync()
    volume.close()
    assert [disk.contents() for disk in disks] == before


@pytest.mark.parametrize(
    ("n_blocks", "reserve"),
    [(448, 56), (8192, 1024), (65536, 1024), (1 << 20, 16384), (1 << 22, 65536), (1 << 32, 65536)],
)
def test_the_reserve(n_blocks, reserve):
    assert reserve_for(n_blocks) == reserve


@pytest.mark.parametrize("shape", [(2, 1, 128), (1, 0, 192), (3, 2, 64), (8, 1, 64)])
def test_the_reserve_of_tiny_volumes_is_enough_to_delete(shape):
    geometry = geometry_of(*shape)
    volume = make_volume(geometry, reserve_blocks=max(reserve_for(geometry.n_usable), 28))
    client = FileClient(volume)
    index = 0
    while True:
        try:
            client.write(1, index, [1])
            index += 1
            if index % 7 == 0:
                volume.sync()
        except NoSpaceError:
            break
    volume.sync()
    with pytest.raises(NoSpaceError):
        client.write(2, 0, [1] * 30)
    with volume.dipping():
        client.punch(1, 0, index // 2)
    volume.sync()
    volume.make_room(index // 4)
    client.write(2, 0, [1] * (index // 4))
    volume.sync()
    verdict(volume)
    assert read_files(again(volume).committed) == present(client.files)


def test_the_timer_and_the_dirty_limit(monkeypatch):
    recorder, volume = recorded(geometry_of(2, 1, 128))
    client = FileClient(volume)
    now = [1000.0]
    monkeypatch.setattr("blockplane.volume.live.time.monotonic", lambda: now[0])
    client.edit(1, 0, 5)
    volume.mark_dirty(4096)
    assert recorder.log == []
    now[0] += 9
    volume.mark_dirty(0)
    assert recorder.log == []
    now[0] += 2
    volume.mark_dirty(0)
    cp = volume.committed.cp
    assert read_files(volume.committed) == {1: {0: 5}}
    client.edit(1, 0, 6)
    volume.mark_dirty(65 << 20)
    assert volume.committed.cp == cp + 1


def test_a_client_that_fails_stops_the_volume_at_the_last_point():
    _, volume = recorded(geometry_of(2, 1, 128))
    client = FileClient(volume)
    client.edit(1, 0, 5)
    volume.sync()

    class Broken:
        def flush(self, volume) -> None:
            raise RuntimeError("a bug")

        def reload(self) -> None: ...

    volume.register_client(Broken())
    client.edit(1, 0, 6)
    with pytest.raises(RuntimeError):
        volume.sync()
    with pytest.raises(VolumeDamagedError, match="a bug"):
        volume.sync()
    disks = [MemoryDisk(disk.path, disk.n_blocks, disk.contents()) for disk in volume.array.disks]
    assert read_files(open_volume(disks).committed) == {1: {0: 5}}


def test_many_points_in_a_small_volume():
    """Nothing leaks: a volume goes on for ever in the space it has."""
    volume = make_volume(geometry_of(2, 1, 64), reserve_blocks=48)
    client = FileClient(volume)
    used = None
    for value in range(200):
        client.write(1, value % 5, [value] * 6)
        client.edit(2, value % 3, value)
        volume.sync()
        if value == 20:
            used = volume.used_blocks
    assert volume.used_blocks <= used + 2
    verdict(volume)
    assert np.array_equal(sorted(client.files[1]), range(10))
