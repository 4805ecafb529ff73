"""Marks beside a plain model: random histories of two volumes, one receiving from the other (DESIGN.md, law 10).

The model knows, at every consistency point, the pairs (VBN, place) of the live state and of the regular snapshots, as
Python sets read from the planes, and what came and went from one to the next. `volume/marks.py` says what must hold.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from blockplane.model import BlockplaneError, NoSpaceError, RefusedError
from blockplane.volume import Volume, landing, marking, snapshots
from blockplane.volume.markcodec import FLAG_ASKED
from blockplane.volume.marks import Marks
from blockplane.volume.state import State
from faults.inline import inline_workers
from faults.world import FileClient, geometry_of, make_volume, open_volume, receive, revived, verdict

STEPS = 30
CI_EXAMPLES = 80
DEEP_EXAMPLES = 20000
SHARES = 2
MOST_RUNS = 6
#: what every run must have had some of
WANTED = ("positions", "deleted", "shadows", "rollbacks", "fulls", "increments", "marked later")
MOST_SNAPSHOTS = 6

Pair = tuple[int, int]
Pairs = frozenset[Pair]
Vbns = set[int]

index = st.integers(0, 1 << 16)
names = st.sampled_from(["source", "source", "target"])


@dataclass
class Ledger:
    """What the model knows of a volume, and notes at every consistency point."""

    live: Pairs = frozenset()
    snapshots: dict[bytes, Pairs] = field(default_factory=dict)
    #: position -> what entered, what left in the CPs since; in the order of the snapshots' making
    alloc: dict[bytes, Vbns] = field(default_factory=dict)
    dealloc: dict[bytes, Vbns] = field(default_factory=dict)
    at: dict[bytes, Pairs] = field(default_factory=dict)
    volume_at: dict[bytes, Pairs] = field(default_factory=dict)
    returned: dict[bytes, Pairs] = field(default_factory=dict)
    #: blocks of states that were rolled back to: the CP that does it may give some up again at once
    brought: Vbns = field(default_factory=set)
    #: whether a block ever lay elsewhere: then one name may have meant two blocks
    moved: bool = False

    @property
    def volume(self) -> Pairs:
        return self.live.union(*self.snapshots.values())

    def step(self, live: Pairs, snapshots: dict[bytes, Pairs], entries: set[bytes]) -> None:
        """One consistency point; one that was deleted may come again, elsewhere."""
        for gone in self.at.keys() - entries:
            for table in (self.alloc, self.dealloc, self.at, self.volume_at, self.returned):
                del table[gone]
        before, new = self.volume, [pairs for key, pairs in snapshots.items() if key not in self.at]
        came = frozenset().union(live, *new) - self.live
        received = {key for key, pairs in snapshots.items() if key not in self.at and pairs != self.live}
        for key, pairs in snapshots.items():
            if key not in self.at:  # the CP of one that was made here is the one before, of one received this one
                self.at[key] = pairs
                self.volume_at[key] = before.union(live, *new) if key in received else before
                self.alloc[key], self.dealloc[key], self.returned[key] = set(), set(), frozenset()
        self.live, self.snapshots = live, snapshots
        self.moved = self.moved or any(vbn != place for vbn, place in self.volume)
        left = before - self.volume
        for key in self.alloc.keys() - received:
            self.alloc[key] |= {vbn for vbn, _ in came}
            self.dealloc[key] |= {vbn for vbn, _ in left}
            self.returned[key] |= came & self.at[key]


def pairs_of(volume: Volume, state: State) -> Pairs:
    extents = volume.plane(state).extents().tolist()
    vbns = np.array([vbn for start, stop in extents for vbn in range(start, stop)], np.int64)
    return frozenset(zip(vbns.tolist(), state.placemap.to_places(vbns).tolist(), strict=True))


def vbns_of(plane) -> Vbns:
    return {vbn for start, stop in plane.extents().tolist() for vbn in range(start, stop)}


class Watched(Volume):
    """A volume that tells its ledger of every consistency point."""

    ledger: Ledger | None = None

    def _pass_on(self) -> None:
        super()._pass_on()
        if self.ledger is not None:
            self.look()

    def look(self) -> None:
        assert self.ledger is not None
        known = {entry.record.id: self.snapshot_state(entry) for entry in self.local.regular()}
        seen = self.ledger.snapshots
        snapshots = {key: seen.get(key) or pairs_of(self, state) for key, state in known.items()}
        self.ledger.step(pairs_of(self, self.committed), snapshots, {e.record.id for e in self.local.entries()})


GEOMETRIES = {"source": geometry_of(3, 1, 256), "target": geometry_of(2, 1, 384, n_groups=2)}


class Side:
    """A volume, its client and its ledger."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.volume: Watched = make_volume(GEOMETRIES[name], kind=Watched)
        self.ledger = self.volume.ledger = Ledger()
        self.volume.look()
        self.client = FileClient(self.volume)
        #: positions marked when they were made: their marks are exact
        self.exact: set[bytes] = set()

    def reopen(self, crash: bool) -> None:
        if not crash:
            self.volume.close()
        else:
            self.volume.abandon()
        self.volume = open_volume(revived(self.volume.array.disks), kind=Watched)
        self.volume.ledger = self.ledger
        self.client = FileClient(self.volume)

    def regular(self) -> list[str]:
        return [s.name for s in self.volume.snapshots if s.kind == "regular"]

    def check(self) -> None:
        """Everything that the definition says, of every position."""
        volume, ledger = self.volume, self.ledger
        entries = {entry.record.name: entry for entry in volume.local.entries()}
        order = [entry.record.id for entry in volume.local.entries()]
        now_vbns = {vbn for vbn, _ in ledger.volume}
        for position in volume.positions:
            key = entries[position.name].record.id
            if not position.alloc_known:
                continue
            alloc = vbns_of(volume.marks("alloc", position.name))
            base = Pairs(ledger.at[key])
            if entries[position.name].is_shadow:
                left = vbns_of(volume.get_snapshot(position.name).plane)
                base = Pairs(pair for pair in base if pair[0] in left)
            later = [ledger.snapshots[k] for k in order[order.index(key) + 1 :] if k in ledger.snapshots]
            for top in (ledger.live, *later):
                image = {pair for pair in top if pair[0] in alloc} - base
                assert sorted(image) == sorted(top - base), f"(1) the mark image of {position} is the difference image"
                if key in self.exact and not (ledger.returned[key] or ledger.brought or ledger.moved):
                    assert {pair for pair in top if pair[0] in alloc} == top - base, "(1) where nothing came back"
            assert {vbn for vbn, _ in ledger.volume - ledger.volume_at[key]} <= alloc, "(2) what is new entered"
            if key in self.exact:
                assert ledger.alloc[key] <= alloc <= ledger.alloc[key] | ledger.brought
                assert ledger.brought or alloc == ledger.alloc[key]
            assert alloc >= {vbn for vbn, _ in ledger.live - ledger.at[key]}
            if not position.dealloc_known:
                continue
            dealloc = vbns_of(volume.marks("dealloc", position.name))
            assert {vbn for vbn, _ in ledger.volume_at[key] - ledger.volume} <= dealloc, "(2) what is not there left"
            assert alloc <= now_vbns | dealloc, "(2) what entered is there or left"
            if key in self.exact:
                assert dealloc == ledger.dealloc[key]
            assert dealloc >= ledger.dealloc[key]


class Histories(RuleBasedStateMachine):
    """The steps."""

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.inline = inline_workers()
        self.inline.__enter__()
        self.sides: dict[str, Side] = {}
        self.n_named = self.value = 0

    @initialize()
    def begin(self) -> None:
        for name in GEOMETRIES:
            self.sides[name] = Side(name)
        self.create("source", 0, True)

    def _new_name(self, side: Side) -> str:
        self.n_named += 1
        return f"{side.name[0]}{self.n_named}"

    @rule(at=names, inode=st.integers(1, 5), first=st.integers(0, 40), n=st.integers(1, 40))
    def write(self, at: str, inode: int, first: int, n: int) -> None:
        side = self.sides[at]
        if side.volume.available_blocks < n + 60:
            self.delete(at, 0, 1)
            return
        self.value += n
        side.client.write(inode, first, range(self.value, self.value + n))

    @rule(at=names, inode=st.integers(1, 5), start=st.integers(0, 40), n=st.integers(1, 60))
    def punch(self, at: str, inode: int, start: int, n: int) -> None:
        self.sides[at].client.punch(inode, start, start + n)

    @rule(at=names)
    def sync(self, at: str) -> None:
        self.sides[at].volume.sync()

    @rule(at=names, seed=index, mark=st.sampled_from([True, True, False]))
    def create(self, at: str, seed: int, mark: bool) -> None:
        side = self.sides[at]
        if seed % 3:
            self.write(at, seed % 5 + 1, seed % 30, seed % 20 + 1)
        while len(side.volume.snapshots) >= MOST_SNAPSHOTS:
            if not self._delete(side, [side.volume.snapshots[seed % MOST_SNAPSHOTS].name]):
                return
        made = side.volume.snapshot(self._new_name(side), mark=mark)
        if mark:
            side.exact.add(made.record.id)
            Histories.counts["positions"] += 1

    @rule(at=names, which=index)
    def mark(self, at: str, which: int) -> None:
        side = self.sides[at]
        found = [s.name for s in side.volume.snapshots]
        if found:
            side.volume.mark(found[which % len(found)])
            Histories.counts["marked later"] += 1

    @rule(at=names, which=index)
    def unmark(self, at: str, which: int) -> None:
        side = self.sides[at]
        found = [p.name for p in side.volume.positions]
        if found:
            name = found[-1 - which % len(found)]
            side.exact.discard(side.volume.local.entry(name).record.id)
            try:
                side.volume.unmark(name)
            except RefusedError as error:
                self.expect_held(error, "stands at it")

    @staticmethod
    def expect_held(error: RefusedError, why: str = "is held by") -> None:
        assert why in str(error)

    def _delete(self, side: Side, gone: list[str]) -> bool:
        try:
            side.volume.delete_snapshot(*gone)
        except RefusedError as error:
            self.expect_held(error)
            for destination in side.volume.destinations.list():
                side.volume.destinations.forget(destination.name)
            return bool(side.volume.delete_snapshot(*gone)) or True
        Histories.counts["deleted"] += 1
        return True

    @rule(at=names, which=index, n=st.sampled_from([1, 1, 2, 3]))
    def delete(self, at: str, which: int, n: int) -> None:
        side = self.sides[at]
        found = [s.name for s in side.volume.snapshots]
        start = which % max(len(found), 1)
        if gone := found[start : start + n]:
            self._delete(side, gone)

    @rule(at=names, which=index)
    def shadow(self, at: str, which: int) -> None:
        side = self.sides[at]
        if found := side.regular():
            try:
                side.volume.shadow_snapshot(found[which % len(found)])
                Histories.counts["shadows"] += 1
            except RefusedError as error:
                self.expect_held(error)

    @rule(at=names, which=index, drop_later=st.booleans(), drop_changes=st.booleans())
    def roll_back(self, at: str, which: int, drop_later: bool, drop_changes: bool) -> None:
        side = self.sides[at]
        if found := side.regular():
            name = found[which % len(found)]
            side.ledger.brought |= vbns_of(side.volume.get_snapshot(name).plane)
            try:
                side.volume.rollback(name, self._new_name(side), drop_later=drop_later, drop_changes=drop_changes)
                Histories.counts["rollbacks"] += 1
            except RefusedError as error:
                self.expect_held(error)

    @rule(on_base=st.booleans(), which=index, top=index, reverse=st.booleans())
    def transfer(self, on_base: bool, which: int, top: int, reverse: bool) -> None:
        """A full image, or an increment onto any snapshot that both have."""
        source, target = self.sides["source"].volume, self.sides["target"].volume
        there = {s.id: s.name for s in target.snapshots}
        fresh = [s for s in source.snapshots if s.kind == "regular" and s.id not in there]
        if not fresh:
            self.create("source", top, False)
            fresh = source.snapshots[-1:]
        chosen = fresh[-1 - top % len(fresh)]
        regular = self.sides["target"].regular()
        older = {r.id.hex() for r in chosen.state.listed_snapshots()}
        common = [
            s.name for s in source.snapshots if s.id in older and s.kind == "regular" and there.get(s.id) in regular
        ]
        while len(target.snapshots) >= MOST_SNAPSHOTS:
            gone = next(s.name for s in target.snapshots if s.name not in common[-1:])
            self._delete(self.sides["target"], [gone])
            common = [name for name in common if name != gone]
        base = common[-1 - which % len(common)] if common and on_base else None
        try:
            receive(source, target, chosen.name, base, reverse)
            Histories.counts["increments" if base else "fulls"] += 1
        except NoSpaceError:
            Histories.counts["no space"] += 1

    @rule(at=names, crash=st.booleans())
    def reopen(self, at: str, crash: bool) -> None:
        side = self.sides[at]
        if crash:
            side.client.files = {}
        side.reopen(crash)

    @rule(at=names, who=st.sampled_from(["x", "y"]), which=index, end=st.integers(0, 4))
    def mirror(self, at: str, who: str, which: int, end: int) -> None:
        """A destination, of which a transfer ends in any way, or goes on."""
        side = self.sides[at]
        table, found = side.volume.destinations, side.regular()
        if not found:
            return
        known = {d.name: d for d in table.list()}
        if who not in known or known[who].status == "idle":
            table.begin(who, found[which % len(found)])
        if end == 0:
            table.succeed(who)
        elif end == 1:
            table.fail(who)
        elif end == 2:
            table.unknown(who)
        elif end == 3:
            table.forget(who)
        marked = {p.name for p in side.volume.positions}
        for destination in table.list():
            for stop in (destination.acknowledged, destination.under_way):
                if stop is not None:
                    assert stop in marked
                    assert side.volume.get_snapshot(stop).kind == "regular"

    @invariant()
    def compare(self) -> None:
        Histories.counts["steps"] += 1
        for side in self.sides.values():
            side.check()

    def teardown(self) -> None:
        try:
            for side in self.sides.values():
                side.volume.sync()
                side.check()
                verdict(side.volume)
                side.reopen(crash=False)
                side.check()
                verdict(side.volume)
        finally:
            self.inline.__exit__(None, None, None)


@pytest.mark.parametrize("share", range(SHARES))
def test_histories(share: int, is_deep: bool, part: tuple[int, int], record_property) -> None:
    wanted = (DEEP_EXAMPLES // part[1] if is_deep else CI_EXAMPLES) // SHARES
    seed = (int(os.environ["BLOCKPLANE_SEED"]) * part[1] + part[0]) * SHARES + share
    Histories.counts.clear()
    for n_runs in range(MOST_RUNS):
        print(f"seed {seed + n_runs * 1000}, {wanted} examples")
        run(Histories, seed + n_runs * 1000, wanted)
        if all(Histories.counts[what] >= wanted // 15 for what in WANTED):
            break  # some runs leave a rule out altogether
    record_property("summary", f"marks: seed {seed}: {dict(Histories.counts)}")
    assert all(Histories.counts[what] >= wanted // 15 for what in WANTED), Histories.counts


def run(machine: type[Histories], seed: int, n_examples: int) -> None:
    seeded = type("Seeded", (machine,), {"_hypothesis_internal_use_seed": seed})
    profile = settings(
        max_examples=n_examples, stateful_step_count=STEPS, deadline=None, database=None,
        phases=(Phase.generate,), suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip
    run_state_machine_as_test(seeded, settings=profile)


# --- planted bugs -------------------------------------------------------------------------------------------------


def is_caught(n_seeds: int = 8) -> bool:
    for seed in range(n_seeds):
        try:
            run(Histories, seed, 30)
        except (AssertionError, BlockplaneError, ExceptionGroup):
            return True
    return False


def unmarked(name: str) -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(marking, name, return_value=[])


@pytest.mark.parametrize("door", [snapshots, landing], ids=["rollback", "receive"])
def test_an_unmarked_rollback_or_receive(door):
    """The one that is planted alone: each door asks its own module."""
    blind = SimpleNamespace(exchanged=lambda *_: [], dropped=marking.dropped)
    with mock.patch.object(door, "marking", blind):
        assert is_caught()


def test_an_unmarked_deletion():
    with mock.patch.object(marking, "dropped", return_value=([], True)):
        assert is_caught()


def test_an_unmarked_write():
    with unmarked("written"):
        assert is_caught()


def test_marks_that_are_not_summed_when_a_position_goes():
    def forget(marks: Marks, snapshot_ids) -> None:
        if marks.is_on:
            kept = [i for i in marks.intervals() if i.record.snapshot_id not in snapshot_ids]
            for interval in marks.intervals():
                if interval not in kept:
                    interval.clear("alloc")
                    interval.clear("dealloc")
            marks._intervals = kept
            marks.changed()

    with mock.patch.object(Marks, "give_up", forget):
        assert is_caught()


def test_marks_that_change_hands_before_the_commit():
    """A transfer that switches planes when it begins, and not with the CP of its top."""
    retain = snapshots._retain

    def early(volume: Volume, name: str, mark: bool = False):
        made = retain(volume, name)
        if mark:  # the CP that lists the snapshot went to the interval before
            volume.local.marks.begin(made.record.id, FLAG_ASKED)
            volume.commit(force=True)
        return made

    with mock.patch.object(snapshots, "_retain", early):
        assert is_caught()
