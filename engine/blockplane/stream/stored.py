"""The bytes of a stored stream, read by offset: one file, or the pieces that it was split into.

A storage of another kind, such as a file inside a volume, is a `StreamPlace`: whatever takes stream files takes it too.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, runtime_checkable

import numpy as np

from blockplane._native.segments import read_blocks, read_segments
from blockplane.image.extents import expand
from blockplane.model.addresses import BLOCK_BYTES, Bytes, Checks, Numbers
from blockplane.model.checks import first_bad_block
from blockplane.model.errors import StreamError, StreamMissingError, StreamTruncatedError
from blockplane.stream.pieces import pieces_of

#: Of the pieces of a stream, so many files are open at a time.
_MAX_OPEN: Final = 64
#: Numbers that no descriptor has.
_keys = itertools.count(-1, -1)


def new_key() -> int:
    """Return a number for what is stored, that nothing else has."""
    return next(_keys)


class Stored(Protocol):
    """Bytes by offset; any thread, OSError where they cannot be read.

    Attributes
    ----------
    name : what a person calls it. n_bytes : how many there are. key : a number that no other open one has.
    """

    name: str
    n_bytes: int
    key: int

    def read_into(self, out: memoryview, offset: int) -> int:
        """Fill a buffer; return the bytes read, fewer only at the end."""
        ...

    def read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """Return bytes, fewer only at the end; or, where what is behind at_least of them is damaged, before that."""
        ...

    def read_segments(self, offsets: Numbers, lengths: Numbers, out: Bytes, positions: Numbers) -> int:
        """Read segments to their places in out; return how many requests that took. EOFError: the end is before."""
        ...

    def read_blocks(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        """Read blocks one after the other; return how many requests, and the first that is not as its check says."""
        ...

    def advise(self, advice: int) -> None:
        """Tell the kernel how it will be read."""
        ...

    def close(self) -> None:
        """Release; twice does no harm."""
        ...


@runtime_checkable
class StreamPlace(Protocol):
    """Where a stream lies that is no file of the host."""

    name: str

    def open_stored(self) -> Stored:
        """Return its bytes; StreamMissingError: there are none."""
        ...


def read_bytes(stored: Stored, n_bytes: int, offset: int) -> bytes:
    """Read bytes by way of a buffer: `Stored.read` of what has no shorter way."""
    data = bytearray(n_bytes)
    n_read = stored.read_into(memoryview(data), offset)
    return bytes(memoryview(data)[:n_read])


class OneFile:
    """A file, or a block device: a stream on one may end before it does. It stays open where it is another's."""

    def __init__(self, fd: int, name: str, *, owned: bool = True) -> None:
        self.fd, self.name, self.key = fd, name, fd
        self._owned = owned
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.n_bytes = os.lseek(fd, 0, os.SEEK_END) if self.is_device else os.fstat(fd).st_size

    def read_into(self, out: memoryview, offset: int) -> int:
        """See Stored."""
        total, left = 0, out.cast("B")
        while len(left):
            n_read = os.preadv(self.fd, [left], offset + total)
            if not n_read:
                break
            total += n_read
            left = left[n_read:]
        return total

    def read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """See Stored."""
        return os.pread(self.fd, n_bytes, offset)

    def read_segments(self, offsets: Numbers, lengths: Numbers, out: Bytes, positions: Numbers) -> int:
        """See Stored; without the GIL."""
        return read_segments(self.fd, offsets, lengths, out, positions)

    def read_blocks(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        """See Stored; without the GIL."""
        return read_blocks(self.fd, offsets, out, numbers, checks)

    def advise(self, advice: int) -> None:
        """See Stored."""
        os.posix_fadvise(self.fd, 0, 0, advice)

    def close(self) -> None:
        """See Stored."""
        if self._owned and self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class FilePool:
    """Files that are read in turns: those used last stay open. Thread-safe."""

    def __init__(self) -> None:
        #: guards the rest; a file in use is not closed
        self._lock = threading.Lock()
        self._open: OrderedDict[str, int] = OrderedDict()
        self._n_users: Counter[str] = Counter()

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Give a descriptor on a file; StreamMissingError, StreamError: it cannot be opened."""
        with self._lock:
            if name not in self._open:
                self._open[name] = open_path(name)
            self._open.move_to_end(name)
            self._n_users[name] += 1
            fd = self._open[name]
        try:
            yield fd
        finally:
            with self._lock:
                self._n_users[name] -= 1
                self._close_oldest()

    def _close_oldest(self) -> None:
        idle = [name for name in self._open if not self._n_users[name]]
        for name in idle[: max(len(self._open) - _MAX_OPEN, 0)]:
            os.close(self._open.pop(name))

    def close(self) -> None:
        """Close all."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


class PooledFile:
    """A file that is open while it is read: one of many."""

    def __init__(self, name: str, pool: FilePool) -> None:
        self.name, self._pool, self.key = name, pool, new_key()
        with pool.opened(name) as fd:
            self.n_bytes = os.fstat(fd).st_size

    def read_into(self, out: memoryview, offset: int) -> int:
        """See Stored."""
        with self._pool.opened(self.name) as fd:
            return OneFile(fd, self.name, owned=False).read_into(out, offset)

    def read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """See Stored."""
        with self._pool.opened(self.name) as fd:
            return os.pread(fd, n_bytes, offset)

    def read_segments(self, offsets: Numbers, lengths: Numbers, out: Bytes, positions: Numbers) -> int:
        """See Stored."""
        with self._pool.opened(self.name) as fd:
            return read_segments(fd, offsets, lengths, out, positions)

    def read_blocks(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        """See Stored."""
        with self._pool.opened(self.name) as fd:
            return read_blocks(fd, offsets, out, numbers, checks)

    def advise(self, advice: int) -> None:
        """See Stored: it is opened anew before long."""

    def close(self) -> None:
        """See Stored: the pool's others go too."""
        self._pool.close()


class SplitFile:
    """Files that were one before it was split, as one again."""

    def __init__(self, files: Sequence[Stored], name: str) -> None:
        self.files, self.name, self.names = list(files), name, [file.name for file in files]
        sizes = np.array([file.n_bytes for file in files], np.int64)
        self._stops = np.cumsum(sizes)
        self._starts = self._stops - sizes
        self.n_bytes, self.key = int(self._stops[-1]), files[0].key

    def at(self, offset: int) -> int:
        """Return which piece a byte lies in; the last for what is behind the end."""
        return min(int(np.searchsorted(self._stops, offset, side="right")), len(self.files) - 1)

    def around(self, start: int, stop: int) -> str:
        """Return the names of the pieces that some bytes lie in, for a message."""
        return " or ".join(self.names[self.at(start) : self.at(stop - 1) + 1])

    def start_of(self, piece: int) -> int:
        """Return the offset of a piece's first byte."""
        return int(self._starts[piece])

    def read_into(self, out: memoryview, offset: int) -> int:
        """See Stored."""
        left, total = out.cast("B"), 0
        while len(left) and offset + total < self.n_bytes:
            piece = self.at(offset + total)
            inside = offset + total - self.start_of(piece)
            room = self.files[piece].n_bytes - inside
            n_read = self.files[piece].read_into(left[:room], inside)
            if not n_read:
                break
            total += n_read
            left = left[n_read:]
        return total

    def read(self, n_bytes: int, offset: int, at_least: int | None = None) -> bytes:
        """See Stored."""
        return read_bytes(self, n_bytes, offset)

    def read_segments(self, offsets: Numbers, lengths: Numbers, out: Bytes, positions: Numbers) -> int:
        """See Stored: what crosses from one piece to the next is read from both."""
        if len(offsets) and int((offsets + lengths).max()) > self.n_bytes:
            raise EOFError
        first = np.searchsorted(self._stops, offsets, side="right")
        counts = np.searchsorted(self._stops, offsets + lengths - 1, side="right") - first + 1
        row = np.repeat(np.arange(len(offsets)), counts)
        piece = expand(first, counts)
        begin = np.maximum(offsets[row], self._starts[piece])
        end = np.minimum((offsets + lengths)[row], self._stops[piece])
        into, n_requests = positions[row] + begin - offsets[row], 0
        for number in np.unique(piece).tolist():
            mine, start = piece == number, self.start_of(number)
            wanted = begin[mine] - start
            n_requests += self.files[number].read_segments(wanted, (end - begin)[mine], out, into[mine])
        return n_requests

    def read_blocks(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        """See Stored: a run of blocks in one piece is one call."""
        if len(offsets) and int(offsets.max()) + BLOCK_BYTES > self.n_bytes:
            raise EOFError
        piece = np.searchsorted(self._stops, offsets, side="right")
        crosses = piece != np.searchsorted(self._stops, offsets + BLOCK_BYTES - 1, side="right")
        kind = np.where(crosses, -1, piece)
        borders = np.flatnonzero(np.diff(kind) != 0) + 1
        n_requests, bad = 0, -1
        for at, stop in zip([0, *borders.tolist()], [*borders.tolist(), len(offsets)], strict=True):
            if at == stop:
                continue
            data, vbns, wanted = out[at * BLOCK_BYTES : stop * BLOCK_BYTES], numbers[at:stop], checks[at:stop]
            if kind[at] >= 0:
                number = int(kind[at])
                here = offsets[at:stop] - self.start_of(number)
                n, first_bad = self.files[number].read_blocks(here, data, vbns, wanted)
            else:
                n, first_bad = self._crossing(offsets[at:stop], data, vbns, wanted)
            n_requests += n
            bad = at + first_bad if bad < 0 <= first_bad else bad
        return n_requests, bad

    def _crossing(self, offsets: Numbers, out: Bytes, numbers: Numbers, checks: Checks) -> tuple[int, int]:
        lengths = np.full(len(offsets), BLOCK_BYTES, np.int64)
        n = self.read_segments(offsets, lengths, out, np.arange(len(offsets), dtype=np.int64) * BLOCK_BYTES)
        return n, first_bad_block(out, numbers, checks)

    def advise(self, advice: int) -> None:
        """See Stored."""
        for file in self.files:
            file.advise(advice)

    def close(self) -> None:
        """See Stored."""
        for file in self.files:
            file.close()


def open_path(path: str | os.PathLike[str]) -> int:
    """Return a descriptor on a stream file; StreamMissingError, StreamError: there is none, or none to be read."""
    name = os.fspath(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StreamMissingError(f"{name}: no such stream file", "name a file that `blockplane send` wrote") from error
    except OSError as error:
        raise StreamError(f"cannot read {name}: {error.strerror}") from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise StreamError(f"{name} is a directory", "name a stream file")
    return fd


def open_stored(path: str | os.PathLike[str] | StreamPlace) -> Stored:
    """Return the bytes of a stream file; of the pieces of one, where the path means those.

    Raises
    ------
    StreamMissingError : there is none; or a piece is missing. StreamTruncatedError : a piece is shorter than it was.
    """
    if isinstance(path, StreamPlace):
        return path.open_stored()
    names = pieces_of(os.fspath(path))
    if names is None:
        return OneFile(open_path(path), os.fspath(path))
    pieces = split_file(names, os.fspath(path))
    try:
        _require_lengths(pieces.files)
    except BaseException:
        pieces.close()
        raise
    return pieces


def split_file(names: Sequence[str], shown: str) -> SplitFile:
    """Return the bytes of pieces, in order; StreamMissingError, StreamError: one cannot be opened."""
    pool = FilePool()
    try:
        return SplitFile([PooledFile(name, pool) for name in names], shown)
    except BaseException:
        pool.close()
        raise


def _require_lengths(files: Sequence[Stored]) -> None:
    """Every piece is as long as the first, the last at most so."""
    first, *others = files
    for i, file in enumerate(others):
        is_last = i == len(others) - 1
        if file.n_bytes > first.n_bytes or (file.n_bytes < first.n_bytes and not is_last):
            raise StreamTruncatedError(
                f"{file.name} has {file.n_bytes} bytes, and {first.name} has {first.n_bytes}: all pieces but the last "
                "are of one length",
                "it was cut off, or is of another stream: fetch it again",
            )
