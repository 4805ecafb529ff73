"""The explorer itself: which states it builds, and that it finds what it should."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from blockplane.model import DiskError
from faults.crash import Plan, crash_states
from faults.recording import ZERO, Fault, Mark, Recorder, Write

ONE = np.array([1], dtype=np.int64)


def put(disk, block: int, fill: int, n_blocks: int = 1) -> None:
    disk.write_plan(ONE * block, ONE * n_blocks, np.full(4096 * n_blocks, fill, dtype=np.uint8), ONE - 1)


def look(disk, block: int) -> int:
    buffer = np.zeros(4096, dtype=np.uint8)
    disk.read_plan(ONE * block, ONE, buffer, ONE - 1)
    return int(buffer[0])


@pytest.fixture
def recorder():
    recorder = Recorder()
    recorder.disk(100)
    recorder.disk(100)
    return recorder


def test_every_subset_of_one_epoch_and_nothing_else(recorder):
    a, b = recorder.disks
    put(a, 0, 1)
    recorder.start()
    put(a, 1, 2)
    put(b, 1, 3)
    put(a, 2, 4)
    a.flush()
    b.flush()
    seen = {
        (look(s.disks[0], 0), look(s.disks[0], 1), look(s.disks[1], 1), look(s.disks[0], 2))
        for s in crash_states(recorder, Plan(n_torn=0))
    }
    assert seen == {(1, x, y, z) for x, y, z in itertools.product((0, 2), (0, 3), (0, 4))}


def test_a_flush_orders_its_own_disk_only(recorder):
    a, b = recorder.disks
    put(a, 0, 1)
    put(b, 0, 2)
    a.flush()
    put(a, 1, 3)
    states = {
        (look(s.disks[0], 0), look(s.disks[1], 0), look(s.disks[0], 1)) for s in crash_states(recorder, Plan(n_torn=0))
    }
    after_flush = {state for state in states if state[2] == 3}
    assert after_flush == {(1, 0, 3), (1, 2, 3)}


def test_later_writes_to_a_block_win_when_both_arrived(recorder):
    a = recorder.disks[0]
    put(a, 0, 1)
    put(a, 0, 2)
    assert {look(s.disks[0], 0) for s in crash_states(recorder, Plan(n_torn=0))} == {0, 1, 2}


def test_marks_stand_behind_what_was_durable(recorder):
    a, b = recorder.disks
    put(a, 0, 1)
    a.flush()
    recorder.mark("done")
    put(b, 0, 2)
    for state in crash_states(recorder):
        if state.marks == ["done"]:
            assert look(state.disks[0], 0) == 1
        else:
            assert look(state.disks[1], 0) == 0


def test_a_premature_promise_is_found(recorder):
    """The mutant of the harness: told to be durable before the flush."""
    a = recorder.disks[0]
    put(a, 0, 1)
    recorder.mark("done")
    a.flush()
    assert any(state.marks and look(state.disks[0], 0) == 0 for state in crash_states(recorder))


def test_torn_writes_mix_sectors(recorder):
    a = recorder.disks[0]
    put(a, 0, 1)
    recorder.start()
    put(a, 0, 2)
    mixes = set()
    for state in crash_states(recorder, Plan(sectors_of=lambda disk, block: block == 0)):
        block = state.disks[0].block(0)
        mixes.add(tuple(block[i * 512] for i in range(8)))
    assert mixes == set(itertools.product((1, 2), repeat=8))


def test_many_writes_are_sampled_and_seeded(recorder):
    a = recorder.disks[0]
    for block in range(40):
        put(a, block, block + 1)
    a.flush()

    def described(seed: int) -> list[str]:
        return [state.description for state in crash_states(recorder, Plan(seed=seed))]

    first = described(0)
    assert first == described(0)
    assert first != described(1)
    dropped_one = sum("39 of" not in text and text.count(",") == 38 for text in first)
    assert dropped_one >= 40


def test_states_do_not_touch_each_other(recorder):
    a = recorder.disks[0]
    put(a, 0, 1)
    a.flush()
    for state in crash_states(recorder):
        put(state.disks[0], 50, 9)
    assert all(look(state.disks[0], 50) == 0 for state in crash_states(recorder))
    assert a.block(50) == ZERO


@pytest.mark.parametrize("operation", ["read", "write", "flush"])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_nth_operation_fails(recorder, operation, persistent):
    a = recorder.disks[0]
    call = {"read": lambda: look(a, 0), "write": lambda: put(a, 0, 1), "flush": a.flush}[operation]
    fault = recorder.fail(operation, 2, persistent=persistent)
    outcomes = []
    for _ in range(4):
        try:
            call()
            outcomes.append(True)
        except DiskError:
            outcomes.append(False)
    assert outcomes == ([True, False, False, False] if persistent else [True, False, True, True])
    assert fault.fired == outcomes.count(False)


def test_a_fault_of_one_disk_leaves_the_others():
    fault = Fault("write", 1, disk=1)
    assert not fault.hits("write", 0)
    assert fault.hits("write", 1)


def test_writes_can_be_lost_or_misdirected(recorder):
    a, b = recorder.disks
    recorder.replace = lambda write: []
    put(a, 0, 1)
    recorder.replace = lambda write: [Write(1, write.block + 3, write.data)]
    put(a, 0, 2)
    assert (look(a, 0), look(b, 3)) == (0, 2)
    recorder.mark("x")
    assert recorder.log == [Write(1, 3, bytes([2]) * 4096), Mark("x")]
