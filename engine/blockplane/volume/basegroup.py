"""The base of a volume that holds only what differs from it: its first RAID group, read and never written.

The base is a full backup of another volume. Its one disk gives each of its blocks at the place of the same number; what
came since lies in the other groups, which begin behind it, and the place maps say where. The root record has the group
as one that `leaving`: its places are given to nobody. The snapshot that the base is stays, held: what of it is in use
is counted by that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockplane.disks.basedisk import BaseDisk

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

BASE_GROUP: Final = 0
#: Owner of the hold on the snapshot that the base is.
BASE_OWNER: Final = "base"


def has_base(volume: LiveVolume) -> bool:
    """Whether a volume is built on a base."""
    return isinstance(volume.array.disks[0], BaseDisk)


def base_snapshot(volume: LiveVolume) -> bytes | None:
    """Return the id of the snapshot that a volume's base is; None: it has no base, or not yet. The lock is held."""
    if not has_base(volume):
        return None
    return next((hold.snapshot_id for hold in volume.local.holds() if hold.owner == BASE_OWNER), None)


def n_in_base(volume: LiveVolume) -> int:
    """Return how many blocks of a volume's states lie in its base. The lock is held."""
    wanted = base_snapshot(volume)
    records = (entry.record for entry in volume.local.entries()) if wanted is not None else ()
    return next((record.n_blocks for record in records if record.id == wanted), 0)
