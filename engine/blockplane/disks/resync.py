"""Parity compared with, and rebuilt from, the data members."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from blockplane.disks.array import DiskArray
from blockplane.disks.band import BAND_STRIPES, Band
from blockplane.model.addresses import Numbers


def verify_parity(array: DiskArray, group: int, dbn_start: int, n_stripes: int) -> Numbers:
    """Recompute the parity of stripes and compare.

    Returns
    -------
    (n,) int64: dbns of the stripes whose parity on disk differs, ascending.

    Raises
    ------
    DiskError : a member cannot be read.
    """
    bad = [np.empty(0, dtype=np.int64)]
    for band in _bands(array, group, dbn_start, n_stripes):
        read_members(array, band, with_parity=True)
        found = band.parity.copy()
        band.compute_parity()
        differs = (found != band.parity).any(axis=(0, 2))
        bad.append(band.dbn_start + np.flatnonzero(differs))
        array.drop_band(band)
    return np.concatenate(bad)


def resync_parity(
    array: DiskArray, group: int, dbn_start: int, n_stripes: int, judge: Callable[[Band], None] | None = None
) -> None:
    """Write the parity of stripes anew from their data members, where it differs.

    Parameters
    ----------
    judge : called with each band as the disks hold it, its parity too, before that is computed from data. It may put a
        block of data right and mark it as written, and takes a stripe out of `touched` whose parity is to stay as it
        is: parity over a bad block would make the damage permanent.

    Notes
    -----
    Durable after `DiskArray.drain` and `DiskArray.flush`.
    """
    if not array.geometry.groups[group].n_parity:
        return
    for band in _bands(array, group, dbn_start, n_stripes):
        read_members(array, band, with_parity=True)
        band.written[:] = False
        if judge is not None:
            judge(band)
        found = band.parity.copy()
        band.compute_parity()
        band.touched &= (found != band.parity).any(axis=(0, 2))
        if band.touched.any() or band.written.any():
            array.write_band(band)
        else:
            array.drop_band(band)


def read_members(array: DiskArray, band: Band, *, with_parity: bool = False) -> None:
    """Fill a band from its disks, in parallel; every slot, live or not."""
    one, start = np.array([band.n_stripes], dtype=np.int64), np.array([band.dbn_start], dtype=np.int64)
    n_members = band.record.n_data + (band.record.n_parity if with_parity else 0)
    reads = [
        array.submit_disk_read(
            band.record.disks[member], start, one, band.buffer, np.array([member * band.n_stripes], dtype=np.int64)
        )
        for member in range(n_members)
    ]
    for read in reads:
        read.wait()


def _bands(array: DiskArray, group: int, dbn_start: int, n_stripes: int) -> Iterator[Band]:
    stop = dbn_start + n_stripes
    for start in range(dbn_start, stop, BAND_STRIPES):
        yield array.new_band(group, start, min(BAND_STRIPES, stop - start), zero=False)
