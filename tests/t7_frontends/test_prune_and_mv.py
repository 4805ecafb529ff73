"""`prune` by policy and `mv` within a volume."""

from __future__ import annotations

import pytest

import blockplane as bp
from rig.owners import finish


def test_prune_says_what_it_would_do_and_does_it(done, pool):
    for name in ("auto-1", "auto-2", "keep-me"):
        done("snapshot", "create", f"{pool}@{name}")
    arguments = ("prune", pool, "--keep-last", 1, "--keep-name", "keep-*", "--only", "auto-*", "--only", "keep-*")
    would = done(*arguments, "-n", "--json").json
    assert (would["deleted"], would["dry_run"]) == (["auto-2", "auto-1"], True)
    assert [(v["name"], v["reasons"]) for v in would["kept"]] == [("keep-me", ["last", "name"])]
    assert would["freed_bytes"] == would["freed_blocks"] * 4096
    text = done(*arguments, "-n").out.splitlines()
    assert text[0].split()[0] == "keep-me"
    assert text[0].endswith("stays  last, name")
    assert text[-1].startswith("1 snapshot kept, 2 snapshots would be deleted")
    did = done(*arguments, "--json").json
    assert (did["deleted"], did["freed_blocks"]) == (would["deleted"], would["freed_blocks"])
    names = [s["name"] for s in done("snapshot", "list", pool, "--json").json["snapshots"]]
    assert names == ["june1", "june2", "keep-me"]
    assert done("prune", pool, "--keep-within", "1h", "--keep-daily", -1, "--json").json["deleted"] == []
    assert done("check", pool, "--json").json["ok"]


def test_prune_counts_what_is_deferred_by_itself(done, pool, monkeypatch):
    for name in ("a", "b"):
        done("snapshot", "create", f"{pool}@{name}")
    real = bp.Volume.prune

    def beside_a_reader(volume, policy, **options):
        with volume.pin(volume.get_snapshot("a").record.id):
            return real(volume, policy, **options)

    monkeypatch.setattr(bp.Volume, "prune", beside_a_reader)
    text = done("prune", pool, "--keep-last", 1, "--only", "[ab]", "--defer").out.splitlines()
    assert text[-1] == "1 snapshot kept, 0 snapshots deleted, 1 deferred, 0 blocks (0 B) freed"


def test_prune_says_when_its_pattern_matches_nothing(done, pool):
    found = done("prune", pool, "--keep-last", 1, "--only", "autumn-*", "--json")
    assert found.err == "blockplane: no snapshot matches --only autumn-*\n"
    assert (found.json["kept"], found.json["deleted"]) == ([], [])


@pytest.mark.parametrize(
    ("options", "kind", "status"),
    [
        ([], "usage", 2),
        (["--keep-last", "-2"], "usage", 2),
        (["--keep-within", "soon"], "usage", 2),
        (["--keep-name", "absent"], "refused", 1),
    ],
)
def test_what_prune_refuses(blockplane, pool, options, kind, status):
    outcome = blockplane("prune", pool, *options, "--json")
    assert (outcome.status, outcome.error["kind"]) == (status, kind)
    with bp.Volume.open(pool, writable=False) as volume:
        assert len(volume.snapshots) == 2


def test_mv(done, pool):
    assert done("mv", f"{pool}:/later", f"{pool}:/now", "--json").json == {"moved": [{"from": "/later", "to": "/now"}]}
    done("mv", f"{pool}:/now", f"{pool}:/tree/hello", f"{pool}:/tree/folder")
    assert done("ls", f"{pool}:/tree/folder").out.split() == ["hello", "inner", "now"]
    done("mv", f"{pool}:/tree/folder/", f"{pool}:/renamed")
    assert done("cat", f"{pool}:/renamed/hello").out == "hello\n"
    done("mv", f"{pool}:/renamed/hello", f"{pool}:/renamed/inner")
    assert done("cat", f"{pool}:/renamed/inner").out == "hello\n"
    assert done("mv", "-n", f"{pool}:/renamed/now", f"{pool}:/renamed/inner", "--json").json == {"moved": []}
    assert done("ls", f"{pool}@june2:/").out.split() == ["later", "tree"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["pool:/later"], 2),
        (["pool:/later", "other:/later"], 2),
        (["pool:/later", "pool:/tree/hello", "pool:/absent"], 2),
        (["pool:/absent", "pool:/x"], 1),
        (["pool:/tree", "pool:/tree/folder"], 1),
        (["pool@june1:/tree", "pool:/x"], 1),
        (["pool:/later", "pool:/absent", "pool:/tree"], 1),
    ],
)
def test_what_mv_refuses_changes_nothing(blockplane, done, pool, arguments, status):
    outcome = blockplane("mv", *arguments, "--json")
    assert outcome.status == status
    assert outcome.error["message"]
    assert done("diff", f"{pool}@june2", pool).out == "nothing changed\n"


def test_mv_of_two_that_are_called_alike_loses_neither(blockplane, done, pool):
    done("mv", f"{pool}:/tree/folder/inner", f"{pool}:/tree/folder/hello")
    done("mkdir", f"{pool}:/place")
    outcome = blockplane("mv", f"{pool}:/tree/hello", f"{pool}:/tree/folder/hello", f"{pool}:/place")
    assert (outcome.status, "several sources are called hello" in outcome.err) == (2, True)
    assert done("ls", f"{pool}:/place").out == ""
    assert done("cat", f"{pool}:/tree/hello", f"{pool}:/tree/folder/hello").out == "hello\ninner\n"


def test_mv_in_a_volume_in_use_moves_nothing_where_a_source_is_missing(pool):
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        assert finish("mv", f"{pool}:/later", f"{pool}:/absent", f"{pool}:/tree").returncode == 1
        assert bp.FileSystem(volume).exists("/later")
