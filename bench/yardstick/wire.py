"""Connections over loopback, and ways to bring bytes over them: raw, and as a transfer's stream does."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from blockplane.server.network import Credentials, Limits
from blockplane.server.network.channel import Channel
from blockplane.server.network.striped import PIECE_BYTES, Incoming, Outgoing
from blockplane.server.network.throttle import Throttle

MIB = 1 << 20
N_BYTES = 256 * MIB
N_CONNECTIONS = 4
#: Pairs of connected sockets.
Ends = list[list[socket.socket]]


def secured(near: socket.socket, far: socket.socket, credentials: Credentials) -> list[socket.socket]:
    """Do both sides of a handshake."""
    found: list[ssl.SSLSocket] = []
    context = credentials.listening()
    thread = threading.Thread(target=lambda: found.append(context.wrap_socket(far, server_side=True)))
    thread.start()
    near = credentials.calling(checks_name=True).wrap_socket(near, server_hostname="127.0.0.1")
    thread.join()
    return [near, *found]


@contextlib.contextmanager
def connections(kind: str, credentials: Credentials) -> Iterator[Ends]:
    """Pairs of connected sockets over loopback TCP, secured where asked for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = []
        for _ in range(N_CONNECTIONS):
            near = socket.create_connection(server.getsockname())
            far, _ = server.accept()
            pairs.append([near, far])
    if kind == "tls":
        pairs = [secured(*pair, credentials) for pair in pairs]
    try:
        yield pairs
    finally:
        for sock in (sock for pair in pairs for sock in pair):
            sock.close()


def in_two_processes(near: Callable[[], None], far: Callable[[], int]) -> int:
    """Run the sending side in a process of its own, as it is in use; return what the receiving side counts."""
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            near()
            status = 0
        os._exit(status)
    found = far()
    assert os.waitpid(child, 0)[1] == 0
    return found


def together(calls: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def raw(pairs: Ends) -> int:
    """Send and receive on every connection at once, as fast as the interpreter lets sockets go."""
    share, found = N_BYTES // len(pairs), []

    def send(sock: socket.socket) -> None:
        data = memoryview(bytearray(PIECE_BYTES))
        for _ in range(share // PIECE_BYTES):
            sock.sendall(data)

    def receive(sock: socket.socket) -> None:
        room, left = memoryview(bytearray(PIECE_BYTES)), share
        while left:
            left -= sock.recv_into(room)
        found.append(share)

    return in_two_processes(
        lambda: together([partial(send, near) for near, _ in pairs]),
        lambda: together([partial(receive, far) for _, far in pairs]) or sum(found),
    )


def raw_copy(pairs: Ends, folder: Path) -> int:
    """Copy files over the connections, one each: read, send, receive, write; nothing is checked or made durable.

    folder : has the files, `disk-0` and so on; the copies lie beside them.
    """
    share = N_BYTES // len(pairs)

    def send(n: int, sock: socket.socket) -> None:
        room = memoryview(bytearray(PIECE_BYTES))
        with open(folder / f"disk-{n}", "rb", buffering=0) as file:
            while got := file.readinto(room):
                sock.sendall(room[:got])

    def receive(n: int, sock: socket.socket) -> None:
        room, left = memoryview(bytearray(PIECE_BYTES)), share
        with open(folder / f"copy-{n}", "wb", buffering=0) as file:
            while left:
                got = sock.recv_into(room)
                file.write(room[:got])
                left -= got

    return in_two_processes(
        lambda: together([partial(send, n, near) for n, (near, _) in enumerate(pairs)]),
        lambda: together([partial(receive, n, far) for n, (_, far) in enumerate(pairs)]) or _taken(folder, len(pairs)),
    )


def _taken(folder: Path, n: int) -> int:
    return sum((folder / f"copy-{i}").stat().st_size for i in range(n))


def raw_one(pairs: Ends) -> int:
    """Send and receive on a single connection, as a copy through a socket does."""
    return raw(pairs[:1])


def striped(pairs: Ends) -> int:
    """A stream of frames of a mebibyte, dealt over the connections and put together again."""
    limits, nothing = Limits(), Throttle()

    def send() -> None:
        out, frame = Outgoing([Channel(near, limits, "there") for near, _ in pairs], limits, nothing), bytes(MIB)
        for _ in range(N_BYTES // MIB):
            out.write(frame)
        out.finish()

    def receive() -> int:
        into, found = Incoming([Channel(far, limits, "here") for _, far in pairs], limits, nothing), 0
        room = memoryview(bytearray(MIB))
        while n := into.readinto(room):
            found += n
        into.settle()
        into.close()
        return found

    return in_two_processes(send, receive)
