"""Replicas that are not heard of, or only seem not to be; what that may cost, and what it may not."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import blockplane as bp
from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.model.errors import BlockplaneError, NoSpaceError, RefusedError
from blockplane.transfer import mirrors, peer
from blockplane.transfer.lag import replicas
from blockplane.transfer.mirrors.listing import definitions
from blockplane.transfer.peer import VolumePeer, giving
from blockplane.transfer.pull import pull
from blockplane.transfer.standing import standing_of
from blockplane.volume import replicas as known
from blockplane.volume.codec import NO_ID
from blockplane.volume.replicationcodec import FLAG_LOST, ReplicaRecord
from blockplane.volume.retention import Policy
from blockplane.volume.tree import NUMBER_MASK
from rig.masters import kinds, making, master

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400


@pytest.fixture
def make(tmp_path: Path):
    with making(tmp_path) as found:
        yield found


@pytest.fixture
def clock(monkeypatch):
    """Sets the wall's clock to so many seconds from now."""
    real, ahead = time.time_ns, [0]
    monkeypatch.setattr(time, "time_ns", lambda: real() + ahead[0])

    def set_to(seconds: float) -> None:
        ahead[0] = round(seconds * 1e9)

    return set_to


def statuses(volume: bp.Volume) -> dict[str, str]:
    return {replica.name: replica.status for replica in replicas(volume)}


def owners(volume: bp.Volume) -> list[str]:
    return [hold.owner for hold in volume.local.holds()]


def test_who_is_put_back_further_down_stands_where_it_goes_on(make, rng, clock, tmp_path):
    """Its consistency points count from an earlier one again, and those above it hear of it at second hand."""
    source, middle, leaf = make("source"), make("middle"), make("leaf")

    def flow(number: int, leaf: bp.Volume) -> None:
        clock(number * 200)
        master(source, f"m{number}", rng.bytes(9000))
        pull(VolumePeer(source), middle)
        pull(VolumePeer(middle), leaf)
        clock(number * 200 + 100)
        pull(VolumePeer(source), middle)  # positions travel up with it
        assert {replica.name: replica.newest for replica in replicas(source)}["leaf"] == f"m{number}"

    flow(1, leaf)
    leaf.close()
    shutil.copytree(leaf.path, tmp_path / "backup")
    with bp.Volume.open(leaf.path) as again:
        for number in range(2, 8):
            flow(number, again)
    shutil.rmtree(leaf.path)
    (tmp_path / "backup").rename(leaf.path)
    with bp.Volume.open(leaf.path) as again:
        flow(8, again)


def test_only_the_master_at_which_a_lost_replica_stands_becomes_a_shadow(make, rng, clock):
    source, near, far = make("source"), make("near"), make("far")
    for n in range(1, 5):
        master(source, f"m{n}", rng.bytes(9000))
        pull(VolumePeer(source), near)
        if n < 3:
            pull(VolumePeer(source), far)
    source.set_replica_limit(HOUR)
    for n in range(5, 8):
        clock((n - 4) * 2 * HOUR)
        master(source, f"m{n}", rng.bytes(9000))
        pull(VolumePeer(source), near)
        source.expire_replicas()
    assert statuses(source) == {"near": "idle", "far": "lost"}
    assert {name for name, kind in kinds(source).items() if kind == "shadow"} == {"m2"}
    source.delete_snapshot("m2")
    assert source.expire_replicas() == []  # it stands nowhere, and needs nothing
    assert source.prune(Policy(last=1)).deleted == ["m6", "m5", "m4", "m3", "m1"]
    assert pull(VolumePeer(source), far).top == "m7"


def test_who_called_once_and_got_nothing_costs_no_master(make, rng, clock):
    source, near, once = make("source"), make("near"), make("once")
    source.set_replica_limit(7 * DAY)
    master(source, "d0", b"x")
    pull(VolumePeer(source), near)

    def cut(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(VolumePeer(source), once, progress=cut)
    for day in range(1, 13):
        clock(day * DAY)
        master(source, f"d{day}", rng.bytes(9000))
        pull(VolumePeer(source), near)
        source.expire_replicas()
    assert statuses(source) == {"near": "idle", "once": "lost"}
    assert set(kinds(source).values()) == {"regular"}


def test_who_was_refused_its_first_state_is_not_known(make, rng, tmp_path):
    source = make("source")
    bp.FileSystem(source).write_bytes("/large", rng.bytes(3 << 20))
    master(source, "m1", rng.bytes(9000))
    for _ in range(2):
        with pytest.raises((NoSpaceError, RefusedError)):
            bp.replicate(VolumePeer(source), tmp_path / "tiny", disks=1, parity=0, size="1MiB")
        assert (replicas(source), owners(source), source.destinations.list()) == ([], [], [])


def test_who_is_being_given_something_is_not_lost_however_long_it_takes(make, rng, clock):
    source, near, far = make("source"), make("near"), make("far")
    master(source, "m1", rng.bytes(9000))
    for replica in (near, far):
        pull(VolumePeer(source), replica)
    master(source, "m2", rng.bytes(9000))
    source.set_replica_limit(HOUR)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(BlockplaneError, match="cut"))
        stack.enter_context(giving(source, "master", standing_of(far)))
        for hours in (2, 4, 6):
            clock(hours * HOUR)
            pull(VolumePeer(source), near)
        assert statuses(source)["far"] == "under way"
        raise BlockplaneError("cut")
    assert source.expire_replicas() == []
    assert statuses(source) == {"near": "idle", "far": "unknown"}
    assert kinds(source) == {"m1": "regular", "m2": "regular"}
    for hours in (8, 9):
        clock(hours * HOUR)
        source.expire_replicas()
    assert statuses(source)["far"] == "lost"


@pytest.mark.parametrize("wrong_s", [30 * DAY, -40 * YEAR])
def test_a_clock_that_is_wrong_for_a_while_costs_nobody_a_base(make, rng, clock, wrong_s):
    source, near, far = make("source"), make("near"), make("far")
    for n in (1, 2, 3):
        master(source, f"m{n}", rng.bytes(9000))
        pull(VolumePeer(source), far)
        if n == 1:
            pull(VolumePeer(source), near)
    source.set_replica_limit(7 * DAY)
    clock(wrong_s)
    for _ in range(2):
        pull(VolumePeer(source), far)
    clock(0)
    for _ in range(2):
        assert source.expire_replicas() == []
        pull(VolumePeer(source), far)
    assert statuses(source) == {"near": "idle", "far": "idle"}
    assert set(kinds(source).values()) == {"regular"}
    assert pull(VolumePeer(source), near).brought.base == "m1"


def test_who_called_while_the_clock_was_ahead_can_be_lost_all_the_same(make, rng, clock):
    source, far = make("source"), make("far")
    master(source, "m1", rng.bytes(9000))
    clock(50 * YEAR)
    pull(VolumePeer(source), far)
    clock(0)
    source.set_replica_limit(HOUR)
    for hours, status in ((0, "idle"), (2, "idle"), (4, "idle"), (5, "lost")):  # found ahead twice, then silent twice
        clock(hours * HOUR)
        source.expire_replicas()
        assert statuses(source) == {"far": status}


def test_one_look_by_a_clock_that_is_behind_costs_nobody_a_base(make, rng, clock):
    source, near = make("source"), make("near")
    for name in ("m1", "m2"):
        master(source, name, rng.bytes(9000))
        if name == "m1":
            pull(VolumePeer(source), near)
    source.set_replica_limit(30 * DAY)
    clock(-50 * YEAR)
    assert source.expire_replicas() == []
    for hours in (0, 25, 50):
        clock(hours * HOUR)
        assert source.expire_replicas() == []
    assert (statuses(source), set(kinds(source).values())) == ({"near": "idle"}, {"regular"})


def test_those_below_one_that_is_given_something_for_long_are_not_lost(make, rng, clock):
    source, middle, leaf = make("source"), make("middle"), make("leaf")
    master(source, "m1", rng.bytes(9000))
    for above, below in ((source, middle), (middle, leaf), (source, middle)):
        pull(VolumePeer(above), below)
    source.set_replica_limit(DAY)
    with giving(source, "m1", standing_of(middle)):
        for days in (2, 3, 4):
            clock(days * DAY)
            source.expire_replicas()
        assert statuses(source)["leaf"] == "idle"
    assert "replica:leaf" in owners(source)


def test_one_that_was_lost_and_is_heard_of_again_is_not_lost_and_can_be_again(make, rng, clock):
    source, near, far = make("source"), make("near"), make("far")
    master(source, "m1", rng.bytes(9000))
    rounds = ((source, near), *[(near, far), (source, near)] * 3)
    for n, (above, below) in enumerate(rounds):  # in the end the source knows far's last generation
        clock(20 * n)
        pull(VolumePeer(above), below)
    assert known.find(source, far.info.volume_id).generation == far.info.generation
    source.set_replica_limit(DAY)
    for days in (2, 3):
        clock(days * DAY)
        pull(VolumePeer(near), far)
        source.expire_replicas()
    assert statuses(source) == {"near": "lost", "far": "lost"}
    pull(VolumePeer(source), near)
    assert (statuses(source)["far"], "replica:far" in owners(source)) == ("idle", True)
    for days in (10, 12):
        clock(days * DAY)
        source.expire_replicas()
    assert (statuses(source)["far"], owners(source)) == ("lost", [])


def test_a_damaged_master_keeps_nobody_from_pulling(make, rng, clock):
    source, near, far = make("source"), make("near"), make("far")
    for n in (1, 2):
        master(source, f"m{n}", rng.bytes(9000))
        pull(VolumePeer(source), near)
        if n == 1:
            pull(VolumePeer(source), far)
    leaf = int(source.get_snapshot("m1").state.blockmap.pointers(0, 1)[0, 0]) & NUMBER_MASK
    disk, dbn = source.geometry.to_disk(np.array([leaf]))
    path, lies_on = source.path, source.array.disks[int(disk[0])].path
    source.close()
    with open(lies_on, "r+b") as file:
        file.seek((HEAD_BLOCKS + int(dbn[0])) * 4096)
        file.write(bytes(4096))
    with bp.Volume.open(path) as source:
        source.set_replica_limit(HOUR)
        for hours in (2, 4):
            clock(hours * HOUR)
            assert pull(VolumePeer(source), near).brought.already_there
        assert statuses(source) == {"near": "idle", "far": "lost"}
        assert (kinds(source)["m1"], bp.check(source).ok) == ("shadow", False)


def test_an_idle_replica_is_heard_of_through_who_feeds_it(make, rng, clock):
    source, middle, leaf = make("source"), make("middle"), make("leaf")
    master(source, "m1", rng.bytes(9000))
    for above, below in ((source, middle), (middle, leaf), (source, middle)):
        pull(VolumePeer(above), below)
    source.set_replica_limit(DAY)
    for hours in range(0, 60, 6):
        clock(hours * HOUR)
        for above, below in ((middle, leaf), (source, middle)):
            pull(VolumePeer(above), below)
    assert statuses(source) == {"middle": "idle", "leaf": "idle"}
    assert "replica:leaf" in owners(source)
    for hours in range(60, 120, 6):  # it stays away now
        clock(hours * HOUR)
        pull(VolumePeer(source), middle)
    assert statuses(source) == {"middle": "idle", "leaf": "lost"}


def test_what_is_told_late_is_no_contact(make, rng, clock, monkeypatch):
    """Ages take their time on the way, now more and now less: one that was lost is not heard of again by that."""
    source, middle, leaf = make("source"), make("middle"), make("leaf")
    master(source, "m1", rng.bytes(9000))
    for above, below in ((source, middle), (middle, leaf), (source, middle)):
        pull(VolumePeer(above), below)
    source.set_replica_limit(DAY)
    found = []
    for n, hours in enumerate(range(6, 120, 6)):

        def told_late(volume: bp.Volume, n: int = n, hours: int = hours):
            standing = standing_of(volume)
            clock(hours * HOUR + (n % 3) * 15)
            return standing

        with monkeypatch.context() as patch:
            patch.setattr(peer, "standing_of", told_late)
            clock(hours * HOUR)
            pull(VolumePeer(source), middle)
        found.append(statuses(source)["leaf"])
    first = found.index("lost")
    assert found[first:] == ["lost"] * len(found[first:])


def test_who_is_forgotten_does_not_come_back_from_who_was_told_of_it(make, rng):
    one, two, gone = make("one"), make("two"), make("gone")
    master(one, "m1", rng.bytes(9000))
    pull(VolumePeer(one), gone)
    for above, below in ((one, two), (two, one), (one, two), (two, one)):
        pull(VolumePeer(above), below)
    assert "gone" in statuses(two)
    one.forget_replica("gone")
    pull(VolumePeer(one), two)
    assert (list(statuses(one)), [o for o in owners(one) if "gone" in o]) == (["two"], [])


def test_a_crash_in_a_call_leaves_no_hold_without_a_replica(make, rng, monkeypatch):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    source.forget_replica("copy")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(known, "_put", crash)
        with pytest.raises(KeyboardInterrupt):
            pull(VolumePeer(source), copy)
    path = source.path
    source.abandon()
    with bp.Volume.open(path) as source:
        assert [d.name for d in source.destinations.list()] == list(statuses(source)) == ["copy"]
        pull(VolumePeer(source), copy)
        source.forget_replica("copy")
        assert (owners(source), source.destinations.list()) == ([], [])


def test_a_replica_is_not_named_as_a_mirror_is(make, rng):
    source, copy, other = make("source"), make("copy"), make("other")
    mirrored, mirror_id = copy.path, copy.info.volume_id
    copy.close()
    master(source, "m1", rng.bytes(9000))
    label = f"copy.{mirror_id.hex()[:8]}"
    with giving(source, "master", replace(standing_of(other), label=label)):
        pass
    mirrors.add(source, str(mirrored))
    assert [each.name for each in definitions(source.path)] == [label]
    assert [replica.name for replica in replicas(source)] == [f"{label}-{other.info.volume_id.hex()[:8]}"]
    assert [ran.error for ran in mirrors.run_once(source, now=True)] == [""]


def test_replicas_that_are_lost_make_room_for_others(make, rng):
    source = make("source")
    master(source, "m1", rng.bytes(9000))
    lost = [ReplicaRecord(f"r{n}", os.urandom(16), 1, contact_ns=n, flags=FLAG_LOST) for n in range(1024)]
    with source.lock:
        source.local.set_replication(replace(source.local.replication(), replicas=tuple(lost)))
        source.commit()
    assert pull(VolumePeer(source), make("copy")).top == "m1"
    names = list(statuses(source))
    assert (len(names), "r0" in names, "r1" in names, "copy" in names) == (1024, False, True, True)


def test_nobody_speaks_for_who_calls_by_another_certificate(make, rng, clock):
    """Neither in its name, nor as one that it pulls from; once it has been silent for a day, as that."""
    source, copy, other = make("source"), make("copy"), make("other")
    master(source, "m1", rng.bytes(9000))
    mine, others, top = b"m" * 16, b"o" * 16, "m3"
    with giving(source, "master", standing_of(copy), mine):
        pass
    pull(VolumePeer(source), copy)
    for name in ("m2", "m3"):
        master(source, name, rng.bytes(9000))
    there = tuple(entry.record for entry in source.local.entries())
    with (
        pytest.raises(RefusedError, match="calls with another certificate"),
        giving(source, "master", replace(standing_of(copy), snapshots=there), others),
    ):
        pass
    told = ReplicaRecord("x", copy.info.volume_id, 1 << 60, source.get_snapshot(top).record.id)
    for hours, newest in ((1, "m1"), (25, top)):
        clock(hours * HOUR)
        with giving(source, "master", replace(standing_of(other), below=(told,)), others):
            pass
        assert {replica.name: replica.newest for replica in replicas(source)}["copy"] == newest
    plain = make("plain")
    for key in (known.PLAIN_KEY, others):  # without a certificate before
        with giving(source, "master", standing_of(plain), key):
            pass
    for _ in range(2):  # by its own certificate, and from this machine, it is let in
        with giving(source, "master", standing_of(copy), mine):
            pass
        pull(VolumePeer(source), copy)


def test_nobody_on_the_network_speaks_for_who_pulls_on_this_machine(make, rng):
    """It would say that it has nothing, and what is held for it would go."""
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    master(source, "m2", rng.bytes(9000))
    nothing = replace(standing_of(copy), snapshots=())
    for key in (b"o" * 16, known.PLAIN_KEY):
        with (
            pytest.raises(RefusedError, match="pulls on that machine") as refused,
            giving(source, "master", nothing, key),
        ):
            pass
        assert refused.value.hint.endswith("--forget copy")
        told = ReplicaRecord("x", copy.info.volume_id, 1 << 60)
        with giving(source, "master", replace(standing_of(make(f"other-{key[:1].decode()}")), below=(told,)), key):
            pass
    assert {replica.name: replica.newest for replica in replicas(source)}["copy"] == "m1"
    with pytest.raises(BlockplaneError, match="is held"):
        source.delete_snapshot("m1")
    source.forget_replica("copy")
    with giving(source, "master", standing_of(copy), b"o" * 16):  # it moved there
        pass


@pytest.mark.parametrize("key", [NO_ID, b"k" * 16], ids=["near", "certificate"])
def test_a_caller_tells_of_so_many_replicas_and_no_more(make, rng, key):
    """In one call and over all; those it tells of no longer make room."""
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    top = source.get_snapshot("m1").record.id
    n_most = known.MAX_TOLD if key == NO_ID else known.MAX_TOLD - 1  # itself it is one of them
    for call, n_told in enumerate((1000, 100, 100)):
        told = tuple(ReplicaRecord(f"r{call}-{n}", os.urandom(16), 1, top) for n in range(n_told))
        with giving(source, "master", replace(standing_of(copy), below=told), key):
            pass
        names = statuses(source)
        assert len(names) == 1 + n_most
        assert sum(name.startswith(f"r{call}-") for name in names) == min(n_told, n_most)


def test_a_peer_has_a_share_of_the_table(make, rng):
    """By its certificate, whatever volumes it calls for; who calls itself goes before those who are told of."""
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    top, mine, others = source.get_snapshot("m1").record.id, b"m" * 16, b"o" * 16
    told = tuple(ReplicaRecord(f"r{n}", os.urandom(16), 1, top) for n in range(known.MAX_TOLD))

    def call(key: bytes, below: tuple[ReplicaRecord, ...] = ()) -> None:
        with giving(source, "master", replace(standing_of(copy), volume_id=os.urandom(16), below=below), key):
            pass

    call(mine, told)
    assert len(statuses(source)) == known.MAX_TOLD
    for _ in range(known.MAX_TOLD - 1):
        call(mine)
    assert len(statuses(source)) == known.MAX_TOLD
    with pytest.raises(RefusedError, match=f"{known.MAX_TOLD} replicas of who calls"):
        call(mine)
    call(others)
    pull(VolumePeer(source), copy)
    assert len(statuses(source)) == known.MAX_TOLD + 2
