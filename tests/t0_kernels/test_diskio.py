"""Plans of extents on a file descriptor: against a plain copy of bytes."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockplane._native import diskio
from blockplane.model.checks import fresh_checks

BLOCK = 4096
N_BLOCKS = 64


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.fixture
def disk(tmp_path):
    """A file of 64 blocks, block i full of i + 1."""
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([i + 1]) * BLOCK for i in range(N_BLOCKS)))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def fills(buffer: np.ndarray) -> list[int]:
    """First byte of each block; the block must hold nothing else."""
    blocks = buffer.reshape(-1, BLOCK)
    assert (blocks == blocks[:, :1]).all()
    return blocks[:, 0].tolist()


@st.composite
def plans(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Extents anywhere on the disk, ascending in part, and positions that do not overlap."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=0, max_size=8))
    starts, next_block = [], 0
    for length in lengths:
        start = draw(st.one_of(st.just(min(next_block, N_BLOCKS - length)), st.integers(0, N_BLOCKS - length)))
        starts.append(start)
        next_block = start + length
    order = draw(st.permutations(range(len(lengths))))
    positions, at = [0] * len(lengths), draw(st.integers(0, 2))
    for i in order:
        positions[i] = at
        at += lengths[i] + draw(st.integers(0, 1))
    return ints(*starts), ints(*lengths), ints(*positions)


@given(plan=plans(), max_request=st.integers(1, 9), gap=st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_read_plan(tmp_path_factory, plan, max_request, gap):
    starts, lengths, positions = plan
    path = tmp_path_factory.getbasetemp() / "read-plan"
    path.write_bytes(b"".join(bytes([i + 1]) * BLOCK for i in range(N_BLOCKS)))
    size = int((positions + lengths).max()) if len(lengths) else 0
    expected = [0xEE] * (size + 1)
    order = []
    for start, length, at in zip(starts.tolist(), lengths.tolist(), positions.tolist(), strict=True):
        expected[at : at + length] = range(start + 1, start + length + 1)
        order += [(at + i, start + i) for i in range(length)]
    buffer = np.full((size + 1) * BLOCK, 0xEE, dtype=np.uint8)
    numbers = ints(*(block + 1000 for _, block in order))
    content = np.repeat(np.array([block + 1 for _, block in order], dtype=np.uint8), BLOCK)
    checks = fresh_checks(content, numbers)
    fd = os.open(path, os.O_RDONLY)
    try:
        n_bytes, n_requests, bad = diskio.read_plan(
            fd, starts, lengths, buffer, positions, numbers, checks, max_request, min(gap, max_request)
        )
        assert fills(buffer) == expected
        assert bad == -1
        assert n_bytes >= len(order) * BLOCK
        assert gap or n_bytes == len(order) * BLOCK
        assert n_requests >= -(-n_bytes // (max_request * BLOCK))
        if order:
            wrong = len(order) // 2
            checks[wrong:] ^= 1
            assert diskio.read_plan(fd, starts, lengths, buffer, positions, numbers, checks, max_request)[2] == wrong
            assert fills(buffer) == expected
    finally:
        os.close(fd)


@given(plan=plans(), max_request=st.integers(1, 9), gathered=st.booleans())
@settings(max_examples=200, deadline=None)
def test_write_plan(tmp_path_factory, plan, max_request, gathered):
    starts, lengths, positions = plan
    path = tmp_path_factory.getbasetemp() / "write-plan"
    path.write_bytes(bytes(N_BLOCKS * BLOCK))
    size = int((positions + lengths).max()) if len(lengths) else 0
    buffer = np.repeat(np.arange(1, size + 1, dtype=np.uint8), BLOCK)
    expected = [0] * N_BLOCKS
    for start, length, at in zip(starts.tolist(), lengths.tolist(), positions.tolist(), strict=True):
        expected[start : start + length] = range(at + 1, at + length + 1)
    fd = os.open(path, os.O_RDWR)
    try:
        if gathered:
            buffers = [buffer if i % 2 else buffer.copy() for i in range(len(starts))]
            result = diskio.write_gathered(fd, starts, lengths, buffers, positions, N_BLOCKS, max_request)
        else:
            result = diskio.write_plan(fd, starts, lengths, buffer, positions, N_BLOCKS, max_request)
        assert result[0] == int(lengths.sum()) * BLOCK
        assert fills(np.fromfile(path, dtype=np.uint8)) == expected
    finally:
        os.close(fd)


def test_neighbours_become_one_request(disk):
    buffer = np.zeros(8 * BLOCK, dtype=np.uint8)
    # 3, 4, 5 and 10: two requests; into the buffer out of order
    assert diskio.read_plan(disk, ints(3, 4, 5, 10), ints(1, 1, 1, 1), buffer, ints(7, 0, 4, 2)) == (4 * BLOCK, 2, -1)
    assert fills(buffer) == [5, 0, 11, 0, 6, 0, 0, 4]
    buffers = [np.full(BLOCK, 100 + i, dtype=np.uint8) for i in range(3)]
    assert diskio.write_gathered(disk, ints(0, 1, 2), ints(1, 1, 1), buffers, ints(0, 0, 0), N_BLOCKS) == (3 * BLOCK, 1)
    assert diskio.read_plan(disk, ints(0), ints(4), buffer, ints(0))[2] == -1
    assert fills(buffer)[:4] == [100, 101, 102, 4]


def test_many_single_blocks_stay_below_the_limit_of_vectors(tmp_path):
    n = 3000
    path = tmp_path / "disk"
    path.write_bytes(bytes(n * BLOCK))
    fd = os.open(path, os.O_RDWR)
    try:
        source = np.random.default_rng(0).integers(0, 256, n * BLOCK, dtype=np.uint8)
        backwards = np.arange(n, dtype=np.int64)[::-1].copy()
        ones, blocks = np.ones(n, dtype=np.int64), np.arange(n, dtype=np.int64)
        assert diskio.write_plan(fd, blocks, ones, source, backwards, n, n)[0] == n * BLOCK
        target = np.zeros_like(source)
        assert diskio.read_plan(fd, blocks, ones, target, backwards, None, None, n)[0] == n * BLOCK
        assert (target == source).all()
    finally:
        os.close(fd)


def test_holes_are_read_through_into_scratch(disk):
    buffer = np.zeros(3 * BLOCK, dtype=np.uint8)
    plan = (ints(0, 2, 9), ints(1, 1, 1), buffer, ints(0, 1, 2), None, None)
    assert diskio.read_plan(disk, *plan, 256, 0)[:2] == (3 * BLOCK, 3)
    assert diskio.read_plan(disk, *plan, 256, 1)[:2] == (4 * BLOCK, 2)
    assert diskio.read_plan(disk, *plan, 256, 6)[:2] == (10 * BLOCK, 1)
    assert fills(buffer) == [1, 3, 10]


def test_the_end_of_the_file_is_an_error(disk):
    buffer = np.zeros(4 * BLOCK, dtype=np.uint8)
    with pytest.raises(EOFError, match="at block 62"):
        diskio.read_plan(disk, ints(0, 62), ints(1, 3), buffer, ints(0, 1))
    before = os.fstat(disk).st_size
    for call in (diskio.write_plan, lambda fd, d, n, b, p, e: diskio.write_gathered(fd, d, n, [b], p, e)):
        with pytest.raises(EOFError, match="62 to 65 of 64"):
            call(disk, ints(62), ints(3), buffer, ints(0), N_BLOCKS)
    assert os.fstat(disk).st_size == before


def test_a_short_write_goes_on_where_it_stopped(disk):
    """The limit cuts the call in the middle of the second buffer; the rest then fails, and says so."""
    buffers = [np.full(2 * BLOCK, 200 + i, dtype=np.uint8) for i in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    os.ftruncate(disk, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * BLOCK + 100, hard))
    try:
        with pytest.raises(OSError, match="block 0") as caught:
            diskio.write_gathered(disk, ints(0, 2, 4), ints(2, 2, 2), buffers, ints(0, 0, 0), N_BLOCKS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert os.pread(disk, N_BLOCKS * BLOCK, 0) == bytes([200]) * 2 * BLOCK + bytes([201]) * (BLOCK + 100)


def test_errors_carry_their_number(disk, tmp_path):
    buffer = np.zeros(BLOCK, dtype=np.uint8)
    with pytest.raises(OSError, match="block 0") as caught:
        diskio.read_plan(-1, ints(0), ints(1), buffer, ints(0))
    assert caught.value.errno == errno.EBADF
    read_only = os.open(tmp_path / "disk", os.O_RDONLY)
    with pytest.raises(OSError, match="block 5") as caught:
        diskio.write_plan(read_only, ints(5), ints(1), buffer, ints(0), N_BLOCKS)
    assert caught.value.errno == errno.EBADF
    os.close(read_only)


@pytest.mark.parametrize(
    ("dbn", "n_blocks", "positions"),
    [
        (ints(0), ints(1), ints(2)),
        (ints(0), ints(3), ints(0)),
        (ints(0), ints(1), ints(-1)),
        (ints(-1), ints(1), ints(0)),
        (ints(0), ints(0), ints(0)),
        (ints(0), ints(-1), ints(0)),
        (ints(0), ints(2**62), ints(0)),
        (ints(2**62), ints(1), ints(0)),
        (ints(0), ints(1), ints(2**51)),
        (ints(0, 1), ints(1), ints(0)),
        (ints(0), ints(1), ints(0, 1)),
    ],
)
def test_memory_gate(disk, dbn, n_blocks, positions):
    buffer = np.zeros(2 * BLOCK, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"extent|entries"):
        diskio.read_plan(disk, dbn, n_blocks, buffer, positions)
    with pytest.raises(ValueError, match=r"extent|entries"):
        diskio.write_plan(disk, dbn, n_blocks, buffer, positions, N_BLOCKS)
    with pytest.raises(ValueError, match=r"extent|entries"):
        diskio.write_gathered(disk, dbn, n_blocks, [buffer] * len(dbn), positions, N_BLOCKS)


def test_checks_come_whole_or_not_at_all(disk):
    buffer = np.zeros(2 * BLOCK, dtype=np.uint8)
    checks = np.zeros(2, dtype=np.uint32)
    for numbers, expected in ((ints(1, 2), None), (None, checks), (ints(1), checks), (ints(1, 2), checks[:1])):
        with pytest.raises(ValueError, match=r"together|entries"):
            diskio.read_plan(disk, ints(0), ints(2), buffer, ints(0), numbers, expected)
    with pytest.raises(ValueError, match="buffers: 1 for 2"):
        diskio.write_gathered(disk, ints(0, 1), ints(1, 1), [buffer], ints(0, 0), N_BLOCKS)


def test_short_writes_into_a_pipe_go_on():
    reader, writer = os.pipe()
    parts = [np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8) for i, size in enumerate([0, 1, 99999, 7])]
    parts += [np.full(1000, i % 251, dtype=np.uint8) for i in range(1500)]
    received = bytearray()

    def drain() -> None:
        while chunk := os.read(reader, 7777):
            received.extend(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    sent = diskio.writev_all(writer, [*parts, b"end"])
    os.close(writer)
    thread.join()
    os.close(reader)
    expected = b"".join(part.tobytes() for part in parts) + b"end"
    assert sent == len(expected)
    assert bytes(received) == expected


def test_what_waits_for_a_pipe_is_taken_from_the_callers_memory():
    """Bytes changed while the call waits arrive changed: nothing was copied aside."""
    reader, writer = os.pipe()
    data = np.zeros(1 << 20, dtype=np.uint8)
    thread = threading.Thread(target=diskio.writev_all, args=(writer, [data]))
    thread.start()
    received = bytearray(os.read(reader, 1))  # the pipe is full, or filling: its last byte is far away
    data[-1] = 7
    while len(received) < len(data):
        received += os.read(reader, 1 << 16)
    thread.join()
    os.close(reader)
    os.close(writer)
    assert received[-1] == 7


def test_a_socket_that_does_not_block_is_waited_for():
    left, right = socket.socketpair()
    left.setblocking(False)
    data = np.arange(4_000_000, dtype=np.int64).astype(np.uint8)
    received = bytearray()

    def drain() -> None:
        while chunk := right.recv(1 << 16):
            received.extend(chunk)

    thread = threading.Thread(target=drain)
    thread.start()
    starts, lengths = ints(1_000_000, 0, 5), ints(3_000_000, 1_000_000, 0)
    assert diskio.writev_segments(left.fileno(), data, starts, lengths) == 4_000_000
    left.close()
    thread.join()
    right.close()
    assert bytes(received) == data[1_000_000:].tobytes() + data[:1_000_000].tobytes()


def test_segments_are_checked():
    data = np.zeros(10, dtype=np.uint8)
    for start, length in ((0, 11), (10, 1), (-1, 1), (0, -1), (2**63 - 1, 2**63 - 1)):
        with pytest.raises(ValueError, match="segment 0"):
            diskio.writev_segments(1, data, ints(start), ints(length))
    assert diskio.writev_segments(-1, data, ints(), ints()) == 0


def test_a_closed_pipe_is_an_error():
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        diskio.writev_all(writer, [b"x"])
    os.close(writer)


def test_a_signal_ends_a_write_that_waits():
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    reader, writer = os.pipe()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    start = time.monotonic()
    try:
        with pytest.raises(StopError):
            diskio.writev_all(writer, [bytes(1 << 20)])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - start < 5
    os.close(reader)
    os.close(writer)


def test_read_only_and_strided_buffers_are_refused(disk):
    read_only = np.zeros(BLOCK, dtype=np.uint8)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        diskio.read_plan(disk, ints(0), ints(1), read_only, ints(0))
    assert diskio.write_plan(disk, ints(0), ints(1), read_only, ints(0), N_BLOCKS) == (BLOCK, 1)
    with pytest.raises(ValueError, match="contiguous"):
        diskio.write_gathered(disk, ints(0), ints(1), [np.zeros(2 * BLOCK, dtype=np.uint8)[::2]], ints(0), N_BLOCKS)
