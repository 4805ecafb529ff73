"""The wire over loopback, four connections: beside raw TLS and raw sockets, four and one, a process each side.

`transfer` is all of it: a snapshot is read from a volume, sent, received into another, and committed. Both lie in
memory, where there is a file system for that, so that the disks are not what is measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from blockplane.filesystem import FileSystem
from blockplane.server.network import Credentials, Limits, Listener, Rights, make_certificates
from blockplane.server.network.channel import Channel
from blockplane.server.network.striped import PIECE_BYTES, Incoming, Outgoing
from blockplane.server.network.throttle import Throttle
from blockplane.volume import Volume

MIB = 1 << 20
N_BYTES = 256 * MIB
N_CONNECTIONS = 4
KINDS = ("plain", "tls")
#: Opens a volume, says so, and pushes a snapshot when it is told to.
PUSH = """
import sys
from blockplane.server.network import Credentials, RemotePeer
from blockplane.transfer.peer import LocalChanges
from blockplane.transfer.standing import image_towards
from blockplane.volume import Volume

path, address, tls = sys.argv[1:]
with Volume.open(path, writable=False) as volume:
    peer = RemotePeer(address, "copy", Credentials.find(tls) if tls else None)
    image = image_towards(volume, "one", peer.standing())
    print("ready", flush=True)
    sys.stdin.readline()
    print(peer.take(image, LocalChanges.REFUSE).n_bytes, flush=True)
"""


@pytest.fixture(scope="module")
def tls(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bench") / "tls"
    make_certificates(folder, ["here=127.0.0.1"])
    return folder


@pytest.fixture(scope="module")
def credentials(tls: Path) -> Credentials:
    return Credentials.find(tls)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory, with a volume of one snapshot."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder, rng = Path(name), np.random.default_rng(5)
        with Volume.create(folder / "source", disks=4, size=N_BYTES // 2, parity=0) as volume:
            with FileSystem(volume).open("/file", "wb") as file:
                for _ in range(N_BYTES // MIB):
                    file.write(rng.bytes(MIB))
            volume.snapshot("one")
        yield folder


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
def connections(kind: str, credentials: Credentials):
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


def raw(pairs) -> int:
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


def raw_one(pairs) -> int:
    """Send and receive on a single connection, as a copy through a socket does."""
    return raw(pairs[:1])


def striped(pairs) -> int:
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [raw, raw_one, striped], ids=["raw", "raw-one", "striped"])
def test_four_connections(benchmark, how, kind, credentials):
    benchmark.group = f"network {kind}, {N_CONNECTIONS} connections, {N_BYTES // MIB} MiB"
    benchmark.extra_info.update(n_bytes=N_BYTES, n_connections=N_CONNECTIONS, openssl=ssl.OPENSSL_VERSION)

    def setup():
        stack = contextlib.ExitStack()
        return (stack, stack.enter_context(connections(kind, credentials))), {}

    def run(stack: contextlib.ExitStack, pairs) -> None:
        assert how(pairs) == N_BYTES
        stack.close()

    benchmark.pedantic(run, setup=setup, rounds=5)


@contextlib.contextmanager
def transferring(kind: str, tls: Path, memory: Path) -> Iterator[subprocess.Popen[str]]:
    """Give a process that waits to push the snapshot into an empty volume, which this one serves."""
    path, secured = memory / "copy", kind == "tls"
    shutil.rmtree(path, ignore_errors=True)
    rights = Rights({"here" if secured else "@plaintext": {"copy": ["read", "write"]}})
    with Volume.create(path, disks=4, size=N_BYTES // 2, parity=0) as copy:
        credentials = Credentials.find(tls) if secured else None
        with Listener("127.0.0.1:0", {"copy": copy}, rights, credentials) as listener:
            words = [sys.executable, "-c", PUSH, memory / "source", listener.address, tls if secured else ""]
            with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pusher:
                assert pusher.stdout is not None
                assert pusher.stdout.readline() == "ready\n"
                yield pusher
            assert pusher.returncode == 0
        assert [snapshot.name for snapshot in copy.snapshots] == ["one"]


@pytest.mark.parametrize("kind", KINDS)
def test_transfer(benchmark, kind, tls, memory):
    benchmark.group = f"network {kind}, {N_CONNECTIONS} connections, {N_BYTES // MIB} MiB"
    benchmark.extra_info.update(n_bytes=N_BYTES, n_connections=N_CONNECTIONS, openssl=ssl.OPENSSL_VERSION)
    stack = contextlib.ExitStack()

    def setup():
        stack.close()
        return (stack.enter_context(transferring(kind, tls, memory)),), {}

    def run(pusher: subprocess.Popen[str]) -> None:
        assert pusher.stdin is not None
        assert pusher.stdout is not None
        pusher.stdin.write("go\n")
        pusher.stdin.flush()
        assert N_BYTES <= int(pusher.stdout.readline()) < N_BYTES * 1.02

    benchmark.pedantic(run, setup=setup, rounds=5)
    stack.close()
