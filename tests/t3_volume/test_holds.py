"""Holds: snapshots that somebody wants kept."""

from __future__ import annotations

import time
from unittest import mock

import pytest

from blockplane.model import NoSuchSnapshotError, RefusedError, UsageError
from blockplane.volume import Policy, Volume
from blockplane.volume.holds import hold_by_id, release_all
from blockplane.volume.retention import prune
from faults.world import FileClient, again, geometry_of, make_volume, verdict

HOUR_NS = 3600 * 10**9


pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def volume() -> Volume:
    made = make_volume(geometry_of(3, 1, 256))
    FileClient(made).write(1, 0, range(10))
    made.snapshot("one")
    made.snapshot("two")
    return made


def test_what_is_held_for_a_mirror_or_a_replica_is_let_go_by_its_own_verb(volume):
    """Its hold alone would come back, or leave it with nothing to build on."""
    volume.destinations.begin("far.0123", "two")
    volume.destinations.succeed("far.0123")
    with pytest.raises(RefusedError, match=r"'two' is held by mirror:far\.0123$") as refusal:
        volume.delete_snapshot("two")
    assert "blockplane mirror remove nowhere far.0123" in refusal.value.hint
    volume.destinations.forget("far.0123")
    volume.delete_snapshot("two")


def test_what_is_held_stays(volume):
    volume.hold_snapshot("two", "mirror:b")
    for attempt in (
        lambda: volume.delete_snapshot("two"),
        lambda: volume.delete_snapshot("one", "two"),
        lambda: volume.shadow_snapshot("two"),
        lambda: volume.rollback("one", drop_later=True),
    ):
        with pytest.raises(RefusedError, match=r"'two' is held by mirror:b$") as refusal:
            attempt()
        assert "snapshot release nowhere@two mirror:b" in refusal.value.hint
    assert [s.name for s in volume.snapshots] == ["one", "two"]
    assert volume.get_snapshot("two").kind == "regular"
    verdict(volume)


def test_a_hold_outlives_the_process_and_follows_the_snapshot(volume):
    volume.hold_snapshot("one", "me")
    volume.rename_snapshot("one", "first")
    volume = again(volume)
    with pytest.raises(RefusedError, match="held by me"):
        volume.delete_snapshot("first")
    volume.release_snapshot("first", "me")
    volume.delete_snapshot("first")
    assert again(volume).local.holds() == []


def test_several_owners(volume):
    volume.hold_snapshot("one", "a")
    volume.hold_snapshot("one", "b", time.time_ns() + HOUR_NS)
    made = volume.hold_snapshot("one", "a", time.time_ns() + 2 * HOUR_NS)
    assert [hold.owner for hold in volume.get_snapshot("one").holds] == ["b", "a"]
    assert volume.get_snapshot("one").holds[1] == made
    assert volume.get_snapshot("two").holds == []
    volume.release_snapshot("one", "a")
    with pytest.raises(RefusedError, match=r"held by b until \d{4}-\d\d-\d\d \d\d:\d\d UTC"):
        volume.delete_snapshot("one")
    with pytest.raises(RefusedError, match="a does not hold one") as refusal:
        volume.release_snapshot("one", "a")
    assert refusal.value.hint == "it is held by b"
    verdict(volume)


def test_a_hold_ends_by_itself(volume):
    volume.hold_snapshot("one", "a", time.time_ns() + HOUR_NS)
    later = time.time_ns() + 2 * HOUR_NS
    with mock.patch("time.time_ns", return_value=later):
        assert volume.get_snapshot("one").holds == []
        volume.delete_snapshot("one")
    assert volume.local.holds() == []


def test_holds_of_transfers_clear_what_expired_long_ago_away(volume):
    one, two = (snapshot.record.id for snapshot in volume.snapshots)
    for change in (lambda: hold_by_id(volume, two, "send:two"), lambda: release_all(volume, "send:two")):
        volume.hold_snapshot("one", "yesterday", time.time_ns() + HOUR_NS)
        with mock.patch("time.time_ns", return_value=time.time_ns() + 32 * 24 * HOUR_NS):
            assert [hold.owner for hold in volume.get_snapshot("one").expired_holds] == ["yesterday"]
            change()
            volume.commit()
        assert [hold for hold in volume.local.holds() if hold.snapshot_id == one] == []
    assert volume.local.holds() == []
    verdict(volume)


def test_a_clock_that_was_ahead_for_a_while_ends_no_hold(volume):
    volume.hold_snapshot("one", "me", time.time_ns() + 24 * HOUR_NS)
    ahead = time.time_ns() + 20 * 24 * HOUR_NS
    with mock.patch("time.time_ns", return_value=ahead):
        volume.hold_snapshot("two", "another")
        volume.release_snapshot("two", "another")
        assert [hold.owner for hold in volume.get_snapshot("one").expired_holds] == ["me"]
    with pytest.raises(RefusedError, match="held by me"):
        volume.delete_snapshot("one")
    verdict(volume)


@pytest.mark.parametrize("owner", ["base", "mirror:there", "replica:there", "receive:one", "offer:one"])
def test_nobody_takes_a_hold_over_that_is_no_persons(volume, owner):
    record = volume.get_snapshot("one").record
    hold_by_id(volume, record.id, owner)
    volume.commit()
    with pytest.raises(RefusedError, match=f"{owner} holds one already"):
        volume.hold_snapshot("one", owner, time.time_ns() + HOUR_NS)
    assert [hold.expires_ns for hold in volume.get_snapshot("one").holds] == [0]


def test_a_shadow_may_be_held(volume):
    volume.shadow_snapshot("one")
    volume.hold_snapshot("one", "mirror")
    with pytest.raises(RefusedError, match="held by mirror"):
        volume.delete_snapshot("one")
    verdict(volume)


@pytest.mark.parametrize("owner", ["", "a b", "-x", "\x1b[1m", "x" * 128, "ö"])
def test_what_cannot_own_a_hold(volume, owner):
    with pytest.raises(UsageError):
        volume.hold_snapshot("one", owner)


def test_what_cannot_be_held(volume):
    with pytest.raises(NoSuchSnapshotError):
        volume.hold_snapshot("three", "me")
    with pytest.raises(UsageError, match="ended before it began"):
        volume.hold_snapshot("one", "me", 1)
    with pytest.raises(UsageError, match="after the year 2262"):
        volume.hold_snapshot("one", "me", 1 << 63)
    assert volume.local.holds() == []


def test_more_holds_than_a_block_has_room_for(volume):
    for number in range(60):
        volume.hold_snapshot("one", f"owner{number}")
    volume = again(volume)
    assert [hold.owner for hold in volume.get_snapshot("one").holds] == [f"owner{number}" for number in range(60)]
    for number in range(60):
        volume.release_snapshot("one", f"owner{number}")
    volume.delete_snapshot("one")
    verdict(volume)


def test_pruning_keeps_what_is_held(volume):
    volume.snapshot("three")
    volume.hold_snapshot("one", "mirror")
    report = prune(volume, Policy(last=1))
    assert [(verdict.name, verdict.reasons) for verdict in report.verdicts] == [
        ("three", ("last",)), ("two", ()), ("one", ("held",)),
    ]  # fmt: skip
    assert [s.name for s in volume.snapshots] == ["one", "three"]
