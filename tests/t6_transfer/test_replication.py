"""Replication: masters, pointers, pulls, tiers; what is held for whom, and what takes its place when nobody comes."""

from __future__ import annotations

import io
import shutil
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import blockplane as bp
from blockplane.model.errors import NoSuchSnapshotError, RefusedError, StreamTruncatedError
from blockplane.server.service.copies import Copies
from blockplane.transfer import mirrors
from blockplane.transfer.lag import replicas
from blockplane.transfer.mirrors import running
from blockplane.transfer.peer import VolumePeer, giving
from blockplane.transfer.pull import pull
from blockplane.transfer.replacing import LocalChanges
from blockplane.transfer.resume import interrupted_receives
from blockplane.transfer.standing import standing_of
from blockplane.volume import masters, updates
from blockplane.volume.replicas import records_of
from blockplane.volume.retention import Policy, prune
from rig.masters import kinds, making, master, read, write
from rig.owners import wait_for


@pytest.fixture
def make(tmp_path: Path):
    with making(tmp_path) as found:
        yield found


def standing(volume: bp.Volume) -> dict[str, str | None]:
    return {pointer.name: pointer.snapshot for pointer in volume.pointers}


def test_a_replica_follows_masters_and_pointers(make, rng):
    source, copy = make("source", 3), make("copy")
    content = [rng.bytes(40_000) for _ in range(3)]
    master(source, "m1", content[0])
    found = pull(VolumePeer(source), copy)
    assert (found.top, found.brought.base, found.moved) == ("m1", None, ("master",))
    master(source, "m2", content[1])
    source.move_pointer("stable", "m1")
    write(source, "/file", content[2])  # no snapshot has it
    found = pull(VolumePeer(source), copy)
    assert (found.top, found.brought.base, found.brought.n_blocks < 40) == ("m2", "m1", True)
    assert sorted(found.moved) == ["master", "stable"]
    assert standing(copy) == {"master": "m2", "stable": "m1"} == standing(source)
    assert [s.is_master for s in copy.snapshots] == [True, True]
    assert (read(copy, "/file"), read(copy.get_snapshot("stable"), "/file")) == (content[1], content[0])
    again = pull(VolumePeer(source), copy)
    assert (again.brought.already_there, again.moved) == (True, ())
    source.delete_pointer("stable")
    found = pull(VolumePeer(source), copy)
    assert (found.moved, found.gone) == ((), ("stable",))
    assert standing(copy) == {"master": "m2"}
    with pytest.raises(NoSuchSnapshotError, match="no pointer or snapshot stable"):
        pull(VolumePeer(source), copy, "stable")
    assert bp.check(copy).problems == bp.check(source).problems == []


def test_the_source_knows_who_stands_where_and_holds_it(make, rng):
    source, one, two = make("source"), make("one"), make("two")
    master(source, "m1", rng.bytes(30_000))
    pull(VolumePeer(source), one)
    pull(VolumePeer(source), two)
    master(source, "m2", rng.bytes(30_000))
    pull(VolumePeer(source), one)
    shown = {r.name: r for r in replicas(source)}
    assert {name: (r.newest, r.wanted, r.status) for name, r in shown.items()} == {
        "one": ("m2", "m2", "idle"),
        "two": ("m1", "m2", "idle"),
    }
    assert (shown["one"].lag_s, shown["one"].left_blocks) == (0.0, 0)
    assert shown["two"].lag_s > 0
    assert shown["two"].left_blocks == source.image("m2 - m1").n_blocks
    assert {d.name: d.acknowledged for d in source.destinations.list()} == {"one": "m2", "two": "m1"}
    with pytest.raises(RefusedError, match="held by mirror:two"):
        source.delete_snapshot("m1")
    pull(VolumePeer(source), two)
    source.delete_snapshot("m1")
    assert replicas(source)[1].newest == "m2"


def test_a_master_stays_until_every_replica_has_passed_it(make, rng):
    source, near, far = make("source"), make("near"), make("far")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), near)
    pull(VolumePeer(source), far)
    for name in ("m2", "m3", "m4"):
        master(source, name, rng.bytes(9000))
        pull(VolumePeer(source), near)
    dry = source.prune(Policy(last=1), dry_run=True)
    assert {v.name: v.reasons for v in dry.verdicts} == {
        "m4": ("last",),
        "m3": ("is a master that far has not passed",),
        "m2": ("is a master that far has not passed",),
        "m1": ("held", "is where far stands", "is a master that far has not passed"),
    }
    with pytest.raises(RefusedError, match="is a master that far has not passed"):
        source.delete_snapshot("m2")
    assert pull(VolumePeer(source), far).brought.base == "m1"
    expected = source.freed_by("m1", "m2", "m3")
    dry = source.prune(Policy(last=1), dry_run=True)
    assert (dry.deleted, dry.freed_blocks) == (["m3", "m2", "m1"], expected)
    assert source.prune(Policy(last=1)).freed_blocks == expected
    master(source, "m5", rng.bytes(9000))
    assert pull(VolumePeer(source), far).brought.base == "m4"


def test_a_shadow_takes_the_place_of_what_a_lost_replica_needed(make, rng):
    source, near, far = make("source"), make("near"), make("far")
    data = rng.bytes(200_000)
    write(source, "/large", rng.bytes(200_000))
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), near)
    pull(VolumePeer(source), far)
    write(source, "/large", data)
    master(source, "m2", rng.bytes(9000))
    pull(VolumePeer(source), near)
    source.set_replica_limit(3600)
    assert kinds(source) == {"m1": "regular", "m2": "regular"}
    now = time.time_ns()
    assert masters.expire(source, now + 3590 * 10**9) == []
    assert masters.expire(source, now + 3700 * 10**9) == []  # found silent once
    assert masters.expire(source, now + 4140 * 10**9) == []
    assert masters.expire(source, now + 4160 * 10**9) == ["m1"]
    assert kinds(source) == {"m1": "shadow", "m2": "regular"}
    assert source.get_snapshot("m1").demotion.by == 3
    assert {r.name: r.status for r in replicas(source)} == {"near": "lost", "far": "lost"}
    assert source.destinations.list() == []
    found = pull(VolumePeer(source), far)  # back: an increment on what it has, by the shadow
    assert (found.brought.base, read(far, "/large")) == ("m1", data)
    assert {r.name: (r.status, r.newest) for r in replicas(source)}["far"] == ("idle", "m2")
    assert bp.check(source).problems == bp.check(far).problems == []


def test_who_calls_after_the_limit_is_not_lost_itself(make, rng, monkeypatch):
    source, near, far = make("source"), make("near"), make("far")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), near)
    pull(VolumePeer(source), far)
    master(source, "m2", rng.bytes(9000))
    source.set_replica_limit(3600)
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 4000 * 10**9)
    assert pull(VolumePeer(source), near).brought.base == "m1"
    assert {r.name: r.status for r in replicas(source)} == {"near": "idle", "far": "idle"}  # it is looked for once more
    monkeypatch.setattr(time, "time_ns", lambda: now + 4500 * 10**9)
    assert pull(VolumePeer(source), near).brought.already_there
    assert {r.name: r.status for r in replicas(source)} == {"near": "idle", "far": "lost"}
    assert kinds(source) == {"m1": "shadow", "m2": "regular"}


def test_without_a_limit_nobody_is_given_up(make, rng):
    source, far = make("source"), make("far")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), far)
    master(source, "m2", rng.bytes(9000))
    assert masters.expire(source, time.time_ns() + 10**20) == []
    with pytest.raises(RefusedError, match="held by mirror:far"):
        source.delete_snapshot("m1")
    source.forget_replica("far")
    assert (replicas(source), source.destinations.list()) == ([], [])
    source.delete_snapshot("m1")
    found = pull(VolumePeer(source), far)  # nothing is common any more
    assert (found.brought.base, found.top) == (None, "m2")
    with pytest.raises(RefusedError, match="no replica is named 'near'"):
        source.forget_replica("near")


def test_tiers_and_a_lost_middle(make, rng):
    source, middle, leaf = make("source"), make("middle"), make("leaf")
    master(source, "m1", rng.bytes(60_000))
    pull(VolumePeer(source), middle)
    pull(VolumePeer(middle), leaf)
    assert standing(leaf) == {"master": "m1"}
    master(source, "m2", rng.bytes(9000))
    pull(VolumePeer(source), middle)  # positions travel up with it
    shown = {r.name: (r.via, r.newest) for r in replicas(source)}
    assert shown == {"middle": ("", "m2"), "leaf": ("middle", "m1")}
    master(source, "m3", new := rng.bytes(9000))
    with pytest.raises(RefusedError, match="held by replica:leaf"):
        source.delete_snapshot("m1")
    middle.close()  # lost
    found = pull(VolumePeer(source), leaf)
    assert (found.brought.base, read(leaf, "/file")) == ("m1", new)
    shown = {r.name: (r.via, r.newest) for r in replicas(source)}
    assert shown == {"middle": ("", "m2"), "leaf": ("", "m3")}
    source.forget_replica("middle")
    source.delete_snapshot("m1", "m2")
    # a stale report does not count: the middle comes back and tells of where the leaf was
    with bp.Volume.open(middle.path) as again:
        assert {r.name: r.newest for r in replicas(again)} == {"leaf": "m1"}
        pull(VolumePeer(leaf), again)  # and is fed by who was below it
        assert standing(again) == {"master": "m3"}
        pull(VolumePeer(source), again)
    assert {r.name: (r.via, r.newest) for r in replicas(source)} == {"leaf": ("", "m3"), "middle": ("", "m3")}
    assert bp.check(source).problems == bp.check(leaf).problems == []


def test_a_source_that_is_behind_hears_and_gives_nothing(make, rng):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    master(copy, "m2", rng.bytes(9000))  # the copy was taken over
    found = pull(VolumePeer(source), copy)
    assert (found.is_ahead, found.moved, standing(copy)) == (True, (), {"master": "m2"})
    assert replicas(source)[0].newest == "m1"
    assert pull(VolumePeer(copy), source).top == "m2"
    assert standing(source) == {"master": "m2"}


@pytest.mark.parametrize("is_later", [False, True])
def test_a_source_that_was_put_back_moves_its_pointer_a_second_time(make, rng, monkeypatch, tmp_path, is_later):
    source, copy, leaf = make("source"), make("copy"), make("leaf")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    source.close()
    shutil.copytree(source.path, tmp_path / "before")
    with bp.Volume.open(source.path) as source:
        master(source, "m2", b"m2")
        pull(VolumePeer(source), copy)
        moved_ns = next(p.moved_ns for p in source.pointers)
    with bp.Volume.open(tmp_path / "before") as source:
        write(source, "/file", b"new")
        source.snapshot("new")
        with monkeypatch.context() as patch:
            patch.setattr("blockplane.volume.pointers.time.time_ns", lambda: moved_ns + (1 if is_later else -1))
            source.make_master("new")  # of the same version as m2, by the same volume
        for already_there in (False, True):
            found = pull(VolumePeer(source), copy)
            assert found.is_ahead is not is_later
            assert found.brought.already_there == (already_there or not is_later)
            expected = ("new", b"new") if is_later else ("m2", b"m2")
            assert (standing(copy)["master"], read(copy, "/file")) == expected
        assert pull(VolumePeer(copy), leaf).top == expected[0]
        assert pull(VolumePeer(source), leaf).is_ahead is not is_later
        assert pull(VolumePeer(copy), source).top == expected[0]
        assert standing(source) == standing(copy) == standing(leaf)
        assert not pull(VolumePeer(source), copy).is_ahead


@pytest.mark.parametrize(("changes", "left"), [(None, "m3"), (None, "own"), (LocalChanges.FLUSH, None)])
def test_what_a_source_that_was_put_back_does_not_know_is_held(make, rng, tmp_path, changes, left):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    source.close()
    shutil.copytree(source.path, tmp_path / "before")
    with bp.Volume.open(source.path) as source:
        for name in ("m2", "m3"):
            master(source, name, name.encode())
        pull(VolumePeer(source), copy)
    if left == "own":
        copy.snapshot("own")
    with bp.Volume.open(tmp_path / "before") as source:
        master(source, "n1", b"n1")
        assert pull(VolumePeer(source), copy, changes=changes).is_ahead
        master(source, "n2", b"n2")
        report = pull(VolumePeer(source), copy, changes=changes)
        assert (report.top, report.left) == ("n2", left)
        master(source, "n3", b"n3")
        assert pull(VolumePeer(source), copy, changes=changes).left is None
    copy.prune(Policy(last=1))
    assert [s.name for s in copy.snapshots if s.name in ("m3", "own")] == ([left] if left else [])


def test_a_replicas_own_snapshots_of_what_it_was_brought_are_not_left(make, rng):
    source, copy = make("source"), make("copy")
    for number in range(4):
        master(source, f"m{number}", rng.bytes(9000))
        assert pull(VolumePeer(source), copy).left is None
        copy.snapshot(f"own{number}")
        copy.prune(Policy(last=2, only=("own*",)))
    assert [s.name for s in copy.snapshots if s.name.startswith("own")] == ["own2", "own3"]
    write(copy, "/file", b"work")
    copy.snapshot("work")
    master(source, "m4", b"m4")
    assert pull(VolumePeer(source), copy).left == "work"


def test_who_follows_a_replicas_own_pointer_passes_masters(make, rng):
    source, middle, leaf = make("source"), make("middle"), make("leaf")
    for number in range(4):
        master(source, f"m{number}", rng.bytes(9000))
        pull(VolumePeer(source), middle)
        middle.snapshot(f"own{number}")
        middle.move_pointer("mine", f"own{number}")
        pull(VolumePeer(middle), leaf, "mine")
        pull(VolumePeer(source), middle)
    assert {r.name: r.newest for r in replicas(source)} == {"middle": "m3", "leaf": "m2"}
    assert source.prune(Policy(last=1)).deleted == ["m1", "m0"]
    assert (pull(VolumePeer(source), leaf).brought.base, read(leaf, "/file")) == ("m2", read(source, "/file"))


def test_what_is_left_for_one_that_stands_at_what_is_unknown_is_not_known(make, rng):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    table = source.local.replication()
    (record,) = table.replicas
    source.local.set_replication(replace(table, replicas=(replace(record, stands=b"?" * 16),)))
    source.commit()
    (found,) = replicas(source)
    assert (found.newest, found.left_blocks) == (None, None)


def test_metrics_of_copies_are_of_now(make, rng, monkeypatch):
    monkeypatch.setattr("blockplane.server.service.copies._COUNT_EVERY_S", 0.0)
    source, copy, copies = make("source"), make("copy"), Copies()
    for name in ("m1", "m2"):
        master(source, name, rng.bytes(9000))
        assert [each.left_bytes > 0 for each in copies.of(source.path, source)] == [True] * (name == "m2")
        pull(VolumePeer(source), copy)
        assert [each.left_bytes for each in copies.of(source.path, source)] == [0]


def test_a_mirror_that_is_asked_is_heard_of_though_nothing_is_brought(make, rng, monkeypatch):
    monkeypatch.setattr("blockplane.server.service.copies._COUNT_EVERY_S", 0.0)
    source, copy, copies = make("source"), make("copy"), Copies()
    write(source, "/file", rng.bytes(9000))
    near = mirrors.Peers(lambda _: nullcontext(VolumePeer(copy)))
    mirrors.add(source, str(copy.path), peers=near)
    list(mirrors.run_once(source, peers=near))
    (first,) = copies.of(source.path, source)
    monkeypatch.setattr(running, "ASK_EVERY_S", 0.0)
    (ran,) = mirrors.run_once(source, peers=near, now=True)
    assert ran.report.outcome == "idle"
    (second,) = copies.of(source.path, source)
    assert second.heard_s > first.heard_s


def test_two_volumes_that_pull_from_each_other_do_not_wait_for_each_other(make, rng, monkeypatch):
    one, two, met = make("one"), make("two"), threading.Barrier(2, timeout=60)
    master(one, "m1", rng.bytes(9000))
    pull(VolumePeer(one), two)
    monkeypatch.setattr(updates, "WAIT_S", 600.0)

    class Meeting(VolumePeer):
        def bring(self, *words, **options):
            met.wait()  # both updates are under way
            return super().bring(*words, **options)

    found = []
    pulls = [
        threading.Thread(target=lambda source, target: found.append(pull(Meeting(source), target).top), args=pair)
        for pair in ((one, two), (two, one))
    ]
    for thread in pulls:
        thread.start()
    for thread in pulls:
        thread.join(60)
    assert found == ["m1", "m1"]


def test_moves_to_one_snapshot_in_two_places_are_no_reason_to_stop(make, rng):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    copy.move_pointer("master", "m1")
    found = pull(VolumePeer(source), copy)
    assert (found.is_ahead, found.brought.already_there, found.top) == (False, True, "m1")


def test_moves_in_two_places_end_the_same_everywhere(make, rng):
    one, two = make("one"), make("two")
    for name in ("a", "b", "c"):
        write(one, "/file", rng.bytes(9000))
        one.snapshot(name)
    one.move_pointer("master", "c")
    pull(VolumePeer(one), two)
    one.move_pointer("master", "a")
    two.move_pointer("master", "b")
    for _ in range(2):
        pull(VolumePeer(one), two)
        pull(VolumePeer(two), one)
    assert standing(one) == standing(two)
    assert standing(one)["master"] == ("a" if one.info.volume_id > two.info.volume_id else "b")


@pytest.mark.parametrize("moves_on", [False, True])
def test_an_interrupted_pull_is_known_as_such_and_goes_on(make, rng, moves_on):
    source, copy = make("source"), make("copy")
    write(source, "/large", rng.bytes(2_000_000))
    master(source, "m1", rng.bytes(9000))
    with pytest.raises(KeyboardInterrupt):
        pull(VolumePeer(source), copy, progress=cut)
    record = replicas(source)[0]
    assert (record.status, record.newest, record.error) == ("unknown", None, "KeyboardInterrupt()")
    assert standing(copy) == {}
    n_there = standing_of(copy).interrupted[0].n_landed
    n_image = source.image("m1").n_blocks
    assert 0 < n_there <= n_image
    if moves_on:  # what was under way stays held until it is settled
        master(source, "m2", rng.bytes(9000))
        with pytest.raises(RefusedError, match="held by mirror:copy"):
            source.delete_snapshot("m1")
    found = pull(VolumePeer(source), copy)
    assert (found.top, standing(copy)) == (("m2", {"master": "m2"}) if moves_on else ("m1", {"master": "m1"}))
    if not moves_on:
        assert found.brought.n_blocks == n_image - n_there
    assert [(r.status, r.newest, r.error) for r in replicas(source)] == [("idle", found.top, "")]
    assert read(copy, "/file") == read(source, "/file")


def cut(event):
    if event.phase == "blocks":
        raise KeyboardInterrupt


def tops(volume: bp.Volume) -> list[str]:
    return [found.top_name for found in interrupted_receives(volume)]


def test_what_interrupted_pulls_left_goes_when_a_later_one_has_arrived(make, rng):
    source, copy = make("source", 3), make("copy", 3)
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    write(source, "/large", rng.bytes(2_000_000))
    master(source, "m2", rng.bytes(9000))
    stream = io.BytesIO()
    bp.send(source.image("m2"), stream)
    with pytest.raises(StreamTruncatedError):  # a person's, who may go on with it
        bp.receive(io.BytesIO(stream.getvalue()[:1_500_000]), copy, discard=True)
    with pytest.raises(KeyboardInterrupt):
        pull(VolumePeer(source), copy, progress=cut)
    assert tops(copy) == ["m2", "m2"]
    source.forget_replica("copy")
    master(source, "m3", rng.bytes(9000))
    source.delete_snapshot("m2")
    found = pull(VolumePeer(source), copy)
    assert (found.top, found.brought.base, kinds(copy)) == ("m3", "m1", {"m1": "regular", "m3": "regular"})
    assert tops(copy) == ["m2"]
    assert interrupted_receives(copy)[0].is_full
    assert read(copy, "/file") == read(source, "/file")
    assert bp.check(copy).problems == []


def test_what_a_pull_of_another_pointer_left_stays(make, rng):
    source, copy = make("source", 3), make("copy", 3)
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    for name, n_bytes in (("small", 9000), ("big", 2_000_000)):
        write(source, "/large", rng.bytes(n_bytes))
        source.snapshot(name)
        source.move_pointer(f"the-{name}", name)
    with pytest.raises(KeyboardInterrupt):
        pull(VolumePeer(source), copy, "the-big", progress=cut)
    assert pull(VolumePeer(source), copy, "the-small").top == "small"
    assert tops(copy) == ["big"]
    assert pull(VolumePeer(source), copy, "the-big").top == "big"
    assert (tops(copy), read(copy, "/large")) == ([], read(source, "/large"))


def test_what_interrupted_pulls_left_gives_room(make, rng):
    source, copy = make("source", 3), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    for name in ("m2", "m3", "m4"):
        write(source, "/large", rng.bytes(2_000_000))
        master(source, name, rng.bytes(9000))
        if name != "m4":
            with pytest.raises(KeyboardInterrupt):
                pull(VolumePeer(source), copy, progress=cut)
    assert tops(copy) == ["m2", "m3"]
    assert copy.available_blocks < source.image("m4 + m3 + m2 - m1").n_blocks
    assert pull(VolumePeer(source), copy).top == "m4"
    assert (tops(copy), read(copy, "/file")) == ([], read(source, "/file"))
    assert bp.check(copy).problems == []


def test_who_asks_for_a_pointer_waits_until_the_update_is_done(make, rng):
    source, middle, leaf = make("source"), make("middle"), make("leaf")
    master(source, "m1", old := rng.bytes(9000))
    pull(VolumePeer(source), middle)
    master(source, "m2", rng.bytes(9000))
    held, asked, answers = threading.Event(), threading.Event(), []

    def slowly(event):
        asked.set()
        assert held.wait(60)

    update = threading.Thread(target=pull, args=(VolumePeer(source), middle), kwargs={"progress": slowly})
    update.start()
    assert asked.wait(60)
    request = threading.Thread(target=lambda: answers.append(pull(VolumePeer(middle), leaf).top))
    request.start()
    assert (read(middle, "/file"), standing(middle)) == (old, {"master": "m1"})  # readable all the same
    with giving(middle, "m1", standing_of(middle)) as gift:  # a snapshot by its own name is given at once
        assert gift.image is None
    assert (middle.updates.running != "", answers) == (True, [])
    held.set()
    update.join(60)
    request.join(60)
    assert answers == ["m2"]
    middle.updates._running = "the update of middle"
    with pytest.raises(RefusedError, match="is under way, and pointers do not move until it is done"):
        middle.updates.settled(wait_s=0.01)
    middle.updates._running = ""


def test_who_asks_during_an_update_that_lasts_is_given_the_state_before(make, rng, monkeypatch):
    source, middle, leaf, held = make("source"), make("middle"), make("leaf"), threading.Event()
    master(source, "m1", old := rng.bytes(9000))
    pull(VolumePeer(source), middle)
    master(source, "m2", new := rng.bytes(9000))
    update = threading.Thread(
        target=pull, args=(VolumePeer(source), middle), kwargs={"progress": lambda _: held.wait(60)}
    )
    update.start()
    wait_for(lambda: middle.updates.running, "the update")
    monkeypatch.setattr(updates, "WAIT_S", 0.1)
    assert pull(VolumePeer(middle), leaf).top == "m1"
    assert read(leaf, "/file") == old
    held.set()
    update.join(60)
    assert pull(VolumePeer(middle), leaf).top == "m2"
    assert read(leaf, "/file") == new


@pytest.mark.parametrize("changes", LocalChanges)
def test_changes_of_a_replica(make, rng, changes):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    pull(VolumePeer(source), copy)
    write(copy, "/mine", mine := rng.bytes(9000))
    master(source, "m2", rng.bytes(9000))
    if changes is LocalChanges.REFUSE:
        with pytest.raises(RefusedError, match="was written to since"):
            pull(VolumePeer(source), copy, changes=changes)
        assert (read(copy, "/mine"), standing(copy)) == (mine, {"master": "m1"})
        assert "was written to since" in replicas(source)[0].error
        return
    found = pull(VolumePeer(source), copy, changes=changes)
    assert standing(copy) == {"master": "m2"}
    assert (found.brought.kept is not None) == (changes is LocalChanges.KEEP)
    if found.brought.kept is not None:
        assert read(copy.get_snapshot(found.brought.kept), "/mine") == mine


def test_names_that_are_others_there(make, rng):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    write(copy, "/x", b"x")
    copy.snapshot("master")
    with pytest.raises(RefusedError, match="has a pointer master, and"):
        pull(VolumePeer(source), copy)
    copy.rename_snapshot("master", "mine")
    copy.move_pointer("m1", "mine")
    with pytest.raises(RefusedError, match="has a pointer of that name"):
        pull(VolumePeer(source), copy, changes=LocalChanges.KEEP)
    copy.delete_pointer("m1")
    pull(VolumePeer(source), copy, changes=LocalChanges.KEEP)
    assert standing(copy) == {"master": "m1"}


def test_a_volume_of_something_else_is_replaced_only_when_that_was_said(make, rng):
    source, other = make("source"), make("other")
    master(source, "m1", rng.bytes(9000))
    write(other, "/x", b"mine")
    other.sync()
    with pytest.raises(RefusedError, match="has content of its own, and nothing of"):
        pull(VolumePeer(source), other)
    assert (read(other, "/x"), standing(other), replicas(source)) == (b"mine", {}, [])
    kept = pull(VolumePeer(source), other, changes=LocalChanges.KEEP).brought.kept
    assert read(other.get_snapshot(kept), "/x") == b"mine"
    write(other, "/y", b"of a replica")
    master(source, "m2", rng.bytes(9000))
    assert pull(VolumePeer(source), other).brought.kept, "a replica by now: its changes are kept"


def test_a_shadow_in_the_way_is_left_out(make, rng):
    source, copy = make("source"), make("copy")
    for name in ("m1", "m2"):
        master(source, name, rng.bytes(9000))
        pull(VolumePeer(source), copy)
    copy.move_pointer("master", "m1")
    copy.rollback("m1")
    copy.shadow_snapshot("m2")
    with pytest.raises(RefusedError, match="there as a shadow"):
        VolumePeer(source).bring("m2", copy, LocalChanges.FLUSH)
    master(source, "m3", new := rng.bytes(9000))
    source.move_pointer("master", "m3")
    found = VolumePeer(source).bring("m3", copy, LocalChanges.FLUSH)
    assert (found.base, kinds(copy)) == ("m1", {"m1": "regular", "m2": "shadow", "m3": "regular"})
    assert read(copy, "/file") == new


def test_a_full_source_still_gives(make, rng, monkeypatch):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(9000))
    room = type(source).available_blocks.fget  # as where files have taken all but the reserve
    monkeypatch.setattr(type(source), "available_blocks", property(lambda v: 0 if v is source else room(v)))
    with pytest.raises(bp.errors.NoSpaceError, match="no room for marks"):
        source.destinations.begin("tape", "m1")
    assert pull(VolumePeer(source), copy).top == "m1"
    assert [r.newest for r in replicas(source)] == ["m1"]


def test_labels_that_are_taken_or_strange(make, tmp_path, rng):
    source = make("source")
    master(source, "m1", rng.bytes(9000))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with bp.Volume.create(tmp_path / folder / "c py", disks=1, size="6MiB") as copy:
            pull(VolumePeer(source), copy)
            last = copy.info.volume_id.hex()
    assert [r.name for r in records_of(source)] == ["c_py", f"c_py-{last[:8]}"]


def test_nobody_waits_for_a_master_that_no_pointer_leads_to(make, rng):
    source, copy = make("source"), make("copy")
    for name in ("m1", "m2"):
        master(source, name, rng.bytes(9000))
        pull(VolumePeer(source), copy)
    source.move_pointer("master", "m1")
    with pytest.raises(RefusedError, match="held by"):  # it is what the replica builds on
        source.delete_snapshot("m2")
    source.rollback("m1")
    for name in ("m3", "m4"):
        master(source, name, rng.bytes(9000))
        pull(VolumePeer(source), copy)
    assert source.prune(Policy(last=1), dry_run=True).deleted[-1] == "m1"
    source.delete_snapshot("m2")
    assert pull(VolumePeer(source), copy).top == "m4"


def test_where_replicas_stand_beyond_a_pointer_beside_it_and_without_one(make, rng):
    source, copy = make("source"), make("copy")
    for name in ("m1", "m2"):
        master(source, name, rng.bytes(9000))
        pull(VolumePeer(source), copy)
    source.move_pointer("old", "m1")
    (beyond,) = replicas(source, "old")
    assert (beyond.newest, beyond.wanted, beyond.lag_s, beyond.left_blocks) == ("m2", "m1", 0.0, 0)
    source.rollback("m1")
    master(source, "m3", rng.bytes(9000))
    (beside,) = replicas(source)
    assert (beside.newest, beside.wanted, beside.left_blocks, beside.lag_s > 0) == ("m2", "m3", None, True)
    assert beside.lag_s < 60
    source.delete_pointer("master")
    (without,) = replicas(source)
    assert (without.newest, without.wanted, without.left_blocks) == ("m2", "", None)
    with pytest.raises(NoSuchSnapshotError):
        replicas(source, "nowhere")


def test_no_pointer_takes_the_name_of_a_stored_image(make, rng):
    source, copy = make("source"), make("copy")
    master(source, "m1", rng.bytes(20_000))
    pull(VolumePeer(source), copy)
    copy.save_image("stable", "m1")
    source.move_pointer("stable", "m1")
    with pytest.raises(RefusedError, match="a stored image of that name") as refused:
        pull(VolumePeer(source), copy)
    assert f"blockplane image delete {copy.path} stable" in refused.value.hint
    assert standing(copy) == {"master": "m1"}
    copy.delete_image("stable")
    pull(VolumePeer(source), copy)
    assert standing(copy) == {"master": "m1", "stable": "m1"}


def test_a_replica_that_became_the_source_again_keeps_nobodys_masters(make, rng):
    one, two = make("one"), make("two")
    master(one, "m1", rng.bytes(9000))
    pull(VolumePeer(one), two)
    master(two, "m2", rng.bytes(9000))
    pull(VolumePeer(two), one)  # two took over, and one was brought what it has
    for name in ("m3", "m4", "m5"):
        master(one, name, rng.bytes(9000))
        pull(VolumePeer(one), two)
    (known,) = replicas(two)
    assert (known.name, known.newest, known.left_bytes) == ("one", "m5", 0)
    prune(two, Policy(last=1))
    assert list(kinds(two)) == ["m5"]
    assert bp.check(two).problems == bp.check(one).problems == []
