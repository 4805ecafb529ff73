"""Names that people give within a volume: of snapshots, pointers and stored images; each is taken once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from blockplane.model.errors import SnapshotExistsError, UsageError
from blockplane.volume.codec import NAME_BYTES

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

_NAME = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9_.:-]*")


def check_name(name: str, what: str = "a snapshot") -> None:
    """Refuse what cannot name a snapshot, or what else stands where a snapshot's name may.

    Raises
    ------
    UsageError: too long, or characters that expressions could not read.
    """
    if not _NAME.fullmatch(name) or ".." in name or len(name.encode()) > NAME_BYTES or name == "active":
        raise UsageError(
            f"{name!r} cannot name {what}",
            "take letters, digits and _ . : - (not - or . first, no .., at most 127 bytes, not `active`)",
        )


def refuse_existing(volume: LiveVolume, name: str) -> None:
    """Refuse a name that stands for something.

    Raises
    ------
    SnapshotExistsError: it does.
    """
    there = next((entry for entry in volume.local.entries() if entry.record.name == name), None)
    if there is not None and there.is_deleting:
        raise SnapshotExistsError(
            f"a snapshot named {name!r} is being deleted", "it goes when nothing needs it; take another name until then"
        )
    if there is not None:
        raise SnapshotExistsError(
            f"a snapshot named {name!r} exists", "delete or rename it first, or take another name"
        )
    if any(image.name == name for image in volume.local.images.all()):
        raise SnapshotExistsError(f"a stored image is named {name!r}", "take another name, or delete the image")
    if name in volume.local.replication().standing:
        raise SnapshotExistsError(f"a pointer is named {name!r}", "take another name, or delete the pointer")
