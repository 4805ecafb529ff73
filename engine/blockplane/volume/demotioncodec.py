"""Byte layout of what the local tree notes of shadows and of the policy that makes them (FORMAT.md)."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Final

from blockplane.model.errors import UsageError, VolumeDamagedError

#: Why a snapshot became a shadow.
ASKED, UNDER_LIMIT, LACKED_ROOM, UNHEARD = 0, 1, 2, 3
#: A rate over less than this says nothing about a day.
SAMPLE_NS: Final = 3600 * 10**9

_DEMOTION = struct.Struct("<IIQQQ")
_PACE = struct.Struct("<qQqQ")
DEMOTION_BYTES: Final = _DEMOTION.size
PACE_BYTES: Final = _PACE.size


@dataclass(frozen=True, slots=True)
class Demotion:
    """How a snapshot became a shadow (32 bytes).

    by : 0 somebody asked; 1 the policy, as less was free than its limit; 2 the policy, as an operation lacked room;
    3 a master, as replicas that needed it were not heard of within the limit.
    room_blocks, wanted_blocks : how much there was for files then, and should have been. freed_blocks : what it freed.
    """

    by: int = ASKED
    room_blocks: int = 0
    wanted_blocks: int = 0
    freed_blocks: int = 0

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        return _DEMOTION.pack(self.by, 0, self.room_blocks, self.wanted_blocks, self.freed_blocks)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Demotion:
        """Read 32 bytes."""
        by, _, room, wanted, freed = _DEMOTION.unpack_from(data)
        return cls(by, room, wanted, freed)


@dataclass(frozen=True, slots=True)
class Pace:
    """Two earlier counts of a shadow's bits, an hour or more apart (32 bytes): how fast it goes now.

    before_ns, before_left : the older one; 0: there is none yet. last_ns, last_left : the newer one.
    """

    before_ns: int = 0
    before_left: int = 0
    last_ns: int = 0
    last_left: int = 0

    def noted(self, now_ns: int, n_left: int) -> Pace:
        """Return the counts after one more: it takes the newer one's place where that is an hour old."""
        if now_ns - self.last_ns < SAMPLE_NS:
            return self
        return Pace(self.last_ns, self.last_left, now_ns, n_left)

    def lost_per_s(self, now_ns: int, n_left: int) -> float | None:
        """Return how many bits went a second since the older count; None where no hour has been counted."""
        since_ns, left = (self.before_ns, self.before_left) if self.before_ns else (self.last_ns, self.last_left)
        if not since_ns or now_ns - since_ns < SAMPLE_NS:
            return None
        return (left - n_left) / ((now_ns - since_ns) / 1e9)

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        return _PACE.pack(self.before_ns, self.before_left, self.last_ns, self.last_left)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Pace:
        """Read 32 bytes."""
        return cls(*_PACE.unpack_from(data))


_PRESSURE = struct.Struct("<BBHIQq8x")
PRESSURE_BYTES: Final = 512
_ONLY_BYTES: Final = PRESSURE_BYTES - _PRESSURE.size
UNIT_BLOCKS, UNIT_SHARE = 0, 1
#: A share counts in so many parts of the volume.
SHARE_PARTS: Final = 10_000


@dataclass(frozen=True, slots=True)
class PressureRecord:
    """What a volume does when space runs short (512 bytes): which snapshots it makes shadows, and when.

    limit : of what is free for files: blocks, or ten-thousandths of the volume's (unit 1). keep : how many of the
    newest stay. only : patterns of the names that may go. set_ns : when it was set, ns since 1970.
    """

    unit: int
    limit: int
    keep: int
    only: tuple[str, ...]
    set_ns: int = 0

    def encode(self) -> bytes:
        """Return the 512 bytes; UsageError: the patterns are too long."""
        only = "\n".join(self.only).encode()
        if len(only) > _ONLY_BYTES:
            raise UsageError(f"the patterns take {len(only)} bytes", f"say what is meant in {_ONLY_BYTES}")
        head = _PRESSURE.pack(1, self.unit, len(only), self.keep, self.limit, self.set_ns)
        return (head + only).ljust(PRESSURE_BYTES, b"\0")

    @classmethod
    def decode(cls, data: bytes | memoryview) -> PressureRecord | None:
        """Read 512 bytes; None: there is no policy. VolumeDamagedError: it is none that this version knows."""
        is_on, unit, n_only, keep, limit, set_ns = _PRESSURE.unpack_from(data)
        if not is_on:
            return None
        text = bytes(data[_PRESSURE.size : _PRESSURE.size + n_only])
        try:
            only = tuple(text.decode().split("\n"))
        except UnicodeDecodeError:
            only = ()
        if is_on != 1 or unit > UNIT_SHARE or n_only > _ONLY_BYTES or not keep or not all(only) or not only:
            raise VolumeDamagedError("the pressure policy is none", "run `blockplane check`")
        return cls(unit, limit, keep, only, set_ns)

    def at(self, now_ns: int) -> PressureRecord:
        """Return it as set at a moment."""
        return replace(self, set_ns=now_ns)
