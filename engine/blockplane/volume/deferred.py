"""Deferred deletion: snapshots that were to be deleted while something needed them go when nothing does any more.

Such a snapshot is of the kind `deleting`. It holds its blocks, and can be read by who reads it. A shadow stays a
shadow, with a flag: its blocks may be others' by now. Either goes with its last
pin, its last hold, or, where its readers died with their process, when the volume is next opened for writing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockplane.volume import deleting
from blockplane.volume.holds import needs

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def reap(volume: LiveVolume) -> int:
    """Drop what is being deleted and not needed any more, in one commit; return how many blocks that freed.

    Notes
    -----
    Reads nothing where nothing is being deleted.
    """
    with volume.lock:
        if not volume.local.root.n_deleting:
            return 0
        due = [entry for entry in volume.local.entries() if entry.is_deleting and not any(needs(volume, entry))]
        if not due:
            return 0
        volume.commit()
        n_freed = deleting.drop(volume, due)
        volume.commit()
        return n_freed
