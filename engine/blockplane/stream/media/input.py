"""One image of a set as the bytes of its stream, in order; where records are gone, the next frame that is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from blockplane.model.errors import StreamDamagedError, TapeDamagedError
from blockplane.stream.media.codec import Contents, RecordKind
from blockplane.stream.media.records import Damage, Record
from blockplane.stream.media.walk import Walk


class GapError(StreamDamagedError):
    """Bytes of the stream are in a record that cannot be read."""


class ImageInput:
    """See Input. Bytes are handed out once the record that holds them was held against its checksum.

    Attributes
    ----------
    number : of the image in its set. has_gap : records are gone where it stands; `resync` goes behind them.
    """

    is_whole = False

    def __init__(self, walk: Walk, number: int, first: Record | None) -> None:
        self._walk, self.number = walk, number
        self.name = f"image {number} of the tapes"
        self._ready: deque[memoryview] = deque()
        self._n_ready = self._offset = 0
        self._behind: Record | None = first
        self.has_gap = first is None or first.head.offset != 0
        self.is_over = False

    @property
    def offset(self) -> int:
        """Where in the stream it stands."""
        return self._offset

    # --- records -----------------------------------------------------------------------------------------------------

    def _next_data(self) -> Record | None:
        """Return the next record of data; None at the image's end. What is damaged makes a gap."""
        if self._behind is not None and not self.is_over:
            record, self._behind = self._behind, None
            return record
        while not self.is_over:
            found = self._walk.next()
            if found is None:
                self.is_over = True
            elif isinstance(found, Damage):
                kind = found.head.kind if found.head is not None else RecordKind.DATA
                self.is_over = kind is RecordKind.END
                self.has_gap = self.has_gap or kind is RecordKind.DATA
            elif found.head.kind is RecordKind.END:
                self.is_over = True
            elif found.head.kind is RecordKind.DATA and found.head.image != self.number:
                self._behind, self.is_over, self.has_gap = found, True, True  # its end is lost
            elif found.head.kind is RecordKind.DATA:
                return found
        return None

    @property
    def of_next(self) -> Record | None:
        """The first record of the next image, where this one's end was lost."""
        return self._behind if self.is_over else None

    def _more(self) -> bool:
        """Have the next record's bytes ready; False: there are none that follow."""
        if self.has_gap:
            return False
        record = self._next_data()
        if record is None:
            return False
        due = self._offset + self._n_ready
        over = due - record.head.offset
        if over < 0:
            self._behind, self.has_gap = record, True
            return False
        self.has_gap = False
        if over < len(record.payload):  # else it was had before
            self._ready.append(record.payload[over:])
            self._n_ready += len(record.payload) - over
        return True

    def ensure(self, n_bytes: int) -> bool:
        """Have so many bytes ready; False: some of them are gone, or the image ends before."""
        while self._n_ready < n_bytes:
            if not self._more():
                return False
        return True

    def resync(self) -> tuple[int, int] | None:
        """Go to the next frame behind a gap.

        Returns
        -------
        where in the stream it begins, and how many blocks the frames before it hold; None: no frame follows.
        """
        while True:
            first = self._behind.head if self._behind is not None and not self.is_over else None
            if first is None and (record := self._next_data()) is not None:
                self._behind, first = record, record.head
            if first is None:
                return None
            if first.first_frame < first.payload_bytes:
                self.go_to(first.offset + first.first_frame)
                return self._offset, first.blocks_before
            self._behind = None

    def go_to(self, offset: int) -> None:
        """Pass over bytes of the stream, whether they are gone or not."""
        while self._offset < offset and self._ready:
            self._drop(min(len(self._ready[0]), offset - self._offset))
        while self._offset < offset:
            self._have_next(offset)
            if self._ready:
                self._drop(min(self._n_ready, offset - self._offset))

    def take_partial(self, n_bytes: int) -> list[tuple[int, memoryview]]:
        """Pass over bytes of the stream; return those that are there: where each piece begins, counted from here."""
        start, stop = self._offset, self._offset + n_bytes
        pieces: list[tuple[int, memoryview]] = []
        while self._offset < stop:
            if not self._ready:
                self._have_next(stop)
                continue
            part = self._ready[0][: stop - self._offset]
            pieces.append((self._offset - start, part))
            self._drop(len(part))
        return pieces

    def _have_next(self, stop: int) -> None:
        """Have the next record's bytes ready, whatever is gone before them; none where they begin behind a stop."""
        self.has_gap = False
        record = self._next_data()
        if record is None or record.head.offset >= stop:
            self._stand_before(record, stop)
            return
        self.has_gap = False
        self._offset, self._n_ready = record.head.offset, len(record.payload)
        self._ready.append(record.payload)

    def _stand_before(self, record: Record | None, offset: int) -> None:
        """Stand at an offset, with the record that comes next, which may begin behind it."""
        self._behind, self._offset = record, offset
        self.has_gap = record is None or record.head.offset > offset

    def begin_with(self, start: bytes) -> None:
        """Have the stream's beginning from elsewhere: the tapes go on behind it."""
        self._ready.clear()
        self._ready.append(memoryview(start))
        self._offset, self._n_ready, self.has_gap = 0, len(start), False

    def contents_ahead(self) -> Contents | None:
        """Return the contents of the group that is being read, None where they cannot be."""
        return self._walk.contents_ahead()

    # --- bytes -------------------------------------------------------------------------------------------------------

    def read_into(self, buffers: Sequence[memoryview]) -> int:
        """See Input.

        Raises
        ------
        GapError : a record that holds some of the bytes cannot be read; none was taken.
        """
        wanted = sum(len(buffer) for buffer in buffers)
        if not self.ensure(wanted) and self.has_gap:
            raise GapError(self._walk.problems[-1] if self._walk.problems else f"records of {self.name} are missing")
        total = 0
        for buffer in buffers:
            total += self._fill(buffer.cast("B"))
        return total

    def _fill(self, out: memoryview) -> int:
        done = 0
        while done < len(out) and self._ready:
            part = self._ready[0][: len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            self._drop(len(part))
        return done

    def _drop(self, n_bytes: int) -> None:
        """Pass bytes of the record that comes first."""
        first = self._ready.popleft()
        if n_bytes < len(first):
            self._ready.appendleft(first[n_bytes:])
        self._n_ready -= n_bytes
        self._offset += n_bytes

    def skip(self, n_bytes: int) -> int:
        """See Input: it is read all the same."""
        if not self.ensure(n_bytes) and self.has_gap:
            raise GapError(f"records of {self.name} are missing")
        done = 0
        while done < n_bytes and self._ready:
            part = min(len(self._ready[0]), n_bytes - done)
            self._drop(part)
            done += part
        return done

    def drain(self) -> None:
        """Read to the image's end, for nothing."""
        self._ready.clear()
        while self._next_data() is not None:
            self._ready.clear()
        self.is_over = True

    def close(self) -> None:
        """See Input: the tapes are their owner's."""


def images(walk: Walk) -> Iterator[ImageInput]:
    """Yield the images of a set in order; each is read, or drained, before the next comes."""
    ahead: Record | None = None
    number = 0
    while True:
        while ahead is None or ahead.head.kind is not RecordKind.DATA:
            found = walk.next()
            if found is None:
                return
            if isinstance(found, Damage):
                if found.head is None or found.head.kind is RecordKind.DATA:
                    ahead = None
                continue
            ahead = found
        if ahead.head.image < number + 1:
            raise TapeDamagedError(f"image {ahead.head.image} comes behind image {number}", "")
        number = ahead.head.image
        image = ImageInput(walk, number, ahead)
        yield image
        if not image.is_over:
            image.drain()
        ahead = image.of_next
