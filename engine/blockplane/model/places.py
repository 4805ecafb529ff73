"""How people write where a volume is: a directory, or HOST:PORT/NAME."""

from __future__ import annotations

import os
import re
from typing import Final

_REMOTE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^/:\s]+):\d{1,5}/[^/]+")


def is_remote(place: str) -> bool:
    """Whether a text is HOST:PORT/NAME, and no directory that is there."""
    return bool(_REMOTE.fullmatch(place)) and not os.path.isdir(place)


def is_same_place(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two texts name one directory."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
