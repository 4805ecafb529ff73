"""What a tape is to the rest: objects one after the other, records and filemarks, and an end.

A position counts objects from the beginning of the medium, filemarks too, as tape drives do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from blockplane.model.addresses import Bytes
from blockplane.stream.fdsink import Buffer


class Kind(Enum):
    """What stands at a position of a medium."""

    RECORD = "a record"
    #: A record that is there and cannot be read.
    BAD = "a damaged record"
    FILEMARK = "a filemark"
    #: Behind the last object.
    END = "the end of the medium"
    #: The medium ends inside an object.
    CUT = "the end of the medium, inside a record"


@dataclass(frozen=True, slots=True)
class Found:
    """What was read. n_bytes : of a record."""

    kind: Kind
    n_bytes: int = 0


class MediumFullError(Exception):
    """Nothing more can be written; the record in hand is not on the medium."""


class Medium(Protocol):
    """One tape in one drive. One thread at a time."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        ...

    @property
    def position(self) -> int:
        """How many objects lie before."""
        ...

    @property
    def read_bytes(self) -> int:
        """How many bytes of records were read so far."""
        ...

    @property
    def room_bytes(self) -> int | None:
        """How many bytes fit behind the position, marks and lengths included; None: nobody knows before the end."""
        ...

    @property
    def is_near_end(self) -> bool:
        """Whether the medium has said that its end is near."""
        ...

    def read(self, out: memoryview) -> Found:
        """Read the object at the position, and pass it; at the end, stay there.

        Parameters
        ----------
        out : room for the longest record; a longer one is Kind.BAD. Of one that the medium's end cuts off, what there
            is comes.
        """
        ...

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Write one record out of its pieces; everything behind it is gone.

        The pieces stay as they are until `settle` returned: records may go out together, by another thread.

        Raises
        ------
        MediumFullError : it does not fit. TapeError : it cannot be written.
        """
        ...

    def write_records(self, heads: Bytes, payload: memoryview) -> int:
        """Write records of equal lengths together, as `write` does one.

        Parameters
        ----------
        heads : (n, head bytes) uint8, what each begins with. payload : what they hold, in equal shares.

        Returns
        -------
        how many were written: n or, where the medium takes records one by one, or has no room for all, none.
        """
        ...

    def settle(self) -> None:
        """Wait until the medium needs no piece any more; raises what went wrong with the records before."""
        ...

    def write_filemark(self, *, wait: bool) -> None:
        """Write a filemark; wait : until everything is on the medium. Raises as `write`."""
        ...

    def seek(self, position: int) -> None:
        """Go to a position; TapeError: the medium ends before."""
        ...

    def seek_end(self) -> None:
        """Go behind the last object."""
        ...

    def pass_filemark(self) -> bool:
        """Go behind the next filemark; False: there is none, and the position is the end."""
        ...

    def finish(self) -> None:
        """Nothing follows for now: mark the end where the medium has a mark for it, and make all durable."""
        ...

    def close(self) -> None:
        """Release."""
        ...
