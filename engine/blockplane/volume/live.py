"""The volume: disks, trees, consistency points; what the other modules of this folder come together in.

Lock order: `lock` guards the live state, the local tree and the placer. Committed states are immutable and read
without it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from blockplane.disks.array import DiskArray
from blockplane.disks.disk import Disk
from blockplane.disks.geometry import Geometry
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import ChecksumError, DiskError, ReadOnlyError, RefusedError, VolumeDamagedError
from blockplane.planes import Plane
from blockplane.volume import held, marking, pressure
from blockplane.volume.active import ActiveState
from blockplane.volume.beside import BesideWriter
from blockplane.volume.busy import BusyPlane
from blockplane.volume.codec import FORM_EMPTY, Branch, LocalRoot, StateRoot, TableEntry, TreeRoot
from blockplane.volume.fsinfo import MAX_AREAS, MEMBER_OK, ROLE_LINE, ROLE_REPLICA, FsInfo
from blockplane.volume.incoming import IncomingPlane
from blockplane.volume.leafbits import LEAF_WORDS, Leaf, count
from blockplane.volume.local import LocalTree
from blockplane.volume.pins import Pins
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.placer import Placer
from blockplane.volume.readers import PlaceReader
from blockplane.volume.recovery import Recovery, recover
from blockplane.volume.roots import Roots
from blockplane.volume.rootslots import successor, write_record
from blockplane.volume.shadows import ShadowPlane
from blockplane.volume.space import AreaName, Space
from blockplane.volume.state import State, write_all
from blockplane.volume.tree import BlockTree

DIRTY_LIMIT_BYTES = 64 << 20
CP_INTERVAL_S = 10.0

RESERVE_SHIFT = 6  # 1/64
RESERVE_MIN_BLOCKS, RESERVE_MAX_BLOCKS = 1024, 65536


class Client(Protocol):
    """A file system over the volume: it keeps changes of its own until the consistency point."""

    def flush(self, volume: LiveVolume) -> None:
        """Push everything dirty into the live state's trees."""
        ...

    def reload(self) -> None:
        """Forget what was cached: the live state was exchanged."""
        ...


class LiveVolume(Roots):
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
        self.recovery = Recovery()
        self.incoming = IncomingPlane(lambda: self.local)
        self._load()

    def _load(self) -> None:
        """Take up the state of the root record; opening reads the two roots and nothing that grows."""
        self.beside = BesideWriter(self)
        self.space = Space(self.geometry, self._busy.leaf, self._busy.spared)
        self.space.n_pending = self.info.n_pending
        self.placer = Placer(self.array, self.space, self._declare, self._busy.is_landing, self.beside)
        places = PlaceReader(self.array, PlaceMap())
        self.knows_live = self.knows_local = True
        self._load_local(places)
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
        self._n_forget = 1  # what only the CP before the last refers to is free after the next one, and nobody lists it

    # --- reading -----------------------------------------------------------------------------------------------------

    def place_reader(self) -> PlaceReader:
        """Return a reader of places, for the local tree."""
        return PlaceReader(self.array, PlaceMap())

    def live_leaf(self, leaf: int) -> Leaf:
        """Return the places of a leaf's range that the last CP refers to, snapshots and local tree included."""
        local = self.committed_local
        return self.committed.place_leaf(leaf) | local.held_leaf(leaf) | local.local_leaf(leaf)

    def snapshot_state(self, entry: TableEntry) -> State:
        """Return the state of a snapshot in the table; RefusedError: it is a shadow."""
        if entry.is_shadow:
            raise RefusedError(
                f"{entry.record.name} is a shadow: its blocks may have been reused, and it cannot be read",
                "a shadow can only be subtracted: `newer - shadow`",
            )
        state = self._states.get(entry.record.id)
        if state is None:
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

    def adopt_state(self, snapshot_id: bytes, state: State) -> None:
        """Cache the state of a snapshot that is new."""
        self._states[snapshot_id] = state

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

    def new_tree(self, root: TreeRoot | None = None) -> BlockTree:
        """Return a writable tree for a file of the live state."""
        return self.active.tree(root if root is not None else TreeRoot())

    def register_client(self, client: Client) -> None:
        """Take part in consistency points."""
        self._clients.append(client)

    def unregister_client(self, client: Client) -> None:
        """Take part no longer."""
        self._clients.remove(client)

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

    def room_hint(self) -> str:
        """See Capacity."""
        what = "delete files or snapshots (that still works), or add a RAID group with `blockplane grow`"
        return what + pressure.kept_text(self)

    def _declare(self, names: list[AreaName]) -> None:
        """Name areas in a durable record before they are written to (law 7); the first is needed now."""
        if names[0] in self._declared and not self.info.clean:
            return
        fresh = [name for name in dict.fromkeys(names) if name not in self._declared]
        if len(self._declared) + len(fresh) > MAX_AREAS:
            self.array.drain()
            self.array.flush()
            self._declared = []
        self._declared += fresh
        self._write_info(areas=list(self._declared), clean=False)

    def declare_areas(self, names: list[AreaName]) -> None:
        """See `_declare`: for writers other than the placer."""
        with self.lock:
            self._declare(names)

    def recover(self) -> None:
        """After an unclean stop: parity brought in line where writes may have been under way, the record everywhere."""
        self.recovery = recover(self)
        self.warnings += self.recovery.warnings()
        self._write_info(areas=[], clean=True)

    def _write_info(self, **changes: object) -> None:
        record = successor(self.info, **changes)
        write_record(self.array, record)
        self.info = record

    def take_groups(self, geometry: Geometry, disks: Sequence[Disk]) -> None:
        """Go over to a geometry with more groups, whose labels are durable: one root record, then as after opening.

        The caller holds the lock and has committed; nothing is dirty.
        """
        self.array.extend(geometry, disks)
        self._write_info(**grown(self.info, geometry))
        self.geometry = geometry
        self._load()
        for client in self._clients:
            client.reload()

    # --- consistency points ------------------------------------------------------------------------------------------

    def commit(self, force: bool = False, clean: bool = False) -> None:
        """Bring the volume from one consistent state on disk to the next.

        Parameters
        ----------
        force : commit though nothing is dirty. clean : the last one before closing: no areas stay declared.

        Raises
        ------
        NoSpaceError: not even the reserve is enough; the volume goes back to the last CP.
        DiskError: a disk failed; the volume stops.
        """
        with self.lock:
            self._require_writable()
            try:
                self._commit(force, clean)
            except BaseException as error:
                self.stop(error)
                raise

    def _commit(self, force: bool, clean: bool) -> None:
        with self.dipping():  # what is dirty was let in when it became so
            for client in self._clients:
                client.flush(self)
        if self.active.is_dirty or self.local.is_dirty or force:
            self.placer.committing = True
            with self.dipping():  # the reserve is there for this
                changes = self._commit_trees()
            self._settle_data()
            self._write_info(**changes, areas=[] if clean else list(self._declared), clean=clean)
            self._pass_on()
        elif clean and not self.info.clean:
            self._write_info(areas=[], clean=True)
        if clean:
            self._declared = []

    def _settle_data(self) -> None:
        """Bring every block of the CP onto the disks, durable: no root is written before (law 6)."""
        self.placer.close_all()
        self.placer.settle()
        self.array.flush()
        self.beside.log.settled()

    def _commit_trees(self) -> dict[str, object]:
        """Place and write both trees; return what the root record will say."""
        if self.active.is_dirty and self.is_replica:
            self._start_branch()
        state = self.active.commit(time.time_ns()) if self.active.is_dirty else self.active.pointer
        self.active.placemap = self.active.take_unmapped()
        self.local.set_active_map(self.active.placemap)
        before, neighbours = self._before or self.committed, self._neighbours()
        entered, freed = self.active.take_entered(), self.space.freed_leaves()
        self._newly_held = held.update_for_commit(self.local, neighbours, before, self.active, freed)
        marking.written(self, before, entered, freed, neighbours)
        self._clear_shadows(before, entered)
        local = self.local.commit(self.info.local) if self.local.is_dirty else self.info.local
        return {
            "role": ROLE_REPLICA if self.is_replica else ROLE_LINE,
            "state": state,
            "previous_state": self.info.state,
            "local": local,
            "previous_local": self.info.local,
            "n_pending": self.space.n_freed_open - self._newly_held,
        }

    def _neighbours(self) -> list[State | None]:
        """Return the snapshots that can hold what the live state gives up: the newest, where history is a line."""
        entries = self.local.regular()
        if held.is_line(self.local.entries(), self.local.root.parent_id):
            entries = entries[-1:]
        return [self.known_state(entry) for entry in entries]

    def _clear_shadows(self, before: State, entered: list[int]) -> None:
        """Clear the bits of what got new content since the last CP out of every shadow."""
        shadows = self.local.shadows
        if not self.local.root.n_shadows:
            return
        for leaf in entered:
            shadows.cleared(leaf, self.active.plane_leaf(leaf) & ~before.plane_leaf(leaf))
        given_up = shadows.store()
        if given_up:
            snapshots = [self.known_state(entry) for entry in self.local.regular()]
            for leaf, words in held.let_go(self.local, snapshots, given_up):
                self.space.release_words(leaf, words, count(words))

    def _pass_on(self) -> None:
        """After the root is durable: the committed states move up, and what two CPs have passed becomes free."""
        self.space.committed(self._busy.kept_leaf, self._newly_held)
        places = PlaceReader(self.array, PlaceMap())
        self.previous, self.previous_local = self.committed, self.committed_local
        self.committed_local = LocalTree(places, LocalRoot.decode(self.local.root.encode()))
        placemap = self.active.placemap
        root = StateRoot.decode(self.active.root.encode())
        self.committed = State(PlaceReader(self.array, placemap), root, self.info.state, placemap)
        self.committed.blockmap.adopt_clean(self.active.blockmap)
        self.committed_local.held.adopt_clean(self.local.held)
        self.committed_local.local.adopt_clean(self.local.local)
        self._claimed = self._dirty_bytes = 0
        self._before = None
        if self._n_forget:
            self.space.forget()
            self._n_forget -= 1

    def stop(self, error: BaseException) -> None:
        """After a failed commit nothing in memory can be trusted: refuse everything until opened again."""
        self._failure = str(error) or type(error).__name__
        self.placer.discard()

    def exchange(self, state: State, parent_id: bytes) -> None:
        """Make a committed state the live one: rollback and receive move the state root, nothing else.

        The caller has brought what is dirty to disk, and rebuilds held and commits afterwards.
        """
        for name in ("inode_file", "blockmap", "checksums"):
            getattr(self.active, name).drop_cache()
        self.space.forget()
        root = StateRoot.decode(state.root.encode())
        live = ActiveState(
            self._live_reader(lambda: self.active.placemap),
            root,
            state.pointer,
            state.placemap,
            self.placer,
            self.space,
            self._claim,
            self._claim_run,
        )
        self.active, self._before, self._n_forget = live, state, 3
        self.is_replica = True
        self.local.set_active_map(state.placemap)
        self.local.set_parent(parent_id)
        self.local.is_dirty = True
        for client in self._clients:
            client.reload()

    def _start_branch(self) -> None:
        """Add a branch to the live state's history: its CPs are no longer those of the line it came from."""
        root = self.active.root
        branch = Branch(os.urandom(16), root.branch_id, root.cp + 1, root.cp, time.time_ns())
        history = [*self.active.branches(), branch]
        write_all(self.active.branch_list, b"".join(entry.encode() for entry in history))
        root.branch_id = branch.id
        self.active.list_snapshots([e.record for e in self.local.ancestors(self.local.root.parent_id)])
        self.is_replica = False

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
    """Return what changes in the root record when a volume takes up groups that its labels name."""
    states = info.member_states + bytes([MEMBER_OK]) * (geometry.n_disks - len(info.member_states))
    return {"geometry": geometry, "member_states": states, "reserve_blocks": reserve_for(geometry.n_usable)}


def reserve_for(n_blocks: int) -> int:
    """Return the reserve of a volume: 1/64, between 1,024 and 65,536 blocks, and at most an eighth of a tiny one."""
    return min(max(n_blocks >> RESERVE_SHIFT, RESERVE_MIN_BLOCKS), RESERVE_MAX_BLOCKS, n_blocks // 8)
