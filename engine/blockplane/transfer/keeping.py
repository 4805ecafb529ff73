"""What stays of an image whose transfer ends early: kept where it can be gone on with, else given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from blockplane.model.errors import (
    BlockplaneError,
    DiskError,
    SnapshotExistsError,
    StreamDamagedError,
    StreamOrderError,
    StreamTruncatedError,
)
from blockplane.stream.reader import StreamMap
from blockplane.transfer.protocol import Destination, Landing


class OriginError(Exception):
    """What an image is read from failed, and not where it lands; the error is the cause."""

    def __init__(self, error: BlockplaneError) -> None:
        super().__init__(error.message)
        self.error = error


@contextmanager
def kept_or_given_up(landing: Landing, stream: StreamMap, destination: Destination, again: str) -> Iterator[None]:
    """Use a landing, its commit included: whatever ends that early leaves what can be gone on with, or no trace.

    Parameters
    ----------
    again : how to go on, for a person.

    Raises
    ------
    the error itself, which then says what is kept and how to go on; of an OriginError, its cause.
    """
    has_earlier = bool(len(getattr(landing, "copied", ())))
    try:
        yield
    except (StreamTruncatedError, SnapshotExistsError) as error:  # a name that was given away meanwhile can be freed
        _tell(error, _suspended(landing, error), stream, destination, again)
        raise
    except OriginError as failed:
        _tell(failed.error, _suspended(landing, failed.error), stream, destination, again)
        raise failed.error from failed.error.__cause__
    except KeyboardInterrupt as error:
        kept = BlockplaneError("interrupted")
        _tell(kept, _suspended(landing, kept), stream, destination, again)
        tell_interrupted(error, kept.hint, kept.message)
        raise
    except (StreamDamagedError, StreamOrderError) as error:
        if has_earlier:
            _tell(error, _suspended(landing, error), stream, destination, again)
        else:
            landing.abort()
        raise
    except DiskError as error:  # nothing more can be written there; what its trees know of stays
        landing.abandon()
        error.hint = error.hint or "mend that, and do it again: what landed until then is passed over"
        raise
    except BaseException:
        landing.abort()
        raise


def tell_interrupted(error: KeyboardInterrupt, hint: str, message: str = "interrupted") -> None:
    """Add to an interrupt what a person is to hear of it."""
    error.add_note(message)
    error.add_note(hint)


def _suspended(landing: Landing, error: BlockplaneError) -> int:
    """Leave a landing to be continued; return how many blocks stay. The error that ended it says where that fails."""
    try:
        return landing.suspend()
    except (BlockplaneError, OSError, MemoryError) as failed:
        landing.abandon()
        error.message = f"{error.message}; what landed last could not be noted: {failed}"
        return int(getattr(landing, "n_stored", 0))


def _tell(error: BlockplaneError, n_blocks: int, stream: StreamMap, destination: Destination, again: str) -> None:
    """Add to an error what stays and how to go on."""
    if not n_blocks:
        return
    n_image, top = stream.header.image_blocks, stream.top.name
    error.message = f"{error.message}; {n_blocks} of {n_image} blocks of {top} are kept in {destination.name}"
    is_only_cut = isinstance(error, StreamTruncatedError) or not error.hint
    error.hint = again if is_only_cut else f"{error.hint}; {again}"
