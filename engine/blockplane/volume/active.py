"""The live state: the trees that change, and what they ask of the volume when they do.

A block written in the open CP enters the blockmap, and its check the checksum file, as it is handed out and filled;
what the trees give up leaves the blockmap at once and becomes free two CPs later.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import fresh_checks
from blockplane.volume.codec import Pointer, SnapshotRecord, StateRoot, TreeRoot
from blockplane.volume.leafbits import LEAF_BLOCKS, Leaf, by_leaf, clear_numbers, leaf_pieces, set_numbers, set_range
from blockplane.volume.names import Names
from blockplane.volume.openmap import AddedNames, OpenMap
from blockplane.volume.placemap import PlaceMap, union
from blockplane.volume.placer import Block, Placer
from blockplane.volume.space import Space
from blockplane.volume.state import CHECKS_PER_LEAF, State, write_all
from blockplane.volume.tree import BlockTree
from blockplane.volume.treeio import BlockReader, Numbers


class StateWriter:
    """What the state's trees ask of the volume (volume/tree.py, BlockWriter); covered: their checks go to the file."""

    def __init__(self, active: ActiveState, covered: bool, is_metafile: bool) -> None:
        self._active = active
        self._covered = covered
        self._is_metafile = is_metafile

    def read_extents(self, extents: NDArray[np.int64], out: Block) -> None:
        """Read VBNs of the live state."""
        self._active.reader.read_extents(extents, out)

    def claim(self, n_blocks: int) -> None:
        """Reserve room for a dirty block of a file; metafiles draw on the reserve."""
        if not self._is_metafile:
            self._active.claim(n_blocks)

    def allocate_block(self) -> tuple[int, Block]:
        """Return a fresh VBN and its buffer."""
        place, _, buffer = self._active.placer.block()
        return int(self._active.name(place, 1, self._covered)[0]), buffer

    def allocate_run(self, n_blocks: int) -> list[tuple[Numbers, Block]]:
        """Return fresh VBNs and their buffers: for each run of places one."""
        self._active.claim_run(n_blocks)
        runs = self._active.placer.run(n_blocks)
        return [(self._active.name(first, count, self._covered), buffer) for first, count, buffer in runs]

    def filled(self, numbers: Numbers, checks: NDArray[np.uint32]) -> None:
        """Record checks; the bytes may go out."""
        if self._covered:
            self._active.record_checks(numbers, checks)
        self._active.placer.filled(self._active.place_of(int(numbers[0])), len(checks))

    def release(self, numbers: NDArray[np.int64]) -> None:
        """Take VBNs out of the plane."""
        self._active.leave(numbers)


class ActiveState(State):
    """The live state of a volume.

    Parameters
    ----------
    claim, claim_run : the volume's guards of free space. names : names what is new.
    """

    def __init__(
        self,
        reader: BlockReader,
        root: StateRoot,
        pointer: Pointer,
        placemap: PlaceMap,
        placer: Placer,
        space: Space,
        claim: Callable[[int], None],
        claim_run: Callable[[int], None],
        names: Names,
    ) -> None:
        super().__init__(reader, root, pointer, placemap)
        self.placer = placer
        self.space = space
        self.claim = claim
        self.claim_run = claim_run
        self.names = names
        self.is_dirty = False
        self._unmapped: list[NDArray[np.int64]] = []
        self._entered: set[int] = set()
        self._entered_places: set[int] = set()
        self._added = AddedNames()
        self._file_writer = StateWriter(self, covered=True, is_metafile=False)
        metafile = StateWriter(self, covered=True, is_metafile=True)
        self.inode_file = BlockTree(reader, root.inode_file, self._file_writer)
        self.blockmap = BlockTree(reader, root.blockmap, metafile)
        self.checksums = BlockTree(reader, root.checksums, StateWriter(self, covered=False, is_metafile=True))
        self.snapshot_list = BlockTree(reader, root.snapshots, metafile)
        self.branch_list = BlockTree(reader, root.branches, metafile)

    def tree(self, root: TreeRoot) -> BlockTree:
        """Return a writable tree of this state."""
        return BlockTree(self.reader, root, self._file_writer)

    # --- the plane ---------------------------------------------------------------------------------------------------

    def name(self, first: int, n_blocks: int, covered: bool) -> Numbers:
        """Name fresh blocks at places first, ..., and enter them; return their VBNs, in the order of the places."""
        vbns = self.names.choose(first, n_blocks)
        self._added.add(vbns, first)
        self._entered_places.update(range(first // LEAF_BLOCKS, (first + n_blocks - 1) // LEAF_BLOCKS + 1))
        if _is_run(vbns):
            self._enter(int(vbns[0]), n_blocks, covered)
        else:
            self._enter_many(np.sort(vbns), covered)
        return vbns

    def place_of(self, vbn: int) -> int:
        """Return the place of a VBN of the open CP."""
        return self._added.place_of(vbn)

    def open_map(self) -> PlaceMap | OpenMap:
        """Return the place map as it is now, what the open CP wrote included."""
        return self.placemap if self._added.is_empty else OpenMap(self.placemap, self._added.placemap())

    def place_leaf(self, leaf: int) -> Leaf:
        """Return which places of a leaf's range the state occupies, what the open CP wrote included."""
        if self._added.is_empty:
            return super().place_leaf(leaf)
        added = self._added.placemap()
        at_home = self.plane_leaf(leaf) & ~added.domain_leaf(leaf)
        return self.placemap.place_leaf(at_home, leaf) | added.range_leaf(leaf)

    def _enter(self, first: int, n_blocks: int, covered: bool) -> None:
        """Put fresh VBNs into the plane, and make room for their checks."""
        self.is_dirty = True
        self.root.n_blocks += n_blocks
        self._widen(first + n_blocks)
        for leaf, low, high in leaf_pieces(first, first + n_blocks):
            set_range(self.blockmap.edit_block(leaf).view(np.uint64), low, high)
            self._entered.add(leaf)
        if covered:
            for leaf in range(first // CHECKS_PER_LEAF, (first + n_blocks - 1) // CHECKS_PER_LEAF + 1):
                self.checksums.edit_block(leaf)

    def _enter_many(self, vbns: Numbers, covered: bool) -> None:
        """Put fresh VBNs, ascending, into the plane, and make room for their checks."""
        self.is_dirty = True
        self.root.n_blocks += len(vbns)
        self._widen(int(vbns[-1]) + 1)
        for leaf, low in by_leaf(vbns):
            set_numbers(self.blockmap.edit_block(leaf).view(np.uint64), low)
            self._entered.add(leaf)
        for leaf in np.unique(vbns // CHECKS_PER_LEAF).tolist() if covered else ():
            self.checksums.edit_block(leaf)

    def _widen(self, stop: int) -> None:
        """Let the numbering reach stop: a state from a smaller volume grows with its first write here."""
        if stop > self.space_blocks:
            self.blockmap.size_bytes = -(-stop // LEAF_BLOCKS) * BLOCK_BYTES
            self.checksums.size_bytes = -(-stop // CHECKS_PER_LEAF) * BLOCK_BYTES

    def leave(self, vbns: NDArray[np.int64]) -> None:
        """Take VBNs out of the plane; their places become free when no state needs them."""
        # first: what cannot be read is found before anything changes
        leaves = [(self.blockmap.edit_block(leaf).view(np.uint64), low) for leaf, low in by_leaf(vbns)]
        self.is_dirty = True
        self.root.n_blocks -= len(vbns)
        for words, low in leaves:
            clear_numbers(words, low)
        self.space.release(self.open_map().to_places(vbns))
        if not (self.placemap.is_empty and self._added.is_empty):
            self._unmapped.append(vbns)

    def record_checks(self, vbns: Numbers, checks: NDArray[np.uint32]) -> None:
        """Write checks of VBNs into the checksum file."""
        leaves = vbns // CHECKS_PER_LEAF
        if leaves[0] == leaves[-1] and _is_run(vbns):  # most: cheaper than to ask which leaves there are
            low = int(vbns[0]) % CHECKS_PER_LEAF
            self.checksums.edit_block(int(leaves[0])).view(np.uint32)[low : low + len(vbns)] = checks
            return
        for leaf in np.unique(leaves).tolist():
            mine = leaves == leaf
            self.checksums.edit_block(leaf).view(np.uint32)[vbns[mine] % CHECKS_PER_LEAF] = checks[mine]

    def take_entered(self) -> list[int]:
        """Return the leaves of the plane that blocks were written in since the last call."""
        leaves, self._entered = sorted(self._entered), set()
        return leaves

    def take_entered_places(self) -> list[int]:
        """Return the leaves of places that blocks were written in since the last call."""
        leaves, self._entered_places = sorted(self._entered_places), set()
        return leaves

    def settle_map(self) -> None:
        """Bring the place map up to date with what the open CP wrote and gave up."""
        placemap = self.placemap
        if not self._added.is_empty:
            placemap = union([placemap, self._added.placemap()])
        if self._unmapped:
            placemap = placemap.without(np.unique(np.concatenate(self._unmapped)))
            self._unmapped = []
        self.placemap = placemap
        self._added = AddedNames()  # last: who reads meanwhile finds a block in the one or the other

    # --- lists -------------------------------------------------------------------------------------------------------

    def list_snapshots(self, records: list[SnapshotRecord]) -> None:
        """Replace the list of snapshots that travels with the state."""
        write_all(self.snapshot_list, b"".join(record.encode() for record in records))
        self.is_dirty = True

    # --- commit ------------------------------------------------------------------------------------------------------

    def commit(self, now_ns: int) -> Pointer:
        """Place and finish everything dirty, bottom-up, and return the pointer to the new state root.

        Placing a block of the blockmap or the checksum file dirties both, so placing goes round until nothing is added.
        """
        if self.pointer.exists:
            self.leave(np.array([self.pointer.number], np.int64))
        self.root.cp += 1
        self.root.committed_ns = now_ns
        plain = (self.inode_file, self.snapshot_list, self.branch_list)
        for tree in plain:
            tree.place()
        place, _, slot = self.placer.block()
        vbn = int(self.name(place, 1, covered=False)[0])
        while self.blockmap.place() + self.checksums.place():
            pass
        for tree in (*plain, self.blockmap, self.checksums):
            tree.finish()
        slot[:] = np.frombuffer(self.root.encode(), np.uint8)
        check = fresh_checks(slot, vbn)
        self.placer.filled(place, 1)
        self.pointer = Pointer(vbn, int(check[0]))
        self.is_dirty = False
        return self.pointer


def _is_run(vbns: Numbers) -> bool:
    """Whether VBNs, all distinct, follow each other."""
    return len(vbns) == 1 or bool((np.diff(vbns) == 1).all())


def blank_root(space_blocks: int, space_id: bytes, branch_id: bytes) -> StateRoot:
    """Return the root of a state that holds nothing, over a numbering of space_blocks."""
    root = StateRoot(space_id=space_id, branch_id=branch_id)
    root.blockmap.size_bytes = -(-space_blocks // LEAF_BLOCKS) * BLOCK_BYTES
    root.checksums.size_bytes = -(-space_blocks // CHECKS_PER_LEAF) * BLOCK_BYTES
    return root
