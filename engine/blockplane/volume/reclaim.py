"""Places that the local plane holds and nothing refers to: what a damaged plane of marks leaves when it is dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockplane.volume.check import local_reach
from blockplane.volume.checkwalk import CheckReport
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, numbers_in

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def reclaim(volume: LiveVolume) -> int:
    """Free the places of the local plane that are not the local tree's; return how many. Durable on return.

    Where a block of the local tree cannot be read nothing is freed: what lies below it is not known.

    Notes
    -----
    Reads the local tree.
    """
    with volume.lock:
        volume.commit()
        report, n_freed = CheckReport(), 0
        reached = local_reach(volume, report)
        if not report.ok:
            return 0
        with volume.changing():
            for start, stop in volume.committed_local.local.data_extents().tolist():
                for leaf in range(start, stop):
                    words = volume.committed_local.local_leaf(leaf) & ~reached.get(leaf, EMPTY_LEAF)
                    numbers = numbers_in(words, leaf * LEAF_BLOCKS)
                    if len(numbers):
                        volume.local.release(numbers)
                        volume.local.is_dirty = True
                        n_freed += len(numbers)
            volume.commit()
        return n_freed
