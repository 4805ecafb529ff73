"""Kills of owners and clients at random moments, races for one volume: no pin, socket or lock is left in the way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import pytest

import blockplane as bp
from blockplane.volume.pins import Pins
from rig.owners import COMMAND, answers, finish, wait_for

#: Kills in the CI run, and in the deep one.
KILLS, DEEP_KILLS = 10, 300
#: Rounds of each of the two races: together a twentieth of 500.
ROUNDS, DEEP_ROUNDS = 8, 500
BIG_BYTES = 2 << 20


@pytest.fixture
def pool(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("big").write_bytes(random.Random(1).randbytes(BIG_BYTES))
    with bp.Volume.create("pool", disks=3, size="12MiB") as volume:
        bp.FileSystem(volume).put("big", "/")
        for name in ("a", "b", "c"):
            volume.snapshot(name)
            bp.FileSystem(volume).write_bytes(f"/{name}", name.encode() * 5000)
        volume.sync()
    finish("send", "pool", "a", "-o", "a.bps")
    return "pool"


def spawn(*words: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def end(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    with process:
        return process.communicate(timeout=120)


def state_of(pool: str) -> dict:
    outcome = finish("info", pool, "--json", "--wait", "30")
    assert outcome.returncode == 0, outcome.stderr + outcome.stdout
    return json.loads(outcome.stdout)


def require_free(pool: str) -> None:
    """Nobody has the volume: a writer gets it at once, can serve it, nothing waits to be deleted, and all is whole."""
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        assert answers(pool)
        assert volume.pins.all() == []
        assert "deleting" not in [snapshot.kind for snapshot in volume.snapshots]
        assert bp.check(volume).problems == []
    assert not Path(pool, "control.sock").exists()


OWNERS = (
    ("send", "pool", "b"),
    ("get", "pool:/", "out"),
    ("put", "pool:/", "big"),
    ("receive", "pool"),
    ("check", "pool"),
    ("send", "pool", "c - b"),
)
CLIENTS = (
    ("send", "pool", "a"),
    ("snapshot", "create", "pool@new"),
    ("snapshot", "delete", "pool@a", "--defer"),
    ("snapshot", "delete", "pool@b", "--defer"),
    ("get", "pool@c:/", "out2"),
    ("put", "pool:/put", "big"),
    ("rm", "pool:/a"),
    ("mkdir", "pool:/made"),
    ("rollback", "pool@a"),
    ("info", "pool"),
    ("prune", "pool", "--keep-last", "1", "--defer"),
)


def test_kills_of_owners_and_clients(pool, is_deep, record_property):
    """An owner that lasts, up to three clients; one of them is killed at a random moment, then all others end."""
    rng = random.Random(int(os.environ.get("BLOCKPLANE_SEED", "0") or 0))
    shutil.copytree(pool, "whole")
    n_kills, killed, statuses = 0, {"owner": 0, "client": 0}, {}
    while n_kills < (DEEP_KILLS if is_deep else KILLS) or min(killed.values()) < (5 if is_deep else 1):
        shutil.rmtree(pool)
        shutil.copytree("whole", pool)
        for rest in ("out", "out2"):
            shutil.rmtree(rest, ignore_errors=True)
        owner = spawn(*rng.choice(OWNERS), stdin=subprocess.PIPE)
        time.sleep(rng.choice((0.0, 0.45, 0.6, 0.8)))
        clients = [spawn(*rng.choice(CLIENTS), stdin=subprocess.DEVNULL) for _ in range(rng.randrange(1, 4))]
        time.sleep(rng.random() * 0.9)
        which = rng.choice(("owner", "client"))
        victim = owner if which == "owner" else rng.choice(clients)
        killed[which] += victim.poll() is None
        n_kills += victim.poll() is None
        victim.send_signal(signal.SIGKILL)
        for process in (owner, *clients):
            _, err = end(process)
            assert b"Traceback" not in err, err
            statuses[process.returncode] = statuses.get(process.returncode, 0) + 1
            assert process.returncode in (0, 1, -signal.SIGKILL), err
        require_free(pool)
    record_property("summary", f"{n_kills} kills ({killed}), exit statuses {statuses}")


def test_a_kill_of_a_client_that_pins_lets_its_snapshot_go(pool, is_deep):
    """The owner lives on; the moment the client is gone its pin is, and what waited for it is deleted."""
    with bp.Volume.open(pool) as volume, bp.serve_control(volume):
        for _ in range(60 if is_deep else 6):
            volume.snapshot("held")
            with spawn("send", pool, "held", stdin=subprocess.DEVNULL) as client:
                wait_for(lambda: volume.pins.all(), "the pin")
                assert volume.delete_snapshot("held", defer=True) == 0
                client.kill()
                wait_for(lambda: not volume.pins.all(), "the end of the pin", 20)
                wait_for(lambda: len(volume.snapshots) == 3, "the deletion", 20)
                client.communicate()
        assert bp.check(volume).problems == []


RACE = """
import sys, time
import blockplane as bp
path, number, at = sys.argv[1], sys.argv[2], float(sys.argv[3])
time.sleep(max(at - time.time(), 0))
try:
    with bp.Volume.open(path, verb="racer") as volume:
        print("won", flush=True)
        volume.snapshot("race-" + number)
        sys.stdin.read()
except bp.errors.VolumeInUseError:
    print("in use", flush=True)
"""


def test_racers_for_the_volume_have_one_winner(pool, is_deep):
    """Programs that open it at one moment, by two paths of its directory and disks: one has it, the others are told."""
    os.symlink("pool", "alias")
    rng = random.Random(2)
    for number in range(DEEP_ROUNDS if is_deep else ROUNDS):
        at = time.time() + 1.0
        paths = [rng.choice(("pool", "alias", os.path.abspath("pool"))) for _ in range(rng.randrange(2, 5))]
        racers = [
            subprocess.Popen(
                [sys.executable, "-c", RACE, path, f"{number}-{which}", str(at)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for which, path in enumerate(paths)
        ]
        said = [racer.stdout.readline().strip() for racer in racers]  # the winner stays until all have spoken
        for racer in racers:
            end(racer)
        assert sorted(said) == [b"in use"] * (len(said) - 1) + [b"won"]
    names = [name for name in (s["name"] for s in state_of(pool)["snapshots"]) if name.startswith("race-")]
    assert len(names) == (DEEP_ROUNDS if is_deep else ROUNDS)
    assert finish("check", pool).returncode == 0


def test_the_same_disks_by_another_volume_directory(pool):
    """Two directories whose volume.toml names the same disks: the disks' own locks keep the second out."""
    os.mkdir("other")
    text = Path(pool, "volume.toml").read_text()
    Path("other/volume.toml").write_text(text.replace('"disks/', '"../pool/disks/'))
    with bp.Volume.open(pool):
        for writable in (True, False):
            with pytest.raises(bp.errors.VolumeInUseError):
                bp.Volume.open("other", writable=writable)
    with bp.Volume.open(pool, writable=False) as reader, bp.Volume.open("other", writable=False):
        with pytest.raises(bp.errors.VolumeInUseError):
            reader.take_for_writing(0.1)
        assert bp.FileSystem(reader).read_bytes("/a") == b"a" * 5000
        with pytest.raises(bp.BlockplaneError, match="read-only"):
            bp.FileSystem(reader).mkdir("/x")
    with bp.Volume.open("other") as other:
        assert bp.check(other).ok


def test_racing_verbs_share_the_volume_in_order(pool, is_deep, record_property):
    """2 to 8 verbs at once, each a process: all that can go on side by side succeed, and nothing is lost."""
    rng, done = random.Random(3), 0
    for number in range(DEEP_ROUNDS if is_deep else ROUNDS):
        verbs = [
            rng.choice(
                (
                    ("snapshot", "create", f"pool@s{number}-{which}"),
                    ("mkdir", f"pool:/d{number}-{which}"),
                    ("put", f"pool:/p{number}-{which}", "a.bps"),
                )
            )
            for which in range(rng.randrange(2, 9 if is_deep else 6))
        ]
        with ThreadPoolExecutor(len(verbs)) as pool_of_threads:
            outcomes = list(pool_of_threads.map(lambda verb: finish(*verb, "--wait", "60"), verbs))
        assert [outcome.returncode for outcome in outcomes] == [0] * len(verbs), [o.stderr for o in outcomes]
        with bp.Volume.open(pool, writable=False) as volume:
            files, names = bp.FileSystem(volume).listdir("/"), [s.name for s in volume.snapshots]
        for verb in verbs:
            made = verb[1] if verb[0] != "snapshot" else verb[2]
            assert made.removeprefix("pool:/").removeprefix("pool@") in (*files, *names)
        done += len(verbs)
        with bp.Volume.open(pool) as volume:
            gone = [name for name in names if name.startswith("s")]
            volume.delete_snapshot(*gone)
            for name in [name for name in files if name.startswith("p")]:
                bp.FileSystem(volume).unlink(f"/{name}")
    record_property("summary", f"{done} verbs in races, all done")
    assert finish("check", pool).returncode == 0


def test_racing_receives_have_one_winner(pool, is_deep):
    """Several processes receive the next snapshot onto one copy: it is there once, whole, and all say so."""
    finish("send", pool, "b - a", "-o", "b.bps")
    finish("receive", "copy", "-i", "a.bps")
    shutil.copytree("copy", "blank")
    for _ in range(50 if is_deep else 5):
        shutil.rmtree("copy")
        shutil.copytree("blank", "copy")
        with ThreadPoolExecutor(4) as threads:
            outcomes = list(threads.map(lambda _: finish("receive", "copy", "-i", "b.bps", "--wait", "60"), range(4)))
        assert [outcome.returncode for outcome in outcomes] == [0] * 4, [o.stderr for o in outcomes]
        assert sum(b"nothing to do" in outcome.stdout for outcome in outcomes) == 3
        assert [s["name"] for s in state_of("copy")["snapshots"]] == ["a", "b"]
        assert finish("check", "copy").returncode == 0


# --- planted ----------------------------------------------------------------------------------------------------------


def test_a_pin_that_outlives_its_client_is_found(pool):
    with bp.Volume.open(pool) as volume, bp.serve_control(volume), mock.patch.object(Pins, "has", return_value=True):
        volume.snapshot("held")
        with spawn("send", pool, "held", stdin=subprocess.DEVNULL) as client:
            wait_for(lambda: volume.pins.all(), "the pin")
            with mock.patch.object(volume.pins, "_gone"):
                volume.delete_snapshot("held", defer=True)
                client.kill()
                with pytest.raises(AssertionError, match="waited too long"):
                    wait_for(lambda: "held" not in [s.name for s in volume.snapshots], "the deletion", 2)
            client.communicate()


def test_the_next_writer_removes_the_socket_of_one_that_was_killed(pool):
    """A program's, too, which answers nobody itself."""
    path = Path(pool, "control.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    with bp.Volume.open(pool, writable=False):
        assert path.is_socket()
    bp.Volume.open(pool).close()
    assert not path.exists()
    path.write_text("somebody's")
    bp.Volume.open(pool).close()
    assert path.read_text() == "somebody's"
