"""What places of the host hold, byte for byte: to see that nothing changed."""

from __future__ import annotations

import hashlib
from pathlib import Path


def contents(*places: str | Path) -> dict[str, str]:
    """Every name under places with a digest of what it holds; the lock says who was there last and does not count."""
    found = {}
    for place in places:
        paths = sorted(Path(place).rglob("*")) if Path(place).is_dir() else [Path(place)]
        for path in [Path(place), *paths]:
            if path.name == "lock":
                continue
            is_file = path.is_file() and not path.is_symlink()
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else str(path.exists())
    return found
