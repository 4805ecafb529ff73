"""`pointer`, `snapshot master`, `replicate` and `replicas`, as they are typed."""

from __future__ import annotations

import shutil
import time

import pytest

import blockplane as bp


def test_pointers_as_typed(done, blockplane, pool):
    assert done("pointer", pool, "stable", "june1").out.endswith("stable stands at june1\n")
    assert done("pointer", pool, "stable", f"{pool}@june2", "--json").json["pointers"][0]["snapshot"] == "june2"
    assert done("ls", f"{pool}@stable:/tree").out == done("ls", f"{pool}@june2:/tree").out
    assert done("image", pool, "stable - june1", "--json").json["top"] == "june2"
    for verb in (("info", pool), ("snapshot", "list", pool), ("pointer", pool)):
        assert [p["name"] for p in done(*verb, "--json").json["pointers"]] == ["stable"]
        assert "stable -> june2" in done(*verb).out
    snapshots = {s["name"]: s.get("pointers") for s in done("snapshot", "list", pool, "--json").json["snapshots"]}
    assert snapshots == {"june1": None, "june2": ["stable"]}
    refused = blockplane("snapshot", "delete", f"{pool}@june2", "--json")
    assert (refused.status, refused.error["kind"]) == (1, "refused")
    assert "the pointer stable stands at snapshot 'june2'" in refused.error["message"]
    assert f"blockplane pointer {pool} stable" in refused.error["hint"]
    for words in (("stable",), ("stable", "june1", "--delete"), ("--delete",)):
        assert blockplane("pointer", pool, *words).status == 2
    done("pointer", pool, "stable", "--delete")
    assert done("pointer", pool, "--json").json == {"pointers": []}


def test_a_replica_is_made_and_follows(done, blockplane, pool, tmp_path):
    copy, far = str(tmp_path / "copy"), str(tmp_path / "far")
    missing = blockplane("replicate", pool, copy, "--json")
    assert (missing.status, (tmp_path / "copy").exists()) == (1, False)
    assert "has no pointer or snapshot master" in missing.error["message"]
    made = done("snapshot", "master", f"{pool}@june1", "--json").json
    assert (made["master"], made["pointers"]) == (True, ["master"])
    first = done("replicate", pool, copy, "--json").json
    assert (first["top"], first["base"], first["moved"]) == ("june1", None, ["master"])
    done("snapshot", "master", f"{pool}@june2")
    assert done("replicate", copy, far, "--disks", 1, "--size", "40M", "--json").json["top"] == "june1"
    text = done("replicate", pool, copy, "--once").out
    assert "has june2 onto june1" in text
    assert "moved: master" in text
    assert done("replicate", pool, copy).out.endswith("has june2 already\n")
    shown = done("replicas", pool, "--json").json
    assert shown["limit_seconds"] is None
    found = {r["name"]: r for r in shown["replicas"]}
    assert set(found) == {"copy", "far"}
    for each in shown["replicas"]:
        assert (each["lag_s"], each["left_blocks"]) == (each["lag_seconds"], each["lag_blocks"])
    assert (found["copy"]["newest"], found["copy"]["lag_seconds"], found["copy"]["left_bytes"]) == ("june2", 0.0, 0)
    with bp.Volume.open(pool, writable=False) as volume:
        n_left = volume.image("june2 - june1").n_blocks
    assert (found["far"]["via"], found["far"]["newest"]) == ("copy", "june1")
    assert (found["far"]["lag_blocks"], found["far"]["left_bytes"]) == (n_left, n_left * 4096)
    refused = blockplane("snapshot", "delete", f"{pool}@june1", "--json")
    assert refused.error["message"].endswith("is held by replica:far"), refused.error
    assert f"blockplane replicas {pool} --forget far" in refused.error["hint"]
    table = done("replicas", pool, "--limit", "7d").out.splitlines()
    assert table[0].split()[:3] == ["replica", "through", "status"]
    assert [line.split()[0] for line in table[1:3]] == ["copy", "far"]
    assert table[-1].startswith("one that is not heard of is waited for")
    assert done("replicas", pool, "--limit", "never", "--json").json["limit_seconds"] is None
    dry = done("prune", pool, "--keep-last", 1, "-n").out
    assert "is a master that far has not passed" in dry
    assert "0 snapshots would be deleted" in dry
    done("replicas", pool, "--forget", "far")
    assert [r["name"] for r in done("replicas", pool, "--json").json["replicas"]] == ["copy"]
    assert done("prune", pool, "--keep-last", 1, "--json").json["deleted"] == ["june1"]
    assert "has june2 onto june1" not in done("replicate", pool, far).out  # nothing was held for it: a full one
    for place in (pool, copy, far):
        assert done("check", place, "--json").json["ok"]


def test_a_source_that_is_behind_is_told_of(done, pool, tmp_path):
    copy = str(tmp_path / "copy")
    done("snapshot", "master", f"{pool}@june1")
    done("replicate", pool, copy)
    done("snapshot", "create", f"{copy}@later")
    done("snapshot", "master", f"{copy}@later")
    said = done("replicate", pool, copy).out
    assert f"{copy} is ahead of {pool}: master was moved more often here\nnothing was brought" in said
    assert done("replicate", pool, copy, "--json").json["source_is_behind"] is True


def test_what_is_refused(done, blockplane, pool, tmp_path):
    assert "HOST:PORT/NAME" in blockplane("replicate", "127.0.0.1:7420", tmp_path / "copy").err
    assert done("replicas", pool).out == "no replicas\n"
    done("snapshot", "master", f"{pool}@june1")
    done("replicate", pool, tmp_path / "copy")
    for words, status, kind in (
        (("replicate", pool, pool), 1, "refused"),
        (("replicate", pool, tmp_path / "copy", "--once", "--every", "1s"), 2, "usage"),
        (("replicate", pool, tmp_path / "copy", "--disks", 3), 2, "usage"),
        (("replicate", tmp_path / "absent", tmp_path / "copy"), 1, "not-a-volume"),
        (("replicas", pool, "--forget", "absent"), 1, "refused"),
        (("replicas", pool, "--limit", "soon"), 2, "usage"),
        (("snapshot", "master", f"{pool}@absent"), 1, "no-such-snapshot"),
    ):
        outcome = blockplane(*words, "--json")
        assert (words, outcome.status, outcome.error["kind"]) == (words, status, kind)


@pytest.mark.parametrize("changes", ["keep", "flush", "refuse"])
def test_changes_of_a_replica(done, blockplane, pool, tmp_path, changes):
    copy = str(tmp_path / "copy")
    done("snapshot", "master", f"{pool}@june1")
    done("replicate", pool, copy)
    done("mkdir", f"{copy}:/mine")
    done("snapshot", "master", f"{pool}@june2")
    outcome = blockplane("replicate", pool, copy, "--changes", changes, "--json")
    if changes == "refuse":
        assert (outcome.status, outcome.error["kind"]) == (1, "refused")
        assert "was written to since june1" in done("replicas", pool).out
        return
    kept = outcome.json["kept"]
    assert (outcome.status, kept is not None) == (0, changes == "keep")
    assert "mine" not in done("ls", f"{copy}:/").out
    if kept:
        assert "mine" in done("ls", f"{copy}@{kept}:/").out


def test_prune_gives_up_who_is_lost(done, pool, tmp_path, monkeypatch):
    done("snapshot", "master", f"{pool}@june1")
    done("replicate", pool, str(tmp_path / "copy"))
    done("snapshot", "master", f"{pool}@june2")
    done("replicas", pool, "--limit", "1h")
    now = time.time_ns()
    for later_s in (0, 4000, 4500):  # found silent twice
        monkeypatch.setattr(time, "time_ns", lambda later_s=later_s: now + later_s * 10**9)
        said = done("prune", pool, "--keep-last", 1, *(["--json"] if later_s == 0 else []))
        if later_s == 0:
            assert said.json["became_shadows"] == []
        assert ("june1 is a shadow now" in said.out) == (later_s == 4500)
    assert done("replicas", pool, "--json").json["replicas"][0]["status"] == "lost"


def test_what_a_put_back_source_does_not_know_is_told(done, pool, tmp_path):
    copy = str(tmp_path / "copy")
    done("snapshot", "master", f"{pool}@june1")
    done("replicate", pool, copy)
    shutil.copytree(pool, tmp_path / "before")
    done("snapshot", "create", f"{pool}@mine")
    done("snapshot", "master", f"{pool}@mine")
    done("replicate", pool, copy)
    shutil.rmtree(pool)
    shutil.copytree(tmp_path / "before", pool)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        done("put", f"{pool}:/", tmp_path / name)
        done("snapshot", "create", f"{pool}@{name}")
        done("snapshot", "master", f"{pool}@{name}")
    said = done("replicate", pool, copy).out
    assert "what was here is unknown there, and may be nowhere else: mine has it, and is held" in said
    with bp.Volume.open(copy, writable=False) as volume:
        assert [hold.owner for hold in volume.get_snapshot("mine").holds] == ["left-behind"]
