"""Mirrors and replicas behind a network: the verbs against a service, TLS on both sides."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.cli.main import run
from blockplane.transfer import mirrors
from blockplane.transfer.peer import MirrorPeer
from rig.network import Hosts
from rig.owners import wait_for
from rig.services import serving

LIMIT_S = 60


def blockplane(*arguments: object, ok: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "blockplane", *map(str, arguments)], capture_output=True, text=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is ok, done.stderr
    return done.stdout if ok else done.stderr


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def served(folder: Path, volume: Path, port: int, verbs: str, rate: str = "full"):
    policy = folder / f"{volume.name}.toml"
    policy.write_text(
        f'[volume.{volume.name}]\npath = "{volume}"\n[network]\nlisten = "127.0.0.1:{port}"\ntls = "{folder}/tls/far"\n'
        f'rate = "{rate}"\n'
        f"[network.rights.near]\n{volume.name} = {verbs}\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "blockplane", "serve", str(policy)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, process.stderr.read().decode()
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.communicate(timeout=LIMIT_S)


@pytest.fixture
def source(tmp_path: Path, rng) -> Path:
    bp.make_certificates(tmp_path / "tls", ["near=127.0.0.1", "far=127.0.0.1"])
    with bp.Volume.create(tmp_path / "pool", disks=3, size="32MiB") as volume:
        bp.FileSystem(volume).write_bytes("/a", rng.bytes(200_000))
        volume.snapshot("one")
    return tmp_path / "pool"


def write(volume: Path, path: str, data: bytes) -> None:
    with bp.Volume.open(volume) as opened:
        bp.FileSystem(opened).write_bytes(path, data)


def put(volume: Path, path: str, data: bytes, folder: Path) -> None:
    """As `write`, into a volume that a service has open."""
    (folder / "to put").write_bytes(data)
    blockplane("put", f"{volume}:{path}", folder / "to put")


def test_a_mirror_behind_a_network_taken_over_and_joined_again(source, tmp_path, rng):
    bp.Volume.create(tmp_path / "far", disks=2, size="16MiB").close()
    port, tls = free_port(), ("--tls", tmp_path / "tls" / "near")
    dest = f"127.0.0.1:{port}/far"
    with served(tmp_path, tmp_path / "far", port, '["read", "write"]'):
        blockplane("mirror", "add", source, dest, *tls)
        said = blockplane("mirror", "add", source, dest, "--tls", tmp_path / "tls" / "far", ok=False)
        assert "not allowed" in said
        assert json.loads(blockplane("mirror", "run", source, "--once", "--now", "--json", *tls))["ok"]
        write(source, "/b", new := rng.bytes(50_000))
        assert json.loads(blockplane("mirror", "run", source, "--once", "--now", "--json", *tls))["ok"]
        assert "mirror break" in blockplane("rm", f"{tmp_path}/far:/b", ok=False)
        (state,) = json.loads(blockplane("mirror", "status", source, "--json", *tls))["mirrors"]
        assert (state["left_blocks"], state["error"]) == (0, None)
        listed = json.loads(blockplane("snapshot", "list", tmp_path / "far", "--json"))["snapshots"]
        names = [snapshot["name"] for snapshot in listed]
        assert [name.startswith("mirror.") for name in names] == [False, True]  # the older own one is gone there too
        blockplane("mirror", "break", tmp_path / "far")
        blockplane("rm", f"{tmp_path}/far:/b")
        write(source, "/c", rng.bytes(10_000))
        told = blockplane("mirror", "run", source, "--once", "--now", *tls, ok=False)
        assert "broken off" in told
        assert f"blockplane mirror resync {dest} --source {source} --tls DIR joins it again" in told
        split = blockplane("mirror", "resync", dest, "--source", source, *tls, ok=False)
        assert "--from" in split
        blockplane("mirror", "resync", dest, "--source", source, "--from", "source", *tls)
    with bp.Volume.open(tmp_path / "far") as far, bp.Volume.open(source) as near:
        files = bp.FileSystem(far)
        assert (files.read_bytes("/b"), files.listdir("/")) == (new, bp.FileSystem(near).listdir("/"))
        assert bp.check(far).ok


def test_a_mirror_broken_off_and_rehearsed_with_from_afar(source, tmp_path, rng):
    bp.Volume.create(tmp_path / "far", disks=2, size="16MiB").close()
    port, tls = free_port(), ("--tls", tmp_path / "tls" / "near")
    dest, there = f"127.0.0.1:{port}/far", tmp_path / "far"
    with served(tmp_path, there, port, '["read", "write"]'):
        blockplane("mirror", "add", source, dest, *tls)
        assert "not allowed" in blockplane("mirror", "break", dest, *tls, ok=False)
        assert "--tls DIR" in blockplane("mirror", "break", dest, ok=False)  # it was forgotten
        assert "no complete state" in blockplane("mirror", "break", there, "--rehearse", ok=False)
    with served(tmp_path, there, port, '["read", "write", "admin"]'):
        assert "no complete state" in blockplane("mirror", "break", dest, "--rehearse", *tls, ok=False)
        assert json.loads(blockplane("mirror", "run", source, "--once", "--now", "--json", *tls))["ok"]
        begun = json.loads(blockplane("mirror", "break", dest, "--rehearse", "--json", *tls))
        assert begun["state"] == "one"
        blockplane("rm", f"{there}:/a")
        write(source, "/b", rng.bytes(10_000))
        assert "updates wait" in blockplane("mirror", "run", source, "--once", "--now", *tls)
        ended = json.loads(blockplane("mirror", "break", dest, "--end-rehearsal", "--json", *tls))
        assert (ended["state"], ended["kept"].startswith("kept-")) == (begun["state"], True)
        assert "no rehearsal" in blockplane("mirror", "break", dest, "--end-rehearsal", *tls, ok=False)

        assert "can be written" in blockplane("mirror", "break", dest, *tls)
        assert "broken already" in blockplane("mirror", "break", dest, *tls, ok=False)
        put(there, "/mine", rng.bytes(10_000), tmp_path)
    with bp.Volume.open(there) as volume:
        assert bp.FileSystem(volume).listdir("/") == ["a", "mine"]
        assert "a" not in bp.FileSystem(volume.get_snapshot(ended["kept"])).listdir("/")
        assert bp.check(volume).ok


def test_a_break_from_afar_waits_for_no_push(source, tmp_path, rng):
    """The volume can be written at once, at the state before the push; what came of that is kept."""
    port, tls = free_port(), ("--tls", tmp_path / "tls" / "near")
    dest, there = f"127.0.0.1:{port}/far", tmp_path / "far"
    bp.Volume.create(there, disks=2, size="64MiB").close()
    with served(tmp_path, there, port, '["read", "write", "admin"]'):
        blockplane("mirror", "add", source, dest, *tls)
        assert json.loads(blockplane("mirror", "run", source, "--once", "--now", "--json", *tls))["ok"]
    write(source, "/large", rng.bytes(24 << 20))
    command = [sys.executable, "-m", "blockplane", "mirror", "run", source, "--once", "--now", *tls]
    with served(tmp_path, there, port, '["read", "write", "admin"]', rate="2MiB"):
        pushing = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
        peer = bp.RemotePeer(f"127.0.0.1:{port}", "far", bp.Credentials.find(tmp_path / "tls" / "near"))
        wait_for(lambda: any(found.is_running for found in peer.standing().interrupted), "a push")
        found = peer.break_off()
        assert (found.state is not None, len(found.set_aside)) == (True, 1)
        put(there, "/mine", rng.bytes(10_000), tmp_path)
        _, said = pushing.communicate(timeout=LIMIT_S)
        assert (pushing.returncode, "broken off" in said) == (1, True), said
    with bp.Volume.open(there) as volume:
        assert bp.FileSystem(volume).listdir("/") == ["a", "mine"]
        assert bp.check(volume).ok


def test_a_replica_behind_a_network(source, tmp_path, rng):
    port, tls = free_port(), ("--tls", tmp_path / "tls" / "near")
    blockplane("snapshot", "master", f"{source}@one")
    with served(tmp_path, source, port, '["read"]'):
        where = f"127.0.0.1:{port}/pool"
        blockplane("replicate", where, tmp_path / "copy", *tls)
        (known,) = json.loads(blockplane("replicas", source, "--json"))["replicas"]
        assert (known["name"].split(".")[0], known["newest"], known["left_bytes"]) == ("copy", "one", 0)
        blockplane("snapshot", "create", f"{source}@two")
        blockplane("snapshot", "master", f"{source}@two")
        blockplane("replicate", where, tmp_path / "copy", *tls)
        assert "no such volume" in blockplane("replicate", where + "2", tmp_path / "other", *tls, ok=False)
        assert not (tmp_path / "other").exists()
    with bp.Volume.open(tmp_path / "copy") as copy:
        assert [pointer.snapshot for pointer in copy.pointers] == ["two"]


def test_what_is_behind_a_network_is_a_mirror_peer():
    assert isinstance(bp.RemotePeer("127.0.0.1:9", "pool", None), MirrorPeer)


def test_an_incremental_mirror_and_its_reintegration(source, tmp_path, rng):
    blockplane("send", source, "one", "-o", tmp_path / "full.bps")
    fast, whole = tmp_path / "fast", tmp_path / "whole"
    kind = ("--kind", "incremental")
    assert "without a base" in blockplane("mirror", "add", source, fast, *kind, ok=False)
    blockplane("mirror", "add", source, fast, *kind, "--base", tmp_path / "full.bps", "--size", "8MiB")
    write(source, "/b", new := rng.bytes(50_000))
    blockplane("mirror", "run", source, "--once", "--now")
    blockplane("mirror", "reintegrate", fast, whole, "--size", "16MiB", "--disks", "2")
    write(source, "/b", newer := rng.bytes(50_000))
    blockplane("mirror", "run", source, "--once", "--now")
    found = json.loads(blockplane("mirror", "reintegrate", fast, whole, "--json"))
    assert (found["base"] is None, found["n_blocks"] < 40) == (False, True)
    assert new != newer
    with bp.Volume.open(whole) as volume, bp.Volume.open(fast, writable=False) as structure:
        assert bp.FileSystem(volume).read_bytes("/b") == bp.FileSystem(structure).read_bytes("/b") == newer
        assert structure.used_blocks < 60
        assert bp.check(volume).ok


def test_a_service_brings_mirrors_and_replicas_up_to_date(source, tmp_path, rng):
    bp.Volume.create(tmp_path / "far", disks=2, size="16MiB").close()
    bp.Volume.create(tmp_path / "copy", disks=2, size="16MiB").close()
    blockplane("mirror", "add", source, tmp_path / "far", "--every", "1s")
    blockplane("snapshot", "master", f"{source}@one")
    policy = tmp_path / "policy.toml"
    policy.write_text(
        '[volume.pool]\npath = "pool"\n[volume.pool.mirror.all]\nevery = "1s"\n[volume.far]\npath = "far"\n'
        f'[volume.copy]\npath = "copy"\n[volume.copy.replicate.master]\nevery = "1s"\nsource = "{source}"\n'
    )
    said = blockplane("serve", "--check", policy)
    assert "brings its mirrors up to date" in said
    assert "pulls what master of" in said
    blockplane("serve", policy, "--once")
    for name in ("far", "copy"):
        with bp.Volume.open(tmp_path / name) as volume, bp.Volume.open(source, writable=False) as near:
            assert bp.FileSystem(volume).read_bytes("/a") == bp.FileSystem(near).read_bytes("/a"), name
    policy.write_text(policy.read_text().replace("source =", "sauce ="))
    assert "sauce" in blockplane("serve", "--check", policy, ok=False)


def test_status_says_what_a_step_waits_for(source, tmp_path):
    """Its peer is gone, and is tried for long: that shows at once, not when it is given up."""
    hosts = Hosts.make(tmp_path / "hosts")
    with bp.Volume.open(source) as volume, bp.Volume.create(tmp_path / "far", disks=2, size="16MiB") as far:
        with hosts.listening({"pool": far}, {"source": {"pool": ["read", "write"]}}) as listener:
            dest = f"{listener.address}/pool"
            peers = mirrors.Peers(remote=lambda _: closing(hosts.peer(str(listener.address))))
            mirrors.add(volume, dest, peers=peers)
            bp.FileSystem(volume).write_bytes("/new", b"new")
            volume.sync()
        (mirror,) = mirrors.definitions(volume.path)
        with closing(hosts.peer(str(listener.address), patience_s=1e6)) as peer:
            step = threading.Thread(target=mirrors.attempt, args=(volume, mirror, nullcontext(peer)))
            step.start()
            try:
                wait_for(lambda: mirrors.status(volume)[0].error, "what the step waits for")
                (found,) = mirrors.status(volume)
                assert ("cannot be reached" in found.error, "is tried again" in found.error) == (True, True)
            finally:
                peer.close()
                step.join()
        (found,) = mirrors.status(volume)
        assert (found.error, peer.waits_for) == (found.mirror.last.error, None)


def test_a_service_is_held_up_by_no_peer_that_is_silent(source, tmp_path, rng):
    """One mirror's place takes connections and says nothing: the other goes on, and the service ends in good order."""
    bp.Volume.create(tmp_path / "far", disks=2, size="16MiB").close()
    bp.Volume.create(tmp_path / "near", disks=2, size="16MiB").close()
    port, tls = free_port(), ("--tls", tmp_path / "tls" / "near")
    with served(tmp_path, tmp_path / "far", port, '["read", "write"]'):
        blockplane("mirror", "add", source, f"127.0.0.1:{port}/far", "--every", "0.2s", *tls)
    blockplane("mirror", "add", source, tmp_path / "near", "--every", "0.2s")
    (tmp_path / "policy.toml").write_text(
        f'[volume.pool]\npath = "pool"\n[volume.pool.mirror.all]\nevery = "1s"\ntls = "{tmp_path}/tls/near"\n'
        '[volume.near]\npath = "near"\n'
    )
    with (
        socket.create_server(("127.0.0.1", port)) as silent,
        serving(str(tmp_path / "policy.toml"), log=str(tmp_path / "log")) as service,
    ):
        service.wait_for("volume open", n=2)
        held, _ = silent.accept()
        for name in ("b", "c"):
            (tmp_path / name).write_bytes(data := rng.bytes(30_000))
            assert run(["put", f"{source}:/{name}", str(tmp_path / name)]) == 0
            get = ["get", f"{tmp_path}/near:/{name}", str(tmp_path / "got")]
            wait_for(lambda get=get: run(get) == 0, f"{name} at the mirror")
            assert (tmp_path / "got").read_bytes() == data
        assert service.end() == 0  # in the middle of waiting for the silent one, but on a machine that is very slow
        held.close()
    assert service.said("stopped")


def test_a_service_whose_source_is_silent_ends_in_good_order(source, tmp_path):
    port = free_port()
    (tmp_path / "policy.toml").write_text(
        f'[volume.pool]\npath = "pool"\n[volume.pool.replicate.one]\nevery = "1s"\ntls = "{tmp_path}/tls/near"\n'
        f'source = "127.0.0.1:{port}/far"\n'
    )
    with (
        socket.create_server(("127.0.0.1", port)) as silent,
        serving(str(tmp_path / "policy.toml"), log=str(tmp_path / "log")) as service,
    ):
        held, _ = silent.accept()
        assert service.end() == 0
        held.close()
    assert service.said("stopped")


def test_what_an_update_replaced_behind_a_network_is_kept_there_and_named(source, tmp_path):
    bp.Volume.create(tmp_path / "far", disks=2, size="16MiB").close()
    port, tls = free_port(), ("--tls", tmp_path / "tls" / "near")
    step = ("mirror", "run", source, "--once", "--now", "--json", *tls)
    with served(tmp_path, tmp_path / "far", port, '["read", "write"]'):
        blockplane("mirror", "add", source, f"127.0.0.1:{port}/far", *tls)
        blockplane(*step)
        write(source, "/work", b"a day of it")
        assert json.loads(blockplane(*step))["steps"][0]["kept"] is None
        blockplane("rollback", f"{source}@one")
        kept = json.loads(blockplane(*step))["steps"][0]["kept"]
        write(source, "/b", b"and on")
        assert json.loads(blockplane(*step))["steps"][0]["kept"] is None
    with bp.Volume.open(tmp_path / "far") as far:
        assert bp.FileSystem(far).listdir("/") == ["a", "b"]
        assert bp.FileSystem(far.get_snapshot(kept)).read_bytes("/work") == b"a day of it"
