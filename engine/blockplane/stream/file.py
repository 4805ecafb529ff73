"""One stream, in a file, on a block device or on tapes, read at random: trailer, index, frame, block.

A block of a frame that lies bare is read alone, one of a compressed or encrypted frame with it. What the frame's head
says of a block, its check, goes to the caller with the bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, runtime_checkable

import numpy as np

from blockplane.image.extents import expand
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.checks import crc32c
from blockplane.model.errors import StreamDamagedError, StreamError, StreamTruncatedError
from blockplane.stream import codec
from blockplane.stream.blame import blamed
from blockplane.stream.cache import MAX_PAYLOADS, FrameCache
from blockplane.stream.codec import (
    INDEX_BYTES,
    INDEX_DTYPE,
    KNOWN_FEATURES,
    FrameHead,
    FrameKind,
    Header,
    Role,
    Trailer,
)
from blockplane.stream.index import Index, IndexEntries, Pieces, Wanted
from blockplane.stream.input import FileInput
from blockplane.stream.keyfile import Key
from blockplane.stream.payload import contents, passing_contents
from blockplane.stream.pieces import hint_for
from blockplane.stream.reader import StreamMap, StreamReader, verify_payload
from blockplane.stream.stored import OneFile, SplitFile, StreamPlace, open_stored

#: An index of more entries than this describes more than 64 TiB in whole frames; nothing is sized by it before.
_MAX_INDEX: Final = 1 << 26
#: The longest head of a data frame, and all of one in a single read: 256 extents of a block each.
_DATA_HEAD_BYTES: Final = codec.FRAME_FIXED_BYTES + 16 * codec.MAX_FRAME_BLOCKS
_AGAIN: Final = "fetch the stream again"


@runtime_checkable
class HasFrameHeads(Protocol):
    """A place of a stream that has the heads of its frames once more, beside the stream."""

    def frame_heads(self) -> Iterator[tuple[int, bytes]]:
        """Yield where each frame begins, in order, and its head."""
        ...

    def note(self, problem: str) -> None:
        """Note what was damaged, and made up for."""
        ...


class StreamFile:
    """One stream file, or stream on tapes, its map and index in memory.

    Parameters
    ----------
    source : a path; or where else its bytes are, which is closed with it.
    cache : shared by the files of a chain.
    keys : those at hand, for streams that are encrypted.

    Raises
    ------
    StreamError, StreamTruncatedError, StreamDamagedError : it cannot be read, is cut off, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str] | StreamPlace, cache: FrameCache, keys: Sequence[Key] = ()) -> None:
        self.path = path.name if isinstance(path, StreamPlace) else os.fspath(path)
        self.keys = keys
        self._cache = cache
        self.stored = open_stored(path)
        try:
            self.n_bytes = self.stored.n_bytes
            self._reader = StreamReader(FileInput(self.stored), keys)
            self._framing = self._reader.framing
            self._require_readable(self._reader.header)
            self.map: StreamMap = self._reader.read_map()
            if isinstance(self.stored, OneFile) and self.stored.is_device:
                self.n_bytes = self._end()
            self.index = self._found_index()
            self.stored.advise(os.POSIX_FADV_NORMAL)
        except StreamError as error:
            found = self._blamed(error)
            self.close()
            raise found from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file; twice does no harm."""
        self.stored.close()

    def _blamed(self, error: StreamError) -> StreamError:
        """Return an error that names the file, and the piece of it."""
        named = of_file(error, self.path)
        named.hint = hint_for(self.path) or named.hint
        return blamed(named, self.stored, self.n_bytes) if isinstance(self.stored, SplitFile) else named

    def _require_readable(self, header: Header) -> None:
        unknown = header.features.beyond(KNOWN_FEATURES | header.features.of_states()).reading  # blocks of any state
        if header.is_lent:
            raise StreamError(
                f"{self.path} holds only what a destination lacked",
                "receive it there, and read files out of that volume, or out of a stream that is whole",
            )
        if header.is_part and not header.is_one_of_parts:
            raise StreamError(
                f"{self.path} holds only the rest of an interrupted transfer",
                "receive it where the first part went; read files there, or out of a stream that is whole",
            )
        if unknown or (header.n_parts != 1 and not header.is_part):
            what = codec.feature_names(unknown) if unknown else f"all of its {header.n_parts} parts"
            raise StreamError(f"reading files out of {self.path} needs {what}", "it can still be received or copied")

    # --- opening -----------------------------------------------------------------------------------------------------

    def _end(self) -> int:
        """Return where the stream ends, by the heads of its frames: a read for each."""
        offset, _, _ = self._reader.data_start()
        while True:
            head, _ = self._head_at(offset, self._truncated())
            offset += head.stored_head_bytes + head.stored_bytes
            if head.kind is FrameKind.TRAILER:
                return offset

    def _trailer(self) -> Trailer:
        offset = self.n_bytes - self._framing.trailer_bytes
        head, payload = self._frame(max(offset, 0))
        if head.kind is not FrameKind.TRAILER:
            raise self._truncated()
        trailer = codec.decode_trailer(payload)
        if trailer.stream_bytes != self.n_bytes or head.sequence + 1 != trailer.n_frames:
            raise self._truncated()
        fits = trailer.n_blocks == self.map.header.following_blocks and trailer.n_index * INDEX_BYTES < self.n_bytes
        if not fits or trailer.n_index > _MAX_INDEX or trailer.index_offset >= self.n_bytes:
            raise StreamDamagedError(f"the trailer of {self.path} does not fit its header", _AGAIN)
        return trailer

    def _truncated(self) -> StreamTruncatedError:
        return StreamTruncatedError(f"{self.path} does not end with a trailer", "it was cut off; fetch the rest")

    def _frame(self, offset: int) -> tuple[FrameHead, bytes]:
        """Read a whole frame that is not data."""
        head, follows = self._head_at(offset, self._truncated())
        stored = follows[: head.stored_bytes]
        if len(stored) < head.stored_bytes:
            stored += self._read(head.stored_bytes - len(stored), offset + head.stored_head_bytes + len(stored))
        if len(stored) < head.stored_bytes:
            raise self._truncated()
        payload = stored if head.sealing is None else head.sealing.open(memoryview(stored))
        if crc32c(payload) != head.payload_crc:
            raise StreamDamagedError(f"frame {head.sequence} of {self.path} does not match its checksum", _AGAIN)
        return head, payload

    def _head_at(self, offset: int, absent: StreamError) -> tuple[FrameHead, bytes]:
        """Return the head of the frame at an offset, verified, and what was read behind it; `absent` where none is."""
        data = self._read(_DATA_HEAD_BYTES + self._framing.extra_head_bytes, offset, codec.FRAME_FIXED_BYTES)
        fixed = data[: codec.FRAME_FIXED_BYTES]
        if len(fixed) < codec.FRAME_FIXED_BYTES or not fixed.startswith(self._framing.magic):
            raise absent
        n_head = codec.FRAME_FIXED_BYTES + self._framing.rest_bytes(fixed)
        head, _ = self._framing.head(fixed, data[codec.FRAME_FIXED_BYTES : n_head], self.map.header.tag, None)
        return head, data[n_head:]

    def _read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """Read up to n_bytes, fewer at the end of the file."""
        try:
            data = self.stored.read(n_bytes, offset, at_least)
        except OSError as error:
            raise StreamError(f"cannot read {self.path}: {error.strerror}") from error
        self._cache.count(1, len(data))
        return data

    def _found_index(self) -> Index:
        """Return the index; where that is damaged, and its place has the heads of all frames elsewhere, by these."""
        try:
            return self._load_index(self._trailer())
        except StreamError as error:
            if not isinstance(self.stored, HasFrameHeads) or self.map.header.locations is codec.Locations.IMPLICIT:
                raise
            index, due = self._index_of(self.stored), self.map.header.following_blocks
            lacks = f"; {due - index.n_blocks} of {due} blocks cannot be found" if index.n_blocks < due else ""
            self.stored.note(f"{self.path}: {error.message}; blocks were found group by group{lacks}")
            return index

    def _index_of(self, place: HasFrameHeads) -> Index:
        parts: list[IndexEntries] = []
        for offset, raw in place.frame_heads():
            fixed, rest = raw[: codec.FRAME_FIXED_BYTES], raw[codec.FRAME_FIXED_BYTES :]
            head, _ = self._framing.head(fixed, rest, self.map.header.tag, None)
            if head.kind is FrameKind.DATA:
                parts.append(np.frombuffer(codec.encode_index(head.extents(), offset), INDEX_DTYPE))
        index = Index(parts)
        if not index.is_sane(self.map.header.space_blocks, self.n_bytes):
            raise StreamDamagedError(f"the frames of {self.path} contradict each other", _AGAIN)
        return index

    def _load_index(self, trailer: Trailer) -> Index:
        parts: list[IndexEntries] = []
        offset, n_left = trailer.index_offset, trailer.n_index
        while n_left > 0:
            head, payload = self._frame(offset)
            if head.kind is FrameKind.SECTION:
                offset += head.stored_head_bytes + head.stored_bytes
                continue
            if head.kind is not FrameKind.INDEX or head.n_items > n_left:
                raise StreamDamagedError(f"the index of {self.path} is not where its trailer says", _AGAIN)
            parts.append(np.frombuffer(payload, INDEX_DTYPE))
            offset += head.stored_head_bytes + head.stored_bytes
            n_left -= head.n_items
        index = Index(parts)
        if not index.is_sane(self.map.header.space_blocks, self.n_bytes) or index.n_blocks != trailer.n_blocks:
            raise StreamDamagedError(f"the index of {self.path} contradicts the stream", _AGAIN)
        return index

    @property
    def parts(self) -> list[StreamFile]:
        """The files that it is: itself."""
        return [self]

    @property
    def names(self) -> list[str]:
        """What a person calls them."""
        return [self.path]

    @property
    def n_held(self) -> int:
        """How many blocks it holds."""
        return self.index.n_blocks

    def holds(self, vbn: int) -> bool:
        """Tell whether it holds a block."""
        return self.index.holds(vbn)

    @property
    def is_sealed(self) -> bool:
        """Whether it is encrypted."""
        return self.map.header.is_sealed

    def ids(self) -> set[bytes]:
        """Return the ids of the snapshots that the stream brings."""
        return {record.id for record, role in self.map.snapshots if role in (Role.TOP, Role.ARRIVES)}

    # --- all of it, in order -----------------------------------------------------------------------------------------

    def reader(self) -> StreamReader:
        """Return what reads the stream from its data on to its end: once, in one thread; others read at random."""
        self.stored.advise(os.POSIX_FADV_SEQUENTIAL)
        return self._reader

    def read_bare(self, offsets: Numbers, numbers: Numbers, checks: Checks, out: Bytes) -> int:
        """Read blocks that begin at offsets of the file, one after the other; any thread, without the GIL.

        Returns
        -------
        the index of the first block that does not match its check, or -1.
        """
        try:
            n_requests, bad = self.stored.read_blocks(offsets, out, numbers, checks)
        except EOFError:
            raise self._truncated() from None
        except OSError as error:
            raise StreamError(f"cannot read {self.path}: {error.strerror}") from error
        self._cache.count(n_requests, len(out))
        return bad

    def payload_at(self, head: FrameHead, offset: int) -> Bytes:
        """Return the blocks of a frame that does not lie bare, verified; until this thread asks again."""
        stored = self._read(head.stored_bytes, offset)
        if len(stored) < head.stored_bytes:
            raise self._truncated()
        try:
            data = np.frombuffer(passing_contents(head, memoryview(stored)), np.uint8)
            verify_payload(head, data)
        except StreamError as error:
            error.sequence = head.sequence
            raise self._blamed(error) from error
        return data

    # --- blocks ------------------------------------------------------------------------------------------------------

    def read(self, wanted: Wanted, out: Bytes, checks: Checks) -> Wanted:
        """Read what the stream holds of the wanted blocks into their places; return what it does not hold.

        Parameters
        ----------
        out : 4,096 bytes for each block of the caller's buffer. checks : one entry each; gets what blocks must have.

        Raises
        ------
        StreamDamagedError : a frame's head is not whole, or is another one than the index says. The blocks themselves
            are not verified.
        """
        pieces, rest = self.index.find(wanted)
        if len(pieces):
            frames, which = np.unique(pieces.frame, return_inverse=True)
            heads = [self._named_head(offset) for offset in frames.tolist()]
            self._note_checks(pieces, heads, which, checks)
            packed = np.array([not head.is_bare for head in heads])[which]
            if not packed.all():
                head_bytes = np.array([head.head_bytes for head in heads], np.int64)[which]
                self._read_raw(pieces.where(~packed), head_bytes[~packed], out)
            if packed.any():
                self._read_packed(pieces.where(packed), out)
        return rest

    def _note_checks(self, pieces: Pieces, heads: list[FrameHead], which: Numbers, checks: Checks) -> None:
        """Put the checks of all pieces where their blocks go."""
        n_blocks = np.array([head.n_blocks for head in heads], np.int64)
        if (pieces.first + pieces.n_blocks > n_blocks[which]).any():
            raise StreamDamagedError(f"the index of {self.path} contradicts the stream", _AGAIN)
        begins = (np.cumsum(n_blocks) - n_blocks)[which]
        known = np.concatenate([head.checks() for head in heads])
        checks[expand(pieces.position, pieces.n_blocks)] = known[expand(begins + pieces.first, pieces.n_blocks)]

    def _read_raw(self, pieces: Pieces, head_bytes: Numbers, out: Bytes) -> None:
        offsets = pieces.frame + head_bytes + pieces.first * BLOCK_BYTES
        order = np.argsort(offsets, kind="stable")
        lengths = pieces.n_blocks * BLOCK_BYTES
        try:
            n_requests = self.stored.read_segments(
                offsets[order], lengths[order], out, (pieces.position * BLOCK_BYTES)[order]
            )
        except EOFError:
            raise self._truncated() from None
        except OSError as error:
            raise StreamError(f"cannot read {self.path}: {error.strerror}") from error
        self._cache.count(n_requests, int(lengths.sum()))

    def _read_packed(self, pieces: Pieces, out: Bytes) -> None:
        """Bring out the frames that pieces lie in, some at a time, and copy the pieces."""
        order = np.argsort(pieces.frame, kind="stable")
        frames, begins = np.unique(pieces.frame[order], return_index=True)
        parts = np.split(order, begins[1:])
        blocks = out.reshape(-1, BLOCK_BYTES)
        for at in range(0, len(frames), MAX_PAYLOADS):
            payloads = self._cache.map(self._payload, frames[at : at + MAX_PAYLOADS].tolist())
            for payload, part in zip(payloads, parts[at : at + MAX_PAYLOADS], strict=True):
                source = np.frombuffer(payload, np.uint8).reshape(-1, BLOCK_BYTES)
                into = expand(pieces.position[part], pieces.n_blocks[part])
                blocks[into] = source[expand(pieces.first[part], pieces.n_blocks[part])]

    def _payload(self, offset: int) -> bytes:
        """Return the blocks of a frame that does not lie bare, as they were kept or brought out anew."""
        key = (self.stored.key, offset)
        payload = self._cache.payload(key)
        if payload is None:
            head = self._named_head(offset)
            stored = self._read(head.stored_bytes, offset + head.stored_head_bytes)
            if len(stored) < head.stored_bytes:
                raise self._truncated()
            try:
                payload = contents(head, memoryview(stored))
            except StreamError as error:
                error.sequence = head.sequence
                raise self._blamed(error) from error
            self._cache.keep_payload(key, payload)
        return payload

    def _named_head(self, offset: int) -> FrameHead:
        try:
            return self._head(offset)
        except StreamError as error:
            if isinstance(self.stored, SplitFile):
                raise blamed(of_file(error, self.path), self.stored, offset + 1) from error
            raise of_file(error, self.path) from error

    def _head(self, offset: int) -> FrameHead:
        """Return the head of the data frame at an offset, verified."""
        head = self._cache.head((self.stored.key, offset))
        if head is None:
            absent = StreamDamagedError(f"{self.path} has no frame where its index says, at {offset}", _AGAIN)
            head, _ = self._head_at(offset, absent)
            if head.kind is not FrameKind.DATA:
                raise StreamDamagedError(f"{self.path} has no blocks where its index says, at {offset}", _AGAIN)
            self._cache.keep_head((self.stored.key, offset), head)
        return head

    def place_of(self, vbn: int) -> str:
        """Return where a block of the stream lies, for a message."""
        pieces, _ = self.index.find(Wanted(np.array([[vbn, vbn + 1]], np.int64), np.zeros(1, np.int64)))
        if not len(pieces):
            return self.path
        head = self._head(int(pieces.frame[0]))
        path = self.path
        if isinstance(self.stored, SplitFile):
            start, n_bytes = int(pieces.frame[0]) + head.stored_head_bytes, head.stored_bytes
            if head.is_bare:
                start, n_bytes = start + int(pieces.first[0]) * BLOCK_BYTES, BLOCK_BYTES
            path = self.stored.around(start, start + n_bytes)
        return f"frame {head.sequence} of {path}"


def of_file(error: StreamError, path: str) -> StreamError:
    """Return an error that names the stream file it is of."""
    if path in error.message:
        return error
    return type(error)(f"{path}: {error.message}", error.hint)
