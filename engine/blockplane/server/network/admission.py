"""Who may be at the door at once: connections that have not said who they are keep nobody else out."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blockplane.server.network.channel import abort
from blockplane.server.network.limits import Limits

#: One that is younger is not sent away for another one: its greeting may be on its way.
_GRACE_S: Final = 0.5
#: Addresses whose failures are remembered.
_MAX_ADDRESSES: Final = 4096
_MINUTE_S: Final = 60.0


@dataclass(eq=False, slots=True)
class Guest:
    """A connection that has not been greeted. is_gone : it had to make room."""

    address: str
    sock: socket.socket
    since: float
    is_gone: bool = False


class Admission:
    """Bounds connections before they are greeted, in all and by address, and how often an address may fail.

    Notes
    -----
    Where there is no room, the one that has waited longest goes, of the same address if that is what is full; those
    that have just come stay. Thread-safe.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._guests: list[Guest] = []
        #: address -> failures that it has free, when that was
        self._free: dict[str, tuple[float, float]] = {}

    def enter(self, sock: socket.socket, address: str) -> Guest | None:
        """Let a connection in; None: there is no room."""
        guest = Guest(address_key(address), sock, self._clock())
        with self._lock:
            of_one = [other for other in self._guests if other.address == guest.address]
            full = of_one if len(of_one) >= self._limits.n_greeting_of_one else []
            full = full or (self._guests if len(self._guests) >= self._limits.n_greeting else [])
            if full:
                oldest = min(full, key=lambda other: other.since)
                if guest.since - oldest.since < min(_GRACE_S, self._limits.greeting_s / 4):
                    return None
                self._guests.remove(oldest)
                oldest.is_gone = True
                abort(oldest.sock)
            self._guests.append(guest)
            return guest

    def leave(self, guest: Guest) -> None:
        """Note that a connection was greeted, or is gone."""
        with self._lock:
            if guest in self._guests:
                self._guests.remove(guest)

    def failed(self, address: str) -> None:
        """Note that a connection failed to say who it is."""
        with self._lock:
            key, now = address_key(address), self._clock()
            if len(self._free) >= _MAX_ADDRESSES and key not in self._free:
                del self._free[max(self._free, key=lambda other: self._free_now(other, now))]
            self._free[key] = max(self._free_now(key, now) - 1.0, 0.0), now

    def delay_s(self, address: str) -> float:
        """Return how long the next connection of an address waits its turn."""
        with self._lock:
            free = self._free_now(address_key(address), self._clock())
            return max(1.0 - free, 0.0) * _MINUTE_S / self._limits.n_failures

    def _free_now(self, key: str, now: float) -> float:
        most = float(self._limits.n_failures)
        free, at = self._free.get(key, (most, now))
        return min(free + (now - at) * most / _MINUTE_S, most)


def address_key(address: str) -> str:
    """Return what counts as one address: of IPv6 the network that one customer has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if isinstance(found, ipaddress.IPv6Address) and not found.is_loopback:
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
