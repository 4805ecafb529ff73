"""A bounded pool of aligned buffers: the memory of a pipeline is stated once, and waited for."""

from __future__ import annotations

import threading

from blockplane.disks.disk import aligned_buffer
from blockplane.model.addresses import Bytes


class BufferPool:
    """Aligned buffers of any sizes, at most ``limit_bytes`` of them on their way to the disks.

    Notes
    -----
    ``take`` waits only while something is in flight that will come back by itself: a caller who holds everything and
    asks for more gets it, since waiting would be for ever. A buffer keeps its old bytes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        #: guards everything below
        self._changed = threading.Condition()
        self._free: dict[int, list[Bytes]] = {}
        self._free_bytes = 0
        #: addresses of what is out
        self._taken: set[int] = set()
        self._taken_bytes = 0
        self._in_flight_bytes = 0

    @property
    def taken_bytes(self) -> int:
        """Bytes that are out, in flight or held."""
        return self._taken_bytes

    def take(self, n_bytes: int) -> tuple[Bytes, bool]:
        """Return a buffer of n_bytes, aligned to 4,096, and whether it is fresh: zero; else it holds anything."""
        with self._changed:
            while self._taken_bytes + n_bytes > self.limit_bytes and self._in_flight_bytes:
                self._changed.wait()
            self._taken_bytes += n_bytes
            shelf = self._free.get(n_bytes)
            is_fresh = not shelf
            if shelf:
                self._free_bytes -= n_bytes
                buffer = shelf.pop()
            else:
                self._drop_free(self.limit_bytes - self._taken_bytes)
                buffer = aligned_buffer(n_bytes)
            self._taken.add(buffer.ctypes.data)
        return buffer, is_fresh

    def send(self, buffer: Bytes) -> None:
        """Say that a taken buffer is in flight: `give_back` will follow without its taker."""
        with self._changed:
            self._in_flight_bytes += buffer.shape[0]

    def give_back(self, buffer: Bytes, *, was_sent: bool) -> None:
        """Take a buffer in; its views must not be used any more, nor the buffer be given back again."""
        with self._changed:
            self._taken.remove(buffer.ctypes.data)
            self._taken_bytes -= buffer.shape[0]
            if was_sent:
                self._in_flight_bytes -= buffer.shape[0]
            if self._taken_bytes + self._free_bytes + buffer.shape[0] <= self.limit_bytes:
                self._free.setdefault(buffer.shape[0], []).append(buffer)
                self._free_bytes += buffer.shape[0]
            self._changed.notify_all()

    def _drop_free(self, keep_bytes: int) -> None:
        """Unmap free buffers of other sizes until no more than keep_bytes of them are left."""
        for n_bytes, shelf in self._free.items():
            while shelf and self._free_bytes > keep_bytes:
                shelf.pop()
                self._free_bytes -= n_bytes
