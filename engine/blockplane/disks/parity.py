"""Parity of whole stripes: P is the XOR of the data disks, Q their sum weighted by powers of 2 in GF(2^8), 0x11d."""

from blockplane._native.parity import compute_parity, kernel_name, xor_into

__all__ = ["compute_parity", "kernel_name", "xor_into"]
