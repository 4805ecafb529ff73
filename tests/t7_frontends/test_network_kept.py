"""A destination that lives on while a transfer into it goes on: what is written there is never lost."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import RefusedError, StreamTruncatedError
from blockplane.server.activity import Kind as Does
from blockplane.server.network import RemotePeer
from blockplane.server.network.codec import Kind
from blockplane.server.network.spoken import standing_said
from blockplane.server.service.clock import SystemClock
from blockplane.server.service.log import Log
from blockplane.server.service.policy import VolumePolicy
from blockplane.server.service.served import ServedVolume, answer_nobody
from blockplane.transfer import mirrors
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.standing import image_towards, standing_of
from blockplane.volume.mirrorcodec import BROKEN
from rig.network import QUICK, Cut, Hosts, Link
from rig.owners import wait_for

MIB = 1 << 20
RIGHTS = {"source": {"pool": ["read", "write", "admin"]}}
MINE = b"written at the destination"


@pytest.fixture
def hosts(tmp_path) -> Hosts:
    return Hosts.make(tmp_path / "tls")


@pytest.fixture
def volumes(tmp_path, rng):
    """A source with a snapshot, and an empty volume."""
    with (
        bp.Volume.create(tmp_path / "src", disks=2, size="64MiB") as source,
        bp.Volume.create(tmp_path / "far", disks=1, size="64MiB") as far,
    ):
        bp.FileSystem(source).write_bytes("/a", rng.bytes(100_000))
        source.snapshot("one")
        yield source, far


def write(volume: bp.Volume, path: str, data: bytes) -> None:
    bp.FileSystem(volume).write_bytes(path, data)
    volume.commit()


def wherever(volume: bp.Volume, name: str) -> list[str]:
    """Where a file of the root is: `live`, and names of snapshots."""
    found = [("live", volume), *((snapshot.name, snapshot) for snapshot in volume.snapshots)]
    return [where for where, state in found if name in bp.FileSystem(state).listdir("/")]


@pytest.mark.parametrize("changes", [None, LocalChanges.KEEP, LocalChanges.FLUSH])
def test_a_push_that_is_tried_again_replaces_no_mirror_that_was_broken_off_meanwhile(hosts, volumes, rng, changes):
    """The link is cut; the destination is taken over and written to; the link is there again, and so is the push."""
    source, far = volumes
    with hosts.listening({"pool": far}, RIGHTS) as listener, Link(listener.address) as link:
        peers = mirrors.Peers(
            remote=lambda dest: contextlib.closing(hosts.peer(dest.removesuffix("/pool"), patience_s=60.0))
        )
        mirrors.add(source, f"{link.address}/pool", peers=peers, local_changes=changes)
        assert [ran.error for ran in mirrors.run_once(source, peers=peers, now=True)] == [""]
        write(source, "/large", rng.bytes(12 * MIB))
        link.cut = Cut(link.n_bytes["up"] + 4 * MIB, "up", "reset")

        def operate() -> None:
            assert link.cut.happened.wait(60)
            target, link._target = link._target, ("127.0.0.1", 1)
            wait_for(lambda: not far.incoming.is_running, "the end of the push")
            mirrors.break_mirror(far)
            write(far, "/mine", MINE)
            link._target = target

        operator = threading.Thread(target=operate)
        operator.start()
        (ran,) = mirrors.run_once(source, peers=peers, now=True)
        operator.join()
        assert "was broken off" in ran.error
    assert bp.FileSystem(far).listdir("/") == ["a", "mine"]
    assert far.mirror_of is not None
    assert far.mirror_of.state == "broken"
    assert bp.check(far).ok


@pytest.mark.parametrize("pulls", [False, True], ids=["push", "pull"])
def test_what_is_written_between_keeping_and_landing_stays(hosts, volumes, rng, monkeypatch, pulls):
    source, far = volumes
    data_of, is_late = RemotePeer._data, False

    def data(peer: RemotePeer, answer):
        if is_late:
            write(far, "/mine", MINE)
        return data_of(peer, answer)

    def bring(top: str):
        peer = hosts.peer(listener.address)
        if pulls:
            return peer.bring(top, far, LocalChanges.KEEP)
        return peer.take(image_towards(source, top, peer.standing()), LocalChanges.KEEP)

    monkeypatch.setattr(RemotePeer, "_data", data)
    with hosts.listening({"pool": source if pulls else far}, RIGHTS) as listener:
        bring("one")
        write(source, "/b", rng.bytes(10_000))
        source.snapshot("two")
        is_late = True
        with pytest.raises(StreamTruncatedError, match="was written to meanwhile"):
            bring("two")
        assert wherever(far, "mine") == ["live"]
        is_late = False
        kept = bring("two").kept
        assert wherever(far, "mine") == [kept]
        assert bp.FileSystem(far).listdir("/") == ["a", "b"]
    assert bp.check(far).ok


@pytest.mark.parametrize("pulls", [False, True], ids=["push", "pull"])
def test_what_was_kept_is_told_although_the_first_attempt_was_cut(hosts, volumes, rng, pulls):
    source, far = volumes
    with hosts.listening({"pool": source if pulls else far}, RIGHTS) as listener, Link(listener.address) as link:

        def bring(top: str):
            peer = hosts.peer(link.address, patience_s=60.0)
            if pulls:
                return peer.bring(top, far, LocalChanges.KEEP)
            return peer.take(image_towards(source, top, peer.standing()), LocalChanges.KEEP)

        bring("one")
        write(far, "/mine", MINE)
        write(source, "/large", rng.bytes(12 * MIB))
        source.snapshot("two")
        direction = "down" if pulls else "up"
        link.cut = Cut(link.n_bytes[direction] + 4 * MIB, direction, "reset")
        kept = bring("two").kept
        assert link.cut.happened.is_set()
        assert wherever(far, "mine") == [kept]


class Lent:
    """A volume of a service that has no other parts."""

    def __init__(self, path: Path) -> None:
        log = Log(lambda: None, "plain", "error")
        self.served = ServedVolume(VolumePolicy("pool", path), answer_nobody, log, SystemClock(), lambda: None)

    def __enter__(self) -> ServedVolume:
        self.served.start()
        wait_for(lambda: self.served.volume is not None, "the volume")
        return self.served

    def __exit__(self, *_: object) -> None:
        self.served.stop()
        wait_for(lambda: self.served.is_over, "the end of serving")


def stalled_push(peer: RemotePeer, source_id: bytes):
    """Ask for a push whose data never come to an end."""
    ids = {name: bytes(16).hex() for name in ("image_id", "top_id", "space_id")}
    control = peer._caller.control()
    asked = {"verb": "take", "volume": "pool", "changes": "keep", "n_connections": 1, "source_id": source_id.hex()}
    control.tell(Kind.REQUEST, asked | ids)
    answer = control.receive(Kind.ANSWER).object
    data = peer._caller.data(bytes.fromhex(answer["ticket"]))
    data.send(Kind.PIECE, b"x" * 10, 0)
    return control, data


def test_a_break_counts_though_its_answer_is_not_heard(hosts, volumes, tmp_path):
    source, far = volumes
    peers = mirrors.Peers(local=lambda _: contextlib.nullcontext(bp.VolumePeer(far)))
    mirrors.add(source, str(tmp_path / "far"), peers=peers)
    mirrors.run_once(source, peers=peers, now=True)
    far.close()
    with Lent(tmp_path / "far") as served, hosts.listening({"pool": served.lent}, RIGHTS) as listener:
        control, data = stalled_push(hosts.peer(listener.address), source.info.volume_id)
        wait_for(lambda: served.activities.all(), "the push")
        with pytest.raises(RefusedError), served.activities.going_on(Does.FILES, "put", 0):
            pass
        asking = hosts.peer(listener.address)._caller.control()
        asking.tell(Kind.REQUEST, {"verb": "break", "volume": "pool", "rehearse": False})
        asking._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(asking._sock)
        wait_for(lambda: served.volume.local.root.mirror.state == BROKEN, "the break")

        def may_write() -> bool:
            with contextlib.suppress(RefusedError), served.activities.going_on(Does.FILES, "put", 0):
                return True
            return False

        wait_for(may_write, "files that may be changed")
        control.close()
        data.close()


def test_a_volume_that_is_opened_anew_waits_for_no_peer(hosts, tmp_path, rng):
    """A pull whose caller takes nothing has the volume; it stopped at an error, and others want it."""
    with bp.Volume.create(tmp_path / "pool", disks=1, size="64MiB") as volume:
        bp.FileSystem(volume).write_bytes("/a", rng.bytes(24 * MIB))
        volume.snapshot("one")
    rights, patient = {"source": {"pool": ["read"]}}, replace(QUICK, idle_s=600.0, least_over_s=600.0)
    with (
        Lent(tmp_path / "pool") as served,
        hosts.listening({"pool": served.lent}, rights, limits=patient) as listener,
    ):
        peer, before = hosts.peer(listener.address), served.volume
        control = peer._caller.control()
        with bp.Volume.create(tmp_path / "copy", disks=1, size="16MiB") as copy:
            said, blob = standing_said(standing_of(copy))
        asked = {"verb": "bring", "volume": "pool", "wanted": "one", "n_token_bytes": 0, "n_connections": 1}
        control.tell(Kind.REQUEST, said | asked)
        control.send_blob(blob)
        answer = control.receive(Kind.ANSWER).object
        data = peer._caller.data(bytes.fromhex(answer["ticket"]))
        assert served.activities.all()
        served.reopen()
        wait_for(lambda: served.volume is not None and served.volume is not before, "the volume, opened anew", 20.0)
        control.close()
        data.close()
