"""Offers: what a destination says of a snapshot it has, block by block; OFFER.md beside this file describes the bytes.

The one module that knows these offsets. All integers are little-endian. An offer is read from whoever wrote it: nothing
is sized by a field that was not held against its cap, and no more than a frame is in memory, beside the plane.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Final

import numpy as np

from blockplane.image.expression import is_name
from blockplane.image.extents import numbers_in, portions
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.checks import crc32c
from blockplane.model.errors import BlockplaneError, StreamDamagedError, StreamError, StreamTruncatedError
from blockplane.planes import Plane, PlaneFormatError
from blockplane.stream.arrival import n_workers
from blockplane.stream.codec import MAX_PAYLOAD_BYTES, MAX_SPACE_BLOCKS, PIECE_BLOCKS
from blockplane.stream.input import Input
from blockplane.stream.sink import Sink
from blockplane.stream.writer import plane_pieces
from blockplane.volume.codec import CHECK_BYTES, CHECK_CRC32C, KIND_REGULAR, RECORD_BYTES, SnapshotRecord

#: As the stream's magic, but for one letter.
MAGIC: Final = b"\x89BPO\r\n\x1a\n"
#: 0 until the first release.
VERSION: Final = 1
FRAME_MAGIC: Final = b"BPof"
#: SHA-256: with the processor's instructions 1.6 GB/s a core here, where BLAKE2b had 0.9 and BLAKE2s 0.5.
DIGEST_SHA256: Final = 1
DIGEST_BYTES: Final = 32
#: Blocks a digest covers: 8 cost 4 + 4 bytes a block (0.2 %, 2 GiB a TiB); a block that differs has the rest of its run
#: sent with it. Turn it down for changes that lie scattered one by one, up for a slow way back.
RUN_BLOCKS: Final = 8
MAX_RUN_BLOCKS: Final = 256
#: Blocks a frame speaks of, at most: 16 MiB, read together.
_FRAME_BLOCKS: Final = 4096

_HEADER = struct.Struct("<8sII16sqQQIHHHHI256s")
_CRC = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size
_FRAME = struct.Struct("<4sHHQIIQQI")
FRAME_BYTES: Final = _FRAME.size + _CRC.size
_LOW: Final = (1 << 32) - 1
_AGAIN: Final = "make the offer again, or copy it again"


class OfferKind(IntEnum):
    """What a frame of an offer holds; the kinds never descend."""

    PLANE = 1
    BLOCKS = 2
    END = 3


@dataclass(frozen=True, slots=True)
class OfferHeader:
    """The head of an offer.

    record : of the snapshot. run_blocks : neighbours in its plane that one digest covers.
    """

    record: SnapshotRecord
    space_blocks: int
    run_blocks: int = RUN_BLOCKS
    offer_id: bytes = field(default_factory=lambda: os.urandom(16))
    created_ns: int = field(default_factory=time.time_ns)

    @property
    def frame_blocks(self) -> int:
        """Blocks of every blocks frame but the last: whole runs."""
        return _FRAME_BLOCKS // self.run_blocks * self.run_blocks

    @property
    def tag(self) -> int:
        """The number that every frame of this offer carries."""
        return int.from_bytes(self.offer_id[:8], "little")

    def encode(self) -> bytes:
        """Return the header, its CRC32C in the last four bytes."""
        body = _HEADER.pack(
            MAGIC, VERSION, HEADER_BYTES, self.offer_id, self.created_ns, self.space_blocks, self.record.n_blocks,
            self.run_blocks, DIGEST_SHA256, DIGEST_BYTES, CHECK_CRC32C, CHECK_BYTES, 0, self.record.encode(),
        )  # fmt: skip
        return body + _CRC.pack(crc32c(body))

    @classmethod
    def decode(cls, data: bytes) -> OfferHeader:
        """Read a header.

        Raises
        ------
        StreamError, StreamDamagedError : it is none, of another version, or damaged.
        """
        if not data.startswith(MAGIC):
            hint = "give what `blockplane receive VOL --offer` wrote, copied in binary mode"
            raise StreamError(f"this is not an offer: it starts with {data[:8]!r}", hint)
        _, version, n_bytes, *rest = _HEADER.unpack_from(data)
        if version != VERSION:
            raise StreamError(f"the offer has format version {version}; this release reads {VERSION}", "")
        if n_bytes != HEADER_BYTES or crc32c(data[:-4]) != _CRC.unpack_from(data, len(data) - 4)[0]:
            raise StreamDamagedError("the offer's header does not match its checksum", _AGAIN)
        offer_id, created_ns, space_blocks, n_blocks, run_blocks, *kinds, zero, raw = rest
        if kinds != [DIGEST_SHA256, DIGEST_BYTES, CHECK_CRC32C, CHECK_BYTES]:
            raise StreamError(f"the offer has digests or checksums of another kind: {kinds}", "upgrade blockplane")
        record = _record(raw)
        if zero or not 1 <= run_blocks <= MAX_RUN_BLOCKS or not 0 < n_blocks <= space_blocks <= MAX_SPACE_BLOCKS:
            raise StreamDamagedError(f"the offer claims {n_blocks} of {space_blocks} blocks, {run_blocks} a run", "")
        if record.n_blocks != n_blocks or record.kind != KIND_REGULAR:
            raise StreamDamagedError("the offer's header and its snapshot differ", "its writer is at fault")
        return cls(record, space_blocks, run_blocks, offer_id, created_ns)


def _record(raw: bytes) -> SnapshotRecord:
    try:
        record = SnapshotRecord.decode(raw[:RECORD_BYTES])
    except BlockplaneError as error:
        raise StreamDamagedError(f"the offer's snapshot cannot be: {error}", _AGAIN) from error
    if not is_name(record.name):
        raise StreamDamagedError(f"the offer's snapshot is named {record.name!r}", _AGAIN)
    return record


@dataclass(frozen=True, slots=True)
class OfferFrame:
    """The head of a frame. n_blocks: members of a piece, or blocks; first: its first VBN, or how many came before."""

    kind: int
    sequence: int
    payload_bytes: int
    n_blocks: int
    first: int
    tag: int
    payload_crc: int

    def encode(self) -> bytes:
        """Return the head."""
        body = _FRAME.pack(
            FRAME_MAGIC, self.kind, 0, self.sequence, self.payload_bytes, self.n_blocks, self.first, self.tag,
            self.payload_crc,
        )  # fmt: skip
        return body + _CRC.pack(crc32c(body))

    @classmethod
    def decode(cls, data: bytes, tag: int, sequence: int) -> OfferFrame:
        """Read a head and hold it against the offer it should be part of."""
        magic, kind, zero, number, payload_bytes, n_blocks, first, its, crc = _FRAME.unpack_from(data)
        if magic != FRAME_MAGIC or crc32c(data[:-4]) != _CRC.unpack_from(data, len(data) - 4)[0]:
            raise StreamDamagedError(f"the head of frame {sequence} of the offer does not match its checksum", _AGAIN)
        if its != tag or number != sequence:
            raise StreamDamagedError(f"frame {sequence} of the offer is another one, or of another offer", _AGAIN)
        if kind not in set(OfferKind) or zero or not 0 < payload_bytes <= MAX_PAYLOAD_BYTES:
            raise StreamDamagedError(f"frame {sequence} of the offer claims {payload_bytes} bytes, kind {kind}", "")
        return cls(kind, number, payload_bytes, n_blocks, first, its, crc)


class OfferWriter:
    """Writes one offer: the planes first, then the blocks in the plane's order, then `finish`."""

    def __init__(self, sink: Sink, header: OfferHeader) -> None:
        self._sink, self._header = sink, header
        self._sequence = self._n_blocks = self.n_bytes = 0
        data = header.encode()
        self._sha = hashlib.sha256(data)
        self._write(data)

    def write_plane(self, plane: Plane) -> None:
        """Write the snapshot's plane."""
        for first, count, payload in plane_pieces(plane):
            self._frame(OfferKind.PLANE, payload, count, first)

    def write_blocks(self, checks: Checks, digests: Bytes) -> None:
        """Write checks, one a block, and digests, one a run: of as many blocks as a frame has."""
        self._frame(OfferKind.BLOCKS, checks.astype("<u4").tobytes() + digests.tobytes(), len(checks), self._n_blocks)
        self._n_blocks += len(checks)

    def finish(self) -> None:
        """Write the end."""
        self._frame(OfferKind.END, self._sha.digest(), self._n_blocks & _LOW, 0)

    def _frame(self, kind: OfferKind, payload: bytes, n_blocks: int, first: int) -> None:
        tag, crc = self._header.tag, crc32c(payload)
        head = OfferFrame(kind, self._sequence, len(payload), n_blocks, first, tag, crc).encode()
        self._sha.update(head)
        self._sequence += 1
        self._write(head, payload)

    def _write(self, *buffers: bytes) -> None:
        self._sink.write_all(buffers)
        self.n_bytes += sum(len(buffer) for buffer in buffers)


@dataclass(frozen=True, slots=True)
class OfferedBlocks:
    """Neighbours in the offered plane: their VBNs, ascending, a check each, a digest (32 bytes) a run."""

    vbns: Numbers
    checks: Checks
    digests: Bytes


class OfferReader:
    """Reads one offer: its head at once, the plane when it is first asked for, the blocks one frame after the other.

    Parameters
    ----------
    most_blocks : block numbers that it may speak of; they bound the memory.

    Raises
    ------
    StreamError, StreamDamagedError, StreamTruncatedError : it is none, is damaged, or ends too early.
    """

    def __init__(self, origin: Input, most_blocks: int = MAX_SPACE_BLOCKS) -> None:
        self._input = origin
        self._sequence = self._n_bytes = 0
        data = self._exactly(HEADER_BYTES)
        self._sha = self._sha_before = hashlib.sha256(data)
        self.header = OfferHeader.decode(data)
        if self.header.space_blocks > most_blocks:
            raise StreamError(f"the offer is of {self.header.space_blocks} block numbers, more than {most_blocks}", "")
        self._held: OfferFrame | None = None

    @property
    def record(self) -> SnapshotRecord:
        """The record of the snapshot that is offered."""
        return self.header.record

    @cached_property
    def plane(self) -> Plane:
        """The VBNs of the snapshot."""
        space, next_first, total = self.header.space_blocks, 0, 0
        builder = Plane.builder(space)
        while (head := self._peek()).kind == OfferKind.PLANE:
            if head.first % PIECE_BLOCKS or head.first < next_first or head.first >= space:
                raise StreamDamagedError(f"a plane piece of the offer starts at block {head.first}", _AGAIN)
            piece = _piece(self._payload(head), min(PIECE_BLOCKS, space - head.first), head.n_blocks)
            total, next_first = total + len(piece), head.first + PIECE_BLOCKS
            low, high = piece.select(0) // 64, piece.select(len(piece) - 1) // 64
            # most pieces of a sparse plane: a word
            builder.append(head.first // 64 + low, piece.word_range(low, high + 1 - low))
        plane = builder.finish()
        if total != self.record.n_blocks or self.record.root.number not in plane:
            raise StreamDamagedError(f"the offer lists {total} blocks of {self.record.n_blocks}", _AGAIN)
        return plane

    def blocks(self) -> Iterator[OfferedBlocks]:
        """Yield what is offered, in ascending VBN; the offer is verified to its end."""
        run, n_before = self.header.run_blocks, 0
        for extents in portions(self.plane.iter_extents(), self.header.frame_blocks):
            head, vbns = self._peek(), numbers_in(extents)
            n_checks, n_digests = len(vbns) * CHECK_BYTES, -(-len(vbns) // run) * DIGEST_BYTES
            if (head.kind, head.n_blocks, head.first) != (OfferKind.BLOCKS, len(vbns), n_before):
                raise StreamDamagedError(f"frame {head.sequence} of the offer speaks of other blocks", _AGAIN)
            payload = self._payload(head)
            if len(payload) != n_checks + n_digests:
                raise StreamDamagedError(f"frame {head.sequence} of the offer has {len(payload)} bytes", _AGAIN)
            digests = np.frombuffer(payload, np.uint8, n_digests, n_checks).reshape(-1, DIGEST_BYTES)
            n_before += len(vbns)
            yield OfferedBlocks(vbns, np.frombuffer(payload, "<u4", len(vbns)), digests)
        head = self._peek()
        if (head.kind, head.n_blocks) != (OfferKind.END, n_before & _LOW) or self._payload(
            head
        ) != self._sha_before.digest():
            raise StreamDamagedError("the offer does not match the digest at its end", _AGAIN)

    def _peek(self) -> OfferFrame:
        if self._held is None:
            data = self._exactly(FRAME_BYTES)
            self._held = OfferFrame.decode(data, self.header.tag, self._sequence)
            self._sequence += 1
            self._sha_before = self._sha.copy()
            self._sha.update(data)
        return self._held

    def _payload(self, head: OfferFrame) -> bytes:
        self._held = None
        payload = self._exactly(head.payload_bytes)
        if crc32c(payload) != head.payload_crc:
            raise StreamDamagedError(f"frame {head.sequence} of the offer does not match its checksum", _AGAIN)
        return payload

    def _exactly(self, n_bytes: int) -> bytes:
        buffer = bytearray(n_bytes)
        n_read = self._input.read_into([memoryview(buffer)])
        self._n_bytes += n_read
        if n_read < n_bytes:
            if self._n_bytes == n_read and not bytes(buffer).startswith(MAGIC[:n_read] if n_read < 8 else MAGIC):
                raise StreamError(f"{self._input.name} is not an offer", "give what `receive VOL --offer` wrote")
            raise StreamTruncatedError(f"the offer {self._input.name} ends after {self._n_bytes} bytes", _AGAIN)
        return bytes(buffer)


def _piece(payload: bytes, n_blocks: int, count: int) -> Plane:
    try:
        piece = Plane.deserialize(payload, n_blocks)
    except (PlaneFormatError, ValueError) as error:
        raise StreamDamagedError(f"a plane piece of the offer is not a Roaring bitmap: {error}", _AGAIN) from error
    if len(piece) != count or not count:
        raise StreamDamagedError(f"a plane piece of the offer claims {count} blocks and lists {len(piece)}", _AGAIN)
    return piece


class RunDigests:
    """Digests of runs of blocks, by a thread a core; a context manager.

    Parameters
    ----------
    run_blocks : a run is so many blocks, the last one of a call perhaps fewer.
    """

    def __init__(self, run_blocks: int) -> None:
        self._step = run_blocks * BLOCK_BYTES
        self._pool = ThreadPoolExecutor(n_workers(), "blockplane digests")

    def __enter__(self) -> RunDigests:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def of(self, blocks: Bytes) -> Bytes:
        """Return the digests of the runs of blocks, (n_runs, 32); the GIL is released for each run."""
        n_runs = -(-len(blocks) // self._step)
        share = max(-(-n_runs // n_workers()), 1) * self._step
        parts = self._pool.map(self._digests, (blocks[at : at + share] for at in range(0, len(blocks), share)))
        return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, DIGEST_BYTES)

    def _digests(self, blocks: Bytes) -> bytes:
        view, step = blocks.data, self._step
        return b"".join(hashlib.sha256(view[at : at + step]).digest() for at in range(0, len(view), step))
