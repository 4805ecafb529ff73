"""Byte layout of what the local tree keeps beside snapshots: marked intervals, destinations, stored images.

The one module that knows these offsets; FORMAT.md beside this file draws them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.codec import NO_ID, TREE_ROOT_BYTES, TreeRoot

#: Of an interval: somebody asked for the position; what entered, what left, is not known whole.
FLAG_ASKED, FLAG_ALLOC_UNKNOWN, FLAG_DEALLOC_UNKNOWN = 1, 2, 4

_INTERVAL = struct.Struct("<16sIIQQq")
_INTERVAL_TREES = 64
INTERVAL_BYTES = 640


@dataclass(slots=True)
class IntervalRecord:
    """The marks of one interval (640 bytes): it begins behind the CP of a snapshot, the *position*.

    n_alloc, n_dealloc : bits of the two planes. begun_ns : when the position was asked for, ns since 1970.
    """

    snapshot_id: bytes
    flags: int = 0
    n_alloc: int = 0
    n_dealloc: int = 0
    begun_ns: int = 0
    alloc: TreeRoot = field(default_factory=TreeRoot)
    dealloc: TreeRoot = field(default_factory=TreeRoot)

    def encode(self) -> bytes:
        """Return the 640 bytes."""
        head = _INTERVAL.pack(self.snapshot_id, self.flags, 0, self.n_alloc, self.n_dealloc, self.begun_ns)
        trees = self.alloc.encode() + self.dealloc.encode()
        return (head.ljust(_INTERVAL_TREES, b"\0") + trees).ljust(INTERVAL_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> IntervalRecord:
        """Read 640 bytes; VolumeDamagedError: a tree root is impossible."""
        snapshot_id, flags, _, n_alloc, n_dealloc, begun_ns = _INTERVAL.unpack_from(data)
        starts = (_INTERVAL_TREES, _INTERVAL_TREES + TREE_ROOT_BYTES)
        trees = [TreeRoot.decode(data[start : start + TREE_ROOT_BYTES]) for start in starts]
        return cls(snapshot_id, flags, n_alloc, n_dealloc, begun_ns, *trees)


STATUS_IDLE, STATUS_UNDER_WAY, STATUS_UNKNOWN = 0, 1, 2
STATUS_NAMES = {STATUS_IDLE: "idle", STATUS_UNDER_WAY: "under way", STATUS_UNKNOWN: "unknown"}

_DESTINATION = struct.Struct("<16s16sIIqqB119s")
DESTINATION_BYTES = 192
DESTINATION_NAME_BYTES = 119


@dataclass(frozen=True, slots=True)
class DestinationRecord:
    """Where a destination stands (192 bytes).

    acknowledged : id of the snapshot it said it has; zero: none. under_way : of the one that is sent, or may have been.
    """

    name: str
    acknowledged: bytes = NO_ID
    under_way: bytes = NO_ID
    status: int = STATUS_IDLE
    acknowledged_ns: int = 0
    begun_ns: int = 0

    def encode(self) -> bytes:
        """Return the 192 bytes."""
        name = self.name.encode()
        times = self.acknowledged_ns, self.begun_ns
        packed = _DESTINATION.pack(self.acknowledged, self.under_way, self.status, 0, *times, len(name), name)
        return packed.ljust(DESTINATION_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> DestinationRecord:
        """Read 192 bytes; VolumeDamagedError: the name is not one."""
        acknowledged, under_way, status, _, acknowledged_ns, begun_ns, n_name, name = _DESTINATION.unpack_from(data)
        try:
            text = name[:n_name].decode()
        except UnicodeDecodeError:
            raise VolumeDamagedError(f"a destination's name is not UTF-8: {name[:n_name]!r}", "") from None
        return cls(text, acknowledged, under_way, status, acknowledged_ns, begun_ns)
