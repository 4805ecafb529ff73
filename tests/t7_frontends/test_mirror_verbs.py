"""The mirror verbs: what they say, what they refuse, a mirror that runs beside readers and is broken off under way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import blockplane as bp
from rig.owners import COMMAND, answers, finish, stalled, wait_for

STATUS_KEYS = {
    "name", "dest", "kind", "every_s", "local_changes", "late", "state", "newest", "newest_made", "under_way",
    "is_current", "lag_s", "lag_seconds", "lag_blocks", "left_blocks", "left_bytes", "bytes_per_second", "eta_s",
    "next", "error", "hint",
}  # fmt: skip


def status_of(done, pool: str) -> dict:
    (found,) = done("mirror", "status", pool, "--json").json["mirrors"]
    assert found.keys() == STATUS_KEYS
    return found


def test_from_add_to_remove(done, blockplane, pool):
    made = done("mirror", "add", pool, "copy", "--disks", "2", "--size", "16M", "--every", "1h", "--json").json
    assert (made["dest"], made["made"], made["common"]) == (os.path.abspath("copy"), True, None)
    found = status_of(done, pool)
    used = done("info", pool, "--json").json["used_blocks"]
    assert (found["state"], found["newest"], found["every_s"], found["next"]) == ("never", None, 3600.0, None)
    assert 0 < found["left_blocks"] <= used
    (step,) = done("mirror", "run", pool, "--once", "--json").json["steps"]
    assert (step["outcome"], step["error"], step["base"], step["n_blocks"] > 0) == ("brought", None, None, True)
    found = status_of(done, pool)
    assert (found["state"], found["newest"], found["is_current"]) == ("idle", step["top"], True)
    assert (found["lag_s"], found["left_bytes"], found["error"]) == (0.0, 0, None)
    assert "no mirror is due" in done("mirror", "run", pool, "--once").out
    assert "is up to date" in done("mirror", "run", pool, "--once", "--now").out
    refused = blockplane("mkdir", "copy:/mine")
    assert refused.status == 1
    assert f"is a mirror of {os.path.abspath(pool)}" in refused.err
    assert "blockplane mirror break copy" in refused.err
    done("mkdir", f"{pool}:/more")
    found = status_of(done, pool)
    assert found["lag_s"] > 0
    assert 0 < found["left_blocks"] == found["lag_blocks"] < 40
    assert "copy" in done("mirror", "status", pool).out
    assert "is a mirror of" in done("mirror", "status", "copy").out
    assert done("mirror", "run", pool, "--once", "--now", "--only", "copy").out.startswith(os.path.abspath("copy"))
    assert "more" in done("ls", "copy:/").out
    assert "is no mirror" in done("mirror", "remove", pool, "copy").out
    done("mkdir", "copy:/mine")
    assert done("mirror", "status", pool).out == f"{pool} has no mirrors\n"
    assert done("check", "copy", "--json").json["ok"]


def test_takeover_and_back(done, blockplane, pool):
    done("mirror", "add", pool, "copy")
    done("mirror", "run", pool, "--once")
    assert "can be written" in done("mirror", "break", "copy").out
    done("mkdir", "copy:/there")
    failed = blockplane("mirror", "run", pool, "--once", "--now")  # though there is nothing to bring
    assert (failed.status, "was broken off" in failed.err) == (1, True)
    done("mkdir", f"{pool}:/here")
    failed = blockplane("mirror", "run", pool, "--once", "--now", "--json")
    assert (failed.status, failed.json["ok"]) == (1, False)
    assert "was broken off" in failed.json["steps"][0]["error"]
    assert "was broken off" in done("mirror", "status", pool).out
    foreseen = done("mirror", "resync", "copy", "-n", "--json").json
    assert (foreseen["is_split"], foreseen["winner"], foreseen["dry_run"]) == (True, None, True)
    assert foreseen["source"]["is_changed"]
    assert foreseen["destination"]["n_blocks"] > 0
    refused = blockplane("mirror", "resync", "copy")
    assert (refused.status, "both sides were written to" in refused.err) == (1, True)
    report = done("mirror", "resync", "copy", "--reverse", "--json").json
    assert (report["winner"], report["dry_run"], report["n_blocks"] < 40) == ("destination", False, True)
    assert "there" in done("ls", f"{pool}:/").out
    assert "here" in done("ls", f"{pool}@{report['kept']}:/").out
    assert blockplane("mkdir", "copy:/again").status == 1
    assert "is no mirror" in blockplane("mirror", "break", pool).err
    done("mirror", "break", "copy", "--rehearse")
    done("mkdir", "copy:/tried")
    kept = done("mirror", "break", "copy", "--end-rehearsal", "--json").json["kept"]
    assert "tried" in done("ls", f"copy@{kept}:/").out
    assert "tried" not in done("ls", "copy:/").out


def test_usage(blockplane, pool):
    for words in (
        ["add", pool, "copy", "--every", "0s"],
        ["add", pool, "far:7000/pool"],
        ["run", pool, "--now"],
        ["break", pool, "--rehearse", "--end-rehearsal"],
        ["resync", pool, "--reverse", "--from", "source"],
    ):
        assert blockplane("mirror", *words).status == 2, words
    assert not Path("copy").exists()


def test_a_running_mirror_beside_its_readers(pool):
    """Changes arrive, readers see whole states, a break takes effect under the loop; SIGTERM ends it with status 0."""
    assert finish("mirror", "add", pool, "copy", "--every", "1s").returncode == 0
    with subprocess.Popen(
        [*COMMAND, "mirror", "run", pool, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["outcome"] == "brought"
            wait_for(lambda: answers("copy"), "the destination's control socket")
            assert finish("mkdir", f"{pool}:/fresh").returncode == 0
            assert json.loads(process.stdout.readline())["n_blocks"] < 40
            assert b"fresh" in finish("ls", "copy:/").stdout
            assert finish("mirror", "break", "copy").returncode == 0
            assert finish("mkdir", "copy:/mine").returncode == 0
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
    with bp.Volume.open("copy") as copy:
        assert bp.FileSystem(copy).is_dir("/mine")
        assert bp.check(copy).ok


def test_a_takeover_waits_for_no_transfer_that_stalls(done, pool, rng):
    """The receive that owns the mirror's volume says nothing more: files change beside it all the same, and stay."""
    done("mirror", "add", pool, "copy", "--size", "32M")
    (step,) = done("mirror", "run", pool, "--once", "--json").json["steps"]
    Path("large").write_bytes(rng.bytes(1 << 20))
    done("put", f"{pool}:/large", "large")
    done("snapshot", "create", f"{pool}@later")
    done("send", pool, f"later - {step['top']}", "-o", "increment.bps")
    stream = Path("increment.bps").read_bytes()
    with stalled("receive", "copy", volume="copy", begun=stream[: len(stream) // 2]) as owner:
        refused = finish("mkdir", "copy:/mine")
        assert (refused.returncode, b"is in use by receive" in refused.stderr) == (1, True)
        assert finish("mirror", "break", "copy").returncode == 0
        assert finish("mkdir", "copy:/mine").returncode == 0
        assert finish("put", "copy:/other", "large").returncode == 0
        owner.process.stdin.write(stream[len(stream) // 2 :])
        said = owner.let_go()
        assert owner.process.returncode == 1
        assert b"was written to while it received" in said
    before = done("ls", f"copy@{step['top']}:/").out.split()
    assert sorted(done("ls", "copy:/").out.split()) == sorted([*before, "mine", "other"])
    done("get", "copy:/other", "got")
    assert Path("got").read_bytes() == Path("large").read_bytes()
    assert done("check", "copy", "--json").json["ok"]


def test_what_is_reintegrated_in_a_rehearsal_is_what_was_brought(done, pool):
    done("send", pool, "june2", "-o", "full.bps")
    done("mirror", "add", pool, "fast", "--kind", "incremental", "--base", "full.bps", "--size", "16M")
    assert "base       group 0: what is in it is read" in done("info", "fast").out
    done("mkdir", f"{pool}:/brought")
    done("mirror", "run", pool, "--once", "--now")
    done("mirror", "break", "fast", "--rehearse")
    done("mkdir", "fast:/tried")
    done("snapshot", "create", "fast@tried")
    done("mirror", "reintegrate", "fast", "whole", "--disks", 1, "--size", "64M")
    assert {"brought", "tried"} & set(done("ls", "whole:/").out.split()) == {"brought"}


def test_an_incremental_mirror_is_not_reintegrated_into_itself_or_another_mirror(done, blockplane, pool):
    done("send", pool, "june2", "-o", "full.bps")
    done("mirror", "add", pool, "copy")
    done("mirror", "add", pool, "fast", "--kind", "incremental", "--base", "full.bps", "--size", "16M")
    done("mirror", "run", pool, "--once", "--now", "--only", "copy")
    done("mkdir", f"{pool}:/newer")
    done("mirror", "run", pool, "--once", "--now", "--only", "fast")
    for vol, why in (("copy", "which alone says what it shows"), ("./fast", "is the incremental mirror itself")):
        refused = blockplane("mirror", "reintegrate", "fast", vol)
        assert (refused.status, why in refused.err) == (1, True), refused.err
    assert "newer" not in done("ls", "copy:/").out.split()
    done("mirror", "break", "copy")
    done("mirror", "reintegrate", "fast", "copy")
    assert "newer" in done("ls", "copy:/").out.split()


def test_a_rollback_of_a_source_says_where_its_work_is(done, pool):
    done("mirror", "add", pool, "copy")
    done("snapshot", "create", f"{pool}@quiet")
    done("mkdir", f"{pool}:/work")
    done("mirror", "run", pool, "--once", "--now")
    assert done("rollback", f"{pool}@quiet").out == (
        f"{pool} is at quiet; what it had changed is in before-rollback-to-quiet\n"
    )
    said = done("mirror", "run", pool, "--once", "--now").out
    kept = said.strip().rpartition("; what that replaced is kept in ")[2]
    for volume, name in ((pool, "before-rollback-to-quiet"), ("copy", kept)):
        assert "work" in done("ls", f"{volume}@{name}:/").out
        assert "work" not in done("ls", f"{volume}:/").out


def test_snapshots_that_are_left_out_are_named(done, pool):
    done("mirror", "add", pool, "copy")
    run = ("mirror", "run", pool, "--once", "--now")
    for left_out in ([], ["latest"]):
        done("snapshot", "create", f"{pool}@latest")
        (step,) = done(*run, "--json").json["steps"]
        assert step["left_out"] == left_out
        done("mkdir", f"{pool}:/{len(left_out)}")
        assert "left out" not in done(*run).out
        done("snapshot", "delete", f"{pool}@latest")
    done("snapshot", "create", f"{pool}@latest")
    assert done(*run).out.endswith("; left out, since it has others so named: latest\n")


def test_a_rehearsal_shows_and_is_ended_first(done, blockplane, pool):
    done("mirror", "add", pool, "copy")
    done("mirror", "run", pool, "--once")
    done("mirror", "break", "copy", "--rehearse")
    done("mkdir", f"{pool}:/more")
    done("mirror", "run", pool, "--once", "--now")
    found = status_of(done, pool)
    assert (found["state"], found["error"]) == ("waiting", None)
    assert " waiting " in done("mirror", "status", pool).out
    for words in (["add", pool, "copy", "--every", "5m"], ["resync", "copy", "--reverse"], ["resync", "copy", "-n"]):
        refused = blockplane("mirror", *words)
        assert (refused.status, "--end-rehearsal" in refused.err) == (1, True), words
    done("mirror", "break", "copy", "--end-rehearsal")
    done("mirror", "add", pool, "copy", "--every", "5m")
    done("mirror", "run", pool, "--once", "--now")
    found = status_of(done, pool)
    assert (found["state"], found["every_s"], found["error"]) == ("idle", 300.0, None)


def test_options_that_are_not_named_again_stay(done, pool):
    def add(*options: str) -> tuple[object, ...]:
        done("mirror", "add", pool, "copy", *options)
        (its,) = bp.mirrors.definitions(Path(pool))
        return its.every_s, its.late, its.local_changes

    assert add("--every", "5m", "--late", "next", "--local-changes", "keep") == (300.0, "next", "keep")
    assert add("--every", "1h") == (3600.0, "next", "keep")
    assert add("--late", "latest") == (3600.0, "latest", "keep")
    assert add("--local-changes", "refuse") == (3600.0, "latest", "refuse")
    assert add() == (3600.0, "latest", "refuse")


def test_a_break_is_shown_until_it_is_joined_again(done, blockplane, pool):
    done("mirror", "add", pool, "copy")
    done("snapshot", "create", f"{pool}@one")
    done("mirror", "run", pool, "--once")
    done("mirror", "break", "copy")
    assert blockplane("mirror", "run", pool, "--once", "--now").status == 1
    assert status_of(done, pool)["state"] == "broken off"
    done("mirror", "resync", "copy")
    found = status_of(done, pool)
    assert (found["state"], found["error"]) == ("idle", None)
    Path("copy").rename("away")  # taken out while it cannot be reached
    assert done("mirror", "remove", pool, "copy", "--json").json["told"] is False
    Path("away").rename("copy")
    done("mirror", "break", "copy")
    assert done("mirror", "add", pool, "copy", "--json").json["is_broken"] is True
    assert status_of(done, pool)["state"] == "broken off"
    done("mirror", "resync", "copy")
    assert status_of(done, pool)["state"] == "idle"


def test_options_of_an_incremental_mirror(done, blockplane, pool):
    done("snapshot", "create", f"{pool}@one")
    done("send", pool, "one", "-o", "full.bps")
    made = ["mirror", "add", pool, "fast", "--kind", "incremental", "--base", "full.bps"]
    done(*made, "--size", "16M")
    assert blockplane(*made).status == 2
    assert blockplane("mirror", "add", pool, "fast", "--kind", "full").status == 2
    done("mirror", "run", pool, "--once")
    for words in (["--kind", "incremental"], []):
        done("mirror", "add", pool, "fast", "--every", "5m", *words)
        found = status_of(done, pool)
        assert (found["kind"], found["every_s"], found["next"] is not None) == ("incremental", 300.0, True)


def test_what_is_held_for_a_mirror_goes_with_it(done, blockplane, pool):
    done("mirror", "add", pool, "copy", "--size", "40M")
    done("mirror", "run", pool, "--once", "--now", "--only", "copy")
    name = status_of(done, pool)["name"]
    assert name.startswith("copy.")
    newest = status_of(done, pool)["newest"]
    refused = blockplane("snapshot", "delete", f"{pool}@{newest}", "--json")
    assert f"blockplane mirror remove {pool} {name}" in refused.error["hint"], refused.error
    done("mirror", "run", pool, "--once", "--now", "--only", name)
    assert "is no mirror" in done("mirror", "remove", pool, name).out
    done("snapshot", "delete", f"{pool}@{newest}")
