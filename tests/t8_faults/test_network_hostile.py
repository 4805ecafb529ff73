"""Peers that stall, speak garbage, or are killed: they are ended in time, nobody else waits, nothing is lost.

At each state of the protocol; 100 stalled callers beside a good one; either side killed with SIGKILL at random moments:
twice, with --deep 300 times, in parts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from blockplane.model import BlockplaneError
from blockplane.model.errors import ConnectionLostError, NetworkError
from blockplane.server.network import RemotePeer
from blockplane.server.network.codec import Kind, encode_head
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume import Volume
from rig.farside import far_side
from rig.network import QUICK, Hosts, threads_left
from rig.owners import wait_for
from streams.volumes import Files, contents, fresh

SHORT = replace(QUICK, greeting_s=1.5, idle_s=1.0, least_over_s=1.0, alive_s=0.2)
STATES = ("tcp", "half a hello", "greeted", "half a request", "asked", "half of the data connections", "in the data")


def stalled(side, state: str) -> list:
    """Bring a caller to a state of the protocol, and say nothing more; return what it holds open."""
    caller = side.peer()._caller
    host, port = side.listener.address.split(":")
    if state in ("tcp", "half a hello"):
        sock = socket.create_connection((host, int(port)))
        if state == "tcp":
            return [sock]
        tls = side.hosts.credentials("source").calling(checks_name=True).wrap_socket(sock, server_hostname=host)
        tls.sendall(encode_head(Kind.HELLO, b"x" * 40, whole=False)[:10])
        return [tls]
    control = caller.control()
    if state == "half a request":
        control._sock.sendall(encode_head(Kind.REQUEST, b"x" * 40, whole=False) + b"{")
    if state in ("greeted", "half a request"):
        return [control]
    ids = {name: bytes(16).hex() for name in ("image_id", "top_id", "space_id")}
    control.tell(Kind.REQUEST, {"verb": "take", "volume": "pool", "changes": "refuse", "n_connections": 2, **ids})
    answer = control.receive(Kind.ANSWER).object
    ticket = bytes.fromhex(answer["ticket"])
    wanted = {"asked": 0, "half of the data connections": 1, "in the data": 2}[state]
    data = [caller.data(ticket) for _ in range(wanted)]
    if state == "in the data":
        data[0].send(Kind.PIECE, b"x" * 10, 0)
    return [control, *data]


def test_who_says_without_pause_that_it_is_at_work_is_ended(tmp_path, rng):
    with far_side(tmp_path, rng, limits=replace(SHORT, silent_s=2.0)) as side:
        control, *data = stalled(side, "in the data")

        def flood() -> None:
            data[1]._sock.setblocking(True)
            with contextlib.suppress(OSError):
                while True:
                    data[1]._sock.sendall(encode_head(Kind.ALIVE, b"", whole=False) * 500)

        thread = threading.Thread(target=flood, daemon=True)
        thread.start()
        try:
            wait_for(lambda: any(event.what == "failed" for event in side.told), "the end", timeout_s=20)
        finally:
            data[1].abort()
            thread.join()
            for channel in (control, *data):
                channel.close()


@pytest.mark.parametrize("state", STATES)
def test_a_stalled_caller_is_ended_in_every_state(tmp_path, rng, state):
    with far_side(tmp_path, rng, limits=SHORT) as side:
        held = stalled(side, state)
        end = time.monotonic() + 30
        while not any(event.what in ("refused", "failed") for event in side.told) and time.monotonic() < end:
            time.sleep(0.02)
        assert {event.what for event in side.told} & {"refused", "failed"}
        top = side.change(20)
        side.push(top)
        side.require_done(top)
        for connection in held:
            connection.close()
        side.require_at_rest()


@pytest.mark.parametrize("state", ["accepts", "half a welcome", "garbage", "closes"])
def test_a_listener_that_stalls_or_speaks_garbage_ends_the_call(tmp_path, state, rng):
    said = {"accepts": b"", "half a welcome": b"BPW\x01\x02", "garbage": rng.bytes(4000), "closes": b""}[state]
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = server.accept()
                    held.append(sock)
                    sock.sendall(said)
                    if state == "closes":
                        sock.close()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        peer = RemotePeer(f"127.0.0.1:{server.getsockname()[1]}", "pool", None, limits=SHORT, patience_s=0.5)
        with pytest.raises((ConnectionLostError, NetworkError)):
            peer.standing()
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for sock in held:
        sock.close()
    assert threads_left() == []


def test_callers_speaking_garbage_change_nothing(tmp_path, rng, is_deep, record_property):
    n = 500 if is_deep else 40
    with far_side(tmp_path, rng, limits=SHORT) as side:
        top = side.change(20)
        side.push(top)
        caller, before = side.peer()._caller, contents(side.copy.active)
        host, port = side.listener.address.split(":")
        for turn in range(n):
            garbage = rng.bytes(int(rng.integers(1, 3000)))
            with contextlib.suppress(BlockplaneError, OSError):
                if turn % 2:
                    with socket.create_connection((host, int(port))) as sock:
                        sock.sendall(garbage)
                        continue
                control = caller.control()
                with contextlib.closing(control):
                    kind = Kind(int(rng.integers(1, 10)))
                    control.send(kind, garbage if kind is not Kind.END else b"")
                    control.receive(Kind.FAILED)
        assert contents(side.copy.active) == before
        side.push(side.change(20))
        side.require_at_rest()
    record_property("summary", f"garbage: {n} of {n} callers refused, nothing changed")


def test_a_good_caller_beside_a_hundred_stalled_ones(tmp_path, rng):
    """They hold the door at once, from one address and from many; who has something to say gets in all the same."""
    with far_side(tmp_path, rng, limits=replace(QUICK, greeting_s=8.0)) as side:
        host, port = side.listener.address.split(":")
        held = []
        for i in range(100):
            sock = socket.socket()
            sock.bind((f"127.0.{i // 3}.{1 + i % 3}", 0))
            sock.connect((host, int(port)))
            held.append(sock)
        top = side.change(200)
        side.push(top, side.peer(patience_s=30))
        side.require_done(top)
        for sock in held:
            sock.close()
        side.require_at_rest()


SERVE = """
import sys
from pathlib import Path
from blockplane.server.network import Credentials, Listener, Rights
from blockplane.volume import Volume

folder, path = Path(sys.argv[1]), Path(sys.argv[2])
with Volume.open(path) as volume:
    rights = Rights({"source": {"pool": ["read", "write"]}})
    listener = Listener(sys.argv[3], {"pool": volume}, rights, Credentials.find(folder, "backup"))
    listener.start()
    print(listener.address, flush=True)
    sys.stdin.read()
    listener.stop()
"""
PUSH = """
import sys
from pathlib import Path
from blockplane.server.network import Credentials, RemotePeer
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards
from blockplane.volume import Volume

folder, path = Path(sys.argv[1]), Path(sys.argv[2])
with Volume.open(path, writable=False) as volume:
    peer = RemotePeer(sys.argv[3], "pool", Credentials.find(folder, "source"), patience_s=30)
    peer.take(image_towards(volume, sys.argv[4], peer.standing()), LocalChanges.REFUSE)
"""


def started(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=120)
    return process.returncode


def test_either_side_killed_at_random_moments(tmp_path, rng, is_deep, part, record_property):
    n_kills = -(-300 // part[1]) if is_deep else 2
    hosts = Hosts.make(tmp_path / "tls")
    with fresh(tmp_path / "source", size="48M") as source:
        files = Files(source, rng)
        files.write(1, 0, 6000)
        source.snapshot("one")
        state = contents(source.active)
    n_early = 0
    for turn in range(n_kills):
        copy = tmp_path / f"copy{turn}"
        fresh(copy, disks=3, size="64M").close()
        server = started(SERVE, hosts.folder, copy, "127.0.0.1:0")
        address = server.stdout.readline().strip()
        pusher = started(PUSH, hosts.folder, tmp_path / "source", address, "one")
        victim = (pusher, server)[turn % 2]
        time.sleep(float(rng.uniform(0.2, 1.2)))
        n_early += pusher.poll() is None
        victim.send_signal(signal.SIGKILL)
        ended(victim)
        if victim is server:
            server = started(SERVE, hosts.folder, copy, address)  # the same port: the call that goes on finds it
            assert server.stdout.readline().strip() == address
            assert ended(pusher) == 0
        else:
            assert ended(started(PUSH, hosts.folder, tmp_path / "source", address, "one")) == 0
        assert ended(server) == 0
        with Volume.open(copy, writable=False) as found:
            assert contents(found.active) == state
            assert not found.local.incoming.images()
        assert set(os.listdir(copy)) <= {"volume.toml", "disks", "lock"}
    record_property("summary", f"kills: {n_kills} of {n_kills} ended equal ({n_early} while it ran)")


def test_a_pull_tells_why_the_other_side_ends(tmp_path, rng):
    """A session that fails for a reason says it, and is not taken for a network that failed."""
    with far_side(tmp_path, rng) as side:
        top = side.change(30)
        side.push(top)
        with fresh(tmp_path / "pulled") as pulled:
            own = Files(pulled, rng)
            own.write(1, 0, 5)
            with pytest.raises(BlockplaneError, match="has content"):
                side.peer().bring(top, pulled, LocalChanges.REFUSE)
            assert len(contents(pulled.active)) == 1
        side.require_at_rest()
