"""Holding the snapshots that an image brings against what came: each must be whole before anybody sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from blockplane.model.errors import SnapshotExistsError, StreamDamagedError
from blockplane.planes import Plane
from blockplane.volume.codec import BRANCH_BYTES, MAX_BRANCHES, NO_ID, ROOT_POINTERS, SnapshotRecord, TableEntry
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, Leaf, count, numbers_in
from blockplane.volume.lines import is_in_history
from blockplane.volume.placemap import MapExtents, PlaceMap, union
from blockplane.volume.readers import PlaceReader
from blockplane.volume.state import State, differing_leaves
from blockplane.volume.treeread import FETCH_BLOCKS, NODE_SHIFT
from blockplane.volume.waiting import plane_leaf

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume
    from blockplane.volume.local import LocalTree


class Arrivals:
    """The snapshots of an image that landed.

    Parameters
    ----------
    placemap : where the image's blocks lie. base : what it builds on here.
    """

    def __init__(self, volume: LiveVolume, image: Plane, base: TableEntry | None, placemap: PlaceMap) -> None:
        self._volume, self._image, self._base, self.placemap = volume, image, base, placemap
        self._candidate: PlaceMap | None = None
        #: by leaf: of the last state, the pointer to that leaf of its plane, and its part of the map
        self._cut: dict[int, tuple[tuple[int, int], MapExtents]] = {}

    def state(self, record: SnapshotRecord) -> State:
        """Return the state of a snapshot that came, its map cut to its plane; every block of it must be here."""
        volume = self._volume
        base = volume.snapshot_state(self._base) if self._base is not None else None
        candidate = self._all_moved(base)
        state = State.read(PlaceReader(volume.array, candidate), record.root, candidate)
        root = state.root
        if (root.space_id, root.branch_id, root.cp) != (record.space_id, record.branch_id, record.cp):
            raise StreamDamagedError(
                f"snapshot {record.name!r} is another state than its record says", hint="its sender is at fault"
            )
        self._require_whole(state, base, record)
        trimmed = candidate.of_leaves([self._part(candidate, state, leaf) for leaf in candidate.domain_leaves()])
        return State(PlaceReader(volume.array, trimmed), state.root, state.pointer, trimmed)

    def _all_moved(self, base: State | None) -> PlaceMap:
        """Return where blocks of the image, and those of the base that it leaves alone, lie when not at home."""
        if self._candidate is None:
            self._candidate = self.placemap
            if base is not None and not base.placemap.is_empty:
                self._candidate = union([_without_plane(base.placemap, self._image), self.placemap])
        return self._candidate

    def _part(self, candidate: PlaceMap, state: State, leaf: int) -> MapExtents:
        """Return the map of a state's blocks of a leaf; where the state before has the same leaf, that one's."""
        pointer = state.blockmap.pointer(0, leaf)
        known = self._cut.get(leaf)
        if known is None or known[0] != pointer:
            known = self._cut[leaf] = pointer, candidate.cut_leaf(leaf, state.plane_leaf(leaf))
        return known[1]

    def _require_whole(self, state: State, base: State | None, record: SnapshotRecord) -> None:
        """Hold a snapshot's plane against what came and its base; leaves that it shares with that are whole."""
        self._refuse_boundless(state, record)
        n_blocks = base.root.n_blocks if base is not None else 0
        leaves = differing_leaves([state, base]) if base is not None else list(state.leaf_numbers())
        for at, leaf in enumerate(leaves):
            if at % FETCH_BLOCKS == 0:
                for each in (state, base) if base is not None else (state,):
                    each.blockmap.fetch_blocks(leaves[at : at + FETCH_BLOCKS])
            words, there = state.plane_leaf(leaf), plane_leaf(self._image, leaf)
            if base is not None:
                there |= base.plane_leaf(leaf)
                n_blocks -= count(base.plane_leaf(leaf))
            if (words & ~there).any():
                missing = int(numbers_in(words & ~there, leaf * LEAF_BLOCKS)[0])
                raise StreamDamagedError(
                    f"snapshot {record.name!r} would not be whole: block {missing} is not in the stream or its base",
                    hint="fetch the stream again; if that does not help, its sender is at fault",
                )
            n_blocks += count(words)
        if n_blocks != record.n_blocks or state.root.n_blocks != n_blocks:
            raise StreamDamagedError(
                f"snapshot {record.name!r} holds {n_blocks} blocks, and its record says {record.n_blocks}",
                hint="its sender is at fault",
            )

    def _refuse_boundless(self, state: State, record: SnapshotRecord) -> None:
        """Refuse a blockmap whose size or depth is not the numbering's: walking it could take for ever."""
        n_leaves, depth = -(-self._image.n_blocks // LEAF_BLOCKS), 0
        while ROOT_POINTERS << (NODE_SHIFT * depth) < n_leaves:
            depth += 1
        if state.n_leaves > n_leaves or state.blockmap.root.depth > depth:
            raise StreamDamagedError(
                f"snapshot {record.name!r} has a blockmap of {state.n_leaves} leaves, and its numbering has {n_leaves}",
                hint="its sender is at fault",
            )


def not_there(local: LocalTree, arriving: Sequence[SnapshotRecord]) -> list[SnapshotRecord]:
    """Return those of the snapshots that arrive, the top last, which are not in a table yet; older first, the top last.

    Raises
    ------
    StreamDamagedError : the top is not the newest of its branch. SnapshotExistsError : the table has another of that
    name.
    """
    known = {entry.record.id for entry in local.entries()}
    *others, top = arriving
    line = [record.cp for record in others if (record.space_id, record.branch_id) == (top.space_id, top.branch_id)]
    if top.id in known or max(line, default=top.cp) > top.cp:
        raise StreamDamagedError("the stream's top is not its newest snapshot", hint="its sender is at fault")
    others.sort(key=lambda record: record.cp)
    new = [*(record for record in others if record.id not in known), top]
    _refuse_names(local, new)
    return new


def table_entries(
    on: TableEntry | None, base: State | None, records: Sequence[SnapshotRecord], states: Sequence[State]
) -> list[TableEntry]:
    """Return the entries of snapshots that arrived.

    Parameters
    ----------
    on, base : the snapshot here that the image builds on, and its state. records, states : of what arrived, older
        first, the top last.

    Raises
    ------
    StreamDamagedError : the top's history is longer than one can be.

    Notes
    -----
    The parent is the state a snapshot was built on here, not the one it had at the source: only so a line in the
    table is one in which a place that two snapshots hold is held by all between them. One older than the base has
    none, nor has one that the top does not descend from: what such a one lacks, those on either side of it may share.
    One that has a place which those before it gave up follows the base at once: the source shared what it had, or got
    the same bytes again.
    """
    top = states[-1]
    if top.branch_list.size_bytes > MAX_BRANCHES * BRANCH_BYTES:
        raise StreamDamagedError(
            f"snapshot {records[-1].name!r} has a history of {top.branch_list.size_bytes} bytes",
            hint="its sender is at fault",
        )
    history = top.branches()
    made: list[TableEntry] = []
    first = parent = on.record.id if on is not None else NO_ID
    line = _Line(base)
    for record, state in zip(records, states, strict=True):
        is_beside = not is_in_history(state.root, top.root, history) or (on is not None and record.cp < on.record.cp)
        if not is_beside and not line.goes_on(state):
            parent, line = first, _Line(base)
            line.goes_on(state)
        made.append(TableEntry(replace(record, parent_id=NO_ID if is_beside else parent)))
        parent = parent if is_beside else record.id
    return made


class _Line:
    """States of which each place that two have is one that all between them have; memory: what one gave up."""

    def __init__(self, first: State | None) -> None:
        self._last = first
        #: by leaf, the places that one of them had, and the last has not
        self._given_up: dict[int, Leaf] = {}

    def goes_on(self, state: State) -> bool:
        """Take a state for the next; False: it has a place that was given up, and this is of no use any more."""
        last, self._last = self._last, state
        if last is None:
            return True
        given_up: dict[int, Leaf] = {}
        for leaf in differing_leaves([last, state]):
            before, after, gone = last.place_leaf(leaf), state.place_leaf(leaf), self._given_up.get(leaf, EMPTY_LEAF)
            if (gone & after).any():
                return False
            given_up[leaf] = gone | (before & ~after)
        self._given_up |= given_up
        return True


def _refuse_names(local: LocalTree, new: Sequence[SnapshotRecord]) -> None:
    names = {entry.record.name for entry in local.entries()}
    images = {image.name for image in local.images.all()}
    pointers = local.replication().standing
    for record in new:
        if record.name in names:
            raise SnapshotExistsError(
                f"the image brings a snapshot named {record.name!r}, and another of that name is here",
                "rename the one that is here",
            )
        if record.name in images:
            raise SnapshotExistsError(
                f"the image brings a snapshot named {record.name!r}, and a stored image here is named so",
                "delete the image, and save it under another name",
            )
        if record.name in pointers:
            raise SnapshotExistsError(
                f"the image brings a snapshot named {record.name!r}, and a pointer here is named so",
                "delete the pointer",
            )
        names.add(record.name)


def _without_plane(placemap: PlaceMap, plane: Plane) -> PlaceMap:
    """Return a map less the VBNs of a plane."""
    return placemap.cut(lambda leaf: ~plane_leaf(plane, leaf))
