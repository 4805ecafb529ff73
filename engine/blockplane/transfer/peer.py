"""A volume at the other end: what is brought to it, what it gives.

Mirrors bring images to a peer, replicas ask one for them. Which base an image has, the side that has the blocks says:
it knows both sides' snapshots. A peer is a volume of this machine (`VolumePeer`), or one behind a connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from blockplane.image.image import Image
from blockplane.model.errors import (
    BlockplaneError,
    NoSpaceError,
    NoSuchSnapshotError,
    RefusedError,
    StreamMismatchError,
)
from blockplane.model.progress import Progress, ignore_progress
from blockplane.transfer.copy import CopyReport, copy
from blockplane.transfer.destination import VolumeDestination, settled
from blockplane.transfer.replacing import (
    LocalChanges,
    forget_brought,
    forget_superseded,
    go_back,
    kept_by,
    let_go,
    made_ready,
    retain,
    updating,
)
from blockplane.transfer.since import Since, what_is_since
from blockplane.transfer.standing import Standing, image_towards, known_below, meeting, standing_of
from blockplane.volume import masters, replicas
from blockplane.volume.calling import calling
from blockplane.volume.codec import KIND_REGULAR, NO_ID, SnapshotRecord
from blockplane.volume.live import LiveVolume
from blockplane.volume.mirrorcodec import MIRROR, MirrorRecord
from blockplane.volume.mirrored import set_mirror
from blockplane.volume.volume import Volume

#: What leaves who asked as it was.
_REFUSALS: Final = (RefusedError, StreamMismatchError, NoSpaceError)


@dataclass(frozen=True, slots=True)
class Brought:
    """What one transfer did.

    n_blocks, n_bytes : that travelled. kept : the snapshot that has what it replaced: the destination's own changes, or
    a state that the source gave up; None: there was nothing that the top does not descend from. already_there : the top
    was. left_out : snapshots that did not come along to a mirror, since it has others of their names.
    """

    top: str
    base: str | None
    n_blocks: int
    n_bytes: int
    seconds: float
    already_there: bool = False
    kept: str | None = None
    left_out: tuple[str, ...] = ()

    def after(self, earlier: Brought) -> Brought:
        """Return the two as one, of a transfer that went on where an earlier one ended."""
        return Brought(
            self.top, earlier.base, self.n_blocks + earlier.n_blocks, self.n_bytes + earlier.n_bytes,
            self.seconds + earlier.seconds, self.already_there and earlier.already_there, earlier.kept or self.kept,
            (*earlier.left_out, *self.left_out),
        )  # fmt: skip


class Peer(Protocol):
    """A volume at the other end. One transfer at a time; a call that fails can be made again, and goes on."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    def standing(self) -> Standing:
        """Say what it has now."""
        ...

    def take(
        self, image: Image, changes: LocalChanges, progress: Progress = ignore_progress, *, source_id: bytes = NO_ID
    ) -> Brought:
        """Bring an image to it; durable there on return. What it has of an interrupted one does not travel again.

        Parameters
        ----------
        source_id : of the volume whose mirror it must be, unbroken; NO_ID: it need not be one.

        Raises
        ------
        RefusedError : its own changes would be lost, or it is a mirror no more. StreamMismatchError : it has not what
        the image builds on. NoSpaceError : it has no room. Each leaves it as it was.
        """
        ...

    def bring(
        self, wanted: str, target: Volume, changes: LocalChanges, progress: Progress = ignore_progress
    ) -> Brought:
        """Ask it for a snapshot, by a name or a pointer's, and take it in; durable on return.

        It notes where the target stands, and what the target knows of those below it; see `giving`.

        Raises
        ------
        NoSuchSnapshotError : it has none of that name. RefusedError, StreamMismatchError, NoSpaceError : as `take`.
        """
        ...

    def close(self) -> None:
        """Let go of it; from any thread. A call that goes on and waits for the other side ends, as one that failed."""
        ...


@runtime_checkable
class MirrorPeer(Peer, Protocol):
    """A peer that can be a mirror: it knows that it is one. Of another peer old states are its own to delete."""

    def become(self, record: MirrorRecord | None) -> None:
        """Say whose mirror it is; None: nobody's, and what interrupted updates left goes. Durable there on return."""
        ...

    def let_go(self, ids: Sequence[bytes]) -> None:
        """Delete snapshots that mirrors made for themselves, those that nobody reads, holds or points at; others stay.

        One that its live file system did not come from is not deleted: it is renamed, and kept.
        """
        ...

    def retain(self, name: str) -> SnapshotRecord:
        """Keep its live state in a snapshot; the one that has it already, where there is one. Durable on return.

        Where the name is no mirror's own, the snapshot is none either: one that is, and alone has it, is renamed.
        """
        ...

    def go_back(self, snapshot_id: bytes, changes: LocalChanges) -> str | None:
        """Let a snapshot of its be its live file system; return the one that keeps its changes, as `take`."""
        ...

    def since(self, snapshot_id: bytes) -> Since:
        """Say what it has beyond a snapshot of its; NO_ID: beyond nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Gift:
    """What is given to who asked for a snapshot: its record, and the image that brings it; None: it has it."""

    record: SnapshotRecord
    image: Image | None


@contextmanager
def giving(volume: LiveVolume, wanted: str, standing: Standing, key: bytes = NO_ID) -> Iterator[Gift]:
    """Answer one who asks for a snapshot, for the length of a `with`: what is sent in it arrived where it ends well.

    Who asks is a known replica from then on: where it stands, what is on its way to it, and where those below it stand
    is noted, and what they need is held. A pointer is looked up when no update of this volume is under way.

    Parameters
    ----------
    wanted : a snapshot's name, or a pointer's. standing : of who asks. key : by whose certificate; NO_ID: from this
    machine.

    Raises
    ------
    NoSuchSnapshotError : there is none of that name. RefusedError : it is a shadow, here or there.
    """
    with volume.lock:
        is_pointer = wanted in volume.local.replication().standing
    if is_pointer:
        with suppress(RefusedError):  # it lasts: where the pointer stands meanwhile is whole, and given out
            volume.updates.settled(caller_id=standing.volume_id)
    below = known_below(volume, standing)
    with volume.lock:
        record = _wanted(volume, wanted)
        _refuse_shadow_there(record, standing)
        was_known = replicas.find(volume, standing.volume_id) is not None
        if volume.writable:
            caller = replicas.Caller(standing.volume_id, standing.label, standing.generation, below, key)
            known = replicas.heard(volume, caller, meeting(volume, record.name, standing.whole))
            if record.id not in standing.whole:
                replicas.begin(volume, known.name, record.name)
            masters.expire(volume)  # who calls now is not among those that were not heard of
    try:
        image = None if record.id in standing.whole else _image_without_shadows(volume, record, standing)
        with calling(volume, standing.volume_id):
            yield Gift(record, image)
    except BaseException as error:
        with suppress(BlockplaneError):
            if volume.writable:
                text, is_refused = getattr(error, "message", str(error) or repr(error)), isinstance(error, _REFUSALS)
                if is_refused and not was_known:
                    replicas.forget_volume(volume, standing.volume_id)
                else:
                    replicas.failed(volume, standing.volume_id, text, is_refused=is_refused)
        raise
    if volume.writable and image is not None:
        replicas.arrived(volume, standing.volume_id, record)


def _wanted(volume: LiveVolume, wanted: str) -> SnapshotRecord:
    try:
        record = volume.local.entry(wanted).record
    except NoSuchSnapshotError as error:
        raise NoSuchSnapshotError(
            f"{volume.path} has no snapshot {wanted}", "`blockplane snapshot list` shows those there are"
        ) from error
    if record.kind != KIND_REGULAR:
        raise RefusedError(f"{wanted} in {volume.path} is a shadow and cannot be sent", "ask for a regular snapshot")
    return record


def _refuse_shadow_there(record: SnapshotRecord, standing: Standing) -> None:
    if any(theirs.id == record.id and theirs.kind != KIND_REGULAR for theirs in standing.snapshots):
        raise RefusedError(
            f"{record.name} is there as a shadow, and a shadow never becomes a regular snapshot again",
            "delete the shadow there first",
        )


def _image_without_shadows(volume: LiveVolume, record: SnapshotRecord, standing: Standing) -> Image:
    """Return the image of a top without older snapshots that are shadows there, or are being deleted."""
    gone = {theirs.id for theirs in standing.snapshots if theirs.kind != KIND_REGULAR}
    with volume.lock:
        exclude = [entry.record.name for entry in volume.local.entries() if entry.record.id in gone]
    return image_towards(volume, record.name, standing, exclude, keep_out=gone)


class VolumePeer:
    """A volume that this process has open."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume

    @property
    def name(self) -> str:
        """See Peer."""
        return str(self.volume.path)

    def standing(self) -> Standing:
        """See Peer."""
        return standing_of(self.volume)

    def take(
        self, image: Image, changes: LocalChanges, progress: Progress = ignore_progress, *, source_id: bytes = NO_ID
    ) -> Brought:
        """See Peer."""
        with updating(self.volume):
            found = _taken(destination_of(self.volume), image, changes, progress, source_id)
        forget_superseded(self.volume, source_id)
        return found

    def bring(
        self, wanted: str, target: Volume, changes: LocalChanges, progress: Progress = ignore_progress
    ) -> Brought:
        """See Peer."""
        with giving(self.volume, wanted, standing_of(target)) as gift:
            if gift.image is None:
                return Brought(gift.record.name, None, 0, 0, 0.0, already_there=True)
            return _taken(destination_of(target, pulls=True), gift.image, changes, progress)

    def become(self, record: MirrorRecord | None) -> None:
        """See MirrorPeer."""
        before = self.volume.local.root.mirror
        set_mirror(self.volume, record)
        if record is None and before is not None:
            forget_brought(self.volume, before)
            replicas.forget_volume(self.volume, before.source_id)
        if record is not None and record.state == MIRROR:  # who was brought this state is its source again
            replicas.forget_volume(self.volume, record.source_id)

    def let_go(self, ids: Sequence[bytes]) -> None:
        """See MirrorPeer."""
        let_go(self.volume, ids)

    def retain(self, name: str) -> SnapshotRecord:
        """See MirrorPeer."""
        return retain(self.volume, name)

    def go_back(self, snapshot_id: bytes, changes: LocalChanges) -> str | None:
        """See MirrorPeer."""
        return go_back(self.volume, snapshot_id, changes)

    def since(self, snapshot_id: bytes) -> Since:
        """See MirrorPeer."""
        with settled(self.volume):
            return what_is_since(self.volume, snapshot_id)

    def close(self) -> None:
        """See Peer."""


def destination_of(volume: LiveVolume, *, pulls: bool = False) -> VolumeDestination:
    """Return a volume as where a transfer goes; one smaller than the source is only one with a larger place map.

    pulls : it asked for it itself.
    """
    return VolumeDestination(volume, relocates=True, pulls=pulls)


def _taken(
    target: VolumeDestination, image: Image, changes: LocalChanges, progress: Progress, source_id: bytes = NO_ID
) -> Brought:
    ready = made_ready(target.volume, changes, progress, source_id)
    # what is kept in a snapshot of its own is on no line of the top's, and only given up as the live file system
    discard = changes is not LocalChanges.REFUSE
    report = copy(image, target, discard=discard, progress=ready.progress)
    return brought(report, kept_by(target.volume, ready))


def brought(report: CopyReport, kept: str | None) -> Brought:
    """Return what a copy did."""
    return Brought(report.top, report.base, report.n_blocks, report.n_bytes, report.seconds, report.already_there, kept)
