"""Sizes as people type and read them: ``4096``, ``256KiB``, ``10G``; powers of 1,024 throughout."""

from __future__ import annotations

import re
from typing import Final

from blockplane.model.errors import UsageError

_LETTERS: Final = "KMGTPE"
_PATTERN: Final = re.compile(r"(\d+)(?:\.(\d+))?\s*(?:([KMGTPE])(?:i?B)?|B)?", re.IGNORECASE | re.ASCII)
#: Longer digit strings are no sizes, and would make integer parsing itself a cost.
_MAX_DIGITS: Final = 20


def parse_size(text: str) -> int:
    """Read a size.

    Parameters
    ----------
    text : digits, a decimal fraction where the result is whole bytes, and ``K M G T P E`` alone or with ``B`` or
        ``iB``; capitals or not; all mean powers of 1,024.

    Returns
    -------
    bytes, below 2**63.

    Raises
    ------
    UsageError : not a size, not whole bytes, or too large.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None or len(text) > _MAX_DIGITS:
        raise UsageError(f"{text[:40]!r} is not a size", "write 4096, 256KiB or 10G; units are powers of 1,024")
    whole, fraction, letter = match.group(1), match.group(2) or "", match.group(3)
    unit: int = 1 << 10 * (_LETTERS.index(letter.upper()) + 1) if letter else 1
    numerator = int(whole + fraction) * unit
    denominator: int = 10 ** len(fraction)
    if numerator % denominator:
        raise UsageError(f"{text!r} is not a whole number of bytes")
    if numerator // denominator >= 1 << 63:
        raise UsageError(f"{text!r} is too large; sizes end below 8 EiB")
    return numerator // denominator


def format_size(n_bytes: int) -> str:
    """Print a size for people: ``0 B``, ``4 KiB``, ``1.5 GiB``; at most four significant digits."""
    if abs(n_bytes) < 1024:
        return f"{n_bytes} B"
    value, unit = float(n_bytes), ""
    for letter in _LETTERS:
        value, unit = value / 1024, letter
        # 1023.95 would print as 1024.0
        if abs(value) < 1023.95:
            break
    number = f"{value:.1f}".removesuffix(".0")
    return f"{number} {unit}iB"
