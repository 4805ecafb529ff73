"""Replicas that this process is giving something: they are in contact, however long that takes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from blockplane.volume.live import LiveVolume

_guard = threading.Lock()
#: By volume: calls that go on, by the id of who calls.
_calls: WeakKeyDictionary[LiveVolume, Counter[bytes]] = WeakKeyDictionary()


@contextmanager
def calling(volume: LiveVolume, volume_id: bytes) -> Iterator[None]:
    """Note that a replica is being given something, for the length of a `with`."""
    with _guard:
        calls = _calls.setdefault(volume, Counter())
        calls[volume_id] += 1
    try:
        yield
    finally:
        with _guard:
            calls[volume_id] -= 1
            if not calls[volume_id]:
                del calls[volume_id]


def calls(volume: LiveVolume, volume_id: bytes) -> bool:
    """Whether a replica is being given something."""
    with _guard:
        return _calls.get(volume, Counter())[volume_id] > 0
