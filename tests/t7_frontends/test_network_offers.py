"""Pulls by replicas that share no snapshot with their source: they offer what they have, and what differs comes."""

from __future__ import annotations

import contextlib
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks import aligned_buffer
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.image.extents import numbers_in
from blockplane.image.image import build
from blockplane.model.errors import (
    BlockplaneError,
    ChecksumError,
    ConnectionLostError,
    NetworkError,
    RefusedError,
    StreamDamagedError,
    StreamTruncatedError,
)
from blockplane.model.progress import ignore_progress
from blockplane.planes import Plane, combine
from blockplane.server.network import Event, Limits, Listener, RemotePeer, Rights, offering, remote, serving
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import Kind, WireError, encode_head
from blockplane.server.network.spoken import error_said
from blockplane.server.network.striped import Incoming, Outgoing
from blockplane.server.network.throttle import Throttle
from blockplane.transfer.against import Lent
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import drop_incoming, interrupted_receives, resume_token
from blockplane.transfer.standing import standing_of
from blockplane.volume import Volume
from blockplane.volume.check import check
from blockplane.volume.holds import all_of, release
from blockplane.volume.replicas import records_of
from equality import differences, volume_tree
from rig.network import QUICK, Cut, Hosts, Link, threads_left
from rig.owners import wait_for
from streams.volumes import Files, contents, fresh

MIB = 1 << 20
#: Of files of the source, and what a change rewrites of that.
N_BLOCKS, N_CHANGED = 5000, 400


@dataclass
class Estranged:
    """`source` behind a listener has s2, and `replica` has s1, of which the source knows nothing any more."""

    hosts: Hosts
    source: Volume
    replica: Volume
    files: Files
    listener: Listener
    told: list[Event] = field(default_factory=list)
    limits: Limits = QUICK

    def peer(self, address: str | None = None, **more) -> RemotePeer:
        return self.hosts.peer(address or self.listener.address, **{"limits": self.limits, **more})

    def change(self, name: str, n_blocks: int = N_CHANGED, start: int = 0) -> None:
        """Rewrite blocks of the source, and let nothing stay but a snapshot of that."""
        with self.source.lock:  # the session of a pull that is done here may note that still
            self.files.write(1, start, n_blocks)
            self.source.snapshot(name)
        for known in records_of(self.source):
            self.source.forget_replica(known.name)
        for snapshot in list(self.source.snapshots):
            if snapshot.name != name:
                self.source.delete_snapshot(snapshot.name)

    def holds(self) -> list[str]:
        return [hold.owner for snapshot in self.replica.snapshots for hold in all_of(self.replica, snapshot.record.id)]

    def failures(self) -> list[str]:
        """What the listener's side said of transfers that failed."""
        return [event.text for event in self.told if event.what == "failed"]

    def require_same(self, top: str = "s2") -> None:
        mine = contents(self.source.get_snapshot(top).state)
        assert contents(self.replica.get_snapshot(top).state) == mine == contents(self.replica.active)
        assert check(self.replica).problems == check(self.source).problems == []
        assert list(interrupted_receives(self.replica)) == []
        self.require_at_rest()

    def require_at_rest(self) -> None:
        """Nobody waits, reads or holds for a pull any more."""
        self.listener.stop()
        assert threads_left() == []
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("blockplane digests")]
        assert self.replica.pins.all() == self.source.pins.all() == []
        assert self.holds() == []

    def require_as_it_was(self, before: dict) -> None:
        assert contents(self.replica.active) == before == contents(self.replica.get_snapshot("s1").state)
        assert [snapshot.name for snapshot in self.replica.snapshots] == ["s1"]
        assert list(interrupted_receives(self.replica)) == []
        assert check(self.replica).problems == check(self.source).problems == []
        self.require_at_rest()


@contextlib.contextmanager
def estranged(
    path: Path,
    rng: np.random.Generator,
    limits: Limits = QUICK,
    n_changed: int = N_CHANGED,
    parity: int = 1,
    size: str = "24M",
    **more,
) -> Iterator[Estranged]:
    hosts, told = Hosts.make(path / "tls"), []
    with (
        fresh(path / "source", size=size) as source,
        fresh(path / "replica", disks=3, size="48M", parity=parity) as replica,
    ):
        files = Files(source, rng)
        files.write(1, 0, N_BLOCKS)
        source.snapshot("s1")
        VolumePeer(source).bring("s1", replica, LocalChanges.REFUSE)
        rights = {"source": {"pool": ["read"]}}
        with hosts.listening({"pool": source}, rights, tell=told.append, limits=limits, **more) as listener:
            side = Estranged(hosts, source, replica, files, listener, told, limits)
            side.change("s2", n_changed)
            yield side


@pytest.fixture
def side(tmp_path, rng):
    with estranged(tmp_path, rng) as found:
        yield found


def n_image(side, top: str = "s2") -> int:
    return build(side.source, top).n_blocks


# --- what differs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", LocalChanges)
def test_only_what_differs_comes(side, changes):
    seen = []
    with Link(side.listener.address) as link:
        found = side.peer(link.address).bring("s2", side.replica, changes, seen.append)
        assert link.n_bytes["down"] < 4 * MIB < n_image(side) * 4096 // 4
        assert 8 * N_BLOCKS < link.n_bytes["up"] < 12 * N_BLOCKS
    assert (found.base, found.already_there, found.kept) == (None, False, None)
    assert N_CHANGED <= found.n_blocks < 2 * N_CHANGED
    assert found.n_bytes == found.n_blocks * 4096
    phases = [phase for phase, _ in itertools.groupby(event.phase for event in seen)]
    assert phases[:2] == ["offer", "blocks"]
    assert [event.done_bytes for event in seen if event.phase == "offer"][-1] > N_BLOCKS * 4096
    assert [snapshot.name for snapshot in side.replica.snapshots] == ["s1", "s2"]
    side.require_same()


def test_a_pull_takes_the_pointer_along(side):
    side.source.snapshot("s3")
    side.source.make_master("s3")
    report = pull(side.peer(), side.replica)
    assert (report.top, report.brought.n_blocks < 2 * N_CHANGED, report.moved) == ("s3", True, ("master",))
    assert report.left == "s1"  # of which the source knows nothing any more
    side.replica.release_snapshot("s1", "left-behind")
    side.require_same("s3")


@pytest.mark.parametrize("changes", LocalChanges)
def test_what_was_written_to_the_replica(side, changes):
    own = Files(side.replica, side.files.rng)
    own.reload()
    own.write(5, 0, 9)
    side.replica.commit()
    mine = contents(side.replica.active)
    if changes is LocalChanges.REFUSE:
        with pytest.raises(RefusedError, match="has content"), Link(side.listener.address) as link:
            side.peer(link.address, patience_s=0).bring("s2", side.replica, changes)
        assert link.n_bytes["up"] < 8 * N_BLOCKS, "it offers what would not be taken"
        assert contents(side.replica.active) == mine
        side.require_at_rest()
        return
    found = side.peer().bring("s2", side.replica, changes)
    assert found.n_blocks < 2 * N_CHANGED
    if changes is LocalChanges.KEEP:
        assert contents(side.replica.get_snapshot(found.kept).state) == mine
    side.require_same()


def test_the_newest_snapshot_is_offered_and_none_that_is_small(side, monkeypatch):
    asked, send_offer = [], remote.send_offer
    monkeypatch.setattr(remote, "send_offer", lambda *rest: (asked.append(rest[1].record.name), send_offer(*rest)))
    own = Files(side.replica, side.files.rng)
    own.reload()
    own.punch(1, 500, N_BLOCKS)
    side.replica.snapshot("small")
    assert side.replica.get_snapshot("small").record.n_blocks * 8 < n_image(side)
    assert side.peer().bring("s2", side.replica, LocalChanges.FLUSH).n_blocks == n_image(side)
    assert asked == []
    side.change("s3")
    side.replica.delete_snapshot("small", "s2")
    assert side.peer().bring("s3", side.replica, LocalChanges.FLUSH).n_blocks < n_image(side, "s3") // 2
    assert asked == ["s1"]
    side.require_same("s3")


def test_nothing_takes_what_is_offered_away_meanwhile(side, monkeypatch):
    made_ready, refused = remote.made_ready, []

    def deleting(*rest):
        with pytest.raises(RefusedError, match="is being read") as error:
            side.replica.delete_snapshot("s1")
        refused.append(error)
        return made_ready(*rest)

    monkeypatch.setattr(remote, "made_ready", deleting)
    assert side.peer().bring("s2", side.replica, LocalChanges.FLUSH).n_blocks < 2 * N_CHANGED
    assert len(refused) == 1
    side.require_same()


def test_files_of_a_replica_and_its_source(tmp_path, rng):
    """Whole file systems, by the public calls alone, held against each other."""
    hosts = Hosts.make(tmp_path / "tls")
    with (
        bp.Volume.create(tmp_path / "source", disks=3, size="32M") as source,
        bp.Volume.create(tmp_path / "replica", disks=2, size="64M") as replica,
    ):
        for i in range(12):
            bp.FileSystem(source).write_bytes(f"/f{i}", rng.bytes(MIB))
        source.snapshot("june1")
        bp.copy(source.image("june1"), replica)
        bp.FileSystem(source).write_bytes("/f3", rng.bytes(MIB))
        source.snapshot("june2")
        source.delete_snapshot("june1")
        with hosts.listening({"pool": source}, {"source": {"pool": ["read"]}}) as listener:
            report = bp.replicate(hosts.peer(listener.address), replica, "june2")
        assert report.brought.n_blocks < source.image("june2").n_blocks // 4
        trees = [volume_tree(bp.FileSystem(volume.get_snapshot("june2"))) for volume in (source, replica)]
        assert differences(*trees) == []
        assert bp.check(replica).problems == bp.check(source).problems == []


@pytest.mark.parametrize("old", ["caller", "listener"])
def test_a_release_that_knows_nothing_of_offers_gives_or_gets_all(side, monkeypatch, old):
    if old == "caller":
        monkeypatch.setattr(remote, "CAPABILITY", {})
    else:
        monkeypatch.setattr(serving, "may_be_asked", lambda _: False)
    assert side.peer().bring("s2", side.replica, LocalChanges.FLUSH).n_blocks == n_image(side)
    side.require_same()


def test_another_version_of_offers_is_not_asked_for(side, monkeypatch):
    monkeypatch.setattr(remote, "CAPABILITY", {"offers": 2})
    assert side.peer().bring("s2", side.replica, LocalChanges.FLUSH).n_blocks == n_image(side)


def test_both_ways_are_throttled(tmp_path, rng):
    rate, here = 400_000.0, lambda: 400_000.0
    with estranged(tmp_path, rng, rate=here) as side:
        for name, more in (("s3", {}), ("s4", {"rate": here})):
            side.change(name)
            up_s, down_s = 8 * N_BLOCKS / rate, N_CHANGED * 4096 / rate
            found = side.peer(**more).bring(name, side.replica, LocalChanges.FLUSH)
            assert found.seconds > (up_s + down_s) * 0.8 - 0.5


# --- what is cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "silent"])
@pytest.mark.parametrize("at", [9_000, 25_000, 40_000])
def test_a_cut_in_the_offer(tmp_path, rng, how, at):
    limits = replace(QUICK, idle_s=2.0, least_over_s=2.0)
    with estranged(tmp_path, rng, limits) as side, Link(side.listener.address) as link:
        before = contents(side.replica.active)
        link.cut = Cut(at, "up", how)
        with pytest.raises(ConnectionLostError):
            side.peer(link.address, patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)
        assert link.cut.happened.is_set()
        assert (side.holds(), list(interrupted_receives(side.replica))) == ([], [])
        assert contents(side.replica.active) == before
        link.cut = Cut(link.n_bytes["up"] + at, "up", how)
        assert side.peer(link.address).bring("s2", side.replica, LocalChanges.FLUSH).n_blocks < 2 * N_CHANGED
        assert link.cut.happened.is_set()
        side.require_same()


def test_cut_at_random_bytes(tmp_path, rng):
    """Wherever it is, in either direction: the call goes on by itself, and the result is the source's."""
    limits = replace(QUICK, idle_s=2.0, least_over_s=2.0)
    with estranged(tmp_path, rng, limits) as side:
        for turn, direction in enumerate(("up", "down", "up", "down", "up")):
            top, how = f"s{3 + turn}", "silent" if turn % 3 == 2 else "reset"
            side.change(top, start=int(rng.integers(0, N_BLOCKS - N_CHANGED)))
            at = int(rng.integers(1000, {"up": 8 * N_BLOCKS, "down": N_CHANGED * 4096}[direction]))
            with Link(side.listener.address, Cut(at, direction, how)) as link:
                found = side.peer(link.address, patience_s=20).bring(top, side.replica, LocalChanges.FLUSH)
                assert link.cut.happened.is_set()
            assert found.n_blocks < n_image(side, top) // 2
            assert contents(side.replica.active) == contents(side.source.active)
        side.require_same(top)


@pytest.mark.parametrize("at", [5_000, 12_000, 20_000, 30_000, 40_000])
def test_an_offer_that_was_changed_on_the_way_is_made_again(side, at):
    rights = Rights({"@plaintext": {"pool": ["read"]}})
    with (
        Listener("127.0.0.1:0", {"pool": side.source}, rights, None, limits=QUICK) as listener,
        Link(listener.address, Cut(at, "up", "flip")) as link,
    ):
        peer = RemotePeer(link.address, "pool", None, limits=QUICK, patience_s=20)
        assert peer.bring("s2", side.replica, LocalChanges.FLUSH).n_blocks < 2 * N_CHANGED
        assert link.cut.happened.is_set()
    side.require_same()


def cut_in_the_stream(side) -> int:
    """Have a pull be cut when much of it came; return how many blocks are left to come."""
    with Link(side.listener.address, Cut(9 * MIB, "down", "reset")) as link, pytest.raises(ConnectionLostError):
        side.peer(link.address, patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)
    assert link.cut.happened.is_set()
    assert [owner[:11] for owner in side.holds()] == ["receive:s2:"]
    with pytest.raises(RefusedError, match=r"is held by receive:s2:.* until"):
        side.replica.delete_snapshot("s1")
    token = resume_token(side.replica)
    assert token.wanted is not None
    assert 0 < token.n_left < token.n_image < n_image(side)
    return token.n_left


@pytest.fixture
def far_apart(tmp_path, rng):
    """Three fifths of it differ, and come slowly enough to be read when a cut destroys what connections hold."""
    with estranged(tmp_path, rng, n_changed=3000, rate=lambda: 8e6) as found:
        yield found


def test_a_cut_in_the_stream_goes_on_without_another_offer(far_apart):
    side = far_apart
    n_left = cut_in_the_stream(side)
    with Link(side.listener.address) as link:
        found = side.peer(link.address).bring("s2", side.replica, LocalChanges.FLUSH)
        assert link.n_bytes["up"] < 8 * N_BLOCKS
    assert found.n_blocks == n_left
    side.require_same()


def test_a_pull_that_is_cut_goes_on_by_itself(far_apart):
    side = far_apart
    with Link(side.listener.address, Cut(9 * MIB, "down", "reset")) as link:
        found = side.peer(link.address).bring("s2", side.replica, LocalChanges.FLUSH)
        assert link.cut.happened.is_set()
    assert 3000 <= found.n_blocks < n_image(side) * 4 // 5
    side.require_same()


def test_after_a_cut_in_the_stream_comes_another_top(far_apart):
    side = far_apart
    cut_in_the_stream(side)
    side.change("s3", 100)
    found = pull(side.peer(), side.replica, "s3", LocalChanges.FLUSH).brought
    assert found.n_blocks < n_image(side, "s3") * 4 // 5
    side.require_same("s3")


def test_after_a_cut_in_the_stream_the_lender_goes(far_apart):
    """Nothing can complete what came: it is given up, and the pull begins anew."""
    side = far_apart
    cut_in_the_stream(side)
    side.replica.rollback("s1", drop_changes=True)
    release(side.replica, "s1", *side.holds())
    side.replica.delete_snapshot("s1")
    assert side.peer().bring("s2", side.replica, LocalChanges.FLUSH).n_blocks == n_image(side)
    side.require_same()


def test_a_pull_that_was_cut_is_given_up_with_its_hold(far_apart):
    side = far_apart
    cut_in_the_stream(side)
    drop_incoming(side.replica)
    side.require_at_rest()
    assert list(interrupted_receives(side.replica)) == []


def test_what_began_without_an_offer_goes_on_without(far_apart, monkeypatch):
    side = far_apart
    monkeypatch.setattr(remote, "CAPABILITY", {})
    with Link(side.listener.address, Cut(17 * MIB, "down", "reset")) as link, pytest.raises(ConnectionLostError):
        side.peer(link.address, patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)
    monkeypatch.undo()
    token = resume_token(side.replica)
    assert token.wanted is None
    with Link(side.listener.address) as link:
        found = side.peer(link.address).bring("s2", side.replica, LocalChanges.FLUSH)
        assert link.n_bytes["up"] < 8 * N_BLOCKS + 4000 * 8
    assert found.n_blocks == token.n_left
    side.require_same()


def test_what_began_without_an_offer_and_is_not_told_of_comes_whole(far_apart, monkeypatch):
    """A stream that was sent against an offer would not fit what is there."""
    side = far_apart
    monkeypatch.setattr(remote, "CAPABILITY", {})
    with Link(side.listener.address, Cut(17 * MIB, "down", "reset")) as link, pytest.raises(ConnectionLostError):
        side.peer(link.address, patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)
    monkeypatch.undo()
    forgetful = side.peer(limits=replace(side.limits, token_bytes=1))
    assert forgetful.bring("s2", side.replica, LocalChanges.FLUSH).n_blocks == n_image(side)
    side.require_same()


# --- what takes long -------------------------------------------------------------------------------------------------

SHORT = replace(QUICK, idle_s=1.0, least_over_s=1.0, alive_s=0.1)


def test_either_side_may_read_for_long(tmp_path, rng, monkeypatch):
    digests_of, compare = offering.offer, offering.compare_offer
    waited = []

    def slow(wait_s: float) -> None:
        waited.append(wait_s)
        time.sleep(wait_s)

    monkeypatch.setattr(offering, "offer", lambda *rest, **more: (slow(2.5), digests_of(*rest, **more)))
    monkeypatch.setattr(offering, "compare_offer", lambda *r, **m: (compare(*r, **m), slow(2.5))[0])
    with estranged(tmp_path, rng, SHORT) as side:
        assert side.peer(patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH).n_blocks < 2 * N_CHANGED
        assert waited == [2.5, 2.5]
        side.require_same()


@pytest.mark.parametrize(("n_said", "pause_s"), [(1, 0.1), (500, 0.0)], ids=["now and then", "without pause"])
def test_who_takes_nothing_for_long_is_believed_to_be_at_work_where_it_says_so(n_said, pause_s):
    """More is offered than connections hold, to one who compares; `silent_s` bounds it."""
    pairs = [socket.socketpair() for _ in range(2)]
    near, far = [Channel(pair[0], SHORT, "the other side") for pair in pairs], [pair[1] for pair in pairs]
    limits, said = replace(SHORT, silent_s=4.0), threading.Event()

    def beat() -> None:
        with contextlib.suppress(OSError):
            while not said.wait(pause_s):
                far[0].sendall(encode_head(Kind.ALIVE, b"", whole=True) * n_said)

    thread = threading.Thread(target=beat)
    thread.start()
    started = time.monotonic()
    outgoing = Outgoing(near[1:], limits, Throttle(), offering._Hearing(near[0], limits).is_at_work)
    try:
        with contextlib.closing(outgoing), pytest.raises(ConnectionLostError):
            outgoing.write(bytes(8 * MIB))
        assert 2.5 < time.monotonic() - started < 20
    finally:
        said.set()
        near[0].abort()
        thread.join()
        for end in (*near, *far):
            end.close()


@pytest.mark.parametrize(
    ("kind", "said", "error"),
    [
        (Kind.FAILED, error_said(RefusedError("it was broken off")), RefusedError),
        (Kind.ANSWER, {}, ConnectionLostError),
    ],
)
def test_what_is_said_to_who_cannot_go_on_is_heard(side, monkeypatch, kind, said, error):
    """The other side takes nothing of an offer that is longer than connections hold."""
    pairs = [socket.socketpair() for _ in range(2)]
    near, far = ([Channel(pair[i], SHORT, "the other side") for pair in pairs] for i in (0, 1))
    monkeypatch.setattr(offering, "offer", lambda _volume, sink, *_, **__: sink.write(bytes(8 * MIB)))
    asked = offering.Asked(side.replica.get_snapshot("s1").record, 1 << 40)
    far[0].tell(kind, said)
    with pytest.raises(error):
        offering.send_offer(side.replica, asked, near[1:], near[0], SHORT, Throttle(), ignore_progress)
    assert not [thread for thread in threading.enumerate() if thread.name == "blockplane sends"]
    for channel in (*near, *far):
        channel.close()


# --- hostile offers --------------------------------------------------------------------------------------------------


def honest(volume, name: str = "s1") -> bytes:
    sink = io.BytesIO()
    bp.offer(volume, sink, name, hold_s=None)
    return sink.getvalue()


def of_another_volume(side, path) -> bytes:
    with fresh(path / "foreign") as foreign:
        Files(foreign, side.files.rng).write(1, 0, 50)
        foreign.snapshot("s1")
        return honest(foreign)


def of_another_snapshot(side, path) -> bytes:
    side.replica.snapshot("s1b")
    try:
        return honest(side.replica, "s1b")
    finally:
        side.replica.delete_snapshot("s1b")


def flipped(data: bytes) -> bytes:
    return data[:-60] + bytes([data[-60] ^ 1]) + data[-59:]


def without_end() -> Iterator[bytes]:
    return itertools.repeat(bytes(MIB))


HOSTILE = {
    "garbage": (lambda side, path: [b"notes of my own" * 100], NetworkError, "not an offer"),
    "nothing": (lambda side, path: [], StreamTruncatedError, "ends after 0 bytes"),
    "cut off": (lambda side, path: [honest(side.replica)[:-60]], StreamTruncatedError, "ends after"),
    "damaged": (lambda side, path: [flipped(honest(side.replica))], StreamDamagedError, "checksum"),
    "too long": (lambda side, path: [honest(side.replica), b"x"], StreamDamagedError, "goes on after its end"),
    "endless": (
        lambda side, path: itertools.chain([honest(side.replica)], without_end()),
        StreamDamagedError,
        "goes on after its end",
    ),
    "endless garbage": (lambda side, path: without_end(), NetworkError, "not an offer"),
    "another volume": (lambda side, path: [of_another_volume(side, path)], RefusedError, "of another volume"),
    "another snapshot": (lambda side, path: [of_another_snapshot(side, path)], RefusedError, "not asked for"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_offer_ends_with_one_error(side, tmp_path, monkeypatch, what):
    made, kind, text = HOSTILE[what]
    before, parts = contents(side.replica.active), made(side, tmp_path)

    def hostile(volume, sink, *_, **__) -> None:
        for part in parts:
            sink.write(part)

    monkeypatch.setattr(offering, "offer", hostile)
    with pytest.raises(kind, match=text):
        side.peer(patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)
    wait_for(side.failures, "the end of the session")
    (failure,) = side.failures()
    assert text.split()[-1] in failure
    side.require_as_it_was(before)


def test_an_offer_of_more_numbers_than_there_can_be(side, monkeypatch):
    before = contents(side.replica.active)
    monkeypatch.setattr(offering, "most_blocks_for", lambda _: 100)
    monkeypatch.setattr(Volume, "get_snapshot", lambda *_: type("Small", (), {"state": side.replica.active}))
    monkeypatch.setattr(type(side.replica.active), "space_blocks", 99)
    with pytest.raises(NetworkError, match="block numbers, more than 100"):
        side.peer(patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)
    monkeypatch.undo()
    side.require_as_it_was(before)


def test_who_only_says_that_it_is_at_work_is_not_waited_for_for_ever(tmp_path, rng, monkeypatch):
    limits, ended = replace(SHORT, silent_s=2.0), threading.Event()
    monkeypatch.setattr(offering, "offer", lambda *_, **__: ended.wait(30))
    with estranged(tmp_path, rng, limits) as side:
        before = contents(side.replica.active)
        thread = threading.Thread(target=_quietly, args=(side,))
        thread.start()
        wait_for(side.failures, "the end of the session")
        assert "only 0 bytes moved" in side.failures()[0]
        ended.set()
        thread.join()
        side.require_as_it_was(before)


def _quietly(side) -> None:
    with contextlib.suppress(BlockplaneError):
        side.peer(patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH)


def test_an_offer_that_claims_what_is_not_there(tmp_path, rng, monkeypatch):
    """It lends what differs: the replica finds out before anything of it is to be seen."""
    compare, lies = offering.compare_offer, []
    with estranged(tmp_path, rng, size="7M") as side:  # numbers are soon used again
        before, tops = contents(side.replica.active), (f"s{n}" for n in range(3, 12))

        def in_both(image) -> Plane:
            return combine([image.plane], within=build(side.replica, "s1").plane)

        def claimed(image, *rest, **more):
            lent = compare(image, *rest, **more)
            lies.append(len(in_both(image)) - len(lent.plane))
            return replace(lent, plane=in_both(image))

        side.change(top := next(tops))
        while len(in_both(build(side.source, top))) < N_BLOCKS - N_CHANGED + 100:
            side.change(top := next(tops))
        monkeypatch.setattr(offering, "compare_offer", claimed)
        with pytest.raises(StreamDamagedError, match="takes blocks from snapshot s1 that it does not have"):
            side.peer(patience_s=0).bring(top, side.replica, LocalChanges.FLUSH)
        assert lies[0] > 100
        side.require_as_it_was(before)


def test_what_lends_nothing_gets_all(side, monkeypatch):
    def nothing(image, *rest, **more):
        return Lent(compare(image, *rest, **more).record, Plane.empty(image.space_blocks))

    compare = offering.compare_offer
    monkeypatch.setattr(offering, "compare_offer", nothing)
    assert side.peer().bring("s2", side.replica, LocalChanges.REFUSE).n_blocks == n_image(side)
    side.require_same()


def test_what_is_asked_for_is_the_newest_that_was_told_of(side):
    side.replica.snapshot("newer")
    standing = standing_of(side.replica)
    old, new = standing.snapshots
    assert offering.asked_for({}, standing) is None
    assert offering.asked_for(offering.Asked(new, 7).said, standing) == offering.Asked(new, 7)
    for said in (offering.Asked(old, 7).said, {"offer": "ab" * 16, "offer_blocks": 7}, {"offer": new.id.hex()}):
        with pytest.raises(WireError):
            offering.asked_for(said, standing)


def test_a_replica_that_cannot_read_what_it_has_gets_all(tmp_path, rng):
    with estranged(tmp_path, rng, parity=0) as side:
        state = side.replica.get_snapshot("s1").state
        vbn = int(numbers_in(build(side.replica, "s1").plane.extents())[700])
        place = int(state.placemap.to_places(np.array([vbn]))[0])
        disk, dbn = side.replica.geometry.locate(place, place + 1)
        side.replica.array.write_raw([(disk, dbn + HEAD_BLOCKS)], aligned_buffer(4096))
        with pytest.raises(ChecksumError):
            honest(side.replica)
        assert side.peer(patience_s=0).bring("s2", side.replica, LocalChanges.FLUSH).n_blocks == n_image(side)
        assert contents(side.replica.active) == contents(side.source.active)
        side.require_at_rest()


def test_connections_turn_round():
    """What was sent one way is heard to its end, and the same connections bring what comes the other way."""
    pairs = [socket.socketpair() for _ in range(3)]
    near, far = ([Channel(pair[i], QUICK, "the other side") for pair in pairs] for i in (0, 1))
    for one, other in ((near, far), (far, near)):
        outgoing, incoming = Outgoing(one, QUICK, Throttle()), Incoming(other, QUICK, Throttle())
        outgoing.write(b"x" * 100_000)
        outgoing.finish()
        outgoing.turn()
        assert incoming.read_into([memoryview(bytearray(100_001))]) == 100_000
        incoming.settle()
    assert threads_left() == []
    for channel in (*near, *far):
        channel.close()
