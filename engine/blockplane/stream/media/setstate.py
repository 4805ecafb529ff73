"""What of a set of tapes is written."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from blockplane.model.errors import UsageError
from blockplane.stream.media import codec
from blockplane.stream.media.codec import HEAD_BYTES, NO_ID, ImageEntry, Run, Table, TapeEntry


@dataclass(frozen=True, slots=True)
class SetPart:
    """Which part of every image a set has: number, from 0, of how many; group_id : what its sets have in common."""

    number: int = 0
    n_parts: int = 1
    group_id: bytes = NO_ID


WHOLE: Final = SetPart()


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
    part: SetPart = WHOLE

    @property
    def has_begun(self) -> bool:
        """Whether something is written that can be gone on with: a closed group of an image, or a first label."""
        return bool(self.tape) and (not self.images or any(run.image > len(self.images) for run in self.runs))

    @property
    def capacity(self) -> int:
        """How many bytes a record holds."""
        return self.record_bytes - HEAD_BYTES

    def table(self, image: ImageEntry) -> Table:
        """Return the table with one more image."""
        return Table(tuple(self.tapes), (*self.images, image), tuple(self.runs))


def new_set(record_bytes: int = codec.DEFAULT_RECORD_BYTES, part: SetPart = WHOLE) -> SetState:
    """Return a set of which nothing is written.

    Raises
    ------
    UsageError : records cannot be so long.
    """
    if not codec.MIN_RECORD_BYTES <= record_bytes <= codec.MAX_RECORD_BYTES:
        raise UsageError(f"records of {record_bytes} bytes are not written", "say 64KiB to 1MiB")
    return SetState(secrets.token_bytes(16), time.time_ns(), record_bytes, part=part)
