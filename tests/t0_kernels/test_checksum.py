"""CRC32C of blocks: every variant against a bit-by-bit reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockplane._native import checksum
from blockplane.model import checks

GUARD = np.uint32(0xDEADBEEF)
NUMBERS = st.integers(-(2**63), 2**63 - 1)


def reference_crc32c(data: bytes, seed: int = 0) -> int:
    crc = seed ^ 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.fixture(params=checksum.kernel_names())
def kernel(request):
    chosen = checksum.kernel_name()
    checksum.select_kernel(request.param)
    yield request.param
    checksum.select_kernel(chosen)


def test_the_scalar_oracle_is_always_there():
    assert checksum.kernel_names()[-1] == "table"
    assert checksum.kernel_name() in checksum.kernel_names()


def test_a_demanded_variant_that_cannot_run_is_an_error():
    chosen = checksum.kernel_name()
    with pytest.raises(ValueError, match="cannot run here"):
        checksum.select_kernel("abacus")
    assert checksum.kernel_name() == chosen


def test_known_answers(kernel):
    # RFC 3720, B.4, and the polynomial's check value
    assert checksum.crc32c(b"123456789") == 0xE3069283
    assert checksum.crc32c(bytes(32)) == 0x8A9136AA
    assert checksum.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert checksum.crc32c(bytes(range(32))) == 0x46DD794E
    assert checksum.crc32c(b"") == 0


@pytest.mark.parametrize("name", checksum.kernel_names())
@given(data=st.binary(max_size=100), split=st.integers(0, 100), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_any_bytes(name, data, split, seed):
    chosen = checksum.kernel_name()
    checksum.select_kernel(name)
    try:
        assert checksum.crc32c(data, seed) == reference_crc32c(data, seed)
        assert checksum.crc32c(data[split:], checksum.crc32c(data[:split], seed)) == checksum.crc32c(data, seed)
    finally:
        checksum.select_kernel(chosen)


@pytest.mark.parametrize("n_bytes", [255, 256, 263, 511, 512, 1031, 12_287, 12_288, 12_289, 16_384, 40_961])
def test_a_run_of_several_stretches(kernel, n_bytes):
    data = np.random.default_rng(n_bytes).bytes(n_bytes + 3)[3:]  # not aligned
    for seed in (0, 0x12345678):
        assert checksum.crc32c(data, seed) == reference_crc32c(data, seed)


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 3, 4, 5, 6, 7, 47, 48, 49, 50, 97])
def test_blocks(kernel, n_blocks):
    random = np.random.default_rng(n_blocks)
    data = random.integers(0, 256, n_blocks * 4096, dtype=np.uint8)
    numbers = random.integers(-(2**63), 2**63 - 1, n_blocks, dtype=np.int64)
    guarded = np.full(n_blocks + 2, GUARD)
    out = guarded[1:-1]

    checksum.crc32c_blocks(data, numbers, out)
    blocks = [data[i * 4096 : (i + 1) * 4096].tobytes() for i in range(n_blocks)]
    expected = [
        checksum.crc32c(int(number).to_bytes(8, "little", signed=True), checksum.crc32c(block))
        for block, number in zip(blocks, numbers, strict=True)
    ]
    assert out.tolist() == expected
    assert guarded[[0, -1]].tolist() == [GUARD, GUARD]
    if n_blocks:
        reference = reference_crc32c(blocks[-1] + int(numbers[-1]).to_bytes(8, "little", signed=True))
        assert out[-1] == reference

    checksum.crc32c_blocks_from(data, 2**40, out)
    consecutive = np.arange(2**40, 2**40 + n_blocks, dtype=np.int64)
    assert (out == checks.fresh_checks(data, consecutive)).all()
    assert guarded[[0, -1]].tolist() == [GUARD, GUARD]


def test_verify_names_the_first_block_that_differs(kernel):
    data = np.random.default_rng(1).integers(0, 256, 100 * 4096, dtype=np.uint8)
    numbers = np.arange(100, dtype=np.int64) * 3
    expected = checks.fresh_checks(data, numbers)
    assert checksum.verify_blocks(data, numbers, expected) == -1
    consecutive = checks.fresh_checks(data, 7)
    assert checksum.verify_blocks_from(data, 7, consecutive) == -1
    assert checksum.verify_blocks_from(data, 8, consecutive) == 0
    for bad in (99, 50, 48, 47, 2, 1, 0):
        data[bad * 4096 + 4095] ^= 1
        assert checksum.verify_blocks(data, numbers, expected) == bad
        assert checksum.verify_blocks_from(data, 7, consecutive) == bad


def test_a_number_is_part_of_the_check(kernel):
    block = bytes(4096)
    assert checks.block_check(block, 0) != checks.block_check(block, 1)
    assert checks.block_check(block, 5) == checks.fresh_checks(np.zeros(4096, dtype=np.uint8), 5)[0]


@pytest.mark.parametrize("n_blocks", [0, 1, 2, 65])
def test_crcs_of_blocks_alone_join_without_their_bytes(kernel, n_blocks, rng):
    data = rng.integers(0, 256, n_blocks * 4096, dtype=np.uint8)
    numbers = rng.integers(-(2**63), 2**63 - 1, n_blocks, dtype=np.int64)
    guarded = np.full(n_blocks + 2, GUARD)
    checksum.unbound_crcs(checks.fresh_checks(data, numbers), numbers, guarded[1:-1])
    crcs = checks.unbound_crcs(checks.fresh_checks(data, numbers), numbers)
    assert guarded[1:-1].tolist() == crcs.tolist()
    assert guarded[[0, -1]].tolist() == [GUARD, GUARD]
    assert crcs.tolist() == [checks.crc32c(data[at : at + 4096]) for at in range(0, len(data), 4096)]
    before = rng.bytes(77)
    seed = checks.crc32c(before)
    assert checks.join_block_crcs(crcs, seed) == checks.crc32c(data, seed)
    assert checks.join_block_crcs(crcs) == checks.crc32c(data)


@pytest.mark.parametrize("n_each", [1, 100, 4095, 4096, 4097, 8192, 65_456])
@pytest.mark.parametrize("start", [0, 1, 4000, 4096, 5000])
def test_equal_pieces_have_the_crc_of_their_bytes(kernel, n_each, start, rng):
    data = rng.integers(0, 256, 50 * 4096, dtype=np.uint8)
    crcs = np.array([checks.crc32c(data[at : at + 4096]) for at in range(0, len(data), 4096)], np.uint32)
    n_pieces = min((len(data) - start) // n_each, 70)
    part = data[start : start + n_pieces * n_each]
    guarded = np.full(n_pieces + 2, GUARD)
    checksum.piece_crcs(part, crcs, start, guarded[1:-1])
    assert guarded[[0, -1]].tolist() == [GUARD, GUARD]
    expected = [checks.crc32c(part[at : at + n_each]) for at in range(0, len(part), n_each)]
    assert guarded[1:-1].tolist() == expected
    assert checks.piece_crcs(part.data, n_pieces, crcs, start).tolist() == expected


def test_blocks_that_lie_whole_in_a_piece_are_not_read(kernel, rng):
    data = rng.integers(0, 256, 3 * 4096, dtype=np.uint8)
    crcs = np.array([checks.crc32c(data[at : at + 4096]) for at in range(0, len(data), 4096)], np.uint32)
    (expected,) = checks.piece_crcs(data, 1, crcs, 0).tolist()
    data[5000] ^= 1
    assert checks.piece_crcs(data, 1, crcs, 0).tolist() == [expected]
    assert checks.piece_crcs(data[100:], 1, crcs, 100).tolist() != checks.piece_crcs(data, 1, crcs, 0).tolist()


@pytest.mark.parametrize(
    ("n_bytes", "n_crcs", "start", "n_pieces"),
    [(0, 1, 0, 1), (4096, 1, 0, 0), (4096, 1, 0, 3), (4096, 1, 1, 1), (4096, 1, -1, 1), (4097, 1, 0, 1), (1, 0, 0, 1)],
)
def test_the_memory_gate_of_pieces(n_bytes, n_crcs, start, n_pieces):
    with pytest.raises(ValueError, match=r"equal pieces|are not in"):
        checks.piece_crcs(np.zeros(n_bytes, np.uint8), n_pieces, np.zeros(n_crcs, np.uint32), start)


def test_the_memory_gate_of_joining():
    one, two = np.zeros(1, np.uint32), np.zeros(2, np.uint32)
    for found, numbers, out in ((one, 2, one), (one, 1, two), (two, 2, one), (one, 0, one)):
        with pytest.raises(ValueError, match="entries for"):
            checksum.unbound_crcs(found, np.zeros(numbers, np.int64), out)


@pytest.mark.parametrize(
    ("n_bytes", "n_numbers", "n_out"), [(4095, 0, 0), (1, 1, 1), (8192, 1, 2), (8192, 2, 1), (0, 1, 0), (4096, 0, 0)]
)
def test_memory_gate(n_bytes, n_numbers, n_out):
    data = np.zeros(n_bytes, dtype=np.uint8)
    numbers, out = np.zeros(n_numbers, dtype=np.int64), np.zeros(n_out, dtype=np.uint32)
    for call in (checksum.crc32c_blocks, checksum.verify_blocks):
        with pytest.raises(ValueError, match=r"whole blocks|entries for"):
            call(data, numbers, out)


def test_wrong_types_are_refused():
    data = np.zeros(4096, dtype=np.uint8)
    with pytest.raises(ValueError, match="Buffer dtype"):
        checksum.crc32c_blocks_from(data, 0, np.zeros(1, dtype=np.int32))
    with pytest.raises(ValueError, match="contiguous"):
        checksum.crc32c_blocks_from(np.zeros(8192, dtype=np.uint8)[::2], 0, np.zeros(1, dtype=np.uint32))


@given(numbers=st.lists(NUMBERS, min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_variants_agree(numbers):
    chosen = checksum.kernel_name()
    found = set()
    data = np.arange(len(numbers) * 4096, dtype=np.int64).astype(np.uint8)
    try:
        for name in checksum.kernel_names():
            checksum.select_kernel(name)
            found.add(checks.fresh_checks(data, np.array(numbers, dtype=np.int64)).tobytes())
    finally:
        checksum.select_kernel(chosen)
    assert len(found) == 1
