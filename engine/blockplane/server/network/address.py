"""Where a listener is: HOST:PORT, [HOST]:PORT or unix:PATH; a volume there is named behind a slash."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blockplane.model.errors import ConnectionLostError, UnreachableError, UsageError
from blockplane.server import socketfile
from blockplane.server.network.channel import Ending
from blockplane.server.network.rights import require_volume_name

_HOST_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([A-Za-z0-9_.-]+)):(\d{1,5})")
_UNIX: Final = "unix:"
#: How often it is seen, while a name is looked up, whether it is still wanted.
_POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Address:
    """host, port : of TCP; or path : of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address; UsageError: it is none."""
        if text.startswith(_UNIX) and len(text) > len(_UNIX):
            return cls(path=text[len(_UNIX) :])
        match = _HOST_PORT.fullmatch(text)
        if match is None or int(match[3]) > 65535:
            raise UsageError(f"{text[:80]!r} is no address", "write HOST:PORT, [HOST]:PORT or unix:PATH")
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        if self.path:
            return _UNIX + self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether what goes there cannot leave this machine."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
        except ValueError:
            return False

    def connect(self, timeout_s: float, ending: Ending, source: str | None = None) -> socket.socket:
        """Return a connection to it; UnreachableError: nobody answers. ConnectionLostError: it was ended first.

        Parameters
        ----------
        ending : ends it, while it is made and later. source : the address of ours to call from.
        """
        failed: OSError | None = None
        try:
            for family, place in self._places(ending):
                sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
                try:
                    sock.settimeout(timeout_s)
                    if source:
                        sock.bind((source, 0))
                    ending.watch(sock)
                    sock.connect(place)
                    return sock
                except BaseException as error:
                    sock.close()
                    if not isinstance(error, OSError):
                        raise
                    failed = error
        except OSError as error:
            failed = error
        why = (failed.strerror or failed) if failed is not None else "it has no address"
        raise UnreachableError(f"{self} cannot be reached: {why}", "see whether a service listens there") from failed

    def _places(self, ending: Ending) -> list[tuple[int, Any]]:
        """Return where it may be, by family."""
        if self.path:
            return [(socket.AF_UNIX, self.path)]
        try:
            found = self._found(socket.AI_NUMERICHOST)
        except socket.gaierror:
            found = self._looked_up(ending)
        return [(int(family), place) for family, _, _, _, place in found]

    def _found(self, flags: int = 0) -> list[tuple[Any, ...]]:
        return list(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=flags))

    def _looked_up(self, ending: Ending) -> list[tuple[Any, ...]]:
        """Return what a name means; in a thread that is left behind where that is not wanted any more: none ends it."""
        found: Future[list[tuple[Any, ...]]] = Future()

        def look() -> None:
            try:
                found.set_result(self._found())
            except BaseException as error:  # noqa: BLE001 - raised by who waits for it
                found.set_exception(error)

        try:
            threading.Thread(target=look, name="blockplane looks up", daemon=True).start()
        except RuntimeError:  # there are as many as the system allows
            return self._found()
        while not wait([found], _POLL_S).done:
            if ending.is_over.is_set():
                raise ConnectionLostError(f"nobody calls {self} any more", "call it anew")
        return found.result()

    def listen(self, backlog: int) -> socket.socket:
        """Return a socket that listens there; OSError: the address cannot be had."""
        if self.path:
            with socketfile.alone(Path(self.path).parent):  # till it listens others would take it for one that was left
                self._clear()
                return self._bound(backlog)
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        return socket.create_server((self.host, self.port), family=family, backlog=backlog)

    def _bound(self, backlog: int) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(sock.fileno(), 0o600)  # before the name is there: nobody else can ever connect
            sock.bind(self.path)
            sock.listen(backlog)
        except BaseException:
            sock.close()
            raise
        return sock

    def _clear(self) -> None:
        """Remove a socket that a process which died has left."""
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                return
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
                if probe.connect_ex(self.path) == errno.ECONNREFUSED:
                    os.unlink(self.path)

    def forget(self) -> None:
        """Take the name of a socket away that listens here still: afterwards it may be another one's."""
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


def parse_peer(text: str) -> tuple[Address, str] | None:
    """Return the address and the volume that HOST:PORT/NAME or unix:PATH/NAME means; None: it is no such thing.

    Raises
    ------
    UsageError : it is, and the volume's name is none.
    """
    place, slash, name = text.rpartition("/")
    if not slash or not (place.startswith(_UNIX) or _HOST_PORT.fullmatch(place)):
        return None
    return Address.parse(place), require_volume_name(name)
