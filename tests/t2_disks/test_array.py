"""The array: bands out, places in, parity right, errors that stick; on files and on disks in memory."""

from __future__ import annotations

import functools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockplane.disks import (
    HEAD_BLOCKS,
    BufferPool,
    DiskArray,
    FileDisk,
    Geometry,
    GroupRecord,
    Pending,
    aligned_buffer,
    compute_parity,
    resync_parity,
    spread,
    verify_parity,
)
from blockplane.model import ChecksumError, DiskError
from blockplane.model.checks import fresh_checks
from faults.recording import Flush, MemoryDisk, Recorder, Write

DISK_BLOCKS = 512
GEOMETRY = Geometry(
    [
        GroupRecord(0, 3, 1, 64, DISK_BLOCKS, (0, 1, 2, 3)),
        GroupRecord(65536, 2, 2, 128, DISK_BLOCKS, (4, 5, 6, 7)),
        GroupRecord(131072, 1, 0, DISK_BLOCKS, DISK_BLOCKS, (8,)),
    ]
)
TOTAL = DISK_BLOCKS + 32


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def extents(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def content_of(places: np.ndarray) -> np.ndarray:
    """(n, 4096) uint8 that tells places apart in every byte's neighbourhood."""
    numbers = np.repeat(places.reshape(-1, 1), 512, axis=1) * 1000003 + np.arange(512)
    return numbers.astype(np.int64).view(np.uint8).reshape(-1, 4096)


def fill(array: DiskArray, stop: int = DISK_BLOCKS) -> None:
    for group in range(len(array.geometry.groups)):
        for start in range(0, stop, 64):
            band = array.new_band(group, start, 64, zero=False)
            places = array.geometry.band_places(group, start, 64)
            band.data[:] = content_of(places.reshape(-1)).reshape(band.data.shape)
            array.write_band(band)
    array.drain()


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture(params=["files", "memory"])
def array(request, tmp_path, recorder):
    if request.param == "files":
        disks = [FileDisk.create(str(tmp_path / f"disk{d}"), TOTAL) for d in range(GEOMETRY.n_disks)]
    else:
        disks = [recorder.disk(TOTAL) for _ in range(GEOMETRY.n_disks)]
    with DiskArray(GEOMETRY, disks) as array:
        yield array


@pytest.fixture
def recorded(recorder):
    with DiskArray(GEOMETRY, [recorder.disk(TOTAL) for _ in range(GEOMETRY.n_disks)]) as array:
        yield array


def test_what_a_band_wrote_is_at_its_places(array):
    fill(array)
    array.flush()
    every = GEOMETRY.place_extents
    places = spread(every[:, 0], every[:, 1] - every[:, 0])
    out = aligned_buffer(places.size * 4096)
    array.read_places(every, out)
    assert (out.reshape(-1, 4096) == content_of(places)).all()
    assert array.counters().written_bytes == GEOMETRY.n_disks * DISK_BLOCKS * 4096


def test_parity_on_the_disks_is_right(array):
    fill(array)
    for group in range(3):
        assert verify_parity(array, group, 0, DISK_BLOCKS).size == 0
    # by hand, not by the array: disk 3 is the XOR of 0, 1, 2
    blocks = aligned_buffer(4 * DISK_BLOCKS * 4096).reshape(4, -1)
    for disk in range(4):
        array.read_raw(disk, HEAD_BLOCKS, DISK_BLOCKS, blocks[disk])
    assert (blocks[3] == blocks[0] ^ blocks[1] ^ blocks[2]).all()
    parity = np.zeros((2, DISK_BLOCKS, 4096), dtype=np.uint8)
    group = aligned_buffer(4 * DISK_BLOCKS * 4096).reshape(4, -1, 4096)
    for position in range(4):
        array.read_raw(4 + position, HEAD_BLOCKS, DISK_BLOCKS, group[position].reshape(-1))
    compute_parity(group[:2], parity)
    assert (group[2:] == parity).all()


def test_wrong_parity_is_found_and_made_right(array):
    fill(array, 128)
    rotten = np.full(4096, 0xEE, dtype=np.uint8)
    array.write_raw([(3, HEAD_BLOCKS + 5), (3, HEAD_BLOCKS + 100)], rotten)
    array.write_raw([(7, HEAD_BLOCKS + 70)], rotten)
    array.write_raw([(4, HEAD_BLOCKS + 9)], rotten)
    assert verify_parity(array, 0, 0, 128).tolist() == [5, 100]
    assert verify_parity(array, 0, 6, 94).tolist() == []
    assert verify_parity(array, 1, 0, 128).tolist() == [9, 70]
    seen = []
    resync_parity(array, 0, 3, 100, judge=lambda band: seen.append((band.dbn_start, band.n_stripes)))
    resync_parity(array, 1, 0, 128)
    resync_parity(array, 2, 0, 128)
    array.drain()
    assert seen == [(3, 64), (67, 36)]
    assert verify_parity(array, 0, 0, 128).size == 0
    assert verify_parity(array, 1, 0, 128).size == 0
    out = aligned_buffer(4096)
    array.read_places(extents((65536 + 9, 65536 + 10)), out)
    assert (out == 0xEE).all()


def test_a_resync_stops_before_a_bad_block(array):
    fill(array, 64)

    def refuse(band) -> None:
        raise ChecksumError("bad", 1)

    array.write_raw([(3, HEAD_BLOCKS)], np.full(4096, 1, dtype=np.uint8))
    with pytest.raises(ChecksumError):
        resync_parity(array, 0, 0, 64, judge=refuse)
    array.drain()
    assert verify_parity(array, 0, 0, 64).tolist() == [0]


def test_slots_that_stay_behind_are_not_written(recorder, recorded):
    fill(recorded, 64)
    recorder.start()
    band = recorded.new_band(0, 2, 10)
    assert not band.data.any()
    band.written[:] = False
    band.written[1, 3:5] = True
    band.written[1, 7] = True
    for d in range(3):
        for s in range(10):
            place = GEOMETRY.band_places(0, 2 + s, 1)[d, 0]
            band.slot(d, s)[:] = content_of(ints(place))[0]
    band.data[1, 3] = 0x55
    recorded.write_band(band).wait()
    recorded.drain()
    writes = sorted((w.disk, w.block - HEAD_BLOCKS, w.n_blocks) for w in recorder.log if isinstance(w, Write))
    assert writes == [(1, 5, 2), (1, 9, 1), (3, 2, 10)]
    assert verify_parity(recorded, 0, 0, 64).size == 0


def test_a_used_buffer_is_cleared_for_who_does_not_fill_it(recorded):
    fill(recorded, 128)
    used = recorded.new_band(0, 0, 64, zero=False)
    assert used.data.any()  # it holds what an earlier band left
    recorded.drop_band(used)
    band = recorded.new_band(0, 0, 64)
    assert band.buffer is used.buffer
    assert not band.data.any()
    recorded.drop_band(band)


FILLED = 256


@functools.cache
def blocks_once() -> list[dict[int, bytes]]:
    recorder = Recorder()
    with DiskArray(GEOMETRY, [recorder.disk(TOTAL) for _ in range(GEOMETRY.n_disks)]) as array:
        fill(array, FILLED)
    return [disk.contents() for disk in recorder.disks]


def filled_once() -> DiskArray:
    return DiskArray(GEOMETRY, [MemoryDisk(f"disk{d}", TOTAL, blocks) for d, blocks in enumerate(blocks_once())])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_extents_anywhere_in_the_buffer(data):
    with filled_once() as array:
        pairs = []
        for _ in range(data.draw(st.integers(0, 6))):
            group = data.draw(st.sampled_from(GEOMETRY.groups))
            start = data.draw(st.integers(group.first, group.first + FILLED * group.n_data - 1))
            pairs.append((start, data.draw(st.integers(start, min(start + 200, group.first + FILLED * group.n_data)))))
        asked = extents(*pairs)
        lengths = asked[:, 1] - asked[:, 0]
        order = data.draw(st.permutations(range(len(pairs))))
        positions, at = np.zeros(len(pairs), dtype=np.int64), 1
        for i in order:
            positions[i] = at
            at += int(lengths[i]) + data.draw(st.integers(0, 1))
        numbers = spread(asked[:, 0], lengths)
        targets = spread(positions, lengths)
        checks = fresh_checks(content_of(numbers).reshape(-1), numbers)
        out = np.full((at + 1) * 4096, 0xEE, dtype=np.uint8)
        array.read_places(asked, out, positions, numbers, checks)
        expected = np.full((at + 1, 4096), 0xEE, dtype=np.uint8)
        expected[targets] = content_of(numbers)
        assert (out.reshape(-1, 4096) == expected).all()
        if numbers.size:
            bad = data.draw(st.integers(0, numbers.size - 1))
            checks[bad] ^= 1
            with pytest.raises(ChecksumError) as caught:
                array.read_places(asked, out, positions, numbers, checks)
            assert caught.value.number == numbers[bad]
            pending = array.submit_read(asked, out, positions, numbers, checks)
            pending.wait()
            assert pending.first_bad == bad


def test_a_read_sees_the_write_that_is_still_queued(recorder, recorded):
    gate = threading.Event()
    recorder.replace = lambda write: (gate.wait(10), [write])[1]
    band = recorded.new_band(2, 0, 64)
    band.data[:] = 7
    recorded.write_band(band)
    threading.Timer(0.1, gate.set).start()
    out = np.zeros(4096, dtype=np.uint8)
    recorded.read_places(extents((131072, 131073)), out)
    assert (out == 7).all()


def test_neighbouring_bands_become_one_request(recorder, tmp_path):
    disk = FileDisk.create(str(tmp_path / "disk"), TOTAL)
    geometry = Geometry([GroupRecord(0, 1, 0, DISK_BLOCKS, DISK_BLOCKS, (0,))])
    with DiskArray(geometry, [disk]) as array:
        began, gate = threading.Event(), threading.Event()
        plain = disk.write_plan
        disk.write_plan = lambda *arguments: (began.set(), gate.wait(60), plain(*arguments))[2]
        for start in (0, 64, 192, 128, 256, 320):
            band = array.new_band(0, start, 64, zero=False)
            band.data[:] = start // 64 + 1
            array.write_band(band)
            assert began.wait(60)
        gate.set()
        array.drain()
        # the first alone, since nothing else was queued yet; then 1 MiB, and the rest
        assert disk.counters.write_requests <= 3
        out = aligned_buffer(384 * 4096)
        array.read_places(extents((0, 384)), out)
        assert out.reshape(6, -1)[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
        assert (out.reshape(6, -1) == out.reshape(6, -1)[:, :1]).all()


def test_later_writes_of_a_block_win(recorder, recorded):
    gate = threading.Event()
    recorder.replace = lambda write: (gate.wait(10), [write])[1]
    for value, start, n_stripes in ((1, 0, 64), (2, 32, 64), (3, 40, 8), (4, 0, 1)):
        band = recorded.new_band(2, start, n_stripes)
        band.data[:] = value
        recorded.write_band(band)
    gate.set()
    recorded.drain()
    disk = recorder.disks[8]
    assert [disk.block(HEAD_BLOCKS + at)[0] for at in (0, 1, 31, 32, 39, 40, 47, 48, 95)] == [4, 1, 1, 2, 2, 3, 3, 2, 2]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("operation", ["write", "flush"])
def test_after_a_failure_nothing_more_is_written(recorder, recorded, operation, persistent):
    fill(recorded, 64)
    recorder.start()
    recorder.fail(operation, 2, persistent=persistent)

    def commit() -> None:
        fill(recorded, 64)
        recorded.flush()

    with pytest.raises(DiskError, match=f"{operation} failed") as caught:
        commit()
    assert recorded.failure is caught.value
    recorded._workers[0].join(0.01)
    time.sleep(0.05)
    before = len(recorder.log)
    root = np.zeros(4096, dtype=np.uint8)
    for call in (
        recorded.flush,
        recorded.drain,
        lambda: recorded.write_raw([(0, 1)], root),
        lambda: recorded.write_band(recorded.new_band(0, 0, 64)),
    ):
        with pytest.raises(DiskError) as again:
            call()
        assert again.value is caught.value
    assert len(recorder.log) == before
    out = np.zeros(4096, dtype=np.uint8)
    recorded.read_places(extents((131072, 131073)), out)


def test_every_single_failure_reaches_the_caller(recorder):
    """Fail the Nth write or flush until none is left to fail; no root (raw block 1) follows a failure."""
    for operation in ("write", "flush"):
        nth = fired = 0
        while nth == 0 or fired:
            nth += 1
            recorder = Recorder()
            with DiskArray(GEOMETRY, [recorder.disk(TOTAL) for _ in range(GEOMETRY.n_disks)]) as array:
                fault = recorder.fail(operation, nth)
                try:
                    fill(array, 64)
                    array.flush()
                    array.write_raw([(d, 1) for d in range(9)], np.zeros(4096, dtype=np.uint8))
                    array.flush()
                except DiskError:
                    assert fault.fired
                    roots = [entry for entry in recorder.log if isinstance(entry, Write) and entry.block == 1]
                    assert not roots or nth > 9
                else:
                    assert not fault.fired
                fired = fault.fired
        assert nth > 9


def test_a_failed_read_is_an_error_and_no_more(recorder, recorded):
    fill(recorded, 64)
    recorder.fail("read", 1)
    out = aligned_buffer(128 * 4096)
    with pytest.raises(DiskError, match="read failed"):
        recorded.read_places(extents((0, 1)), out)
    recorder.fail("read", 2)
    with pytest.raises(DiskError, match="read failed"):
        recorded.read_places(extents((0, 128)), out)
    recorded.read_places(extents((0, 128)), out)
    recorded.flush()


def test_flush_reaches_the_disks_that_were_named(recorder, recorded):
    recorded.flush([2, 5])
    assert sorted(entry.disk for entry in recorder.log if isinstance(entry, Flush)) == [2, 5]
    recorded.flush()
    assert len(recorder.log) == 2 + 9


def test_raw_blocks(array):
    data = content_of(ints(1, 2)).reshape(-1)
    array.write_raw([(0, 1), (4, TOTAL - 2)], data)
    out = np.zeros(8192, dtype=np.uint8)
    array.read_raw(4, TOTAL - 2, 2, out)
    assert (out == data).all()
    array.read_raw(0, 1, 2, out)
    assert (out == data).all()


def test_disk_reads_planned_by_the_caller(array):
    fill(array, 128)
    numbers = GEOMETRY.from_disk(np.full(40, 1), np.arange(50, 90))
    checks = fresh_checks(content_of(numbers).reshape(-1), numbers)
    out = aligned_buffer(50 * 4096)
    pending = array.submit_disk_read(1, ints(50, 70), ints(20, 20), out, ints(30, 0), numbers, checks)
    pending.wait()
    assert pending.first_bad == -1
    assert (out.reshape(-1, 4096)[30:50] == content_of(numbers[:20])).all()
    assert (out.reshape(-1, 4096)[:20] == content_of(numbers[20:])).all()


def test_a_closed_array_takes_no_work(recorder):
    array = DiskArray(GEOMETRY, [recorder.disk(TOTAL) for _ in range(GEOMETRY.n_disks)])
    array.close()
    with pytest.raises(RuntimeError, match="closed"):
        array.flush()
    with pytest.raises(ValueError, match="2 disks for a geometry of 9"):
        DiskArray(GEOMETRY, recorder.disks[:2])


def test_a_band_must_fit(array):
    with pytest.raises(ValueError, match="stripes 500 to 564"):
        array.new_band(0, 500, 64)


def test_the_pool_waits_for_what_is_in_flight():
    pool = BufferPool(4 * 4096)
    first, second = pool.take(8192)[0], pool.take(8192)[0]
    # everything is held by callers: waiting would be for ever
    third, is_fresh = pool.take(4096)
    assert is_fresh
    assert not third.any()
    assert pool.taken_bytes == 5 * 4096
    pool.give_back(third, was_sent=False)
    pool.send(first)
    taken: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: taken.append(pool.take(8192)[0]))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    pool.give_back(first, was_sent=True)
    thread.join(5)
    assert not thread.is_alive()
    assert taken[0].size == 8192
    pool.give_back(second, was_sent=False)


def test_a_buffer_is_given_back_once():
    pool = BufferPool(4 * 4096)
    buffer, _ = pool.take(4096)
    pool.give_back(buffer, was_sent=False)
    with pytest.raises(KeyError):
        pool.give_back(buffer, was_sent=False)
    assert (pool.taken_bytes, pool._free_bytes) == (0, 4096)


def test_the_pool_keeps_no_more_than_its_limit():
    pool = BufferPool(16 * 4096)
    for n_blocks in (1, 2, 3, 5, 8, 13):
        buffers = [pool.take(n_blocks * 4096)[0] for _ in range(16 // n_blocks)]
        assert pool.taken_bytes + pool._free_bytes <= 16 * 4096
        for buffer in buffers:
            pool.give_back(buffer, was_sent=False)
    assert pool.taken_bytes == 0
    assert pool._free_bytes <= 16 * 4096


def test_pending_counts_down_and_keeps_the_first_error():
    done = []
    pending = Pending(3, done.append)
    first, second = DiskError("first"), DiskError("second")
    pending.part_done(bad=7)
    pending.part_done(first, bad=3)
    assert not pending.is_done
    pending.part_done(second)
    assert pending.is_done
    assert done == [pending]
    assert pending.first_bad == 3
    with pytest.raises(DiskError, match="first"):
        pending.wait()
    Pending(0).wait()
