"""Pins, and snapshots that are deleted when nothing needs them any more."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from unittest import mock

import pytest

from blockplane.image import build
from blockplane.image.image import freed_blocks
from blockplane.model import ChecksumError, DiskError, NoSuchSnapshotError, RefusedError, SnapshotExistsError
from blockplane.volume import Policy, Volume, deferred, deleting, holds
from blockplane.volume.codec import TableEntry
from blockplane.volume.local import LocalTree
from blockplane.volume.pins import Pins, reading_for
from blockplane.volume.retention import prune
from faults.crash import Plan, crash_states
from faults.recording import Recorder
from faults.world import (
    FileClient,
    Files,
    again,
    fill,
    geometry_of,
    image_plane,
    make_volume,
    open_volume,
    raw_blocks,
    read_files,
    receive,
    snapshot_files,
    verdict,
)

HOUR_NS = 3600 * 10**9


pytestmark = pytest.mark.usefixtures("inline")


def three_snapshots() -> Volume:
    made = make_volume(geometry_of(3, 1, 256))
    client = FileClient(made)
    for number, name in enumerate(("one", "two", "three")):
        client.write(1, 0, range(number * 10, number * 10 + 10))
        client.write(number + 2, 0, range(5))
        made.snapshot(name)
    return made


@pytest.fixture
def volume() -> Volume:
    return three_snapshots()


def kinds(volume: Volume) -> dict[str, str]:
    return {snapshot.name: snapshot.kind for snapshot in volume.snapshots}


@contextlib.contextmanager
def read(volume: Volume, name: str) -> Iterator[None]:
    with volume.pin(volume.get_snapshot(name).record.id):
        yield


def test_what_is_read_stays_and_the_refusal_says_who_reads(volume):
    volume.pins.verb = "send"
    with read(volume, "two"):
        for attempt, may_defer in (
            (lambda: volume.delete_snapshot("two"), True),
            (lambda: volume.delete_snapshot("one", "two"), True),
            (lambda: volume.rollback("one", drop_later=True), True),
            (lambda: volume.shadow_snapshot("two"), False),
        ):
            with pytest.raises(
                RefusedError, match=rf"^snapshot 'two' is being read by send \(process {os.getpid()}\), since 20\d\d-"
            ) as refusal:
                attempt()
            assert ("--defer" in refusal.value.hint) == may_defer
        assert kinds(volume) == {"one": "regular", "two": "regular", "three": "regular"}
    assert volume.delete_snapshot("two") > 0
    verdict(volume)


def test_whoever_takes_a_plane_reads_the_snapshot(volume: Volume) -> None:
    """It is pinned until its plane is there: not deleted in the middle, its blocks written anew."""
    one, pinned = volume.get_snapshot("one"), []
    real = volume.plane

    def plane(state: object) -> object:
        with contextlib.suppress(RefusedError):
            volume.delete_snapshot("one")
        pinned.append(volume.is_pinned(one.entry.record.id))
        return real(state)

    with mock.patch.object(volume, "plane", plane):
        taken = one.plane
    assert pinned == [True]
    assert taken == real(volume.get_snapshot("one").state)
    assert not volume.is_pinned(one.entry.record.id)


def test_a_reader_in_another_process_is_named(volume):
    token = reading_for.set(("get", 4711))
    with read(volume, "two"):
        reading_for.reset(token)
        (pin,) = volume.get_snapshot("two").pins
        assert (pin.verb, pin.pid, pin.snapshot_id) == ("get", 4711, volume.get_snapshot("two").record.id)
        assert time.time_ns() - pin.since_ns < 60 * 10**9
    assert volume.get_snapshot("two").pins == []


def test_pins_of_several_readers_end_one_by_one():
    gone: list[bytes] = []
    pins = Pins("test", gone.append)
    with pins.hold(b"a"):
        with pins.hold(b"b"), pins.hold(b"a"):
            assert [pin.snapshot_id for pin in pins.all()] == [b"a", b"b", b"a"]
        assert (pins.has(b"a"), pins.has(b"b"), gone) == (True, False, [b"b"])
    assert (pins.all(), gone) == ([], [b"b", b"a"])


def test_a_deferred_snapshot_goes_with_its_last_reader(volume):
    two = volume.get_snapshot("two")
    files, expected = snapshot_files(volume)["two"], deleting.freed_by(volume, ["two"])
    free = volume.free_blocks
    with read(volume, "two"):
        with read(volume, "two"):
            assert volume.delete_snapshot("two", defer=True) == 0
            assert kinds(volume) == {"one": "regular", "two": "deleting", "three": "regular"}
        volume._on_time()
        assert kinds(volume).get("two") == "deleting"
        assert read_files(two.state) == files
        verdict(volume)
    assert kinds(volume) == {"one": "regular", "three": "regular"}
    volume.sync()
    assert expected > 0
    assert volume.local.root.n_deleting == 0
    volume.commit(force=True)
    volume.commit(force=True)
    assert volume.free_blocks > free
    verdict(volume)


def test_of_several_only_what_is_read_is_deferred(volume):
    with read(volume, "one"):
        assert volume.delete_snapshot("one", "two", defer=True) > 0
        assert kinds(volume) == {"one": "deleting", "three": "regular"}
    assert kinds(volume) == {"three": "regular"}
    verdict(volume)


def test_what_is_being_deleted_is_no_part_of_anything_new(volume):
    with read(volume, "two"):
        volume.delete_snapshot("two", defer=True)
        for attempt in (
            lambda: build(volume, "two"),
            lambda: build(volume, "three - two"),
            lambda: volume.hold_snapshot("two", "me"),
            lambda: volume.rename_snapshot("two", "other"),
            lambda: volume.rollback("two"),
            lambda: volume.shadow_snapshot("two"),
            lambda: volume.mark("two"),
            lambda: volume.destinations.begin("away", "two"),
        ):
            with pytest.raises(RefusedError, match="is being "):
                attempt()
        with pytest.raises(SnapshotExistsError):
            volume.snapshot("two")
        assert [record.name for record in build(volume, "one..three").records()] == ["three", "one"]
        assert freed_blocks(volume, ["one"]) == deleting.freed_by(volume, ["one"])
    volume.snapshot("two")
    verdict(volume)


@pytest.mark.parametrize("by", ["a hold", "a reader"])
def test_a_shadow_that_is_deferred_stays_a_shadow(volume, by):
    """Its blocks may be others' by now: it holds none of them, and frees none of them when it goes."""
    volume.shadow_snapshot("one")
    client = FileClient(volume)
    for turn in range(6):
        client.write(7, 0, range(1000 * turn, 1000 * turn + 60))
        volume.sync()
    volume.snapshot("four")
    client.remove(7)
    volume.sync()
    then = snapshot_files_of(volume, "two", "three", "four")
    n_held, n_left = volume.local.root.n_held, volume.get_snapshot("one").n_blocks
    with contextlib.ExitStack() as reading:
        if by == "a hold":
            volume.hold_snapshot("one", "me")
        else:
            reading.enter_context(read(volume, "one"))
        assert volume.delete_snapshot("one", defer=True) == 0
        assert kinds(volume)["one"] == "deleting"
        assert volume.local.root.n_held == n_held
        for attempt in (
            lambda: build(volume, "four - one", with_=["one"]),
            lambda: volume.hold_snapshot("one", "other"),
            lambda: volume.rename_snapshot("one", "other"),
        ):
            with pytest.raises(RefusedError, match="is being deleted"):
                attempt()
        with pytest.raises(RefusedError, match="is a shadow"):
            volume.get_snapshot("one").state  # noqa: B018
        client.write(8, 0, range(9000, 9060))
        volume.sync()
        assert volume.get_snapshot("one").n_blocks <= n_left
        verdict(volume)
        if by == "a hold":
            volume = again(volume)
            assert kinds(volume)["one"] == "deleting"
            volume.release_snapshot("one", "me")
    assert "one" not in kinds(volume)
    assert volume.local.root.n_shadows == 0
    client = FileClient(volume)
    for turn in range(6):
        client.write(9, 0, range(2000 * turn, 2000 * turn + 60))
        volume.sync()
    volume = again(volume)
    assert snapshot_files_of(volume, "two", "three", "four") == then
    verdict(volume)


def snapshot_files_of(volume: Volume, *names: str) -> dict[str, Files]:
    return {name: read_files(volume.get_snapshot(name).state) for name in names}


def test_what_is_held_waits_for_its_last_hold(volume):
    volume.hold_snapshot("two", "a")
    volume.hold_snapshot("two", "b", time.time_ns() + HOUR_NS)
    assert volume.delete_snapshot("two", defer=True) == 0
    volume = again(volume)
    assert kinds(volume)["two"] == "deleting"
    volume.release_snapshot("two", "a")
    assert kinds(volume)["two"] == "deleting"
    volume.release_snapshot("two", "b")
    assert "two" not in kinds(volume)
    assert again(volume).local.holds() == []


def test_a_hold_that_expires_lets_it_go_at_the_next_turn_of_the_timer_or_opening(volume):
    volume.hold_snapshot("one", "a", time.time_ns() + HOUR_NS)
    volume.hold_snapshot("two", "a", time.time_ns() + HOUR_NS)
    volume.delete_snapshot("one", "two", defer=True)
    volume._on_time()
    assert list(kinds(volume).values()) == ["deleting", "deleting", "regular"]
    with read(volume, "two"), mock.patch("time.time_ns", return_value=time.time_ns() + 2 * HOUR_NS):
        volume._on_time()
        assert kinds(volume) == {"two": "deleting", "three": "regular"}
        volume = again(volume)
    assert kinds(volume) == {"three": "regular"}
    verdict(volume)


def test_expired_holds_are_shown_and_go_with_a_change_a_month_later(volume):
    volume.hold_snapshot("one", "old", time.time_ns() + HOUR_NS)
    volume.hold_snapshot("two", "also", time.time_ns() + HOUR_NS)
    with mock.patch("time.time_ns", return_value=time.time_ns() + 31 * 24 * HOUR_NS):
        one = volume.get_snapshot("one")
        assert ([hold.owner for hold in one.holds], [hold.owner for hold in one.expired_holds]) == ([], ["old"])
        volume.release_snapshot("one", "old")
        assert volume.local.holds() == []


def test_a_rollback_that_is_refused_makes_no_snapshot(volume):
    volume.hold_snapshot("three", "mirror:there")
    before = [snapshot.name for snapshot in volume.snapshots]
    with pytest.raises(RefusedError, match="held by mirror:there"):
        volume.rollback("one", drop_later=True, defer=True)
    assert [snapshot.name for snapshot in volume.snapshots] == before


def test_a_rollback_defers_what_is_read(volume):
    with read(volume, "three"):
        volume.rollback("one", drop_later=True, defer=True)
        assert kinds(volume) == {"one": "regular", "three": "deleting"}
    assert kinds(volume) == {"one": "regular"}
    verdict(volume)


def test_a_rollback_keeps_what_only_a_snapshot_has_that_is_being_deleted(volume):
    volume.hold_snapshot("three", "me")
    volume.delete_snapshot("three", defer=True)
    then = read_files(volume.state())
    kept = volume.rollback("one")
    assert kept == "before-rollback-to-one"
    volume.release_snapshot("three", "me")
    assert set(kinds(volume)) == {"one", "two", kept}
    assert read_files(volume.get_snapshot(kept).state) == then
    verdict(volume)


def test_what_cannot_go_stays_and_the_others_go(volume, monkeypatch):
    """When the volume is opened, and at the end of a hold: nobody is refused anything for it."""
    for name in ("one", "two"):
        volume.hold_snapshot(name, "me", time.time_ns() + HOUR_NS)
    volume.hold_snapshot("three", "me")
    volume.delete_snapshot("one", "two", "three", defer=True)
    drop = deleting.drop

    def fail_for_one(volume: Volume, gone: list[TableEntry]) -> int:
        if any(entry.record.name == "one" for entry in gone):
            raise ChecksumError("block 7 does not match its checksum", 7)
        return drop(volume, gone)

    with monkeypatch.context() as patched, mock.patch.object(time, "time_ns", return_value=2**62):
        patched.setattr(deleting, "drop", fail_for_one)
        volume = again(volume)
        assert kinds(volume) == {"one": "deleting", "three": "deleting"}
        volume.release_snapshot("three", "me")
        assert kinds(volume) == {"one": "deleting"}
        said = "snapshot 'one' is being deleted, and cannot go: block 7 does not match its checksum"
        assert volume.warnings == [said]
        FileClient(volume).write(5, 0, range(10))
        volume.sync()
        volume = again(volume)
        assert volume.warnings == [said]
    volume = again(volume)
    verdict(volume)


def test_a_deletion_that_fails_half_way_stops_the_volume(volume, monkeypatch):
    volume.hold_snapshot("two", "me")
    volume.delete_snapshot("two", defer=True)

    def fail(*_: object) -> None:
        raise DiskError("disk0: read: Input/output error", "disk0")

    with monkeypatch.context() as patched:
        patched.setattr(LocalTree, "set_entries", fail)
        with pytest.raises(DiskError):
            volume.release_snapshot("two", "me")
    assert volume.stopped_at
    volume = again(volume)
    assert "two" not in kinds(volume)
    verdict(volume)


def test_pruning_keeps_what_is_read_and_deletes_the_rest(volume):
    with read(volume, "two"):
        would = prune(volume, Policy(last=1), dry_run=True)
        report = prune(volume, Policy(last=1))
        assert [(v.name, v.reasons) for v in report.verdicts] == [
            ("three", ("last",)),
            ("two", ("being read",)),
            ("one", ()),
        ]
        assert (report.verdicts, report.freed_blocks) == (would.verdicts, would.freed_blocks)
        assert kinds(volume) == {"two": "regular", "three": "regular"}
    assert prune(volume, Policy(last=1)).deleted == ["two"]
    verdict(volume)


def test_pruning_defers_what_is_read(volume):
    with read(volume, "two"):
        would = prune(volume, Policy(last=1), dry_run=True, defer=True)
        report = prune(volume, Policy(last=1), defer=True)
        assert (report.deleted, report.deferred) == (["two", "one"], ("two",))
        assert (would.deleted, would.deferred, would.freed_blocks) == (report.deleted, ("two",), report.freed_blocks)
        assert kinds(volume) == {"two": "deleting", "three": "regular"}
    assert kinds(volume) == {"three": "regular"}


def test_a_reader_for_reading_leaves_it_to_a_writer(volume):
    with read(volume, "two"):
        volume.delete_snapshot("two", defer=True)
        disks = volume.array.disks
        volume.abandon()
    for disk in disks:
        disk.is_closed = False
    reader = open_volume(disks, writable=False)
    assert kinds(reader)["two"] == "deleting"
    with read(reader, "two"):
        pass
    assert kinds(reader)["two"] == "deleting"
    assert kinds(again(reader)) == {"one": "regular", "three": "regular"}


def test_what_is_being_deleted_does_not_arrive_again(volume):
    copy = make_volume(geometry_of(3, 1, 256))
    receive(volume, copy, "one")
    with read(copy, "one"):
        copy.delete_snapshot("one", defer=True)
        assert kinds(copy) == {"one": "deleting"}
    receive(volume, copy, "one")
    assert kinds(copy) == {"one": "regular"}
    verdict(copy)


def test_a_kill_between_the_mark_and_the_end_of_the_reader(record_property):
    """Every crash from the deferring to the deletion: the snapshot is regular and whole, or gone after opening."""
    geometry = geometry_of(2, 1, 128)
    recorder = Recorder()
    for disk in range(3):
        recorder.disk(raw_blocks(geometry, disk))
    volume = make_volume(geometry, recorder.disks)
    client = FileClient(volume)
    for number, name in enumerate(("one", "two", "three")):
        client.write(1, 0, range(number * 10, number * 10 + 10))
        volume.snapshot(name)
    files = snapshot_files(volume)
    recorder.start()
    with read(volume, "two"):
        volume.delete_snapshot("two", defer=True)
        recorder.mark("deferred")
        client.write(1, 0, range(7))
        volume.sync()
    recorder.mark("gone")
    outcomes = {"regular": 0, "gone": 0}
    for state in crash_states(recorder, Plan(n_random=10, max_pairs=20, n_torn=1)):
        opened = open_volume(state.disks)
        names = kinds(opened)
        assert names in ({"one": "regular", "three": "regular"}, dict.fromkeys(files, "regular")), state.description
        assert snapshot_files(opened) == {name: files[name] for name in names}
        outcomes["regular" if "two" in names else "gone"] += 1
        assert not (state.marks and "two" in names), state.description
        assert opened.local.root.n_deleting == 0
        verdict(opened)
    record_property("summary", f"crashes round a deferred deletion: {outcomes}")
    assert min(outcomes.values()) > 10


def test_readers_and_deletions_side_by_side(volume):
    """Threads pin, read and leave while others delete with --defer: nothing read is ever gone, all goes in the end."""
    expected = snapshot_files(volume)
    problems: list[str] = []
    started = threading.Barrier(3)

    def reader() -> None:
        started.wait()
        for _ in range(10):
            try:
                with read(volume, "two"):
                    if read_files(volume.get_snapshot("two").state) != expected["two"]:
                        problems.append("other bytes")
            except NoSuchSnapshotError:
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test looks for
                problems.append(repr(error))

    threads = [threading.Thread(target=reader) for _ in range(2)]
    with read(volume, "two"):
        for thread in threads:
            thread.start()
        started.wait()
        volume.delete_snapshot("two", defer=True)
    for thread in threads:
        thread.join()
    assert problems == []
    assert "two" not in kinds(volume)
    verdict(volume)


# --- planted: a pin that is not honoured ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "what", "bug"),
    [
        (holds, "needs", lambda volume, entry: iter(())),
        (Pins, "of", lambda pins, snapshot_id: []),
        (deferred, "needs", lambda volume, entry: iter(())),
    ],
    ids=["nothing is needed", "nobody pins", "deleted although it is read"],
)
def test_a_pin_that_is_not_honoured_is_found(where, what, bug):
    def all_of_them() -> None:
        test_what_is_read_stays_and_the_refusal_says_who_reads(three_snapshots())
        test_a_deferred_snapshot_goes_with_its_last_reader(three_snapshots())

    all_of_them()
    with mock.patch.object(where, what, bug), pytest.raises((AssertionError, pytest.fail.Exception)):
        all_of_them()


def test_a_pin_whose_end_is_not_noticed_is_found():
    with mock.patch.object(Volume, "_unpinned"), pytest.raises(AssertionError):
        test_a_deferred_snapshot_goes_with_its_last_reader(three_snapshots())


def test_a_snapshot_beside_a_receive_that_it_would_fail_is_refused(volume):
    copy = make_volume(geometry_of(3, 1, 256))
    FileClient(copy).write(1, 0, range(3))
    plane = image_plane(volume, "one")
    landing = copy.landing(plane)
    with pytest.raises(RefusedError, match="is receiving what replaces its live file system"):
        copy.snapshot("mine")
    fill(landing, volume, "one", plane)
    landing.commit([volume.get_snapshot("one").record])
    assert kinds(copy) == {"one": "regular"}
    receiving = copy.landing(image_plane(volume, "two", "one"), copy.get_snapshot("one"))
    copy.snapshot("beside")  # of a replica: nothing of the live state changes
    fill(receiving, volume, "two", image_plane(volume, "two", "one"))
    receiving.commit([volume.get_snapshot("two").record])
    assert kinds(copy) == {"one": "regular", "beside": "regular", "two": "regular"}
    verdict(copy)
