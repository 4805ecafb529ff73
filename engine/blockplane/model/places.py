"""How people write where a volume is: a directory, or HOST:PORT/NAME."""

from __future__ import annotations

import os
import re
from typing import Final

_REMOTE: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^/:\s]+):\d{1,5}/[^/]+")


def is_remote(place: str) -> bool:
    """Whether a text is HOST:PORT/NAME, and no directory that is there."""
    return bool(_REMOTE.fullmatch(place)) and not os.path.isdir(place)
