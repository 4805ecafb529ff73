"""What images need of a storage, and a volume in that role."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from blockplane.disks import DiskArray, Geometry
from blockplane.model.errors import NoSuchSnapshotError, RefusedError
from blockplane.volume import pointers
from blockplane.volume.codec import KIND_SHADOW, SnapshotRecord
from blockplane.volume.features import Features
from blockplane.volume.imagetable import StoredImage
from blockplane.volume.live import LiveVolume
from blockplane.volume.markplane import MarkPlane
from blockplane.volume.planetree import PlaneTree
from blockplane.volume.positions import mark_plane
from blockplane.volume.shadows import ShadowPlane, find
from blockplane.volume.state import State


class SnapshotStore(Protocol):
    """Disks, geometry and states by name. A volume is one through `VolumeStore`; so can another storage be."""

    @property
    def geometry(self) -> Geometry:
        """Where places lie."""
        ...

    @property
    def array(self) -> DiskArray:
        """The disks."""
        ...

    @property
    def features(self) -> Features:
        """What the states need that are sent from here."""
        ...

    def records(self) -> Sequence[SnapshotRecord]:
        """Return the records of all snapshots, older first."""
        ...

    def state(self, name: str | None) -> State:
        """Return the state of a regular snapshot; of the live file system for None."""
        ...

    def shadow(self, name: str) -> ShadowPlane:
        """Return what is left of a shadow snapshot."""
        ...

    def marks(self, kind: Literal["alloc", "dealloc"], name: str) -> MarkPlane:
        """Return what entered or left since a marked snapshot; RefusedError: that is not known."""
        ...

    def metadata(self, name: str) -> MarkPlane:
        """Return the blocks of a snapshot that are no content of files; RefusedError: that is not known."""
        ...

    def stored_images(self) -> Sequence[StoredImage]:
        """Return the stored images, whose names stand for their definitions."""
        ...

    def pointers(self) -> Mapping[str, str]:
        """Return the names that stand for snapshots' names, and for which."""
        ...

    def pin(self, snapshot_id: bytes) -> AbstractContextManager[None]:
        """Keep a snapshot from being deleted while it is read."""
        ...

    def standing(self) -> AbstractContextManager[object]:
        """Keep what is no regular snapshot as it is: shadows, marks, the live file system; writers wait."""
        ...


def require_alive(store: SnapshotStore, records: Sequence[SnapshotRecord]) -> None:
    """Refuse when a snapshot went, or became a shadow, before it was pinned.

    Raises
    ------
    NoSuchSnapshotError: one is gone. RefusedError: the blocks of one may have been reused.
    """
    now = {record.id: record.kind for record in store.records()}
    for record in records:
        if record.id not in now:
            raise NoSuchSnapshotError(f"snapshot {record.name} was deleted meanwhile", "plan the image again")
        if now[record.id] == KIND_SHADOW != record.kind:
            raise RefusedError(f"snapshot {record.name} became a shadow meanwhile", "plan the image again without it")


class VolumeStore:
    """A volume's snapshots as operands of images."""

    def __init__(self, volume: LiveVolume) -> None:
        self.volume = volume

    @property
    def geometry(self) -> Geometry:
        """See SnapshotStore."""
        return self.volume.geometry

    @property
    def array(self) -> DiskArray:
        """See SnapshotStore."""
        return self.volume.array

    @property
    def features(self) -> Features:
        """See SnapshotStore."""
        return self.volume.features

    def records(self) -> Sequence[SnapshotRecord]:
        """See SnapshotStore."""
        with self.volume.lock:
            return [entry.record for entry in self.volume.local.entries()]

    def state(self, name: str | None) -> State:
        """See SnapshotStore."""
        return self.volume.state(name)

    def shadow(self, name: str) -> ShadowPlane:
        """See SnapshotStore."""
        with self.volume.lock:
            return find(self.volume, name)

    def marks(self, kind: Literal["alloc", "dealloc"], name: str) -> MarkPlane:
        """See SnapshotStore."""
        with self.volume.lock:
            return mark_plane(self.volume, kind, name)

    def metadata(self, name: str) -> MarkPlane:
        """See SnapshotStore."""
        plane = self.volume.metadata(name)
        return MarkPlane([PlaneTree(plane)], self.volume.committed.placemap)

    def stored_images(self) -> Sequence[StoredImage]:
        """See SnapshotStore."""
        with self.volume.lock:
            return self.volume.committed_local.images.all()

    def pointers(self) -> Mapping[str, str]:
        """See SnapshotStore."""
        found = pointers.all_of(self.volume)
        return {pointer.name: pointer.snapshot for pointer in found if pointer.snapshot is not None}

    def pin(self, snapshot_id: bytes) -> AbstractContextManager[None]:
        """See SnapshotStore."""
        return self.volume.pin(snapshot_id)

    def standing(self) -> AbstractContextManager[object]:
        """See SnapshotStore."""
        return self.volume.lock


def store_of(origin: SnapshotStore | LiveVolume) -> SnapshotStore:
    """Return what gives the states: a volume's adapter, or the storage itself."""
    return VolumeStore(origin) if isinstance(origin, LiveVolume) else origin
