"""Which file or metafile of a state a block belongs to, and which blocks a file has.

Nothing on disk leads from a block to its owner: the trees are searched, many at a time. Data is not read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from blockplane.disks import aligned_buffer
from blockplane.filesystem.blockread import read_pointers
from blockplane.filesystem.errors import damaged
from blockplane.filesystem.inode import (
    FLAG_ATTRIBUTES,
    INODE_BYTES,
    INODES_PER_BLOCK,
    MODE_OFFSET,
    ROOT_INODE,
    Inode,
)
from blockplane.filesystem.names import path_text
from blockplane.filesystem.records import Records
from blockplane.filesystem.whereabouts import Whereabouts
from blockplane.model import BLOCK_BYTES
from blockplane.planes import Plane
from blockplane.volume.codec import (
    FORM_TREE,
    MAX_DEPTH,
    NODE_POINTERS,
    NUMBER_MASK,
    ROOT_POINTERS,
    TREE_ROOT_BYTES,
    PointerArray,
)
from blockplane.volume.nodesmet import NodesMet
from blockplane.volume.state import State

# Pointer blocks that one request reads: 4 MiB, and 16 MiB of what is worked out of them.
_BATCH_BLOCKS = 1024
_POINTER_BYTES = 16

Numbers = NDArray[np.int64]

#: Metafiles by owner number; owners from 0 on are inodes.
_METAFILES: Final = {
    -1: "inode file", -2: "blockmap", -3: "checksum file", -4: "snapshot list", -5: "branch history", -6: "orphans",
    -7: "state root",
}  # fmt: skip
_STATE_ROOT: Final = -7


@dataclass(frozen=True, slots=True)
class Owner:
    """What some neighbouring VBNs are of.

    what : `file`, `directory`, `symlink`, `attributes` (of what lies at the paths), or a metafile's name. level : 0 for
    content, 1 and up for blocks of pointers to it. offset_bytes : where in the content the first block lies, or the
    content that a block of pointers leads to begins. inode : None for metafiles. paths : names of the file; none for
    one that is open and has lost its name.
    """

    start: int
    stop: int
    what: str
    level: int
    offset_bytes: int
    inode: int | None
    paths: tuple[str, ...]

    def part(self, start: int, stop: int) -> Owner | None:
        """Return what of it lies in start..stop."""
        low, high = max(start, self.start), min(stop, self.stop)
        if low >= high:
            return None
        skipped_bytes = (low - self.start) * NODE_POINTERS**self.level * BLOCK_BYTES
        return replace(self, start=low, stop=high, offset_bytes=self.offset_bytes + skipped_bytes)


class _Search:
    """Walks trees of one state level by level, all trees of a batch together; keeps what lies in a plane."""

    def __init__(self, state: State, wanted: Plane | None) -> None:
        self._state, self._wanted = state, wanted
        self.rows: list[Numbers] = []
        self._met = NodesMet()

    def walk(self, pointers: PointerArray, owners: Numbers, indexes: Numbers, level: int) -> None:
        """Meet blocks (n) of one level, whose owners and indexes at that level are given, and all below them."""
        present = np.flatnonzero(pointers[:, 0])
        pointers, owners, indexes = pointers[present], owners[present], indexes[present]
        if level:
            self._met.meet(level, pointers[:, 0])
        numbers = (pointers[:, 0] & np.uint64(NUMBER_MASK)).astype(np.int64)
        hits = self._chosen(numbers, owners, level)
        rows = np.column_stack((numbers, owners, np.full(len(numbers), level), indexes * NODE_POINTERS**level))
        self.rows.append(rows[hits])
        for at in range(0, len(pointers) if level else 0, _BATCH_BLOCKS):
            part = slice(at, at + _BATCH_BLOCKS)
            data = aligned_buffer(len(pointers[part]) * BLOCK_BYTES)
            read_pointers(self._state.reader, pointers[part], data)
            below = (indexes[part, None] * NODE_POINTERS + np.arange(NODE_POINTERS)).reshape(-1)
            self.walk(data.view(np.uint64).reshape(-1, 2), np.repeat(owners[part], NODE_POINTERS), below, level - 1)

    def _chosen(self, numbers: Numbers, owners: Numbers, level: int) -> NDArray[np.bool_]:
        """Return which blocks of one level are kept."""
        return np.ones(len(numbers), np.bool_) if self._wanted is None else self._wanted.contains_many(numbers)

    def inodes(self, numbers: Numbers, rows: NDArray[np.uint8]) -> None:
        """Meet the blocks of inodes, given as records (n, 512)."""
        has_tree = rows[:, 0] == FORM_TREE
        for depth in np.unique(rows[has_tree, 1]).tolist():
            if depth > MAX_DEPTH:
                raise damaged(f"a tree has {depth} levels")
            mine = np.flatnonzero(has_tree & (rows[:, 1] == depth))
            roots = np.ascontiguousarray(rows[mine, TREE_ROOT_BYTES - ROOT_POINTERS * _POINTER_BYTES : TREE_ROOT_BYTES])
            pointers = roots.view(np.uint64).reshape(-1, 2)
            indexes = np.tile(np.arange(ROOT_POINTERS), len(mine))
            self.walk(pointers, np.repeat(numbers[mine], ROOT_POINTERS), indexes, depth)

    def metafiles(self) -> None:
        """Meet the blocks of the state's own trees, and its root."""
        root = self._state.root
        for owner, tree in zip(_METAFILES, root.trees(), strict=False):
            if tree.form == FORM_TREE:
                owners = np.full(ROOT_POINTERS, owner)
                self.walk(tree.pointers, owners, np.arange(ROOT_POINTERS), tree.depth)
        number = self._state.pointer.number
        if self._wanted is None or number in self._wanted:
            self.rows.append(np.array([[number, _STATE_ROOT, 0, 0]], np.int64))

    def found(self) -> Numbers:
        """Return (n, 4) VBN, owner, level, first index, ascending in VBN."""
        rows = np.concatenate([*self.rows, np.empty((0, 4), np.int64)])
        return rows[np.argsort(rows[:, 0], kind="stable")]


def owners_of(state: State, wanted: Plane) -> list[Owner]:
    """Return what the blocks of a plane are in a state, ascending; blocks that the state does not hold are left out.

    Notes
    -----
    Reads the inode file and every block of pointers of the state.
    """
    search = _Search(state, wanted)
    search.metafiles()
    records = Records(state)
    for numbers, rows in _all_records(records):
        search.inodes(numbers, rows)
    runs = _runs(search.found())
    inodes = sorted({owner for _, _, owner, _, _ in runs if owner >= 0})
    described = _describe(records, inodes)
    return [_owner(run, described) for run in runs]


class _MetadataSearch(_Search):
    """Keeps what is no content of files."""

    def __init__(self, state: State) -> None:
        super().__init__(state, None)
        #: inodes of the batch whose content is kept: directories, holders of attributes, long symbolic links
        self.shown = np.empty(0, np.int64)

    def _chosen(self, numbers: Numbers, owners: Numbers, level: int) -> NDArray[np.bool_]:
        if level:
            return np.ones(len(numbers), np.bool_)
        kept: NDArray[np.bool_] = (owners < 0) | np.isin(owners, self.shown)
        return kept


def metadata_of(state: State, n_blocks: int) -> Plane:
    """Return the blocks of a state that are no content of files: all that is needed to list it, and to find the rest.

    Parameters
    ----------
    n_blocks : of the numbering.

    Notes
    -----
    Its root, the inode file, the block map, checksums, lists, blocks of pointers, directories, extended attributes and
    symbolic links. Reads the inode file and every block of pointers.
    """
    search, found = _MetadataSearch(state), Plane.empty(n_blocks)
    search.metafiles()
    for numbers, rows in _all_records(Records(state)):
        words = np.ascontiguousarray(rows[:, MODE_OFFSET : MODE_OFFSET + 8]).view("<u4")
        is_file = (words[:, 0] & 0o170000) == stat.S_IFREG
        search.shown = numbers[~is_file | (words[:, 1] & FLAG_ATTRIBUTES != 0)]
        search.inodes(numbers, rows)
        found.add_many(search.found()[:, 0])
        search.rows = []
    found.add_many(search.found()[:, 0])
    return found


def blocks_below(state: State, path_inode: int) -> tuple[Numbers, bool]:
    """Return the VBNs, ascending, of what an inode has: content, pointers, attributes; of a directory with all below.

    Blocks of the inode file, of which eight inodes share one, are among them only where all of it lies in inodes: they
    are what there is of it then. The second value says so.
    """
    records = Records(state)
    where = Whereabouts(records)
    numbers, level = {path_inode}, [records.get(path_inode)]
    while directories := [inode for inode in level if inode.is_directory]:
        below = {link.inode for link in where.scan.all_entries(directories)} - numbers
        records.fetch(below)
        level = [records.get(number) for number in sorted(below)]
        numbers |= below
    numbers |= {holder for number in numbers if (holder := records.get(number).attribute_inode)}
    search = _Search(state, None)
    blocks = np.unique(np.array(sorted(numbers), np.int64) // INODES_PER_BLOCK)
    for part, rows in records.rows(blocks):
        all_numbers = (part[:, None] * INODES_PER_BLOCK + np.arange(INODES_PER_BLOCK)).reshape(-1)
        mine = np.isin(all_numbers, np.array(sorted(numbers), np.int64))
        search.inodes(all_numbers[mine], rows.reshape(-1, INODE_BYTES)[mine])
    found = search.found()[:, 0]
    if len(found):
        return found, False
    words = [state.inode_file.pointer(0, block)[0] for block in blocks.tolist()]
    return np.unique(np.array(words, np.uint64) & np.uint64(NUMBER_MASK)).astype(np.int64), True


def _all_records(records: Records) -> Iterator[tuple[Numbers, NDArray[np.uint8]]]:
    for blocks, rows in records.all_rows():
        numbers = (blocks[:, None] * INODES_PER_BLOCK + np.arange(INODES_PER_BLOCK)).reshape(-1)
        used = (numbers > 0) & (numbers < records.stop)
        yield numbers[used], rows.reshape(-1, INODE_BYTES)[used]


def _runs(rows: Numbers) -> list[tuple[int, int, int, int, int]]:
    """Return (start, stop, owner, level, first index) of neighbouring blocks of one owner that follow each other."""
    if not len(rows):
        return []
    step = NODE_POINTERS ** rows[:-1, 2]
    joins = (np.diff(rows[:, 0]) == 1) & (np.diff(rows[:, 1:3], axis=0) == 0).all(axis=1)
    joins &= np.diff(rows[:, 3]) == step
    starts = np.flatnonzero(np.concatenate(([True], ~joins)))
    stops = np.concatenate((starts[1:], [len(rows)]))
    firsts, lasts = rows[starts], rows[stops - 1, 0] + 1
    return [
        (a, b, owner, level, index) for (a, owner, level, index), b in zip(firsts.tolist(), lasts.tolist(), strict=True)
    ]


def _describe(records: Records, numbers: list[int]) -> dict[int, tuple[str, tuple[str, ...]]]:
    """Return for inodes what they are, and the names of each; of a holder of attributes its owner's."""
    records.fetch(numbers)
    raw = {number: records.peek(number) for number in numbers}
    shown = {number: inode.parent if inode.flags & FLAG_ATTRIBUTES else number for number, inode in raw.items()}
    named = {number: inode for number in set(shown.values()) if (inode := records.find(number)) is not None}
    paths = Whereabouts(records).names(named)
    out = {}
    for number, inode in raw.items():
        what = "attributes" if inode.flags & FLAG_ATTRIBUTES else _word(inode)
        out[number] = what, tuple(sorted(path_text(path) for path in paths.get(shown[number], ())))
    return out


def _word(inode: Inode) -> str:
    return "directory" if inode.is_directory else {0o100000: "file", 0o120000: "symlink"}.get(inode.type, "file")


def _owner(run: tuple[int, int, int, int, int], described: dict[int, tuple[str, tuple[str, ...]]]) -> Owner:
    start, stop, owner, level, index = run
    if owner < 0:
        return Owner(start, stop, _METAFILES[owner], level, index * BLOCK_BYTES, None, ())
    what, paths = described[owner]
    return Owner(start, stop, what, level, index * BLOCK_BYTES, owner, paths)


assert ROOT_INODE > 0, "owners below 0 are metafiles"
