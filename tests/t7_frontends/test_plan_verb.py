"""`image plan`: levels, chains, exact sizes of what is there."""

from __future__ import annotations

import os

import pytest

KEYS = {
    "name", "level", "expression", "base", "chain", "keep_snapshot_until", "keep_stream_until", "n_blocks", "n_bytes",
}  # fmt: skip


def test_a_plan_of_days_that_are_to_come(done):
    found = done("image", "plan", "--days", 5, "--scheme", "hanoi:2", "--json").json
    assert found["scheme"] == "hanoi:2"
    assert [(b["name"], b["level"], b["base"]) for b in found["backups"]] == [
        ("day1", 0, None), ("day2", 2, "day1"), ("day3", 1, "day1"), ("day4", 2, "day3"), ("day5", 1, "day1"),
    ]  # fmt: skip
    assert all(set(backup) == KEYS for backup in found["backups"])
    assert {backup["n_blocks"] for backup in found["backups"]} == {None}
    lines = done("image", "plan", "--days", 2).out.splitlines()
    assert lines[0].split()[:3] == ["day", "level", "size"]
    assert lines[2].endswith("day2 - day1")


def test_a_plan_of_snapshots_says_what_each_image_holds(done, pool):
    found = done("image", "plan", pool, "--scheme", "chain", "--days", 3, "--json").json["backups"]
    assert [b["name"] for b in found] == ["june1", "june2", "day1"]
    sizes = [done("image", pool, b["expression"], "--json").json["n_blocks"] for b in found[:2]]
    assert [b["n_blocks"] for b in found] == [*sizes, None]
    assert found[1]["n_bytes"] == sizes[1] * 4096
    named = done("image", "plan", pool, "june1..june2", "june9", "--scheme", "full", "--json").json["backups"]
    assert [(b["name"], b["n_blocks"] is None) for b in named] == [("june1", False), ("june2", False), ("june9", True)]


def test_shadows_are_left_out_of_a_plan_and_named(done, pool):
    done("snapshot", "shadow", f"{pool}@june1")
    found = done("image", "plan", pool, "--days", 2, "--json")
    assert [backup["name"] for backup in found.json["backups"]] == ["june2", "day1"]
    assert found.err == "blockplane: left out: june1 (shadow)\n"


def test_a_plan_of_more_days_than_there_may_be_is_refused_at_once(blockplane):
    found = blockplane("image", "plan", "--days", 10**12)
    assert (found.status, "plan 1 to 2,000 days" in found.err) == (2, True)


def test_other_branches_are_left_out_of_a_plan_and_named(done, pool):
    done("rollback", f"{pool}@june1")
    done("mkdir", f"{pool}:/new")
    done("snapshot", "create", f"{pool}@june3")
    found = done("image", "plan", pool, "--scheme", "gfs:2:3", "--json")
    assert [backup["name"] for backup in found.json["backups"]] == ["june1", "june3"]
    assert "june2 (of another branch)" in found.err


def test_days_that_are_no_line_are_refused_with_what_plan_can_do(blockplane, pool):
    refused = blockplane("image", "plan", pool, "june2", "june1", "--scheme", "chain", "--json")
    assert (refused.status, refused.error["hint"]) == (2, "name the days older first, and of one line")
    assert refused.error["message"] == "june2 is no ancestor of june1, the newest snapshot of the image"


def test_a_volume_called_plan_can_be_named(done):
    done("create", "plan", "--disks", 1, "--size", "4MiB")
    done("snapshot", "create", "plan@s")
    assert done("image", "./plan", "s", "--json").json["top"] == "s"
    assert os.path.isdir("plan")


@pytest.mark.parametrize(
    ("arguments", "kind", "status"),
    [
        (["pool", "--scheme", "moon"], "usage", 2),
        (["pool", "--days", "1"], "usage", 2),
        ([], "usage", 2),
        (["june1", "june2"], "not-a-volume", 1),
        (["pool", "june1..absent"], "no-such-snapshot", 1),
        (["pool", "june1", "june1"], "usage", 2),
    ],
)
def test_what_plan_refuses(blockplane, pool, arguments, kind, status):
    outcome = blockplane("image", "plan", *arguments, "--json")
    assert (outcome.status, outcome.error["kind"]) == (status, kind)
