"""Retention against a plain model of its rules, and on a real volume."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from fnmatch import fnmatchcase
from pathlib import Path

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


def record(name: str, created_ns: int, kind: int = 1) -> SnapshotRecord:
    return SnapshotRecord(
        name.encode().ljust(16), NO_ID, NO_ID, NO_ID, 1, created_ns, Pointer.none(), 1, name=name, kind=kind
    )


counts = st.integers(ALL, 5)
policies = st.builds(
    Policy,
    *[counts] * 6,
    within_s=st.sampled_from([0, 3600, 5 * 86400]),
    names=st.sampled_from([(), ("s1*",), ("s2", "s3")]),
    only=st.sampled_from([("*",), ("s*", "x"), ("[!s]*",)]),
).filter(lambda p: any([p.last, p.hourly, p.daily, p.weekly, p.monthly, p.yearly, p.within_s, p.names]))
#: Around New Year, when ISO weeks, months and years do not agree, an hour to a year apart.
times = st.lists(st.integers(-400 * 24, 400 * 24).map(lambda h: int(NEW_YEAR + h * 3600) * 10**9 + h), max_size=30)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-9))])


@given(times, policies, zones)
def test_reasons_are_those_of_the_rules(created, policy, zone):
    records = [record(f"{'sx'[i % 7 == 0]}{i}", ns) for i, ns in enumerate(created)]
    records.append(record("shadow", int(NEW_YEAR) * 10**9, KIND_SHADOW))
    judged = [r for r in records[:-1] if any(fnmatchcase(r.name, p) for p in policy.only)]
    ordered = sorted(judged, key=lambda r: (r.created_ns, records.index(r)), reverse=True)
    expected = {r.name: set() for r in ordered}
    for i, r in enumerate(ordered):
        if policy.last == ALL or i < policy.last:
            expected[r.name].add("last")
        if policy.within_s and ordered[0].created_ns - r.created_ns <= policy.within_s * 10**9:
            expected[r.name].add("within")
        if any(fnmatchcase(r.name, p) for p in policy.names):
            expected[r.name].add("name")
    for rule, text in FORMATS.items():
        periods = [datetime.fromtimestamp(r.created_ns // 10**9, zone).strftime(text) for r in ordered]
        n = getattr(policy, rule)
        for period in sorted(set(periods), reverse=True)[: len(periods) if n == ALL else n]:
            expected[ordered[periods.index(period)].name].add(rule)
    found = judge(records, policy, zone)
    assert [v.name for v in found] == [r.name for r in ordered]
    assert {v.name: set(v.reasons) for v in found} == expected


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
    pinned = volume.get_snapshot("d00")
    with volume.pin(pinned.record.id), pytest.raises(RefusedError, match="being read"):
        prune(volume, Policy(last=1))
    assert len(volume.snapshots) == 40
    assert prune(volume, Policy(last=1, only=("absent*",))).verdicts == ()
