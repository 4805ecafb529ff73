"""The two clocks: one that never goes back, for what is measured; the wall's, for what people say."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time in seconds."""

    def monotonic(self) -> float:
        """Return seconds since some moment; never less than before."""

    def wall(self) -> float:
        """Return seconds since 1970, as far as the machine knows: it may jump either way."""


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wall(self) -> float:
        """See Clock."""
        return time.time()
