"""The wire over loopback, four connections: beside raw TLS and raw sockets, four and one, a process each side.

`transfer` is all of it: a snapshot is read from a volume, sent, received into another, checked, and committed; `copy`
is as many bytes of plain files, read, sent, received and written, no more. All lie in memory, where there is a file
system for that, so that the disks are not what is measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from yardstick.wire import MIB, N_BYTES, N_CONNECTIONS, connections, raw, raw_copy, raw_one, striped

from blockplane.filesystem import FileSystem
from blockplane.server.network import Credentials, Listener, Rights, make_certificates
from blockplane.volume import Volume

KINDS = ("plain", "tls")
#: Opens a volume, says so, and pushes a snapshot when it is told to.
PUSH = """
import sys
from blockplane.server.network import Credentials, RemotePeer
from blockplane.transfer.replacing import LocalChanges
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


@pytest.mark.parametrize("kind", KINDS)
def test_copy(benchmark, kind, credentials, memory):
    benchmark.group = f"network {kind}, {N_CONNECTIONS} connections, {N_BYTES // MIB} MiB"
    benchmark.extra_info.update(n_bytes=N_BYTES, n_connections=N_CONNECTIONS, openssl=ssl.OPENSSL_VERSION)
    folder = memory / f"plain files {kind}"
    folder.mkdir()
    for n in range(N_CONNECTIONS):
        (folder / f"disk-{n}").write_bytes(np.random.default_rng(n).bytes(N_BYTES // N_CONNECTIONS))

    def setup():
        for path in folder.glob("copy-*"):
            path.unlink()
        stack = contextlib.ExitStack()
        return (stack, stack.enter_context(connections(kind, credentials))), {}

    def run(stack: contextlib.ExitStack, pairs) -> None:
        assert raw_copy(pairs, folder) == N_BYTES
        stack.close()

    benchmark.pedantic(run, setup=setup, rounds=5)
    assert all((folder / f"copy-{n}").read_bytes() == (folder / f"disk-{n}").read_bytes() for n in range(N_CONNECTIONS))
    shutil.rmtree(folder)


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
