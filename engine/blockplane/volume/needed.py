"""What transfers and pointers need of a volume's snapshots, beside pins and holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockplane.volume.codec import NO_ID
from blockplane.volume.mirrorcodec import BROKEN

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume


def needed_here(volume: LiveVolume) -> dict[bytes, str]:
    """Return, by id, why snapshots stay.

    Pointers stand there, or destinations; interrupted receives build on them; a mirror was broken off there.
    """
    found: dict[bytes, str] = {}
    mirror = volume.local.root.mirror
    if mirror is not None and mirror.state == BROKEN:
        found[mirror.broken_at] = "is where the mirror was broken off, from which a resync goes on"
    for name, snapshot_id in sorted(volume.local.replication().standing.items()):
        found.setdefault(snapshot_id, f"is where the pointer {name} stands")
    for destination in volume.local.destinations():
        for snapshot_id in (destination.acknowledged, destination.under_way):
            found.setdefault(snapshot_id, f"is where {destination.name} stands")
    for image in volume.local.incoming.images():
        for snapshot_id in (image.entry.base_id, image.entry.lender_id):
            found.setdefault(snapshot_id, f"is what the interrupted receive of {image.entry.top_name} builds on")
    found.pop(NO_ID, None)
    return found
