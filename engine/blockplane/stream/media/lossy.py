"""Reads a stream off tapes that may have lost records: what is gone are the blocks of these records, and no others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blockplane.image.extents import extents_of, numbers_in
from blockplane.model.addresses import BLOCK_BYTES
from blockplane.model.errors import StreamError, TapeDamagedError
from blockplane.stream import codec
from blockplane.stream.codec import FrameHead, FrameKind
from blockplane.stream.keyfile import Key
from blockplane.stream.media.codec import FrameEntry
from blockplane.stream.media.input import GapError, ImageInput
from blockplane.stream.reader import StreamMap, StreamReader


class LossyReader(StreamReader):
    """A StreamReader that goes on behind records that are gone.

    Notes
    -----
    Nothing is taken that was not verified: records have checksums, heads and blocks theirs. Of a stream with a gap the
    digest proves nothing and is not compared; the count of blocks says whether it is whole. A frame is announced only
    when it was read. Of one that lies bare and in part in a lost record, the blocks that are there come, by its head,
    which stands in the contents of its group too; one that is compressed or encrypted is lost as a whole.

    Raises
    ------
    TapeDamagedError : by `next_data`, at the end, where blocks were lost; by the constructor and `read_map` where what
        stands before the data is.
    """

    def __init__(self, origin: ImageInput, keys: Sequence[Key] = ()) -> None:
        self._tape = origin
        self.n_gaps = 0
        #: data blocks of the stream that were passed, or lost: where implicit locations stand
        self._n_passed = 0
        #: of a frame that is there in part: its blocks that are
        self._rest: bytes | None = None
        #: heads of the frames of the group, by offset, once a gap was met in it
        self._known: dict[int, FrameEntry] = {}
        self._is_in_map = False
        self._gap: GapError | None = None
        try:
            super().__init__(origin, keys)
        except GapError as error:
            raise self._no_map(error) from error

    def _no_map(self, error: GapError) -> TapeDamagedError:
        return TapeDamagedError(
            f"what says which blocks {self._tape.name} holds is damaged: {error.message}",
            "take another copy of the tape",
        )

    def read_map(self) -> StreamMap:
        """See StreamReader."""
        self._is_in_map, self._gap = True, None
        try:
            return super().read_map()
        except GapError as error:
            raise self._no_map(error) from error
        except StreamError as error:
            if self._gap is None:
                raise
            raise self._no_map(self._gap) from error
        finally:
            self._is_in_map = False

    def _peek(self) -> FrameHead:
        """See StreamReader; where the data are to begin, a gap is for `next_data` to meet."""
        begins = self.n_bytes
        try:
            return super()._peek()
        except GapError as error:
            self.n_bytes = begins
            if not self._is_in_map:
                raise
            self._gap = error
            return _NOTHING

    # --- data --------------------------------------------------------------------------------------------------------

    def next_data(self) -> FrameHead | None:
        """See StreamReader; of frames that are not whole the blocks that are there."""
        while True:
            begins = self.n_bytes
            try:
                head = super().next_data()
            except GapError:
                found = self._behind_gap(begins)
                if found is None:
                    self._require_all()
                    return None
                if found.n_blocks:
                    return found
                continue
            if head is None:
                return None
            self._n_passed += head.n_blocks
            if self._tape.ensure(head.stored_bytes) or not self._tape.has_gap:
                return head
            self._uncount(head)
            left = self._in_part(head)
            if left is not None:
                return left

    def _uncount(self, head: FrameHead) -> None:
        """Take back that a frame came."""
        self.n_gaps += 1
        self._n_blocks -= head.n_blocks
        self._n_data_frames -= 1
        self._payload_due = 0

    def _behind_gap(self, begins: int) -> FrameHead | None:
        """Go on behind a gap in which the frame at an offset has its head.

        Returns
        -------
        what is there of that frame, where the contents of its group have its head; a head of no blocks: nothing, the
        next frame comes next; None: no frame follows.
        """
        self.n_gaps += 1
        self._held, self._sequence = None, None  # type: ignore[assignment]  # whichever comes
        head = self._known_head(begins)
        if head is not None:
            self._tape.go_to(begins + head.stored_head_bytes)
            self.n_bytes = begins + head.stored_head_bytes
            if self._locations is not None:
                head = self._locations.take(head)
            self._n_passed += head.n_blocks
            return self._in_part(head) or _NOTHING
        found = self._tape.resync()
        if found is None:
            return None
        self.n_bytes, n_before = found
        if self._locations is not None and n_before > self._n_passed:
            self._locations.skip(n_before - self._n_passed)
        self._n_passed = max(self._n_passed, n_before)
        return _NOTHING

    def _known_head(self, begins: int) -> FrameHead | None:
        """Return the head of the data frame at an offset, by the contents of its group."""
        if begins not in self._known:
            contents = self._tape.contents_ahead()
            self._known = {entry.offset: entry for entry in contents.frames} if contents is not None else {}
        entry = self._known.get(begins)
        if entry is None:
            return None
        fixed, rest = entry.head[: codec.FRAME_FIXED_BYTES], entry.head[codec.FRAME_FIXED_BYTES :]
        try:
            head, _ = self.framing.head(fixed, rest, self.header.tag, None)
        except StreamError:
            return None
        return head if head.kind is FrameKind.DATA and head.is_located is (self._locations is None) else None

    def _in_part(self, head: FrameHead) -> FrameHead | None:
        """Return the head of what is there of a frame, whose payload comes next; None: nothing is."""
        pieces = self._tape.take_partial(head.stored_bytes)
        self.n_bytes += head.stored_bytes
        if not head.is_bare:
            return None
        there = np.zeros(head.n_blocks, np.bool_)
        blocks = bytearray(head.stored_bytes)
        for at, piece in _joined(pieces):
            blocks[at : at + len(piece)] = piece
            there[-(-at // BLOCK_BYTES) : (at + len(piece)) // BLOCK_BYTES] = True
        if not there.any():
            return None
        extents = extents_of(numbers_in(head.extents())[there])
        raw = codec.encode_data_head(head.sequence, head.tag, extents, head.checks()[there])
        fixed, table = raw[: codec.FRAME_FIXED_BYTES], raw[codec.FRAME_FIXED_BYTES :]
        left = codec.decode_frame_head(fixed, table, head.tag, head.sequence)
        self._rest = np.frombuffer(blocks, np.uint8).reshape(-1, BLOCK_BYTES)[there].tobytes()
        self._n_blocks += left.n_blocks
        return left

    def read_payload(self, buffers: Sequence[memoryview]) -> None:
        """See StreamReader."""
        if self._rest is None:
            super().read_payload(buffers)
            return
        at, rest = 0, self._rest
        for buffer in buffers:
            buffer[:] = rest[at : at + len(buffer)]
            at += len(buffer)
        self._rest = None

    def skip_payload(self) -> None:
        """See StreamReader."""
        if self._rest is None:
            super().skip_payload()
        self._rest = None

    # --- end ---------------------------------------------------------------------------------------------------------

    def _read_end(self) -> None:
        """Hold the end of a stream against what came; behind a gap only the blocks are counted."""
        if not self.n_gaps:
            super()._read_end()
            return
        try:
            while (head := self._peek()).kind is not FrameKind.TRAILER:
                self._payload(head)
            self._payload(head)
        except GapError:
            self._tape.drain()
        self._require_all()

    def _require_all(self) -> None:
        """Take stock: all blocks came, or some are lost."""
        due = self.header.following_blocks
        if self._n_blocks < due:
            raise TapeDamagedError(
                f"{due - self._n_blocks} of {due} blocks of {self._tape.name} are lost",
                "their records are damaged or missing",
            )


#: The head of nothing.
_NOTHING = FrameHead(FrameKind.DATA, 0, 0, 0, 0, 0, 0, 0)


def _joined(pieces: Sequence[tuple[int, memoryview]]) -> list[tuple[int, bytes]]:
    """Put pieces that follow each other together, so that a block which lies in two of them is whole."""
    found: list[tuple[int, bytes]] = []
    for at, piece in pieces:
        if found and found[-1][0] + len(found[-1][1]) == at:
            found[-1] = found[-1][0], found[-1][1] + bytes(piece)
        else:
            found.append((at, bytes(piece)))
    return found
