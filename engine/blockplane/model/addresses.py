"""Kinds of block numbers, and the one block size.

Sets of numbers travel as *extents*: a ``(n, 2)`` int64 array of half-open ``[start, stop)``, ascending, not touching.
"""

from __future__ import annotations

from typing import Final, NewType

import numpy as np
import numpy.typing as npt

#: A storage block's name: the volume block number.
Vbn = NewType("Vbn", int)
#: Where a block lies on this volume's disks.
Place = NewType("Place", int)
#: A block's number on one disk, counted from the start of the disk's data area.
Dbn = NewType("Dbn", int)

BLOCK_BYTES: Final = 4096

Extents = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Bytes = npt.NDArray[np.uint8]
Checks = npt.NDArray[np.uint32]
