"""Lengths of time as people type and read them: ``90s``, ``30m``, ``12h``, ``7d``, ``4w``."""

from __future__ import annotations

import re
from typing import Final

from blockplane.model.errors import UsageError

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PATTERN: Final = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", re.ASCII)


def parse_duration(text: str) -> float:
    """Read a length of time; return seconds.

    Raises
    ------
    UsageError : it is none.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:40]!r} is not a length of time", "write 90s, 30m, 12h, 7d or 4w")
    return float(match[1]) * _UNITS_S[match[2]]


def format_duration(seconds: float) -> str:
    """Print a length of time as it is typed: in the largest unit that divides it."""
    for letter, unit in reversed(_UNITS_S.items()):
        if seconds >= unit and seconds % unit == 0:
            return f"{int(seconds // unit)}{letter}"
    return f"{seconds:g}s"
