"""What only a process of its own shows: imports, pipes, signals, terminals, locks."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import blockplane as bp
from equality import differences, host_tree
from places import contents
from rig.owners import wait_for

COMMAND = [sys.executable, "-c", "from blockplane.cli import main; main()"]


@pytest.fixture
def spawn():
    """Starts a verb; its pipes are closed and it has ended when the test is over."""
    with ExitStack() as stack:

        def start(*arguments: str, **options) -> subprocess.Popen[bytes]:
            return stack.enter_context(subprocess.Popen([*COMMAND, *arguments], **options))

        yield start


def finish(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=120, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["send", "--help"], ["completion", "bash"], ["nonsense"]])
def test_help_loads_no_numpy(arguments):
    program = (
        "import sys\n"
        "from blockplane.cli.main import run\n"
        f"status = run({arguments!r})\n"
        "found = sorted(n for n in sys.modules if n.split('.')[0] in ('numpy', 'pyroaring'))\n"
        "sys.exit(f'loaded {found[:3]}' if found else 0)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert outcome.returncode == 0, outcome.stderr


def test_importing_the_package_loads_no_numpy():
    program = "import sys, blockplane; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_a_stream_goes_through_a_pipe(spawn, pool, done):
    send = spawn("send", pool, "june1", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    receive = finish("receive", "copy", "--json", stdin=send.stdout)
    report = send.stderr.read()
    assert send.wait() == 0
    assert receive.returncode == 0, receive.stderr
    sent, received = json.loads(report.splitlines()[-1]), json.loads(receive.stdout)
    assert sent["stream_bytes"] == received["stream_bytes"] == os.path.getsize("june1.bps")
    done("get", "copy:/tree", "back")
    done("get", f"{pool}@june1:/tree", "same")
    assert differences(host_tree("back"), host_tree("same")) == []


def test_a_failing_send_to_standard_output_reports_on_standard_error(pool):
    outcome = finish("send", pool, "absent", "--json")
    assert outcome.stdout == b""
    assert json.loads(outcome.stderr.splitlines()[-1])["error"]["kind"] == "no-such-snapshot"


@pytest.mark.parametrize("words", [["info", "pool"], ["info", "pool", "--json"], ["stat", "pool:/later"], ["--help"]])
def test_a_full_standard_output_is_a_failure_in_one_line(pool, words):
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, env=plain, check=False
        )
    message = "standard output: No space left on device"
    assert (found.returncode, found.stderr.count("\n")) == (1, 1), found.stderr
    if "--json" in words:
        assert json.loads(found.stderr)["error"]["message"] == message
    else:
        assert found.stderr == f"blockplane: {message}\n"


def test_a_reader_that_goes_away_ends_it_quietly(spawn, pool):
    with bp.Volume.open(pool) as volume:
        files = bp.FileSystem(volume)
        files.mkdir("/many")
        for number in range(600):
            files.mknod(f"/many/{number:0250}", 0o644)
    listing = spawn("ls", f"{pool}:/many", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listing.stdout.readline()
    listing.stdout.close()
    assert (listing.wait(60), listing.stderr.read()) == (1, b"")


def test_a_send_whose_reader_goes_away_says_so(spawn, pool):
    sending = spawn("send", pool, "june1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    sending.stdout.close()
    assert sending.wait(60) == 1
    assert sending.stderr.read().startswith(b"blockplane: ")


def test_interrupt_is_status_130_and_leaves_the_volume_whole(spawn, pool, done):
    reader, writer = os.pipe()
    receiving = spawn("receive", pool, stdin=reader, stderr=subprocess.PIPE)
    os.close(reader)
    with open("june1.bps", "rb") as stream:
        os.write(writer, stream.read(100))
    deadline = time.monotonic() + 60
    while str(receiving.pid) not in Path(pool, "lock").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    receiving.send_signal(signal.SIGINT)
    assert receiving.wait(60) == 130
    assert b"Traceback" not in receiving.stderr.read()
    os.close(writer)
    assert done("check", pool, "--json").json["ok"] is True


@pytest.mark.parametrize("is_read", [True, False])
def test_an_interrupted_get_says_so_in_an_object_unless_nobody_reads_it(spawn, pool, done, is_read):
    Path("data").write_bytes(bytes(1 << 20))
    done("put", f"{pool}:/data", "data")
    os.mkfifo("pipe")
    getting = spawn("get", f"{pool}:/data", "pipe", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open("pipe", "rb") as taken:
        taken.read(10)
        if not is_read:
            getting.stdout.close()
        getting.send_signal(signal.SIGINT)
        assert getting.wait(60) == 130
    assert getting.stderr.read().strip() == b""
    if is_read:
        told = {"kind": "interrupted", "message": "interrupted", "hint": "", "exit": 130}
        assert json.loads(getting.stdout.read()) == {"ok": False, "error": told}


def test_an_interrupted_send_says_so_behind_its_stream_and_to_people_nothing(spawn, pool):
    for options, told in ((["--json"], b'{"ok": false, "error": {"kind": "interrupted", '), ([], b"")):
        sending = spawn("send", pool, "june1", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert sending.stdout.read(10)
        sending.send_signal(signal.SIGINT)
        assert sending.wait(60) == 130
        assert sending.stderr.read().strip()[:47] == told


def test_an_interrupt_ends_a_merge_whose_reader_takes_nothing(spawn, done):
    """Its writer waits in a thread of its own."""
    with bp.Volume.create("large", disks=1, size="48MiB") as volume:
        bp.FileSystem(volume).write_bytes("/data", os.urandom(20 << 20))
        volume.snapshot("one")
        bp.FileSystem(volume).write_bytes("/more", os.urandom(1 << 20))
        volume.snapshot("two")
    done("send", "large", "one", "-o", "one.bps")
    done("send", "large", "two - one", "-o", "two.bps")
    merging = spawn("stream", "merge", "one.bps", "two.bps", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert merging.stdout.read(1000)
    time.sleep(1)
    merging.send_signal(signal.SIGINT)
    assert merging.wait(60) == 130


@pytest.mark.parametrize(
    "module", ["blockplane.cli.main", "click", "blockplane.cli.volumes", "blockplane.api", "numpy", "pyroaring"]
)
def test_an_interrupt_while_a_module_loads_is_quiet(pool, module):
    program = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from blockplane.cli import main\n"
        "main(['info', 'pool'])\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (outcome.returncode, outcome.stderr.strip()) == (130, b"")


def test_a_volume_in_use_names_process_and_verb_and_can_be_waited_for(spawn, pool):
    with bp.Volume.open(pool, verb="receive"):
        refused = finish("ls", f"{pool}:/", "--json")
        error = json.loads(refused.stdout)["error"]
        assert (refused.returncode, error["kind"]) == (1, "in-use")
        assert str(os.getpid()) in error["message"]
        assert "receive" in error["message"]
        started = time.monotonic()
        assert finish("ls", f"{pool}:/", "--wait", "1").returncode == 1
        assert time.monotonic() - started >= 1
        waiting = spawn("ls", f"{pool}:/", "--wait", "60", stdout=subprocess.PIPE)
        time.sleep(0.5)
    assert waiting.communicate(timeout=60)[0].split() == [b"later", b"tree"]
    assert waiting.returncode == 0


def test_no_stream_to_or_from_a_terminal(spawn, pool):
    controller, terminal = pty.openpty()
    try:
        sending = spawn("send", pool, "june1", stdout=terminal, stderr=subprocess.PIPE)
        assert sending.wait(60) == 2
        assert b"terminal" in sending.stderr.read()
        receiving = spawn("receive", "copy", stdin=terminal, stderr=subprocess.PIPE)
        assert receiving.wait(60) == 2
        assert b"terminal" in receiving.stderr.read()
    finally:
        os.close(controller)
        os.close(terminal)
    assert not os.path.exists("copy")


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_descriptors_never_become_disks(pool, done, closed):
    command = f"{shlex.join(COMMAND)} send pool june1 {closed}"
    status = subprocess.run(["sh", "-c", f"{command} > out" if "1>" not in closed else command]).returncode
    assert status == (2 if "1>" in closed else 0)
    status = subprocess.run(["sh", "-c", f"{shlex.join(COMMAND)} receive copy {closed} < june1.bps"]).returncode
    assert status == 0
    assert (
        subprocess.run(["sh", "-c", f"{shlex.join(COMMAND)} receive other 0<&-"], capture_output=True).returncode == 2
    )
    assert done("check", pool, "--json").json["ok"] is True


def completed(line: str, breaks: str = "") -> set[str]:
    environment = {"_BLOCKPLANE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_WORDBREAKS": breaks}
    outcome = finish(env={**os.environ, **environment})
    assert outcome.stderr == b""
    return set(outcome.stdout.decode().split("\n")) - {""}


def test_completion_completes_verbs_and_options():
    assert "plain,snapshot" in completed("blockplane sn")
    assert {"plain,--output", "plain,--order", "plain,--older"} <= completed("blockplane send --o")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("send pool ", {"plain,june1", "plain,june2"}),
        ("send pool june2 - ", {"plain,june1", "plain,june2"}),
        ("image pool '(ju", {"plain,(june1", "plain,(june2"}),
        ("image pool june1..", {"plain,june1..june1", "plain,june1..june2"}),
        ("image pool (x", set()),
        ("image absent ", set()),
        ("image tree ", set()),
        ("snapshot delete pool@", {"plain,pool@june1", "plain,pool@june2"}),
        ("rollback pool@june2", {"plain,pool@june2"}),
        ("snapshot delete po", {"dir,po"}),
        ("info po", {"dir,po"}),
        ("ls po", {"file,po"}),
        ("ls pool:/", {"plain,pool:/later", "plain,pool:/tree/"}),
        ("cat pool@june1:/tree/h", {"plain,pool@june1:/tree/hello"}),
        ("ls june1.bps:/tr", {"plain,june1.bps:/tree/"}),
        ("ls pool@", {"plain,pool@june1", "plain,pool@june2"}),
        ("put pool:/ tr", {"file,tr"}),
        ("diff pool@june1 pool@", {"plain,pool@june1", "plain,pool@june2"}),
        ("who pool:/la", {"plain,pool:/later"}),
        ("mv pool:/la", {"plain,pool:/later"}),
        ("prune po", {"dir,po"}),
        ("image plan po", {"dir,po"}),
        ("image plan pool ju", {"plain,june1", "plain,june2"}),
    ],
)
def test_completion_knows_snapshots_and_files(pool, line, expected):
    assert completed(f"blockplane {line}") == expected


def test_bash_gets_what_stands_behind_its_own_cuts(pool):
    assert completed("blockplane rollback pool@j", "@:") == {"plain,june1", "plain,june2"}
    assert completed("blockplane cat pool@june1:/tree/f", "@:") == {"plain,/tree/folder/"}


def test_completion_of_a_volume_in_use_is_silent_and_writes_nothing(pool):
    before = contents(pool)
    with bp.Volume.open(pool, writable=False):
        completed("blockplane image pool ")
    assert contents(pool) == before


def test_the_bash_script_completes(pool):
    script = finish("completion", "bash").stdout.decode()
    assert "COMP_LINE" in script
    program = f"""{script}
        blockplane() {{ :; }}
        env() {{ command env "${{@:1:$#-1}}" {shlex.join(COMMAND)}; }}
        COMP_LINE='blockplane rollback pool@j' COMP_POINT=26 COMP_WORDBREAKS='@:'
        compopt() {{ :; }}
        _blockplane_completion blockplane
        echo "${{COMPREPLY[*]}}"
    """
    outcome = subprocess.run(["bash", "-c", program], capture_output=True, timeout=60)
    assert outcome.stdout.split() == [b"june1", b"june2"], outcome.stderr


def test_names_print_in_the_c_locale(pool):
    with bp.Volume.open(pool) as volume:
        bp.FileSystem(volume).mkdir("/grüße")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    outcome = finish("ls", f"{pool}:/", env=environment)
    assert outcome.returncode == 0, outcome.stderr
    assert len(outcome.stdout.splitlines()) == 3


def test_the_public_api_as_the_documents_show_it(tmp_path, tree, monkeypatch):
    monkeypatch.chdir(tmp_path)
    events = []
    with bp.Volume.create("pool", disks=5, size="8M", parity=1) as volume:
        files = bp.FileSystem(volume)
        files.put(tree, "/include")
        volume.sync()
        june1 = volume.snapshot("june1")
        files.mkdir("/more")
        volume.snapshot("june2")
        image = volume.image("june2 + june1")
        assert image.n_bytes == 4096 * len(image.plane) == 4096 * image.n_blocks
        assert (image.top.name, image.base) == ("june2", None)
        bp.send(volume.image("june1"), "full.bps", progress=events.append)
        with open("increment.bps", "wb") as file:
            bp.send(volume.image("june2 - june1"), file)
        assert len(june1.plane - image.plane) == 0
        assert len(june1.plane) == june1.n_blocks
    assert events[-1].done_bytes == events[-1].total_bytes
    bp.receive("full.bps", "copy")
    with open("increment.bps", "rb") as file:
        report = bp.receive(file, "copy")
    assert report.arrived == ("june2",)
    with bp.open_stream("full.bps", "increment.bps") as chain:
        assert bp.FileSystem(chain).read_bytes("/include/hello") == b"hello\n"
    with bp.Volume.open("copy") as copy:
        assert bp.FileSystem(copy).listdir("/") == ["include", "more"]
        assert bp.check(copy).ok


def test_who_takes_in_what_others_made_is_confined(spawn, tmp_path):
    """S17: seen in a process that waits for a stream."""
    process = spawn("receive", str(tmp_path / "copy"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    proc = Path("/proc") / str(process.pid)
    wait_for(lambda: "NoNewPrivs:\t1" in (proc / "status").read_text(), "the process to be confined")
    wait_for(lambda: "unlimited" not in (proc / "limits").read_text().split("Max address space")[1][:30], "its memory")
    limits = {line[:26].strip(): line[26:].split()[:2] for line in (proc / "limits").read_text().splitlines()}
    assert limits["Max core file size"] == ["0", "0"]
    process.stdin.write(b"no stream")
    process.stdin.close()
    assert process.wait(60) == 1
    assert not (tmp_path / "copy").exists()


def test_open_files_are_bounded():
    program = (
        "import resource\n"
        "from blockplane.cli import confine\n"
        "confine._MOST_FILES = 64\n"
        "confine.confine()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, text=True)
    assert outcome.stdout == "(64, 64)\n", outcome.stderr
