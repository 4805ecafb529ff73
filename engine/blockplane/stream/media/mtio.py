"""The calls that Linux's `st` driver takes (mtio.h), as numbers and bytes. The one place that knows them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

_TOP = struct.Struct("@hi")
_GET = struct.Struct("@lllllii")
_POSITION = struct.Struct("@l")


def _request(direction: int, number: int, n_bytes: int) -> int:
    """Return the number of an ioctl of the letter m: as `_IOW` (1) and `_IOR` (2) make it."""
    return direction << 30 | n_bytes << 16 | ord("m") << 8 | number


MTIOCTOP: Final = _request(1, 1, _TOP.size)
MTIOCGET: Final = _request(2, 2, _GET.size)
MTIOCPOS: Final = _request(2, 3, _POSITION.size)


class Op(IntEnum):
    """Operations of MTIOCTOP that are used here."""

    FORWARD_FILEMARKS = 1
    WRITE_FILEMARKS = 5
    REWIND = 6
    SEEK_END = 12
    SET_BLOCK_BYTES = 20
    SEEK = 22
    WRITE_FILEMARKS_SOON = 35


class Status(IntFlag):
    """Bits of the status that MTIOCGET gives."""

    END_OF_DATA = 0x08000000
    WRITE_PROTECTED = 0x04000000
    ONLINE = 0x01000000
    DOOR_OPEN = 0x00040000


@dataclass(frozen=True, slots=True)
class DriveState:
    """What MTIOCGET gives. block_bytes : 0 for variable blocks."""

    status: Status
    block_bytes: int


def encode_op(op: Op, count: int) -> bytes:
    """Return the argument of MTIOCTOP."""
    return _TOP.pack(op, count)


def decode_state(data: bytes) -> DriveState:
    """Read what MTIOCGET gave."""
    _, _, dsreg, gstat, _, _, _ = _GET.unpack(data)
    return DriveState(Status(gstat & int(sum(Status))), dsreg & 0xFFFFFF)


def decode_position(data: bytes) -> int:
    """Read what MTIOCPOS gave."""
    return int(_POSITION.unpack(data)[0])


STATE_BYTES: Final = _GET.size
POSITION_BYTES: Final = _POSITION.size
