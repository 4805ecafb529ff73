"""Which piece of a split stream an error is of: the first frame in each says where it belongs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from blockplane.model.errors import StreamError, StreamMismatchError, StreamOrderError
from blockplane.stream.codec import SEARCH_BYTES, FoundFrame, find_frame
from blockplane.stream.stored import SplitFile

_AGAIN: Final = "fetch the pieces of one stream"


def blamed(error: StreamError, pieces: SplitFile, offset: int) -> StreamError:
    """Return the error, naming the piece that is foreign, out of order or damaged.

    Parameters
    ----------
    offset : how far the stream was read; what counts where the error is of no one frame.
    """
    if any(name in error.message for name in pieces.names):
        return error
    firsts = [_first_frame(pieces, i) for i in range(len(pieces.files))]
    mine = firsts[0]
    for name, first in zip(pieces.names, firsts, strict=True):
        if mine is not None and first is not None and first.tag != mine.tag:
            return StreamMismatchError(f"{name} is a piece of another stream than {pieces.names[0]}", _AGAIN)
    for i in range(1, len(firsts)):
        before, first = firsts[i - 1], firsts[i]
        if before is not None and first is not None and first.sequence <= before.sequence:
            return StreamOrderError(
                f"{pieces.names[i - 1]} and {pieces.names[i]} are in the wrong order: they begin with frames "
                f"{before.sequence} and {first.sequence}",
                "give each piece its own name again",
            )
    return type(error)(f"{error.message}: in {_where(error, pieces, firsts, offset)}", error.hint)


def _where(error: StreamError, pieces: SplitFile, firsts: Sequence[FoundFrame | None], offset: int) -> str:
    """Return the names of the pieces that the frame of an error lies in, or what was read last."""
    if error.sequence < 0:
        return pieces.names[pieces.at(max(offset - 1, 0))]
    found = [i for i, first in enumerate(firsts) if first is not None and first.sequence <= error.sequence]
    piece = found[-1] if found else 0
    after = firsts[piece + 1] if piece + 1 < len(firsts) else None
    goes_on = after is not None and after.sequence == error.sequence + 1 and after.offset > 0
    return pieces.names[piece] + (f" or {pieces.names[piece + 1]}, where that frame ends" if goes_on else "")


def _first_frame(pieces: SplitFile, number: int) -> FoundFrame | None:
    data = bytearray(SEARCH_BYTES)
    n_read = pieces.files[number].read_into(memoryview(data), 0)
    return find_frame(bytes(data[:n_read]))
