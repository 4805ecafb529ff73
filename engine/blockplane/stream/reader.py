"""Reads an image stream in order and holds every byte of it against what the format promises.

The reader allocates nothing by an unchecked field: heads and payloads have fixed caps, planes come in pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from blockplane.image.extents import numbers_in
from blockplane.model.addresses import BLOCK_BYTES, Bytes
from blockplane.model.checks import crc32c, first_bad_block
from blockplane.model.errors import StreamDamagedError, StreamError, StreamOrderError, StreamTruncatedError
from blockplane.planes import Plane, combine_count
from blockplane.stream import codec
from blockplane.stream.codec import FrameHead, FrameKind, Header, Locations, Role, Trailer
from blockplane.stream.digest import PlaneDigest, image_id
from blockplane.stream.encryption import framing_of
from blockplane.stream.input import Input
from blockplane.stream.keyfile import Key
from blockplane.stream.locations import ImplicitLocations
from blockplane.stream.records import piece_of, record_of, role_of
from blockplane.volume.codec import BRANCH_BYTES, KIND_REGULAR, NO_ID, RECORD_BYTES, Branch, SnapshotRecord

_HEADER_PREFIX_BYTES: Final = 16
_AGAIN: Final = "fetch the stream again"
#: So many names of sections are kept.
_MAX_SECTIONS: Final = 64


@dataclass(frozen=True, slots=True)
class StreamMap:
    """All that stands before the data.

    snapshots : the records and what becomes of each, top first.
    image : the VBNs of the image.
    dropped : the VBNs of the base that the destination holds no longer.
    part : of a stream that brings a part of its image, the VBNs whose blocks follow; else None.
    sections : names of what stood before the data that this release does not know, and does without.
    """

    header: Header
    snapshots: tuple[tuple[SnapshotRecord, Role], ...]
    branches: tuple[Branch, ...]
    image: Plane
    dropped: Plane
    part: Plane | None = None
    sections: tuple[str, ...] = ()

    @property
    def following(self) -> Plane:
        """The VBNs whose blocks follow."""
        return self.image if self.part is None else self.part

    @property
    def top(self) -> SnapshotRecord:
        """The newest snapshot of the image."""
        return next(record for record, role in self.snapshots if role is Role.TOP)

    @property
    def base(self) -> SnapshotRecord | None:
        """The snapshot the image builds on."""
        return next((record for record, role in self.snapshots if role is Role.BASE), None)

    @property
    def lender(self) -> SnapshotRecord | None:
        """The snapshot of the destination that has the blocks of the image that do not follow."""
        return next((record for record, role in self.snapshots if role is Role.LENDER), None)

    def arriving(self) -> list[SnapshotRecord]:
        """Return the snapshots that arrive, older first: the top is the last."""
        return [*reversed(self.with_role(Role.ARRIVES)), self.top]

    def with_role(self, role: Role) -> list[SnapshotRecord]:
        """Return the snapshots of a role, newest first."""
        return [record for record, its in self.snapshots if its is role]


class StreamReader:
    """One stream from one input: `read_map`, then `next_data` and `read_payload` in turns, then `trailer`.

    Parameters
    ----------
    origin : stays an attribute. keys : those at hand, for a stream that is encrypted.
    """

    def __init__(self, origin: Input, keys: Sequence[Key] = ()) -> None:
        self.origin = origin
        self._keys = keys
        self._sha = self._sha_before = hashlib.sha256()
        #: over the index entries that the data frames call for, and over those that came
        self._index_due, self._index_found = hashlib.sha256(), hashlib.sha256()
        self._sequence = 0
        self._n_data_frames = self._n_blocks = self._n_index = self._index_offset = 0
        self._held: FrameHead | None = None
        self._locations: ImplicitLocations | None = None
        self._payload_due = 0
        self._sections: dict[str, None] = {}
        self.n_bytes = 0
        self.header = self._read_header()
        self.trailer: Trailer | None = None

    # --- header, snapshots, planes -----------------------------------------------------------------------------------

    def _read_header(self) -> Header:
        data = read_header(self.origin)
        self.n_bytes = len(data)
        self.framing, header = framing_of(data, self._keys, self.origin.name)
        self._sha.update(header)
        return codec.decode_header(header)

    def read_map(self) -> StreamMap:
        """Read what stands before the data.

        Raises
        ------
        StreamTruncatedError, StreamDamagedError, StreamOrderError : as the class names say.
        """
        records = self._records(FrameKind.SNAPSHOTS, self.header.n_snapshots)
        branches = self._records(FrameKind.BRANCHES, self.header.n_branches)
        digest = PlaneDigest()
        image = self._plane(FrameKind.IMAGE_PLANE, self.header.image_blocks, digest)
        dropped = self._plane(FrameKind.DROPPED_PLANE, self.header.dropped_blocks, digest)
        if digest.digest() != self.header.plane_digest:
            raise StreamDamagedError("the planes of the stream do not match their digest", _AGAIN)
        header = self.header
        if header.image_id != image_id(header.space_id, header.top_id, header.base_id, header.plane_digest):
            raise StreamDamagedError("the stream's image id is not that of its snapshots and planes", _AGAIN)
        part = self._part(image)
        snapshots = tuple((record_of(raw), role_of(role)) for raw, role in records)
        line = tuple(Branch.decode(raw) for raw, _ in branches)
        found = StreamMap(header, snapshots, line, image, dropped, part, tuple(self._sections))
        _check_roles(found)
        if self.header.locations is Locations.IMPLICIT:
            self._locations = ImplicitLocations(header, found.following)
        return found

    def _part(self, image: Plane) -> Plane | None:
        """Return the part plane, where there is one: some of the image."""
        header = self.header
        if not header.is_part:
            return None
        if header.is_one_of_parts and (header.is_lent or any(header.carried_id)):
            raise StreamDamagedError(
                "the stream claims that other parts bring the rest, and that it is elsewhere", _AGAIN
            )
        part = self._plane(FrameKind.PART_PLANE, self.header.part_blocks, PlaneDigest())
        if combine_count([part], minus=image):
            raise StreamDamagedError("the stream claims to bring blocks that are not in its image", _AGAIN)
        return part

    def _records(self, kind: FrameKind, n_records: int) -> list[tuple[bytes, int]]:
        size = RECORD_BYTES if kind is FrameKind.SNAPSHOTS else BRANCH_BYTES
        found: list[tuple[bytes, int]] = []
        while (head := self._peek()).kind is kind:
            payload = self._take_payload(head)
            roles = head.roles() if kind is FrameKind.SNAPSHOTS else [0] * head.n_items
            found += [(payload[i * size : (i + 1) * size], role) for i, role in enumerate(roles)]
            if len(found) > n_records:
                break
        if len(found) != n_records:
            name = kind.name.lower()
            raise StreamDamagedError(f"the stream claims {n_records} {name} and holds {len(found)}", _AGAIN)
        return found

    def _plane(self, kind: FrameKind, n_blocks: int, digest: PlaneDigest) -> Plane:
        space, next_first, total = self.header.space_blocks, 0, 0
        builder = Plane.builder(space)
        while (head := self._peek()).kind is kind:
            first, count = head.piece()
            if first % codec.PIECE_BLOCKS or first < next_first or first >= space:
                raise StreamDamagedError(f"a plane piece of the stream starts at block {first}", _AGAIN)
            piece = piece_of(self._take_payload(head), min(codec.PIECE_BLOCKS, space - first), count)
            total, next_first = total + count, first + codec.PIECE_BLOCKS
            if total > n_blocks:
                break
            extents = piece.extents()
            low, stop = int(extents[0, 0]) // 64, (int(extents[-1, 1]) + 63) // 64
            builder.append(
                first // 64 + low, piece.word_range(low, stop - low)
            )  # most pieces of a sparse plane: a word
            digest.update(extents + first)
        if total != n_blocks:
            name = kind.name.lower().replace("_", " ")
            raise StreamDamagedError(f"the stream claims {n_blocks} blocks for its {name} and lists {total}", _AGAIN)
        digest.end_plane()
        return builder.finish()

    def data_start(self) -> tuple[int, int, hashlib._Hash]:
        """Return where the first frame behind the planes begins, its number, the digest so far; after `read_map`."""
        head = self._peek()
        return self.n_bytes - head.stored_head_bytes, head.sequence, self._sha_before

    # --- data --------------------------------------------------------------------------------------------------------

    def require_receivable(self) -> None:
        """Refuse what this release reads but cannot receive.

        Raises
        ------
        StreamError : the stream is a part of an image, and does not say which.
        """
        header = self.header
        if header.n_parts != 1 and not header.is_part:
            raise StreamError(f"the stream is part {header.part + 1} of {header.n_parts}", "send the image whole")

    def next_data(self) -> FrameHead | None:
        """Read the head of the next data frame; None after the last, when index and trailer have been read too.

        Raises
        ------
        StreamTruncatedError, StreamDamagedError, StreamOrderError : as the class names say; the trailer's counts and
            digest are compared here.
        StreamError : something stands behind the trailer, in a file that was named.
        """
        if self._payload_due:
            raise ValueError("the payload of the last data frame was not read")
        if self.trailer is not None:
            return None
        head = self._peek()
        if head.kind is not FrameKind.DATA:
            self._read_end()
            return None
        self._held = None
        if head.is_packed and not self.header.features.receiving & codec.FEATURE_ZSTD:
            raise StreamDamagedError(f"frame {head.sequence} is compressed, and the header knows nothing of it", _AGAIN)
        if head.is_located is (self._locations is not None):
            raise StreamDamagedError(f"frame {head.sequence} and the header differ about locations", _AGAIN)
        if self._locations is not None:
            head = self._locations.take(head)
        self._check_extents(head)
        self._payload_due = head.stored_bytes
        self._index_due.update(codec.encode_index(head.extents(), self.n_bytes - head.stored_head_bytes))
        self._n_data_frames += 1
        self._n_blocks += head.n_blocks
        return head

    def _check_extents(self, head: FrameHead) -> None:
        if head.extents()[:, 1].max() > self.header.space_blocks:
            raise StreamDamagedError(f"frame {head.sequence} names blocks outside the stream's space", _AGAIN)

    def read_payload(self, buffers: Sequence[memoryview]) -> None:
        """Read the payload of the data frame into buffers whose sizes add up to it; unverified, and as it is stored."""
        wanted = sum(len(buffer) for buffer in buffers)
        if wanted != self._payload_due:
            raise ValueError(f"buffers of {wanted} bytes for a payload of {self._payload_due}")
        n_read = self.origin.read_into(buffers)
        self.n_bytes += n_read
        if n_read < wanted:
            raise self._truncated(f"frame {self._sequence - 1}")
        self._payload_due = 0

    def skip_payload(self) -> None:
        """Pass over the payload of the data frame."""
        n_skipped = self.origin.skip(self._payload_due)
        self.n_bytes += n_skipped
        if n_skipped < self._payload_due:
            raise self._truncated(f"frame {self._sequence - 1}")
        self._payload_due = 0

    # --- end ---------------------------------------------------------------------------------------------------------

    def _read_end(self) -> None:
        while (head := self._peek()).kind is FrameKind.INDEX:
            self._index_offset = self._index_offset or self.n_bytes - head.stored_head_bytes
            self._index_found.update(self._take_payload(head))
            self._n_index += head.n_items
        if head.kind is not FrameKind.TRAILER:
            raise StreamOrderError(f"a frame of {head.kind.name.lower()} stands at the stream's end", _AGAIN)
        payload = self._payload(head)
        found = codec.decode_trailer(payload)
        counts = (
            self._sequence, self._n_data_frames, self._n_blocks, self.n_bytes, self._index_offset, self._n_index
        )  # fmt: skip
        expected = Trailer(*counts)
        if found.encode_counts() != expected.encode_counts():
            raise StreamDamagedError("the stream's trailer counts other frames than the stream holds", _AGAIN)
        if self._index_found.digest() != self._index_due.digest():
            raise StreamDamagedError("the stream's index does not list its blocks as they lie", _AGAIN)
        self._sha.update(found.encode_counts())
        if found.digest != self._sha.digest():
            raise StreamDamagedError("the stream does not match the digest in its trailer", _AGAIN)
        if self.origin.is_whole and self.origin.read_into([memoryview(bytearray(1))]):
            raise StreamError(
                f"there are bytes behind the trailer of the stream {self.origin.name}, after {self.n_bytes} bytes",
                "a stream file holds one stream and nothing else; fetch it again, or pipe in what belongs to it",
            )
        self.trailer = found

    # --- frames ------------------------------------------------------------------------------------------------------

    def _peek(self) -> FrameHead:
        """Return the head of the next frame, reading it if need be; sections are passed over."""
        while self._held is None:
            fixed = self._exactly(codec.FRAME_FIXED_BYTES, f"frame {self._sequence}")
            rest = self._exactly(self.framing.rest_bytes(fixed), f"frame {self._sequence}")
            self._held, head = self.framing.head(fixed, rest, self.header.tag, self._sequence)
            self._sequence = self._held.sequence + 1
            self._sha_before = self._sha.copy()
            if self._held.kind is not FrameKind.TRAILER:
                self._sha.update(head)
            if self._held.kind is FrameKind.SECTION:
                if len(self._sections) < _MAX_SECTIONS:
                    self._sections[self._held.name()] = None
                self._take_payload(self._held)
        return self._held

    def _take_payload(self, head: FrameHead) -> bytes:
        """Read the payload of a frame that is not data, check it and add it to the digest."""
        payload = self._payload(head)
        self._sha.update(payload)
        return payload

    def _payload(self, head: FrameHead) -> bytes:
        self._held = None
        stored = self._exactly(head.stored_bytes, f"frame {head.sequence}")
        payload = stored if head.sealing is None else head.sealing.open(memoryview(stored))
        if crc32c(payload) != head.payload_crc:
            raise StreamDamagedError(f"frame {head.sequence} does not match its checksum", _AGAIN)
        return payload

    def _exactly(self, n_bytes: int, where: str) -> bytes:
        buffer = bytearray(n_bytes)
        n_read = self.origin.read_into([memoryview(buffer)]) if n_bytes else 0
        self.n_bytes += n_read
        if n_read < n_bytes:
            raise self._truncated(where)
        return bytes(buffer)

    def _truncated(self, where: str) -> StreamTruncatedError:
        return _cut_off(self.origin, self.n_bytes, where)


def read_header(origin: Input) -> bytes:
    """Read the header of the stream that an input begins with; nothing of it was decoded.

    Raises
    ------
    StreamError and its kinds : it is no stream, of another version, or cut off.
    """
    data = b""
    for n_bytes in (_HEADER_PREFIX_BYTES, None):
        buffer = bytearray((codec.header_length(data) if n_bytes is None else n_bytes) - len(data))
        n_read = origin.read_into([memoryview(buffer)])
        data += buffer[:n_read]
        if n_read < len(buffer):
            raise _cut_off(origin, len(data), "its header")
    return data


def _cut_off(origin: Input, n_bytes: int, where: str) -> StreamTruncatedError:
    return StreamTruncatedError(
        f"the stream {origin.name} ends after {n_bytes} bytes, in {where}",
        "it was cut off; send it again or fetch the rest",
    )


def _check_roles(found: StreamMap) -> None:
    """Hold the snapshot list against the header."""
    header = found.header
    tops, bases = found.with_role(Role.TOP), found.with_role(Role.BASE)
    if len(tops) != 1 or tops[0].id != header.top_id or tops[0].root != header.root:
        raise StreamDamagedError("the stream's snapshot list does not name the top of its header", _AGAIN)
    if [base.id for base in bases] != ([] if header.is_full else [header.base_id]):
        raise StreamDamagedError("the stream's snapshot list does not name the base of its header", _AGAIN)
    is_lent, n_lenders = header.is_lent, len(found.with_role(Role.LENDER))
    if n_lenders != is_lent or (is_lent and not (header.is_part and header.is_full)):
        raise StreamDamagedError("the stream's header and its snapshot list differ about a lender", _AGAIN)
    ids = {record.id for record, _ in found.snapshots}
    if len(ids) != len(found.snapshots):
        raise StreamDamagedError("the stream lists a snapshot twice", _AGAIN)
    arriving = [record for record, role in found.snapshots if role in (Role.TOP, Role.ARRIVES)]
    if any(record.kind != KIND_REGULAR or record.id == NO_ID for record in arriving):
        raise StreamDamagedError("the stream brings a snapshot that is not a regular one, or has no id", _AGAIN)
    if any(record.space_id != header.space_id for record in (*tops, *found.with_role(Role.LENDER))):
        raise StreamDamagedError("the stream's header is of another numbering than its top, or its lender", _AGAIN)


def verify_payload(head: FrameHead, payload: Bytes) -> None:
    """Hold the blocks of a data frame, not compressed, against their checks.

    Raises
    ------
    StreamDamagedError : a block does not match; the message names it.
    """
    if len(payload) != head.n_blocks * BLOCK_BYTES:
        raise ValueError(f"{len(payload)} bytes for {head.n_blocks} blocks")
    numbers = numbers_in(head.extents())
    bad = first_bad_block(payload, numbers, head.checks())
    if bad >= 0:
        raise bad_block(head, int(numbers[bad]))


def bad_block(head: FrameHead, vbn: int) -> StreamDamagedError:
    """Return the error for a block that does not match its check."""
    error = StreamDamagedError(f"block {vbn} in frame {head.sequence} does not match its checksum", _AGAIN)
    error.sequence = head.sequence
    return error
