"""Telling systemd how the service is: `sd_notify`, by a datagram to the socket that it names."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Self

from blockplane.text import sentence

_MAX_STATUS = 400


class Notifier:
    """Sends states to whoever started the service; where nobody asked for them, nothing.

    Attributes
    ----------
    watchdog_s : how often a sign of life is due at the latest; None: nobody waits for one.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self._status = ""
        if address[:1] in ("/", "@"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """Take up what systemd passed; the variables are taken away, so that no child speaks for us."""
        address = environment.pop("NOTIFY_SOCKET", "")
        pid, usec = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
        is_mine = not pid or pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if address and is_mine and usec.isdecimal() and int(usec) else None)

    def ready(self) -> None:
        """Say that the service is up, or up again after reloading."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a new policy is being read."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Give the sign of life."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """Say in a line what goes on, where that is new."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={sentence(text)[:_MAX_STATUS]}")

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # a manager that is busy, or gone: no reason to stop
                self._socket.sendto(message.encode("utf-8", "backslashreplace"), self._address)

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
