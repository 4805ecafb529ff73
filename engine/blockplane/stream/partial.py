"""Half-written stream files: what of one is whole, so that its writer can go on behind that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blockplane.image.extents import numbers_in
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import StreamDamagedError, StreamError, StreamOrderError, StreamTruncatedError
from blockplane.planes import Plane
from blockplane.stream import codec
from blockplane.stream.codec import FrameHead, FrameKind, Locations
from blockplane.stream.input import FileInput
from blockplane.stream.keyfile import Key
from blockplane.stream.locations import ImplicitLocations
from blockplane.stream.payload import contents
from blockplane.stream.reader import StreamMap, StreamReader
from blockplane.stream.stored import Stored
from blockplane.stream.written import Written, new_index


@dataclass(frozen=True, slots=True)
class PartialStream:
    """What of a stream file is whole. copied : the VBNs of its whole data frames."""

    map: StreamMap
    written: Written
    copied: Plane


def read_partial(stored: Stored, keys: Sequence[Key] = ()) -> PartialStream | None:
    """Read a half-written stream from its start, every byte held against its checksums, up to its last whole frame.

    Parameters
    ----------
    stored : what was written. keys : those at hand, where it is encrypted.

    Returns
    -------
    what its writer goes on from, and what is whole of it; None where not even what stands before the data is.

    Raises
    ------
    StreamError : the file is no stream, is of another version, or cannot be gone on with. StreamKeyError : it is
        encrypted with another key.
    """
    start = stored.read(len(codec.MAGIC), 0)
    if not any(start):  # nothing, or room that was made for a stream
        return None
    if start != codec.MAGIC[: len(start)]:
        raise StreamError(f"{stored.name} is not an image stream: it starts with {start!r}", "move it out of the way")
    try:
        reader = StreamReader(FileInput(stored), keys)
        stream = reader.read_map()
        offset, sequence, sha = reader.data_start()
    except (StreamTruncatedError, StreamDamagedError, StreamOrderError):
        return None
    written = Written(stream.header, reader.framing, sha, new_index(), sequence, offset)
    partial = PartialStream(stream, written, Plane.empty(stream.header.space_blocks))
    try:
        if stream.header.locations is Locations.IMPLICIT:
            _read_windows(stored, partial, ImplicitLocations(stream.header, stream.following))
        while (found := _whole_frame(stored, partial)) is not None and stream.header.locations is Locations.EXPLICIT:
            note_frame(partial, *found)
    except BaseException:
        written.index.close()
        raise
    return partial


def _read_windows(stored: Stored, partial: PartialStream, places: ImplicitLocations) -> None:
    """Go through frames whose order says what they hold, back to the end of the last whole window: there it goes on."""
    written, window_blocks = partial.written, partial.map.header.window_blocks
    whole, since = written.mark(), [np.empty(0, np.int64)]
    while (found := _whole_frame(stored, partial, places)) is not None:
        note_frame(partial, *found)
        since.append(numbers_in(found[0].extents()))
        if written.n_blocks % window_blocks == 0:
            whole, since = written.mark(), since[:1]
    written.go_back(whole)
    partial.copied.remove_many(np.concatenate(since))


def _whole_frame(
    stored: Stored, partial: PartialStream, places: ImplicitLocations | None = None
) -> tuple[FrameHead, bytes] | None:
    """Return the next data frame's head if it is whole, and brings blocks of the image that did not come before."""
    written = partial.written
    fixed = stored.read(codec.FRAME_FIXED_BYTES, written.n_bytes)
    if len(fixed) < codec.FRAME_FIXED_BYTES:
        return None
    try:
        n_rest = written.framing.rest_bytes(fixed)
        rest = stored.read(n_rest, written.n_bytes + len(fixed))
        if len(rest) < n_rest:
            return None
        head, raw = written.framing.head(fixed, rest, written.header.tag, written.sequence)
        if head.kind is FrameKind.DATA and head.is_located is (places is not None):
            return None
        if head.kind is FrameKind.DATA and places is not None:
            head = places.take(head)
        payload = stored.read(head.stored_bytes, written.n_bytes + head.stored_head_bytes)
        is_good = head.kind is FrameKind.DATA and _is_good(head, payload, partial)
    except (StreamDamagedError, StreamOrderError):
        return None
    return (head, raw) if is_good else None


def _is_good(head: FrameHead, stored: bytes, partial: PartialStream) -> bool:
    numbers = numbers_in(head.extents())
    if len(stored) < head.stored_bytes or (numbers >= partial.map.image.n_blocks).any():
        return False
    if not partial.map.following.contains_many(numbers).all() or partial.copied.contains_many(numbers).any():
        return False
    blocks = np.frombuffer(stored if head.is_bare else contents(head, memoryview(stored)), np.uint8)
    return first_bad_block(blocks, numbers, head.checks()) < 0


def note_frame(partial: PartialStream, head: FrameHead, raw: bytes) -> None:
    """Take a whole data frame into what is written. raw : its head as the digest takes it."""
    extents, written = head.extents(), partial.written
    written.sha.update(raw)
    written.index.write(codec.encode_index(extents, written.n_bytes))
    partial.copied.add_many(numbers_in(extents))
    written.sequence += 1
    written.n_data_frames += 1
    written.n_blocks += head.n_blocks
    written.n_index += len(extents)
    written.n_bytes += head.stored_head_bytes + head.stored_bytes
