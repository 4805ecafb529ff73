"""Byte layout of the volume's records: tree roots, state roots, snapshot records, the local root.

The one module that knows these offsets. All integers are little-endian. Layouts are drawn in FORMAT.md beside this
file.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.demotioncodec import DEMOTION_BYTES, PRESSURE_BYTES, Demotion, Pace, PressureRecord
from blockplane.volume.mirrorcodec import MIRROR_BYTES, MirrorRecord

POINTER_BYTES = 16
ROOT_POINTERS = 16
NODE_POINTERS = BLOCK_BYTES // POINTER_BYTES
MAX_DEPTH = 5
KIND_BLOCK = 1
KIND_SHIFT = 56
NUMBER_MASK = (1 << KIND_SHIFT) - 1
BLOCK_WORD = KIND_BLOCK << KIND_SHIFT

INLINE_BYTES = ROOT_POINTERS * POINTER_BYTES
TREE_ROOT = struct.Struct("<BBHIQ")
TREE_ROOT_BYTES = TREE_ROOT.size + INLINE_BYTES

FORM_EMPTY, FORM_INLINE, FORM_TREE = 0, 1, 2

STATE_MAGIC = b"BPSTATE\0"
LOCAL_MAGIC = b"BPLOCAL\0"
VERSION = 1
CHECK_CRC32C = 1
CHECK_BYTES = 4
NO_ID = bytes(16)

PointerArray = NDArray[np.uint64]


def empty_pointers(n: int = ROOT_POINTERS) -> PointerArray:
    """Return n holes, shape (n, 2): word and check."""
    return np.zeros((n, 2), np.uint64)


def pointer_number(word: int) -> int:
    """Return the block number in a pointer's word.

    Raises
    ------
    VolumeDamagedError: the word is of a kind this version does not know.
    """
    if word >> KIND_SHIFT != KIND_BLOCK:
        raise VolumeDamagedError(f"a pointer has unknown kind {word >> KIND_SHIFT}", "run `blockplane check`")
    return word & NUMBER_MASK


@dataclass(slots=True)
class TreeRoot:
    """The root of a block tree as it stands in an inode, a state root or a local root (272 bytes)."""

    form: int = FORM_EMPTY
    depth: int = 0
    size_bytes: int = 0
    pointers: PointerArray = field(default_factory=empty_pointers)
    inline: bytes = b""

    def encode(self) -> bytes:
        """Return the 272 bytes."""
        head = TREE_ROOT.pack(self.form, self.depth, len(self.inline), 0, self.size_bytes)
        if self.form == FORM_INLINE:
            return head + self.inline.ljust(INLINE_BYTES, b"\0")
        return head + self.pointers.tobytes()

    @classmethod
    def decode(cls, data: bytes | memoryview) -> TreeRoot:
        """Read 272 bytes.

        Raises
        ------
        VolumeDamagedError: form, depth or inline length is impossible.
        """
        form, depth, n_inline, _, size_bytes = TREE_ROOT.unpack_from(data)
        if form > FORM_TREE or depth > MAX_DEPTH or n_inline > INLINE_BYTES or size_bytes >> 62:
            raise VolumeDamagedError(
                f"a tree root is impossible (form {form}, depth {depth})", "run `blockplane check`"
            )
        body = bytes(data[TREE_ROOT.size : TREE_ROOT_BYTES])
        if form == FORM_INLINE:
            return cls(form, 0, size_bytes, empty_pointers(), body[:n_inline])
        pointers = np.frombuffer(body, np.uint64).reshape(ROOT_POINTERS, 2).copy()
        return cls(form, depth, size_bytes, pointers)

    def copy(self) -> TreeRoot:
        """Return a copy that shares nothing."""
        return TreeRoot(self.form, self.depth, self.size_bytes, self.pointers.copy(), self.inline)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A root pointer: where a root block lies and its check; `Pointer.none()` points nowhere."""

    number: int
    check: int
    exists: bool = True

    @classmethod
    def none(cls) -> Pointer:
        """Return the pointer that points nowhere."""
        return cls(0, 0, False)

    def encode(self) -> bytes:
        """Return the 16 bytes."""
        return struct.pack("<QII", (BLOCK_WORD | self.number) if self.exists else 0, self.check, 0)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Pointer:
        """Read 16 bytes; VolumeDamagedError: unknown kind."""
        word, check, _ = struct.unpack("<QII", data)
        return cls(pointer_number(word), check) if word else cls.none()


ROOT_TREES_OFFSET = 128


def _root_block(head: bytes, trees: Iterable[TreeRoot]) -> bytes:
    """Return a root block: its own fields, then its trees' roots."""
    roots = b"".join(tree.encode() for tree in trees)
    return (head.ljust(ROOT_TREES_OFFSET, b"\0") + roots).ljust(BLOCK_BYTES, b"\0")


def _root_trees(data: bytes | memoryview, n_trees: int) -> list[TreeRoot]:
    """Read the trees' roots of a root block; VolumeDamagedError: one is impossible."""
    starts = (ROOT_TREES_OFFSET + i * TREE_ROOT_BYTES for i in range(n_trees))
    return [TreeRoot.decode(data[start : start + TREE_ROOT_BYTES]) for start in starts]


_STATE = struct.Struct("<8sIHHQ16s16sQQQQ")
_STATE_TREES = 6


@dataclass(slots=True)
class StateRoot:
    """The state root: one block from which everything of a state is reached.

    cp counts on the state's own line; n_blocks is the plane's count; next_inode and n_inodes belong to the file system.
    """

    cp: int = 0
    space_id: bytes = NO_ID
    branch_id: bytes = NO_ID
    n_blocks: int = 0
    committed_ns: int = 0
    next_inode: int = 1
    n_inodes: int = 0
    inode_file: TreeRoot = field(default_factory=TreeRoot)
    blockmap: TreeRoot = field(default_factory=TreeRoot)
    checksums: TreeRoot = field(default_factory=TreeRoot)
    snapshots: TreeRoot = field(default_factory=TreeRoot)
    branches: TreeRoot = field(default_factory=TreeRoot)
    orphans: TreeRoot = field(default_factory=TreeRoot)

    def trees(self) -> tuple[TreeRoot, ...]:
        """Return the tree roots in the order of the format."""
        return (self.inode_file, self.blockmap, self.checksums, self.snapshots, self.branches, self.orphans)

    def encode(self) -> bytes:
        """Return the block; VolumeDamagedError: a count that was read does not fit what was taken from it."""
        _require_counts("state", (self.n_blocks, self.n_inodes, self.next_inode, self.cp))
        head = _STATE.pack(
            STATE_MAGIC, VERSION, CHECK_CRC32C, CHECK_BYTES, self.cp, self.space_id, self.branch_id,
            self.n_blocks, self.committed_ns, self.next_inode, self.n_inodes,
        )  # fmt: skip
        return _root_block(head, self.trees())

    @classmethod
    def decode(cls, data: bytes | memoryview) -> StateRoot:
        """Read a block; VolumeDamagedError: not a state root of this version."""
        magic, version, kind, width, cp, space, branch, n_blocks, when, next_inode, n_inodes = _STATE.unpack_from(data)
        if magic != STATE_MAGIC or version != VERSION or kind != CHECK_CRC32C or width != CHECK_BYTES:
            raise VolumeDamagedError(
                f"a state root has magic {magic!r}, version {version}, checksum kind {kind}",
                "it was written by another version, or the root block is damaged",
            )
        return cls(cp, space, branch, n_blocks, when, next_inode, n_inodes, *_root_trees(data, _STATE_TREES))


KIND_REGULAR, KIND_SHADOW, KIND_HIDDEN, KIND_PARTIAL, KIND_DELETING = 1, 2, 3, 4, 5
#: Of a snapshot in this volume's table: replicas synchronise to it.
FLAG_MASTER = 1
#: Of a shadow in this volume's table: it is being deleted, and a shadow until it goes.
FLAG_DELETING = 2
KIND_NAMES = {1: "regular", 2: "shadow", 3: "hidden", 4: "partial", 5: "deleting"}

_RECORD = struct.Struct("<16s16s16s16sQqII16sQ8xB127s")
RECORD_BYTES = 256
NAME_BYTES = 127


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """What is known of a snapshot wherever it goes (256 bytes): in a state's list, in a stream, in the table."""

    id: bytes
    space_id: bytes
    parent_id: bytes
    branch_id: bytes
    cp: int
    created_ns: int
    root: Pointer
    n_blocks: int
    name: str
    kind: int = KIND_REGULAR
    flags: int = 0

    def encode(self) -> bytes:
        """Return the 256 bytes."""
        name = self.name.encode()
        return _RECORD.pack(
            self.id, self.space_id, self.parent_id, self.branch_id, self.cp, self.created_ns, self.kind, self.flags,
            self.root.encode(), self.n_blocks, len(name), name,
        ).ljust(RECORD_BYTES, b"\0")  # fmt: skip

    @classmethod
    def decode(cls, data: bytes | memoryview) -> SnapshotRecord:
        """Read 256 bytes; VolumeDamagedError: the name is not one."""
        fields = _RECORD.unpack_from(data)
        *ids, cp, created_ns, kind, flags, root, n_blocks, n_name, name = fields
        try:
            text = name[:n_name].decode()
        except UnicodeDecodeError:
            raise VolumeDamagedError(f"a snapshot's name is not UTF-8: {name[:n_name]!r}", "") from None
        if not n_name or n_name > NAME_BYTES:
            raise VolumeDamagedError("a snapshot record has no name", "run `blockplane check`")
        return cls(ids[0], ids[1], ids[2], ids[3], cp, created_ns, Pointer.decode(root), n_blocks, text, kind, flags)

    @property
    def is_deleting(self) -> bool:
        """Whether it goes as soon as nothing reads or holds it; until then it is what it was."""
        return self.kind == KIND_DELETING or (self.kind == KIND_SHADOW and bool(self.flags & FLAG_DELETING))

    def deferred(self) -> SnapshotRecord:
        """Return the record as one that is being deleted; a shadow stays one, since its blocks may be others'."""
        if self.kind == KIND_SHADOW:
            return replace(self, flags=self.flags | FLAG_DELETING)
        return replace(self, kind=KIND_DELETING)

    def renamed(self, name: str) -> SnapshotRecord:
        """Return the record under another name."""
        return replace(self, name=name)


ENTRY_BYTES = 1024
_ENTRY_LEFT = struct.Struct("<Qq")
_ENTRY_MAP = RECORD_BYTES
_ENTRY_PLANE = RECORD_BYTES + TREE_ROOT_BYTES
_ENTRY_HOW = _ENTRY_PLANE + TREE_ROOT_BYTES + _ENTRY_LEFT.size


@dataclass(slots=True)
class TableEntry:
    """A snapshot in this volume's table (1,024 bytes): its record, its place map.

    Of a shadow also its plane, how many blocks of it are left, when it became one, ns since 1970, how, and its pace.
    """

    record: SnapshotRecord
    place_map: TreeRoot = field(default_factory=TreeRoot)
    plane: TreeRoot = field(default_factory=TreeRoot)
    n_left: int = 0
    shadowed_ns: int = 0
    demotion: Demotion = field(default_factory=Demotion)
    pace: Pace = field(default_factory=Pace)

    def encode(self) -> bytes:
        """Return the 1,024 bytes."""
        trees = self.place_map.encode() + self.plane.encode()
        left = _ENTRY_LEFT.pack(self.n_left, self.shadowed_ns) + self.demotion.encode() + self.pace.encode()
        return (self.record.encode() + trees + left).ljust(ENTRY_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> TableEntry:
        """Read 1,024 bytes."""
        record = SnapshotRecord.decode(data[:RECORD_BYTES])
        place_map = TreeRoot.decode(data[_ENTRY_MAP : _ENTRY_MAP + TREE_ROOT_BYTES])
        plane = TreeRoot.decode(data[_ENTRY_PLANE : _ENTRY_PLANE + TREE_ROOT_BYTES])
        n_left, shadowed_ns = _ENTRY_LEFT.unpack_from(data, _ENTRY_PLANE + TREE_ROOT_BYTES)
        demotion, pace = Demotion.decode(data[_ENTRY_HOW:]), Pace.decode(data[_ENTRY_HOW + DEMOTION_BYTES :])
        return cls(record, place_map, plane, n_left, shadowed_ns, demotion, pace)

    @property
    def is_deleting(self) -> bool:
        """Whether it goes as soon as nothing reads or holds it; until then it is what it was."""
        return self.record.is_deleting

    @property
    def is_shadow(self) -> bool:
        """Whether its blocks may be reused; any other kind, known or not, holds them."""
        return self.record.kind == KIND_SHADOW


_BRANCH = struct.Struct("<16s16sQQq")
BRANCH_BYTES = 64
#: Of one history, 4 MiB: what a stream or a state that came may make its reader hold.
MAX_BRANCHES = 1 << 16


@dataclass(frozen=True, slots=True)
class Branch:
    """One entry of the branch history: a line of states, where it began, and the branch it left (64 bytes)."""

    id: bytes
    parent_id: bytes
    first_cp: int
    parent_cp: int
    created_ns: int

    def encode(self) -> bytes:
        """Return the 64 bytes."""
        packed = _BRANCH.pack(self.id, self.parent_id, self.first_cp, self.parent_cp, self.created_ns)
        return packed.ljust(BRANCH_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Branch:
        """Read 64 bytes."""
        return cls(*_BRANCH.unpack_from(data))


_HOLD = struct.Struct("<16sqqB127s")
HOLD_BYTES = 192


@dataclass(frozen=True, slots=True)
class Hold:
    """Somebody wants a snapshot kept (192 bytes); expires_ns is 0 where that has no end."""

    snapshot_id: bytes
    owner: str
    made_ns: int
    expires_ns: int = 0

    @property
    def has_expired(self) -> bool:
        """Whether it means nothing any more."""
        return bool(self.expires_ns) and self.expires_ns <= time.time_ns()

    def encode(self) -> bytes:
        """Return the 192 bytes."""
        owner = self.owner.encode()
        return _HOLD.pack(self.snapshot_id, self.made_ns, self.expires_ns, len(owner), owner).ljust(HOLD_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Hold:
        """Read 192 bytes; VolumeDamagedError: the owner is not a name."""
        snapshot_id, made_ns, expires_ns, n_owner, owner = _HOLD.unpack_from(data)
        try:
            return cls(snapshot_id, owner[:n_owner].decode(), made_ns, expires_ns)
        except UnicodeDecodeError:
            raise VolumeDamagedError(f"the owner of a hold is not UTF-8: {owner[:n_owner]!r}", "") from None


def _require_counts(which: str, counts: Sequence[int]) -> None:
    if min(counts) < 0 or max(counts) >> 64:
        raise VolumeDamagedError(f"the {which} root's counts do not fit its trees", "run `blockplane check`")


_LOCAL = struct.Struct("<8sIIQQQ16sQ")
_LOCAL_TREES = 11
_PRESSURE_OFFSET = ROOT_TREES_OFFSET + _LOCAL_TREES * TREE_ROOT_BYTES
_MIRROR_OFFSET = _PRESSURE_OFFSET + PRESSURE_BYTES
_MIRROR_STOP = _MIRROR_OFFSET + MIRROR_BYTES
_BROUGHT_STOP = _MIRROR_STOP + len(NO_ID)
_DISK_STOP = _BROUGHT_STOP + len(NO_ID)


@dataclass(slots=True)
class LocalRoot:
    """The local root: what belongs to this set of disks only. Counts are of places.

    pressure : what is done when space runs short; None: nothing. mirror : whose mirror the volume is; None: nobody's.
    brought_id : of the snapshot that was brought last to a mirror; NO_ID: it is not known. disk_id : which file the
    first disk is, see `FileDisk.file_id`; NO_ID: it is not known.
    """

    n_held: int = 0
    n_local: int = 0
    n_entries: int = 0
    n_deleting: int = field(default=0, kw_only=True)
    parent_id: bytes = NO_ID
    n_shadows: int = 0
    table: TreeRoot = field(default_factory=TreeRoot)
    held: TreeRoot = field(default_factory=TreeRoot)
    local: TreeRoot = field(default_factory=TreeRoot)
    place_map: TreeRoot = field(default_factory=TreeRoot)
    marks: TreeRoot = field(default_factory=TreeRoot)
    incoming: TreeRoot = field(default_factory=TreeRoot)
    holds: TreeRoot = field(default_factory=TreeRoot)
    replication: TreeRoot = field(default_factory=TreeRoot)
    shadowed: TreeRoot = field(default_factory=TreeRoot)
    destinations: TreeRoot = field(default_factory=TreeRoot)
    images: TreeRoot = field(default_factory=TreeRoot)
    pressure: PressureRecord | None = field(default=None, kw_only=True)
    mirror: MirrorRecord | None = field(default=None, kw_only=True)
    brought_id: bytes = field(default=NO_ID, kw_only=True)
    disk_id: bytes = field(default=NO_ID, kw_only=True)

    def trees(self) -> tuple[TreeRoot, ...]:
        """Return the tree roots in the order of the format."""
        return (
            self.table, self.held, self.local, self.place_map, self.marks, self.incoming, self.holds,
            self.replication, self.shadowed, self.destinations, self.images,
        )  # fmt: skip

    def encode(self) -> bytes:
        """Return the block; VolumeDamagedError: a count that was read does not fit what was taken from it."""
        counts = self.n_held, self.n_local, self.n_entries
        _require_counts("local", counts)
        head = _LOCAL.pack(LOCAL_MAGIC, VERSION, self.n_deleting, *counts, self.parent_id, self.n_shadows)
        pressure = self.pressure.encode() if self.pressure is not None else bytes(PRESSURE_BYTES)
        mirror = self.mirror.encode() if self.mirror is not None else bytes(MIRROR_BYTES)
        block = _root_block(head, self.trees())
        return block[:_PRESSURE_OFFSET] + pressure + mirror + self.brought_id + self.disk_id + block[_DISK_STOP:]

    @classmethod
    def decode(cls, data: bytes | memoryview) -> LocalRoot:
        """Read a block; VolumeDamagedError: not a local root of this version."""
        magic, version, n_deleting, n_held, n_local, n_entries, parent, n_shadows = _LOCAL.unpack_from(data)
        if magic != LOCAL_MAGIC or version != VERSION:
            raise VolumeDamagedError(f"a local root has magic {magic!r}, version {version}", "")
        trees = _root_trees(data, _LOCAL_TREES)
        pressure = PressureRecord.decode(data[_PRESSURE_OFFSET : _PRESSURE_OFFSET + PRESSURE_BYTES])
        mirror = MirrorRecord.decode(data[_MIRROR_OFFSET:_MIRROR_STOP])
        brought_id, disk_id = bytes(data[_MIRROR_STOP:_BROUGHT_STOP]), bytes(data[_BROUGHT_STOP:_DISK_STOP])
        return cls(
            n_held, n_local, n_entries, parent, n_shadows, *trees, n_deleting=n_deleting, pressure=pressure,
            mirror=mirror, brought_id=brought_id, disk_id=disk_id,
        )  # fmt: skip
