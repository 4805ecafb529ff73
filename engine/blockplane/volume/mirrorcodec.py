"""Byte layout of what the local root says of a volume that is a mirror of another one (FORMAT.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from blockplane.model.errors import VolumeDamagedError

#: What a destination is: a mirror, one that was broken off, one that is written to for a rehearsal.
MIRROR, BROKEN, REHEARSING = 1, 2, 3
#: Whether files of a mirror may be written to, and what the next update does with what was.
WRITES_REFUSED, WRITES_KEPT, WRITES_FLUSHED = 0, 1, 2

_MIRROR = struct.Struct("<BBH4x16sqq16s8s")
MIRROR_BYTES: Final = 320
KEY_BYTES: Final = 8
_TEXT_BYTES: Final = MIRROR_BYTES - _MIRROR.size


@dataclass(frozen=True, slots=True)
class MirrorRecord:
    """Of whom a volume is a mirror (320 bytes).

    state : `MIRROR`, `BROKEN` or `REHEARSING`. writes : one of `WRITES_*`. source_id : the other volume's id.
    since_ns, changed_ns : when it became one, and when its state last changed, or it was joined again, ns since 1970.
    broken_at : id of the snapshot at whose state it was broken off, or a rehearsal began, or from which that came;
    zero: none. source : where that volume was then, a hint for people and for `mirror resync`; empty where it takes
    more than 256 bytes. key : of who made it one over a network, the first 8 bytes of a replica's; zeros: nobody did,
    or it is not known.
    """

    state: int
    writes: int
    source_id: bytes
    since_ns: int = 0
    changed_ns: int = 0
    source: str = ""
    broken_at: bytes = bytes(16)
    key: bytes = bytes(KEY_BYTES)

    def encode(self) -> bytes:
        """Return the 320 bytes."""
        text = self.source.encode("utf-8", "surrogateescape")
        text = text if len(text) <= _TEXT_BYTES else b""
        times = self.since_ns, self.changed_ns
        head = _MIRROR.pack(self.state, self.writes, len(text), self.source_id, *times, self.broken_at, self.key)
        return (head + text).ljust(MIRROR_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> MirrorRecord | None:
        """Read 320 bytes; None: it is no mirror. VolumeDamagedError: it is none that this version knows."""
        state, writes, n_text, source_id, since_ns, changed_ns, broken_at, key = _MIRROR.unpack_from(data)
        if not state:
            return None
        if state > REHEARSING or writes > WRITES_FLUSHED or n_text > _TEXT_BYTES:
            raise VolumeDamagedError(
                f"the record of what the volume is a mirror of has state {state}", "run `blockplane check`"
            )
        text = bytes(data[_MIRROR.size : _MIRROR.size + n_text]).decode("utf-8", "surrogateescape")
        return cls(state, writes, source_id, since_ns, changed_ns, text, broken_at, key)
