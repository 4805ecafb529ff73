"""A stream as it passes by, taken apart into its header and its frames without its key or its planes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from blockplane.image.extents import numbers_in
from blockplane.model.addresses import BLOCK_BYTES, Checks
from blockplane.model.checks import crc32c, join_block_crcs, piece_crcs, unbound_crcs
from blockplane.model.errors import StreamDamagedError
from blockplane.stream import codec
from blockplane.stream.codec import FrameKind
from blockplane.stream.encryption import SealedFraming
from blockplane.stream.fdsink import Buffer
from blockplane.stream.media.codec import NO_ID

_PREFIX_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class StreamShown:
    """What the header of a stream shows, encrypted or not; image_id : zeros where it is."""

    stream_id: bytes
    space_id: bytes
    top_id: bytes
    base_id: bytes
    image_id: bytes
    created_ns: int
    is_sealed: bool


def shown(header: bytes) -> StreamShown:
    """Return what a stream's header shows; StreamError and its kinds: it is none."""
    if codec.is_sealed(header):
        its = codec.decode_envelope(header)
        return StreamShown(its.stream_id, its.space_id, its.top_id, its.base_id, NO_ID, its.created_ns, True)
    head = codec.decode_header(header)
    return StreamShown(
        head.stream_id, head.space_id, head.top_id, head.base_id, head.image_id, head.created_ns, False
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PassingFrame:
    """A frame's head as it lies in the stream.

    kind : None where it is encrypted. n_blocks : of a data frame. payload_crc : None of blocks, which have checks.
    crcs : of the bytes of each block of the payload, by what its check says; None: the payload is not blocks, or the
    head does not say where they belong.
    """

    head: bytes
    payload_bytes: int
    kind: FrameKind | None
    n_blocks: int
    payload_crc: int | None
    crcs: Checks | None = field(default=None, compare=False, repr=False)

    @property
    def is_trailer(self) -> bool:
        """Whether the stream ends with it; an encrypted one may, by its lengths, which others have too."""
        if self.kind is None:
            return len(self.head) + self.payload_bytes == SealedFraming.trailer_bytes
        return self.kind is FrameKind.TRAILER


def passing_frame(head: bytes, tag: int, sequence: int) -> PassingFrame:
    """Read a whole head; StreamError and its kinds: it is damaged, or not the one that comes next."""
    fixed, rest = head[: codec.FRAME_FIXED_BYTES], head[codec.FRAME_FIXED_BYTES :]
    if fixed.startswith(codec.SEALED_MAGIC):
        sealed = codec.decode_sealed_fixed(fixed)
        codec.require_next(sealed, rest, tag, sequence)
        return PassingFrame(head, sealed.payload_bytes, None, 0, sealed.payload_crc)
    found = codec.decode_frame_head(fixed, rest, tag, sequence)
    if found.kind is not FrameKind.DATA:
        return PassingFrame(head, found.payload_bytes, found.kind, 0, found.payload_crc)
    crc = found.payload_crc if found.is_packed else None
    has_crcs = crc is None and found.is_located
    crcs = unbound_crcs(found.checks(), numbers_in(found.extents())) if has_crcs else None
    return PassingFrame(head, found.payload_bytes, found.kind, found.n_blocks, crc, crcs)


def head_length(fixed: bytes) -> int:
    """Return how long a frame's head is, by its fixed part."""
    if fixed.startswith(codec.SEALED_MAGIC):
        return codec.decode_sealed_fixed(fixed).head_bytes
    return codec.decode_frame_fixed(fixed).head_bytes


class Taker(Protocol):
    """Takes a stream apart as it comes."""

    def take_header(self, header: bytes, its: StreamShown) -> None:
        """Take the header."""
        ...

    def take_frame(self, frame: PassingFrame) -> None:
        """Take the head of the next frame; its payload follows."""
        ...

    def take_payload(self, part: memoryview) -> None:
        """Take some of the payload."""
        ...


class RecordCrc:
    """The checksum of the record that is being filled: of whole blocks by their checks, and so without reading them."""

    def __init__(self) -> None:
        self._crc = 0
        self._crcs: Checks | None = None
        self._at = 0

    def begin_payload(self, frame: PassingFrame) -> None:
        """Go on with the payload of a frame."""
        self._crcs, self._at = frame.crcs, 0

    def add(self, piece: memoryview) -> None:
        """Take what stands before a payload, behind it, or has no checks."""
        self._crc = crc32c(piece, self._crc)

    def add_payload(self, piece: memoryview) -> None:
        """Take the next piece of the payload."""
        start, stop = self._at, self._at + len(piece)
        self._at = stop
        first, last = -(-start // BLOCK_BYTES), stop // BLOCK_BYTES
        if self._crcs is None or first >= last:
            self.add(piece)
            return
        self.add(piece[: first * BLOCK_BYTES - start])
        self._crc = join_block_crcs(self._crcs[first:last], self._crc)
        self.add(piece[last * BLOCK_BYTES - start :])

    def of_pieces(self, pieces: memoryview, n_bytes: int) -> Sequence[int] | Checks:
        """Return the checksums of records that the next pieces of the payload fill; `pass_payload` takes these."""
        if self._crcs is None:
            return [crc32c(pieces[at : at + n_bytes]) for at in range(0, len(pieces), n_bytes)]
        return piece_crcs(pieces, len(pieces) // n_bytes, self._crcs, self._at)

    def pass_payload(self, n_bytes: int) -> None:
        """Take pieces whose checksums were asked for."""
        self._at += n_bytes

    def take(self) -> int:
        """Return it; the next record begins."""
        crc, self._crc = self._crc, 0
        return crc


class Cutter:
    """Takes the bytes of one stream in whatever pieces they come, and gives them to a taker.

    Parameters
    ----------
    tag, sequence : of a stream that goes on, and of its next frame; None: the header comes first.
    """

    def __init__(self, taker: Taker, tag: int | None = None, sequence: int = 0) -> None:
        self._taker, self._tag, self._sequence = taker, tag, sequence
        self._head = bytearray()
        self._wanted = _PREFIX_BYTES if tag is None else codec.FRAME_FIXED_BYTES
        self._body_left = 0
        self._crc = 0
        self._due_crc: int | None = None
        self._last: PassingFrame | None = None

    @property
    def is_whole(self) -> bool:
        """Whether what came ends with the trailer, as far as can be seen."""
        return self._last is not None and self._last.is_trailer and not self._head and not self._body_left

    def take(self, buffers: Sequence[Buffer]) -> None:
        """Take bytes.

        Raises
        ------
        StreamError and its kinds : they are not those of a stream.
        """
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while len(view):
                view = view[self._take_some(view) :]

    def _take_some(self, view: memoryview) -> int:
        if self._body_left:
            part = view[: self._body_left]
            self._body_left -= len(part)
            self._hold(part)
            self._taker.take_payload(part)
            return len(part)
        if self._last is not None and self._last.kind is FrameKind.TRAILER:
            raise StreamDamagedError("bytes stand behind the trailer of the stream", "write one stream at a time")
        part = view[: self._wanted - len(self._head)]
        self._head += part
        if len(self._head) == self._wanted:
            self._grew(bytes(self._head))
        return len(part)

    def _hold(self, part: memoryview) -> None:
        """Hold a payload that has a checksum of its own against it."""
        if self._due_crc is None:
            return
        self._crc = crc32c(part, self._crc)
        if not self._body_left and self._crc != self._due_crc:
            message = f"frame {self._sequence - 1} does not match its checksum"
            raise StreamDamagedError(message, "fetch the stream again")

    def _grew(self, head: bytes) -> None:
        """Take what has come of a head: enough to know its length, or all."""
        n_head = codec.header_length(head) if self._tag is None else head_length(head)
        if len(head) < n_head:
            self._wanted = n_head
            return
        self._head.clear()
        self._wanted = codec.FRAME_FIXED_BYTES
        if self._tag is None:
            its = shown(head)
            self._tag = codec.tag_of(its.stream_id)
            self._taker.take_header(head, its)
            return
        frame = passing_frame(head, self._tag, self._sequence)
        self._sequence += 1
        self._body_left = frame.payload_bytes
        self._crc, self._due_crc = 0, frame.payload_crc
        self._last = frame
        self._taker.take_frame(frame)
