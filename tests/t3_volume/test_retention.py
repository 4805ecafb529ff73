"""Retention against a plain model of its rules, and on a real volume."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from fnmatch import fnmatchcase
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockplane.model import RefusedError, UsageError
from blockplane.volume import Policy, Volume, snapshots
from blockplane.volume.check import check
from blockplane.volume.codec import KIND_SHADOW, NO_ID, Pointer, SnapshotRecord
from blockplane.volume.retention import ALL, judge, prune

FORMATS = {"hourly": "%Y %m %d %H", "daily": "%Y %m %d", "weekly": "%G %V", "monthly": "%Y %m", "yearly": "%Y"}
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def record(name: str, created_ns: int, kind: int = 1, branch: int = 0, cp: int = 1) -> SnapshotRecord:
    ids = (name.encode().ljust(16), NO_ID, NO_ID, bytes([branch]) * 16)
    return SnapshotRecord(*ids, cp, created_ns, Pointer.none(), 1, name=name, kind=kind)


counts = st.integers(ALL, 5)
policies = st.builds(
    Policy,
    *[counts] * 6,
    within_s=st.sampled_from([0, 3600, 5 * 86400]),
    names=st.sampled_from([(), ("s1*",), ("s2", "s3")]),
    only=st.sampled_from([("*",), ("s*", "x"), ("[!s]*",)]),
).filter(lambda p: any([p.last, p.hourly, p.daily, p.weekly, p.monthly, p.yearly, p.within_s, p.names]))
#: Around New Year, when ISO weeks, months and years do not agree, an hour to a year apart.
moments = st.integers(-400 * 24, 400 * 24).map(lambda h: int(NEW_YEAR + h * 3600) * 10**9 + h)
#: In the table's order, on two branches; clocks and CPs go anywhere.
snapshots_made = st.lists(st.tuples(moments, st.integers(0, 1), st.integers(1, 9)), max_size=30)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-9))])


def age_ns(ordered: list[SnapshotRecord], i: int) -> int:
    """How much older than the newest one is, as its own clock says, or the next one's of its branch."""
    own = ordered[0].created_ns - ordered[i].created_ns
    after = [j for j in range(i) if ordered[j].branch_id == ordered[i].branch_id]
    return age_ns(ordered, after[-1]) if own < 0 and after and ordered[after[-1]].cp >= ordered[i].cp else own


def rules_of(ordered: list[SnapshotRecord], policy: Policy, zone: tzinfo) -> set[tuple[str, str]]:
    """The names of snapshots, newest first by one of the two answers, with the rules that keep them."""
    found = set()
    for i, r in enumerate(ordered):
        if policy.last == ALL or i < policy.last:
            found.add((r.name, "last"))
        if policy.within_s and age_ns(ordered, i) <= policy.within_s * 10**9:
            found.add((r.name, "within"))
        if any(fnmatchcase(r.name, p) for p in policy.names):
            found.add((r.name, "name"))
    for rule, text in FORMATS.items():
        periods = [datetime.fromtimestamp(r.created_ns // 10**9, zone).strftime(text) for r in ordered]
        n = getattr(policy, rule)
        for period in list(dict.fromkeys(periods))[: len(periods) if n == ALL else n]:
            found.add((ordered[periods.index(period)].name, rule))
    return found


@given(snapshots_made, policies, zones)
def test_reasons_are_those_of_the_rules(made, policy, zone):
    records = [record(f"{'sx'[i % 7 == 0]}{i}", ns, 1, branch, cp) for i, (ns, branch, cp) in enumerate(made)]
    records.append(record("shadow", int(NEW_YEAR) * 10**9, KIND_SHADOW))
    came = [r for r in reversed(records[:-1]) if any(fnmatchcase(r.name, p) for p in policy.only)]
    dated = sorted(came, key=lambda r: r.created_ns, reverse=True)
    found = judge(records, policy, zone)
    assert [v.name for v in found] == [r.name for r in came]
    assert {(v.name, rule) for v in found for rule in v.reasons} == (
        rules_of(came, policy, zone) | rules_of(dated, policy, zone)
    )


def kept(records: list[SnapshotRecord], policy: Policy) -> list[str]:
    return [verdict.name for verdict in judge(records, policy, UTC) if verdict.reasons]


def nights(name: str, first: float, n: int, branch: int = 0, cp: int = 1) -> list[SnapshotRecord]:
    """Snapshots of a branch, a day apart by the clock, a CP apart."""
    return [record(f"{name}{i}", int(first + i * 86400) * 10**9, 1, branch, cp + i) for i in range(n)]


@pytest.mark.parametrize("years", [-50, 1, 50])
def test_a_week_under_a_clock_that_is_wrong_costs_no_snapshot_its_turn(years):
    """Each night is pruned; whatever the clock said, the last seven nights are there, in order."""
    wrong = nights("wrong", NEW_YEAR + (years * 365 + 8) * 86400, 7, cp=9)
    there: list[SnapshotRecord] = []
    done: list[SnapshotRecord] = []
    for made in [*nights("old", NEW_YEAR, 8), *wrong, *nights("new", NEW_YEAR + 15 * 86400, 8, cp=16)]:
        there, done = [*there, made], [*done, made]
        stays = kept(there, Policy(last=7))
        assert {r.name for r in done[-7:]} <= set(stays) & set(kept(there, Policy(daily=7)))
        assert len(stays) <= 14
        there = [r for r in there if r.name in stays]


def test_what_came_after_a_clock_that_was_ahead_is_within():
    ahead = nights("ahead", NEW_YEAR + 50 * 365 * 86400, 3, cp=9)
    for n in range(1, 6):
        there = [*nights("old", NEW_YEAR, 8), *ahead, *nights("new", NEW_YEAR + 20 * 86400, n, cp=12)]
        found = [name for name in kept(there, Policy(within_s=2 * 86400)) if name[0] == "n"]
        assert found == [f"new{i}" for i in reversed(range(max(n - 3, 0), n))]


@pytest.mark.parametrize("branch", [0, 1])
def test_old_snapshots_that_arrive_last_drive_nothing_out(branch):
    """Those of a backup, of the same branch or of one that was left: each counts for the time it was made at."""
    there = [*nights("here", NEW_YEAR, 8, cp=100), *nights("arrived", NEW_YEAR - 400 * 86400, 5, branch)]
    here = [r.name for r in reversed(there[:8])]
    assert kept(there, Policy(daily=13))[5:] == here
    assert kept(there, Policy(within_s=86400)) == ["arrived4", "arrived3", *here]
    assert kept(there, Policy(last=3)) == ["arrived4", "arrived3", "arrived2", *here[:3]]


def test_the_hour_that_comes_twice_is_two():
    """From 01:50 summer time to 03:50, when clocks in Berlin go back at 03:00."""
    begins = datetime(2026, 10, 24, 23, 50, tzinfo=UTC).timestamp()
    records = [record(f"h{n}", int(begins + n * 3600) * 10**9, cp=n + 1) for n in range(4)]
    for policy in (Policy(hourly=24), Policy(hourly=4)):
        found = judge(records, policy, ZoneInfo("Europe/Berlin"))
        assert [v.name for v in found if v.reasons == ("hourly",)] == ["h3", "h2", "h1", "h0"]


@pytest.mark.parametrize("policy", [Policy(last=2), Policy(daily=2), Policy(within_s=86400)])
def test_what_mirrors_make_for_themselves_takes_nobodys_place(policy):
    """Each day one is made by hand, and later one by a mirror."""
    there = nights("day", NEW_YEAR, 4)
    mirrors = [f"mirror.copy.0123abcd.202601{i + 1:02}T230000.000000Z" for i in range(4)]
    own = [record(name, day.created_ns + 82_800 * 10**9) for name, day in zip(mirrors, there, strict=True)]
    line = [each for both in zip(there, own, strict=True) for each in both]
    for records in (line[:-1], line, [*there, own[-1]]):
        assert {"day2", "day3"} <= set(kept(records, policy))
        assert not {"day0", "day1"} & set(kept(records, policy))
    assert kept(own, policy) == mirrors[:1:-1]


@pytest.fixture
def volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    """Forty snapshots, a day apart, of a file system that changes."""
    now_s = [NEW_YEAR]
    with Volume.create(tmp_path / "v", disks=3, size="8M") as made:
        with monkeypatch.context() as patch:
            patch.setattr(snapshots.time, "time_ns", lambda: int(now_s[0]) * 10**9)
            for day in range(40):
                now_s[0] = NEW_YEAR + day * 86400
                made.active.is_dirty = True
                snapshots.create(made, f"d{day:02}")
        yield made


def test_a_volume_is_pruned_in_one_commit(volume: Volume) -> None:
    policy = Policy(last=2, daily=4, weekly=3, monthly=2)
    would = prune(volume, policy, dry_run=True, zone=UTC)
    assert (would.kept, would.is_dry) == (["d39", "d38", "d37", "d36", "d31", "d30"], True)
    assert len(volume.snapshots) == 40
    generation = volume.info.generation
    did = prune(volume, policy, zone=UTC)
    assert volume.info.generation - generation <= 3
    assert (did.kept, did.deleted, did.freed_blocks) == (would.kept, would.deleted, would.freed_blocks)
    assert did.freed_blocks > 0
    assert [s.name for s in volume.snapshots] == sorted(would.kept)
    again = prune(volume, policy, zone=UTC)
    assert (again.deleted, again.freed_blocks) == ([], 0)
    assert check(volume).ok


def test_what_was_made_while_the_clock_was_ahead_is_not_the_newest(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a rollback too: those that it left were made before those of the branch that it began."""

    def make(name: str, at_s: float) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(snapshots.time, "time_ns", lambda: int(at_s) * 10**9)
            volume.active.is_dirty = True
            snapshots.create(volume, name)

    for n in range(3):
        make(f"ahead{n}", NEW_YEAR + (50 * 365 + n) * 86400)
    make("right0", NEW_YEAR + 40 * 86400)
    assert prune(volume, Policy(last=2), dry_run=True).kept == ["right0", "ahead2", "ahead1"]
    snapshots.rollback(volume, "d39", drop_changes=True)
    for n in range(1, 4):
        make(f"right{n}", NEW_YEAR + (40 + n) * 86400)
        did = prune(volume, Policy(last=2, only=("ahead*", "right*")))
        assert did.kept == [f"right{n}", f"right{n - 1}", "ahead2", "ahead1"]
    assert check(volume).ok


def test_what_is_refused(volume: Volume) -> None:
    for policy, message in (
        (Policy(), "does not say"),
        (Policy(last=-2), "keep last -2"),
        (Policy(1, within_s=-1), "-1"),
    ):
        with pytest.raises(UsageError, match=message):
            prune(volume, policy)
    with pytest.raises(RefusedError, match="keeps none of 40"):
        prune(volume, Policy(names=("nothing",)))
    assert len(volume.snapshots) == 40
    assert prune(volume, Policy(last=1, only=("absent*",))).verdicts == ()
