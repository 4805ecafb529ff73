"""Where a volume's copies elsewhere stand, mirrors and replicas, as metrics tell it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from blockplane.api import Volume
from blockplane.model.errors import BlockplaneError
from blockplane.transfer import mirrors
from blockplane.transfer.lag import replicas

#: What is left is counted by algebra, whose cost follows what differs: not for everybody who asks.
_COUNT_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """A mirror or a replica of a volume.

    kind : `mirror` or `replica`. lag_s : how old the newest state is that it has; 0: it has all. left_bytes : what
    would travel; heard_s : when it was last heard of, seconds since 1970; rate : bytes a second of the last transfer.
    None: not known. is_failing : its last attempt failed. is_lost : it is waited for no longer.
    """

    kind: str
    name: str
    lag_s: float
    left_bytes: int | None
    heard_s: float | None
    rate: float | None = None
    is_failing: bool = False
    is_lost: bool = False


class Places:
    """Looks at the copies of volumes, no more often than is worth it."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, tuple[Place, ...]]] = {}

    def of(self, name: str, volume: Volume | None) -> tuple[Place, ...]:
        """Return the copies of a volume of a service; as they were known last where it is not open or fails."""
        now = time.monotonic()
        counted_s, found = self._known.get(name, (float("-inf"), ()))
        if volume is not None and not volume.stopped_at and now - counted_s >= _COUNT_EVERY_S:
            try:
                counted_s, found = now, tuple(_places(volume))
            except (BlockplaneError, OSError):
                return found
            self._known[name] = counted_s, found
        return tuple(replace(each, lag_s=each.lag_s + now - counted_s) if each.lag_s else each for each in found)


def _places(volume: Volume) -> Iterator[Place]:
    for at in mirrors.status(volume):
        last = at.mirror.last
        heard_s = last.ended_ns / 1e9 if last.ended_ns and not last.error else None
        yield Place(
            "mirror", at.mirror.dest, at.lag_s, at.left_bytes, heard_s, at.bytes_per_second, bool(last.error)
        )  # fmt: skip
    for one in replicas(volume):
        heard_s, is_failing = one.contact_ns / 1e9, bool(one.error)
        yield Place("replica", one.name, one.lag_s, one.left_bytes, heard_s, None, is_failing, one.status == "lost")
