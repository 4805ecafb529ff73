"""Checking a volume's structure: every tree walked, every checksum compared, every plane held against what is
reachable.

Reads through the same doors as everything else, and trusts no field: a bad block is a problem in the list, not an
exception. What inodes and directories mean is `filesystem.check`'s.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockplane.model.errors import BlockplaneError
from blockplane.volume.checkwalk import MAX_PROBLEMS, CheckReport, Reach, Walker
from blockplane.volume.codec import (
    FORM_TREE,
    KIND_REGULAR,
    ROOT_POINTERS,
    TREE_ROOT_BYTES,
    TreeRoot,
)
from blockplane.volume.copies import bad_labels, bad_records
from blockplane.volume.held import union_leaf
from blockplane.volume.incoming import IncomingImage, leaves_of
from blockplane.volume.leafbits import EMPTY_LEAF, LEAF_BLOCKS, Leaf, by_leaf, count, numbers_in, set_numbers
from blockplane.volume.live import LiveVolume
from blockplane.volume.liveparity import LiveParity
from blockplane.volume.positions import problems as mark_problems
from blockplane.volume.shadows import LOCAL_FLAG
from blockplane.volume.state import State

__all__ = ["MAX_PROBLEMS", "CheckReport", "check"]

INODE_BYTES = 512


def check(volume: LiveVolume, parity: bool = True, step: Callable[[], None] = lambda: None) -> CheckReport:
    """Check the last CP of a volume, its snapshots, its local tree, and the parity of every stripe with a live block.

    Parameters
    ----------
    step : called between reads; may raise.

    Notes
    -----
    Reads every block that anything refers to. Memory: batches, and a bit a block for what a state reaches, one state at
    a time, for its plane, and for all that was verified.
    """
    report = CheckReport(step=step)
    for left in volume.recovery.left:
        report.add(left)
    with volume.lock:
        if volume.writable:
            volume.commit()
        disks = list(volume.array.disks)
        records = bad_records(disks, volume.info, is_settled=volume.writable)
        for problem in (*bad_labels(disks), *records, *volume.damage):
            report.add(problem)
        n_copies = len(report.problems)
        verified: dict[int, Leaf] = {}
        for name, state in _states(volume, report):
            _check_state(state, name, report, verified)
        for part in _comparable(volume):
            try:
                part(volume, report)
            except BlockplaneError as error:  # a bad block that planes are compared by: the walks above named it
                report.add(f"the planes cannot be compared: {error}")
        if parity and not (volume.damage or volume.recovery.left) and len(report.problems) == n_copies:
            _check_parity(volume, report)
    return report


def _comparable(volume: LiveVolume) -> tuple[Callable[[LiveVolume, CheckReport], None], ...]:
    """Return what can be held against each other: without its root a tree says nothing about the others."""
    if not volume.knows_local:
        return ()
    parts = (_check_local, _check_pointers)
    return (*parts, _check_held, _check_marks) if volume.knows_live else parts


def _states(volume: LiveVolume, report: CheckReport) -> list[tuple[str, State]]:
    """Return the live state and those of snapshots, with their names; one whose root cannot be read is a problem."""
    found = [("the live file system", volume.committed)] if volume.knows_live else []
    try:
        entries = volume.local.entries()
    except BlockplaneError as error:
        report.add(f"the snapshot table cannot be read: {error}")
        return found
    for entry in entries:
        if entry.is_shadow:
            continue
        name = f"snapshot {entry.record.name!r}"
        try:
            found.append((name, volume.snapshot_state(entry)))
        except BlockplaneError as error:
            report.add(f"{name}: its root cannot be read: {error}")
    return found


def _check_state(state: State, name: str, report: CheckReport, verified: dict[int, Leaf]) -> None:
    """Walk one state; verified: places whose bytes were compared already, and are right, in leaves, added to."""

    def skip(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        places = state.placemap.to_places(numbers)
        return np.array([bits_at(verified.get(leaf), low).all() for leaf, low in by_leaf(places)])

    report.n_states += 1
    walker = Walker(
        state.reader, state.space_blocks, name, report, skip if verified else lambda n: np.zeros(len(n), np.bool_)
    )
    root, walker.recorded = state.root, state.checks
    walker.tree(root.inode_file, "the inode file", lambda blocks: _check_inodes(blocks, walker))
    walker.tree(root.snapshots, "the snapshot list")
    walker.tree(root.branches, "the branch history")
    walker.tree(root.blockmap, "the blockmap")
    walker.recorded = None  # the checks of its own blocks, and of the root, are in the pointers alone
    walker.tree(root.checksums, "the checksum file")
    walker.root(state.pointer)
    _check_plane(state, walker.reach.leaves, name, report)
    for leaf, words in walker.reach.leaves.items():
        good = words & ~walker.bad.get(leaf, EMPTY_LEAF)  # other states that have a bad one say so too
        for at, low in by_leaf(state.placemap.to_places(numbers_in(good, leaf * LEAF_BLOCKS))):
            set_numbers(verified.setdefault(at, np.zeros(LEAF_BLOCKS // 64, np.uint64)), low)


def bits_at(words: Leaf | None, low: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the bits of numbers within a leaf; a leaf that is not there has none."""
    if words is None:
        return np.zeros(len(low), np.bool_)
    bits: NDArray[np.bool_] = (words[low >> 6] >> (low & 63).astype(np.uint64)) & np.uint64(1) != 0
    return bits


def _check_inodes(blocks: NDArray[np.uint8], walker: Walker) -> None:
    """Walk the trees of the inodes in blocks of the inode file; roots of depth 0 together, since most are."""
    records = blocks.reshape(-1, INODE_BYTES)
    trees = records[records[:, 0] == FORM_TREE]
    flat = trees[trees[:, 1] == 0]
    if len(flat):
        pointers = np.ascontiguousarray(flat[:, TREE_ROOT_BYTES - ROOT_POINTERS * 16 : TREE_ROOT_BYTES])
        walker.pointers(pointers.view(np.uint64).reshape(-1, 2), 0, "a file")
    for record in trees[trees[:, 1] != 0]:
        try:
            walker.tree(TreeRoot.decode(record[:TREE_ROOT_BYTES].tobytes()), "a file")
        except BlockplaneError as error:
            walker.report.add(f"{walker.name}: an inode is damaged: {error}")


def _check_plane(state: State, reached: dict[int, Leaf], name: str, report: CheckReport) -> None:
    """Hold the blockmap against what was reached."""
    try:
        planes = dict(state.leaves())
    except BlockplaneError as error:
        report.add(f"{name}: the blockmap cannot be read: {error}")
        return
    n_blocks = sum(count(words) for words in planes.values())
    if n_blocks != state.root.n_blocks:
        report.add(f"{name}: its plane holds {n_blocks} blocks, its root says {state.root.n_blocks}")
    _compare(planes, reached, name, "in its plane and not reachable", "reachable and not in its plane", report)


def _compare(
    planes: dict[int, Leaf],
    reached: dict[int, Leaf],
    name: str,
    only_plane: str,
    only_reached: str,
    report: CheckReport,
) -> None:
    empty = np.zeros(LEAF_BLOCKS // 64, np.uint64)
    for leaf in sorted({*planes, *reached}):
        a, b = planes.get(leaf, empty), reached.get(leaf, empty)
        for words, what in ((a & ~b, only_plane), (b & ~a, only_reached)):
            if words.any():
                numbers = numbers_in(words, leaf * LEAF_BLOCKS)
                report.add(f"{name}: {len(numbers)} blocks are {what}, the first {int(numbers[0])}")


def local_reach(volume: LiveVolume, report: CheckReport) -> dict[int, Leaf]:
    """Walk the local tree of the last CP; return the places it consists of, in leaves."""
    local, name = volume.committed_local, "the local tree"
    walker = Walker(volume.place_reader(), volume.geometry.n_blocks, name, report, lambda n: np.zeros(len(n), np.bool_))
    walker.root(volume.info.local)
    whats = (
        "table", "held plane", "local plane", "place map", "marks", "incoming", "holds", "replication",
        "shadowed plane", "destinations", "stored images",
    )  # fmt: skip
    for tree, what in zip(local.root.trees(), whats, strict=True):
        walker.tree(tree, f"the {what}")
    for entry in local.entries():
        walker.tree(entry.place_map, f"the place map of {entry.record.name!r}")
    for plane in local.plane_trees():
        walker.tree(plane.root, "marks and stored planes")
    for image in local.incoming.images():
        for part in image.trees:
            walker.tree(part.root, f"what is incoming of {image.entry.top_name!r}")
        _check_incoming(volume, image, report)
    _check_shadows(volume, walker.reach, report)
    return walker.reach.leaves


def _check_local(volume: LiveVolume, report: CheckReport) -> None:
    """Hold the local plane against the local tree."""
    local, name = volume.committed_local, "the local tree"
    reached = local_reach(volume, report)
    planes = _leaves_of(local.local_leaf, volume.geometry.n_blocks)
    _compare(
        planes,
        reached,
        name,
        "in the local plane and not reachable",
        "reachable and not in the local plane",
        report,
    )
    n_local = sum(count(words) for words in planes.values())
    if n_local != local.root.n_local:
        report.add(f"{name}: the local plane holds {n_local} places, its root says {local.root.n_local}")


def _check_incoming(volume: LiveVolume, image: IncomingImage, report: CheckReport) -> None:
    """Count what an interrupted receive has reserved and brought, and hold it against what anything else has."""
    name, n_reserved, n_landed = f"what is incoming of {image.entry.top_name!r}", 0, 0
    landed = dict(leaves_of(image.landed))
    for leaf, words in leaves_of(image.places):
        mine = landed.pop(leaf, EMPTY_LEAF)
        n_reserved, n_landed = n_reserved + count(words), n_landed + count(mine & words)
        if (words & volume.live_leaf(leaf)).any():
            place = int(numbers_in(words & volume.live_leaf(leaf), leaf * LEAF_BLOCKS)[0])
            report.add(f"{name}: place {place} is reserved for it, and in use")
        if (mine & ~words).any():
            report.add(f"{name}: blocks landed where nothing is reserved, in leaf {leaf}")
    if landed:
        report.add(f"{name}: blocks landed where nothing is reserved, in leaf {min(landed)}")
    if (n_reserved, n_landed) != (image.entry.n_image, image.entry.n_landed):
        report.add(
            f"{name}: {n_reserved} places are reserved and {n_landed} landed, its entry says "
            f"{image.entry.n_image} and {image.entry.n_landed}"
        )


def _check_shadows(volume: LiveVolume, reach: Reach, report: CheckReport) -> None:
    """Walk the planes of shadows, count their bits, and hold the shadowed plane against what of them lies in states."""
    local = volume.committed_local
    reached: dict[int, Leaf] = {}
    for plane in local.shadows.planes():
        name = f"shadow {plane.entry.record.name!r}"
        walker = Walker(plane.reader, 2 * LOCAL_FLAG, name, report, lambda n: np.zeros(len(n), np.bool_))
        walker.tree(plane.blockmap.root, "its plane")
        for at, words in walker.reach.leaves.items():
            numbers = numbers_in(words, at * LEAF_BLOCKS)
            reach.enter(numbers[numbers >= LOCAL_FLAG] - LOCAL_FLAG, name)
            for leaf, low in by_leaf(plane.placemap.to_places(numbers[numbers < LOCAL_FLAG])):
                set_numbers(reached.setdefault(leaf, np.zeros(LEAF_BLOCKS // 64, np.uint64)), low)
        n_left = sum(count(words) for _, words in plane.leaves())
        if n_left != plane.n_left:
            report.add(f"{name}: its plane holds {n_left} blocks, its entry says {plane.n_left}")
    planes = _leaves_of(local.shadowed_leaf, volume.geometry.n_blocks)
    _compare(planes, reached, "shadows", "shadowed and in no shadow's plane", "in a plane and not shadowed", report)


def _check_pointers(volume: LiveVolume, report: CheckReport) -> None:
    """See that every pointer stands at a snapshot that holds its blocks."""
    local = volume.committed_local
    kinds = {entry.record.id: entry.record.kind for entry in local.entries()}
    for name, snapshot_id in local.replication().standing.items():
        if kinds.get(snapshot_id) != KIND_REGULAR:
            what = "a snapshot that is gone" if snapshot_id not in kinds else "one that does not hold its blocks"
            report.add(f"the pointer {name!r} stands at {what}")


def _check_marks(volume: LiveVolume, report: CheckReport) -> None:
    """Hold the marks against subtraction."""
    for problem in mark_problems(volume):
        report.add(problem)


def _leaves_of(leaf_of: Callable[[int], Leaf], n_blocks: int) -> dict[int, Leaf]:
    n_leaves = -(-n_blocks // LEAF_BLOCKS)
    found = ((leaf, leaf_of(leaf)) for leaf in range(n_leaves))
    return {leaf: words for leaf, words in found if words.any()}


def _check_held(volume: LiveVolume, report: CheckReport) -> None:
    """Hold the held plane against the snapshots' planes, and see that no place has two owners."""
    local = volume.committed_local
    states = volume.snapshot_states()
    n_held = 0
    for leaf in range(-(-volume.geometry.n_blocks // LEAF_BLOCKS)):
        live, held = volume.committed.place_leaf(leaf), local.held_leaf(leaf)
        expected = (union_leaf(states, leaf) | local.shadowed_leaf(leaf)) & ~live
        n_held += count(held)
        for words, what in (
            (held & ~expected, "held and in no snapshot"),
            (expected & ~held, "in a snapshot and not held"),
        ):
            if words.any():
                report.add(
                    f"{count(words)} places are {what}, the first {int(numbers_in(words, leaf * LEAF_BLOCKS)[0])}"
                )
        shared = local.local_leaf(leaf) & (live | held)
        if shared.any():
            report.add(f"place {int(numbers_in(shared, leaf * LEAF_BLOCKS)[0])} is the local tree's and a state's")
    if n_held != local.root.n_held:
        report.add(f"the held plane has {n_held} places, the local root says {local.root.n_held}")
    for name, state in _states(volume, report):
        _check_map(state, name, report)


def _check_map(state: State, name: str, report: CheckReport) -> None:
    placemap = state.placemap
    places = np.sort(placemap.extents[:, 2:3] + [0, 1] * (placemap.extents[:, 1:2] - placemap.extents[:, 0:1]), axis=0)
    if (places[1:, 0] < places[:-1, 1]).any():
        report.add(f"{name}: its place map sends two blocks to one place")
    if placemap.cut(state.plane_leaf) is not placemap:
        report.add(f"{name}: its place map names blocks it does not hold")
    for leaf in placemap.leaves():
        at_home = EMPTY_LEAF if leaf >= state.n_leaves else state.plane_leaf(leaf) & ~placemap.domain_leaf(leaf)
        if (at_home & placemap.range_leaf(leaf)).any():
            report.add(f"{name}: its place map sends blocks to where others are at home")
            return


def _check_parity(volume: LiveVolume, report: CheckReport) -> None:
    """Recompute the parity of every stripe that holds a live block."""
    parity = LiveParity(volume, report.step)
    for group, dbn in parity.wrong():
        report.add(f"the parity of stripe {dbn} of group {group} is not that of its members")
    report.n_stripes, report.n_unsettled = parity.n_stripes, parity.n_unsettled
