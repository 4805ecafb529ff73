"""The tree of errors: every failure that blockplane reports on purpose.

A message says what was asked, what was found and, in ``hint``, what to do. ``kind`` is the word programs test for
(``--json``); ``exit_status`` is the process's: 1 for a failure, 2 for a question that could not be understood.
"""

from __future__ import annotations

from typing import ClassVar, Final


class BlockplaneError(Exception):
    """Base of everything blockplane raises on purpose.

    Parameters
    ----------
    message : one line, in the words of the person who asked (paths, names of snapshots), without a full stop.
    hint : what to do about it, or empty.
    """

    kind: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


#: What is said where the system has no room for one more thread: limits on memory or on processes do that.
NO_THREAD: Final = "there is no room for one more thread"
NO_THREAD_HINT: Final = "raise the limit on memory or on processes (ulimit -v, ulimit -u, pids.max), or end something"

#: What is said where a volume is in use by a service, which does not end by itself.
SERVED_HINT: Final = (
    "a service keeps it: have one service serve both volumes, or call it as HOST:PORT/NAME where it listens; or stop it"
)


def is_lack_of_threads(error: BaseException) -> bool:
    """Whether a thread could not be started: Python has no exception for it but RuntimeError with this text."""
    return isinstance(error, RuntimeError) and str(error) == "can't start new thread"


class UsageError(BlockplaneError):
    """The request itself is wrong; nothing was looked at or changed."""

    kind = "usage"
    exit_status = 2


class ExpressionError(UsageError):
    """An image expression that does not parse.

    Parameters
    ----------
    position : index of the first character of the expression that does not fit.
    """

    kind = "expression"

    def __init__(self, message: str, position: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.position = position


class RefusedError(BlockplaneError):
    """Doing it would lose something that nobody agreed to lose; nothing was changed."""

    kind = "refused"


class ReadOnlyError(BlockplaneError):
    """A snapshot, a stream or a volume opened for reading cannot be written."""

    kind = "read-only"


class NoSpaceError(BlockplaneError):
    """No free place is left for what was asked; the last consistency point is whole."""

    kind = "no-space"


class NotAVolumeError(BlockplaneError):
    """The path holds no blockplane volume."""

    kind = "not-a-volume"


class VolumeInUseError(BlockplaneError):
    """Another process owns the volume or one of its disks."""

    kind = "in-use"


class NoSuchSnapshotError(BlockplaneError):
    """No snapshot has that name."""

    kind = "no-such-snapshot"


class SnapshotExistsError(BlockplaneError):
    """A snapshot of that name is there already."""

    kind = "snapshot-exists"


class VolumeDamagedError(BlockplaneError):
    """What is on the disks contradicts itself."""

    kind = "damaged"


class ChecksumError(VolumeDamagedError):
    """A block's bytes do not match the checksum kept apart from it.

    Parameters
    ----------
    number : the number the check is bound to (VBN, or place for blocks of the local tree), or -1 when unknown.
    """

    kind = "checksum"

    def __init__(self, message: str, number: int = -1, hint: str = "") -> None:
        super().__init__(message, hint)
        self.number = number


class DiskError(VolumeDamagedError):
    """A disk failed, or is not the one that belongs there.

    Parameters
    ----------
    path : the disk as the person named it.
    """

    kind = "disk"

    def __init__(self, message: str, path: str = "", hint: str = "") -> None:
        super().__init__(message, hint)
        self.path = path


class DiskMissingError(DiskError):
    """A member of the volume is not among the disks given, or cannot be opened."""

    kind = "disk-missing"


class DiskForeignError(DiskError):
    """The disk has no label, or belongs to another volume."""

    kind = "disk-foreign"


class DiskMisplacedError(DiskError):
    """The disk belongs to the volume, in another position."""

    kind = "disk-misplaced"


class DiskShortError(DiskError):
    """The disk holds fewer blocks than its label says."""

    kind = "disk-short"


class DiskStaleError(DiskError):
    """The disk was out while the others went on: its label generation is older, or they recorded it as out."""

    kind = "disk-stale"


class DiskDuplicateError(DiskError):
    """Two of the disks given claim to be the same member."""

    kind = "disk-duplicate"


class StreamError(BlockplaneError):
    """The image stream cannot be used as asked.

    Attributes
    ----------
    sequence : the number of the data frame it is of, -1 where it is of no one.
    """

    kind = "stream"
    sequence = -1


class StreamMissingError(StreamError):
    """No file is where the stream was said to be."""

    kind = "not-found"


class StreamPartMissingError(StreamError):
    """A block is in a part of the image that is not among the streams."""

    kind = "part-missing"


class StreamTruncatedError(StreamError):
    """The stream ends before its trailer."""

    kind = "stream-truncated"


class StreamDamagedError(StreamError):
    """Bytes of the stream do not match their checksum."""

    kind = "stream-damaged"


class StreamOrderError(StreamError):
    """A frame is not the one that comes next."""

    kind = "stream-order"


class StreamMismatchError(StreamError):
    """The stream is whole but does not fit this destination: other base, other space, other history."""

    kind = "stream-mismatch"


class StreamKeyError(StreamError):
    """The stream is encrypted, and its key is not at hand."""

    kind = "stream-key"


class KeyFileError(BlockplaneError):
    """A key file cannot be made, or used."""

    kind = "key-file"


class TapeError(StreamError):
    """A tape, or what holds it, cannot be used as asked."""

    kind = "tape"


class TapeLabelError(TapeError):
    """A tape has no label of ours, or a damaged one."""

    kind = "tape-label"


class TapeOrderError(TapeError):
    """A tape of the set, in the place of another one."""

    kind = "tape-order"


class TapeSetError(TapeError):
    """A tape of another set."""

    kind = "tape-set"


class TapeTimeError(TapeError):
    """A tape of the set, written at another time than those it stands beside."""

    kind = "tape-time"


class TapeEndError(TapeError):
    """A tape ends before its end record."""

    kind = "tape-end"


class TapeFullError(TapeError):
    """No tape is left to write on."""

    kind = "no-space"


class TapeDamagedError(StreamTruncatedError):
    """Records of a tape cannot be read; what else there is stays of use.

    Parameters
    ----------
    records : what each damaged place is, one line each. lost : VBNs [start, stop) that are gone.
    """

    kind = "tape-damaged"

    def __init__(
        self, message: str, hint: str = "", records: tuple[str, ...] = (), lost: tuple[tuple[int, int], ...] = ()
    ) -> None:
        super().__init__(message, hint)
        self.records = records
        self.lost = lost


class NetworkError(BlockplaneError):
    """The other side of a connection cannot be reached, or is not what was expected there."""

    kind = "network"


class UnreachableError(NetworkError):
    """Nobody answers there."""

    kind = "unreachable"


class UntrustedError(NetworkError):
    """One side of a connection does not take the other for who it should be."""

    kind = "untrusted"


class NotAllowedError(NetworkError):
    """The other side gives no right to that; whether what was named is there, it does not say."""

    kind = "not-allowed"


class BusyError(NetworkError):
    """The other side has no room for one more now."""

    kind = "busy"


class ConnectionLostError(StreamTruncatedError):
    """A connection ended, or stood still for too long, before what went over it was whole; it can be gone on with."""

    kind = "connection-lost"
