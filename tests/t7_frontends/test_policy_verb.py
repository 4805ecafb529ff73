"""`snapshot policy`: what is set, what it would do, and what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockplane as bp


def kinds(done, pool: str) -> dict[str, str]:
    return {s["name"]: s["kind"] for s in done("snapshot", "list", pool, "--json").json["snapshots"]}


@pytest.fixture
def week(done, pool) -> str:
    """Five snapshots more, each of half a mebibyte of its own; little room is left."""
    with bp.Volume.open(pool) as volume:
        files = bp.FileSystem(volume)
        for day in range(5):
            files.write_bytes("/day", bytes([day]) * (512 << 10))
            volume.snapshot(f"auto-{day}")
        files.write_bytes("/filler", b"x" * ((volume.coming_blocks - 700) * 4096))
    return pool


def test_a_policy_is_shown_set_and_dropped(done, week):
    assert done("snapshot", "policy", week).out.startswith("no policy")
    assert done("snapshot", "policy", week, "--json").json["policy"] is None
    assert done("info", week, "--json").json["policy"] is None
    said = done("snapshot", "policy", week, "--demote-under", "4MiB", "--keep", 2, "--only", "auto-*", "-n", "--json")
    assert said.json["policy"] == {"demote_under": 4 << 20, "keep": 2, "only": ["auto-*"]}
    assert said.json["dry_run"]
    assert said.json["wanted_blocks"] == 1024
    assert [one["name"] for one in said.json["going"]] == ["auto-0", "auto-1", "auto-2"][: len(said.json["going"])]
    assert set(kinds(done, week).values()) == {"regular"}
    did = done("snapshot", "policy", week, "--demote-under", "4MiB", "--keep", 2, "--only", "auto-*")
    went = [one["name"] for one in said.json["going"]]
    assert [name for name, kind in kinds(done, week).items() if kind == "shadow"] == went
    assert did.err.splitlines() == [
        f"blockplane: {Path(week)}@{name} became a shadow: the policy wants more space free" for name in went
    ]
    shown = done("snapshot", "policy", week)
    assert "snapshots become shadows under 4 MiB free, the newest 2 stay, only auto-*" in shown.out
    assert "june1   stays  is not named by the policy" in shown.out
    assert "policy     snapshots become shadows under 4 MiB free" in done("info", week).out
    assert done("info", week, "--json").json["policy"]["demote_under"] == 4 << 20
    assert done("snapshot", "policy", week, "--off", "--json").json["policy"] is None
    assert done("check", week, "--json").json["ok"]


def test_the_plan_is_exact(done, week):
    plan = done("snapshot", "policy", week, "--demote-under", "15%", "-n", "--json").json
    done("snapshot", "policy", week, "--demote-under", "15%")
    found = {s["name"]: s for s in done("snapshot", "list", week, "--json").json["snapshots"]}
    for one in plan["going"]:
        how = found[one["name"]]["demotion"]
        assert how["by"] == "policy"
        assert how["reason"] == "less was free than its limit"
        assert how["freed_blocks"] == one["freed_blocks"]
        assert (how["room_blocks"], how["wanted_blocks"]) == (plan["room_blocks"], plan["wanted_blocks"])
        assert found[one["name"]]["recent_lost_blocks_per_second"] is None  # no hour has been counted
    assert plan["enough"]


def test_a_put_that_lacks_room_gets_it(done, blockplane, week):
    Path("big").write_bytes(b"y" * (3 << 20))
    Path("bigger").write_bytes(b"z" * (4 << 20))
    refused = blockplane("put", f"{week}:/", "big")
    assert refused.status == 1
    assert "is full" in refused.err
    done("snapshot", "hold", f"{week}@auto-0", "me")
    done("snapshot", "policy", week, "--demote-under", "4KiB", "--only", "auto-*")
    put = done("put", f"{week}:/", "big")
    went = [name for name, kind in kinds(done, week).items() if kind == "shadow"]
    assert went == ["auto-1", "auto-2", "auto-3"][: len(went)]
    assert went
    assert f"{week}@auto-1 became a shadow" in put.err
    assert done("cat", f"{week}:/big").out == "y" * (3 << 20)
    assert "by the policy" in done("snapshot", "list", week).out
    refused = blockplane("put", f"{week}:/", "bigger")
    assert refused.status == 1
    assert "auto-0 is held by me" in refused.err
    assert "auto-4 is one of the newest 1" in refused.err
    assert done("check", week, "--json").json["ok"]


def test_a_demoted_snapshot_is_marked_as_asked_for_or_by_policy(done, pool):
    done("snapshot", "shadow", f"{pool}@june1")
    (found,) = (s for s in done("snapshot", "list", pool, "--json").json["snapshots"] if s["name"] == "june1")
    assert found["demotion"]["by"] == "somebody"
    assert "by the policy" not in done("snapshot", "list", pool).out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--keep", "2"], "say --demote-under too"),
        (["--only", "a"], "say --demote-under too"),
        (["--demote-under", "5%", "--off"], "contradict"),
        (["--demote-under", "500%"], "no share"),
        (["--demote-under", "much"], "not a size"),
        (["--demote-under", "0"], "never"),
        (["--demote-under", "1G", "--keep", "0"], "--keep"),
    ],
)
def test_what_makes_no_policy_is_refused(blockplane, pool, options, text):
    before = Path(pool, "disks", "0").read_bytes()
    refused = blockplane("snapshot", "policy", pool, *options)
    assert refused.status == 2
    assert text in refused.err
    assert Path(pool, "disks", "0").read_bytes() == before
