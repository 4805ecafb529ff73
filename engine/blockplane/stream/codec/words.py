"""The words of the stream's format: its caps, the kinds of frames, roles, locations, features."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from blockplane.model.addresses import BLOCK_BYTES
from blockplane.volume.codec import RECORD_BYTES
from blockplane.volume.features import KNOWN_STATE_FEATURES, Features

#: A bit above ASCII, CR LF and ^Z: text-mode copying shows at once.
MAGIC: Final = b"\x89BPS\r\n\x1a\n"
#: 0 was that of development builds, which no release reads (FORMAT.md).
VERSION: Final = 1
FRAME_MAGIC: Final = b"BPfr"

MAX_HEADER_BYTES: Final = 1 << 16
MAX_HEAD_BYTES: Final = 1 << 16
MAX_PAYLOAD_BYTES: Final = 1 << 20
MAX_FRAME_BLOCKS: Final = MAX_PAYLOAD_BYTES // BLOCK_BYTES
MAX_FRAME_RECORDS: Final = MAX_PAYLOAD_BYTES // RECORD_BYTES
MAX_GROUPS: Final = 1024
#: 32 MiB of records: what a stream may make its reader hold.
MAX_SNAPSHOTS: Final = 1 << 17
#: VBNs of a stream lie below this: numbers fit int64 with room for sums.
MAX_SPACE_BLOCKS: Final = 1 << 56
#: A plane piece covers at most 64 Roaring containers: no encoding of it, bitsets included, exceeds 0.6 MiB.
PIECE_BLOCKS: Final = 64 << 16
#: Of a frame: its head without the table; of an index frame: an entry; of the trailer: all of its payload.
FRAME_FIXED_BYTES: Final = 48
INDEX_BYTES: Final = 24
MAX_INDEX_ENTRIES: Final = MAX_PAYLOAD_BYTES // INDEX_BYTES
TRAILER_BYTES: Final = 128


class FrameKind(IntEnum):
    """What a frame holds. Kinds never descend; but the part plane stands before the data, and sections anywhere."""

    SNAPSHOTS = 1
    BRANCHES = 2
    IMAGE_PLANE = 3
    DROPPED_PLANE = 4
    DATA = 5
    INDEX = 6
    TRAILER = 7
    PART_PLANE = 8
    #: What a reader may do without: any kind with the bit OPTIONAL_KIND that it does not know. It stands anywhere.
    SECTION = 0x8000


#: The bit of kinds that a reader may pass over, and the longest name that such a frame gives.
OPTIONAL_KIND: Final = 0x8000
MAX_SECTION_NAME_BYTES: Final = 64


class Role(IntEnum):
    """What becomes of a snapshot of the stream at the destination."""

    TOP = 1
    ARRIVES = 2
    LEFT_OUT = 3
    BASE = 4
    LENDER = 5


class Locations(IntEnum):
    """How a reader learns where a block belongs."""

    EXPLICIT = 1
    IMPLICIT = 2


#: Data frames may be compressed with zstd; in `receiving` and in `reading`.
FEATURE_ZSTD: Final = 1
ZSTD_FEATURES: Final = Features(receiving=FEATURE_ZSTD, reading=FEATURE_ZSTD)
#: Only the blocks of the part plane follow; in `receiving` and in `reading`.
FEATURE_PART: Final = 2
PART_FEATURES: Final = Features(receiving=FEATURE_PART, reading=FEATURE_PART)
#: All but a part of the header is encrypted; in `receiving` and in `reading`.
FEATURE_SEALED: Final = 4
SEALED_FEATURES: Final = Features(receiving=FEATURE_SEALED, reading=FEATURE_SEALED)
#: What does not follow is, under the same VBNs, in a snapshot that the destination has; in both.
FEATURE_LENT: Final = 8
LENT_FEATURES: Final = Features(receiving=FEATURE_PART | FEATURE_LENT, reading=FEATURE_PART | FEATURE_LENT)
#: Bits that this release knows.
KNOWN_FEATURES: Final = ZSTD_FEATURES | PART_FEATURES | SEALED_FEATURES | LENT_FEATURES | KNOWN_STATE_FEATURES
_FEATURE_NAMES: Final = {
    FEATURE_ZSTD: "zstd compression",
    FEATURE_PART: "parts of images",
    FEATURE_SEALED: "encryption",
    FEATURE_LENT: "lenders",
}


def feature_names(bits: int) -> str:
    """Return what a person is told of features that are not known here."""
    named = [name for bit, name in _FEATURE_NAMES.items() if bits & bit]
    unnamed = bits & ~sum(_FEATURE_NAMES)
    return " and ".join([*named, *([f"features {unnamed:#x} of a later release"] if unnamed else [])])
