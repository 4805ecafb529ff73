"""The local tree: the snapshot table, the held, local and shadowed planes and place maps of this set of disks.

Never sent, never rolled back. Its numbers are places, and every check stands in the pointer to the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from blockplane.model.checks import fresh_checks
from blockplane.model.errors import NoSuchSnapshotError, VolumeDamagedError
from blockplane.volume.codec import ENTRY_BYTES, HOLD_BYTES, Hold, LocalRoot, Pointer, TableEntry, TreeRoot
from blockplane.volume.imagetable import ImageTable
from blockplane.volume.incoming import Incoming
from blockplane.volume.leafbits import LEAF_BLOCKS, Leaf, bits_of, by_leaf, clear_numbers, count, set_numbers, set_range
from blockplane.volume.markcodec import DESTINATION_BYTES, DestinationRecord
from blockplane.volume.marks import Marks
from blockplane.volume.mirrorcodec import MIRROR
from blockplane.volume.placemap import EXTENT_BYTES, PlaceMap
from blockplane.volume.placer import Block, Placer
from blockplane.volume.replicationcodec import REPLICATION_BYTES, Replication
from blockplane.volume.shadows import Shadows
from blockplane.volume.state import read_all, write_all
from blockplane.volume.tree import BlockTree, touched
from blockplane.volume.treeio import BlockReader


class LocalTree:
    """The local tree of the open CP, or of a committed one where it has no placer.

    Attributes
    ----------
    root : the decoded local root.
    is_dirty : whether the open CP must write it.
    shadows : the planes of shadow snapshots. incoming : images that receives have not finished.
    marks : what entered and left, by intervals. images : stored images.
    """

    def __init__(self, reader: BlockReader, root: LocalRoot, placer: Placer | None = None,
                 release: Callable[[NDArray[np.int64]], None] | None = None) -> None:  # fmt: skip
        self.root = root
        self._reader = reader
        self._placer = placer
        self._release = release
        writer = self if placer is not None else None
        self.table = BlockTree(reader, root.table, writer)
        self.held = BlockTree(reader, root.held, writer)
        self.local = BlockTree(reader, root.local, writer)
        self._map_tree = BlockTree(reader, root.place_map, writer)
        self._holds = BlockTree(reader, root.holds, writer)
        self._shadowed = BlockTree(reader, root.shadowed, writer)
        self._marks = BlockTree(reader, root.marks, writer)
        self._destinations = BlockTree(reader, root.destinations, writer)
        self._images = BlockTree(reader, root.images, writer)
        self._replication = BlockTree(reader, root.replication, writer)
        self.shadows = Shadows(self, reader, writes=placer is not None)
        self.marks = Marks(self._marks, reader, writer, self._note)
        self.images = ImageTable(self._images, reader, writer, self._note)
        self.incoming = Incoming(self, reader, writes=placer is not None)
        self._entries: list[TableEntry] | None = None
        self._entries_changed = False
        self._old_maps: list[BlockTree] = []
        self._new_maps: dict[int, PlaceMap] = {}
        self._active_map: PlaceMap | None = None
        self.is_dirty = False

    # --- reading -----------------------------------------------------------------------------------------------------

    def entries(self) -> list[TableEntry]:
        """Return the snapshot table, older first."""
        if self._entries is None:
            data = read_all(self.table, ENTRY_BYTES)
            if len(data) != self.root.n_entries * ENTRY_BYTES:
                n_found, n_said = len(data) // ENTRY_BYTES, self.root.n_entries
                raise VolumeDamagedError(
                    f"the snapshot table has {n_found} entries, and its root says {n_said}", "run `blockplane check`"
                )
            self._entries = [
                TableEntry.decode(data[at : at + ENTRY_BYTES])
                for at in range(0, self.root.n_entries * ENTRY_BYTES, ENTRY_BYTES)
            ]
        return self._entries

    def regular(self) -> list[TableEntry]:
        """Return the entries that hold their blocks, older first: all but shadows."""
        return [entry for entry in self.entries() if not entry.is_shadow]

    def ancestors(self, snapshot_id: bytes) -> list[TableEntry]:
        """Return a snapshot and those it descends from, older first."""
        by_id = {entry.record.id: entry for entry in self.entries()}
        chain: list[TableEntry] = []
        while (entry := by_id.pop(snapshot_id, None)) is not None:
            chain.append(entry)
            snapshot_id = entry.record.parent_id
        return chain[::-1]

    def entry(self, name: str) -> TableEntry:
        """Return a snapshot's entry by its name, or by that of a pointer that stands at it.

        Raises
        ------
        NoSuchSnapshotError: there is none of that name.
        """
        for entry in self.entries():
            if entry.record.name == name:
                return entry
        if (pointed := self.replication().standing.get(name)) is not None:
            return self._pointed(name, pointed)
        names = ", ".join(entry.record.name for entry in self.entries()[-8:])
        raise NoSuchSnapshotError(
            f"no snapshot is named {name!r}", f"there are: {names}" if names else "there are none yet"
        )

    def _pointed(self, name: str, snapshot_id: bytes) -> TableEntry:
        """Return the entry at which a pointer stands."""
        for entry in self.entries():
            if entry.record.id == snapshot_id:
                return entry
        raise NoSuchSnapshotError(
            f"the pointer {name} stands at a snapshot that is gone", "move it to another one, or delete it"
        )

    def map_of(self, root: TreeRoot) -> PlaceMap:
        """Return the place map that a tree root holds."""
        return PlaceMap.decode(read_all(BlockTree(self._reader, root), EXTENT_BYTES)) if root.size_bytes else PlaceMap()

    def active_map(self) -> PlaceMap:
        """Return the active state's place map."""
        if self._active_map is None:
            self._active_map = self.map_of(self.root.place_map)
        return self._active_map

    def plane_trees(self) -> list[BlockTree]:
        """Return the planes of marked intervals and of stored images."""
        return [*self.marks.trees(), *self.images.trees()]

    @property
    def trees(self) -> tuple[BlockTree, ...]:
        """The trees that stand in the local root."""
        return (
            self.table, self.held, self._map_tree, self._holds, self._shadowed, self.incoming.table, self._marks,
            self._destinations, self._images, self._replication, self.local,
        )  # fmt: skip

    def entry_maps(self) -> list[BlockTree]:
        """Return the place maps of snapshots as trees."""
        return [BlockTree(self._reader, entry.place_map) for entry in self.entries() if entry.place_map.size_bytes]

    def held_leaf(self, leaf: int) -> Leaf:
        """Return which places regular snapshots hold and active does not; do not write to it."""
        return self.held.read_block(leaf).view(np.uint64)

    def local_leaf(self, leaf: int) -> Leaf:
        """Return which places the local tree occupies; do not write to it."""
        return self.local.read_block(leaf).view(np.uint64)

    def shadowed_leaf(self, leaf: int) -> Leaf:
        """Return which places hold blocks of shadows' planes in what was a state; do not write to it."""
        return self._shadowed.read_block(leaf).view(np.uint64)

    def shadowed_extents(self) -> list[list[int]]:
        """Return the leaves of the shadowed plane that exist, as ranges."""
        found: list[list[int]] = self._shadowed.data_extents().tolist()
        return found

    def holds(self) -> list[Hold]:
        """Return the holds on snapshots, older first, those that expired included."""
        data = read_all(self._holds, HOLD_BYTES)
        return [Hold.decode(data[at : at + HOLD_BYTES]) for at in range(0, len(data), HOLD_BYTES)]

    def destinations(self) -> list[DestinationRecord]:
        """Return where destinations stand, in the order they were first named."""
        data = read_all(self._destinations, DESTINATION_BYTES)
        return [
            DestinationRecord.decode(data[at : at + DESTINATION_BYTES]) for at in range(0, len(data), DESTINATION_BYTES)
        ]

    def replication(self) -> Replication:
        """Return pointers, known replicas and how long they are waited for."""
        if not self._replication.size_bytes:
            return Replication()
        return Replication.decode(read_all(self._replication, REPLICATION_BYTES))

    # --- changing ----------------------------------------------------------------------------------------------------

    def _note(self) -> None:
        self.is_dirty = True

    def set_destinations(self, destinations: list[DestinationRecord]) -> None:
        """Replace the table of destinations."""
        write_all(self._destinations, b"".join(destination.encode() for destination in destinations))
        self.is_dirty = True

    def set_replication(self, table: Replication) -> None:
        """Replace pointers and known replicas."""
        write_all(self._replication, table.encode())
        self.is_dirty = True

    def set_holds(self, holds: list[Hold]) -> None:
        """Replace the holds; those on snapshots that are gone are left out."""
        known = {entry.record.id for entry in self.entries()}
        write_all(self._holds, b"".join(hold.encode() for hold in holds if hold.snapshot_id in known))
        self.is_dirty = True

    def set_shadowed_leaf(self, leaf: int, words: Leaf) -> None:
        """Replace a leaf of the shadowed plane."""
        self._shadowed.edit_block(leaf).view(np.uint64)[:] = words
        self.is_dirty = True

    def set_held_leaf(self, leaf: int, words: Leaf) -> None:
        """Replace a leaf of the held plane."""
        old = self.held_leaf(leaf)
        if not np.array_equal(old, words):
            self.root.n_held += count(words) - count(old)
            self.held.edit_block(leaf).view(np.uint64)[:] = words
            self.is_dirty = True

    def set_held(self, leaves: Iterable[tuple[int, Leaf]]) -> None:
        """Replace leaves of the held plane."""
        for leaf, words in leaves:
            self.set_held_leaf(leaf, words)

    def set_entries(self, entries: list[TableEntry]) -> None:
        """Replace the snapshot table; maps of entries that are gone are given up."""
        kept = {id(entry) for entry in entries}
        for entry in self.entries():
            if id(entry) not in kept and entry.place_map.size_bytes:
                self._old_maps.append(BlockTree(self._reader, entry.place_map, self))
        self._entries = entries
        self._entries_changed = self.is_dirty = True

    def rewrite_entries(self) -> None:
        """Note that an entry changed."""
        self._entries_changed = self.is_dirty = True

    def set_map(self, entry: TableEntry, placemap: PlaceMap) -> None:
        """Give a snapshot that is new in the table its place map."""
        if not placemap.is_empty:
            self._new_maps[id(entry)] = placemap
            self.is_dirty = True

    def replace_map(self, entry: TableEntry, placemap: PlaceMap) -> None:
        """Give an entry of the table another place map: its blocks moved."""
        tree = BlockTree(self._reader, entry.place_map, self)
        write_all(tree, placemap.encode())
        tree.flush()
        self.rewrite_entries()

    def move_held(self, old: NDArray[np.int64], new: NDArray[np.int64]) -> None:
        """Note that blocks moved from places to others: those that are held, or shadowed, are so there."""
        for leaf_of, set_leaf in (
            (self.held_leaf, self.set_held_leaf), (self.shadowed_leaf, self.set_shadowed_leaf)
        ):  # fmt: skip
            moved = bits_of(leaf_of, old)
            for leaf, low in by_leaf(old[moved]):
                words = leaf_of(leaf).copy()
                clear_numbers(words, low)
                set_leaf(leaf, words)
            for leaf, low in by_leaf(new[moved]):
                words = leaf_of(leaf).copy()
                set_numbers(words, low)
                set_leaf(leaf, words)

    def touch_within(self, start: int, stop: int, most: int) -> int:
        """Have blocks of this tree that lie at places of a range placed anew, at most so many; return how many."""
        n_touched = 0
        for entry in self.entries():
            if entry.place_map.size_bytes and n_touched < most:
                tree = BlockTree(self._reader, entry.place_map, self)
                n_touched += touched(tree, start, stop, most - n_touched, self.rewrite_entries)
        n_touched += self.shadows.touch_within(start, stop, most - n_touched)
        n_touched += self.marks.touch_within(start, stop, most - n_touched)
        n_touched += self.images.touch_within(start, stop, most - n_touched)
        for tree in self.trees:
            n_touched += tree.touch_within(start, stop, most - n_touched)
        self.is_dirty = self.is_dirty or n_touched > 0
        return n_touched

    def forget_leaves(self, start: int, stop: int) -> None:
        """Make leaves of the planes of places holes: there are no such places any more, and nothing was there."""
        for tree in (self.held, self._shadowed, self.local):
            tree.punch(start, stop)
        self.is_dirty = True

    def set_active_map(self, placemap: PlaceMap) -> None:
        """Replace the active state's place map."""
        if placemap != self.active_map():
            self._active_map = placemap
            write_all(self._map_tree, placemap.encode())
            self.is_dirty = True

    def set_parent(self, snapshot_id: bytes) -> None:
        """Note which snapshot the active state descends from."""
        if self.root.parent_id != snapshot_id:
            self.root.parent_id = snapshot_id
            self.is_dirty = True

    def note_brought(self, snapshot_id: bytes) -> None:
        """Note which snapshot was brought last, where this is a mirror."""
        if self.root.mirror is not None and self.root.mirror.state == MIRROR:
            self.root.brought_id = snapshot_id
            self.is_dirty = True

    def _store_entries(self) -> None:
        entries = self.entries()
        for old in self._old_maps:
            old.punch(0, old.capacity_blocks())
        self._old_maps = []
        for entry in entries:
            placemap = self._new_maps.pop(id(entry), None)
            if placemap is not None:
                entry.place_map = TreeRoot()
                tree = BlockTree(self._reader, entry.place_map, self)
                write_all(tree, placemap.encode())
                tree.flush()
        write_all(self.table, b"".join(entry.encode() for entry in entries))
        self.root.n_entries = len(entries)
        self.root.n_deleting = sum(entry.is_deleting for entry in entries)
        self._entries_changed = False

    # --- commit ------------------------------------------------------------------------------------------------------

    def commit(self, previous: Pointer) -> Pointer:
        """Write what changed and return the pointer to the new local root; previous is the old one's."""
        self.marks.store()
        if self._entries_changed:
            self._store_entries()
        self.incoming.store()
        if previous.exists:
            self.release(np.array([previous.number], np.int64))
        place, slot = self.allocate_block()
        trees = self.trees
        while sum(tree.place() for tree in trees):
            pass
        for tree in trees:
            tree.finish()
        slot[:] = np.frombuffer(self.root.encode(), np.uint8)
        check = fresh_checks(slot, place)
        self.filled(np.array([place], np.int64), check)
        self.is_dirty = False
        return Pointer(place, int(check[0]))

    # --- what the local trees ask (volume/tree.py, BlockWriter) ------------------------------------------------------

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Read places."""
        self._reader.read_extents(extents, out)

    def claim(self, n_blocks: int) -> None:
        """Take from the reserve: the local tree is what it is for."""

    def allocate_block(self) -> tuple[int, Block]:
        """Return a place at the far end of the volume."""
        assert self._placer is not None
        place, _, buffer = self._placer.local_block()
        leaf, low = divmod(place, LEAF_BLOCKS)
        set_range(self.local.edit_block(leaf).view(np.uint64), low, low + 1)
        self.root.n_local += 1
        self.is_dirty = True
        return place, buffer

    def allocate_run(self, n_blocks: int) -> list[tuple[NDArray[np.int64], Block]]:
        """Return places one by one: what is long in the local tree is still small."""
        found = (self.allocate_block() for _ in range(n_blocks))
        return [(np.array([place], np.int64), buffer) for place, buffer in found]

    def filled(self, numbers: NDArray[np.int64], checks: NDArray[np.uint32]) -> None:
        """Pass on that buffers are full."""
        assert self._placer is not None
        self._placer.filled(int(numbers[0]), len(checks))

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Give up places."""
        assert self._release is not None
        for leaf, low in by_leaf(numbers):
            clear_numbers(self.local.edit_block(leaf).view(np.uint64), low)
        self.root.n_local -= len(numbers)
        self._release(numbers)
