"""A service in this process: its turns, its jobs, and what a job that hangs, fails or waits does to it."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest

import blockplane as bp
from blockplane.model.errors import BusyError, ConnectionLostError, RefusedError
from blockplane.server import Kind
from blockplane.server.activity import Activities
from blockplane.server.network import Limits, Listener, RemotePeer, Rights
from blockplane.server.network.channel import Channel
from blockplane.server.network.codec import Kind as WireKind
from blockplane.server.service import (
    Every,
    Log,
    Outcome,
    Policy,
    Service,
    StoppedError,
    VolumePolicy,
    Work,
    door,
    served,
    status,
)
from blockplane.server.service.explain import explain
from blockplane.server.service.exposition import Family, exposition
from blockplane.server.service.following import MirrorJob, Reach, ReplicateJob
from blockplane.server.service.jobs import CheckJob, PruneJob, SnapshotJob
from blockplane.server.service.notify import Notifier
from blockplane.server.service.past import NAME, Past, read_past, write_past
from blockplane.transfer import mirrors
from blockplane.transfer.lag import replicas
from blockplane.transfer.peer import VolumePeer
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.volume.retention import Policy as Retention
from rig.owners import TIMEOUT_S, no_room_for_threads, wait_for
from rig.services import FakeClock

HOURLY = Every(3600.0)


@dataclass(frozen=True)
class GatedJob:
    """A job that runs until it is let go, and may be deaf to being stopped."""

    kind: ClassVar[str] = "gated"
    retry_s: ClassVar[float] = 30.0

    name: str = "one"
    due: Every = HOURLY
    does: Kind = Kind.READS
    is_deaf: bool = False
    error: str = ""
    gate: threading.Event = field(default_factory=threading.Event, compare=False)
    begun: list[float] = field(default_factory=list, compare=False)

    def describe(self) -> str:
        return "waits"

    def run(self, work: Work) -> Outcome:
        self.begun.append(work.wall_s)
        while not self.gate.wait(0.01):
            if not self.is_deaf:
                work.step()
        if self.error:
            raise RefusedError(self.error)
        return Outcome("was let go", moved_bytes=4096)


def policy_of(*jobs) -> Policy:
    return Policy((VolumePolicy("pool", Path("pool").absolute(), jobs),), log="json", log_level="debug")


class Inside:
    """A service whose loop this test turns by hand."""

    def __init__(self, clock: FakeClock, *jobs, **more) -> None:
        self.clock, self.log = clock, io.StringIO()
        self.policy = policy_of(*jobs)
        self.service = Service(
            self.policy, log=Log(lambda: self.log, "json", "debug", clock), clock=clock, grace_s=5.0, **more
        )

    def begin(self) -> None:
        for volume in self.policy.volumes:
            self.service._take(volume)
        wait_for(lambda: all(v.was_tried for v in self.service._served.values()), "the volumes")

    def turn_until(self, condition, what: str) -> None:
        def is_so() -> bool:
            self.service.turn()
            return condition()

        wait_for(is_so, what)

    def end(self) -> None:
        self.service.stop()
        self.turn_until(lambda: self.service.turn() is None, "the end")
        self.service._notifier.close()

    def said(self, event: str) -> list[dict]:
        return [e for e in map(json.loads, self.log.getvalue().splitlines()) if e["event"] == event]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@contextmanager
def inside(clock: FakeClock, *jobs, **more) -> Iterator[Inside]:
    """Begins a service, and ends it: whatever happens no job is left at its gate."""
    made = Inside(clock, *jobs, **more)
    made.begin()
    try:
        yield made
    finally:
        for job in jobs:
            if isinstance(job, GatedJob) and job.is_deaf:
                job.gate.set()
        made.end()


def test_an_idle_service_looks_once_a_minute_at_most(pool, clock, record_property):
    """A day without anything to do: only times of day are looked up anew."""
    jobs = (SnapshotJob("hourly", Every(3600.0), "h-%d-%H%M"),)
    with inside(clock, *jobs) as made:
        made.turn_until(lambda: made.said("job done"), "the first snapshot")
        n_before, end = made.service.counts.n_wakeups, clock.monotonic() + 86_401
        while clock.monotonic() < end:
            wait_s = made.service.turn()
            assert wait_s is not None
            if wait_s < math.inf:  # else it is to be woken by what runs
                clock.advance(max(wait_s, 0.001))
            wait_for(lambda: not made.service._served["pool"].runs(), "a snapshot")
        n_turns = made.service.counts.n_wakeups - n_before
    record_property("summary", f"an idle service: {n_turns} turns in a day of 24 snapshots")
    assert len(made.said("job done")) == 25
    assert n_turns <= 24 * 3 + 2


def test_what_is_due_in_months_is_waited_for(pool, clock):
    with inside(clock, SnapshotJob("yearly", Every(366 * 86_400.0), "y-%Y")) as made:
        made.turn_until(lambda: made.said("job done"), "the first snapshot")
        wait_s = made.service.turn()
        made.service._wake()
        made.service._wait(wait_s)
    assert wait_s == 366 * 86_400.0


def test_one_run_of_a_job_at_a_time_whatever_a_reload_does(pool, clock):
    job = GatedJob(due=Every(1.0))
    with inside(clock, job) as made:
        policies = [made.policy]
        made.service._reread = lambda: policies[0]
        made.turn_until(lambda: job.begun, "the job")
        for n in range(5):
            clock.advance(10.0)
            changed = replace(job, due=Every(2.0 + n))
            policies[0] = policy_of(changed)
            made.service.reload()
            made.service.turn()
        assert len(job.begun) == 1
        job.gate.set()
        made.turn_until(lambda: made.said("job done"), "its end")
        assert made.service.counts.n_reloads == 5
        (status,) = made.service.status()
        assert [(j.when, j.n_done, j.moved_bytes) for j in status.jobs] == [("every 6s", 1, 4096)]


def test_a_job_that_went_ends_and_does_not_come_again(pool, clock):
    job = GatedJob(due=Every(1.0))
    with inside(clock, job) as made:
        made.turn_until(lambda: job.begun, "the job")
        made.service._reread = policy_of
        made.service.reload()
        made.service.turn()
        job.gate.set()
        made.turn_until(lambda: made.said("job done"), "its end")
        clock.advance(100.0)
        made.service.turn()
        assert len(job.begun) == 1
        assert made.service.status()[0].jobs == ()


def test_what_cannot_go_on_beside_it_is_waited_for_and_does_not_pile_up(pool, clock, monkeypatch):
    begin, in_the_way = Activities._begin, []

    def watched(self, mine):
        other = begin(self, mine)
        if mine.kind is Kind.CHECKS:
            in_the_way.append(other)
        return other

    monkeypatch.setattr(Activities, "_begin", watched)
    gated = GatedJob(does=Kind.LIVE)
    with inside(clock, gated) as made:
        made.turn_until(lambda: gated.begun, "the job")
        made.service._reread = lambda: policy_of(gated, CheckJob("often", Every(1.0)))
        made.service.reload()
        for _ in range(10):
            clock.advance(10.0)
            made.service.turn()
        made.turn_until(lambda: len(in_the_way) > 2 or made.said("job done"), "the check to ask")
        assert None not in in_the_way
        gated.gate.set()
        made.turn_until(lambda: [e for e in made.said("job done") if e["kind"] == "check"], "the check")
        assert [e["kind"] for e in made.said("job done")].count("check") == 1


@contextmanager
def called(made: Inside, *rights: str) -> Iterator[RemotePeer]:
    """A peer that asks for the pool of a service, once each time."""
    with Listener("127.0.0.1:0", made.service._lent, Rights({"@plaintext": {"pool": rights}}), None) as listener:
        peer = RemotePeer(listener.address, "pool", None, patience_s=0.0, limits=Limits(idle_s=1.0, alive_s=0.5))
        with closing(peer):
            yield peer


def test_a_peer_that_calls_while_a_check_has_the_lock_is_told_to_come_again(pool, clock, monkeypatch):
    monkeypatch.setattr("blockplane.server.service.served.LEND_WAIT_S", 0.1)
    with inside(clock) as made, called(made, "read") as peer:
        volume = made.service._served["pool"].volume
        assert volume is not None
        with volume.lock, pytest.raises(BusyError, match="pool is in use"):
            peer.standing()
        assert [record.name for record in peer.standing().snapshots] == ["june1", "june2"]


def test_a_peer_is_not_told_by_whom_a_volume_is_in_use_and_where_it_lies(pool, clock, monkeypatch):
    monkeypatch.setattr("blockplane.server.service.served.LEND_WAIT_S", 0.1)
    with inside(clock) as made, called(made, "admin") as peer:
        activities = made.service._served["pool"].activities
        with activities.going_on(Kind.LIVE, "write by else", 4711), pytest.raises(BusyError) as refused:
            peer.give_up(bytes(16))
        assert (refused.value.message, refused.value.hint) == ("pool is in use", "it is tried again by itself")
        assert "pool is in use by write by else (process 4711)" in made.said("peer put off")[0]["text"]
        with pytest.raises(RefusedError, match="no receive into pool was interrupted"):
            peer.give_up(bytes(16))


def test_a_failure_is_kept_and_tried_again_later_each_time(pool, clock):
    job = GatedJob(error="no")
    job.gate.set()
    with inside(clock, job) as made:
        for n, wait_s in enumerate([30.0, 60.0, 120.0], 1):
            made.turn_until(lambda n=n: len(made.said("job failed")) == n, "a failure")
            (status,) = made.service.status()[0].jobs
            assert (status.error, status.n_failed, status.due_in_s) == ("no", n, wait_s)
            clock.advance(wait_s)
    assert made.said("job failed")[0]["error"] == "refused"
    assert read_past(Path("pool"))["gated one"].error == "no"


def test_what_one_mirror_was_brought_counts_though_another_failed(pool, clock, done):
    for name in ("copy", "gone"):
        done("mirror", "add", pool, name, "--every", "1h", "--size", "40M")
    os.rename("gone", "away")
    with inside(clock, MirrorJob("all", HOURLY, Reach())) as made:
        made.turn_until(lambda: made.said("job failed"), "the failure")
        (job,) = made.service.status()[0].jobs
    assert "gone does not exist" in job.error
    assert job.error.count(os.path.abspath("gone")) == 1
    with bp.Volume.open("copy", writable=False) as copy:
        assert job.moved_bytes > copy.get_snapshot("june2").n_blocks * 4096 > 0


def test_a_failure_is_tried_again_by_a_service_that_begins_anew(pool, clock):
    job = GatedJob(error="no")
    job.gate.set()
    with inside(clock, job) as made:
        made.turn_until(lambda: made.said("job failed"), "the failure")
    clock.advance(10.0)
    again = GatedJob()
    again.gate.set()
    with inside(clock, again) as made:
        assert [job.due_in_s for job in explain(made.policy, clock).volumes[0].jobs] == [20.0]
        assert [job.due_in_s for job in made.service.status()[0].jobs] == [20.0]
        clock.advance(20.0)
        made.turn_until(lambda: made.said("job done"), "the job")
        assert [(job.due_in_s, job.error) for job in made.service.status()[0].jobs] == [(3600.0, "")]


def test_a_failure_is_tried_again_whatever_a_reload_does(pool, clock):
    job = GatedJob(error="no")
    job.gate.set()
    with inside(clock, job) as made:
        made.turn_until(lambda: made.said("job failed"), "the failure")
        clock.advance(10.0)
        made.service._reread = lambda: policy_of(replace(job, due=Every(7200.0)))
        made.service.reload()
        made.service.turn()
        assert [(job.when, job.due_in_s) for job in made.service.status()[0].jobs] == [("every 2h", 20.0)]


def test_a_job_without_room_for_a_thread_is_tried_again(pool, clock):
    job = GatedJob()
    job.gate.set()
    with inside(clock, job) as inside_:
        with no_room_for_threads():
            inside_.turn_until(lambda: inside_.said("job failed"), "the failure")
            assert inside_.service.metrics().count("\n") > 10
        assert "no room for one more thread" in inside_.said("job failed")[0]["text"]
        assert job.begun == []
        clock.advance(job.retry_s + 1)
        inside_.turn_until(lambda: inside_.said("job done"), "the job")


def test_a_volume_without_room_for_a_thread_is_opened_later(pool, clock):
    made = Inside(clock)
    with no_room_for_threads():
        for volume in made.policy.volumes:
            made.service._take(volume)
        assert 0 < made.service.turn() <= 1
        (found,) = made.said("volume not open")
        assert "no room for one more thread" in found["text"]
    clock.advance(1.0)
    made.turn_until(lambda: made.said("volume open"), "the volume")
    made.service.stop()
    made.turn_until(lambda: made.said("volume closed"), "the end")


def test_a_service_ends_in_order_without_room_for_a_thread(pool, clock):
    made = Inside(clock)
    with no_room_for_threads():
        for volume in made.policy.volumes:
            made.service._take(volume)
        made.service.stop()
        assert made.service.turn() is None
    assert made.service.unfinished == ()


def test_an_error_of_our_own_ends_no_service(pool, clock):
    class Broken(GatedJob):
        def run(self, work: Work) -> Outcome:
            raise ZeroDivisionError("mine")

    with inside(clock, Broken()) as made:
        made.turn_until(lambda: made.said("job failed"), "the failure")
        assert made.said("job failed")[0]["error"] == "internal"
        assert made.service.turn() is not None


def test_a_job_that_hangs_lets_the_watchdog_fire(pool, clock, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(0)

        def heard() -> list[str]:
            found = []
            try:
                while True:
                    found.append(manager.recv(4096).decode())
            except BlockingIOError:
                return found

        job = GatedJob(is_deaf=True)
        notifier = Notifier(str(tmp_path / "notify"), watchdog_s=60.0)
        with inside(clock, job, notifier=notifier) as made:
            made.turn_until(lambda: job.begun, "the job")
            heard()
            signs = []
            for _ in range(8):
                clock.advance(30.0)
                made.service.turn()
                signs.append("WATCHDOG=1" in heard())
            assert signs == [True] * 4 + [False] * 4  # patience is 120 s
            assert "gated one of pool" in made.said("hung")[0]["text"]
            assert len(made.said("hung")) == 1
            job.gate.set()
            made.turn_until(lambda: made.said("job done"), "its end")
            heard()
            clock.advance(30.0)
            made.service.turn()
            assert "WATCHDOG=1" in heard()


@contextmanager
def only_alive() -> Iterator[tuple[str, threading.Event]]:
    """The address of a listener that answers one request with ALIVE without end, and whether it was asked."""
    listener, is_over, asked = socket.create_server(("127.0.0.1", 0)), threading.Event(), threading.Event()

    def say_alive() -> None:
        sock, _ = listener.accept()
        channel = Channel(sock, Limits(), "the service")
        with suppress(ConnectionLostError):
            channel.receive(WireKind.HELLO)
            channel.tell(WireKind.WELCOME, {"protocol": 1, "release": "1"})
            channel.receive(WireKind.REQUEST)
            asked.set()
            while not is_over.wait(0.05):
                channel.send(WireKind.ALIVE)
        channel.close()

    thread = threading.Thread(target=say_alive, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        is_over.set()
        thread.join()
        listener.close()


def test_a_source_that_only_says_that_it_is_at_work_makes_no_hung_service(pool, clock, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, only_alive() as (address, asked):
        manager.bind(str(tmp_path / "notify"))
        job = ReplicateJob("one", HOURLY, f"{address}/far", "master", None, Reach())
        with inside(clock, job, notifier=Notifier(str(tmp_path / "notify"), watchdog_s=60.0)) as made:
            made.turn_until(asked.is_set, "the call")
            (run,) = made.service._served["pool"].runs()
            for _ in range(8):
                clock.advance(30.0)
                wait_for(lambda: run.beat_s == clock.monotonic(), "a sign of life", timeout_s=10)
                made.service.turn()
            assert not made.said("hung")


def test_a_job_that_shows_signs_of_life_may_take_as_long_as_it_likes(pool, clock, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        job = GatedJob()
        with inside(clock, job, notifier=Notifier(str(tmp_path / "notify"), 60.0)) as made:
            made.turn_until(lambda: job.begun, "the job")
            (run,) = made.service._served["pool"].runs()
            for _ in range(10):
                clock.advance(100.0)
                wait_for(lambda: run.beat_s == clock.monotonic(), "a sign of life")
                made.service.turn()
            assert made.said("hung") == []


@pytest.mark.parametrize("again", [False, True])
def test_stopping_has_a_limit_and_asking_again_has_none(pool, clock, again):
    job = GatedJob(is_deaf=True)
    made = Inside(clock, job)
    made.begin()
    made.turn_until(lambda: job.begun, "the job")
    made.service.stop()
    assert made.service.turn() == 5.0
    made.service.stop()  # at once: the same signal to a group and to its member
    assert made.service.turn() == 5.0
    clock.advance(1.0 if again else 5.0)
    if again:
        made.service.stop()
    assert made.service.turn() is None
    assert (made.service.unfinished, made.service._status) == (("pool",), 1)
    job.gate.set()
    wait_for(lambda: made.service._served["pool"].is_over, "the volume")


def test_what_runs_is_ended_before_the_last_metrics_are_written(pool, clock, monkeypatch):
    job = GatedJob()
    made = Inside(clock, job)
    made.begin()
    made.turn_until(lambda: job.begun, "the job")
    made.service.policy = replace(made.policy, metrics_file=Path("metrics"))
    (run,) = made.service._served["pool"].runs()

    def once_it_ended(*, afresh: bool = False) -> str:
        run.thread.join(TIMEOUT_S)
        return f"{afresh} {run.is_over}"

    monkeypatch.setattr(made.service, "metrics", once_it_ended)
    made.end()
    assert Path("metrics").read_text() == "True True"


class Held:
    """A volume of a service whose lock is somebody else's: whoever waits for it moves the clock."""

    stopped_at = problem = ""

    def __init__(self, clock: FakeClock, name: str) -> None:
        self.policy, self.activities = VolumePolicy(name, Path(name)), Activities(name)
        self.plans, self.volume, self.lock, self._clock = {}, self, self, clock

    def acquire(self, timeout: float) -> bool:
        self._clock.advance(timeout)
        return False


def test_volumes_are_looked_at_within_one_deadline(clock, monkeypatch):
    monkeypatch.setattr(status, "time", clock)
    begun_s = clock.monotonic()
    found = status.Observer().look([Held(clock, f"v{n}") for n in range(20)], clock.wall())
    assert [each.space for each in found] == [None] * 20
    assert clock.monotonic() - begun_s == pytest.approx(1.0)


def test_a_job_that_was_ended_early_is_due_again(pool, clock):
    job = GatedJob()
    with inside(clock, job) as made:
        made.turn_until(lambda: job.begun, "the job")
    assert made.said("job ended early")
    assert "gated one" not in read_past(Path("pool"))
    again = GatedJob()
    again.gate.set()
    with inside(clock, again) as made:
        made.turn_until(lambda: again.begun, "the job")


def test_a_job_that_was_ended_as_its_volume_is_opened_anew_is_due_then(pool, clock):
    job = GatedJob()
    with inside(clock, job) as made:
        made.turn_until(lambda: job.begun, "the job")
        made.service._served["pool"].reopen()
        made.turn_until(lambda: made.said("job ended early") and len(made.said("volume open")) == 2, "the volume")
        made.service.turn()
        assert len(made.service._served["pool"].runs()) == 1


def test_what_is_remembered_counts_though_the_directory_comes_late(pool, clock, monkeypatch):
    monkeypatch.setattr(served, "FIRST_AGAIN_S", 0.01)
    write_past(Path("pool"), {"gated one": Past(begun_s=clock.wall() - 600.0)})
    os.rename("pool", "away")
    job = GatedJob()
    job.gate.set()
    with inside(clock, job) as made:
        made.turn_until(lambda: made.said("volume not open"), "the failure")
        os.rename("away", "pool")
        made.turn_until(lambda: made.said("volume open"), "the volume")
        made.service.turn()
        assert (job.begun, made.service._served["pool"].due_in()) == ([], 3000.0)
        clock.advance(3000.0)
        made.turn_until(lambda: made.said("job done"), "the job")
    assert len(job.begun) == 1


@pytest.mark.parametrize("wall_s", [1_800_000_000.0, 100.0])
def test_what_began_under_a_clock_ahead_comes_within_a_day_though_the_service_begins_anew(pool, wall_s):
    clock = FakeClock(wall_s)
    write_past(Path("pool"), {"gated one": Past(begun_s=wall_s + 50 * 365 * 86_400.0)})
    n_begun = []
    for _ in range(4):
        job = GatedJob(due=Every(7 * 86_400.0))
        job.gate.set()
        with inside(clock, job) as made:
            made.service.turn()
            made.turn_until(lambda made=made: not made.service._served["pool"].runs(), "its end")
            n_begun.append(len(job.begun))
        clock.advance(50_000.0)
    assert n_begun == [0, 0, 1, 0]


def test_a_check_ends_at_any_of_its_steps(pool, rng):
    with bp.Volume.open("pool") as volume:
        steps = []
        assert CheckJob("a", HOURLY).run(Work(volume, 0.0, lambda: steps.append(1))).text
        assert len(steps) > 20

        def stop_at(n: int) -> None:
            left = iter(range(n))

            def step() -> None:
                if next(left, None) is None:
                    raise StoppedError

            with pytest.raises(StoppedError):
                CheckJob("a", HOURLY).run(Work(volume, 0.0, step))

        for n in [0, len(steps) - 1, *rng.integers(0, len(steps), 10).tolist()]:
            stop_at(n)
        assert bp.check(volume).ok


def test_what_mirrors_make_for_themselves_is_not_the_newest_snapshot(pool, clock):
    with inside(clock) as made:
        volume = made.service._served["pool"].volume
        volume.snapshot("mirror.copy.0123abcd.20260101T000000.000000Z")
        (status,) = made.service.status()
        assert (status.space.snapshots, status.space.newest_snapshot_s) == (
            {"regular": 3},
            volume.get_snapshot("june2").created_ns / 1e9,
        )
        volume.delete_snapshot("june1", "june2")
        assert made.service.status()[0].space.newest_snapshot_s is None


def test_a_volume_that_stopped_at_an_error_is_opened_anew(pool, clock):
    with inside(clock) as made:
        made.service.turn()
        made.service._served["pool"].volume._failure = "a disk failed"
        made.turn_until(lambda: len(made.said("volume open")) == 2, "the volume")
        assert made.said("volume stopped")
        assert made.service._served["pool"].volume.stopped_at == ""


def test_a_damaged_snapshot_table_ends_no_service(pool, clock):
    for disk in Path(pool, "disks").iterdir():
        disk.write_bytes(disk.read_bytes().replace(b"june1\0", b"june?\0"))
    with inside(clock) as made:
        made.service.policy = replace(made.policy, metrics_file=Path("metrics"))
        made.service.turn()
        (volume,) = made.service.status()
        with pytest.raises(bp.errors.BlockplaneError, match="checksum"):
            list(made.service._served["pool"].volume.snapshots)
    assert (volume.is_open, volume.space) == (True, None)
    assert 'blockplane_volume_up{volume="pool"} 1' in Path("metrics").read_text()


def test_a_job_makes_masters(pool, clock):
    with inside(clock, SnapshotJob("s", Every(60.0), "fixed", master=True)) as made:
        for n in range(1, 3):
            made.turn_until(lambda n=n: len(made.said("job done")) == n, "a master")
            clock.advance(60.0)
    with bp.Volume.open("pool", writable=False) as volume:
        assert [snapshot.name for snapshot in volume.snapshots if snapshot.is_master] == ["fixed", "fixed.2"]
        assert volume.get_snapshot("master").name == "fixed.2"


def test_snapshots_get_another_name_where_the_first_is_taken(pool, clock):
    with inside(clock, SnapshotJob("s", Every(60.0), "fixed")) as made:
        for n in range(1, 4):
            made.turn_until(lambda n=n: len(made.said("job done")) == n, "a snapshot")
            clock.advance(60.0)
    with bp.Volume.open("pool", writable=False) as volume:
        names = [snapshot.name for snapshot in volume.snapshots]
    assert names[:5] == ["june1", "june2", "fixed", "fixed.2", "fixed.3"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 2, "jobs": {}}', '{"version": 1, "jobs": 3}', '{"version": 1, "jobs": {"a": 1}}',
     '{"version": 1, "jobs": {"a": {"begun_s": NaN, "succeeded_s": 0, "seconds": 0, "error": ""}}}', "[" * 100_000],
)  # fmt: skip
def test_a_hint_that_says_nothing_sensible_is_none(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    assert read_past(tmp_path) == {}


def test_what_is_remembered_is_not_read_through_a_link(tmp_path):
    write_past(tmp_path, {"check a": Past(1.0, 2.0, 3.0, "x")})
    assert read_past(tmp_path) == {"check a": Past(1.0, 2.0, 3.0, "x")}
    (tmp_path / NAME).rename(tmp_path / "other")
    (tmp_path / NAME).symlink_to("other")
    assert read_past(tmp_path) == {}


def test_the_exposition_escapes_what_a_label_may_hold():
    family = Family("a_b", "gauge", "Help.")
    family.add(1.5, x='say "hi"\\\n')
    family.add(None, x="unknown")
    assert exposition([family, Family("empty", "counter", "Nothing.")]) == (
        '# HELP a_b Help.\n# TYPE a_b gauge\na_b{x="say \\"hi\\"\\\\\\n"} 1.5\n'
    )


@pytest.mark.parametrize(
    ("question", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK"),
        (b"HEAD /metrics HTTP/1.0\n\n", b"200 OK"),
        (b"GET /etc/passwd HTTP/1.0\r\n\r\n", b"404 Not Found"),
        (b"POST /metrics HTTP/1.0\r\n\r\n", b"400 Bad Request"),
        (b"\x00" * 9000, b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
    ],
)
def test_the_door_of_metrics_answers_one_question(question, status):
    made = door.MetricsDoor("127.0.0.1", 0, lambda: "x 1\n")
    try:
        with socket.create_connection(made.address, TIMEOUT_S) as client:
            client.sendall(question)
            made._listener.settimeout(TIMEOUT_S)
            made.accept()
            answer = b"".join(iter(lambda: client.recv(4096), b""))
    except ConnectionResetError:  # what was sent beyond the limit is not read
        assert len(question) > door.MAX_QUESTION_BYTES
        return
    finally:
        made.close()
    assert answer.startswith(b"HTTP/1.0 " + status)
    assert answer.endswith(b"x 1\n") is (question[:3] == b"GET" and b"200" in status)


def test_a_door_with_silent_clients_answers_others(monkeypatch):
    monkeypatch.setattr(door, "DEADLINE_S", 0.2)
    made = door.MetricsDoor("127.0.0.1", 0, lambda: "x 1\n")
    made._listener.settimeout(TIMEOUT_S)
    silent = [socket.create_connection(made.address, TIMEOUT_S) for _ in range(door.MAX_CLIENTS)]
    try:
        for _ in silent:
            made.accept()
        for client in silent:  # each is closed when its time is over
            assert client.recv(1) == b""
        with socket.create_connection(made.address, TIMEOUT_S) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            made.accept()
            assert client.recv(4096).startswith(b"HTTP/1.0 200")
    finally:
        for client in silent:
            client.close()
        made.close()


def test_a_door_without_room_for_a_thread_answers_again_later():
    made = door.MetricsDoor("127.0.0.1", 0, lambda: "x 1\n")
    made._listener.settimeout(TIMEOUT_S)
    try:
        with no_room_for_threads():
            for _ in range(door.MAX_CLIENTS + 1):
                with socket.create_connection(made.address, TIMEOUT_S) as client:
                    made.accept()
                    assert client.recv(1) == b""
        with socket.create_connection(made.address, TIMEOUT_S) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            made.accept()
            assert client.recv(4096).startswith(b"HTTP/1.0 200")
    finally:
        made.close()


@pytest.mark.parametrize(("number", "n_pauses"), [(errno.EMFILE, 1), (errno.EAGAIN, 0)])
def test_a_door_without_descriptors_pauses_and_answers_again_later(monkeypatch, number, n_pauses):
    made, pauses = door.MetricsDoor("127.0.0.1", 0, lambda: "x 1\n"), []
    listener = made._listener
    try:
        with socket.create_connection(made.address, TIMEOUT_S) as client, monkeypatch.context() as patch:
            patch.setattr(time, "sleep", pauses.append)
            patch.setattr(made, "_listener", mock.Mock(accept=mock.Mock(side_effect=OSError(number, "none left"))))
            made.accept()
            patch.undo()
            listener.settimeout(TIMEOUT_S)
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            made.accept()
            assert client.recv(4096).startswith(b"HTTP/1.0 200")
        assert len(pauses) == n_pauses
    finally:
        made.close()


def test_a_replica_that_is_ahead_of_its_source_is_told_of(pool, clock, tmp_path):
    with bp.Volume.open("pool") as volume, bp.Volume.create(tmp_path / "far", disks=1, size="16MiB") as far:
        volume.make_master("june1")
        pull(VolumePeer(volume), far)
        volume.make_master("june2")
    source = str(tmp_path / "far")
    job = ReplicateJob("r", HOURLY, source, "master", LocalChanges.KEEP, Reach())
    with inside(clock, job) as made:
        made.turn_until(lambda: made.said("job failed"), "the pull")
        said = made.said("job failed")[0]
    assert (said["level"], said["kind"], said["job"]) == ("error", "replicate", "r")
    assert f"nothing was brought: the volume is ahead of {source}, master was moved more often here" in said["text"]


def test_a_failure_is_told_with_what_to_do(pool, clock, tmp_path):
    with bp.Volume.open("pool") as volume:
        mirrors.add(volume, "far", every_s=1)
    shutil.rmtree("far")
    bp.Volume.create("far", disks=1, size="16MiB").close()
    with inside(clock, MirrorJob("m", HOURLY, Reach())) as made:
        made.turn_until(lambda: made.said("job failed"), "the failure")
        (status,) = made.service.status()[0].jobs
    said = made.said("job failed")[0]["text"]
    assert status.error.endswith("is another volume than the one that was added as a mirror")
    assert said.startswith(status.error)
    assert "(take it out and add it anew: blockplane mirror remove " in said


def test_a_prune_gives_up_who_never_comes_again(pool, tmp_path, rng, monkeypatch):
    prune = PruneJob("a", HOURLY, Retention(last=1))
    with bp.Volume.open("pool") as source, bp.Volume.create(tmp_path / "far", disks=1, size="8MiB") as far:
        for name in ("m1", "m2"):
            bp.FileSystem(source).write_bytes("/file", rng.bytes(9000))
            source.snapshot(name)
            source.make_master(name)
            if name == "m1":
                pull(VolumePeer(source), far)
        source.set_replica_limit(3600)
        prune.run(Work(source, 0.0, lambda: None))
        assert [replica.status for replica in replicas(source)] == ["idle"]  # far stands at m1, and m1 is kept for it
        assert "m1" in [snapshot.name for snapshot in source.snapshots]
        now = time.time_ns()
        for later_s, status in ((4000, "idle"), (4500, "lost")):  # found silent twice
            monkeypatch.setattr(time, "time_ns", lambda later_s=later_s: now + later_s * 10**9)
            prune.run(Work(source, 0.0, lambda: None))
            assert [replica.status for replica in replicas(source)] == [status]
        assert "m1" not in [snapshot.name for snapshot in source.snapshots if snapshot.kind == "regular"]
