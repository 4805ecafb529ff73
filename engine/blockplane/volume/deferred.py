"""Deferred deletion: snapshots that were to be deleted while something needed them go when nothing does any more.

Such a snapshot is of the kind `deleting`. It holds its blocks, and can be read by who reads it. A shadow stays a
shadow, with a flag: its blocks may be others' by now. Either goes with its last
pin, its last hold, or, where its readers died with their process, when the volume is next opened for writing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockplane.model.errors import BlockplaneError
from blockplane.volume import deleting
from blockplane.volume.codec import TableEntry
from blockplane.volume.holds import needs

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def reap(volume: LiveVolume) -> int:
    """Drop what is being deleted and not needed any more, in one commit; return how many blocks that freed.

    What cannot be dropped stays, and `volume.warnings` says why.

    Raises
    ------
    BlockplaneError: the volume stopped, or it is not known what is being deleted.

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
        n_freed = _drop(volume, due)
        volume.commit()
        return n_freed


def _drop(volume: LiveVolume, due: Sequence[TableEntry]) -> int:
    """Drop snapshots, together or else one by one, as far as it can be done; the caller commits."""
    volume.commit()
    try:
        return deleting.drop(volume, due)
    except BlockplaneError as error:
        if volume.local.is_dirty and not volume.stopped_at:
            volume.stop(error)  # it failed half-way
        if volume.stopped_at:
            raise
        if len(due) == 1:
            volume.warn(f"snapshot {due[0].record.name!r} is being deleted, and cannot go: {error}")
            return 0
    return sum(_drop(volume, [entry]) for entry in due)
