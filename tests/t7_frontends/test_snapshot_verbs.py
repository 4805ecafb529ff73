"""Shadows and holds on the command line."""

from __future__ import annotations

import pytest


def kinds(done, place: str) -> dict[str, str]:
    return {s["name"]: s["kind"] for s in done("snapshot", "list", place, "--json").json["snapshots"]}


def test_a_shadow_is_subtracted_and_not_read(done, blockplane, pool):
    done("receive", "copy", "-i", "june1.bps")
    made = done("snapshot", "shadow", f"{pool}@june1", "--json").json
    assert (made["kind"], made["n_blocks"], made["was_blocks"]) == ("shadow", made["was_blocks"], made["n_blocks"])
    assert made["freed_blocks"] > 0
    assert kinds(done, pool) == {"june1": "shadow", "june2": "regular"}
    assert "shadow, 100.0% left" in done("info", pool).out
    done("send", pool, "june2 - june1", "-o", "again.bps")
    done("receive", "copy", "-i", "again.bps")
    assert done("cat", "copy@june2:/later").out == "later" * 5000
    for verb in (["ls", f"{pool}@june1:/"], ["rollback", f"{pool}@june1"], ["send", pool, "june1", "-o", "x.bps"]):
        refused = blockplane(*verb)
        assert refused.status == 1
        assert "shadow" in refused.err
    assert done("check", pool, "--json").json["ok"]
    done("snapshot", "delete", f"{pool}@june1")
    assert done("check", pool, "--json").json["ok"]


def test_a_hold_keeps_a_snapshot(done, blockplane, pool):
    held = done("snapshot", "hold", f"{pool}@june1", "mirror-b", "--expires", "7d", "--json").json["holds"]
    assert [hold["owner"] for hold in held] == ["mirror-b"]
    assert held[0]["made"] < held[0]["expires"]
    assert "regular, held by mirror-b" in done("snapshot", "list", pool).out
    for verb in ("delete", "shadow"):
        error = blockplane("snapshot", verb, f"{pool}@june1", "--json").error
        assert "held by mirror-b until" in error["message"]
        assert "snapshot release" in error["hint"]
    assert blockplane("snapshot", "release", f"{pool}@june1", "mirror-a").status == 1
    assert "holds" not in done("snapshot", "release", f"{pool}@june1", "mirror-b", "--json").json
    done("snapshot", "delete", f"{pool}@june1")


def test_a_dry_run_says_what_would_be_refused_or_deferred(done, blockplane, pool):
    done("snapshot", "hold", f"{pool}@june1", "me")
    found = blockplane("snapshot", "delete", f"{pool}@june1..june2", "-n")
    assert (found.status != 0, "held by me" in found.err) == (True, True)
    would = done("snapshot", "delete", f"{pool}@june1..june2", "-n", "--defer", "--json").json
    did = done("snapshot", "delete", f"{pool}@june1..june2", "--defer", "--json").json
    assert would["deferred"] == did["deferred"] == ["june1"]
    assert (would["deleted"], would["freed_blocks"]) == (did["deleted"], did["freed_blocks"])
    assert "is being deleted" in blockplane("snapshot", "create", f"{pool}@june1").err
    assert done("snapshot", "release", f"{pool}@june1", "me", "--json").json == {"name": "june1", "deleted": True}
    assert done("snapshot", "list", pool, "--json").json["snapshots"] == []


def test_a_rollback_takes_a_name_that_is_free(done, pool):
    done("image", "save", pool, "before-rollback-to-june1", "june2")
    done("mkdir", f"{pool}:/more")
    done("pointer", pool, "before-rollback-to-june1-2", "june2")
    assert done("rollback", f"{pool}@june1", "--json").json["kept_as"] == "before-rollback-to-june1-3"


@pytest.mark.parametrize("text", ["", "7", "d", "1y", "-1d", "7 d", "1e9s", "9999999s"])
def test_a_length_of_time_that_is_none(blockplane, pool, text):
    outcome = blockplane("snapshot", "hold", f"{pool}@june1", "me", "--expires", text)
    assert outcome.status == 2
    assert "length of time" in outcome.err
