"""The volume: disks, trees, consistency points; what the other modules of this folder come together in.

Lock order: `lock` guards the live state, the local tree and the placer. Committed states are immutable and read
without it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from blockplane.disks.array import DiskArray
from blockplane.disks.disk import Disk, FileDisk
from blockplane.disks.geometry import Geometry
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError, DiskError, ReadOnlyError, RefusedError, VolumeDamagedError
from blockplane.planes import Plane
from blockplane.volume import pressure
from blockplane.volume.basegroup import n_in_base
from blockplane.volume.beside import BesideWriter
from blockplane.volume.busy import BusyPlane
from blockplane.volume.codec import FORM_EMPTY, NO_ID, TableEntry, TreeRoot
from blockplane.volume.fsinfo import MEMBER_OK, ROLE_REPLICA, FsInfo
from blockplane.volume.incoming import IncomingPlane
from blockplane.volume.leafbits import LEAF_WORDS, WORD_BLOCKS, Leaf
from blockplane.volume.local import LocalTree
from blockplane.volume.names import Names
from blockplane.volume.pins import Pins
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.placer import Placer
from blockplane.volume.points import Client, Points
from blockplane.volume.readers import PlaceReader
from blockplane.volume.recovery import Recovery, recover
from blockplane.volume.shadows import ShadowPlane
from blockplane.volume.space import AreaName, Space
from blockplane.volume.state import State
from blockplane.volume.tree import BlockTree
from blockplane.volume.updates import Updates

DIRTY_LIMIT_BYTES = 64 << 20
CP_INTERVAL_S = 10.0

RESERVE_SHIFT = 6  # 1/64
RESERVE_MIN_BLOCKS, RESERVE_MAX_BLOCKS = 1024, 65536


class LiveVolume(Points):
    """An open volume. `volume.Volume` adds how one is made and opened, and its snapshots.

    Attributes
    ----------
    info : the root record last made durable.
    active : the live state. committed, previous : the states of the last two CPs.
    local : the local tree of the open CP.
    beside : writes to stripes that hold live blocks.
    recovery : what opening had to put right.
    warnings : what whoever opened it should be told, one sentence each.
    damage : the roots that could not be read, one sentence each; only of a volume opened for reading.
    knows_live, knows_local : whether the root of the live file system, of the local tree, could be read.
    is_replica : whether the live state is exactly one received or rolled back to; the first write starts a branch.
    features : what the states here need, in the next root record.
    updates : whether a source is bringing it something.
    """

    def __init__(self, path: Path, array: DiskArray, info: FsInfo, writable: bool) -> None:
        self.path = path
        self.array = array
        self.info = info
        self.writable = writable
        self.lock = threading.RLock()
        self.geometry = info.geometry
        self._busy = BusyPlane(self)
        self._clients: list[Client] = []
        self._on_close: list[contextlib.AbstractContextManager[object]] = []
        self._failure: str = ""
        self.warnings: list[str] = []
        self.demoted = []
        self.damage: list[str] = []
        self._declared: list[AreaName] = []
        self._first_dirty_s = 0.0
        self._dirty_bytes = 0
        self._states: dict[bytes, State] = {}
        self._before: State | None = None  # what held was last in line with, where not the committed state
        self._n_forget = 0  # commits to come after which the busy plane is worked out anew
        self.pins = Pins(gone=self._unpinned)
        self.updates = Updates()
        self.recovery = Recovery()
        self.incoming = IncomingPlane(lambda: self.local)
        self._load()

    def _load(self) -> None:
        """Take up the state of the root record; opening reads the two roots and nothing that grows."""
        self.beside = BesideWriter(self)
        self.space = Space(self.geometry, self._busy.leaf, self._busy.spared)
        self.space.n_pending, self.space.closed = self.info.n_pending, self.info.leaving
        self.placer = Placer(self.array, self.space, self._declare, self._busy.is_landing, self.beside, self.stop)
        self.names = Names(self)
        places = PlaceReader(self.array, PlaceMap())
        self.knows_live = self.knows_local = True
        self._load_local(places)
        self.local.shadows.find_room = self._room_for_shadows
        self._load_live()
        try:
            self.previous_local = LocalTree(places, self._local_root(self.info.previous_local))
            self.previous = self._committed_state(self.info.previous_state, self.previous_local)
        except VolumeDamagedError as error:
            if self.writable and not isinstance(error, ChecksumError):
                raise
            # nothing but its places was wanted of it, and it is not whole any more
            self.previous_local, self.previous = self.committed_local, self.committed
        self._states.clear()
        self._claimed = self._dirty_bytes = 0
        self._newly_held = 0
        self.is_replica = self.info.role == ROLE_REPLICA
        self.features = self.info.features
        self.n_in_base = n_in_base(self)
        self._n_forget = 1  # what only the CP before the last refers to is free after the next one, and nobody lists it

    @property
    def disk_id(self) -> bytes:
        """Which file the first disk is; NO_ID: it is in memory."""
        disk = self.array.disks[0]
        return disk.file_id if isinstance(disk, FileDisk) else NO_ID

    # --- reading -----------------------------------------------------------------------------------------------------

    def place_reader(self) -> PlaceReader:
        """Return a reader of places, for the local tree."""
        return PlaceReader(self.array, PlaceMap())

    def live_leaf(self, leaf: int) -> Leaf:
        """Return the places of a leaf's range that the last CP refers to, snapshots and local tree included."""
        local = self.committed_local
        return self.committed.place_leaf(leaf) | local.held_leaf(leaf) | local.local_leaf(leaf)

    def settled_leaf(self, leaf: int) -> Leaf:
        """See `BusyPlane`."""
        return self._busy.settled_leaf(leaf)

    def busy_leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range are not free, worked out from everything that may have one, fresh."""
        return self._busy.leaf(leaf)

    def is_landing(self, place: int) -> bool:
        """Whether a receive brings blocks to the 64 stripes of a place."""
        group, dbn = self.placer.locate(place)
        return self._busy.is_landing(group, dbn // WORD_BLOCKS)

    def snapshot_state(self, entry: TableEntry) -> State:
        """Return the state of a snapshot in the table; RefusedError: it is a shadow."""
        if entry.is_shadow:
            raise RefusedError(
                f"{entry.record.name} is a shadow: its blocks may have been reused, and it cannot be read",
                "a shadow can only be subtracted: `newer - shadow`",
            )
        state = self._states.get(entry.record.id)
        if state is None:
            # as it is now: a snapshot's blocks may have moved since somebody was given the entry
            entry = next((e for e in self.local.entries() if e.record.id == entry.record.id), entry)
            placemap = self.committed_local.map_of(entry.place_map)
            state = State.read(PlaceReader(self.array, placemap), entry.record.root, placemap)
            self._states[entry.record.id] = state
        return state

    def known_state(self, entry: TableEntry) -> State | None:
        """Return the state of a snapshot; None where its root is damaged: it may hold anything."""
        try:
            return self.snapshot_state(entry)
        except DiskError:
            raise
        except VolumeDamagedError:
            return None

    def snapshot_states(self) -> list[State]:
        """Return the states of all regular snapshots, older first."""
        return [self.snapshot_state(entry) for entry in self.local.regular()]

    def known_states(self) -> list[State | None]:
        """Return the states of all regular snapshots, older first; None for one whose root is damaged."""
        return [self.known_state(entry) for entry in self.local.regular()]

    def adopt_state(self, snapshot_id: bytes, state: State) -> None:
        """Cache the state of a snapshot that is new."""
        self._states[snapshot_id] = state

    def state_moved(self, snapshot_id: bytes, placemap: PlaceMap) -> None:
        """Let whoever has the state of a snapshot at hand read its blocks where they lie from the open CP on."""
        state = self._states.get(snapshot_id)
        if state is not None:
            assert state is not self.committed  # which has them where they were
            assert isinstance(state.reader, PlaceReader)
            state.placemap = state.reader.placemap = placemap

    def metadata(self, name: str) -> Plane:
        """Return the blocks of a snapshot without which nothing of it is found: all but the content of files.

        Raises
        ------
        RefusedError: this class of volume does not know its file system.
        """
        raise RefusedError(f"what of {name} is metadata cannot be told here", "use blockplane.Volume")

    def state(self, name: str | None = None) -> State:
        """Return a snapshot's state, or without a name the state of the last CP.

        Raises
        ------
        NoSuchSnapshotError: there is none of that name. VolumeDamagedError: its root is damaged.
        """
        if name is None:
            self.require_live()
            return self.committed
        with self.lock:
            return self.snapshot_state(self.local.entry(name))

    def plane(self, state: State | ShadowPlane) -> Plane:
        """Return a state's plane, or what is left of a shadow's."""
        builder = Plane.builder(max(self.geometry.n_blocks, state.space_blocks))
        for leaf, words in state.leaves():
            builder.append(leaf * LEAF_WORDS, words)
        return builder.finish()

    @property
    def was_written(self) -> bool:
        """Whether the volume ever held a file or a snapshot, the open CP included where its file system was flushed."""
        return self.active.root.inode_file.form != FORM_EMPTY or bool(self.local.root.n_entries)

    # --- changing ----------------------------------------------------------------------------------------------------

    def _require_writable(self) -> None:
        if self._failure:
            raise VolumeDamagedError(f"the volume stopped at an error: {self._failure}", "close it and open it again")
        if not self.writable:
            raise ReadOnlyError(f"{self.path} was opened for reading", "")

    @property
    def stopped_at(self) -> str:
        """The error that the volume stopped at: close it and open it again; empty: none."""
        return self._failure

    def warn(self, text: str) -> None:
        """Have people told of something that goes on without them, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def new_tree(self, root: TreeRoot | None = None) -> BlockTree:
        """Return a writable tree for a file of the live state."""
        return self.active.tree(root if root is not None else TreeRoot())

    def register_client(self, client: Client) -> None:
        """Take part in consistency points."""
        self._clients.append(client)

    def unregister_client(self, client: Client) -> None:
        """Take part no longer."""
        self._clients.remove(client)

    @property
    def has_unsaved(self) -> bool:
        """Whether the live state has changes that no consistency point has yet."""
        return bool(self._dirty_bytes) or self.active.is_dirty

    def mark_dirty(self, n_bytes: int) -> None:
        """Note that an operation ended and left n_bytes more in memory; commits by the dirty limit or the timer."""
        now = time.monotonic()
        if not self._dirty_bytes:
            self._first_dirty_s = now
        self._dirty_bytes += max(n_bytes, 1)
        n_dirty = self.active.inode_file.n_dirty + self.active.blockmap.n_dirty + self.active.checksums.n_dirty
        if self._dirty_bytes + n_dirty * BLOCK_BYTES > DIRTY_LIMIT_BYTES or now - self._first_dirty_s > CP_INTERVAL_S:
            self.sync()

    def commit_if_due(self) -> float:
        """Commit what has been dirty for CP_INTERVAL_S; return in how many seconds something may be."""
        with self.lock:
            if self._failure or not self._dirty_bytes:
                return CP_INTERVAL_S
            left_s = self._first_dirty_s + CP_INTERVAL_S - time.monotonic()
            if left_s > 0:
                return left_s
            self.sync()
            return CP_INTERVAL_S

    def sync(self) -> None:
        """Make everything so far durable: a consistency point, where there is anything to commit.

        Where it leaves less free than the pressure policy wants, another follows in which snapshots become shadows.
        """
        with self.lock:
            self.commit()
            self.relieve()

    def relieve(self, n_blocks: int = 0) -> None:
        """See Capacity. Everything must be consistent."""
        self.demoted += pressure.relieve(self, n_blocks)

    def room_hint(self, what: str = "files or snapshots") -> str:
        """See Capacity."""
        hint = f"delete {what} (that still works), or add a RAID group with `blockplane grow`"
        return hint + pressure.kept_text(self)

    def recover(self) -> None:
        """After an unclean stop: parity brought in line where writes may have been under way, the record everywhere."""
        self.recovery = recover(self)
        self.warnings += self.recovery.warnings()
        self._write_info(areas=[], clean=True)

    def take_groups(self, geometry: Geometry, disks: Sequence[Disk]) -> None:
        """Go over to a geometry with more groups, whose labels are durable: one root record, then as after opening.

        The caller holds the lock and has committed; nothing is dirty.
        """
        with self.changing():
            self.array.extend(geometry, disks)
            self._write_info(**grown(self.info, geometry))
            self.geometry = geometry
            self._reload()

    def close_group(self, group: int | None) -> None:
        """Give the places of a group to nobody from now on, or with None give them again: durable on return.

        The caller holds the lock and has committed; nothing is dirty.
        """
        with self.changing():
            self._write_info(leaving=group, has_left=False)
            self._reload()

    def note_left(self) -> None:
        """Say, durably, that the last two CPs have nothing in the group that is being taken out."""
        with self.changing():
            self._write_info(has_left=True)

    def drop_group(self, geometry: Geometry) -> None:
        """Go over to a geometry without the group that has left, whose labels are durable; as `take_groups`."""
        assert self.info.leaving is not None
        gone = self.geometry.groups[self.info.leaving].disks
        with self.changing():
            self.array.reduce(geometry, gone)
            self._write_info(**shrunk(self.info, geometry))
            self.geometry = geometry
            self._reload()

    def _reload(self) -> None:
        """Take up the root record, and have clients forget what they know: as after opening."""
        self._load()
        for client in self._clients:
            client.reload()

    # --- the end -----------------------------------------------------------------------------------------------------

    def pin(self, snapshot_id: bytes) -> contextlib.AbstractContextManager[None]:
        """Keep a snapshot from being deleted while it is read (law 12)."""
        return self.pins.hold(snapshot_id)

    def is_pinned(self, snapshot_id: bytes) -> bool:
        """Whether something reads the snapshot."""
        return self.pins.has(snapshot_id)

    def _unpinned(self, snapshot_id: bytes) -> None:
        """Note that nothing reads a snapshot any more."""

    def forget_state(self, snapshot_id: bytes) -> None:
        """Drop the cached state of a snapshot that is gone."""
        self._states.pop(snapshot_id, None)

    def close_with(self, resource: contextlib.AbstractContextManager[object]) -> None:
        """Have a resource given up when the volume is closed."""
        self._on_close.append(resource)

    def close(self) -> None:
        """Commit what is dirty, mark the volume clean, give up disks and lock."""
        try:
            if self.writable and not self._failure:
                if self.local.root.pressure is not None:
                    self.sync()
                self.commit(clean=True)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Give up disks and lock without another write: what is not committed is lost."""
        with self.lock:
            self.placer.discard()
            self._failure = self._failure or "it was closed"
        self.array.close()
        for resource in reversed(self._on_close):
            resource.__exit__(None, None, None)
        self._on_close.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def grown(info: FsInfo, geometry: Geometry) -> dict[str, object]:
    """Return what changes in the root record when a volume takes up groups that its labels name.

    That record is not clean: cut short, it leaves slots of the new disks blank, which is no damage then.
    """
    states = info.member_states + bytes([MEMBER_OK]) * (geometry.n_disks - len(info.member_states))
    base = geometry.groups[info.leaving].n_blocks if info.leaving is not None else 0
    reserve = reserve_for(geometry.n_usable - base)
    return {"geometry": geometry, "member_states": states, "reserve_blocks": reserve, "clean": False}


def shrunk(info: FsInfo, geometry: Geometry) -> dict[str, object]:
    """Return what changes in the root record when a volume is without the group that has left."""
    assert info.leaving is not None
    gone = info.geometry.groups[info.leaving].disks
    states = bytes(state for disk, state in enumerate(info.member_states) if disk not in gone)
    return {
        "geometry": geometry, "member_states": states, "reserve_blocks": reserve_for(geometry.n_usable),
        "leaving": None, "has_left": False, "areas": [],
    }  # fmt: skip


def reserve_for(n_blocks: int) -> int:
    """Return the reserve of a volume: 1/64, between 1,024 and 65,536 blocks, and at most an eighth of a tiny one."""
    return min(max(n_blocks >> RESERVE_SHIFT, RESERVE_MIN_BLOCKS), RESERVE_MAX_BLOCKS, n_blocks // 8)
