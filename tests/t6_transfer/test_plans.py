"""Level plans: bases and chains by their rule, and on real volumes that every day comes back from what is kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockplane as bp
from blockplane.image import plan_levels
from blockplane.model import UsageError

DAYS = [f"june{i}" for i in range(1, 10)]
SCHEMES = ["hanoi:3", "hanoi:1", "gfs:3:6", "levels:0,3,2,5,4", "cumulative", "chain", "full"]


def levels_of(scheme, n, **options):
    return [backup.level for backup in plan_levels([f"d{i}" for i in range(n)], scheme, **options)]


def test_levels():
    assert levels_of("hanoi:3", 13) == [0, 3, 2, 3, 1, 3, 2, 3, 1, 3, 2, 3, 1]
    assert levels_of("hanoi", 17) == [0, 4, 3, 4, 2, 4, 3, 4, 1, 4, 3, 4, 2, 4, 3, 4, 1]
    assert levels_of("gfs", 30) == [0, *[2] * 6, 1, *[2] * 6, 1, *[2] * 6, 1, *[2] * 6, 0, 2]
    assert levels_of("gfs:2:5", 11) == [0, 2, 1, 2, 1, 0, 2, 1, 2, 1, 0]
    assert levels_of("levels:0,3,2,5,4", 7) == [0, 3, 2, 5, 4, 0, 3]
    assert levels_of("cumulative", 4) == [0, 1, 1, 1]
    assert levels_of("chain", 4) == [0, 1, 2, 3]
    assert levels_of("chain", 7, full_every=3) == [0, 1, 2, 0, 1, 2, 0]
    assert levels_of("full", 3) == [0, 0, 0]


def test_expressions_plain_and_carrying_what_lies_between():
    names = ["june3", "june4", "june5"]
    assert [b.expression for b in plan_levels(names, "levels:0,2,1")] == ["june3", "june4 - june3", "june5 - june3"]
    carrying = plan_levels(names, "levels:0,2,1", carry=True)
    assert [b.expression for b in carrying] == ["june3", "june4 - june3", "june5 + june4 - june3"]
    assert [b.base for b in carrying] == [None, "june3", "june3"]


@given(st.lists(st.integers(0, 6), max_size=30))
def test_bases_chains_and_how_long_things_are_kept(levels):
    levels = [0, *levels]
    days = [f"d{i}" for i in range(len(levels))]
    found = plan_levels(days, "levels:" + ",".join(map(str, levels)))
    for day, backup in enumerate(found):
        lower = [i for i in range(day) if levels[i] < levels[day]]
        assert backup.level == levels[day]
        assert backup.base == (days[lower[-1]] if lower else None)
        base = found[days.index(backup.base)] if backup.base else None
        assert backup.chain == ((*base.chain, days[day]) if base else (days[day],))
        users = [other.name for other in found if other.base == days[day]]
        assert backup.keep_snapshot_until == (users[-1] if users else days[day])
        assert backup.keep_stream_until == [o.name for o in found if days[day] in o.chain][-1]


@pytest.mark.parametrize(
    ("names", "scheme", "options", "message"),
    [
        (["a"], "moon", {}, "no scheme 'moon'"),
        (["a"], "hanoi:x", {}, "no scheme"),
        (["a"], "hanoi:0", {}, "0 levels"),
        (["a"], "gfs:7", {}, "1 numbers"),
        (["a"], "gfs:9:4", {}, "a week of 9 days"),
        (["a"], "levels:", {}, "no scheme"),
        (["a"], "levels:1,2", {}, "first level is 0|the first level"),
        (["a"], "chain", {"full_every": 0}, "every 0 days"),
        ([], "chain", {}, "0 days"),
        (["a", "b", "a"], "chain", {}, "a is in the plan twice"),
        (["a b"], "chain", {}, "cannot name a snapshot"),
    ],
)
def test_what_is_no_plan(names, scheme, options, message):
    with pytest.raises(UsageError) as caught:
        plan_levels(names, scheme, **options)
    assert any(part in caught.value.message + caught.value.hint for part in message.split("|"))


def contents(files):
    return {
        f"{folder}/{name}": files.read_bytes(f"{folder}/{name}")
        for folder, _, names in files.walk("/")
        for name in names
    }


@pytest.mark.parametrize("carry", [False, True], ids=["plain", "carry"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_day_comes_back_from_what_the_plan_keeps(tmp_path, scheme, carry, is_deep):
    """Each day: send with the snapshots still kept, then restore that day, and at the end all, by the plan's chains."""
    rng = np.random.default_rng([len(scheme), carry])
    days = [f"june{i}" for i in range(1, 17)] if is_deep else DAYS
    plan = plan_levels(days, scheme, carry=carry)
    state_of = {}
    with bp.Volume.create(tmp_path / "pool", disks=3, size="24M") as pool:
        files = bp.FileSystem(pool)
        for day, backup in enumerate(plan):
            files.write_bytes(f"/file{rng.integers(6)}", rng.bytes(int(rng.integers(1, 50_000))))
            files.write_bytes("/day", backup.name.encode())
            pool.snapshot(backup.name)
            state_of[backup.name] = contents(files)
            image = pool.image(backup.expression)
            bp.send(image, tmp_path / f"{backup.name}.bps")
            between = days[days.index(backup.base) + 1 : day] if carry and backup.base else []
            assert [record.name for record in image.arriving] == [backup.name, *reversed(between)]
            with bp.open_stream(*(tmp_path / f"{name}.bps" for name in backup.chain)) as chain:
                assert contents(bp.FileSystem(chain)) == state_of[backup.name]
            drop(pool, [b.name for b in plan[: day + 1] if days.index(b.keep_snapshot_until) <= day])
    chosen = plan if is_deep else [plan[-1], plan[int(rng.integers(len(plan)))]]
    for backup in chosen:
        restored = tmp_path / f"restored-{backup.name}"
        for name in backup.chain:
            bp.receive(tmp_path / f"{name}.bps", restored)
        with bp.Volume.open(restored) as volume:
            assert contents(bp.FileSystem(volume)) == state_of[backup.name]
            assert backup.name in [snapshot.name for snapshot in volume.snapshots]
            assert bp.check(volume).ok


def drop(pool, names):
    there = [snapshot.name for snapshot in pool.snapshots]
    gone = [name for name in names if name in there and name != there[-1]]
    if gone:
        pool.delete_snapshot(*gone)


def test_streams_are_needed_until_the_day_that_is_said():
    for scheme in SCHEMES:
        plan = plan_levels(DAYS, scheme)
        for day, backup in enumerate(plan):
            kept = {b.name for b in plan[: day + 1] if DAYS.index(b.keep_stream_until) >= day}
            assert set(backup.chain) <= kept, (scheme, backup.name)
