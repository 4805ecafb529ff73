"""Writes an image stream: header, snapshots, branches, planes, data, index, trailer, in this order.

One thread writes. Payloads are never copied: a frame is a fresh head and slices of the caller's buffer, handed to the
sink in one call. Where they are to be compressed or encrypted, a thread a core does so.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from blockplane.image.extents import merged, n_blocks_in, split
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Extents
from blockplane.model.checks import crc32c
from blockplane.planes import Plane
from blockplane.stream import codec
from blockplane.stream.arrival import n_workers
from blockplane.stream.codec import FrameKind, Header, Role, Trailer
from blockplane.stream.compression import pack
from blockplane.stream.encryption import framing_for
from blockplane.stream.fdsink import Buffer
from blockplane.stream.keyfile import Key
from blockplane.stream.sink import Sink
from blockplane.stream.written import Written, new_index
from blockplane.volume.codec import BRANCH_BYTES, Branch, SnapshotRecord

_CHUNK_EXTENTS: Final = 1 << 16
_SEALED_BYTES: Final = codec.MAX_PAYLOAD_BYTES + codec.SEAL_TAG_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A data frame to write.

    extents : (n, 2), VBNs in payload order. checks : one a block. payload : the blocks.
    """

    extents: Extents
    checks: Checks
    payload: memoryview


@dataclass(frozen=True, slots=True)
class _Ready:
    """A data frame as the digest takes it, its head, and as it goes out."""

    frame: Frame
    head: bytes
    wire: list[Buffer]


class StreamWriter:
    """One stream into one sink. Call the methods in the order they stand here.

    Parameters
    ----------
    level : of the compression of data frames; None: they are written as they are.
    written : what of this stream the sink has already; nothing before the data is written then. The writer owns it.
    key : what the stream is encrypted with; None: it is not.
    frame_blocks : the most that a data frame has; None: as many as it may.

    Notes
    -----
    The header goes out with the constructor. `n_bytes` counts what was written.
    """

    def __init__(
        self,
        sink: Sink,
        header: Header,
        level: int | None = None,
        key: Key | None = None,
        written: Written | None = None,
        frame_blocks: int | None = None,
    ) -> None:
        if level is not None:
            header = replace(header, features=header.features | codec.ZSTD_FEATURES)
        self._sink = sink
        self._level, self._frame_blocks = level, frame_blocks
        self.n_bytes = 0
        if written is None:
            framing, header, begin = framing_for(header, key)
            self._write([begin])
            written = Written(header, framing, hashlib.sha256(header.encode()), new_index(), 0, self.n_bytes)
        self._header, self._framing = header, written.framing
        self.n_bytes = written.n_bytes
        self._sha, self._index, self._sequence = written.sha, written.index, written.sequence
        self._n_data_frames, self._n_blocks, self._n_index = written.n_data_frames, written.n_blocks, written.n_index
        is_work = level is not None or key is not None
        self._pool = ThreadPoolExecutor(n_workers(), "blockplane frames") if is_work else None
        #: where encrypted payloads wait for the sink, frame by frame in turns
        n_scratch = n_workers() + 2 if key is not None else 0
        self._scratch = [memoryview(bytearray(_SEALED_BYTES)) for _ in range(n_scratch)]

    def close(self) -> None:
        """Release scratch and threads; the sink is its owner's."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._index.close()

    def write_snapshots(self, records: Sequence[tuple[SnapshotRecord, Role]]) -> None:
        """Write the snapshot list, top first."""
        for start in range(0, len(records), codec.MAX_FRAME_RECORDS):
            part = records[start : start + codec.MAX_FRAME_RECORDS]
            roles = np.array([role for _, role in part], "<u4").tobytes()
            self._record_frame(FrameKind.SNAPSHOTS, roles, b"".join(r.encode() for r, _ in part), len(part))

    def write_branches(self, branches: Sequence[Branch]) -> None:
        """Write the branch history of the top, oldest first."""
        step = codec.MAX_PAYLOAD_BYTES // BRANCH_BYTES
        for start in range(0, len(branches), step):
            part = branches[start : start + step]
            self._record_frame(FrameKind.BRANCHES, b"", b"".join(b.encode() for b in part), len(part))

    def write_plane(self, kind: FrameKind, plane: Plane) -> None:
        """Write the image plane, then the dropped plane, as pieces of portable Roaring containers."""
        for first, count, payload in plane_pieces(plane):
            self._record_frame(kind, codec.encode_piece_table(first, count), payload, 0)

    def write_section(self, name: str, payload: bytes) -> None:
        """Write what a reader may do without, before the trailer; who does not know it passes it over."""
        self._record_frame(FrameKind.SECTION, name.encode("ascii"), payload, 0)

    def write_blocks(self, extents: Extents, checks: Checks, buffer: Bytes) -> None:
        """Write blocks as data frames, in one call to the sink.

        With a pool its threads compress and encrypt, and each frame goes to the sink when it is ready.

        Parameters
        ----------
        extents : (n, 2) VBNs in the order of the buffer; they need not ascend.
        checks : (n_blocks,) of the blocks, in the same order.
        buffer : (n_blocks * 4096,) uint8; may be reused once this returns.
        """
        view, at = buffer.data, 0
        frames: list[Frame] = []
        for part in split(extents, self._frame_blocks or codec.MAX_FRAME_BLOCKS):
            n_blocks = n_blocks_in(part)
            payload = view[at * BLOCK_BYTES : (at + n_blocks) * BLOCK_BYTES]
            frames.append(Frame(part, checks[at : at + n_blocks], payload))
            at += n_blocks
        first, pool = self._sequence, self._pool
        if pool is None:
            self._put([self._prepare(first + i, frame) for i, frame in enumerate(frames)])
            return
        flying: deque[Future[_Ready]] = deque()
        for i, frame in enumerate(frames):
            if self._scratch and len(flying) == len(self._scratch):
                self._put([flying.popleft().result()])
            out = self._scratch[i % len(self._scratch)] if self._scratch else None
            flying.append(pool.submit(self._prepare, first + i, frame, out))
        while flying:
            self._put([flying.popleft().result()])

    def _prepare(self, sequence: int, frame: Frame, out: memoryview | None = None) -> _Ready:
        """Compress and encrypt, as was asked for; in any thread."""
        packed = pack(frame.payload, self._level) if self._level is not None else None
        implicit = self._header.locations is codec.Locations.IMPLICIT
        head = codec.encode_data_head(
            sequence, self._header.tag, frame.extents, frame.checks, packed, implicit=implicit
        )
        payload = frame.payload if packed is None else packed
        return _Ready(frame, head, self._framing.wire(sequence, self._header.tag, head, [payload], out))

    def _put(self, ready: Sequence[_Ready]) -> None:
        """Write data frames in one call to the sink; their buffers may be reused once this returns."""
        offset = self.n_bytes
        self._sha.update(b"".join(one.head for one in ready))
        for one in ready:
            self._note_frame(one.frame, offset)
            offset += sum(len(part) for part in one.wire)
        self._write([part for one in ready for part in one.wire])

    def _note_frame(self, frame: Frame, offset: int) -> None:
        """Take a data frame whose head lies at an offset of the stream into the counts and the index."""
        self._sequence += 1
        self._n_data_frames += 1
        self._n_blocks += len(frame.checks)
        self._n_index += len(frame.extents)
        self._index.write(codec.encode_index(frame.extents, offset))

    def finish(self) -> Trailer:
        """Write index and trailer; return the trailer."""
        index_offset = self.n_bytes if self._n_index else 0
        self._index.seek(0)
        while part := self._index.read(codec.MAX_INDEX_ENTRIES * codec.INDEX_BYTES):
            self._record_frame(FrameKind.INDEX, b"", part, len(part) // codec.INDEX_BYTES)
        stream_bytes = self.n_bytes + self._framing.trailer_bytes
        counts = (self._sequence + 1, self._n_data_frames, self._n_blocks, stream_bytes, index_offset, self._n_index)
        self._sha.update(Trailer(*counts).encode_counts())
        trailer = Trailer(*counts, digest=self._sha.digest())
        self._frame(FrameKind.TRAILER, b"", trailer.encode(), 0, digested=False)
        return trailer

    def _record_frame(self, kind: FrameKind, table: bytes, payload: bytes, n_items: int) -> None:
        self._frame(kind, table, payload, n_items, digested=True)

    def _frame(self, kind: FrameKind, table: bytes, payload: bytes, n_items: int, digested: bool) -> None:
        crc = crc32c(payload)
        tag = self._header.tag
        head = codec.encode_frame_head(kind, self._sequence, tag, table, len(payload), n_items, 0, crc)
        if digested:
            self._sha.update(head)
            self._sha.update(payload)
        wire = self._framing.wire(self._sequence, tag, head, [payload])
        self._sequence += 1
        self._write(wire)

    def _write(self, buffers: list[Buffer]) -> None:
        self._sink.write_all(buffers)
        self.n_bytes += sum(len(buffer) for buffer in buffers)


def plane_pieces(plane: Plane) -> Iterator[tuple[int, int, bytes]]:
    """Yield (first VBN, count, portable 32-bit Roaring bytes of VBN - first) for each piece that is not empty."""
    pending: list[Extents] = []
    first = -1
    for extents in plane.iter_extents(_CHUNK_EXTENTS):
        for start, part in _by_piece(extents):
            if start != first and pending:
                yield _piece(first, pending)
                pending = []
            first = start
            pending.append(part)
    if pending:
        yield _piece(first, pending)


def _by_piece(extents: Extents) -> Iterator[tuple[int, Extents]]:
    """Cut ascending extents at piece borders: (first VBN of the piece, its extents)."""
    while len(extents):
        first = int(extents[0, 0]) // codec.PIECE_BLOCKS * codec.PIECE_BLOCKS
        stop = first + codec.PIECE_BLOCKS
        n_inside = int(np.searchsorted(extents[:, 0], stop))
        inside, extents = extents[:n_inside].copy(), extents[n_inside:]
        if inside[-1, 1] > stop:
            extents = np.concatenate(([[stop, inside[-1, 1]]], extents))
            inside[-1, 1] = stop
        yield first, inside


def _piece(first: int, parts: list[Extents]) -> tuple[int, int, bytes]:
    piece = Plane.from_extents(merged(np.concatenate(parts)) - first, codec.PIECE_BLOCKS)
    return first, len(piece), piece.serialize()
