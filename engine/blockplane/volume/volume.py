"""The volume's public face: made, opened, grown, closed; its snapshots and its space."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from blockplane.disks.array import DiskArray
from blockplane.disks.assembly import Assembly, assemble
from blockplane.disks.disk import Disk, FileDisk
from blockplane.disks.geometry import Geometry, GroupRecord
from blockplane.disks.label import make_labels, mend_labels, settle_labels, write_labels
from blockplane.model.blocks import BlockSource
from blockplane.model.errors import (
    BlockplaneError,
    NotAVolumeError,
    ReadOnlyError,
    RefusedError,
    VolumeInUseError,
)
from blockplane.model.progress import Progress, ignore_progress
from blockplane.planes import Plane
from blockplane.volume import (
    deferred,
    deleting,
    demoting,
    holds,
    live,
    making,
    masters,
    mirrored,
    pointers,
    positions,
    pressure,
    replicas,
    settling,
    snapshots,
)
from blockplane.volume import shrink as shrinking
from blockplane.volume.basegroup import BASE_GROUP, has_base
from blockplane.volume.basing import Base, opener
from blockplane.volume.codec import Hold
from blockplane.volume.config import (
    BASE_DISK,
    CONFIG_NAME,
    VolumeConfig,
    read_config,
    write_config,
)
from blockplane.volume.destinations import Destinations
from blockplane.volume.fsinfo import MEMBER_OK, FsInfo
from blockplane.volume.groups import DiskNames, GroupWish, blank_ends
from blockplane.volume.grow import grow, record_for
from blockplane.volume.halfmade import HalfMade, is_unfinished
from blockplane.volume.journal import clear_orphans
from blockplane.volume.landing import Landing
from blockplane.volume.live import reserve_for
from blockplane.volume.lock import VolumeLock
from blockplane.volume.making import LOCK_NAME
from blockplane.volume.marks import Kind
from blockplane.volume.mirrored import MirrorOf
from blockplane.volume.pointers import SnapshotPointer
from blockplane.volume.positions import Position
from blockplane.volume.pressure import DemotionPlan, PressurePolicy
from blockplane.volume.reclaim import reclaim
from blockplane.volume.rootslots import group_that_left, read_newest, successor, write_record
from blockplane.volume.settling import SettlePlan, SettleReport
from blockplane.volume.shrink import ShrinkPlan, ShrinkReport
from blockplane.volume.snapshots import Snapshot
from blockplane.volume.timer import CommitTimer


class Volume(HalfMade):
    """A volume on disk files or block devices, named by its directory."""

    _volume_lock: VolumeLock | None = None
    #: whether the disks agreed with each other when it was opened
    _was_settled = False

    # --- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        disks: DiskNames = 5,
        size: int | str | None = None,
        parity: int | None = None,
        chunk: int | str | None = None,
        wipe: bool = False,
        verb: str = "create",
        answers: bool = False,
        base: Base | None = None,
    ) -> Self:
        """Make a volume and open it.

        Parameters
        ----------
        disks : how many disk files to make in the volume's directory, or paths of files or devices to use.
        size : bytes of each disk (`"2G"`); for paths that exist, their own size where not given.
        parity : 0, 1 or 2 disks of each group; by default 1 from three disks on. chunk : bytes, or "disk".
        wipe : use disks that were named although they hold data. verb, answers : as for `open`.
        base : what it is to hold only the difference from; it counts as being made until that is taken up, and whoever
            does (`basing.adopt`) takes the mark away.

        Raises
        ------
        UsageError: the numbers do not make a volume. RefusedError: the directory is taken. Others: a maker was
            stopped there, and what it left cannot be looked at.
        """
        directory = Path(path)
        wish = GroupWish(disks, size, parity, chunk, wipe)
        cls.clear_half_made(directory)
        made = making.make_directory(directory)
        try:
            lock = VolumeLock(directory / LOCK_NAME, verb, answers=answers)
        except OSError:
            making.remove_empty(made)
            raise
        try:
            making.refuse_taken(directory)  # another may have made one there until now
        except BaseException:
            lock.release()
            raise
        opened: list[Disk] = []
        files: list[str] = []
        try:
            making.mark(directory, *([making.NEW_FOLDER] if directory in made else []))
            names = wish.names(directory, first=0)
            wish.open_disks(directory, names, opened, files)
            for disk in opened if wipe else ():
                blank_ends(disk)
            if base is None:
                geometry = Geometry((wish.group(opened, first=0, first_disk=0),))
            else:
                geometry = base.geometry(wish, opened)
                opened.insert(BASE_GROUP, base.make_disk(directory))
                files.append(opened[BASE_GROUP].path)
                names.insert(BASE_GROUP, BASE_DISK)
            volume_id = os.urandom(16)
            _write_labels(geometry, volume_id, opened)
            record = FsInfo(volume_id, geometry, reserve_blocks=reserve_for(geometry.groups[-1].n_blocks),
                            leaving=BASE_GROUP if base is not None else None,
                            member_states=bytes([MEMBER_OK]) * len(opened))  # fmt: skip
            beside = (base.names, base.id) if base is not None else ()
            write_config(directory, VolumeConfig(volume_id, tuple(names), *beside))
            volume = cls.on_disks(directory, geometry, opened, record)
            if base is None:
                making.unmark(directory)
        except BaseException:
            for disk in opened:
                disk.close()
            making.unmake_directory(directory, made, files)
            lock.release()
            raise
        volume.close_with(lock)
        volume.pins.verb = verb
        volume.close_with(CommitTimer(volume._on_time).__enter__())
        return volume

    @classmethod
    def plan(
        cls,
        path: str | os.PathLike[str],
        disks: DiskNames = 5,
        size: int | str | None = None,
        parity: int | None = None,
        chunk: int | str | None = None,
    ) -> tuple[list[str], GroupRecord]:
        """Return the disks that `create` would make or use, and the group they would be; nothing changes."""
        if not cls.is_of_no_use(path):
            making.refuse_taken(Path(path))
        return GroupWish(disks, size, parity, chunk).plan(Path(path))

    @classmethod
    def on_disks(cls, directory: Path, geometry: Geometry, disks: Sequence[Disk], record: FsInfo) -> Self:
        """Make an empty volume on open disks that have their labels: the first root record and the first CP."""
        array = DiskArray(geometry, disks)
        record = successor(record)
        write_record(array, record)
        volume = cls(directory, array, record, writable=True)
        volume.active.is_dirty = True
        volume.commit()
        return volume

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        writable: bool = True,
        wait_s: float = 0.0,
        verb: str = "a program",
        answers: bool = False,
    ) -> Self:
        """Open a volume; reads its roots and nothing that grows with it.

        Parameters
        ----------
        writable : if not, nothing is written, be it a lock's file; others may read beside it. `warnings` says what was
            to be had only in part.
        answers : tell others that a control socket will answer (`server`), if it is open for long.

        Raises
        ------
        NotAVolumeError, DiskError: there is no volume, or not all of it. VolumeInUseError: another process has it.
        """
        directory = Path(path)
        try:
            volume = cls._open(directory, writable, wait_s, verb, answers)
        except VolumeInUseError:
            raise
        except BlockplaneError as error:
            if is_unfinished(directory):
                raise _half_made(directory) from error
            raise
        try:
            if making.is_marked(directory) and has_base(volume) and not volume.was_written:
                raise _half_made(directory)
            if writable:
                making.unmark(directory)
                making.remove_socket(directory)
                clear_orphans(directory, lambda: [i.entry.landing_id for i in volume.local.incoming.images()])
        except BaseException:
            volume.abandon()
            raise
        return volume

    @classmethod
    def _open(cls, directory: Path, writable: bool, wait_s: float, verb: str, answers: bool) -> Self:
        config = read_config(directory)
        lock = VolumeLock(directory / LOCK_NAME, verb, wait_s, shared=not writable, answers=answers)
        try:
            volume = cls._assembled(directory, config, writable)
        except BaseException:
            lock.release()
            raise
        if not (lock.is_held or any(getattr(disk, "is_locked", False) for disk in volume.array.disks)):
            volume.warnings.append(f"{directory} could not be locked: what another process writes now may look damaged")
        volume.close_with(lock)
        volume._volume_lock, volume.pins.verb = lock, verb
        if writable:
            volume.close_with(CommitTimer(volume._on_time).__enter__())
        if writable and not config.volume_id:
            volume._name_disks()
        return volume

    def _name_disks(self) -> None:
        """Make a volume.toml that was lost anew: the disks, all in the volume's own folder, in their order."""
        names = tuple(os.path.relpath(disk.path, self.path) for disk in self.array.disks)
        try:
            write_config(self.path, VolumeConfig(self.info.volume_id, names))
        except OSError as error:
            self.warn(f"{self.path / CONFIG_NAME} is lost, and could not be made anew: {error}")

    @classmethod
    def _assembled(cls, directory: Path, config: VolumeConfig, writable: bool) -> Self:
        """Open a volume's disks and what is on them; the lock is the caller's."""
        assembly = assemble(
            config.paths(directory), volume_id=config.volume_id or None, writable=writable, leaving=group_that_left,
            in_order=bool(config.volume_id), opener=opener(directory, config, writable, cls.open_base),
        )  # fmt: skip
        try:
            return cls.from_assembly(directory, assembly, writable)
        except BaseException:
            assembly.close()
            raise

    @classmethod
    def open_base(cls, names: Sequence[str], snapshot_id: bytes) -> BlockSource:
        """Open what a volume is built on.

        Raises
        ------
        RefusedError: this class of volume does not know its kind.
        """
        raise RefusedError(f"no base is opened here: {', '.join(names)}", "use blockplane.Volume")

    @classmethod
    def from_assembly(cls, directory: Path, assembly: Assembly, writable: bool) -> Self:
        """Open a volume on assembled disks; after an unclean stop parity is put right first (law 7)."""
        record, everywhere = read_newest(list(assembly.disks))
        if record.volume_id != assembly.volume_id:
            raise NotAVolumeError("the root record belongs to another volume than the labels", "")
        if writable and assembly.is_reduced:
            write_labels(assembly.disks, assembly.labels, assembly.generation)
        elif writable and assembly.labels_are_settled:
            mend_labels(assembly.disks, assembly.labels, assembly.lost)
        elif writable:
            settle_labels(assembly.disks, assembly.labels)
        array = DiskArray(assembly.geometry, assembly.disks)
        if writable and not everywhere:  # before any later one: no disk may fall two generations behind
            write_record(array, record)
        volume = cls(directory, array, record_for(record, assembly), writable)
        if writable and not (record.clean and everywhere):
            volume.recover()
        volume._was_settled = everywhere and assembly.labels_are_settled
        if writable:
            volume._reap()
        return volume

    def take_for_writing(self, wait_s: float = 1.0) -> None:
        """Go over from reading to writing; what is being read meanwhile goes on.

        Parameters
        ----------
        wait_s : how long to wait for other readers.

        Raises
        ------
        VolumeInUseError: other processes read it too, or it has to be put right before anything is written.
        DiskError, ReadOnlyError: it cannot be written. It stays open for reading.
        """
        with self.lock:
            if self.writable:
                return
            disks, lock = [disk for disk in self.array.disks if isinstance(disk, FileDisk)], self._volume_lock
            if len(disks) < len(self.array.disks) or lock is None or not lock.is_held:
                raise ReadOnlyError(f"{self.path} was opened for reading", "wait until that has ended")
            if self.damage or not (self._was_settled and self.info.clean):
                raise VolumeInUseError(
                    f"{self.path} is being read, and has to be put right before anything is written to it",
                    "wait until that has ended: opening it for writing puts it right",
                )
            lock.take(self.pins.verb, wait_s)
            try:
                for disk in disks:
                    disk.take_for_writing(wait_s)
            except BaseException:
                for disk in disks:
                    disk.share()
                lock.share()
                raise
            self.writable = True
            self.close_with(CommitTimer(self._on_time).__enter__())
            if not (self.path / CONFIG_NAME).exists():
                self._name_disks()

    def grow(
        self,
        disks: DiskNames = 5,
        size: int | str | None = None,
        parity: int | None = None,
        chunk: int | str | None = None,
        wipe: bool = False,
    ) -> GroupRecord:
        """Add a RAID group; parameters and errors as for `create`. Durable on return, the space there at once."""
        return grow(self, GroupWish(disks, size, parity, chunk, wipe))

    def plan_shrink(self, group: int) -> ShrinkPlan:
        """Return what taking a RAID group out would move, and whether the others have room; see `shrink.plan`."""
        return shrinking.plan(self, group)

    def shrink(self, group: int, progress: Progress = ignore_progress) -> ShrinkReport:
        """Take a RAID group out; what was cut short goes on; see `shrink.shrink`. Durable on return."""
        return shrinking.shrink(self, group, progress)

    def cancel_shrink(self) -> int:
        """Call off that a group is taken out; what moved stays where it is. Returns which it was."""
        return shrinking.cancel(self)

    def plan_settle(self) -> SettlePlan:
        """Return what moving blocks home would come to; see `settling.plan`."""
        return settling.plan(self)

    def settle(self, progress: Progress = ignore_progress) -> SettleReport:
        """Move blocks that lie elsewhere to the places of their numbers; see `settling.settle`."""
        return settling.settle(self, progress)

    # --- snapshots ---------------------------------------------------------------------------------------------------

    @property
    def snapshots(self) -> list[Snapshot]:
        """The snapshots, older first."""
        return snapshots.all_of(self)

    def snapshot(self, name: str, mark: bool = False) -> Snapshot:
        """Retain the live file system under a name; durable on return. mark: keep marks from it on.

        RefusedError: the volume is a mirror that was brought nothing yet, and the first update needs it empty.
        """
        with self.lock:
            mirrored.refuse_awaiting(self)
            return snapshots.create(self, name, mark)

    def get_snapshot(self, name: str) -> Snapshot:
        """Return a snapshot by name; NoSuchSnapshotError: there is none."""
        with self.lock:
            return Snapshot(self, self.local.entry(name))

    def delete_snapshot(self, *names: str, defer: bool = False) -> int:
        """Delete snapshots; return how many blocks that freed; see `deleting.delete`."""
        return deleting.delete(self, names, defer)

    def plan_delete(self, *names: str, defer: bool = False) -> list[str]:
        """Return which of some snapshots deleting would take away at once; see `deleting.plan_delete`."""
        return deleting.plan_delete(self, names, defer)

    def snapshot_range(self, first: str, last: str) -> list[str]:
        """Return the names of the snapshots from first to last, as `snapshots` orders them."""
        with self.lock:
            return snapshots.named_range(self, first, last)

    @property
    def line(self) -> list[str]:
        """Names of the snapshots that the live file system descends from, older first."""
        with self.lock:
            return [entry.record.name for entry in self.local.ancestors(self.local.root.parent_id)]

    def shadow_snapshot(self, name: str) -> int:
        """Make a snapshot a shadow; return how many blocks that frees; see `demoting.demote`."""
        return demoting.demote(self, name)

    @property
    def pressure(self) -> PressurePolicy | None:
        """What is done when space runs short; None: nothing."""
        record = self.local.root.pressure
        return PressurePolicy.of(record) if record is not None else None

    def set_pressure(self, policy: PressurePolicy | None) -> None:
        """Have snapshots become shadows when space runs short, or with None not; see `volume.pressure`."""
        pressure.set_policy(self, policy)

    def plan_demotions(self, policy: PressurePolicy | None = None, wanted_blocks: int = 0) -> DemotionPlan:
        """Return what a policy, by default the volume's, would do now; see `pressure.plan`."""
        return pressure.plan(self, policy, wanted_blocks)

    def hold_snapshot(self, name: str, owner: str, expires_ns: int = 0) -> Hold:
        """Keep a snapshot from being deleted or made a shadow until its owner releases it; see `holds.hold`."""
        return holds.hold(self, name, owner, expires_ns)

    def release_snapshot(self, name: str, owner: str) -> None:
        """Give a hold up; see `holds.release`. A snapshot that only waited for it is deleted."""
        holds.release(self, name, owner)
        deferred.reap(self)

    def _unpinned(self, snapshot_id: bytes) -> None:
        """Delete what waited for its reader. What goes wrong stops the volume, whose next caller hears of it."""
        with contextlib.suppress(BlockplaneError, OSError), self.lock:
            if self.writable and not self._failure:
                self._reap()

    def _reap(self) -> None:
        """Delete what is needed no longer; what goes wrong is told, and raised only where the volume stopped."""
        try:
            deferred.reap(self)
        except (BlockplaneError, OSError) as error:
            if self._failure:
                raise
            self.warn(f"what is being deleted stays: {error}")

    def _on_time(self) -> float:
        """Delete what waited for a hold that has expired, commit what is due; return in how many seconds to ask.

        Raises
        ------
        BlockplaneError, OSError: the volume stopped.
        """
        try:
            with self.lock:
                if not self._failure:
                    self._reap()
            return self.commit_if_due()
        except (BlockplaneError, OSError) as error:
            if self._failure:
                raise
            self.warn(f"what was due was not done: {error}")
            return live.CP_INTERVAL_S

    def rename_snapshot(self, name: str, new: str) -> None:
        """Give a snapshot another name."""
        snapshots.rename(self, name, new)

    def rollback(
        self,
        name: str,
        keep_as: str | None = None,
        drop_later: bool = False,
        drop_changes: bool = False,
        defer: bool = False,
    ) -> str | None:
        """Make a snapshot the live file system; see `snapshots.rollback`. RefusedError: the volume is a mirror."""
        mirrored.refuse_written(self)
        return snapshots.rollback(self, name, keep_as, drop_later, drop_changes, defer)

    # --- marks -------------------------------------------------------------------------------------------------------

    def mark(self, name: str) -> None:
        """Keep marks from a snapshot on; see `positions.mark`. Of a marked one what damage took is put right."""
        if positions.mark(self, name):
            reclaim(self)

    def unmark(self, name: str) -> None:
        """Keep marks from a snapshot on no longer; see `positions.unmark`."""
        positions.unmark(self, name)

    @property
    def positions(self) -> list[Position]:
        """The snapshots from which on marks are kept, older first."""
        return positions.positions(self)

    def marks(self, kind: Kind, name: str) -> Plane:
        """Return what entered (`alloc`) or left (`dealloc`) the volume since a marked snapshot, as of the last CP.

        Raises
        ------
        NoSuchSnapshotError: it does not exist. RefusedError: it is not marked, or this is not known of it.
        """
        with self.lock:
            return positions.plane_of(self, positions.mark_plane(self, kind, name))

    @property
    def destinations(self) -> Destinations:
        """Where destinations stand, and what is on its way to them."""
        return Destinations(self)

    # --- replication -------------------------------------------------------------------------------------------------

    @property
    def pointers(self) -> list[SnapshotPointer]:
        """The pointers, by name: they stand wherever a snapshot's name may."""
        return pointers.all_of(self)

    def move_pointer(self, name: str, snapshot: str) -> None:
        """Let a pointer, which may be new, stand at a snapshot; see `pointers.move`. Durable on return."""
        pointers.move(self, name, snapshot)
        deferred.reap(self)

    def delete_pointer(self, name: str) -> None:
        """Let a name stand for nothing any more; the snapshot stays. Durable on return."""
        pointers.delete(self, name)
        deferred.reap(self)

    def make_master(self, name: str) -> None:
        """Let replicas synchronise to a snapshot, and `master` stand at it; see `masters.make_master`."""
        masters.make_master(self, name)

    @property
    def replica_limit_s(self) -> int:
        """How long a replica that is not heard of is waited for, in seconds; 0: for ever."""
        with self.lock:
            return self.local.replication().limit_s

    def set_replica_limit(self, seconds: int) -> None:
        """Say how long a replica that is not heard of is waited for; see `masters.set_limit`."""
        masters.set_limit(self, seconds)

    def expire_replicas(self) -> list[str]:
        """Give up waiting for replicas past the limit; return which masters became shadows; see `masters.expire`."""
        return masters.expire(self)

    def forget_replica(self, name: str) -> None:
        """Drop a replica and what is held for it; see `replicas.forget`."""
        replicas.forget(self, name)
        deferred.reap(self)

    @property
    def mirror_of(self) -> MirrorOf | None:
        """What the volume is a mirror of; None: it is none."""
        return mirrored.mirror_of(self)

    # --- receiving ---------------------------------------------------------------------------------------------------

    @property
    def changed_since_top(self) -> bool:
        """Whether the live state is more than the snapshot it descends from: a receive would lose that."""
        with self.lock:
            return snapshots.changed_since_newest(self)

    def landing(self, image: Plane, base: Snapshot | None = None) -> Landing:
        """Begin to receive an image; see `Landing`."""
        return Landing(self, image, base.entry if base is not None else None)


def _half_made(directory: Path) -> NotAVolumeError:
    return NotAVolumeError(f"{directory} was being made when its maker was stopped", "make it again, or remove it")


def _write_labels(geometry: Geometry, volume_id: bytes, disks: Sequence[Disk]) -> None:
    member_ids = [os.urandom(16) for _ in disks]
    write_labels(disks, make_labels(geometry, volume_id, member_ids, [disk.n_blocks for disk in disks]), 0)
