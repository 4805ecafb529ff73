"""A stream in files: whole, or split at a size; written under other names beside its own, which appear at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import closing
from typing import Final

from blockplane.model.errors import StreamError
from blockplane.stream.fdsink import Buffer, write_error
from blockplane.stream.filedigests import FileDigests
from blockplane.stream.filenames import WHOLE, FileForm, FileNames
from blockplane.stream.folder import PARTIAL, Folder, Growing
from blockplane.stream.pieces import DIGESTS, piece_name
from blockplane.stream.stored import Stored

#: Less than this is not kept when a stream is not finished: it holds little beside its planes.
_WORTH_BYTES: Final = 1 << 20


class FileSink(FileNames):
    """A new stream: in NAME, or in the pieces NAME.000, NAME.001, ...; until `commit` each has `.partial` behind it.

    Parameters
    ----------
    goes_on : take up what an interrupted one left, if there is something, as it is.

    Raises
    ------
    StreamError : it cannot be written, another process writes it, or what was begun was split otherwise.
    RefusedError : a volume's disk, another stream, or a key would be replaced.

    Attributes
    ----------
    is_old : whether there was one to take up. partial_name : what the first file is called until the end.

    Notes
    -----
    The first piece gets its name last: a stream that is there is whole. Digests are of the bytes as they are written,
    by a thread of their own.
    """

    def __init__(self, folder: Folder, name: str, form: FileForm = WHOLE, goes_on: bool = False) -> None:
        super().__init__(folder, name, form)
        self.refuse(goes_on)
        self._stays = goes_on  # as it is, until something is written
        #: how many there are; the first stays open, which keeps others from writing any, and the one that is written
        self._n_pieces = 0
        self._open: dict[int, Growing] = {}
        self._digests = FileDigests() if form.digests else None
        self._at = 0
        self._is_allocated = False
        self._start = -1
        try:
            first = self._piece(0, goes_on=goes_on)
            self.is_old, self.partial_name = first.is_old, first.partial_name
            self._find_old()
        except BaseException:
            self.close()
            raise
        self._stays = self.is_old

    def _partials(self) -> list[str]:
        return [self._name_of(number) + PARTIAL for number in range(self._n_pieces)]

    def _piece(self, number: int, *, goes_on: bool = False) -> Growing:
        """Return a piece, open; the next one is begun."""
        if number not in self._open:
            if number >= self._n_pieces:
                self._refuse_streams(number)
            self._open[number] = self._folder.begin(self._name_of(number), goes_on or number < self._n_pieces)
            self._n_pieces = max(self._n_pieces, number + 1)
        return self._open[number]

    # --- what is there -----------------------------------------------------------------------------------------------

    def _behind(self, number: int, end: str = "") -> list[str]:
        """Return the names with an end that later pieces have from a number on, until one is missing, or is another
        stream's; the last one first.
        """
        names, found = set(self._folder.names()), []
        while (name := self._name_of(number) + end) in names and not self._is_head(name):
            found.append(name)
            number += 1
        return found[::-1]

    def _find_old(self) -> None:
        """Find all that an interrupted one left behind the first piece; what is left of earlier ones goes."""
        if self._split is None:
            return
        names = set(self._folder.names())
        while self.is_old:
            name = self._name_of(self._n_pieces)
            if any(each in names and self._is_head(each) for each in (name, name + PARTIAL)):
                break  # another stream
            if name + PARTIAL not in names and name in names and self._name_of(0) not in names:
                self._folder.rename(name, name + PARTIAL)  # it had its name, and the first one did not yet
            elif name + PARTIAL not in names:
                break
            self._n_pieces += 1
        self._refuse_other_lengths()
        for name in self._behind(self._n_pieces, PARTIAL):
            self._folder.remove(name)

    def _refuse_other_lengths(self) -> None:
        lengths = [self._length(name) for name in self._partials()]
        while len(lengths) > 1 and not lengths[-1]:  # begun, and nothing written: room was made for them
            lengths.pop()
        if any(n != self._split for n in lengths[:-1]) or lengths[-1] > (self._split or 0):
            raise StreamError(
                f"{self.partial_name} and what belongs to it are pieces of {lengths[0]} bytes",
                f"go on with --split {lengths[0]}, or without --resume, which begins anew",
            )

    def _length(self, name: str) -> int:
        with closing(self._folder.stored([name])) as stored:
            return stored.n_bytes

    def stored(self) -> Stored:
        """Return what is there, to be read; the caller closes it."""
        return self._folder.stored(self._partials())

    def go_on_from(self, offset: int) -> None:
        """Have what is written next stand behind offset bytes; the first write cuts off what stood there."""
        self._start = offset

    # --- writing -----------------------------------------------------------------------------------------------------

    def allocate(self, n_bytes: int) -> None:
        """Make room for so many bytes in all, before the first is written; `commit` gives back what is not used.

        Raises
        ------
        NoSpaceError : there is no room.
        """
        self._go_back()
        self._is_allocated = True
        self._folder.require_room(self._base, n_bytes - sum(self._length(name) for name in self._partials()))
        size = self._split or max(n_bytes, 1)
        for number, start in enumerate(range(0, n_bytes, size)):
            self._piece(number).allocate(min(size, n_bytes - start))
            if number != self._at // size:  # that one goes on where it stands
                self._leave(number)

    def _leave(self, number: int) -> None:
        """Close a piece that is not written to now; the first stays open."""
        if number and number in self._open:
            self._open.pop(number).close()

    def _go_back(self) -> None:
        """Cut off what stands behind the point that is gone on from."""
        if self._start < 0:
            return
        offset, self._start = self._start, -1
        self._stays = False
        last = offset // self._split if self._split is not None else 0
        while self._n_pieces - 1 > last:
            self._drop_last()
        if last < self._n_pieces:
            self._piece(last).cut(offset - last * (self._split or 0))
        for name in self._partials() if self._digests is not None else ():
            assert self._digests is not None
            with closing(self._folder.stored([name])) as stored:
                self._digests.take_up(stored)
        self._at = offset

    def _drop_last(self) -> None:
        self._n_pieces -= 1
        if self._n_pieces in self._open:
            self._open.pop(self._n_pieces).close()
        self._folder.remove(self._name_of(self._n_pieces) + PARTIAL)

    def write_all(self, buffers: Sequence[Buffer]) -> None:
        """See Sink; the GIL is released while writing."""
        self._stays = False
        self._go_back()
        left: Sequence[Buffer] = buffers
        while left:
            number, done = divmod(self._at, self._split) if self._split is not None else (0, 0)
            if not done and number - 1 in self._open:
                self._open[number - 1].sync()
                self._leave(number - 1)
            now, left = (left, []) if self._split is None else _cut(left, self._split - done)
            self._write(number, now)

    def _write(self, number: int, buffers: Sequence[Buffer]) -> None:
        if self._digests is None:
            self._piece(number).write_all(buffers)
        else:
            with self._digests.updating(number, buffers):
                self._piece(number).write_all(buffers)
        self._at += sum(len(memoryview(buffer).cast("B")) for buffer in buffers)

    # --- the end -----------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """See Sink: durable under its own name on return."""
        try:
            self._trim()
            for piece in self._open.values():
                piece.sync()
            names = [self._name_of(number) for number in range(self._n_pieces)]
            self._write_digests(names)
            self._folder.remove(self._base + DIGESTS)  # of the stream before
            self._appear(names)
            self._stays = True
            if self._digests is not None:
                self._folder.rename(self._base + DIGESTS + PARTIAL, self._base + DIGESTS)
                self._folder.sync()
        except OSError as error:
            raise write_error(self.name, error) from error

    def _trim(self) -> None:
        """Give back what was allocated and not used."""
        self._go_back()
        n_used = max(-(-self._at // self._split), 1) if self._split is not None else 1
        while self._n_pieces > n_used:
            self._drop_last()
        last, inside = self._piece(n_used - 1), self._at - (n_used - 1) * (self._split or 0)
        if last.n_bytes != inside:
            last.cut(inside)

    def _appear(self, names: Sequence[str]) -> None:
        """Give every file its name, the first one last; what is left of an earlier stream of that name goes."""
        if self._split is not None:
            self._folder.remove(names[0])
            for name in self._behind(len(names)):
                self._folder.remove(name)
            self._folder.sync()
        for name in reversed(names):
            self._folder.rename(name + PARTIAL, name)
        self._folder.sync()

    def _write_digests(self, names: Sequence[str]) -> None:
        if self._digests is None:
            return
        file = self._folder.begin(self._base + DIGESTS, goes_on=False, is_public=True)
        try:
            file.write_all([self._digests.lines(names)])
            file.sync()
        finally:
            file.close()

    def suspend(self) -> str:
        """Keep what is written, where it is worth that, to be gone on with; return the name it is kept under, or ""."""
        with contextlib.suppress(OSError):
            # what was given to the host before it failed counts; room that was made says nothing
            n_last = self._piece(self._n_pieces - 1).n_bytes
            n_bytes = self._at if self._is_allocated else (self._n_pieces - 1) * (self._split or 0) + n_last
            if not self._stays and n_bytes >= _WORTH_BYTES:
                for piece in self._open.values():
                    piece.sync()
                self._stays = True
                return self.partial_name
        return ""

    def close(self) -> None:
        """See Sink."""
        if self._digests is not None:
            self._digests.close()
            with contextlib.suppress(OSError):
                self._folder.remove(self._base + DIGESTS + PARTIAL)
        with contextlib.suppress(OSError):
            while self._n_pieces and not self._stays:
                self._drop_last()
        while self._open:
            self._open.popitem()[1].close()


def _cut(buffers: Sequence[Buffer], n_bytes: int) -> tuple[list[Buffer], list[Buffer]]:
    """Return the first n_bytes of some buffers, and the rest."""
    taken: list[Buffer] = []
    for i, buffer in enumerate(buffers):
        view = memoryview(buffer).cast("B")
        if len(view) > n_bytes:
            rest: list[Buffer] = [view[n_bytes:], *buffers[i + 1 :]]
            return ([*taken, view[:n_bytes]] if n_bytes else taken), rest
        taken.append(view)
        n_bytes -= len(view)
    return taken, []


def split_beside(folder: Folder, name: str) -> int | None:
    """Return at what size an interrupted stream was split, as far as two pieces of it say so; None: nothing does."""
    first, second = (piece_name(name, number) + PARTIAL for number in (0, 1))
    if not folder.has_file(first) or not folder.has_file(second):
        return None
    with closing(folder.stored([first])) as stored, closing(folder.stored([second])) as behind:
        return stored.n_bytes if behind.n_bytes else None
