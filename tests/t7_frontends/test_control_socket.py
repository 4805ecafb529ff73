"""A volume in use: the verbs of other processes run in the one that has it, through its control socket."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import gc
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path
from unittest import mock

import click
import pytest

import blockplane as bp
from blockplane.cli.main import Verbs, cli
from blockplane.cli.verbtable import ALONE, KINDS, verb_of
from blockplane.server import Kind, control, socketfile, wire
from blockplane.server.activity import may_go_together
from blockplane.server.session import Session
from rig.owners import COMMAND, TIMEOUT_S, finish, no_room_for_threads, stalled, wait_for

NOBODY = 65534


def kinds_of(pool: str) -> dict[str, str]:
    found = json.loads(finish("snapshot", "list", pool, "--json").stdout)["snapshots"]
    return {snapshot["name"]: snapshot["kind"] for snapshot in found}


def pins_of(pool: str) -> list[tuple[str, str, int]]:
    found = json.loads(finish("info", pool, "--json").stdout)["pins"]
    return [(pin["snapshot"], pin["verb"], pin["pid"]) for pin in found]


# --- the table ------------------------------------------------------------------------------------------------------


def all_verbs() -> set[str]:
    found = set(Verbs.pairs)
    names = {" ".join(pair) for pair in found}
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            names |= {f"{name} {verb}" for verb in command.commands}
        else:
            names.add(name)
    return names


def test_the_table_knows_every_verb_there_is():
    assert all_verbs() == {*KINDS, *ALONE}
    assert set(KINDS.values()) <= {kind.name for kind in Kind}
    assert all(verb_of([*verb.split(), "pool"]) == verb for verb in all_verbs())


@pytest.mark.parametrize("a", Kind)
@pytest.mark.parametrize("b", Kind)
def test_what_may_go_together_does_so_in_either_order(a, b):
    assert may_go_together(a, b) == may_go_together(b, a)
    assert may_go_together(Kind.READS, a)


# --- every verb, beside a reader and beside a receive -----------------------------------------------------------------

#: Words of each verb, on the pool of the fixture; a host file `fresh` is there.
WORDS = {
    "cat": ["cat", "pool:/tree/hello", "pool@june1:/tree/folder/inner"],
    "check": ["check", "pool"],
    "copy": ["copy", "pool", "june1", "spare"],
    "diff": ["diff", "pool@june1", "pool@june2"],
    "get": ["get", "pool@june1:/tree", "out"],
    "grow": ["grow", "pool", "--disks", "3", "--size", "6MiB"],
    "image": ["image", "pool", "june2 - june1"],
    "image delete": ["image", "delete", "pool", "stored"],
    "image list": ["image", "list", "pool"],
    "image plan": ["image", "plan", "pool", "june1..june2"],
    "image save": ["image", "save", "pool", "both", "june2 + june1"],
    "info": ["info", "pool", "--json"],
    "ls": ["ls", "pool:/tree"],
    "mirror add": ["mirror", "add", "pool", "spare"],
    "mirror break": ["mirror", "break", "pool"],
    "mirror reintegrate": ["mirror", "reintegrate", "pool", "spare"],
    "mirror remove": ["mirror", "remove", "pool", "spare"],
    "mirror resync": ["mirror", "resync", "pool"],
    "mirror run": ["mirror", "run", "pool", "--once"],
    "mirror status": ["mirror", "status", "pool"],
    "mkdir": ["mkdir", "pool:/new", "pool:/other"],
    "mv": ["mv", "pool:/later", "pool:/moved"],
    "pointer": ["pointer", "pool", "stable", "june1"],
    "prune": ["prune", "pool", "--keep-last", "2"],
    "put": ["put", "pool:/", "fresh", "--json"],
    "receive": ["receive", "pool", "-i", "june2.bps"],
    "replicas": ["replicas", "pool", "--limit", "7d"],
    "replicate": ["replicate", "pool", "spare", "--pointer", "june1"],
    "rm": ["rm", "pool:/later", "pool:/tree/hello"],
    "rollback": ["rollback", "pool@june1"],
    "send": ["send", "pool", "june1", "-o", "again.bps", "-n"],
    "settle": ["settle", "pool"],
    "shrink": ["shrink", "pool", "--cancel"],
    "snapshot create": ["snapshot", "create", "pool@june3"],
    "snapshot delete": ["snapshot", "delete", "pool@june2"],
    "snapshot hold": ["snapshot", "hold", "pool@june1", "me"],
    "snapshot list": ["snapshot", "list", "pool"],
    "snapshot mark": ["snapshot", "mark", "pool@june1"],
    "snapshot master": ["snapshot", "master", "pool@june1"],
    "snapshot policy": ["snapshot", "policy", "pool", "--demote-under", "1M"],
    "snapshot release": ["snapshot", "release", "pool@june1", "me"],
    "snapshot rename": ["snapshot", "rename", "pool@june2", "july"],
    "snapshot shadow": ["snapshot", "shadow", "pool@june2"],
    "snapshot unmark": ["snapshot", "unmark", "pool@june1"],
    "stat": ["stat", "pool:/tree/large"],
    "stream compare": ["stream", "compare", "june1.bps", "june2.bps", "pool@june2"],
    "stream info": ["stream", "info", "june1.bps"],
    "stream merge": ["stream", "merge", "june1.bps", "june2.bps", "-o", "merged.bps"],
    "stream verify": ["stream", "verify", "june1.bps", "june2.bps"],
    "tape read": ["tape", "read", "june.tap", "pool"],
    "tape verify": ["tape", "verify", "june.tap", "--against", "pool"],
    "tape write": ["tape", "write", "new.tap", "pool", "june1", "-n"],
    "who": ["who", "pool:/tree/large"],
}  # fmt: skip
#: What these say of the fixture's volume, which has nothing for them.
NOTHING_THERE = {
    "image delete": b"no stored image is named",
    "mirror break": b"is no mirror",
    "mirror remove": b"has no mirror",
    "mirror resync": b"is no mirror",
    "snapshot release": b"nobody does",
    "shrink": b"is being taken out",
    "snapshot unmark": b"is not marked",
}
#: Refused beside a receive: it replaces the live file system, and a check would find what it writes half done.
NOT_BESIDE_A_RECEIVE = {
    "check", "grow", "mirror resync", "mkdir", "mv", "put", "receive", "rm", "rollback", "shrink", "tape read",
}  # fmt: skip
#: It does that to its target, and the words take the pool for its source, which it only reads.
TO_ANOTHER = {"copy", "mirror reintegrate", "replicate"}


def test_every_verb_is_tried():
    assert set(WORDS) == set(KINDS)
    assert {
        verb for verb in KINDS if not may_go_together(Kind[KINDS[verb]], Kind.LIVE)
    } == NOT_BESIDE_A_RECEIVE | TO_ANOTHER


def with_tape(verb: str, pool: str) -> None:
    """Write the tape that a verb reads."""
    if verb.startswith("tape "):
        assert finish("tape", "write", "june.tap", pool, "june1").returncode == 0


def plain(out: bytes) -> list[str]:
    """Lines of output without what differs from run to run: times and rates."""
    return [line.split(" in 0.")[0] for line in out.decode().splitlines()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each verb beside a reader and beside a receive in the deep run; in CI a quarter of them beside either."""
    tests = [test_a_verb_beside_a_reader_says_the_same, test_a_verb_beside_a_receive_works_or_says_what_is_in_its_way]
    if metafunc.function in tests:
        verbs, is_deep = sorted(KINDS), metafunc.config.getoption("--deep")
        metafunc.parametrize("verb", verbs if is_deep else verbs[tests.index(metafunc.function) :: 4])


def test_a_verb_beside_a_reader_says_the_same(pool, verb):
    Path("fresh").write_text("fresh\n")
    with_tape(verb, pool)
    with stalled("send", pool, "june1") as owner:
        beside = finish(*WORDS[verb])
        if verb in NOTHING_THERE:
            assert (beside.returncode, NOTHING_THERE[verb] in beside.stderr) == (1, True)
            return
        assert (beside.returncode, beside.stderr) == (0, b""), beside.stdout
        assert owner.process.poll() is None
        assert owner.let_go().startswith(b"sent june1")
        assert owner.process.returncode == 0
    assert finish("check", pool).returncode == 0
    if KINDS[verb] in ("READS", "CHECKS") and verb not in ("info", "snapshot list"):  # they show the pins
        if verb == "get":
            finish("rm", "pool:/out")
            assert Path("out/folder/inner").read_text() == "inner\n"
            return
        alone = finish(*WORDS[verb])
        assert plain(beside.stdout) == plain(alone.stdout)


def test_a_verb_beside_a_receive_works_or_says_what_is_in_its_way(pool, verb):
    Path("fresh").write_text("fresh\n")
    with_tape(verb, pool)
    begun = Path("june1.bps").read_bytes()[:100]
    with stalled("receive", pool, begun=begun) as owner:
        beside = finish(*WORDS[verb])
        if verb in NOT_BESIDE_A_RECEIVE:
            assert beside.returncode == 1
            said = (beside.stderr + beside.stdout).decode()
            assert f"pool is in use by receive (process {owner.pid}), since " in said
            assert "cannot go on beside it" in said
        elif verb in NOTHING_THERE:
            assert NOTHING_THERE[verb] in beside.stderr
        else:
            assert (beside.returncode, beside.stderr) == (0, b""), beside.stdout
        assert b"ends" in owner.let_go()
        assert owner.process.returncode == 1
    assert finish("check", pool).returncode == 0


@pytest.fixture
def half(pool) -> bytes:
    """The most of a stream of june1 alone, big enough for a receive of it to be worth keeping when it is cut off."""
    with bp.Volume.open(pool) as volume:
        bp.FileSystem(volume).write_bytes("/random", os.urandom(3 << 20))
        volume.snapshot("big")
        bp.send(volume.image("big"), "big.bps")
    whole = Path("big.bps").read_bytes()
    return whole[: len(whole) * 4 // 5]


def test_a_first_receive_answers_while_it_makes_its_volume(pool, half):
    with stalled("receive", "copy", volume="copy", begun=half) as owner:
        for verb in (["info", "copy"], ["ls", "copy:/"], ["snapshot", "list", "copy"], ["image", "copy", "active"]):
            beside = finish(*verb)
            assert (beside.returncode, beside.stderr) == (0, b""), verb
        refused = finish("mkdir", "copy:/new")
        assert f"copy is in use by receive (process {owner.pid}), since " in refused.stderr.decode()
        again = finish("receive", "copy", "-i", "big.bps")
        assert (again.returncode, f"in use by process {owner.pid} (receive)".encode() in again.stderr) == (1, True)
        owner.process.stdin.write(Path("big.bps").read_bytes()[len(half) :])
        assert owner.let_go() == b""
        assert owner.process.returncode == 0
    assert kinds_of("copy")["big"] == "regular"
    assert finish("check", "copy").returncode == 0
    assert not any(Path("copy", name).exists() for name in ("control.sock", "making"))


def test_a_first_receive_that_fails_takes_what_it_made_along(pool):
    begun = Path("june1.bps").read_bytes()[:-5000]
    with stalled("receive", "copy", volume="copy", begun=begun) as owner:
        assert finish("ls", "copy:/").returncode == 0
        assert b"ends" in owner.let_go()
        assert owner.process.returncode == 1
    assert not Path("copy").exists()


def test_a_first_receive_that_is_killed_leaves_no_name_taken(pool):
    begun = Path("june1.bps").read_bytes()[:-5000]
    with stalled("receive", "copy", volume="copy", begun=begun) as owner:
        owner.kill()
    assert Path("copy", "control.sock").is_socket()
    received = finish("receive", "copy", "-i", "june1.bps")
    assert received.returncode == 0, received.stderr
    assert list(kinds_of("copy")) == ["june1"]


def test_the_receive_under_way_is_not_given_up(pool, half):
    with stalled("receive", "copy", volume="copy", begun=half) as owner:
        for option in ("--abort", "--have"):
            refused = json.loads(finish("receive", "copy", option, "--json").stdout)["error"]
            assert refused["kind"] == "refused"
            assert "a receive into " in refused["message"]
            assert "copy is under way, and none before it was interrupted" in refused["message"]
        assert b"blocks of big are kept in " in owner.let_go()
    assert finish("receive", "copy", "-i", "big.bps").returncode == 0
    assert finish("check", "copy").returncode == 0


def test_an_interrupted_receive_beside_another_is_told_and_given_up(pool, half):
    finish("create", "copy", "--disks", "3", "--size", "24MiB")
    with stalled("receive", "copy", volume="copy", begun=half) as owner:
        owner.let_go()
    begun = Path("june1.bps").read_bytes()[:-5000]
    with stalled("receive", "copy", volume="copy", begun=begun) as owner:
        have = json.loads(finish("receive", "copy", "--have", "--json").stdout)
        assert (have["top"], have["copied_blocks"] > 0) == ("big", True)
        token = finish("receive", "copy", "--have")
        Path("token").write_bytes(token.stdout)
        assert b"of big" in token.stderr
        given_up = json.loads(finish("receive", "copy", "--abort", "--json").stdout)
        assert given_up == {"freed_blocks": have["n_blocks"], "removed_volume": False}
        assert finish("receive", "copy", "--abort").returncode == 1
        owner.process.stdin.write(Path("june1.bps").read_bytes()[len(begun) :])
        assert owner.let_go() == b""
        assert owner.process.returncode == 0
    assert bp.read_token("token").n_left == have["left_blocks"]
    assert list(kinds_of("copy")) == ["june1"]
    assert finish("check", "copy").returncode == 0


def test_what_is_in_the_way_can_be_waited_for(pool):
    command = [*COMMAND, "mkdir", "pool:/new", "--wait", "60"]
    with stalled("receive", pool, begun=b"x") as owner, subprocess.Popen(command) as waiting:
        time.sleep(0.7)
        assert waiting.poll() is None
        owner.let_go()
        assert waiting.wait(60) == 0
    assert finish("ls", "pool:/new").returncode == 0


# --- what a client brings along ---------------------------------------------------------------------------------------


def test_a_client_works_in_its_own_directory_with_its_own_umask(pool):
    folder = Path("folder")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with stalled("send", pool, "june1") as owner:
        got = finish("get", "../pool@june1:/tree/hello", "here", cwd=folder)
        sent = finish("send", "../pool", "june1", "-o", "mine.bps", cwd=folder, umask=0o077)
        put = finish("put", "../pool:/", "mine", cwd=folder)
        assert [got.returncode, sent.returncode, put.returncode] == [0, 0, 0], got.stderr + sent.stderr + put.stderr
        owner.let_go()
    assert (folder / "here").read_text() == "hello\n"
    assert stat.S_IMODE((folder / "mine.bps").stat().st_mode) == 0o600
    assert (folder / "mine.bps").stat().st_size == os.path.getsize("june1.bps")
    assert finish("cat", "pool:/mine").stdout == b"mine"
    assert not Path("here").exists()


def test_a_stream_goes_from_one_volume_in_use_to_another(pool):
    finish("receive", "copy", "-i", "june1.bps")
    with stalled("send", pool, "june1"), stalled("send", "copy", "june1", volume="copy"):
        command = [*COMMAND, "send", pool, "june2 - june1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sending:
            received = finish("receive", "copy", stdin=sending.stdout)
            assert received.returncode == 0, received.stderr
            assert sending.stderr.read().startswith(b"sent june2 onto june1")
            assert sending.wait(60) == 0
        assert kinds_of("copy") == {"june1": "regular", "june2": "regular"}
    assert finish("check", "copy").returncode == 0
    assert finish("stream", "compare", "june1.bps", "june2.bps", "copy@june2").returncode == 0


def test_a_reader_that_goes_away_ends_a_client_quietly(pool):
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        files = bp.FileSystem(volume)
        files.mkdir("/many")
        for number in range(600):
            files.mknod(f"/many/{number:0250}", 0o644)
        command = [*COMMAND, "ls", f"{pool}:/many"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listing:
            listing.stdout.readline()
            listing.stdout.close()
            assert (listing.wait(60), listing.stderr.read()) == (1, b"")


def test_two_volumes_of_one_verb_are_opened_before_anything_is_done(pool):
    finish("receive", "copy", "-i", "june1.bps")
    with stalled("send", "copy", "june1", volume="copy"):
        assert finish("rm", "pool:/later", "copy:/tree/hello", "copy:/tree/link").returncode == 0
    assert finish("ls", "pool:/later").returncode == 1
    assert finish("ls", "copy:/tree").stdout.split() == [b"folder", b"large"]
    with stalled("send", pool, "june1"), stalled("send", "copy", "june1", volume="copy"):
        refused = finish("mkdir", "pool:/new", "copy:/new")
        assert refused.returncode == 1
        assert b"in use by process" in refused.stderr
    assert finish("ls", "pool:/new").returncode == 1


# --- pins -------------------------------------------------------------------------------------------------------------


def test_a_send_pins_what_it_reads_and_deleting_waits_for_it(pool):
    with stalled("send", pool, "june1") as owner:
        assert pins_of(pool) == [("june1", "send", owner.pid)]
        refused = finish("snapshot", "delete", "pool@june1", "--json")
        error = json.loads(refused.stdout)["error"]
        assert error["kind"] == "refused"
        assert f"is being read by send (process {owner.pid}), since " in error["message"]
        assert "--defer" in error["hint"]
        deferred = json.loads(finish("snapshot", "delete", "pool@june1", "--defer", "--json").stdout)
        assert (deferred["deleted"], deferred["deferred"]) == ([], ["june1"])
        assert kinds_of(pool) == {"june1": "deleting", "june2": "regular"}
        taken = finish("snapshot", "create", "pool@june1")
        assert (taken.returncode, b"is being deleted" in taken.stderr) == (1, True)
        unusable = finish("image", pool, "june1")
        assert (unusable.returncode, b"june1 is being deleted" in unusable.stderr) == (1, True)
        assert f"deleting, read by send (process {owner.pid})".encode() in finish("snapshot", "list", pool).stdout
        owner.let_go()
    assert kinds_of(pool) == {"june2": "regular"}
    assert pins_of(pool) == []
    assert finish("check", pool).returncode == 0


def test_dry_runs_know_what_another_process_reads(pool):
    finish("snapshot", "create", "pool@june3")
    prune, policy = ("prune", pool, "--keep-last", 1), ("snapshot", "policy", pool, "--demote-under", "99%")
    with stalled("send", pool, "june1") as owner:
        refused = finish("snapshot", "delete", "pool@june1", "-n")
        assert (refused.returncode, f"read by send (process {owner.pid})".encode() in refused.stderr) == (1, True)
        plan = json.loads(finish(*policy, "-n", "--json").stdout)
        (why,) = (kept["reason"] for kept in plan["kept"] if kept["name"] == "june1")
        assert why.startswith(f"is being read by send (process {owner.pid})")
        would, did = (json.loads(finish(*prune, *dry, "--json").stdout) for dry in (["-n"], []))
        assert (would["kept"], would["deleted"]) == (did["kept"], did["deleted"])
        assert [(kept["name"], kept["reasons"]) for kept in did["kept"]] == [
            ("june3", ["last"]), ("june1", ["being read"]),
        ]  # fmt: skip
        assert kinds_of(pool) == {"june1": "regular", "june3": "regular"}


def test_a_client_pins_under_its_own_name_and_its_pins_die_with_it(pool):
    with stalled("send", pool, "june2") as owner:
        finish("mkdir", "pool:/x")  # from here on the owner writes
        with stalled("send", pool, "june1", answering=False) as client:
            wait_for(lambda: len(pins_of(pool)) == 2, "the client's pin")
            assert ("june1", "send", client.pid) in pins_of(pool)
            assert finish("snapshot", "delete", "pool@june1", "--defer").returncode == 0
            assert kinds_of(pool)["june1"] == "deleting"
            client.kill()
            wait_for(lambda: len(pins_of(pool)) == 1, "the end of the client's pin")
            assert kinds_of(pool) == {"june2": "regular"}
        assert owner.process.poll() is None


def test_an_owner_that_is_killed_takes_its_pins_along(pool):
    with stalled("send", pool, "june1") as owner:
        finish("snapshot", "delete", "pool@june1", "--defer")
        with stalled("send", pool, "june2", answering=False) as client:
            wait_for(lambda: len(pins_of(pool)) == 2, "the client's pin")
            owner.kill()
            assert client.process.wait(60) == 1
            assert b"ended before it said how this verb did" in client.process.stderr.read()
    assert Path(pool, "control.sock").exists()
    assert kinds_of(pool)["june1"] == "deleting"  # a reader changes nothing
    assert finish("mkdir", "pool:/new").returncode == 0
    assert kinds_of(pool) == {"june2": "regular"}
    assert finish("check", pool).returncode == 0


# --- beginnings and ends ----------------------------------------------------------------------------------------------


def test_an_owner_waits_for_the_verbs_it_runs_and_answers_meanwhile(pool):
    with stalled("send", pool, "june1") as owner:
        finish("mkdir", "pool:/x")
        with stalled("send", pool, "june2", answering=False) as client:
            wait_for(lambda: len(pins_of(pool)) == 2, "the client")
            done = threading.Thread(target=owner.process.stdout.read)
            done.start()
            wait_for(lambda: pins_of(pool) == [("june2", "send", client.pid)], "the owner's own end")
            assert finish("mkdir", "pool:/later/on", "pool:/y").returncode == 1
            assert finish("mkdir", "pool:/y").returncode == 0
            assert owner.process.poll() is None
            assert client.let_go().startswith(b"sent june2")
            assert owner.process.wait(60) == 0
            done.join()
            assert f"waiting for send (process {client.pid})".encode() in owner.process.stderr.read()
    assert finish("ls", "pool:/y").returncode == 0


def test_an_interrupt_while_waiting_ends_the_verbs_of_others(pool):
    with stalled("send", pool, "june1") as owner:
        finish("mkdir", "pool:/x")
        with stalled("send", pool, "june2", "--json", answering=False) as client:
            wait_for(lambda: len(pins_of(pool)) == 2, "the client")
            done = threading.Thread(target=owner.process.stdout.read)
            done.start()
            wait_for(lambda: pins_of(pool) == [("june2", "send", client.pid)], "the owner's own end")
            owner.process.send_signal(signal.SIGINT)
            done.join()
            assert owner.process.wait(60) == 130
            assert client.process.wait(60) == 130
            assert json.loads(client.process.stderr.read())["error"]["kind"] == "interrupted"
    assert finish("check", pool).returncode == 0


def test_an_interrupt_of_a_client_ends_its_verb_alone(pool):
    with stalled("send", pool, "june1") as owner:
        begun = Path("june2.bps").read_bytes()[:5000]
        with stalled("receive", pool, "--wait", "60", "--json", begun=begun, answering=False) as client:
            wait_for(lambda: b"receive" in finish("mkdir", "-p", "pool:/x").stderr, "the receive")
            client.process.send_signal(signal.SIGINT)
            assert client.process.wait(60) == 130
            assert json.loads(client.process.stdout.read())["error"]["kind"] == "interrupted"
            assert b"Traceback" not in client.process.stderr.read()
        assert finish("mkdir", "-p", "pool:/x").returncode == 0
        assert owner.process.poll() is None


def test_short_verbs_make_no_socket_and_host_nobody(pool):
    with mock.patch.object(control.socketfile, "listen", side_effect=AssertionError):
        for _ in range(3):
            assert finish("mkdir", "-p", "pool:/x").returncode == 0
    assert not Path(pool, "control.sock").exists()


def test_a_socket_that_a_process_left_blocks_nobody(pool):
    with stalled("send", pool, "june1") as owner:
        owner.kill()
    assert Path(pool, "control.sock").exists()
    assert finish("ls", "pool:/").returncode == 0
    assert finish("mkdir", "pool:/x").returncode == 0
    with stalled("send", pool, "june1"):
        assert finish("mkdir", "pool:/y").returncode == 0


def test_a_reader_cannot_write_beside_another_one(pool):
    with bp.Volume.open(pool, writable=False), stalled("send", pool, "june1") as owner:
        refused = finish("mkdir", "pool:/x")
        assert refused.returncode == 1
        assert f"in use by process {os.getpid()} (reading)".encode() in refused.stderr
        assert finish("ls", "pool:/").returncode == 0
        assert owner.let_go().startswith(b"sent june1")
    assert finish("mkdir", "pool:/x").returncode == 0
    assert finish("check", pool).returncode == 0


def test_a_program_serves_its_volume(pool):
    with bp.Volume.open(pool, verb="my program") as volume, bp.serve_control(volume, "my program"):
        files = bp.FileSystem(volume)
        assert finish("mkdir", "pool:/x").returncode == 0
        assert files.is_dir("/x")
        files.write_bytes("/x/y", b"z")
        assert finish("cat", "pool:/x/y").stdout == b"z"
        with files.open("/x/y"), volume.pin(volume.get_snapshot("june1").record.id):
            assert pins_of(pool) == [("june1", "my program", os.getpid())]
    assert not Path(pool, "control.sock").exists()


def test_an_open_file_of_a_snapshot_pins_it(pool):
    with bp.Volume.open(pool) as volume:
        june1 = volume.get_snapshot("june1")
        with bp.FileSystem(june1).open("/tree/hello") as file:
            assert [pin.verb for pin in june1.pins] == ["a program"]
            volume.delete_snapshot("june1", defer=True)
            assert file.read() == b"hello\n"
            assert [s.kind for s in volume.snapshots] == ["deleting", "regular"]
        assert [s.name for s in volume.snapshots] == ["june2"]


# --- those who mean no good -------------------------------------------------------------------------------------------


@pytest.fixture
def served(pool):
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        yield volume


def connection(pool: str = "pool") -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(f"{pool}/control.sock")
    return sock


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def head(length: int, magic: bytes = wire.MAGIC) -> bytes:
    return magic + length.to_bytes(4, "big")


REQUEST = {"arguments": ["info", "pool"], "umask": 18, "environment": {}, "encoding": "utf-8"}
GARBAGE = {
    "nothing": b"",
    "noise": os.urandom(5000),
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "another magic": head(2, b"BPCTRL9\0") + b"{}",
    "too long": head(wire.MAX_REQUEST_BYTES + 1),
    "the longest": head(0xFFFFFFFF),
    "cut short": head(100) + b"{",
    "no JSON": head(4) + b"\xff\xfe{}",
    "no object": head(2) + b"[]",
    "deep": head(200_000) + b"[" * 200_000,
    "no descriptors": head(len(json.dumps(REQUEST))) + json.dumps(REQUEST).encode(),
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_not_answered_and_harms_nobody(served, said):
    before = n_descriptors()
    with connection() as sock:
        sock.settimeout(30)
        try:
            sock.sendall(said)
            sock.shutdown(socket.SHUT_WR)
            wire.receive_message(sock)
            assert sock.recv(100) == b""
        except ConnectionError:
            pass
    assert finish("ls", "pool:/").returncode == 0
    wait_for(lambda: n_descriptors() <= before, "the descriptors")


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {**REQUEST, "arguments": "info"},
        {**REQUEST, "arguments": [1]},
        {**REQUEST, "umask": -1},
        {**REQUEST, "umask": 1 << 40},
        {**REQUEST, "environment": {"A": 1}},
        {**REQUEST, "encoding": "no such"},
        {**REQUEST, "encoding": "rot13"},
        {**REQUEST, "encoding": 7},
        {**REQUEST, "arguments": []},
        {**REQUEST, "arguments": ["demo"]},
        {**REQUEST, "arguments": ["create", "other"]},
        {**REQUEST, "arguments": ["--help"]},
    ],
    ids=str,
)
def test_requests_that_make_no_sense_are_not_run(served, request_):
    before = n_descriptors()
    with connection() as sock, open(os.devnull, "r+b") as nowhere:
        assert wire.receive_message(sock)[0]["protocol"] == wire.PROTOCOL
        directory = os.open(".", os.O_PATH)
        wire.send_message(sock, request_, [directory, *[nowhere.fileno()] * 3])
        os.close(directory)
        with contextlib.suppress(wire.WireError):
            assert "refused" in wire.receive_message(sock)[0]
    wait_for(lambda: n_descriptors() <= before, "the descriptors")
    assert not Path("other").exists()
    assert finish("ls", "pool:/").returncode == 0


@pytest.mark.parametrize("n_fds", [1, 3, 5, 200])
def test_other_descriptors_than_expected_are_closed(served, n_fds):
    before = n_descriptors()
    data = json.dumps(REQUEST).encode()
    with connection() as sock, open(os.devnull, "r+b") as nowhere:
        sock.settimeout(30)
        rights = array.array("i", [nowhere.fileno()] * n_fds)
        sock.sendmsg([head(len(data)) + data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        wire.receive_message(sock)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(100) == b""
    wait_for(lambda: n_descriptors() <= before, "the descriptors")


@pytest.mark.parametrize("n_made", [0, 1, 2])
def test_a_request_that_finds_no_descriptors_closes_nothing_of_others(monkeypatch, n_made):
    dup, made = os.dup, []

    def scarce(fd: int) -> int:
        if len(made) == n_made:
            raise OSError(errno.EMFILE, "none left")
        made.append(fd)
        return dup(fd)

    pairs = [socket.socketpair() for _ in range(3)]
    fds = [os.open(".", os.O_PATH), *(dup(near.fileno()) for near, _ in pairs)]
    before = n_descriptors()
    monkeypatch.setattr(os, "dup", scarce)
    with contextlib.suppress(OSError):
        Session.decode(REQUEST, 1, fds)
    gc.collect()
    assert (len(made), n_descriptors()) == (n_made, before)
    for fd in fds:  # still ours
        os.close(fd)
    for sock in itertools.chain(*pairs):
        sock.close()


def test_clients_that_say_nothing_are_dropped_and_keep_nobody_out(pool):
    with (
        mock.patch.object(wire.receive_message, "__defaults__", (wire.MAX_SMALL_BYTES, 0, 1.0)),
        bp.Volume.open(pool) as volume,
        bp.serve_control(volume),
    ):
        silent = [connection() for _ in range(control.MAX_GREETED - 1)]
        slow = connection()
        slow.sendall(head(50))
        started = time.monotonic()
        assert finish("ls", "pool:/", "--wait", "20").returncode == 0
        for sock in [*silent, slow]:
            sock.settimeout(20)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1000):
                    pass
            sock.close()
        assert time.monotonic() - started < 15


def test_clients_that_no_thread_is_left_for_keep_nobody_out(pool):
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        with no_room_for_threads():
            for _ in range(control.MAX_GREETED + 1):
                with connection() as sock:
                    sock.settimeout(TIMEOUT_S)
                    assert sock.recv(1) == b""
        assert finish("ls", "pool:/", "--wait", "20").returncode == 0


def test_no_more_verbs_than_the_limit_run_at_once(pool):
    with mock.patch.object(control, "MAX_SESSIONS", 1), bp.Volume.open(pool) as volume, bp.serve_control(volume):
        with stalled("send", pool, "june1", answering=False) as client:
            wait_for(lambda: volume.get_snapshot("june1").pins, "the send")
            refused = finish("ls", "pool:/")
            assert refused.returncode == 1
            assert b"runs 1 verbs of others already" in refused.stderr
            client.let_go()
        wait_for(lambda: finish("ls", "pool:/").returncode == 0, "room")


def test_the_socket_is_for_its_user_alone(served):
    assert stat.S_IMODE(os.lstat("pool/control.sock").st_mode) == 0o600


def test_a_directory_anybody_may_write_to_gets_no_socket(pool, capfd):
    os.chmod(pool, 0o777)
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        assert not Path(pool, "control.sock").exists()
    assert re.fullmatch(r"blockplane: anybody may write to \S+/pool: no control socket .*\n", capfd.readouterr().err)


def test_a_socket_that_cannot_be_made_now_is_made_later(pool, monkeypatch):
    monkeypatch.setattr(socketfile, "_MUTEX_S", 0.02)
    monkeypatch.setattr(control, "_BIND_EVERY_S", 0.02)
    said, place = [], Path(pool, "control.sock")
    held = os.open(pool, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    with bp.Volume.open(pool) as volume, bp.serve_control(volume, warn=said.append):
        assert (len(said), "it is tried again" in said[0], place.exists()) == (1, True, False)
        os.close(held)
        wait_for(place.exists, "the socket")
        assert finish("mkdir", "pool:/x").returncode == 0
    assert len(said) == 1


@pytest.mark.parametrize(("number", "n_said"), [(errno.EACCES, 1), (errno.EOPNOTSUPP, 1), (errno.EROFS, 0)])
def test_a_socket_that_can_never_be_made_is_not_tried_again(pool, monkeypatch, number, n_said):
    monkeypatch.setattr(socketfile, "listen", mock.Mock(side_effect=OSError(number, os.strerror(number))))
    said = []
    with bp.Volume.open(pool) as volume, bp.serve_control(volume, warn=said.append) as server:
        assert server._bind_at == float("inf")
    assert said == [f"no control socket can be made in {Path(pool).absolute()}: {os.strerror(number)}"] * n_said


def test_a_symbolic_link_in_its_place_is_neither_followed_nor_removed(pool, capfd):
    with socket.socket(socket.AF_UNIX) as trap:
        trap.bind("trap.sock")
        trap.listen()
        trap.settimeout(0.5)
        os.symlink("../trap.sock", "pool/control.sock")
        with bp.Volume.open(pool) as volume, bp.serve_control(volume):
            refused = finish("ls", "pool:/")
            assert (refused.returncode, b"in use by process" in refused.stderr) == (1, True)
        with pytest.raises(TimeoutError):
            trap.accept()
    assert "/pool/control.sock is a symbolic link" in capfd.readouterr().err
    assert os.readlink("pool/control.sock") == "../trap.sock"


def test_a_path_of_any_length_will_do(pool):
    deep = Path(*["d" * 60] * 4)
    deep.mkdir(parents=True)
    os.rename(pool, deep / pool)
    place = str(deep / pool)
    with stalled("send", place, "june1", volume=place, answering=False):
        wait_for((deep / pool / "control.sock").exists, "the socket")
        assert finish("mkdir", f"{place}:/x").returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_another_user_is_refused(pool, tmp_path):
    for directory in (tmp_path, *tmp_path.parents[:3]):
        os.chmod(directory, 0o755)
    subprocess.run(["chown", "-R", str(NOBODY), pool], check=True)
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        os.chown("pool/control.sock", NOBODY, NOBODY)  # as if the mode had not kept it out
        before = n_descriptors()
        program = (
            "import os, socket\n"
            f"os.setgid({NOBODY}); os.setuid({NOBODY})\n"
            "s = socket.socket(socket.AF_UNIX); s.connect('pool/control.sock')\n"
            "print(s.recv(1000)[12:].decode())\n"
        )
        said = subprocess.run([COMMAND[0], "-c", program], capture_output=True, timeout=60)
        assert b"in use by another user" in said.stdout, said.stderr
        wait_for(lambda: n_descriptors() <= before, "the descriptors")


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_descriptors_are_given_to_no_other_user(pool):
    """Whoever made the directory, and answers in it, gets nothing of ours."""
    program = (
        "import os, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('pool/control.sock'); s.listen()\n"
        f"os.setuid({NOBODY})\n"
        "s.listen(); print('ready', flush=True)\n"  # the kernel notes who listens last
        "while True:\n"
        "    c, _ = s.accept()\n"
        "    data, rights, _, _ = c.recvmsg(1000, 1000)\n"
        "    print(len(data), len(rights), flush=True)\n"
    )
    with (
        bp.Volume.open(pool, verb="bait", answers=True),
        subprocess.Popen([COMMAND[0], "-c", program], stdout=subprocess.PIPE) as impostor,
    ):
        assert impostor.stdout.readline() == b"ready\n"
        refused = finish("ls", "pool:/")
        assert (refused.returncode, f"of user {NOBODY}".encode() in refused.stderr) == (1, True), refused.stderr
        assert impostor.stdout.readline() == b"0 0\n"
        impostor.kill()


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        ({"protocol": 2, "release": "x"}, "version 2 of the control socket, this is 1"),
        ({"protocol": 1, "release": "blockplane 99", "verb": "put"}, "runs blockplane 'blockplane 99', this is"),
        ({"protocol": 1, "refused": "no \x1b[31mroom"}, "no \\x1b[31mroom"),
        ({"protocol": "\x1b[31m", "verb": "\x1b]0;x\x07"}, "speaks version '\\x1b[31m'"),
    ],
    ids=["protocol", "release", "refused", "escapes"],
)
def test_an_owner_of_another_kind_is_a_clear_error(pool, greeting, expected):
    def answer(listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                wire.send_message(sock, greeting)

    with bp.Volume.open(pool, answers=True), socket.socket(socket.AF_UNIX) as listener:
        listener.bind("pool/control.sock")
        listener.listen()
        thread = threading.Thread(target=answer, args=(listener,), daemon=True)
        thread.start()
        refused = finish("ls", "pool:/")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert refused.returncode == 1
    assert expected in refused.stderr.decode()
    assert b"\x1b" not in refused.stderr
    assert b"\x07" not in refused.stderr


def test_no_descriptor_is_left_behind(served):
    for _ in range(2):
        finish("ls", "pool:/")
    before = n_descriptors()
    for _ in range(10):
        assert finish("cat", "pool@june1:/tree/large").returncode == 0
    wait_for(lambda: n_descriptors() <= before, "the descriptors")


def test_threads_of_a_program_keep_their_own_directory_and_streams(served, capfd):
    here = os.getcwd()
    folder = Path("elsewhere")
    folder.mkdir()
    assert finish("get", "../pool:/tree/hello", ".", cwd=folder).returncode == 0
    assert os.getcwd() == here
    print("mine")
    assert capfd.readouterr().out == "mine\n"
