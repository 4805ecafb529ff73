"""Progress of a long operation, told through a callback; the engine itself prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One report.

    ``phase`` names the step in a word or two (``"plan"``, ``"blocks"``, ``"commit"``); ``total_bytes`` is 0 while
    nobody knows it; ``seconds`` count from the start of the operation.
    """

    phase: str
    done_bytes: int
    total_bytes: int
    seconds: float


Progress = Callable[[ProgressEvent], None]


def ignore_progress(event: ProgressEvent) -> None:
    """Take a report and do nothing."""
