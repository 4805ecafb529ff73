"""Frames of an image stream: heads with their tables, held against their caps and against what must come next."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

import numpy as np

from blockplane.model.addresses import BLOCK_BYTES, Checks, Extents
from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError, StreamOrderError
from blockplane.stream.codec.header import text_of
from blockplane.stream.codec.words import (
    FRAME_FIXED_BYTES,
    FRAME_MAGIC,
    INDEX_BYTES,
    MAX_FRAME_BLOCKS,
    MAX_HEAD_BYTES,
    MAX_PAYLOAD_BYTES,
    MAX_SECTION_NAME_BYTES,
    OPTIONAL_KIND,
    TRAILER_BYTES,
    FrameKind,
)
from blockplane.volume.codec import BRANCH_BYTES, RECORD_BYTES

_FRAME = struct.Struct("<4sHHQIIQIII")
#: The payload of a data frame is one frame of zstd.
FLAG_ZSTD: Final = 1
_HEAD_CRC_OFFSET: Final = 44
_CRC = struct.Struct("<I")
_PLANE_TABLE = struct.Struct("<QQ")


_KINDS: Final = frozenset(FrameKind)
_PLANES: Final = (FrameKind.IMAGE_PLANE, FrameKind.DROPPED_PLANE, FrameKind.PART_PLANE)


@dataclass(frozen=True, slots=True)
class Sealing:
    """How a frame of an encrypted stream lies there.

    head_bytes, payload_bytes : of it there. open : returns the payload, decrypted; into : the same into a buffer that
    has room for the payload, and returns its length.
    """

    head_bytes: int
    payload_bytes: int
    open: Callable[[memoryview], bytes]
    into: Callable[[memoryview, memoryview], int]


@dataclass(frozen=True, slots=True)
class FrameHead:
    """The head of a frame. `n_items` and `n_blocks` size the table that follows the fixed part.

    data: n_items extents, n_blocks blocks. Snapshots, branches, index: n_items records. Plane: n_items 0, the table is
    the first VBN and the count of the piece.
    """

    kind: FrameKind
    sequence: int
    head_bytes: int
    payload_bytes: int
    tag: int
    n_items: int
    n_blocks: int
    payload_crc: int
    table: bytes = b""
    flags: int = 0
    sealing: Sealing | None = field(default=None, compare=False, repr=False)
    _extents: list[Extents] = field(default_factory=list, compare=False, repr=False)

    @property
    def is_packed(self) -> bool:
        """Whether the payload is compressed."""
        return bool(self.flags & FLAG_ZSTD)

    @property
    def is_bare(self) -> bool:
        """Whether the payload lies in the stream as it is: neither compressed nor encrypted."""
        return not self.flags & FLAG_ZSTD and self.sealing is None

    @property
    def stored_head_bytes(self) -> int:
        """Bytes of the head in the stream."""
        return self.head_bytes if self.sealing is None else self.sealing.head_bytes

    @property
    def stored_bytes(self) -> int:
        """Bytes of the payload in the stream."""
        return self.payload_bytes if self.sealing is None else self.sealing.payload_bytes

    def extents(self) -> Extents:
        """Return a data frame's extents, (n, 2) [start, stop), in payload order: worked out once, not to be changed."""
        if not self._extents:
            extents = np.empty((self.n_items, 2), np.int64)
            extents[:, 0] = np.frombuffer(self.table, "<i8", self.n_items)
            extents[:, 1] = extents[:, 0] + np.frombuffer(self.table, "<u4", self.n_items, 8 * self.n_items)
            extents.flags.writeable = False
            self._extents.append(extents)
        return self._extents[0]

    @property
    def is_located(self) -> bool:
        """Whether a data frame lists where its blocks belong."""
        return self.n_items > 0

    def located(self, extents: Extents) -> FrameHead:
        """Return the head of a frame that lists no extents, with those that its place in the stream gives it."""
        extents.flags.writeable = False
        return replace(self, _extents=[extents])

    def checks(self) -> Checks:
        """Return the checks of a data frame's blocks, in payload order."""
        return np.frombuffer(self.table, "<u4", self.n_blocks, 12 * self.n_items)

    def roles(self) -> list[int]:
        """Return a snapshot frame's roles."""
        return [int(role) for role in np.frombuffer(self.table, "<u4", self.n_items)]

    def name(self) -> str:
        """Return a section's name, fit to be shown."""
        return text_of(self.table)

    def piece(self) -> tuple[int, int]:
        """Return a plane frame's first VBN and how many blocks the piece holds."""
        first, count = _PLANE_TABLE.unpack(self.table)
        return int(first), int(count)


def encode_frame_head(
    kind: FrameKind,
    sequence: int,
    tag: int,
    table: bytes,
    payload_bytes: int,
    n_items: int,
    n_blocks: int,
    crc: int,
    flags: int = 0,
) -> bytes:
    """Return a frame head, fixed part and table."""
    head_bytes = FRAME_FIXED_BYTES + len(table)
    fixed = _FRAME.pack(FRAME_MAGIC, kind, flags, sequence, head_bytes, payload_bytes, tag, n_items, n_blocks, crc)
    return fixed + _CRC.pack(crc32c(table, crc32c(fixed))) + table


def encode_data_head(
    sequence: int,
    tag: int,
    extents: Extents,
    checks: Checks,
    packed: bytes | memoryview | None = None,
    *,
    implicit: bool = False,
) -> bytes:
    """Return the head of a data frame over extents (n, 2) and its blocks' checks, both in payload order.

    Parameters
    ----------
    packed : the payload where it is compressed. implicit : the extents are left out.
    """
    if implicit:
        extents = extents[:0]
    counts = (extents[:, 1] - extents[:, 0]).astype("<u4")
    table = extents[:, 0].astype("<i8").tobytes() + counts.tobytes() + checks.astype("<u4", copy=False).tobytes()
    n_blocks = len(checks)
    sizes = (n_blocks * BLOCK_BYTES if packed is None else len(packed), len(extents), n_blocks)
    if packed is None:
        return encode_frame_head(FrameKind.DATA, sequence, tag, table, *sizes, 0)
    return encode_frame_head(FrameKind.DATA, sequence, tag, table, *sizes, crc32c(packed), FLAG_ZSTD)


def encode_piece_table(first_vbn: int, count: int) -> bytes:
    """Return the table of a plane frame."""
    return _PLANE_TABLE.pack(first_vbn, count)


def decode_frame_fixed(data: bytes) -> FrameHead:
    """Read the fixed part of a frame head; its table is not there yet, so its CRC32C is not checked.

    Raises
    ------
    StreamDamagedError : no frame starts here, or a length exceeds its cap.
    """
    return _fixed(bytes(data[:FRAME_FIXED_BYTES]))


@lru_cache(maxsize=64)  # asked twice of a head: how long it is, and once it is whole
def _fixed(data: bytes) -> FrameHead:
    magic, kind, flags, sequence, head_bytes, payload_bytes, tag, n_items, n_blocks, crc = _FRAME.unpack_from(data)
    known_flags = FLAG_ZSTD if kind == FrameKind.DATA else 0
    if kind & OPTIONAL_KIND:
        kind, known_flags = FrameKind.SECTION, 0xFFFF
    if magic != FRAME_MAGIC or kind not in _KINDS or flags & ~known_flags:
        raise StreamDamagedError("a frame of the stream does not start with its mark", "fetch the stream again")
    if not FRAME_FIXED_BYTES <= head_bytes <= MAX_HEAD_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise StreamDamagedError(f"frame {sequence} claims {head_bytes} bytes of head, {payload_bytes} of payload", "")
    head = FrameHead(
        FrameKind(kind), sequence, head_bytes, payload_bytes, tag, n_items, n_blocks, crc, flags=flags
    )  # fmt: skip
    table_bytes, body_bytes = _sizes(head)
    if head_bytes != FRAME_FIXED_BYTES + table_bytes or payload_bytes > body_bytes[1] or payload_bytes < body_bytes[0]:
        raise StreamDamagedError(f"frame {sequence} contradicts itself about its length", "fetch the stream again")
    return head


def _sizes(head: FrameHead) -> tuple[int, tuple[int, int]]:
    """Return the bytes of a frame's table, and the least and most of its payload."""
    n = head.n_items
    if head.kind is FrameKind.DATA:
        if not (n <= head.n_blocks and 0 < head.n_blocks <= MAX_FRAME_BLOCKS):
            raise StreamDamagedError(f"frame {head.sequence} claims {head.n_blocks} blocks in {n} extents", "")
        body_bytes = head.n_blocks * BLOCK_BYTES
        # a compressed one is shorter, or it would not be
        return 12 * n + 4 * head.n_blocks, (1, body_bytes - 1) if head.is_packed else (body_bytes, body_bytes)
    if head.kind in _PLANES:
        return _PLANE_TABLE.size, (1, MAX_PAYLOAD_BYTES)
    if head.kind is FrameKind.SECTION:
        n_name = head.head_bytes - FRAME_FIXED_BYTES
        if not 0 < n_name <= MAX_SECTION_NAME_BYTES:
            raise StreamDamagedError(f"frame {head.sequence} has a name of {n_name} bytes", "")
        return n_name, (1, MAX_PAYLOAD_BYTES)
    if head.kind is FrameKind.TRAILER:
        return 0, (TRAILER_BYTES,) * 2
    record_bytes = {FrameKind.SNAPSHOTS: RECORD_BYTES, FrameKind.BRANCHES: BRANCH_BYTES, FrameKind.INDEX: INDEX_BYTES}
    if not 0 < n <= MAX_PAYLOAD_BYTES // record_bytes[head.kind]:
        raise StreamDamagedError(f"frame {head.sequence} claims {n} records", "")
    return 4 * n if head.kind is FrameKind.SNAPSHOTS else 0, (n * record_bytes[head.kind],) * 2


def decode_frame_head(fixed: bytes, table: bytes, tag: int, sequence: int) -> FrameHead:
    """Read a whole frame head and hold it against the stream it should be part of.

    Raises
    ------
    StreamDamagedError : its CRC32C is wrong, or it contradicts itself about its length or its blocks.
    StreamOrderError : it is whole, but of another stream, or not the frame that comes next.
    """
    head = decode_frame_fixed(fixed)
    crc = crc32c(table, crc32c(fixed[:_HEAD_CRC_OFFSET]))
    if crc != _CRC.unpack_from(fixed, _HEAD_CRC_OFFSET)[0]:
        raise StreamDamagedError(f"the head of frame {sequence} does not match its checksum", "fetch the stream again")
    if len(table) != head.head_bytes - FRAME_FIXED_BYTES:
        raise StreamDamagedError(f"frame {sequence} contradicts itself about its length", "fetch the stream again")
    if head.tag != tag:
        raise StreamOrderError(f"frame {sequence} belongs to another stream", "fetch the stream again")
    if head.sequence != sequence:
        raise StreamOrderError(
            f"frame {head.sequence} comes where frame {sequence} belongs: frames are missing, doubled or out of order",
            "fetch the stream again",
        )
    whole = FrameHead(
        head.kind, sequence, head.head_bytes, head.payload_bytes, tag, head.n_items, head.n_blocks, head.payload_crc,
        table, head.flags,
    )  # fmt: skip
    if whole.kind is FrameKind.DATA and whole.is_located:
        _check_extents(whole)
    return whole


def _check_extents(head: FrameHead) -> None:
    """Hold a data frame's extents against its count: what is made of them later is no larger than that."""
    starts, stops = head.extents().T
    # a stop that wraps is below its start
    if starts.min() < 0 or (stops <= starts).any() or int((stops - starts).sum()) != head.n_blocks:
        message = f"frame {head.sequence} holds {head.n_blocks} blocks and names others"
        raise StreamDamagedError(message, "fetch the stream again")
