"""Byte layout of the image stream, version 0; FORMAT.md beside this file is its description.

The one module that knows these offsets. All integers are little-endian. Nothing here reads or writes a stream; decoding
checks every field against the caps below before anything is sized by it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final

import numpy as np

from blockplane.disks.geometry import GroupRecord
from blockplane.model.addresses import BLOCK_BYTES, Checks, Extents
from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError, StreamError, StreamOrderError
from blockplane.volume.codec import BRANCH_BYTES, CHECK_BYTES, CHECK_CRC32C, NO_ID, RECORD_BYTES, Pointer

#: A bit above ASCII, CR LF and ^Z: text-mode copying shows at once.
MAGIC: Final = b"\x89BPS\r\n\x1a\n"
#: 0 is the development format, which no release reads.
VERSION: Final = 0
FRAME_MAGIC: Final = b"BPfr"

MAX_HEADER_BYTES: Final = 1 << 16
MAX_HEAD_BYTES: Final = 1 << 16
MAX_PAYLOAD_BYTES: Final = 1 << 20
MAX_FRAME_BLOCKS: Final = MAX_PAYLOAD_BYTES // BLOCK_BYTES
MAX_FRAME_RECORDS: Final = MAX_PAYLOAD_BYTES // RECORD_BYTES
MAX_GROUPS: Final = 1024
#: 32 MiB and 4 MiB of records: what a stream may make its reader hold.
MAX_SNAPSHOTS: Final = 1 << 17
MAX_BRANCHES: Final = 1 << 16
#: VBNs of a stream lie below this: numbers fit int64 with room for sums.
MAX_SPACE_BLOCKS: Final = 1 << 56
#: A plane piece covers at most 64 Roaring containers: no encoding of it, bitsets included, exceeds 0.6 MiB.
PIECE_BLOCKS: Final = 64 << 16


class FrameKind(IntEnum):
    """What a frame holds. In a stream the kinds never descend, but that the part plane stands before the data."""

    SNAPSHOTS = 1
    BRANCHES = 2
    IMAGE_PLANE = 3
    DROPPED_PLANE = 4
    DATA = 5
    INDEX = 6
    TRAILER = 7
    PART_PLANE = 8


_KINDS: Final = frozenset(FrameKind)
_PLANES: Final = (FrameKind.IMAGE_PLANE, FrameKind.DROPPED_PLANE, FrameKind.PART_PLANE)


class Role(IntEnum):
    """What becomes of a snapshot of the stream at the destination."""

    TOP = 1
    ARRIVES = 2
    LEFT_OUT = 3
    BASE = 4


class Locations(IntEnum):
    """How a reader learns where a block belongs."""

    EXPLICIT = 1
    IMPLICIT = 2


@dataclass(frozen=True, slots=True)
class Features:
    """Masks of what a party must know to receive, to read files out of, and to write after a stream."""

    receiving: int = 0
    reading: int = 0
    writing: int = 0

    def __or__(self, other: Features) -> Features:
        return Features(
            self.receiving | other.receiving, self.reading | other.reading, self.writing | other.writing
        )  # fmt: skip


#: Data frames may be compressed with zstd; in `receiving` and in `reading`.
FEATURE_ZSTD: Final = 1
ZSTD_FEATURES: Final = Features(receiving=FEATURE_ZSTD, reading=FEATURE_ZSTD)
#: Only the blocks of the part plane follow; in `receiving` and in `reading`.
FEATURE_PART: Final = 2
PART_FEATURES: Final = Features(receiving=FEATURE_PART, reading=FEATURE_PART)
#: Bits that this release knows.
KNOWN_FEATURES: Final = ZSTD_FEATURES | PART_FEATURES
_FEATURE_NAMES: Final = {FEATURE_ZSTD: "zstd compression", FEATURE_PART: "parts of images"}


def feature_names(bits: int) -> str:
    """Return what a person is told of features that are not known here."""
    named = [name for bit, name in _FEATURE_NAMES.items() if bits & bit]
    unnamed = bits & ~sum(_FEATURE_NAMES)
    return " and ".join([*named, *([f"features {unnamed:#x} of a later release"] if unnamed else [])])


_HEADER = struct.Struct("<8sIIQQQ32s16s16s16s16s16sIIQQQQ16sIHHQ8sIIIIIHHQ32sQ16x")
HEADER_FIXED_BYTES: Final = 320
_GROUP = struct.Struct("<QQQHHI")
GROUP_BYTES: Final = _GROUP.size
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a stream: what it holds, where it fits, and what its reader must know.

    after_blocks counts what the destination holds of this image afterwards; plane_digest is `PlaneDigest` over the
    image plane and the dropped plane; base_id is zeros in a full image. part_blocks counts the part plane, and is 0
    where there is none: all of the image follows.
    """

    writer: str
    stream_id: bytes
    image_id: bytes
    space_id: bytes
    top_id: bytes
    space_blocks: int
    image_blocks: int
    root: Pointer
    base_id: bytes = NO_ID
    part: int = 0
    n_parts: int = 1
    after_blocks: int = 0
    dropped_blocks: int = 0
    order: str = "disk"
    order_version: int = 1
    window_blocks: int = 2048
    n_snapshots: int = 0
    n_branches: int = 0
    locations: Locations = Locations.EXPLICIT
    created_ns: int = 0
    plane_digest: bytes = bytes(32)
    groups: tuple[GroupRecord, ...] = ()
    features: Features = field(default_factory=Features)
    part_blocks: int = 0

    @property
    def is_part(self) -> bool:
        """Whether only the blocks of a part plane follow."""
        return bool(self.features.receiving & FEATURE_PART)

    @property
    def may_be_compressed(self) -> bool:
        """Whether data frames may be."""
        return bool(self.features.receiving & FEATURE_ZSTD)

    @property
    def following_blocks(self) -> int:
        """How many blocks follow."""
        return self.part_blocks if self.is_part else self.image_blocks

    @property
    def is_full(self) -> bool:
        """Whether the image has no base."""
        return self.base_id == NO_ID

    @property
    def tag(self) -> int:
        """The number that every frame of this stream carries."""
        return int(struct.unpack_from("<Q", self.stream_id)[0])

    def encode(self) -> bytes:
        """Return the header, its CRC32C in the last four bytes."""
        n_bytes = HEADER_FIXED_BYTES + GROUP_BYTES * len(self.groups) + _CRC.size
        f = self.features
        fixed = _HEADER.pack(
            MAGIC, VERSION, n_bytes, f.receiving, f.reading, f.writing, self.writer.encode()[:32],
            self.stream_id, self.image_id, self.space_id, self.top_id, self.base_id, self.part, self.n_parts,
            self.space_blocks, self.image_blocks, self.after_blocks, self.dropped_blocks, self.root.encode(),
            BLOCK_BYTES, CHECK_CRC32C, CHECK_BYTES, 0, self.order.encode(), self.order_version, self.window_blocks,
            self.n_snapshots, self.n_branches, len(self.groups), self.locations, 0, self.created_ns,
            self.plane_digest, self.part_blocks,
        )  # fmt: skip
        groups = b"".join(
            _GROUP.pack(g.first, g.disk_blocks, g.chunk_blocks, g.n_data, g.n_parity, 0) for g in self.groups
        )
        body = fixed + groups
        return body + _CRC.pack(crc32c(body))


def header_length(prefix: bytes) -> int:
    """Return how long the header is, given its first 16 bytes.

    Raises
    ------
    StreamError : not an image stream, or of another version.
    StreamDamagedError : the length is impossible.
    """
    magic, version, n_bytes = struct.unpack_from("<8sII", prefix)
    if magic != MAGIC:
        hint = "give a file that `blockplane send` wrote, copied in binary mode"
        raise StreamError(f"this is not an image stream: it starts with {prefix[:8]!r}", hint)
    if version != VERSION:
        message = f"the stream has format version {version}; this release reads {VERSION}"
        raise StreamError(message, "upgrade blockplane")
    if not HEADER_FIXED_BYTES + _CRC.size <= n_bytes <= MAX_HEADER_BYTES:
        raise StreamDamagedError(f"the stream's header claims {n_bytes} bytes", "fetch the stream again")
    return int(n_bytes)


def decode_header(data: bytes) -> Header:
    """Read a whole header.

    Raises
    ------
    StreamDamagedError : its CRC32C is wrong, or a field is out of range.
    StreamError : it needs features or kinds that this release does not know.
    """
    if len(data) != header_length(data) or crc32c(data[:-4]) != _CRC.unpack_from(data, len(data) - 4)[0]:
        raise StreamDamagedError("the stream's header does not match its checksum", "fetch the stream again")
    (
        _, _, _, receiving, reading, writing, writer, stream_id, image_id, space_id, top_id, base_id, part, n_parts,
        space_blocks, image_blocks, after_blocks, dropped_blocks, root, block_bytes, check_kind, check_bytes, zero,
        order, order_version, window_blocks, n_snapshots, n_branches, n_groups, locations, _, created_ns,
        plane_digest, part_blocks,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    features = Features(receiving, reading, writing)
    _require_known(features, block_bytes, check_kind, check_bytes)
    within = [
        ("space", space_blocks, MAX_SPACE_BLOCKS), ("image", image_blocks, space_blocks),
        ("after plane", after_blocks, space_blocks), ("dropped plane", dropped_blocks, space_blocks),
        ("window", window_blocks, 1 << 20), ("snapshot list", n_snapshots, MAX_SNAPSHOTS),
        ("branch history", n_branches, MAX_BRANCHES), ("group table", n_groups, MAX_GROUPS),
        ("part", part + 1, n_parts), ("part plane", part_blocks, image_blocks),
    ]  # fmt: skip
    for name, value, most in within:
        if value > most:
            raise StreamDamagedError(f"the stream's header claims {value} for its {name}; at most {most} can be", "")
    if part_blocks and not features.receiving & FEATURE_PART:
        raise StreamDamagedError(
            f"the stream's header claims a part plane of {part_blocks} blocks without being a part", ""
        )
    if HEADER_FIXED_BYTES + GROUP_BYTES * n_groups + _CRC.size != len(data) or zero:
        raise StreamDamagedError(f"the stream's header of {len(data)} bytes claims {n_groups} RAID groups", "")
    return Header(
        _text(writer), stream_id, image_id, space_id, top_id, space_blocks, image_blocks, _root(root, space_blocks),
        base_id, part, n_parts, after_blocks, dropped_blocks, _text(order), order_version, window_blocks, n_snapshots,
        n_branches, _locations(locations), created_ns, plane_digest,
        _groups(data, n_groups), features, part_blocks,
    )  # fmt: skip


def _require_known(features: Features, block_bytes: int, check_kind: int, check_bytes: int) -> None:
    unknown = features.receiving & ~KNOWN_FEATURES.receiving
    if unknown:
        raise StreamError(f"receiving this stream needs {feature_names(unknown)}", "upgrade blockplane")
    if block_bytes != BLOCK_BYTES or (check_kind, check_bytes) != (CHECK_CRC32C, CHECK_BYTES):
        raise StreamError(
            f"the stream has blocks of {block_bytes} bytes with checksums of kind {check_kind}, width {check_bytes}; "
            f"this release knows {BLOCK_BYTES}, {CHECK_CRC32C} and {CHECK_BYTES}",
            "upgrade blockplane",
        )


def _text(raw: bytes) -> str:
    """Return a NUL-padded text; what cannot be shown safely becomes a question mark."""
    text = raw.rstrip(b"\0").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _root(raw: bytes, space_blocks: int) -> Pointer:
    word = struct.unpack_from("<Q", raw)[0]
    if word >> 56 != 1 or (word & (1 << 56) - 1) >= space_blocks:
        raise StreamDamagedError(f"the stream's root pointer {word:#x} lies outside its space", "")
    return Pointer.decode(raw)


def _locations(value: int) -> Locations:
    if value not in (Locations.EXPLICIT, Locations.IMPLICIT):
        raise StreamError(f"the stream gives locations in an unknown way ({value})", "upgrade blockplane")
    return Locations(value)


def _groups(data: bytes, n_groups: int) -> tuple[GroupRecord, ...]:
    groups: list[GroupRecord] = []
    disk = end = 0
    for i in range(n_groups):
        first, disk_blocks, chunk, n_data, n_parity, _ = _GROUP.unpack_from(data, HEADER_FIXED_BYTES + i * GROUP_BYTES)
        if n_parity > 2 or not n_data or not 0 < chunk <= disk_blocks or disk_blocks > MAX_SPACE_BLOCKS // n_data:
            raise StreamDamagedError(f"RAID group {i} of the stream's header is impossible", "")
        if first < end or first % 65536 or first > MAX_SPACE_BLOCKS:
            raise StreamDamagedError(f"RAID group {i} of the stream's header starts at block {first}", "")
        disks = tuple(range(disk, disk + n_data + n_parity))
        groups.append(GroupRecord(first, n_data, n_parity, chunk, disk_blocks, disks))
        disk, end = disk + n_data + n_parity, first + n_data * disk_blocks
    return tuple(groups)


_FRAME = struct.Struct("<4sHHQIIQIII")
#: The payload of a data frame is one frame of zstd.
FLAG_ZSTD: Final = 1
_HEAD_CRC_OFFSET: Final = 44
FRAME_FIXED_BYTES: Final = 48
_PLANE_TABLE = struct.Struct("<QQ")


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
    _extents: list[Extents] = field(default_factory=list, compare=False, repr=False)

    @property
    def is_packed(self) -> bool:
        """Whether the payload is compressed."""
        return bool(self.flags & FLAG_ZSTD)

    def extents(self) -> Extents:
        """Return a data frame's extents, (n, 2) [start, stop), in payload order: worked out once, not to be changed."""
        if not self._extents:
            extents = np.empty((self.n_items, 2), np.int64)
            extents[:, 0] = np.frombuffer(self.table, "<i8", self.n_items)
            extents[:, 1] = extents[:, 0] + np.frombuffer(self.table, "<u4", self.n_items, 8 * self.n_items)
            extents.flags.writeable = False
            self._extents.append(extents)
        return self._extents[0]

    def checks(self) -> Checks:
        """Return the checks of a data frame's blocks, in payload order."""
        return np.frombuffer(self.table, "<u4", self.n_blocks, 12 * self.n_items)

    def roles(self) -> list[int]:
        """Return a snapshot frame's roles."""
        return [int(role) for role in np.frombuffer(self.table, "<u4", self.n_items)]

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
    sequence: int, tag: int, extents: Extents, checks: Checks, packed: bytes | memoryview | None = None
) -> bytes:
    """Return the head of a data frame over extents (n, 2) and its blocks' checks, both in payload order.

    Parameters
    ----------
    packed : the payload where it is compressed.
    """
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
    magic, kind, flags, sequence, head_bytes, payload_bytes, tag, n_items, n_blocks, crc = _FRAME.unpack_from(data)
    known_flags = FLAG_ZSTD if kind == FrameKind.DATA else 0
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
        if not 0 < n <= head.n_blocks <= MAX_FRAME_BLOCKS:
            raise StreamDamagedError(f"frame {head.sequence} claims {head.n_blocks} blocks in {n} extents", "")
        body_bytes = head.n_blocks * BLOCK_BYTES
        # a compressed one is shorter, or it would not be
        return 12 * n + 4 * head.n_blocks, (1, body_bytes - 1) if head.is_packed else (body_bytes, body_bytes)
    if head.kind in _PLANES:
        return _PLANE_TABLE.size, (1, MAX_PAYLOAD_BYTES)
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
    StreamDamagedError : its CRC32C is wrong, or it is a frame of another stream.
    StreamOrderError : it is whole, but not the frame that comes next.
    """
    head = decode_frame_fixed(fixed)
    crc = crc32c(table, crc32c(fixed[:_HEAD_CRC_OFFSET]))
    if crc != _CRC.unpack_from(fixed, _HEAD_CRC_OFFSET)[0]:
        raise StreamDamagedError(f"the head of frame {sequence} does not match its checksum", "fetch the stream again")
    if head.tag != tag:
        raise StreamOrderError(f"frame {sequence} belongs to another stream", "fetch the stream again")
    if head.sequence != sequence:
        raise StreamOrderError(
            f"frame {head.sequence} comes where frame {sequence} belongs: frames are missing, doubled or out of order",
            "fetch the stream again",
        )
    return replace(head, table=table, _extents=[])


_TRAILER = struct.Struct("<QQQQQQQQ")
_TRAILER_SHA_OFFSET: Final = 96
TRAILER_BYTES: Final = 128
#: A stream's last bytes: the trailer frame has one size.
TRAILER_FRAME_BYTES: Final = FRAME_FIXED_BYTES + TRAILER_BYTES


@dataclass(frozen=True, slots=True)
class Trailer:
    """The end of a stream: counts, where the index starts, and the digest over all that is not payload of data frames.

    n_frames counts the trailer; stream_bytes reach to its end; index_offset is 0 when there is no index.
    """

    n_frames: int
    n_data_frames: int
    n_blocks: int
    stream_bytes: int
    index_offset: int
    n_index: int
    digest: bytes = bytes(32)

    def encode_counts(self) -> bytes:
        """Return the part of the trailer that the digest covers."""
        counts = _TRAILER.pack(
            self.n_frames, self.n_data_frames, self.n_blocks, self.stream_bytes, self.index_offset, self.n_index, 0, 0
        )
        return counts.ljust(_TRAILER_SHA_OFFSET, b"\0")

    def encode(self) -> bytes:
        """Return the payload of the trailer frame."""
        return self.encode_counts() + self.digest


def decode_trailer(payload: bytes) -> Trailer:
    """Read the payload of the trailer frame."""
    n_frames, n_data_frames, n_blocks, stream_bytes, index_offset, n_index, _, _ = _TRAILER.unpack_from(payload)
    digest = payload[_TRAILER_SHA_OFFSET:]
    return Trailer(n_frames, n_data_frames, n_blocks, stream_bytes, index_offset, n_index, digest)


#: frame: offset in the stream of the frame's head; first: which block of the frame the extent begins with.
INDEX_DTYPE: Final = np.dtype([("vbn", "<i8"), ("frame", "<i8"), ("n_blocks", "<u4"), ("first", "<u4")])
INDEX_BYTES: Final = INDEX_DTYPE.itemsize
MAX_INDEX_ENTRIES: Final = MAX_PAYLOAD_BYTES // INDEX_BYTES


def encode_index(extents: Extents, frame: int) -> bytes:
    """Return the index entries of a data frame's extents (n, 2), in payload order; frame: offset of its head."""
    entries = np.zeros(len(extents), INDEX_DTYPE)
    counts = extents[:, 1] - extents[:, 0]
    entries["vbn"], entries["n_blocks"], entries["frame"] = extents[:, 0], counts, frame
    entries["first"] = np.cumsum(counts) - counts
    return entries.tobytes()
