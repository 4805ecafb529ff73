"""Pushes and pulls over a listener: increments, changes of the destination, resumption, turns, room, an end in time."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import blockplane as bp
from blockplane.image import build
from blockplane.model.errors import (
    BusyError,
    ConnectionLostError,
    NoSpaceError,
    NoSuchSnapshotError,
    NotAllowedError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from blockplane.server.network import Rights, Schedule, Transfer, Verb, mirroring, remote
from blockplane.server.network.admission import Admission, address_key
from blockplane.server.network.carrying import send_rest
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import HEAD_BYTES, Head, Kind, encode_head
from blockplane.server.network.rights import Identity
from blockplane.server.network.serving import Dialogue
from blockplane.server.network.striped import Incoming, Outgoing
from blockplane.server.network.throttle import LEAST_RATE, Throttle
from blockplane.server.network.tls import fingerprint_of
from blockplane.stream.arrival import Ring, arriving
from blockplane.stream.input import open_input
from blockplane.stream.reader import StreamReader
from blockplane.transfer.lag import replicas
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.receive import receive
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import ResumeToken, interrupted_receives, resume_token
from blockplane.transfer.send import send
from blockplane.transfer.standing import image_towards, standing_of
from blockplane.volume.check import check
from blockplane.volume.landing_places import reaches
from rig.farside import far_side
from rig.network import QUICK, Cut, Hosts, Link, fingerprint, threads_left
from rig.owners import wait_for
from streams.volumes import Files, contents, fresh

MIB = 1 << 20


@pytest.fixture
def side(tmp_path, rng):
    with far_side(tmp_path, rng) as found:
        yield found


def test_frames_on_a_network_are_a_small_part_of_an_image(side):
    """What is cut on the way is lost: a file's frames would be most of a small image."""
    image, stream = build(side.source, side.change(400)), io.BytesIO()
    send_rest(image, stream, None)
    stream.seek(0)
    reader = StreamReader(open_input(stream))
    reader.read_map()
    sizes = [head.n_blocks for head, _ in arriving(reader, Ring())]
    assert (sum(sizes), max(sizes)) == (image.n_blocks, 8)


def test_a_full_push_then_increments(side):
    first = side.change(400)
    full = side.push(first)
    n_written = sum(map(len, side.states[first].values()))
    assert (full.base, full.already_there, full.n_blocks >= n_written) == (None, False, True)
    side.require_done(first)
    side.change(100)
    third = side.change(100)
    found = side.push(third)
    assert (found.base, found.n_blocks < 300) == (first, True)
    assert [snapshot.name for snapshot in side.copy.snapshots] == ["s1", "s2", "s3"]
    side.require_done(third)
    again = side.push(third)
    assert (again.already_there, again.n_blocks) == (True, 0)
    side.require_at_rest()
    done = [(event.what, event.text, event.transfer.verb) for event in side.told if event.what == "done"]
    assert done == [("done", "standing", Verb.READ), ("done", "take", Verb.WRITE)] * 3
    assert {event.transfer.identity.names for event in side.told} == {("source", "127.0.0.1")}


def test_a_push_onto_a_snapshot_of_another_numbering(side, tmp_path):
    """The source took in another volume's state: what both have is of the line that it gave up."""
    side.push(side.change(200))
    with fresh(tmp_path / "other", size="24M") as other:
        Files(other, side.rng).write(7, 0, 90)
        other.snapshot("other")
        send(build(other, "other"), tmp_path / "other.bps")
        side.states["other"] = contents(other.active)
    receive(tmp_path / "other.bps", side.source, discard=True)
    found = side.push("other", changes=LocalChanges.KEEP)
    assert found.base == "s1"
    side.require_done("other")
    assert contents(side.copy.get_snapshot("s1").state) == side.states["s1"]
    assert check(side.copy).problems == []


def test_the_standing_is_the_volume_s_own(side):
    side.push(side.change(50))
    side.copy.snapshot("mine")
    assert side.peer().standing() == standing_of(side.copy)


@pytest.mark.parametrize("changes", LocalChanges)
def test_changes_of_the_destination(side, changes):
    first = side.change(60)
    side.push(first)
    own = Files(side.copy, side.rng)
    own.reload()
    own.write(5, 0, 9)
    mine = contents(side.copy.active)
    second = side.change(60)
    peer = side.peer()
    image = image_towards(side.source, second, peer.standing())
    if changes is LocalChanges.REFUSE:
        with pytest.raises(RefusedError, match="pool was written to since") as refused:
            peer.take(image, changes)
        assert str(side.copy.path) not in f"{refused.value.message} {refused.value.hint}"
        assert contents(side.copy.active) == mine
        return
    found = peer.take(image, changes)
    side.require_done(second)
    if changes is LocalChanges.FLUSH:
        assert found.kept is None
        return
    assert found.kept is not None
    assert found.kept.startswith("kept-")
    assert contents(side.copy.get_snapshot(found.kept).state) == mine


def test_a_pull_full_and_incremental(side, tmp_path):
    first = side.change(300)
    side.push(first)
    with fresh(tmp_path / "pulled", size="24M") as pulled:
        peer = side.peer()
        assert peer.bring(first, pulled, LocalChanges.REFUSE).base is None
        second = side.change(80)
        side.push(second)
        found = peer.bring(second, pulled, LocalChanges.REFUSE)
        assert (found.base, found.n_blocks < 200, found.already_there) == (first, True, False)
        assert contents(pulled.active) == side.states[second]
        assert peer.bring(second, pulled, LocalChanges.REFUSE).already_there
        with pytest.raises(NoSuchSnapshotError, match="nothing"):
            peer.bring("nothing", pulled, LocalChanges.REFUSE)
        # what one process has open gives the same
        with fresh(tmp_path / "local", size="24M") as local:
            assert VolumePeer(side.copy).bring(second, local, LocalChanges.REFUSE).n_blocks > 0
            assert contents(local.active) == contents(pulled.active)
    side.require_at_rest()


def test_a_copy_may_be_smaller_than_its_source(tmp_path, rng):
    with far_side(tmp_path, rng, size="64M", copy_size="8M") as side:
        side.files.write(9, 0, 9000)
        side.source.snapshot("large")
        behind = side.change(300)
        side.files.punch(9, 0, 9000)
        side.source.delete_snapshot("large", behind)
        first = side.change(50)
        image = image_towards(side.source, first, side.peer().standing())
        assert reaches(image.plane) > side.copy.geometry.n_blocks
        assert side.push(first).top == first
        side.require_done(first)
        second = side.change(50)
        assert side.push(second).base == first
        side.require_done(second)
        rights = {"source": {"pool": ["read"]}}
        with (
            fresh(tmp_path / "pulled", disks=2, size="8M", parity=0) as pulled,
            side.hosts.listening({"pool": side.source}, rights) as listener,
        ):
            peer = side.hosts.peer(listener.address)
            assert peer.bring(second, pulled, LocalChanges.REFUSE).base is None
            assert contents(pulled.active) == side.states[second]
            third = side.change(50)
            assert peer.bring(third, pulled, LocalChanges.REFUSE).base == second
            assert contents(pulled.active) == side.states[third]
            assert check(pulled).problems == check(side.copy).problems == []


def test_a_destination_without_room_says_so_and_stays(tmp_path, rng):
    with far_side(tmp_path, rng, size="64M") as side:
        first = side.change(100)
        side.push(first)
        side.files.write(9, 0, 9000)  # the copy has 48 MiB, two disks of three
        side.source.snapshot("large")
        Files(side.copy, rng)
        filler = Files(side.copy, rng)
        filler.reload()
        side.copy.snapshot("before")
        before = contents(side.copy.active)
        filler.write(8, 0, side.copy.available_blocks - 5000)
        side.copy.snapshot("full")
        filler.punch(8, 0, 1 << 20)
        side.copy.rollback("before")
        with pytest.raises((NoSpaceError, RefusedError)):
            side.push("large", side.peer(patience_s=0))
        assert contents(side.copy.active) == before
        side.require_at_rest()


def large_change(side) -> str:
    """A change of more than what is brought again whole, 16 MiB."""
    side.files.write(7, 0, 5000)
    return side.change(10)


def left_of(side) -> ResumeToken:
    """What the copy has of a push that was cut, once the session has ended."""
    while not any(event.what == "failed" for event in side.told):
        time.sleep(0.01)
    return resume_token(side.copy)


def test_what_was_cut_goes_on_with_the_rest_alone(side):
    """The stream of the second attempt has exactly the blocks that did not land, whoever makes it."""
    top = large_change(side)
    image = image_towards(side.source, top, side.peer().standing())
    with Link(side.listener.address, Cut(13 * MIB, "up", "reset")) as link:
        with pytest.raises(ConnectionLostError):
            side.peer(link.address, patience_s=0).take(image, LocalChanges.REFUSE)
        token = left_of(side)
        assert 0 < token.n_copied < token.n_image
        assert [found.image_id for found in side.peer().standing().interrupted] == [token.image_id]
        found = side.peer(link.address).take(image, LocalChanges.REFUSE)
        assert found.n_blocks == token.n_left
    side.require_done(top)
    side.require_at_rest()


def test_patience_counts_from_what_got_through_last(side, monkeypatch):
    """Attempts of a minute each: one that is cut before anything is durable, one that gets far, one that arrives."""
    now, moves, peer = [0.0], iter([(0, 5), (0, 1000), (990, 10)]), side.peer(patience_s=10.0)

    def attempt() -> str:
        durable, moved = next(moves)
        peer._durable, peer._moved, now[0] = max(peer._durable, durable), peer._moved + moved, now[0] + 60
        if not durable:
            raise ConnectionLostError("it was cut")
        return "done"

    monkeypatch.setattr("blockplane.server.network.remote.time.monotonic", lambda: now[0])
    assert peer._patiently(attempt) == "done"
    n_tried = 0

    def fruitless() -> None:
        nonlocal n_tried
        n_tried, peer._moved, now[0] = n_tried + 1, peer._moved + 5, now[0] + 60
        raise ConnectionLostError("it was cut")

    with pytest.raises(ConnectionLostError):
        peer._patiently(fruitless)
    assert 2 <= n_tried <= 4


def test_who_never_answered_is_not_waited_for_as_one_with_whom_contact_was_lost(side):
    peer, n_tried, n_asked = side.peer(patience_s=60.0, reach_s=0.0, require=lambda: n_asked.append(1)), 0, []

    def cut_once() -> str:
        nonlocal n_tried
        n_tried += 1
        if n_tried % 2:
            raise UnreachableError("it cannot be reached")
        return "done"

    with pytest.raises(UnreachableError):
        peer._patiently(cut_once)
    assert (n_tried, n_asked) == (1, [])
    peer.standing()
    n_tried = 0
    assert peer._patiently(cut_once) == "done"
    assert n_asked
    assert side.peer(reach_s=None, patience_s=60.0)._patiently(cut_once) == "done"


def test_what_was_cut_can_be_given_up(side):
    top = large_change(side)
    image = image_towards(side.source, top, side.peer().standing())
    with Link(side.listener.address, Cut(13 * MIB, "up", "reset")) as link, pytest.raises(ConnectionLostError):
        side.peer(link.address, patience_s=0).take(image, LocalChanges.REFUSE)
    left = left_of(side)
    assert side.peer().give_up(left.image_id) == left.n_image
    assert side.peer().standing().interrupted == ()
    with pytest.raises(RefusedError):
        side.peer().give_up(left.image_id)


def test_a_pull_that_was_cut_goes_on_towards_a_later_top(side, tmp_path):
    first = large_change(side)
    side.push(first)
    with fresh(tmp_path / "pulled", size="24M") as pulled:
        with Link(side.listener.address, Cut(13 * MIB, "down", "reset")) as link, pytest.raises(ConnectionLostError):
            side.peer(link.address, patience_s=0).bring(first, pulled, LocalChanges.REFUSE)
        second = side.change(20)
        side.push(second)
        found = side.peer().bring(second, pulled, LocalChanges.REFUSE)
        assert found.n_blocks < 5000
        assert contents(pulled.active) == side.states[second]


def test_what_a_pull_that_was_cut_left_goes_when_a_later_one_has_arrived(side, tmp_path):
    first = large_change(side)
    side.push(first)
    with fresh(tmp_path / "pulled", size="24M") as pulled:
        with Link(side.listener.address, Cut(13 * MIB, "down", "reset")) as link, pytest.raises(ConnectionLostError):
            pull(side.peer(link.address, patience_s=0), pulled, first)
        assert [left.top_name for left in interrupted_receives(pulled)] == [first]
        second = side.change(20)
        side.push(second)
        forgetful = side.peer(limits=replace(side.limits, token_bytes=1))  # does not say what it has
        assert pull(forgetful, pulled, second).brought.n_blocks > 5000
        assert (list(interrupted_receives(pulled)), contents(pulled.active)) == ([], side.states[second])


# --- turns, room, ends -----------------------------------------------------------------------------------------------


def _quiet(peer, image) -> None:
    with contextlib.suppress(bp.BlockplaneError):
        peer.take(image, LocalChanges.REFUSE)


def test_the_same_caller_ends_what_it_left_behind_and_another_waits(tmp_path, rng):
    with far_side(tmp_path, rng, limits=replace(QUICK, idle_s=30, least_over_s=30)) as side:
        top = side.change(1500)
        same = side.peer(patience_s=0)
        image = image_towards(side.source, top, same.standing())
        cut = Cut(2 << 20, "up", "silent")
        with Link(side.listener.address, cut) as link:
            same._caller = replace(same._caller, address=type(same._caller.address).parse(link.address))
            thread = threading.Thread(target=_quiet, args=(same, image))
            thread.start()
            assert cut.happened.wait(20)
            while not side.listener._pushing:
                time.sleep(0.01)
            with pytest.raises(BusyError, match="under way"):
                side.peer(patience_s=0).take(image, LocalChanges.REFUSE)
            again = side.peer()
            again._caller = replace(again._caller, id=same._caller.id)
            again.take(image, LocalChanges.REFUSE)
            side.require_done(top)
        thread.join()


def test_the_source_hears_why_who_pulls_gave_up(side, tmp_path):
    first = side.change(60)
    side.push(first)
    with fresh(tmp_path / "pulled", size="48M") as pulled:
        side.peer().bring(first, pulled, LocalChanges.REFUSE)
        own = Files(pulled, side.rng)
        own.reload()
        own.write(5, 0, 9)
        second = large_change(side)
        side.push(second)
        for _ in range(3):
            with pytest.raises(RefusedError, match="was written to since"):
                side.peer(patience_s=0).bring(second, pulled, LocalChanges.REFUSE)
            wait_for(lambda: replicas(side.copy)[0].error, "the error")
            assert "was written to since" in replicas(side.copy)[0].error


def test_a_replica_is_who_calls_by_its_certificate(side, tmp_path):
    """Two copies of one volume, at two hosts: one would be held for, and the other built upon that."""
    first = side.change(60)
    side.push(first)
    with fresh(tmp_path / "pulled", size="48M") as pulled:
        side.peer().bring(first, pulled, LocalChanges.REFUSE)
    shutil.copytree(tmp_path / "pulled", tmp_path / "elsewhere")
    side.listener.rights = Rights({name: {"pool": ["read", "write"]} for name in ("source", "backup")})
    second = side.change(60)
    side.push(second)
    with bp.Volume.open(tmp_path / "elsewhere") as elsewhere:
        with pytest.raises(RefusedError, match=r"pool knows this volume as its replica .* another certificate"):
            side.peer(name="backup", patience_s=0).bring(second, elsewhere, LocalChanges.REFUSE)
        side.copy.forget_replica(replicas(side.copy, second)[0].name)
        assert side.peer(name="backup", patience_s=0).bring(second, elsewhere, LocalChanges.REFUSE).base == first
    with bp.Volume.open(tmp_path / "pulled") as pulled, pytest.raises(RefusedError, match="another certificate"):
        side.peer(patience_s=0).bring(second, pulled, LocalChanges.REFUSE)


def test_a_replica_of_this_machine_is_nobody_s_on_the_network(side, tmp_path):
    first = side.change(60)
    side.push(first)
    with fresh(tmp_path / "pulled", size="48M") as pulled:
        VolumePeer(side.copy).bring(first, pulled, LocalChanges.REFUSE)
        second = side.change(60)
        side.push(second)
        peer = side.peer(patience_s=0)
        with pytest.raises(RefusedError, match="pulls on that machine") as refused:
            peer.bring(second, pulled, LocalChanges.REFUSE)
        (name,) = (replica.name for replica in replicas(side.copy, second))
        assert refused.value.hint == f"if it pulls over a network now: blockplane replicas pool --forget {name}"
        side.copy.forget_replica(name)
        assert peer.bring(second, pulled, LocalChanges.REFUSE).base == first


def test_who_says_that_it_is_at_work_and_never_answers_is_lost(side, monkeypatch):
    limits, is_over = replace(QUICK, answer_s=1.0), threading.Event()
    monkeypatch.setattr(mirroring, "answer", lambda *_, **__: is_over.wait(30) and {})
    try:
        with pytest.raises(ConnectionLostError, match="has not answered in 1 s"):
            side.peer(limits=limits, patience_s=0).let_go([bytes(16)])
    finally:
        is_over.set()


class Attempt(threading.Thread):
    """A transfer in a thread of its own, and what it ends with."""

    def __init__(self, call) -> None:
        super().__init__()
        self._call, self.error = call, None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except bp.BlockplaneError as error:
            self.error = error


def test_who_pulls_and_never_says_how_that_ended_is_lost(tmp_path, rng, monkeypatch):
    with far_side(tmp_path, rng, limits=replace(QUICK, answer_s=1.0)) as side:
        top, is_over = side.change(60), threading.Event()
        side.push(top)

        def take_all(incoming, *_rest) -> None:
            while incoming.readinto(memoryview(bytearray(MIB))):
                continue
            is_over.wait(30)
            raise ConnectionLostError("it was given up here")

        monkeypatch.setattr(remote, "taken_in", take_all)
        with fresh(tmp_path / "pulled", size="48M") as pulled:
            pull = Attempt(lambda: side.peer(patience_s=0).bring(top, pulled, LocalChanges.REFUSE))
            try:
                wait_for(lambda: any(event.what == "failed" for event in side.told), "the end", timeout_s=20)
                assert "has not answered in 1 s" in side.told[-1].text
                assert side.copy.pins.all() == []
            finally:
                is_over.set()
                pull.join()


def only_sees(side) -> None:
    side.listener.rights = Rights({"source": {"pool": ["read"]}, "backup": {"other": ["read", "write", "admin"]}})


def is_revoked(side) -> None:
    own = side.hosts.credentials("backup")
    side.listener.credentials = replace(own, revoked=frozenset({fingerprint_of(fingerprint(own))}))


def n_under_way(side, name: str) -> int:
    """Bytes that the session of a host has moved so far."""
    with side.listener._changed:
        return sum(d.n_bytes for d in side.listener._dialogues.values() if name in d.identity.names)


@pytest.mark.parametrize("loses", [only_sees, is_revoked])
@pytest.mark.parametrize("request_", ["take", "bring"])
def test_who_loses_its_right_is_told_and_ended_and_others_go_on(tmp_path, rng, request_, loses):
    rate, both = [None], Rights({name: {"pool": ["read", "write"]} for name in ("source", "backup")})
    with far_side(tmp_path, rng, "48M", rate=lambda: rate[0]) as side, fresh(tmp_path / "other", size="48M") as other:
        side.listener.rights = both
        side.push(side.change(3000))
        peer, top = side.peer(name="backup", patience_s=0), large_change(side)
        with fresh(tmp_path / "mine", size="48M") as mine:
            if request_ == "bring":
                side.push(top)
            image = image_towards(side.source, top, peer.standing())
            calls = {
                "take": lambda peer: peer.take(image, LocalChanges.REFUSE),
                "bring": lambda peer: peer.bring(top, mine, LocalChanges.REFUSE),
            }
            rate[0] = 4 * MIB
            time.sleep(1.1)  # the rate is asked for once a second
            another = Attempt(lambda: side.peer(patience_s=0).bring("s1", other, LocalChanges.REFUSE))
            ended = Attempt(lambda: calls[request_](peer))
            wait_for(lambda: n_under_way(side, "backup") > 5 * MIB, "some of it")
            loses(side)
            ended.join()
            assert isinstance(ended.error, NotAllowedError)
            assert n_under_way(side, "source")
            rate[0] = None
            another.join()
            assert (another.error, contents(other.active)) == (None, side.states["s1"])
            side.listener.credentials, side.listener.rights = side.hosts.credentials("backup"), both
            left = resume_token(side.copy if request_ == "take" else mine)
            assert left.n_copied > 1000
            assert calls[request_](side.peer(name="backup")).n_blocks == left.n_left


def test_who_comes_late_to_its_turn_does_not_end_a_newer_call(side):
    identity, found = Identity(("source",), b"f" * 32, "here"), []
    for _ in range(2):
        near, far = socket.socketpair()
        channel = Channel(near, QUICK, "there")
        dialogue = Dialogue(side.listener, channel, identity, b"the same caller.")
        dialogue.transfer = Transfer(identity, "pool", Verb.READ, "bring")
        dialogue.over.set()
        side.listener._dialogues[dialogue.ticket] = dialogue
        found.append((dialogue, channel, far))
    older, newer = (dialogue for dialogue, _, _ in found)
    for dialogue, ended in ((older, []), (newer, [older])):
        with side.listener.take_turn(dialogue):
            assert [other for other in (older, newer) if other._is_aborted] == ended
    for dialogue, channel, far in found:
        del side.listener._dialogues[dialogue.ticket]
        channel.close()
        far.close()


def test_sessions_have_a_quota_and_one_more_comes_again(tmp_path, rng):
    with far_side(tmp_path, rng, limits=replace(QUICK, n_sessions=2)) as side:
        standing = [side.peer()._caller.control() for _ in range(2)]
        with pytest.raises(BusyError):
            side.peer(patience_s=0).standing()
        threading.Timer(0.3, lambda: [channel.close() for channel in standing]).start()
        assert side.peer(patience_s=20).standing().volume_id == side.copy.info.volume_id


def test_sessions_of_one_peer_leave_room_for_others(tmp_path, rng):
    limits = replace(QUICK, n_sessions=4, n_sessions_of_one=2)
    with far_side(tmp_path, rng, limits=limits) as side:
        standing = [side.peer()._caller.control() for _ in range(2)]
        with pytest.raises(BusyError):
            side.peer(patience_s=0).standing()
        side.listener.rights = Rights({name: {"pool": ["read"]} for name in ("source", "backup")})
        assert side.peer(name="backup", patience_s=0).standing().volume_id == side.copy.info.volume_id
        for channel in standing:
            channel.close()


@pytest.mark.parametrize("state", ["accepted", "greeted", "asked", "data", "before start"])
def test_a_stop_ends_sessions_in_every_state(tmp_path, rng, state):
    with far_side(tmp_path, rng) as side:
        top = side.change(1500)
        threads, socks = [], []
        if state == "before start":
            with side.hosts.listening({}, {}) as listener:
                assert listener.stop() is True
        elif state == "accepted":
            host, port = side.listener.address.split(":")
            socks.append(socket.create_connection((host, int(port))))
        elif state == "greeted":
            socks.append(side.peer()._caller.control())
        elif state == "asked":
            control = side.peer()._caller.control()
            control.tell(Kind.REQUEST, {"verb": "bring", "volume": "pool"})
            socks.append(control)
        else:
            image = image_towards(side.source, top, side.peer().standing())
            threads.append(threading.Thread(target=_quiet, args=(side.peer(patience_s=0, rate=lambda: 1e6), image)))
            threads[0].start()
            while not any(event.what == "began" for event in side.told):
                time.sleep(0.01)
        assert side.listener.stop() is True
        with pytest.raises(UnreachableError):
            side.peer(patience_s=0).standing()
        for thread in threads:
            thread.join()
        for sock in socks:
            sock.close()
        side.require_a_state()
        assert threads_left() == []


def test_a_peer_that_is_closed_waits_no_longer_for_what_its_name_means(monkeypatch):
    asked, is_over = threading.Event(), threading.Event()

    def silent(*_, flags: int = 0, **__):
        if not flags:
            asked.set()
            is_over.wait(10)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    peer = remote.RemotePeer("far.example:7420", "pool", None, insecure_plaintext=True)
    closing = threading.Thread(target=lambda: asked.wait() and peer.close())
    closing.start()
    with pytest.raises(ConnectionLostError, match="any more"):
        peer.standing()
    closing.join()
    is_over.set()


def test_what_gives_a_volume_is_told_and_may_refuse(tmp_path, rng):
    asked, hosts = [], Hosts.make(tmp_path / "tls")
    with fresh(tmp_path / "pool") as pool:

        @contextlib.contextmanager
        def opened(transfer: Transfer):
            asked.append((transfer.identity.names[0], transfer.volume, transfer.verb))
            if transfer.verb is Verb.WRITE:
                raise RefusedError("a rollback goes on", "wait")
            yield pool

        with hosts.listening({"pool": opened}, {"source": {"pool": ["read", "write"]}}) as listener:
            peer = hosts.peer(listener.address)
            assert peer.standing().volume_id == pool.info.volume_id
            with fresh(tmp_path / "mine") as mine:
                Files(mine, rng).write(1, 0, 3)
                mine.snapshot("one")
                with pytest.raises(RefusedError, match="a rollback goes on"):
                    peer.take(image_towards(mine, "one", peer.standing()), LocalChanges.REFUSE)
    assert asked == [("source", "pool", Verb.READ), ("source", "pool", Verb.READ), ("source", "pool", Verb.WRITE)]


def test_hosts_of_one_volume_s_name_and_ports(tmp_path):
    hosts = Hosts.make(tmp_path / "tls")
    with pytest.raises(UsageError):
        hosts.peer("127.0.0.1:1", "../x")
    with pytest.raises(UsageError), hosts.listening({".x": None}, {}):
        pass
    with pytest.raises(UnreachableError, match="cannot be reached"):
        hosts.peer("127.0.0.1:1", patience_s=0).standing()
    with hosts.listening({}, {}) as listener, pytest.raises(OSError, match="in use"):
        type(listener)(listener.address, {}, Rights(), None)


# --- the door --------------------------------------------------------------------------------------------------------


class Door:
    def __init__(self, **more) -> None:
        self.now, self.socks = 100.0, []
        self.admission = Admission(replace(QUICK, n_failures=10, **more), lambda: self.now)

    def knock(self, address: str):
        self.socks.append(socket.socketpair())
        return self.admission.enter(self.socks[-1][0], address)

    def is_open(self, i: int) -> bool:
        self.socks[i][1].setblocking(False)
        try:
            return self.socks[i][1].recv(1) != b""
        except BlockingIOError:
            return True

    def close(self) -> None:
        for pair in self.socks:
            for sock in pair:
                sock.close()


def test_who_waits_longest_goes_when_the_door_is_full():
    door = Door(n_greeting=6, n_greeting_of_one=3)
    with contextlib.closing(door):
        assert all(door.knock("10.0.0.1") for _ in range(3))
        assert door.knock("10.0.0.1") is None, "nobody goes that has just come"
        door.now += 1
        assert door.knock("10.0.0.1") is not None
        assert [door.is_open(i) for i in range(3)] == [False, True, True]
        assert all(door.knock(f"10.0.1.{i}") for i in range(3))
        door.now += 1
        guest = door.knock("10.0.2.1")
        assert guest is not None
        assert [door.is_open(i) for i in (1, 2, 4, 5, 6, 7)] == [False, True, True, True, True, True]
        door.admission.leave(guest)
        assert door.knock("10.0.2.2") is not None


def test_a_listener_without_a_thread_for_one_caller_serves_the_next(side, monkeypatch):
    start, n_failures = threading.Thread.start, 3

    def failing(thread: threading.Thread) -> None:
        nonlocal n_failures
        if thread.name == "blockplane session" and n_failures:
            n_failures -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    assert side.peer().standing() == standing_of(side.copy)
    assert n_failures == 0
    side.require_at_rest()


def test_a_stop_does_not_wait_for_those_who_wait_for_their_turn(tmp_path):
    hosts = Hosts.make(tmp_path / "tls")
    with (
        hosts.listening({}, {"source": {}}, limits=replace(QUICK, n_failures=1)) as listener,
        contextlib.ExitStack() as stack,
    ):
        host, port = listener.address.rsplit(":", 1)
        for _ in range(2):  # the second waits for its turn, for as long as a greeting may take
            sock = stack.enter_context(socket.create_connection((host, int(port))))
            sock.sendall(b"no greeting" * 10)
            time.sleep(1.5)  # the first is gone by then: its end would wake the second
        started = time.monotonic()
        assert listener.stop() is True
        assert time.monotonic() - started < 4


def test_who_had_to_make_room_waits_for_its_turn_no_more(tmp_path):
    hosts, limits = Hosts.make(tmp_path / "tls"), replace(QUICK, greeting_s=300.0, n_failures=1, n_greeting_of_one=2)
    with hosts.listening({}, {"source": {}}, limits=limits) as listener, contextlib.ExitStack() as stack:
        listener._admission = Admission(limits, itertools.count(1.0).__next__)  # each is a second older than the next
        listener._admission.failed("127.0.0.1")
        host, port = listener.address.rsplit(":", 1)
        socks = [stack.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(8)]
        for sock in socks[:-2]:
            assert sock.recv(1) == b""
        wait_for(lambda: listener._n_threads == 2, "the end of those who were sent away")


def test_the_eleventh_failure_of_a_minute_waits():
    door = Door()
    for _ in range(9):
        door.admission.failed("10.0.0.1")
        assert door.admission.delay_s("10.0.0.1") == 0
    door.admission.failed("10.0.0.1")
    assert door.admission.delay_s("10.0.0.1") == pytest.approx(6.0)
    assert door.admission.delay_s("10.0.0.2") == 0
    door.now += 6
    assert door.admission.delay_s("10.0.0.1") == pytest.approx(0)
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:2")
    assert address_key("::ffff:10.0.0.1") == "10.0.0.1"


# --- stripes, throttle -----------------------------------------------------------------------------------------------


def striped(n: int, limits=QUICK):
    pairs = [socket.socketpair() for _ in range(n)]
    ends = [[Channel(pair[i], limits, "the other side") for pair in pairs] for i in (0, 1)]
    nothing = Throttle()
    return Outgoing(ends[0], limits, nothing), Incoming(ends[1], limits, nothing)


def one_by_one(into: Incoming, rng):
    """What comes, by a buffer of some length at a time."""
    room = memoryview(bytearray(700_001))
    while n := into.readinto(room[: int(rng.integers(1, len(room)))]):
        yield room[:n]


def several_at_once(into: Incoming, rng):
    """What comes, by several buffers at a time, some of no length, of a block or of more than a piece."""
    is_over = False
    while not is_over:
        buffers = [memoryview(bytearray(int(n))) for n in rng.choice([0, 1, 100, 4096, 300_000], 9)]
        n_bytes = into.read_into(buffers)
        is_over = n_bytes < sum(map(len, buffers))
        yield b"".join(buffers)[:n_bytes]


@pytest.mark.parametrize("n_connections", [1, 2, 5])
@pytest.mark.parametrize("reading", [one_by_one, several_at_once])
def test_a_stream_over_stripes_comes_in_order(n_connections, reading, rng):
    data = rng.bytes(9_000_000)
    out, into = striped(n_connections)
    cuts = sorted({0, len(data), *rng.integers(0, len(data), 40).tolist()})

    def write() -> None:
        for start, stop in itertools.pairwise(cuts):
            out.write(data[start:stop])
        out.finish()

    thread = threading.Thread(target=write)
    thread.start()
    found = b"".join(bytes(part) for part in reading(into, rng))
    thread.join()
    into.settle()
    assert found == data
    out.close()
    into.close()
    assert threads_left() == []


@pytest.mark.parametrize(
    "messages",
    [
        [(Kind.PIECE, 0, b"a"), (Kind.PIECE, 0, b"b")],
        [(Kind.PIECE, 1, b"a"), (Kind.PIECE, 0, b"b")],
        [(Kind.PIECE, 0, b"")],
        [(Kind.PIECE, 0, b"a"), (Kind.END, 0, b"")],
        [(Kind.REQUEST, 0, b"{}")],
        [(Kind.PIECE, 0, b"a"), None],
        [None],
    ],
)
def test_pieces_out_of_order_end_the_transfer(messages):
    """None: the connection ends there."""
    one, other = socket.socketpair()
    into = Incoming([Channel(one, QUICK, "the other side")], QUICK, Throttle())
    for message in messages:
        if message is not None:
            kind, sequence, body = message
            other.sendall(encode_head(kind, body, sequence, whole=True) + body)
    if messages[-1] is None:
        other.close()
    with pytest.raises(ConnectionLostError):
        list(iter(lambda: into.readinto(memoryview(bytearray(1))), 0))
    into.close()
    other.close()


def test_a_piece_far_ahead_waits_on_its_connection():
    """Of what comes ahead of what is due no more than a head is taken."""
    pairs = [socket.socketpair() for _ in range(2)]
    channels = [Channel(pair[0], QUICK, "the other side") for pair in pairs]
    into = Incoming(channels, QUICK, Throttle())
    ahead = b"".join(encode_head(Kind.PIECE, b"x" * 100, s, whole=True) + b"x" * 100 for s in range(1, 40))
    pairs[0][1].sendall(ahead + encode_head(Kind.END, b"", 40, whole=True))
    found = bytearray()

    def read() -> None:
        room = memoryview(bytearray(64))
        while n := into.readinto(room):
            found.extend(room[:n])

    reader = threading.Thread(target=read)
    reader.start()
    time.sleep(0.05)
    assert (bytes(found), channels[0].n_received) == (b"", HEAD_BYTES)
    pairs[1][1].sendall(
        encode_head(Kind.PIECE, b"y", 0, whole=True) + b"y" + encode_head(Kind.END, b"", 40, whole=True)
    )
    reader.join()
    assert bytes(found) == b"y" + b"x" * 3900
    into.close()
    for pair in pairs:
        pair[1].close()


def messages_in(data: bytes) -> list[tuple[Kind, int]]:
    """Kinds and numbers of the messages that a connection has brought."""
    found, at = [], 0
    while at < len(data):
        head = Head.decode(data[at : at + HEAD_BYTES])
        head.require_whole(data[at : at + HEAD_BYTES], [data[at + HEAD_BYTES : at + HEAD_BYTES + head.n_bytes]])
        found.append((head.kind, head.sequence))
        at += HEAD_BYTES + head.n_bytes
    assert at == len(data)
    return found


def test_what_came_before_a_connection_was_lost_counts():
    pairs = [socket.socketpair() for _ in range(2)]
    into = Incoming([Channel(pair[0], QUICK, "the other side") for pair in pairs], QUICK, Throttle())
    pairs[0][1].close()
    pairs[1][1].sendall(b"".join(encode_head(Kind.PIECE, b"x", s, whole=True) + b"x" for s in range(3)))
    room = memoryview(bytearray(8))
    assert [into.readinto(room) for _ in range(3)] == [1, 1, 1]
    for _ in range(2):
        with pytest.raises(ConnectionLostError, match="before the end"):
            into.readinto(room)
    into.close()
    pairs[1][1].close()


def test_a_piece_in_several_buffers_is_held_against_its_checksum():
    body = b"x" * 5000
    for at in (0, 4095, 4096, 4999):
        one, other = socket.socketpair()
        into = Incoming([Channel(one, QUICK, "the other side")], QUICK, Throttle())
        changed = bytearray(body)
        changed[at] ^= 1
        other.sendall(encode_head(Kind.PIECE, body, 0, whole=True) + changed)
        with pytest.raises(ConnectionLostError, match="checksum"):
            into.read_into([memoryview(bytearray(4096)), memoryview(bytearray(904))])
        into.close()
        other.close()


def test_a_piece_that_is_left_out_ends_the_transfer():
    pairs = [socket.socketpair() for _ in range(2)]
    into = Incoming([Channel(pair[0], QUICK, "the other side") for pair in pairs], QUICK, Throttle())
    for number, pair in enumerate(pairs):
        pair[1].sendall(encode_head(Kind.PIECE, b"x", number + 1, whole=True) + b"x")
    with pytest.raises(ConnectionLostError, match="leaves out a piece"):
        into.readinto(memoryview(bytearray(1)))
    into.close()
    for pair in pairs:
        pair[1].close()


def test_who_has_nothing_to_send_says_that_it_lives_on_every_connection():
    pairs = [socket.socketpair() for _ in range(3)]
    limits = replace(QUICK, alive_s=0.05)
    out = Outgoing([Channel(pair[0], limits, "the other side") for pair in pairs], limits, Throttle())
    out.write(b"x" * 60_000)
    time.sleep(0.5)
    out.write(b"y" * 60_000)
    out.finish()
    out.close()
    found = [messages_in(b"".join(iter(lambda one=pair[1]: one.recv(1 << 20), b""))) for pair in pairs]
    for messages in found:
        assert (messages[-1], (Kind.ALIVE, 0) in messages) == ((Kind.END, 2), True)
    assert sorted(n for messages in found for kind, n in messages if kind is Kind.PIECE) == [0, 1]
    for pair in pairs:
        pair[1].close()


def test_nobody_says_that_it_lives_while_pieces_go(rng):
    pairs = [socket.socketpair() for _ in range(4)]
    came: list[bytes] = [b""] * len(pairs)

    def take(number: int) -> None:
        while part := pairs[number][1].recv(1 << 20):
            came[number] += part

    takers = [threading.Thread(target=take, args=(number,)) for number in range(len(pairs))]
    for taker in takers:
        taker.start()
    out = Outgoing([Channel(pair[0], QUICK, "the other side") for pair in pairs], QUICK, Throttle())
    for _ in range(40):
        out.write(rng.bytes(60_000))
    out.finish()
    out.close()
    for taker in takers:
        taker.join()
    kinds = [kind for data in came for kind, _ in messages_in(data)]
    assert (kinds.count(Kind.PIECE), kinds.count(Kind.END)) == (40, 4)
    assert len(kinds) == kinds.count(Kind.PIECE) + 4
    for pair in pairs:
        pair[1].close()


def test_two_connections_with_one_number_end_the_transfer():
    pairs = [socket.socketpair() for _ in range(2)]
    into = Incoming([Channel(pair[0], QUICK, "the other side") for pair in pairs], QUICK, Throttle())
    for pair in pairs:
        pair[1].sendall(encode_head(Kind.PIECE, b"x", 30, whole=True) + b"x")  # both wait for room
    with pytest.raises(ConnectionLostError, match="that another connection has"):
        into.readinto(memoryview(bytearray(1)))
    into.close()
    for pair in pairs:
        pair[1].close()


def test_a_throttle_keeps_its_rate_whatever_the_pieces(rng):
    now = [0.0]
    throttle, sent = Throttle(lambda: 1e6, lambda: now[0]), 0
    while now[0] < 100:
        n_bytes = int(rng.integers(1, 1 << 20))
        sent += n_bytes
        now[0] += throttle.due_s(n_bytes)
    assert 1e6 * 99 < sent < 1e6 * 102
    assert throttle.piece_bytes(1 << 20) == 250_000
    slow = Throttle(lambda: 1.0, lambda: now[0])
    assert slow.due_s(LEAST_RATE) <= 1.0


def test_what_was_begun_at_a_high_rate_is_not_paid_for_at_a_low_one():
    now, rate = [0.0], [None]
    throttle = Throttle(lambda: rate[0], lambda: now[0])
    assert throttle.due_s(1 << 20) == 0
    for fallen in (1e8, 1e6, float(LEAST_RATE)):
        now[0], rate[0] = now[0] + 2, fallen
        assert throttle.due_s(1 << 20) <= 0.25
    assert throttle.due_s(LEAST_RATE) <= 1.25


def test_a_schedule_follows_the_day():
    schedule = Schedule.parse("08:00-18:00=10MiB, 22:00-06:00=full, 50MiB")
    minutes = {0: None, 6 * 60 - 1: None, 6 * 60: 50, 8 * 60: 10, 18 * 60 - 1: 10, 18 * 60: 50, 22 * 60: None}
    assert {
        minute: (rate or 0) // (1 << 20) or None for minute in minutes if (rate := schedule.at(minute)) or True
    } == minutes
    assert Schedule.parse("full").at(5) is None
    assert Schedule.parse("00:00-24:00=1MiB").at(1439) == 1 << 20
    for text in ("08:00-18:00=1", "25:00-26:00=1MiB", "1MiB, 2MiB", "08:61-09:00=1MiB", "x"):
        with pytest.raises(UsageError):
            Schedule.parse(text)


def test_a_push_that_is_throttled_takes_its_time(side):
    top = side.change(100)
    found = side.push(top, side.peer(rate=lambda: 200_000.0))
    assert found.seconds > (found.n_bytes - 100_000) / 200_000
    side.require_done(top)


def test_numbers_of_progress_never_fall(side):
    top, seen = side.change(1500), []
    image = image_towards(side.source, top, side.peer().standing())
    with Link(side.listener.address, Cut(3 << 20, "up", "reset")) as link:
        side.peer(link.address).take(image, LocalChanges.REFUSE, lambda event: seen.append(event))
    assert {event.phase for event in seen} >= {"blocks"}
    assert all(np.diff([event.seconds for event in seen]) >= 0)
