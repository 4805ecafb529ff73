"""The pressure policy: what becomes a shadow when space runs short, in which order, and what never does."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from fnmatch import fnmatchcase

import numpy as np
import pytest

from blockplane.disks.disk import HEAD_BLOCKS
from blockplane.model import BlockplaneError, NoSpaceError, UsageError
from blockplane.volume import PressurePolicy, Volume, demotioncodec, pressure
from blockplane.volume.codec import NUMBER_MASK
from blockplane.volume.demoting import freed_in_order
from blockplane.volume.demotioncodec import LACKED_ROOM, SAMPLE_NS, UNDER_LIMIT, Pace
from blockplane.volume.incoming import IncomingEntry
from blockplane.volume.landing import Landing
from faults.world import (
    FileClient,
    again,
    fill,
    geometry_of,
    image_plane,
    make_volume,
    present,
    read_files,
    receive,
    verdict,
)

BLOCK = 4096


pytestmark = pytest.mark.usefixtures("inline")


@pytest.fixture
def volume() -> Volume:
    return make_volume(geometry_of(3, 1, 512))


def days(volume: Volume, client: FileClient, n_days: int, n_blocks: int = 60) -> None:
    """Snapshots d0, d1, ... that share nothing but metafile blocks."""
    for day in range(n_days):
        client.write(1, 0, range(1000 * day, 1000 * day + n_blocks))
        volume.snapshot(f"d{day}")


def kinds(volume: Volume) -> dict[str, str]:
    return {snapshot.name: snapshot.kind for snapshot in volume.snapshots}


def shadows(volume: Volume) -> list[str]:
    return [snapshot.name for snapshot in volume.snapshots if snapshot.kind == "shadow"]


def fill_until(volume: Volume, client: FileClient, n_left: int) -> None:
    """Write until about so many blocks are left for files."""
    client.write(2, 0, range(max(volume.coming_blocks - n_left - 12, 1)))


def limit(n_blocks: int, keep: int = 1, *only: str) -> PressurePolicy:
    return PressurePolicy(n_blocks * BLOCK, keep, only or ("*",))


# --- what goes ----------------------------------------------------------------------------------------------------


def test_without_a_policy_nothing_goes(volume, client):
    days(volume, client, 4)
    fill_until(volume, client, 0)
    volume.sync()
    volume.make_room(200)
    assert volume.pressure is None
    assert shadows(volume) == volume.demoted == []
    with pytest.raises(NoSpaceError) as refusal:
        client.write(3, 0, range(200))
    assert "shadow" not in refusal.value.hint


def test_a_point_that_leaves_too_little_makes_shadows_older_first(volume, client):
    days(volume, client, 6)
    volume.set_pressure(limit(100))
    fill_until(volume, client, 20)
    volume.sync()
    assert shadows(volume) == volume.demoted == ["d0", "d1"]
    assert volume.coming_blocks >= 100
    first, second = (volume.get_snapshot(name).demotion for name in ("d0", "d1"))
    assert (first.by, first.wanted_blocks) == (UNDER_LIMIT, 100)
    assert first.room_blocks < 100
    assert first.room_blocks + first.freed_blocks < 100 <= first.room_blocks + first.freed_blocks + second.freed_blocks
    verdict(volume)
    volume = again(volume)
    assert shadows(volume) == ["d0", "d1"]
    assert volume.get_snapshot("d0").demotion == first
    assert volume.pressure == limit(100)
    volume.sync()
    assert shadows(volume) == ["d0", "d1"]


def test_a_share_of_the_volume(volume, client):
    days(volume, client, 5)
    volume.set_pressure(PressurePolicy("10%"))
    assert volume.plan_demotions().wanted_blocks == -(-volume.n_blocks // 10)
    fill_until(volume, client, volume.n_blocks // 10 - 30)
    volume.sync()
    assert shadows(volume) == ["d0"]
    assert again(volume).pressure == PressurePolicy("10%")


def test_closing_and_the_timer_act_too(volume, client):
    days(volume, client, 4)
    volume.set_pressure(limit(60))
    fill_until(volume, client, 10)
    volume.mark_dirty(1)
    volume._first_dirty_s -= 100
    volume.commit_if_due()
    assert shadows(volume) == ["d0"]
    for _ in range(2):
        volume.commit(force=True)
    client.write(3, 0, range(40))
    volume.close()
    assert shadows(again(volume)) == ["d0", "d1"]


def test_an_operation_that_lacks_room_gets_it(volume, client):
    days(volume, client, 5)
    volume.set_pressure(limit(1))
    fill_until(volume, client, 5)
    volume.sync()
    assert shadows(volume) == []
    volume.make_room(100)
    assert shadows(volume) == ["d0", "d1"]
    assert volume.get_snapshot("d1").demotion.by == LACKED_ROOM
    assert volume.available_blocks >= 100
    client.write(3, 0, range(95))
    volume.sync()
    verdict(volume)


def test_where_it_would_not_be_enough_nothing_goes_and_the_error_says_why(volume, client):
    days(volume, client, 4)
    volume.set_pressure(limit(1))
    volume.hold_snapshot("d1", "backup")
    fill_until(volume, client, 5)
    volume.sync()
    before = volume.info.generation
    volume.make_room(1000)
    assert shadows(volume) == []
    volume.make_room(1000)  # known to be futile
    assert volume.info.generation - before <= 4
    with pytest.raises(NoSpaceError) as refusal:
        client.write(3, 0, range(1000))
    hint = refusal.value.hint
    assert "d1 is held by backup" in hint
    assert "d3 is one of the newest 1" in hint
    assert re.search("the other 2 would free [0-9]+ blocks together, and all that is asked for is more", hint)


def test_a_receive_gets_room(volume, client):
    source = make_volume(geometry_of(2, 1, 512))
    theirs = FileClient(source)
    theirs.write(1, 0, range(5000, 5150))
    source.snapshot("far")
    days(volume, client, 5)
    volume.set_pressure(limit(1))
    fill_until(volume, client, 30)
    volume.sync()
    assert shadows(volume) == []
    receive(source, volume, "far")
    assert shadows(volume) == ["d0", "d1", "d2"][: len(shadows(volume))] != []
    assert read_files(volume.get_snapshot("far").state) == present(theirs.files)
    verdict(volume)


def test_the_last_to_go_frees_something(volume, client):
    """d1 and d2 hold nothing of their own: making them shadows would give them up for nothing."""
    days(volume, client, 1)
    volume.snapshot("d1")
    volume.snapshot("d2")
    client.write(1, 0, range(5000, 5060))
    volume.snapshot("d3")
    client.remove(1)
    volume.snapshot("d4")
    volume.set_pressure(limit(volume.n_blocks, 2))
    volume.sync()
    plan = volume.plan_demotions()
    assert not plan.is_enough
    assert plan.going == ()
    assert shadows(volume) == ["d0", "d1", "d2"]  # the three share their blocks: all had to go
    assert [volume.get_snapshot(name).demotion.freed_blocks > 50 for name in shadows(volume)] == [False, False, True]


def test_what_frees_little_stays(volume, client):
    """d1 has a few blocks to itself: those before and after it go, as long as that is worth it."""
    client.write(1, 0, range(60))
    volume.snapshot("d0")
    client.remove(1)
    client.write(3, 0, range(2))
    volume.snapshot("d1")
    client.remove(3)
    client.write(1, 0, range(5000, 5060))
    volume.snapshot("d2")
    client.remove(1)
    volume.snapshot("d3")
    volume.sync()
    little = freed_in_order(volume, [volume.local.entry("d1")])[volume.get_snapshot("d1").record.id]
    assert 0 < little < pressure.LEAST_YIELD
    volume.set_pressure(limit(volume.n_blocks))
    assert dict(volume.plan_demotions().kept)["d1"] == "would free less than 16 blocks"
    assert ", 1 more would hardly free any, or cannot be read" in volume.room_hint()
    volume.sync()
    assert shadows(volume) == ["d0", "d2"]
    assert all(volume.get_snapshot(name).demotion.freed_blocks >= pressure.LEAST_YIELD for name in shadows(volume))
    verdict(volume)


def test_a_point_that_makes_shadows_takes_less_than_the_least_yield(volume, client):
    """Otherwise the policy would work against itself."""
    days(volume, client, 3)
    volume.sync()
    used = volume.used_blocks
    volume.shadow_snapshot("d0")
    freed = volume.used_blocks - used + volume.get_snapshot("d0").demotion.freed_blocks
    assert 0 <= freed < pressure.LEAST_YIELD


# --- what stays ---------------------------------------------------------------------------------------------------


def test_what_is_held_read_or_stood_at_stays(volume, client):
    days(volume, client, 8, 30)
    volume.hold_snapshot("d0", "somebody")
    volume.destinations.begin("far", "d1")
    volume.destinations.succeed("far")
    volume.destinations.begin("far", "d2")
    volume.set_pressure(limit(volume.n_blocks, 2))
    with volume.pin(volume.get_snapshot("d3").record.id):
        volume.sync()
        assert shadows(volume) == ["d4", "d5"]
        reasons = dict(volume.plan_demotions().kept)
        assert reasons["d0"].startswith("is held by somebody")
        assert reasons["d1"] == "is held by mirror:far"
        assert reasons["d2"] == "is held by mirror:far"
        assert reasons["d3"].startswith("is being read by")
        assert reasons["d6"] == reasons["d7"] == "is one of the newest 2"
    volume.release_snapshot("d0", "somebody")
    client.edit(3, 0, 1)
    volume.sync()
    assert shadows(volume) == ["d0", "d3", "d4", "d5"]


def test_where_a_destination_stands_stays_without_its_hold(volume, client):
    days(volume, client, 4, 30)
    volume.destinations.begin("far", "d1")
    volume.release_snapshot("d1", "mirror:far")
    volume.set_pressure(limit(volume.n_blocks))
    volume.sync()
    assert shadows(volume) == ["d0", "d2"]
    assert dict(volume.plan_demotions().kept)["d1"] == "is where far stands"


def test_what_an_interrupted_receive_builds_on_stays(volume, client):
    source = make_volume(geometry_of(2, 1, 256))
    theirs = FileClient(source)
    theirs.write(1, 0, range(500, 530))
    source.snapshot("s1")
    theirs.write(1, 5, range(600, 620))
    source.snapshot("s2")
    receive(source, volume, "s1")
    client.reload()
    days(volume, client, 3, 30)
    plane, top = image_plane(source, "s2", "s1"), source.get_snapshot("s2").record
    base = volume.get_snapshot("s1")
    entry = IncomingEntry(
        bytes([1] * 16), bytes([2] * 16), top.space_id, top.id, base.record.id, len(plane), 0, plane.n_blocks, 0, "s2"
    )
    landing = Landing(volume, plane, base.entry, entry)
    fill(landing, source, "s2", plane, piece=3, most=3)
    landing.suspend()
    volume = again(volume)
    volume.set_pressure(limit(volume.n_blocks))
    volume.sync()
    assert shadows(volume) == ["d0", "d1"]
    (held,) = volume.get_snapshot("s1").holds
    assert dict(volume.plan_demotions().kept)["s1"].startswith(f"is held by {held.owner} until")
    volume.release_snapshot("s1", held.owner)
    volume.sync()
    assert dict(volume.plan_demotions().kept)["s1"] == "is what the interrupted receive of s2 builds on"


def test_names_that_the_policy_does_not_mean_stay_and_do_not_count(volume, client):
    for day in range(5):
        client.write(1, 0, range(1000 * day, 1000 * day + 30))
        volume.snapshot(f"{'auto' if day % 2 == 0 else 'mine'}-{day}")
    volume.set_pressure(limit(volume.n_blocks, 1, "auto-*"))
    volume.sync()
    assert shadows(volume) == ["auto-0", "auto-2"]
    assert dict(volume.plan_demotions().kept)["mine-1"] == "is not named by the policy"


def test_what_mirrors_make_for_themselves_is_not_among_the_newest(volume, client):
    own = "mirror.copy.0123abcd.20260101T000000.000000Z"
    days(volume, client, 3, 30)
    client.write(1, 0, range(3000, 3030))
    volume.snapshot(own)
    client.write(1, 0, range(4000, 4030))
    volume.set_pressure(limit(volume.n_blocks))
    volume.sync()
    assert shadows(volume) == ["d0", "d1", own]
    assert dict(volume.plan_demotions().kept)["d2"] == "is one of the newest 1"


@pytest.mark.parametrize("what", ["root", "leaf"])
def test_a_snapshot_that_cannot_be_read_stays_and_the_others_go(volume, client, what):
    days(volume, client, 4, 30)
    root = volume.get_snapshot("d1").record.root.number
    leaf = int(volume.get_snapshot("d1").state.blockmap.pointers(0, 1)[0, 0]) & NUMBER_MASK
    volume.sync()
    disk, dbn = volume.geometry.to_disk(np.array([root if what == "root" else leaf]))
    device = volume.array.disks[int(disk[0])]
    device.write(HEAD_BLOCKS + int(dbn[0]), bytes(4096))
    volume = again(volume)
    volume.set_pressure(limit(volume.n_blocks))
    assert dict(volume.plan_demotions().kept)["d1"] == "is damaged"
    volume.sync()
    assert set(shadows(volume)) <= {"d0", "d2"}
    client = FileClient(volume)
    client.edit(3, 0, 5)
    volume.sync()
    assert kinds(volume)["d1"] == "regular"


def test_what_is_being_deleted_is_left_alone(volume, client):
    days(volume, client, 3, 30)
    with volume.pin(volume.get_snapshot("d0").record.id):
        volume.delete_snapshot("d0", defer=True)
        volume.set_pressure(limit(volume.n_blocks))
        volume.sync()
        assert kinds(volume) == {"d0": "deleting", "d1": "shadow", "d2": "regular"}


# --- what is said before ------------------------------------------------------------------------------------------


def test_the_plan_is_what_happens(volume, client):
    days(volume, client, 6)
    client.write(2, 0, range(40))
    volume.snapshot("e1", mark=True)
    client.punch(2, 10, 30)
    volume.snapshot("e2")
    policy = limit(volume.coming_blocks + 200)
    plan = volume.plan_demotions(policy)
    assert volume.pressure is None
    assert shadows(volume) == []
    volume.set_pressure(policy)
    used = volume.used_blocks
    volume.sync()
    assert plan.is_enough
    assert [name for name, _ in plan.going] == shadows(volume)
    for name, n_blocks in plan.going:
        assert volume.get_snapshot(name).demotion.freed_blocks == n_blocks
    assert used - plan.freed_blocks <= volume.used_blocks <= used - plan.freed_blocks + 12  # the point's own blocks
    verdict(volume)


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (PressurePolicy(0), "that is never"),
        (PressurePolicy("0%"), "that is never"),
        (PressurePolicy("100%"), "no share"),
        (PressurePolicy("-1%"), "no share"),
        (PressurePolicy("x%"), "no share"),
        (PressurePolicy("nan%"), "no share"),
        (PressurePolicy("inf%"), "no share"),
        (PressurePolicy("much"), "not a size"),
        (PressurePolicy(-1), "-1 bytes"),
        (PressurePolicy("1G", 0), "keep 0"),
        (PressurePolicy("1G", 1, ()), "empty pattern"),
        (PressurePolicy("1G", 1, ("a", "")), "empty pattern"),
        (PressurePolicy("1G", 1, ("a\nb",)), "empty pattern"),
        (PressurePolicy("1G", 1, ("a" * 500,)), "500 bytes"),
    ],
)
def test_impossible_policies_are_refused(volume, policy, problem):
    before = volume.info.generation
    with pytest.raises(UsageError, match=problem):
        volume.set_pressure(policy)
    assert volume.info.generation == before
    assert volume.pressure is None


def test_a_policy_is_dropped(volume, client):
    days(volume, client, 3)
    volume.set_pressure(limit(volume.n_blocks, 3))
    volume.set_pressure(None)
    volume = again(volume)
    assert volume.pressure is None
    volume.sync()
    assert shadows(volume) == []


# --- how fast a shadow goes ---------------------------------------------------------------------------------------


def test_the_pace_is_unknown_until_an_hour_was_counted():
    hour, start = SAMPLE_NS, 10**18
    made = Pace(last_ns=start, last_left=1000)
    assert made.lost_per_s(start + hour - 1, 900) is None
    assert made.lost_per_s(start + hour, 640) == pytest.approx(0.1)
    assert made.noted(start + hour - 1, 900) is made
    second = made.noted(start + 2 * hour, 800)
    assert second == Pace(start, 1000, start + 2 * hour, 800)
    assert second.lost_per_s(start + 2 * hour, 800) == pytest.approx(200 / 7200)
    third = second.noted(start + 3 * hour, 440)
    assert third.lost_per_s(start + 3 * hour, 440) == pytest.approx(0.1)  # of late, not since it was made
    assert third.lost_per_s(start + 12 * hour, 440) == pytest.approx(0.01)
    assert Pace().lost_per_s(start, 5) is None


def test_counts_are_kept_as_bits_go(volume, client, monkeypatch):
    monkeypatch.setattr(demotioncodec, "SAMPLE_NS", 0)
    days(volume, client, 2)
    volume.sync()
    volume.shadow_snapshot("d0")
    made = volume.get_snapshot("d0")
    assert made.entry.pace.before_ns == 0
    for turn in range(40):
        client.write(2, 30 * turn, range(min(30, max(volume.available_blocks - 40, 1))))
        volume.sync()
    lost = again(volume).get_snapshot("d0")
    assert lost.n_blocks < lost.was_blocks
    assert lost.entry.pace.before_ns >= made.shadowed_ns
    assert lost.entry.pace.last_left == lost.n_blocks
    assert lost.recent_lost_per_s is not None


# --- histories ----------------------------------------------------------------------------------------------------


class Story:
    """A random history under a policy, beside a model of what may go and of every file."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.volume = make_volume(geometry_of(3, 1, 384) if seed % 2 else geometry_of(2, 1, 192, n_groups=2))
        self.client = FileClient(self.volume)
        self.keep, self.only = self.rng.choice((1, 1, 2, 3)), self.rng.choice((("*",), ("a*",), ("a*", "b1*")))
        self.limit = self.rng.randrange(self.volume.n_blocks // 3, self.volume.n_blocks * 2 // 3)
        self.volume.set_pressure(limit(self.limit, self.keep, *self.only))
        self.files: dict[str, dict] = {}
        self.held: set[str] = set()
        self.standing: dict[str, str] = {}
        self.pinned: dict[str, ExitStack] = {}
        self.value = self.n_made = self.n_gone = 0

    def run(self, n_steps: int) -> int:
        steps = [*[self.snapshot] * 4, self.hold, *[self.release] * 2, self.pin, *[self.unpin] * 2, self.delete]
        steps += [self.reopen, self.begin, self.settle, self.room, self.plan, *[self.write] * 5]
        for _ in range(n_steps):
            step = self.rng.choice(steps)
            self.watch(step)
            self.watch(self.volume.sync)
        for pinned in self.pinned.values():
            pinned.close()
        return self.n_gone

    def regular(self) -> list[str]:
        return [snapshot.name for snapshot in self.volume.snapshots if snapshot.kind == "regular"]

    def may_go(self) -> list[str]:
        """By the model alone: in the order in which they came."""
        named = [name for name in self.regular() if any(fnmatchcase(name, pattern) for pattern in self.only)]
        needed = self.held | set(self.pinned) | set(self.standing.values())
        return [name for name in named[: -self.keep] if name not in needed]

    def watch(self, step: Callable[[], None]) -> None:
        """Run a step that changes nothing about who may go and then demotes, or only the one or the other."""
        before, may_go, known = self.regular(), self.may_go(), len(self.volume.demoted)
        volume = self.volume
        step()
        went = volume.demoted[known:] if volume is self.volume else []
        if step == self.volume.sync:
            assert [name for name in before if name not in self.regular()] == went
        self.n_gone += len(went)
        if went:
            assert set(went) <= set(may_go)
            passed = may_go[: may_go.index(went[-1]) + 1]
            assert went == [name for name in passed if name in went]
            self.check_passed_over([name for name in passed if name not in went])
            how = [volume.get_snapshot(name).demotion for name in went]
            for room, point in itertools.groupby(how, lambda one: one.room_blocks):
                freed, wanted = zip(*((one.freed_blocks, one.wanted_blocks) for one in point), strict=True)
                assert freed[-1] >= pressure.LEAST_YIELD
                assert room + sum(freed[:-1]) < wanted[0] or freed[-2] < pressure.LEAST_YIELD
                assert min(wanted) == max(wanted) >= self.limit
        if step == self.volume.sync:
            assert volume.coming_blocks >= self.limit or volume.plan_demotions().going == ()
            self.compare()

    def check_passed_over(self, names: list[str]) -> None:
        """Those that stayed though it was their turn would free little, with all the others gone."""
        for name in names:
            (n_blocks,) = freed_in_order(self.volume, [self.volume.local.entry(name)]).values()
            assert n_blocks < pressure.LEAST_YIELD

    def write(self) -> None:
        n = self.rng.randrange(1, 50)
        if self.volume.available_blocks < n + 60:
            self.volume.make_room(n + 60)
        if self.volume.available_blocks < n + 60:
            self.delete()
            return
        self.value += n
        self.client.write(self.rng.randrange(1, 6), self.rng.randrange(60), range(self.value, self.value + n))

    def snapshot(self) -> None:
        if len(self.volume.snapshots) < 12:
            self.n_made += 1
            made = self.volume.snapshot(f"{self.rng.choice('ab')}{self.n_made}")
            self.files[made.name] = present(self.client.files)

    def hold(self) -> None:
        if names := self.regular():
            self.held.add(name := self.rng.choice(names))
            self.volume.hold_snapshot(name, "story")

    def release(self) -> None:
        if self.held:
            self.held.remove(name := self.rng.choice(sorted(self.held)))
            self.volume.release_snapshot(name, "story")

    def pin(self) -> None:
        free = [name for name in self.regular() if name not in self.pinned]
        if free:
            self.pinned[name := self.rng.choice(free)] = stack = ExitStack()
            stack.enter_context(self.volume.pin(self.volume.get_snapshot(name).record.id))

    def unpin(self) -> None:
        if self.pinned:
            self.pinned.pop(self.rng.choice(sorted(self.pinned))).close()

    def begin(self) -> None:
        if "next" not in self.standing and (names := self.regular()):
            self.standing["next"] = self.rng.choice(names)
            self.volume.destinations.begin("far", self.standing["next"])

    def settle(self) -> None:
        if "next" in self.standing:
            self.standing["last"] = self.standing.pop("next")
            self.volume.destinations.succeed("far")

    def delete(self) -> None:
        needed = self.held | set(self.pinned) | set(self.standing.values())
        free = [name for name in kinds(self.volume) if name not in needed]
        if free:
            self.volume.delete_snapshot(self.rng.choice(free))

    def room(self) -> None:
        self.volume.make_room(self.rng.randrange(20, 250))

    def plan(self) -> None:
        may_go = self.may_go()
        plan = self.volume.plan_demotions()
        going = {name for name, _ in plan.going}
        assert [name for name, _ in plan.going] == [name for name in may_go if name in going]

    def reopen(self) -> None:
        self.volume.sync()
        for pinned in self.pinned.values():
            pinned.close()
        self.pinned.clear()
        self.volume = again(self.volume)
        self.client = FileClient(self.volume)

    def compare(self) -> None:
        for name in self.regular():
            assert read_files(self.volume.get_snapshot(name).state) == self.files[name]
        assert read_files(self.volume.committed) == present(self.client.files)
        assert self.held | set(self.pinned) | set(self.standing.values()) <= set(self.regular())
        if self.rng.random() < 0.2:
            verdict(self.volume)


@pytest.mark.parametrize("number", range(6))
def test_histories(number, rng, is_deep, record_property, monkeypatch):
    """Small volumes: a snapshot goes for less than on a large one, so that enough of them go."""
    monkeypatch.setattr(pressure, "LEAST_YIELD", (1, 2, 4)[number % 3])
    n_gone, n_least = 0, 60 if is_deep else 3
    for n_told in range(max(n_least, 15)):
        if n_told >= n_least and n_gone:  # three stories may be without one
            break
        seed = int(rng.integers(1 << 40))
        print(f"story {seed}")
        story = Story(seed)
        n_gone += story.run(70)
        verdict(story.volume)
    record_property("summary", f"pressure histories {number}: {n_gone} snapshots became shadows")
    assert n_gone > 0


def test_what_did_not_help_is_looked_at_again_when_others_hold_as_much(monkeypatch):
    """A snapshot went with which another had shared all, and as many blocks were held as before."""
    monkeypatch.setattr(pressure, "LEAST_YIELD", 4)
    story = Story(569639248593)
    assert story.run(70) > 0
    verdict(story.volume)


def test_a_policy_that_takes_what_is_held_is_found(monkeypatch):
    """The story's own check: pins, holds and destinations do not count."""
    monkeypatch.setattr(pressure, "needs", lambda volume, entry: iter(()))
    monkeypatch.setattr(pressure, "needed_here", lambda volume: {})
    found = 0
    for seed in range(12):
        try:
            Story(seed).run(70)
        except (AssertionError, BlockplaneError):
            found += 1
    assert found


@pytest.mark.parametrize("policy", [
    PressurePolicy("5%", keep=1 << 32), PressurePolicy("5%", only=("\udcff*",)), PressurePolicy("5%", keep=0),
])  # fmt: skip
def test_policies_that_cannot_be_written_down(volume, policy):
    with pytest.raises(UsageError):
        volume.set_pressure(policy)
    assert volume.pressure is None


def test_a_policy_that_wants_more_than_there_is(volume, client):
    """A slip of the unit does not cost every snapshot."""
    volume.snapshot("a")
    client.write(1, 0, range(10))
    volume.snapshot("b")
    with pytest.raises(UsageError, match=r"has .* in all"):
        volume.set_pressure(PressurePolicy("10G"))
    volume.sync()
    assert (volume.pressure, shadows(volume)) == (None, [])
