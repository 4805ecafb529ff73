"""The end of an image stream: index entries and the trailer."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from blockplane.model.addresses import Extents
from blockplane.stream.codec.words import FRAME_FIXED_BYTES, TRAILER_BYTES

_TRAILER = struct.Struct("<QQQQQQQQ")
_TRAILER_SHA_OFFSET: Final = 96
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
_ENTRY = struct.Struct("<qqII")  # the same


def encode_index(extents: Extents, frame: int) -> bytes:
    """Return the index entries of a data frame's extents (n, 2), in payload order; frame: offset of its head."""
    if len(extents) == 1:
        start, stop = extents[0].tolist()
        return _ENTRY.pack(start, frame, stop - start, 0)
    entries = np.zeros(len(extents), INDEX_DTYPE)
    counts = extents[:, 1] - extents[:, 0]
    entries["vbn"], entries["n_blocks"], entries["frame"] = extents[:, 0], counts, frame
    entries["first"] = np.cumsum(counts) - counts
    return entries.tobytes()
