"""The header of an image stream: its bytes, checked field by field before anything is sized by one."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from blockplane.disks.geometry import GroupRecord
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError, StreamError, UsageError
from blockplane.stream.codec.words import (
    FEATURE_LENT,
    FEATURE_PART,
    FEATURE_SEALED,
    FEATURE_ZSTD,
    KNOWN_FEATURES,
    MAGIC,
    MAX_GROUPS,
    MAX_HEADER_BYTES,
    MAX_SNAPSHOTS,
    MAX_SPACE_BLOCKS,
    VERSION,
    Locations,
    feature_names,
)
from blockplane.volume.codec import CHECK_BYTES, CHECK_CRC32C, MAX_BRANCHES, NO_ID, Pointer
from blockplane.volume.features import Features

_HEADER = struct.Struct("<8sIIQQQ32s16s16s16s16s16sIIQQQQ16sIHHQ8sIIIIIHHQ32sQ16s")
HEADER_FIXED_BYTES: Final = 320
_GROUP = struct.Struct("<QQQHHI")
GROUP_BYTES: Final = _GROUP.size
_CRC = struct.Struct("<I")


def tag_of(stream_id: bytes) -> int:
    """Return the number that every frame of a stream carries."""
    return int(struct.unpack_from("<Q", stream_id)[0])


@dataclass(frozen=True, slots=True)
class Header:
    """The head of a stream: what it holds, where it fits, and what its reader must know.

    after_blocks counts what the destination holds of this image afterwards; plane_digest is `PlaneDigest` over the
    image plane and the dropped plane; base_id is zeros in a full image. part_blocks counts the part plane, and is 0
    where there is none: all of the image follows. carried_id is that of another image, whose interrupted receive has
    the blocks that do not follow; zeros: a receive of this one has them.
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
    carried_id: bytes = NO_ID

    @property
    def is_part(self) -> bool:
        """Whether only the blocks of a part plane follow."""
        return bool(self.features.receiving & FEATURE_PART)

    @property
    def is_one_of_parts(self) -> bool:
        """Whether other streams bring the blocks of the image that do not follow."""
        return self.is_part and self.n_parts > 1

    @property
    def is_lent(self) -> bool:
        """Whether the blocks that do not follow are those of a snapshot that the destination has."""
        return bool(self.features.receiving & FEATURE_LENT)

    @property
    def is_sealed(self) -> bool:
        """Whether the stream is encrypted."""
        return bool(self.features.receiving & FEATURE_SEALED)

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
        return tag_of(self.stream_id)

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
            self.plane_digest, self.part_blocks, self.carried_id,
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
        hint = "upgrade blockplane" if version > VERSION else "a development build wrote it: send it again"
        raise StreamError(message, hint)
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
        plane_digest, part_blocks, carried_id,
    ) = _HEADER.unpack_from(data)  # fmt: skip
    features = Features(receiving, reading, writing)
    require_known(features)
    _require_kinds(block_bytes, check_kind, check_bytes)
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
    if (part_blocks or carried_id != NO_ID) and not features.receiving & FEATURE_PART:
        raise StreamDamagedError(
            f"the stream's header claims a part plane of {part_blocks} blocks without being a part", ""
        )
    if HEADER_FIXED_BYTES + GROUP_BYTES * n_groups + _CRC.size != len(data) or zero:
        raise StreamDamagedError(f"the stream's header of {len(data)} bytes claims {n_groups} RAID groups", "")
    return Header(
        text_of(writer), stream_id, image_id, space_id, top_id, space_blocks, image_blocks, _root(root, space_blocks),
        base_id, part, n_parts, after_blocks, dropped_blocks, text_of(order), order_version, window_blocks, n_snapshots,
        n_branches, _locations(locations), created_ns, plane_digest,
        _groups(data, n_groups), features, part_blocks, carried_id,
    )  # fmt: skip


def require_known(features: Features) -> None:
    """Raise StreamError where receiving needs what this release does not know."""
    unknown = features.beyond(KNOWN_FEATURES).receiving
    if unknown:
        raise StreamError(f"receiving this stream needs {feature_names(unknown)}", "upgrade blockplane")


def _require_kinds(block_bytes: int, check_kind: int, check_bytes: int) -> None:
    if block_bytes != BLOCK_BYTES or (check_kind, check_bytes) != (CHECK_CRC32C, CHECK_BYTES):
        raise StreamError(
            f"the stream has blocks of {block_bytes} bytes with checksums of kind {check_kind}, width {check_bytes}; "
            f"this release knows {BLOCK_BYTES}, {CHECK_CRC32C} and {CHECK_BYTES}",
            "upgrade blockplane",
        )


def text_of(raw: bytes) -> str:
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
        try:
            groups.append(GroupRecord(first, n_data, n_parity, chunk, disk_blocks, disks))
        except UsageError as error:
            raise StreamDamagedError(
                f"RAID group {i} of the stream's header is impossible: {error.message}", ""
            ) from error
        disk, end = disk + n_data + n_parity, first + n_data * disk_blocks
    return tuple(groups)
