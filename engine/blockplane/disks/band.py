"""A band: some consecutive stripes of one group in memory, data and parity, on their way to the disks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from blockplane.disks.geometry import GroupRecord
from blockplane.disks.parity import compute_parity
from blockplane.model.addresses import BLOCK_BYTES, Bytes

#: A chunk of 64 blocks on each disk: 256 KiB a disk, of which the writers make requests of 1 MiB.
BAND_STRIPES = 64


class Band:
    """Stripes ``dbn_start`` to ``dbn_start + n_stripes`` of a group.

    ``data``: (n_data, n_stripes, 4096) uint8, aligned, writable; slot (d, s) is the block with dbn ``dbn_start + s`` of
    data disk d. With chunks of 64 blocks and a band that begins at a multiple of 64, ``data`` lies in the order of
    places. ``parity``: (n_parity, n_stripes, 4096), set when the band is written.

    ``written``: (n_data, n_stripes) bool: the slots that go to the disks. A slot that stays behind must hold what its
    disk holds (read and verified), or zeros where nothing live is: parity is computed over all slots.

    ``touched``: (n_stripes,) bool: the stripes whose parity goes to the disks; all, unless the taker says less.
    """

    def __init__(self, group: int, record: GroupRecord, dbn_start: int, n_stripes: int, buffer: Bytes) -> None:
        """Lay a band over a buffer of ``(n_data + n_parity) * n_stripes`` blocks."""
        if n_stripes < 1 or not 0 <= dbn_start <= record.disk_blocks - n_stripes:
            raise ValueError(f"stripes {dbn_start} to {dbn_start + n_stripes} of disks of {record.disk_blocks} blocks")
        self.group = group
        self.record = record
        self.dbn_start = dbn_start
        self.n_stripes = n_stripes
        self.buffer = buffer
        members = buffer.reshape(record.n_data + record.n_parity, n_stripes, BLOCK_BYTES)
        self.data: Bytes = members[: record.n_data]
        self.parity: Bytes = members[record.n_data :]
        self.written: npt.NDArray[np.bool_] = np.ones((record.n_data, n_stripes), dtype=np.bool_)
        self.touched: npt.NDArray[np.bool_] = np.ones(n_stripes, dtype=np.bool_)

    def slot(self, d: int, s: int) -> Bytes:
        """(4096,) view of the block of data disk d in stripe ``dbn_start + s``."""
        block: Bytes = self.data[d, s]
        return block

    def compute_parity(self) -> None:
        """Set ``parity`` from ``data``; without the GIL."""
        compute_parity(self.data, self.parity)
