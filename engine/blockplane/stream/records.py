"""Records, roles and pieces of planes, as frames give them: checked one by one."""

from __future__ import annotations

from typing import Final

from blockplane.image.expression import is_name
from blockplane.model.errors import BlockplaneError, StreamDamagedError, StreamError
from blockplane.planes import Plane, PlaneFormatError
from blockplane.stream.codec import Role
from blockplane.volume.codec import SnapshotRecord

_AGAIN: Final = "fetch the stream again"


def piece_of(payload: bytes, n_blocks: int, count: int) -> Plane:
    """Return a plane piece; StreamDamagedError: it is none, or reaches too far."""
    try:
        piece = Plane.deserialize(payload, n_blocks)
    except (PlaneFormatError, ValueError) as error:
        raise StreamDamagedError(f"a plane piece of the stream is not a Roaring bitmap: {error}", _AGAIN) from error
    if len(piece) != count or not count:
        raise StreamDamagedError(f"a plane piece of the stream claims {count} blocks and lists {len(piece)}", _AGAIN)
    return piece


def record_of(raw: bytes) -> SnapshotRecord:
    """Return a snapshot record; StreamDamagedError: it is none, or its name is none."""
    try:
        record = SnapshotRecord.decode(raw)
    except BlockplaneError as error:
        raise StreamDamagedError(f"a snapshot of the stream cannot be: {error}", _AGAIN) from error
    if not is_name(record.name):
        # names go into messages and tables: whoever forged one gets no control characters through
        raise StreamDamagedError(f"a snapshot of the stream is named {record.name!r}", _AGAIN)
    return record


def role_of(value: int) -> Role:
    """Return a role; StreamError: this release knows no such one."""
    try:
        return Role(value)
    except ValueError:
        raise StreamError(f"a snapshot of the stream has the unknown role {value}", "upgrade blockplane") from None
