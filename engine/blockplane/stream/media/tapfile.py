"""SIMH's .tap files as media: the codec of lengths and markers, and the file as a tape.

A record is its length in 4 bytes, its bytes, padded to an even number, and the length again. The upper 4 bits of the
word are its class: 0 for a good record, 8 for one that was read in error. A word alone is a marker: 0 a filemark,
FFFFFFFF the end of the medium, FFFFFFFE an erase gap, which is passed over. The end of the file is the end of the
medium too.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from blockplane.disks import write_buffers
from blockplane.model.addresses import Bytes
from blockplane.model.errors import BlockplaneError, StreamMissingError, TapeError
from blockplane.stream.fdsink import Buffer, write_error
from blockplane.stream.media.medium import Found, Kind, MediumFullError

_WORD = struct.Struct("<I")
WORD_BYTES: Final = _WORD.size
FILEMARK: Final = 0
END_OF_MEDIUM: Final = 0xFFFFFFFF
ERASE_GAP: Final = 0xFFFFFFFE
#: Half a gap: a writer that overwrote the middle of one left it. Two bytes of it are passed over.
HALF_GAP: Final = 0xFFFEFFFF
MAX_RECORD_BYTES: Final = 0x0FFFFFFF
_CLASS_SHIFT: Final = 28
_GOOD, _BAD = 0, 8
#: Classes whose records are others' affair and are passed over: private data, and private markers, a word alone.
_PRIVATE: Final = frozenset({1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 13})
_PRIVATE_MARKER: Final = 14
#: Gaps are passed over in steps of so much.
_GAP_BYTES: Final = 64 << 10
#: So much goes out in one call: the page cache takes long writes at twice the speed of single records of 64 KiB; beyond
#: 4 MiB nothing is gained.
_BATCH_BYTES: Final = 4 << 20
#: A place is remembered every so many objects.
_REMEMBERED: Final = 64


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of the file: at `start`, its bytes from `data` on, the next one at `stop`."""

    kind: Kind
    start: int
    data: int
    n_bytes: int
    stop: int


def framed(pieces: Sequence[Buffer], n_bytes: int) -> list[Buffer]:
    """Return a record as it lies in the file."""
    word = _WORD.pack(n_bytes)
    return [word, *pieces, b"\0" + word if n_bytes % 2 else word]


def framed_bytes(n_bytes: int) -> int:
    """Return how long a record is in the file."""
    return n_bytes + n_bytes % 2 + 2 * WORD_BYTES


class TapFile:
    """A .tap file.

    Parameters
    ----------
    writable : it is made where there is none, and locked; what is written behind a position cuts off what stood there.
    size_bytes : how long it may become; None: as long as there is space.

    Raises
    ------
    StreamMissingError, TapeError : it cannot be opened, or another process writes it.

    Notes
    -----
    Several records go out in one call, straight from the callers' pieces: when there are enough of them, with `settle`
    and `finish`, and before anything reads or moves.
    """

    is_near_end = False

    def __init__(self, path: str, *, writable: bool = False, size_bytes: int | None = None) -> None:
        self.name, self._size_bytes, self._writable = path, size_bytes, writable
        self.is_new = writable and not os.path.lexists(path)
        self._fd = _opened(path, writable)
        self._end = os.fstat(self._fd).st_size
        self._offset = self.position = self.read_bytes = 0
        #: whether the descriptor stands at the end: nothing but writing moves it
        self._is_placed = False
        #: what goes out with the next call
        self._batch: list[Buffer] = []
        self._batch_bytes = 0
        #: positions and where they lie in the file, ascending
        self._known: list[tuple[int, int]] = [(0, 0)]

    @property
    def room_bytes(self) -> int | None:
        """See Medium."""
        return None if self._size_bytes is None else max(self._size_bytes - self._offset, 0)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _word(self, offset: int) -> int | None:
        """Return the word at an offset, None where the file ends."""
        raw = self._read_at(WORD_BYTES, offset)
        return _WORD.unpack(raw)[0] if len(raw) == WORD_BYTES else None

    def _read_at(self, n_bytes: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, n_bytes, offset)
        except OSError as error:
            raise TapeError(f"cannot read {self.name}: {error.strerror}") from error

    def _look(self) -> _Object:
        """Return the object at the position; gaps and what is others' affair are passed over."""
        self.settle()
        at = self._offset
        while True:
            word = self._word(at)
            if word is None or word == END_OF_MEDIUM:
                is_cut = word is None and at < self._end
                return _Object(Kind.CUT if is_cut else Kind.END, at, at, 0, at)
            if word == FILEMARK:
                return _Object(Kind.FILEMARK, at, at, 0, at + WORD_BYTES)
            if word in (ERASE_GAP, HALF_GAP):
                at = self._behind_gap(at, word)
                continue
            its_class, n_bytes = word >> _CLASS_SHIFT, word & MAX_RECORD_BYTES
            if its_class == _PRIVATE_MARKER:
                at += WORD_BYTES
                continue
            if its_class not in (_GOOD, _BAD) and its_class not in _PRIVATE:
                raise self._malformed(at, f"the word {word:#010x} is no length and no marker")
            stop = at + framed_bytes(n_bytes)
            if stop > self._end:
                return _Object(Kind.CUT, at, at + WORD_BYTES, min(n_bytes, self._end - at - WORD_BYTES), at)
            if self._word(stop - WORD_BYTES) != word:
                raise self._malformed(at, f"a record of {n_bytes} bytes does not end with its length")
            if its_class in _PRIVATE:
                at = stop
                continue
            return _Object(Kind.RECORD if its_class == _GOOD else Kind.BAD, at, at + WORD_BYTES, n_bytes, stop)

    def _behind_gap(self, at: int, word: int) -> int:
        """Return the offset behind the gap that begins at an offset."""
        if word == HALF_GAP:
            return at + WORD_BYTES // 2
        gap = _WORD.pack(ERASE_GAP) * (_GAP_BYTES // WORD_BYTES)
        while (found := self._read_at(_GAP_BYTES, at)) == gap:
            at += _GAP_BYTES
        n_words = next(
            (i for i in range(0, len(found) - 3, WORD_BYTES) if found[i : i + WORD_BYTES] != gap[:WORD_BYTES]),
            len(found) // WORD_BYTES * WORD_BYTES,
        )
        return at + n_words

    def _malformed(self, at: int, what: str) -> TapeError:
        return TapeError(
            f"{self.name} is no tape image from byte {at} on: {what}",
            "tapes are SIMH's .tap files (little-endian, padded to even), or devices",
        )

    def read(self, out: memoryview) -> Found:
        """See Medium."""
        its = self._look()
        if its.kind in (Kind.END, Kind.CUT):
            n_bytes = min(its.n_bytes, len(out))
            self._fill(out[:n_bytes], its.data)
            return Found(its.kind, n_bytes)
        kind = its.kind
        if kind is Kind.RECORD and its.n_bytes > len(out):
            kind = Kind.BAD
        if kind is Kind.RECORD:
            self._fill(out[: its.n_bytes], its.data)
        self._pass(its)
        return Found(kind, its.n_bytes)

    def _fill(self, out: memoryview, offset: int) -> None:
        done = 0
        while done < len(out):
            try:
                n_read = os.preadv(self._fd, [out[done:]], offset + done)
            except OSError as error:
                raise TapeError(f"cannot read {self.name}: {error.strerror}") from error
            if not n_read:
                raise TapeError(f"{self.name} became shorter while it was read")
            done += n_read
        self.read_bytes += done

    def _pass(self, its: _Object) -> None:
        self._offset, self.position = its.stop, self.position + 1
        if self.position % _REMEMBERED == 0 or its.kind is Kind.FILEMARK:
            self._remember()

    def _remember(self) -> None:
        if self.position > self._known[-1][0]:
            self._known.append((self.position, self._offset))

    # --- moving ------------------------------------------------------------------------------------------------------

    def seek(self, position: int) -> None:
        """See Medium: lengths are read from the nearest place that is known, and nothing else."""
        at = bisect_right(self._known, (position, 1 << 62)) - 1
        if not self._known[at][0] <= self.position <= position:
            self.position, self._offset = self._known[at]
        while self.position < position:
            its = self._look()
            if its.kind in (Kind.END, Kind.CUT):
                raise TapeError(f"{self.name} has {self.position} records and marks, and number {position} is wanted")
            self._pass(its)

    def seek_end(self) -> None:
        """See Medium."""
        while (its := self._look()).kind not in (Kind.END, Kind.CUT):
            self._pass(its)

    def pass_filemark(self) -> bool:
        """See Medium."""
        while (its := self._look()).kind not in (Kind.END, Kind.CUT):
            self._pass(its)
            if its.kind is Kind.FILEMARK:
                return True
        return False

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, pieces: Sequence[Buffer]) -> None:
        """See Medium."""
        n_bytes = sum(len(piece) for piece in pieces)
        self._put(framed(pieces, n_bytes), framed_bytes(n_bytes))

    def write_records(self, heads: Bytes, payload: memoryview) -> int:
        """See Medium: between two payloads lies one buffer, the lengths of both and the head of the other."""
        n_records, n_head = len(heads), heads.shape[1]
        n_payload = len(payload) // n_records
        n_bytes = n_head + n_payload
        n_framed = n_records * framed_bytes(n_bytes)
        if n_bytes % 2 or not self._has_room(n_framed):
            return 0
        word = _WORD.pack(n_bytes)
        between = np.empty((n_records, 2 * WORD_BYTES + n_head), np.uint8)
        between[:, : 2 * WORD_BYTES] = np.frombuffer(2 * word, np.uint8)
        between[:, 2 * WORD_BYTES :] = heads
        rows, stride = between.reshape(-1).data, between.shape[1]
        starts = zip(range(0, len(rows), stride), range(0, len(payload), n_payload), strict=True)
        buffers = [part for at, to in starts for part in (rows[at : at + stride], payload[to : to + n_payload])]
        buffers[0] = rows[WORD_BYTES:stride]
        self._put([*buffers, word], n_framed, n_records)
        return n_records

    def write_filemark(self, *, wait: bool) -> None:
        """See Medium: `finish` waits."""
        self._put([_WORD.pack(FILEMARK)], WORD_BYTES)
        self._remember()

    def _has_room(self, n_bytes: int) -> bool:
        room = self.room_bytes
        return room is None or n_bytes <= room - WORD_BYTES  # the marker of the end fits always

    def _put(self, buffers: Sequence[Buffer], n_bytes: int, n_objects: int = 1) -> None:
        if not self._has_room(n_bytes):
            raise MediumFullError
        self._cut_off()
        before = self.position
        self._batch += buffers
        self._batch_bytes += n_bytes
        self._offset, self.position = self._offset + n_bytes, self.position + n_objects
        self._end = self._offset
        if self._batch_bytes >= _BATCH_BYTES:
            self.settle()
        if self.position // _REMEMBERED > before // _REMEMBERED:
            self._remember()

    def settle(self) -> None:
        """See Medium; the GIL is released."""
        if not self._batch:
            return
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        try:
            write_buffers(self._fd, batch)
        except OSError as error:
            raise self._failed(error) from error

    def _cut_off(self) -> None:
        """Let the file end at the position."""
        if self._end == self._offset and self._is_placed:
            return
        self.settle()
        try:
            if self._end != self._offset:
                os.ftruncate(self._fd, self._offset)
            os.lseek(self._fd, self._offset, os.SEEK_SET)
        except OSError as error:
            raise self._failed(error) from error
        self._end = self._offset
        del self._known[bisect_right(self._known, (self.position, 1 << 62)) :]
        self._is_placed = True

    def _failed(self, error: OSError) -> BlockplaneError:
        return write_error(self.name, error)

    def finish(self) -> None:
        """See Medium: the marker of the end of the medium stands behind the last object."""
        self._cut_off()
        self._batch.append(_WORD.pack(END_OF_MEDIUM))
        self.settle()
        self._end = self._offset + WORD_BYTES
        self._sync()

    def _sync(self) -> None:
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """See Medium; a file that was made here and holds nothing is removed."""
        if self._fd >= 0:
            if self.is_new and not os.fstat(self._fd).st_size:
                os.unlink(self.name)
            os.close(self._fd)
            self._fd = -1


def _opened(path: str, writable: bool) -> int:
    flags = os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)  # it may hold all of a volume
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StreamMissingError(f"{path}: no such tape", "name a tape that `blockplane tape write` wrote") from error
    except OSError as error:
        raise TapeError(f"cannot open {path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise TapeError(f"{path} is neither a file nor a tape device", "name a .tap file, or a device as /dev/nst0")
        fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise TapeError(f"{path} is being written by another process", "wait for its end") from None
    except BaseException:
        os.close(fd)
        raise
    return fd
