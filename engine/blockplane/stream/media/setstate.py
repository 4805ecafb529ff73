"""What of a set of tapes is written."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from blockplane.model.errors import UsageError
from blockplane.stream.media import codec
from blockplane.stream.media.codec import HEAD_BYTES, ImageEntry, Run, Table, TapeEntry


@dataclass(slots=True)
class SetState:
    """What of a set is written; its writer changes it as it goes on.

    tape : the number of the tape being written; 0: none yet. position : where it goes on there. sequence : of the next
    record. images : those that are whole. runs : theirs, and of the closed groups of the one under way.
    """

    set_id: bytes
    created_ns: int
    record_bytes: int
    tapes: list[TapeEntry] = field(default_factory=list)
    images: list[ImageEntry] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    sequence: int = 0
    tape: int = 0
    position: int = 0

    @property
    def capacity(self) -> int:
        """How many bytes a record holds."""
        return self.record_bytes - HEAD_BYTES

    def table(self, image: ImageEntry) -> Table:
        """Return the table with one more image."""
        return Table(tuple(self.tapes), (*self.images, image), tuple(self.runs))


def new_set(record_bytes: int = codec.DEFAULT_RECORD_BYTES) -> SetState:
    """Return a set of which nothing is written.

    Raises
    ------
    UsageError : records cannot be so long.
    """
    if not codec.MIN_RECORD_BYTES <= record_bytes <= codec.MAX_RECORD_BYTES:
        raise UsageError(f"records of {record_bytes} bytes are not written", "say 64KiB to 1MiB")
    return SetState(secrets.token_bytes(16), time.time_ns(), record_bytes)
