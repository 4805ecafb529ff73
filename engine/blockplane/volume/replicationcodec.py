"""Byte layout of what replication keeps in the local tree: pointers, known replicas, how long they are waited for.

One table of records of 512 bytes, each of a kind; kinds that are not known are carried along. The one module that knows
these offsets; FORMAT.md beside this file draws them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from blockplane.model.errors import VolumeDamagedError
from blockplane.volume.codec import NAME_BYTES, NO_ID

REPLICATION_BYTES: Final = 512
KIND_POINTER, KIND_REPLICA, KIND_LIMIT = 1, 2, 3
#: Of a replica: it was not heard of within the limit, and nothing is held for it any more.
FLAG_LOST: Final = 1
#: Of what went wrong with a replica.
ERROR_BYTES: Final = 255

_POINTER = struct.Struct("<IIQ16s16sqB127s")
_REPLICA = struct.Struct("<IIQ16s16s16sqqB127sB255sq16s")
_LIMIT = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class PointerRecord:
    """A name that stands at a snapshot; NO_ID: it was deleted, which travels as its moves do.

    version : how often it was moved. moved_by : id of the volume where that was done last. moved_ns : when, by its
    clock. Of two that differ the one of the higher version counts, then of the higher id: an order that is the same
    everywhere, and compares no two clocks. One volume makes two of a version where it was put back from an older
    copy: the later counts, then that of the higher snapshot's id.
    """

    name: str
    snapshot_id: bytes
    version: int
    moved_by: bytes
    moved_ns: int = 0

    @property
    def rank(self) -> tuple[int, bytes, int, bytes]:
        """Sorts moves: the later, or what counts as such everywhere, behind the earlier."""
        return self.version, self.moved_by, self.moved_ns, self.snapshot_id

    def encode(self) -> bytes:
        """Return the 512 bytes."""
        name = self.name.encode()
        head = KIND_POINTER, 0, self.version, self.snapshot_id, self.moved_by, self.moved_ns
        return _POINTER.pack(*head, len(name), name).ljust(REPLICATION_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> PointerRecord:
        """Read 512 bytes; VolumeDamagedError: the name is not one."""
        _, _, version, snapshot_id, moved_by, moved_ns, n_name, name = _POINTER.unpack_from(data)
        return cls(_text(name[:n_name], "the name of a pointer"), snapshot_id, version, moved_by, moved_ns)


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """A volume that pulls, or whose source does.

    name : also of its destination. generation : of that volume when it said so: of two reports the later counts.
    stands : the newest snapshot it has that is here too. via : id of the volume that told of it; NO_ID: it did itself.
    contact_ns : when it was last heard of, here. silent_ns : when it was first found to be silent for longer than the
    limit; 0: it was not. error_ns, error : of the last transfer that failed. key : who calls for it over a network,
    or told of it, by certificate; NO_ID: nobody has.
    """

    name: str
    volume_id: bytes
    generation: int = 0
    stands: bytes = NO_ID
    via: bytes = NO_ID
    contact_ns: int = 0
    error_ns: int = 0
    error: str = ""
    flags: int = 0
    silent_ns: int = 0
    key: bytes = NO_ID

    @property
    def is_direct(self) -> bool:
        """Whether it pulls from here."""
        return self.via == NO_ID

    @property
    def is_lost(self) -> bool:
        """Whether it is waited for no longer."""
        return bool(self.flags & FLAG_LOST)

    def encode(self) -> bytes:
        """Return the 512 bytes; what went wrong is cut to fit."""
        name, error = self.name.encode(), self.error.encode()[:ERROR_BYTES].decode(errors="ignore").encode()
        ids, times = (self.volume_id, self.stands, self.via), (self.contact_ns, self.error_ns)
        head = KIND_REPLICA, self.flags, self.generation, *ids, *times
        packed = _REPLICA.pack(*head, len(name), name, len(error), error, self.silent_ns, self.key)
        return packed.ljust(REPLICATION_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> ReplicaRecord:
        """Read 512 bytes; VolumeDamagedError: name or error is no text."""
        _, flags, generation, *ids, contact_ns, error_ns, n_name, name, n_error, error, silent_ns, key = (
            _REPLICA.unpack_from(data)
        )
        texts = _text(name[:n_name], "the name of a replica"), _text(error[:n_error], "what a replica met")
        return cls(texts[0], ids[0], generation, ids[1], ids[2], contact_ns, error_ns, texts[1], flags, silent_ns, key)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise VolumeDamagedError(f"{what} is not UTF-8: {data!r}", "run `blockplane check`") from None


@dataclass(frozen=True, slots=True)
class Replication:
    """The table. limit_s : how long a replica that is not heard of is waited for; 0: for ever. others : unknown."""

    pointers: tuple[PointerRecord, ...] = ()
    replicas: tuple[ReplicaRecord, ...] = ()
    limit_s: int = 0
    others: tuple[bytes, ...] = field(default=(), repr=False)

    def encode(self) -> bytes:
        """Return the records."""
        limit = _LIMIT.pack(KIND_LIMIT, 0, self.limit_s).ljust(REPLICATION_BYTES, b"\0") if self.limit_s else b""
        pointers, replicas = (pointer.encode() for pointer in self.pointers), (one.encode() for one in self.replicas)
        return b"".join([*pointers, *replicas, limit, *self.others])

    @classmethod
    def decode(cls, data: bytes) -> Replication:
        """Read records; VolumeDamagedError: one is impossible."""
        pointers, replicas, others, limit_s = [], [], [], 0
        for at in range(0, len(data), REPLICATION_BYTES):
            record = data[at : at + REPLICATION_BYTES]
            kind, _, number = _LIMIT.unpack_from(record)
            if kind == KIND_POINTER:
                pointers.append(PointerRecord.decode(record))
            elif kind == KIND_REPLICA:
                replicas.append(ReplicaRecord.decode(record))
            elif kind == KIND_LIMIT:
                limit_s = number
            else:
                others.append(record)
        return cls(tuple(pointers), tuple(replicas), limit_s, tuple(others))

    @property
    def standing(self) -> dict[str, bytes]:
        """Where pointers stand that are not deleted: ids by names."""
        return {pointer.name: pointer.snapshot_id for pointer in self.pointers if pointer.snapshot_id != NO_ID}


assert _POINTER.size <= REPLICATION_BYTES
assert _REPLICA.size <= REPLICATION_BYTES
assert NAME_BYTES == 127
