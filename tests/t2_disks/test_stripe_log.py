"""The stripe log: what is read back is what was logged, wherever writing it was cut off."""

from __future__ import annotations

import numpy as np
import pytest

from blockplane.disks import DiskArray, GroupRecord, compute_parity
from blockplane.disks.disk import HEAD_BLOCKS, TAIL_BLOCKS
from blockplane.disks.geometry import Geometry
from blockplane.disks.stripelog import RECORD_STRIPES, StripeLog, decode_log, log_area, read_log
from faults.inline import inline_workers
from faults.recording import Flush, Recorder, Write

VOLUME_ID = bytes(range(16))
GROUPS = [GroupRecord(0, 3, 2, 64, 256, (0, 1, 2, 3, 4)), GroupRecord(65536, 9, 1, 256, 256, tuple(range(5, 15)))]
#: blocks behind the data area beyond the tail: the log of the second group is larger
SLACK = [0, 200]


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    for group, slack in zip(GROUPS, SLACK, strict=True):
        for _ in group.disks:
            recorder.disk(HEAD_BLOCKS + group.disk_blocks + TAIL_BLOCKS + slack)
    return recorder


@pytest.fixture
def array(recorder) -> DiskArray:
    with inline_workers():
        return DiskArray(Geometry(GROUPS), recorder.disks)


def a_band(array: DiskArray, group: int, seed: int):
    """Random blocks, and random slots that stay."""
    rng = np.random.default_rng(seed)
    band = array.new_band(group, 64, 128)
    band.data[:] = rng.integers(0, 256, band.data.shape, np.uint8)
    return band, rng.random(band.written.shape) < 0.5


def expected_parity(band, stays: np.ndarray) -> np.ndarray:
    blocks = np.where(stays[:, :, None], band.data, np.uint8(0))
    parity = np.empty((band.record.n_parity, band.n_stripes, 4096), np.uint8)
    compute_parity(blocks, parity)
    return parity


@pytest.mark.parametrize("group", [0, 1])
def test_what_is_logged_is_read_back(array, recorder, group):
    log = StripeLog(array, VOLUME_ID)
    band, stays = a_band(array, group, 1)
    stripes = np.arange(3, 3 + log.capacity(group) // 2)
    recorder.start()
    log.protect(band, stripes, stays, generation=7)
    log.protect(band, stripes + 1, stays, generation=7)
    parity_disks = set(GROUPS[group].disks[GROUPS[group].n_data :])
    assert {entry.disk for entry in recorder.log} == parity_disks
    assert {entry.disk for entry in recorder.log[-len(parity_disks) :] if isinstance(entry, Flush)} == parity_disks
    found, parity = read_log(array, group, VOLUME_ID), expected_parity(band, stays)
    assert sorted(found) == sorted({*(stripes + 64).tolist(), *(stripes + 65).tolist()})
    for dbn, entries in found.items():
        assert {one.which for one in entries} == set(range(GROUPS[group].n_parity))
        for one in entries:
            assert (one.counted[: GROUPS[group].n_data] == stays[:, dbn - 64]).all()
            assert not one.counted[GROUPS[group].n_data :].any()
            assert (one.parity == parity[one.which, dbn - 64]).all()
    assert read_log(array, group, bytes(16)) == {}


def test_the_log_lies_behind_the_data_and_before_the_slots(array, recorder):
    for index, (group, slack) in enumerate(zip(GROUPS, SLACK, strict=True)):
        start, stop = log_area(group, recorder.disks[group.disks[0]].n_blocks)
        assert (start, stop - start) == (HEAD_BLOCKS + 256, TAIL_BLOCKS - 2 + slack)
        n_records = -(-StripeLog(array, VOLUME_ID).capacity(index) // RECORD_STRIPES)
        assert StripeLog(array, VOLUME_ID).capacity(index) + n_records <= stop - start
        log = StripeLog(array, VOLUME_ID)
        band, stays = a_band(array, index, 2)
        recorder.start()
        log.protect(band, np.arange(min(log.capacity(index), 128)), stays, generation=1)
        writes = [entry for entry in recorder.log if isinstance(entry, Write)]
        assert min(write.block for write in writes) == start
        assert max(write.block + write.n_blocks for write in writes) <= stop
        assert not any(isinstance(entry, Flush) for entry in recorder.log[: -group.n_parity])


def test_a_full_log_begins_again_after_a_flush_of_all(array, recorder):
    log = StripeLog(array, VOLUME_ID)
    band, stays = a_band(array, 0, 3)
    log.protect(band, np.arange(log.capacity(0)), stays, generation=1)
    recorder.start()
    log.protect(band, np.arange(100, 104), stays, generation=1)
    first = next(n for n, entry in enumerate(recorder.log) if isinstance(entry, Write))
    assert {entry.disk for entry in recorder.log[:first]} == set(range(15))
    assert {164, 165, 166, 167} <= set(read_log(array, 0, VOLUME_ID))


def test_a_record_that_was_cut_off_gives_what_is_whole_of_it(array, recorder):
    log = StripeLog(array, VOLUME_ID)
    band, stays = a_band(array, 0, 4)
    stays[0] = True  # no parity of zeros, which would be whole before it is written
    recorder.start()
    log.protect(band, np.arange(4), stays, generation=1)
    log.protect(band, np.arange(4, 8), stays, generation=1)
    first, second = (entry.data for entry in recorder.log if isinstance(entry, Write) and entry.disk == 3)
    parity = expected_parity(band, stays)[0]
    whole = first + second
    for cut in range(0, len(whole), 512):
        data = np.zeros(14 * 4096, np.uint8)
        data[:cut] = np.frombuffer(whole[:cut], np.uint8)
        found = list(decode_log(data, VOLUME_ID))
        n_whole = cut // 4096
        assert len(found) == min(max(n_whole - 1, 0), 4) + min(max(n_whole - 6, 0), 4)
        for one in found:
            assert (one.parity == parity[one.dbn - 64]).all()


def test_garbage_is_no_record(array):
    rng = np.random.default_rng(5)
    log = StripeLog(array, VOLUME_ID)
    band, stays = a_band(array, 0, 6)
    log.protect(band, np.arange(4), stays, generation=1)
    start, stop = log_area(GROUPS[0], array.disks[3].n_blocks)
    good = np.zeros((stop - start) * 4096, np.uint8)
    array.read_raw(3, start, stop - start, good)
    assert len(list(decode_log(good, VOLUME_ID))) == 4
    for at in rng.integers(0, 4096, 300).tolist():
        bad = good.copy()
        bad[at] ^= 1 << int(rng.integers(8))
        assert list(decode_log(bad, VOLUME_ID)) == []
    for at in rng.integers(4096, 5 * 4096, 100).tolist():
        bad = good.copy()
        bad[at] ^= 1
        assert len(list(decode_log(bad, VOLUME_ID))) == 3
