"""Two hosts with certificates on loopback, and a link between them that counts, cuts, drops and flips."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from blockplane.server.network import Credentials, Limits, Listener, RemotePeer, Rights, make_certificates

Direction = Literal["up", "down"]
How = Literal["reset", "silent", "flip"]

#: Short enough for tests, long enough for a machine that does other things too.
QUICK = Limits(idle_s=8.0, least_over_s=8.0, alive_s=0.2, greeting_s=8.0, n_failures=10_000)


@dataclass(frozen=True)
class Hosts:
    """A folder of certificates: `source` and `backup`, both of 127.0.0.1, and what else was made."""

    folder: Path

    @classmethod
    def make(cls, folder: Path, *names: str) -> Hosts:
        make_certificates(folder, names or ("source=127.0.0.1", "backup=127.0.0.1"))
        return cls(folder)

    def credentials(self, name: str) -> Credentials:
        return Credentials.find(self.folder, name)

    @contextlib.contextmanager
    def listening(self, volumes, rights, name: str = "backup", **more) -> Iterator[Listener]:
        """A listener with the certificate of a host; that it ends in time, without a thread left, is seen to."""
        more = {"limits": QUICK, **more}
        listener = Listener("127.0.0.1:0", volumes, Rights(rights), self.credentials(name), **more)
        listener.start()
        try:
            yield listener
        finally:
            assert listener.stop() is True

    def peer(self, address: str, volume: str = "pool", name: str = "source", **more) -> RemotePeer:
        return RemotePeer(address, volume, self.credentials(name), **{"limits": QUICK, "patience_s": 10.0, **more})


def fingerprint(credentials: Credentials) -> str:
    """Of a certificate, as rules and policies have it."""
    signed = x509.load_pem_x509_certificate(credentials.certificate.read_bytes())
    return f"sha256:{signed.fingerprint(hashes.SHA256()).hex()}"


@dataclass
class Cut:
    """What happens to the link once: at a byte of one direction, counted over all connections, or in the first one."""

    at: int
    direction: Direction
    how: How
    in_first: bool = False
    happened: threading.Event = field(default_factory=threading.Event)


class Link:
    """Carries connections to an address; counts bytes both ways; does what its cut says.

    A `reset` ends all connections there are at once; `silent` lets them stand, and nothing goes through any more;
    `flip` turns one bit. Connections made afterwards work.
    """

    def __init__(self, address: str, cut: Cut | None = None) -> None:
        host, port = address.rsplit(":", 1)
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.n_bytes: dict[Direction, int] = {"up": 0, "down": 0}
        self.n_first: dict[Direction, int] = {"up": 0, "down": 0}
        self._lock = threading.Lock()
        self.cut, self._pairs, self._frozen = cut, list[tuple[socket.socket, socket.socket]](), set[socket.socket]()
        self._is_over = False
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._listener, select.POLLIN)
        ends: dict[int, tuple[socket.socket, socket.socket, Direction]] = {}
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake.fileno():
                    return
                if fd == self._listener.fileno():
                    self._connect(poll, ends)
                elif fd in ends and not self._carry(*ends[fd]):
                    poll.unregister(fd)
                    del ends[fd]
            for fd in [fd for fd, (sock, _, _) in ends.items() if sock in self._frozen or sock.fileno() < 0]:
                with contextlib.suppress(KeyError, OSError):
                    poll.unregister(fd)
                del ends[fd]

    def _connect(self, poll, ends) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(5)
        near.settimeout(5)
        self._pairs.append((near, far))
        for sock, other, direction in ((near, far, "up"), (far, near, "down")):
            ends[sock.fileno()] = (sock, other, direction)
            poll.register(sock, select.POLLIN)

    def _carry(self, sock: socket.socket, other: socket.socket, direction: Direction) -> bool:
        """Pass on what there is; return whether more may come."""
        if sock in self._frozen:
            return False
        try:
            data = bytearray(sock.recv(1 << 16))
            if not data:
                other.shutdown(socket.SHUT_WR)
                return False
            cut, is_first = self.cut, sock in self._pairs[0]
            if cut is not None and not cut.happened.is_set() and cut.direction == direction:
                inside = cut.at - (self.n_first if cut.in_first else self.n_bytes)[direction]
                if inside < len(data) and (is_first or not cut.in_first):
                    return self._happen(cut, data, inside, other)
            self.n_bytes[direction] += len(data)
            self.n_first[direction] += len(data) if is_first else 0
            other.sendall(data)
        except OSError:
            self._reset(sock, other)
            return False
        return True

    def _happen(self, cut: Cut, data: bytearray, inside: int, other: socket.socket) -> bool:
        cut.happened.set()
        if cut.how == "flip":
            data[inside] ^= 1 << cut.at % 8
            self.n_bytes[cut.direction] += len(data)
            other.sendall(data)
            return True
        other.sendall(data[:inside])
        self.n_bytes[cut.direction] += inside
        if cut.how == "silent":
            self._frozen |= {sock for pair in self._pairs for sock in pair}
        else:
            time.sleep(0.01)  # what went before arrives
            for pair in self._pairs:
                self._reset(*pair)
        return False

    @staticmethod
    def _reset(*socks: socket.socket) -> None:
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def close(self) -> None:
        self._waker.send(b"x")
        self._thread.join()
        for sock in (self._listener, self._wake, self._waker, *(sock for pair in self._pairs for sock in pair)):
            sock.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_NAMES = tuple(f"blockplane {what}" for what in ("listens", "session", "alive", "sends", "receives", "connects"))


def threads_left() -> list[str]:
    """The threads of the engine's network that run still, after a moment to end in."""
    end = time.monotonic() + 5
    while True:
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith(_NAMES)]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.01)
