"""P and Q: every variant against arithmetic in GF(2^8) written out."""

from __future__ import annotations

import numpy as np
import pytest

from blockplane._native import parity


def times(a: int, b: int) -> int:
    """Product in GF(2^8), polynomial 0x11d."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return product


def power_of_two(exponent: int) -> int:
    value = 1
    for _ in range(exponent):
        value = times(value, 2)
    return value


def reference(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p = np.bitwise_xor.reduce(data, axis=0)
    q = np.zeros_like(p)
    for d in range(data.shape[0]):
        weight = power_of_two(d)
        table = np.array([times(weight, byte) for byte in range(256)], dtype=np.uint8)
        q ^= table[data[d]]
    return p, q


@pytest.fixture(params=parity.kernel_names())
def kernel(request):
    chosen = parity.kernel_name()
    parity.select_kernel(request.param)
    yield request.param
    parity.select_kernel(chosen)


def guarded(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    size = int(np.prod(shape))
    whole = np.full(size + 256, 0xA5, dtype=np.uint8)
    return whole, whole[128 : 128 + size].reshape(shape)


def test_the_scalar_oracle_is_always_there():
    assert parity.kernel_names()[-1] == "scalar"
    with pytest.raises(ValueError, match="cannot run here"):
        parity.select_kernel("abacus")


@pytest.mark.parametrize("n_parity", [1, 2])
@pytest.mark.parametrize(("n_data", "n_stripes"), [(1, 1), (2, 1), (3, 5), (4, 64), (17, 2), (255, 1)])
def test_parity(kernel, n_data, n_stripes, n_parity):
    data = np.random.default_rng(n_data).integers(0, 256, (n_data, n_stripes, 4096), dtype=np.uint8)
    before = data.copy()
    whole, out = guarded((n_parity, n_stripes, 4096))
    parity.compute_parity(data, out)
    p, q = reference(data)
    assert (out[0] == p).all()
    assert n_parity == 1 or (out[1] == q).all()
    assert (whole[:128] == 0xA5).all()
    assert (whole[-128:] == 0xA5).all()
    assert (data == before).all()


def test_any_two_losses_can_be_solved():
    """The weights are distinct and not zero up to 255 disks, which is what P + Q needs."""
    weights = [power_of_two(d) for d in range(255)]
    assert len(set(weights)) == 255
    assert 0 not in weights


def test_no_parity_and_no_stripes_are_nothing_to_do():
    parity.compute_parity(np.zeros((3, 2, 4096), dtype=np.uint8), np.zeros((0, 2, 4096), dtype=np.uint8))
    parity.compute_parity(np.zeros((3, 0, 4096), dtype=np.uint8), np.zeros((1, 0, 4096), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "out"),
    [
        ((2, 2, 4096), (1, 3, 4096)),
        ((2, 2, 4095), (1, 2, 4096)),
        ((2, 2, 4096), (1, 2, 4095)),
        ((2, 2, 4096), (3, 2, 4096)),
        ((0, 2, 4096), (1, 2, 4096)),
        ((256, 1, 4096), (2, 1, 4096)),
    ],
)
def test_memory_gate(data, out):
    with pytest.raises(ValueError, match=r"shapes|no parity is defined"):
        parity.compute_parity(np.zeros(data, dtype=np.uint8), np.zeros(out, dtype=np.uint8))


def test_overlap_is_refused():
    whole = np.zeros((3, 1, 4096), dtype=np.uint8)
    with pytest.raises(ValueError, match="overlaps"):
        parity.compute_parity(whole[:2], whole[1:2])
    parity.compute_parity(whole[:2], whole[2:])
    line = np.zeros(64, dtype=np.uint8)
    with pytest.raises(ValueError, match="overlaps"):
        parity.xor_into(line[:32], line[8:40])


@pytest.mark.parametrize("n_bytes", [0, 1, 7, 8, 9, 63, 64, 65, 4096])
def test_xor_into(n_bytes):
    random = np.random.default_rng(n_bytes)
    whole, target = guarded((n_bytes,))
    target[:] = random.integers(0, 256, n_bytes, dtype=np.uint8)
    source = random.integers(0, 256, n_bytes, dtype=np.uint8)
    expected = target ^ source
    parity.xor_into(target, source)
    assert (target == expected).all()
    assert (whole[:128] == 0xA5).all()
    assert (whole[-128:] == 0xA5).all()
    parity.xor_into(target, target)
    assert not target.any()
