"""Transfers killed with SIGKILL, or cut, at random moments: they go on, end equal, and send little twice.

Processes of their own, over a pipe, a socket and files; full and incremental images. In all 15 kills and 15 cuts; with
--deep 300 and 300, in parts.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import blockplane as bp
from equality import Tree, differences, volume_tree

COMMAND = [sys.executable, "-c", "from blockplane.cli import main; main()"]
MIB = 1 << 20
N_EACH, N_EACH_DEEP = 12, 300
#: What may travel twice.
ALLOWANCE, SHARE = 16 * MIB, 0.02


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A volume with 48 MiB in june1 and 30 MiB of change in june2."""
    path = tmp_path_factory.mktemp("kills") / "pool"
    random_bytes = random.Random(5).randbytes
    with bp.Volume.create(path, disks=5, size="80M", parity=1) as volume:
        files = bp.FileSystem(volume)
        for i in range(12):
            files.write_bytes(f"/f{i}", random_bytes(4 * MIB))
        volume.snapshot("june1")
        for i in range(0, 12, 2):
            files.write_bytes(f"/f{i}", random_bytes(5 * MIB))
        volume.snapshot("june2")
    return path


@pytest.fixture(scope="module")
def trees(source) -> dict[str, Tree]:
    with bp.Volume.open(source, writable=False) as volume:
        return {name: volume_tree(bp.FileSystem(volume.get_snapshot(name))) for name in ("june1", "june2")}


@pytest.fixture(scope="module")
def first(source, tmp_path_factory) -> Path:
    """The stream of june1."""
    path = tmp_path_factory.mktemp("first") / "june1.bps"
    with bp.Volume.open(source, writable=False) as volume:
        bp.send(volume.image("june1"), path)
    return path


IMAGES = {"full": ("june1", "june1"), "increment": ("june2 - june1", "june2")}


def run(*arguments: str, **options) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=300, check=False, **options)


def start(*arguments: str, **options) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.DEVNULL, **options)


class Counting:
    """Carries bytes from one descriptor to another, up to a number of them; counts them."""

    def __init__(self, source: int, target: int, most: int = 1 << 62) -> None:
        self.n_bytes, self._source, self._target, self._left = 0, source, target, most
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while self._left and (data := os.read(self._source, min(1 << 16, self._left))):
                self._left -= len(data)
                while data:
                    n = os.write(self._target, data)
                    self.n_bytes += n
                    data = data[n:]
        os.close(self._target)

    def wait(self) -> None:
        self._thread.join()
        os.close(self._source)


def channel(kind: str) -> tuple[int, int]:
    """Return (reading end, writing end) of a pipe or a socket."""
    if kind == "pipe":
        return os.pipe()
    one, other = socket.socketpair()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    return one.detach(), other.detach()


def transfer(source: Path, copy: Path, text: str, kind: str, *, resume: Path | None, kill, cut: int = 1 << 62) -> int:
    """Send and receive by processes joined through a counter; return the bytes that left the sender.

    Parameters
    ----------
    kill : called with both processes, may kill them. cut : the receiver's input ends after so many bytes.
    """
    (out, sent), (into, passed) = channel("pipe"), channel(kind)
    more = ["--resume", str(resume)] if resume is not None else []
    sender = start("send", str(source), text, *more, stdout=sent)
    receiver = start("receive", str(copy), stdin=into)
    os.close(sent)
    os.close(into)
    carried = Counting(out, passed, cut)
    kill(sender, receiver)
    receiver.wait(timeout=300)
    with contextlib.suppress(ProcessLookupError):
        if carried.n_bytes >= cut:
            sender.kill()
    carried.wait()
    sender.wait(timeout=300)
    return carried.n_bytes


def token_of(copy: Path, path: Path) -> Path | None:
    """Write the destination's token; None where it has nothing to go on with."""
    if not copy.exists():
        return None
    asked = run("receive", str(copy), "--have")
    if asked.returncode:
        expected = b"no receive", b"was being made", b"is not a volume"
        assert any(words in asked.stderr for words in expected), asked.stderr
        return None
    path.write_bytes(asked.stdout)
    return path


def require_clean(copy: Path, snapshot: str, tree: Tree) -> None:
    with bp.Volume.open(copy) as volume:
        assert bp.interrupted_receives(volume) == []
        assert bp.check(volume).problems == []
        assert differences(volume_tree(bp.FileSystem(volume.get_snapshot(snapshot))), tree) == []
        assert volume.incoming.n_blocks == 0
    assert sorted(os.listdir(copy)) == ["disks", "lock", "volume.toml"]


def cases(is_deep: bool, part: tuple[int, int], seed: int) -> list[tuple[int, str, str]]:
    """(number, image, channel) of this run's cases."""
    n = N_EACH_DEEP if is_deep else N_EACH
    kinds = [(image, kind) for kind in ("pipe", "socket") for image in IMAGES]
    return [(seed + i, *kinds[i % len(kinds)]) for i in range(n) if i % part[1] == part[0]]


def killed(rng: random.Random, seconds: float):
    """Return what kills one of two processes, or both, after a random time."""
    victims, moment = rng.choice(["sender", "receiver", "both"]), rng.uniform(0.2, 1.0) * seconds

    def kill(sender, receiver) -> None:
        end = time.monotonic() + moment
        while time.monotonic() < end and receiver.poll() is None:
            time.sleep(0.005)
        for name, process in (("sender", sender), ("receiver", receiver)):
            if victims in (name, "both"):
                process.kill()

    return kill


def leave(_sender, _receiver) -> None:
    """Kill nobody."""


def prepare(copy: Path, image: str, first: Path) -> None:
    if image == "increment":
        bp.receive(first, copy)


@pytest.fixture
def seed() -> int:
    """The first case's number."""
    return int(os.environ["BLOCKPLANE_SEED"])


@pytest.fixture
def typical(source, tmp_path, first) -> float:
    """Seconds that a whole transfer takes here and now."""
    started = time.monotonic()
    transfer(source, tmp_path / "timed", "june1", "pipe", resume=None, kill=leave)
    subprocess.run(["rm", "-r", str(tmp_path / "timed")], check=True)
    return time.monotonic() - started


def go_on(source: Path, copy: Path, image: str, kind: str, folder: Path, carried: list[int]) -> None:
    """Bring an interrupted transfer to its end; carried: what went before, added to."""
    token = token_of(copy, folder / "token")
    if not has_arrived(copy, IMAGES[image][1]):
        carried.append(transfer(source, copy, IMAGES[image][0], kind, resume=token, kill=leave))


def has_arrived(copy: Path, snapshot: str) -> bool:
    if not (copy / "volume.toml").exists() or (copy / "making").exists():  # not made, or not all of it
        return False
    with bp.Volume.open(copy, writable=False) as volume:
        return snapshot in [s.name for s in volume.snapshots]


def require_thrifty(carried: list[int], whole: int) -> int:
    """Hold what travelled against the allowance for each interruption; return what travelled twice."""
    twice = sum(carried) - whole
    most = max(ALLOWANCE, int(SHARE * whole)) * (len(carried) - 1)
    assert twice <= most, f"{carried} of {whole}: {twice} more than once"
    return twice


def whole_bytes(source: Path, image: str) -> int:
    with bp.Volume.open(source, writable=False) as volume:
        return bp.send(volume.image(IMAGES[image][0]), None, dry_run=True).stream_bytes


def test_kills(source, trees, first, tmp_path, typical, is_deep, part, seed, record_property):
    """Sender, receiver or both, at any moment, once or twice in a row."""
    n_kills, n_interrupted, worst = 0, 0, 0
    for number, image, kind in cases(is_deep, part, seed):
        rng = random.Random(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        copy, carried = folder / "copy", []
        prepare(copy, image, first)
        for _ in range(rng.randint(1, 2)):
            token = token_of(copy, folder / "token")
            kill = killed(rng, typical)
            if has_arrived(copy, IMAGES[image][1]):
                break
            n_kills += 1
            carried.append(transfer(source, copy, IMAGES[image][0], kind, resume=token, kill=kill))
        go_on(source, copy, image, kind, folder, carried)
        require_clean(copy, IMAGES[image][1], trees[IMAGES[image][1]])
        n_interrupted += len(carried) - 1
        worst = max(worst, require_thrifty(carried, whole_bytes(source, image)))
        subprocess.run(["rm", "-r", str(folder)], check=True)
    record_property(
        "summary", f"kills: {n_kills}, {n_interrupted} interrupted a transfer, at most {worst / MIB:.1f} MiB sent twice"
    )
    assert n_interrupted > 0


def test_cuts(source, trees, first, tmp_path, is_deep, part, seed, record_property):
    """The connection ends after any number of bytes."""
    n_cuts, n_interrupted, worst = 0, 0, 0
    for number, image, kind in cases(is_deep, part, seed):
        rng = random.Random(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        copy, carried, whole = folder / "copy", [], whole_bytes(source, image)
        prepare(copy, image, first)
        for _ in range(rng.randint(1, 2)):
            token = token_of(copy, folder / "token")
            cut = rng.randrange(whole)
            n_cuts += 1
            carried.append(transfer(source, copy, IMAGES[image][0], kind, resume=token, kill=leave, cut=cut))
        go_on(source, copy, image, kind, folder, carried)
        require_clean(copy, IMAGES[image][1], trees[IMAGES[image][1]])
        n_interrupted += len(carried) - 1
        worst = max(worst, require_thrifty(carried, whole))
        subprocess.run(["rm", "-r", str(folder)], check=True)
    record_property(
        "summary", f"cuts: {n_cuts}, {n_interrupted} interrupted a transfer, at most {worst / MIB:.1f} MiB sent twice"
    )
    assert n_interrupted > 0


def test_a_send_into_a_file_killed(source, trees, first, tmp_path, is_deep, part, seed, record_property):
    """The file is gone on with; what was whole in it is not written again."""
    n_files = n_kept = 0
    for number in range(seed, seed + (60 if is_deep else 4)):
        if (number - seed) % part[1] != part[0]:
            continue
        rng = random.Random(number)
        image = rng.choice(sorted(IMAGES))
        path = tmp_path / f"{number}.bps"
        half = path.with_name(path.name + ".partial")
        for _ in range(2):
            sender = start(
                "send", str(source), IMAGES[image][0], "-o", str(path), "--resume", stdout=subprocess.DEVNULL
            )
            most = rng.randrange(4 * MIB, 28 * MIB)
            while sender.poll() is None and not (half.exists() and half.stat().st_size > most):
                time.sleep(0.001)
            sender.kill()
            sender.wait()
        before = half.stat().st_size if half.exists() else 0
        done = run("send", str(source), IMAGES[image][0], "-o", str(path), "--resume", "--json")
        assert (done.returncode, half.exists()) == (0, False), done.stderr
        n_files += 1
        n_kept += before > 0
        copy = tmp_path / f"{number}.copy"
        prepare(copy, image, first)
        bp.receive(path, copy)
        require_clean(copy, IMAGES[image][1], trees[IMAGES[image][1]])
        assert bp.verify_streams(path).ok
        subprocess.run(["rm", "-r", str(copy), str(path)], check=True)
    record_property("summary", f"sends into a file: {n_files}, killed twice each, {n_kept} gone on with")
    assert n_kept > 0


FORMS = {
    "split": ["-o", "FILE", "--split", "3M", "--digests"],
    "split and preallocated": ["-o", "FILE", "--split", "5M", "--preallocate"],
    "parts": ["--part", "FILE.a=june2 - june1", "--part", "FILE.b", "--part", "FILE.c"],
    "parts, split": ["--part", "FILE.a=june2 & june1", "--part", "FILE.b", "--split", "2M"],
}


def written_in(folder: Path) -> int:
    """Bytes of what a folder holds, room that was made too."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_a_send_into_many_files_killed(source, trees, first, tmp_path, is_deep, part, seed):
    """Pieces and parts are gone on with: what was written before is not written again, and all of it is equal."""
    n_kept = 0
    for number in range(seed, seed + (80 if is_deep else 4)):
        if (number - seed) % part[1] != part[0]:
            continue
        rng = random.Random(number)
        form, image = list(FORMS)[number % len(FORMS)], rng.choice(sorted(IMAGES))
        folder = tmp_path / str(number)
        folder.mkdir()
        words = [word.replace("FILE", str(folder / "out.bps")) for word in FORMS[form]]
        for _ in range(2):
            sender = start("send", str(source), IMAGES[image][0], *words, "--resume", stdout=subprocess.DEVNULL)
            most = rng.randrange(4 * MIB, 24 * MIB)
            while sender.poll() is None and written_in(folder) < most:
                time.sleep(0.001)
            sender.kill()
            sender.wait()
        n_kept += any(path.suffix == ".partial" for path in folder.iterdir())
        done = run("send", str(source), IMAGES[image][0], *words, "--resume", "--json")
        assert done.returncode == 0, done.stderr
        assert [path for path in folder.iterdir() if path.suffix == ".partial"] == []
        copy = tmp_path / f"{number}.copy"
        prepare(copy, image, first)
        streams = [folder / name for name in ("out.bps.a", "out.bps.b", "out.bps.c")] if "parts" in form else [folder]
        bp.receive_streams(*[s for s in streams if s.is_dir() or bp.is_stream(s)], target=copy)
        require_clean(copy, IMAGES[image][1], trees[IMAGES[image][1]])
        if (folder / "out.bps.sha256").exists():
            subprocess.run(["sha256sum", "--strict", "--quiet", "-c", "out.bps.sha256"], cwd=folder, check=True)
        subprocess.run(["rm", "-r", str(copy), str(folder)], check=True)
    assert n_kept > 0


def test_receiving_parts_killed(source, trees, first, tmp_path, is_deep, part, seed):
    """Whatever was received of which part: the list is received again, and what came is not written twice."""
    for number in range(seed, seed + (60 if is_deep else 3)):
        if (number - seed) % part[1] != part[0]:
            continue
        rng = random.Random(number)
        image = rng.choice(sorted(IMAGES))
        folder, copy = tmp_path / str(number), tmp_path / f"{number}.copy"
        folder.mkdir()
        with bp.Volume.open(source, writable=False) as volume:
            parts = [bp.Part(folder / "a.bps"), bp.Part(folder / "b.bps"), bp.Part(folder / "c.bps")]
            bp.send_parts(volume.image(IMAGES[image][0]), parts)
        prepare(copy, image, first)
        for _ in range(2):
            receiver = start("receive", str(copy), "-i", str(folder), stdout=subprocess.DEVNULL)
            end = time.monotonic() + rng.uniform(0.2, 1.5)
            while receiver.poll() is None and time.monotonic() < end:
                time.sleep(0.001)
            receiver.kill()
            receiver.wait()
        done = run("receive", str(copy), "-i", str(folder), "--json")
        assert done.returncode == 0, done.stdout
        require_clean(copy, IMAGES[image][1], trees[IMAGES[image][1]])
        subprocess.run(["rm", "-r", str(copy), str(folder)], check=True)
