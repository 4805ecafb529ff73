"""What a party must know of a format: one bit a feature, a mask for each of three things that can be done.

Bits below 32 are of a stream's form and end with it; those from 32 on are of the states themselves: they travel with
an image into the root record of the volume that receives it, and with every stream that is sent from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from blockplane.model.errors import RefusedError

_FIRST_STATE_BIT: Final = 32


@dataclass(frozen=True, slots=True)
class Features:
    """Masks of what must be known to receive (and to open a volume at all), to read files, and to write to them."""

    receiving: int = 0
    reading: int = 0
    writing: int = 0

    def __or__(self, other: Features) -> Features:
        return Features(
            self.receiving | other.receiving, self.reading | other.reading, self.writing | other.writing
        )  # fmt: skip

    def of_states(self) -> Features:
        """Return the bits that are of states, which stay where they have arrived."""
        return Features(*(mask >> _FIRST_STATE_BIT << _FIRST_STATE_BIT for mask in self.masks()))

    def beyond(self, known: Features) -> Features:
        """Return the bits that are not among the known ones."""
        return Features(*(mask & ~mine for mask, mine in zip(self.masks(), known.masks(), strict=True)))

    def require_known(self, mask: Literal["reading", "writing"], name: str) -> None:
        """Refuse files of states that came from a later release and need what this one does not know.

        Raises
        ------
        RefusedError: they cannot be read (`reading`), or written (`writing`).
        """
        unknown = getattr(self.of_states().beyond(KNOWN_STATE_FEATURES), mask)
        if unknown:
            raise RefusedError(
                f"{mask} files of {name} needs features {unknown:#x} of a later release",
                "it can still be verified, received and sent on; upgrade blockplane for the rest",
            )

    def masks(self) -> tuple[int, int, int]:
        """Return the three masks, in the order in which they are written."""
        return self.receiving, self.reading, self.writing


#: Of states: what this release knows. None is defined.
KNOWN_STATE_FEATURES: Final = Features()
