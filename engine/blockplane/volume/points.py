"""Consistency points: how a volume goes from one consistent state on disk to the next (DESIGN.md, law 6)."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.volume import held, marking
from blockplane.volume.active import ActiveState
from blockplane.volume.codec import ENTRY_BYTES, NO_ID, Branch, LocalRoot, StateRoot, TableEntry
from blockplane.volume.features import Features
from blockplane.volume.fsinfo import MAX_AREAS, ROLE_LINE, ROLE_REPLICA
from blockplane.volume.leafbits import count
from blockplane.volume.local import LocalTree
from blockplane.volume.placemap import PlaceMap
from blockplane.volume.readers import PlaceReader
from blockplane.volume.roots import Roots
from blockplane.volume.rootslots import successor, write_record
from blockplane.volume.shadows import Room
from blockplane.volume.space import AreaName
from blockplane.volume.state import State, write_all

if TYPE_CHECKING:
    from blockplane.volume.beside import BesideWriter
    from blockplane.volume.busy import BusyPlane


class Client(Protocol):
    """A file system over the volume: it keeps changes of its own until the consistency point."""

    def flush(self, volume: Points) -> None:
        """Push everything dirty into the live state's trees."""
        ...

    def reload(self) -> None:
        """Forget what was cached: the live state was exchanged."""
        ...


class Points(Roots):
    """The committing part of a volume; `LiveVolume` sets what is named here.

    Attributes
    ----------
    active : the live state. previous, previous_local : those of the CP before the last.
    is_replica : whether the live state is exactly one received or rolled back to; the first write starts a branch.
    ends_next : whether the next CP is the last before closing, and its root record says so: closing writes none then.
    """

    previous: State
    previous_local: LocalTree
    beside: BesideWriter
    is_replica: bool
    ends_next: bool = False
    features: Features
    _busy: BusyPlane
    _clients: list[Client]
    _failure: str
    _declared: list[AreaName]
    _dirty_bytes: int
    _newly_held: int
    #: what held was last in line with, where not the committed state
    _before: State | None
    #: commits to come after which the busy plane is worked out anew
    _n_forget: int

    @property
    @abstractmethod
    def disk_id(self) -> bytes:
        """Which file the first disk is."""

    @abstractmethod
    def known_state(self, entry: TableEntry) -> State | None:
        """Return the state of a snapshot; None where its root is damaged."""

    @abstractmethod
    def known_states(self) -> list[State | None]:
        """Return the states of all regular snapshots, older first; None for one whose root is damaged."""

    @abstractmethod
    def warn(self, text: str) -> None:
        """Have people told of something that goes on without them, once."""

    def _declare(self, names: list[AreaName]) -> None:
        """Name areas in a durable record before they are written to (law 7); the first is needed now."""
        if names[0] in self._declared and not self.info.clean:
            return
        fresh = [name for name in dict.fromkeys(names) if name not in self._declared]
        if len(self._declared) + len(fresh) > MAX_AREAS:
            self.array.drain()
            self.array.flush()
            self._declared = []
        declared = [*self._declared, *fresh]
        self._write_info(areas=declared, clean=False)
        self._declared = declared

    def declare_areas(self, names: list[AreaName]) -> None:
        """See `_declare`: for writers other than the placer."""
        with self.lock:
            self._declare(names)

    def _write_info(self, **changes: object) -> None:
        """Make the next root record durable. Cut short, the volume stops: no other record may be of its generation."""
        self._require_writable()
        record = successor(self.info, **changes)
        try:
            write_record(self.array, record)
            self.info = record
        except BaseException as error:
            if self.array.failure is None:  # else the disks take no other
                self.stop(error)
            raise

    # --- consistency points ------------------------------------------------------------------------------------------

    def commit(self, force: bool = False, clean: bool = False) -> None:
        """Bring the volume from one consistent state on disk to the next.

        Parameters
        ----------
        force : commit though nothing is dirty. clean : the last one before closing: no areas stay declared.

        Raises
        ------
        NoSpaceError: not even the reserve is enough; the volume stops, and opened again is as of the last CP.
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
            clean = clean or self.ends_next
            self._write_info(**changes, areas=[] if clean else list(self._declared), clean=clean)
            self._pass_on()
        elif clean and not self.info.clean:
            self._settle_data()  # of a receive that was given up parity may be under way, beside live blocks
            self._write_info(areas=[], clean=True)
        else:  # a write that failed may have left bands open: what is free in them is for whoever comes next
            self.placer.close_all()
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
        if self.active.is_dirty:
            if self.is_replica or self.was_moved:
                self._start_branch()
            self._note_disk()
        state = self.active.commit(time.time_ns()) if self.active.is_dirty else self.active.pointer
        self.active.settle_map()
        self.local.set_active_map(self.active.placemap)
        before, neighbours = self._before or self.committed, self._neighbours()
        entered, freed = self.active.take_entered(), self.space.freed_leaves()
        self._newly_held = held.update_for_commit(self.local, neighbours, before, self.active, freed)
        marking.written(self, before, entered, freed, neighbours)
        self._clear_shadows(before, self.active.take_entered_places())
        local = self.local.commit(self.info.local) if self.local.is_dirty else self.info.local
        return {
            "role": ROLE_REPLICA if self.is_replica else ROLE_LINE,
            "features": self.features,
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
        shadows.measure()
        for leaf in entered:
            shadows.cleared(leaf, self.active.place_leaf(leaf) & ~before.place_leaf(leaf))
        if any(plane.has_lost_more for plane in shadows.planes()):
            self.warn(
                "for want of room, or by damage, shadow snapshots lost more than was reused: images over them grow"
            )
        given_up = shadows.store()
        if given_up:
            for leaf, words in held.let_go(self.local, self.known_states(), given_up):
                self.space.release_words(leaf, words, count(words))

    def _room_for_shadows(self) -> Room:
        """Leave half of the reserve to what else the commit writes, and to deleting; only nodes take a quarter more."""
        waiting = self.space.n_pending + self.space.n_freed_open - self._newly_held + self.n_incoming
        table = -(-self.local.root.n_entries * ENTRY_BYTES // BLOCK_BYTES)  # anew with every bit that is cleared
        free, reserve = self.free_blocks - waiting - table, self.info.reserve_blocks
        return Room(max(free - reserve // 2, 0), max(free - reserve // 4, 0))

    def _pass_on(self) -> None:
        """After the root is durable: the committed states move up, and what two CPs have passed becomes free."""
        self.space.committed(self._busy.kept_leaf, self._newly_held)
        self._newly_held = 0
        places = PlaceReader(self.array, PlaceMap())
        self.previous, self.previous_local = self.committed, self.committed_local
        self.committed_local = LocalTree(places, LocalRoot.decode(self.local.root.encode()))
        placemap = self.active.placemap
        root = StateRoot.decode(self.active.root.encode())
        self.committed = State(PlaceReader(self.array, placemap), root, self.info.state, placemap)
        self.committed.blockmap.adopt_clean(self.active.blockmap)
        self.committed_local.held.adopt_clean(self.local.held)
        self.committed_local.local.adopt_clean(self.local.local)
        self.names.reset()
        self._claimed = self._dirty_bytes = 0
        self._before = None
        if self._n_forget:
            self.space.forget()
            self._n_forget -= 1

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Change what is in memory in several steps: all of them, or the volume stops, and commits no half of it.

        What can be read before is read before: where that fails, the volume is as it was and goes on.

        Raises
        ------
        ReadOnlyError, VolumeDamagedError: it is not to be written, or has stopped; nothing changed.
        """
        with self.lock:
            self._require_writable()
            try:
                yield
            except BaseException as error:  # an interrupt comes between any two steps
                self.stop(error)
                raise

    def note_given_up(self, n_blocks: int) -> None:
        """Note that of what the last CP has, so many places that no plane lists come free once two commits passed."""
        self.space.n_freed_open += n_blocks
        self.space.forget()
        self._n_forget = max(self._n_forget, 2)

    def stop(self, error: BaseException) -> None:
        """After an error that left a half nothing in memory can be trusted: refuse everything until opened again."""
        self._failure = self._failure or str(error) or type(error).__name__
        self.placer.discard()

    def relocate(self, placemap: PlaceMap) -> None:
        """Take up that blocks of the live state were copied in the open CP to where a place map says they lie.

        Nothing else is dirty; what held, marks and shadows know of them the caller has brought into line.
        """
        self.active.placemap = placemap
        root = StateRoot.decode(self.committed.root.encode())
        self._before = State(self._live_reader(lambda: placemap), root, self.committed.pointer, placemap)

    def exchange(self, state: State, parent_id: bytes) -> None:
        """Make a committed state the live one: rollback and receive move the state root, nothing else.

        The caller has brought what is dirty to disk, and rebuilds held and commits afterwards.
        """
        for name in ("inode_file", "blockmap", "checksums"):
            getattr(self.active, name).drop_cache()
        self.space.forget()
        root = StateRoot.decode(state.root.encode())
        live = ActiveState(
            self._live_reader(lambda: self.active.open_map()),
            root,
            state.pointer,
            state.placemap,
            self.placer,
            self.space,
            self._claim,
            self._claim_run,
            self.names,
        )
        self.names.reset()
        self.active, self._before, self._n_forget = live, state, 3
        self.is_replica = True
        self.local.set_active_map(state.placemap)
        self.local.set_parent(parent_id)
        self.local.is_dirty = True
        for client in self._clients:
            client.reload()

    @property
    def was_moved(self) -> bool:
        """Whether the disks are other files than at the last write: copied then, or put back from a copy.

        Another copy may have gone on from there, and has counted its consistency points from the same one: the next
        write starts a branch.
        """
        return self.local.root.disk_id not in (NO_ID, self.disk_id)

    def _note_disk(self) -> None:
        """Note of which file what is written is true."""
        root, disk_id = self.local.root, self.disk_id
        if root.disk_id != disk_id:
            root.disk_id, self.local.is_dirty = disk_id, True

    def _start_branch(self) -> None:
        """Add a branch to the live state's history: its CPs are no longer those of the line it came from."""
        root = self.active.root
        branch = Branch(os.urandom(16), root.branch_id, root.cp + 1, root.cp, time.time_ns())
        history = [*self.active.branches(), branch]
        write_all(self.active.branch_list, b"".join(entry.encode() for entry in history))
        root.branch_id = branch.id
        self.active.list_snapshots([e.record for e in self.local.ancestors(self.local.root.parent_id)])
        self.is_replica = False
