"""What the files of a chain remember of their frames: heads, and the blocks of frames that were decompressed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from blockplane.stream.arrival import n_workers
from blockplane.stream.codec import FrameHead

T = TypeVar("T")
Key = tuple[int, int]

#: Heads kept: 4 MiB at most, the heads of 1 GiB of blocks.
_MAX_HEADS: Final = 1024
#: Decompressed frames kept, and looked at together: 16 MiB. A path of five directories and its file take about ten.
MAX_PAYLOADS: Final = 16


@dataclass(slots=True)
class Counters:
    """What was asked of the files since they were opened: requests, bytes, frames decompressed."""

    n_requests: int = 0
    read_bytes: int = 0
    n_frames: int = 0


class _Latest(Generic[T]):
    """The values used last, by key; the caller locks."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Key, T] = OrderedDict()

    def get(self, key: Key) -> T | None:
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: Key, value: T) -> None:
        self._values[key] = value
        if len(self._values) > self._most:
            self._values.popitem(last=False)


class FrameCache:
    """Shared by the files of a chain; a key is (number of the file, offset of the frame's head). Thread-safe."""

    def __init__(self) -> None:
        #: guards the rest
        self._lock = threading.Lock()
        self._heads: _Latest[FrameHead] = _Latest(_MAX_HEADS)
        self._payloads: _Latest[bytes] = _Latest(MAX_PAYLOADS)
        self._pool: ThreadPoolExecutor | None = None
        self.counters = Counters()

    def head(self, key: Key) -> FrameHead | None:
        """Return a frame's head, if it is here."""
        with self._lock:
            return self._heads.get(key)

    def keep_head(self, key: Key, head: FrameHead) -> None:
        """Keep a head, and forget the one not used for longest."""
        with self._lock:
            self._heads.put(key, head)

    def payload(self, key: Key) -> bytes | None:
        """Return the blocks of a frame, if they are here."""
        with self._lock:
            return self._payloads.get(key)

    def keep_payload(self, key: Key, payload: bytes) -> None:
        """Keep a frame's blocks, and forget those not used for longest."""
        with self._lock:
            self._payloads.put(key, payload)
            self.counters.n_frames += 1

    def count(self, n_requests: int, n_bytes: int) -> None:
        """Note requests."""
        with self._lock:
            self.counters.n_requests += n_requests
            self.counters.read_bytes += n_bytes

    def map(self, work: Callable[[int], bytes], items: Sequence[int]) -> Iterator[bytes]:
        """Do independent work, in threads where there is more than one piece of it; results in order."""
        if len(items) < 2:
            return map(work, items)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(n_workers(), "blockplane frames")
        return self._pool.map(work, items)

    def close(self) -> None:
        """Let the threads go: what they have begun they finish, and take the lock for it."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)
