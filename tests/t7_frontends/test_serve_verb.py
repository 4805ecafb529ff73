"""The service in processes of its own: volumes served, stopped, killed, reloaded; what systemd and Prometheus hear."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import blockplane as bp
from rig.owners import COMMAND, TIMEOUT_S, answers, finish, wait_for
from rig.services import Serving, serving


def policy(text: str, path: str = "policy.toml") -> str:
    Path(path).write_text(text)
    return path


POOL = '[volume.pool]\npath = "pool"\n'


def snapshots_of(volume: str) -> list[str]:
    with bp.Volume.open(volume, writable=False) as opened:
        return [snapshot.name for snapshot in opened.snapshots]


def leftovers(volume: str) -> set[str]:
    return {entry.name for entry in Path(volume).iterdir()} - {"disks", "lock", "volume.toml", "service.json"}


def metrics_of(text: str) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, as an independent parser reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def asked(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
        return metrics_of(answer.read().decode())


# --- verbs on a served volume ----------------------------------------------------------------------------------------

#: Verbs and what they are to print, in order.
VERBS = [
    (["info", "pool", "--json"], '"snapshots"'),
    (["put", "pool:/", "fresh"], "1 file"),
    (["cat", "pool:/fresh"], "fresh"),
    (["mkdir", "pool:/new"], ""),
    (["mv", "pool:/fresh", "pool:/new/fresh"], ""),
    (["ls", "pool:/new"], "fresh"),
    (["snapshot", "create", "pool@mine"], "mine"),
    (["snapshot", "list", "pool"], "mine"),
    (["image", "pool", "mine - june2"], "block"),
    (["send", "pool", "mine - june2", "-o", "mine.bps"], ""),
    (["diff", "pool@june2", "pool@mine"], "fresh"),
    (["get", "pool@mine:/new/fresh", "back"], ""),
    (["check", "pool"], "ok"),
    (["snapshot", "delete", "pool@june1"], "june1"),
    (["rm", "pool:/new/fresh"], ""),
    (["rollback", "pool@mine"], "mine"),
    (["cat", "pool:/new/fresh"], "fresh"),
]


def test_every_kind_of_verb_works_on_a_served_volume_and_stopping_leaves_nothing(pool, blockplane):
    Path("fresh").write_text("fresh")
    with serving("--volume", "pool=pool") as service:
        service.wait_for("volume open")
        for words, said in VERBS:
            outcome = blockplane(*words)
            assert (words, outcome.status, outcome.err) == (words, 0, "")
            assert said in outcome.out, words
        assert service.end() == 0
    assert [event["event"] for event in service.events[-3:]] == ["stopping", "volume closed", "stopped"]
    assert leftovers(pool) == set()
    assert Path("back").read_text() == "fresh"
    with bp.Volume.open(pool) as volume:
        assert bp.check(volume).ok
        assert bp.FileSystem(volume).read_bytes("/new/fresh") == b"fresh"


def test_two_services_on_one_volume(pool):
    with serving("--volume", "pool=pool") as first:
        first.wait_for("volume open")
        with serving("--volume", "pool=pool", "--strict", log="second.log") as second:
            assert second.process.wait(TIMEOUT_S) == 1
            (refused,) = second.said("volume not open")
            assert f"in use by process {first.process.pid} (serve)" in refused["text"]
        with serving("--volume", "pool=pool", log="third.log") as third:
            third.wait_for("volume not open")
            assert first.end() == 0
            third.wait_for("volume open")  # tried again
            assert third.end() == 0


def test_a_volume_of_another_service_is_not_waited_for_and_the_hint_says_what_helps(pool, blockplane, done):
    helps = "have one service serve both volumes, or call it as HOST:PORT/NAME"
    done("mirror", "add", pool, "copy", "--size", "40M")
    with serving("--volume", "copy=copy") as service:
        service.wait_for("volume open")
        ran = blockplane("mirror", "run", pool, "--once")
        assert (ran.status, "copy is in use by process" in ran.err, helps in ran.err) == (1, True, True)
        assert service.end() == 0
    with bp.Volume.open("copy", verb="serve"):  # as a verb finds it that a service runs, which asks no other one
        error = blockplane("mirror", "break", "copy", "--json").error
    assert (error["kind"], helps in error["hint"]) == ("in-use", True)


def test_a_volume_that_cannot_be_opened_is_named_and_the_others_are_served(pool, blockplane):
    with serving("--volume", "lost=lost", "--volume", "pool=pool") as service:
        service.wait_for("volume open", volume="pool")
        (failed,) = service.wait_for("volume not open")
        assert (failed["volume"], failed["error"]) == ("lost", "not-a-volume")
        assert blockplane("ls", "pool:/").status == 0
        bp.Volume.create("lost", disks=1, size="8M").close()
        service.wait_for("volume open", volume="lost")
        assert len(service.said("volume not open")) == 1
        assert service.end() == 0


def test_a_killed_service_starts_again_and_knows_what_it_did(pool, blockplane):
    words = policy(f'{POOL}[volume.pool.snapshot.often]\nevery = "1s"\nname = "often-%H%M%S"\n')
    with serving(words) as service:
        service.wait_for("job done", 2)
        assert blockplane("put", "pool:/", "policy.toml").status == 0
        service.process.kill()
        service.process.wait(TIMEOUT_S)
    assert leftovers(pool) == {"control.sock"}
    n_before = len(snapshots_of(pool))
    policy(f'{POOL}[volume.pool.snapshot.often]\nevery = "1h"\nname = "often-%H%M%S"\n')
    with serving(words) as service:
        service.wait_for("volume open")
        assert blockplane("cat", "pool:/policy.toml").status == 0
        assert blockplane("check", "pool").status == 0
        assert service.said("job done") == []  # an hour has not passed
        assert service.end() == 0
    assert leftovers(pool) == set()
    assert len(snapshots_of(pool)) == n_before


# --- the end ---------------------------------------------------------------------------------------------------------


@contextmanager
def sending(*words: str, stdout: int = subprocess.DEVNULL) -> Iterator[subprocess.Popen[bytes]]:
    """A send in a process of its own, which the service runs; killed where it does not end."""
    with subprocess.Popen([*COMMAND, "send", *words], stdout=stdout, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def test_stopping_ends_verbs_that_run_and_jobs_too(pool, blockplane):
    """The send waits for a reader of its pipe, who never comes."""
    reading, writing = os.pipe()
    with serving("--volume", "pool=pool") as service:
        service.wait_for("volume open")
        with sending("pool", "june2", stdout=writing) as stuck:
            os.close(writing)
            wait_for(lambda: blockplane("info", "pool", "--json").json.get("pins"), "the send to begin")
            assert service.end(signal.SIGINT) == 0
            _, err = stuck.communicate(timeout=TIMEOUT_S)
            assert stuck.returncode != 0, err
            assert b"it is stopping, and has ended this verb" in err
    os.close(reading)
    assert leftovers(pool) == set()
    assert blockplane("check", pool).status == 0


def test_stopping_ends_verbs_that_wait_for_another_machine(pool, blockplane):
    """It takes the connection, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent, serving("--volume", "pool=pool") as service:
        service.wait_for("volume open")
        words = ["replicate", f"127.0.0.1:{silent.getsockname()[1]}/far", "pool"]
        with subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE) as verb:
            silent.settimeout(TIMEOUT_S)
            with silent.accept()[0]:
                assert service.end() == 0
                _, err = verb.communicate(timeout=TIMEOUT_S)
        assert b"it is stopping, and has ended this verb" in err


def test_a_second_signal_ends_it_at_once_at_the_last_consistency_point(pool, blockplane):
    """The send waits in the kernel, for a reader of a named pipe: nothing can end that but the process's end."""
    os.mkfifo("pipe")
    port = free_port()
    with serving("--volume", "pool=pool", "--metrics", f":{port}") as service:
        service.wait_for("volume open")
        assert blockplane("snapshot", "create", "pool@mine").status == 0
        with sending("pool", "june2", "-o", "pipe") as stuck:
            wait_for(lambda: asked(port)["blockplane_volume_activities", "pool"] == 1, "the send to begin")
            service.process.send_signal(signal.SIGTERM)
            service.wait_for("stopping")
            refused = blockplane("ls", "pool:/")
            assert "it is stopping" in refused.err + refused.out or refused.status == 0
            assert service.process.poll() is None
            while service.process.poll() is None:  # the same signal again too soon is none
                service.process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    service.process.wait(0.2)
            assert service.process.returncode == 1
            (left,) = service.said("not closed")
            assert "pool" in left["text"]
            _, err = stuck.communicate(timeout=TIMEOUT_S)
            assert b"ended before it said" in err
    assert blockplane("check", pool).status == 0
    assert "mine" in snapshots_of("pool")


def test_an_output_that_is_full_is_said_in_a_line(pool):
    with serving("--volume", "pool=pool") as service, open("/dev/full", "w") as full:
        service.wait_for("volume open")
        found = subprocess.run(
            [sys.executable, "-m", "blockplane", "replicas", pool, "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert (found.returncode, found.stderr.count("\n") <= 2) == (1, True)
    assert "No space left on device" in found.stderr


def test_a_signal_that_meets_another_thread_is_heard_at_once(pool):
    """The kernel may give it to any; the one that waits for what happens next is not woken by that."""
    with serving("--volume", "pool=pool") as service:
        service.wait_for("volume open")
        pid = service.process.pid
        others = sorted(int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid)
        assert ctypes.CDLL(None, use_errno=True).tgkill(pid, others[-1], signal.SIGTERM) == 0
        assert service.process.wait(20) == 0
        assert service.said("stopping")


# --- reloading -------------------------------------------------------------------------------------------------------


def test_a_good_policy_is_followed_and_a_bad_one_is_not(pool, blockplane):
    bp.Volume.create("other", disks=1, size="8M").close()
    often = '[volume.pool.snapshot.often]\nevery = "1s"\n'
    words = policy(POOL + often)
    with serving(words, "--metrics", ":0") as service:
        service.wait_for("job done", 2)
        policy(POOL + often.replace("every", "evrey"))
        service.process.send_signal(signal.SIGHUP)
        texts = [event["text"] for event in service.wait_for("policy refused", 2)]
        assert texts[0].startswith("line 3: volume.pool.snapshot.often: say either every or at")
        assert texts[1].startswith(
            "line 4: volume.pool.snapshot.often.evrey: there is no such setting (did you mean every?)"
        )
        n_done = len(service.said("job done"))
        service.wait_for("job done", n_done + 2)  # the old one is followed
        policy(POOL.replace("pool]", "pool]\ndemote-under = '1%'") + '[volume.other]\npath = "other"\n')
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("policy taken")
        service.wait_for("volume open", volume="other")
        assert len(service.said("volume open", volume="pool")) == 1  # undisturbed
        assert "snapshots become shadows under 1% free" in blockplane("snapshot", "policy", "pool").out
        Path("policy.toml").write_text('[volume.other]\npath = "other"\n')
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("volume closed", volume="pool")
        assert not answers("pool")
        assert blockplane("check", "pool").status == 0
        assert service.end() == 0


def test_metrics_move_to_another_host_at_the_same_port(pool):
    port = free_port()
    with (
        socket.create_server(("127.0.0.2", 0)) as taken,
        serving(policy(f'[service]\nmetrics = "127.0.0.1:{port}"\n{POOL}')) as service,
    ):
        service.wait_for("volume open", volume="pool")
        places = f"127.0.0.2:{taken.getsockname()[1]}", f"0.0.0.0:{port}", f"127.0.0.1:{port}"
        for n_taken, place in enumerate(places):
            policy(f'[service]\nmetrics = "{place}"\n{POOL}')
            service.process.send_signal(signal.SIGHUP)
            service.wait_for(*(("policy taken", n_taken) if n_taken else ("policy refused",)))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
                assert b"blockplane_" in answer.read()
        assert service.end() == 0


def test_a_volume_is_given_another_name(pool):
    with serving(policy(POOL)) as service:
        service.wait_for("volume open")
        for n, name in enumerate(("tank", "pool", "tank"), 2):
            policy(POOL.replace("volume.pool", f"volume.{name}"))
            service.process.send_signal(signal.SIGHUP)
            service.wait_for("volume open", n)
        assert service.said("volume not open") == []
        assert service.end() == 0


# --- systemd ---------------------------------------------------------------------------------------------------------


class Manager:
    """Hears what a service tells systemd."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.settimeout(TIMEOUT_S)
        self.heard: list[str] = []

    def wait_for(self, *wanted: str) -> None:
        """Take messages until these have come, in this order, perhaps with others between."""
        for word in wanted:
            while True:
                self.heard.append(self._socket.recv(4096).decode())
                if self.heard[-1].startswith(word):
                    break

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_hears_of_everything(pool, tmp_path, kind):
    name = str(tmp_path / "notify") if kind == "path" else f"@blockplane-test-{os.getpid()}"
    manager = Manager(name)
    words = policy(POOL)
    try:
        with serving(words, environment={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "400000"}) as service:
            manager.wait_for("READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1")
            assert "STATUS=1 of 1 volumes open" in manager.heard
            service.process.send_signal(signal.SIGHUP)
            manager.wait_for("RELOADING=1\nMONOTONIC_USEC=", "READY=1")
            service.process.send_signal(signal.SIGTERM)
            manager.wait_for("STOPPING=1")
            assert service.process.wait(TIMEOUT_S) == 0
    finally:
        manager.close()
    (reloading,) = [heard for heard in manager.heard if heard.startswith("RELOADING=1")]
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", reloading)


# --- what it gives up, and what it says ------------------------------------------------------------------------------


def status_of(service: Serving) -> dict[str, str]:
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_process_has_given_up_privileges_cores_and_open_files(pool):
    words = policy(POOL + '[volume.pool.snapshot.often]\nevery = "1h"\n')
    with serving(words) as service:
        service.wait_for("job done")
        found = status_of(service)
        assert (found["NoNewPrivs"], found["Umask"]) == ("1", "0077")
        (core,) = [
            line.split()[4:6]
            for line in Path(f"/proc/{service.process.pid}/limits").read_text().splitlines()
            if line.startswith("Max core file size")
        ]
        assert core == ["0", "0"]
        wait_for(lambda: Path("pool/service.json").exists(), "what is remembered")
        assert Path("pool/service.json").stat().st_mode & 0o777 == 0o600
        assert Path("pool/control.sock").stat().st_mode & 0o777 == 0o600
        assert service.end() == 0


def test_metrics_are_what_an_independent_parser_reads(pool):
    words = policy(POOL + '[volume.pool.snapshot.often]\nevery = "1h"\n[volume.lost]\npath = "lost"\n')
    port = free_port()
    with serving(words, "--metrics", f":{port}", "--metrics-file", "m.prom") as service:
        service.wait_for("job done")
        service.wait_for("volume not open")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            found = metrics_of(answer.read().decode())
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=TIMEOUT_S)
        wait_for(lambda: Path("m.prom").exists(), "the file")
        assert service.end() == 0
    with bp.Volume.open("pool", writable=False) as volume:
        assert found["blockplane_volume_size_bytes", "pool"] == volume.n_blocks * bp.BLOCK_BYTES
    assert found["blockplane_volume_up", "pool"] == 1
    assert found["blockplane_volume_up", "lost"] == 0
    assert found["blockplane_volume_snapshots", "pool", "regular"] == 3
    assert found["blockplane_job_runs_total", "pool", "snapshot", "often", "done"] == 1
    assert found["blockplane_job_failing", "pool", "snapshot", "often"] == 0
    assert found["blockplane_job_last_success_timestamp_seconds", "pool", "snapshot", "often"] > 1.6e9
    assert ("blockplane_volume_used_bytes", "lost") not in found
    kept = metrics_of(Path("m.prom").read_text())
    assert kept.keys() >= found.keys()
    assert Path("m.prom").stat().st_mode & 0o777 == 0o644


def test_metrics_tell_of_mirrors_and_replicas(pool, done):
    done("mirror", "add", pool, "copy", "--every", "1h")
    done("snapshot", "master", f"{pool}@june2")
    done("replicate", pool, "replica")
    done("put", f"{pool}:/", __file__)
    done("snapshot", "create", f"{pool}@newer")
    done("snapshot", "master", f"{pool}@newer")
    expected = done("replicas", pool, "--json").json["replicas"][0]
    (mirror,) = done("mirror", "status", pool, "--json").json["mirrors"]
    assert finish("serve", policy(POOL), "--once", "--metrics-file", "m.prom").returncode == 0
    found = metrics_of(Path("m.prom").read_text())
    assert found["blockplane_copy_left_bytes", "pool", "replica", "replica"] == expected["left_bytes"] > 0
    assert 0 < found["blockplane_copy_lag_seconds", "pool", "replica", "replica"] < 600
    assert found["blockplane_copy_heard_timestamp_seconds", "pool", "replica", "replica"] > 1.6e9
    assert found["blockplane_copy_lost", "pool", "replica", "replica"] == 0
    assert found["blockplane_copy_left_bytes", "pool", "mirror", os.path.abspath("copy")] == mirror["left_bytes"] > 0
    assert found["blockplane_copy_failing", "pool", "mirror", os.path.abspath("copy")] == 0


def test_the_file_of_a_one_shot_run_tells_of_what_its_own_jobs_brought(pool, done):
    done("mirror", "add", pool, "copy", "--every", "1s", "--size", "40M")
    jobs = '[volume.pool.snapshot.s]\nevery = "1d"\n[volume.pool.mirror.all]\nevery = "1s"\n'
    assert finish("serve", policy(POOL + jobs), "--once", "--metrics-file", "m.prom").returncode == 0
    found, copy = metrics_of(Path("m.prom").read_text()), os.path.abspath("copy")
    assert found["blockplane_job_runs_total", "pool", "mirror", "all", "done"] == 1
    assert found["blockplane_copy_left_bytes", "pool", "mirror", copy] == 0
    assert found["blockplane_copy_lag_seconds", "pool", "mirror", copy] == 0
    assert found["blockplane_copy_heard_timestamp_seconds", "pool", "mirror", copy] > 1.6e9


def test_what_a_mirror_job_leaves_out_is_a_warning(pool, done):
    done("mirror", "add", pool, "copy", "--every", "0.1s", "--size", "40M")
    done("mirror", "run", pool, "--once")
    for volume in ("copy", pool):
        done("snapshot", "create", f"{volume}@latest")
    log = finish("serve", policy(POOL + '[volume.pool.mirror.all]\nevery = "1s"\n'), "--once").stderr.decode()
    (line,) = [line for line in log.splitlines() if "has others named latest, left out" in line]
    assert f"; {os.path.abspath('copy')} has others" in line
    assert "warning" in line.lower()


def test_one_shot_runs_do_what_is_due_and_leave_a_file(pool):
    words = policy(POOL + '[volume.pool.snapshot.daily]\nevery = "1d"\nname = "daily-%H%M%S"\n')
    assert finish("serve", words, "--once", "--metrics-file", "m.prom").returncode == 0
    assert finish("serve", words, "--once").returncode == 0  # not due again
    assert len([name for name in snapshots_of("pool") if name.startswith("daily-")]) == 1
    found = metrics_of(Path("m.prom").read_text())
    assert found["blockplane_job_runs_total", "pool", "snapshot", "daily", "done"] == 1
    assert found["blockplane_volume_up", "pool"] == 1
    policy('[volume.lost]\npath = "lost"\n')
    assert finish("serve", words, "--once").returncode == 1


def test_nothing_foreign_is_raw_in_the_log(tmp_path, blockplane):
    name = "po\x1b[31mol\nx"
    bp.Volume.create(name, disks=1, size="8M").close()
    with serving("--volume", f"pool={name}") as service:
        service.wait_for("volume open")
        assert service.end() == 0
    raw = Path("serve.log").read_bytes()
    assert b"po\\u001b[31mol\\nx" in raw
    assert all(byte >= 0x20 or byte == 0x0A for byte in raw)
    plain = finish("serve", "--volume", f"pool={name}", "--once").stderr
    assert b"po\\x1b[31mol\\nx" in plain
    assert all(byte >= 0x20 or byte == 0x0A for byte in plain)


def test_an_idle_service_sleeps(pool, blockplane, record_property):
    words = policy(POOL + '[volume.pool.check.nightly]\nat = "03:00"\n')
    with serving(words) as service:
        service.wait_for("volume open")

        def switches() -> dict[str, int]:
            found = {}
            for task in Path(f"/proc/{service.process.pid}/task").iterdir():
                with suppress(FileNotFoundError):  # it has ended
                    text = (task / "status").read_text()
                    (n,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)
                    found[task.name] = int(n)
            return found

        assert blockplane("ls", "pool:/").status == 0
        before = switches()
        for _ in range(4):  # processes that take some time, and have nothing to do with it
            finish("--version")
        n_woken = sum(n - before.get(task, 0) for task, n in switches().items() if task in before)
        assert service.end() == 0
    record_property("summary", f"an idle service: woken {n_woken} times while four other processes ran")
    assert n_woken <= 8


def test_a_volume_that_is_not_there_keeps_no_mirror_of_another_from_running(blockplane, done, pool, tmp_path):
    done("mirror", "add", pool, tmp_path / "copy", "--size", "40M")
    Path("policy.toml").write_text(
        f'[volume.pool]\npath = "{pool}"\n[volume.pool.mirror.m]\nevery = "1s"\n[volume.other]\npath = "not-there"\n'
    )
    said = blockplane("serve", "--once", "policy.toml").err
    assert "not-there" in said
    assert done("ls", f"{tmp_path}/copy:/").out == done("ls", f"{pool}:/").out
